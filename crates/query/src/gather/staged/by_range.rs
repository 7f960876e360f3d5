//! What is equal to a key of a sharded table goes to the shards that have such keys, and to no other.

use super::Fetch;
use super::added::Array;
use super::choose::Stage;
use super::reduce::Bound;
use super::spread::Anchors;
use crate::carrier::{Batch, Carrier};
use crate::gather::source::Resolution;
use bytes::Bytes;
use pgherd_model::{KeyType, RangeMap, ShardId, Table};
use std::collections::HashMap;

/// Where the rows of a table are, by values of the first column of its shard key.
#[derive(Clone, Copy)]
pub(super) struct ByRange<'a> {
    ranges: &'a RangeMap,
    /// the values' own type; whole numbers may be of another width than the key
    value_type: KeyType,
}

impl<'a> ByRange<'a> {
    /// For values of this type that a column is compared with; None where the column does not lead the table's shard key.
    pub fn of(table: &'a Table, column: &str, type_oid: u32) -> Option<Self> {
        let sharded = table.sharded()?;
        let (first, key_type) = sharded.key.first().zip(sharded.key_types.first())?;
        let value_type = KeyType::from_oid(type_oid)?;
        (first == column && value_type.comparable(*key_type)).then_some(Self {
            ranges: &sharded.ranges,
            value_type,
        })
    }

    /// Adds the places of the shards on which such a key, in PostgreSQL's binary format, can be: all where it is not understood.
    fn places(&self, value: &[u8], shards: &[ShardId], places: &mut Vec<usize>) {
        let Some(key) = self.value_type.parse_binary(value) else {
            places.extend(0..shards.len());
            return;
        };
        for shard in self.ranges.shards_with(&key) {
            let place = shards.iter().position(|s| *s == shard);
            places.extend(place.filter(|place| !places.contains(place)));
        }
    }

    /// The arrays of each column, divided by where the keys in one of them are, and the most rows that a shard gets.
    pub fn divide(&self, rows: &Batch, column: usize, carriers: &[Carrier], shards: &[ShardId]) -> (usize, Vec<Array>) {
        let parts = rows.divided(column, shards.len(), |value, places| self.places(value, shards, places));
        let most_rows = parts.iter().map(|part| part.rows).max().unwrap_or(0);
        let mut columns: Vec<HashMap<ShardId, Bytes>> = vec![HashMap::new(); carriers.len()];
        for (shard, mut part) in shards.iter().zip(parts) {
            for (column, array) in columns.iter_mut().zip(part.take(carriers).1) {
                column.insert(*shard, array);
            }
        }
        let empty = Batch::new(carriers.len()).take(carriers).1;
        let arrays = columns.into_iter().zip(empty);
        (
            most_rows,
            arrays.map(|(column, empty)| Array::ByShard(column, empty)).collect(),
        )
    }
}

/// The bounds that tie columns to keys of tables that stay in place, of those that hold inside the block that runs with these.
pub(super) fn ties(bounds: &[Bound], anchors: &Anchors) -> Vec<Bound> {
    let is_key = |b: &&Bound| anchors[b.by].as_deref() == Some(b.by_column.as_str());
    bounds.iter().filter(is_key).cloned().collect()
}

/// The place of a column among those that are read which ties all mentions of a fetch to keys of a stage's tables in place.
pub(super) fn tied<'a>(stage: &Stage, resolutions: &'a [Resolution], fetch: &Fetch) -> Option<(usize, ByRange<'a>)> {
    let source = &fetch.source;
    source.wanted.iter().enumerate().find_map(|(place, &c)| {
        let column = &source.relation.columns[c];
        // Tables that stay in place lie alike, so any of them tells where.
        let mut by_range = None;
        for &mention in &source.mentions {
            let mut ties = stage.ties.iter();
            let tie = ties.find(|b| b.mention == mention && b.column == column.name)?;
            let table = resolutions[tie.by].table.as_deref()?;
            by_range = Some(ByRange::of(table, &tie.by_column, column.type_oid)?);
        }
        by_range.map(|by_range| (place, by_range))
    })
}
