//! LOCK TABLE where sharded tables are among the names: each shard locks what it has of them, the home shard the rest.

use crate::ObjectName;
use crate::analysis::Context;
use crate::lexer::Token;
use crate::placed::sharded_of;
use crate::route::Part;
use pgherd_model::{RangeId, ServerError, ShardId, Snapshot, Table, TableKind};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The names of a LOCK TABLE.
#[derive(Debug)]
pub(crate) struct LockTable {
    /// where each stands in the text, and what it is
    names: Vec<(Range<usize>, Target)>,
}

#[derive(Debug)]
enum Target {
    /// on all shards that have ranges of it
    Sharded(Arc<Table>),
    /// a declared partition of this sharded table: where its range is
    Partition(Arc<Table>, RangeId),
    /// what the home shard alone has, or judges
    Home,
}

impl LockTable {
    /// Errors: a view over sharded tables, whose tables would have to be locked; words between the names of different shards.
    pub fn new(names: &[ObjectName], context: &Context) -> Result<Self, ServerError> {
        let target = |name: &ObjectName| -> Result<Target, ServerError> {
            let Some(table) = context.resolve(name.schema.as_deref(), &name.name) else {
                return Ok(Target::Home);
            };
            if table.is_readable_only() {
                return Ok(Target::Home);
            }
            match (&table.kind, sharded_of(&table, context.snapshot)) {
                (TableKind::Partition { range, .. }, Some((parent, _))) => Ok(Target::Partition(parent, *range)),
                (_, Some((table, _))) => Ok(Target::Sharded(table)),
                (_, None) => Err(ServerError::unsupported(
                    format!("LOCK TABLE of \"{}\" would lock sharded tables", name.name),
                    "Lock the tables themselves.",
                )),
            }
        };
        let targets: Result<Vec<_>, _> = names
            .iter()
            .map(|name| Ok((name.span.clone(), target(name)?)))
            .collect();
        let lock = Self { names: targets? };
        let alike = lock.names.iter().all(|(_, t)| matches!(t, Target::Sharded(_)));
        if !alike && !lock.are_plain(context.text, context.tokens) {
            return Err(ServerError::unsupported(
                "LOCK TABLE with ONLY cannot name sharded tables together with others",
                "Lock them in statements of their own.",
            ));
        }
        Ok(lock)
    }

    /// Whether nothing but commas stands between the names, so that some can be left out.
    fn are_plain(&self, text: &str, tokens: &[Token]) -> bool {
        let [(first, _), ..] = &self.names[..] else {
            return false;
        };
        let before = tokens.iter().rev().find(|t| t.end as usize <= first.start);
        let opens = before.is_some_and(|t| t.is_word(text, "lock") || t.is_word(text, "table"));
        let last = self.names.last().map_or(0, |(span, _)| span.end);
        let behind = tokens.iter().find(|t| t.start as usize >= last);
        let mut pairs = self.names.windows(2);
        opens
            && behind.is_none_or(|t| !t.is(text, "*") && !t.is(text, ","))
            && pairs.all(|pair| text[pair[0].0.end..pair[1].0.start].trim() == ",")
    }

    /// What each shard runs.
    pub fn parts(&self, text: &Arc<str>, snapshot: &Snapshot) -> Vec<Part> {
        // which of the names a shard has, and the fences of the tables that it is asked for as a whole
        let mut shards: BTreeMap<ShardId, (Vec<bool>, Vec<Arc<str>>)> = BTreeMap::new();
        for (i, (_, target)) in self.names.iter().enumerate() {
            let mut on = |shard: ShardId, fence: Option<Arc<str>>| {
                let (has, fences) = shards
                    .entry(shard)
                    .or_insert_with(|| (vec![false; self.names.len()], Vec::new()));
                has[i] = true;
                fences.extend(fence);
            };
            match target {
                Target::Home => on(snapshot.home(), None),
                Target::Sharded(table) => {
                    if let Some(sharded) = table.sharded() {
                        let fence: Arc<str> = sharded.fence.to_string().into();
                        for shard in sharded.ranges.shards() {
                            on(shard, Some(fence.clone()));
                        }
                    }
                }
                Target::Partition(table, range) => {
                    let ranges = table.sharded().map(|s| s.ranges.ranges()).unwrap_or_default();
                    for range in ranges.iter().filter(|r| r.id == *range) {
                        on(range.shard, None);
                    }
                }
            }
        }
        let part = |(shard, (has, fences)): (ShardId, (Vec<bool>, Vec<Arc<str>>))| {
            Part::new(shard, text, &self.without(&has), fences)
        };
        shards.into_iter().map(part).collect()
    }

    /// The pieces of the text that take away the names which are not there, each with a comma.
    fn without(&self, has: &[bool]) -> Vec<(Range<usize>, String)> {
        let first = has.iter().position(|has| *has).unwrap_or(0);
        let missing = (0..has.len()).filter(|i| !has[*i]);
        let piece = |i: usize| match i < first {
            true => self.names[i].0.start..self.names[i + 1].0.start,
            false => self.names[i - 1].0.end..self.names[i].0.end,
        };
        missing.map(|i| (piece(i), String::new())).collect()
    }
}
