//! One shard's part of a transaction: its connection, and the statements that open and end its block.

use crate::Error;
use crate::repeatable_read::Standing;
use crate::transaction::Replay;
use pgherd_model::{ShardId, quote_identifier};
use pgherd_shards::{Backend, SimpleResult, TransactionStatus};
use std::time::{Duration, Instant};

/// Queued statements whose replies nobody reads must not fill the socket's buffers on both sides.
const QUEUED_LIMIT: usize = 64;
/// The savepoint within which a transaction is READ ONLY that has written before; nothing else uses a name with a space.
const READ_ONLY: &str = "\"read only\"";
/// How long a statement may take to end on its own before it is cancelled by a ROLLBACK.
const GRACE: Duration = Duration::from_millis(20);
/// How long a cancelled statement may take to end before its connection is given up.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Participant {
    pub backend: Backend,
    /// a command tag said so
    pub wrote: bool,
    /// enlisted since the owner last asked
    pub is_new: bool,
    /// a statement that used it has ended, so the transaction may have seen what is on it
    pub was_shown: bool,
    /// at REPEATABLE READ: what keeps it from beginning anew
    pub standing: Standing,
    /// it is READ ONLY within a savepoint only, so that its end makes it READ WRITE again
    pub is_closed: bool,
    /// what is to be run when its snapshot is decided, each behind this many savepoints
    pub with_snapshot: Vec<Replay>,
    /// COMMIT went behind its only statement, which wrote nothing
    pub has_ended: bool,
    /// how many workers it may start has been said
    pub has_limit: bool,
    /// when its owner last asked for it
    pub used_at: Instant,
    queued: usize,
}

impl Participant {
    /// Opens the block; BEGIN, the savepoints and what was set between them travel with the first statement.
    pub(crate) fn open(mut backend: Backend, begin: &str, savepoints: &[String], replays: &[Replay]) -> Self {
        backend.queue_silent(begin);
        let mut this = Self {
            backend,
            wrote: false,
            is_new: true,
            was_shown: false,
            standing: Standing::Fixed,
            is_closed: false,
            with_snapshot: Vec::new(),
            has_ended: false,
            has_limit: false,
            used_at: Instant::now(),
            queued: 1,
        };
        for depth in 0..=savepoints.len() {
            for (_, sql) in replays.iter().filter(|(at, _)| *at == depth) {
                this.queue(sql);
            }
            if let Some(name) = savepoints.get(depth) {
                this.queue(&format!("SAVEPOINT {}", quote_identifier(name)));
            }
        }
        this
    }

    /// What follows is to be READ ONLY, but for the commit.
    pub(crate) fn close_for_writes(&mut self) {
        if !std::mem::replace(&mut self.is_closed, true) {
            self.queue(&format!("SAVEPOINT {READ_ONLY}"));
        }
    }

    /// The commit may write.
    pub(crate) fn open_for_commit(&mut self) {
        if std::mem::take(&mut self.is_closed) {
            self.queue(&format!("RELEASE SAVEPOINT {READ_ONLY}"));
        }
    }

    /// Imports its snapshot. PostgreSQL does that outside of savepoints only: their end keeps the locks that were taken within them, and
    /// they are set anew.
    pub(crate) fn import(&mut self, import: &str, savepoints: &[String]) {
        if let Some(first) = savepoints.first() {
            self.queue(&format!("RELEASE SAVEPOINT {}", quote_identifier(first)));
        }
        self.queue(import);
        for (depth, name) in savepoints.iter().enumerate() {
            self.complete(|behind| behind <= depth);
            self.queue(&format!("SAVEPOINT {}", quote_identifier(name)));
        }
        self.complete(|_| true);
    }

    /// Queues what waits for the snapshot, of these depths.
    pub(crate) fn complete(&mut self, is_due: impl Fn(usize) -> bool) {
        for (_, sql) in self
            .with_snapshot
            .extract_if(.., |(depth, _)| is_due(*depth))
            .collect::<Vec<_>>()
        {
            self.queue(&sql);
        }
    }

    pub(crate) fn shard(&self) -> ShardId {
        self.backend.shard()
    }

    /// Queues what cannot fail by itself.
    pub(crate) fn queue(&mut self, sql: &str) {
        self.backend.queue_silent(sql);
        self.queued += 1;
    }

    /// Sends what has been queued when it has become much.
    pub(crate) async fn relieve(&mut self) -> Result<(), Error> {
        if self.queued >= QUEUED_LIMIT {
            self.backend.flush().await?;
            self.backend.skip_silent().await?;
            self.queued = 0;
        }
        Ok(())
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.backend.is_broken() || self.backend.status() == TransactionStatus::Failed
    }

    /// Runs a statement and waits for its end.
    pub(crate) async fn run(&mut self, sql: &str) -> Result<Vec<SimpleResult>, Error> {
        self.queued = 0;
        Ok(self.backend.simple(sql).await?)
    }

    /// Queues the COMMIT of a statement that has just been queued.
    pub(crate) fn end_behind_statement(&mut self) -> Result<(), Error> {
        self.has_ended = true;
        Ok(self.backend.queue_query("COMMIT")?)
    }

    /// Reads the replies up to that COMMIT's.
    pub(crate) async fn ended(&mut self) -> Result<(), Error> {
        self.backend.drain().await?;
        match self.backend.status() {
            TransactionStatus::Idle => Ok(()),
            _ => Err(Error::ParticipantLost { shard: self.shard() }),
        }
    }

    /// Reads all replies that nobody has read; a statement that still runs is cancelled first.
    pub(crate) async fn quiet(&mut self) -> Result<(), Error> {
        quiet(&mut self.backend).await
    }

    /// Ends the block without effect. A connection that does not answer is closed by being dropped.
    pub(crate) async fn roll_back(mut self) {
        roll_back(&mut self.backend).await;
    }
}

async fn quiet(backend: &mut Backend) -> Result<(), Error> {
    if !backend.is_awaiting() {
        return Ok(());
    }
    match tokio::time::timeout(GRACE, flush_and_drain(backend)).await {
        Ok(Err(e @ pgherd_shards::Error::Lost { .. })) => return Err(e.into()),
        Ok(_) => return Ok(()),
        Err(_) => {}
    }
    let cancelling = async {
        let _ = backend.cancel_token().cancel().await;
        flush_and_drain(backend).await
    };
    match tokio::time::timeout(CANCEL_TIMEOUT, cancelling).await {
        Ok(Err(e @ pgherd_shards::Error::Lost { .. })) => Err(e.into()),
        Ok(_) => Ok(()),
        Err(_) => Err(Error::ParticipantLost { shard: backend.shard() }),
    }
}

async fn flush_and_drain(backend: &mut Backend) -> Result<(), pgherd_shards::Error> {
    backend.flush().await?;
    backend.drain().await
}

/// Ends the block without effect.
pub(crate) async fn roll_back(backend: &mut Backend) {
    if backend.is_broken() || quiet(backend).await.is_err() || backend.status() == TransactionStatus::Idle {
        return;
    }
    let ending = async {
        let ended = backend.simple("ROLLBACK").await;
        match backend.status() {
            TransactionStatus::Idle => ended.map(|_| ()),
            _ => backend.resynchronise().await,
        }
    };
    if let Ok(Err(e)) = tokio::time::timeout(CANCEL_TIMEOUT, ending).await {
        tracing::debug!(shard = %backend.shard(), "ROLLBACK failed, the connection is closed: {e}");
    }
}
