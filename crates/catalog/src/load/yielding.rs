//! Tables that `pgherd.default_distribution` has made sharded yield to functions that read or write them: such a function runs inside
//! one shard, so it works, and whole, when its tables are local. Which tables those are is found here; `operations` makes them local.
//!
//! A function that also uses what a user has sharded, or runs SQL from strings, would be refused all the same, and nothing yields to it.

use super::ByOid;
use super::body::Body;
use super::reach::{Function, Trigger, View};
use pgherd_model::functions::READ_WHAT_IS_NAMED;
use pgherd_model::{Name, Table, TableKind};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What a function uses, itself and through others.
#[derive(Debug, Default, Clone, PartialEq)]
struct Uses {
    /// sharded tables
    tables: HashSet<Name>,
    /// more than its body shows
    opaque: bool,
}

/// What is looked at.
pub(super) struct Search<'a> {
    pub tables: &'a [Table],
    pub roots: &'a ByOid<Name>,
    pub views: &'a [View],
    pub triggers: &'a [Trigger],
    /// all functions of users, with their bodies
    pub functions: &'a [(&'a Function, Body)],
    /// OIDs of those that may read sharded tables
    pub reaching: &'a HashSet<u32>,
    /// OIDs of those that need the home shard
    pub home: &'a HashSet<u32>,
}

impl Search<'_> {
    /// The tables that should be local, each with the reason.
    pub(super) fn yielding(&self) -> BTreeMap<Name, String> {
        let by_default = self.tables.iter().filter(|t| t.may_yield());
        let by_default: HashSet<&Name> = by_default.map(|t| &t.name).collect();
        let mut found = BTreeMap::new();
        if by_default.is_empty() {
            return found;
        }
        let uses = self.uses();
        let helped = |uses: &Uses| !uses.opaque && uses.tables.iter().all(|t| by_default.contains(t));
        let mut there: HashSet<u32> = self.home.clone();
        for (function, _) in self.functions {
            let Some(uses) = uses.get(&function.oid).filter(|u| helped(u)) else {
                continue;
            };
            there.insert(function.oid);
            for table in &uses.tables {
                found
                    .entry(table.clone())
                    .or_insert_with(|| format!("function {} uses it", function.name));
            }
        }
        for trigger in self.triggers.iter().filter(|t| there.contains(&t.function)) {
            let on = self.roots.get(&trigger.oid).filter(|t| by_default.contains(t));
            if let Some(table) = on {
                found
                    .entry(table.clone())
                    .or_insert_with(|| format!("the function of its trigger {} needs the home shard", trigger.name));
            }
        }
        found
    }

    /// By OID, what each function uses that may read sharded tables.
    fn uses(&self) -> HashMap<u32, Uses> {
        let names = self.relation_names();
        let reaching = || self.functions.iter().filter(|(f, _)| self.reaching.contains(&f.oid));
        let hidden = |body: &Body| {
            body.mentions("pgherd_data")
                || READ_WHAT_IS_NAMED
                    .iter()
                    .any(|name| body.mentions(&name.to_lowercase()))
        };
        let own = |function: &Function, body: &Body| Uses {
            tables: names
                .iter()
                .filter(|(name, _)| body.mentions_relation(name))
                .flat_map(|(_, tables)| tables.iter().cloned())
                .collect(),
            opaque: function.parts.is_some() || function.is_dynamic(body) || hidden(body),
        };
        let mut uses: HashMap<u32, Uses> = reaching().map(|(f, body)| (f.oid, own(f, body))).collect();
        let named: Vec<(u32, String)> = reaching().map(|(f, _)| (f.oid, f.name.to_lowercase())).collect();
        let called = |body: &Body| -> Vec<u32> {
            let called = named.iter().filter(|(_, name)| body.mentions(name));
            called.map(|(oid, _)| *oid).collect()
        };
        let calls: Vec<(u32, Vec<u32>)> = reaching().map(|(f, body)| (f.oid, called(body))).collect();
        // Each round can only add, and there are finitely many things to add.
        loop {
            let before = uses.clone();
            for (function, called) in &calls {
                for theirs in called.iter().filter_map(|oid| before.get(oid)) {
                    let mine = uses.entry(*function).or_default();
                    mine.opaque |= theirs.opaque;
                    mine.tables.extend(theirs.tables.iter().cloned());
                }
            }
            if uses == before {
                return uses;
            }
        }
    }

    /// By lower-case name, the sharded tables that tables, declared partitions and views of that name have rows of.
    fn relation_names(&self) -> HashMap<String, HashSet<Name>> {
        let mut names: HashMap<String, HashSet<Name>> = HashMap::new();
        for table in self.tables {
            let of = match &table.kind {
                TableKind::Partition { parent, .. } => parent,
                _ => &table.name,
            };
            names
                .entry(table.name.name.to_lowercase())
                .or_default()
                .insert(of.clone());
        }
        let mut of: ByOid<HashSet<Name>> = self
            .roots
            .iter()
            .map(|(oid, n)| (*oid, HashSet::from([n.clone()])))
            .collect();
        loop {
            let before = of.values().map(HashSet::len).sum::<usize>();
            for view in self.views {
                let tables: HashSet<Name> = view
                    .relations
                    .iter()
                    .filter_map(|r| of.get(r))
                    .flatten()
                    .cloned()
                    .collect();
                of.entry(view.oid).or_default().extend(tables);
            }
            if before == of.values().map(HashSet::len).sum::<usize>() {
                break;
            }
        }
        for view in self.views {
            if let Some(tables) = of.get(&view.oid) {
                names
                    .entry(view.name.to_lowercase())
                    .or_default()
                    .extend(tables.iter().cloned());
            }
        }
        names
    }
}
