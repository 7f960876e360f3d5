//! The search for deadlocks over several shards: the I/O around [`crate::deadlock`], told in
//! `docs/designs/0005-deadlocks.md`.
//!
//! Nothing happens before one of this gateway's transactions over several shards has been at a statement for
//! [`SLOW`]. Then its shards are asked who waits; transactions that do are published on the home shard and
//! withdrawn when their statement ends. One of the gateways that have published something is the *detector*: it
//! looks at the shards of all that is published, and marks victims. A victim's own gateway cancels it.
//!
//! All of it runs on service connections. When one fails the search goes on with the next look; a cycle is then found a moment
//! later.

use crate::deadlock::{Detector, Member, MemberBackend, Published, Wait};
use crate::shard_state::ShardState;
use crate::watched::Slow;
use crate::{Coordinator, Error};
use futures::future::join_all;
use pgherd_model::ShardId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often. Two looks at a circle are at least as far apart.
const PERIOD: Duration = Duration::from_millis(100);
/// How long a statement may take before anybody asks whether it waits.
const SLOW: Duration = Duration::from_millis(100);
/// One that was seen not to wait is asked about again when it has become half as old again, and after this time at the latest.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// Who waits for a lock on one shard, for whom, since when, and for which lock in PostgreSQL's words.
const WAITS: &str = "SELECT l.pid, (extract(epoch FROM l.waitstart) * 1000000)::bigint, pg_blocking_pids(l.pid), \
    l.mode || ' on ' || CASE l.locktype \
        WHEN 'relation' THEN format('relation %s of database %s', l.relation, l.database) \
        WHEN 'extend' THEN format('extension of relation %s of database %s', l.relation, l.database) \
        WHEN 'page' THEN format('page %s of relation %s of database %s', l.page, l.relation, l.database) \
        WHEN 'tuple' THEN format('tuple (%s,%s) of relation %s of database %s', l.page, l.tuple, l.relation, l.database) \
        WHEN 'transactionid' THEN format('transaction %s', l.transactionid) \
        WHEN 'virtualxid' THEN format('virtual transaction %s', l.virtualxid) \
        WHEN 'object' THEN format('object %s of class %s of database %s', l.objid, l.classid, l.database) \
        WHEN 'advisory' THEN format('advisory lock [%s,%s,%s,%s]', l.database, l.classid, l.objid, l.objsubid) \
        ELSE l.locktype END \
    FROM pg_locks l WHERE NOT l.granted AND l.waitstart IS NOT NULL";

/// Runs until the coordinator is gone.
pub(crate) async fn run(coordinator: Weak<Coordinator>) {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(this) = coordinator.upgrade() else { return };
        if let Err(e) = watch.tick(&this).await {
            tracing::debug!("cannot look for deadlocks: {e}");
            watch.detector.forget();
            watch.is_published = true;
        }
    }
}

#[derive(Default)]
struct Watch {
    detector: Detector,
    /// rows of this gateway may be on the home shard
    is_published: bool,
}

type Looks = BTreeMap<ShardId, Vec<Wait>>;

impl Watch {
    async fn tick(&mut self, coordinator: &Coordinator) -> Result<(), Error> {
        let slow = coordinator.watched.slow(SLOW);
        if slow.is_empty() && !self.is_published {
            return Ok(());
        }
        let mut looks = Looks::new();
        let shards = slow.iter().flat_map(|s| s.backends.iter().map(|(shard, _)| *shard));
        look(coordinator, shards.collect(), &mut looks).await;
        let mut own = Vec::new();
        for statement in &slow {
            match waiting(coordinator, statement, &looks) {
                Some(published) => own.push(published),
                None => statement.watched.pause(statement.statement, LONGEST_PAUSE),
            }
        }
        if own.is_empty() && !self.is_published {
            return Ok(());
        }
        self.is_published = true;
        publish(coordinator, &own).await?;
        if own.is_empty() {
            self.is_published = false;
            self.detector.forget();
            return resign(coordinator).await;
        }
        self.search(coordinator, looks).await
    }

    /// Cancels own victims; as the detector, looks for more.
    async fn search(&mut self, coordinator: &Coordinator, mut looks: Looks) -> Result<(), Error> {
        let is_detector = run_for_detector(coordinator).await?;
        let published = read_published(coordinator).await?;
        for transaction in &published {
            give_way(coordinator, transaction).await;
        }
        if !is_detector {
            self.detector.forget();
            return Ok(());
        }
        let shards: BTreeSet<ShardId> = published
            .iter()
            .flat_map(|p| p.backends.iter().map(|b| b.shard))
            .collect();
        look(coordinator, shards, &mut looks).await;
        let waits: Vec<Wait> = looks.into_values().flatten().collect();
        let name = |shard| {
            let config = coordinator.shards.config(shard);
            config.map_or_else(|_| shard.to_string(), |c| c.name.clone())
        };
        for deadlock in self.detector.look(&published, &waits, name) {
            tracing::info!(
                victim = ?deadlock.victim,
                "deadlock over several shards: {}",
                deadlock.detail.replace('\n', " ")
            );
            mark(coordinator, deadlock.victim, deadlock.statement, &deadlock.detail).await?;
            let victim = published.iter().find(|p| p.member == deadlock.victim);
            if let Some(mut victim) = victim.cloned() {
                victim.victim = Some(deadlock.detail);
                give_way(coordinator, &victim).await;
            }
        }
        Ok(())
    }
}

/// Adds the waits of those shards that answer and have not been looked at.
async fn look(coordinator: &Coordinator, shards: BTreeSet<ShardId>, looks: &mut Looks) {
    let new = shards.into_iter().filter(|s| !looks.contains_key(s));
    let answers = join_all(new.map(async |shard| (shard, waits_on(coordinator, shard).await))).await;
    for (shard, answer) in answers {
        match answer {
            Ok(waits) => _ = looks.insert(shard, waits),
            Err(e) => tracing::debug!(%shard, "cannot see who waits: {e}"),
        }
    }
}

async fn waits_on(coordinator: &Coordinator, shard: ShardId) -> Result<Vec<Wait>, Error> {
    let state = coordinator.state(shard)?;
    let client = state.client(&coordinator.shards, &coordinator.database).await?;
    let rows = state.within(client.query(WAITS, &[])).await?;
    let waits = rows.iter().map(|row| Wait {
        shard,
        pid: row.get(0),
        since_us: row.get(1),
        blockers: row.get(2),
        lock: row.get(3),
    });
    Ok(waits.collect())
}

/// The transaction as it is to be published, if the statement waits for a lock and has not ended meanwhile: only then are
/// the waits that were seen its own.
fn waiting(coordinator: &Coordinator, slow: &Slow, looks: &Looks) -> Option<Published> {
    let since = |shard: &ShardId, pid: i32| {
        let waits = looks.get(shard)?;
        waits.iter().find(|w| w.pid == pid).map(|w| w.since_us)
    };
    let backends = slow.backends.iter().map(|(shard, pid)| MemberBackend {
        shard: *shard,
        pid: *pid,
        waits_since_us: since(shard, *pid),
    });
    let backends: Vec<_> = backends.collect();
    let waits = backends.iter().any(|b| b.waits_since_us.is_some());
    (waits && slow.watched.is_at(slow.statement)).then(|| Published {
        member: Member {
            incarnation: coordinator.identity.incarnation,
            number: slow.watched.number,
        },
        statement: slow.statement,
        started_us: microseconds(slow.watched.started_at),
        backends,
        victim: None,
    })
}

fn microseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Makes this gateway's rows be these. A mark stays while the statement is the same.
async fn publish(coordinator: &Coordinator, own: &[Published]) -> Result<(), Error> {
    let (numbers, statements): (Vec<i64>, Vec<i64>) =
        own.iter().map(|p| (p.member.number as i64, p.statement as i64)).unzip();
    let (started, backends): (Vec<i64>, Vec<String>) = own.iter().map(|p| (p.started_us, write(&p.backends))).unzip();
    let incarnation = coordinator.identity.incarnation as i64;
    let (state, client) = home(coordinator).await?;
    let withdraw = "DELETE FROM pgherd.waiting_transaction WHERE incarnation = $1 AND number <> ALL ($2)";
    state
        .within(client.execute(withdraw, &[&incarnation, &numbers]))
        .await?;
    if own.is_empty() {
        return Ok(());
    }
    let insert = "INSERT INTO pgherd.waiting_transaction AS w (incarnation, number, statement, started_us, backends) \
                  SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::text[]) \
                  ON CONFLICT (incarnation, number) DO UPDATE SET statement = excluded.statement, \
                      backends = excluded.backends, victim = CASE WHEN w.statement = excluded.statement THEN w.victim END \
                  WHERE (w.statement, w.backends) IS DISTINCT FROM (excluded.statement, excluded.backends)";
    state
        .within(client.execute(insert, &[&incarnation, &numbers, &statements, &started, &backends]))
        .await
        .map(|_| ())
}

/// What gateways with a live lease have published, this one's included.
async fn read_published(coordinator: &Coordinator) -> Result<Vec<Published>, Error> {
    let (state, client) = home(coordinator).await?;
    let sql = "SELECT w.incarnation, w.number, w.statement, w.started_us, w.backends, w.victim \
               FROM pgherd.waiting_transaction w JOIN pgherd.gateway g ON g.incarnation = w.incarnation \
               WHERE g.lease_until > clock_timestamp() ORDER BY w.incarnation, w.number";
    let rows = state.within(client.query(sql, &[])).await?;
    let published = rows.iter().map(|row| Published {
        member: Member {
            incarnation: row.get::<_, i64>(0) as u64,
            number: row.get::<_, i64>(1) as u64,
        },
        statement: row.get::<_, i64>(2) as u64,
        started_us: row.get(3),
        backends: read(row.get(4)),
        victim: row.get(5),
    });
    Ok(published.collect())
}

/// `shard/pid/since` of each backend, `-` for one that does not wait.
fn write(backends: &[MemberBackend]) -> String {
    let words = backends.iter().map(|b| {
        let since = b.waits_since_us.map_or_else(|| "-".into(), |us| us.to_string());
        format!("{}/{}/{since}", b.shard, b.pid)
    });
    words.collect::<Vec<_>>().join(" ")
}

fn read(text: &str) -> Vec<MemberBackend> {
    let backend = |word: &str| {
        let mut parts = word.split('/');
        Some(MemberBackend {
            shard: ShardId(parts.next()?.parse().ok()?),
            pid: parts.next()?.parse().ok()?,
            waits_since_us: parts.next()?.parse().ok(),
        })
    };
    text.split(' ').filter_map(backend).collect()
}

/// Whether this gateway is the detector for the next moment. A lease and no lock: the service connection is shared, and the
/// detector has to remember its last look. Whoever becomes it clears away what dead gateways have left.
async fn run_for_detector(coordinator: &Coordinator) -> Result<bool, Error> {
    let incarnation = coordinator.identity.incarnation as i64;
    let (state, client) = home(coordinator).await?;
    let renew = "UPDATE pgherd.deadlock_detector SET until = clock_timestamp() + interval '1 s' \
                 WHERE incarnation = $1 AND until > clock_timestamp()";
    if state.within(client.execute(renew, &[&incarnation])).await? > 0 {
        return Ok(true);
    }
    let take = "INSERT INTO pgherd.deadlock_detector AS d (incarnation, until) VALUES ($1, clock_timestamp() + interval '1 s') \
                ON CONFLICT (one) DO UPDATE SET incarnation = excluded.incarnation, until = excluded.until \
                WHERE d.until <= clock_timestamp()";
    if state.within(client.execute(take, &[&incarnation])).await? == 0 {
        return Ok(false);
    }
    let clear = "DELETE FROM pgherd.waiting_transaction w WHERE NOT EXISTS (SELECT FROM pgherd.gateway g \
                 WHERE g.incarnation = w.incarnation AND g.lease_until > clock_timestamp())";
    state.within(client.execute(clear, &[])).await?;
    Ok(true)
}

/// Lets another gateway be the detector at once.
async fn resign(coordinator: &Coordinator) -> Result<(), Error> {
    let incarnation = coordinator.identity.incarnation as i64;
    let (state, client) = home(coordinator).await?;
    let resign = "DELETE FROM pgherd.deadlock_detector WHERE incarnation = $1";
    state.within(client.execute(resign, &[&incarnation])).await.map(|_| ())
}

async fn mark(coordinator: &Coordinator, victim: Member, statement: u64, detail: &str) -> Result<(), Error> {
    let (incarnation, number, statement) = (victim.incarnation as i64, victim.number as i64, statement as i64);
    let (state, client) = home(coordinator).await?;
    let mark = "UPDATE pgherd.waiting_transaction SET victim = $4 \
                WHERE incarnation = $1 AND number = $2 AND statement = $3 AND victim IS NULL";
    state
        .within(client.execute(mark, &[&incarnation, &number, &statement, &detail]))
        .await
        .map(|_| ())
}

/// Cancels an own transaction that was marked. Again with each tick, should a request have been lost.
async fn give_way(coordinator: &Coordinator, transaction: &Published) {
    let Some(detail) = &transaction.victim else { return };
    if transaction.member.incarnation != coordinator.identity.incarnation {
        return;
    }
    if let Some(watched) = coordinator.watched.get(transaction.member.number)
        && watched.cancel(transaction.statement, detail).await
    {
        metrics::counter!("pgherd_deadlocks_total").increment(1);
    }
}

async fn home(coordinator: &Coordinator) -> Result<(&ShardState, std::sync::Arc<tokio_postgres::Client>), Error> {
    let state = coordinator.state(coordinator.shards.home())?;
    let client = state.client(&coordinator.shards, &coordinator.database).await?;
    Ok((state, client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_as_text_and_back() {
        let backend = |shard, pid, waits_since_us| MemberBackend {
            shard: ShardId(shard),
            pid,
            waits_since_us,
        };
        let backends = [backend(1, 4711, None), backend(3, 12, Some(1_764_000_000_123_456))];
        assert_eq!(write(&backends), "1/4711/- 3/12/1764000000123456");
        assert_eq!(read(&write(&backends)), backends);
        assert_eq!(read(""), []);
    }
}
