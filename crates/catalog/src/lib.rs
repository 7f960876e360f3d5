//! What a gateway knows: the catalog of one database, kept on its home shard, and the agreement of all gateways on it.
//!
//! - [`install`] prepares a database on every shard (schemas `pgherd` and `pgherd_data`, see `sql/`).
//! - [`Catalog::open`] takes a lease and keeps a [`pgherd_model::Snapshot`] that statements are routed by.
//! - [`Catalog::enter`] registers a statement, [`Catalog::begin_change`] waits for such statements on every gateway.
//!   `docs/designs/0003-leases-and-changes.md` says why a stale gateway cannot answer.
//!
//! It decides nothing about statements and changes no user table: that is the `operations` room's.

mod catalog;
mod change;
mod error;
mod flight;
mod heartbeat;
mod install;
mod load;
mod names;
mod signature;

pub use catalog::{Catalog, Options, is_of_open_transaction};
pub use change::{Change, ChangeId};
pub use error::Error;
pub use flight::StatementGuard;
pub use install::{bring_up_to_date, forget_gateways, install, uninstalled};
pub use load::snapshot_from_json;
pub use names::{child_name, fence_name, restore_not_null, restore_parent_names};
pub use signature::sign;
