//! REPEATABLE READ: what decides which snapshots a transaction's participants have.
//!
//! As in PostgreSQL, the first statement that needs a snapshot fixes it, and BEGIN, SET and LOCK TABLE do not. With several
//! shards it is a [`SharedCut`] over all of them, also when that first statement needs one shard only: a snapshot that is
//! taken on another shard later would show what was committed in between. Every participant imports its part as the first
//! thing in its block, whenever it joins. Where no second shard can follow, [`Transaction::stay_alone`] spares that.

use crate::shared_cut::SharedCut;
use crate::transaction::{Isolation, Transaction};
use crate::{Error, SnapshotName};
use pgherd_model::{ShardId, quote_literal};
use pgherd_shards::Backend;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a transaction at REPEATABLE READ shows.
pub(crate) enum Shown {
    /// no statement has needed a snapshot
    Open,
    /// the one shard's own snapshot
    Own,
    /// a cut over all shards
    Cut(Arc<SharedCut>),
    /// what another transaction has exported: PostgreSQL's names of its snapshots
    Imported(BTreeMap<ShardId, String>),
}

impl Shown {
    /// What makes a block that has just begun on this shard see it; None where it needs nothing.
    ///
    /// Errors: there is no snapshot of that shard (any more).
    pub(crate) fn import_sql(&self, shard: ShardId) -> Result<Option<String>, Error> {
        match self {
            Self::Open | Self::Own => Ok(None),
            Self::Cut(cut) => cut.import_sql(shard).map(Some),
            Self::Imported(names) => match names.get(&shard) {
                Some(name) => Ok(Some(format!("SET TRANSACTION SNAPSHOT {}", quote_literal(name)))),
                None => Err(Error::SnapshotLost { shard }),
            },
        }
    }
}

/// What has happened on a participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// settings only, which can be made again in another block
    Settings,
    /// locks, and no snapshot
    Locks,
    /// its snapshot is decided
    Fixed,
}

impl Transaction {
    /// At REPEATABLE READ, where nothing has been read yet: the one shard that will be used takes its own snapshot, at
    /// PostgreSQL's own price. For statements that are a transaction of their own, and while no other shard has rows.
    pub fn stay_alone(&mut self) {
        if self.is_open_repeatable_read() && self.participants.len() <= 1 {
            // Nothing is imported, so nothing is refused.
            let _ = self.show(Shown::Own);
        }
    }

    /// Whether what this transaction shows is still to be decided, at a level where one snapshot serves all its statements.
    pub fn is_open_repeatable_read(&self) -> bool {
        self.is_repeatable_read() && matches!(self.shown, Shown::Open)
    }

    /// The connection to a shard, for a statement that takes no snapshot and can be repeated in another block: SET LOCAL.
    pub async fn participant_to_set(&mut self, shard: ShardId) -> Result<&mut Backend, Error> {
        self.participant_without_snapshot(shard, Standing::Settings).await
    }

    /// The connection to a shard, for a statement that takes no snapshot and whose effect must last: LOCK TABLE.
    pub async fn participant_to_lock(&mut self, shard: ShardId) -> Result<&mut Backend, Error> {
        self.participant_without_snapshot(shard, Standing::Locks).await
    }

    /// To be run on a participant as soon as its snapshot is decided, unless a ROLLBACK TO undoes what is done now. A lock that gives
    /// the transaction a number of its own, as ACCESS EXCLUSIVE does, would keep it from importing a snapshot.
    pub fn with_the_snapshot(&mut self, shard: ShardId, sql: String) {
        let depth = self.savepoints.len();
        if let Some(at) = self.position(shard) {
            self.participants[at].with_snapshot.push((depth, sql.into()));
        }
    }

    async fn participant_without_snapshot(
        &mut self,
        shard: ShardId,
        standing: Standing,
    ) -> Result<&mut Backend, Error> {
        if !matches!(self.shown, Shown::Open) {
            return self.participant(shard).await;
        }
        self.refuse_if_failed()?;
        let at = match self.position(shard) {
            Some(at) => match (self.participants[at].standing, standing) {
                // Its settings may have been asked for, which takes a snapshot.
                (Standing::Settings, Standing::Locks) if self.is_open_repeatable_read() => self.open_anew(at).await?,
                _ => at,
            },
            None => {
                let at = self.enlist(shard).await?;
                self.participants[at].standing = standing;
                at
            }
        };
        let participant = &mut self.participants[at];
        if participant.standing == Standing::Settings {
            participant.standing = standing;
        }
        participant.relieve().await?;
        self.begin_statement();
        Ok(&mut self.participants[at].backend)
    }

    /// Before a statement that needs a snapshot.
    pub(crate) async fn fix_snapshot(&mut self) -> Result<(), Error> {
        if !self.is_open_repeatable_read() {
            return Ok(());
        }
        if self.coordinator.shards.all().len() == 1 {
            return self.show(Shown::Own);
        }
        let cut = self.coordinator.shared_cut().await?;
        self.show(Shown::Cut(cut))
    }

    fn show(&mut self, shown: Shown) -> Result<(), Error> {
        let told_between = self.told_between_savepoints();
        for participant in &mut self.participants {
            if participant.standing != Standing::Locks {
                continue;
            }
            match shown.import_sql(participant.shard())? {
                Some(_) if told_between => return Err(Error::LockInSavepoint),
                Some(import) => participant.import(&import, &self.savepoints),
                None => participant.complete(|_| true),
            }
            participant.standing = Standing::Fixed;
        }
        self.shown = shown;
        Ok(())
    }

    /// Whether a shard was told something that the end of a savepoint takes back.
    fn told_between_savepoints(&self) -> bool {
        self.has_savepoints()
            && (self.replays.iter().any(|(depth, _)| *depth > 0)
                || self
                    .read_only_before
                    .iter()
                    .any(|before| *before != self.mode().read_only))
    }

    /// What the transaction shows, for others to show the same while it is open; None where PostgreSQL's own function is to say it: at
    /// another level, within a savepoint, and where one shard has all there is. `epoch` is that of its catalog.
    pub async fn export_snapshot(&mut self, epoch: u64) -> Result<Option<SnapshotName>, Error> {
        if !self.is_repeatable_read() || self.has_savepoints() {
            return Ok(None);
        }
        self.refuse_if_failed()?;
        self.fix_snapshot().await?;
        let shards = match &self.shown {
            Shown::Cut(cut) => cut.names()?,
            Shown::Imported(names) => names.clone(),
            Shown::Open | Shown::Own => return Ok(None),
        };
        Ok(Some(SnapshotName { epoch, shards }))
    }

    /// Shows what another transaction has exported. Only before anything else has decided it ([`Transaction::is_open_repeatable_read`]).
    pub fn import_snapshot(&mut self, names: BTreeMap<ShardId, String>) -> Result<(), Error> {
        self.show(Shown::Imported(names))
    }

    /// The participant for a statement that needs a snapshot.
    pub(crate) async fn with_snapshot(&mut self, shard: ShardId) -> Result<usize, Error> {
        let at = match self.position(shard) {
            Some(at) if self.participants[at].standing == Standing::Settings && self.is_repeatable_read() => {
                self.open_anew(at).await?
            }
            Some(at) => at,
            None => self.enlist(shard).await?,
        };
        self.participants[at].standing = Standing::Fixed;
        Ok(at)
    }

    fn is_repeatable_read(&self) -> bool {
        self.mode().isolation == Some(Isolation::RepeatableRead)
    }

    /// Gives a participant another block, with the settings and savepoints of its first one.
    async fn open_anew(&mut self, at: usize) -> Result<usize, Error> {
        let old = self.participants.remove(at);
        let shard = old.shard();
        self.unwatch(shard).await;
        old.roll_back().await;
        let last = self.enlist(shard).await?;
        let opened = self.participants.remove(last);
        self.participants.insert(at, opened);
        Ok(at)
    }
}
