//! A client's own PREPARE TRANSACTION, COMMIT PREPARED and ROLLBACK PREPARED, over any number of shards.
//!
//! The client's name stands in the catalog on the home shard, in a row of `pgherd.client_transaction`; on the shards the
//! transaction is prepared under a gid of ours. Unlike a COMMIT in two phases, being prepared everywhere decides nothing: the
//! client does, perhaps years later and through another gateway. So this one has a record of the decision, the row's state:
//!
//! ```text
//!             all shards have it                COMMIT PREPARED
//! preparing ─────────────────────► prepared ─┬─────────────────► commit ────► on every shard, then the row goes
//!     │ a shard refused, or                  │ ROLLBACK PREPARED
//!     └─ the gateway is dead ─► rollback ◄───┘
//! ```
//!
//! Each arrow is an UPDATE that names the state it leaves, so whoever commits it first has decided, for all gateways: two that
//! end the same transaction in different ways, a gateway that was taken for dead in the middle and goes on. What has no row was
//! never told to a client, or has ended everywhere: it is rolled back where it is found. `decide` is this as pure code, [`prepare`](mod@prepare)
//! and `finish` do it, and `record` keeps the rows.
//!
//! Its marker has a sequence of its own, so that no watermark waits for it; the sequence is settled when it has ended everywhere.

pub mod decide;
mod finish;
mod prepare;
mod record;
mod recovery;

pub use finish::End;
pub(crate) use recovery::{Ending, Known, forget, recover, resolve};

use crate::control::Point;
use crate::{Coordinator, Error};
use pgherd_model::{ServerError, ShardId, SqlState};

/// PostgreSQL's own limit, without the byte behind the name.
const NAME_BYTES: usize = 199;

/// How far a client's transaction is; see [`crate::control`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// its row is written
    Recorded,
    /// about to prepare it there
    Preparing(ShardId),
    /// that shard has answered
    Voted(ShardId),
    /// all shards have it, and its row does not say so
    AllPrepared,
    /// its row says that it is prepared, and nobody was told
    Prepared,
    /// its row says how it ends, and nothing has happened yet
    Decided,
    /// about to end it there
    Ending(ShardId),
    /// that shard has answered
    Ended(ShardId),
}

/// Stops here if a test says so.
fn pass(coordinator: &Coordinator, step: Step) -> Result<(), Error> {
    coordinator.pass(Point::OfClient(step))
}

fn in_use(name: &str) -> Error {
    let message = format!("transaction identifier \"{name}\" is already in use");
    ServerError::new(SqlState::from_code("42710"), message).into()
}

fn unknown_name(name: &str) -> Error {
    let message = format!("prepared transaction with identifier \"{name}\" does not exist");
    ServerError::new(SqlState::UNDEFINED_OBJECT, message).into()
}

fn busy(name: &str) -> Error {
    let message = format!("prepared transaction with identifier \"{name}\" is busy");
    ServerError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message).into()
}

fn not_allowed() -> Error {
    let message = "permission denied to finish prepared transaction";
    let error = ServerError::new(SqlState::INSUFFICIENT_PRIVILEGE, message);
    error
        .with_hint("Must be superuser or the user that prepared the transaction.")
        .into()
}
