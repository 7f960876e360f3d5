//! Foreign keys between sharded tables (docs/designs/0019-foreign-keys.md).
//!
//! A key may stay on a sharded table where each shard's PostgreSQL can check it alone: where the referencing columns include
//! the table's shard key, matched to the shard key of the referenced table, and rows of equal keys are on one shard. So a table
//! with such a key is made with the ranges of the one it refers to, and what moves ranges moves those of all linked tables.
//! This module says which keys are of that kind, and takes keys off and puts them on again around a move.

use crate::convert::distributable;
use crate::inspect::{ForeignKey, Relation};
use crate::work::Work;
use pgherd_model::{
    KeyType, Name, ServerError, ShardId, Sharded, Snapshot, Table, columns_for, quote_identifier, quote_literal,
};
use std::sync::Arc;

/// Why a table cannot be sharded, or cannot stay so.
type Reason = String;

/// Where a table's foreign keys want it.
#[derive(Debug)]
pub(crate) struct Beside {
    /// its shard key
    pub key: Vec<String>,
    /// the table whose ranges it gets
    pub like: Arc<Table>,
}

/// Where the foreign keys of a relation to other tables want it; None where it has none.
pub(crate) fn beside(snapshot: &Snapshot, relation: &Relation) -> Result<Option<Beside>, Reason> {
    let mut found: Option<Beside> = None;
    none_draws(relation)?;
    for referring in to_others(snapshot, relation) {
        let (key, like, referenced) = referring?;
        let columns = standing_for(key, &referenced.key).ok_or_else(|| mismatch(key))?;
        match &found {
            Some(before) => {
                let lies_with = before.like.sharded().is_some_and(|s| s.lies_with(referenced));
                if before.key != columns || !lies_with {
                    return Err(mismatch(key));
                }
            }
            None => {
                found = Some(Beside {
                    key: columns,
                    like: like.clone(),
                });
            }
        }
    }
    Ok(found)
}

/// Whether foreign keys of a relation to itself hold when it is sharded by this key.
pub(crate) fn own_keys_hold(relation: &Relation, shard_key: &[String]) -> Result<(), Reason> {
    let mut own = relation.own_foreign_keys().filter(|k| k.referenced == relation.oid);
    match own.find(|k| standing_for(k, shard_key).as_deref() != Some(shard_key)) {
        Some(key) => Err(mismatch(key)),
        None => Ok(()),
    }
}

/// Whether the foreign keys that a sharded table has by now can be checked on each shard.
pub(crate) fn check(snapshot: &Snapshot, sharded: &Sharded, relation: &Relation) -> Result<(), Reason> {
    own_keys_hold(relation, &sharded.key)?;
    none_draws(relation)?;
    for referring in to_others(snapshot, relation) {
        let (key, _, referenced) = referring?;
        if standing_for(key, &referenced.key).as_ref() != Some(&sharded.key) || !sharded.lies_with(referenced) {
            return Err(mismatch(key));
        }
    }
    Ok(())
}

/// The foreign keys of a relation to other tables, with these, all of which must be sharded.
fn to_others<'a>(
    snapshot: &'a Snapshot,
    relation: &'a Relation,
) -> impl Iterator<Item = Result<(&'a ForeignKey, &'a Arc<Table>, &'a Sharded), Reason>> {
    let others = relation.own_foreign_keys().filter(|k| k.referenced != relation.oid);
    others.map(|key| {
        by_oid(snapshot, key.referenced)
            .and_then(|table| Some((key, table, table.sharded()?)))
            .ok_or_else(|| format!("foreign key \"{}\" refers to a local table", key.name))
    })
}

/// Sequences have their values on the home shard, and actions run where the row is.
fn none_draws(relation: &Relation) -> Result<(), Reason> {
    match relation.own_foreign_keys().find(|key| key.draws) {
        Some(key) => Err(format!(
            "foreign key \"{}\" may set a default that draws from a sequence",
            key.name
        )),
        None => Ok(()),
    }
}

/// The referencing columns that stand for the referenced shard key.
fn standing_for(key: &ForeignKey, shard_key: &[String]) -> Option<Vec<String>> {
    columns_for(&key.columns, &key.referenced_columns, shard_key)
}

fn mismatch(key: &ForeignKey) -> Reason {
    format!(
        "foreign key \"{}\" does not match the shard keys of both tables, and cannot be checked across ranges",
        key.name
    )
}

fn by_oid(snapshot: &Snapshot, oid: u32) -> Option<&Arc<Table>> {
    snapshot
        .sharded()
        .find(|t| t.sharded().is_some_and(|s| s.relation == oid))
}

/// The names of these tables and of all that foreign keys link with them: their ranges change together.
pub(crate) fn with_linked(snapshot: &Snapshot, tables: &[Arc<Table>]) -> Vec<Arc<Table>> {
    let mut all: Vec<Arc<Table>> = Vec::new();
    for linked in tables.iter().flat_map(|table| snapshot.linked(&table.name)) {
        if !all.iter().any(|t| t.name == linked.name) {
            all.push(linked);
        }
    }
    all
}

/// A local table that is to be sharded.
#[derive(Debug)]
pub(crate) struct Member {
    pub relation: Relation,
    pub key: Vec<String>,
    pub key_types: Vec<KeyType>,
}

/// The local table with those that foreign keys link with it, each with the key that they give it.
pub(crate) async fn members(
    work: &mut Work<'_, '_>,
    relation: Relation,
    key: Vec<String>,
) -> Result<Result<Vec<Member>, Reason>, ServerError> {
    let mut found = vec![(relation, key)];
    let mut at = 0;
    while let Some((relation, shard_key)) = found.get(at).cloned() {
        at += 1;
        if let Err(why) = own_keys_hold(&relation, &shard_key).and_then(|()| none_draws(&relation)) {
            return Ok(Err(why));
        }
        for link in relation.foreign_keys.iter().filter(|k| k.relation != k.referenced) {
            if !link.valid {
                return Ok(Err(format!("foreign key \"{}\" is not valid", link.name)));
            }
            let (name, theirs) = if link.relation == relation.oid {
                (
                    &link.referenced_name,
                    columns_for(&link.referenced_columns, &link.columns, &shard_key),
                )
            } else {
                (&link.relation_name, standing_for(link, &shard_key))
            };
            let Some(theirs) = theirs else {
                return Ok(Err(mismatch(link)));
            };
            let Some(other) = work.inspect(name).await? else {
                return Ok(Err(mismatch(link)));
            };
            match found.iter().find(|(known, _)| known.oid == other.oid) {
                Some((_, before)) if *before != theirs => return Ok(Err(mismatch(link))),
                Some(_) => {}
                None => found.push((other, theirs)),
            }
        }
    }
    let mut members = Vec::new();
    for (relation, key) in found {
        match distributable(&relation, &key) {
            Ok(key_types) => members.push(Member {
                relation,
                key,
                key_types,
            }),
            Err(why) if members.is_empty() => return Ok(Err(why)),
            Err(why) => return Ok(Err(format!("table \"{}\" goes with it, and {why}", relation.name))),
        }
    }
    let first = &members[0].key_types;
    match members.iter().find(|m| m.key_types != *first) {
        Some(other) => Ok(Err(format!("the key of \"{}\" has another type", other.relation.name))),
        None => Ok(Ok(members)),
    }
}

/// A foreign key that was taken off its table.
#[derive(Debug)]
pub(crate) struct Loose {
    table: Name,
    key: ForeignKey,
}

/// The foreign keys that these tables have, as things to put on.
pub(crate) async fn of(work: &mut Work<'_, '_>, tables: &[Name]) -> Result<Vec<Loose>, ServerError> {
    let mut keys = Vec::new();
    for table in tables {
        let relation = work.inspect(&table.to_string()).await?;
        let own = relation.iter().flat_map(Relation::own_foreign_keys);
        keys.extend(own.map(|key| Loose {
            table: table.clone(),
            key: key.clone(),
        }));
    }
    Ok(keys)
}

/// Takes the foreign keys of these tables off on these shards, for the time in which rows move.
pub(crate) async fn take_off(
    work: &mut Work<'_, '_>,
    tables: &[Name],
    shards: &[ShardId],
) -> Result<Vec<Loose>, ServerError> {
    let keys = of(work, tables).await?;
    for Loose { table, key } in &keys {
        let sql = format!("ALTER TABLE {table} DROP CONSTRAINT {}", quote_identifier(&key.name));
        work.on_each(shards, &sql).await?;
    }
    Ok(keys)
}

/// Puts foreign keys on. PostgreSQL checks all rows of each shard.
pub(crate) async fn put_on(work: &mut Work<'_, '_>, keys: &[Loose], shards: &[ShardId]) -> Result<(), ServerError> {
    let home = work.home();
    for Loose { table, key } in keys {
        let name = quote_identifier(&key.name);
        let sql = format!("ALTER TABLE {table} ADD CONSTRAINT {name} {}", key.definition);
        work.on_each(shards, &sql).await?;
        if let Some(comment) = key.comment.as_ref().filter(|_| shards.contains(&home)) {
            let sql = format!("COMMENT ON CONSTRAINT {name} ON {table} IS {}", quote_literal(comment));
            work.on_home(&sql).await?;
        }
    }
    Ok(())
}

/// On other shards than the home shard PostgreSQL may have found another name for a key that was given none.
pub(crate) async fn name_as_on_home(work: &mut Work<'_, '_>, table: &Name) -> Result<(), ServerError> {
    let asked = format!(
        "SELECT conname FROM pg_catalog.pg_constraint WHERE contype = 'f' AND conparentid = 0 \
         AND conrelid = {}::pg_catalog.regclass ORDER BY oid",
        quote_literal(&table.to_string())
    );
    let mut wanted: Option<Vec<String>> = None;
    let home = work.home();
    for shard in std::iter::once(home).chain(work.others()) {
        let results = work.on(shard, &asked).await?;
        let rows = results.last().map_or(0, |r| r.rows.len());
        let name = |row| Some(results.last()?.text(row, 0)?.to_owned());
        let names: Vec<String> = (0..rows).filter_map(name).collect();
        let Some(wanted) = &wanted else {
            wanted = Some(names);
            continue;
        };
        for (has, wants) in names.iter().zip(wanted).filter(|(has, wants)| has != wants) {
            let (has, wants) = (quote_identifier(has), quote_identifier(wants));
            let sql = format!("ALTER TABLE {table} RENAME CONSTRAINT {has} TO {wants}");
            work.on(shard, &sql).await?;
        }
    }
    Ok(())
}
