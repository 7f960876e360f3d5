//! COMMIT: how many shards wrote decides how.
//!
//! At most one writer: its plain COMMIT is the decision, at PostgreSQL's own price. Several: two phases, in a task of its
//! own, so that a client that goes away cannot leave a commit half done (`two_phase_run`).

use crate::participant::Participant;
use crate::transaction::{Committed, Transaction};
use crate::two_phase_run::two_phases;
use crate::{Coordinator, Error, deadlock_error};
use futures::future::join_all;

pub(crate) async fn commit(mut transaction: Transaction) -> Result<Committed, Error> {
    use pgherd_shards::TransactionStatus::Failed;
    transaction.end_statement().await;
    if transaction.status() == Failed {
        transaction.rollback().await?;
        return Ok(rolled_back());
    }
    let after = std::mem::take(&mut transaction.after_commit);
    let changes_schema = transaction.changes_schema;
    let coordinator = transaction.coordinator.clone();
    let who = transaction.who().clone();
    let read_only = transaction.cannot_have_written();
    let (mut ended, mut participants): (Vec<_>, Vec<_>) = std::mem::take(&mut transaction.participants)
        .into_iter()
        .partition(|p| p.has_ended);
    let replies = join_all(ended.iter_mut().map(Participant::ended)).await;
    if let Err(e) = replies.into_iter().collect::<Result<(), Error>>() {
        return Err(abandon(participants, e).await);
    }
    participants.iter_mut().for_each(Participant::open_for_commit);
    if participants.len() > 1
        && !read_only
        && let Err(e) = ask_who_wrote(&mut participants).await
    {
        return Err(abandon(participants, e).await);
    }
    let alone = participants.len() == 1;
    let (mut writers, readers): (Vec<_>, Vec<_>) = participants.into_iter().partition(|p| p.wrote || alone);
    let committed = match writers.len() {
        0 | 1 => {
            let mut committed = plain(writers.pop(), readers).await?;
            for participant in &mut ended {
                committed.notices.extend(participant.backend.take_notices());
            }
            committed
        }
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
            let task = tokio::spawn(two_phases(coordinator.clone(), writers, readers, changes_schema));
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
