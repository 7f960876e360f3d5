//! Transaction blocks: BEGIN, COMMIT, ROLLBACK, savepoints, and the implicit blocks of several statements in one
//! message.

use super::forward::no_block;
use super::locked_cursor::LockedCursor;
use super::serializable::{Strict, level_for};
use super::settings::Settings;
use super::{Problem, Session, Unit};
use pgherd_catalog::{Change, ChangeId};
use pgherd_model::{ServerError, ShardId, Snapshot, SqlState};
use pgherd_sql::Kind;
use pgherd_transaction::{Isolation, Mode, Transaction};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The session's transaction block.
#[derive(Default)]
pub(crate) enum Block {
    /// none
    #[default]
    None,
    /// open
    Open(Box<Open>),
    /// a statement failed; only its end or a savepoint gets out of it
    Failed(Box<Open>),
}

/// How a block ends that is not rolled back.
#[derive(Clone, Copy)]
pub(crate) enum Ending<'a> {
    /// COMMIT
    Commit,
    /// PREPARE TRANSACTION, under this name
    Prepare(&'a str),
}

/// An open block.
pub(crate) struct Open {
    pub(crate) transaction: Transaction,
    /// begun by the gateway for several statements of one message
    pub(crate) implicit: bool,
    /// hashes of the relation names that its statements touched: it holds locks on them
    pub(crate) touched: HashSet<u64>,
    /// the schema change it makes
    pub(crate) change: Option<Change>,
    /// the catalog as this transaction sees it, after its own schema change
    pub(crate) overlay: Option<Arc<Snapshot>>,
    /// the settings to go back to: at the block's start, and at each savepoint
    settings_before: Settings,
    savepoints: Vec<(String, Settings)>,
    /// SET LOCAL was used: what routing knows of the settings ends with the block
    pub(crate) has_local_settings: bool,
    /// the schema changes with its end
    pub(crate) has_changed_schema: bool,
    /// LOCK TABLE was said in it, or was needed for what it does
    pub(crate) has_locked_tables: bool,
    /// at levels of one snapshot: the catalog when that snapshot was taken, or before
    pub(crate) first_catalog: Option<Arc<Snapshot>>,
    /// where each cursor of SQL is open
    pub(crate) cursors: HashMap<String, PlacedCursor>,
    /// those of them whose rows are of several ranges, and locked
    pub(crate) locked_cursors: HashMap<String, LockedCursor>,
    /// cursors over several ranges
    pub(crate) gathered_cursors: HashMap<String, GatheredCursor>,
    /// begun for one statement, and ends with it
    pub(crate) for_one_statement: bool,
    /// at SERIALIZABLE over shards: what is locked
    pub(crate) strict: Strict,
}

impl Block {
    /// ReadyForQuery's letter.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Block::None => b'I',
            Block::Open(_) => b'T',
            Block::Failed(_) => b'E',
        }
    }

    /// The block if there is one, failed or not.
    pub(crate) fn open_mut(&mut self) -> Option<&mut Open> {
        match self {
            Block::None => None,
            Block::Open(open) | Block::Failed(open) => Some(open),
        }
    }

    /// The block if there is one, failed or not.
    pub(crate) fn open(&self) -> Option<&Open> {
        match self {
            Block::None => None,
            Block::Open(open) | Block::Failed(open) => Some(open),
        }
    }

    pub(crate) fn is_failed(&self) -> bool {
        matches!(self, Block::Failed(_))
    }

    /// 25P02 in a failed block.
    pub(crate) fn check_not_failed(&self) -> Result<(), ServerError> {
        if self.is_failed() {
            return Err(ServerError::new(
                SqlState::IN_FAILED_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
            ));
        }
        Ok(())
    }

    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Block::None)
    }

    /// A statement failed.
    pub(crate) fn fail(&mut self) {
        *self = match std::mem::take(self) {
            Block::Open(open) => Block::Failed(open),
            other => other,
        };
    }

    fn recover(&mut self) {
        *self = match std::mem::take(self) {
            Block::Failed(open) => Block::Open(open),
            other => other,
        };
    }

    /// Ends it, whoever takes the transaction.
    pub(crate) fn take(&mut self) -> Option<Box<Open>> {
        match std::mem::take(self) {
            Block::None => None,
            Block::Open(open) | Block::Failed(open) => Some(open),
        }
    }
}

/// A cursor over several ranges.
pub(crate) struct GatheredCursor {
    pub(crate) cursor: pgherd_query::OpenCursor,
    /// what the home shard says of its rows, which are copies here
    pub(crate) description: Arc<pgherd_query::Description>,
    /// how many savepoints were open when it was declared: it goes with the innermost of them
    depth: usize,
    /// WITH HOLD
    hold: bool,
    /// the sharded tables that it reads, which nothing may change under it until its transaction ends
    reads: Vec<pgherd_model::Name>,
}

/// A cursor on a participant.
#[derive(Clone, Copy)]
pub(crate) struct PlacedCursor {
    pub(crate) shard: ShardId,
    /// how many savepoints were open when it was declared, as above
    depth: usize,
}

impl Open {
    /// Notes that a cursor is open on a participant.
    pub(crate) fn place_cursor(&mut self, name: &str, shard: ShardId) {
        let depth = self.savepoints.len();
        self.cursors.insert(name.to_owned(), PlacedCursor { shard, depth });
    }

    /// The participant that a cursor is on.
    pub(crate) fn place_of_cursor(&self, name: &str) -> Option<ShardId> {
        self.cursors.get(name).map(|cursor| cursor.shard)
    }

    /// Keeps a cursor that was declared now.
    pub(crate) fn keep_cursor(
        &mut self,
        name: &str,
        (mut cursor, description): (pgherd_query::OpenCursor, Arc<pgherd_query::Description>),
        hold: bool,
        reads: Vec<pgherd_model::Name>,
    ) {
        let depth = self.savepoints.len();
        if hold {
            // It outlives the transaction, but not the session.
            cursor.backend().taint();
        }
        self.gathered_cursors.insert(
            name.to_owned(),
            GatheredCursor {
                cursor,
                description,
                depth,
                hold,
                reads,
            },
        );
    }

    /// Whether a cursor that is open here reads the table.
    pub(crate) fn has_cursor_over(&self, table: &pgherd_model::Name) -> bool {
        self.gathered_cursors
            .values()
            .any(|cursor| cursor.reads.contains(table))
    }

    /// How many savepoints are open.
    pub(crate) fn depth(&self) -> usize {
        self.savepoints.len()
    }

    /// The session's settings when the last savepoint was set, or when the block began.
    pub(crate) fn settings_before_last_savepoint(&self) -> &Settings {
        let last = self.savepoints.last().map(|(_, settings)| settings);
        last.unwrap_or(&self.settings_before)
    }

    /// The change this block makes, for the catalog's gate.
    pub(crate) fn change_id(&self) -> Option<ChangeId> {
        self.change.as_ref().map(Change::id)
    }
}

/// A WARNING or NOTICE of the gateway's own.
pub(crate) fn notice(severity: &str, code: SqlState, message: &str) -> ServerError {
    ServerError::new(code, message).with_severity(severity)
}

/// The cursors WITH HOLD of a transaction that is about to commit: PostgreSQL keeps their rows from now on.
async fn hold_cursors(
    cursors: HashMap<String, GatheredCursor>,
    ending: &Ending<'_>,
) -> Result<HashMap<String, GatheredCursor>, ServerError> {
    let mut held: HashMap<_, _> = cursors.into_iter().filter(|(_, cursor)| cursor.hold).collect();
    if let (Ending::Prepare(_), false) = (ending, held.is_empty()) {
        return Err(ServerError::new(
            SqlState::FEATURE_NOT_SUPPORTED,
            "cannot PREPARE a transaction that has created a cursor WITH HOLD",
        ));
    }
    for cursor in held.values_mut() {
        cursor.cursor.backend().simple("COMMIT").await?;
    }
    Ok(held)
}

impl Session {
    fn new_block(&mut self, mut mode: Mode) -> Box<Open> {
        // The shards know the default too, but whoever enlists a second one must.
        mode.isolation = mode.isolation.or(self.settings.default_isolation);
        let implicit = mode.implicit;
        let catalog = self.database.catalog.snapshot();
        mode.isolation = mode.isolation.map(|level| level_for(level, &catalog));
        if mode.isolation == Some(Isolation::StrictLocking) {
            mode.read_only = mode.read_only.or(self.settings.default_read_only.then_some(true));
        }
        let depends_on_catalog = |i: Isolation| i.is_one_snapshot() || i == Isolation::StrictLocking;
        let first_catalog = mode.isolation.is_some_and(depends_on_catalog).then_some(catalog);
        let mut transaction = self.database.coordinator.begin(self.who.clone(), mode);
        let slot = self.cancel.slot.clone();
        transaction.on_join(Arc::new(move |token| slot.add(token)));
        Box::new(Open {
            transaction,
            implicit,
            touched: HashSet::new(),
            change: None,
            overlay: None,
            settings_before: self.settings.clone(),
            savepoints: Vec::new(),
            has_local_settings: false,
            has_changed_schema: false,
            has_locked_tables: false,
            first_catalog,
            cursors: HashMap::new(),
            locked_cursors: HashMap::new(),
            gathered_cursors: HashMap::new(),
            for_one_statement: false,
            strict: Strict::default(),
        })
    }

    /// A statement of several in one message begins: they share a block unless one is open.
    pub(crate) fn begin_implicit(&mut self, kind: &Kind) {
        let control = matches!(kind, Kind::Begin { .. } | Kind::Commit { .. } | Kind::Rollback { .. });
        if self.block.is_none() && !control {
            self.block = Block::Open(self.new_block(Mode {
                implicit: true,
                ..Mode::default()
            }));
        }
    }

    /// The block that a statement over several shards needs, where none is open; true when it was made here, so that
    /// the caller ends it with the statement.
    pub(crate) fn ensure_block(&mut self) -> bool {
        if self.block.is_none() {
            self.block = Block::Open(self.new_block(Mode {
                implicit: true,
                ..Mode::default()
            }));
            return true;
        }
        false
    }

    /// In the middle of a statement that has a block of its own: ends that, and opens another one. With `chain`, that has the same
    /// characteristics.
    pub(crate) async fn end_and_begin(&mut self, commits: bool, chain: bool) -> Result<(), Problem> {
        let mode = self.block.open().map(|open| open.transaction.mode().clone());
        match commits {
            true => self.commit_block().await.map(drop)?,
            false => self.rollback_block().await?,
        }
        let mode = mode.filter(|_| chain).unwrap_or_else(|| Mode {
            implicit: true,
            ..Mode::default()
        });
        let mut open = self.new_block(mode);
        // Who began the first one ends the last one.
        open.implicit = false;
        self.block = Block::Open(open);
        Ok(())
    }

    /// A block of its own for a statement that needs one snapshot for all its parts, whatever the session has.
    pub(crate) fn begin_in_one_snapshot(&mut self) {
        self.block = Block::Open(self.new_block(Mode {
            implicit: true,
            isolation: Some(pgherd_transaction::Isolation::RepeatableRead),
            ..Mode::default()
        }));
    }

    /// Commits an implicit block, or rolls it back when a statement failed.
    pub(crate) async fn end_implicit(&mut self) -> Result<(), Problem> {
        match &self.block {
            Block::Open(open) if open.implicit => self.commit_block().await.map(|_| ()),
            Block::Failed(open) if open.implicit => self.rollback_block().await,
            _ => Ok(()),
        }
    }

    /// Transaction control. `Ok(false)`: not a statement of that kind.
    pub(crate) async fn control(&mut self, kind: &Kind, unit: Unit<'_>) -> Result<bool, Problem> {
        match kind {
            Kind::Begin {
                isolation,
                read_only,
                deferrable,
            } => {
                let mode = Mode {
                    isolation: isolation.map(isolation_of),
                    read_only: *read_only,
                    deferrable: *deferrable,
                    implicit: false,
                };
                self.begin(mode).await?;
                let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
                let starts = tokens.first().is_some_and(|word| word.is_word(text, "start"));
                self.client.put_tag(if starts { "START TRANSACTION" } else { "BEGIN" });
            }
            Kind::Commit { chain } => self.commit(*chain).await?,
            Kind::Rollback { chain } => self.rollback(*chain).await?,
            Kind::Savepoint(name) => {
                self.check_not_failed()?;
                self.explicit_block("SAVEPOINT")?;
                self.set_savepoint(name).await?;
                self.client.put_tag("SAVEPOINT");
            }
            Kind::RollbackTo(name) => {
                self.explicit_block("ROLLBACK TO SAVEPOINT")?;
                self.back_to_savepoint(name).await?;
                self.client.put_tag("ROLLBACK");
            }
            Kind::Release(name) => {
                self.check_not_failed()?;
                self.explicit_block("RELEASE SAVEPOINT")?;
                self.release_savepoint(name).await?;
                self.client.put_tag("RELEASE");
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// SAVEPOINT in the open block.
    pub(super) async fn set_savepoint(&mut self, name: &str) -> Result<(), Problem> {
        let settings = self.settings.clone();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        open.transaction.savepoint(name).await?;
        open.savepoints.push((name.to_owned(), settings));
        Ok(())
    }

    /// ROLLBACK TO in the block, which goes on if it had failed.
    pub(super) async fn back_to_savepoint(&mut self, name: &str) -> Result<(), Problem> {
        let open = self.block.open_mut().ok_or_else(no_block)?;
        open.transaction.rollback_to(name).await?;
        if let Some(at) = open.savepoints.iter().rposition(|(n, _)| n == name) {
            open.savepoints.truncate(at + 1);
            open.gathered_cursors.retain(|_, cursor| cursor.depth <= at);
            open.cursors.retain(|_, cursor| cursor.depth <= at);
            open.locked_cursors.retain(|name, _| open.cursors.contains_key(name));
            open.strict.roll_back_to(at + 1);
            let settings = open.savepoints[at].1.clone();
            self.restore_settings(settings);
        }
        self.block.recover();
        self.settle().await;
        self.reload_overlay().await
    }

    /// RELEASE in the open block.
    pub(super) async fn release_savepoint(&mut self, name: &str) -> Result<(), Problem> {
        let open = self.block.open_mut().ok_or_else(no_block)?;
        open.transaction.release(name).await?;
        if let Some(at) = open.savepoints.iter().rposition(|(n, _)| n == name) {
            open.savepoints.truncate(at);
            let gathered = open.gathered_cursors.values_mut().map(|cursor| &mut cursor.depth);
            let placed = open.cursors.values_mut().map(|cursor| &mut cursor.depth);
            gathered.chain(placed).for_each(|depth| *depth = at.min(*depth));
            open.strict.release(at);
        }
        Ok(())
    }

    /// 25P02 in a failed block.
    pub(crate) fn check_not_failed(&self) -> Result<(), ServerError> {
        self.block.check_not_failed()
    }

    fn explicit_block(&mut self, what: &str) -> Result<&mut Open, ServerError> {
        self.block.open_mut().filter(|open| !open.implicit).ok_or_else(|| {
            ServerError::new(
                SqlState::NO_ACTIVE_TRANSACTION,
                format!("{what} can only be used in transaction blocks"),
            )
        })
    }

    async fn begin(&mut self, mode: Mode) -> Result<(), Problem> {
        self.check_not_failed()?;
        match self.block.open_mut() {
            None => self.block = Block::Open(self.new_block(mode)),
            // BEGIN amid several statements makes their block explicit; what they did stays in it.
            Some(open) if open.implicit => {
                open.implicit = false;
                self.change_mode(&mode).await?;
            }
            Some(_) => {
                let warning = notice(
                    "WARNING",
                    SqlState::ACTIVE_TRANSACTION,
                    "there is already a transaction in progress",
                );
                self.put_notice(&warning);
                // What it says of the mode holds for the block that is open.
                if mode.isolation.is_some() || mode.read_only.is_some() || mode.deferrable.is_some() {
                    self.change_mode(&mode).await?;
                }
            }
        }
        Ok(())
    }

    async fn commit(&mut self, chain: bool) -> Result<(), Problem> {
        let Some(open) = self.block.open().filter(|o| !o.implicit) else {
            return self.end_outside("COMMIT", chain).await;
        };
        let mode = open.transaction.mode().clone();
        let tag = if self.block.is_failed() {
            self.rollback_block().await?;
            "ROLLBACK"
        } else {
            self.commit_block().await?
        };
        if chain {
            self.block = Block::Open(self.new_block(mode));
        }
        self.client.put_tag(tag);
        Ok(())
    }

    async fn rollback(&mut self, chain: bool) -> Result<(), Problem> {
        let Some(open) = self.block.open().filter(|o| !o.implicit) else {
            return self.end_outside("ROLLBACK", chain).await;
        };
        let mode = open.transaction.mode().clone();
        self.rollback_block().await?;
        if chain {
            self.block = Block::Open(self.new_block(mode));
        }
        self.client.put_tag("ROLLBACK");
        Ok(())
    }

    /// COMMIT or ROLLBACK without a BEGIN: a warning; what an implicit block did so far is ended.
    async fn end_outside(&mut self, tag: &str, chain: bool) -> Result<(), Problem> {
        if chain {
            return Err(ServerError::new(
                SqlState::NO_ACTIVE_TRANSACTION,
                format!("{tag} AND CHAIN can only be used in transaction blocks"),
            )
            .into());
        }
        let warning = notice(
            "WARNING",
            SqlState::NO_ACTIVE_TRANSACTION,
            "there is no transaction in progress",
        );
        self.put_notice(&warning);
        if self.block.open().is_some() {
            match tag {
                "COMMIT" if !self.block.is_failed() => {
                    self.commit_block().await?;
                }
                _ => self.rollback_block().await?,
            }
        }
        self.client.put_tag(tag);
        Ok(())
    }

    /// Commits whatever block is open; the tag says whether PostgreSQL rolled back instead.
    pub(crate) async fn commit_block(&mut self) -> Result<&'static str, Problem> {
        self.end_block(Ending::Commit).await
    }

    /// Ends whatever block is open, other than by rolling back; the tag says whether PostgreSQL rolled back instead.
    pub(crate) async fn end_block(&mut self, ending: Ending<'_>) -> Result<&'static str, Problem> {
        let result = self.end_open_block(ending).await;
        self.settle().await;
        result
    }

    /// The block has ended, or a part of it is undone: what it has made or dropped of temporary tables, and set of parameters, is so for
    /// good now, or is not.
    async fn settle(&mut self) {
        if self.temporary_changed {
            self.temporary_changed = self.block.open().is_some();
            self.read_temporary().await;
        }
        self.tell_parameters_again().await;
    }

    async fn end_open_block(&mut self, ending: Ending<'_>) -> Result<&'static str, Problem> {
        let tag = match ending {
            Ending::Commit => "COMMIT",
            Ending::Prepare(_) => "PREPARE TRANSACTION",
        };
        let Some(open) = self.block.take() else {
            return Ok(tag);
        };
        let Open {
            mut transaction,
            change,
            settings_before,
            has_local_settings,
            has_changed_schema,
            gathered_cursors,
            strict,
            ..
        } = *open;
        self.portals.clear();
        // A cancel that hits a commit could make it look done where it is not (transactions.md, trap 2).
        self.cancel.slot.close().await;
        if self.settings.timeouts.statement.is_some() {
            transaction.lift_statement_timeout();
        }
        for (shard, sql) in strict.requirements() {
            transaction.require(shard, &sql);
        }
        let is_strict = transaction.is_strict();
        let held = match hold_cursors(gathered_cursors, &ending).await {
            Ok(held) => held,
            Err(error) => {
                self.restore_settings(settings_before);
                transaction.rollback().await?;
                finish_change(change).await;
                return Err(self.as_client_sees(error).into());
            }
        };
        let result = match ending {
            Ending::Commit => transaction.commit().await,
            Ending::Prepare(name) => transaction.prepare(name).await,
        };
        let kept = matches!(&result, Ok(done) if done.tag == tag);
        if kept && strict.changes_schema {
            // Others learn it from the shards; this gateway's next transaction need not fail for it.
            self.database.judged.forget();
        }
        finish_change(change).await;
        if has_changed_schema {
            self.note_schema_change();
        }
        match result {
            Ok(done) => {
                for notice in &done.notices {
                    self.client.put_notice(notice);
                }
                if kept {
                    self.held_cursors.extend(held);
                }
                if !kept {
                    self.restore_settings(settings_before);
                } else {
                    self.end_local_encoding()?;
                    if has_local_settings {
                        self.refresh_effective_settings().await?;
                    }
                }
                Ok(if kept { tag } else { "ROLLBACK" })
            }
            Err(error) => {
                self.restore_settings(settings_before);
                let error = self.as_client_sees(error.into());
                Err(if is_strict { self.told_of_strict(error) } else { error }.into())
            }
        }
    }

    /// Rolls back whatever block is open.
    pub(crate) async fn rollback_block(&mut self) -> Result<(), Problem> {
        let Some(open) = self.block.take() else { return Ok(()) };
        let Open {
            transaction,
            change,
            settings_before,
            has_changed_schema,
            ..
        } = *open;
        self.portals.clear();
        self.restore_settings(settings_before);
        transaction.rollback().await?;
        finish_change(change).await;
        if has_changed_schema {
            self.note_schema_change();
        }
        self.settle().await;
        Ok(())
    }

    /// After a rollback to a savepoint, the catalog as the transaction now sees it.
    async fn reload_overlay(&mut self) -> Result<(), Problem> {
        let home = self.gateway.shards.home();
        let catalog = self.database.catalog.clone();
        if let Some(open) = self.block.open_mut()
            && open.overlay.is_some()
        {
            let backend = open.transaction.participant(home).await?;
            open.overlay = Some(catalog.load_through(backend).await?);
        }
        Ok(())
    }
}

/// Opens the names of a schema change again; where the home shard does not answer, the catalog goes on trying.
pub(super) async fn finish_change(change: Option<Change>) {
    if let Some(change) = change
        && let Err(error) = change.finish().await
    {
        tracing::warn!("a schema change is not cleared yet: {error}");
    }
}

/// The transaction room's word for the parser's.
pub(crate) fn isolation_of(level: pgherd_sql::Isolation) -> pgherd_transaction::Isolation {
    match level {
        pgherd_sql::Isolation::ReadUncommitted => pgherd_transaction::Isolation::ReadUncommitted,
        pgherd_sql::Isolation::ReadCommitted => pgherd_transaction::Isolation::ReadCommitted,
        pgherd_sql::Isolation::RepeatableRead => pgherd_transaction::Isolation::RepeatableRead,
        pgherd_sql::Isolation::Serializable => pgherd_transaction::Isolation::Serializable,
    }
}
