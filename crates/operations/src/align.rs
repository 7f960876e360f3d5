//! ALTER TABLE … ADD FOREIGN KEY on a table whose rows lie elsewhere than those that they refer to: the table gets the ranges of
//! the other one first, rows and all, together with the tables that foreign keys link with it already.

use crate::copy_rows::copy_rows;
use crate::ranges::{NewRange, condition, make_children, silence_triggers, wake_triggers, write_range};
use crate::statement_text::{ForeignKeyClause, StatementText};
use crate::work::Work;
use crate::{foreign_keys, split};
use pgherd_catalog::child_name;
use pgherd_model::{Name, RangeId, ServerError, Sharded, Table, columns_for, quote_identifier};
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
            let sql = format!(
                "SELECT pg_catalog.count(*) FROM (SELECT FROM {} LIMIT {}) AS some",
                range.child,
                split::SPLIT_ROWS + 1
            );
            let counted = work.on(range.shard, &sql).await?;
            rows += counted.last().and_then(|r| r.text(0, 0)?.parse().ok()).unwrap_or(0);
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
    let name = &table.name;
    let definition = work.definition(name).await?;
    let old = sharded.ranges.ranges();
    let options = match old.first() {
        Some(range) => split::options(work, range.shard, range).await?,
        None => Vec::new(),
    };
    for range in old {
        let sql = format!("ALTER TABLE {name} DETACH PARTITION {}", range.child);
        work.on(range.shard, &sql).await?;
    }
    let wanted = like.ranges.ranges().iter().enumerate();
    let new: Vec<NewRange> = wanted
        .map(|(i, range)| crate::ranges::renumbered(range, RangeId(sharded.next_range + i as u32)))
        .collect();
    make_children(work, name, sharded.id, &new, &options).await?;
    let triggers = silence_triggers(work, sharded.id, &new).await?;
    let quoted: Vec<_> = sharded.key.iter().map(|c| quote_identifier(c)).collect();
    let columns = definition.copied_columns();
    for range in old {
        let counted = work
            .on(range.shard, &format!("SELECT pg_catalog.count(*) FROM {}", range.child))
            .await?;
        let rows: u64 = counted.last().and_then(|r| r.text(0, 0)?.parse().ok()).unwrap_or(0);
        let mut moved = 0;
        for to in new.iter().filter(|n| n.from < range.to && range.from < n.to) {
            let condition = condition(&quoted, &sharded.key_types, &to.from, &to.to);
            let query = format!("SELECT {columns} FROM {} WHERE {condition}", range.child);
            let target = child_name(sharded.id, to.id).to_string();
            let target = (to.shard, target.as_str(), columns.as_str());
            moved += copy_rows(work, (range.shard, &query), target, definition.builtin_types).await?;
        }
        if moved != rows {
            return Err(ServerError::internal(format!(
                "{rows} rows were to be moved, and {moved} were"
            )));
        }
        work.on(range.shard, &format!("DROP TABLE {}", range.child)).await?;
        work.write(json!({"do": "drop_range", "table": sharded.id.0, "id": range.id.0}));
    }
    wake_triggers(work, triggers).await?;
    for range in &new {
        let child = child_name(sharded.id, range.id);
        work.on(range.shard, &format!("ANALYZE {child}")).await?;
        write_range(work, sharded.id, range, &child, false);
    }
    work.write(json!({"do": "set", "id": sharded.id.0, "colocation": like.colocation}));
    work.renew_fence(sharded).await
}
