//! One commit in two phases: the I/O around [`crate::two_phase_commit`].
//!
//! It asks for admission, names the commit, does what [`Commit::step`] says, and tells how it ended. What is sent to the shards is
//! in `phases`.

use crate::commit::{abandon, rolled_back};
use crate::control::Point;
use crate::gid::{self, Gid};
use crate::local_gate::{Group, Pass};
use crate::participant::{Participant, roll_back};
use crate::phases::{Answer, Refusal, commit_last, fence_lost, finish, prepare};
use crate::resolver;
use crate::sequence::InFlight;
use crate::transaction::Committed;
use crate::two_phase_commit::{Action, Commit, Event, Last, Marker, Outcome, Prepare};
use crate::{Coordinator, Error};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use pgherd_model::{ServerError, ShardId, SqlState};
use pgherd_shards::Backend;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;

/// What `write_marker` raises when this gateway was taken for dead.
const SEQUENCE_CLOSED: &str = "PGH01";

/// Several shards wrote. The last one, if there is one, is not prepared.
pub(crate) async fn two_phases(
    coordinator: Arc<Coordinator>,
    writers: Vec<Participant>,
    readers: Vec<Participant>,
    changes_schema: bool,
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
    let last = last_of(&coordinator, &writers, changes_schema);
    let in_flight = coordinator.sequence.begin(ids.clone(), last);
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
        visible: None,
        coordinator,
    };
    let result = run.drive(&ids).await;
    drop(permits);
    let outcome = match &result {
        Ok(c) if c.tag == "COMMIT" => "commit",
        Err(Error::OutcomeUnknown { .. }) => "unknown",
        _ => "abort",
    };
    metrics::counter!("pgherd_two_phase_commits_total", "outcome" => outcome).increment(1);
    metrics::histogram!("pgherd_two_phase_commit_seconds").record(begun.elapsed().as_secs_f64());
    result
}

/// Whose part may not be one that PostgreSQL prepares. A session's own connection may hold temporary tables, cursors WITH HOLD, or LISTEN; on
/// the home shard, triggers of local tables may notify, or refresh a materialized view.
fn last_of(coordinator: &Coordinator, writers: &[Participant], changes_schema: bool) -> Option<ShardId> {
    let pinned = writers.iter().find(|w| w.backend.is_pinned()).map(Participant::shard);
    let home = coordinator.shards.home();
    let is_doubtful = || {
        let state = coordinator.state(home);
        changes_schema || state.is_ok_and(|state| state.unpreparable.load(Ordering::Relaxed))
    };
    pinned.or_else(|| (writers.iter().any(|w| w.shard() == home) && is_doubtful()).then_some(home))
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
    /// held while it becomes visible on one shard after the other
    visible: Option<Pass>,
}

impl Run {
    async fn drive(mut self, writers: &[ShardId]) -> Result<Committed, Error> {
        let (mut commit, actions) = Commit::start(writers, self.in_flight.gid.last);
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
                    Action::CommitPrepared(_) | Action::CommitLast(_) => {
                        self.keep_cuts_away(writers).await;
                        self.act(action)?;
                    }
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

    /// A cut that is being taken is waited for, and the next ones wait.
    async fn keep_cuts_away(&mut self, shards: &[ShardId]) {
        if self.visible.is_none() {
            let shards = shards.iter().copied().collect();
            self.visible = Some(self.coordinator.gate.enter(Group::Commit, shards, None).await);
        }
    }

    fn take(&mut self, answer: Answer) -> Option<Event> {
        if let (Some(backend), Some(event)) = (answer.backend, answer.event) {
            match event {
                Event::Prepare(shard, Prepare::Unknown) | Event::Last(shard, Last::Unknown) => self.lost = Some(shard),
                event => {
                    // With a last one, this ends the transaction.
                    if let Event::Prepare(shard, Prepare::NotDurable) = event {
                        self.lost = Some(shard);
                    }
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
            Action::CommitLast(shard) => Box::pin(commit_last(self.backend(shard)?, name, self.proof.clone())),
            Action::RollBackLast(shard) => {
                let mut backend = self.backend(shard)?;
                Box::pin(async move {
                    roll_back(&mut backend).await;
                    Answer::none(&mut backend)
                })
            }
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
                Answer::none(&mut reader.backend)
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
                cause: "a shard, or its standby, did not answer while the transaction was being committed".into(),
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
                 notified or exported its snapshot. Leave that out of it.",
            ),
            _ => e,
        };
        explained.into()
    }
}
