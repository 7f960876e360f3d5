//! The catalog at one epoch, as routing sees it.

use crate::functions::{READ_WHAT_IS_NAMED, reads_on_own_connection};
use crate::{Epoch, ForeignKey, Name, ShardId, Table, TableKind};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// A schema, and the relation of some name in it; `None` where that is a local one.
pub type InSchema = (Arc<str>, Option<Arc<Table>>);

/// What a gateway knows at one epoch: every sharded table, everything through which a statement could
/// reach one, and the names that shadow them. Immutable; replaced whole.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// the epoch
    pub epoch: Epoch,
    /// all shards, ascending; the first is the home shard
    pub shards: Vec<ShardId>,
    /// by unqualified name, the relations of that name in all schemas. A name that is not here belongs to
    /// no sharded table. `None` is a local relation that shares its name with an entry of another schema.
    pub relations: HashMap<Arc<str>, Vec<InSchema>>,
    /// names (unqualified, as stored) of functions and procedures whose body may touch a sharded table or
    /// that run dynamic SQL while sharded tables exist; calling one is refused
    pub unsafe_functions: HashSet<String>,
    /// names of functions that build their SQL while they run, or call such, and are known to use no sharded table besides: they run on
    /// the home shard, and whether they have used one is looked at afterwards
    pub watched_functions: HashSet<String>,
    /// operators and types that call such a function: a statement with one of these words is refused
    pub unsafe_words: HashSet<String>,
    /// names of functions that need what only the home shard has: local tables, sequences, advisory locks
    pub home_functions: HashSet<String>,
    /// names of functions that take advisory locks which the session keeps, themselves or through others
    pub locking_functions: HashSet<String>,
    /// names (unqualified) of relations that call such a function by themselves where they are changed
    pub locking_relations: HashSet<String>,
    /// sharded tables that `pgherd.default_distribution` has made so and that functions of users or their triggers want to be local, each
    /// with the reason; a schema change makes them local
    pub yielding: BTreeMap<Name, String>,
    /// the database has sharded tables, or had some: SERIALIZABLE takes locks on what is read
    pub ever_sharded: bool,
    /// views could not be read, since other transactions were changing what they read: it is to be loaded again
    pub incomplete: bool,
}

/// What a name means.
#[derive(Debug, Clone)]
pub enum Resolved {
    /// a relation of the catalog
    Known(Arc<Table>),
    /// local, temporary, of the system, or not there: the home shard judges
    Home,
}

impl Snapshot {
    /// The home shard.
    pub fn home(&self) -> ShardId {
        self.shards.first().copied().unwrap_or(ShardId(1))
    }

    /// Resolves a name as PostgreSQL would: a schema given, or the first schema of `search_path` that has it.
    /// Temporary tables are the caller's to check first.
    pub fn resolve(&self, schema: Option<&str>, name: &str, search_path: &[Arc<str>]) -> Resolved {
        let Some(candidates) = self.relations.get(name) else {
            return Resolved::Home;
        };
        let in_schema = |wanted: &str| candidates.iter().find(|(s, _)| &**s == wanted);
        let found = match schema {
            Some(schema) => in_schema(schema),
            None => search_path.iter().find_map(|s| in_schema(s)),
        };
        match found {
            Some((_, Some(table))) => Resolved::Known(table.clone()),
            _ => Resolved::Home,
        }
    }

    /// The table of this full name.
    pub fn table(&self, name: &Name) -> Option<&Arc<Table>> {
        self.relations
            .get(&name.name)?
            .iter()
            .find(|(s, _)| *s == name.schema)?
            .1
            .as_ref()
    }

    /// The sharded table that a declared partition is of; any other relation is its own whole.
    pub fn whole<'a>(&'a self, table: &'a Arc<Table>) -> Option<&'a Arc<Table>> {
        match &table.kind {
            TableKind::Partition { parent, .. } => self.table(parent),
            _ => Some(table),
        }
    }

    /// Notes PostgreSQL's functions that run or read what a string names.
    pub fn note_named_readers(&mut self) {
        for name in READ_WHAT_IS_NAMED {
            let functions = match reads_on_own_connection(name) {
                true => &mut self.watched_functions,
                false => &mut self.unsafe_functions,
            };
            functions.insert(name.to_owned());
        }
    }

    /// Whether a function of this name may use sharded tables, as far as is known before it runs.
    pub fn may_reach(&self, function: &str) -> bool {
        self.unsafe_functions.contains(function) || self.watched_functions.contains(function)
    }

    /// As schema changes see it: a sharded table that statements may not use is one still.
    pub fn for_schema_change(mut self: Arc<Self>) -> Arc<Self> {
        let is_refused = |t: &Arc<Table>| matches!(&t.kind, TableKind::Refused { sharded: Some(_), .. });
        let mut all = self.relations.values().flatten();
        if !all.any(|(_, table)| table.as_ref().is_some_and(is_refused)) {
            return self;
        }
        let relations = Arc::make_mut(&mut self).relations.values_mut().flatten();
        for table in relations.filter_map(|(_, table)| table.as_mut()) {
            if let TableKind::Refused { sharded, .. } = &table.kind
                && let Some(sharded) = sharded.clone()
            {
                Arc::make_mut(table).kind = TableKind::Sharded(sharded);
            }
        }
        self
    }

    /// All sharded tables.
    pub fn sharded(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.relations
            .values()
            .flatten()
            .filter_map(|(_, t)| t.as_ref())
            .filter(|t| t.sharded().is_some())
    }

    /// The foreign keys that refer to this table, each with the table that has it.
    pub fn referencing<'s>(&'s self, name: &'s Name) -> impl Iterator<Item = (&'s Arc<Table>, &'s ForeignKey)> {
        let keys = |table: &'s Arc<Table>| table.sharded().map_or(&[][..], |s| &s.foreign_keys[..]);
        let all = self.sharded().flat_map(move |t| keys(t).iter().map(move |k| (t, k)));
        all.filter(move |(_, key)| key.referenced == *name)
    }

    /// The sharded tables that foreign keys link with this one, directly or through others, in the order of their numbers;
    /// the table itself is the first of them.
    pub fn linked(&self, name: &Name) -> Vec<Arc<Table>> {
        let mut found: Vec<Arc<Table>> = self.table(name).cloned().into_iter().collect();
        let mut at = 0;
        while let Some(table) = found.get(at).cloned() {
            at += 1;
            let own = table.sharded().map_or(&[][..], |s| &s.foreign_keys[..]);
            let referenced = own.iter().filter_map(|key| self.table(&key.referenced));
            for other in referenced.chain(self.referencing(&table.name).map(|(t, _)| t)) {
                if other.sharded().is_some() && !found.iter().any(|t| t.name == other.name) {
                    found.push(other.clone());
                }
            }
        }
        let own = found.len().min(1);
        found[own..].sort_by_key(|t| t.sharded().map(|s| s.id));
        found
    }
}
