//! From the catalog's JSON (`pgherd.snapshot()`) to a [`Snapshot`].

mod body;
mod constant_sql;
mod held;
mod home;
mod reach;
mod stand_in;
mod watched;
mod yielding;

use crate::Error;
pub(crate) use held::Remembered;
use pgherd_model::{
    Bound, Column, Epoch, ForeignKey, KeyBound, KeyType, Name, Range, RangeId, RangeMap, ShardId, Sharded, Snapshot,
    Table, TableId, TableKind,
};
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

#[derive(Debug, Deserialize)]
struct Document {
    epoch: u64,
    #[serde(default)]
    ever_sharded: bool,
    /// texts are missing that were never read
    #[serde(skip)]
    incomplete: bool,
    #[serde(default)]
    tables: Vec<TableEntry>,
    #[serde(default)]
    views: Vec<reach::View>,
    #[serde(default)]
    rules: Vec<reach::Rule>,
    #[serde(default)]
    triggers: Vec<reach::Trigger>,
    #[serde(default)]
    foreign_keys: Vec<reach::ForeignKey>,
    #[serde(default)]
    functions: Vec<reach::Function>,
    #[serde(default)]
    dependents: Vec<reach::Dependent>,
    /// names of all schemas, in lower case
    #[serde(default)]
    schemas: HashSet<String>,
    #[serde(default)]
    shadows: Vec<Shadow>,
}

#[derive(Debug, Deserialize)]
struct TableEntry {
    id: u32,
    oid: u32,
    schema: String,
    name: String,
    automatic: bool,
    by_default: bool,
    colocation: u32,
    fence: u32,
    next_range: u32,
    columns: Vec<ColumnEntry>,
    key: Vec<KeyEntry>,
    ranges: Vec<RangeEntry>,
    unique: Vec<UniqueEntry>,
    #[serde(default)]
    foreign_keys: Vec<ForeignKeyEntry>,
    direct: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct ColumnEntry {
    name: String,
    number: i16,
    type_oid: u32,
    type_modifier: i32,
    type_name: String,
    not_null: bool,
    default: Option<String>,
    generated: bool,
    identity: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct KeyEntry {
    name: String,
    #[serde(rename = "type")]
    type_oid: u32,
}

#[derive(Debug, Deserialize)]
struct RangeEntry {
    id: u32,
    from: Vec<String>,
    to: Vec<String>,
    shard: u32,
    schema: String,
    name: String,
    declared: bool,
}

#[derive(Debug, Deserialize)]
struct UniqueEntry {
    name: String,
    columns: Vec<String>,
}

/// A foreign key of a sharded table.
#[derive(Debug, Deserialize)]
struct ForeignKeyEntry {
    name: String,
    digest: String,
    /// the referenced table's OID
    referenced: u32,
    columns: Vec<String>,
    referenced_columns: Vec<String>,
    on_delete: char,
    on_update: char,
    deferrable: bool,
}

#[derive(Debug, Deserialize)]
struct Shadow {
    schema: String,
    name: String,
}

/// Reads what `pgherd.snapshot()` returned, for a cluster of these shards.
///
/// # Errors
/// XX000 when the text is not what that function writes.
pub fn snapshot_from_json(json: &str, shards: impl Iterator<Item = ShardId>) -> Result<Snapshot, Error> {
    snapshot_with(json, shards, &mut Remembered::default())
}

/// The same, where texts that the document leaves out are `remembered`. Where one was never read, the snapshot is incomplete.
pub(crate) fn snapshot_with(
    json: &str,
    shards: impl Iterator<Item = ShardId>,
    remembered: &mut Remembered,
) -> Result<Snapshot, Error> {
    let mut document: Document = serde_json::from_str(json).map_err(|e| Error::Corrupt(e.to_string()))?;
    remembered.complete(&mut document);
    let mut snapshot = Snapshot {
        epoch: Epoch(document.epoch),
        ever_sharded: document.ever_sharded || !document.tables.is_empty(),
        incomplete: document.incomplete,
        shards: shards.collect(),
        ..Snapshot::default()
    };
    snapshot.shards.sort();
    let bodies: Vec<_> = document
        .functions
        .iter()
        .map(|f| (f, f.body(&document.schemas)))
        .collect();
    let triggers = document.triggers.iter().map(reach::Trigger::call);
    let others = document.dependents.iter().filter_map(reach::Dependent::call);
    let locking = home::Locking::find(&bodies, &triggers.chain(others).collect::<Vec<_>>());
    snapshot.locking_functions = locking.functions;
    snapshot.locking_relations = locking.relations;
    if document.tables.is_empty() {
        return Ok(snapshot);
    }
    let mut tables = Vec::new();
    for entry in &document.tables {
        let table = sharded(entry)?;
        tables.extend(partitions(&table));
        tables.push(table);
    }
    link(&mut tables, &document);
    let roots = document.tables.iter().map(|t| (t.oid, Name::new(&t.schema, &t.name)));
    let reach = reach::Reach::compute(&tables, &roots.collect(), &document, &bodies);
    refuse_unsafe_defaults(&mut tables, &reach.functions);
    let views = reach.relations(&document.views);
    tables.extend(stand_in::with_stand_ins(views, &tables, &document, &reach.home));
    for table in tables {
        add(&mut snapshot, table);
    }
    for shadow in &document.shadows {
        if let Some(candidates) = snapshot.relations.get_mut(shadow.name.as_str())
            && !candidates.iter().any(|(schema, _)| **schema == *shadow.schema)
        {
            candidates.push((shadow.schema.as_str().into(), None));
        }
    }
    snapshot.unsafe_functions = reach.functions;
    snapshot.watched_functions = reach.watched;
    snapshot.note_named_readers();
    snapshot.unsafe_words = reach.words;
    snapshot.home_functions = reach.home;
    snapshot.yielding = reach.yielding;
    Ok(snapshot)
}

/// Adds a relation; one that is refused replaces what it was.
fn add(snapshot: &mut Snapshot, mut table: Table) {
    let before = snapshot.table(&table.name).cloned();
    if let (TableKind::Refused { sharded, .. }, Some(before)) = (&mut table.kind, before) {
        *sharded = match &before.kind {
            TableKind::Sharded(placed) => Some(placed.clone()),
            TableKind::Refused { sharded, .. } => sharded.clone(),
            _ => None,
        };
        table.columns = before.columns.clone();
    }
    let candidates = snapshot.relations.entry(table.name.name.clone()).or_default();
    let schema = table.name.schema.clone();
    candidates.retain(|(s, _)| *s != schema);
    candidates.push((schema, Some(Arc::new(table))));
}

fn sharded(entry: &TableEntry) -> Result<Table, Error> {
    let name = Name::new(&entry.schema, &entry.name);
    let corrupt = |what: String| Error::Corrupt(format!("table {name}: {what}"));
    let key_types: Vec<_> = entry
        .key
        .iter()
        .map(|k| KeyType::from_oid(k.type_oid).ok_or_else(|| corrupt(format!("no key type {}", k.type_oid))))
        .collect::<Result<_, _>>()?;
    let ranges: Vec<_> = entry
        .ranges
        .iter()
        .map(|r| {
            let bound = |texts: &[String]| {
                parse_bound(texts, &key_types).ok_or_else(|| corrupt(format!("range {}: {texts:?}", r.id)))
            };
            Ok(Range {
                id: RangeId(r.id),
                from: bound(&r.from)?,
                to: bound(&r.to)?,
                shard: ShardId(r.shard),
                child: Name::new(&r.schema, &r.name),
                declared: r.declared,
            })
        })
        .collect::<Result<_, Error>>()?;
    Ok(Table {
        columns: entry.columns.iter().map(column).collect(),
        kind: TableKind::Sharded(Box::new(Sharded {
            id: TableId(entry.id),
            key: entry.key.iter().map(|k| k.name.clone()).collect(),
            key_types,
            ranges: RangeMap::new(ranges),
            fence: crate::fence_name(TableId(entry.id), entry.fence),
            fence_number: entry.fence,
            next_range: entry.next_range,
            relation: entry.oid,
            colocation: entry.colocation,
            direct: entry.direct,
            automatic: entry.automatic,
            by_default: entry.by_default,
            unique: entry
                .unique
                .iter()
                .map(|u| (u.name.clone(), u.columns.clone()))
                .collect(),
            through_view: None,
            foreign_keys: Vec::new(),
            is_linked: false,
            acts_on: Vec::new(),
        })),
        name,
    })
}

fn column(entry: &ColumnEntry) -> Column {
    Column {
        name: entry.name.clone(),
        number: entry.number,
        type_oid: entry.type_oid,
        type_modifier: entry.type_modifier,
        type_name: entry.type_name.clone(),
        not_null: entry.not_null,
        default: entry.default.clone(),
        generated: entry.generated,
        identity: entry.identity,
    }
}

/// `<` is MINVALUE, `>` MAXVALUE, `=…` a value.
fn parse_bound(texts: &[String], key_types: &[KeyType]) -> Option<KeyBound> {
    if texts.len() != key_types.len() {
        return None;
    }
    let column = |(text, key_type): (&String, &KeyType)| match text.split_at_checked(1)? {
        ("<", "") => Some(Bound::Min),
        (">", "") => Some(Bound::Max),
        ("=", value) => key_type.parse_text(value).map(Bound::Value),
        _ => None,
    };
    texts
        .iter()
        .zip(key_types)
        .map(column)
        .collect::<Option<_>>()
        .map(KeyBound)
}

/// The declared partitions of a table, under their own names.
fn partitions(table: &Table) -> Vec<Table> {
    let Some(sharded) = table.sharded() else {
        return Vec::new();
    };
    let declared = sharded.ranges.ranges().iter().filter(|r| r.declared);
    declared
        .map(|range| Table {
            name: range.child.clone(),
            columns: table.columns.clone(),
            kind: TableKind::Partition {
                parent: table.name.clone(),
                range: range.id,
            },
        })
        .collect()
}

/// The foreign keys between sharded tables, and what their actions write. Those to other tables are refused elsewhere.
fn link(tables: &mut [Table], document: &Document) {
    let name = |t: &TableEntry| (t.oid, Name::new(&t.schema, &t.name));
    let names: ByOid<Name> = document.tables.iter().map(name).collect();
    let entries: ByOid<&TableEntry> = document.tables.iter().map(|t| (t.oid, t)).collect();
    let mut actions: HashMap<Name, Vec<Name>> = HashMap::new();
    let mut linked: HashSet<Name> = HashSet::new();
    for table in tables.iter_mut() {
        let TableKind::Sharded(sharded) = &mut table.kind else {
            continue;
        };
        let own = entries.get(&sharded.relation).map_or(&[][..], |t| &t.foreign_keys[..]);
        let keys = own
            .iter()
            .filter_map(|key| Some(foreign_key(key, names.get(&key.referenced)?)));
        sharded.foreign_keys = keys.collect();
        if !sharded.foreign_keys.is_empty() {
            linked.insert(table.name.clone());
            linked.extend(sharded.foreign_keys.iter().map(|key| key.referenced.clone()));
        }
        for key in sharded.foreign_keys.iter().filter(|key| key.writes()) {
            actions
                .entry(key.referenced.clone())
                .or_default()
                .push(table.name.clone());
        }
    }
    if linked.is_empty() {
        return;
    }
    for table in tables.iter_mut() {
        let TableKind::Sharded(sharded) = &mut table.kind else {
            continue;
        };
        sharded.is_linked = linked.contains(&table.name);
        let mut from = vec![&table.name];
        while let Some(at) = from.pop() {
            for name in actions.get(at).into_iter().flatten() {
                if !sharded.acts_on.contains(name) {
                    sharded.acts_on.push(name.clone());
                    from.push(name);
                }
            }
        }
    }
}

fn foreign_key(entry: &ForeignKeyEntry, referenced: &Name) -> ForeignKey {
    ForeignKey {
        name: entry.name.clone(),
        digest: entry.digest.clone(),
        referenced: referenced.clone(),
        columns: entry.columns.clone(),
        referenced_columns: entry.referenced_columns.clone(),
        on_delete: entry.on_delete,
        on_update: entry.on_update,
        deferrable: entry.deferrable,
    }
}

/// A default that calls an unsafe function would compute from one shard's part.
fn refuse_unsafe_defaults(tables: &mut [Table], functions: &HashSet<String>) {
    for table in tables {
        let calls = |c: &Column| {
            let words = c.default.as_deref().map(body::words)?;
            functions.iter().find(|f| words.contains(&f.to_lowercase())).cloned()
        };
        if let Some(function) = table.columns.iter().find_map(calls) {
            table.kind = TableKind::Refused {
                reason: format!("A column's default calls function {function}, which may read a sharded table."),
                readable: false,
                watched: false,
                sharded: table.sharded().cloned().map(Box::new),
            };
        }
    }
}

/// Relations by OID, for the walk over views.
type ByOid<T> = HashMap<u32, T>;

#[cfg(test)]
mod tests;
