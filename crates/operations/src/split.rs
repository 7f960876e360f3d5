//! Splits an empty or small range in two and places the upper half, in one transaction. The whole colocation group is
//! split at the same key, so that joins on the key stay on a shard.

use crate::ranges::NewRange;
use crate::work::Work;
use crate::{foreign_keys, replace_ranges};
use pgherd_model::{Bound, KeyBound, Name, Range, RangeId, ServerError, ShardId, Sharded, SqlState, Table};
use std::cmp::Ordering;
use std::sync::Arc;

/// A range with more rows than this is not split: its rows move while everybody waits.
pub const SPLIT_ROWS: u64 = 500_000;

/// Splits the range of `name` that holds the key `at` (one text per key column, or of the first ones), so that `at` begins the
/// upper half, which goes to shard `to`, or where this table has the fewest ranges.
pub(crate) async fn split(
    work: &mut Work<'_, '_>,
    name: &Name,
    at: &[String],
    to: Option<ShardId>,
) -> Result<(), ServerError> {
    let group = group(work, name)?;
    let names: Vec<_> = group.iter().map(|t| t.name.name.to_string()).collect();
    work.announce(names.iter().map(String::as_str), &format!("split {name}"))
        .await?;
    let mut group = self::group(work, name)?;
    group.sort_by_key(|t| t.sharded().map(|s| s.id));
    let shards = work.shards();
    let tables: Vec<_> = group.iter().map(|t| t.name.to_string()).collect();
    work.lock(&shards, &tables, "ACCESS EXCLUSIVE").await?;
    let Some(first) = group.iter().find(|t| t.name == *name).and_then(|t| t.sharded()) else {
        return Err(ServerError::internal("a table is not in its own colocation group"));
    };
    let at = key(first, at)?;
    let to = to.unwrap_or_else(|| least_used(first, &shards));
    let linked = foreign_keys::with_linked(&work.snapshot, &group);
    if let Some(other) = linked.iter().find(|t| !group.iter().any(|g| g.name == t.name)) {
        return Err(ServerError::unsupported(
            format!(
                "table \"{}\" cannot be split while a foreign key links it with the declared partitions of \"{}\"",
                name.name, other.name.name
            ),
            "Drop the foreign key, split the range, and add the foreign key again.",
        ));
    }
    // Rows leave one table after the other. Meanwhile their keys are off, and PostgreSQL checks all of a shard's rows when it
    // gets them back.
    let names: Vec<Name> = group.iter().map(|t| t.name.clone()).collect();
    let mut involved: Vec<ShardId> = holding(first, &at).map(|r| r.shard).into_iter().chain([to]).collect();
    involved.sort();
    involved.dedup();
    let keys = foreign_keys::take_off(work, &names, &involved).await?;
    for table in &group {
        if let Some(sharded) = table.sharded() {
            split_one(work, table, sharded, &at, to).await?;
        }
    }
    foreign_keys::put_on(work, &keys, &involved).await?;
    if !keys.is_empty() {
        work.keep_children(&involved, &names).await?;
    }
    Ok(())
}

/// The range that has this bound inside.
fn holding<'s>(sharded: &'s Sharded, at: &KeyBound) -> Option<&'s Range> {
    let inside = |r: &&Range| r.from.cmp(at) == Ordering::Less && r.to.cmp(at) == Ordering::Greater;
    sharded.ranges.ranges().iter().find(inside)
}

/// The table and those that move together with it.
fn group(work: &Work<'_, '_>, name: &Name) -> Result<Vec<Arc<Table>>, ServerError> {
    let table = work.snapshot.table(name).and_then(|t| t.sharded());
    let Some(sharded) = table else {
        return Err(ServerError::new(
            SqlState::WRONG_OBJECT_TYPE,
            format!("\"{}\" is not a sharded table", name.name),
        ));
    };
    let same = |t: &&Arc<Table>| t.sharded().is_some_and(|s| s.colocation == sharded.colocation);
    Ok(work.snapshot.sharded().filter(same).cloned().collect())
}

fn least_used(sharded: &Sharded, shards: &[ShardId]) -> ShardId {
    let used = |shard: ShardId| sharded.ranges.ranges().iter().filter(|r| r.shard == shard).count();
    shards
        .iter()
        .copied()
        .min_by_key(|s| (used(*s), *s))
        .unwrap_or(ShardId(1))
}

/// The bound that the texts mean.
fn key(sharded: &Sharded, at: &[String]) -> Result<KeyBound, ServerError> {
    let invalid = |why: String| ServerError::new(SqlState::INVALID_PARAMETER_VALUE, why);
    if at.len() > sharded.key.len() {
        return Err(invalid(format!("the key has {} columns", sharded.key.len())));
    }
    let mut bound = Vec::new();
    for (text, key_type) in at.iter().zip(&sharded.key_types) {
        let value = key_type.parse_text(text).ok_or_else(|| {
            invalid(format!(
                "\"{text}\" is not a value that a range of this key can begin with"
            ))
        })?;
        bound.push(Bound::Value(value));
    }
    bound.resize(sharded.key.len(), Bound::Min);
    Ok(KeyBound(bound))
}

async fn split_one(
    work: &mut Work<'_, '_>,
    table: &Table,
    sharded: &Sharded,
    at: &KeyBound,
    to: ShardId,
) -> Result<(), ServerError> {
    let Some(range) = holding(sharded, at).cloned() else {
        return Err(ServerError::new(
            SqlState::INVALID_PARAMETER_VALUE,
            format!("no range of table \"{}\" has that key inside", table.name.name),
        )
        .with_hint("It is a bound already, or outside of the declared partitions; see pgherd.ranges."));
    };
    if range.declared {
        return Err(ServerError::unsupported(
            format!("declared partition \"{}\" cannot be split yet", range.child.name),
            "Only ranges that pgherd made can be split.",
        ));
    }
    let rows = replace_ranges::count(work, range.shard, &range.child.to_string()).await?;
    if rows > SPLIT_ROWS {
        return Err(ServerError::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "range {} of table \"{}\" has {rows} rows, and more than {SPLIT_ROWS} are not split yet",
                range.id.0, table.name.name
            ),
        ));
    }
    // New names for both halves: who still knows the old range gets 42P01.
    let lower = NewRange {
        id: RangeId(sharded.next_range),
        from: range.from.clone(),
        to: at.clone(),
        shard: range.shard,
    };
    let upper = NewRange {
        id: RangeId(sharded.next_range + 1),
        from: at.clone(),
        to: range.to.clone(),
        shard: to,
    };
    replace_ranges::replace(work, table, sharded, &[(range, rows)], &[lower, upper]).await
}
