//! A cut that many transactions read: REPEATABLE READ's snapshot over all shards.
//!
//! On each shard a *holder*, a service connection outside of the pools, opens a read-only block at REPEATABLE READ, lists the
//! markers that its snapshot shows, and exports the snapshot. Holders whose snapshots turn out too old (see [`crate::cut`])
//! begin anew; what is left is a cut, and participants import it with SET TRANSACTION SNAPSHOT. An importer can write and be
//! prepared; an exporter could not, which is why holders are connections of their own.
//!
//! Transactions that ask at the same moment share one cut. Nobody joins a cut that was begun before it asked: it could lack
//! what was acknowledged in between.
//!
//! Holders keep old row versions from being vacuumed. So a cut ends with the last transaction that may still enlist a shard,
//! and its connections are rolled back and kept for the next one.

use crate::commit_gate::Gate;
use crate::cut::{self, Seen, stale};
use crate::gid::Gid;
use crate::read_cut::{EAGER_TRIES, Known, LATE_ROUNDS, SEARCH_TIMEOUT};
use crate::shard_state::SERVICE_TIMEOUT;
use crate::{Coordinator, Error};
use futures::future::{join, join_all};
use parking_lot::Mutex;
use pgherd_model::ShardId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Statement};

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
const BEGIN_ANEW: &str = "ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// Of one snapshot: what it shows, and its name for importers.
const EXPORT: &str = "SELECT pgherd.visible_markers($1, $2), pg_catalog.pg_export_snapshot()";
/// No timeout may end a holder while somebody can still import from it.
const SETTINGS: &str = "SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0; SET lock_timeout = 0";
/// Cuts at a time, each with a connection to every shard.
const MOST_CUTS: usize = 32;
/// How long a transaction waits for one of the others to end.
const PLACE_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle holders that are kept, on each shard.
const MOST_IDLE: usize = 8;

/// The cuts of one coordinator.
pub(crate) struct Cuts {
    /// how many have asked for one
    asked: AtomicU64,
    /// whose turn it is to make one, and the last that was made
    turn: tokio::sync::Mutex<Option<Made>>,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

/// A cut, for those who had asked when it was begun.
struct Made {
    for_asked_before: u64,
    outcome: Result<Weak<SharedCut>, Error>,
}

/// The connection of a holder.
struct Connection {
    shard: ShardId,
    client: Client,
    export: Statement,
}

/// An open block on one shard, whose snapshot can be imported while this lives.
struct Holder {
    shard: ShardId,
    /// taken when dropped
    connection: Option<Connection>,
    snapshot: String,
    cuts: Weak<Cuts>,
}

/// Snapshots of all shards that together show every transaction wholly or not at all.
pub(crate) struct SharedCut {
    /// a shard that did not answer has an error instead
    snapshots: BTreeMap<ShardId, Result<Holder, Error>>,
    _place: OwnedSemaphorePermit,
}

impl SharedCut {
    /// PostgreSQL's names of the snapshots.
    ///
    /// Errors: a shard's, where it had not answered.
    pub(crate) fn names(&self) -> Result<BTreeMap<ShardId, String>, Error> {
        let name = |(shard, holder): (&ShardId, &Result<Holder, Error>)| match holder {
            Ok(holder) => Ok((*shard, holder.snapshot.clone())),
            Err(e) => Err(e.clone()),
        };
        self.snapshots.iter().map(name).collect()
    }

    /// What makes a block that has just begun on this shard see the cut.
    ///
    /// Errors: the shard did not answer when the cut was made, or the snapshot is lost with its connection.
    pub(crate) fn import_sql(&self, shard: ShardId) -> Result<String, Error> {
        let found = self.snapshots.get(&shard);
        let holder = found
            .ok_or(Error::SnapshotLost { shard })?
            .as_ref()
            .map_err(Error::clone)?;
        match &holder.connection {
            Some(connection) if !connection.client.is_closed() => {
                Ok(format!("SET TRANSACTION SNAPSHOT '{}'", holder.snapshot))
            }
            _ => Err(Error::SnapshotLost { shard }),
        }
    }
}

impl Cuts {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            asked: AtomicU64::new(0),
            turn: tokio::sync::Mutex::new(None),
            places: Arc::new(Semaphore::new(MOST_CUTS)),
            idle: Mutex::default(),
        })
    }

    fn take_idle(&self, shard: ShardId) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.retain(|c| !c.client.is_closed());
        let at = idle.iter().rposition(|c| c.shard == shard)?;
        Some(idle.swap_remove(at))
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock();
        if idle.iter().filter(|c| c.shard == connection.shard).count() < MOST_IDLE {
            idle.push(connection);
        }
    }
}

impl Coordinator {
    /// A cut that shows everything acknowledged before this call.
    ///
    /// Errors: 40001 when there was none to be had within 20 s; 53300 when too many are in use; a shard's, when no shard answers.
    pub(crate) async fn shared_cut(&self) -> Result<Arc<SharedCut>, Error> {
        let asked = self.cuts.asked.fetch_add(1, Ordering::SeqCst);
        let mut turn = self.cuts.turn.lock().await;
        if let Some(made) = turn.as_ref().filter(|made| asked < made.for_asked_before) {
            match made.outcome.as_ref().map(Weak::upgrade) {
                Ok(Some(cut)) => return Ok(cut),
                Err(e) => return Err(e.clone()),
                // Whom it was made for has ended.
                Ok(None) => {}
            }
        }
        let for_asked_before = self.cuts.asked.load(Ordering::SeqCst);
        let made = self.make_cut().await.map(Arc::new);
        *turn = Some(Made {
            for_asked_before,
            outcome: made.as_ref().map(Arc::downgrade).map_err(Error::clone),
        });
        made
    }

    async fn make_cut(&self) -> Result<SharedCut, Error> {
        let place = self.cuts.places.clone().acquire_owned();
        let place = match tokio::time::timeout(PLACE_TIMEOUT, place).await {
            Ok(Ok(place)) => place,
            _ => return Err(Error::TooManySnapshots { limit: MOST_CUTS }),
        };
        let begun = Instant::now();
        let opened = join_all(
            self.states
                .iter()
                .map(async |state| (state.id, self.holder(state.id).await)),
        )
        .await;
        let (mut holders, mut failed) = (BTreeMap::new(), BTreeMap::new());
        for (shard, holder) in opened {
            match holder {
                Ok(holder) => drop(holders.insert(shard, holder)),
                Err(e) => drop(failed.insert(shard, e)),
            }
        }
        self.find_cut(&mut holders, &mut failed).await?;
        metrics::histogram!("pgherd_shared_cut_seconds").record(begun.elapsed().as_secs_f64());
        let holders = holders.into_iter().map(|(shard, holder)| (shard, Ok(holder)));
        let failed = failed.into_iter().map(|(shard, e)| (shard, Err(e)));
        Ok(SharedCut {
            snapshots: holders.chain(failed).collect(),
            _place: place,
        })
    }

    /// Takes snapshots until they are a cut. Shards that do not answer go to `failed`: a transaction may not need them.
    async fn find_cut(
        &self,
        holders: &mut BTreeMap<ShardId, Holder>,
        failed: &mut BTreeMap<ShardId, Error>,
    ) -> Result<(), Error> {
        let (mut begun, mut late) = (Instant::now(), 0);
        let mut seen: BTreeMap<ShardId, Seen> = BTreeMap::new();
        let (mut known, mut known_since) = (self.known().await?, Instant::now());
        for tries in 0_u32.. {
            let all: BTreeSet<ShardId> = holders.keys().copied().collect();
            let step = tries % (EAGER_TRIES + 1);
            let refresh = if step == 0 || known_since.elapsed() > cut::TIME_LIMIT {
                all.clone()
            } else {
                stale_of(&seen)
            };
            let gate = Gate::for_try(self, &all, tries).await;
            if refresh.len() == all.len() && (tries > 0 || gate.is_some()) {
                (known, known_since) = (self.known().await?, Instant::now());
            }
            if tries > 0 && !refresh.is_empty() {
                metrics::counter!("pgherd_cut_retries_total").increment(1);
            }
            let taken = holders.values_mut().filter(|h| refresh.contains(&h.shard));
            let taken = join_all(taken.map(async |h| (h.shard, h.take(&known).await)));
            let taken = Gate::hold_for(gate, taken).await;
            for (shard, outcome) in taken {
                match outcome {
                    Ok(gids) => drop(seen.insert(shard, Seen::of_one(gids))),
                    Err(e) => {
                        holders.remove(&shard);
                        seen.remove(&shard);
                        failed.insert(shard, e);
                    }
                }
            }
            match failed.values().next() {
                Some(e) if holders.is_empty() => return Err(e.clone()),
                _ => {}
            }
            if known_since.elapsed() > cut::TIME_LIMIT {
                // Markers that these lists lack may have been deleted since: they prove nothing.
                (begun, late) = (Instant::now(), late + 1);
                if late > LATE_ROUNDS {
                    return Err(self.why_no_cut(&BTreeMap::new(), tries).await);
                }
                continue;
            }
            if stale_of(&seen).is_empty() {
                return Ok(());
            }
            if begun.elapsed() > SEARCH_TIMEOUT {
                return Err(self.why_no_cut(&seen, tries).await);
            }
            if tries > 3 * EAGER_TRIES {
                tokio::time::sleep(Duration::from_millis(rand::random_range(1..10))).await;
            }
        }
        Ok(())
    }

    /// A holder without a snapshot yet.
    async fn holder(&self, shard: ShardId) -> Result<Holder, Error> {
        // A shard that came back is not looked at before what waits there is finished.
        self.until_ready(shard).await?;
        let connection = match self.cuts.take_idle(shard) {
            Some(connection) => connection,
            None => {
                let client = self.shards.connect_service(shard, &self.database).await?;
                let prepare = async {
                    client.batch_execute(SETTINGS).await?;
                    client
                        .prepare_typed(EXPORT, &[Type::TEXT_ARRAY, Type::INT8_ARRAY])
                        .await
                };
                let export = self.state(shard)?.within(prepare).await?;
                Connection { shard, client, export }
            }
        };
        Ok(Holder {
            shard,
            connection: Some(connection),
            snapshot: String::new(),
            cuts: Arc::downgrade(&self.cuts),
        })
    }
}

fn stale_of(seen: &BTreeMap<ShardId, Seen>) -> BTreeSet<ShardId> {
    let snapshots: Vec<_> = seen.iter().map(|(shard, seen)| (*shard, seen)).collect();
    stale(&snapshots, &BTreeSet::new())
}

impl Holder {
    /// Begins anew and exports the snapshot; the markers that it shows.
    async fn take(&mut self, known: &Known) -> Result<BTreeSet<Gid>, Error> {
        let shard = self.shard;
        let lost = |cause: String| Error::Shard(pgherd_shards::Error::Lost { shard, cause });
        let connection = self.connection.as_ref().ok_or(Error::SnapshotLost { shard })?;
        let (sequences, settled) = known.lists();
        let begin = if self.snapshot.is_empty() { BEGIN } else { BEGIN_ANEW };
        let parameters: [&(dyn ToSql + Sync); 2] = [&sequences, &settled];
        // One write and one reply: the requests go out in this order when they are first polled.
        let both = join(
            connection.client.batch_execute(begin),
            connection.client.query_one(&connection.export, &parameters),
        );
        let (begun, row) = tokio::time::timeout(SERVICE_TIMEOUT, both)
            .await
            .map_err(|_| lost(format!("no answer within {} s", SERVICE_TIMEOUT.as_secs())))?;
        let row = begun.and(row).map_err(|e| lost(e.to_string()))?;
        self.snapshot = row.get(1);
        let gids: Vec<String> = row.get(0);
        Ok(gids.iter().filter_map(|gid| Gid::parse(gid)).collect())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Without a runtime to wait in, the connection closes, which ends the block as well.
        let (Some(connection), Ok(runtime)) = (self.connection.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let cuts = self.cuts.clone();
        runtime.spawn(async move {
            let ended = tokio::time::timeout(SERVICE_TIMEOUT, connection.client.batch_execute("ROLLBACK")).await;
            if let (Ok(Ok(())), Some(cuts)) = (ended, cuts.upgrade()) {
                cuts.give_back(connection);
            }
        });
    }
}
