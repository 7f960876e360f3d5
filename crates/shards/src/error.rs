//! What can go wrong between a gateway and a shard.

use pgherd_model::{ServerError, ShardId, SqlState};

/// A failure to use a shard.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The shard answered with an error; it passes through whole.
    #[error("{0}")]
    Server(ServerError),
    /// No connection could be made: nothing was sent.
    #[error("cannot connect to shard {name} at {address}: {cause}")]
    Unreachable {
        /// the shard
        shard: ShardId,
        /// its name
        name: String,
        /// where it should be
        address: String,
        /// what the system said
        cause: String,
    },
    /// An established connection broke: whatever was under way there may or may not have happened.
    #[error("the connection to shard {shard} was lost: {cause}")]
    Lost {
        /// the shard
        shard: ShardId,
        /// what the system said
        cause: String,
    },
    /// No connection of the pool became free in time.
    #[error("no free connection to shard {shard} within {waited_ms} ms")]
    PoolTimeout {
        /// the shard
        shard: ShardId,
        /// how long the caller waited
        waited_ms: u64,
    },
    /// The shard sent what the protocol does not allow here: a bug of ours.
    #[error("unexpected message {tag:?} from shard {shard}")]
    Protocol {
        /// the shard
        shard: ShardId,
        /// the message's type letter
        tag: char,
    },
    /// No such shard in this cluster.
    #[error("shard {0} is not configured")]
    UnknownShard(ShardId),
}

impl Error {
    /// The SQLSTATE a client sees.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Error::Server(e) => e.sqlstate(),
            Error::Unreachable { .. } | Error::UnknownShard(_) => SqlState::UNABLE_TO_CONNECT,
            Error::Lost { .. } => SqlState::CONNECTION_FAILURE,
            Error::PoolTimeout { .. } => SqlState::TOO_MANY_CONNECTIONS,
            Error::Protocol { .. } => SqlState::INTERNAL_ERROR,
        }
    }

    /// Whether nothing was sent, so that trying again is safe.
    pub fn is_unsent(&self) -> bool {
        matches!(
            self,
            Error::Unreachable { .. } | Error::PoolTimeout { .. } | Error::UnknownShard(_)
        )
    }
}

impl From<ServerError> for Error {
    fn from(error: ServerError) -> Self {
        Error::Server(error)
    }
}

impl From<Error> for ServerError {
    fn from(error: Error) -> Self {
        let (state, text) = (error.sqlstate(), error.to_string());
        match error {
            Error::Server(e) => e,
            Error::Unreachable { .. } => ServerError::new(state, text)
                .with_hint("Check that this PostgreSQL server runs; other shards can be used meanwhile."),
            Error::Lost { .. } => ServerError::new(state, text)
                .with_hint("The statement was not acknowledged; look whether it took effect before you repeat it."),
            Error::PoolTimeout { .. } => ServerError::new(state, text)
                .with_hint("Raise pool_size in the configuration, or let fewer transactions stay open."),
            Error::Protocol { .. } => ServerError::internal(text),
            Error::UnknownShard(_) => {
                ServerError::new(state, text).with_hint("Add the shard to the gateway's configuration and restart it.")
            }
        }
    }
}
