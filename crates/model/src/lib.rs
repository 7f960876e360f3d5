//! The words that every other room speaks: ids, keys and their order, ranges, the range map, table
//! descriptions, SQLSTATEs. No I/O, no SQL text, no async.

pub mod error;
pub mod functions;
pub mod key;
pub mod range;
mod range_condition;
pub mod snapshot;
pub mod sqlstate;
pub mod table;

pub use error::ServerError;
pub use key::{Bound, Key, KeyBound, KeyInterval, KeyType, KeyValue, Numeric};
pub use range::{Range, RangeMap};
pub use range_condition::range_condition;
pub use snapshot::{Resolved, Snapshot};
pub use sqlstate::SqlState;
pub use table::{
    Column, FIRST_OF_USERS, ForeignKey, Name, Sharded, Table, TableKind, ThroughView, UNREAD_DEFINITION, columns_for,
    quote_identifier, quote_literal,
};

use std::fmt;

/// A shard's number, unique in the cluster, never reused. The smallest one is the home shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ShardId(pub u32);

/// A sharded table's number, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(pub u32);

/// A range's number within its table, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeId(pub u32);

/// The version of the catalog: grows by one with every change of a table's kind, key, ranges or schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u64);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
