//! PREPARE TRANSACTION: the row, then marker and PREPARE on every shard that takes part, then the row says that it is prepared.
//!
//! Shards that were only read are prepared as well: as in PostgreSQL, their locks stay. A transaction that has touched no shard
//! is prepared on the home shard. One that is READ ONLY can write no marker, and needs none, since nobody can see its end.

use super::decide::Record;
use super::{NAME_BYTES, Step, in_use, pass, record, recovery};
use crate::commit::{abandon, check_deferred, rolled_back};
use crate::gid::{self, Gid, PREFIX};
use crate::participant::{Participant, roll_back};
use crate::phases::read_prepare;
use crate::sequence::InFlight;
use crate::transaction::{Committed, Transaction};
use crate::{Coordinator, Error, deadlock_error, resolver};
use futures::future::{join_all, try_join_all};
use pgherd_model::{ServerError, ShardId, SqlState};
use pgherd_shards::{Backend, TransactionStatus};
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use std::sync::Arc;

/// What each participant is asked first.
const ASK: &str = "SELECT current_user, pg_catalog.current_setting('transaction_read_only')";
const TAG: &str = "PREPARE TRANSACTION";

impl Transaction {
    /// PREPARE TRANSACTION: afterwards it belongs to nobody's session, until somebody ends it by its name. The tag is `ROLLBACK`
    /// where the transaction had failed before.
    ///
    /// Once it is called the outcome no longer depends on the caller, as with [`Transaction::commit`].
    ///
    /// Errors: those of PostgreSQL, after which the transaction is rolled back everywhere; 08007 where the outcome is unknown: then
    /// `pg_prepared_xacts` shows it within seconds, or it was rolled back.
    pub async fn prepare(mut self, name: &str) -> Result<Committed, Error> {
        self.end_statement().await;
        if self.status() == TransactionStatus::Failed {
            self.rollback().await?;
            return Ok(rolled_back());
        }
        if let Err(e) = check_name(name).and_then(|()| self.check_after_commit()) {
            self.rollback().await?;
            return Err(e);
        }
        if self.participants.is_empty() {
            let home = self.coordinator.shards.home();
            self.participant_to_set(home).await?;
        }
        let mut participants = std::mem::take(&mut self.participants);
        participants.iter_mut().for_each(Participant::open_for_commit);
        let asked = match ask(&mut participants).await {
            Ok(asked) => asked,
            Err(e) => return Err(abandon(participants, e).await),
        };
        if participants.len() > 1 {
            self.begin_statement();
            let checked = check_deferred(&self.coordinator, &mut participants).await;
            let deadlock = self.end_statement().await;
            if let Err(e) = checked {
                let error = abandon(participants, e).await;
                return Err(match deadlock {
                    Some(detail) => deadlock_error(error.into(), &detail).into(),
                    None => error,
                });
            }
        }
        let task = tokio::spawn(prepare(self.coordinator.clone(), participants, name.to_owned(), asked));
        task.await.map_err(|e| Error::OutcomeUnknown { cause: e.to_string() })?
    }

    fn check_after_commit(&self) -> Result<(), Error> {
        if self.after_commit.is_empty() {
            return Ok(());
        }
        let message = "cannot PREPARE a transaction that has executed LISTEN, UNLISTEN, or NOTIFY";
        Err(ServerError::new(SqlState::FEATURE_NOT_SUPPORTED, message).into())
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    if name.len() > NAME_BYTES {
        let message = format!("transaction identifier \"{name}\" is too long");
        return Err(ServerError::new(SqlState::INVALID_PARAMETER_VALUE, message).into());
    }
    if name.starts_with(PREFIX) {
        let message = format!("transaction identifier \"{name}\" is reserved");
        let error = ServerError::new(SqlState::from_code("42939"), message);
        let hint = format!("Identifiers that begin with \"{PREFIX}\" are the cluster's own.");
        return Err(error.with_hint(hint).into());
    }
    Ok(())
}

struct Asked {
    role: String,
    read_only: bool,
}

async fn ask(participants: &mut [Participant]) -> Result<Asked, Error> {
    let answers = join_all(participants.iter_mut().map(|p| p.run(ASK))).await;
    let answers: Vec<_> = answers.into_iter().collect::<Result<_, Error>>()?;
    let text = |column| answers.first().and_then(|a| a.last()).and_then(|r| r.text(0, column));
    match (text(0), text(1)) {
        (Some(role), Some(read_only)) => Ok(Asked {
            role: role.to_owned(),
            read_only: read_only == "on",
        }),
        _ => Err(Error::Internal("a shard does not say who runs the transaction".into())),
    }
}

/// What a shard answered.
enum Vote {
    Prepared,
    Refused(Error),
    /// the block had failed there
    RolledBack,
    Lost(ShardId),
}

async fn prepare(
    coordinator: Arc<Coordinator>,
    participants: Vec<Participant>,
    name: String,
    asked: Asked,
) -> Result<Committed, Error> {
    let ids: Vec<ShardId> = participants.iter().map(Participant::shard).collect();
    if let Some(shard) = ids.iter().find(|s| !Gid::fits(**s)) {
        return Err(abandon(participants, Error::ShardNumberTooHigh(*shard)).await);
    }
    let in_flight = coordinator.sequence.begin_for_client(ids);
    let gid = in_flight.gid.to_string();
    let marked = !asked.read_only;
    if let Err(e) = take_name(&coordinator, &name, &gid, &asked.role, marked).await {
        return Err(abandon(participants, e).await);
    }
    if let Err(e) = register(&coordinator, &in_flight).await {
        let error = abandon(participants, e).await;
        give_up(&coordinator, in_flight, marked).await;
        return Err(error);
    }
    pass(&coordinator, Step::Recorded)?;
    let proof = marked.then(|| gid::proof(&coordinator.identity.secret, &gid));
    let votes = participants.into_iter().map(async |participant| {
        let shard = participant.shard();
        pass(&coordinator, Step::Preparing(shard))?;
        let vote = vote(participant.backend, &gid, proof.as_deref()).await;
        pass(&coordinator, Step::Voted(shard)).map(|()| vote)
    });
    let votes = try_join_all(votes).await?;
    let mut notices = Vec::new();
    let mut against = None;
    for (vote, said) in votes {
        notices.extend(said);
        against = against.or(match vote {
            Vote::Prepared => None,
            Vote::Refused(e) => Some(Err(e)),
            Vote::RolledBack => Some(Ok(rolled_back())),
            Vote::Lost(shard) => Some(Err(Error::ParticipantLost { shard })),
        });
    }
    if let Some(answer) = against {
        return match give_up(&coordinator, in_flight, marked).await {
            true => answer,
            false => Err(unknown()),
        };
    }
    pass(&coordinator, Step::AllPrepared)?;
    let prepared = record::change(&coordinator, &gid, Record::Preparing, Record::Prepared).await?;
    if !prepared {
        give_up(&coordinator, in_flight, marked).await;
        return Err(taken_for_dead());
    }
    pass(&coordinator, Step::Prepared)?;
    let tag = TAG.into();
    Ok(Committed { tag, notices })
}

fn unknown() -> Error {
    Error::OutcomeUnknown {
        cause: "the home shard did not answer while the transaction was rolled back".into(),
    }
}

fn taken_for_dead() -> Error {
    let message = "the transaction was rolled back by another gateway";
    ServerError::new(SqlState::SERIALIZATION_FAILURE, message)
        .with_detail("This gateway was taken for dead while it prepared.")
        .with_hint("Run the transaction again.")
        .into()
}

/// The name is free, or will be as soon as what is decided about its present holder is carried out.
async fn take_name(coordinator: &Coordinator, name: &str, gid: &str, role: &str, marked: bool) -> Result<(), Error> {
    for is_last in [false, true] {
        if record::insert(coordinator, name, gid, role, marked).await? {
            return Ok(());
        }
        let Some(holder) = record::find(coordinator, name, role).await? else {
            continue;
        };
        if is_last || holder.record == Record::Prepared {
            break;
        }
        let live = resolver::live_gateways(coordinator).await;
        let is_live = resolver::is_live(coordinator, live.as_deref(), &holder.gid);
        recovery::resolve(coordinator, &holder.gid, is_live, None).await?;
    }
    Err(in_use(name))
}

/// The sequence's row comes before its first marker.
async fn register(coordinator: &Coordinator, in_flight: &InFlight) -> Result<(), Error> {
    let sequence = &in_flight.gid.sequence;
    let (name, incarnation) = (sequence.to_string(), sequence.incarnation as i64);
    let sql =
        "INSERT INTO pgherd.dtx_sequence (sequence, gateway, incarnation) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    let inserts = in_flight.gid.participants.iter().map(async |shard| {
        let state = coordinator.state(*shard)?;
        let client = state.client(&coordinator.shards, &coordinator.database).await?;
        state
            .within(client.execute(sql, &[&name, &sequence.gateway, &incarnation]))
            .await
            .map(|_| ())
    });
    join_all(inserts).await.into_iter().collect()
}

/// Rolls back what is prepared by now. False where the home shard does not let it be decided: recovery does, later.
async fn give_up(coordinator: &Coordinator, in_flight: InFlight, marked: bool) -> bool {
    let gid = in_flight.gid.to_string();
    let given_up = record::change(coordinator, &gid, Record::Preparing, Record::RollBack).await;
    // From here on any recoverer may end it.
    let gid = in_flight.gid.clone();
    drop(in_flight);
    match given_up {
        Ok(true) => {
            if let Err(e) = recovery::resolve(coordinator, &gid, false, Some((Record::RollBack, marked))).await {
                tracing::debug!(%gid, "not rolled back everywhere yet: {e}");
            }
            true
        }
        // Others have, or it never had a row.
        Ok(false) => {
            if let Err(e) = recovery::resolve(coordinator, &gid, false, None).await {
                tracing::debug!(%gid, "not rolled back everywhere yet: {e}");
            }
            true
        }
        Err(e) => {
            tracing::warn!(%gid, "cannot be rolled back now: {e}");
            coordinator.wake.notify_one();
            false
        }
    }
}

/// Marker and PREPARE TRANSACTION in one pipeline, and what the shard says to them.
async fn vote(mut backend: Backend, gid: &str, proof: Option<&str>) -> (Vote, Vec<ServerError>) {
    let shard = backend.shard();
    let _ = backend.take_notices();
    let reply = match send(&mut backend, gid, proof) {
        Ok(()) => read_prepare(&mut backend, false).await,
        Err(e) => Err(e),
    };
    let notices = backend.take_notices();
    let vote = match reply {
        Ok(Ok(tag)) if tag == TAG && notices.iter().any(without_standby) => {
            // Not to be counted on, and an error's text that says so is all that a client can use.
            Vote::Refused(Error::NotReady {
                shard,
                cause: "the wait for its standby was cut short".into(),
            })
        }
        Ok(Ok(tag)) if tag == TAG => Vote::Prepared,
        Ok(Ok(_)) => Vote::RolledBack,
        Ok(Err(e)) => Vote::Refused(e.into()),
        Err(e) => {
            tracing::warn!(%shard, gid, "no answer to PREPARE TRANSACTION: {e}");
            Vote::Lost(shard)
        }
    };
    if let Vote::Refused(_) | Vote::RolledBack = vote {
        roll_back(&mut backend).await;
    }
    (vote, notices)
}

fn without_standby(notice: &ServerError) -> bool {
    let other = &notice.fields().other;
    other.iter().any(|(l, v)| *l == b'R' && v == "SyncRepWaitForLSN")
}

fn send(backend: &mut Backend, gid: &str, proof: Option<&str>) -> Result<(), Error> {
    let out = backend.outbox();
    if let Some(proof) = proof {
        execute(out, "SELECT pgherd.write_client_marker($1, $2)", &[gid, proof])?;
    }
    execute(out, &format!("PREPARE TRANSACTION '{gid}'"), &[])?;
    frontend::sync(out);
    backend.expect_ready();
    Ok(())
}

fn execute(out: &mut bytes::BytesMut, sql: &str, parameters: &[&str]) -> Result<(), Error> {
    let text = |e: std::io::Error| Error::Internal(e.to_string());
    let put = |value: &&str, out: &mut bytes::BytesMut| {
        out.extend_from_slice(value.as_bytes());
        Ok(IsNull::No)
    };
    frontend::parse("", sql, parameters.iter().map(|_| 25), out).map_err(text)?;
    frontend::bind("", "", [], parameters, put, [], out)
        .map_err(|_| Error::Internal("a marker's parameters do not fit".into()))?;
    frontend::execute("", 0, out).map_err(text)
}
