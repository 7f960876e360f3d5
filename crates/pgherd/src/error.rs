//! What can go wrong in a command, each with the remedy in its text.

use std::net::SocketAddr;
use std::path::PathBuf;

/// The result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command failed; the second line says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "there is no {0:?}\nStart a cluster with `pgherd up` first, which writes one, or name another with --config"
    )]
    NoConfig(PathBuf),
    #[error("{path:?} is not right: {reason}\nEdit the file; docs/operations.md says what each setting means")]
    BadConfig { path: PathBuf, reason: String },
    #[error("{shard} has its sockets in {folder:?}, which does not exist\nStart the shards first: `pgherd up`")]
    NoSockets { shard: String, folder: PathBuf },
    #[error("{path:?} does not name the shards that run in this folder ({difference})\nRestore its [[shards]] tables")]
    OtherShards { path: PathBuf, difference: String },
    #[error("cannot read {path:?}: {source}\nRun as the owner of the file or as root")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path:?}: {source}\nCheck the folder's permissions and the space left")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(
        "cannot listen on {listen}: {source}\nStop what listens there, or choose another address with --listen \
         (port 0 takes any free one)"
    )]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error("{what} is {text:?}, which is no address\nGive it as 127.0.0.1:8432, or \"off\"")]
    BadAddress { what: &'static str, text: String },
    #[error("cannot connect to {target} as {role}: {}\n{remedy}", explain(source))]
    Connect {
        target: String,
        role: String,
        source: tokio_postgres::Error,
        remedy: &'static str,
    },
    #[error(
        "{target} refused a query: {}\nIf the message says that something in schema pgherd is missing, run `pgherd init`",
        explain(source)
    )]
    Query {
        target: String,
        source: tokio_postgres::Error,
    },
    #[error("{0} of the checks failed\nMake the changes listed above, then run `pgherd init` again")]
    NotReady(usize),
    #[error(
        "the gateway did not start: {0}\nPGHERD_LOG=debug makes it say more; `pgherd status` shows whether the shards run"
    )]
    Gateway(#[from] pgherd_gateway::Error),
    #[error("cannot prepare the shards: {0}\nLook at the logs of the shards; `pgherd status` shows which of them run")]
    Install(#[from] pgherd_catalog::Error),
    #[error("{0}")]
    Testkit(#[from] pgherd_testkit::Error),
    #[error(
        "cannot watch for signals: {0}\nThis is a limit of the system; run pgherd in a terminal or under a supervisor"
    )]
    Signals(std::io::Error),
    #[error(
        "cannot encrypt connections to {0}\nCorrect the shard's sslmode, sslrootcert, sslcert and sslkey in the configuration"
    )]
    Tls(String),
    #[error(transparent)]
    Cluster(#[from] pgherd_local_cluster::Error),
}

/// What PostgreSQL or the system said, which `tokio_postgres` leaves out of its own message.
pub fn explain(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(error), _) => error.message().to_string(),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}
