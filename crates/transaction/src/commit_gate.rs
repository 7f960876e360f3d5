//! The gate between commits and cuts.
//!
//! While many transactions commit, there is always one that is visible on one shard and not yet on another, and a cut may
//! not be found for long. So every commit in two phases holds the gate's shared side from before its PREPARE to its last
//! COMMIT PREPARED, and a cut that does not come takes the exclusive side for the moment of its snapshots.
//!
//! The gate has two parts. The commits of this gateway are held off by a lock in memory. Those of other gateways by the
//! lock of a table that clients have no right to, which `write_marker` takes and a prepared transaction keeps.
//! Locks are waited for only briefly, and the gate fails open: what it gives is speed, and the markers give correctness.

use crate::Coordinator;
use futures::future::join_all;
use pgherd_model::ShardId;
use pgherd_shards::Backend;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::RwLockWriteGuard;

/// How long this gateway's commits are waited for.
const LOCAL_TIMEOUT: Duration = Duration::from_millis(250);
/// How long a shard's commits are waited for. Two commits' PREPAREs and a gate can wait in a circle: this ends it.
const LOCK: &str = "BEGIN; SET LOCAL lock_timeout = '100ms'; LOCK TABLE pgherd.commit_gate IN EXCLUSIVE MODE";

/// Commits are held off while this lives, as far as that was to be had.
pub(crate) struct Gate<'a> {
    _local: Option<RwLockWriteGuard<'a, ()>>,
    locked: Vec<Backend>,
}

impl<'a> Gate<'a> {
    /// Holds off this gateway's commits, and with `others` those of all gateways on these shards.
    pub(crate) async fn close(coordinator: &'a Coordinator, shards: &BTreeSet<ShardId>, others: bool) -> Self {
        let local = tokio::time::timeout(LOCAL_TIMEOUT, coordinator.gate.write()).await;
        let mut this = Self {
            _local: local.ok(),
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

    /// Lets commits go on.
    pub(crate) async fn open(mut self) {
        let released = join_all(self.locked.iter_mut().map(|backend| backend.simple("ROLLBACK")));
        for released in released.await {
            if let Err(e) = released {
                tracing::debug!("a gate was left by a connection that ended: {e}");
            }
        }
    }
}
