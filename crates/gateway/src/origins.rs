//! A RowDescription says of each column which table's it is, and which of its columns: by OID and number. A shard says so of what
//! it has, a range's child or the parent as that shard numbers it; clients know the table as the home shard shows it.
//!
//! What a shard's relations are there is asked once and remembered while the epoch lasts; then bytes are replaced in place.

use crate::user_types::{Asking, FIELDS, FIRST_COLUMN, fields_behind_name};
use ahash::AHashMap;
use parking_lot::RwLock;
use pgherd_model::{Epoch, FIRST_OF_USERS, Name, ServerError, ShardId, Snapshot, TableKind, quote_literal};
use pgherd_query::Description;
use pgherd_shards::SimpleResult;
use std::collections::HashMap;

/// What is known of shards' relations in one database.
#[derive(Default)]
pub(crate) struct Origins {
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    epoch: Epoch,
    relations: AHashMap<(ShardId, u32), Origin>,
}

/// What a shard's relation is to clients.
#[derive(Debug, Default)]
struct Origin {
    /// the relation of the same name; nothing for a range that pgherd made
    own: Option<Relation>,
    /// the sharded table that it is a range of
    whole: Option<Relation>,
}

/// A relation as the home shard shows it.
#[derive(Debug)]
struct Relation {
    oid: u32,
    /// by the shard's number of a column, from 1: the home shard's, 0 where it has none. Without, they are the same.
    numbers: Option<Vec<i16>>,
}

impl Relation {
    /// None where the home shard has no such column. A whole row, and columns of the system, are numbered the same everywhere.
    fn number(&self, there: i16) -> Option<i16> {
        match &self.numbers {
            Some(numbers) if there > 0 => numbers.get(there as usize - 1).copied().filter(|n| *n != 0),
            _ => Some(there),
        }
    }
}

impl Origin {
    /// `partition`: where a declared partition was named, it is not its table.
    fn seen(&self, partition: bool) -> Option<&Relation> {
        match partition {
            true => self.own.as_ref().or(self.whole.as_ref()),
            false => self.whole.as_ref().or(self.own.as_ref()),
        }
    }
}

/// How the columns of one statement's rows are told to the client.
pub(crate) struct Naming<'a> {
    asking: &'a Asking<'a>,
    snapshot: &'a Snapshot,
    /// the statement names a declared partition
    partition: bool,
    /// what the home shard says of the statement itself, where relations do not tell
    told: Option<&'a Description>,
}

impl<'a> Naming<'a> {
    pub(crate) fn new(asking: &'a Asking<'a>, snapshot: &'a Snapshot) -> Self {
        Self {
            asking,
            snapshot,
            partition: false,
            told: None,
        }
    }

    /// For a statement that names a declared partition.
    pub(crate) fn of_partition(mut self, partition: bool) -> Self {
        self.partition = partition;
        self
    }

    /// For a statement of which the home shard says this.
    pub(crate) fn told(mut self, description: Option<&'a Description>) -> Self {
        self.told = description;
        self
    }

    /// Gives a shard's RowDescription (from its length on) the relations that clients know. False, and nothing is done, where it has
    /// one that is not known yet.
    pub(crate) fn put(&self, shard: ShardId, body: &mut [u8]) -> bool {
        if let Some(columns) = self.told.and_then(|d| d.columns.as_ref()) {
            let mut columns = columns.iter();
            each_origin(body, |_, _| columns.next().map(|c| (c.table_oid, c.column_number)));
            return true;
        }
        let known = self.asking.origins().known.read();
        let is_current = known.epoch == self.snapshot.epoch;
        // Columns of one relation stand together, as a rule.
        let (mut last, mut all_known) = (0, true);
        each_origin(body, |oid, _| {
            if oid >= FIRST_OF_USERS && oid != last {
                last = oid;
                all_known &= is_current && known.relations.contains_key(&(shard, oid));
            }
            None
        });
        if last == 0 || !all_known {
            return all_known;
        }
        let (mut last, mut origin) = (0, None);
        each_origin(body, |oid, number| {
            if oid < FIRST_OF_USERS {
                return None;
            }
            if oid != last {
                (last, origin) = (oid, known.relations.get(&(shard, oid)));
            }
            let relation = origin.and_then(|origin| origin.seen(self.partition));
            let seen = relation.and_then(|r| Some((r.oid, r.number(number)?)));
            Some(seen.unwrap_or_default())
        });
        true
    }

    /// The same, where shards are asked for what is not known. What they do not tell, as a shard that is lost, is of no table: for that the
    /// client's statement must not fail.
    pub(crate) async fn learn_and_put(&self, shard: ShardId, body: &mut [u8]) {
        if !self.put(shard, body) && (self.learn(shard, body).await.is_err() || !self.put(shard, body)) {
            each_origin(body, |oid, _| (oid >= FIRST_OF_USERS).then_some((0, 0)));
        }
    }

    async fn learn(&self, shard: ShardId, body: &mut [u8]) -> Result<(), ServerError> {
        let mut oids = Vec::new();
        each_origin(body, |oid, _| {
            if oid >= FIRST_OF_USERS && !oids.contains(&oid) {
                oids.push(oid);
            }
            None
        });
        let found = self.asking.ask_catalog(shard, &what_they_are(&oids)).await?;
        let there = there(&found);
        let mut wanted: Vec<&Name> = there.values().flat_map(|r| r.own.iter().chain(&r.whole)).collect();
        wanted.sort();
        wanted.dedup();
        let here = match wanted.is_empty() {
            true => HashMap::new(),
            false => here(
                &self
                    .asking
                    .ask_catalog(self.asking.home(), &what_they_are_called(&wanted))
                    .await?,
            ),
        };
        let is_home = shard == self.asking.home();
        let mut known = self.asking.origins().known.write();
        if known.epoch != self.snapshot.epoch {
            known.epoch = self.snapshot.epoch;
            known.relations.clear();
        }
        for oid in oids {
            known
                .relations
                .insert((shard, oid), self.origin(oid, there.get(&oid), &here, is_home));
        }
        Ok(())
    }

    fn origin(&self, oid: u32, found: Option<&There>, here: &HashMap<Name, Here>, is_home: bool) -> Origin {
        let as_it_is = || is_home.then_some(Relation { oid, numbers: None });
        let Some(found) = found else {
            // Only its own transaction sees it.
            return Origin {
                own: as_it_is(),
                whole: None,
            };
        };
        let relation = |name: &Name| here.get(name).map(|here| here.relation(&found.columns));
        let is_range = |own: &Name| {
            let table = self.snapshot.table(own);
            table.is_some_and(|t| matches!(t.kind, TableKind::Partition { .. }))
        };
        let whole = match &found.own {
            Some(own) if !is_range(own) => None,
            _ => found.whole.as_ref().and_then(relation),
        };
        Origin {
            own: found.own.as_ref().and_then(|own| as_it_is().or_else(|| relation(own))),
            whole,
        }
    }
}

/// A relation on the shard that was asked.
#[derive(Default)]
struct There {
    /// None where pgherd made it
    own: Option<Name>,
    /// the table that it is a partition of
    whole: Option<Name>,
    columns: Vec<(i16, String)>,
}

/// A relation on the home shard: its OID, and its columns' numbers.
#[derive(Default)]
struct Here {
    oid: u32,
    columns: HashMap<String, i16>,
}

impl Here {
    fn relation(&self, columns: &[(i16, String)]) -> Relation {
        let last = columns.iter().map(|(number, _)| *number).max().unwrap_or(0);
        let mut numbers = vec![0; last as usize];
        for (number, name) in columns {
            numbers[*number as usize - 1] = self.columns.get(name).copied().unwrap_or(0);
        }
        Relation {
            oid: self.oid,
            numbers: Some(numbers),
        }
    }
}

/// Asks a shard for the names of relations and their columns. Only catalogs are read: no lock of anybody's is in the way.
fn what_they_are(oids: &[u32]) -> String {
    let listed: Vec<_> = oids.iter().map(u32::to_string).collect();
    format!(
        "SELECT c.oid::pg_catalog.text, n.nspname::pg_catalog.text, c.relname::pg_catalog.text, \
         pn.nspname::pg_catalog.text, p.relname::pg_catalog.text, a.attnum::pg_catalog.text, a.attname::pg_catalog.text \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         LEFT JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid AND c.relispartition \
         LEFT JOIN pg_catalog.pg_class p ON p.oid = i.inhparent \
         LEFT JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace WHERE c.oid IN ({})",
        listed.join(", ")
    )
}

/// Asks the home shard for the OIDs of relations and the numbers of their columns.
fn what_they_are_called(names: &[&Name]) -> String {
    let name = |n: &&Name| format!("({}, {})", quote_literal(&n.schema), quote_literal(&n.name));
    let listed: Vec<_> = names.iter().map(name).collect();
    format!(
        "SELECT v.schema, v.name, c.oid::pg_catalog.text, a.attnum::pg_catalog.text, a.attname::pg_catalog.text \
         FROM (VALUES {}) AS v(schema, name) JOIN pg_catalog.pg_namespace n ON n.nspname = v.schema \
         JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = v.name \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped",
        listed.join(", ")
    )
}

/// Where ranges that pgherd makes are.
const OF_RANGES: &str = "pgherd_data";

fn there(found: &[SimpleResult]) -> HashMap<u32, There> {
    let mut all: HashMap<u32, There> = HashMap::new();
    for (result, row) in rows(found) {
        let name = |at| Some(Name::new(result.text(row, at)?, result.text(row, at + 1)?));
        let number = result.text(row, 5).and_then(|n| n.parse().ok());
        let (Some(oid), Some(number), Some(column)) = (parsed(result, row, 0), number, result.text(row, 6)) else {
            continue;
        };
        let relation = all.entry(oid).or_default();
        relation.own = name(1).filter(|own| &*own.schema != OF_RANGES);
        relation.whole = name(3);
        relation.columns.push((number, column.to_owned()));
    }
    all
}

fn here(found: &[SimpleResult]) -> HashMap<Name, Here> {
    let mut all: HashMap<Name, Here> = HashMap::new();
    for (result, row) in rows(found) {
        let (Some(schema), Some(name)) = (result.text(row, 0), result.text(row, 1)) else {
            continue;
        };
        let number = result.text(row, 3).and_then(|n| n.parse().ok());
        let (Some(oid), Some(number), Some(column)) = (parsed(result, row, 2), number, result.text(row, 4)) else {
            continue;
        };
        let relation = all.entry(Name::new(schema, name)).or_default();
        relation.oid = oid;
        relation.columns.insert(column.to_owned(), number);
    }
    all
}

fn rows(found: &[SimpleResult]) -> impl Iterator<Item = (&SimpleResult, usize)> {
    found
        .iter()
        .flat_map(|result| (0..result.rows.len()).map(move |row| (result, row)))
}

fn parsed(result: &SimpleResult, row: usize, column: usize) -> Option<u32> {
    result.text(row, column)?.parse().ok()
}

/// Shows each column's relation and number, in a RowDescription's body, and puts what is given for them.
fn each_origin(body: &mut [u8], mut instead: impl FnMut(u32, i16) -> Option<(u32, i16)>) {
    const ORIGIN: usize = 6;
    let mut at = FIRST_COLUMN;
    while let Some(fields) = fields_behind_name(body, at) {
        let Some([a, b, c, d, e, f]) = body.get_mut(fields..fields + ORIGIN) else {
            return;
        };
        let oid = u32::from_be_bytes([*a, *b, *c, *d]);
        if let Some((oid, number)) = instead(oid, i16::from_be_bytes([*e, *f])) {
            [*a, *b, *c, *d] = oid.to_be_bytes();
            [*e, *f] = number.to_be_bytes();
        }
        at = fields + FIELDS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_replaced_behind_names() {
        let mut body = 2i16.to_be_bytes().to_vec();
        for (name, oid, number) in [("k", 16500u32, 2i16), ("", 0, 0)] {
            body.extend_from_slice(name.as_bytes());
            body.push(0);
            body.extend_from_slice(&oid.to_be_bytes());
            body.extend_from_slice(&number.to_be_bytes());
            body.extend_from_slice(&[0, 0, 0, 23, 0, 4, 255, 255, 255, 255, 0, 0]);
        }
        let mut seen = Vec::new();
        each_origin(&mut body, |oid, number| {
            seen.push((oid, number));
            (oid > 0).then_some((16384, 1))
        });
        assert_eq!(seen, [(16500, 2), (0, 0)]);
        seen.clear();
        each_origin(&mut body, |oid, number| {
            seen.push((oid, number));
            None
        });
        assert_eq!(seen, [(16384, 1), (0, 0)]);
        each_origin(&mut body[..9], |_, _| panic!("cut short"));
    }

    #[test]
    fn columns_are_found_by_name() {
        let here = Here {
            oid: 16384,
            columns: [("id".to_owned(), 2), ("x".to_owned(), 3)].into(),
        };
        let relation = here.relation(&[(1, "id".to_owned()), (3, "x".to_owned()), (4, "new".to_owned())]);
        let numbers: Vec<_> = [-6, 0, 1, 2, 3, 4, 5].iter().map(|n| relation.number(*n)).collect();
        assert_eq!(numbers, [Some(-6), Some(0), Some(2), None, Some(3), None, None]);
    }
}
