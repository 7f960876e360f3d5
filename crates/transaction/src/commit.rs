//! COMMIT: how many shards wrote decides how. The I/O around [`crate::two_phase_commit`].
//!
//! At most one writer: its plain COMMIT is the decision, at PostgreSQL's own price. Several: two phases, in a task of its
//! own, so that a client that goes away cannot leave a commit half done.

use crate::control::Point;
use crate::gid::{self, Gid};
use crate::participant::{Participant, roll_back};
use crate::resolver;
use crate::sequence::InFlight;
use crate::transaction::{Committed, Transaction};
use crate::two_phase_commit::{Action, Commit, Event, Fence, Finish, Marker, Outcome, Prepare};
use crate::{Coordinator, Error, deadlock_error};
use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use pgherd_model::{ServerError, ShardId, SqlState};
use pgherd_shards::Backend;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// What `write_marker` raises when this gateway was taken for dead.
const SEQUENCE_CLOSED: &str = "PGH01";
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

pub(crate) async fn commit(mut transaction: Transaction) -> Result<Committed, Error> {
    use pgherd_shards::TransactionStatus::Failed;
    transaction.end_statement().await;
    if transaction.status() == Failed {
        transaction.rollback().await?;
        return Ok(rolled_back());
    }
    let after = std::mem::take(&mut transaction.after_commit);
    let coordinator = transaction.coordinator.clone();
    let who = transaction.who().clone();
    let read_only = transaction.mode().read_only == Some(true);
    let mut participants = std::mem::take(&mut transaction.participants);
    if participants.len() > 1
        && !read_only
        && let Err(e) = ask_who_wrote(&mut participants).await
    {
        return Err(abandon(participants, e).await);
    }
    let alone = participants.len() == 1;
    let (mut writers, readers): (Vec<_>, Vec<_>) = participants.into_iter().partition(|p| p.wrote || alone);
    let committed = match writers.len() {
        0 | 1 => plain(writers.pop(), readers).await?,
        _ => {
            // Until something is prepared, a circle of waits can be broken; afterwards nothing is ever cancelled.
            transaction.begin_statement();
            let checked = check_deferred(&coordinator, &mut writers).await;
            let deadlock = transaction.end_statement().await;
            if let Err(e) = checked {
                writers.extend(readers);
                let error = abandon(writers, e).await;
                return Err(match deadlock {
                    Some(detail) => deadlock_error(error.into(), &detail).into(),
                    None => error,
                });
            }
            let task = tokio::spawn(two_phases(coordinator.clone(), writers, readers));
            task.await
                .map_err(|e| Error::OutcomeUnknown { cause: e.to_string() })??
        }
    };
    if committed.tag == "COMMIT" {
        for (shard, sql) in after {
            let ran = async { Ok::<_, Error>(coordinator.autocommit(shard, &who).await?.simple(&sql).await?) };
            if let Err(e) = ran.await {
                tracing::warn!(%shard, "what was to follow the commit failed: {e}");
            }
        }
    }
    Ok(committed)
}

pub(crate) fn rolled_back() -> Committed {
    Committed {
        tag: "ROLLBACK".into(),
        notices: Vec::new(),
    }
}

/// Rolls all back and hands the error on; a connection that was lost is said to have cost the transaction.
pub(crate) async fn abandon(participants: Vec<Participant>, error: Error) -> Error {
    join_all(participants.into_iter().map(Participant::roll_back)).await;
    match error {
        Error::Shard(pgherd_shards::Error::Lost { shard, .. }) => Error::ParticipantLost { shard },
        other => other,
    }
}

/// A function in a SELECT may have written: where no command tag said so, the shard knows.
async fn ask_who_wrote(participants: &mut [Participant]) -> Result<(), Error> {
    let unknown = participants.iter_mut().filter(|p| !p.wrote);
    let asked = join_all(unknown.map(async |p| {
        let results = p
            .run("SELECT pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL")
            .await?;
        p.wrote = results.last().and_then(|r| r.text(0, 0)) == Some("t");
        Ok(())
    }));
    asked.await.into_iter().collect()
}

/// Deferred constraints are checked before anything is prepared: their triggers may wait for locks, and a prepared
/// transaction in a circle of waits could not be cancelled.
pub(crate) async fn check_deferred(coordinator: &Coordinator, writers: &mut [Participant]) -> Result<(), Error> {
    let exist = |shard| {
        coordinator
            .state(shard)
            .is_ok_and(|s| s.deferrable.load(std::sync::atomic::Ordering::Relaxed))
    };
    if !writers.iter().any(|w| exist(w.shard())) {
        return Ok(());
    }
    let checks = writers
        .iter_mut()
        .map(async |w| w.run("SET CONSTRAINTS ALL IMMEDIATE").await.map(|_| ()));
    join_all(checks).await.into_iter().collect()
}

/// One shard wrote, or none.
async fn plain(writer: Option<Participant>, mut readers: Vec<Participant>) -> Result<Committed, Error> {
    let mut committed = Committed {
        tag: "COMMIT".into(),
        notices: Vec::new(),
    };
    let wrote = writer.is_some();
    if let Some(mut writer) = writer {
        match writer.run("COMMIT").await {
            Ok(results) => {
                committed.tag = results.last().map_or_else(String::new, |r| r.tag.clone());
                committed.notices = writer.backend.take_notices();
            }
            Err(Error::Shard(pgherd_shards::Error::Lost { shard, cause })) => {
                join_all(readers.into_iter().map(Participant::roll_back)).await;
                let cause = format!("the connection to shard {shard} was lost during COMMIT: {cause}");
                return Err(Error::OutcomeUnknown { cause });
            }
            Err(e) => return Err(abandon(readers, e).await),
        }
        if committed.tag != "COMMIT" {
            join_all(readers.into_iter().map(Participant::roll_back)).await;
            return Ok(committed);
        }
    }
    // They wrote nothing, but may have sent a NOTIFY, which must not come before the decision.
    let ended = join_all(readers.iter_mut().map(|r| r.run("COMMIT"))).await;
    for reader in &mut readers {
        committed.notices.extend(reader.backend.take_notices());
    }
    match ended.into_iter().collect::<Result<Vec<_>, _>>() {
        Err(e) if wrote => tracing::warn!("a shard that was only read did not end its block cleanly: {e}"),
        Err(e) => return Err(abandon(readers, e).await),
        Ok(_) => {}
    }
    Ok(committed)
}

/// Several shards wrote.
async fn two_phases(
    coordinator: Arc<Coordinator>,
    writers: Vec<Participant>,
    readers: Vec<Participant>,
) -> Result<Committed, Error> {
    let begun = Instant::now();
    let ids: Vec<ShardId> = writers.iter().map(Participant::shard).collect();
    let permits = match admit(&coordinator, &ids).await {
        Ok(permits) => permits,
        Err(e) => {
            let all = writers.into_iter().chain(readers).collect();
            return Err(abandon(all, e).await);
        }
    };
    let in_flight = coordinator.sequence.begin(ids.clone());
    let name = in_flight.gid.to_string();
    let run = Run {
        proof: gid::proof(&coordinator.identity.secret, &name),
        name,
        backends: writers.into_iter().map(|w| (w.shard(), w.backend)).collect(),
        readers,
        work: FuturesUnordered::new(),
        refusal: None,
        lost: None,
        notices: Vec::new(),
        handed_over: Vec::new(),
        in_flight,
        coordinator,
    };
    // A cut that does not come while transactions commit keeps new ones out for the moment in which it is taken.
    let gate_keeper = run.coordinator.clone();
    let passage = gate_keeper.gate.read().await;
    let result = run.drive(&ids).await;
    drop((permits, passage));
    let outcome = match &result {
        Ok(c) if c.tag == "COMMIT" => "commit",
        Err(Error::OutcomeUnknown { .. }) => "unknown",
        _ => "abort",
    };
    metrics::counter!("pgherd_two_phase_commits_total", "outcome" => outcome).increment(1);
    metrics::histogram!("pgherd_two_phase_commit_seconds").record(begun.elapsed().as_secs_f64());
    result
}

/// A place for one more prepared transaction on each shard, taken in shard order so that nobody waits in a circle.
async fn admit(coordinator: &Coordinator, shards: &[ShardId]) -> Result<Vec<OwnedSemaphorePermit>, Error> {
    let mut ordered = shards.to_vec();
    ordered.sort();
    let sequence = coordinator.sequence.id();
    let mut permits = Vec::with_capacity(ordered.len());
    for shard in ordered {
        if !Gid::fits(shard) {
            return Err(Error::ShardNumberTooHigh(shard));
        }
        let state = coordinator.state(shard)?;
        let client = state.client(&coordinator.shards, &coordinator.database).await?;
        let places = state.admit(&client, &sequence).await?;
        permits.push(
            places
                .acquire_owned()
                .await
                .map_err(|e| Error::Internal(e.to_string()))?,
        );
    }
    Ok(permits)
}

/// What came back from one action.
struct Answer {
    backend: Option<Backend>,
    /// `None`: a reader's COMMIT, which answers nothing
    event: Option<Event>,
    refusal: Option<Refusal>,
    notices: Vec<ServerError>,
}

/// Why a shard would not prepare.
enum Refusal {
    /// it said so
    Error(Error),
    /// the block had failed there, which PREPARE TRANSACTION answers with the tag ROLLBACK
    RolledBack,
}

/// One commit in two phases.
struct Run {
    coordinator: Arc<Coordinator>,
    in_flight: InFlight,
    name: String,
    proof: String,
    backends: HashMap<ShardId, Backend>,
    readers: Vec<Participant>,
    work: FuturesUnordered<BoxFuture<'static, Answer>>,
    refusal: Option<Refusal>,
    lost: Option<ShardId>,
    notices: Vec<ServerError>,
    handed_over: Vec<ShardId>,
}

impl Run {
    async fn drive(mut self, writers: &[ShardId]) -> Result<Committed, Error> {
        let (mut commit, actions) = Commit::start(writers);
        let mut outcome = None;
        let mut decided = false;
        for action in actions {
            self.act(action)?;
        }
        while let Some(answer) = self.work.next().await {
            let Some(event) = self.take(answer) else { continue };
            self.coordinator.pass(Point::After(event))?;
            for action in commit.step(event) {
                match action {
                    Action::Acknowledge(o) => outcome = Some(o),
                    other => self.act(other)?,
                }
            }
            if !decided && let Some(decision) = commit.decision() {
                decided = true;
                self.end_readers(decision);
            }
        }
        let outcome = outcome.ok_or_else(|| Error::Internal(format!("commit {} came to no end", self.name)))?;
        self.end(outcome)
    }

    fn take(&mut self, answer: Answer) -> Option<Event> {
        if let (Some(backend), Some(event)) = (answer.backend, answer.event) {
            match event {
                Event::Prepare(shard, Prepare::Unknown) => self.lost = Some(shard),
                _ => {
                    self.backends.insert(backend.shard(), backend);
                }
            }
        }
        if self.refusal.is_none() {
            self.refusal = answer.refusal;
        }
        self.notices.extend(answer.notices);
        answer.event
    }

    fn act(&mut self, action: Action) -> Result<(), Error> {
        self.coordinator.pass(Point::Before(action))?;
        let (coordinator, name) = (self.coordinator.clone(), self.name.clone());
        let work: BoxFuture<'static, Answer> = match action {
            Action::Prepare(shard) => Box::pin(prepare(self.backend(shard)?, name, self.proof.clone())),
            Action::CommitPrepared(shard) => {
                let backend = self.backends.remove(&shard);
                Box::pin(async move {
                    let (backend, done) =
                        finish(&coordinator, backend, shard, format!("COMMIT PREPARED '{name}'")).await;
                    Answer::of(backend, Event::Commit(shard, done))
                })
            }
            Action::RollbackPrepared(shard) => {
                let backend = self.backends.remove(&shard);
                Box::pin(async move {
                    let (backend, done) =
                        finish(&coordinator, backend, shard, format!("ROLLBACK PREPARED '{name}'")).await;
                    Answer::of(backend, Event::Rollback(shard, done))
                })
            }
            Action::Fence(shard) => Box::pin(async move {
                let found = fence_lost(&coordinator, shard, &name).await;
                Answer::of(None, Event::Fence(shard, found))
            }),
            Action::LookForMarker(shard) => Box::pin(async move {
                let marker = resolver::look_for_marker(&coordinator, shard, &name).await;
                let marker = marker.unwrap_or(Marker::Unreachable);
                Answer::of(None, Event::Marker(shard, marker))
            }),
            Action::HandOver(shard) => {
                self.handed_over.push(shard);
                return Ok(());
            }
            Action::Alarm(shard) => {
                let lost = Error::LostTransaction { shard, gid: name };
                tracing::error!("{lost}");
                return Ok(());
            }
            Action::Acknowledge(_) => return Ok(()),
        };
        self.work.push(work);
        Ok(())
    }

    fn backend(&mut self, shard: ShardId) -> Result<Backend, Error> {
        let backend = self.backends.remove(&shard);
        backend.ok_or_else(|| Error::Internal(format!("shard {shard} has no connection to commit on")))
    }

    /// Shards that were only read end with the decision.
    fn end_readers(&mut self, decision: Outcome) {
        for mut reader in std::mem::take(&mut self.readers) {
            self.work.push(Box::pin(async move {
                if decision == Outcome::Committed {
                    if let Err(e) = reader.run("COMMIT").await {
                        tracing::warn!("a shard that was only read did not end its block cleanly: {e}");
                    }
                } else {
                    roll_back(&mut reader.backend).await;
                }
                Answer {
                    notices: reader.backend.take_notices(),
                    backend: None,
                    event: None,
                    refusal: None,
                }
            }));
        }
    }

    fn end(self, outcome: Outcome) -> Result<Committed, Error> {
        let gid = &self.in_flight.gid;
        if self.handed_over.is_empty() {
            self.coordinator.sequence.settle(gid);
        } else {
            if outcome == Outcome::Committed {
                for shard in &self.handed_over {
                    self.coordinator.state(*shard)?.owe(gid);
                }
            }
            self.coordinator.wake.notify_one();
        }
        match outcome {
            Outcome::Committed => Ok(Committed {
                tag: "COMMIT".into(),
                notices: self.notices,
            }),
            Outcome::Unknown => Err(Error::OutcomeUnknown {
                cause: "a shard, or its standby, did not answer while the transaction was prepared".into(),
            }),
            Outcome::Aborted => match (self.refusal, self.lost) {
                (Some(Refusal::Error(e)), _) => Err(self.coordinator.explain_refusal(&self.in_flight.gid, e)),
                (Some(Refusal::RolledBack), _) => Ok(rolled_back()),
                (None, Some(shard)) => Err(Error::ParticipantLost { shard }),
                (None, None) => Err(Error::Internal(format!("{} was aborted for no reason", self.name))),
            },
        }
    }
}

impl Answer {
    fn of(backend: Option<Backend>, event: Event) -> Self {
        Self {
            backend,
            event: Some(event),
            refusal: None,
            notices: Vec::new(),
        }
    }
}

impl Coordinator {
    /// What the client is told about a PREPARE that failed.
    fn explain_refusal(&self, gid: &Gid, error: Error) -> Error {
        let Error::Shard(pgherd_shards::Error::Server(e)) = error else {
            return error;
        };
        let of_markers = |e: &ServerError| e.fields().other.iter().any(|(l, v)| *l == b't' && v == "dtx");
        let taken_for_dead = |detail: &str| {
            ServerError::new(
                SqlState::SERIALIZATION_FAILURE,
                "the transaction was rolled back by another gateway",
            )
            .with_detail(detail)
            .with_hint("Run the transaction again.")
        };
        let explained = match e.sqlstate().code() {
            SEQUENCE_CLOSED => {
                self.sequence.renew(&gid.sequence);
                taken_for_dead("This gateway had no valid lease for a while and was taken for dead.")
            }
            "23505" if of_markers(&e) => taken_for_dead("This gateway was taken for dead while it committed."),
            "0A000" if e.fields().hint.is_none() => e.with_hint(
                "A transaction that wrote on several shards is committed in two phases, which PostgreSQL does not do for one that \
                 used temporary tables, NOTIFY, WITH HOLD cursors or exported snapshots. Leave them out of it.",
            ),
            _ => e,
        };
        explained.into()
    }
}

/// Marker and PREPARE TRANSACTION in one pipeline. The proof is a parameter: a query's text can be seen by others.
async fn prepare(mut backend: Backend, name: String, proof: String) -> Answer {
    let shard = backend.shard();
    let _ = backend.take_notices();
    let reply = match send_prepare(&mut backend, &name, &proof) {
        Ok(is_new) => {
            let reply = tokio::time::timeout(ANSWER_LIMIT, read_prepare(&mut backend, is_new)).await;
            reply.unwrap_or_else(|_| Err(no_answer(shard)))
        }
        Err(e) => Err(e),
    };
    let notices = backend.take_notices();
    let (event, refusal) = match reply {
        Ok(Ok(tag)) if tag == "PREPARE TRANSACTION" => {
            let cut_short = |n: &ServerError| {
                n.fields()
                    .other
                    .iter()
                    .any(|(l, v)| *l == b'R' && v == "SyncRepWaitForLSN")
            };
            if notices.iter().any(cut_short) {
                (Prepare::NotDurable, None)
            } else {
                (Prepare::Prepared, None)
            }
        }
        Ok(Ok(_)) => (Prepare::Refused, Some(Refusal::RolledBack)),
        Ok(Err(e)) => (Prepare::Refused, Some(Refusal::Error(e.into()))),
        Err(e) => {
            tracing::warn!(%shard, gid = name, "no answer to PREPARE TRANSACTION: {e}");
            (Prepare::Unknown, None)
        }
    };
    if event == Prepare::Refused {
        roll_back(&mut backend).await;
    }
    Answer {
        backend: Some(backend),
        event: Some(Event::Prepare(shard, event)),
        refusal,
        notices,
    }
}

/// Returns whether a Parse for [`MARKER_STATEMENT`] is among what was sent.
fn send_prepare(backend: &mut Backend, name: &str, proof: &str) -> Result<bool, Error> {
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
    frontend::parse("", &format!("PREPARE TRANSACTION '{name}'"), [], out).map_err(text)?;
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
async fn finish(
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
async fn fence_lost(coordinator: &Coordinator, shard: ShardId, name: &str) -> Fence {
    let begun = Instant::now();
    while begun.elapsed() < FENCE_TIMEOUT {
        if let Ok(Some(found)) = resolver::fence_lost(coordinator, shard, name).await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Fence::Unreachable
}
