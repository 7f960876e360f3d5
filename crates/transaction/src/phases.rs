//! What the two phases say to one shard, and what its answers mean.

use crate::participant::roll_back;
use crate::resolver;
use crate::two_phase_commit::{Event, Fence, Finish, Last, Prepare};
use crate::{Coordinator, Error};
use pgherd_model::{ServerError, ShardId, SqlState};
use pgherd_shards::Backend;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use std::time::{Duration, Instant};

/// The number under which backends keep the statement that writes a marker; those of clients' statements begin at 1.
const MARKER_STATEMENT: u64 = 0;
/// How long a lost participant is sought before the outcome is reported as unknown.
const FENCE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a shard may take to answer PREPARE TRANSACTION or COMMIT PREPARED, its standby included: a server that stands still
/// is not told from one whose standby does, and locks are held on the other shards meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How often a COMMIT PREPARED that is refused for the moment is sent again.
const BUSY_TRIES: u32 = 200;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// What came back from one action.
pub(crate) struct Answer {
    pub backend: Option<Backend>,
    /// `None`: a reader's COMMIT, which answers nothing
    pub event: Option<Event>,
    pub refusal: Option<Refusal>,
    pub notices: Vec<ServerError>,
}

/// Why a shard would not prepare.
pub(crate) enum Refusal {
    /// it said so
    Error(Error),
    /// the block had failed there, which PREPARE TRANSACTION answers with the tag ROLLBACK
    RolledBack,
}

impl Answer {
    pub(crate) fn of(backend: Option<Backend>, event: Event) -> Self {
        Self {
            backend,
            event: Some(event),
            refusal: None,
            notices: Vec::new(),
        }
    }

    /// Nobody waits for it.
    pub(crate) fn none(backend: &mut Backend) -> Self {
        Self {
            backend: None,
            event: None,
            refusal: None,
            notices: backend.take_notices(),
        }
    }
}

/// What became of marker and the statement that ends the block.
enum Ended {
    /// the tag was the one that was asked for
    Done,
    /// the same, and the wait for the standby was cut short
    NotDurable,
    Refused(Refusal),
    /// no answer
    Unknown,
}

/// Marker and PREPARE TRANSACTION in one pipeline.
pub(crate) async fn prepare(mut backend: Backend, name: String, proof: String) -> Answer {
    let statement = format!("PREPARE TRANSACTION '{name}'");
    let (ended, notices) = end_block(&mut backend, &name, &proof, &statement, "PREPARE TRANSACTION").await;
    let (reply, refusal) = match ended {
        Ended::Done => (Prepare::Prepared, None),
        Ended::NotDurable => (Prepare::NotDurable, None),
        Ended::Refused(why) => (Prepare::Refused, Some(why)),
        Ended::Unknown => (Prepare::Unknown, None),
    };
    let event = Some(Event::Prepare(backend.shard(), reply));
    Answer {
        backend: Some(backend),
        event,
        refusal,
        notices,
    }
}

/// Marker and COMMIT in one pipeline.
pub(crate) async fn commit_last(mut backend: Backend, name: String, proof: String) -> Answer {
    let (ended, notices) = end_block(&mut backend, &name, &proof, "COMMIT", "COMMIT").await;
    let (reply, refusal) = match ended {
        Ended::Done => (Last::Committed, None),
        Ended::NotDurable => (Last::NotDurable, None),
        Ended::Refused(why) => (Last::Refused, Some(why)),
        Ended::Unknown => (Last::Unknown, None),
    };
    let event = Some(Event::Last(backend.shard(), reply));
    Answer {
        backend: Some(backend),
        event,
        refusal,
        notices,
    }
}

/// Marker and a statement that ends the block, and what was said besides. The proof is a parameter: a query's text can be
/// seen by others.
async fn end_block(
    backend: &mut Backend,
    name: &str,
    proof: &str,
    statement: &str,
    wanted: &str,
) -> (Ended, Vec<ServerError>) {
    let shard = backend.shard();
    let _ = backend.take_notices();
    let reply = match send_marker_and(backend, name, proof, statement) {
        Ok(is_new) => {
            let reply = tokio::time::timeout(ANSWER_LIMIT, read_prepare(backend, is_new)).await;
            reply.unwrap_or_else(|_| Err(no_answer(shard)))
        }
        Err(e) => Err(e),
    };
    let notices = backend.take_notices();
    let is_cut_short = |n: &ServerError| {
        n.fields()
            .other
            .iter()
            .any(|(l, v)| *l == b'R' && v == "SyncRepWaitForLSN")
    };
    let ended = match reply {
        Ok(Ok(tag)) if tag == wanted && notices.iter().any(is_cut_short) => Ended::NotDurable,
        Ok(Ok(tag)) if tag == wanted => Ended::Done,
        Ok(Ok(_)) => Ended::Refused(Refusal::RolledBack),
        Ok(Err(e)) => Ended::Refused(Refusal::Error(e.into())),
        Err(e) => {
            tracing::warn!(%shard, gid = name, "no answer to {wanted}: {e}");
            Ended::Unknown
        }
    };
    if matches!(ended, Ended::Refused(_)) {
        roll_back(backend).await;
    }
    (ended, notices)
}

/// Returns whether a Parse for [`MARKER_STATEMENT`] is among what was sent.
fn send_marker_and(backend: &mut Backend, name: &str, proof: &str, ending: &str) -> Result<bool, Error> {
    let text = |e: std::io::Error| Error::Internal(e.to_string());
    let is_new = !backend.has_statement(MARKER_STATEMENT);
    if is_new {
        backend.add_statement(MARKER_STATEMENT);
    }
    let statement = format!("s{MARKER_STATEMENT}");
    let out = backend.outbox();
    if is_new {
        frontend::parse(&statement, "SELECT pgherd.write_marker($1, $2)", [25, 25], out).map_err(text)?;
    }
    let put = |value: &str, out: &mut bytes::BytesMut| {
        out.extend_from_slice(value.as_bytes());
        Ok(IsNull::No)
    };
    frontend::bind("", &statement, [], [name, proof], put, [], out)
        .map_err(|_| Error::Internal("a marker's parameters do not fit".into()))?;
    frontend::execute("", 0, out).map_err(text)?;
    frontend::parse("", ending, [], out).map_err(text)?;
    frontend::bind("", "", [], [""; 0], put, [], out)
        .map_err(|_| Error::Internal("an empty Bind does not fit".into()))?;
    frontend::execute("", 0, out).map_err(text)?;
    frontend::sync(out);
    backend.expect_ready();
    Ok(is_new)
}

/// The last command tag, or the error, of a pipeline; the outer error is a lost connection.
pub(crate) async fn read_prepare(backend: &mut Backend, is_new: bool) -> Result<Result<String, ServerError>, Error> {
    backend.flush().await?;
    // A queued SAVEPOINT that failed shows in the block's state, too: the pipeline then answers an error.
    let mut reply = backend.silent_error().await?.map_or(Ok(String::new()), Err);
    let mut parsed = false;
    loop {
        let message = backend.next_message().await?;
        match (message.tag, &mut reply) {
            (b'C', Ok(tag)) => {
                *tag = String::from_utf8_lossy(message.body.split(|b| *b == 0).next().unwrap_or(&[])).into_owned()
            }
            (b'1', _) => parsed = true,
            // The first says why; behind it all fails.
            (b'E', reply @ Ok(_)) => *reply = Err(ServerError::from_body(&message.body)),
            (b'Z', _) => {
                // In a block that had failed it did not even come to the marker's Parse.
                if is_new && !parsed {
                    backend.remove_statement(MARKER_STATEMENT);
                }
                return Ok(reply);
            }
            _ => {}
        }
    }
}

fn no_answer(shard: ShardId) -> Error {
    let cause = format!("no answer within {} s", ANSWER_LIMIT.as_secs());
    Error::Shard(pgherd_shards::Error::Lost { shard, cause })
}

/// COMMIT PREPARED or ROLLBACK PREPARED, on the connection that prepared, as the role that prepared. Where that role is
/// not the connection's any more (SET LOCAL ROLE), on a service connection.
pub(crate) async fn finish(
    coordinator: &Coordinator,
    backend: Option<Backend>,
    shard: ShardId,
    sql: String,
) -> (Option<Backend>, Finish) {
    let Some(mut backend) = backend else {
        return (None, finish_as_service(coordinator, shard, &sql).await);
    };
    for _ in 0..BUSY_TRIES {
        let Ok(reply) = tokio::time::timeout(ANSWER_LIMIT, backend.simple(&sql)).await else {
            return (None, Finish::Unreachable);
        };
        match reply {
            Ok(_) => return (Some(backend), Finish::Done),
            Err(pgherd_shards::Error::Server(e)) => match e.sqlstate() {
                SqlState::UNDEFINED_OBJECT => return (Some(backend), Finish::NotFound),
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => tokio::time::sleep(BUSY_PAUSE).await,
                _ => return (Some(backend), finish_as_service(coordinator, shard, &sql).await),
            },
            Err(_) => return (None, Finish::Unreachable),
        }
    }
    (Some(backend), Finish::Unreachable)
}

async fn finish_as_service(coordinator: &Coordinator, shard: ShardId, sql: &str) -> Finish {
    let run = async {
        let state = coordinator.state(shard)?;
        let client = state.client(&coordinator.shards, &coordinator.database).await?;
        state.within(client.batch_execute(sql)).await
    };
    match run.await {
        Ok(()) => Finish::Done,
        Err(e) if e.sqlstate() == SqlState::UNDEFINED_OBJECT => Finish::NotFound,
        Err(e) => {
            tracing::warn!(%shard, "{sql}: {e}");
            Finish::Unreachable
        }
    }
}

/// What became of a participant whose answer to PREPARE was lost.
pub(crate) async fn fence_lost(coordinator: &Coordinator, shard: ShardId, name: &str) -> Fence {
    let begun = Instant::now();
    while begun.elapsed() < FENCE_TIMEOUT {
        if let Ok(Some(found)) = resolver::fence_lost(coordinator, shard, name).await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Fence::Unreachable
}
