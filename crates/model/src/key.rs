//! Shard keys and their order: as PostgreSQL orders them, for each key type and for composite keys.
//!
//! Text orders by bytes, which is right for the collations that a cluster may have (C, POSIX, C.UTF-8);
//! `pgherd init` refuses others. Values arrive as text or in PostgreSQL's binary format; see
//! [`KeyType::parse_text`] and [`KeyType::parse_binary`].

mod parse;

use bigdecimal::BigDecimal;
use std::cmp::Ordering;
use std::fmt;

/// The types that a shard key's columns may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyType {
    /// int2
    SmallInt,
    /// int4
    Int,
    /// int8
    BigInt,
    /// text
    Text,
    /// varchar, with or without a length
    Varchar,
    /// uuid
    Uuid,
    /// date
    Date,
    /// timestamp without time zone
    Timestamp,
    /// timestamp with time zone
    TimestampTz,
    /// numeric
    Numeric,
}

/// One column's value in a key. Values of different kinds never meet in one comparison: a routing
/// decision that would mix kinds is not made (the statement goes to all ranges instead).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyValue {
    /// smallint, int and bigint
    Int(i64),
    /// text and varchar, ordered by bytes
    Text(String),
    /// uuid, ordered by bytes
    Uuid([u8; 16]),
    /// date in days since 2000-01-01; `i32::MIN` and `i32::MAX` are -infinity and infinity
    Date(i32),
    /// timestamp and timestamptz in microseconds since 2000-01-01 (UTC); the extremes are the infinities
    Timestamp(i64),
    /// numeric
    Numeric(Numeric),
}

/// PostgreSQL's numeric: -Infinity < finite < Infinity < NaN, and NaN equals NaN.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Numeric {
    /// -Infinity
    NegativeInfinity,
    /// a finite value; scale does not matter for order and equality
    Finite(BigDecimal),
    /// Infinity
    Infinity,
    /// NaN
    NaN,
}

/// A whole key: one value per key column, none of them NULL.
pub type Key = Vec<KeyValue>;

/// One column of a range's bound.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Bound {
    /// MINVALUE: below every value
    Min,
    /// a value
    Value(KeyValue),
    /// MAXVALUE: above every value
    Max,
}

/// A range's bound, one [`Bound`] per key column; after the first Min or Max the rest does not matter,
/// as in PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyBound(pub Vec<Bound>);

/// A set of keys that a statement can touch: `from <= key < to` in the order of bounds. Predicates are
/// widened to such intervals, never narrowed, so a routing decision can only ask too many ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInterval {
    /// the lower end
    pub from: Edge,
    /// the upper end
    pub to: Edge,
}

/// An end of a [`KeyInterval`]: a prefix of the key's columns, and whether keys that start with the
/// prefix lie inside. An empty prefix that includes its keys is unbounded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// values of the first columns; may be shorter than the key
    pub prefix: Vec<KeyValue>,
    /// whether keys equal to (starting with) the prefix are inside
    pub inclusive: bool,
}

impl Edge {
    /// An end without limit.
    pub fn unbounded() -> Self {
        Self {
            prefix: Vec::new(),
            inclusive: true,
        }
    }
}

impl KeyInterval {
    /// All keys.
    pub fn all() -> Self {
        Self {
            from: Edge::unbounded(),
            to: Edge::unbounded(),
        }
    }

    /// Exactly the keys that start with `prefix` (one key, where it names all columns).
    pub fn prefix(prefix: Vec<KeyValue>) -> Self {
        let edge = Edge {
            prefix,
            inclusive: true,
        };
        Self {
            from: edge.clone(),
            to: edge,
        }
    }

    /// Whether some key of the interval may lie in `[from, to)`.
    pub fn overlaps(&self, from: &KeyBound, to: &KeyBound) -> bool {
        // Below the range: every key of the interval is < from. Above: every key is >= to.
        let below = match compare_prefix(&self.to.prefix, from) {
            Ordering::Less => true,
            Ordering::Equal => !self.to.inclusive,
            Ordering::Greater => false,
        };
        let behind = !self.from.inclusive && compare_prefix(&self.from.prefix, to) == Ordering::Equal;
        let above = behind || to.is_below(&self.from.prefix);
        !below && !above
    }
}

/// How the keys that start with `prefix` lie to `bound`: Less when all are below it, Greater when all
/// are at or above it in a column of the prefix, Equal when the prefix does not decide.
fn compare_prefix(prefix: &[KeyValue], bound: &KeyBound) -> Ordering {
    for (value, bound) in prefix.iter().zip(&bound.0) {
        match bound {
            Bound::Min => return Ordering::Greater,
            Bound::Max => return Ordering::Less,
            Bound::Value(b) => match value.cmp(b) {
                Ordering::Equal => {}
                other => return other,
            },
        }
    }
    Ordering::Equal
}

impl KeyBound {
    /// MINVALUE in each of `columns` columns.
    pub fn min(columns: usize) -> Self {
        Self(vec![Bound::Min; columns])
    }

    /// MAXVALUE in each of `columns` columns.
    pub fn max(columns: usize) -> Self {
        Self(vec![Bound::Max; columns])
    }

    /// Whether all keys that start with `prefix` are at or above this bound.
    pub fn is_below(&self, prefix: &[KeyValue]) -> bool {
        match compare_prefix(prefix, self) {
            Ordering::Greater => true,
            // The bound ends there, or goes on with MINVALUE.
            Ordering::Equal => !prefix.is_empty() && matches!(self.0.get(prefix.len()), None | Some(Bound::Min)),
            Ordering::Less => false,
        }
    }

    /// Where this bound lies to a key: Greater when the key is below it, Less when the key is above it,
    /// Equal when the key is the bound.
    pub fn compare_key(&self, key: &[KeyValue]) -> Ordering {
        compare_prefix(key, self).reverse()
    }
}

impl PartialOrd for KeyBound {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyBound {
    fn cmp(&self, other: &Self) -> Ordering {
        for (a, b) in self.0.iter().zip(&other.0) {
            let order = match (a, b) {
                // As PostgreSQL's partition_rbound_cmp: columns behind an infinite one do not matter.
                (Bound::Min, Bound::Min) | (Bound::Max, Bound::Max) => return Ordering::Equal,
                (Bound::Min, _) | (_, Bound::Max) => return Ordering::Less,
                (Bound::Max, _) | (_, Bound::Min) => return Ordering::Greater,
                (Bound::Value(a), Bound::Value(b)) => a.cmp(b),
            };
            if order != Ordering::Equal {
                return order;
            }
        }
        Ordering::Equal
    }
}

impl fmt::Display for Bound {
    /// As in `FOR VALUES FROM (…)`: MINVALUE, MAXVALUE or a quoted literal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Min => f.write_str("MINVALUE"),
            Bound::Max => f.write_str("MAXVALUE"),
            Bound::Value(value) => write!(f, "'{}'", value.to_text().replace('\'', "''")),
        }
    }
}

impl fmt::Display for KeyBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, bound) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            bound.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
