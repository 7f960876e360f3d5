//! READ ONLY in transactions whose reads take locks (designs/0013-serializable.md).
//!
//! PostgreSQL gives no lock that keeps writers out to a transaction that is READ ONLY, and never makes one READ WRITE again
//! that was not. So the shards' blocks are READ WRITE while locks are taken, and each statement runs in a subtransaction that
//! is READ ONLY: its end restores the mode, whatever SET LOCAL made of it.

use crate::transaction::{STATEMENT, Transaction};
use crate::{Error, Isolation};
use pgherd_model::ShardId;
use pgherd_shards::TransactionStatus;

const READ_ONLY: &str = "SET LOCAL transaction_read_only = on";

impl Transaction {
    /// Whether reads take locks.
    pub fn is_strict(&self) -> bool {
        self.mode().isolation == Some(Isolation::StrictLocking)
    }

    /// Whether each statement over several shards has to make sure that it sees other transactions whole. Not where one snapshot
    /// serves all statements, and not where what is read is locked first: whoever wrote it holds its locks on each shard until
    /// it is visible there.
    pub(crate) fn needs_cuts(&self) -> bool {
        !self.is_strict() && !self.mode().isolation.is_some_and(Isolation::is_one_snapshot)
    }

    /// What must hold for the transaction to end well: a statement that goes to the shard with the next one, COMMIT and PREPARE
    /// TRANSACTION included. Where it fails, the transaction has failed.
    pub fn require(&mut self, shard: ShardId, sql: &str) {
        if self.status() == TransactionStatus::Failed {
            return;
        }
        if let Some(at) = self.position(shard) {
            self.participants[at].queue(sql);
        }
    }

    /// The locks of a statement are held: until [`Self::allow_writes`], no shard takes a write, also none that joins.
    pub async fn forbid_writes(&mut self) -> Result<(), Error> {
        self.open_statement().await?;
        self.replay_on_join(READ_ONLY.into());
        for participant in &mut self.participants {
            participant.queue(READ_ONLY);
            participant.relieve().await?;
        }
        Ok(())
    }

    /// The statement of [`Self::forbid_writes`] has ended well; otherwise, and without one, nothing is done.
    pub async fn allow_writes(&mut self) -> Result<(), Error> {
        let forbidden = self.savepoints.last().is_some_and(|name| name == STATEMENT)
            && self
                .replays
                .last()
                .is_some_and(|(depth, sql)| *depth == self.savepoints.len() && **sql == *READ_ONLY);
        if forbidden && self.refuse_if_failed().is_ok() {
            self.replays.pop();
            self.keep_statement().await?;
        }
        Ok(())
    }
}
