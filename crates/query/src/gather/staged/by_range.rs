//! What is equal to a key of a sharded table goes to the shards that have such keys, and to no other.

use super::Fetch;
use super::choose::Stage;
use super::reduce::Bound;
use crate::gather::source::Resolution;
use pgherd_model::{KeyType, RangeMap, ShardId, Table};

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
    pub fn places(&self, value: &[u8], shards: &[ShardId], places: &mut Vec<usize>) {
        let Some(key) = self.value_type.parse_binary(value) else {
            places.extend(0..shards.len());
            return;
        };
        for shard in self.ranges.shards_with(key) {
            let place = shards.iter().position(|s| *s == shard);
            places.extend(place.filter(|place| !places.contains(place)));
        }
    }
}

/// The bound that ties a mention's column to the key of a table that stays in place.
fn tie<'b>(stage: &Stage, bounds: &'b [Bound], mention: usize, column: &str) -> Option<&'b Bound> {
    let is_key = |b: &Bound| stage.anchors[b.by].as_deref() == Some(b.by_column.as_str());
    bounds
        .iter()
        .find(|b| b.mention == mention && b.column == column && is_key(b))
}

/// Whether rows of a mention matter only on the shards that have their key.
pub(super) fn is_tied(stage: &Stage, bounds: &[Bound], mention: usize) -> bool {
    let own = bounds.iter().filter(|b| b.mention == mention);
    own.into_iter()
        .any(|b| tie(stage, bounds, mention, &b.column).is_some())
}

/// The place of a column among those that are read which ties all mentions of a fetch to keys of a stage's tables in place. `bounds` are
/// those inside the stage's block.
pub(super) fn tied<'a>(
    stage: &Stage,
    bounds: &[Bound],
    resolutions: &'a [Resolution],
    fetch: &Fetch,
) -> Option<(usize, ByRange<'a>)> {
    let source = &fetch.source;
    source.wanted.iter().enumerate().find_map(|(place, &c)| {
        let column = &source.relation.columns[c];
        // Tables that stay in place lie alike, so any of them tells where.
        let mut by_range = None;
        for &mention in &source.mentions {
            let bound = tie(stage, bounds, mention, &column.name)?;
            let table = resolutions[bound.by].table.as_deref()?;
            by_range = Some(ByRange::of(table, &bound.by_column, column.type_oid)?);
        }
        by_range.map(|by_range| (place, by_range))
    })
}
