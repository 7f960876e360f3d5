//! UPDATE and DELETE over several shards while rows move between them: each row is found once, wherever it is.

mod bed;

use bed::hold::Hold;
use bed::{Bed, add, begin, run};
use pgherd_model::ShardId;
use pgherd_transaction::control::Point;
use pgherd_transaction::two_phase_commit::Action;
use pgherd_transaction::{ASK, Coordinator, Error, Transaction};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const TAGS: u64 = 3;
const TOUCH: &str = "UPDATE nomad SET n = n + 1";
const NOTE: &str = "(SELECT pgherd.note_markers())";
/// After so many rounds, or so long, rows that the statement has waited for are no longer looked for elsewhere.
const MOST_ROUNDS: u32 = 20;
const LONGEST: Duration = Duration::from_secs(5);

async fn start() -> Bed {
    let bed = Bed::start(3).await;
    for shard in bed.ids() {
        let sql = format!(
            "CREATE TABLE nomad (tag int PRIMARY KEY, n int NOT NULL); GRANT ALL ON nomad TO app; \
             INSERT INTO nomad SELECT {shard}, 0 WHERE {shard} <= {TAGS}"
        );
        bed.sql(shard, &sql).await;
    }
    bed
}

fn rows(tag: &str) -> u64 {
    tag.rsplit(' ').next().and_then(|n| n.parse().ok()).expect(tag)
}

/// How many rows were written, and in how many rounds.
async fn write_by_cut(transaction: &mut Transaction, sql: &str) -> Result<(u64, u32), Error> {
    let shards = (1..=3).map(ShardId);
    let mut cut = transaction.write_cut(shards).await?.expect("several shards");
    let (mut counts, mut rounds) = (BTreeMap::new(), 0);
    while let Some(again) = cut.next(transaction).await? {
        rounds += 1;
        let prelude = cut.prelude();
        let work = async {
            for shard in &again {
                let backend = transaction.participant(*shard).await?;
                backend.queue_silent(&prelude);
                backend.queue_query(&format!("{sql} WHERE {NOTE}"))?;
                backend.queue_query(ASK)?;
                backend.flush().await?;
            }
            let mut read = Vec::new();
            for shard in &again {
                let backend = transaction.participant(*shard).await?;
                let (written, asked) = (backend.read_simple().await?, backend.read_simple().await?);
                read.push((*shard, rows(&written[0].tag), asked));
            }
            Ok::<_, Error>(read)
        };
        for (shard, count, asked) in cut.run(work).await? {
            counts.insert(shard, count);
            cut.saw(shard, &asked);
            transaction.wrote(shard);
        }
    }
    Ok((counts.into_values().sum(), rounds))
}

/// Each shard's newest state.
async fn write_naively(transaction: &mut Transaction, sql: &str) -> Result<u64, Error> {
    let mut count = 0;
    for shard in 1..=3 {
        let results = transaction.participant(ShardId(shard)).await?.simple(sql).await?;
        count += rows(&results[0].tag);
    }
    Ok(count)
}

/// Takes a row from where it is to another shard, in one transaction.
async fn move_row(gateway: &Arc<Coordinator>, tag: u64, from: u32, to: u32) {
    let mut transaction = begin(gateway);
    let sql = format!("DELETE FROM nomad WHERE tag = {tag} RETURNING n");
    let n = run(&mut transaction, from, &sql)
        .await
        .expect("delete")
        .expect("the row");
    let sql = format!("INSERT INTO nomad VALUES ({tag}, {n})");
    run(&mut transaction, to, &sql).await.expect("insert");
    assert_eq!(transaction.commit().await.expect("commit").tag, "COMMIT");
}

async fn keep_moving(gateway: Arc<Coordinator>, tag: u64, stop: Arc<AtomicBool>) -> u64 {
    let (mut at, mut moves) = (tag as u32, 0);
    while !stop.load(Ordering::Relaxed) {
        let to = at % 3 + 1;
        move_row(&gateway, tag, at, to).await;
        (at, moves) = (to, moves + 1);
        // A row that is on its way all the time is not found by one PostgreSQL either, once the writer waits for it.
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..60))).await;
    }
    moves
}

async fn sum(bed: &Bed) -> i64 {
    let mut sum = 0;
    for shard in bed.ids() {
        sum += bed.number(shard, "SELECT coalesce(sum(n), 0) FROM nomad").await;
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_is_found_once_while_rows_move() {
    let bed = start().await;
    let gateways = [bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await];
    let stop = Arc::new(AtomicBool::new(false));
    let movers: Vec<_> = (1..=TAGS)
        .map(|tag| tokio::spawn(keep_moving(gateways[tag as usize % 2].clone(), tag, stop.clone())))
        .collect();
    let (begun, mut missed, mut written, mut wrong, mut most) = (Instant::now(), 0, 0, Vec::new(), 0);
    let (mut touched, mut given_up) = (0, 0);
    while begun.elapsed() < Duration::from_secs(5) || (missed == 0 && begun.elapsed() < Duration::from_secs(60)) {
        let gateway = &gateways[written as usize % 2];
        let mut transaction = begin(gateway);
        let count = write_naively(&mut transaction, TOUCH).await.expect("naive");
        missed += u32::from(count != TAGS);
        transaction.rollback().await.expect("rollback");

        let mut transaction = begin(gateway);
        let started = Instant::now();
        let (count, rounds) = write_by_cut(&mut transaction, TOUCH).await.expect("by cut");
        let looked_everywhere = rounds < MOST_ROUNDS && started.elapsed() < LONGEST;
        transaction.commit().await.expect("commit");
        written += 1;
        touched += count as i64;
        most = most.max(rounds);
        match (count == TAGS, looked_everywhere) {
            (true, _) => {}
            (false, true) => wrong.push(count),
            // On a slow machine somebody commits in each round.
            (false, false) => given_up += 1,
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut moves = 0;
    for mover in movers {
        moves += mover.await.expect("mover");
    }
    eprintln!("{moves} moves, {written} updates in at most {most} rounds; without cuts {missed} were wrong");
    assert!(wrong.is_empty(), "{} of {written} wrong: {wrong:?}", wrong.len());
    assert_eq!(sum(&bed).await, touched, "no update was lost or done twice");
    assert!(moves > 20 && written > 10 && given_up < written / 10);
    assert!(
        missed > 0,
        "without cuts some rows are missed, or this test shows nothing"
    );
    bed.until_nothing_is_prepared(Duration::from_secs(5)).await;
}

/// A move that is visible where the row was and not yet where it is, for as long as the test likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_waits_for_the_other_half() {
    let bed = start().await;
    let gateway = bed.gateway("gw1", 1).await;
    let hold = Hold::at(&gateway, |point| {
        point == Point::Before(Action::CommitPrepared(ShardId(2)))
    });
    let moving = tokio::spawn({
        let gateway = gateway.clone();
        async move { move_row(&gateway, 1, 1, 2).await }
    });
    hold.reached().await;
    let gids = bed.prepared_gids().await;
    let gid = &gids[0];
    bed.sql(1, &format!("COMMIT PREPARED '{gid}'")).await;
    let other = bed.gateway("gw2", 2).await;
    let mut transaction = begin(&other);
    let sql = format!("{TOUCH} WHERE tag = 1");
    assert_eq!(
        write_naively(&mut transaction, &sql).await.expect("naive"),
        0,
        "it is nowhere"
    );
    transaction.rollback().await.expect("rollback");
    let writer = tokio::spawn(async move {
        let mut transaction = begin(&other);
        let (count, rounds) = write_by_cut(&mut transaction, TOUCH).await.expect("by cut");
        transaction.commit().await.expect("commit");
        (count, rounds)
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!writer.is_finished(), "there is no cut yet");
    hold.release();
    let (count, rounds) = writer.await.expect("writer");
    assert_eq!(count, TAGS);
    assert!(rounds > 1);
    moving.await.expect("mover");
    assert_eq!(sum(&bed).await, TAGS as i64);
}

/// Commits that have nothing to do with the statement's rows cost it rounds; how long that takes is only told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_commits_do_not_hold_a_write_up_for_ever() {
    let bed = start().await;
    let gateways = [bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await];
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..16_i32)
        .map(|n| {
            let (gateway, stop) = (gateways[n as usize % 2].clone(), stop.clone());
            tokio::spawn(async move {
                let mut commits = 0;
                while !stop.load(Ordering::Relaxed) {
                    let mut transaction = begin(&gateway);
                    let changes = [[(1, -1), (2, 1)], [(1, -1), (3, 1)], [(2, -1), (3, 1)]];
                    let moved = add(&mut transaction, n % 8 + 1, &changes[n as usize % 3]).await;
                    match moved {
                        Ok(()) => commits += u64::from(transaction.commit().await.is_ok()),
                        Err(_) => transaction.rollback().await.expect("rollback"),
                    }
                }
                commits
            })
        })
        .collect();
    let (begun, mut times, mut rounds) = (Instant::now(), Vec::new(), Vec::new());
    while begun.elapsed() < Duration::from_secs(4) || times.len() < 20 {
        let started = Instant::now();
        let mut transaction = begin(&gateways[times.len() % 2]);
        let (count, tried) = write_by_cut(&mut transaction, TOUCH).await.expect("by cut");
        times.push(started.elapsed());
        rounds.push(tried);
        assert_eq!(count, TAGS);
        transaction.commit().await.expect("commit");
    }
    stop.store(true, Ordering::Relaxed);
    let mut commits = 0;
    for writer in writers {
        commits += writer.await.expect("writer");
    }
    times.sort();
    rounds.sort();
    let at = |share: usize| times.len() * share / 100;
    eprintln!(
        "{} updates beside {commits} commits: p50 {:?}, p90 {:?}, p99 {:?}; rounds p50 {}, p99 {}",
        times.len(),
        times[at(50)],
        times[at(90)],
        times[at(99)],
        rounds[at(50)],
        rounds[at(99)],
    );
}
