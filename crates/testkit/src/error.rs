//! The one error type of this crate.

use crate::wire::ServerError;
use std::path::PathBuf;
use std::time::Duration;

/// What can go wrong while a test talks to a server or reads its files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with an `ErrorResponse`.
    #[error("db error: {0}")]
    Server(#[from] ServerError),
    /// The connection could not be made.
    #[error("cannot connect to {target}: {source}")]
    Connect {
        /// Host and port, or the socket's path.
        target: String,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke after it had been made.
    #[error("the connection to the server was lost: {0}")]
    Io(#[from] std::io::Error),
    /// The server sent something that the protocol does not allow here.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// No `ReadyForQuery` in time. The session cannot be used further.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// A session was used after its connection had broken.
    #[error("the session is closed")]
    Closed,
    /// The connection URL cannot be read.
    #[error("bad connection URL: {0}")]
    Url(String),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A server of this machine could not be started or used.
    #[error(transparent)]
    LocalCluster(#[from] pgherd_local_cluster::Error),
    /// What PostgreSQL, or a gateway, said to a client library.
    #[error("{}", Error::describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// A program that was run ended badly, or could not be run.
    #[error("{program}: {output}")]
    Program {
        /// Which program, with what it was run for.
        program: String,
        /// What it printed, or why it could not be run.
        output: String,
    },
    /// The person who waits asked to stop.
    #[error("stopped")]
    Interrupted,
    /// A test file is not well-formed, or nothing matched a pattern of files.
    #[error("{0}")]
    Script(String),
}

impl Error {
    /// What the server said, which `tokio_postgres` leaves out of its own message.
    pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
        match (error.as_db_error(), std::error::Error::source(error)) {
            (Some(error), _) => format!("{} ({})", error.message(), error.code().code()),
            (None, Some(source)) => format!("{error}: {source}"),
            (None, None) => error.to_string(),
        }
    }

    /// The SQLSTATE that a client would see, where there is one: the server's own, or class 08 for a connection
    /// that failed.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Error::Server(error) => Some(error.code()),
            Error::Connect { .. } => Some("08001"),
            Error::Io(_) | Error::Closed | Error::Timeout(_) => Some("08006"),
            Error::Protocol(_) => Some("08P01"),
            Error::Postgres(error) => error.code().map(|code| code.code()),
            Error::Url(_)
            | Error::File { .. }
            | Error::Script(_)
            | Error::LocalCluster(_)
            | Error::Program { .. }
            | Error::Interrupted => None,
        }
    }
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
