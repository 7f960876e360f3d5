//! What can go wrong with a transaction, beyond what a shard itself reports.

use pgherd_model::{ServerError, ShardId, SqlState};
use pgherd_shards as shards;

/// A failure of a transaction. A shard's own error passes through whole.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// from a shard, or from the way to it
    #[error(transparent)]
    Shard(#[from] shards::Error),
    /// the transaction failed before; only ROLLBACK and ROLLBACK TO are taken
    #[error("current transaction is aborted, commands ignored until end of transaction block")]
    InFailedTransaction,
    /// there is no open savepoint of that name
    #[error("savepoint \"{0}\" does not exist")]
    NoSuchSavepoint(String),
    /// PostgreSQL's own SERIALIZABLE holds on one shard only, and schema changes at REPEATABLE READ stay on the home shard
    #[error("a transaction at isolation level {level} cannot use a second shard")]
    OneShardOnly {
        /// as PostgreSQL writes it
        level: &'static str,
    },
    /// a connection was lost before the transaction was committed: it is rolled back everywhere
    #[error("the connection to shard {shard} was lost; the transaction was rolled back on all shards")]
    ParticipantLost {
        /// the shard
        shard: ShardId,
    },
    /// COMMIT was sent, and nobody can say whether it took effect
    #[error("the outcome of the transaction is unknown: {cause}")]
    OutcomeUnknown {
        /// what happened
        cause: String,
    },
    /// the shard came back, and transactions that wait between the two phases there are not finished yet
    #[error("shard {shard} is not ready: {cause}")]
    NotReady {
        /// the shard
        shard: ShardId,
        /// what it waits for
        cause: String,
    },
    /// other writers kept a consistent snapshot over the shards from being found
    #[error("no consistent snapshot over the shards was found in {tries} tries")]
    NoCut {
        /// how often
        tries: u32,
    },
    /// a participant joined, and the snapshot that it was to import is gone with its holder's connection
    #[error("could not serialize access: the transaction's snapshot of shard {shard} was lost")]
    SnapshotLost {
        /// the shard
        shard: ShardId,
    },
    /// every place for a snapshot over all shards is taken
    #[error("too many transactions hold snapshots over all shards")]
    TooManySnapshots {
        /// how many there may be
        limit: usize,
    },
    /// LOCK TABLE within a savepoint that has changed settings, before the first query at REPEATABLE READ
    #[error(
        "LOCK TABLE within a savepoint that has changed settings is not supported before the first query of a REPEATABLE READ transaction"
    )]
    LockInSavepoint,
    /// the shard lost a transaction that another shard has committed
    #[error("shard {shard} does not have transaction {gid}, which other shards have committed")]
    LostTransaction {
        /// the shard
        shard: ShardId,
        /// the transaction
        gid: String,
    },
    /// an operator's request about a transaction that waits between the two phases
    #[error(transparent)]
    Unresolved(#[from] crate::Unresolved),
    /// a shard is not set up for transactions over several shards
    #[error("shard {shard} cannot take part in transactions over several shards: {cause}")]
    NotPrepared {
        /// the shard
        shard: ShardId,
        /// what is missing
        cause: String,
    },
    /// a commit over more shards than a transaction's name can hold
    #[error("shard {0} has too high a number to commit together with others")]
    ShardNumberTooHigh(ShardId),
    /// what must not happen: a bug
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// The SQLSTATE that a client sees.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Error::Shard(e) => e.sqlstate(),
            Error::InFailedTransaction => SqlState::IN_FAILED_TRANSACTION,
            Error::NoSuchSavepoint(_) => SqlState::INVALID_SAVEPOINT,
            Error::OneShardOnly { .. } | Error::LockInSavepoint => SqlState::FEATURE_NOT_SUPPORTED,
            Error::OutcomeUnknown { .. } => SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
            Error::NotReady { .. } => SqlState::CANNOT_CONNECT_NOW,
            // The client's own connection is as good as ever, and nothing was done: it may repeat the transaction.
            Error::NoCut { .. } | Error::SnapshotLost { .. } | Error::ParticipantLost { .. } => {
                SqlState::SERIALIZATION_FAILURE
            }
            Error::TooManySnapshots { .. } => SqlState::from_code("53300"),
            Error::LostTransaction { .. } | Error::Internal(_) => SqlState::INTERNAL_ERROR,
            Error::Unresolved(e) => e.sqlstate(),
            Error::NotPrepared { .. } => SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            Error::ShardNumberTooHigh(_) => SqlState::PROGRAM_LIMIT_EXCEEDED,
        }
    }
}

/// The error of a statement that was cancelled to end a deadlock over several shards, as PostgreSQL tells its own. Any
/// other error stays as it is: the statement had failed already.
pub fn deadlock_error(error: ServerError, detail: &str) -> ServerError {
    if error.sqlstate() != SqlState::QUERY_CANCELED {
        return error;
    }
    let mut told = ServerError::new(SqlState::DEADLOCK_DETECTED, "deadlock detected")
        .with_detail(detail)
        .with_hint("See server log for query details.");
    // Where the statement was: while updating which row, in which function.
    let context = error.fields().other.iter().filter(|(letter, _)| *letter == b'W');
    told.fields_mut().other = context.cloned().collect();
    told
}

impl From<ServerError> for Error {
    fn from(error: ServerError) -> Self {
        Error::Shard(shards::Error::Server(error))
    }
}

impl From<Error> for ServerError {
    fn from(error: Error) -> Self {
        let made = ServerError::new(error.sqlstate(), error.to_string());
        match error {
            Error::Shard(e) => e.into(),
            Error::InFailedTransaction | Error::NoSuchSavepoint(_) => made,
            Error::OneShardOnly { .. } => made.with_hint(
                "Use READ COMMITTED for transactions over several shards, or let the transaction's rows lie on one shard.",
            ),
            Error::SnapshotLost { .. } => made.with_hint("Repeat the transaction."),
            Error::TooManySnapshots { limit } => made
                .with_detail(format!("A gateway keeps {limit} of them per database."))
                .with_hint("End transactions at REPEATABLE READ that are idle."),
            Error::LockInSavepoint => made.with_hint("Lock before the first savepoint, or after the first query."),
            Error::ParticipantLost { .. } => made.with_hint("Run the transaction again."),
            Error::OutcomeUnknown { .. } => made.with_hint(
                "Look whether it took effect before you repeat it. If it did not yet, it will be finished as soon as all its shards answer.",
            ),
            Error::NotReady { .. } => {
                made.with_hint("Try again in a few seconds; pgherd.transactions shows what waits between the two phases.")
            }
            Error::NoCut { .. } => made.with_hint("Run the statement again."),
            Error::LostTransaction { .. } => made.with_hint(
                "The shard was probably replaced by a standby or a backup that is older. Its data must be repaired by hand.",
            ),
            Error::Unresolved(e) => e.explain(made),
            Error::NotPrepared { .. } => made.with_hint(
                "Set max_prepared_transactions to at least max_connections in the shard's postgresql.conf and restart it.",
            ),
            Error::ShardNumberTooHigh(_) => made.with_hint("Shards that commit together need numbers below 256."),
            Error::Internal(message) => ServerError::internal(message),
        }
    }
}
