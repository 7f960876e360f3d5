//! ALTER TABLE … ADD FOREIGN KEY on a table whose rows lie elsewhere than those that they refer to: the table gets the ranges of
//! the other one first, rows and all, together with the tables that foreign keys link with it already.

use crate::ranges::NewRange;
use crate::statement_text::{ForeignKeyClause, StatementText};
use crate::work::Work;
use crate::{foreign_keys, replace_ranges, split};
use pgherd_model::{Name, RangeId, ServerError, Sharded, Table, columns_for};
use pgherd_sql::ObjectName;
use serde_json::json;
use std::sync::Arc;

/// Where the key would match the shard keys, and only the ranges are in its way, changes these. Whoever calls this has announced
/// and locked the table and all that are linked with it, and judges afterwards whether the key may stay.
pub(crate) async fn beside_referenced(
    work: &mut Work<'_, '_>,
    name: &ObjectName,
    clause: &ForeignKeyClause,
) -> Result<(), ServerError> {
    let (Some(table), Some(other)) = (work.sharded(name), work.sharded(&clause.referenced)) else {
        return Ok(());
    };
    let (Some(own), Some(like)) = (table.sharded(), other.sharded()) else {
        return Ok(());
    };
    let matches = matches(clause, own, like);
    let moving = work.snapshot.linked(&table.name);
    let stays = moving.iter().any(|t| t.name == other.name) || own.lies_with(like);
    let automatic = |t: &Arc<Table>| {
        t.sharded()
            .is_some_and(|s| s.automatic && s.key_types == like.key_types)
    };
    if !matches || stays || !like.automatic || !moving.iter().all(automatic) || !is_cheap(work, &moving).await? {
        return Ok(());
    }
    let equal = |t: &Arc<Table>| t.sharded().is_some_and(|s| has_ranges_of(s, like));
    if moving.iter().all(equal) {
        for sharded in moving.iter().filter_map(|t| t.sharded()) {
            work.write(json!({"do": "set", "id": sharded.id.0, "colocation": like.colocation}));
        }
        return work.reload().await;
    }
    let names: Vec<Name> = moving.iter().map(|t| t.name.clone()).collect();
    let shards = work.shards();
    let keys = foreign_keys::take_off(work, &names, &shards).await?;
    for table in &moving {
        if let Some(sharded) = table.sharded() {
            lay_like(work, table, sharded, like).await?;
        }
    }
    foreign_keys::put_on(work, &keys, &shards).await?;
    work.keep_children(&shards, &names).await?;
    work.reload().await
}

/// Whether the key's columns match the shard keys of both tables.
fn matches(clause: &ForeignKeyClause, own: &Sharded, referenced: &Sharded) -> bool {
    let columns = match &clause.referenced_columns[..] {
        // The primary key comes first.
        [] => referenced.unique.first().map(|(_, columns)| columns.clone()),
        columns => Some(columns.to_vec()),
    };
    columns_for(&clause.columns, &columns.unwrap_or_default(), &referenced.key).as_ref() == Some(&own.key)
}

/// Whether each foreign key that the statement writes down can be checked by each shard. Else a shard finds rows missing that are
/// on others.
pub(crate) fn all_hold(work: &Work<'_, '_>, table: &Table, text: &StatementText<'_>) -> bool {
    let clauses = text.foreign_keys();
    let holds = |clause: &ForeignKeyClause| {
        let other = work.sharded(&clause.referenced);
        let both = other.as_ref().and_then(|o| Some((o, o.sharded()?, table.sharded()?)));
        both.is_some_and(|(o, like, own)| matches(clause, own, like) && (o.name == table.name || own.lies_with(like)))
    };
    clauses.len() == text.referenced().len() && clauses.iter().all(holds)
}

/// Whether rows of equal keys are together already, so that only a split would have to be kept from parting them.
fn has_ranges_of(sharded: &Sharded, like: &Sharded) -> bool {
    let (ours, theirs) = (sharded.ranges.ranges(), like.ranges.ranges());
    ours.len() == theirs.len()
        && ours
            .iter()
            .zip(theirs)
            .all(|(a, b)| a.from == b.from && a.to == b.to && a.shard == b.shard)
}

/// What was sharded by default would become local otherwise, which moves all rows as well. Of other tables, those whose ranges
/// could be split are moved.
async fn is_cheap(work: &mut Work<'_, '_>, tables: &[Arc<Table>]) -> Result<bool, ServerError> {
    for sharded in tables.iter().filter_map(|t| t.sharded()).filter(|s| !s.by_default) {
        let mut rows = 0;
        for range in sharded.ranges.ranges() {
            let some = format!("(SELECT FROM {} LIMIT {}) AS some", range.child, split::SPLIT_ROWS + 1);
            rows += replace_ranges::count(work, range.shard, &some).await?;
        }
        if rows > split::SPLIT_ROWS {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Gives one table the ranges of another, under new numbers. Its foreign keys are off.
async fn lay_like(
    work: &mut Work<'_, '_>,
    table: &Table,
    sharded: &Sharded,
    like: &Sharded,
) -> Result<(), ServerError> {
    let mut old = Vec::new();
    for range in sharded.ranges.ranges() {
        let rows = replace_ranges::count(work, range.shard, &range.child.to_string()).await?;
        old.push((range.clone(), rows));
    }
    let wanted = like.ranges.ranges().iter().enumerate();
    let new: Vec<NewRange> = wanted
        .map(|(i, range)| crate::ranges::renumbered(range, RangeId(sharded.next_range + i as u32)))
        .collect();
    replace_ranges::replace(work, table, sharded, &old, &new).await?;
    work.write(json!({"do": "set", "id": sharded.id.0, "colocation": like.colocation}));
    Ok(())
}
