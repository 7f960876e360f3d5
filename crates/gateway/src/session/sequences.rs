//! What a session remembers of sequences.
//!
//! An INSERT into a sharded table draws the numbers of its defaults on whatever home-shard connection is free. For
//! PostgreSQL, `currval()` and `lastval()` tell what the session has drawn, so the session notes it. When one of them is
//! called for the first time, the session keeps a connection of its own from then on, and the functions of schema `pgherd`
//! are called in their place: they ask that connection first, then what was noted before.

use super::{Problem, Session, Unit};
use pgherd_model::quote_literal;
use pgherd_sql::{Drawn as DrawnColumn, Instead};
use std::collections::BTreeMap;

/// Numbers drawn for defaults.
#[derive(Default)]
pub(crate) struct Drawn {
    /// the last number of each sequence
    by_sequence: BTreeMap<String, i64>,
    last: Option<i64>,
}

impl Drawn {
    /// Takes over what the home shard gave for the defaults of rows. What is more than a number of one sequence leaves
    /// nothing to be sure of.
    pub(crate) fn note(&mut self, columns: &[DrawnColumn], rows: &[Vec<Option<String>>]) {
        for row in rows {
            for column in columns {
                let Some(Some(value)) = row.get(column.column) else {
                    continue;
                };
                match (&column.sequence, value.parse()) {
                    (Some(sequence), Ok(number)) => {
                        self.by_sequence.insert(sequence.clone(), number);
                        self.last = Some(number);
                    }
                    _ => self.forget(),
                }
            }
        }
    }

    /// DISCARD SEQUENCES, and when numbers were drawn that the session did not see.
    pub(crate) fn forget(&mut self) {
        self.by_sequence.clear();
        self.last = None;
    }

    /// Takes over what the home shard says that an INSERT there has drawn.
    pub(crate) fn note_local(&mut self, numbers: impl Iterator<Item = (String, i64)>, last: i64) {
        self.by_sequence.extend(numbers);
        self.last = Some(last);
    }

    /// Whether any are known.
    pub(crate) fn has_some(&self) -> bool {
        self.last.is_some()
    }

    /// Sets what the functions of schema `pgherd` read.
    fn sql(&self) -> String {
        let pairs = self.by_sequence.iter().map(|(name, number)| {
            let name = quote_literal(name);
            format!("({name}, {number})")
        });
        let pairs: Vec<_> = pairs.collect();
        let last = self.last.map_or(String::new(), |l| l.to_string());
        format!(
            "SELECT pg_catalog.set_config('pgherd.drawn_last', '{last}', false), \
             pg_catalog.set_config('pgherd.drawn_numbers', \
             (SELECT pg_catalog.json_object_agg(oid::pg_catalog.text, number) FROM \
             (SELECT pg_catalog.to_regclass(name)::pg_catalog.oid AS oid, number FROM (VALUES {}) AS v(name, number)) AS drawn \
             WHERE oid IS NOT NULL)::pg_catalog.text, false)",
            pairs.join(", ")
        )
    }
}

impl Session {
    /// `currval` and `lastval` in a session that remembers numbers: what to run in the statement's place, after the
    /// session's own home-shard connection was told.
    pub(crate) async fn with_drawn_numbers(&mut self, unit: Unit<'_>) -> Result<Option<Instead>, Problem> {
        if !self.drawn.has_some() {
            return Ok(None);
        }
        let Some(instead) = instead(unit) else {
            return Ok(None);
        };
        let sql = self.drawn.sql();
        self.ask_home(&sql).await?;
        Ok(Some(instead))
    }
}

/// The text with the calls of both functions as those of schema `pgherd`; None without any.
fn instead(unit: Unit<'_>) -> Option<Instead> {
    let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
    let is = |i: usize, symbol: &str| tokens.get(i).is_some_and(|t| t.is(text, symbol));
    let mut replacements = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let Some(name) = token.identifier(text).filter(|n| n == "currval" || n == "lastval") else {
            continue;
        };
        if !is(i + 1, "(") || (i > 0 && is(i - 1, ".") && !(i > 1 && tokens[i - 2].names(text, "pg_catalog"))) {
            continue;
        }
        let start = if i > 1 && is(i - 1, ".") {
            tokens[i - 2].start
        } else {
            token.start
        };
        replacements.push((start as usize..token.end as usize, format!("pgherd.{name}")));
    }
    (!replacements.is_empty()).then(|| Instead::new(text, &replacements))
}
