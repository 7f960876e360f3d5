//! Connections and pools to PostgreSQL shards.
//!
//! Two kinds of connection exist. A [`Backend`] is a raw connection that logged in as a client's role; it
//! is pooled per shard, role and database, and its replies are handed on as bytes. A service connection
//! ([`Shards::connect_service`]) is a tokio-postgres client of the service role, for the catalog,
//! recovery and operations. This room knows nothing of transactions, routing or clients.

mod backend;
mod connection;
mod error;
pub mod pem;
mod pool;
mod reply;
mod stream;
mod tls;

pub use backend::Backend;
pub use connection::{CancelToken, Message, TransactionStatus};
pub use error::Error;
pub use pool::{
    Identity, LOGIN_DEFAULTS_SQL, Options, Pin, RESET_SQL, SessionSettings, ShardConfig, Shards, UNKNOWN_SETTINGS,
};
pub use reply::{ColumnDescription, Row, SimpleResult, parse_data_row, parse_row_description};
pub use tls::{Connector, SslMode, Tls, TlsSettings};
