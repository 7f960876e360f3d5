//! ALTER TABLE of local and sharded tables.

use crate::bounds::Automatic;
use crate::convert::{self, Target, distributable};
use crate::create_table::{first_key_column, refuse_foreign_keys};
use crate::partition;
use crate::statement_text::StatementText;
use crate::work::Work;
use pgherd_model::{Name, ServerError, SqlState, Table, TableKind, quote_identifier};
use pgherd_sql::{Ddl, ObjectName};

/// Runs the statement and returns its tag.
pub(crate) async fn alter_table(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let name = &ddl.relations[0];
    convert::free_referenced(work, text).await?;
    match work.resolve(name).map(|t| t.kind.clone()) {
        Some(TableKind::Sharded(_)) if ddl.partition.is_some() => partition::detach(work, ddl, text).await,
        Some(TableKind::Sharded(_)) => alter_sharded(work, name, text).await,
        Some(TableKind::Partition { .. }) => partition::alter(work, ddl, text).await,
        _ => alter_local(work, name, text).await,
    }
}

/// The names whose meaning the statement may change.
fn names<'n>(name: &'n ObjectName, renamed: &'n Option<String>) -> Vec<&'n str> {
    let mut names = vec![name.name.as_str()];
    names.extend(renamed.as_deref());
    names
}

async fn alter_sharded(
    work: &mut Work<'_, '_>,
    name: &ObjectName,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let renamed = text.new_name();
    work.announce(names(name, &renamed), text.text).await?;
    let table = still_sharded(work, name)?;
    let shards = work.shards();
    work.lock(&shards, &[table.name.to_string()], "ACCESS EXCLUSIVE")
        .await?;
    if let Some(action) = text.storage_action(name).filter(|_| is_by_default(&table)) {
        return change_storage(work, &table, action).await;
    }
    let sql = text.without_only(name);
    let home = work.home();
    let by_default = is_by_default(&table);
    work.attempt(home).await?;
    let tag = match work.on_home(&sql).await {
        Ok(tag) => match foreign_key_of(work, &table).await? {
            None => {
                work.keep(home).await?;
                tag
            }
            Some(_) if by_default => {
                work.undo(home).await?;
                let why = ServerError::unsupported("a foreign key cannot be checked across ranges yet", "");
                return as_local(work, &table, &why, text.text).await;
            }
            Some(key) => {
                return Err(ServerError::unsupported(
                    format!(
                        "foreign key \"{key}\" of sharded table \"{}\" cannot be checked across ranges",
                        table.name.name
                    ),
                    "Leave the foreign key out, or make the table local with CALL pgherd.undistribute(…).",
                ));
            }
        },
        Err(e) if by_default && cannot_hold(&e) => {
            work.undo(home).await?;
            return as_local(work, &table, &e, text.text).await;
        }
        Err(e) => return Err(e),
    };
    on_other_shards(work, &table, &sql).await?;
    let now = work
        .snapshot
        .sharded()
        .find(|t| t.sharded().map(|s| s.id) == table.sharded().map(|s| s.id));
    if let Some(now) = now.map(|t| t.name.clone()) {
        work.keep_children(&shards, std::slice::from_ref(&now)).await?;
        work.close_sequences(&[now.to_string()]).await?;
    }
    Ok(tag)
}

/// Its user made it a plain table.
fn is_by_default(table: &Table) -> bool {
    table.sharded().is_some_and(|s| s.by_default)
}

/// What PostgreSQL does to plain tables and not to partitioned ones: each range has its own storage.
async fn change_storage(work: &mut Work<'_, '_>, table: &Table, action: &str) -> Result<String, ServerError> {
    let ranges = table.sharded().map(|s| s.ranges.ranges()).unwrap_or_default();
    for range in ranges {
        work.on(range.shard, &format!("ALTER TABLE {} {action}", range.child))
            .await?;
    }
    Ok("ALTER TABLE".into())
}

/// What the home shard has done. A new column's default fills the rows that are there: where it is the time, with the home shard's.
async fn on_other_shards(work: &mut Work<'_, '_>, before: &Table, sql: &str) -> Result<(), ServerError> {
    let others = work.others();
    let Some(timed) = pgherd_sql::clock::column_of_one_time(sql) else {
        work.on_each(&others, sql).await?;
        return work.reload().await;
    };
    let time = work.value(pgherd_transaction::ASK_CLOCK).await?.unwrap_or_default();
    let sql = format!("SET LOCAL pgherd.transaction_time TO '{time}'; {timed}");
    work.on_each(&others, &sql).await?;
    work.reload().await?;
    let id = before.sharded().map(|s| s.id);
    let now = work
        .snapshot
        .sharded()
        .find(|t| t.sharded().map(|s| s.id) == id)
        .cloned();
    if let Some(table) = now {
        let new = table.columns.iter().filter(|c| before.column(&c.name).is_none());
        for (column, default) in new.filter_map(|c| Some((&c.name, c.default.as_ref()?))) {
            let column = quote_identifier(column);
            let sql = format!("ALTER TABLE {} ALTER COLUMN {column} SET DEFAULT {default}", table.name);
            work.on_each(&others, &sql).await?;
        }
    }
    Ok(())
}

/// After the announcement the table may be another than before.
pub(crate) fn still_sharded(work: &Work<'_, '_>, name: &ObjectName) -> Result<std::sync::Arc<Table>, ServerError> {
    work.sharded(name).ok_or_else(|| {
        ServerError::new(
            SqlState::SERIALIZATION_FAILURE,
            format!(
                "could not serialize access: table \"{}\" was changed meanwhile",
                name.name
            ),
        )
        .with_hint("Repeat the transaction.")
    })
}

/// What PostgreSQL says of a partitioned table where it would do the same to a plain one.
pub(crate) fn cannot_hold(error: &ServerError) -> bool {
    matches!(
        error.sqlstate(),
        SqlState::FEATURE_NOT_SUPPORTED
            | SqlState::WRONG_OBJECT_TYPE
            | SqlState::INVALID_TABLE_DEFINITION
            | SqlState::INVALID_OBJECT_DEFINITION
    )
}

/// A table that `pgherd.default_distribution` made sharded becomes local, and the statement runs there.
pub(crate) async fn as_local(
    work: &mut Work<'_, '_>,
    table: &Table,
    why: &ServerError,
    sql: &str,
) -> Result<String, ServerError> {
    let before = work.notice_count();
    convert::undistribute(work, &table.name).await?;
    work.truncate_notices(before);
    let tag = work.on_home(sql).await?;
    work.notice(format!(
        "table \"{}\" is local: {}",
        table.name.name,
        why.fields().message
    ));
    Ok(tag)
}

/// The name of a foreign key that the statement has given the table, which PostgreSQL would check on each shard's part.
async fn foreign_key_of(work: &mut Work<'_, '_>, table: &Table) -> Result<Option<String>, ServerError> {
    let oid = table.sharded().map_or(0, |s| s.relation);
    let name = work.value(&format!("SELECT {oid}::pg_catalog.regclass::text")).await?;
    let relation = work.inspect(&name.unwrap_or_default()).await?;
    Ok(relation
        .and_then(|r| r.foreign_keys.into_iter().next())
        .map(|key| key.name))
}

async fn alter_local(
    work: &mut Work<'_, '_>,
    name: &ObjectName,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let renamed = text.new_name();
    let known = |n: &str| work.snapshot.relations.contains_key(n);
    if names(name, &renamed).into_iter().any(known) {
        work.announce(names(name, &renamed), text.text).await?;
    }
    let written = text.written(name);
    let by_primary_key = work.session.distribution.automatic == Automatic::PrimaryKey;
    let may_distribute = by_primary_key && text.has(&["primary", "key"]);
    let had_key = match work.inspect(written).await? {
        Some(relation) if may_distribute => relation.primary_key,
        _ => true,
    };
    let tag = work.on_home(text.text).await?;
    let Some(relation) = work.inspect(written).await? else {
        return Ok(tag);
    };
    refuse_foreign_keys(work, &relation)?;
    if had_key || !relation.primary_key || relation.kind != 'r' {
        return Ok(tag);
    }
    let key = first_key_column(&relation);
    match distributable(&relation, &key) {
        Ok(key_types) => {
            let full: Name = relation.full_name();
            work.announce([&*full.name], text.text).await?;
            let target = Target {
                key: &key,
                key_types,
                like: None,
                by_default: true,
            };
            convert::distribute(work, &relation, target).await?;
        }
        Err(why) => {
            if relation.persistence == 'p' && !relation.is_partition && !relation.inherits {
                work.notice(format!("table \"{}\" is local: {why}", name.name));
            }
        }
    }
    Ok(tag)
}
