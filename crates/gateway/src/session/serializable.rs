//! SERIALIZABLE over shards: strict two-phase locking (designs/0013-serializable.md). Before a statement runs, what it reads
//! is locked on all its shards, and stays locked to the end of the transaction. The statement's own snapshot is taken
//! afterwards, so it shows the newest state, whole. What cannot be locked, because nobody sees what is read, is refused.
//!
//! A deadlock is how two such transactions find that they cannot both come first: it is told as 40001.

use super::block::Open;
use super::enter::Entered;
use super::forward::no_block;
use super::{Problem, Session, Unit};
use pgherd_model::{Name, ServerError, ShardId, Snapshot, SqlState, Table, quote_literal};
use pgherd_shards::ColumnDescription;
use pgherd_sql::locks::names_called;
use pgherd_sql::{Kind, Locks, ParameterValue, Route, ShardLocks};
use pgherd_transaction::{Isolation, Mode};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What stands for operators, casts and domains, which are used without being named.
const UNNAMED: &str = "operators, casts and domains";
/// What `pgherd.expect_schema_version` raises.
const SCHEMA_VERSION_DIFFERS: &str = "PGH02";

/// What a transaction has locked.
#[derive(Default)]
pub(crate) struct Strict {
    /// relations by their names, with how many savepoints were open when each was locked
    held: HashMap<(ShardId, String), usize>,
    /// what was looked at for what it would read by itself: relations written, and names called
    checked: HashSet<(ShardId, String)>,
    /// the schema's version on each shard in which that, and what is read, was looked at
    versions: HashMap<ShardId, i64>,
    /// it changes the schema itself, at whatever level: from then on its versions are nobody else's
    pub(crate) changes_schema: bool,
    /// how many savepoints were open when a statement last learnt, by failing or not, whether a row was there
    learnt: Option<usize>,
    /// a statement has run
    ran: bool,
    /// ROLLBACK TO has given up locks of what was read: no other may be taken
    released: bool,
}

impl Strict {
    /// ROLLBACK TO a savepoint; `depth` are those that are open afterwards, itself included.
    pub(crate) fn roll_back_to(&mut self, depth: usize) {
        let before = self.held.len();
        self.held.retain(|_, locked_at| *locked_at < depth);
        self.released |= self.held.len() < before || self.learnt.is_some_and(|at| at >= depth);
        self.learnt = self.learnt.filter(|at| *at < depth);
    }

    /// RELEASE: `depth` savepoints are left, and the locks of the others are theirs now.
    pub(crate) fn release(&mut self, depth: usize) {
        self.held
            .values_mut()
            .for_each(|locked_at| *locked_at = (*locked_at).min(depth));
        self.learnt = self.learnt.map(|at| at.min(depth));
    }

    /// What of a shard's locks is not held, and not looked at.
    fn missing(&self, shard: ShardId, wanted: &ShardLocks, calls: &[String]) -> Missing {
        let is_new = |name: &&String| !self.checked.contains(&(shard, (*name).clone()));
        Missing {
            reads: (wanted.reads.iter())
                .filter(|name| !self.held.contains_key(&(shard, (*name).clone())))
                .cloned()
                .collect(),
            writes: wanted.writes.iter().filter(is_new).cloned().collect(),
            calls: calls.iter().filter(is_new).cloned().collect(),
            unnamed: false,
        }
    }

    /// Whether a row is locked, alone or with its table.
    pub(crate) fn holds_row(&self, shard: ShardId, row: &str, table: &Table) -> bool {
        let held = |name: String| self.held.contains_key(&(shard, name));
        let mut ranges = table.sharded().into_iter().flat_map(|s| s.ranges.ranges());
        held(row.to_owned()) || (!self.held.is_empty() && ranges.all(|r| r.shard != shard || held(r.child.to_string())))
    }

    /// Notes that a row is locked.
    pub(crate) fn note_row(&mut self, shard: ShardId, row: String, depth: usize) {
        self.ran = true;
        self.held.entry((shard, row)).or_insert(depth);
    }

    /// What a statement that locks its row by itself has to be looked at for: `written`, and what is used without a name.
    fn missing_behind(&self, shard: ShardId, written: Vec<String>) -> Missing {
        let is_new = |name: &String| !self.checked.contains(&(shard, name.clone()));
        Missing {
            reads: Vec::new(),
            writes: written.into_iter().filter(is_new).collect(),
            calls: Vec::new(),
            unnamed: is_new(&UNNAMED.to_owned()),
        }
    }

    /// Which version each shard's schema must still have when the transaction ends, as statements that fail where it does not.
    pub(crate) fn requirements(&self) -> impl Iterator<Item = (ShardId, String)> {
        let expect = |version: &i64| format!("SELECT pgherd.expect_schema_version({version})");
        self.versions
            .iter()
            .map(move |(shard, version)| (*shard, expect(version)))
    }

    /// What it was looked at in has this version. 40001 where it was another one before.
    fn note_version(&mut self, shard: ShardId, version: i64) -> Result<(), ServerError> {
        if self.changes_schema {
            return Ok(());
        }
        match self.versions.insert(shard, version) {
            Some(before) if before != version => Err(schema_changed()),
            _ => Ok(()),
        }
    }

    /// 0A000 where no lock may be taken any more.
    pub(crate) fn refuse_if_released(&self) -> Result<(), ServerError> {
        match self.released {
            true => Err(released()),
            false => Ok(()),
        }
    }

    fn note(&mut self, shard: ShardId, done: Missing, depth: usize) {
        self.held
            .extend(done.reads.into_iter().map(|name| ((shard, name), depth)));
        let unnamed = Some(UNNAMED.to_owned());
        let looked_at = done.writes.into_iter().chain(done.calls).chain(unnamed);
        self.checked.extend(looked_at.map(|name| (shard, name)));
    }
}

/// What one shard is to be asked for.
struct Missing {
    reads: Vec<String>,
    writes: Vec<String>,
    calls: Vec<String>,
    /// what is used without being named; looked at with everything else
    unnamed: bool,
}

impl Missing {
    fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.writes.is_empty() && self.calls.is_empty() && !self.unnamed
    }

    /// Under which names [`Judged`](crate::judged::Judged) keeps that nothing reads behind these; `path` stands for what a name
    /// without a schema means.
    fn names(&self, path: &str) -> Vec<String> {
        let with_path = |kind: char, name: &String| match name.contains('.') {
            true => format!("{kind} {name}"),
            false => format!("{kind} {name} {path}"),
        };
        let reads = self.reads.iter().map(|name| with_path('r', name));
        let writes = self.writes.iter().map(|name| with_path('w', name));
        let calls = self.calls.iter().map(|name| format!("c {name}"));
        let unnamed = std::iter::once(UNNAMED.to_owned());
        reads.chain(writes).chain(calls).chain(unnamed).collect()
    }

    fn sql(&self, read_only: bool, judged: bool) -> String {
        let list = |items: &[String], type_name: &str| {
            let items: Vec<_> = items
                .iter()
                .map(|i| format!("{}::pg_catalog.{type_name}", quote_literal(i)))
                .collect();
            format!("ARRAY[{}]::pg_catalog.{type_name}[]", items.join(", "))
        };
        format!(
            "SELECT pgherd.lock_reads({}, {}, {}, {read_only}, {judged})",
            list(&self.reads, "regclass"),
            list(&self.writes, "regclass"),
            list(&self.calls, "text"),
        )
    }
}

/// How a level is kept in a database: SERIALIZABLE by PostgreSQL itself until the first table is sharded, then by locks.
pub(crate) fn level_for(level: Isolation, catalog: &Snapshot) -> Isolation {
    match level {
        Isolation::Serializable if catalog.ever_sharded => Isolation::StrictLocking,
        Isolation::StrictLocking if !catalog.ever_sharded => Isolation::Serializable,
        level => level,
    }
}

/// What was looked at in a shard's catalogs may not be so any more.
fn schema_changed() -> ServerError {
    ServerError::new(
        SqlState::SERIALIZATION_FAILURE,
        "could not serialize access due to a concurrent change of the schema",
    )
    .with_hint("The transaction might succeed if retried.")
}

/// A deadlock, in PostgreSQL's words for transactions that cannot both be.
fn in_serialization_words(error: ServerError) -> ServerError {
    if error.sqlstate() != SqlState::DEADLOCK_DETECTED {
        return error;
    }
    let detail = error.fields().detail.clone().unwrap_or_default();
    ServerError::new(
        SqlState::SERIALIZATION_FAILURE,
        "could not serialize access due to read/write dependencies among transactions",
    )
    .with_detail(format!("Transactions waited for each other's locks: {detail}"))
    .with_hint("The transaction might succeed if retried.")
}

pub(crate) fn unseen(detail: &str) -> ServerError {
    ServerError::unsupported(
        "this statement may read what it does not name, which is not supported at isolation level SERIALIZABLE over sharded tables",
        "Use REPEATABLE READ, or write what is read into the statement.",
    )
    .with_detail(detail)
}

impl Session {
    /// Whether the block's reads take locks.
    pub(crate) fn is_strict(&self) -> bool {
        self.block.open().is_some_and(|open| open.transaction.is_strict())
    }

    /// Whether the reads of a statement that came now would take locks, in the block or by itself.
    pub(crate) fn will_be_strict(&self) -> bool {
        let by_default = self.settings.default_isolation == Some(Isolation::Serializable);
        self.is_strict() || (self.block.is_none() && by_default && self.catalog().snapshot().ever_sharded)
    }

    /// An error of a strict block, in the words that SERIALIZABLE has for it.
    pub(crate) fn told_of_strict(&self, error: ServerError) -> ServerError {
        if error.sqlstate().code() == SCHEMA_VERSION_DIFFERS {
            self.database.judged.forget();
            return schema_changed();
        }
        in_serialization_words(error)
    }

    /// Before the block changes the schema. What was looked at until now must still be so; what comes is looked at each time.
    pub(crate) fn note_own_change(&mut self) {
        let Some(open) = self.block.open_mut() else { return };
        let noted = std::mem::replace(&mut open.strict.changes_schema, true);
        if noted || !open.transaction.is_strict() {
            return;
        }
        for (shard, sql) in open.strict.requirements() {
            open.transaction.require(shard, &sql);
        }
        open.strict.versions.clear();
        open.strict.checked.clear();
    }

    /// Whether the block is at PostgreSQL's own SERIALIZABLE.
    pub(crate) fn has_own_serializable(&self) -> bool {
        let level = self.block.open().and_then(|open| open.transaction.mode().isolation);
        level == Some(Isolation::Serializable)
    }

    /// The same, or a statement by itself where that is the default.
    pub(crate) fn is_at_own_serializable(&self) -> bool {
        self.has_own_serializable()
            || (self.block.is_none() && self.settings.default_isolation == Some(Isolation::Serializable))
    }

    /// Whether a statement that fails now can be run again: nothing came before it in its transaction.
    pub(crate) fn is_alone(&self) -> bool {
        self.block.open().is_none_or(|open| open.for_one_statement)
    }

    /// A statement by itself: where its reads take locks it needs a block, to hold them until it has ended.
    pub(crate) fn begin_strict_for_one(&mut self, catalog: &Snapshot) {
        if self.settings.default_isolation == Some(Isolation::Serializable) && catalog.ever_sharded {
            self.begin_for_one();
        }
    }

    /// A block for one statement, where none is open: it has more than one step.
    fn begin_for_one(&mut self) {
        if self.ensure_block()
            && let Some(open) = self.block.open_mut()
        {
            open.for_one_statement = true;
        }
    }

    /// The same, with the home shard in it.
    pub(crate) async fn begin_for_one_at_home(&mut self) -> Result<(), Problem> {
        self.begin_for_one();
        let home = self.gateway.shards.home();
        if let Some(open) = self.block.open_mut() {
            open.transaction.participant(home).await?;
        }
        Ok(())
    }

    /// A statement that came by itself has ended, and its block is still there: it has failed, or has come to no shard.
    pub(crate) async fn end_block_for_one<T>(&mut self, result: Result<T, Problem>) -> Result<T, Problem> {
        if self.block.open().is_some_and(|open| open.for_one_statement) {
            match &result {
                Ok(_) => drop(self.commit_block().await?),
                Err(_) => self.rollback_block().await?,
            }
        }
        result
    }

    /// Before a routed statement runs.
    pub(crate) async fn lock_reads(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        values: &[ParameterValue<'_>],
        route: &Route,
    ) -> Result<(), Problem> {
        if !self.is_strict() || matches!(route, Route::Refuse(_)) {
            return Ok(());
        }
        self.refuse_write_in_read_only(unit, entered)?;
        let locks = match &unit.statement.parsed.kind {
            Kind::Select { .. } | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge => {
                let on = match route {
                    Route::Forward(part) => Some(part.shard),
                    Route::Scatter { parts, .. } => parts.first().map(|part| part.shard),
                    _ => None,
                };
                match entered.analysis.locks(&entered.snapshot, values, on) {
                    // Elsewhere it has been rewritten.
                    Some(_) if unit.statement.shows_settings && entered.analysis.with_level().is_some() => {
                        return Err(ServerError::unsupported(
                            "current_setting and pg_settings are not supported here at isolation level SERIALIZABLE over sharded tables",
                            "Ask for the setting in a SELECT of its own.",
                        )
                        .into());
                    }
                    Some(locks) => locks,
                    None => {
                        // What PostgreSQL says comes first.
                        self.description(unit, &entered.snapshot).await?;
                        return Err(unseen("Its grammar is known to PostgreSQL only.").into());
                    }
                }
            }
            Kind::Call | Kind::Do => return Err(unseen("What a procedure or a DO block reads is not seen.").into()),
            Kind::Other => {
                self.check_syntax(&unit.statement.text).await?;
                return Err(unseen("Its grammar is known to PostgreSQL only.").into());
            }
            _ => Locks::default(),
        };
        // Whether it fails tells what was there: of an INSERT's key, and of the rows that foreign keys look for.
        let is_linked = |table: &Arc<Table>| table.sharded().is_some_and(|s| s.is_linked);
        let learns = match &unit.statement.parsed.kind {
            Kind::Insert => true,
            Kind::Update | Kind::Delete | Kind::Merge => entered.analysis.sharded.iter().any(is_linked),
            _ => false,
        };
        if learns {
            self.note_learnt();
        }
        self.take(locks, &entered.snapshot)
            .await
            .map_err(|problem| match problem {
                Problem::Error(error) => {
                    let error = entered.analysis.missing_relation(error);
                    let in_pattern = error.fields().position;
                    let position = in_pattern.map(|at| unit.template.map_or(at, |template| template.position(at)));
                    error.with_position(position).into()
                }
                other => other,
            })
    }

    /// A statement that comes now tells what is there by whether it fails.
    pub(super) fn note_learnt(&mut self) {
        if let Some(open) = self.block.open_mut() {
            open.strict.learnt = Some(open.depth());
        }
    }

    /// 25006 before PostgreSQL would say it, since a write would wait for other readers first.
    pub(super) fn refuse_write_in_read_only(&self, unit: Unit<'_>, entered: &Entered) -> Result<(), ServerError> {
        let read_only = |open: &Open| open.transaction.mode().read_only == Some(true);
        let word = match &unit.statement.parsed.kind {
            Kind::Insert => "INSERT",
            Kind::Update => "UPDATE",
            Kind::Delete => "DELETE",
            Kind::Merge => "MERGE",
            _ => return Ok(()),
        };
        // Temporary tables may be written.
        let temporary = |name: &str| self.temporary.contains(name);
        if !self.block.open().is_some_and(read_only) || entered.analysis.writes_only(&temporary) {
            return Ok(());
        }
        let message = format!("cannot execute {word} in a read-only transaction");
        Err(ServerError::new(SqlState::from_code("25006"), message))
    }

    /// Before a statement runs within another one, such as the query of a COPY.
    pub(crate) async fn lock_inner(&mut self, outer: Unit<'_>, text: &str) -> Result<(), Problem> {
        if !self.is_strict() {
            return Ok(());
        }
        let statements = self.database.cache.parse(text)?;
        let [statement] = &statements[..] else {
            return Err(unseen("Its grammar is known to PostgreSQL only.").into());
        };
        let unit = Unit { statement, ..outer };
        let entered = self.enter(unit).await?;
        let values = unit.values(unit.types);
        let route = entered.analysis.route(&entered.snapshot, &values);
        self.lock_reads(unit, &entered, &values, &route).await
    }

    /// Takes locks, in the order of shards, and makes a READ ONLY transaction READ ONLY.
    pub(crate) async fn take(&mut self, mut locks: Locks, snapshot: &Snapshot) -> Result<(), Problem> {
        let home = self.gateway.shards.home();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        open.transaction.allow_writes().await?;
        if !locks.by_shard.is_empty() {
            open.strict.refuse_if_released()?;
        }
        if locks.by_shard.is_empty() && !locks.calls.is_empty() {
            locks.by_shard.entry(home).or_default();
        }
        if !locks.views.is_empty() {
            // What a view is stays so from here on.
            let own = locks.by_shard.get(&home).cloned().unwrap_or_default();
            self.take_on(home, &own, &locks.calls).await?;
            for view in std::mem::take(&mut locks.views) {
                self.read_through_view(&view, &mut locks, snapshot).await?;
            }
        }
        let calls = std::mem::take(&mut locks.calls);
        for (i, (shard, wanted)) in locks.by_shard.iter().enumerate() {
            self.take_on(*shard, wanted, if i == 0 { &calls } else { &[] }).await?;
        }
        let open = self.block.open_mut().ok_or_else(no_block)?;
        open.strict.ran = true;
        if open.transaction.mode().read_only == Some(true) {
            open.transaction.forbid_writes().await?;
        }
        Ok(())
    }

    async fn take_on(&mut self, shard: ShardId, wanted: &ShardLocks, calls: &[String]) -> Result<(), Problem> {
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let missing = open.strict.missing(shard, wanted, calls);
        self.take_missing(shard, &wanted.fences, missing).await
    }

    /// Before a statement that locks its row by itself; `written` is what it writes.
    pub(super) async fn look_behind(&mut self, shard: ShardId, written: Option<&Table>) -> Result<(), Problem> {
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let acted_on = written.and_then(|table| table.sharded()).map(|s| &s.acts_on[..]);
        let own = written.map(|table| table.name.to_string());
        let written = acted_on.unwrap_or_default().iter().map(Name::to_string).chain(own);
        let missing = (open.strict).missing_behind(shard, written.collect());
        self.take_missing(shard, &BTreeSet::new(), missing).await
    }

    async fn take_missing(
        &mut self,
        shard: ShardId,
        fences: &BTreeSet<Arc<str>>,
        missing: Missing,
    ) -> Result<(), Problem> {
        if missing.is_empty() {
            return Ok(());
        }
        let names = self.names_to_judge(&missing);
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let judged = &self.database.judged;
        let known = names.as_ref().and_then(|names| judged.version(shard, names));
        let known = known.filter(|known| open.strict.versions.get(&shard).is_none_or(|version| version == known));
        let depth = open.depth();
        if let Some(version) = known.filter(|_| missing.reads.is_empty()) {
            open.transaction.participant(shard).await?;
            open.strict.note_version(shard, version)?;
            open.strict.note(shard, missing, depth);
            return Ok(());
        }
        let read_only = open.transaction.mode().read_only == Some(true);
        let backend = open.transaction.participant(shard).await?;
        for fence in fences {
            backend.queue_silent(&format!("LOCK TABLE {fence} IN ACCESS SHARE MODE"));
        }
        self.cancel.slot.start(backend.cancel_token());
        let locked = backend.simple(&missing.sql(read_only, known.is_some())).await;
        self.cancel.slot.clear();
        let results = match locked.map_err(ServerError::from) {
            Ok(results) => results,
            Err(error) if super::execute::names_missing_child(&error) => return Err(error.into()),
            Err(mut error) => {
                error.fields_mut().other.retain(|(letter, _)| *letter != b'W');
                return Err(self.as_client_sees(error.with_position(None)).into());
            }
        };
        let found = results.first().and_then(|result| result.text(0, 0)?.parse().ok());
        let version = known
            .or(found)
            .ok_or_else(|| ServerError::internal("no version of a shard's schema"))?;
        open.strict.note_version(shard, version)?;
        if let (None, Some(names), false) = (known, names, open.strict.changes_schema) {
            self.database.judged.note(shard, version, names);
        }
        open.strict.note(shard, missing, depth);
        Ok(())
    }

    /// The names under which it is kept what was found of these. None where that is of this session alone: its temporary
    /// tables hide others, and it sees its own changes of the schema.
    fn names_to_judge(&self, missing: &Missing) -> Option<Vec<String>> {
        let changes_schema = self.block.open().is_none_or(|open| open.strict.changes_schema);
        let mut relations = missing.reads.iter().chain(&missing.writes);
        if changes_schema || (!self.temporary.is_empty() && relations.any(|name| !name.contains('.'))) {
            return None;
        }
        let path = format!("{} {}", self.who.role, self.settings.fingerprint());
        Some(missing.names(&path))
    }

    /// The sharded tables that a view reads, at any depth.
    async fn read_through_view(&mut self, view: &Name, locks: &mut Locks, snapshot: &Snapshot) -> Result<(), Problem> {
        let sql = format!(
            "SELECT n.nspname, c.relname FROM pgherd.read_through({}::pg_catalog.regclass, 0) AS r \
             JOIN pg_catalog.pg_class c ON c.oid = r.relation_read JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace",
            quote_literal(&view.to_string())
        );
        let home = self.gateway.shards.home();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let results = open.transaction.participant(home).await?.simple(&sql).await?;
        let result = results
            .first()
            .ok_or_else(|| ServerError::internal("no tables of a view"))?;
        for row in 0..result.rows.len() {
            let (schema, name) = (
                result.text(row, 0).unwrap_or_default(),
                result.text(row, 1).unwrap_or_default(),
            );
            if let Some(table) = snapshot.table(&Name::new(schema, name)) {
                locks.read_ranges(table, None, home);
            }
        }
        Ok(())
    }

    /// Before a text that no analysis has seen runs on the home shard: it must call nothing that may read.
    pub(crate) async fn check_calls(&mut self, text: &str) -> Result<(), Problem> {
        if !self.is_strict() {
            return Ok(());
        }
        let tokens = pgherd_sql::lexer::tokenize(text).ok();
        let calls = tokens.and_then(|tokens| names_called(text, &tokens));
        let calls = calls.ok_or_else(|| unseen("It has names that are not understood."))?;
        let home = self.gateway.shards.home();
        self.take_on(home, &ShardLocks::default(), &calls).await
    }

    /// SHOW of the level that the client asked for, alone or among all settings. Else false.
    pub(crate) async fn show_level(&mut self, unit: Unit<'_>) -> Result<bool, Problem> {
        const NAME: &str = "transaction_isolation";
        const LEVEL: &[u8] = b"serializable";
        let Kind::Show { name } = &unit.statement.parsed.kind else {
            return Ok(false);
        };
        if name.as_ref().is_some_and(|name| name != NAME) || !self.will_be_strict() {
            return Ok(false);
        }
        if name.is_some() {
            self.put_shown(unit, &[NAME], &[vec![Some(bytes::Bytes::from_static(LEVEL))]]);
            return Ok(true);
        }
        let all = self.ask_home("SHOW ALL").await?.into_iter().next();
        let mut rows = all.map_or_else(Vec::new, |result| result.rows);
        for row in &mut rows {
            if let [Some(name), setting, ..] = &mut row[..]
                && *name == *NAME
            {
                *setting = Some(bytes::Bytes::from_static(LEVEL));
            }
        }
        self.put_shown(unit, &["name", "setting", "description"], &rows);
        Ok(true)
    }

    /// The answer to a SHOW: columns of text.
    pub(crate) fn put_shown(&mut self, unit: Unit<'_>, names: &[&str], rows: &[Vec<Option<bytes::Bytes>>]) {
        if unit.mode.describes() {
            let text = |name: &&str| ColumnDescription {
                name: (*name).into(),
                table_oid: 0,
                column_number: 0,
                type_oid: 25,
                type_size: -1,
                type_modifier: -1,
                format: 0,
            };
            let columns: Vec<_> = names.iter().map(text).collect();
            self.client.put_row_description(&columns, unit.mode.formats());
        }
        for row in rows {
            let values: Vec<Option<&[u8]>> = row.iter().map(Option::as_deref).collect();
            self.client.put_row(&values);
        }
        self.client.put_tag("SHOW");
    }

    /// What of a change of mode the participants are to be asked for, so that PostgreSQL can judge it; `level` is the level
    /// that was asked for, as it is kept here.
    pub(crate) fn mode_to_ask_for(&self, wanted: &Mode, level: Option<Isolation>) -> Result<Mode, ServerError> {
        let mut asked = wanted.clone();
        let Some(open) = self.block.open() else {
            return Ok(asked);
        };
        let now = open.transaction.mode();
        let refused = |message: &str| Err(ServerError::new(SqlState::ACTIVE_TRANSACTION, message));
        let too_late = |what: &str| refused(&format!("{what} before any query"));
        if level.is_some() && level == now.isolation {
            asked.isolation = None;
        }
        // A shard that joins later begins its block with the mode, in front of the savepoints.
        if open.transaction.has_untold_savepoints() {
            if level.is_some_and(|level| level != now.isolation.unwrap_or(Isolation::ReadCommitted)) {
                return refused("SET TRANSACTION ISOLATION LEVEL must not be called in a subtransaction");
            }
            if asked.deferrable.is_some() {
                return refused("SET TRANSACTION [NOT] DEFERRABLE cannot be called within a subtransaction");
            }
        }
        if open.transaction.is_strict() {
            if open.strict.ran && asked.isolation.is_some() {
                return too_late("SET TRANSACTION ISOLATION LEVEL must be called");
            }
            if open.strict.ran && now.read_only == Some(true) && wanted.read_only == Some(false) {
                return too_late("transaction read-write mode must be set");
            }
        }
        if level.or(now.isolation) == Some(Isolation::StrictLocking) {
            asked.read_only = None;
        }
        Ok(asked)
    }
}

/// The lock of what was read before a savepoint was rolled back to is gone: nothing more may be locked (two phases).
fn released() -> ServerError {
    ServerError::unsupported(
        "a SERIALIZABLE transaction over sharded tables cannot go on after ROLLBACK TO SAVEPOINT gave up locks of what it had read",
        "Roll back the whole transaction and repeat it, or read before the savepoint; COMMIT keeps what was done before.",
    )
}
