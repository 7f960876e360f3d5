//! Schema change and pgherd's procedures, run through the participants of the client's transaction, so that they take
//! effect on all shards or on none.
//!
//! - [`schema_change`]: CREATE, ALTER, DROP, TRUNCATE, GRANT … `schema_change.rs` says what runs where.
//! - [`call`]: `CALL pgherd.distribute(…)`, `undistribute`, `split`.
//! - [`maintenance`]: VACUUM, ANALYZE, REINDEX, CLUSTER, which run outside of transactions.
//!
//! The home shard runs a statement first, in the client's own words: PostgreSQL judges it and words its errors. The other
//! shards then get what the home shard's catalogs say, not what the text said. What gateways route by changes under a
//! [`pgherd_catalog::Change`], which the caller finishes when the transaction has ended. No rows of a SELECT pass here.

mod align;
mod alter_table;
mod attach;
mod bounds;
mod convert;
mod copy_rows;
mod create_table;
mod drop;
mod everywhere;
mod foreign_keys;
mod index;
mod inspect;
mod localize;
mod maintenance;
mod materialized;
mod on_table;
mod partition;
mod procedures;
mod ranges;
mod replace_ranges;
mod schema_change;
mod split;
mod statement_text;
mod twin_views;
mod view;
mod work;
mod yielding;

pub use bounds::Distribution;
pub use everywhere::temporary_function_unsupported;
pub use maintenance::maintenance;
pub use procedures::{call, named_transaction};
pub use schema_change::schema_change;
pub use split::SPLIT_ROWS;
pub use work::{SHOWN_EPOCH, has_met_another_change, read_epoch};

use pgherd_catalog::Catalog;
use pgherd_model::{ServerError, Snapshot};
use pgherd_shards::{ColumnDescription, Row, Shards};
use std::sync::Arc;

/// What a statement runs under.
pub struct Session<'a> {
    /// the database's catalog
    pub catalog: &'a Arc<Catalog>,
    /// all shards
    pub shards: &'a Arc<Shards>,
    /// the schemas that names are looked up in, in order
    pub search_path: &'a [Arc<str>],
    /// pgherd.default_distribution and pgherd.initial_bounds
    pub distribution: Distribution,
    /// the catalog as the transaction sees it
    pub snapshot: Arc<Snapshot>,
}

/// Why a schema change failed, and what PostgreSQL had said before it did.
#[derive(Debug)]
pub struct Failure {
    /// the statement's error
    pub error: ServerError,
    /// notices that came before it
    pub notices: Vec<ServerError>,
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        Self {
            error,
            notices: Vec::new(),
        }
    }
}

/// What a statement returned.
#[derive(Debug, Default)]
pub struct Outcome {
    /// the command tag
    pub tag: String,
    /// notices, as PostgreSQL would send them
    pub notices: Vec<ServerError>,
    /// for statements that return rows
    pub columns: Vec<ColumnDescription>,
    /// the rows
    pub rows: Vec<Row>,
    /// the caller's snapshot is old: it loads one through the home participant
    pub catalog_changed: bool,
}
