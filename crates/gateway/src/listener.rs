//! Accepts clients and starts and stops the gateway.

use crate::authentication::{Door, Refused, Roles};
use crate::cancel::CancelRegistry;
use crate::client::Client;
use crate::databases::{ALWAYS_OPEN, Databases};
use crate::departed::end_departed;
use crate::encoding::Encodings;
use crate::session::notifications::Listeners;
use crate::session::{Session, StartUp};
use crate::tls::Tls;
use crate::{Options, metrics};
use pgherd_model::{ServerError, SqlState};
use pgherd_query::Engine;
use pgherd_shards::Shards;
use pgwire::messages::{PgWireFrontendMessage, SslNegotiationMetaMessage};
use socket2::{SockRef, TcpKeepalive};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long running statements get when the gateway stops.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// How often it is looked for databases that nobody uses.
const UNUSED_INTERVAL: Duration = Duration::from_secs(2);

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// the address is taken or not ours
    #[error("cannot listen on {0}: {1}; choose another address with --listen, or stop what uses it")]
    Listen(SocketAddr, std::io::Error),
    /// the rules of access, or the files for TLS
    #[error("{0}")]
    Configuration(String),
    /// a shard or the catalog
    #[error("{0}")]
    Server(ServerError),
}

impl From<ServerError> for Error {
    fn from(error: ServerError) -> Self {
        Self::Server(error)
    }
}

/// What all sessions share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) shards: Arc<Shards>,
    pub(crate) databases: Databases,
    pub(crate) engine: Engine,
    pub(crate) door: Door,
    tls: Option<Tls>,
    pub(crate) cancels: Arc<CancelRegistry>,
    pub(crate) listeners: Arc<Listeners>,
    pub(crate) encodings: Encodings,
    /// grows with every schema change through this gateway
    pub(crate) schema_changes: AtomicU64,
    pub(crate) stopping: watch::Receiver<bool>,
    clients: AtomicUsize,
}

/// A gateway; see [`Gateway::start`].
pub struct Gateway;

/// A running gateway.
pub struct GatewayHandle {
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Gateway {
    /// Opens the `postgres` database's catalog (running recovery once), then listens.
    pub async fn start(options: Options) -> Result<GatewayHandle, Error> {
        let tls = options
            .tls
            .as_ref()
            .map(Tls::load)
            .transpose()
            .map_err(Error::Configuration)?;
        if tls.is_none() && options.access.need_tls() {
            let text = "a rule in \"access\" says hostssl, but tls_certificate and tls_key are not set";
            return Err(Error::Configuration(text.into()));
        }
        let authorities = options.tls.as_ref().and_then(|f| f.client_authorities.as_ref());
        if authorities.is_none() && options.access.need_client_certificates() {
            let text = "a rule in \"access\" wants client certificates, but tls_client_authorities is not set";
            return Err(Error::Configuration(text.into()));
        }
        let mut shard_options = pgherd_shards::Options::new(options.shards.clone(), options.service_role.clone());
        shard_options.pool_size = options.pool_size;
        let shards = Shards::new(shard_options);
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|e| Error::Listen(options.listen, e))?;
        let address = listener.local_addr().map_err(|e| Error::Listen(options.listen, e))?;
        let (stop, stopping) = watch::channel(false);
        let metrics_address = match options.metrics_listen {
            Some(at) => Some(
                metrics::serve(at, stopping.clone())
                    .await
                    .map_err(|e| Error::Listen(at, e))?,
            ),
            None => None,
        };
        let shared = Arc::new(Shared {
            databases: Databases::new(
                shards.clone(),
                pgherd_catalog::Options::new(
                    options.cluster.clone(),
                    options.gateway_name.clone(),
                    address.to_string(),
                    options.secret.clone(),
                ),
            ),
            engine: Engine::new(pgherd_query::Limits {
                memory_bytes: options.query_memory_bytes,
                ..pgherd_query::Limits::default()
            })?,
            door: Door {
                rules: options.access.clone(),
                roles: Roles::new(shards.clone()),
                secret: options.secret.clone(),
            },
            tls,
            options,
            shards,
            cancels: Arc::default(),
            listeners: Arc::default(),
            encodings: Encodings::default(),
            schema_changes: AtomicU64::default(),
            stopping,
            clients: AtomicUsize::new(0),
        });
        shared.databases.get(ALWAYS_OPEN).await?;
        tokio::spawn(close_unused_databases(shared.clone()));
        tokio::spawn(end_departed(shared.cancels.clone(), shared.stopping.clone()));
        let task = tokio::spawn(accept(listener, shared));
        Ok(GatewayHandle {
            address,
            metrics_address,
            stop,
            task,
        })
    }
}

impl GatewayHandle {
    /// Where clients connect.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where metrics are served.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Ends all sessions (57P01), idle ones at once, others when their statement ended or after a grace period.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

/// Closes databases that have had no sessions for a while, so that somebody can drop them.
async fn close_unused_databases(shared: Arc<Shared>) {
    let mut stopping = shared.stopping.clone();
    let mut candidates = Default::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(UNUSED_INTERVAL) => {}
            _ = stopping.changed() => return,
        }
        candidates = shared.databases.close_unused(&candidates).await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut sessions = JoinSet::new();
    let mut stopping = shared.stopping.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    keep_alive(&stream, shared.options.keepalive_idle_s);
                    sessions.spawn(serve(stream, peer, shared.clone()));
                }
                Err(error) => {
                    // Out of descriptors, say: others may end soon.
                    tracing::warn!("cannot accept a client: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = sessions.join_next(), if !sessions.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!("a session panicked: {error}");
                }
            }
            _ = stopping.changed() => break,
        }
    }
    drop(listener);
    let all = async { while sessions.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_GRACE, all).await;
    sessions.shutdown().await;
}

/// Has the system ask after a client that is silent for long: three times ten seconds without an answer, and it is gone.
fn keep_alive(stream: &TcpStream, idle_s: u32) {
    let socket = SockRef::from(stream);
    let set = match idle_s {
        0 => socket.set_keepalive(true),
        idle_s => socket.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(Duration::from_secs(idle_s.into()))
                .with_interval(Duration::from_secs(10))
                .with_retries(3),
        ),
    };
    if let Err(error) = set {
        tracing::debug!("cannot keep a client's connection alive: {error}");
    }
}

/// Counts a client while it lives.
struct Counted(Arc<Shared>);

impl Drop for Counted {
    fn drop(&mut self) {
        let left = self.0.clients.fetch_sub(1, Ordering::Relaxed) - 1;
        ::metrics::gauge!("pgherd_clients").set(left as f64);
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    let count = shared.clients.fetch_add(1, Ordering::Relaxed) + 1;
    ::metrics::gauge!("pgherd_clients").set(count as f64);
    let counted = Counted(shared.clone());
    let mut client = Client::new(stream);
    let started = tokio::time::timeout(shared.options.startup_timeout, log_in(&mut client, peer, &shared)).await;
    let start_up = match started {
        Ok(Ok(start_up)) => start_up,
        Ok(Err(Refused::Told(error))) => return refuse(client, error).await,
        Ok(Err(Refused::Gone)) | Err(_) => return,
    };
    if count > shared.options.max_clients {
        let error = ServerError::new(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
            .with_hint("Raise max_clients in the gateway's configuration, or connect to another gateway.");
        return refuse(client, error).await;
    }
    client.allow_messages_of(shared.options.max_message_bytes);
    match Session::start(client, start_up, shared).await {
        Ok(session) => session.serve().await,
        Err((client, error)) => refuse(*client, error).await,
    }
    drop(counted);
}

/// Tells the client why, as FATAL, and hangs up.
async fn refuse(mut client: Client, error: ServerError) {
    client.put_error(&error.fatal());
    let _ = client.flush().await;
}

/// Who the client is and what it wants of the session, once it has proved that it may be that.
async fn log_in(client: &mut Client, peer: SocketAddr, shared: &Shared) -> Result<StartUp, Refused> {
    let parameters = start_up(client, shared).await?;
    let start_up = StartUp::read(parameters, shared)?;
    let (user, database) = (&start_up.who.role, &start_up.who.database);
    shared.door.let_in(client, peer.ip(), user, database).await?;
    Ok(start_up)
}

/// Negotiation of TLS and GSS, cancel requests, the start-up message with its parameters.
async fn start_up(client: &mut Client, shared: &Shared) -> Result<Vec<(String, String)>, Refused> {
    loop {
        match client.next().await {
            Ok(PgWireFrontendMessage::SslNegotiation(asked)) => match (asked, &shared.tls) {
                (SslNegotiationMetaMessage::None, _) => client.context_mut().awaiting_frontend_ssl = false,
                (SslNegotiationMetaMessage::PostgresSsl(_), Some(tls)) if client.encrypted().is_none() => {
                    client.out.extend_from_slice(b"S");
                    client.flush().await?;
                    client.encrypt(tls).await?;
                }
                _ => {
                    client.out.extend_from_slice(b"N");
                    client.flush().await?;
                }
            },
            Ok(PgWireFrontendMessage::CancelRequest(request)) => {
                let secret = match request.secret_key {
                    pgwire::messages::startup::SecretKey::I32(secret) => secret,
                    _ => return Err(Refused::Gone),
                };
                shared.cancels.cancel(request.pid, secret).await;
                return Err(Refused::Gone);
            }
            Ok(PgWireFrontendMessage::Startup(startup)) => {
                client.context_mut().awaiting_frontend_startup = false;
                negotiate_version(client, &startup);
                return Ok(startup.parameters.into_iter().collect());
            }
            Ok(_) => {
                return Err(ServerError::new(SqlState::PROTOCOL_VIOLATION, "expected a startup message").into());
            }
            // PostgreSQL answers nothing either to what is not its protocol.
            Err(_) => return Err(Refused::Gone),
        }
    }
}

/// A newer minor version, or protocol options: answered with what is spoken here (3.0), as PostgreSQL does.
fn negotiate_version(client: &mut Client, startup: &pgwire::messages::startup::Startup) {
    let unknown: Vec<_> = startup.parameters.keys().filter(|k| k.starts_with("_pq_.")).collect();
    if startup.protocol_number_minor == 0 && unknown.is_empty() {
        return;
    }
    let mut body = Vec::new();
    // The whole version, as every PostgreSQL has sent it, whatever the protocol's description says of a minor one.
    body.extend_from_slice(&(3i32 << 16).to_be_bytes());
    body.extend_from_slice(&(unknown.len() as i32).to_be_bytes());
    for name in unknown {
        body.extend_from_slice(name.as_bytes());
        body.push(0);
    }
    client.put(b'v', &body);
}
