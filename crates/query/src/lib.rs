//! Statements whose rows lie on several shards: tiers 2 and 3 of the design, and their descriptions.
//!
//! - [`describe`]: what PostgreSQL says about a statement's parameters and columns.
//! - [`select`]: rows of a SELECT. `gather` (tier 3) is exact for every statement: PostgreSQL runs it over copies of the
//!   rows it needs.
//!
//! It does not decide *whether* a statement needs it (the `sql` room does), knows no wire protocol towards clients (the
//! gateway does), and neither begins nor ends transactions.

mod edit;
mod fragment;
mod gather;
mod metadata;
mod pushdown;
mod refusal;
mod relations;
mod relay;
mod render;
mod rows;
mod statement;
mod views;

pub(crate) use pgherd_transaction::{Fragment, Transaction};
pub use relay::RowBatch;
pub use rows::Rows;
pub use statement::{Description, Statement, describe};

use pgherd_model::ServerError;
use pgherd_shards::ColumnDescription;

/// How much the gateway may use for queries.
#[derive(Debug, Clone)]
pub struct Limits {
    /// bytes that all statements together may hold in memory; more is spilled to disk
    pub memory_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: 1 << 30 }
    }
}

/// What all sessions share.
#[derive(Debug)]
pub struct Engine {
    _limits: Limits,
}

impl Engine {
    /// With these limits.
    pub fn new(limits: Limits) -> Result<Self, ServerError> {
        Ok(Self { _limits: limits })
    }
}

/// Runs a SELECT over several shards, in one cut. `columns` are those of [`describe`].
///
/// # Errors
/// PostgreSQL's own, with positions in the statement's text; 0A000 for what cannot be answered exactly.
pub async fn select<'t>(
    statement: Statement<'_>,
    columns: &[ColumnDescription],
    transaction: &'t mut Transaction,
    engine: &Engine,
) -> Result<Rows<'t>, ServerError> {
    let _ = (columns, engine);
    gather::select(&statement, transaction).await
}
