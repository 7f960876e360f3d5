//! The lease, and the task that renews it, acknowledges others' changes and loads new catalogs.
//!
//! A lease counts on this machine's monotonic clock from *before* its renewal was sent, and a tenth shorter than on the
//! home shard, so that it is over here before it is over there. After a lapse, the first renewal only tells the home
//! shard that this gateway lives; statements run again after a second one, which has read the changes that
//! were announced while nobody waited for this gateway. If that shows the same catalog as before, and no change under way, then
//! nothing has changed while the lease was over: the lapse counts for nothing, and statements that were under way are right.

use crate::catalog::Inner;
use crate::flight::ALL_NAMES;
use crate::{Error, load};
use pgherd_model::Epoch;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

/// Between two heartbeats while nothing happens.
const QUIET_INTERVAL: Duration = Duration::from_millis(100);
/// While changes are pending.
const BUSY_INTERVAL: Duration = Duration::from_millis(15);
/// Between two looks at what dead gateways left.
const CLEARING_INTERVAL: Duration = Duration::from_millis(700);

/// How long an answer waits for a lease that has lapsed while it was made.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Whether this gateway may serve.
#[derive(Debug)]
pub(crate) struct Lease {
    base: Instant,
    /// nanoseconds after `base`
    valid_until: AtomicU64,
    /// how often the lease was over, and the catalog may have changed meanwhile
    generation: AtomicU64,
}

impl Lease {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            base: Instant::now(),
            valid_until: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.now() < self.valid_until.load(SeqCst)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }

    /// Given back.
    pub(crate) fn end(&self) {
        self.valid_until.store(0, SeqCst);
        self.generation.fetch_add(1, SeqCst);
    }

    /// Whether the lease has held since it had this generation, or had lapsed for nothing; waits while it is lapsed.
    pub(crate) async fn holds(&self, generation: u64) -> bool {
        let started = Instant::now();
        loop {
            let valid = self.is_valid();
            if self.generation() != generation {
                return false;
            }
            if valid {
                return true;
            }
            if started.elapsed() >= ANSWER_PATIENCE {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Notes a renewal that was sent at `sent` and has come back. False after a lapse: then the caller has to
    /// renew once more before statements may run, and says with that whether nothing had changed meanwhile.
    fn renewed(&self, sent: Instant, lease: Duration, confirmed: Option<bool>) -> bool {
        if !self.is_valid() {
            match confirmed {
                None => return false,
                Some(true) => {}
                Some(false) => drop(self.generation.fetch_add(1, SeqCst)),
            }
        }
        let until = sent.saturating_duration_since(self.base) + lease * 9 / 10;
        self.valid_until.fetch_max(until.as_nanos() as u64, SeqCst);
        true
    }
}

/// A change as the home shard lists it.
#[derive(Debug, serde::Deserialize)]
struct PendingChange {
    id: i64,
    root: i64,
    owner: String,
    names: Vec<i64>,
}

/// What a heartbeat returns.
#[derive(Debug, serde::Deserialize)]
struct Beat {
    #[serde(default)]
    gone: bool,
    #[serde(default)]
    changes: Vec<PendingChange>,
    #[serde(default)]
    epoch: u64,
    snapshot: Option<String>,
}

/// The state of the task.
struct Heart {
    client: Client,
    renewed_at: Option<Instant>,
    cleared_at: Instant,
    /// others' changes that are being drained or were acknowledged
    known: HashSet<i64>,
    pending: bool,
    /// the catalog's epoch while the lease was last known to be valid
    served: Option<Epoch>,
}

/// Registers the gateway and beats until the lease is valid; then the caller spawns [`run`].
pub(crate) async fn start(inner: &Arc<Inner>) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
    let mut heart = Heart {
        client: connect(inner).await?,
        renewed_at: None,
        cleared_at: Instant::now(),
        known: HashSet::new(),
        pending: false,
        served: None,
    };
    heart.register(inner).await?;
    heart.beat(inner).await?;
    Ok(run(Arc::downgrade(inner), heart))
}

async fn connect(inner: &Inner) -> Result<Client, Error> {
    Ok(inner
        .shards
        .connect_service(inner.shards.home(), &inner.database)
        .await?)
}

/// Beats until the catalog is dropped.
async fn run(inner: Weak<Inner>, mut heart: Heart) {
    loop {
        let Some(strong) = inner.upgrade() else {
            return;
        };
        let pause = if heart.pending { BUSY_INTERVAL } else { QUIET_INTERVAL };
        let _ = tokio::time::timeout(pause, strong.wake.notified()).await;
        let limit = strong.options.lease;
        match tokio::time::timeout(limit, heart.beat(&strong)).await {
            Ok(Ok(())) => {}
            outcome => {
                let cause = outcome.map_or_else(|_| "no answer in time".to_owned(), |r| format!("{r:?}"));
                tracing::warn!(database = %strong.database, "the catalog's heartbeat failed: {cause}");
                if let Ok(client) = connect(&strong).await {
                    heart.client = client;
                } else {
                    tokio::time::sleep(QUIET_INTERVAL).await;
                }
            }
        }
    }
}

impl Heart {
    async fn register(&mut self, inner: &Inner) -> Result<(), Error> {
        let (options, lease_ms) = (&inner.options, inner.options.lease.as_millis() as f64);
        self.client
            .execute(
                "INSERT INTO pgherd.gateway_lease (incarnation, name, address, lease_until)
                 VALUES ($1, $2, $3, clock_timestamp() + $4 * interval '1 ms')
                 ON CONFLICT (incarnation) DO UPDATE SET lease_until = excluded.lease_until",
                &[&inner.incarnation, &options.gateway, &options.address, &lease_ms],
            )
            .await?;
        Ok(())
    }

    /// One heartbeat, or two where the lease had lapsed.
    async fn beat(&mut self, inner: &Arc<Inner>) -> Result<(), Error> {
        let due = self
            .renewed_at
            .is_none_or(|at| at.elapsed() >= inner.options.renew_every);
        if due || !inner.lease.is_valid() {
            let sent = Instant::now();
            self.exchange(inner, true).await?;
            if !inner.lease.renewed(sent, inner.options.lease, None) {
                let sent = Instant::now();
                self.exchange(inner, true).await?;
                let unchanged = self.served == Some(inner.snapshot.load().epoch) && !self.pending;
                inner.lease.renewed(sent, inner.options.lease, Some(unchanged));
            }
            self.renewed_at = Some(sent);
        } else {
            self.exchange(inner, false).await?;
        }
        if inner.lease.is_valid() {
            self.served = Some(inner.snapshot.load().epoch);
        }
        if self.cleared_at.elapsed() >= CLEARING_INTERVAL {
            self.cleared_at = Instant::now();
            self.clear_dead(inner).await?;
        }
        Ok(())
    }

    /// Sends what was drained, and takes the pending changes and the catalog in.
    async fn exchange(&mut self, inner: &Arc<Inner>, renew: bool) -> Result<(), Error> {
        let lease_ms = if renew {
            inner.options.lease.as_millis() as i32
        } else {
            0
        };
        let number = inner.beats_started.fetch_add(1, SeqCst) + 1;
        let drained = std::mem::take(&mut *inner.drained.lock());
        let known = match &**inner.snapshot.load() {
            snapshot if snapshot.incomplete => 0,
            snapshot => snapshot.epoch.0 as i64,
        };
        let sql = "SELECT pgherd.heartbeat($1, $2, $3, $4)";
        // In one round, since it is said so often.
        let types = [Type::TEXT, Type::INT4, Type::INT8, Type::INT8_ARRAY];
        let values: [&(dyn ToSql + Sync); 4] = [&inner.incarnation, &lease_ms, &known, &drained];
        let parameters: Vec<_> = values.into_iter().zip(types).collect();
        let reply = self.client.query_typed_one(sql, &parameters).await;
        let text: String = match reply {
            Ok(row) => row.get(0),
            Err(e) => {
                inner.drained.lock().extend(drained);
                return Err(e.into());
            }
        };
        let beat: Beat = serde_json::from_str(&text).map_err(|e| Error::Corrupt(e.to_string()))?;
        if beat.gone {
            self.register(inner).await?;
            return Err(Error::NoLease);
        }
        if let Some(json) = &beat.snapshot {
            let shards = inner.shards.all().iter().map(|s| s.id);
            let snapshot = load::snapshot_with(json, shards, &mut inner.remembered.lock())?;
            inner.snapshot.store(Arc::new(snapshot));
        }
        debug_assert!(inner.snapshot.load().epoch >= Epoch(beat.epoch));
        self.take_changes(inner, beat.changes);
        inner.news.send_modify(|beats| *beats = number.max(*beats));
        Ok(())
    }

    /// Closes the names of pending changes, opens those of changes that are over, and drains what is new.
    fn take_changes(&mut self, inner: &Arc<Inner>, mut changes: Vec<PendingChange>) {
        // A change of our own that is over here may still be listed by a heartbeat that was under way.
        let mut finished = inner.finished.lock();
        finished.retain(|id| changes.iter().any(|c| c.id == *id));
        changes.retain(|c| !finished.contains(&c.id));
        let mut closed: HashMap<u64, i64> = HashMap::new();
        for change in &changes {
            closed.extend(change.names.iter().map(|&name| (name as u64, change.root)));
        }
        {
            // While the own changes are locked none can be added or finished in between.
            let own = inner.own.lock();
            for (root, names) in own.values() {
                closed.extend(names.iter().map(|&name| (name, *root)));
            }
            inner.flight.set_closed(closed);
        }
        drop(finished);
        self.pending = !changes.is_empty();
        self.known.retain(|id| changes.iter().any(|c| c.id == *id));
        for change in changes {
            if change.owner != inner.incarnation && self.known.insert(change.id) {
                let names = change.names.iter().map(|&n| n as u64).collect();
                tokio::spawn(drain(Arc::downgrade(inner), change.id, names));
            }
        }
    }

    /// Ends the changes of gateways that are gone, and our own ones that were dropped, once their transactions are over.
    async fn clear_dead(&mut self, inner: &Inner) -> Result<(), Error> {
        let mut dead: Vec<i64> = inner.dropped.lock().iter().copied().collect();
        for row in self.client.query("SELECT pgherd.dead_changes()", &[]).await? {
            dead.push(row.get(0));
        }
        for change in dead {
            match clear(&self.client, change, "50ms").await {
                Ok(_) => {
                    inner.forget(change);
                    tracing::info!(change, "cleared a schema change whose owner is gone");
                }
                Err(Error::Server(e)) if e.sqlstate() == pgherd_model::SqlState::LOCK_NOT_AVAILABLE => {}
                Err(e) => return Err(e),
            }
        }
        let sql = "DELETE FROM pgherd.gateway_lease WHERE lease_until < clock_timestamp() - interval '10 minutes'";
        self.client.execute(sql, &[]).await?;
        Ok(())
    }
}

/// Ends a change whose transaction is over; 55P03 after `patience` while it is not. Returns whether it committed.
pub(crate) async fn clear(client: &Client, change: i64, patience: &str) -> Result<bool, Error> {
    let sql = "SELECT pgherd.clear_change($1, $2)";
    Ok(client.query_one(sql, &[&change, &patience]).await?.get(0))
}

/// Waits until no statement in flight uses the names, and has it acknowledged.
async fn drain(inner: Weak<Inner>, change: i64, names: Vec<u64>) {
    debug_assert!(!names.is_empty() || ALL_NAMES == 0);
    loop {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        if inner.flight.is_drained(&names) {
            inner.drained.lock().push(change);
            inner.wake.notify_one();
            return;
        }
        drop(inner);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
