//! Materialized views of sharded tables. They are the home shard's own, and PostgreSQL fills them there: their query, as they have it,
//! must find all rows on that shard while it runs. So within the transaction, and for it alone, the home shard gets the other
//! shards' ranges: partitions of the same bounds, filled with copies, and dropped again before anybody else could see them.
//!
//! The design is in docs/designs/0020-materialised-views.md.

use crate::copy_rows::copy_rows;
use crate::ranges::for_values_of;
use crate::statement_text::StatementText;
use crate::work::Work;
use pgherd_model::{Name, ServerError, ShardId, Snapshot, Table, TableKind, quote_literal};
use pgherd_sql::Ddl;
use pgherd_sql::lexer::tokenize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// CREATE MATERIALIZED VIEW of a query that may reach sharded tables.
pub(crate) async fn create(work: &mut Work<'_, '_>, text: &StatementText<'_>) -> Result<String, ServerError> {
    refuse_unsafe(work, text.identifiers())?;
    if text.has(&["with", "no", "data"]) {
        return work.on_home(text.text).await;
    }
    let names: Vec<String> = text.identifiers().collect();
    fill(work, names, text.text).await
}

/// REFRESH MATERIALIZED VIEW.
pub(crate) async fn refresh(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let any_sharded = work.snapshot.sharded().next().is_some();
    let Some(name) = ddl
        .relations
        .first()
        .filter(|_| any_sharded && !text.has(&["with", "no", "data"]))
    else {
        return work.on_home(text.text).await;
    };
    let written = quote_literal(text.written(name));
    // For what is no materialized view PostgreSQL says so.
    let definition = work
        .value(&format!(
            "SELECT pg_catalog.pg_get_viewdef(c.oid) FROM pg_catalog.pg_class c \
             WHERE c.oid = pg_catalog.to_regclass({written}) AND c.relkind = 'm'"
        ))
        .await?;
    let Some(definition) = definition else {
        return work.on_home(text.text).await;
    };
    let names = identifiers(&definition);
    refuse_unsafe(work, names.iter().cloned())?;
    fill(work, names, text.text).await
}

/// A function runs on the home shard as well, and what it reads may not be in the query.
fn refuse_unsafe(work: &Work<'_, '_>, mut names: impl Iterator<Item = String>) -> Result<(), ServerError> {
    match names.find(|name| work.snapshot.may_reach(name)) {
        Some(function) => Err(ServerError::unsupported(
            format!("function {function} may read sharded tables and cannot be called in a materialized view"),
            "Write what it reads into the view's query.",
        )),
        None => Ok(()),
    }
}

fn identifiers(sql: &str) -> Vec<String> {
    let tokens = tokenize(sql).unwrap_or_default();
    tokens.iter().filter_map(|t| t.identifier(sql)).collect()
}

/// The sharded tables that names may mean, in any schema, also through views. One too many is only copied in vain.
fn reached(snapshot: &Snapshot, mut names: Vec<String>) -> Vec<Arc<Table>> {
    let (mut seen, mut found) = (HashSet::new(), BTreeMap::new());
    while let Some(name) = names.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let candidates = snapshot.relations.get(name.as_str()).into_iter().flatten();
        for table in candidates.filter_map(|(_, table)| table.as_ref()) {
            match &table.kind {
                TableKind::Sharded(_) => {
                    found.insert(table.name.clone(), table.clone());
                }
                TableKind::View { definition, .. } => names.extend(identifiers(definition)),
                TableKind::Partition { parent, .. } => names.push(parent.name.to_string()),
                TableKind::Refused { .. } => {}
            }
        }
    }
    found.into_values().collect()
}

/// Runs `sql` on the home shard while it has all rows of the sharded tables that these names may mean.
async fn fill(work: &mut Work<'_, '_>, names: Vec<String>, sql: &str) -> Result<String, ServerError> {
    let tables = reached(&work.snapshot, names.clone());
    if tables.is_empty() || work.others().is_empty() {
        return work.on_home(sql).await;
    }
    let locked: Vec<_> = tables.iter().map(|t| t.name.to_string()).collect();
    let home = work.home();
    let payload = |shard: ShardId| json!({"lock": locked, "makes": shard == home}).to_string();
    let payloads: Vec<_> = work.shards().into_iter().map(|s| (s, payload(s))).collect();
    work.lock_by("change_copies", &payloads).await?;
    // What has moved before is where it is, and nothing moves from here on.
    let snapshot = work.look().await?;
    let tables = reached(&snapshot, names);
    if tables.iter().any(|t| !locked.contains(&t.name.to_string())) {
        return Err(ServerError::new(
            pgherd_model::SqlState::SERIALIZATION_FAILURE,
            "what the materialized view reads has changed meanwhile",
        ));
    }
    let copies = copies(work, &tables);
    work.signed(work.home(), "change_copies", &json!({"make": copies}).to_string())
        .await?;
    for table in &tables {
        copy(work, table).await?;
    }
    let tag = work.on_home(sql).await?;
    work.signed(work.home(), "change_copies", &json!({"drop": copies}).to_string())
        .await?;
    Ok(tag)
}

/// The name under which the home shard has a range of another shard for the moment.
fn copy_name(table: &Table, range: &pgherd_model::Range) -> String {
    let number = table.sharded().map_or(0, |s| s.id.0);
    format!("t{number}_copy_{}", range.id.0)
}

/// What is made, and dropped again.
fn copies(work: &Work<'_, '_>, tables: &[Arc<Table>]) -> Vec<Value> {
    let mut copies = Vec::new();
    for table in tables {
        let ranges = table.sharded().map(|s| s.ranges.ranges()).unwrap_or_default();
        for range in ranges.iter().filter(|r| r.shard != work.home()) {
            let values = for_values_of(range);
            // Of a declared partition there is an empty one.
            let stands = range.declared.then(|| range.child.to_string());
            let (name, parent) = (copy_name(table, range), table.name.to_string());
            copies.push(json!({"name": name, "parent": parent, "values": values, "instead": stands}));
        }
    }
    copies
}

/// The rows of the other shards' ranges.
async fn copy(work: &mut Work<'_, '_>, table: &Table) -> Result<(), ServerError> {
    let Some(sharded) = table.sharded() else {
        return Ok(());
    };
    let definition = work.definition(&table.name).await?;
    let columns = definition.copied_columns();
    let home = work.home();
    for range in sharded.ranges.ranges().iter().filter(|r| r.shard != home) {
        let query = match columns.is_empty() {
            true => format!("SELECT FROM {}", range.child),
            false => format!("SELECT {columns} FROM {}", range.child),
        };
        let to = Name::new("pgherd_data", &copy_name(table, range)).to_string();
        copy_rows(
            work,
            (range.shard, &query),
            (home, &to, &columns),
            definition.builtin_types,
        )
        .await?;
    }
    Ok(())
}
