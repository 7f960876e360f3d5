//! Pools: idle connections per shard, role and database, and a limit on those in use.

use crate::connection::{Connection, Listed, Processes};
use crate::tls::{Connector, Tls};
use crate::{Backend, Error};
use ahash::AHashMap;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use pgherd_model::{ServerError, ShardId, SqlState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What undoes every setting of an earlier session.
pub const RESET_SQL: &str = "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL";

/// A number for what ALTER ROLE … SET and ALTER DATABASE … SET give a session of the present role that logs in now, and for
/// the role itself: one that was dropped and made again is another one. OIDs differ between shards, and so do the numbers.
///
/// Errors: 42704 where the role that the connection has logged in as was dropped.
pub const LOGIN_DEFAULTS_SQL: &str = "SELECT pg_catalog.hashtextextended(coalesce(pg_catalog.string_agg( \
     (setrole = 0)::text || (setdatabase = 0)::text || setconfig::text, ' ' ORDER BY setrole = 0, setdatabase = 0), '') \
     || ' ' || (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)::text, 0) \
     FROM pg_catalog.pg_db_role_setting \
     WHERE setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)) \
     AND setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))";

/// The fingerprint of a backend whose settings are not known: the next checkout brings them in line.
pub const UNKNOWN_SETTINGS: u64 = u64::MAX;

/// A timer that fires this much too late tells that the process, or its machine, was paused.
const LATE: Duration = Duration::from_millis(200);
/// How often a connection is tried again where the server has no room for more.
const FULL_INTERVAL: Duration = Duration::from_millis(20);

/// Where a shard is.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// its number
    pub id: ShardId,
    /// its name
    pub name: String,
    /// a folder with a Unix socket (starting with `/`), or a host name
    pub host: String,
    /// its port, which also names the socket
    pub port: u16,
    /// how connections over TCP are encrypted, if they are
    pub tls: Option<Tls>,
}

impl ShardConfig {
    /// How tokio-postgres connects to this shard; with [`ShardConfig::connector`].
    pub fn service_settings(&self, role: &str, database: &str) -> tokio_postgres::Config {
        let mut settings = tokio_postgres::Config::new();
        settings.user(role).dbname(database).port(self.port);
        match self.host.starts_with('/') {
            true => settings.host_path(&self.host),
            false => settings.host(&self.host),
        };
        settings.ssl_mode(match self.tls {
            Some(_) => tokio_postgres::config::SslMode::Require,
            None => tokio_postgres::config::SslMode::Disable,
        });
        settings
    }

    /// What encrypts tokio-postgres' connections to this shard.
    pub fn connector(&self) -> Connector {
        Connector(self.tls.clone())
    }
}

/// Who a statement runs as, where, and under which session settings. Pools are per role and database;
/// settings are brought in line at checkout, so that whoever enlists a shard need not think of them.
#[derive(Debug, Clone)]
pub struct Identity {
    /// the client's role, which backends log in as
    pub role: Arc<str>,
    /// the database
    pub database: Arc<str>,
    /// what [`LOGIN_DEFAULTS_SQL`] gave on the home shard when the session began, 0 where nobody asked: backends that
    /// logged in under other defaults are not for it
    pub login_defaults: i64,
    /// the session's settings; None for the role's own
    pub settings: Option<Arc<SessionSettings>>,
    /// the connection that holds the session's state, once it has some
    pub pin: Option<Arc<Pin>>,
}

/// One connection of one shard that belongs to a session, because it holds temporary objects or other state that no
/// setting can restore. It is closed when the session drops it.
pub struct Pin {
    shard: ShardId,
    held: Mutex<Option<(Connection, Arc<Pool>, OwnedSemaphorePermit)>>,
    lost: AtomicBool,
}

impl Pin {
    /// For a connection to this shard; see [`Backend::pin`].
    pub fn new(shard: ShardId) -> Arc<Self> {
        Arc::new(Self {
            shard,
            held: Mutex::default(),
            lost: AtomicBool::new(false),
        })
    }

    /// The backend's process id, while nobody has it checked out.
    pub fn process_id(&self) -> Option<i32> {
        self.held
            .lock()
            .as_ref()
            .map(|(connection, ..)| connection.process_id())
    }

    /// The bodies of the notifications that came, while nobody has the connection checked out.
    pub fn take_notifications(&self) -> Vec<Bytes> {
        let mut held = self.held.lock();
        held.as_mut()
            .map(|(connection, ..)| connection.take_notifications())
            .unwrap_or_default()
    }

    /// Waits, while nobody has the connection checked out, until notifications have come.
    ///
    /// # Errors
    /// The shard has ended the connection, and what it held is gone.
    pub async fn notified(&self) -> Result<(), Error> {
        std::future::poll_fn(|context| match &mut *self.held.lock() {
            Some((connection, ..)) => connection.poll_unasked(context),
            None => std::task::Poll::Pending,
        })
        .await
    }

    /// The connection cannot be given back.
    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    pub(crate) fn hold(&self, connection: Connection, pool: Arc<Pool>, permit: OwnedSemaphorePermit) {
        *self.held.lock() = Some((connection, pool, permit));
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pin(shard {})", self.shard)
    }
}

/// Session settings as SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSettings {
    /// equal for equal settings; never 0, which means the role's own
    pub fingerprint: u64,
    /// statements that bring a backend with any other settings in line
    pub sync_sql: String,
}

impl Identity {
    /// Without settings.
    pub fn new(role: &str, database: &str) -> Self {
        Self {
            role: role.into(),
            database: database.into(),
            login_defaults: 0,
            settings: None,
            pin: None,
        }
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.role == other.role && self.database == other.database && self.login_defaults == other.login_defaults
    }
}

impl Eq for Identity {}

impl std::hash::Hash for Identity {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.role.hash(state);
        self.database.hash(state);
        self.login_defaults.hash(state);
    }
}

/// How pools behave.
#[derive(Debug, Clone)]
pub struct Options {
    /// all shards
    pub shards: Vec<ShardConfig>,
    /// the role of service connections
    pub service_role: String,
    /// connections per shard, role and database
    pub pool_size: usize,
    /// how long a checkout may wait for a free connection
    pub checkout_timeout: Duration,
    /// how long making a connection may take
    pub connect_timeout: Duration,
    /// idle connections older than this are closed at the next checkout or return
    pub idle_timeout: Duration,
}

impl Options {
    /// Defaults for these shards.
    pub fn new(shards: Vec<ShardConfig>, service_role: impl Into<String>) -> Self {
        Self {
            shards,
            service_role: service_role.into(),
            pool_size: 40,
            checkout_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(300),
        }
    }
}

/// The connections of one shard, role and database.
pub(crate) struct Pool {
    config: Arc<ShardConfig>,
    who: Identity,
    /// by number, the lowest last
    idle: Mutex<Vec<Connection>>,
    /// how many were opened so far
    opened: AtomicU64,
    /// the defaults that this shard gave the first of them, which all share
    login_defaults: OnceLock<i64>,
    slots: Arc<Semaphore>,
    idle_timeout: Duration,
}

impl Pool {
    pub(crate) fn give_back(&self, mut connection: Connection) {
        if connection.is_reusable() {
            connection.idle_since = Instant::now();
            let mut idle = self.idle.lock();
            let at = idle.partition_point(|other| other.number > connection.number);
            idle.insert(at, connection);
        }
    }

    /// Closes connections that have been idle for long; the highest numbers are the first to be.
    fn close_old(&self, idle: &mut Vec<Connection>) {
        let oldest = Instant::now().checked_sub(self.idle_timeout);
        if idle.first().is_some_and(|c| oldest.is_some_and(|o| c.idle_since < o)) {
            idle.retain(|c| oldest.is_none_or(|o| c.idle_since >= o));
        }
    }

    /// The connection with the lowest number that is still good. Always preferring the same ones keeps their caches warm:
    /// with last in, first out, a backend that is seldom used is the first that the system lets run and so the next to be
    /// taken, and all are used alike.
    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        self.close_old(&mut idle);
        while let Some(connection) = idle.pop() {
            if connection.is_reusable() {
                return Some(connection);
            }
        }
        None
    }
}

/// All shards of the cluster and the pools to them.
pub struct Shards {
    options: Options,
    pools: RwLock<AHashMap<(ShardId, Identity), Arc<Pool>>>,
    processes: Processes,
}

impl Shards {
    /// Makes no connection yet.
    pub fn new(mut options: Options) -> Arc<Self> {
        options.shards.sort_by_key(|s| s.id);
        Arc::new(Self {
            options,
            pools: RwLock::default(),
            processes: Processes::default(),
        })
    }

    /// All shards, ascending by id; the first is the home shard.
    pub fn all(&self) -> &[ShardConfig] {
        &self.options.shards
    }

    /// The home shard.
    pub fn home(&self) -> ShardId {
        self.options.shards.first().map_or(ShardId(1), |s| s.id)
    }

    /// A shard's configuration.
    pub fn config(&self, shard: ShardId) -> Result<&ShardConfig, Error> {
        self.options
            .shards
            .iter()
            .find(|s| s.id == shard)
            .ok_or(Error::UnknownShard(shard))
    }

    /// The role of service connections.
    pub fn service_role(&self) -> &str {
        &self.options.service_role
    }

    /// A connection logged in as `who`, from the pool or new.
    pub async fn checkout(&self, shard: ShardId, who: &Identity) -> Result<Backend, Error> {
        let pin = who.pin.as_ref().filter(|pin| pin.shard == shard);
        if pin.is_some_and(|pin| pin.lost.load(Ordering::Relaxed)) {
            return Err(lost_state());
        }
        let backend = match pin.and_then(|pin| pin.held.lock().take()) {
            Some((connection, pool, permit)) => {
                let mut backend = Backend::new(connection, pool, permit);
                backend.pin(who.pin.clone());
                backend
            }
            None => self.take_from_pool(shard, who).await?,
        };
        self.bring_in_line(backend, who).await
    }

    async fn take_from_pool(&self, shard: ShardId, who: &Identity) -> Result<Backend, Error> {
        let pool = self.pool(shard, who)?;
        let deadline = Instant::now() + self.options.checkout_timeout;
        loop {
            let permit = self.permit(shard, &pool).await?;
            if let Some(connection) = pool.take_idle() {
                return Ok(Backend::new(connection, pool, permit));
            }
            match self.open(shard, pool.clone(), permit).await {
                // The server or the role has no room for more: idle ones of others give way, or one that is in use becomes free.
                Err(Error::Server(error))
                    if error.sqlstate() == SqlState::TOO_MANY_CONNECTIONS
                        && (self.make_room(shard, &pool)
                            || pool.slots.available_permits() < self.options.pool_size)
                        && Instant::now() < deadline =>
                {
                    tokio::time::sleep(FULL_INTERVAL).await;
                }
                opened => return opened,
            }
        }
    }

    /// Closes the idle connections of all other pools to a shard; whether there were any.
    fn make_room(&self, shard: ShardId, pool: &Arc<Pool>) -> bool {
        let pools = self.pools.read();
        let others = pools
            .iter()
            .filter(|((of, _), other)| *of == shard && !Arc::ptr_eq(other, pool));
        let closed = others.map(|(_, other)| std::mem::take(&mut *other.idle.lock()).len());
        closed.sum::<usize>() > 0
    }

    /// The right to use one of the pool's connections.
    async fn permit(&self, shard: ShardId, pool: &Pool) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(permit) = pool.slots.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let waiting = pool.slots.clone().acquire_owned();
        let timeout = self.options.checkout_timeout;
        match tokio::time::timeout(timeout, waiting).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::PoolTimeout {
                shard,
                waited_ms: timeout.as_millis() as u64,
            }),
        }
    }

    async fn bring_in_line(&self, mut backend: Backend, who: &Identity) -> Result<Backend, Error> {
        let wanted = who.settings.as_ref().map_or(0, |s| s.fingerprint);
        if backend.settings() != wanted {
            let sql = who.settings.as_ref().map_or(RESET_SQL, |s| &s.sync_sql);
            // Until the last SET succeeded, the connection equals no session.
            backend.set_settings(UNKNOWN_SETTINGS);
            // A text of several statements is read as a whole, by what the connection was told before.
            if backend.parameter("standard_conforming_strings") == Some("off") {
                backend.simple("SET standard_conforming_strings = on").await?;
            }
            backend.simple(sql).await?;
            backend.set_settings(wanted);
        }
        Ok(backend)
    }

    async fn open(&self, shard: ShardId, pool: Arc<Pool>, permit: OwnedSemaphorePermit) -> Result<Backend, Error> {
        let mut opening = std::pin::pin!(Connection::open(&pool.config, &pool.who));
        let (begun, limit) = (Instant::now(), self.options.connect_timeout);
        let mut opened = tokio::time::timeout(limit, &mut opening).await;
        // Then this process stood still itself, and the shard may have answered long ago.
        if opened.is_err() && begun.elapsed() > limit + LATE {
            opened = tokio::time::timeout(limit, &mut opening).await;
        }
        match opened {
            Ok(connection) => {
                metrics::counter!("pgherd_shard_connections_opened_total", "shard" => pool.config.name.clone())
                    .increment(1);
                let mut connection = connection?;
                connection.number = pool.opened.fetch_add(1, Ordering::Relaxed);
                connection.listed = Some(Listed::new(&self.processes, shard, connection.process_id()));
                let mut backend = Backend::new(connection, pool.clone(), permit);
                if pool.who.login_defaults != 0 {
                    let defaults = backend.login_defaults().await?;
                    if *pool.login_defaults.get_or_init(|| defaults) != defaults {
                        // Nor is it for the next who asks this pool.
                        backend.taint();
                        return Err(other_defaults());
                    }
                }
                Ok(backend)
            }
            Err(_) => Err(Error::Unreachable {
                shard,
                name: pool.config.name.clone(),
                address: format!("{}:{}", pool.config.host, pool.config.port),
                cause: format!("no answer within {} ms", limit.as_millis()),
            }),
        }
    }

    /// Closes the idle connections of a database (before DROP DATABASE) or of all.
    pub fn close_idle(&self, database: Option<&str>) {
        for ((_, who), pool) in self.pools.read().iter() {
            if database.is_none_or(|d| d == &*who.database) {
                pool.idle.lock().clear();
            }
        }
    }

    /// The processes of a shard that serve the pools' connections, whether these are in use or not.
    pub fn processes(&self, shard: ShardId) -> Vec<i32> {
        let processes = self.processes.lock();
        processes
            .iter()
            .filter(|(of, _)| *of == shard)
            .map(|(_, id)| *id)
            .collect()
    }

    fn pool(&self, shard: ShardId, who: &Identity) -> Result<Arc<Pool>, Error> {
        // The pool stays when the session is gone. With the session's own connection in it, that would stay as well, and what
        // it holds: advisory locks, temporary tables.
        let of_all = Identity {
            login_defaults: who.login_defaults,
            role: who.role.clone(),
            database: who.database.clone(),
            settings: None,
            pin: None,
        };
        let key = (shard, of_all);
        if let Some(pool) = self.pools.read().get(&key) {
            return Ok(pool.clone());
        }
        let config = Arc::new(self.config(shard)?.clone());
        let mut pools = self.pools.write();
        // Nobody comes any more to the pools of defaults that have changed.
        pools.values().for_each(|pool| pool.close_old(&mut pool.idle.lock()));
        let who = key.1.clone();
        let pool = pools.entry(key).or_insert_with(|| {
            Arc::new(Pool {
                config,
                who,
                idle: Mutex::default(),
                opened: AtomicU64::new(0),
                login_defaults: OnceLock::new(),
                slots: Arc::new(Semaphore::new(self.options.pool_size)),
                idle_timeout: self.options.idle_timeout,
            })
        });
        Ok(pool.clone())
    }

    /// A connection of the service role, outside of the pools, for the catalog, recovery and operations. It
    /// ends when the client is dropped.
    pub async fn connect_service(&self, shard: ShardId, database: &str) -> Result<tokio_postgres::Client, Error> {
        let config = self.config(shard)?;
        let unreachable = |cause: String| Error::Unreachable {
            shard,
            name: config.name.clone(),
            address: format!("{}:{}", config.host, config.port),
            cause,
        };
        let mut settings = config.service_settings(&self.options.service_role, database);
        settings.application_name("pgherd service");
        settings.connect_timeout(self.options.connect_timeout);
        let connecting = settings.connect(config.connector());
        let (client, connection) = tokio::time::timeout(self.options.connect_timeout, connecting)
            .await
            .map_err(|_| unreachable("no answer in time".into()))?
            .map_err(|e| match e.as_db_error() {
                // The server is there and says no: no such database, say.
                Some(said) => Error::Server(
                    ServerError::new(SqlState::from_code(said.code().code()), said.message())
                        .with_severity(said.severity()),
                ),
                None => unreachable(error_chain(&e)),
            })?;
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!("a service connection ended: {e}");
            }
        });
        Ok(client)
    }
}

/// What the session kept on its own connection cannot be had again.
fn lost_state() -> Error {
    let error = ServerError::new(
        SqlState::CONNECTION_FAILURE,
        "terminating connection because the session's own connection to its shard was lost",
    )
    .with_detail("Temporary tables, LISTEN and other state of the session were on it.");
    Error::Server(error.with_hint("Connect again.").fatal())
}

/// A backend that logs in now is not like those the session has used.
fn other_defaults() -> Error {
    let error = ServerError::new(
        SqlState::ADMIN_SHUTDOWN,
        "terminating connection because the settings of its role or database have changed",
    );
    Error::Server(error.with_hint("Connect again.").fatal())
}

/// An error with its causes, in one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
