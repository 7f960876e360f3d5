//! CREATE TABLE: sharded when it is PARTITION BY RANGE over a key that ranges can be made of, or when
//! `pgherd.default_distribution` is `primary_key` and its constraints can hold across ranges; else local.

use crate::bounds::Automatic;
use crate::inspect::Relation;
use crate::ranges::{NewTable, automatic_ranges, establish};
use crate::statement_text::StatementText;
use crate::work::Work;
use crate::{bounds, convert, partition};
use pgherd_model::{KeyType, Name, ServerError, quote_identifier};
use pgherd_sql::{Ddl, ObjectName};

/// Runs the statement and returns its tag.
pub(crate) async fn create_table(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let name = &ddl.relations[0];
    if ddl.temporary {
        return work.on_home(text.text).await;
    }
    if let Some(parent) = &ddl.partition
        && work.sharded(parent).is_some()
    {
        return partition::create(work, name, parent, text).await;
    }
    let full = full_name(work, name).await?;
    let shadows = work.snapshot.relations.contains_key(name.name.as_str());
    if shadows {
        work.announce([name.name.as_str()], text.text).await?;
    }
    if text.has(&["if", "not", "exists"]) && work.inspect(&full.to_string()).await?.is_some() {
        return work.on_home(text.text).await;
    }
    convert::free_referenced(work, text).await?;
    let (home, notices) = (work.home(), work.notice_count());
    work.attempt(home).await?;
    let tag = work.on_home(text.text).await?;
    let Some(made) = work.inspect(&full.to_string()).await? else {
        // In another schema than the first of the path: a temporary table.
        work.keep(home).await?;
        return Ok(tag);
    };
    match placement(work, &made) {
        Placement::Local(why) => {
            work.keep(home).await?;
            refuse_foreign_keys(work, &made)?;
            if let Some(why) = why {
                work.notice(format!("table \"{}\" is local: {why}", name.name));
            }
        }
        Placement::Declared(key_types) => {
            work.keep(home).await?;
            if !shadows {
                work.announce([name.name.as_str()], text.text).await?;
            }
            make_ranges(work, &made, key_types, false, &[]).await?;
        }
        Placement::ByPrimaryKey(column, key_type) => {
            work.undo(home).await?;
            work.truncate_notices(notices);
            if !shadows {
                work.announce([name.name.as_str()], text.text).await?;
            }
            let by = format!("RANGE ({})", quote_identifier(&column));
            let rewritten = text
                .partitioned(name, &by)
                .ok_or_else(|| ServerError::internal("CREATE TABLE without a list of columns"))?;
            work.on_home(&rewritten).await?;
            make_ranges(work, &made, vec![key_type], true, &made.options).await?;
        }
    }
    Ok(tag)
}

/// Where a new table goes.
enum Placement {
    /// with the reason, where one was to be expected elsewhere
    Local(Option<String>),
    /// PARTITION BY RANGE
    Declared(Vec<KeyType>),
    /// a plain table that becomes one
    ByPrimaryKey(String, KeyType),
}

fn placement(work: &Work<'_, '_>, made: &Relation) -> Placement {
    let automatic = work.session.distribution.automatic;
    if made.kind == 'p' {
        if automatic == Automatic::Nothing || made.strategy != Some('r') || made.is_partition {
            return Placement::Local(None);
        }
        return match declared_key(made) {
            Ok(key_types) => Placement::Declared(key_types),
            Err(why) => Placement::Local(Some(why)),
        };
    }
    let plain = made.kind == 'r' && made.persistence == 'p' && !made.inherits && !made.typed && !made.is_partition;
    if !plain || !made.primary_key || automatic != Automatic::PrimaryKey {
        return Placement::Local(None);
    }
    match convert::distributable(made, &first_key_column(made)) {
        Ok(key_types) => Placement::ByPrimaryKey(first_key_column(made).remove(0), key_types[0]),
        Err(why) => Placement::Local(Some(why)),
    }
}

/// The first column of the primary key.
pub(crate) fn first_key_column(relation: &Relation) -> Vec<String> {
    let first = relation.key.as_ref().and_then(|k| k.first());
    first.and_then(|c| c.name.clone()).into_iter().collect()
}

fn declared_key(made: &Relation) -> Result<Vec<KeyType>, String> {
    if !made.usual_order {
        return Err("its key has an operator class that is not the type's own".into());
    }
    if !made.foreign_keys.is_empty() {
        return Err("a foreign key cannot be checked across ranges yet".into());
    }
    let key = made.key.as_deref().unwrap_or_default();
    key.iter().map(|c| c.key_type()).collect()
}

/// Ranges over all keys for a parent that exists on the home shard.
async fn make_ranges(
    work: &mut Work<'_, '_>,
    made: &Relation,
    key_types: Vec<KeyType>,
    by_default: bool,
    options: &[String],
) -> Result<(), ServerError> {
    let name = made.full_name();
    let splits = work.session.distribution.splits(key_types[0]);
    let ranges = automatic_ranges(
        bounds::covering(&splits, key_types.len()),
        &work.snapshot,
        &work.shards(),
    );
    let definition = work.definition(&name).await?;
    let partition_key = definition
        .partition_key
        .clone()
        .ok_or_else(|| ServerError::internal("a sharded table's parent is not partitioned"))?;
    let table = NewTable {
        id: work.session.catalog.new_table_number().await?,
        name,
        key_types,
        ranges,
        by_default,
        options,
    };
    establish(work, &table, &definition, &partition_key).await
}

/// A local table's foreign key to a sharded table would be checked on the home shard's part only.
pub(crate) fn refuse_foreign_keys(work: &Work<'_, '_>, made: &Relation) -> Result<(), ServerError> {
    let sharded = |oid: u32| {
        work.snapshot
            .sharded()
            .filter_map(|t| t.sharded())
            .any(|s| s.relation == oid)
    };
    match made
        .foreign_keys
        .iter()
        .find(|k| sharded(k.referenced) || sharded(k.relation))
    {
        Some(key) => {
            let other = if sharded(key.referenced) {
                &key.referenced_name
            } else {
                &key.relation_name
            };
            Err(ServerError::unsupported(
                format!(
                    "foreign key \"{}\" cannot be checked across the ranges of {other}",
                    key.name
                ),
                "Leave the foreign key out, or make that table local with CALL pgherd.undistribute(…).",
            ))
        }
        None => Ok(()),
    }
}

/// The full name that a new relation gets.
pub(crate) async fn full_name(work: &mut Work<'_, '_>, name: &ObjectName) -> Result<Name, ServerError> {
    let schema = match &name.schema {
        Some(schema) => schema.clone(),
        None => work
            .value("SELECT pg_catalog.current_schema()")
            .await?
            .unwrap_or_else(|| "public".into()),
    };
    Ok(Name::new(&schema, &name.name))
}
