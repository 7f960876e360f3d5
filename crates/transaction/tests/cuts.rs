//! Reads over several shards while money moves between them: every sum is right, at READ COMMITTED, through two gateways.

mod bed;

use bed::hold::Hold;
use bed::{BALANCE, Bed, add, app, begin, fragment, run, state};
use bytes::{Bytes, BytesMut};
use pgherd_model::ShardId;
use pgherd_shards::{Backend, parse_data_row};
use pgherd_transaction::control::Point;
use pgherd_transaction::two_phase_commit::Action;
use pgherd_transaction::{Coordinator, Error, Mode, Transaction};
use postgres_protocol::message::frontend;
use rand::seq::SliceRandom;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ACCOUNTS: i64 = 8;
const TOTAL: i64 = 3 * ACCOUNTS * BALANCE;

/// The first column of a portal's rows.
async fn fetch(backend: &mut Backend, portal: &str) -> Vec<i64> {
    let out: &mut BytesMut = backend.outbox();
    frontend::execute(portal, 0, out).expect("execute");
    frontend::sync(out);
    backend.expect_ready();
    backend.flush().await.expect("flush");
    let mut values = Vec::new();
    loop {
        let message = backend.next_message().await.expect("message");
        match message.tag {
            b'D' => {
                let row = parse_data_row(message.body);
                let text = String::from_utf8(row[0].clone().expect("a value").to_vec()).expect("text");
                values.push(text.parse().expect("a number"));
            }
            b'E' => panic!("{:?}", message.body),
            b'Z' => return values,
            _ => {}
        }
    }
}

async fn sum_by_cut(transaction: &mut Transaction, shards: &[u32]) -> Result<i64, Error> {
    let fragments: Vec<_> = shards
        .iter()
        .map(|s| fragment(*s, "f0", "SELECT sum(balance)::bigint FROM account"))
        .collect();
    transaction.open_cut(&fragments).await?;
    let mut sum = 0;
    for (_, backend) in transaction.participants() {
        sum += fetch(backend, "f0").await.iter().sum::<i64>();
    }
    Ok(sum)
}

async fn sum_naively(transaction: &mut Transaction) -> Result<i64, Error> {
    let mut sum = 0;
    for shard in 1..=3 {
        let value = run(transaction, shard, "SELECT sum(balance)::bigint FROM account").await?;
        sum += value.and_then(|v| v.parse::<i64>().ok()).expect("a number");
    }
    Ok(sum)
}

/// Moves money between two or three shards until told to stop; how many transfers there were.
async fn transfer(gateway: Arc<Coordinator>, stop: Arc<AtomicBool>) -> u64 {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let (mut shards, account) = ([1, 2, 3], rand::random_range(1..=ACCOUNTS) as i32);
        shards.shuffle(&mut rand::rng());
        // In one order of locks, so that transfers do not wait for each other in a circle.
        let mut changes = match rand::random_bool(0.5) {
            true => vec![(shards[0], -1), (shards[1], 1)],
            false => vec![(shards[0], -2), (shards[1], 1), (shards[2], 1)],
        };
        changes.sort();
        let mut transaction = begin(&gateway);
        let moved = add(&mut transaction, account, &changes).await;
        match moved {
            Ok(()) => count += u64::from(transaction.commit().await.is_ok()),
            Err(_) => transaction.rollback().await.expect("rollback"),
        }
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sum_is_right_while_money_moves() {
    let bed = Bed::start(3).await;
    let gateways = [bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await];
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..6)
        .map(|n| tokio::spawn(transfer(gateways[n % 2].clone(), stop.clone())))
        .collect();
    let (begun, mut naive, mut cuts, mut wrong) = (Instant::now(), Vec::new(), 0, Vec::new());
    // With an end for when no wrong sum turns up on a very slow machine: then the last check says so.
    while begun.elapsed() < Duration::from_secs(6) || (naive.is_empty() && begun.elapsed() < Duration::from_secs(60)) {
        let reader = &gateways[cuts % 2];
        let mut transaction = begin(reader);
        let sum = sum_naively(&mut transaction).await.expect("naive sum");
        if sum != TOTAL {
            naive.push(sum);
        }
        transaction.rollback().await.expect("rollback");

        // Also in a transaction that has written, whose own writes are in the sum.
        let own = i64::from(cuts % 3 == 0);
        let mut transaction = begin(reader);
        if own == 1 {
            run(&mut transaction, 2, "INSERT INTO account VALUES (1000, 1)")
                .await
                .expect("insert");
        }
        for _ in 0..2 {
            let sum = sum_by_cut(&mut transaction, &[1, 2, 3]).await.expect("cut");
            cuts += 1;
            if sum != TOTAL + own {
                wrong.push(sum - own);
            }
        }
        transaction.rollback().await.expect("rollback");
    }
    stop.store(true, Ordering::Relaxed);
    let mut transfers = 0;
    for writer in writers {
        transfers += writer.await.expect("writer");
    }
    eprintln!("{transfers} transfers, {cuts} cuts, {} naive sums wrong", naive.len());
    assert!(wrong.is_empty(), "{} of {cuts} wrong: {wrong:?}", wrong.len());
    assert!(transfers > 50 && cuts > 20);
    assert!(
        !naive.is_empty(),
        "without cuts some sums are wrong, or this test shows nothing"
    );
    bed.until_nothing_is_prepared(Duration::from_secs(5)).await;
}

/// A commit that is visible on one shard and not yet on the other, for as long as the test likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_waits_for_the_other_half() {
    let bed = Bed::start(3).await;
    let gateway = bed.gateway("gw1", 1).await;
    // The other shard's COMMIT PREPARED has been asked for and is sent while this one waits.
    let hold = Hold::at(&gateway, |point| {
        point == Point::Before(Action::CommitPrepared(ShardId(2)))
    });
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, -5), (2, 5)]).await.expect("updates");
    let committing = tokio::spawn(transaction.commit());
    hold.reached().await;
    // What its own gateway would do next, on shard 1.
    let gids = bed.prepared_gids().await;
    let gid = &gids[0];
    bed.sql(1, &format!("COMMIT PREPARED '{gid}'")).await;
    assert_eq!(bed.balances(1).await, [BALANCE - 5, BALANCE, BALANCE], "half visible");
    let other = bed.gateway("gw2", 2).await;
    let reader = tokio::spawn(async move {
        let mut reading = begin(&other);
        let sum = sum_by_cut(&mut reading, &[1, 2, 3]).await;
        reading.rollback().await.expect("rollback");
        sum
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!reader.is_finished(), "there is no cut yet");
    hold.release();
    assert_eq!(reader.await.expect("task").expect("cut"), TOTAL);
    assert_eq!(committing.await.expect("task").expect("commit").tag, "COMMIT");
}

#[tokio::test]
async fn fragments_parameters_fences_and_errors() {
    let bed = Bed::start(2).await;
    let gateway = bed.gateway("gw1", 1).await;
    for shard in bed.ids() {
        bed.sql(shard, "CREATE TABLE fence_1_1 (); GRANT SELECT ON fence_1_1 TO app")
            .await;
    }
    let mut fragments = vec![
        fragment(1, "f0", "SELECT id FROM account WHERE id > $1 ORDER BY id"),
        fragment(1, "f1", "SELECT 7"),
        fragment(2, "f2", "SELECT count(*) FROM account"),
    ];
    fragments[0].parameters = vec![(false, Some(Bytes::from_static(b"6")))];
    fragments[0].parameter_types = vec![23];
    for f in &mut fragments {
        f.fences = vec!["public.fence_1_1".into()];
    }
    let mut transaction = gateway.begin(app(), Mode::default());
    for _ in 0..2 {
        transaction.open_cut(&fragments).await.expect("cut");
        let first = transaction.participant(ShardId(1)).await.expect("participant");
        assert_eq!(fetch(first, "f0").await, [7, 8]);
        assert_eq!(fetch(first, "f1").await, [7]);
        let second = transaction.participant(ShardId(2)).await.expect("participant");
        assert_eq!(fetch(second, "f2").await, [8]);
    }
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 'fence_1_1'::regclass AND mode = 'AccessShareLock'";
    assert_eq!(bed.number(2, locked).await, 1, "held to the end of the transaction");
    transaction.savepoint("s").await.expect("savepoint");
    fragments[2].fences = vec!["public.fence_1_0".into()];
    let error = transaction.open_cut(&fragments).await.expect_err("an old fence");
    assert_eq!(state(&error), "42P01", "{error}");
    transaction.rollback_to("s").await.expect("rollback to");
    fragments.truncate(1);
    transaction.open_cut(&fragments).await.expect("one shard, one fragment");
    let first = transaction.participant(ShardId(1)).await.expect("participant");
    assert_eq!(fetch(first, "f0").await, [7, 8]);
    assert_eq!(transaction.commit().await.expect("commit").tag, "COMMIT");
}

/// Markers are deleted when no reader needs them any more, also those of gateways that are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markers_do_not_pile_up() {
    let bed = Bed::start(2).await;
    let gateway = bed.gateway("gw1", 1).await;
    let dying = bed.gateway("gw2", 2).await;
    for one in [&gateway, &dying] {
        for _ in 0..5 {
            let mut transaction = begin(one);
            add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
            transaction.commit().await.expect("commit");
        }
    }
    drop(dying);
    bed.lease("gw2", 2, "-1 second").await;
    let markers = "SELECT count(*) FROM pgherd.dtx";
    assert_eq!(bed.number(2, markers).await, 10);
    let begun = Instant::now();
    while bed.number(1, markers).await + bed.number(2, markers).await > 0 {
        assert!(begun.elapsed() < Duration::from_secs(120), "markers stay");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(
        begun.elapsed() > Duration::from_secs(25),
        "readers may still have needed them"
    );
    // Their sequences are known to be settled, so that readers do not look for them.
    let settled = "SELECT count(*) FROM pgherd.dtx_sequence WHERE closed AND settled = 9223372036854775807";
    assert_eq!(bed.number(1, settled).await, 1);
}
