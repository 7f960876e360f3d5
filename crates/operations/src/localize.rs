//! A table with declared partitions becomes local: its rows go to the partitions of the same names that the home shard has. That is what
//! a DEFAULT partition and a partition that is partitioned itself want, since neither is a range of keys.

use crate::partition::return_rows;
use crate::work::Work;
use pgherd_model::{ServerError, Table};
use serde_json::json;

/// Makes the table local, which is announced and locked on all shards, and says why. The ranges of pgherd's own are gone already.
pub(crate) async fn localize(work: &mut Work<'_, '_>, table: &Table, why: &str) -> Result<(), ServerError> {
    let name = &table.name;
    let Some(sharded) = table.sharded() else {
        return Ok(());
    };
    if sharded.is_linked {
        return Err(ServerError::unsupported(
            format!(
                "table \"{}\" cannot be made local while foreign keys link it with other tables",
                name.name
            ),
            "Drop the foreign keys first, or declare ranges with FOR VALUES FROM … TO ….",
        ));
    }
    if !sharded.automatic {
        for range in sharded.ranges.ranges() {
            return_rows(work, range).await?;
        }
    }
    forget(work, std::iter::once(table)).await?;
    work.notice(format!("table \"{}\" is local: {why}", name.name));
    Ok(())
}

/// The other shards lose these tables, and their views along with them; nobody routes by them any more. The home shard has all rows.
pub(crate) async fn forget(work: &mut Work<'_, '_>, tables: impl Iterator<Item = &Table>) -> Result<(), ServerError> {
    let tables: Vec<_> = tables
        .filter_map(|t| Some((t.name.to_string(), t.sharded()?)))
        .collect();
    let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
    let (others, before) = (work.others(), work.notice_count());
    work.on_each(&others, &format!("DROP TABLE {} CASCADE", names.join(", ")))
        .await?;
    work.truncate_notices(before);
    for (_, sharded) in tables {
        work.write(json!({"do": "drop_table", "id": sharded.id.0}));
        let fences = json!({"create": [], "drop": [*sharded.fence.name]}).to_string();
        for shard in work.shards() {
            work.signed(shard, "change_fences", &fences).await?;
        }
    }
    Ok(())
}
