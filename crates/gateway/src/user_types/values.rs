//! OIDs inside of binary values: an array names its elements' type, a composite value those of its fields, whatever is in them
//! theirs. They are as long everywhere, so a value is translated where it is.
//!
//! The formats are those of array_send, record_send, range_send and multirange_send.

use crate::binary_format::{EMPTY, NO_LOWER, NO_UPPER, RECORD, RECORDS};
use pgherd_model::FIRST_OF_USERS;
use std::collections::{BTreeSet, HashMap};

/// What a type's binary values have in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// no OIDs
    Nothing,
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

/// Whether values of this type may have OIDs of users' types in them.
pub(super) fn may_hold(oid: u32) -> bool {
    oid >= FIRST_OF_USERS || oid == RECORD || oid == RECORDS
}

/// What was found in values.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// where OIDs of users' types stand
    pub(super) places: Vec<usize>,
    /// types of which it is not known what their values hold
    pub(super) unknown: BTreeSet<u32>,
}

/// A message that is read from one place on.
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) known: &'a HashMap<u32, Holds>,
    pub(super) found: Found,
}

impl Reader<'_> {
    /// A DataRow's body: the columns of these positions are of these types. None where it is not what it should be.
    pub(super) fn row(&mut self, columns: &[(usize, u32)]) -> Option<()> {
        let mut at = 2;
        let mut columns = columns.iter().peekable();
        for position in 0.. {
            let Some((next, oid)) = columns.peek() else {
                return Some(());
            };
            let is_held = *next == position;
            at = self.sized(at, |this, at, end| match is_held {
                true => this.value(*oid, at, end),
                false => Some(()),
            })?;
            if is_held {
                columns.next();
            }
        }
        Some(())
    }

    fn number(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    /// A length and as many bytes; NULL is one of -1. Where it ends.
    fn sized(&mut self, at: usize, read: impl FnOnce(&mut Self, usize, usize) -> Option<()>) -> Option<usize> {
        let start = at + 4;
        match self.number(at)? {
            u32::MAX => Some(start),
            length => {
                let end = start + length as usize;
                read(self, start, end)?;
                Some(end)
            }
        }
    }

    /// An OID that stands in the value.
    fn oid(&mut self, at: usize) -> Option<u32> {
        let oid = self.number(at)?;
        if oid >= FIRST_OF_USERS {
            self.found.places.push(at);
        }
        Some(oid)
    }

    fn value(&mut self, of: u32, at: usize, end: usize) -> Option<()> {
        let holds = match of {
            RECORD => Holds::Fields,
            RECORDS => Holds::Elements,
            ..FIRST_OF_USERS => Holds::Nothing,
            _ => match self.known.get(&of) {
                Some(holds) => *holds,
                None => {
                    self.found.unknown.insert(of);
                    Holds::Nothing
                }
            },
        };
        match holds {
            Holds::Nothing => Some(()),
            Holds::Same(base) => self.value(base, at, end),
            Holds::Elements => {
                let dimensions = self.number(at)? as usize;
                let element = self.oid(at + 8)?;
                // A length and a lower bound for each dimension.
                let mut at = at + 12 + dimensions * 8;
                while at < end {
                    at = self.sized(at, |this, at, end| this.value(element, at, end))?;
                }
                Some(())
            }
            Holds::Fields => {
                let mut at = at + 4;
                while at < end {
                    let of = self.oid(at)?;
                    at = self.sized(at + 4, |this, at, end| this.value(of, at, end))?;
                }
                Some(())
            }
            Holds::Bounds(of) => {
                let flags = *self.bytes.get(at)?;
                let bounds = [NO_LOWER, NO_UPPER].iter().filter(|none| flags & (**none | EMPTY) == 0);
                bounds
                    .clone()
                    .try_fold(at + 1, |at, _| self.sized(at, |this, at, end| this.value(of, at, end)))
                    .map(drop)
            }
            Holds::Ranges(of) => {
                let mut at = at + 4;
                while at < end {
                    at = self.sized(at, |this, at, end| this.value(of, at, end))?;
                }
                Some(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binary_format::tests::{numbers, sized};

    /// A row of a number and of a composite value with an array of an enum.
    #[test]
    fn oids_are_found_at_any_depth() {
        let (pair, moods, mood) = (20_000, 20_001, 20_002);
        let array = [numbers(&[1, 0, mood, 2, 1]), sized(b"ok"), numbers(&[u32::MAX])].concat();
        let composite = [
            numbers(&[2, 23]),
            sized(&numbers(&[7])),
            numbers(&[moods]),
            sized(&array),
        ]
        .concat();
        let row = [vec![0, 2], sized(&numbers(&[1])), sized(&composite)].concat();
        let known = HashMap::from([(pair, Holds::Fields), (moods, Holds::Elements), (mood, Holds::Nothing)]);
        let mut reader = Reader {
            bytes: &row,
            known: &known,
            found: Found::default(),
        };
        assert_eq!(reader.row(&[(1, pair)]), Some(()));
        let at = |place: &usize| reader.number(*place).expect("a number");
        assert_eq!(reader.found.places.iter().map(at).collect::<Vec<_>>(), [moods, mood]);
        assert!(reader.found.unknown.is_empty());
    }

    #[test]
    fn what_is_not_known_is_asked_for() {
        let row = [vec![0, 1], sized(&numbers(&[1, 0, 20_002, 0, 1]))].concat();
        let mut reader = Reader {
            bytes: &row,
            known: &HashMap::new(),
            found: Found::default(),
        };
        assert_eq!(reader.row(&[(0, 20_001)]), Some(()));
        assert_eq!(reader.found.unknown.into_iter().collect::<Vec<_>>(), [20_001]);
    }
}
