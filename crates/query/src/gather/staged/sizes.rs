//! How many rows a statement's relations have, and how many of them it wants: PostgreSQL's own statistics and estimates, asked
//! of the shards. The rows of whole tables are remembered for a while, so that small statements are not slowed down.

use super::choose::Size;
use crate::Transaction;
use crate::explain;
use crate::gather::source::{Gathered, Resolution};
use crate::plan::engine::Engine;
use futures::future::try_join_all;
use pgherd_model::{ServerError, ShardId, SqlState, Table, quote_literal};
use std::collections::BTreeMap;

/// How long a question about sizes waits for a lock. The one who holds it may be the transaction that asks: it has changed the
/// table's schema.
const LOCK_TIMEOUT_MS: u32 = 50;

/// Rows of all sharded tables that are mentioned, each counted once.
pub(in crate::gather) async fn total_rows(
    resolutions: &[Resolution],
    transaction: &Transaction,
    engine: &Engine,
) -> Result<Vec<f64>, ServerError> {
    let mut unknown: BTreeMap<String, Vec<ShardId>> = BTreeMap::new();
    for table in resolutions.iter().filter_map(|r| r.table.as_ref()) {
        if let Some(sharded) = table.sharded()
            && engine.rows_of(table).is_none()
        {
            let shards = sharded.ranges.ranges().iter().map(|r| r.shard);
            unknown.insert(rows_are_in(table), shards.collect());
        }
    }
    if !unknown.is_empty() {
        let names: Vec<&String> = unknown.keys().collect();
        let asked: Vec<String> = names
            .iter()
            .map(|name| {
                format!(
                    "SELECT coalesce(sum(CASE WHEN c.reltuples < 0 THEN pg_catalog.pg_relation_size(c.oid) / 60 \
                     ELSE c.reltuples END), 0)::float8 FROM pg_catalog.pg_inherits i \
                     JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass({})",
                    quote_literal(name)
                )
            })
            .collect();
        let per_shard = ask(transaction, &asked.join("; ")).await?.unwrap_or_default();
        let known = names.iter().enumerate().filter(|_| !per_shard.is_empty());
        for (i, name) in known {
            let rows: f64 = per_shard.iter().map(|lines| number(lines, i)).sum();
            for table in resolutions.iter().filter_map(|r| r.table.as_ref()) {
                if rows_are_in(table) == **name {
                    engine.learn_rows(table, rows);
                }
            }
        }
    }
    let rows = |r: &Resolution| r.table.as_ref().and_then(|t| engine.rows_of(t)).unwrap_or(1000.0);
    Ok(resolutions.iter().map(rows).collect())
}

/// The name of the table that has the rows of a table, or of what stands for a view.
fn rows_are_in(table: &Table) -> String {
    let view = table.sharded().and_then(|s| s.through_view.as_ref());
    view.map_or(&table.name, |view| &view.table).to_string()
}

fn number(lines: &[Vec<String>], place: usize) -> f64 {
    lines
        .get(place)
        .and_then(|l| l.first())
        .and_then(|v| v.parse().ok())
        .unwrap_or(0.0)
}

/// Runs statements on every shard, outside of the transaction; the first column of each result. None where a table cannot be
/// looked at from outside: it is locked, or only the transaction knows it.
async fn ask(transaction: &Transaction, sql: &str) -> Result<Option<Vec<Vec<Vec<String>>>>, ServerError> {
    let (shards, who) = (transaction.shards(), transaction.who());
    let sql = &format!("SET LOCAL lock_timeout TO {LOCK_TIMEOUT_MS}; {sql}");
    let on = |id: ShardId| async move {
        let mut backend = shards.checkout(id, who).await?;
        let results = backend.simple(sql).await?;
        let lines = results.iter().skip(1).map(|result| {
            let rows = 0..result.rows.len();
            rows.map(|row| result.text(row, 0).unwrap_or_default().to_owned())
                .collect()
        });
        Ok::<_, ServerError>(lines.collect())
    };
    match try_join_all(shards.all().iter().map(|s| on(s.id))).await {
        Ok(per_shard) => Ok(Some(per_shard)),
        Err(e) if cannot_be_seen(e.sqlstate()) => Ok(None),
        Err(e) => Err(e),
    }
}

fn cannot_be_seen(why: SqlState) -> bool {
    why == SqlState::LOCK_NOT_AVAILABLE || why.code().starts_with("42")
}

/// The size of each mention, from a source of its own with its conditions. Estimates come from PostgreSQL's planner on each shard;
/// a condition with parameters counts as one in ten rows.
pub(super) async fn sizes(
    sources: &[Gathered],
    resolutions: &[Resolution],
    rows: &[f64],
    transaction: &Transaction,
) -> Result<Vec<Size>, ServerError> {
    // Other tables are on the home shard only.
    let is_sharded = |mention: usize| {
        resolutions[mention]
            .table
            .as_ref()
            .is_some_and(|t| t.sharded().is_some())
    };
    let mut sizes: Vec<Size> = rows
        .iter()
        .map(|&rows| Size {
            rows,
            wanted: rows,
            width: 20.0,
        })
        .collect();
    let mut asked: Vec<(usize, String)> = Vec::new();
    for source in sources {
        let mention = source.mentions[0];
        let condition = source.where_sql();
        sizes[mention].width = source.width();
        if condition.contains('$') {
            sizes[mention].wanted = rows[mention] / 10.0;
        } else if !condition.is_empty() && rows[mention] > 100.0 && is_sharded(mention) {
            let sql = format!("EXPLAIN SELECT 1 FROM {}{condition}", source.relation.sql());
            asked.push((mention, sql));
        }
    }
    if asked.is_empty() {
        return Ok(sizes);
    }
    let sql: Vec<&str> = asked.iter().map(|(_, sql)| sql.as_str()).collect();
    let Some(per_shard) = ask(transaction, &sql.join("; ")).await? else {
        return Ok(sizes);
    };
    for (i, (mention, _)) in asked.iter().enumerate() {
        let estimate = |lines: &Vec<Vec<String>>| -> f64 {
            let first = lines.get(i).and_then(|l| l.first()).map_or("", String::as_str);
            explain::estimate(first, explain::ROWS).unwrap_or(0.0)
        };
        let estimated: f64 = per_shard.iter().map(estimate).sum();
        sizes[*mention].wanted = estimated.min(rows[*mention]).max(1.0);
    }
    Ok(sizes)
}
