//! Sessions of clients: start-up, simple and extended protocol, COPY, cancel, settings, errors, metrics.
//!
//! Only this room knows pgwire. A session owns its client connection and at most one transaction; what a
//! statement is and where it goes comes from `pgherd-sql`, connections come from the transaction room.
//!
//! The path of a forwarded statement: [`session`] reads it, [`statements`] has it parsed and analysed, the
//! catalog lets it in, `session::forward` sends it and `session::relay` copies the reply.

// That a session's future can move between threads is proved through every type of a parsed statement.
#![recursion_limit = "256"]

mod authentication;
mod binary_format;
mod cancel;
mod client;
mod databases;
mod departed;
mod encoding;
mod explain_text;
mod judged;
mod listener;
mod local_defaults;
mod messages;
mod metrics;
mod origins;
mod session;
mod signals;
mod standing;
mod statements;
mod template;
mod tls;
mod user_types;

pub use authentication::{DEFAULT_RULES, Rules};
pub use listener::{Error, Gateway, GatewayHandle};
pub use tls::TlsFiles;

use pgherd_shards::ShardConfig;
use std::net::SocketAddr;
use std::time::Duration;

/// How a gateway runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// the cluster's id; gids of its transactions start with it
    pub cluster: String,
    /// this gateway's name, unique among the running ones
    pub gateway_name: String,
    /// where clients connect; port 0 takes a free one
    pub listen: SocketAddr,
    /// where Prometheus and health checks connect
    pub metrics_listen: Option<SocketAddr>,
    /// all shards
    pub shards: Vec<ShardConfig>,
    /// the role of the gateway's own connections; clients cannot log in as it
    pub service_role: String,
    /// the key of the hashes that protect markers and the catalog
    pub secret: String,
    /// connections per shard, role and database
    pub pool_size: usize,
    /// `pgherd.default_distribution` where neither session, role nor database sets it
    pub default_distribution: Option<String>,
    /// `pgherd.initial_bounds` likewise
    pub initial_bounds: Option<String>,
    /// who may connect from where, and how they prove who they are
    pub access: Rules,
    /// with what connections are encrypted, if they can be
    pub tls: Option<TlsFiles>,
    /// clients at a time; more get 53300
    pub max_clients: usize,
    /// clients of one role at a time; more get 53300
    pub max_clients_per_role: Option<usize>,
    /// after how many seconds of silence a client's system is asked whether it is still there; 0: the system's own setting
    pub keepalive_idle_s: u32,
    /// the largest message taken from a client, bytes
    pub max_message_bytes: usize,
    /// how long a client may take to log in
    pub startup_timeout: Duration,
    /// memory of all distributed queries together, bytes
    pub query_memory_bytes: usize,
}

impl Options {
    /// Defaults for these shards on a loopback port chosen by the system.
    pub fn new(cluster: impl Into<String>, shards: Vec<ShardConfig>) -> Self {
        Self {
            cluster: cluster.into(),
            gateway_name: "gateway1".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            metrics_listen: None,
            shards,
            service_role: "pgherd".into(),
            secret: String::new(),
            pool_size: 40,
            default_distribution: None,
            initial_bounds: None,
            access: Rules::default(),
            tls: None,
            max_clients: 2000,
            max_clients_per_role: None,
            keepalive_idle_s: 60,
            max_message_bytes: 256 * 1024 * 1024,
            startup_timeout: Duration::from_secs(60),
            query_memory_bytes: 1 << 30,
        }
    }
}
