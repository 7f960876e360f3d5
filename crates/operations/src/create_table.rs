//! CREATE TABLE: sharded when it is PARTITION BY RANGE over a key that ranges can be made of, or when
//! `pgherd.default_distribution` is `primary_key` and its constraints can hold across ranges; else local.

use crate::alter_table::{called_on_home, cannot_hold};
use crate::bounds::Automatic;
use crate::inspect::Relation;
use crate::ranges::{NewTable, automatic_ranges, establish};
use crate::statement_text::StatementText;
use crate::work::Work;
use crate::{bounds, convert, foreign_keys, partition};
use pgherd_model::{
    FIRST_OF_USERS, KeyType, Name, ServerError, SqlState, Table, TableKind, quote_identifier, quote_literal,
};
use pgherd_sql::{Ddl, ObjectName};
use std::sync::Arc;

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
    free_inherited(work, text).await?;
    let shadows = announce_referenced(work, name, text).await? || shadows;
    let (home, notices) = (work.home(), work.notice_count());
    work.attempt(home).await?;
    let tag = work.on_home(text.text).await?;
    let Some(made) = work.inspect(&full.to_string()).await? else {
        // In another schema than the first of the path: a temporary table.
        work.keep(home).await?;
        return Ok(tag);
    };
    let place = match placement(work, &made, text) {
        Placement::Local(why) => Placement::Local(why),
        elsewhere => match on_home_alone(work, &made).await? {
            true => Placement::Local(Some("its schema or a type of it is on the home shard alone".into())),
            false => elsewhere,
        },
    };
    match place {
        Placement::Local(why) => {
            if text.referenced().iter().any(|n| is_placed(work, n)) {
                work.undo(home).await?;
                work.truncate_notices(notices);
                make_local(work, &full, text).await?;
            } else {
                work.keep(home).await?;
            }
            if let Some(why) = why {
                work.notice(format!("table \"{}\" is local: {why}", name.name));
            }
        }
        Placement::Declared(place) => {
            work.keep(home).await?;
            if !shadows {
                work.announce([name.name.as_str()], text.text).await?;
            }
            make_ranges(work, &made, place, false, &[]).await?;
        }
        Placement::ByPrimaryKey(place) => {
            work.undo(home).await?;
            work.truncate_notices(notices);
            if !shadows {
                work.announce([name.name.as_str()], text.text).await?;
            }
            let quoted: Vec<_> = place.key.iter().map(|c| quote_identifier(c)).collect();
            let by = format!("RANGE ({})", quoted.join(", "));
            let rewritten = text
                .partitioned(name, &by)
                .ok_or_else(|| ServerError::internal("CREATE TABLE without a list of columns"))?;
            work.attempt(home).await?;
            match work.on_home(&rewritten).await {
                Err(e) if cannot_hold(&e) => {
                    work.undo(home).await?;
                    make_local(work, &full, text).await?;
                    work.notice(format!("table \"{}\" is local: {}", name.name, e.fields().message));
                    return Ok(tag);
                }
                done => done?,
            };
            work.keep(home).await?;
            make_ranges(work, &made, place, true, &made.options).await?;
        }
    }
    Ok(tag)
}

/// Makes the table on the home shard, and those local that it refers to.
async fn make_local(work: &mut Work<'_, '_>, full: &Name, text: &StatementText<'_>) -> Result<(), ServerError> {
    convert::free_referenced(work, text).await?;
    work.on_home(text.text).await?;
    let made = work.inspect(&full.to_string()).await?;
    made.map_or(Ok(()), |made| refuse_foreign_keys(work, &made))
}

/// Whether the name is that of a sharded table, or of one of its partitions.
fn is_placed(work: &Work<'_, '_>, name: &ObjectName) -> bool {
    let kind = work.resolve(name).map(|t| t.kind.clone());
    matches!(kind, Some(TableKind::Sharded(_) | TableKind::Partition { .. }))
}

/// A foreign key to a sharded table changes that one too, and wants its ranges to stay where they are. Returns whether
/// anything was announced.
async fn announce_referenced(
    work: &mut Work<'_, '_>,
    name: &ObjectName,
    text: &StatementText<'_>,
) -> Result<bool, ServerError> {
    let referenced = text.referenced();
    let sharded = |work: &Work<'_, '_>| -> Vec<Name> {
        let found = referenced.iter().filter_map(|n| work.sharded(n));
        found.map(|t| t.name.clone()).collect()
    };
    let names: Vec<_> = sharded(work).iter().map(|n| n.name.to_string()).collect();
    if names.is_empty() {
        return Ok(false);
    }
    let names = names.iter().map(String::as_str).chain([name.name.as_str()]);
    work.announce(names, text.text).await?;
    let locked: Vec<_> = sharded(work).iter().map(Name::to_string).collect();
    let shards = work.shards();
    match work.lock(&shards, &locked, "SHARE ROW EXCLUSIVE").await {
        // PostgreSQL asks for REFERENCES only, and waits for the lock by itself.
        Err(e) if e.sqlstate() != SqlState::INSUFFICIENT_PRIVILEGE => Err(e),
        _ => Ok(true),
    }
}

/// Tables that were sharded by default become local again when another one is to inherit from them.
pub(crate) async fn free_inherited(work: &mut Work<'_, '_>, text: &StatementText<'_>) -> Result<(), ServerError> {
    for parent in text.inherited() {
        if let Some(table) = work.sharded(&parent).filter(|t| t.is_by_default()) {
            convert::free(work, &table.name, "a table inherits from it").await?;
        }
    }
    Ok(())
}

/// Where a new table goes.
enum Placement {
    /// with the reason, where one was to be expected elsewhere
    Local(Option<String>),
    /// PARTITION BY RANGE
    Declared(Place),
    /// a plain table that becomes one
    ByPrimaryKey(Place),
}

/// A sharded table's key, and whose ranges it gets.
struct Place {
    key: Vec<String>,
    key_types: Vec<KeyType>,
    /// a table that it refers to
    like: Option<Arc<Table>>,
}

fn placement(work: &Work<'_, '_>, made: &Relation, text: &StatementText<'_>) -> Placement {
    let automatic = work.session.distribution.automatic;
    if made.kind == 'p' {
        if automatic == Automatic::Nothing || made.strategy != Some('r') || made.is_partition {
            return Placement::Local(None);
        }
        return declared_place(work, made).map_or_else(|why| Placement::Local(Some(why)), Placement::Declared);
    }
    let plain = made.kind == 'r' && made.persistence == 'p' && !made.inherits && !made.typed && !made.is_partition;
    if !plain || !made.primary_key || automatic != Automatic::PrimaryKey {
        return Placement::Local(None);
    }
    if text.has(&["tableoid"]) {
        return Placement::Local(Some("its definition has its own OID in it".into()));
    }
    if let Some(function) = called_on_home(work, text) {
        return Placement::Local(Some(format!("function {function} needs the home shard")));
    }
    // What follows may move its rows.
    if work.shows_one_snapshot() && work.shards().len() > 1 {
        return Placement::Local(Some(
            "it is made in a transaction at isolation level REPEATABLE READ or SERIALIZABLE".into(),
        ));
    }
    default_place(work, made).map_or_else(|why| Placement::Local(Some(why)), Placement::ByPrimaryKey)
}

/// Whether the table's schema or one of its types is missing on another shard: a function has made it.
async fn on_home_alone(work: &mut Work<'_, '_>, made: &Relation) -> Result<bool, ServerError> {
    let of_users = made
        .columns
        .iter()
        .filter(|column| column.type_oid >= Some(FIRST_OF_USERS));
    let types: Vec<_> = of_users
        .filter_map(|column| Some(quote_literal(column.type_name.as_ref()?)))
        .collect();
    if types.is_empty() && made.schema == "public" {
        return Ok(false);
    }
    let there = format!(
        "SELECT (pg_catalog.to_regnamespace({}) IS NOT NULL AND NOT EXISTS \
         (SELECT FROM pg_catalog.unnest(ARRAY[{}]::pg_catalog.text[]) n WHERE pg_catalog.to_regtype(n) IS NULL))::pg_catalog.text",
        quote_literal(&quote_identifier(&made.schema)),
        types.join(", ")
    );
    for shard in work.others() {
        let results = work.on(shard, &there).await?;
        if results.last().and_then(|r| r.text(0, 0)) != Some("true") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// By the columns that refer to another table's key, or else by the first column of the primary key.
fn default_place(work: &Work<'_, '_>, made: &Relation) -> Result<Place, String> {
    let beside = foreign_keys::beside(&work.snapshot, made)?;
    let (key, like) = match beside {
        Some(beside) => (beside.key, Some(beside.like)),
        None => (first_key_column(made), None),
    };
    foreign_keys::own_keys_hold(made, &key)?;
    let key_types = convert::distributable(made, &key)?;
    if like
        .as_ref()
        .and_then(|t| t.sharded())
        .is_some_and(|like| !like.automatic)
    {
        return Err("it refers to a table with declared partitions".into());
    }
    Place::new(key, key_types, like)
}

fn declared_place(work: &Work<'_, '_>, made: &Relation) -> Result<Place, String> {
    if !made.usual_order {
        return Err("its key has an operator class that is not the type's own".into());
    }
    if made.published {
        return Err("a publication has it".into());
    }
    let key = made.key.as_deref().unwrap_or_default();
    let key_types = key.iter().map(|c| c.key_type()).collect::<Result<_, _>>()?;
    let key: Vec<String> = key.iter().filter_map(|c| c.name.clone()).collect();
    foreign_keys::own_keys_hold(made, &key)?;
    let beside = foreign_keys::beside(&work.snapshot, made)?;
    if beside.as_ref().is_some_and(|b| b.key != key) {
        return Err("its foreign key does not match the shard keys of both tables".into());
    }
    Place::new(key, key_types, beside.map(|b| b.like))
}

impl Place {
    fn new(key: Vec<String>, key_types: Vec<KeyType>, like: Option<Arc<Table>>) -> Result<Self, String> {
        match like.as_ref().and_then(|t| t.sharded()) {
            Some(other) if other.key_types != key_types => {
                Err("its shard key has another type than that of the table that it refers to".into())
            }
            _ => Ok(Self { key, key_types, like }),
        }
    }
}

/// The first column of the primary key.
pub(crate) fn first_key_column(relation: &Relation) -> Vec<String> {
    let first = relation.key.as_ref().and_then(|k| k.first());
    first.and_then(|c| c.name.clone()).into_iter().collect()
}

/// Ranges over all keys, or those of the table that it refers to, for a parent that exists on the home shard.
async fn make_ranges(
    work: &mut Work<'_, '_>,
    made: &Relation,
    place: Place,
    by_default: bool,
    options: &[String],
) -> Result<(), ServerError> {
    let name = made.full_name();
    // As it is now, since the announcement.
    let like = place.like.as_ref().and_then(|t| work.snapshot.table(&t.name)).cloned();
    let like = like.as_ref().and_then(|t| t.sharded());
    let ranges = match like {
        Some(like) => convert::as_in(like),
        None => {
            let splits = work.session.distribution.splits(place.key_types[0]);
            let covering = bounds::covering(&splits, place.key_types.len());
            automatic_ranges(covering, &work.snapshot, &work.shards())
        }
    };
    let definition = work.definition(&name).await?;
    let partition_key = definition
        .partition_key
        .clone()
        .ok_or_else(|| ServerError::internal("a sharded table's parent is not partitioned"))?;
    let table = NewTable {
        id: work.session.catalog.new_table_number().await?,
        name: name.clone(),
        key_types: place.key_types,
        ranges,
        by_default,
        options,
        beside: like.filter(|s| s.automatic).map(|s| s.colocation),
    };
    establish(work, &table, &definition, &partition_key).await?;
    let keys = foreign_keys::of(work, std::slice::from_ref(&name)).await?;
    if keys.is_empty() {
        return Ok(());
    }
    let (shards, others) = (work.shards(), work.others());
    foreign_keys::put_on(work, &keys, &others).await?;
    work.keep_children(&shards, &[name]).await
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
