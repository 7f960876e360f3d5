//! Replies that were kept back, message by message.

use bytes::Bytes;

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
