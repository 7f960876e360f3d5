//! Cursors over several ranges: open on a scratch connection, which is the cursor's until it is closed.

use crate::rows::Scratch;
use crate::statement::Statement;
use crate::{Transaction, gather};
use pgherd_model::ServerError;
use pgherd_shards::Backend;

/// A cursor's connection. FETCH, MOVE and CLOSE go there as they come. Dropped, the cursor is gone.
pub struct OpenCursor(Scratch);

impl OpenCursor {
    /// The connection.
    pub fn backend(&mut self) -> &mut Backend {
        self.0.backend()
    }
}

/// Declares a cursor over a SELECT in one cut; `head` is the statement's text before the query.
///
/// # Errors
/// PostgreSQL's own, without positions; 0A000 for what cannot be answered exactly.
pub async fn declare(
    statement: Statement<'_>,
    head: &str,
    transaction: &mut Transaction,
) -> Result<OpenCursor, ServerError> {
    gather::declare(&statement, head, transaction).await.map(OpenCursor)
}
