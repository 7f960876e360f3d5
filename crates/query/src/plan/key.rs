//! Values as keys: bytes (or whole numbers) that compare as PostgreSQL compares the values, read from their binary format.
//!
//! This is the list of types that tier 2 may sort, group and join by. Text is compared by bytes, which the caller makes
//! sure of (no column with a collation of its own; clusters are made with C, POSIX or C.UTF-8).

use super::numeric::Numeric;

/// How a type's binary format becomes a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// a signed number of 1, 2, 4 or 8 bytes: integers, date, time, timestamp, timestamptz
    Whole,
    /// bool, oid, "char"
    Unsigned,
    /// float4 and float8: NaN is above all and equals itself, -0 equals 0
    Float,
    /// text, varchar, uuid, bytea: the bytes
    Bytes,
    /// bpchar: the bytes without trailing blanks
    Padded,
    /// numeric
    Numeric,
}

impl KeyKind {
    /// The kind of a type; None for types that are not on the list.
    pub fn of(type_oid: u32) -> Option<Self> {
        Some(match type_oid {
            20 | 21 | 23 | 1082 | 1083 | 1114 | 1184 => Self::Whole,
            16 | 18 | 26 => Self::Unsigned,
            700 | 701 => Self::Float,
            17 | 25 | 1043 | 2950 => Self::Bytes,
            1042 => Self::Padded,
            1700 => Self::Numeric,
            _ => return None,
        })
    }

    /// Whether the key is a number (else bytes).
    pub fn is_number(self) -> bool {
        matches!(self, Self::Whole | Self::Unsigned | Self::Float)
    }

    /// The key as a number, for kinds that have one. None for bytes that are no value of the type.
    pub fn number(self, value: &[u8]) -> Option<i64> {
        Some(match (self, value.len()) {
            (Self::Unsigned, 1) => i64::from(value[0]),
            (Self::Unsigned, 4) => i64::from(u32::from_be_bytes(value.try_into().ok()?)),
            (Self::Whole, 2) => i64::from(i16::from_be_bytes(value.try_into().ok()?)),
            (Self::Whole, 4) => i64::from(i32::from_be_bytes(value.try_into().ok()?)),
            (Self::Whole, 8) => i64::from_be_bytes(value.try_into().ok()?),
            (Self::Float, 4) => float_order(f64::from(f32::from_be_bytes(value.try_into().ok()?))),
            (Self::Float, 8) => float_order(f64::from_be_bytes(value.try_into().ok()?)),
            _ => return None,
        })
    }

    /// The key as bytes, for kinds that are no numbers.
    pub fn bytes(self, value: &[u8]) -> Option<std::borrow::Cow<'_, [u8]>> {
        Some(match self {
            Self::Bytes => value.into(),
            Self::Padded => {
                let end = value.iter().rposition(|b| *b != b' ').map_or(0, |last| last + 1);
                value[..end].into()
            }
            Self::Numeric => Numeric::parse(value)?.sort_key().into(),
            _ => return None,
        })
    }
}

/// A number that orders as the float does under PostgreSQL.
fn float_order(value: f64) -> i64 {
    let value = if value.is_nan() {
        f64::NAN.abs()
    } else if value == 0.0 {
        0.0
    } else {
        value
    };
    let bits = value.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

/// How a column is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Direction {
    pub descending: bool,
    pub nulls_first: bool,
}

/// Appends a value to a row's sort key, so that whole keys compare as the rows are to be ordered. Returns None for bytes
/// that are no value of the type.
pub(crate) fn append_sort_key(
    out: &mut Vec<u8>,
    kind: KeyKind,
    value: Option<&[u8]>,
    direction: Direction,
) -> Option<()> {
    let Some(value) = value else {
        out.push(if direction.nulls_first { 0 } else { 2 });
        return Some(());
    };
    out.push(1);
    let start = out.len();
    if kind.is_number() {
        let number = kind.number(value)? as u64 ^ (1 << 63);
        out.extend_from_slice(&number.to_be_bytes());
    } else {
        // 0 ends the bytes, so a 0 inside is written as 0 255.
        for &byte in kind.bytes(value)?.iter() {
            out.push(byte);
            if byte == 0 {
                out.push(255);
            }
        }
        out.extend_from_slice(&[0, 0]);
    }
    if direction.descending {
        out[start..].iter_mut().for_each(|b| *b = !*b);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: KeyKind, value: Option<&[u8]>, descending: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let direction = Direction {
            descending,
            nulls_first: descending,
        };
        append_sort_key(&mut out, kind, value, direction).expect("a value");
        out
    }

    #[test]
    fn floats_order_as_in_postgresql() {
        let ordered = [
            f64::NEG_INFINITY,
            -1.5,
            -1e-300,
            0.0,
            1e-300,
            2.0,
            f64::INFINITY,
            f64::NAN,
        ];
        let keys: Vec<_> = ordered
            .iter()
            .map(|v| key(KeyKind::Float, Some(&v.to_be_bytes()), false))
            .collect();
        assert!(keys.is_sorted());
        assert_eq!(key(KeyKind::Float, Some(&(-0.0f64).to_be_bytes()), false), keys[3]);
        assert_eq!(key(KeyKind::Float, Some(&(-f64::NAN).to_be_bytes()), false), keys[7]);
    }

    #[test]
    fn bytes_order_whatever_they_hold() {
        let ordered: [&[u8]; 6] = [b"", b"\0", b"\0\0", b"\0a", b"a", b"a\0"];
        for descending in [false, true] {
            let mut keys: Vec<_> = ordered
                .iter()
                .map(|v| key(KeyKind::Bytes, Some(v), descending))
                .collect();
            keys.push(key(KeyKind::Bytes, None, descending));
            if descending {
                keys.reverse();
            }
            assert!(keys.is_sorted(), "{keys:?}");
        }
    }
}
