//! Ranges and the range map of one table.

use crate::{KeyBound, KeyInterval, KeyValue, Name, RangeId, ShardId};
use std::cmp::Ordering;

/// A half-open interval `[from, to)` of a table's shard key: the unit of placement. Lives on one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// its number within the table
    pub id: RangeId,
    /// the lower bound, inside
    pub from: KeyBound,
    /// the upper bound, outside
    pub to: KeyBound,
    /// who owns it
    pub shard: ShardId,
    /// the child table that holds it on that shard: `pgherd_data.t42_r17`, or the declared partition's own name
    pub child: Name,
    /// made by `CREATE TABLE … PARTITION OF`, so that its name is the user's
    pub declared: bool,
}

/// The ranges of one table, in key order, without overlap. Gaps exist only between declared ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeMap {
    ranges: Vec<Range>,
}

impl RangeMap {
    /// Sorts the ranges; panics in debug builds where two overlap.
    pub fn new(mut ranges: Vec<Range>) -> Self {
        ranges.sort_by(|a, b| a.from.cmp(&b.from));
        debug_assert!(ranges.windows(2).all(|w| w[0].to <= w[1].from), "ranges overlap");
        Self { ranges }
    }

    /// All ranges in key order.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The range that holds `key` (all columns given), by binary search.
    pub fn find(&self, key: &[KeyValue]) -> Option<&Range> {
        self.find_index(key).map(|i| &self.ranges[i])
    }

    /// The place in [`RangeMap::ranges`] of the range that holds `key`.
    pub fn find_index(&self, key: &[KeyValue]) -> Option<usize> {
        let after = self
            .ranges
            .partition_point(|r| r.from.compare_key(key) != Ordering::Greater);
        let index = after.checked_sub(1)?;
        (self.ranges[index].to.compare_key(key) == Ordering::Greater).then_some(index)
    }

    /// The shards that can have keys whose first column is this value; one of several ranges comes as often as it has such.
    pub fn shards_with(&self, first: &KeyValue) -> impl Iterator<Item = ShardId> {
        let prefix = std::slice::from_ref(first);
        let start = self.ranges.partition_point(|r| r.to.is_below(prefix));
        let rest = self.ranges[start..].iter();
        rest.take_while(move |r| r.from.compare_key(prefix) != Ordering::Greater)
            .map(|r| r.shard)
    }

    /// The ranges that can hold a key of any of `intervals`, in key order.
    pub fn overlapping(&self, intervals: &[KeyInterval]) -> Vec<&Range> {
        self.ranges
            .iter()
            .filter(|r| intervals.iter().any(|i| i.overlaps(&r.from, &r.to)))
            .collect()
    }

    /// The range with this number.
    pub fn get(&self, id: RangeId) -> Option<&Range> {
        self.ranges.iter().find(|r| r.id == id)
    }

    /// The shards that own at least one range, ascending.
    pub fn shards(&self) -> Vec<ShardId> {
        let mut shards: Vec<_> = self.ranges.iter().map(|r| r.shard).collect();
        shards.sort();
        shards.dedup();
        shards
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bound;

    /// Two columns, with bounds that divide the keys of one first value, and a gap.
    #[test]
    fn shards_with_a_first_value_are_those_that_overlap() {
        let bound = |first: i64, second: Option<i64>| {
            let second = second.map_or(Bound::Min, |v| Bound::Value(KeyValue::Int(v)));
            KeyBound(vec![Bound::Value(KeyValue::Int(first)), second])
        };
        let bounds = [
            KeyBound::min(2),
            bound(3, None),
            bound(5, Some(2)),
            bound(5, Some(8)),
            bound(9, Some(1)),
            bound(12, None),
            KeyBound::max(2),
        ];
        let ranges = bounds.windows(2).enumerate().filter(|(i, _)| *i != 4);
        let ranges = RangeMap::new(
            ranges
                .map(|(i, ends)| Range {
                    id: RangeId(i as u32 + 1),
                    from: ends[0].clone(),
                    to: ends[1].clone(),
                    shard: ShardId(i as u32 % 3),
                    child: Name::new("s", "t"),
                    declared: false,
                })
                .collect(),
        );
        for value in 0..15 {
            let wanted = ranges.overlapping(&[KeyInterval::prefix(vec![KeyValue::Int(value)])]);
            let wanted: Vec<ShardId> = wanted.iter().map(|r| r.shard).collect();
            let found: Vec<ShardId> = ranges.shards_with(&KeyValue::Int(value)).collect();
            assert_eq!(found, wanted, "{value}");
        }
        assert_eq!(ranges.shards_with(&KeyValue::Int(5)).count(), 3);
        assert_eq!(ranges.shards_with(&KeyValue::Int(10)).count(), 0);
    }
}
