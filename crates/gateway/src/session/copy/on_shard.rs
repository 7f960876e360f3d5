//! The COPY FROM STDIN of one shard: how it begins and how it ends.

use super::plan::Plan;
use super::put_fail;
use crate::session::Problem;
use bytes::Bytes;
use pgherd_model::{ServerError, SqlState};
use pgherd_shards::Backend;
use postgres_protocol::message::frontend;

/// What a shard answered.
#[derive(Default)]
pub(super) struct Answer {
    pub count: u64,
    pub error: Option<ServerError>,
    pub notices: Vec<ServerError>,
}

/// Queues the fence's lock and the COPY.
pub(super) fn start(backend: &mut Backend, plan: &Plan) -> Result<(), Problem> {
    backend.queue_silent(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", plan.fence));
    backend.queue_query(&plan.sql)?;
    Ok(())
}

/// Begins the COPY; CopyInResponse's body, or the error that came instead.
pub(super) async fn begin_copy(backend: &mut Backend, plan: &Plan) -> Result<Result<Bytes, ServerError>, Problem> {
    start(backend, plan)?;
    backend.flush().await?;
    await_copy(backend).await
}

/// What [`begin_copy`] would say, without a COPY left open. Triggers that fire before it have fired for nothing.
pub(super) async fn try_copy(backend: &mut Backend, plan: &Plan) -> Result<Result<Bytes, ServerError>, Problem> {
    backend.simple("SAVEPOINT pgherd_copy").await?;
    let began = begin_copy(backend, plan).await?;
    if began.is_ok() {
        // It is given up rather than ended: without a line there is no header to match.
        let given_up = end(backend, Some("pgherd")).await?.error;
        if let Some(error) = given_up.filter(|error| error.sqlstate() != SqlState::QUERY_CANCELED) {
            return Ok(Err(error));
        }
        backend
            .simple("ROLLBACK TO SAVEPOINT pgherd_copy; RELEASE SAVEPOINT pgherd_copy")
            .await?;
    }
    Ok(began)
}

/// CopyInResponse's body, or the error that came instead.
async fn await_copy(backend: &mut Backend) -> Result<Result<Bytes, ServerError>, Problem> {
    let mut failed = backend.silent_error().await?;
    loop {
        let message = backend.next_message().await?;
        match message.tag {
            b'G' => return Ok(Ok(message.body)),
            b'E' => {
                failed.get_or_insert_with(|| ServerError::from_body(&message.body));
            }
            b'Z' => {
                return Ok(Err(
                    failed.unwrap_or_else(|| ServerError::internal("COPY did not begin"))
                ));
            }
            _ => {}
        }
    }
}

/// Ends a shard's COPY, well (None) or with a failure, and reads its answer.
pub(super) async fn end(backend: &mut Backend, failure: Option<&str>) -> Result<Answer, Problem> {
    match failure {
        None => frontend::copy_done(backend.outbox()),
        Some(message) => put_fail(backend, message),
    }
    backend.flush().await?;
    let mut answer = Answer {
        error: backend.silent_error().await?,
        ..Answer::default()
    };
    loop {
        let message = backend.next_message().await?;
        match message.tag {
            b'C' => {
                let tag = String::from_utf8_lossy(&message.body);
                let count = tag
                    .trim_end_matches('\0')
                    .rsplit(' ')
                    .next()
                    .and_then(|n| n.parse().ok());
                answer.count = count.unwrap_or(0);
            }
            b'E' => {
                answer
                    .error
                    .get_or_insert_with(|| ServerError::from_body(&message.body));
            }
            b'Z' => {
                answer.notices = backend.take_notices();
                return Ok(answer);
            }
            _ => {}
        }
    }
}
