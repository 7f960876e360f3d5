//! DROP TABLE and TRUNCATE over any mix of local tables, sharded tables and declared partitions.

use crate::foreign_keys;
use crate::statement_text::StatementText;
use crate::work::Work;
use pgherd_model::{Name, ServerError, ShardId, SqlState, Table, TableKind};
use pgherd_sql::{Ddl, ObjectName};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// The relations of the list that the catalog knows.
fn known(work: &Work<'_, '_>, names: &[ObjectName]) -> Vec<Arc<Table>> {
    names.iter().filter_map(|n| work.resolve(n)).collect()
}

/// Of these, what exists on a shard other than the home shard.
fn there(work: &Work<'_, '_>, tables: &[Arc<Table>], shard: ShardId) -> Vec<Name> {
    let present = |table: &&Arc<Table>| match &table.kind {
        TableKind::Sharded(_) => true,
        TableKind::Partition { parent, range } => work
            .snapshot
            .table(parent)
            .and_then(|p| p.sharded()?.ranges.get(*range).map(|r| r.shard == shard))
            .unwrap_or(false),
        TableKind::View { .. } | TableKind::Refused { .. } => false,
    };
    tables.iter().filter(present).map(|t| t.name.clone()).collect()
}

/// The names to lock on every shard: sharded tables, and the parents of partitions.
fn parents(tables: &[Arc<Table>]) -> Vec<String> {
    let mut names: Vec<_> = tables
        .iter()
        .filter_map(|t| match &t.kind {
            TableKind::Sharded(_) => Some(t.name.to_string()),
            TableKind::Partition { parent, .. } => Some(parent.to_string()),
            _ => None,
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// DROP TABLE.
pub(crate) async fn drop_tables(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    if known(work, &ddl.relations).is_empty() && !text.has(&["cascade"]) {
        return work.on_home(text.text).await;
    }
    let mut names: Vec<String> = ddl.relations.iter().map(|n| n.name.clone()).collect();
    for table in known(work, &ddl.relations) {
        names.extend(partition_names(&table));
        if let TableKind::Partition { parent, .. } = &table.kind {
            names.push(parent.name.to_string());
        }
    }
    if text.has(&["cascade"]) {
        // Views that go along are known names too.
        let views = work
            .snapshot
            .relations
            .values()
            .flatten()
            .filter_map(|(_, t)| t.as_ref());
        names.extend(
            views
                .filter(|t| matches!(t.kind, TableKind::View { .. }))
                .map(|t| t.name.name.to_string()),
        );
    }
    let sharded = |work: &Work<'_, '_>| -> Vec<Arc<Table>> {
        let known = known(work, &ddl.relations).into_iter();
        known.filter(|t| t.sharded().is_some()).collect()
    };
    // Their foreign keys go along.
    let linked = foreign_keys::with_linked(&work.snapshot, &sharded(work));
    names.extend(linked.iter().map(|t| t.name.name.to_string()));
    let reaches = names.iter().any(|n| work.snapshot.relations.contains_key(n.as_str()));
    if reaches {
        work.announce(names.iter().map(String::as_str), text.text).await?;
    }
    let tables = known(work, &ddl.relations);
    let shards = work.shards();
    let mut all = tables.clone();
    all.extend(foreign_keys::with_linked(&work.snapshot, &sharded(work)));
    match work.lock(&shards, &parents(&all), "ACCESS EXCLUSIVE").await {
        // PostgreSQL locks the others by itself, and wants no privilege on them.
        Err(e) if e.sqlstate() == SqlState::INSUFFICIENT_PRIVILEGE => {
            work.lock(&shards, &parents(&tables), "ACCESS EXCLUSIVE").await?;
        }
        locked => locked?,
    }
    let tag = work.on_home(text.text).await?;
    for shard in work.others() {
        let names: Vec<_> = there(work, &tables, shard).iter().map(Name::to_string).collect();
        if !names.is_empty() {
            let sql = format!("DROP TABLE IF EXISTS {} CASCADE", names.join(", "));
            work.on(shard, &sql).await?;
        }
    }
    forget_vanished(work).await?;
    Ok(tag)
}

/// The declared partitions' names go with the table.
fn partition_names(table: &Table) -> Vec<String> {
    let ranges = table.sharded().map(|s| s.ranges.ranges()).unwrap_or_default();
    ranges
        .iter()
        .filter(|r| r.declared)
        .map(|r| r.child.name.to_string())
        .collect()
}

#[derive(Debug, Deserialize)]
struct Vanished {
    tables: Vec<VanishedTable>,
    ranges: Vec<VanishedRange>,
}

#[derive(Debug, Deserialize)]
struct VanishedTable {
    id: u32,
    fence: u32,
}

#[derive(Debug, Deserialize)]
struct VanishedRange {
    table: u32,
    id: u32,
}

/// Takes what the home shard has dropped, by name or by CASCADE, out of the catalog.
pub(crate) async fn forget_vanished(work: &mut Work<'_, '_>) -> Result<(), ServerError> {
    work.write_catalog().await?;
    let text = work.value("SELECT pgherd.vanished()").await?.unwrap_or_default();
    let vanished: Vanished =
        serde_json::from_str(&text).map_err(|e| ServerError::internal(format!("pgherd.vanished(): {e}")))?;
    let fences: Vec<_> = vanished
        .tables
        .iter()
        .map(|t| {
            pgherd_catalog::fence_name(pgherd_model::TableId(t.id), t.fence)
                .name
                .to_string()
        })
        .collect();
    for table in &vanished.tables {
        work.write(json!({"do": "drop_table", "id": table.id}));
    }
    for range in &vanished.ranges {
        work.write(json!({"do": "drop_range", "table": range.table, "id": range.id}));
    }
    if !fences.is_empty() {
        let payload = json!({"create": [], "drop": fences}).to_string();
        for shard in work.shards() {
            work.signed(shard, "change_fences", &payload).await?;
        }
    }
    let mut changed: Vec<u32> = vanished.ranges.iter().map(|r| r.table).collect();
    changed.dedup();
    for id in changed {
        let table = work
            .snapshot
            .sharded()
            .find(|t| t.sharded().is_some_and(|s| s.id.0 == id))
            .cloned();
        if let Some(sharded) = table.as_ref().and_then(|t| t.sharded()) {
            work.write(json!({"do": "set", "id": id, "colocation": id}));
            work.renew_fence(sharded).await?;
        }
    }
    Ok(())
}

/// TRUNCATE: takes its locks on all shards in one order before it does anything.
pub(crate) async fn truncate(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let tables = known(work, &ddl.relations);
    if let Some(watched) = tables.iter().find(|table| table.is_watched())
        && tables.iter().all(|table| table.is_watched())
    {
        return truncate_watched(work, watched, text).await;
    }
    for table in &tables {
        work.refuse_refused(table)?;
    }
    // Its user never made it a partitioned table, so ONLY means nothing.
    let by_default = |name: &&ObjectName| {
        let table = work.sharded(name);
        table.is_some_and(|t| t.is_by_default())
    };
    let whole: Vec<_> = ddl.relations.iter().filter(by_default).collect();
    let blanked = text.blank_only(&whole);
    let text = &text.over(&blanked);
    let shards = work.shards();
    let reached = match text.has(&["cascade"]) {
        true => with_referencing(work, &tables),
        false => tables.clone(),
    };
    work.lock(&shards, &parents(&reached), "ACCESS EXCLUSIVE").await?;
    let notices = work.notice_count();
    let tag = work.on_home(text.text).await?;
    // PostgreSQL names each range that it reaches, and all are one table to the user.
    work.say_once(notices);
    for shard in work.others() {
        let names: Vec<_> = there(work, &tables, shard).iter().map(Name::to_string).collect();
        if !names.is_empty() {
            work.on(shard, &text.with_names(&ddl.relations, &names)).await?;
        }
    }
    if text.has(&["restart", "identity"]) {
        let names: Vec<_> = reached
            .iter()
            .filter(|t| t.sharded().is_some())
            .map(|t| t.name.to_string())
            .collect();
        work.close_sequences(&names).await?;
    }
    Ok(tag)
}

/// Local tables, of which one has a trigger that builds its SQL: the locks that are there afterwards tell whether that was about a sharded table.
async fn truncate_watched(
    work: &mut Work<'_, '_>,
    table: &Table,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    const USED: &str = "SELECT name FROM pgherd.used_tables() LIMIT 1";
    if work.value(USED).await?.is_some() {
        work.refuse_refused(table)?;
    }
    let tag = work.on_home(text.text).await?;
    match work.value(USED).await? {
        None => Ok(tag),
        Some(used) => Err(ServerError::unsupported(
            format!(
                "a trigger of \"{}\" has used sharded table \"{used}\" inside of a shard",
                table.name.name
            ),
            "It saw one shard's rows only, and its effects are undone. Make the table local with CALL pgherd.undistribute(…).",
        )),
    }
}

/// These tables and those whose foreign keys refer to them, at any depth.
fn with_referencing(work: &Work<'_, '_>, tables: &[Arc<Table>]) -> Vec<Arc<Table>> {
    let mut all = tables.to_vec();
    let mut at = 0;
    while let Some(table) = all.get(at).cloned() {
        at += 1;
        for (other, _) in work.snapshot.referencing(&table.name) {
            if !all.iter().any(|t| t.name == other.name) {
                all.push(other.clone());
            }
        }
    }
    all
}
