//! What a coordinator knows of one shard: its service connection, whether it may be used, and how many commits it takes.
//!
//! A shard that restarts drops every connection, this one among them. So a closed service connection means: before the
//! shard is used again, look for transactions that wait there between the two phases.

use crate::Error;
use crate::gid::{Gid, SequenceId};
use crate::workers::Workers;
use parking_lot::{Mutex, RwLock};
use pgherd_model::ShardId;
use pgherd_shards::{ShardConfig, Shards};
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_postgres::{Client, SimpleQueryMessage};

/// A service statement that takes longer counts as no answer.
pub(crate) const SERVICE_TIMEOUT: Duration = Duration::from_secs(5);

/// What of a shard's schema matters to commits: deferrable constraints, and users' functions with a word in them for what PostgreSQL does
/// not prepare. One of those too many costs a round where the home shard is one of several writers.
pub(crate) const LOOK_AT_SCHEMA: &str = "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgdeferrable), \
    EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
            WHERE p.oid >= 16384 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgherd', 'pgherd_data') \
              AND p.prosrc ~* '\\m(notify|pg_notify|temp|temporary|refresh|pg_export_snapshot)\\M')";

pub(crate) struct ShardState {
    pub id: ShardId,
    client: RwLock<Option<Arc<Client>>>,
    connecting: tokio::sync::Mutex<()>,
    /// unfinished transactions were looked for on the present connection
    recovered: AtomicBool,
    /// acknowledged transactions that this shard does not show yet
    owed: Mutex<BTreeSet<Gid>>,
    owed_count: AtomicUsize,
    /// half of max_prepared_transactions: other gateways commit too
    commits: OnceLock<Arc<Semaphore>>,
    /// deferrable constraints exist
    pub deferrable: AtomicBool,
    /// functions exist that may do what PostgreSQL does not prepare
    pub unpreparable: AtomicBool,
    /// those that a statement may start there
    pub workers: Workers,
    registered: Mutex<Option<SequenceId>>,
    /// the watermark that it was last told
    pub published: Mutex<Option<(SequenceId, i64)>>,
}

impl ShardState {
    pub(crate) fn new(shard: &ShardConfig, all: &[ShardConfig]) -> Self {
        Self {
            id: shard.id,
            client: RwLock::new(None),
            connecting: tokio::sync::Mutex::new(()),
            recovered: AtomicBool::new(false),
            owed: Mutex::default(),
            owed_count: AtomicUsize::new(0),
            commits: OnceLock::new(),
            deferrable: AtomicBool::new(true),
            unpreparable: AtomicBool::new(false),
            workers: Workers::of(shard, all),
            registered: Mutex::new(None),
            published: Mutex::new(None),
        }
    }

    /// Whether statements may run there; costs no await.
    pub(crate) fn is_ready(&self) -> bool {
        self.owed_count.load(Ordering::Acquire) == 0
            && self.recovered.load(Ordering::Acquire)
            && self.client.read().as_ref().is_some_and(|c| !c.is_closed())
    }

    /// The present service connection, if there is one.
    pub(crate) fn connected(&self) -> Option<Arc<Client>> {
        self.client.read().clone().filter(|c| !c.is_closed())
    }

    /// The service connection, made anew where it was lost.
    pub(crate) async fn client(&self, shards: &Shards, database: &str) -> Result<Arc<Client>, Error> {
        if let Some(client) = self.connected() {
            return Ok(client);
        }
        let _one_at_a_time = self.connecting.lock().await;
        if let Some(client) = self.connected() {
            return Ok(client);
        }
        self.recovered.store(false, Ordering::Release);
        *self.registered.lock() = None;
        *self.published.lock() = None;
        let client = Arc::new(shards.connect_service(self.id, database).await?);
        let settings = "SET synchronous_commit = on; SET statement_timeout = 0; SET lock_timeout = 0; \
                        SET idle_in_transaction_session_timeout = 0; SET default_transaction_read_only = off; \
                        SET default_transaction_isolation = 'read committed'; \
                        SHOW max_parallel_workers_per_gather";
        let replies = self
            .within(client.simple_query(&format!("{settings}; {LOOK_AT_SCHEMA}")))
            .await?;
        let mut rows = replies.iter().filter_map(|reply| match reply {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        self.workers.learn(rows.next().and_then(|row| row.get(0)));
        if let Some(row) = rows.next() {
            self.learn_schema(row.get(0) == Some("t"), row.get(1) == Some("t"));
        }
        *self.client.write() = Some(client.clone());
        Ok(client)
    }

    /// What [`LOOK_AT_SCHEMA`] gave.
    pub(crate) fn learn_schema(&self, deferrable: bool, unpreparable: bool) {
        self.deferrable.store(deferrable, Ordering::Relaxed);
        self.unpreparable.store(unpreparable, Ordering::Relaxed);
    }

    /// Gives the connection up: it does not answer.
    pub(crate) fn disconnect(&self) {
        *self.client.write() = None;
    }

    /// Runs a service statement; one that does not end in time costs the connection.
    pub(crate) async fn within<T>(
        &self,
        statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(SERVICE_TIMEOUT, statement).await {
            Ok(done) => done.map_err(|e| self.error(e)),
            Err(_) => {
                self.disconnect();
                Err(Error::Shard(pgherd_shards::Error::Lost {
                    shard: self.id,
                    cause: format!("no answer within {} s", SERVICE_TIMEOUT.as_secs()),
                }))
            }
        }
    }

    fn error(&self, error: tokio_postgres::Error) -> Error {
        let Some(db) = error.as_db_error() else {
            let cause = error.to_string();
            return Error::Shard(pgherd_shards::Error::Lost { shard: self.id, cause });
        };
        let state = pgherd_model::SqlState::from_code(db.code().code());
        let mut made = pgherd_model::ServerError::new(state, db.message()).with_severity(db.severity());
        made.fields_mut().detail = db.detail().map(str::to_owned);
        made.fields_mut().hint = db.hint().map(str::to_owned);
        made.into()
    }

    pub(crate) fn is_recovered(&self) -> bool {
        self.recovered.load(Ordering::Acquire)
    }

    pub(crate) fn set_recovered(&self) {
        self.recovered.store(true, Ordering::Release);
    }

    /// An acknowledged transaction is not visible here yet: nobody may look before it is.
    pub(crate) fn owe(&self, gid: &Gid) {
        let mut owed = self.owed.lock();
        owed.insert(gid.clone());
        self.owed_count.store(owed.len(), Ordering::Release);
    }

    pub(crate) fn pay(&self, gid: &Gid) {
        let mut owed = self.owed.lock();
        owed.remove(gid);
        self.owed_count.store(owed.len(), Ordering::Release);
    }

    pub(crate) fn owes(&self) -> bool {
        self.owed_count.load(Ordering::Acquire) != 0
    }

    /// Whether this shard takes markers of the sequence.
    pub(crate) fn takes(&self, sequence: &SequenceId) -> bool {
        self.registered.lock().as_ref() == Some(sequence)
    }

    /// Makes sure that this shard takes markers of the sequence, and knows how many commits it takes at a time.
    pub(crate) async fn admit(&self, client: &Client, sequence: &SequenceId) -> Result<Arc<Semaphore>, Error> {
        if !self.takes(sequence) {
            let (name, incarnation) = (sequence.to_string(), sequence.incarnation as i64);
            let insert = "INSERT INTO pgherd.dtx_sequence (sequence, gateway, incarnation) VALUES ($1, $2, $3) \
                          ON CONFLICT DO NOTHING";
            self.within(client.execute(insert, &[&name, &sequence.gateway, &incarnation]))
                .await?;
            *self.registered.lock() = Some(sequence.clone());
        }
        if let Some(commits) = self.commits.get() {
            return Ok(commits.clone());
        }
        let row = client.query_one("SELECT current_setting('max_prepared_transactions')::int", &[]);
        let limit: i32 = self.within(row).await?.get(0);
        if limit == 0 {
            return Err(Error::NotPrepared {
                shard: self.id,
                cause: "max_prepared_transactions is 0".into(),
            });
        }
        let permits = (limit as usize / 2).max(1);
        Ok(self.commits.get_or_init(|| Arc::new(Semaphore::new(permits))).clone())
    }
}
