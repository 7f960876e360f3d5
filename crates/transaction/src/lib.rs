//! Transactions over shards: participants, cuts, two-phase commit, recovery.
//!
//! A [`Coordinator`] serves one database in one gateway. [`Coordinator::begin`] gives a [`Transaction`], which alone
//! hands out shard connections on the statement path, so that every shard a statement touched is enlisted.
//! How a COMMIT is decided, and how any gateway finishes what a dead one left, is told in `docs/life-of-a-commit.md`;
//! the decisions themselves are pure code in [`two_phase_commit`], [`recovery`], [`cut`] and [`deadlock`], with the I/O around
//! them in `two_phase_run`, `resolver`, `read_cut` and `deadlock_watch`.
//!
//! This room knows nothing of SQL statements, routing or clients. Schema and leases belong to the catalog.

mod catch_up;
mod commit;
mod commit_gate;
pub mod control;
mod coordinator;
pub mod cut;
pub mod deadlock;
mod deadlock_watch;
mod error;
pub mod gid;
mod housekeeping;
mod in_doubt;
mod local_gate;
mod participant;
mod phases;
pub mod prepared;
mod read_cut;
pub mod recovery;
mod repeatable_read;
mod resolver;
mod sequence;
mod shard_state;
mod shared_cut;
#[cfg(test)]
mod simulation;
mod snapshot_name;
mod strict_locking;
mod transaction;
pub mod two_phase_commit;
mod two_phase_run;
mod watched;
mod workers;
mod write_cut;

pub use coordinator::{CommitIdentity, Coordinator};
pub use error::{Error, deadlock_error};
pub use in_doubt::{Requester, Resolved, Unresolved};
pub use read_cut::Fragment;
pub use snapshot_name::SnapshotName;
pub use transaction::{ASK_CLOCK, Committed, Isolation, Mode, Transaction};
pub use write_cut::{ASK, WriteCut};
