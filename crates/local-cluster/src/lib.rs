//! PostgreSQL servers on this machine: the shards of a local cluster, and single plain servers.
//!
//! `pgherd up`, the tests and the benchmark share this launcher. It finds (or fetches) PostgreSQL, makes data folders,
//! starts and stops servers, takes over servers that an earlier run left behind, and drops root's privileges, because
//! PostgreSQL refuses to run with them. It knows nothing of gateways, tables or ranges: what it hands out is addresses.
//!
//! - [`LocalCluster::start`]: shards in a folder that is kept; [`LocalCluster::ephemeral`]: shards for one test.
//! - [`PlainServer::ephemeral`]: one PostgreSQL without pgherd, the reference that answers are compared with.
//!
//! Nothing that is ephemeral outlives the process that started it, however that process ends: see `watchdog.rs`.

mod account;
mod binaries;
mod cluster;
mod error;
mod fetch;
mod folder;
mod plain;
mod server;
mod settings;
mod watchdog;

pub use account::Account;
pub use binaries::Binaries;
pub use cluster::{LocalCluster, Options};
pub use error::{Error, Result};
pub use plain::PlainServer;
pub use server::{Event, Progress, Server};
pub use settings::shard_settings;

/// The superuser that `initdb` makes, and the default database.
pub const SUPERUSER: &str = "postgres";
/// The superuser that gateways use on connections of their own (catalog, recovery, jobs).
pub const SERVICE_ROLE: &str = "pgherd";
/// The oldest major version of PostgreSQL that a shard may run.
pub const OLDEST_POSTGRES: u32 = 15;
