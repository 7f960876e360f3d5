//! New ranges take the place of old ones of the same table, with their rows, in one transaction.

use crate::copy_rows::copy_rows;
use crate::ranges::{NewRange, make_children, silence_triggers, wake_triggers, write_range};
use crate::work::Work;
use pgherd_catalog::child_name;
use pgherd_model::{Range, ServerError, ShardId, Sharded, Table, quote_identifier, quote_literal, range_condition};
use serde_json::json;

/// How many rows a relation, or a subquery with an alias, has on a shard.
pub(crate) async fn count(work: &mut Work<'_, '_>, shard: ShardId, from: &str) -> Result<u64, ServerError> {
    let counted = work
        .on(shard, &format!("SELECT pg_catalog.count(*) FROM {from}"))
        .await?;
    Ok(counted.last().and_then(|r| r.text(0, 0)?.parse().ok()).unwrap_or(0))
}

/// Puts `new` in the place of `old`, each with the number of its rows: makes them, moves the rows, and drops the old ones. Both cover
/// the same keys. The caller has locked the table, and taken its foreign keys off.
pub(crate) async fn replace(
    work: &mut Work<'_, '_>,
    table: &Table,
    sharded: &Sharded,
    old: &[(Range, u64)],
    new: &[NewRange],
) -> Result<(), ServerError> {
    let definition = work.definition(&table.name).await?;
    let options = match old.first() {
        Some((range, _)) => options(work, range).await?,
        None => Vec::new(),
    };
    for (range, _) in old {
        let sql = format!("ALTER TABLE {} DETACH PARTITION {}", table.name, range.child);
        work.on(range.shard, &sql).await?;
    }
    make_children(work, &table.name, sharded.id, new, &options).await?;
    let triggers = silence_triggers(work, sharded.id, new).await?;
    let quoted: Vec<_> = sharded.key.iter().map(|c| quote_identifier(c)).collect();
    let columns = definition.copied_columns();
    for (range, rows) in old {
        let mut moved = 0;
        for to in new.iter().filter(|n| n.from < range.to && range.from < n.to) {
            let condition = range_condition(&quoted, &sharded.key_types, &to.from, &to.to);
            let query = format!("SELECT {columns} FROM {} WHERE {condition}", range.child);
            let target = child_name(sharded.id, to.id).to_string();
            let target = (to.shard, target.as_str(), columns.as_str());
            moved += copy_rows(work, (range.shard, &query), target, definition.builtin_types).await?;
        }
        if moved != *rows {
            return Err(ServerError::internal(format!(
                "{rows} rows were to be moved, and {moved} were"
            )));
        }
        work.on(range.shard, &format!("DROP TABLE {}", range.child)).await?;
        work.write(json!({"do": "drop_range", "table": sharded.id.0, "id": range.id.0}));
    }
    wake_triggers(work, triggers).await?;
    for range in new {
        let child = child_name(sharded.id, range.id);
        work.on(range.shard, &format!("ANALYZE {child}")).await?;
        write_range(work, sharded.id, range, &child, false);
    }
    work.renew_fence(sharded).await
}

/// The storage options of a child, for what takes its place.
async fn options(work: &mut Work<'_, '_>, range: &Range) -> Result<Vec<String>, ServerError> {
    let sql = format!(
        "SELECT pg_catalog.unnest(reloptions) FROM pg_catalog.pg_class WHERE oid = {}::pg_catalog.regclass",
        quote_literal(&range.child.to_string())
    );
    let results = work.on(range.shard, &sql).await?;
    let rows = results.last().map_or(0, |r| r.rows.len());
    Ok((0..rows)
        .filter_map(|i| results.last().and_then(|r| r.text(i, 0)).map(str::to_owned))
        .collect())
}
