//! A differential tester: random schemas, rows and statements, each run on plain PostgreSQL and on three shards, and whatever
//! does not agree.
//!
//! A seed and a number give the same statement over the same rows again, in whatever company it runs: each statement has a
//! stream of choices of its own ([`chance`]), and rows that a statement has written are put back. What differs is made smaller as
//! long as it still differs, and shown with a script for psql.
//!
//! | module | its part |
//! |---|---|
//! | `chance` | choices from a seed |
//! | `types` | the types, and awkward values of each |
//! | `functions`, `aggregates` | what can be called, as tables of templates |
//! | `schema` | tables, split points, rows |
//! | `node` | a statement as a tree that can be made smaller |
//! | `expression`, `condition`, `source`, `query`, `write`, `write_forms`, `merge` | the grammar, by clause |
//! | `script`, `script_schema`, `script_tables`, `script_code`, `script_values`, `script_copy` | what takes several statements: cursors, savepoints, schema changes, partitions, foreign keys, functions, triggers, DO, values between statements, COPY |
//! | `side` | a server, and what it answers to a statement by each protocol |
//! | `compare` | whether two answers are the same |
//! | `round` | one schema's statements on both sides |
//! | `run`, `report`, `arguments` | the command `pgherd differential` |
//!
//! The grammar makes statements with one answer only: LIMIT stands where ORDER BY leaves no choice, window frames count rows
//! where the order is total, `array_agg` has an order of its own, and what can fail stands where PostgreSQL has to evaluate it. Where PostgreSQL is
//! free to show one of several equal values (1.0 and 1.00), or to add floats in any order, the comparison knows it
//! ([`Statement::ambiguous`], [`Statement::inexact`]).

mod aggregates;
mod arguments;
mod chance;
mod compare;
mod condition;
mod expression;
mod functions;
mod merge;
mod node;
mod query;
mod report;
mod round;
mod run;
mod schema;
mod script;
mod script_code;
mod script_copy;
mod script_schema;
mod script_tables;
mod script_values;
mod side;
mod source;
mod types;
mod write;
mod write_forms;

pub use arguments::Arguments;
pub use report::Report;
pub use run::{Options, run};

use chance::Chance;
use clap::ValueEnum;
use node::Node;
use schema::Schema;
use source::Source;

/// Kinds of statements, for `--only`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// SELECT.
    Query,
    /// INSERT, UPDATE, DELETE, MERGE, WITH that writes.
    Write,
    /// A transaction block: something is written, and then a query, or more is written.
    Block,
    /// Statements that fail: on some values, or in their names and types.
    Error,
    /// Several statements in a transaction block: cursors, savepoints, schema changes, COPY, settings, prepared statements.
    Script,
}

/// A statement, and how its answers are compared.
#[derive(Debug, Clone)]
struct Statement {
    node: Node,
    /// What runs before it in the same transaction block, which is rolled back.
    before: Vec<Node>,
    /// The block's isolation level.
    isolation: &'static str,
    /// The table whose rows are compared afterwards.
    writes: Option<String>,
    /// PostgreSQL may show another one of several equal values.
    ambiguous: bool,
    /// Results depend on the order in which floats are added.
    inexact: bool,
    /// Which rows are written may depend on their order: only how many, and the table's keys, are compared.
    picks_rows: bool,
    /// Several rows are written: which of them fails first may be anybody's choice.
    writes_rows: bool,
    /// Keys change: whether a new one meets an old one that is about to change depends on the order of rows.
    may_collide: bool,
    /// What runs before it is part of it: each answer counts, also those behind an error.
    is_script: bool,
}

impl Statement {
    /// Whether constants travel as parameters. What changes a schema or declares a name takes none.
    fn has_parameters(&self, carrier: side::Carrier) -> bool {
        carrier.has_parameters() && !self.is_script
    }

    /// Whether it runs in a transaction that may fail because others have changed something.
    fn keeps_snapshot(&self) -> bool {
        (self.is_script || !self.before.is_empty()) && self.isolation != "READ COMMITTED"
    }

    /// Its text, behind what runs before it.
    fn sql(&self) -> String {
        let texts: Vec<_> = self
            .before
            .iter()
            .chain([&self.node])
            .map(|node| node.render(false).sql)
            .collect();
        texts.join("; ")
    }

    /// The same with one thing less in one of its nodes, or without that node; None behind the last place.
    fn smaller(&self, part: usize, site: usize) -> Option<Statement> {
        let mut smaller = self.clone();
        if part == self.before.len() {
            smaller.node = self.node.smaller(site)?;
        } else if site == 0 {
            smaller.before.remove(part);
        } else {
            smaller.before[part] = self.before[part].smaller(site - 1)?;
        }
        Some(smaller)
    }
}

/// What makes one statement.
struct Grammar<'a> {
    chance: Chance,
    schema: &'a Schema,
    aliases: usize,
    /// How deep in subqueries it is.
    nesting: usize,
    /// How many windows have a name.
    windows: usize,
    ctes: Vec<Source>,
    ambiguous: bool,
    inexact: bool,
    picks_rows: bool,
    writes_rows: bool,
    may_collide: bool,
}

impl<'a> Grammar<'a> {
    fn new(schema: &'a Schema, chance: Chance) -> Self {
        Self {
            chance,
            schema,
            aliases: 0,
            nesting: 0,
            windows: 0,
            ctes: Vec::new(),
            ambiguous: false,
            inexact: false,
            picks_rows: false,
            writes_rows: false,
            may_collide: false,
        }
    }

    /// Whether there may be one more subquery here.
    fn may_nest(&self) -> bool {
        self.nesting < 2 && self.aliases < 12
    }

    /// A statement of one of the kinds.
    fn any(mut self, kinds: &[Kind]) -> Statement {
        let kind = match self.chance.below(25) {
            0 => Kind::Error,
            1..=5 => Kind::Write,
            6..=8 => Kind::Block,
            20..=24 => Kind::Script,
            _ => Kind::Query,
        };
        let kind = if kinds.contains(&kind) { kind } else { kinds[0] };
        let mut writes = None;
        let mut before = Vec::new();
        let node = match kind {
            Kind::Block => {
                for _ in 0..self.chance.between(1, 2) {
                    let (node, _) = self.write();
                    // What is left to chance would be read again.
                    if !std::mem::take(&mut self.picks_rows) && !std::mem::take(&mut self.may_collide) {
                        before.push(node);
                    }
                }
                if self.chance.one_in(4) {
                    let (node, table) = self.write();
                    writes = Some(table);
                    node
                } else {
                    self.statement()
                }
            }
            Kind::Query => self.statement(),
            Kind::Script => {
                before = self.script();
                // No script is empty.
                before.pop().unwrap_or_else(|| self.statement())
            }
            Kind::Error if self.chance.one_in(3) => self.wrong_statement(),
            Kind::Error => self.failing_statement(),
            Kind::Write => {
                let (node, table) = self.write();
                writes = Some(table);
                node
            }
        };
        let isolation = *self
            .chance
            .pick(&["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]);
        Statement {
            node,
            before,
            isolation,
            writes,
            ambiguous: self.ambiguous,
            inexact: self.inexact,
            picks_rows: self.picks_rows,
            writes_rows: self.writes_rows,
            may_collide: self.may_collide,
            is_script: kind == Kind::Script,
        }
    }
}
