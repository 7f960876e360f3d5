//! What every coordinator does each second: connect to shards that came back, finish what dead gateways left, tell
//! what it has settled, learn what others have, and clear away old markers.
//!
//! # When a marker may go
//! A reader compares which markers two shards show (see [`crate::cut`]). A marker that is deleted on one of them in
//! between would look like a transaction that is visible on one shard only. So it stays until every reader skips it: its
//! number is under the watermark of its sequence, the watermark has been on every shard for [`KEEP`], no reader uses
//! watermarks older than [`crate::cut::KNOWLEDGE_LIMIT`], and no cut takes longer than [`crate::cut::TIME_LIMIT`].

use crate::gid::{Gid, SequenceId};
use crate::shard_state::{LOOK_AT_SCHEMA, ShardState};
use crate::{Coordinator, Error, in_doubt, prepared, resolver};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Weak;
use std::time::{Duration, Instant};
use tokio_postgres::types::{ToSql, Type};

/// How often.
const PERIOD: Duration = Duration::from_secs(1);
/// How long markers stay after they were told to be settled.
pub(crate) const KEEP: Duration = Duration::from_secs(30);
/// The watermark of a sequence that no gateway uses any more.
const ALL_SETTLED: i64 = i64::MAX;
/// Of what changes slowly.
const SLOW_EVERY: u64 = 5;
/// Numbers whose markers one statement deletes: it must end soon, on a busy shard too.
const BATCH: i64 = 5000;

/// What this gateway told all shards to be settled, and how far it has deleted.
#[derive(Default)]
struct Told {
    /// since when which number of which sequence
    news: VecDeque<(Instant, SequenceId, i64)>,
    /// up to this number of this sequence no markers are left
    deleted: Option<(SequenceId, i64)>,
    /// sequences of dead gateways of which no markers are left
    emptied: BTreeSet<String>,
}

/// Runs until the coordinator is gone.
pub(crate) async fn run(coordinator: Weak<Coordinator>) {
    let (mut told, mut watch) = (Told::default(), in_doubt::Watch::default());
    let mut round = 0;
    while let Some(this) = coordinator.upgrade() {
        {
            let pause = tokio::time::sleep(PERIOD);
            tokio::select! {
                () = pause => {}
                () = this.wake.notified() => {}
            }
        }
        round += 1;
        tick(&this, round, &mut told, &mut watch).await;
        drop(this);
        // A wake-up in a loop must not keep the shards busy.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn tick(coordinator: &Coordinator, round: u64, told: &mut Told, watch: &mut in_doubt::Watch) {
    let ready = join_all(coordinator.states.iter().map(|s| coordinator.make_ready(s))).await;
    for (state, outcome) in coordinator.states.iter().zip(ready) {
        if let Err(e) = outcome {
            tracing::debug!(shard = %state.id, "not ready: {e}");
        }
    }
    recover(coordinator, watch).await;
    if let Err(e) = learn_watermarks(coordinator).await {
        tracing::debug!("cannot read what others have settled: {e}");
    }
    if let Err(e) = tell_watermark(coordinator, told).await {
        tracing::debug!("cannot tell what is settled: {e}");
    }
    if let Err(e) = forget_own(coordinator, told).await {
        tracing::debug!("cannot delete old markers: {e}");
    }
    if round % SLOW_EVERY == 1 {
        if let Err(e) = close_dead_sequences(coordinator, told).await {
            tracing::debug!("cannot clear up after dead gateways: {e}");
        }
        if let Err(e) = look_at_schema(coordinator).await {
            tracing::debug!("cannot see what of the schema matters to commits: {e}");
        }
    }
}

/// Finishes what is prepared anywhere and belongs to nobody, and what this gateway gave up; tells of the rest.
async fn recover(coordinator: &Coordinator, watch: &mut in_doubt::Watch) {
    let listed_at = Instant::now();
    let lists = join_all(coordinator.states.iter().map(|s| resolver::list(coordinator, s))).await;
    let is_whole = lists.iter().all(Result::is_ok);
    let mut listed = in_doubt::by_transaction(lists.into_iter().flatten().flatten());
    let mut gids: BTreeSet<Gid> = coordinator.sequence.abandoned().into_iter().collect();
    let mut of_clients = Vec::new();
    for gid in listed.keys() {
        match gid.is_of_client() {
            true => of_clients.push(gid.clone()),
            false => {
                gids.insert(gid.clone());
            }
        }
    }
    let gids: Vec<Gid> = gids.into_iter().collect();
    let mut unfinished = resolver::resolve_all(coordinator, &gids, listed_at).await;
    unfinished
        .stuck
        .extend(prepared::recover(coordinator, of_clients).await);
    listed.retain(|gid, _| unfinished.live.contains(gid) || unfinished.stuck.contains(gid));
    watch.tell(coordinator, &listed, &unfinished.live, is_whole).await;
}

/// Reads what others have settled, from every shard that answers: a watermark that was once told stays true. Whether all shards answered:
/// then a sequence that is not in the list is forgotten.
pub(crate) async fn learn_watermarks(coordinator: &Coordinator) -> Result<bool, Error> {
    let read_at = Instant::now();
    let reads = coordinator.states.iter().map(async |state| {
        let client = state.connected().ok_or_else(|| not_connected(state))?;
        // Those of which nothing is settled as well.
        let sql = "SELECT sequence, settled FROM pgherd.dtx_sequence";
        state.within(client.query(sql, &[])).await
    });
    let mut settled = BTreeMap::new();
    let (mut answered, mut failed) = (false, None);
    for read in join_all(reads).await {
        match read {
            Ok(rows) => {
                answered = true;
                for row in rows {
                    let known = settled.entry(row.get::<_, String>(0)).or_insert(-1);
                    *known = row.get::<_, i64>(1).max(*known);
                }
            }
            Err(e) => failed = Some(e),
        }
    }
    let is_whole = failed.is_none();
    if let (false, Some(e)) = (answered, failed) {
        return Err(e);
    }
    let mut watermarks = coordinator.watermarks.write();
    for (sequence, old) in &watermarks.settled {
        if let Some(new) = settled.get_mut(sequence) {
            *new = (*new).max(*old);
        }
    }
    watermarks.settled = settled;
    watermarks.read_at = Some(read_at);
    Ok(is_whole)
}

/// This gateway is done with the database: nobody has to find out that it is gone, nor to keep what it has settled in mind for long.
pub(crate) async fn end_sequence(coordinator: &Coordinator) {
    let Some(own) = coordinator.sequence.at_rest() else {
        return;
    };
    let name = own.to_string();
    let ends = coordinator
        .states
        .iter()
        .filter(|state| state.takes(&own))
        .map(async |state| {
            let sql = "UPDATE pgherd.dtx_sequence SET settled = 9223372036854775807, settled_at = now(), ended = true \
                   WHERE sequence = $1 AND NOT closed";
            let client = state.connected().ok_or_else(|| not_connected(state))?;
            state.within(client.execute(sql, &[&name])).await.map(|_| ())
        });
    if let Err(e) = join_all(ends).await.into_iter().collect::<Result<(), Error>>() {
        tracing::debug!("others will end what this gateway has begun: {e}");
    }
}

fn not_connected(state: &ShardState) -> Error {
    Error::NotReady {
        shard: state.id,
        cause: "there is no connection".into(),
    }
}

/// Tells every shard what this gateway has settled, and notes since when all of them know.
async fn tell_watermark(coordinator: &Coordinator, told: &mut Told) -> Result<(), Error> {
    let (sequence, settled) = coordinator.sequence.watermark();
    if settled < 0 {
        return Ok(());
    }
    let news = (sequence.clone(), settled);
    let name = sequence.to_string();
    let tells = coordinator.states.iter().map(async |state| {
        if state.published.lock().as_ref() == Some(&news) {
            return Ok(());
        }
        let client = state.connected().ok_or_else(|| not_connected(state))?;
        let sql =
            "UPDATE pgherd.dtx_sequence SET settled = $2, settled_at = now() WHERE sequence = $1 AND settled < $2";
        state.within(client.execute(sql, &[&name, &settled])).await?;
        *state.published.lock() = Some(news.clone());
        Ok(())
    });
    join_all(tells).await.into_iter().collect::<Result<(), Error>>()?;
    if told.news.back().is_none_or(|(_, s, n)| (s, n) != (&sequence, &settled)) {
        told.news.push_back((Instant::now(), sequence, settled));
    }
    Ok(())
}

/// Deletes this gateway's markers that every reader skips by now.
async fn forget_own(coordinator: &Coordinator, told: &mut Told) -> Result<(), Error> {
    let mut due = None;
    while let Some((since, ..)) = told.news.front()
        && since.elapsed() > KEEP
    {
        due = told.news.pop_front();
    }
    let Some((_, sequence, through)) = due else {
        return Ok(());
    };
    let above = match &told.deleted {
        Some((of, number)) if *of == sequence => *number,
        _ => -1,
    };
    let name = sequence.to_string();
    let deletes = coordinator
        .states
        .iter()
        .map(|state| delete_markers(state, &name, above, through));
    join_all(deletes).await.into_iter().collect::<Result<(), Error>>()?;
    told.deleted = Some((sequence, through));
    Ok(())
}

/// Deletes the markers of a sequence whose numbers are in (above, through], some at a time. The numbers are a range of the primary
/// key, so that no statement looks at markers that are to stay, nor again at those that were deleted before: until they are
/// vacuumed, there may be many of both.
async fn delete_markers(state: &ShardState, sequence: &str, mut above: i64, through: i64) -> Result<(), Error> {
    let client = state.connected().ok_or_else(|| not_connected(state))?;
    let first =
        "SELECT number FROM pgherd.dtx WHERE sequence = $1 AND number > $2 AND number <= $3 ORDER BY number LIMIT 1";
    let delete = "DELETE FROM pgherd.dtx WHERE sequence = $1 AND number > $2 AND number <= $3";
    while above < through {
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&sequence, Type::TEXT), (&above, Type::INT8), (&through, Type::INT8)];
        let found = state.within(client.query_typed_opt(first, &parameters)).await?;
        let Some(first) = found.map(|row| row.get::<_, i64>(0)) else {
            break;
        };
        let end = through.min(first.saturating_add(BATCH));
        state
            .within(client.execute(delete, &[&sequence, &(first - 1), &end]))
            .await?;
        above = end;
    }
    Ok(())
}

/// A sequence as one shard has it.
struct SequenceRow {
    gateway: String,
    incarnation: u64,
    closed: bool,
    all_settled: bool,
    /// all settled for longer than markers are kept
    is_old: bool,
    /// all settled for longer than any gateway pauses, or than readers remember where its gateway has ended it
    is_ancient: bool,
    /// its gateway has ended it
    ended: bool,
}

/// Sequences of dead gateways: first no shard takes their markers any more; when nothing of theirs is left in between, all
/// their numbers are settled; then the markers go, and much later the sequences themselves.
async fn close_dead_sequences(coordinator: &Coordinator, told: &mut Told) -> Result<(), Error> {
    let rows = join_all(coordinator.states.iter().map(read_sequences)).await;
    let rows: Vec<BTreeMap<String, SequenceRow>> = rows.into_iter().collect::<Result<_, Error>>()?;
    // After the sequences were read: one that was just registered has a live gateway.
    let Some(live) = resolver::live_gateways(coordinator).await else {
        return Ok(());
    };
    let own = coordinator.sequence.id();
    let names: BTreeSet<&String> = rows.iter().flat_map(|r| r.keys()).collect();
    forget_clients(coordinator, &names, &rows, &live).await?;
    told.emptied.retain(|name| names.contains(name));
    for name in names {
        if SequenceId::text_is_of_client(name) {
            continue;
        }
        let known: Vec<Option<&SequenceRow>> = rows.iter().map(|r| r.get(name)).collect();
        let Some(one) = known.iter().flatten().next() else {
            continue;
        };
        let closed = known.iter().flatten().any(|r| r.closed);
        // It will not come to a shard any more where it never was.
        let ended = known.iter().flatten().all(|r| r.ended);
        let is_own = one.gateway == own.gateway && one.incarnation == own.incarnation;
        let alive = is_own || live.contains(&(one.gateway.clone(), one.incarnation));
        if *name == own.to_string() || (alive && !closed && !ended) {
            continue;
        }
        let all = |test: fn(&SequenceRow) -> bool| known.iter().all(|r| r.map_or(ended, test));
        if !ended && !all(|r| r.closed) {
            close(coordinator, name, one).await?;
        } else if !all(|r| r.all_settled) {
            settle_if_empty(coordinator, name).await?;
        } else if all(|r| r.is_old) {
            let is_ancient = all(|r| r.is_ancient);
            // Once, and once more at the end: a standby that took over may have lost that they were deleted.
            if is_ancient || !told.emptied.contains(name) {
                let deletes = coordinator
                    .states
                    .iter()
                    .map(|s| delete_markers(s, name, -1, ALL_SETTLED));
                join_all(deletes).await.into_iter().collect::<Result<(), Error>>()?;
                told.emptied.insert(name.clone());
            }
            if is_ancient {
                on_all(coordinator, "DELETE FROM pgherd.dtx_sequence WHERE sequence = $1", name).await?;
            }
        }
    }
    Ok(())
}

/// Sequences of transactions that clients have prepared live as long as those, not as long as their gateways.
async fn forget_clients(
    coordinator: &Coordinator,
    names: &BTreeSet<&String>,
    rows: &[BTreeMap<String, SequenceRow>],
    live: &[(String, u64)],
) -> Result<(), Error> {
    let known = |row: &SequenceRow| prepared::Known {
        gateway: row.gateway.clone(),
        incarnation: row.incarnation,
        is_old: row.is_old,
        is_settled: row.all_settled,
    };
    let of_clients = names.iter().filter(|name| SequenceId::text_is_of_client(name));
    let sequences = of_clients.map(|name| {
        let shards = rows.iter().filter_map(|shard| shard.get(*name));
        (String::clone(name), shards.map(known).collect())
    });
    let own = coordinator.sequence.id();
    let is_alive = |gateway: &str, incarnation: u64| {
        (gateway == own.gateway && incarnation == own.incarnation)
            || live.iter().any(|(name, life)| name == gateway && *life == incarnation)
    };
    prepared::forget(coordinator, sequences.collect(), is_alive).await
}

async fn read_sequences(state: &ShardState) -> Result<BTreeMap<String, SequenceRow>, Error> {
    let client = state.connected().ok_or_else(|| not_connected(state))?;
    let sql = "SELECT sequence, gateway, incarnation, closed, settled = 9223372036854775807, \
                      settled_at < now() - interval '30 s', \
                      settled_at < now() - CASE WHEN ended THEN interval '1 min' ELSE interval '1 day' END, ended \
               FROM pgherd.dtx_sequence";
    let rows = state.within(client.query(sql, &[])).await?;
    let read = rows.iter().map(|row| {
        let (all_settled, is_old, is_ancient): (bool, bool, bool) = (row.get(4), row.get(5), row.get(6));
        let sequence = SequenceRow {
            gateway: row.get(1),
            incarnation: row.get::<_, i64>(2) as u64,
            closed: row.get(3),
            all_settled,
            is_old: all_settled && is_old,
            is_ancient: all_settled && is_ancient,
            ended: row.get(7),
        };
        (row.get(0), sequence)
    });
    Ok(read.collect())
}

/// Also where the gateway never came: it could still register there.
async fn close(coordinator: &Coordinator, name: &str, row: &SequenceRow) -> Result<(), Error> {
    let sql = "INSERT INTO pgherd.dtx_sequence (sequence, gateway, incarnation, closed) VALUES ($1, $2, $3, true) \
               ON CONFLICT (sequence) DO UPDATE SET closed = true WHERE NOT dtx_sequence.closed";
    let incarnation = row.incarnation as i64;
    let closes = coordinator.states.iter().map(async |state| {
        let client = state.connected().ok_or_else(|| not_connected(state))?;
        state
            .within(client.execute(sql, &[&name, &row.gateway, &incarnation]))
            .await
            .map(|_| ())
    });
    join_all(closes).await.into_iter().collect()
}

/// No marker of a closed sequence can be written any more; when no backend and no prepared transaction holds one, all
/// that there ever will be is visible everywhere or nowhere.
async fn settle_if_empty(coordinator: &Coordinator, name: &str) -> Result<(), Error> {
    let looks = coordinator.states.iter().map(async |state| {
        let client = state.connected().ok_or_else(|| not_connected(state))?;
        let sql = "SELECT EXISTS (SELECT FROM pgherd.marker_holders($1, NULL))";
        Ok(state.within(client.query_one(sql, &[&name])).await?.get::<_, bool>(0))
    });
    let held: Result<Vec<bool>, Error> = join_all(looks).await.into_iter().collect();
    if held?.into_iter().any(|h| h) {
        return Ok(());
    }
    let sql = "UPDATE pgherd.dtx_sequence SET settled = 9223372036854775807, settled_at = now() \
               WHERE sequence = $1 AND settled < 9223372036854775807";
    on_all(coordinator, sql, name).await
}

async fn on_all(coordinator: &Coordinator, sql: &str, name: &str) -> Result<(), Error> {
    let runs = coordinator.states.iter().map(async |state| {
        let client = state.connected().ok_or_else(|| not_connected(state))?;
        state.within(client.execute(sql, &[&name])).await.map(|_| ())
    });
    join_all(runs).await.into_iter().collect()
}

async fn look_at_schema(coordinator: &Coordinator) -> Result<(), Error> {
    let looks = coordinator.states.iter().map(async |state| {
        let client = state.connected().ok_or_else(|| not_connected(state))?;
        let row = state.within(client.query_one(LOOK_AT_SCHEMA, &[])).await?;
        state.learn_schema(row.get(0), row.get(1));
        Ok(())
    });
    join_all(looks).await.into_iter().collect()
}
