//! Recovery's I/O: what waits between the two phases, who is alive, and doing what [`crate::recovery`] decides.
//!
//! All of it runs on service connections, as a superuser: COMMIT PREPARED otherwise wants the role that prepared.

use crate::control::{Point, Recover};
use crate::gid::{self, Gid};
use crate::recovery::{Decision, Observation, decide};
use crate::shard_state::ShardState;
use crate::two_phase_commit::{Fence, Marker};
use crate::{Coordinator, Error, prepared};
use futures::future::join_all;
use pgherd_model::{ShardId, SqlState};
use std::time::{Duration, Instant, SystemTime};

/// How often one transaction is looked at before the next round has to do.
const ROUNDS: u32 = 12;
/// How old what was seen may be. Far less than markers are kept: a marker that was deleted between two looks would read as
/// one that was never there.
const SIGHT_LIMIT: Duration = Duration::from_secs(10);

/// A prepared transaction of this cluster and database.
pub(crate) struct Listed {
    pub shard: ShardId,
    pub gid: Gid,
    pub role: String,
    pub since: SystemTime,
}

/// What could not be finished.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unfinished {
    /// their own gateway is at work on them
    pub live: Vec<Gid>,
    /// they need a shard that does not answer, or something else went wrong
    pub stuck: Vec<Gid>,
}

/// How far [`resolve`] came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// nothing is left to do
    Settled {
        /// or rolled back
        committed: bool,
    },
    /// these shards have to answer first
    Waits {
        shards: Vec<ShardId>,
        /// how it ends, where that is known: everything is done on the other shards then
        decided: Option<bool>,
    },
    /// for a person to look at
    Torn,
    /// others are at work on it, or it took too long
    Late,
}

/// What waits on one shard.
pub(crate) async fn list(coordinator: &Coordinator, state: &ShardState) -> Result<Vec<Listed>, Error> {
    let client = state.client(&coordinator.shards, &coordinator.database).await?;
    let prefix = format!(
        "{}{}:{}:",
        gid::PREFIX,
        gid::label(&coordinator.identity.cluster),
        gid::database_hash(&coordinator.database)
    );
    let sql = "SELECT gid, owner::text, prepared FROM pg_prepared_xacts \
               WHERE database = current_database() AND starts_with(gid, $1)";
    let rows = state.within(client.query(sql, &[&prefix])).await?;
    let listed = rows.iter().filter_map(|row| {
        Some(Listed {
            shard: state.id,
            gid: Gid::parse(row.get(0))?,
            role: row.get(1),
            since: row.get(2),
        })
    });
    Ok(listed.collect())
}

/// The gateways with a live lease, by label and incarnation; `None` when the home shard does not say.
pub(crate) async fn live_gateways(coordinator: &Coordinator) -> Option<Vec<(String, u64)>> {
    let home = coordinator.state(coordinator.shards.home()).ok()?;
    let client = home.client(&coordinator.shards, &coordinator.database).await.ok()?;
    // A gateway that was killed and started again has two leases for a while; its name tells that the older one is dead.
    // Should two that live share a name, the older one's commits are fenced off like those of any gateway taken for dead.
    let sql = "SELECT name::text, max(incarnation)::bigint FROM pgherd.gateway WHERE lease_until > clock_timestamp() GROUP BY name";
    let rows = home.within(client.query(sql, &[])).await;
    let rows = rows
        .inspect_err(|e| tracing::warn!("cannot see which gateways are alive: {e}"))
        .ok()?;
    let gateways = rows.iter().map(|r| (gid::label(r.get(0)), r.get::<_, i64>(1) as u64));
    Some(gateways.collect())
}

/// Whether its own gateway is at work on it, or may be. Ask after it was listed.
pub(crate) fn is_live(coordinator: &Coordinator, live: Option<&[(String, u64)]>, gid: &Gid) -> bool {
    if is_own(coordinator, gid) {
        return coordinator.sequence.is_in_flight(gid);
    }
    let is_owner = |(gateway, incarnation): &(String, u64)| {
        *gateway == gid.sequence.gateway && *incarnation == gid.sequence.incarnation
    };
    live.is_none_or(|live| live.iter().any(is_owner))
}

pub(crate) fn is_own(coordinator: &Coordinator, gid: &Gid) -> bool {
    let own = coordinator.sequence.id();
    own.gateway == gid.sequence.gateway && own.incarnation == gid.sequence.incarnation
}

/// Finishes those that no gateway is at work on, of what was listed then.
pub(crate) async fn resolve_all(coordinator: &Coordinator, gids: &[Gid], listed_at: Instant) -> Unfinished {
    let mut unfinished = Unfinished::default();
    if gids.is_empty() {
        return unfinished;
    }
    let live = match gids.iter().all(|g| is_own(coordinator, g)) {
        true => Some(Vec::new()),
        false => live_gateways(coordinator).await,
    };
    for gid in gids {
        if gid.is_of_client() {
            let is_live = is_live(coordinator, live.as_deref(), gid);
            let ending = prepared::resolve(coordinator, gid, is_live, None).await;
            if matches!(ending, Ok(prepared::Ending::Stuck(_))) {
                unfinished.stuck.push(gid.clone());
            }
        } else if is_live(coordinator, live.as_deref(), gid) {
            unfinished.live.push(gid.clone());
        } else if !matches!(resolve(coordinator, gid, listed_at).await, Resolution::Settled { .. }) {
            unfinished.stuck.push(gid.clone());
        }
    }
    unfinished
}

/// Looks and acts until the transaction, which was listed then, is settled.
pub(crate) async fn resolve(coordinator: &Coordinator, gid: &Gid, listed_at: Instant) -> Resolution {
    let (name, mut confirmed) = (gid.to_string(), false);
    for round in 0..ROUNDS {
        let seen = observe(coordinator, gid, &name).await;
        if listed_at.elapsed() > SIGHT_LIMIT {
            tracing::debug!(gid = name, "was seen too long ago: it is looked for anew");
            return Resolution::Late;
        }
        let decision = decide(&seen, gid.last, confirmed);
        tracing::debug!(gid = name, ?seen, ?decision, "recovery");
        match decision {
            Decision::Commit(shards) => {
                let sql = format!("COMMIT PREPARED '{name}'");
                finish(coordinator, &shards, Recover::Commit, &sql).await;
            }
            Decision::RollBack(shards) => {
                let sql = format!("ROLLBACK PREPARED '{name}'");
                finish(coordinator, &shards, Recover::RollBack, &sql).await;
            }
            Decision::Confirm(shards) => confirmed = confirm(coordinator, &shards).await,
            Decision::Fence(shards) => {
                if !fence_all(coordinator, &shards, &name).await {
                    tokio::time::sleep(Duration::from_millis(50 * u64::from(round))).await;
                }
            }
            Decision::Wait(shards) => {
                tracing::debug!(gid = name, ?shards, "cannot be finished before these shards answer");
                let is = |wanted| seen.iter().any(|(_, o)| *o == wanted);
                let decided = match (is(Observation::Committed), is(Observation::Fenced)) {
                    (false, false) => None,
                    (committed, _) => Some(committed),
                };
                return Resolution::Waits { shards, decided };
            }
            Decision::Settled { committed, lost } => {
                for shard in lost {
                    let lost = Error::LostTransaction {
                        shard,
                        gid: name.clone(),
                    };
                    tracing::error!("{lost}");
                }
                settled(coordinator, gid, committed);
                return Resolution::Settled { committed };
            }
            Decision::Torn => {
                tracing::error!(
                    gid = name,
                    ?seen,
                    "committed on one shard and fenced on another: leave it to a person"
                );
                return Resolution::Torn;
            }
        }
    }
    Resolution::Late
}

fn settled(coordinator: &Coordinator, gid: &Gid, committed: bool) {
    coordinator.sequence.settle(gid);
    for state in &coordinator.states {
        state.pay(gid);
    }
    let outcome = if committed { "commit" } else { "rollback" };
    metrics::counter!("pgherd_transactions_recovered_total", "outcome" => outcome).increment(1);
    tracing::info!(%gid, outcome, "finished a transaction that was left between the two phases");
}

/// One step on one shard, with its control points.
async fn stepwise<T>(
    coordinator: &Coordinator,
    step: Recover,
    run: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    coordinator.pass(Point::BeforeRecovery(step))?;
    let done = run.await?;
    coordinator.pass(Point::AfterRecovery(step))?;
    Ok(done)
}

pub(crate) async fn observe(coordinator: &Coordinator, gid: &Gid, name: &str) -> Vec<(ShardId, Observation)> {
    let looks = gid.participants.iter().map(async |shard| {
        let step = Recover::Look(*shard);
        let seen = stepwise(coordinator, step, observe_one(coordinator, *shard, name)).await;
        (*shard, seen.unwrap_or(Observation::Unreachable))
    });
    join_all(looks).await
}

/// Prepared first, the marker in a later snapshot: whoever is committed in between shows as such.
async fn observe_one(coordinator: &Coordinator, shard: ShardId, name: &str) -> Result<Observation, Error> {
    let prepared = is_prepared(coordinator, shard, name).await?;
    let marker = marker(coordinator, shard, name).await?;
    Ok(match marker.as_deref() {
        Some("p") => Observation::Committed,
        Some(_) => Observation::Fenced,
        None if prepared => Observation::Prepared,
        None => Observation::Missing,
    })
}

pub(crate) async fn is_prepared(coordinator: &Coordinator, shard: ShardId, name: &str) -> Result<bool, Error> {
    let state = coordinator.state(shard)?;
    let client = state.client(&coordinator.shards, &coordinator.database).await?;
    let sql = "SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE gid = $1)";
    Ok(state.within(client.query_one(sql, &[&name])).await?.get(0))
}

/// The state of the visible marker.
pub(crate) async fn marker(coordinator: &Coordinator, shard: ShardId, name: &str) -> Result<Option<String>, Error> {
    let state = coordinator.state(shard)?;
    let client = state.client(&coordinator.shards, &coordinator.database).await?;
    let sql = "SELECT state FROM pgherd.dtx \
               WHERE sequence = split_part($1, ':', 5) || ':' || split_part($1, ':', 6) \
                 AND number = split_part($1, ':', 7)::bigint AND gid = $1";
    let rows = state.within(client.query(sql, &[&name])).await?;
    Ok(rows.first().map(|row| row.get(0)))
}

pub(crate) async fn finish(coordinator: &Coordinator, shards: &[ShardId], step: fn(ShardId) -> Recover, sql: &str) {
    let runs = shards.iter().map(async |shard| {
        let run = async {
            let state = coordinator.state(*shard)?;
            let client = state.client(&coordinator.shards, &coordinator.database).await?;
            state.within(client.batch_execute(sql)).await
        };
        stepwise(coordinator, step(*shard), run).await
    });
    for outcome in join_all(runs).await {
        match outcome {
            Ok(()) => {}
            // Somebody else was faster, or is at it: the next look shows.
            Err(e)
                if [SqlState::UNDEFINED_OBJECT, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE].contains(&e.sqlstate()) => {
            }
            Err(e) => tracing::warn!("{sql}: {e}"),
        }
    }
}

/// A small write that is as durable as that shard makes things: every prepared transaction before it is, too.
async fn confirm(coordinator: &Coordinator, shards: &[ShardId]) -> bool {
    let own = coordinator.sequence.id();
    let writes = shards.iter().map(async |shard| {
        let state = coordinator.state(*shard)?;
        let client = state.client(&coordinator.shards, &coordinator.database).await?;
        let sql = "INSERT INTO pgherd.dtx_sequence (sequence, gateway, incarnation) VALUES ($1, $2, $3) \
                   ON CONFLICT (sequence) DO UPDATE SET registered_at = now()";
        let (name, incarnation) = (own.to_string(), own.incarnation as i64);
        let write = async {
            state
                .within(client.execute(sql, &[&name, &own.gateway, &incarnation]))
                .await
        };
        stepwise(coordinator, Recover::Confirm(*shard), write).await
    });
    let done: Result<Vec<_>, Error> = join_all(writes).await.into_iter().collect();
    done.inspect_err(|e| tracing::warn!("cannot confirm that prepared transactions are durable: {e}"))
        .is_ok()
}

/// Whether all fences were written, or refused because somebody decided: then it is time to look again.
async fn fence_all(coordinator: &Coordinator, shards: &[ShardId], name: &str) -> bool {
    let fences = shards.iter().map(async |shard| {
        let step = Recover::Fence(*shard);
        stepwise(coordinator, step, fence(coordinator, *shard, name)).await
    });
    let fences = join_all(fences).await;
    fences
        .into_iter()
        .all(|f| matches!(f, Ok(Fenced::Done | Fenced::Refused)))
}

/// What became of an attempt to fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fenced {
    /// the marker a is there
    Done,
    /// another marker is visible
    Refused,
    /// a transaction holds the key
    Held,
}

/// Writes marker a. A backend that holds the key and belongs to no live commit is ended.
pub(crate) async fn fence(coordinator: &Coordinator, shard: ShardId, name: &str) -> Result<Fenced, Error> {
    let state = coordinator.state(shard)?;
    let client = state.client(&coordinator.shards, &coordinator.database).await?;
    match state
        .within(client.execute("SELECT pgherd.fence_marker($1)", &[&name]))
        .await
    {
        Ok(_) => Ok(Fenced::Done),
        Err(e) if e.sqlstate() == SqlState::UNIQUE_VIOLATION => Ok(Fenced::Refused),
        Err(e) if e.sqlstate() == SqlState::LOCK_NOT_AVAILABLE => {
            let sequence = Gid::parse(name).map(|g| g.sequence.to_string()).unwrap_or_default();
            let sql =
                "SELECT count(pg_terminate_backend(pid)) FROM pgherd.marker_holders($1, $2) WHERE pid IS NOT NULL";
            let ended: i64 = state.within(client.query_one(sql, &[&sequence, &name])).await?.get(0);
            if ended > 0 {
                tracing::warn!(gid = name, %shard, "ended a backend that had written its marker and was never told to prepare");
            }
            Ok(Fenced::Held)
        }
        Err(e) => Err(e),
    }
}

/// What became of a participant whose answer to PREPARE, or to the last COMMIT, was lost; `None`: look again.
pub(crate) async fn fence_lost(coordinator: &Coordinator, shard: ShardId, name: &str) -> Result<Option<Fence>, Error> {
    Ok(match fence(coordinator, shard, name).await? {
        // A gateway that stood still for long may have been taken for dead: if others committed the transaction and
        // its marker is deleted by now, the key is free again, and the fence proves nothing.
        Fenced::Done if is_closed(coordinator, shard, name).await? => Some(Fence::Unreachable),
        Fenced::Done => Some(Fence::NeverPrepared),
        Fenced::Refused => match marker(coordinator, shard, name).await?.as_deref() {
            // Where its connection was lost in a COMMIT, its standby may not have it yet.
            Some("p") => confirm(coordinator, &[shard]).await.then_some(Fence::Committed),
            Some(_) => Some(Fence::NeverPrepared),
            None => None,
        },
        // Listed is not yet safe: where the backend was cut off from its standby's answer, a standby that takes over may
        // not have it.
        Fenced::Held if is_prepared(coordinator, shard, name).await? => {
            confirm(coordinator, &[shard]).await.then_some(Fence::Prepared)
        }
        Fenced::Held => None,
    })
}

/// Whether a decided transaction that is not prepared any more was committed by somebody else.
pub(crate) async fn look_for_marker(coordinator: &Coordinator, shard: ShardId, name: &str) -> Result<Marker, Error> {
    match marker(coordinator, shard, name).await?.as_deref() {
        Some("p") => Ok(Marker::Visible),
        // Whoever took this gateway for dead has committed it so long ago that the marker is deleted.
        None if is_closed(coordinator, shard, name).await? => Ok(Marker::Unreachable),
        _ => Ok(Marker::Missing),
    }
}

/// Whether a shard takes no more markers of a transaction's sequence. Markers of an open sequence are deleted by its own
/// gateway only.
async fn is_closed(coordinator: &Coordinator, shard: ShardId, name: &str) -> Result<bool, Error> {
    let sequence = Gid::parse(name).map(|g| g.sequence.to_string()).unwrap_or_default();
    let state = coordinator.state(shard)?;
    let client = state.client(&coordinator.shards, &coordinator.database).await?;
    let sql = "SELECT NOT EXISTS (SELECT FROM pgherd.dtx_sequence WHERE sequence = $1 AND NOT closed)";
    Ok(state.within(client.query_one(sql, &[&sequence])).await?.get(0))
}
