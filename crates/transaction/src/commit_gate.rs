//! The gate between commits and cuts.
//!
//! While many transactions commit, there is always one that is visible on one shard and not yet on another, and a cut may
//! not be found for long. So a cut that does not come, or would not, holds off commits for the moment of its snapshots.
//!
//! The gate has two parts. The commits of this gateway are held off in memory ([`LocalGate`](crate::local_gate::LocalGate)), from
//! before the first of their COMMIT PREPAREDs to the last; cuts share it, and it costs so little that a cut takes it in its first try if it
//! would have to wait for a commit. Those of other gateways are held off by the lock of a table that clients have no right to, which
//! `write_marker` takes and a prepared transaction keeps: from PREPARE on, and exclusively.
//! Locks are waited for only briefly, and the gate fails open: what it gives is speed, and the markers give correctness.

use crate::Coordinator;
use crate::local_gate::{Group, Pass};
use crate::read_cut::EAGER_TRIES;
use futures::future::join_all;
use pgherd_model::ShardId;
use pgherd_shards::Backend;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long this gateway's commits are waited for.
const LOCAL_TIMEOUT: Duration = Duration::from_millis(250);
/// How long a shard's commits are waited for. Two commits' PREPAREs and a gate can wait in a circle: this ends it.
const LOCK: &str = "BEGIN; SET LOCAL lock_timeout = '100ms'; LOCK TABLE pgherd.commit_gate IN EXCLUSIVE MODE";

/// For how long commits are held off at most: what they are held off for may wait for a row or a table of a transaction that waits
/// for the gate.
const HOLD: Duration = Duration::from_millis(50);

/// Commits are held off while this lives, as far as that was to be had.
pub(crate) struct Gate {
    _local: Pass,
    locked: Vec<Backend>,
}

impl Gate {
    /// Holds off this gateway's commits, and with `others` those of all gateways on these shards.
    pub(crate) async fn close(coordinator: &Coordinator, shards: &BTreeSet<ShardId>, others: bool) -> Self {
        let mask = shards.iter().copied().collect();
        let mut this = Self {
            _local: coordinator.gate.enter(Group::Cut, mask, Some(LOCAL_TIMEOUT)).await,
            locked: Vec::new(),
        };
        if others {
            // In shard order, so that two cuts do not wait for each other in a circle.
            for shard in shards {
                let Ok(mut backend) = coordinator.service(*shard).await else {
                    break;
                };
                let locked = backend.simple(LOCK).await;
                this.locked.push(backend);
                if locked.is_err() {
                    break;
                }
            }
        }
        this
    }

    /// Closed for this try of a cut over these shards, where it is due: in the first if a commit of this gateway is becoming visible on several of them,
    /// since snapshots taken now would show the half of it; then whenever single snapshots were taken again for long. The first time that holds
    /// off this gateway's commits only.
    pub(crate) async fn for_try(coordinator: &Coordinator, shards: &BTreeSet<ShardId>, tries: u32) -> Option<Self> {
        let is_due = || {
            tries > 0
                || coordinator
                    .gate
                    .is_contended(Group::Cut, shards.iter().copied().collect())
        };
        match tries % (EAGER_TRIES + 1) {
            0 if is_due() => Some(Self::close(coordinator, shards, tries > EAGER_TRIES + 1).await),
            _ => None,
        }
    }

    /// Does the work, and holds commits off while it is done, or begins.
    pub(crate) async fn hold_for<T>(gate: Option<Self>, work: impl Future<Output = T>) -> T {
        let Some(gate) = gate else { return work.await };
        let mut work = std::pin::pin!(work);
        let done = tokio::time::timeout(HOLD, &mut work).await;
        gate.open().await;
        match done {
            Ok(done) => done,
            Err(_) => work.await,
        }
    }

    /// Lets commits go on.
    async fn open(mut self) {
        let released = join_all(self.locked.iter_mut().map(|backend| backend.simple("ROLLBACK")));
        for released in released.await {
            if let Err(e) = released {
                tracing::debug!("a gate was left by a connection that ended: {e}");
            }
        }
    }
}
