//! The text in a COPY in binary, which goes by in pieces of any size: a header, rows of values with their lengths, an end.

use super::values::{Recode, Shapes};
use bytes::{BufMut, BytesMut};
use pgherd_model::ServerError;

/// The signature, flags, and the length of what may stand behind them.
const HEADER: usize = 19;

/// A COPY under way, in one direction.
pub(crate) struct BinaryCopy {
    /// of the columns
    types: Vec<u32>,
    /// what has come of a row that is not whole
    begun: BytesMut,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Rows,
    /// behind the end, or in what is no such data: PostgreSQL judges it
    Over,
}

impl BinaryCopy {
    /// Of columns of these types.
    pub(crate) fn new(types: Vec<u32>) -> Self {
        Self {
            types,
            begun: BytesMut::new(),
            state: State::Header,
        }
    }

    /// Takes the next piece, and appends what is whole by now.
    ///
    /// # Errors
    /// Those of a value that cannot be converted.
    pub(super) fn convert(
        &mut self,
        data: &[u8],
        shapes: &Shapes,
        recode: Recode<'_>,
        out: &mut BytesMut,
    ) -> Result<(), ServerError> {
        self.begun.extend_from_slice(data);
        if self.state == State::Header {
            let Some(length) = header_length(&self.begun) else {
                return Ok(());
            };
            out.put_slice(&self.begun.split_to(length));
            self.state = State::Rows;
        }
        while self.state == State::Rows {
            let Some(length) = row_length(&self.begun) else {
                return Ok(());
            };
            let row = self.begun.split_to(length);
            out.put_slice(&row[..2]);
            if length == 2 {
                // No columns, or the end.
                self.state = if row[..] == [0xff, 0xff] {
                    State::Over
                } else {
                    State::Rows
                };
                continue;
            }
            let mut rest = &row[2..];
            for at in 0.. {
                if rest.is_empty() {
                    break;
                }
                let type_oid = self.types.get(at).copied().unwrap_or(0);
                shapes.sized(type_oid, &mut rest, recode, out)?;
            }
        }
        out.put_slice(&self.begun.split());
        Ok(())
    }

    /// What is left when the data has ended in the middle of a row.
    pub(crate) fn rest(&mut self) -> BytesMut {
        self.begun.split()
    }
}

/// None where more is to come.
fn header_length(data: &[u8]) -> Option<usize> {
    let length = data.get(15..HEADER)?;
    let extension = u32::from_be_bytes(length.try_into().ok()?) as usize;
    let whole = HEADER.saturating_add(extension);
    (data.len() >= whole).then_some(whole)
}

/// None where more is to come.
fn row_length(data: &[u8]) -> Option<usize> {
    let count = i16::from_be_bytes(data.get(..2)?.try_into().ok()?);
    let mut at = 2;
    for _ in 0..count {
        let length = i32::from_be_bytes(data.get(at..at + 4)?.try_into().ok()?);
        at += 4 + usize::try_from(length).unwrap_or(0);
    }
    (data.len() >= at).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::super::binary_text;
    use super::*;

    #[test]
    fn rows_are_converted_however_they_come() {
        let copy = |text: &[u8]| {
            let mut data = b"PGCOPY\n\xff\r\n\0".to_vec();
            data.extend_from_slice(&[0; 8]);
            for _ in 0..2 {
                data.extend_from_slice(&2i16.to_be_bytes());
                data.extend_from_slice(&4i32.to_be_bytes());
                data.extend_from_slice(&200i32.to_be_bytes());
                data.extend_from_slice(&(text.len() as i32).to_be_bytes());
                data.extend_from_slice(text);
            }
            data.extend_from_slice(&1i16.to_be_bytes());
            data.extend_from_slice(&(-1i32).to_be_bytes());
            data.extend_from_slice(&(-1i16).to_be_bytes());
            data
        };
        let recode = |text: &[u8], out: &mut BytesMut| {
            let text = std::str::from_utf8(text).map_err(|_| binary_text())?;
            text.chars()
                .for_each(|c| out.put_u8(if c == '\u{e9}' { 0x81 } else { c as u8 }));
            Ok(())
        };
        let (came, expected) = (copy("caf\u{e9}".as_bytes()), copy(b"caf\x81"));
        for size in [1, 7, 20, 1000] {
            let mut under_way = BinaryCopy::new(vec![23, 25]);
            let mut out = BytesMut::new();
            for piece in came.chunks(size) {
                under_way
                    .convert(piece, &Shapes::default(), &recode, &mut out)
                    .expect("converts");
            }
            assert_eq!(out, expected[..], "in pieces of {size}");
            assert!(under_way.rest().is_empty());
        }
    }
}
