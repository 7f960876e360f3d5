//! What a statement reads, as the locks that a SERIALIZABLE transaction over shards takes before the statement runs
//! (designs/0013-serializable.md): the ranges of sharded tables that may hold rows which matter, whole local tables, and the
//! names that may be functions', since what a function reads is not seen here.

use crate::analysis::{Analysis, Decision};
use crate::kind::ObjectName;
use crate::lexer::{Token, TokenKind};
use crate::placed::sharded_of;
use crate::relations::Role;
use crate::route::ParameterValue;
use crate::scalar::Parameters;
use pgherd_model::{Name, ServerError, ShardId, Snapshot, SqlState, Table, TableKind, quote_identifier};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What one shard is asked to lock; relations as SQL names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardLocks {
    /// of the sharded tables: they are gone when ranges have changed
    pub fences: BTreeSet<Arc<str>>,
    /// what is read there
    pub reads: BTreeSet<String>,
    /// what is written there: not locked, but nothing may read behind its back
    pub writes: BTreeSet<String>,
}

/// The locks of a statement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locks {
    /// by shard, in the order in which they are taken
    pub by_shard: BTreeMap<ShardId, ShardLocks>,
    /// views over sharded tables: the home shard knows of which, and all their ranges are read
    pub views: Vec<Name>,
    /// names that may be functions'
    pub calls: Vec<String>,
}

impl Locks {
    /// Notes that rows of these ranges (by their places; None for all) are read.
    pub fn read_ranges(&mut self, table: &Table, ranges: Option<&[usize]>, home: ShardId) {
        let Some(sharded) = table.sharded() else { return };
        if sharded.through_view.is_some() {
            return self.read_view(&table.name, home);
        }
        for (place, range) in sharded.ranges.ranges().iter().enumerate() {
            if ranges.is_none_or(|ranges| ranges.contains(&place)) {
                let locks = self.by_shard.entry(range.shard).or_default();
                locks.reads.insert(range.child.to_string());
                locks.fences.insert(sharded.fence.to_string().into());
            }
        }
    }

    /// Notes that a relation is read whole.
    pub fn read(&mut self, name: &ObjectName, table: Option<&Arc<Table>>, snapshot: &Snapshot) {
        match table.map(|table| (table, &table.kind)) {
            Some((table, TableKind::Sharded(_) | TableKind::Partition { .. })) => {
                if let Some((parent, range)) = sharded_of(table, snapshot) {
                    self.read_ranges(&parent, range.as_ref().map(std::slice::from_ref), snapshot.home());
                }
            }
            Some((view, TableKind::View { .. })) => self.read_view(&view.name, snapshot.home()),
            Some((_, TableKind::Refused { .. })) | None => {
                self.at(snapshot.home()).reads.insert(sql_name(name));
            }
        }
    }

    fn read_view(&mut self, view: &Name, home: ShardId) {
        self.views.push(view.clone());
        self.at(home).reads.insert(view.to_string());
    }

    /// Notes that a relation is written; `shard` has it, or has its table's parent. What the actions of foreign keys write is
    /// written as well: their triggers may read.
    pub fn write(&mut self, name: &ObjectName, table: Option<&Arc<Table>>, shard: ShardId) {
        let acted_on = table.and_then(|table| table.sharded()).map(|s| &s.acts_on[..]);
        let acted_on = acted_on.unwrap_or_default().iter().map(Name::to_string);
        let name = table.map_or_else(|| sql_name(name), |table| table.name.to_string());
        self.at(shard).writes.extend(acted_on.chain([name]));
    }

    fn at(&mut self, shard: ShardId) -> &mut ShardLocks {
        self.by_shard.entry(shard).or_default()
    }
}

fn does_not_exist(kind: &str, name: &str) -> String {
    format!("{kind} \"{name}\" does not exist")
}

fn sql_name(name: &ObjectName) -> String {
    let schema = name.schema.as_ref().map(|s| format!("{}.", quote_identifier(s)));
    format!("{}{}", schema.unwrap_or_default(), quote_identifier(&name.name))
}

impl Analysis {
    /// What to lock before it runs with these parameters. `on` is a shard that runs it, where there is one already. None where
    /// its grammar is not understood, so that nobody knows what it reads.
    pub fn locks(&self, snapshot: &Snapshot, parameters: &[ParameterValue], on: Option<ShardId>) -> Option<Locks> {
        let references = self.references.as_ref()?;
        let mut locks = Locks {
            calls: names_called(&self.text, &self.tokens)?,
            ..Locks::default()
        };
        let on = on.unwrap_or(snapshot.home());
        // An INSERT that meets a row and does nothing has read it, and holds nothing that keeps it.
        let finds_conflicts = (0..self.tokens.len().saturating_sub(1))
            .any(|i| self.tokens[i].is_word(&self.text, "do") && self.tokens[i + 1].is_word(&self.text, "nothing"));
        let reads = |role: Role| role != Role::Insert || finds_conflicts;
        let is_placed = |table: &Arc<Table>| sharded_of(table, snapshot).is_some();
        let by_range = match &self.decision {
            Decision::Placed(placed) => {
                let parameters = Parameters {
                    values: parameters,
                    types: &self.types,
                };
                for (table, _, ranges) in placed.ranges_read(parameters).filter(|(_, role, _)| reads(*role)) {
                    locks.read_ranges(table, Some(&ranges), snapshot.home());
                }
                true
            }
            _ => false,
        };
        for reference in references {
            let (name, table) = (&reference.name, reference.table.as_ref());
            let is_done = by_range && table.is_some_and(is_placed);
            if reads(reference.role) && !is_done {
                locks.read(name, table, snapshot);
            }
            if reference.role != Role::Read {
                let shard = if table.is_some_and(is_placed) {
                    on
                } else {
                    snapshot.home()
                };
                locks.write(name, table, shard);
            }
        }
        Some(locks)
    }
}

impl Analysis {
    /// An error about a relation that a lock did not find, as the statement itself would give it: with the place that names it. Its
    /// schema may be what is missing.
    pub fn missing_relation(&self, error: ServerError) -> ServerError {
        let missing = |reference: &&crate::relations::Reference| {
            let (schema, name) = (reference.name.schema.as_deref(), &reference.name.name);
            let full = schema.map_or_else(|| name.clone(), |schema| format!("{schema}.{name}"));
            match error.sqlstate() {
                SqlState::UNDEFINED_TABLE => error.fields().message == does_not_exist("relation", &full),
                SqlState::UNDEFINED_SCHEMA => {
                    schema.is_some_and(|schema| error.fields().message == does_not_exist("schema", schema))
                }
                _ => false,
            }
        };
        let references = self.references.as_deref().unwrap_or_default();
        let Some(reference) = references.iter().filter(missing).min_by_key(|r| r.name.span.start) else {
            return error;
        };
        let schema = reference.name.schema.as_ref().map(|schema| format!("{schema}."));
        let full = format!("{}{}", schema.unwrap_or_default(), reference.name.name);
        let before = self.text.get(..reference.name.span.start).unwrap_or_default();
        let position = before.chars().count() as u32 + 1;
        ServerError::new(SqlState::UNDEFINED_TABLE, does_not_exist("relation", &full)).with_position(Some(position))
    }

    /// Whether all that it writes is named so.
    pub fn writes_only(&self, is_so: &dyn Fn(&str) -> bool) -> bool {
        let references = self.references.as_deref().unwrap_or_default();
        let mut written = references.iter().filter(|r| r.role != Role::Read).peekable();
        written.peek().is_some() && written.all(|r| is_so(&r.name.name))
    }
}

/// The names before a parenthesis and behind a point: `f(x)`, and `x.f` for a row `x`.
///
/// None where one of them is not understood.
pub fn names_called(text: &str, tokens: &[Token]) -> Option<Vec<String>> {
    let is_name = |token: &Token| matches!(token.kind, TokenKind::Word | TokenKind::Quoted);
    let names = tokens.iter().enumerate().filter(|(i, token)| {
        let called = tokens.get(i + 1).is_some_and(|next| next.is(text, "("));
        let field = *i > 0 && tokens[i - 1].is(text, ".");
        is_name(token) && (called || field)
    });
    let names: Option<BTreeSet<String>> = names.map(|(_, token)| token.identifier(text)).collect();
    names.map(|names| names.into_iter().collect())
}
