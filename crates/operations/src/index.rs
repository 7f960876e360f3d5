//! CREATE, ALTER and DROP INDEX. A sharded table has every index on every shard, under one name.

use crate::alter_table::{as_local, cannot_hold, still_sharded};
use crate::statement_text::StatementText;
use crate::work::Work;
use pgherd_model::{Name, ServerError, quote_identifier};
use pgherd_sql::{Ddl, ObjectName};

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
        return on_partition_or_refused(work, name, text).await;
    }
    if text.has(&["on", "only"]) {
        return Err(ServerError::unsupported(
            format!(
                "cannot create an index on the parent of sharded table \"{}\" only",
                name.name
            ),
            "Leave out ONLY.",
        ));
    }
    let unique = text.has(&["create", "unique", "index"]);
    if unique {
        work.announce([name.name.as_str()], text.text).await?;
    }
    let table = still_sharded(work, name)?;
    let shards = work.shards();
    work.lock(&shards, &[table.name.to_string()], "SHARE").await?;
    let home = work.home();
    let by_default = table.sharded().is_some_and(|s| s.by_default);
    work.attempt(home).await?;
    let tag = match work.on_home(text.text).await {
        Ok(tag) => {
            work.keep(home).await?;
            tag
        }
        Err(e) if by_default && unique && cannot_hold(&e) => {
            work.undo(home).await?;
            return as_local(work, &table, &e.fields().message, text).await;
        }
        Err(e) => return Err(e),
    };
    let sql = match &ddl.object {
        Some(_) => text.text.to_owned(),
        None => {
            // The name that the home shard found, since another shard might find another.
            let made = work
                .inspect(&table.name.to_string())
                .await?
                .and_then(|r| r.newest_index);
            made.and_then(|m| text.with_index_name(&quote_identifier(&m)))
                .ok_or_else(|| ServerError::internal("a new index has no name"))?
        }
    };
    let others = work.others();
    work.on_each(&others, &sql).await?;
    work.keep_children(&shards, std::slice::from_ref(&table.name)).await?;
    Ok(tag)
}

/// An index of a declared partition alone.
async fn on_partition_or_refused(
    work: &mut Work<'_, '_>,
    name: &ObjectName,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let Some(table) = work.resolve(name) else {
        return work.on_home(text.text).await;
    };
    match &table.kind {
        pgherd_model::TableKind::Partition { .. } => Err(ServerError::unsupported(
            format!("cannot create an index on partition \"{}\" alone", name.name),
            "Create it on the sharded table.",
        )),
        _ => work.on_home(text.text).await,
    }
}

/// ALTER INDEX and DROP INDEX, by the tables that the indexes belong to.
pub(crate) async fn change_indexes(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
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
