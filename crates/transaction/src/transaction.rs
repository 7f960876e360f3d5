//! One client transaction: which shards take part, its savepoints, and whether it has failed.
//!
//! It alone hands out shard connections on the statement path. A shard is enlisted when it is first asked for: BEGIN
//! and the open savepoints are queued, and travel with the first statement. How it ends is in `commit`.

use crate::commit;
use crate::gid::Gid;
use crate::participant::{Participant, roll_back};
use crate::repeatable_read::Shown;
use crate::watched::Registration;
use crate::{Coordinator, Error};
use futures::future::join_all;
use pgherd_model::{ServerError, ShardId, quote_identifier};
use pgherd_shards::{Backend, CancelToken, Identity, SessionSettings, Shards, TransactionStatus, UNKNOWN_SETTINGS};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// The savepoint of a statement over several shards; nothing else uses a name with a space.
pub(crate) const STATEMENT: &str = "pgherd statement";

/// An isolation level, as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// which PostgreSQL treats as READ COMMITTED
    ReadUncommitted,
    /// the default
    ReadCommitted,
    /// one snapshot for the transaction, over all shards
    RepeatableRead,
    /// PostgreSQL's own, which holds on one shard only
    Serializable,
    /// SERIALIZABLE over shards: what is read is locked first, to the end of the transaction. The shards' blocks are READ
    /// COMMITTED, and READ WRITE until each statement of a READ ONLY transaction begins ([`Transaction::forbid_writes`])
    StrictLocking,
}

impl Isolation {
    /// What the shards' blocks are, as PostgreSQL writes it.
    pub fn as_sql(self) -> &'static str {
        match self {
            Isolation::ReadUncommitted => "READ UNCOMMITTED",
            Isolation::ReadCommitted => "READ COMMITTED",
            Isolation::RepeatableRead => "REPEATABLE READ",
            Isolation::Serializable => "SERIALIZABLE",
            Isolation::StrictLocking => "READ COMMITTED",
        }
    }

    /// From the value of `default_transaction_isolation` or `transaction_isolation`.
    pub fn from_setting(value: &str) -> Option<Self> {
        let levels = [
            Isolation::ReadUncommitted,
            Isolation::ReadCommitted,
            Isolation::RepeatableRead,
            Isolation::Serializable,
        ];
        levels
            .into_iter()
            .find(|level| level.as_sql().eq_ignore_ascii_case(value))
    }

    /// Whether one snapshot serves the whole transaction.
    pub fn is_one_snapshot(self) -> bool {
        matches!(self, Isolation::RepeatableRead | Isolation::Serializable)
    }
}

/// What BEGIN says. `None` leaves it to the session's defaults on the shard; where the gateway knows those to be other
/// than PostgreSQL's own, it fills them in.
#[derive(Debug, Clone, Default)]
pub struct Mode {
    /// ISOLATION LEVEL
    pub isolation: Option<Isolation>,
    /// READ ONLY or READ WRITE
    pub read_only: Option<bool>,
    /// DEFERRABLE
    pub deferrable: Option<bool>,
    /// not a block of the client's: an autocommit statement over several shards, or a simple query of several statements
    pub implicit: bool,
}

impl Mode {
    fn begin(&self) -> String {
        format!("BEGIN{}", self.clauses())
    }

    /// What gives a block that is open already this mode; empty when nothing is said.
    pub fn set_sql(&self) -> String {
        match self.clauses().as_str() {
            "" => String::new(),
            clauses => format!("SET TRANSACTION{clauses}"),
        }
    }

    fn clauses(&self) -> String {
        let mut sql = String::new();
        if let Some(isolation) = self.isolation {
            sql.push_str(" ISOLATION LEVEL ");
            sql.push_str(isolation.as_sql());
        }
        let read_only = match self.isolation {
            // Locks are not to be had in a block that is read only.
            Some(Isolation::StrictLocking) => Some(false),
            _ => self.read_only,
        };
        match read_only {
            Some(true) => sql.push_str(" READ ONLY"),
            Some(false) => sql.push_str(" READ WRITE"),
            None => {}
        }
        match self.deferrable {
            Some(true) => sql.push_str(" DEFERRABLE"),
            Some(false) => sql.push_str(" NOT DEFERRABLE"),
            None => {}
        }
        sql
    }
}

/// Asks a shard for its transaction's time: UTC, as timestamptz takes it.
pub const ASK_CLOCK: &str =
    "SELECT pg_catalog.to_char(pg_catalog.now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'";

/// How COMMIT ended.
#[derive(Debug, Clone)]
pub struct Committed {
    /// "COMMIT", or "ROLLBACK" where the transaction had failed before
    pub tag: String,
    /// what the shards said besides
    pub notices: Vec<ServerError>,
}

/// A statement for shards that join late, behind the number of savepoints that were open.
pub(crate) type Replay = (usize, Arc<str>);

/// A transaction. Dropped without an end, its connections are closed and the shards roll back.
pub struct Transaction {
    pub(crate) coordinator: Arc<Coordinator>,
    who: Identity,
    mode: Mode,
    started_at: SystemTime,
    /// what `now()` gives on the first participant, once it was asked
    clock: Option<Arc<str>>,
    pub(crate) participants: Vec<Participant>,
    pub(crate) savepoints: Vec<String>,
    /// READ ONLY or READ WRITE, when each savepoint was set: its end, either way, restores it
    pub(crate) read_only_before: Vec<Option<bool>>,
    /// its mode was changed when shards took part already: what functions did there before may be writes
    changed_midway: bool,
    /// what acts within the transaction only, and was not undone
    pub(crate) replays: Vec<Replay>,
    failed: bool,
    /// told of each connection that joins
    on_join: Option<Arc<dyn Fn(CancelToken) + Send + Sync>>,
    pub(crate) after_commit: Vec<(ShardId, String)>,
    /// the schema changes with it, so that what is known of the schema is not yet so
    pub(crate) changes_schema: bool,
    /// commits that this transaction's cuts have shown it
    pub(crate) seen_gids: BTreeSet<Gid>,
    /// at REPEATABLE READ
    pub(crate) shown: Shown,
    /// the shards of a host share what workers one may start
    pub(crate) divides_workers: bool,
    /// the only shard that may be used for the moment
    confined_to: Option<ShardId>,
    /// for the search for deadlocks, once there are several participants
    watched: Option<Registration>,
    /// what was told on other connections, for the client
    notices: Vec<ServerError>,
}

impl Transaction {
    pub(crate) fn new(coordinator: Arc<Coordinator>, who: Identity, mode: Mode) -> Self {
        Self {
            coordinator,
            who,
            mode,
            started_at: SystemTime::now(),
            clock: None,
            participants: Vec::new(),
            savepoints: Vec::new(),
            read_only_before: Vec::new(),
            changed_midway: false,
            replays: Vec::new(),
            failed: false,
            on_join: None,
            after_commit: Vec::new(),
            changes_schema: false,
            seen_gids: BTreeSet::new(),
            shown: Shown::Open,
            divides_workers: false,
            confined_to: None,
            watched: None,
            notices: Vec::new(),
        }
    }

    /// All shards, for connections that are to be no participants.
    pub fn shards(&self) -> &Arc<Shards> {
        &self.coordinator.shards
    }

    /// Who it runs as.
    pub fn who(&self) -> &Identity {
        &self.who
    }

    /// SET inside the transaction: for shards that join from now on. The caller sends it to those that are enlisted.
    pub fn set_settings(&mut self, settings: Option<Arc<SessionSettings>>) {
        self.who.settings = settings;
    }

    /// A statement that acts within the transaction only (SET LOCAL, SET CONSTRAINTS), for shards that join from now on. The
    /// caller sends it to those that are enlisted. Undone with the savepoint it came after.
    pub fn replay_on_join(&mut self, sql: Arc<str>) {
        self.replays.push((self.savepoints.len(), sql));
    }

    /// The schema changes with it. The home shard then commits last: triggers that nobody has looked at yet may do there what PostgreSQL does not
    /// prepare, and one more round is nothing beside a schema change.
    pub fn changes_schema(&mut self) {
        self.changes_schema = true;
    }

    /// Whether shards that join are told of settings in their turn, between savepoints, and not before their block begins: what
    /// a savepoint's end undoes, and what was set before, would else be as the session has it last.
    pub fn is_told_in_order(&self) -> bool {
        self.has_savepoints() || !self.replays.is_empty()
    }

    /// What [`Self::replay_on_join`] was told, as far as it was not undone.
    pub fn replays(&self) -> impl Iterator<Item = &str> {
        self.replays.iter().map(|(_, sql)| &**sql)
    }

    /// Tells of each connection that joins from now on, so that a statement which enlists shards as it goes can be
    /// cancelled on all of them.
    pub fn on_join(&mut self, tell: Arc<dyn Fn(CancelToken) + Send + Sync>) {
        self.on_join = Some(tell);
    }

    /// Whether one snapshot serves all its statements: it shows rows as they were before the present one.
    pub fn shows_one_snapshot(&self) -> bool {
        self.mode.isolation.is_some_and(|level| level.is_one_snapshot())
    }

    /// What BEGIN said.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// SET TRANSACTION: for shards that join from now on. The caller sends it to those that are enlisted.
    pub fn set_mode(&mut self, mode: Mode) {
        self.changed_midway |= !self.participants.is_empty();
        self.mode = mode;
    }

    /// SET TRANSACTION READ ONLY follows, by itself. PostgreSQL takes it back at the end of a savepoint, and not otherwise, and a commit over several
    /// shards writes a marker on each that has written before.
    pub fn close_for_writes(&mut self) {
        let may_have_written =
            !self.is_strict() && !self.is_open_repeatable_read() && self.mode.read_only != Some(true);
        if may_have_written && !self.has_savepoints() {
            self.participants.iter_mut().for_each(Participant::close_for_writes);
        }
    }

    /// Whether no shard can have written anything, also where no command tag would tell.
    pub(crate) fn cannot_have_written(&self) -> bool {
        self.mode.read_only == Some(true) && !self.changed_midway
    }

    /// When it began here.
    pub fn started_at(&self) -> SystemTime {
        self.started_at
    }

    /// The connection to a shard, which is enlisted if it was not.
    ///
    /// At REPEATABLE READ, what the transaction shows is decided now if it was not.
    ///
    /// Errors: 25P02 in a failed transaction; 0A000 where SERIALIZABLE would come to a second shard; 57P03 while the shard
    /// has unfinished transactions; 40001 when there was no cut to be had; whatever making a connection may give.
    pub async fn participant(&mut self, shard: ShardId) -> Result<&mut Backend, Error> {
        if self.failed {
            return Err(Error::InFailedTransaction);
        }
        if self.confined_to.is_some_and(|only| only != shard) {
            return Err(self.one_shard_only());
        }
        self.fix_snapshot().await?;
        let at = self.with_snapshot(shard).await?;
        self.begin_statement();
        let participant = &mut self.participants[at];
        participant.used_at = Instant::now();
        participant.relieve().await?;
        Ok(&mut participant.backend)
    }

    /// Until this is called with `None`, statements may use that shard only: those that would not be right in a snapshot
    /// that was taken before they began.
    pub fn confine(&mut self, to: Option<ShardId>) {
        self.confined_to = to;
    }

    fn one_shard_only(&self) -> Error {
        let level = self.mode.isolation.unwrap_or(Isolation::ReadCommitted);
        Error::OneShardOnly { level: level.as_sql() }
    }

    pub(crate) async fn enlist(&mut self, shard: ShardId) -> Result<usize, Error> {
        let (mode, replays) = self.for_newcomer();
        let mut begin = mode.begin();
        match (self.mode.isolation, &self.shown) {
            (Some(Isolation::RepeatableRead), Shown::Open) => {}
            (Some(Isolation::RepeatableRead), shown @ (Shown::Cut(_) | Shown::Imported(_))) => {
                if let Some(import) = shown.import_sql(shard)? {
                    begin.push_str("; ");
                    begin.push_str(&import);
                }
            }
            (Some(level), _) if level.is_one_snapshot() && !self.participants.is_empty() => {
                return Err(self.one_shard_only());
            }
            _ => {}
        }
        let mut backend = self.coordinator.autocommit(shard, &self.who).await?;
        if !replays.is_empty() {
            // Whether what it is told stays depends on the block's end.
            backend.set_settings(UNKNOWN_SETTINGS);
        }
        if let Some(tell) = &self.on_join {
            tell(backend.cancel_token());
        }
        self.participants
            .push(Participant::open(backend, &begin, &self.savepoints, &replays));
        self.watch();
        Ok(self.participants.len() - 1)
    }

    /// The mode that a shard's block begins with, and what it is told between its savepoints. SET TRANSACTION READ ONLY behind
    /// a savepoint must not be part of its BEGIN, which no savepoint's end undoes.
    fn for_newcomer(&self) -> (Mode, Cow<'_, [Replay]>) {
        let levels = || self.read_only_before.iter().copied().chain([self.mode.read_only]);
        let mode = Mode {
            read_only: levels().next().flatten(),
            ..self.mode.clone()
        };
        let mut replays = Cow::Borrowed(&*self.replays);
        for (level, (before, now)) in (1..).zip(levels().zip(levels().skip(1))) {
            if now == Some(true) && before != now && !self.is_strict() {
                replays.to_mut().push((level, "SET TRANSACTION READ ONLY".into()));
            }
        }
        (mode, replays)
    }

    /// From its second shard on, a transaction can be part of a deadlock that no shard sees.
    fn watch(&mut self) {
        let watched = match &self.watched {
            Some(registration) => &registration.watched,
            None if self.participants.len() < 2 => return,
            None => {
                let registration = self.coordinator.watched.enter(self.started_at);
                for earlier in &self.participants[..self.participants.len() - 1] {
                    registration
                        .watched
                        .join(earlier.shard(), earlier.backend.cancel_token());
                }
                &self.watched.insert(registration).watched
            }
        };
        if let Some(newest) = self.participants.last() {
            watched.join(newest.shard(), newest.backend.cancel_token());
        }
    }

    /// A participant's connection goes back to its pool, where no cancel request may reach it.
    pub(crate) async fn unwatch(&mut self, shard: ShardId) {
        if let Some(registration) = &self.watched {
            registration.watched.leave(shard).await;
        }
    }

    pub(crate) fn begin_statement(&self) {
        if let Some(registration) = &self.watched {
            registration.watched.begin();
        }
    }

    /// A statement has ended, well or not, and has been answered by all shards; the next one begins when it first asks for a
    /// shard. Returns how that came about where it was cancelled to end a deadlock over several shards: its error is then to be
    /// told by [`deadlock_error`](crate::deadlock_error).
    pub async fn end_statement(&mut self) -> Option<String> {
        self.participants.iter_mut().for_each(|p| p.was_shown = true);
        match &self.watched {
            Some(registration) => registration.watched.end().await,
            None => None,
        }
    }

    /// The shard that was enlisted first.
    pub fn first_shard(&self) -> Option<ShardId> {
        self.participants.first().map(Participant::shard)
    }

    /// What `now()` is in this transaction, for statements on any of its shards: UTC, as timestamptz takes it. Each shard's
    /// own `now()` is when it was enlisted; the first one's counts, so that on one shard nothing differs from PostgreSQL,
    /// also not in defaults, functions and triggers. None while no shard takes part.
    pub async fn clock(&mut self) -> Result<Option<Arc<str>>, Error> {
        if self.clock.is_none()
            && let Some(first) = self.first_shard()
        {
            let results = self.participant(first).await?.simple(ASK_CLOCK).await?;
            self.clock = results.first().and_then(|r| r.text(0, 0)).map(Arc::from);
        }
        Ok(self.clock.clone())
    }

    pub(crate) fn position(&self, shard: ShardId) -> Option<usize> {
        self.participants.iter().position(|p| p.shard() == shard)
    }

    /// Whether the shard takes part.
    pub fn enlisted(&self, shard: ShardId) -> bool {
        self.position(shard).is_some()
    }

    /// Whether the shard was enlisted since this was last asked.
    pub fn is_new(&mut self, shard: ShardId) -> bool {
        let at = self.position(shard);
        at.is_some_and(|at| std::mem::take(&mut self.participants[at].is_new))
    }

    /// A statement has ended: shards that had nothing to do for a good part of `limit` are told that the session is not idle,
    /// so that their idle_in_transaction_session_timeout does not end it.
    pub async fn keep_alive(&mut self, limit: Duration) {
        if self.participants.len() < 2 || self.failed {
            return;
        }
        let bored = self.participants.iter_mut().filter(|p| p.used_at.elapsed() > limit / 3);
        join_all(bored.map(async |p| {
            p.used_at = Instant::now();
            if let Err(e) = p.run("").await {
                tracing::debug!(shard = %p.shard(), "a participant could not be kept alive: {e}");
            }
        }))
        .await;
    }

    /// All shards that take part, in the order they joined.
    pub fn participants(&mut self) -> impl Iterator<Item = (ShardId, &mut Backend)> {
        self.begin_statement();
        self.participants.iter_mut().map(|p| (p.shard(), &mut p.backend))
    }

    /// Notices that a connection other than the participants has given for the running statement.
    pub fn note_notices(&mut self, notices: Vec<ServerError>) {
        self.notices.extend(notices);
    }

    /// All notices that came since the last call, or since the last statement that relayed its own.
    pub fn take_notices(&mut self) -> Vec<ServerError> {
        let mut notices = std::mem::take(&mut self.notices);
        for participant in &mut self.participants {
            notices.extend(participant.backend.take_notices());
        }
        notices
    }

    /// What cancels the statement on all shards that take part.
    pub fn cancel_tokens(&mut self) -> impl Iterator<Item = CancelToken> {
        self.participants().map(|(_, backend)| backend.cancel_token())
    }

    /// A command tag said that rows were written there. Where nothing is said, the shard is asked at COMMIT.
    pub fn wrote(&mut self, shard: ShardId) {
        if let Some(at) = self.position(shard) {
            self.participants[at].wrote = true;
        }
    }

    /// A statement failed, in a shard or in the gateway: only ROLLBACK and ROLLBACK TO are taken from now on. What was
    /// done since the last savepoint is undone on all shards now, as on the one that failed, so that nobody waits for
    /// its locks until the client says ROLLBACK.
    pub async fn fail(&mut self) {
        if std::mem::replace(&mut self.failed, true) {
            return;
        }
        let last = self.savepoints.iter().rfind(|name| *name != STATEMENT);
        let undo = last.map(|name| format!("ROLLBACK TO SAVEPOINT {}", quote_identifier(name)));
        let undone = self.participants.iter_mut().filter(|p| !p.is_failed()).map(async |p| {
            match &undo {
                None => roll_back(&mut p.backend).await,
                Some(undo) => {
                    p.quiet().await?;
                    p.run(undo).await?;
                }
            }
            Ok::<_, Error>(())
        });
        // Whoever does not do it now has a lost connection, or does it with the client's ROLLBACK.
        for outcome in join_all(undone).await {
            if let Err(e) = outcome {
                tracing::debug!("a participant of a failed transaction was not undone: {e}");
            }
        }
    }

    /// Whether it has failed as a whole: all that it did is undone, and only ROLLBACK is left.
    pub fn is_lost(&self) -> bool {
        self.failed && self.savepoints.iter().all(|name| name == STATEMENT)
    }

    /// As in ReadyForQuery: a transaction has failed when it has on any shard.
    pub fn status(&self) -> TransactionStatus {
        if self.failed || self.participants.iter().any(Participant::is_failed) {
            TransactionStatus::Failed
        } else {
            TransactionStatus::InBlock
        }
    }

    /// To be run on that shard when the transaction has been committed, and not otherwise: a NOTIFY, which would keep the
    /// transaction from being prepared.
    pub fn after_commit(&mut self, shard: ShardId, sql: impl Into<String>) {
        self.after_commit.push((shard, sql.into()));
    }

    /// SAVEPOINT, on all participants and on those that join later.
    pub async fn savepoint(&mut self, name: &str) -> Result<(), Error> {
        self.refuse_if_failed()?;
        let sql = format!("SAVEPOINT {}", quote_identifier(name));
        for participant in &mut self.participants {
            participant.queue(&sql);
            participant.relieve().await?;
        }
        self.savepoints.push(name.into());
        self.read_only_before.push(self.mode.read_only);
        Ok(())
    }

    /// RELEASE SAVEPOINT: the innermost one of that name, and all that were set after it.
    pub async fn release(&mut self, name: &str) -> Result<(), Error> {
        self.refuse_if_failed()?;
        let at = self.find_savepoint(name).await?;
        let sql = format!("RELEASE SAVEPOINT {}", quote_identifier(name));
        for participant in &mut self.participants {
            participant.queue(&sql);
            participant.relieve().await?;
        }
        self.savepoints.truncate(at);
        self.mode.read_only = self.read_only_before[at];
        self.read_only_before.truncate(at);
        let waiting = self.participants.iter_mut().flat_map(|p| &mut p.with_snapshot);
        for (depth, _) in self.replays.iter_mut().chain(waiting) {
            *depth = (*depth).min(at);
        }
        Ok(())
    }

    /// ROLLBACK TO SAVEPOINT: what came after the innermost one of that name is undone on all shards, and a failed
    /// transaction goes on. The savepoint stays.
    pub async fn rollback_to(&mut self, name: &str) -> Result<(), Error> {
        self.end_statement().await;
        let at = self.find_savepoint(name).await?;
        let sql = format!("ROLLBACK TO SAVEPOINT {}", quote_identifier(name));
        self.failed = true;
        let ran = join_all(self.participants.iter_mut().map(async |p| {
            p.quiet().await?;
            p.run(&sql).await.map(|_| ())
        }));
        ran.await.into_iter().collect::<Result<(), Error>>()?;
        self.savepoints.truncate(at + 1);
        self.mode.read_only = self.read_only_before[at];
        self.read_only_before.truncate(at + 1);
        self.replays.retain(|(depth, _)| *depth <= at);
        for participant in &mut self.participants {
            participant.with_snapshot.retain(|(depth, _)| *depth <= at);
        }
        self.failed = false;
        Ok(())
    }

    /// Where the last savepoint of that name is; without one the transaction fails.
    async fn find_savepoint(&mut self, name: &str) -> Result<usize, Error> {
        match self.savepoints.iter().rposition(|s| s == name) {
            Some(at) => Ok(at),
            None => {
                self.fail().await;
                Err(Error::NoSuchSavepoint(name.into()))
            }
        }
    }

    /// Whether it is inside of a savepoint that no shard has been told of yet.
    pub fn has_untold_savepoints(&self) -> bool {
        self.has_savepoints() && self.participants.is_empty()
    }

    pub(crate) fn has_savepoints(&self) -> bool {
        !self.savepoints.is_empty()
    }

    pub(crate) fn refuse_if_failed(&self) -> Result<(), Error> {
        match self.status() {
            TransactionStatus::Failed => Err(Error::InFailedTransaction),
            _ => Ok(()),
        }
    }

    /// Opens a statement that can be undone on all shards together, to be run again. Ends with [`Self::keep_statement`]
    /// or [`Self::undo_statement`].
    pub async fn open_statement(&mut self) -> Result<(), Error> {
        self.savepoint(STATEMENT).await
    }

    /// Whether a statement of [`Self::open_statement`] has not ended.
    pub fn is_in_statement(&self) -> bool {
        self.savepoints.last().is_some_and(|name| name == STATEMENT)
    }

    /// The statement of [`Self::open_statement`] succeeded.
    pub async fn keep_statement(&mut self) -> Result<(), Error> {
        self.release(STATEMENT).await
    }

    /// The statement of [`Self::open_statement`] never was, on any shard.
    pub async fn undo_statement(&mut self) -> Result<(), Error> {
        self.rollback_to(STATEMENT).await?;
        self.release(STATEMENT).await
    }

    /// A commit follows, which statement_timeout must not end in the middle, since it is none of the client's statements:
    /// wherever a session has that limit, it is lifted for the rest of the transaction.
    pub fn lift_statement_timeout(&mut self) {
        if self.participants.len() > 1 {
            for participant in self.participants.iter_mut().filter(|p| !p.has_ended) {
                participant.queue("SET LOCAL statement_timeout = 0");
            }
        }
    }

    /// The statement that has just been queued on that shard is the transaction's last one there and cannot write anything anywhere: its
    /// COMMIT travels with it. Not where locks are held to the end for what other shards show.
    pub fn end_behind_statement(&mut self, shard: ShardId) -> Result<(), Error> {
        match self.position(shard) {
            Some(at) if !self.is_strict() && !self.has_savepoints() => self.participants[at].end_behind_statement(),
            _ => Ok(()),
        }
    }

    /// COMMIT. At most one shard wrote: a plain COMMIT. Several did: two phases, decided when all are prepared.
    ///
    /// Once it is called the outcome no longer depends on the caller: dropping the future leaves the work to a task of its own.
    ///
    /// Errors: what a deferred constraint says, or PostgreSQL about what cannot be prepared (then it is rolled back
    /// everywhere); 08007 where the outcome is unknown.
    pub async fn commit(self) -> Result<Committed, Error> {
        commit::commit(self).await
    }

    /// ROLLBACK, everywhere. Never fails: what cannot be told to roll back is disconnected.
    pub async fn rollback(mut self) -> Result<(), Error> {
        self.end_statement().await;
        join_all(self.participants.into_iter().map(Participant::roll_back)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begin_says_the_mode() {
        assert_eq!(Mode::default().begin(), "BEGIN");
        let mode = Mode {
            isolation: Some(Isolation::Serializable),
            read_only: Some(true),
            deferrable: Some(false),
            implicit: false,
        };
        assert_eq!(
            mode.begin(),
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY NOT DEFERRABLE"
        );
    }
}
