//! Ending what is decided, by whoever finds it: the gateway that was asked to, or any other after that one died.

use super::decide::{Decision, Record, decide};
use super::{Step, pass, record};
use crate::control::Recover;
use crate::gid::{Gid, SequenceId};
use crate::{Coordinator, Error, resolver};
use futures::future::{join_all, try_join_all};
use pgherd_model::ShardId;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often one transaction is looked at before the next round has to do.
const ROUNDS: u32 = 12;

/// How far a transaction came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// ended everywhere
    Settled {
        /// whether it is committed
        committed: bool,
    },
    /// it is its client's to end, or its gateway's to prepare
    Held,
    /// these shards do not answer, or something else went wrong
    Stuck(Vec<ShardId>),
}

/// Carries out what is decided about a client's transaction, and decides where nobody else will. `known` is what the row says,
/// where that was just read or written. Errors: a control point.
pub(crate) async fn resolve(
    coordinator: &Coordinator,
    gid: &Gid,
    live: bool,
    known: Option<(Record, bool)>,
) -> Result<Ending, Error> {
    let (name, mut known) = (gid.to_string(), known);
    for round in 0..ROUNDS {
        // Somebody else may be at it.
        tokio::time::sleep(Duration::from_millis(10 * u64::from(round.saturating_sub(2)))).await;
        let (record, marked) = match known.take() {
            Some(known) => known,
            None => match record::read(coordinator, &name).await {
                Ok(read) => read,
                Err(e) => {
                    tracing::debug!(gid = name, "cannot see what its client has decided: {e}");
                    return Ok(Ending::Stuck(Vec::new()));
                }
            },
        };
        let seen = match record {
            Record::Prepared => Vec::new(),
            _ => resolver::observe(coordinator, gid, &name).await,
        };
        let decision = decide(record, live, marked, &seen);
        tracing::debug!(gid = name, ?record, ?seen, ?decision, "a client's transaction");
        match decision {
            Decision::Hold => return Ok(Ending::Held),
            Decision::GiveUp => {
                let given_up = record::change(coordinator, &name, Record::Preparing, Record::RollBack).await;
                if let Err(e) = given_up {
                    tracing::debug!(gid = name, "cannot be given up: {e}");
                    return Ok(Ending::Stuck(Vec::new()));
                }
            }
            Decision::Commit(shards) => {
                end(
                    coordinator,
                    &shards,
                    Recover::Commit,
                    &format!("COMMIT PREPARED '{name}'"),
                )
                .await?;
            }
            Decision::RollBack(shards) => {
                end(
                    coordinator,
                    &shards,
                    Recover::RollBack,
                    &format!("ROLLBACK PREPARED '{name}'"),
                )
                .await?;
            }
            Decision::Wait(shards) => return Ok(Ending::Stuck(shards)),
            Decision::Settled { committed, lost } => {
                for shard in lost {
                    let gid = name.clone();
                    tracing::error!("{}", Error::LostTransaction { shard, gid });
                }
                settle(coordinator, gid, &name).await;
                return Ok(Ending::Settled { committed });
            }
            Decision::Torn => {
                tracing::error!(
                    gid = name,
                    ?seen,
                    "committed on one shard and to be rolled back: leave it to a person"
                );
                return Ok(Ending::Stuck(Vec::new()));
            }
        }
    }
    Ok(Ending::Stuck(gid.participants.clone()))
}

async fn end(
    coordinator: &Coordinator,
    shards: &[ShardId],
    step: fn(ShardId) -> Recover,
    sql: &str,
) -> Result<(), Error> {
    let ends = shards.iter().map(async |shard| {
        pass(coordinator, Step::Ending(*shard))?;
        resolver::finish(coordinator, &[*shard], step, sql).await;
        pass(coordinator, Step::Ended(*shard))
    });
    try_join_all(ends).await.map(|_| ())
}

/// Ended everywhere: readers may skip its marker, and its name is free. Where that cannot be written everywhere now, its row stays
/// and the next round writes it.
async fn settle(coordinator: &Coordinator, gid: &Gid, name: &str) {
    for state in &coordinator.states {
        state.pay(gid);
    }
    let done = async {
        settle_sequence(coordinator, &gid.sequence).await?;
        record::delete(coordinator, name).await
    };
    if let Err(e) = done.await {
        tracing::debug!(gid = name, "has ended, and that is not written everywhere yet: {e}");
    }
}

/// On all shards, since a reader may hear of it from any.
async fn settle_sequence(coordinator: &Coordinator, sequence: &SequenceId) -> Result<(), Error> {
    let sql = "INSERT INTO pgherd.dtx_sequence AS s (sequence, gateway, incarnation, closed, settled) \
               VALUES ($1, $2, $3, true, 9223372036854775807) \
               ON CONFLICT (sequence) DO UPDATE SET closed = true, settled = excluded.settled, settled_at = now() \
               WHERE s.settled < excluded.settled";
    let (name, incarnation) = (sequence.to_string(), sequence.incarnation as i64);
    let settles = coordinator.states.iter().map(async |state| {
        let client = state.client(&coordinator.shards, &coordinator.database).await?;
        state
            .within(client.execute(sql, &[&name, &sequence.gateway, &incarnation]))
            .await
            .map(|_| ())
    });
    join_all(settles).await.into_iter().collect()
}

/// Ends what clients have decided and gateways have left, among `listed` (what is prepared anywhere) and the rows of the home
/// shard. Returns those that could not be ended.
pub(crate) async fn recover(coordinator: &Coordinator, listed: Vec<Gid>) -> Vec<Gid> {
    let rows = match record::all(coordinator).await {
        Ok(rows) => rows,
        Err(e) => {
            tracing::debug!("cannot see what clients have prepared: {e}");
            return listed;
        }
    };
    let mut gids: BTreeSet<Gid> = listed.into_iter().collect();
    gids.extend(rows.keys().cloned());
    gids.retain(|gid| rows.get(gid) != Some(&Record::Prepared));
    if gids.is_empty() {
        return Vec::new();
    }
    let live = resolver::live_gateways(coordinator).await;
    let mut stuck = Vec::new();
    for gid in gids {
        let is_live = resolver::is_live(coordinator, live.as_deref(), &gid);
        match resolve(coordinator, &gid, is_live, None).await {
            Ok(Ending::Stuck(_)) => stuck.push(gid),
            Ok(Ending::Settled { committed }) => tracing::info!(%gid, committed, "ended a client's transaction"),
            Ok(Ending::Held) | Err(_) => {}
        }
    }
    stuck
}

/// What a shard knows of a client's sequence.
pub(crate) struct Known {
    pub gateway: String,
    pub incarnation: u64,
    /// settled for longer than any reader may not know it
    pub is_old: bool,
    pub is_settled: bool,
}

/// Forgets sequences of clients' transactions that have ended for long, with their markers: every reader skips them by now.
/// One that never came to be prepared, and whose gateway is dead, is settled first. `sequences` says of each what the
/// shards that know it told.
pub(crate) async fn forget(
    coordinator: &Coordinator,
    sequences: Vec<(String, Vec<Known>)>,
    is_alive: impl Fn(&str, u64) -> bool,
) -> Result<(), Error> {
    let (mut old, mut open) = (Vec::new(), Vec::new());
    for (name, known) in sequences {
        if known.iter().all(|k| k.is_old) {
            old.push(name);
        } else if let Some(first) = known.first()
            && !known.iter().any(|k| k.is_settled)
            && !is_alive(&first.gateway, first.incarnation)
        {
            open.push(name);
        }
    }
    if old.is_empty() && open.is_empty() {
        return Ok(());
    }
    let rows = record::all(coordinator).await?;
    let has_row: BTreeSet<String> = rows.keys().map(|gid| gid.sequence.to_string()).collect();
    old.retain(|name| !has_row.contains(name));
    open.retain(|name| !has_row.contains(name));
    for name in open {
        if let Some(sequence) = sequence_of(&name) {
            settle_sequence(coordinator, &sequence).await?;
        }
    }
    // Markers first, everywhere: a shard that still lists one must not stand beside one that has forgotten the sequence.
    for sql in [
        "DELETE FROM pgherd.dtx WHERE sequence = ANY ($1)",
        "DELETE FROM pgherd.dtx_sequence WHERE sequence = ANY ($1)",
    ] {
        let deletes = coordinator.states.iter().map(async |state| {
            let client = state.client(&coordinator.shards, &coordinator.database).await?;
            state.within(client.execute(sql, &[&old])).await
        });
        let deleted: Result<Vec<_>, Error> = join_all(deletes).await.into_iter().collect();
        deleted?;
    }
    Ok(())
}

fn sequence_of(text: &str) -> Option<SequenceId> {
    let any = format!("{}c:d:2:{text}:0", crate::gid::PREFIX);
    Gid::parse(&any).map(|gid| gid.sequence)
}
