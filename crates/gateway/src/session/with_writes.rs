//! WITH that writes, over several shards: each INSERT, UPDATE or DELETE runs as the statement that it is, and the rows that
//! it returns stand in its place in what comes behind, as constants of their types.
//!
//! PostgreSQL runs all of them in one snapshot, in which none sees what another does. So it is done only where that makes no
//! difference: no part reads or writes what another writes, and where each statement has a snapshot of its own, only one
//! part reads tables at all.

use super::{Mode, Problem, Session, Unit};
use crate::statements::Statement;
use bytes::Bytes;
use pgherd_model::{ServerError, quote_identifier, quote_literal};
use pgherd_shards::{ColumnDescription, Row, parse_data_row};
use pgherd_sql::{WithQueries, WithQuery, relations::Role, with_queries};
use std::collections::HashSet;
use std::sync::Arc;

/// The returned rows of one part are kept in memory, and become text.
const MOST_BYTES: usize = 64 << 20;

/// What runs as a statement of its own.
struct Step {
    statement: Arc<Statement>,
    reads: HashSet<String>,
    writes: HashSet<String>,
}

impl Session {
    /// Runs the statement in parts.
    pub(crate) async fn with_writes(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let text = unit.statement.text.clone();
        let Some(parts) = with_queries(&text, &unit.statement.parsed.tokens) else {
            return Err(not_in_parts("Its form is not understood.").into());
        };
        if let Mode::Extended { max_rows: 1.., .. } = unit.mode {
            return Err(not_in_parts("Its client asks for rows a few at a time.").into());
        }
        // PostgreSQL judges the whole, and settles the types of parameters.
        let snapshot = self.present_snapshot();
        let types = self.description(unit, &snapshot).await?.parameter_types.clone();
        let unit = Unit { types: &types, ..unit };
        self.check_parts(unit, &text, &parts)?;
        let made = self.ensure_block();
        let held = self.client.hold_tag();
        let result = self.run_parts(unit, &text, &parts).await;
        let tag = self.client.release_tag(held);
        let result = match result {
            Ok(()) => Ok(tag),
            Err(Problem::Error(error)) => Err(error.with_position(None).into()),
            Err(other) => Err(other),
        };
        self.finish_statement(made, result).await
    }

    fn present_snapshot(&self) -> Arc<pgherd_model::Snapshot> {
        let overlay = self.block.open().and_then(|open| open.overlay.clone());
        overlay.unwrap_or_else(|| self.catalog().snapshot())
    }

    /// Refuses what would not be as in one snapshot.
    fn check_parts(&self, unit: Unit<'_>, text: &str, parts: &WithQueries) -> Result<(), Problem> {
        let mut steps = Vec::new();
        for (at, query) in parts.queries.iter().enumerate().filter(|(_, q)| q.writes) {
            let whole = statement_of(text, &parts.queries[..at], &query.words, &[], &text[query.body.clone()]);
            steps.push(self.step(unit, &whole, &parts.queries)?);
        }
        let whole = statement_of(text, &parts.queries, &parts.main_words, &[], &text[parts.main.clone()]);
        steps.push(self.step(unit, &whole, &parts.queries)?);
        for (i, step) in steps.iter().enumerate() {
            let others = steps.iter().enumerate().filter(|(j, _)| *j != i);
            for (_, other) in others {
                if !step.writes.is_disjoint(&other.writes) || !step.writes.is_disjoint(&other.reads) {
                    return Err(not_in_parts("One part of it reads or writes what another part writes.").into());
                }
            }
        }
        let isolation = self.block.open().and_then(|open| open.transaction.mode().isolation);
        let one_snapshot = isolation.is_some_and(pgherd_transaction::Isolation::is_one_snapshot);
        let strict = self.is_strict();
        if !one_snapshot && !strict && steps.iter().filter(|s| !s.reads.is_empty()).count() > 1 {
            return Err(
                not_in_parts("Several parts of it read tables, which PostgreSQL would do in one snapshot.").into(),
            );
        }
        Ok(())
    }

    fn step(&self, unit: Unit<'_>, text: &str, queries: &[WithQuery]) -> Result<Step, Problem> {
        let unclear = || not_in_parts("A part of it is not understood.");
        let statements = self.gateway.cache.parse(text)?;
        let [statement] = &statements[..] else {
            return Err(unclear().into());
        };
        let snapshot = self.present_snapshot();
        let analysis = self.analysis(Unit { statement, ..unit }, &snapshot)?;
        let (mut reads, mut writes) = (HashSet::new(), HashSet::new());
        for reference in analysis.references().ok_or_else(unclear)? {
            let name = reference.name.name.clone();
            let returned = queries.iter().any(|q| q.writes && q.name == name) && reference.name.schema.is_none();
            match reference.role {
                Role::Read if returned => {}
                Role::Read => {
                    reads.insert(name);
                }
                Role::Insert => {
                    writes.insert(name);
                }
                Role::Update | Role::Delete | Role::Merge => {
                    reads.insert(name.clone());
                    writes.insert(name);
                }
            }
        }
        if calls_home_function(&snapshot, text, statement) {
            return Err(not_in_parts("A part of it calls a function that needs tables.").into());
        }
        Ok(Step {
            statement: statement.clone(),
            reads,
            writes,
        })
    }

    async fn run_parts(&mut self, unit: Unit<'_>, text: &str, parts: &WithQueries) -> Result<(), Problem> {
        // (name, WITH's entry that stands in the query's place)
        let mut returned: Vec<(String, String)> = Vec::new();
        for (at, query) in parts.queries.iter().enumerate().filter(|(_, q)| q.writes) {
            let body = &text[query.body.clone()];
            let whole = statement_of(text, &parts.queries[..at], &query.words, &returned, body);
            let step = self.step(unit, &whole, &parts.queries)?;
            let part = Unit {
                statement: &step.statement,
                mode: Mode::HIDDEN,
                ..unit
            };
            let snapshot = self.present_snapshot();
            let columns = self.description(part, &snapshot).await?.columns.clone();
            self.client.capture();
            let run = Box::pin(self.routed(part)).await;
            let captured = self.client.captured();
            run?;
            if let Some(columns) = columns {
                let entry = self.entry(text, query, &columns, captured.freeze()).await?;
                returned.push((query.name.clone(), entry));
            }
        }
        let main = &text[parts.main.clone()];
        let whole = statement_of(text, &parts.queries, &parts.main_words, &returned, main);
        let statements = self.gateway.cache.parse(&whole)?;
        let statement = statements
            .first()
            .ok_or_else(|| ServerError::internal("a statement behind WITH is none"))?;
        Box::pin(self.routed(Unit { statement, ..unit })).await
    }

    /// `name (a, b) AS (VALUES (…))` with the rows that a part has returned.
    async fn entry(
        &mut self,
        text: &str,
        query: &WithQuery,
        columns: &[ColumnDescription],
        rows: Bytes,
    ) -> Result<String, Problem> {
        if rows.len() > MOST_BYTES {
            return Err(not_in_parts("A part of it returns too many rows.").into());
        }
        let types: Vec<_> = columns
            .iter()
            .map(|c| format!("pg_catalog.format_type({}, {})", c.type_oid, c.type_modifier))
            .collect();
        let results = self.ask_home(&format!("SELECT {}", types.join(", "))).await?;
        let type_of = |i: usize| results.first().and_then(|r| r.text(0, i)).unwrap_or("text");
        let value = |i: usize, value: Option<Bytes>| match value {
            Some(value) => format!("{}::{}", quote_literal(&String::from_utf8_lossy(&value)), type_of(i)),
            None => format!("NULL::{}", type_of(i)),
        };
        let names = match &query.columns {
            Some(columns) => text[columns.clone()].to_owned(),
            None => {
                let names: Vec<_> = columns.iter().map(|c| quote_identifier(&c.name)).collect();
                format!("({})", names.join(", "))
            }
        };
        let mut tuples = Vec::new();
        for row in data_rows(rows) {
            let values: Vec<_> = row.into_iter().enumerate().map(|(i, v)| value(i, v)).collect();
            tuples.push(format!("({})", values.join(", ")));
        }
        let source = match tuples.is_empty() {
            true => {
                let nulls: Vec<_> = (0..columns.len()).map(|i| value(i, None)).collect();
                format!("SELECT {} WHERE false", nulls.join(", "))
            }
            false => format!("VALUES {}", tuples.join(", ")),
        };
        Ok(format!("{} {names} AS ({source})", quote_identifier(&query.name)))
    }
}

/// `WITH …` of those queries that these words name, themselves or through others, and the statement. Those that write are
/// what they returned.
fn statement_of(
    text: &str,
    queries: &[WithQuery],
    words: &[String],
    returned: &[(String, String)],
    body: &str,
) -> String {
    let mut needed: HashSet<&str> = HashSet::new();
    let mut wanted: HashSet<&str> = words.iter().map(String::as_str).collect();
    for query in queries.iter().rev().filter(|q| !q.writes) {
        if wanted.contains(query.name.as_str()) {
            needed.insert(&query.name);
            wanted.extend(query.words.iter().map(String::as_str));
        }
    }
    let entries = queries.iter().filter_map(|query| {
        if !query.writes {
            return needed
                .contains(query.name.as_str())
                .then(|| text[query.span.clone()].to_owned());
        }
        let entry = returned.iter().find(|(name, _)| *name == query.name);
        entry
            .filter(|(name, _)| wanted.contains(name.as_str()))
            .map(|(_, entry)| entry.clone())
    });
    let entries: Vec<_> = entries.collect();
    match entries.is_empty() {
        true => body.to_owned(),
        false => format!("WITH {} {body}", entries.join(", ")),
    }
}

/// Whether a function is called that may read or write tables.
fn calls_home_function(snapshot: &pgherd_model::Snapshot, text: &str, statement: &Statement) -> bool {
    let called = pgherd_sql::locks::names_called(text, &statement.parsed.tokens);
    called.is_none_or(|names| names.iter().any(|name| snapshot.home_functions.contains(name)))
}

/// The values of the DataRow messages among these.
fn data_rows(mut messages: Bytes) -> Vec<Row> {
    let mut rows = Vec::new();
    while let [tag, a, b, c, d, ..] = messages[..] {
        let whole = 1 + u32::from_be_bytes([a, b, c, d]) as usize;
        let message = messages.split_to(whole.min(messages.len()));
        if tag == b'D' {
            rows.push(parse_data_row(message.slice(5..)));
        }
    }
    rows
}

fn not_in_parts(detail: &str) -> ServerError {
    ServerError::unsupported(
        "this WITH that writes needs more than one shard",
        "Run its statements one after another in a transaction.",
    )
    .with_detail(detail)
}
