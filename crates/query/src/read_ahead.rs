//! Rows that are read before it is decided what is done with them: few are handled at once, many as they come.

use crate::relay::{self, RowBatch};
use crate::{Fragment, Transaction};
use pgherd_model::ServerError;

/// The rows of portals that are being executed, some of them read before it was known where they go.
pub(crate) struct ReadAhead {
    /// by portal, what was read
    rows: Vec<Vec<RowBatch>>,
    /// so many portals have no more rows
    ended: usize,
}

impl ReadAhead {
    /// For so many portals, of which nothing was read.
    pub fn new(portals: usize) -> Self {
        Self {
            rows: (0..portals).map(|_| Vec::new()).collect(),
            ended: 0,
        }
    }

    /// The next rows that a portal's shard sends; portals are read in their order.
    pub async fn more(
        &mut self,
        portal: usize,
        fragments: &[Fragment],
        transaction: &mut Transaction,
    ) -> Result<Option<RowBatch>, ServerError> {
        if self.has_ended(portal) {
            return Ok(None);
        }
        let backend = transaction.participant(fragments[portal].shard).await?;
        let batch = relay::next_rows(backend).await?;
        if batch.is_none() {
            self.ended = portal + 1;
        }
        Ok(batch)
    }

    /// Keeps rows of a portal.
    pub fn keep(&mut self, portal: usize, batch: RowBatch) {
        self.rows[portal].push(batch);
    }

    /// Whether a portal has no more rows than those that were kept.
    pub fn has_ended(&self, portal: usize) -> bool {
        portal < self.ended
    }

    /// Takes what was kept of a portal.
    pub fn take(&mut self, portal: usize) -> Vec<RowBatch> {
        std::mem::take(&mut self.rows[portal])
    }

    /// What was kept of a portal.
    pub fn of(&self, portal: usize) -> &[RowBatch] {
        &self.rows[portal]
    }
}
