//! The coordinator of one database in one gateway: it begins transactions and keeps the shards free of unfinished ones.

use crate::control::{self, Control, Point};
use crate::gid::{self, Gid, SequenceId};
use crate::local_gate::LocalGate;
use crate::resolver::Listed;
use crate::sequence::Sequence;
use crate::shard_state::ShardState;
use crate::shared_cut::Cuts;
use crate::watched::Registry;
use crate::{Error, Mode, Transaction, deadlock_watch, housekeeping, resolver};
use futures::future::join_all;
use parking_lot::{Mutex, RwLock};
use pgherd_catalog::Catalog;
use pgherd_model::ShardId;
use pgherd_shards::{Backend, Identity, Shards};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// How long a statement waits for a shard that has unfinished transactions.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long transactions that a live gateway works on may keep a shard from being used when it comes back.
const LIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Who commits: from the catalog's lease and the cluster's configuration.
#[derive(Debug, Clone)]
pub struct CommitIdentity {
    /// the cluster's name
    pub cluster: String,
    /// the gateway's name
    pub gateway: String,
    /// which of its lives; the catalog draws a new number for each
    pub incarnation: u64,
    /// the secret that all gateways of the cluster share
    pub secret: String,
}

impl CommitIdentity {
    /// As the catalog has it: whoever holds its lease is alive to recovery.
    pub fn of(catalog: &Catalog) -> Self {
        let (gateway, incarnation) = catalog.identity();
        Self {
            cluster: catalog.cluster().into(),
            gateway: gateway.into(),
            incarnation,
            secret: catalog.secret().into(),
        }
    }
}

/// How long a coordinator that ends waits for the shards to note it.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Begins transactions, and finishes what dead gateways left. One per database; dropping it stops its background tasks.
pub struct Coordinator {
    pub(crate) shards: Arc<Shards>,
    pub(crate) database: String,
    pub(crate) identity: CommitIdentity,
    pub(crate) sequence: Arc<Sequence>,
    pub(crate) states: Vec<ShardState>,
    /// by sequence: all numbers up to this are settled, as other gateways have told
    pub(crate) watermarks: RwLock<Watermarks>,
    /// keeps this gateway's commits and cuts apart
    pub(crate) gate: Arc<LocalGate>,
    /// what transactions at REPEATABLE READ show
    pub(crate) cuts: Arc<Cuts>,
    /// wakes the background task before its time
    pub(crate) wake: Notify,
    pub(crate) control: RwLock<Option<Control>>,
    /// the open transactions over several shards
    pub(crate) watched: Arc<Registry>,
    background: Mutex<Vec<AbortHandle>>,
}

/// What others have settled, and when that was read.
#[derive(Default)]
pub(crate) struct Watermarks {
    pub settled: BTreeMap<String, i64>,
    pub read_at: Option<Instant>,
}

impl Coordinator {
    /// Finishes what is unfinished on the shards that answer, and goes on doing so in the background, every second.
    pub async fn open(shards: Arc<Shards>, database: &str, identity: CommitIdentity) -> Result<Arc<Self>, Error> {
        let id = SequenceId {
            gateway: gid::label(&identity.gateway),
            incarnation: identity.incarnation,
            generation: 0,
        };
        let sequence = Sequence::new(gid::label(&identity.cluster), gid::database_hash(database), id);
        let states = shards.all().iter().map(|s| ShardState::new(s, shards.all())).collect();
        let this = Arc::new(Self {
            shards,
            database: database.into(),
            identity,
            sequence,
            states,
            watermarks: RwLock::default(),
            gate: Arc::default(),
            cuts: Cuts::new(),
            wake: Notify::new(),
            control: RwLock::new(control::from_environment()),
            watched: Arc::default(),
            background: Mutex::default(),
        });
        let ready = join_all(this.states.iter().map(|s| this.make_ready(s))).await;
        for (state, outcome) in this.states.iter().zip(ready) {
            match outcome {
                // It can be used without; the first statement there tries again.
                Err(e) if e.sqlstate() == pgherd_model::SqlState::UNABLE_TO_CONNECT => {
                    tracing::warn!(shard = %state.id, "not reachable, its transactions are looked at when it is: {e}");
                }
                other => other?,
            }
        }
        let tasks = [
            tokio::spawn(housekeeping::run(Arc::downgrade(&this))),
            tokio::spawn(deadlock_watch::run(Arc::downgrade(&this))),
        ];
        *this.background.lock() = tasks.iter().map(|t| t.abort_handle()).collect();
        Ok(this)
    }

    /// A transaction. Nothing is sent before a shard takes part.
    pub fn begin(self: &Arc<Self>, who: Identity, mode: Mode) -> Transaction {
        Transaction::new(self.clone(), who, mode)
    }

    /// A connection for one statement on one shard, outside of a transaction block.
    ///
    /// Errors: 57P03 when transactions that wait there between the two phases are not finished in time; whatever making a
    /// connection may give.
    pub async fn autocommit(&self, shard: ShardId, who: &Identity) -> Result<Backend, Error> {
        self.until_ready(shard).await?;
        Ok(self.shards.checkout(shard, who).await?)
    }

    /// A connection of the service role, for a short look-up beside a statement: the pool of the client's role may be in use to the last
    /// connection, by sessions that all wait for such an answer.
    pub async fn service(&self, shard: ShardId) -> Result<Backend, Error> {
        let service = Identity::new(self.shards.service_role(), &self.database);
        Ok(self.shards.checkout(shard, &service).await?)
    }

    /// Waits while a shard has unfinished transactions that somebody may rely on.
    pub(crate) async fn until_ready(&self, shard: ShardId) -> Result<(), Error> {
        let state = self.state(shard)?;
        match state.is_ready() {
            true => Ok(()),
            false => self.wait_until_ready(state).await,
        }
    }

    /// Its transactions have ended, and there will be no more: tells the shards that answer soon, so that nobody has to find it out.
    pub async fn end(&self) {
        let _ = tokio::time::timeout(END_TIMEOUT, housekeeping::end_sequence(self)).await;
    }

    /// Sets what is asked at every step of a commit, for tests of what happens when a gateway dies there.
    pub fn set_control(&self, control: Option<Control>) {
        *self.control.write() = control;
    }

    /// Stops here if a test says so.
    pub(crate) fn pass(&self, point: Point) -> Result<(), Error> {
        match &*self.control.read() {
            Some(control) if !control(point) => Err(Error::OutcomeUnknown {
                cause: format!("stopped at {point:?}"),
            }),
            _ => Ok(()),
        }
    }

    pub(crate) fn state(&self, shard: ShardId) -> Result<&ShardState, Error> {
        let found = self.states.iter().find(|s| s.id == shard);
        found.ok_or(Error::Shard(pgherd_shards::Error::UnknownShard(shard)))
    }

    async fn wait_until_ready(&self, state: &ShardState) -> Result<(), Error> {
        let waiting = async {
            while !state.is_ready() {
                self.make_ready(state).await?;
                if state.owes() {
                    self.wake.notify_one();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Ok(())
        };
        match tokio::time::timeout(READY_TIMEOUT, waiting).await {
            Ok(done) => done,
            Err(_) => Err(Error::NotReady {
                shard: state.id,
                cause: format!(
                    "unfinished transactions there were not resolved within {} s",
                    READY_TIMEOUT.as_secs()
                ),
            }),
        }
    }

    /// Connects to a shard and finishes what waits there, as far as that can be decided now.
    pub(crate) async fn make_ready(&self, state: &ShardState) -> Result<(), Error> {
        let client = state.client(&self.shards, &self.database).await?;
        if state.is_recovered() {
            return Ok(());
        }
        state
            .admit(&client, &self.sequence.id())
            .await
            .map(|_| ())
            .or_else(|e| match e {
                // Reading and one-shard transactions need no PREPARE.
                Error::NotPrepared { .. } => Ok(()),
                other => Err(other),
            })?;
        let begun = Instant::now();
        let mut first: Option<Vec<Gid>> = None;
        loop {
            let listed_at = Instant::now();
            let here: Vec<Listed> = resolver::list(self, state).await?;
            let here: Vec<Gid> = here.into_iter().map(|l| l.gid).collect();
            let waiting = match &first {
                None => here.clone(),
                Some(first) => here.into_iter().filter(|g| first.contains(g)).collect(),
            };
            first.get_or_insert_with(|| waiting.clone());
            let undecided = resolver::resolve_all(self, &waiting, listed_at).await;
            // Those of live gateways are theirs to finish; those that need a shard which is down have no outcome yet.
            if undecided.live.is_empty() || begun.elapsed() > LIVE_TIMEOUT {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        state.set_recovered();
        Ok(())
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        for task in self.background.lock().drain(..) {
            task.abort();
        }
    }
}
