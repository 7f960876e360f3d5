//! A change of what gateways route by, from its announcement to its end.

use crate::catalog::Inner;
use crate::{Error, heartbeat};
use std::sync::Arc;
use std::time::Duration;

/// How long the end of a transaction that has just committed may take to show on the home shard.
const CLEARING_PATIENCE: &str = "2s";

/// A change's number; statements of the changing transaction enter with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChangeId(pub(crate) i64);

/// Names closed for everybody else until [`Change::finish`]. Dropped without it, the catalog finds out by itself when the
/// transaction is over, and opens the names then.
pub struct Change {
    inner: Arc<Inner>,
    ids: Vec<i64>,
    names: Vec<u64>,
    done: bool,
}

impl Change {
    pub(crate) async fn begin(
        inner: &Arc<Inner>,
        root: Option<i64>,
        names: &[u64],
        description: &str,
    ) -> Result<Change, Error> {
        let (task_inner, mut wanted, description) = (inner.clone(), names.to_vec(), description.to_owned());
        wanted.sort_unstable();
        wanted.dedup();
        // In a task of its own: if the caller gives up while the announcement is under way, the change
        // that comes out of it is dropped there and cleared.
        let announcing = tokio::spawn(async move { announce(task_inner, root, wanted, &description).await });
        let change = announcing.await.map_err(|e| Error::Corrupt(e.to_string()))??;
        change.wait_for_all().await?;
        Ok(change)
    }

    /// Its number.
    pub fn id(&self) -> ChangeId {
        ChangeId(self.ids[0])
    }

    /// Whether all these names are closed by it.
    pub fn covers(&self, names: &[u64]) -> bool {
        self.names.contains(&0) || names.iter().all(|n| self.names.contains(n))
    }

    /// Closes more names, for a later statement of the same transaction.
    ///
    /// # Errors
    /// As [`crate::Catalog::begin_change`]. 40P01 when another change holds one of the names for long: it may wait for ours.
    pub async fn extend(&mut self, names: &[u64], description: &str) -> Result<(), Error> {
        let more: Vec<_> = names.iter().copied().filter(|n| !self.covers(&[*n])).collect();
        if more.is_empty() {
            return Ok(());
        }
        let waiting = Change::begin(&self.inner, Some(self.ids[0]), &more, description);
        let Ok(begun) = tokio::time::timeout(Duration::from_secs(5), waiting).await else {
            return Err(Error::Server(
                pgherd_model::ServerError::new(pgherd_model::SqlState::DEADLOCK_DETECTED, "deadlock detected")
                    .with_detail("Two transactions change schemas and wait for each other.")
                    .with_hint("Repeat the transaction."),
            ));
        };
        let mut change = begun?;
        change.done = true;
        self.ids.append(&mut change.ids);
        self.names.append(&mut change.names);
        Ok(())
    }

    /// The payload of `pgherd.hold_changes`, which the transaction runs on the home shard before each of its schema
    /// changes: again after others, since a rollback to a savepoint takes it back.
    pub fn hold_payload(&self) -> String {
        format!("{:?}", self.ids)
    }

    /// Ends it after its transaction has ended: the epoch grows when it committed, and the names open with the new catalog.
    ///
    /// # Errors
    /// The home shard did not answer; the catalog goes on trying by itself.
    pub async fn finish(mut self) -> Result<(), Error> {
        let control = self.inner.control().await?;
        for id in self.ids.clone() {
            heartbeat::clear(&control, id, CLEARING_PATIENCE).await?;
        }
        self.done = true;
        // The catalog first, then the names.
        let refreshed = self.inner.refresh().await;
        for id in &self.ids {
            match refreshed {
                Ok(()) => self.inner.forget(*id),
                Err(_) => drop(self.inner.dropped.lock().insert(*id)),
            }
        }
        refreshed
    }

    async fn wait_for_all(&self) -> Result<(), Error> {
        while !self.inner.flight.is_drained(&self.names) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let control = self.inner.control().await?;
        let id = *self.ids.last().expect("a change has an id");
        let mut pause = Duration::from_millis(2);
        loop {
            let row = control
                .query_one("SELECT pgherd.unacknowledged($1, $2)", &[&id, &self.inner.incarnation])
                .await?;
            if row.get::<_, i64>(0) == 0 {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if !self.done {
            self.inner.dropped.lock().extend(&self.ids);
            self.inner.wake.notify_one();
        }
    }
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Change({:?})", self.ids)
    }
}

/// Announces, waiting for other changes of the same names, and closes the names here.
async fn announce(inner: Arc<Inner>, root: Option<i64>, names: Vec<u64>, description: &str) -> Result<Change, Error> {
    let stored: Vec<i64> = names.iter().map(|&n| n as i64).collect();
    let sql = "SELECT change_id FROM pgherd.announce_change($1, $2, $3, $4)";
    loop {
        let control = inner.control().await?;
        let row = control
            .query_opt(sql, &[&inner.incarnation, &root, &stored, &description])
            .await?;
        let Some(row) = row else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let id: i64 = row.get(0);
        let root = root.unwrap_or(id);
        {
            let mut own = inner.own.lock();
            own.insert(id, (root, names.clone()));
            inner.flight.close(names.iter().map(|&n| (n, root)));
        }
        return Ok(Change {
            inner,
            ids: vec![id],
            names,
            done: false,
        });
    }
}
