//! DataRow messages taken apart and put together.

use bytes::{BufMut, BytesMut};

/// The fields of one DataRow message (letter and length included): bytes of each value in the message, None for NULL.
pub(crate) fn fields(message: &[u8], out: &mut Vec<Option<std::ops::Range<usize>>>) -> Option<()> {
    out.clear();
    let count = u16::from_be_bytes(message.get(5..7)?.try_into().ok()?);
    let mut at = 7;
    for _ in 0..count {
        let length = i32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?);
        at += 4;
        match usize::try_from(length) {
            Ok(length) => {
                message.get(at..at + length)?;
                out.push(Some(at..at + length));
                at += length;
            }
            Err(_) => out.push(None),
        }
    }
    Some(())
}

/// Splits a batch into its messages.
pub(crate) fn messages(batch: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = batch;
    std::iter::from_fn(move || {
        let length = u32::from_be_bytes(rest.get(1..5)?.try_into().ok()?) as usize;
        let (message, behind) = rest.split_at_checked(length + 1)?;
        rest = behind;
        Some(message)
    })
}

/// Writes a DataRow message value by value.
pub(crate) struct RowWriter<'a> {
    out: &'a mut BytesMut,
    start: usize,
    count: u16,
}

impl<'a> RowWriter<'a> {
    pub fn new(out: &'a mut BytesMut) -> Self {
        let start = out.len();
        out.put_slice(b"D\0\0\0\0\0\0");
        Self { out, start, count: 0 }
    }

    pub fn value(&mut self, value: Option<&[u8]>) {
        self.count += 1;
        match value {
            Some(value) => {
                self.out.put_i32(value.len() as i32);
                self.out.put_slice(value);
            }
            None => self.out.put_i32(-1),
        }
    }

    pub fn finish(self) {
        let length = (self.out.len() - self.start - 1) as u32;
        self.out[self.start + 1..self.start + 5].copy_from_slice(&length.to_be_bytes());
        self.out[self.start + 5..self.start + 7].copy_from_slice(&self.count.to_be_bytes());
    }
}
