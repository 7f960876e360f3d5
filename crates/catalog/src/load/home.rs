//! Functions that are safe where they run whole, on the home shard, and would be wrong elsewhere: those that read or write
//! local tables, draw from sequences, take advisory locks or notify; and functions of triggers that ask for their table's name.
//!
//! They are known by their bodies. One too many costs a slower way; IMMUTABLE says that there is nothing of the kind.

use super::body::Body;
use super::reach::Function;
use pgherd_model::functions::{SESSION_LOCKS, is_advisory_lock};
use std::collections::HashSet;

/// What goes wrong on another shard without an error: numbers that are given twice, locks and notifications that nobody meets.
const STATE: [&str; 9] = [
    "nextval",
    "currval",
    "lastval",
    "setval",
    "pg_notify",
    "notify",
    "lo_create",
    "lo_creat",
    "lo_unlink",
];

/// What a trigger's function asks of its table: on a sharded one, that is a range.
const OWN_TABLE: [&str; 4] = ["tg_table_name", "tg_relname", "tg_relid", "tg_table_schema"];

type Others<'f> = [&'f (&'f Function, Body)];

/// OIDs of all functions that need the home shard, themselves or through others.
pub(super) fn bound(functions: &Others<'_>) -> HashSet<u32> {
    let needs = |function: &Function, body: &Body| {
        function.local
            || STATE.iter().chain(&OWN_TABLE).any(|word| body.words.contains(*word))
            || body.words.iter().any(|word| is_advisory_lock(word))
    };
    let own = functions.iter().filter(|(f, body)| !f.immutable && needs(f, body));
    callers(functions, own.map(|(f, _)| f.oid).collect())
}

/// What takes advisory locks that its session keeps.
#[derive(Debug, Default)]
pub(super) struct Locking {
    /// names of functions that do, or call such, or change such a relation
    pub functions: HashSet<String>,
    /// names of relations that call such a function by themselves
    pub relations: HashSet<String>,
}

impl Locking {
    /// `callers` are pairs of a function and a relation that calls it: by a trigger, a default or the like.
    pub fn find(functions: &[(&Function, Body)], callers_of: &[(u32, &str)]) -> Self {
        let all: Vec<_> = functions.iter().collect();
        let locks = |body: &Body| SESSION_LOCKS.iter().any(|name| body.words.contains(*name));
        let own = functions.iter().filter(|(_, body)| locks(body));
        let mut found = callers(&all, own.map(|(f, _)| f.oid).collect());
        let mut relations = HashSet::new();
        loop {
            let calling = callers_of.iter().filter(|(function, _)| found.contains(function));
            let now: HashSet<String> = calling.map(|(_, relation)| (*relation).to_owned()).collect();
            if now.len() == relations.len() {
                break;
            }
            let words: HashSet<String> = now.iter().map(|name| name.to_lowercase()).collect();
            let changing = functions.iter().filter(|(_, body)| !body.words.is_disjoint(&words));
            found.extend(changing.map(|(f, _)| f.oid));
            found = callers(&all, found);
            relations = now;
        }
        let named = functions.iter().filter(|(f, _)| found.contains(&f.oid));
        Self {
            functions: named.map(|(f, _)| f.name.clone()).collect(),
            relations,
        }
    }
}

/// These functions and all that call them.
fn callers(functions: &Others<'_>, mut found: HashSet<u32>) -> HashSet<u32> {
    loop {
        let names: HashSet<String> = functions
            .iter()
            .filter(|(f, _)| found.contains(&f.oid))
            .map(|(f, _)| f.name.to_lowercase())
            .collect();
        let before = found.len();
        let calling = functions
            .iter()
            .filter(|(f, body)| !f.immutable && !body.words.is_disjoint(&names));
        found.extend(calling.map(|(f, _)| f.oid));
        if found.len() == before {
            return found;
        }
    }
}
