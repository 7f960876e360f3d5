//! The result of a SELECT: rows as they come, in the formats that the client asked for.

use crate::relay::{self, RowBatch};
use pgherd_model::ServerError;
use pgherd_shards::{Backend, CancelToken};
use std::marker::PhantomData;

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

    /// Ends its transaction; the connection goes back to its pool.
    async fn finish(mut self) -> Result<(), ServerError> {
        let backend = self.backend();
        backend.drain().await?;
        backend.simple("ROLLBACK").await?;
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

type MapError = Box<dyn Fn(ServerError) -> ServerError + Send + Sync>;

enum Source {
    Scratch(Scratch, MapError),
    Done,
}

/// Rows on their way to the client. Drop it, or read it to its end, before the transaction is used again.
pub struct Rows<'t> {
    source: Source,
    _transaction: PhantomData<&'t mut ()>,
}

impl Rows<'_> {
    pub(crate) fn scratch(scratch: Scratch, map_error: MapError) -> Self {
        Self {
            source: Source::Scratch(scratch, map_error),
            _transaction: PhantomData,
        }
    }

    /// The next rows; None at the end, when everything behind them has ended as well. After an error
    /// there are no more.
    pub async fn next(&mut self) -> Result<Option<RowBatch>, ServerError> {
        let next = match &mut self.source {
            Source::Scratch(scratch, map_error) => relay::next_rows(scratch.backend()).await.map_err(|e| map_error(e)),
            Source::Done => return Ok(None),
        };
        if !matches!(next, Ok(Some(_))) {
            let Source::Scratch(scratch, map_error) = std::mem::replace(&mut self.source, Source::Done) else {
                return next;
            };
            if next.is_ok() {
                scratch.finish().await.map_err(|e| map_error(e))?;
            }
        }
        next
    }

    /// What cancels whatever still runs outside of the transaction's participants.
    pub fn cancel_token(&mut self) -> Option<CancelToken> {
        match &mut self.source {
            Source::Scratch(scratch, _) => Some(scratch.backend().cancel_token()),
            Source::Done => None,
        }
    }
}
