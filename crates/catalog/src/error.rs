//! What can go wrong with the catalog.

use pgherd_model::{ServerError, SqlState};

/// A failure to read, keep or change the catalog.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A shard could not be used.
    #[error(transparent)]
    Shards(#[from] pgherd_shards::Error),
    /// The home shard (or, while installing, any shard) answered with an error.
    #[error("{0}")]
    Server(ServerError),
    /// The connection to the catalog broke.
    #[error("the connection to the catalog was lost: {0}")]
    Lost(String),
    /// This gateway has no lease, so it cannot know that its routing is right.
    #[error("this gateway has no lease on the catalog at the moment")]
    NoLease,
    /// The statement ran on a gateway that lost its lease meanwhile; its answer may be stale.
    #[error("could not serialize access: this gateway lost its lease while the statement ran")]
    LeaseLapsed,
    /// A schema change held the statement up for longer than it may wait.
    #[error("canceling statement while it waits for a schema change on another gateway")]
    Blocked,
    /// The server belongs to another cluster.
    #[error("database {database:?} on shard {shard} belongs to another pgherd cluster, {found:?}")]
    OtherCluster {
        /// the database
        database: String,
        /// the shard's name
        shard: String,
        /// the name of that cluster
        found: String,
    },
    /// The catalog was written by a newer pgherd.
    #[error("the catalog of database {database:?} has version {found}, and this gateway knows {known} at most")]
    NewerVersion {
        /// the database
        database: String,
        /// the version found
        found: i32,
        /// the newest one known
        known: i32,
    },
    /// The catalog does not say what it should: a bug of ours.
    #[error("the catalog cannot be read: {0}")]
    Corrupt(String),
}

impl Error {
    /// The SQLSTATE a client sees.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Error::Shards(e) => e.sqlstate(),
            Error::Server(e) => e.sqlstate(),
            Error::Lost(_) => SqlState::CONNECTION_FAILURE,
            Error::NoLease => SqlState::CANNOT_CONNECT_NOW,
            Error::LeaseLapsed => SqlState::SERIALIZATION_FAILURE,
            Error::Blocked => SqlState::LOCK_NOT_AVAILABLE,
            Error::OtherCluster { .. } | Error::NewerVersion { .. } => SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            Error::Corrupt(_) => SqlState::INTERNAL_ERROR,
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => {
                let mut server = ServerError::new(SqlState::from_code(db.code().code()), db.message());
                if let Some(detail) = db.detail() {
                    server = server.with_detail(detail);
                }
                if let Some(hint) = db.hint() {
                    server = server.with_hint(hint);
                }
                if let Some(place) = db.where_() {
                    server.fields_mut().other.push((b'W', place.to_owned()));
                }
                Error::Server(server)
            }
            None => Error::Lost(error.to_string()),
        }
    }
}

impl From<Error> for ServerError {
    fn from(error: Error) -> Self {
        let (state, text) = (error.sqlstate(), error.to_string());
        match error {
            Error::Shards(e) => e.into(),
            Error::Server(e) => e,
            Error::Lost(_) => ServerError::new(state, text).with_hint("Check that the home shard runs."),
            Error::NoLease => ServerError::new(state, text)
                .with_hint("It cannot reach the home shard, or has just started; try again, or on another gateway."),
            Error::LeaseLapsed => ServerError::new(state, text).with_hint("Repeat the transaction."),
            Error::Blocked => ServerError::new(state, text).with_hint("Repeat the statement; pgherd.gateways shows who is alive."),
            Error::OtherCluster { .. } => ServerError::new(state, text)
                .with_hint("A server is part of one cluster; use another server or database, or the other cluster's configuration."),
            Error::NewerVersion { .. } => ServerError::new(state, text).with_hint("Run a newer pgherd."),
            Error::Corrupt(_) => ServerError::internal(text),
        }
    }
}
