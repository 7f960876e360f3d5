//! Text inside of binary values: in the elements of arrays, the fields of composite values, the bounds of ranges. A value whose text gets another
//! length is written anew, with the lengths around it.
//!
//! The formats are those of array_send, record_send, range_send and multirange_send.

use super::{PLAIN_TYPES, TEXT_TYPES, binary_text};
use crate::binary_format::{EMPTY, NO_LOWER, NO_UPPER, RECORD, RECORDS};
use bytes::{BufMut, BytesMut};
use pgherd_model::{FIRST_OF_USERS, ServerError};
use pgherd_shards::SimpleResult;
use std::collections::HashMap;

/// What [`Shapes::read`] reads, of all types of a database whose binary values are known.
pub(crate) const SHAPES: &str = "SELECT t.oid::pg_catalog.text, CASE WHEN t.typtype = 'e' THEN 't' \
     WHEN t.typtype IN ('c', 'd', 'r', 'm') THEN t.typtype::pg_catalog.text \
     WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc THEN 'a' \
     WHEN t.typsend::pg_catalog.oid IN (SELECT s.oid FROM pg_catalog.pg_proc s WHERE s.pronamespace = 'pg_catalog'::pg_catalog.regnamespace \
       AND s.proname IN ('textsend', 'varcharsend', 'bpcharsend', 'namesend', 'unknownsend', 'json_send', 'jsonb_send', 'jsonpath_send', \
       'cstring_send', 'charsend')) THEN 't' \
     WHEN t.typtype = 'b' AND t.oid < 16384 AND t.typcategory IN ('N', 'B', 'D', 'T', 'I', 'G', 'V') THEN 'p' ELSE '' END, \
     CASE t.typtype WHEN 'd' THEN t.typbasetype WHEN 'r' THEN r.rngsubtype ELSE m.rngtypid END::pg_catalog.text \
     FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid \
     LEFT JOIN pg_catalog.pg_range m ON m.rngmultitypid = t.oid";

/// What a type's binary values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    /// no text
    Plain,
    /// elements, as an array
    Elements,
    /// fields, as a composite value
    Fields,
    /// those of another type: a domain's
    Same(u32),
    /// bounds of that type: a range
    Bounds(u32),
    /// ranges of that type: a multirange
    Ranges(u32),
}

/// What is known of a database's types.
#[derive(Debug, Default)]
pub(crate) struct Shapes(HashMap<u32, Shape>);

/// Appends text in another encoding.
pub(super) type Recode<'a> = &'a dyn Fn(&[u8], &mut BytesMut) -> Result<(), ServerError>;

impl Shapes {
    /// From the answer to [`SHAPES`].
    pub(crate) fn read(told: &SimpleResult) -> Self {
        let of = |row| {
            let number = |column| told.text(row, column).and_then(|n| n.parse().ok());
            let shape = match (told.text(row, 1)?, number(2)) {
                ("t", _) => Shape::Text,
                ("p", _) => Shape::Plain,
                ("a", _) => Shape::Elements,
                ("c", _) => Shape::Fields,
                ("d", Some(of)) => Shape::Same(of),
                ("r", Some(of)) => Shape::Bounds(of),
                ("m", Some(of)) => Shape::Ranges(of),
                _ => return None,
            };
            Some((number(0)?, shape))
        };
        Self((0..told.rows.len()).filter_map(of).collect())
    }

    /// Whether they are to be read again for a type: none was read, or it has been made since.
    pub(crate) fn lacks(&self, type_oid: u32) -> bool {
        self.0.is_empty() || (type_oid >= FIRST_OF_USERS && !self.0.contains_key(&type_oid))
    }

    fn of(&self, type_oid: u32) -> Option<Shape> {
        match type_oid {
            _ if TEXT_TYPES.contains(&type_oid) => Some(Shape::Text),
            _ if PLAIN_TYPES.contains(&type_oid) => Some(Shape::Plain),
            RECORD => Some(Shape::Fields),
            RECORDS => Some(Shape::Elements),
            _ => self.0.get(&type_oid).copied(),
        }
    }

    /// Appends a value with its text in another encoding.
    ///
    /// # Errors
    /// 0A000 for a type that is not known, and for bytes that are no value of it; those of `recode`.
    pub(super) fn write(
        &self,
        type_oid: u32,
        value: &[u8],
        recode: Recode<'_>,
        out: &mut BytesMut,
    ) -> Result<(), ServerError> {
        if value.is_ascii() {
            out.put_slice(value);
            return Ok(());
        }
        let mut rest = value;
        match self.of(type_oid).ok_or_else(binary_text)? {
            Shape::Text => return recode(value, out),
            Shape::Plain => out.put_slice(value),
            Shape::Same(base) => return self.write(base, value, recode, out),
            Shape::Elements => {
                let head = piece(&mut rest, 12, out)?;
                let element = number(&head[8..]);
                // A length and a lower bound for each dimension.
                piece(&mut rest, 8 * number(head) as usize, out)?;
                while !rest.is_empty() {
                    self.sized(element, &mut rest, recode, out)?;
                }
            }
            Shape::Fields => {
                piece(&mut rest, 4, out)?;
                while !rest.is_empty() {
                    let of = number(piece(&mut rest, 4, out)?);
                    self.sized(of, &mut rest, recode, out)?;
                }
            }
            Shape::Bounds(of) => {
                let flags = piece(&mut rest, 1, out)?[0];
                for none in [NO_LOWER, NO_UPPER] {
                    if flags & (none | EMPTY) == 0 {
                        self.sized(of, &mut rest, recode, out)?;
                    }
                }
            }
            Shape::Ranges(of) => {
                piece(&mut rest, 4, out)?;
                while !rest.is_empty() {
                    self.sized(of, &mut rest, recode, out)?;
                }
            }
        }
        Ok(())
    }

    /// A length, which is -1 for NULL, and a value.
    pub(super) fn sized(
        &self,
        type_oid: u32,
        rest: &mut &[u8],
        recode: Recode<'_>,
        out: &mut BytesMut,
    ) -> Result<(), ServerError> {
        let start = out.len();
        let length = number(piece(rest, 4, out)?);
        if length == u32::MAX {
            return Ok(());
        }
        let (value, behind) = rest.split_at_checked(length as usize).ok_or_else(binary_text)?;
        *rest = behind;
        self.write(type_oid, value, recode, out)?;
        let length = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }
}

/// Takes so many bytes over as they are.
fn piece<'v>(rest: &mut &'v [u8], length: usize, out: &mut BytesMut) -> Result<&'v [u8], ServerError> {
    let (piece, behind) = rest.split_at_checked(length).ok_or_else(binary_text)?;
    *rest = behind;
    out.put_slice(piece);
    Ok(piece)
}

fn number(bytes: &[u8]) -> u32 {
    bytes[..4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binary_format::tests::{numbers, sized};

    /// Every e with an acute accent becomes one byte.
    fn recode(text: &[u8], out: &mut BytesMut) -> Result<(), ServerError> {
        let text = std::str::from_utf8(text).expect("UTF-8");
        text.chars()
            .for_each(|c| out.put_u8(if c == '\u{e9}' { 0x81 } else { c as u8 }));
        Ok(())
    }

    #[test]
    fn text_is_found_at_any_depth() {
        let (pair, moods, mood) = (20_000, 20_001, 20_002);
        let shapes = Shapes(HashMap::from([
            (pair, Shape::Fields),
            (moods, Shape::Elements),
            (mood, Shape::Text),
            (20_003, Shape::Bounds(25)),
        ]));
        let value = |word: &[u8]| {
            let array = [numbers(&[1, 0, mood, 2, 1]), sized(word), numbers(&[u32::MAX])].concat();
            [
                numbers(&[2, 23]),
                sized(&numbers(&[200])),
                numbers(&[moods]),
                sized(&array),
            ]
            .concat()
        };
        let mut out = BytesMut::new();
        shapes
            .write(pair, &value("caf\u{e9}".as_bytes()), &recode, &mut out)
            .expect("known");
        assert_eq!(out, value(b"caf\x81"));
        let range = |word: &[u8]| [vec![0x12], sized(word)].concat();
        let mut out = BytesMut::new();
        shapes
            .write(20_003, &range("\u{e9}".as_bytes()), &recode, &mut out)
            .expect("known");
        assert_eq!(out, range(b"\x81"));
        let unknown = shapes.write(20_009, "\u{e9}".as_bytes(), &recode, &mut out);
        assert_eq!(unknown.expect_err("unknown").sqlstate().code(), "0A000");
        assert!(
            shapes.write(pair, "\u{e9}".as_bytes(), &recode, &mut out).is_err(),
            "cut short"
        );
    }
}
