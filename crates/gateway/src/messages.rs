//! Replies that were kept back, message by message; messages that go both ways.

use bytes::{BufMut, Bytes, BytesMut};

/// CopyData.
pub(crate) fn put_copy_data(out: &mut BytesMut, data: &[u8]) {
    out.put_u8(b'd');
    out.put_u32(data.len() as u32 + 4);
    out.put_slice(data);
}

/// The messages in these bytes, each with its tag: whole, with the head.
pub(crate) struct Messages(pub(crate) Bytes);

impl Iterator for Messages {
    type Item = (u8, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        let [tag, a, b, c, d, ..] = self.0[..] else { return None };
        let whole = 1 + u32::from_be_bytes([a, b, c, d]) as usize;
        Some((tag, self.0.split_to(whole.min(self.0.len()))))
    }
}
