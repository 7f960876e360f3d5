//! The binary format: a header, tuples of (field count, then length and bytes of each field), a trailer.
//! What is not well-formed is left to a shard, which then reads it as it came.

use std::ops::Range;

/// `PGCOPY\n\xff\r\n\0`, flags, length of the extension area.
const FIXED_HEADER: usize = 19;

/// The bytes of a tuple's field count.
pub(super) const COUNT: usize = 2;

/// What was found behind the present row's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    /// the stream's header, of this many bytes
    Header(usize),
    /// a tuple of this many bytes
    Tuple(usize),
    /// the trailer and nothing behind it (yet)
    Trailer,
    /// more input is needed to tell
    More,
    /// a tuple with another number of fields
    FieldCount(i16),
    /// not well-formed (or bytes behind the trailer)
    Malformed,
}

/// Finds tuple after tuple; remembers how far it has looked.
#[derive(Debug, Clone)]
pub(super) struct Tuples {
    header_seen: bool,
    /// fields that a tuple must have
    fields: usize,
    /// bytes of the present tuple that were looked at, and the fields in them
    at: usize,
    values: Vec<Option<Range<usize>>>,
}

impl Tuples {
    pub(super) fn new(fields: usize) -> Self {
        Self {
            header_seen: false,
            fields,
            at: 0,
            values: Vec::with_capacity(fields),
        }
    }

    /// How many fields a tuple must have.
    pub(super) fn fields(&self) -> usize {
        self.fields
    }

    /// Starts with the next tuple.
    pub(super) fn advance(&mut self) {
        self.at = 0;
        self.values.clear();
    }

    /// The field at `position` of the tuple just found; None for NULL.
    pub(super) fn field<'a>(&self, input: &'a [u8], position: usize) -> Option<&'a [u8]> {
        input.get(self.values.get(position)?.clone()?)
    }

    /// How many complete tuples `input` has from its start on, where the first has `whole` bytes.
    pub(super) fn count(&self, input: &[u8], whole: usize) -> usize {
        let (mut tuples, mut at, mut count) = (self.clone(), whole, 1);
        loop {
            tuples.advance();
            match tuples.scan(&input[at..]) {
                Scan::Tuple(length) => at += length,
                _ => return count,
            }
            count += 1;
        }
    }

    /// Looks on in `input`, which starts where the present tuple does.
    pub(super) fn scan(&mut self, input: &[u8]) -> Scan {
        if !self.header_seen {
            let Some(length) = input.get(FIXED_HEADER - 4..FIXED_HEADER) else {
                return Scan::More;
            };
            let Ok(extension) = usize::try_from(int(length)) else {
                return Scan::Malformed;
            };
            if !input.starts_with(b"PGCOPY\n\xff\r\n\0") {
                return Scan::Malformed;
            }
            if input.len() < FIXED_HEADER + extension {
                return Scan::More;
            }
            self.header_seen = true;
            return Scan::Header(FIXED_HEADER + extension);
        }
        if self.at == 0 {
            let Some(count) = input.get(..2) else { return Scan::More };
            let count = i16::from_be_bytes([count[0], count[1]]);
            if count == -1 {
                return if input.len() == 2 {
                    Scan::Trailer
                } else {
                    Scan::Malformed
                };
            }
            if usize::try_from(count) != Ok(self.fields) {
                return Scan::FieldCount(count);
            }
            self.at = 2;
        }
        while self.values.len() < self.fields {
            let Some(length) = input.get(self.at..self.at + 4) else {
                return Scan::More;
            };
            let start = self.at + 4;
            let value = match int(length) {
                -1 => None,
                length => match usize::try_from(length) {
                    Ok(length) => Some(start..start + length),
                    Err(_) => return Scan::Malformed,
                },
            };
            let end = value.as_ref().map_or(start, |v| v.end);
            if end > input.len() {
                return Scan::More;
            }
            self.at = end;
            self.values.push(value);
        }
        Scan::Tuple(self.at)
    }
}

/// The head of a tuple that has these values in front of its own fields: a new count, and the values. What follows is
/// `tuple` behind its [`COUNT`].
pub(super) fn write_supplied(tuple: &[u8], values: &[Option<Vec<u8>>], out: &mut Vec<u8>) {
    let fields = i16::from_be_bytes([tuple[0], tuple[1]]);
    out.extend_from_slice(&(fields + values.len() as i16).to_be_bytes());
    for value in values {
        let length = value.as_ref().map_or(-1, |v| v.len() as i32);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(value.as_deref().unwrap_or_default());
    }
}

fn int(bytes: &[u8]) -> i32 {
    bytes.try_into().map_or(-2, i32::from_be_bytes)
}
