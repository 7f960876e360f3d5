//! Functions that build their SQL while they run: no body shows which tables they use, but the locks of the connection do when they have
//! ended. Such a function runs on the home shard, and its result counts when no sharded table is locked there.
//!
//! That wants all locks to be there still. PostgreSQL gives up those of a block with EXCEPTION when it fails, so a function that has one is
//! refused as before, and so is whatever names a sharded table.

use super::body::Body;
use super::reach::{Function, Trigger};
use pgherd_model::Name;
use pgherd_model::functions::{READ_WHAT_IS_NAMED, reads_on_own_connection};
use std::collections::HashSet;

/// What is looked at.
pub(super) struct Watchable<'a> {
    pub functions: &'a [(&'a Function, Body)],
    /// OIDs of those that may use sharded tables
    pub reaching: &'a HashSet<u32>,
    /// OIDs of those that do so by the default of an argument
    pub by_argument: HashSet<u32>,
    /// operators and types that call such functions, in lower case
    pub words: HashSet<String>,
    /// sharded tables, and views of them, in lower case
    pub relations: HashSet<String>,
    /// all relations that are refused
    pub refused: HashSet<&'a Name>,
    /// local tables among them that are refused for triggers only
    pub readable: &'a HashSet<Name>,
    pub triggers: &'a [Trigger],
}

/// What can be watched.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// names of functions
    pub functions: HashSet<String>,
    /// local tables whose triggers run such
    pub relations: HashSet<Name>,
}

impl Watchable<'_> {
    pub(super) fn find(&self) -> Watched {
        let mut found: HashSet<u32> = self.reaching.iter().copied().collect();
        // Each round can only take away.
        loop {
            let before = found.len();
            let relations = self.watched_relations(&found);
            let refused = self.refused.iter().filter(|name| !relations.contains(**name));
            let mut named: HashSet<String> = refused.map(|name| name.name.to_lowercase()).collect();
            named.extend(self.relations.iter().cloned());
            let others: HashSet<String> = self.refused_functions(&found).collect();
            let can_be = |function: &Function, body: &Body| {
                let is_known = matches!(function.language.as_str(), "sql" | "plpgsql")
                    || (function.language == "c" && reads_on_own_connection(&function.name));
                is_known
                    && function.parts.is_none()
                    && !self.by_argument.contains(&function.oid)
                    && !body.catches
                    && !body.mentions("pgherd_data")
                    && !named.iter().any(|name| body.mentions_relation(name))
                    && !others.iter().chain(&self.words).any(|name| body.mentions(name))
            };
            let kept = self.functions.iter().filter(|(f, body)| can_be(f, body));
            let kept: HashSet<u32> = kept.map(|(f, _)| f.oid).collect();
            found.retain(|oid| kept.contains(oid));
            if found.len() == before {
                let refused: HashSet<String> = others;
                let names = self.functions.iter().filter(|(f, _)| found.contains(&f.oid));
                let names = names.map(|(f, _)| f.name.clone());
                return Watched {
                    functions: names.filter(|name| !refused.contains(&name.to_lowercase())).collect(),
                    relations,
                };
            }
        }
    }

    /// The names, in lower case, of functions that are refused when these are watched.
    fn refused_functions<'s>(&'s self, watched: &'s HashSet<u32>) -> impl Iterator<Item = String> + 's {
        let others = self.functions.iter();
        let others = others.filter(|(f, _)| self.reaching.contains(&f.oid) && !watched.contains(&f.oid));
        let fixed = READ_WHAT_IS_NAMED.iter().filter(|name| !reads_on_own_connection(name));
        others
            .map(|(f, _)| f.name.to_lowercase())
            .chain(fixed.map(|name| name.to_lowercase()))
    }

    fn watched_relations(&self, functions: &HashSet<u32>) -> HashSet<Name> {
        let all_watched = |table: &&Name| {
            let mut own = self.triggers.iter().filter(|t| t.table() == **table);
            own.all(|t| functions.contains(&t.function) || !self.reaching.contains(&t.function))
        };
        self.readable.iter().filter(all_watched).cloned().collect()
    }
}
