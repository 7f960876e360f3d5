//! CREATE, ALTER and DROP INDEX. A sharded table has every index on every shard, under one name.

use crate::alter_table::{as_local, cannot_hold, still_sharded};
use crate::partition;
use crate::statement_text::StatementText;
use crate::work::Work;
use pgherd_model::{Name, ServerError, quote_identifier};
use pgherd_sql::{Ddl, DdlKind, ObjectName};

/// CREATE INDEX.
pub(crate) async fn create_index(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let name = &ddl.relations[0];
    let Some(table) = work.resolve(name) else {
        return work.on_home(text.text).await;
    };
    if table.sharded().is_none() {
        return on_partition(work, ddl, name, text).await;
    }
    // With declared partitions it is one that their own are attached to, which is how pg_dump writes it.
    let automatic = table.sharded().is_some_and(|s| s.automatic);
    let by_default = table.is_by_default();
    if automatic && !by_default && text.has(&["on", "only"]) {
        return Err(ServerError::unsupported(
            format!(
                "cannot create an index on the parent of sharded table \"{}\" only",
                name.name
            ),
            "Leave out ONLY.",
        ));
    }
    // PostgreSQL does not take these for a partitioned table, which this one was not made as; of a plain table, ONLY means nothing.
    let blanked = by_default.then(|| text.blank_default_tablespace());
    let text = &text.over(blanked.as_deref().unwrap_or(text.text));
    let blanked = by_default.then(|| text.blank_only(&[name]));
    let text = &text.over(blanked.as_deref().unwrap_or(text.text));
    let unique = text.has(&["create", "unique", "index"]);
    if unique {
        work.announce([name.name.as_str()], text.text).await?;
    }
    let table = still_sharded(work, name)?;
    let shards = work.shards();
    work.lock(&shards, &[table.name.to_string()], "SHARE").await?;
    let home = work.home();
    work.open_children(&shards, true).await?;
    work.attempt(home).await?;
    let tag = match work.on_home(text.text).await {
        Ok(tag) => {
            work.keep(home).await?;
            tag
        }
        Err(e) if by_default && (unique && cannot_hold(&e) || is_of_whole_rows(&e)) => {
            work.undo(home).await?;
            work.open_children(&shards, false).await?;
            return as_local(work, &table, &e.fields().message, text).await;
        }
        Err(e) => return Err(text.naming_unique(e)),
    };
    let sql = named(work, ddl, text, &table.name).await?;
    let others = work.others();
    let made = work.on_each(&others, &sql).await;
    made.map_err(|e| text.naming_unique(e))?;
    work.open_children(&shards, false).await?;
    work.keep_children(&shards, std::slice::from_ref(&table.name)).await?;
    Ok(tag)
}

/// Whether PostgreSQL cannot make an index of a partitioned table, since an expression has the table's whole row in it.
fn is_of_whole_rows(error: &ServerError) -> bool {
    error.fields().message == "cannot convert whole-row table reference"
}

/// An index of a declared partition alone: its owner's, and its stand-in's on the home shard.
async fn on_partition(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    name: &ObjectName,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let Some(table) = work.resolve(name) else {
        return work.on_home(text.text).await;
    };
    let owner = partition::owner(work, &table).map(|(_, range)| range.shard);
    let tag = work.on_home(text.text).await?;
    if let Some(shard) = owner.filter(|shard| *shard != work.home()) {
        let sql = named(work, ddl, text, &table.name).await?;
        work.on(shard, &sql).await?;
    }
    Ok(tag)
}

/// The statement with the name that the home shard has given the index, since another shard might find another.
async fn named(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
    table: &Name,
) -> Result<String, ServerError> {
    if ddl.object.is_some() {
        return Ok(text.text.to_owned());
    }
    let made = work.inspect(&table.to_string()).await?.and_then(|r| r.newest_index);
    made.and_then(|m| text.with_index_name(&quote_identifier(&m)))
        .ok_or_else(|| ServerError::internal("a new index has no name"))
}

/// ALTER INDEX and DROP INDEX, by the tables that the indexes belong to.
pub(crate) async fn change_indexes(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    if matches!(ddl.kind, DdlKind::AlterIndex) && text.has(&["attach", "partition"]) {
        return attach(work, ddl, text).await;
    }
    let (mut sharded, mut indexes) = (Vec::new(), Vec::new());
    for name in &ddl.relations {
        let Some(index) = work.inspect(text.written(name)).await? else {
            continue;
        };
        let Some(of) = index.table_of_index.clone() else {
            continue;
        };
        let Some(table) = work.inspect(&of).await? else {
            continue;
        };
        let known = work.snapshot.table(&table.full_name()).cloned();
        let owner = known.as_ref().and_then(|t| partition::owner(work, t));
        if let Some((_, range)) = owner.filter(|_| ddl.relations.len() == 1) {
            let tag = work.on_home(text.text).await?;
            if range.shard != work.home() {
                let names = [index.full_name().to_string()];
                work.on(range.shard, &text.with_names(&ddl.relations, &names)).await?;
            }
            return Ok(tag);
        }
        if let Some(known) = known.filter(|t| t.sharded().is_some()) {
            sharded.push(known.name.clone());
            indexes.push((index.full_name(), index.is_unique_index.unwrap_or(false)));
        }
    }
    if sharded.is_empty() {
        return work.on_home(text.text).await;
    }
    if text.has(&["concurrently"]) {
        return Err(ServerError::unsupported(
            "cannot drop indexes of sharded tables concurrently",
            "Leave out CONCURRENTLY.",
        ));
    }
    if indexes.iter().any(|(_, unique)| *unique) {
        work.announce(sharded.iter().map(|n| &*n.name), text.text).await?;
    }
    let shards = work.shards();
    let tables: Vec<_> = sharded.iter().map(Name::to_string).collect();
    work.lock(&shards, &tables, "ACCESS EXCLUSIVE").await?;
    let tag = work.on_home(text.text).await?;
    let names: Vec<_> = indexes.iter().map(|(n, _)| n.to_string()).collect();
    let others = work.others();
    work.on_each(&others, &text.with_names(&ddl.relations, &names)).await?;
    work.keep_children(&shards, &sharded).await?;
    Ok(tag)
}

/// `ALTER INDEX … ATTACH PARTITION …` of a sharded table's index: where the partition is, and on the home shard. The parent's index is valid
/// on a shard with the last partition of that shard, and counts as unique with the last one on the home shard, which has them all.
async fn attach(work: &mut Work<'_, '_>, ddl: &Ddl, text: &StatementText<'_>) -> Result<String, ServerError> {
    let mut owner = None;
    if let Some(index) = text.attached()
        && let Some(of) = work.inspect(text.written(&index)).await?.and_then(|i| i.table_of_index)
        && let Some(relation) = work.inspect(&of).await?
        && let Some(table) = work.snapshot.table(&relation.full_name()).cloned()
    {
        owner = partition::owner(work, &table);
    }
    let Some((parent, range)) = owner else {
        return work.on_home(text.text).await;
    };
    let index = work.inspect(text.written(&ddl.relations[0])).await?;
    if index.is_some_and(|i| i.is_unique_index == Some(true)) {
        work.announce([&*parent.name.name], text.text).await?;
    }
    let tag = work.on_home(text.text).await?;
    if range.shard != work.home() {
        work.on(range.shard, text.text).await?;
    }
    Ok(tag)
}
