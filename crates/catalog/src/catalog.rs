//! One database's catalog in one gateway: the snapshot, and the way in for statements.

use crate::flight::Flight;
use crate::heartbeat::{self, Lease};
use crate::{Change, ChangeId, Error, StatementGuard, load};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pgherd_model::{Epoch, Snapshot};
use pgherd_shards::{Backend, Shards};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_postgres::Client;

/// How long a statement waits for somebody else's schema change, or for the lease, before it fails.
const ENTER_PATIENCE: Duration = Duration::from_secs(60);
const LEASE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a transaction waits for a text that was never read and that somebody's open transaction holds.
const HELD_PATIENCE: Duration = Duration::from_secs(60);

/// How a gateway takes part.
#[derive(Debug, Clone)]
pub struct Options {
    /// the cluster's name
    pub cluster: String,
    /// this gateway's name, shown in `pgherd.gateways`
    pub gateway: String,
    /// where clients reach it, shown there too
    pub address: String,
    /// signs what only gateways may do
    pub secret: String,
    /// how long a schema change waits for a gateway that is gone
    pub lease: Duration,
    /// how often the lease is renewed
    pub renew_every: Duration,
}

impl Options {
    /// With the default lease of 6 s, renewed every 1.5 s.
    pub fn new(
        cluster: impl Into<String>,
        gateway: impl Into<String>,
        address: impl Into<String>,
        secret: impl Into<String>,
    ) -> Self {
        Self {
            cluster: cluster.into(),
            gateway: gateway.into(),
            address: address.into(),
            secret: secret.into(),
            lease: Duration::from_secs(6),
            renew_every: Duration::from_millis(1500),
        }
    }
}

/// What the catalog, its heartbeat and its changes share.
pub(crate) struct Inner {
    pub(crate) shards: Arc<Shards>,
    pub(crate) database: String,
    pub(crate) options: Options,
    pub(crate) incarnation: String,
    pub(crate) snapshot: ArcSwap<Snapshot>,
    pub(crate) flight: Arc<Flight>,
    pub(crate) lease: Arc<Lease>,
    /// wakes the heartbeat early
    pub(crate) wake: Notify,
    pub(crate) beats_started: AtomicU64,
    /// the number of the last heartbeat that has come back; also sent when names open
    pub(crate) news: watch::Sender<u64>,
    /// this gateway's own changes: id → (root, names)
    pub(crate) own: Mutex<HashMap<i64, (i64, Vec<u64>)>>,
    /// own changes that are over
    pub(crate) finished: Mutex<HashSet<i64>>,
    /// own changes whose owner did not say how they ended
    pub(crate) dropped: Mutex<HashSet<i64>>,
    /// others' changes to acknowledge
    pub(crate) drained: Mutex<Vec<i64>>,
    /// texts of the catalog that was read last
    pub(crate) remembered: Mutex<load::Remembered>,
    control: tokio::sync::Mutex<Option<Arc<Client>>>,
}

impl Inner {
    /// A service connection to the home shard, beside the heartbeat's.
    pub(crate) async fn control(&self) -> Result<Arc<Client>, Error> {
        let mut control = self.control.lock().await;
        match &*control {
            Some(client) if !client.is_closed() => Ok(client.clone()),
            _ => {
                let client = self.shards.connect_service(self.shards.home(), &self.database).await?;
                Ok(control.insert(Arc::new(client)).clone())
            }
        }
    }

    /// A heartbeat that starts after this call, so that it sees all that was committed before.
    pub(crate) async fn refresh(&self) -> Result<(), Error> {
        let mut news = self.news.subscribe();
        let wanted = self.beats_started.load(SeqCst) + 1;
        self.wake.notify_one();
        let beat = news.wait_for(|beats| *beats >= wanted);
        match tokio::time::timeout(LEASE_PATIENCE, beat).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::NoLease),
        }
    }

    /// An own change is over: its names open when no other change closes them.
    pub(crate) fn forget(&self, change: i64) {
        let mut finished = self.finished.lock();
        let mut own = self.own.lock();
        self.dropped.lock().remove(&change);
        if let Some((root, names)) = own.remove(&change) {
            finished.insert(change);
            self.flight.open(&names, root);
        }
        self.news.send_modify(|_| {});
    }
}

/// The catalog of one database. Dropping it ends its tasks; the lease then runs out by itself, or at once with [`Catalog::close`].
pub struct Catalog {
    inner: Arc<Inner>,
    heart: tokio::task::JoinHandle<()>,
}

/// Epochs from here on are of no committed catalog.
const OF_OPEN_TRANSACTIONS: u64 = 1 << 62;

/// Whether [`Catalog::load_through`] has given it: the catalog has changes of a transaction's own, which keep all others from changing it.
pub fn is_of_open_transaction(epoch: Epoch) -> bool {
    epoch.0 >= OF_OPEN_TRANSACTIONS
}

impl Catalog {
    /// Takes a lease and loads the catalog of `database`, in which [`crate::install`] has run.
    ///
    /// # Errors
    /// The home shard cannot be reached, or has no catalog (42883, 42P01).
    pub async fn open(shards: Arc<Shards>, database: &str, options: Options) -> Result<Arc<Catalog>, Error> {
        let inner = Arc::new(Inner {
            shards,
            database: database.to_owned(),
            incarnation: new_incarnation().to_string(),
            options,
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            flight: Flight::new(),
            lease: Lease::new(),
            wake: Notify::new(),
            beats_started: AtomicU64::new(0),
            news: watch::Sender::new(0),
            own: Mutex::default(),
            finished: Mutex::default(),
            dropped: Mutex::default(),
            drained: Mutex::default(),
            remembered: Mutex::default(),
            control: tokio::sync::Mutex::default(),
        });
        let heart = tokio::spawn(heartbeat::start(&inner).await?);
        Ok(Arc::new(Self { inner, heart }))
    }

    /// Gives the lease back, so that nobody waits for this gateway. Statements are refused from now on.
    pub async fn close(&self) {
        self.heart.abort();
        let sql = "DELETE FROM pgherd.gateway_lease WHERE incarnation = $1";
        if let Ok(control) = self.inner.control().await {
            let _ = control.execute(sql, &[&self.inner.incarnation]).await;
        }
        self.inner.lease.end();
    }

    /// The catalog as of the last heartbeat. Statements take theirs from [`Catalog::enter`].
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.inner.snapshot.load_full()
    }

    /// Registers a statement that uses these names (hashes of unqualified names of relations and functions), if nothing
    /// holds it up: no change of a name is pending and the lease is valid.
    pub fn try_enter(&self, names: &[u64]) -> Option<StatementGuard> {
        self.try_enter_as(names, None)
    }

    fn try_enter_as(&self, names: &[u64], own: Option<i64>) -> Option<StatementGuard> {
        let inner = &self.inner;
        let generation = inner.lease.generation();
        if !inner.lease.is_valid() {
            return None;
        }
        let registration = inner.flight.register(names);
        if inner.flight.is_closed(names, own) {
            return None;
        }
        Some(StatementGuard {
            snapshot: inner.snapshot.load_full(),
            registration,
            lease: inner.lease.clone(),
            generation,
        })
    }

    /// Registers a statement; waits while a change of one of its names is pending that is not the transaction's `own`, and
    /// while there is no lease.
    ///
    /// # Errors
    /// 57P03 without a lease, 55P03 when a change takes too long.
    pub async fn enter(&self, names: &[u64], own: Option<ChangeId>) -> Result<StatementGuard, Error> {
        let own = own.map(|id| id.0);
        if let Some(guard) = self.try_enter_as(names, own) {
            return Ok(guard);
        }
        let mut news = self.inner.news.subscribe();
        let started = tokio::time::Instant::now();
        loop {
            if let Some(guard) = self.try_enter_as(names, own) {
                return Ok(guard);
            }
            let (patience, error) = if self.lease_is_valid() {
                (ENTER_PATIENCE, Error::Blocked)
            } else {
                (LEASE_PATIENCE, Error::NoLease)
            };
            if started.elapsed() >= patience {
                return Err(error);
            }
            self.inner.wake.notify_one();
            let _ = tokio::time::timeout(Duration::from_millis(100), news.changed()).await;
        }
    }

    /// Registers a statement of an open transaction on tables which that transaction has locked on a shard already: it
    /// does not wait for a change, since the change waits for that lock. Its snapshot is that of its last statement.
    ///
    /// # Errors
    /// 57P03 without a lease.
    pub fn enter_touched(&self, names: &[u64], snapshot: Arc<Snapshot>) -> Result<StatementGuard, Error> {
        let inner = &self.inner;
        let generation = inner.lease.generation();
        if !inner.lease.is_valid() {
            return Err(Error::NoLease);
        }
        Ok(StatementGuard {
            snapshot,
            registration: inner.flight.register(names),
            lease: inner.lease.clone(),
            generation,
        })
    }

    /// Whether this gateway may serve at this moment. For an answer that took time, ask [`StatementGuard::is_valid`].
    pub fn lease_is_valid(&self) -> bool {
        self.inner.lease.is_valid()
    }

    /// The same, where there is time to take a lease again that has lapsed.
    pub async fn has_lease(&self) -> bool {
        self.inner.lease.holds(self.inner.lease.generation()).await
    }

    /// Looks for a newer catalog now: a shard said that the route was stale.
    pub async fn refresh(&self) -> Result<Arc<Snapshot>, Error> {
        self.inner.refresh().await?;
        Ok(self.snapshot())
    }

    /// The catalog of this epoch, or a later one. A change that others see committed is of no epoch until its gateway has ended it, or another one
    /// has, where that gateway died.
    ///
    /// # Errors
    /// 57P03 without a lease, 55P03 where the change does not end.
    pub async fn reach(&self, epoch: Epoch) -> Result<Arc<Snapshot>, Error> {
        let deadline = Instant::now() + HELD_PATIENCE;
        loop {
            let latest = self.refresh().await?;
            if latest.epoch >= epoch {
                return Ok(latest);
            }
            if Instant::now() >= deadline {
                return Err(Error::Blocked);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The catalog as an open transaction sees it, with its own schema changes. Its epoch is unlike any other's.
    pub async fn load_through(&self, home: &mut Backend) -> Result<Arc<Snapshot>, Error> {
        static UNCOMMITTED: AtomicU64 = AtomicU64::new(OF_OPEN_TRANSACTIONS);
        let deadline = Instant::now() + HELD_PATIENCE;
        let mut snapshot = loop {
            let results = home.simple("SELECT pgherd.seen_within('snapshot')").await?;
            let text = results.last().and_then(|r| r.text(0, 0)).unwrap_or_default();
            let shards = self.inner.shards.all().iter().map(|s| s.id);
            // What the transaction has made itself must not be taken for what the next one finds.
            let mut remembered = self.inner.remembered.lock().clone();
            let loaded = load::snapshot_with(text, shards, &mut remembered)?;
            if !loaded.incomplete {
                break loaded;
            }
            if Instant::now() >= deadline {
                return Err(Error::Blocked);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        snapshot.epoch = Epoch(UNCOMMITTED.fetch_add(1, SeqCst));
        Ok(Arc::new(snapshot))
    }

    /// Announces a change of these names and waits until no statement on any gateway uses them; gateways without a lease are
    /// not waited for. From then until the change is finished, only statements that enter with its id use the names. 0
    /// stands for all names. The caller must hold no [`StatementGuard`] on them.
    ///
    /// # Errors
    /// 57P03 without a lease, and whatever the home shard says.
    pub async fn begin_change(&self, names: &[u64], description: &str) -> Result<Change, Error> {
        Change::begin(&self.inner, None, names, description).await
    }

    /// The gateway's name and the number of this run, which grows from run to run and is under 2^63; its row in `pgherd.gateway_lease` has it as text.
    pub fn identity(&self) -> (&str, u64) {
        (
            &self.inner.options.gateway,
            self.inner.incarnation.parse().unwrap_or_default(),
        )
    }

    /// A number for a new sharded table, which nobody else gets.
    pub async fn new_table_number(&self) -> Result<pgherd_model::TableId, Error> {
        let sql = "SELECT nextval('pgherd.table_number')::integer";
        let number: i32 = self.inner.control().await?.query_one(sql, &[]).await?.get(0);
        Ok(pgherd_model::TableId(number as u32))
    }

    /// What signs catalog writes and markers.
    pub fn secret(&self) -> &str {
        &self.inner.options.secret
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.inner.options.cluster
    }

    /// The database.
    pub fn database(&self) -> &str {
        &self.inner.database
    }
}

/// Microseconds since 1970, and ten random bits for gateways that start at once.
fn new_incarnation() -> u64 {
    let since_1970 = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    (since_1970.as_micros() as u64 & ((1 << 53) - 1)) << 10 | (rand::random::<u64>() & 1023)
}

impl Drop for Catalog {
    fn drop(&mut self) {
        self.heart.abort();
    }
}
