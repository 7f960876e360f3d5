//! Statements whose rows lie on several shards: tiers 2 and 3 of the design, and their descriptions.
//!
//! - [`describe`]: what PostgreSQL says about a statement's parameters and columns.
//! - [`select`]: rows of a SELECT. `gather` (tier 3) is exact for every statement: PostgreSQL runs it over copies of the
//!   rows it needs.
//! - [`declare`]: a cursor over such a SELECT.
//! - [`insert_select`], [`gathered_write`] and [`merge`]: INSERT, UPDATE, DELETE and MERGE whose rows come from several shards.
//!
//! It does not decide *whether* a statement needs it (the `sql` room does), knows no wire protocol towards clients (the
//! gateway does), and neither begins nor ends transactions.

mod carrier;
mod cursor;
mod edit;
mod explain;
mod fragment;
mod gather;
mod insert;
mod locking;
mod metadata;
mod plan;
mod pushdown;
mod read_ahead;
mod refusal;
mod relations;
mod relay;
mod render;
mod rows;
mod statement;
mod views;
mod write;

pub use cursor::{OpenCursor, declare};
pub use explain::{Explained, ExplainedFragment, explain};
pub use insert::insert_select;
pub use metadata::{EXACT_TEXT, text_is_not_exact};
pub(crate) use pgherd_transaction::{Fragment, Transaction};
pub use plan::engine::{Engine, Limits};
pub use relay::RowBatch;
pub use rows::{Rows, Statistics, Step};
pub use statement::{Description, Statement, describe};
pub use write::{gathered_write, merge};

use pgherd_model::ServerError;
use pgherd_shards::ColumnDescription;

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
    let mut transaction = transaction;
    if statement.leaves_workers_to_us() {
        transaction.divide_workers();
    }
    if let Some(plan) = plan::plan(&statement, columns) {
        match plan::run(plan, &statement, transaction, engine).await? {
            Ok(rows) => return Ok(rows),
            Err(unused) => transaction = unused,
        }
    }
    if locking::is_locking(&statement) {
        return locking::select(&statement, columns.len(), transaction).await;
    }
    let reading = gather::Reading::of(&statement, None);
    let mut are_few = false;
    if let Ok(reading) = &reading
        && reading.home_function.is_none()
        && !reading.draws
        && !reading.shows_versions()
    {
        let sizes = reading.rows(transaction, engine).await?;
        are_few = engine.are_few(&sizes);
        if let Some(rows) = gather::select_staged(&statement, reading, &sizes, transaction, engine).await? {
            return Ok(rows);
        }
    }
    if !are_few && let Some(plan) = plan::join_run::plan(&statement, columns) {
        match plan::join_run::run(plan, &statement, transaction, engine).await? {
            Ok(rows) => return Ok(rows),
            Err(unused) => transaction = unused,
        }
    }
    gather::select(&statement, reading?, transaction, engine).await
}
