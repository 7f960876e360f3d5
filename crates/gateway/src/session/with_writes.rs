//! WITH that writes, over several shards: each INSERT, UPDATE or DELETE runs as the statement that it is, and the rows that
//! it returns stand in its place in what comes behind, as constants of their types.
//!
//! PostgreSQL runs all of them in one snapshot, in which none sees what another does. Where several parts read tables, they want
//! one snapshot: a statement by itself then runs at REPEATABLE READ, unseen, and again where others have changed its rows. In a block
//! at READ COMMITTED, which has no snapshot to share, what the parts read is locked against writers first, and stays as it is until
//! the transaction ends, so that the newest state is the same for all parts. What one part reads and another writes is read before anything is written, whole, and stands in the reader's text as constants too.
//!
//! Where two parts write the same table, see [`one_table`].

mod one_table;

use super::forward::no_block;
use super::{Mode, Problem, Session, Unit};
use crate::statements::Statement;
use bytes::Bytes;
use one_table::{OneTable, Written};
use pgherd_model::{
    FIRST_OF_USERS, Name, ServerError, ShardId, SqlState, Table, TableKind, quote_identifier, quote_literal,
};
use pgherd_shards::ColumnDescription;
use pgherd_sql::{Kind, WithQueries, WithQuery, relations::Role, with_queries};
use pgherd_transaction::Isolation;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// How often a statement is run again because others changed its rows.
const MOST_TRIES: u32 = 20;

/// What runs as a statement of its own.
struct Step {
    statement: Arc<Statement>,
    reads: HashSet<String>,
    writes: HashSet<String>,
    /// what it reads by a name with a schema
    qualified: HashSet<String>,
    /// what it reads as SQL names it, and as the catalog knows it
    relations: Vec<(String, Option<Arc<Table>>)>,
    /// what it reads and writes that the catalog does not know: the home shard's own
    homely: Vec<String>,
    writes_home: bool,
    /// its own text, without WITH
    body: String,
    /// what it does, and the table that it names for that, by its own name and as the catalog knows it
    role: Role,
    target: Option<(String, Option<Arc<Table>>)>,
    /// what it names beside that table
    mentions: HashSet<String>,
    /// it is an INSERT that changes no row that is there
    only_adds: bool,
}

impl Step {
    /// Whether this is the table that it names to write it.
    fn writes_to(&self, name: &str) -> bool {
        self.target.as_ref().is_some_and(|(target, _)| target == name)
    }
}

/// What the parts want.
struct Wants {
    /// tables that one part reads and another writes
    old: Vec<String>,
    /// what each part writes, the statement behind WITH last
    written: Vec<HashSet<String>>,
    /// what all of them read, by shards, as SQL names it
    read: BTreeMap<ShardId, BTreeSet<String>>,
    /// whether all must see one snapshot
    one_snapshot: bool,
    /// a foreign key links tables that different parts write
    linked: bool,
    one_table: OneTable,
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
        let wants = self.check_parts(unit, &text, &parts).await?;
        let mut tries = 0;
        loop {
            let mark = self.client.out.len();
            let (made, raised) = self.begin_parts(&wants).await?;
            let held = self.client.hold_tag();
            let result = self.run_parts(unit, &text, &parts, &wants).await;
            let result = result.map_err(|problem| match problem {
                // PostgreSQL looks when all parts have written.
                Problem::Error(e) if e.sqlstate() == SqlState::FOREIGN_KEY_VIOLATION && wants.linked => {
                    not_in_parts("Foreign keys link the tables that its parts write, and are checked after each part.")
                        .into()
                }
                other => other,
            });
            let result = self.end_as_one(held, result);
            tries += 1;
            match self.finish_statement(made, result).await {
                Err(Problem::Error(error))
                    if raised
                        && error.sqlstate() == SqlState::SERIALIZATION_FAILURE
                        && self.client.out.len() == mark
                        && self.cancel.slot.requested().is_none()
                        && tries < MOST_TRIES => {}
                other => return other,
            }
        }
    }

    /// How a statement ends that ran as several: with the last one's tag. Positions in their texts mean nothing to the client.
    pub(super) fn end_as_one(
        &mut self,
        held: Option<Option<String>>,
        result: Result<(), Problem>,
    ) -> Result<Option<String>, Problem> {
        let tag = self.client.release_tag(held);
        match result {
            Ok(()) => Ok(tag),
            Err(Problem::Error(error)) => Err(error.with_position(None).into()),
            Err(other) => Err(other),
        }
    }

    /// Runs a part; its rows, which do not go to the client.
    pub(super) async fn rows_of(&mut self, part: Unit<'_>) -> Result<Bytes, Problem> {
        let before = self.client.capture();
        let run = Box::pin(self.routed(part)).await;
        let captured = self.client.captured(before);
        run.map(|()| captured.freeze())
    }

    /// Opens a block where none is open; whether it did, and whether it is for one snapshot where the session has one for each
    /// statement.
    async fn begin_parts(&mut self, wants: &Wants) -> Result<(bool, bool), Problem> {
        let open = self.block.open();
        let isolation = match open {
            Some(open) => open.transaction.mode().isolation,
            None => self.settings.default_isolation,
        };
        let has_one = isolation.is_some_and(Isolation::is_one_snapshot) || self.is_strict() || self.is_explaining();
        if has_one || !wants.one_snapshot {
            return Ok((self.ensure_block(), false));
        }
        if open.is_some() {
            self.lock_against_writers(&wants.read).await?;
            return Ok((false, false));
        }
        self.begin_in_one_snapshot();
        Ok((true, true))
    }

    /// Locks what is read, in the order of shards, so that nobody else changes it until the transaction ends.
    async fn lock_against_writers(&mut self, read: &BTreeMap<ShardId, BTreeSet<String>>) -> Result<(), Problem> {
        if let Some(open) = self.block.open_mut() {
            open.has_locked_tables = true;
        }
        for (shard, names) in read {
            let names: Vec<_> = names
                .iter()
                .map(|name| format!("{}::pg_catalog.regclass", quote_literal(name)))
                .collect();
            let sql = format!(
                "SELECT pgherd.lock_reads(ARRAY[{}]::pg_catalog.regclass[], '{{}}', '{{}}', false, true)",
                names.join(", ")
            );
            let open = self.block.open_mut().ok_or_else(no_block)?;
            let backend = open.transaction.participant_to_lock(*shard).await?;
            self.cancel.slot.start(backend.cancel_token());
            let locked = backend.simple(&sql).await;
            self.cancel.slot.clear();
            locked.map_err(|error| self.as_client_sees(ServerError::from(error).with_position(None)))?;
        }
        Ok(())
    }

    /// Finds what the parts want of each other, and refuses what cannot be had.
    async fn check_parts(&mut self, unit: Unit<'_>, text: &str, parts: &WithQueries) -> Result<Wants, Problem> {
        let mut steps = Vec::new();
        for (at, query) in parts.queries.iter().enumerate().filter(|(_, q)| q.writes) {
            let whole = statement_of(text, parts, at, &query.words, &[], &text[query.body.clone()]);
            steps.push(self.step(unit, &whole, &text[query.body.clone()], &parts.queries)?);
        }
        let main = &text[parts.main.clone()];
        let whole = statement_of(text, parts, parts.queries.len(), &parts.main_words, &[], main);
        steps.push(self.step(unit, &whole, main, &parts.queries)?);
        let one_table = OneTable::of(&steps)?;
        let mut old: Vec<String> = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            for (_, other) in steps.iter().enumerate().filter(|(j, _)| *j != i) {
                let read = step.writes.intersection(&other.reads);
                for name in read.filter(|name| !other.writes.contains(*name)) {
                    if other.qualified.contains(name) {
                        return Err(not_in_parts(
                            "One part of it reads what another part writes, with its schema's name.",
                        )
                        .into());
                    }
                    if !old.contains(name) {
                        old.push(name.clone());
                    }
                }
                if step.writes_home && !other.homely.is_empty() {
                    self.refuse_views(&other.homely).await?;
                }
            }
        }
        let reading = steps.iter().filter(|s| !s.reads.is_empty()).count();
        let one_snapshot = !old.is_empty() || reading > 1;
        let home = self.gateway.shards.home();
        let mut read: BTreeMap<ShardId, BTreeSet<String>> = BTreeMap::new();
        for (name, table) in steps.iter().flat_map(|step| &step.relations) {
            match table.as_ref().and_then(|table| table.sharded()) {
                Some(sharded) => {
                    for range in sharded.ranges.ranges() {
                        read.entry(range.shard).or_default().insert(name.clone());
                    }
                }
                None => {
                    read.entry(home).or_default().insert(name.clone());
                }
            }
        }
        let snapshot = self.present_snapshot();
        let written = |name: &Name| steps.iter().position(|step| step.writes.contains(&*name.name));
        let linked = snapshot.sharded().any(|table| {
            let keys = table.sharded().map_or(&[][..], |s| &s.foreign_keys[..]);
            let own = written(&table.name);
            own.is_some()
                && keys
                    .iter()
                    .any(|k| written(&k.referenced).is_some_and(|other| Some(other) != own))
        });
        Ok(Wants {
            read,
            old,
            written: steps.into_iter().map(|step| step.writes).collect(),
            one_snapshot,
            linked,
            one_table,
        })
    }

    /// A view of the home shard may read what another part writes there; PostgreSQL's own do not.
    async fn refuse_views(&mut self, names: &[String]) -> Result<(), Problem> {
        let names: Vec<_> = names.iter().map(|name| quote_literal(name)).collect();
        let sql = format!(
            "SELECT count(*) FROM pg_catalog.unnest(ARRAY[{}]::text[]) n \
             JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(n) AND c.relkind <> 'r' AND c.oid >= {FIRST_OF_USERS}",
            names.join(", ")
        );
        let answer = self.ask_home(&sql).await?;
        match answer.first().and_then(|r| r.text(0, 0)) {
            Some("0") => Ok(()),
            _ => Err(not_in_parts("One part of it reads a view, which may read what another part writes.").into()),
        }
    }

    fn step(&self, unit: Unit<'_>, text: &str, body: &str, queries: &[WithQuery]) -> Result<Step, Problem> {
        let unclear = || not_in_parts("A part of it is not understood.");
        let statements = self.database.cache.parse(text)?;
        let [statement] = &statements[..] else {
            return Err(unclear().into());
        };
        let snapshot = self.present_snapshot();
        let analysis = self.analysis(Unit { statement, ..unit }, &snapshot)?;
        let (mut reads, mut writes) = (HashSet::new(), HashSet::new());
        let (mut qualified, mut homely, mut writes_home) = (HashSet::new(), Vec::new(), false);
        let (mut relations, mut mentions) = (Vec::new(), HashSet::new());
        let (mut role, mut target) = (Role::Read, None);
        for reference in analysis.references().ok_or_else(unclear)? {
            let name = reference.name.name.clone();
            let returned = queries.iter().any(|q| q.writes && q.name == name) && reference.name.schema.is_none();
            let is_view = |t: &Arc<Table>| match &t.kind {
                TableKind::View { .. } => true,
                TableKind::Sharded(sharded) => sharded.through_view.is_some(),
                _ => false,
            };
            if reference.table.as_ref().is_some_and(is_view) {
                return Err(not_in_parts("A part of it reads a view over sharded tables.").into());
            }
            if reference.role != Role::Read && reference.table.is_none() {
                writes_home = true;
            }
            if !returned && reference.role != Role::Insert {
                let named = match (&reference.table, &reference.name.schema) {
                    (Some(table), _) => table.name.to_string(),
                    (None, Some(schema)) => format!("{}.{}", quote_identifier(schema), quote_identifier(&name)),
                    (None, None) => quote_identifier(&name).to_string(),
                };
                if reference.role == Role::Read && reference.table.is_none() {
                    homely.push(named.clone());
                }
                relations.push((named, reference.table.clone()));
            }
            if reference.role == Role::Read && reference.name.schema.is_some() {
                qualified.insert(name.clone());
            }
            if reference.role != Role::Read {
                (role, target) = (reference.role, Some((name.clone(), reference.table.clone())));
            }
            match reference.role {
                Role::Read if returned => {}
                Role::Read => {
                    mentions.insert(name.clone());
                    reads.insert(name);
                }
                Role::Insert => {
                    writes.insert(name);
                }
                Role::Update | Role::Delete | Role::Merge => {
                    reads.insert(name.clone());
                    writes.insert(name);
                    let sharded = reference.table.as_ref().and_then(|t| t.sharded());
                    let acted_on = sharded.into_iter().flat_map(|s| &s.acts_on);
                    writes.extend(acted_on.map(|n| n.name.to_string()));
                }
            }
        }
        if calls_home_function(&snapshot, text, statement) {
            return Err(not_in_parts("A part of it calls a function that needs tables.").into());
        }
        let tokens = &statement.parsed.tokens;
        let updates = tokens
            .windows(2)
            .any(|t| t[0].is_word(text, "do") && t[1].is_word(text, "update"));
        Ok(Step {
            body: body.to_owned(),
            role,
            target,
            mentions,
            only_adds: matches!(statement.parsed.kind, Kind::Insert) && !updates,
            statement: statement.clone(),
            relations,
            reads,
            writes,
            qualified,
            homely,
            writes_home,
        })
    }

    async fn run_parts(
        &mut self,
        unit: Unit<'_>,
        text: &str,
        parts: &WithQueries,
        wants: &Wants,
    ) -> Result<(), Problem> {
        let mut old = Vec::new();
        for name in &wants.old {
            old.push((name.clone(), self.old_rows(unit, name).await?));
        }
        let (mut written, mut rows_written) = (wants.written.iter(), Written::new());
        // (name, WITH's entry that stands in the query's place)
        let mut returned: Vec<(String, String)> = Vec::new();
        let writing = parts.queries.iter().enumerate().filter(|(_, q)| q.writes);
        for (number, (at, query)) in writing.enumerate() {
            let body = wants.one_table.body(number, &text[query.body.clone()], &rows_written);
            let known = known(&old, written.next(), &returned);
            let whole = statement_of(text, parts, at, &query.words, &known, &body);
            let step = self.step(unit, &whole, &body, &parts.queries)?;
            let part = Unit {
                statement: &step.statement,
                mode: Mode::HIDDEN,
                ..unit
            };
            let snapshot = self.present_snapshot();
            let columns = self.description(part, &snapshot).await?.columns.clone();
            let rows = self.rows_of(part).await?;
            if let Some(mut columns) = columns {
                self.refuse_collations(&step, &columns).await?;
                let types = self.column_types(&columns).await?;
                wants
                    .one_table
                    .take_keys(number, &mut columns, &rows, &types, &mut rows_written);
                if columns.is_empty() {
                    continue;
                }
                let entry = self.entry(text, query, &columns, rows).await?;
                returned.push((query.name.clone(), entry));
            }
        }
        let last = wants.written.len() - 1;
        let main = wants.one_table.body(last, &text[parts.main.clone()], &rows_written);
        let known = known(&old, written.next(), &returned);
        let whole = statement_of(text, parts, parts.queries.len(), &parts.main_words, &known, &main);
        let statements = self.database.cache.parse(&whole)?;
        let statement = statements
            .first()
            .ok_or_else(|| ServerError::internal("a statement behind WITH is none"))?;
        Box::pin(self.routed(Unit { statement, ..unit })).await
    }

    /// `name (a, b) AS (VALUES (…))` with the rows that a table has before any part writes.
    async fn old_rows(&mut self, unit: Unit<'_>, name: &str) -> Result<String, Problem> {
        let name = quote_identifier(name);
        let statements = self.database.cache.parse(&format!("SELECT * FROM {name}"))?;
        let statement = statements
            .first()
            .ok_or_else(|| ServerError::internal("a query of a table is none"))?;
        let part = Unit {
            statement,
            mode: Mode::HIDDEN,
            types: &[],
            parameters: &[],
            ..unit
        };
        let snapshot = self.present_snapshot();
        let columns = self
            .description(part, &snapshot)
            .await?
            .columns
            .clone()
            .unwrap_or_default();
        let rows = self.rows_of(part).await?;
        let names: Vec<_> = columns.iter().map(|c| quote_identifier(&c.name)).collect();
        let rows = self.constants(&columns, rows).await?;
        Ok(format!("{name} ({}) AS ({rows})", names.join(", ")))
    }

    /// `name (a, b) AS (VALUES (…))` with the rows that a part has returned.
    async fn entry(
        &mut self,
        text: &str,
        query: &WithQuery,
        columns: &[ColumnDescription],
        rows: Bytes,
    ) -> Result<String, Problem> {
        let names = match &query.columns {
            Some(columns) => text[columns.clone()].to_owned(),
            None => {
                let names: Vec<_> = columns.iter().map(|c| quote_identifier(&c.name)).collect();
                format!("({})", names.join(", "))
            }
        };
        let source = self.constants(columns, rows).await?;
        Ok(format!("{} {names} AS ({source})", quote_identifier(&query.name)))
    }

    /// The collation of an expression cannot be asked for: refused where it may be another one than its type's.
    async fn refuse_collations(&mut self, step: &Step, columns: &[ColumnDescription]) -> Result<(), Problem> {
        let computed: Vec<_> = columns
            .iter()
            .filter(|c| c.table_oid == 0)
            .map(|c| c.type_oid.to_string())
            .collect();
        if computed.is_empty() {
            return Ok(());
        }
        let target = step.target.iter().map(|(name, table)| match table {
            Some(table) => table.name.to_string(),
            None => quote_identifier(name),
        });
        let names = step.relations.iter().map(|(name, _)| name.clone()).chain(target);
        let names: Vec<_> = names.map(|name| quote_literal(&name)).collect();
        let sql = format!(
            "SELECT (EXISTS (SELECT FROM pg_catalog.pg_type t WHERE t.oid IN ({}) AND t.typcollation <> 0) \
             AND EXISTS (SELECT FROM pg_catalog.unnest(ARRAY[{}]::text[]) n \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = pg_catalog.to_regclass(n) AND a.attnum > 0 AND NOT a.attisdropped \
             JOIN pg_catalog.pg_type t ON t.oid = a.atttypid WHERE a.attcollation <> t.typcollation))::text",
            computed.join(", "),
            names.join(", ")
        );
        let answer = self.ask_home(&sql).await?;
        match answer.first().and_then(|r| r.text(0, 0)) {
            Some("false") => Ok(()),
            _ => Err(not_in_parts(
                "A part of it returns an expression over a table whose columns have collations of their own.",
            )
            .into()),
        }
    }
}

/// WITH's entries that a part may need: the old rows of what it does not write itself, and what others have returned.
fn known(
    old: &[(String, String)],
    writes: Option<&HashSet<String>>,
    returned: &[(String, String)],
) -> Vec<(String, String)> {
    let own = |name: &String| writes.is_some_and(|writes| writes.contains(name));
    let old = old.iter().filter(|(name, _)| !own(name));
    old.chain(returned).cloned().collect()
}

/// `WITH …` of those queries that these words name, themselves or through others, and the statement. Those that write are
/// what they returned. `before`: how many of WITH stand before it.
fn statement_of(
    text: &str,
    parts: &WithQueries,
    before: usize,
    words: &[String],
    returned: &[(String, String)],
    body: &str,
) -> String {
    let queries = &parts.queries[..before];
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
    // What stands for a table comes before all that may name it.
    let tables = returned
        .iter()
        .filter(|(name, _)| !queries.iter().any(|q| q.name == *name));
    let tables = tables
        .filter(|(name, _)| wanted.contains(name.as_str()))
        .map(|(_, entry)| entry.clone());
    let entries: Vec<_> = tables.chain(entries).collect();
    match entries.is_empty() {
        true => body.to_owned(),
        false => {
            let recursive = if parts.recursive { "RECURSIVE " } else { "" };
            format!("WITH {recursive}{} {body}", entries.join(", "))
        }
    }
}

/// Whether a function is called that may read or write tables.
fn calls_home_function(snapshot: &pgherd_model::Snapshot, text: &str, statement: &Statement) -> bool {
    let called = pgherd_sql::locks::names_called(text, &statement.parsed.tokens);
    called.is_none_or(|names| names.iter().any(|name| snapshot.home_functions.contains(name)))
}

pub(super) fn not_in_parts(detail: &str) -> ServerError {
    ServerError::unsupported(
        "this WITH that writes needs more than one shard",
        "Run its statements one after another in a transaction.",
    )
    .with_detail(detail)
}
