//! What can go wrong when servers are started, each with the remedy in its text.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a local server or cluster could not be started, changed or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No PostgreSQL was found, and none could be fetched.
    #[error(
        "no PostgreSQL {wanted} was found (looked at: {looked_at}), and fetching one failed: {fetch}\n\
         Install it, for example with `apt-get install postgresql` (Debian, Ubuntu), `dnf install postgresql-server \
         postgresql-contrib` (Fedora) or `brew install postgresql@15` (macOS), or set PGHERD_PG_BINDIR to the folder \
         that holds `initdb` and `postgres`"
    )]
    NoPostgres {
        /// The versions that would do, such as "15 or newer".
        wanted: String,
        /// Folders that were tried, with why each did not do.
        looked_at: String,
        /// Why the download failed.
        fetch: String,
    },
    /// PGHERD_PG_BINDIR points at something else than a usable PostgreSQL.
    #[error(
        "PGHERD_PG_BINDIR is {bindir:?}, but {reason}\nPoint it at the folder that holds `initdb` and `postgres`, or unset it"
    )]
    BadBindir {
        /// The value of the variable.
        bindir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process works on this folder.
    #[error(
        "{folder:?} is in use by another pgherd (process {pid})\nStop that one first, or choose another folder and another \
         address (--data, --listen)"
    )]
    InUse {
        /// The data folder.
        folder: PathBuf,
        /// The process id that the lock file names, or "unknown".
        pid: String,
    },
    /// The folder was made with another number of shards.
    #[error(
        "{folder:?} holds a cluster of {have} shards, not {asked}\nRun it with --shards {have}, or make a new cluster in \
         another folder with --data"
    )]
    OtherShardCount {
        /// The data folder.
        folder: PathBuf,
        /// How many shards the folder holds.
        have: usize,
        /// How many were asked for.
        asked: usize,
    },
    /// A shard's data, which was there once, is gone.
    #[error(
        "the data of {shard} is missing: {folder:?}\nRestore it from a backup; pgherd does not replace it with an empty \
         server, because its rows would silently be gone"
    )]
    MissingShard {
        /// The shard's name.
        shard: String,
        /// Where its data was.
        folder: PathBuf,
    },
    /// The folder belongs to somebody else.
    #[error(
        "{folder:?} belongs to user {owner}\nRun pgherd as {owner} or as root, or choose another folder with --data"
    )]
    ForeignOwner {
        /// The data folder.
        folder: PathBuf,
        /// The name or number of its owner.
        owner: String,
    },
    /// There is no unprivileged account to run PostgreSQL as.
    #[error(
        "PostgreSQL refuses to run as root, and there is no other account to run it as\nMake one (`useradd --system \
         postgres`), or run pgherd as an ordinary user"
    )]
    NoAccount,
    /// A number of shards that makes no sense.
    #[error("a cluster has 1 to 64 shards, not {0}\nGive --shards a number in that span")]
    BadShardCount(usize),
    /// A server did not come up.
    #[error("{server} did not start: {reason}\nIts log is {log:?}; the last lines are:\n{tail}")]
    NotStarted {
        /// The server's name.
        server: String,
        /// What was seen from outside.
        reason: String,
        /// The server's log file.
        log: PathBuf,
        /// The end of that file.
        tail: String,
    },
    /// A program of PostgreSQL failed.
    #[error("{program} failed: {output}\nCheck that the folder is writable and the disk is not full")]
    Program {
        /// The program and what it was to do.
        program: String,
        /// What it printed.
        output: String,
    },
    /// A running server refused what pgherd asked of it.
    #[error("{server} refused: {source}\nLook at its log in the data folder")]
    Server {
        /// The server's name.
        server: String,
        /// PostgreSQL's or the connection's error.
        source: tokio_postgres::Error,
    },
    /// The state file cannot be understood.
    #[error("{path:?} cannot be read: {reason}\nRestore the file, or start with another folder (--data)")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Something the operating system refused.
    #[error(
        "cannot {action} {path:?}: {source}\nCheck the owner and the permissions of the folder, and the space left"
    )]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// Turns an I/O error into an [`Error::Io`] that says what was being done to which file.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// The SQLSTATE under which a client would be told: five characters, PostgreSQL's appendix A.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "55006",
            Self::OtherShardCount { .. } | Self::BadShardCount(_) => "22023",
            Self::NoPostgres { .. } | Self::BadBindir { .. } | Self::State { .. } => "F0000",
            Self::ForeignOwner { .. } | Self::NoAccount => "42501",
            Self::NotStarted { .. } => "57P03",
            Self::Server { source, .. } => source.code().map_or("08006", |code| match code.code() {
                "57P03" => "57P03",
                _ => "58000",
            }),
            Self::MissingShard { .. } | Self::Program { .. } | Self::Io { .. } => "58030",
        }
    }
}
