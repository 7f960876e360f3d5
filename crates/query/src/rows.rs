//! The result of a SELECT: rows as they come, in the formats that the client asked for.

use crate::Transaction;
use crate::plan::{self, Locked, Merge};
use crate::relay::{self, RowBatch};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlan;
use futures::StreamExt;
use futures::future::BoxFuture;
use pgherd_model::ServerError;
use pgherd_shards::{Backend, CancelToken, TransactionStatus};
use std::sync::Arc;

/// A connection that is no participant, in a transaction of its own that is rolled back. Dropped in the middle of a
/// statement, the statement is cancelled and the connection closed.
pub(crate) struct Scratch(Option<Backend>);

impl Scratch {
    pub fn new(backend: Backend) -> Self {
        Self(Some(backend))
    }

    pub fn backend(&mut self) -> &mut Backend {
        self.0
            .as_mut()
            .expect("a scratch connection has its backend until it is dropped")
    }

    /// Ends its transaction, where a ROLLBACK was not sent along with the statement; the connection goes back to its pool.
    async fn finish(mut self) -> Result<(), ServerError> {
        let backend = self.backend();
        backend.drain().await?;
        if backend.status() != TransactionStatus::Idle {
            backend.simple("ROLLBACK").await?;
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(backend) = self.0.take()
            && backend.is_awaiting()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let token = backend.cancel_token();
            runtime.spawn(async move { token.cancel().await });
        }
    }
}

pub(crate) type MapError = Box<dyn Fn(ServerError) -> ServerError + Send + Sync>;

enum Source<'t> {
    /// PostgreSQL's own result, on the scratch connection
    Scratch(Scratch, MapError),
    /// shards' rows put together
    Merge(Merge, &'t mut Transaction),
    /// rows that are locked one by one
    Locked(Locked, &'t mut Transaction),
    /// DataFusion's result, and what feeds it from the shards until it is done
    Computed(
        SendableRecordBatchStream,
        Option<BoxFuture<'t, Result<(), ServerError>>>,
    ),
    /// all there is
    Ready(RowBatch),
    Done,
}

/// Rows on their way to the client. Read it to its end, or to an error, before the transaction is used again.
pub struct Rows<'t> {
    source: Source<'t>,
    /// what computes them in the gateway
    computed: Option<Arc<dyn ExecutionPlan>>,
    /// what was done for them before
    steps: Vec<Step>,
    /// what PostgreSQL told while it ran on a connection that is no participant
    notices: Vec<ServerError>,
}

/// What a statement used beside its rows.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// most bytes of memory in the gateway
    pub memory_bytes: usize,
    /// bytes that did not fit and went to disk
    pub spilled_bytes: usize,
    /// the steps of a gather in stages
    pub steps: Vec<Step>,
}

/// One step of a gather in stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// what it does, as [`explain`](crate::explain) names it
    pub what: String,
    /// rows that came from the shards
    pub rows: u64,
    /// bytes of these rows
    pub bytes: u64,
}

impl Default for Rows<'_> {
    /// No rows.
    fn default() -> Self {
        Self {
            source: Source::Done,
            computed: None,
            steps: Vec::new(),
            notices: Vec::new(),
        }
    }
}

impl<'t> Rows<'t> {
    fn from_source(source: Source<'t>) -> Self {
        Self {
            source,
            ..Self::default()
        }
    }

    pub(crate) fn scratch(scratch: Scratch, map_error: MapError) -> Self {
        let source = Source::Scratch(scratch, map_error);
        Self::from_source(source)
    }

    pub(crate) fn merge(merge: Merge, transaction: &'t mut Transaction) -> Self {
        let source = Source::Merge(merge, transaction);
        Self::from_source(source)
    }

    pub(crate) fn locked(locked: Locked, transaction: &'t mut Transaction) -> Self {
        let source = Source::Locked(locked, transaction);
        Self::from_source(source)
    }

    pub(crate) fn computed(stream: SendableRecordBatchStream, pump: BoxFuture<'t, Result<(), ServerError>>) -> Self {
        let source = Source::Computed(stream, Some(pump));
        Self::from_source(source)
    }

    pub(crate) fn ready(rows: RowBatch) -> Self {
        let source = if rows.rows > 0 {
            Source::Ready(rows)
        } else {
            Source::Done
        };
        Self::from_source(source)
    }

    /// The next rows; None at the end, when everything behind them has ended as well. After an error
    /// there are no more.
    pub async fn next(&mut self) -> Result<Option<RowBatch>, ServerError> {
        let next = match &mut self.source {
            Source::Scratch(scratch, map_error) => relay::next_rows(scratch.backend()).await.map_err(map_error),
            Source::Merge(merge, transaction) => merge.next(transaction).await,
            Source::Locked(locked, transaction) => locked.next(transaction).await,
            Source::Computed(stream, pump) => next_computed(stream, pump).await,
            Source::Ready(_) => {
                let Source::Ready(rows) = std::mem::replace(&mut self.source, Source::Done) else {
                    return Ok(None);
                };
                return Ok(Some(rows));
            }
            Source::Done => return Ok(None),
        };
        if matches!(next, Ok(Some(_))) {
            return next;
        }
        if let Source::Scratch(scratch, _) = &mut self.source {
            self.notices.extend(scratch.backend().take_notices());
        }
        match std::mem::replace(&mut self.source, Source::Done) {
            Source::Scratch(scratch, map_error) if next.is_ok() => scratch.finish().await.map_err(map_error)?,
            // The statement has failed and is over. What cannot be ended now is closed.
            Source::Scratch(scratch, _) => drop(scratch.finish().await),
            Source::Computed(stream, pump) => {
                // Nobody wants more rows: the pump sees its channels closed and stops the shards.
                drop(stream);
                let pumped = match pump {
                    Some(pump) => pump.await,
                    None => Ok(()),
                };
                // A shard's error is why the stream failed or ended.
                pumped?;
            }
            _ => {}
        }
        next
    }

    /// Notices that came with the rows, and that no participant of the transaction has kept; all of them once there are no more rows.
    pub fn take_notices(&mut self) -> Vec<ServerError> {
        std::mem::take(&mut self.notices)
    }

    /// With the plan that computes them.
    pub(crate) fn by(mut self, computed: Arc<dyn ExecutionPlan>) -> Self {
        self.computed = Some(computed);
        self
    }

    /// With the steps that were done for them, before those that it has.
    pub(crate) fn after(mut self, mut steps: Vec<Step>) -> Self {
        steps.append(&mut self.steps);
        self.steps = steps;
        self
    }

    /// What was used so far; None where the gateway computes nothing.
    pub fn statistics(&self) -> Option<Statistics> {
        if self.computed.is_none() && self.steps.is_empty() {
            return None;
        }
        let (memory_bytes, spilled_bytes) = self.computed.as_deref().map_or((0, 0), plan::engine::used);
        Some(Statistics {
            memory_bytes,
            spilled_bytes,
            steps: self.steps.clone(),
        })
    }

    /// What cancels whatever still runs outside of the transaction's participants.
    pub fn cancel_token(&mut self) -> Option<CancelToken> {
        match &mut self.source {
            Source::Scratch(scratch, _) => Some(scratch.backend().cancel_token()),
            _ => None,
        }
    }
}

/// DataFusion's next batch, while the pump runs beside it.
async fn next_computed<'t>(
    stream: &mut SendableRecordBatchStream,
    pump: &mut Option<BoxFuture<'t, Result<(), ServerError>>>,
) -> Result<Option<RowBatch>, ServerError> {
    loop {
        let batch = match pump {
            Some(pumping) => tokio::select! {
                batch = stream.next() => batch,
                pumped = pumping => {
                    *pump = None;
                    pumped?;
                    continue;
                }
            },
            None => stream.next().await,
        };
        match batch {
            None => return Ok(None),
            Some(batch) => {
                let rows = plan::result_rows(&batch.map_err(plan::engine::error)?)?;
                if rows.rows > 0 {
                    return Ok(Some(rows));
                }
            }
        }
    }
}
