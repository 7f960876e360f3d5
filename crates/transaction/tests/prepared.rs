//! Transactions that clients prepare and end themselves: gateways and shards that die at every step, two gateways that end the
//! same one in different ways, and what stays while nobody ends it.

mod bed;

use bed::hold::Hold;
use bed::{BALANCE, Bed, add, app, begin, fragment, run, state};
use pgherd_model::ShardId;
use pgherd_transaction::control::Point;
use pgherd_transaction::prepared::{End, Step};
use pgherd_transaction::{Coordinator, Error, Fragment, Mode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const RECOVERY_LIMIT: Duration = Duration::from_secs(10);
/// One transfer over all shards; the account's balance afterwards tells whether it took effect.
const CHANGES: [(u32, i64); 3] = [(1, -3), (2, 1), (3, 2)];

/// Prepares the transfer.
async fn prepare(gateway: &Arc<Coordinator>, name: &str, account: i32) -> Result<String, Error> {
    let mut transaction = begin(gateway);
    add(&mut transaction, account, &CHANGES).await.expect("updates");
    transaction.prepare(name).await.map(|done| done.tag)
}

async fn took_effect(bed: &Bed, before: &[i64], account: i32) -> bool {
    let after = bed.balances(account).await;
    let changes: Vec<i64> = after.iter().zip(before).map(|(b, a)| b - a).collect();
    match changes[..] {
        [0, 0, 0] => false,
        [-3, 1, 2] => true,
        _ => panic!("torn: {changes:?}"),
    }
}

fn fragments(sql: &str) -> Vec<Fragment> {
    [1, 2].map(|shard| fragment(shard, "f", sql)).to_vec()
}

async fn rows(bed: &Bed, condition: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM pgherd.client_transaction WHERE {condition}");
    bed.number(1, &sql).await
}

async fn until_no_row(bed: &Bed, condition: &str) {
    let begun = Instant::now();
    while rows(bed, condition).await > 0 {
        assert!(begun.elapsed() < RECOVERY_LIMIT, "rows are left: {condition}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A gateway that dies at the step of that number; whether it did shows in the flag.
async fn dying(bed: &Bed, name: &str, incarnation: u64, stop_at: usize) -> (Arc<Coordinator>, Arc<AtomicBool>) {
    let gateway = bed.gateway(name, incarnation).await;
    let (passed, died) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let told = died.clone();
    gateway.set_control(Some(Arc::new(move |point| {
        let counts = matches!(point, Point::OfClient(_));
        let goes_on = !counts || passed.fetch_add(1, Ordering::SeqCst) < stop_at;
        if !goes_on {
            told.store(true, Ordering::SeqCst);
        }
        goes_on
    })));
    (gateway, died)
}

#[tokio::test]
async fn a_gateway_dies_at_every_step_of_preparing() {
    let bed = Bed::start(3).await;
    let survivor = bed.gateway("survivor", 1).await;
    let (mut outcomes, mut stop_at) = ([0, 0], 0);
    loop {
        let (name, incarnation) = (format!("gw{stop_at}"), 100 + stop_at as u64);
        let (gateway, died) = dying(&bed, &name, incarnation, stop_at).await;
        let before = bed.balances(1).await;
        let told = prepare(&gateway, "transfer", 1).await;
        drop(gateway);
        bed.lease(&name, incarnation, "-1 second").await;
        // Then it is prepared, or as if it had never been.
        until_no_row(&bed, "state <> 'prepared'").await;
        let is_prepared = rows(&bed, "true").await == 1;
        if let Ok(tag) = &told {
            assert!(
                is_prepared && tag == "PREPARE TRANSACTION",
                "stopped at {stop_at}: {tag}"
            );
        }
        if is_prepared {
            assert_eq!(bed.prepared().await, 3, "stopped at {stop_at}");
            let end = if stop_at % 2 == 0 { End::Commit } else { End::RollBack };
            survivor.end_prepared("transfer", "app", end).await.expect("end");
            assert_eq!(took_effect(&bed, &before, 1).await, end == End::Commit);
        } else {
            let found = survivor.end_prepared("transfer", "app", End::Commit).await;
            assert_eq!(state(&found.expect_err("nothing is there")), "42704");
        }
        outcomes[usize::from(is_prepared)] += 1;
        bed.until_nothing_is_prepared(RECOVERY_LIMIT).await;
        assert!(is_prepared || !took_effect(&bed, &before, 1).await);
        if !died.load(Ordering::SeqCst) {
            assert!(told.is_ok());
            break;
        }
        stop_at += 1;
    }
    assert!(
        stop_at >= 9,
        "a row, three shards before and after, two ends: {stop_at}"
    );
    assert!(outcomes[0] >= 8 && outcomes[1] >= 2, "{outcomes:?}");
}

#[tokio::test]
async fn a_gateway_dies_at_every_step_of_ending() {
    let bed = Bed::start(3).await;
    let survivor = bed.gateway("survivor", 1).await;
    for end in [End::Commit, End::RollBack] {
        for stop_at in 0.. {
            let (name, incarnation) = (format!("gw{stop_at}"), 100 + stop_at as u64);
            let before = bed.balances(2).await;
            assert_eq!(
                prepare(&survivor, "transfer", 2).await.expect("prepare"),
                "PREPARE TRANSACTION"
            );
            let (gateway, died) = dying(&bed, &name, incarnation, stop_at).await;
            let told = gateway.end_prepared("transfer", "app", end).await;
            drop(gateway);
            bed.lease(&name, incarnation, "-1 second").await;
            // It was decided before the first step, and the survivor does the rest.
            until_no_row(&bed, "true").await;
            bed.until_nothing_is_prepared(RECOVERY_LIMIT).await;
            assert_eq!(
                took_effect(&bed, &before, 2).await,
                end == End::Commit,
                "{end:?}, stopped at {stop_at}"
            );
            if !died.load(Ordering::SeqCst) {
                told.expect("nothing stopped it");
                assert!(stop_at >= 7, "three shards before and after: {stop_at}");
                break;
            }
        }
    }
}

/// A gateway is paused for longer than its lease, and goes on as if nothing had been.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_gateway_that_was_taken_for_dead_prepares_nothing() {
    let bed = Bed::start(3).await;
    let _survivor = bed.gateway("survivor", 1).await;
    let steps = [Step::Recorded, Step::Preparing(ShardId(3)), Step::AllPrepared];
    for (n, step) in steps.into_iter().enumerate() {
        let (name, incarnation) = (format!("gw{n}"), 100 + n as u64);
        let gateway = bed.gateway(&name, incarnation).await;
        let hold = Hold::at(&gateway, move |point| point == Point::OfClient(step));
        let before = bed.balances(6).await;
        let preparing = tokio::spawn(async move { prepare(&gateway, "late", 6).await });
        hold.reached().await;
        bed.lease(&name, incarnation, "-1 second").await;
        until_no_row(&bed, "true").await;
        hold.release();
        let refused = preparing.await.expect("task").expect_err("taken for dead");
        assert_eq!(state(&refused), "40001", "{step:?}");
        bed.until_nothing_is_prepared(RECOVERY_LIMIT).await;
        assert!(!took_effect(&bed, &before, 6).await);
        assert_eq!(rows(&bed, "true").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_one_way_to_end_it_wins() {
    let bed = Bed::start(3).await;
    let gateways = [bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await];
    let mut committed = 0;
    for round in 0..20 {
        let before = bed.balances(3).await;
        prepare(&gateways[round % 2], "transfer", 3).await.expect("prepare");
        let [commit, back] = [(0, End::Commit), (1, End::RollBack)].map(|(n, end)| {
            let gateway = gateways[(n + round / 2) % 2].clone();
            tokio::spawn(async move { gateway.end_prepared("transfer", "app", end).await })
        });
        let (commit, back) = (commit.await.expect("task"), back.await.expect("task"));
        assert_ne!(commit.is_ok(), back.is_ok(), "{commit:?} {back:?}");
        let refused = [&commit, &back].into_iter().find_map(|r| r.as_ref().err());
        let refused = state(refused.expect("one is refused"));
        assert!(["42704", "55000"].contains(&refused.as_str()), "{refused}");
        until_no_row(&bed, "true").await;
        assert_eq!(took_effect(&bed, &before, 3).await, commit.is_ok());
        committed += i32::from(commit.is_ok());
    }
    eprintln!("{committed} of 20 were committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_survives_shards_and_is_ended_when_they_are_back() {
    let bed = Arc::new(Bed::start(3).await);
    let gateway = bed.gateway("gw1", 1).await;
    let before = bed.balances(4).await;
    prepare(&gateway, "transfer", 4).await.expect("prepare");
    bed.cluster.kill_shard(2).await;
    let refused = gateway.end_prepared("transfer", "app", End::Commit).await;
    let refused = state(&refused.expect_err("a shard is down"));
    assert!(refused == "57P03" || refused.starts_with("08"), "{refused}");
    bed.cluster.restart_shard(2).await.expect("restart");
    bed.cluster.kill_shard(1).await;
    bed.cluster.restart_shard(1).await.expect("restart");
    // A shard with a client's prepared transaction is ready for use.
    let mut other = begin(&gateway);
    add(&mut other, 5, &[(1, -1), (2, 1)]).await.expect("updates");
    assert_eq!(other.commit().await.expect("commit").tag, "COMMIT");
    assert_eq!((bed.prepared().await, rows(&bed, "state = 'prepared'").await), (3, 1));

    // A shard dies when it is decided: the client is told so, and that shard does not show anything older.
    let crashing = bed.clone();
    gateway.set_control(Some(Arc::new(move |point| {
        if point == Point::OfClient(Step::Decided) {
            let crashing = crashing.clone();
            std::thread::scope(|scope| {
                let crash = || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    runtime.expect("runtime").block_on(crashing.cluster.kill_shard(3));
                };
                scope.spawn(crash).join().expect("crashed");
            });
        }
        true
    })));
    gateway
        .end_prepared("transfer", "app", End::Commit)
        .await
        .expect("decided");
    bed.cluster.restart_shard(3).await.expect("restart");
    let mut reader = begin(&gateway);
    let sql = "SELECT balance FROM account WHERE id = 4";
    let seen = run(&mut reader, 3, sql).await.expect("read");
    assert_eq!(seen, Some((before[2] + 2).to_string()));
    reader.rollback().await.expect("rollback");
    until_no_row(&bed, "true").await;
    assert!(took_effect(&bed, &before, 4).await);
}

/// COMMIT PREPARED has come to one shard and not yet to the other, for as long as the test likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_cut_shows_both_halves_or_none() {
    let bed = Bed::start(2).await;
    let (writer, reader) = (bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await);
    let hold = Hold::at(&writer, |point| point == Point::OfClient(Step::Ending(ShardId(2))));
    // The other gateway may finish what is decided, too: it must not, here.
    reader.set_control(Some(Arc::new(|point| {
        !matches!(point, Point::OfClient(Step::Ending(_)))
    })));
    let mut transaction = begin(&writer);
    add(&mut transaction, 1, &[(1, -5), (2, 5)]).await.expect("updates");
    transaction.prepare("halves").await.expect("prepare");
    let ending = tokio::spawn(async move { writer.end_prepared("halves", "app", End::Commit).await });
    hold.reached().await;
    while bed.balances(1).await != [BALANCE - 5, BALANCE] {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut transaction = begin(&reader);
    let fragments = fragments("SELECT balance FROM account WHERE id = 1");
    let reading = tokio::spawn(async move { transaction.open_cut(&fragments).await.map(|()| transaction) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!reading.is_finished(), "one half is visible: there is no cut");
    hold.release();
    let transaction = reading.await.expect("task").expect("both halves");
    assert_eq!(bed.balances(1).await, [BALANCE - 5, BALANCE + 5]);
    transaction.rollback().await.expect("rollback");
    ending.await.expect("task").expect("commit");
}

#[tokio::test]
async fn nothing_waits_for_what_stays_prepared() {
    let bed = Bed::start_with(2, &[("max_prepared_transactions", "6")]).await;
    let gateway = bed.gateway("gw1", 1).await;
    for n in 0..6 {
        let mut transaction = begin(&gateway);
        add(&mut transaction, n + 1, &[(1, -1), (2, 1)]).await.expect("updates");
        transaction.prepare(&format!("stays {n}")).await.expect("prepare");
    }
    // As PostgreSQL: no place, for clients and for the cluster, and no waiting for one.
    let mut transaction = begin(&gateway);
    add(&mut transaction, 7, &[(1, -1), (2, 1)]).await.expect("updates");
    let refused = transaction.prepare("one too many").await.expect_err("no place");
    assert_eq!(state(&refused), "53200");
    let mut transaction = begin(&gateway);
    add(&mut transaction, 7, &[(1, -1), (2, 1)]).await.expect("updates");
    assert_eq!(state(&transaction.commit().await.expect_err("no place")), "53200");
    assert_eq!((bed.prepared().await, rows(&bed, "true").await), (12, 6));
    gateway
        .end_prepared("stays 0", "app", End::RollBack)
        .await
        .expect("end");

    // The watermark of the gateway's own commits passes those that stay.
    let mut transaction = begin(&gateway);
    add(&mut transaction, 7, &[(1, -1), (2, 1)]).await.expect("updates");
    transaction.commit().await.expect("commit");
    let own = "SELECT count(*) FROM pgherd.dtx_sequence s WHERE s.sequence = 'gw1:1.0' \
               AND s.settled >= (SELECT max(number) FROM pgherd.dtx d WHERE d.sequence = s.sequence)";
    let begun = Instant::now();
    while bed.number(1, own).await + bed.number(2, own).await < 2 {
        assert!(begun.elapsed() < RECOVERY_LIMIT, "the watermark waits");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The commit gate can be closed, which readers do who find no cut.
    bed.sql(
        1,
        "SET lock_timeout = '5s'; BEGIN; LOCK TABLE pgherd.commit_gate IN ACCESS EXCLUSIVE MODE; COMMIT",
    )
    .await;
    // Another gateway comes, looks at the shards, and leaves them alone; so does one that is told to stop.
    drop(gateway);
    let other = bed.gateway("gw2", 2).await;
    bed.lease("gw1", 1, "-1 second").await;
    let mut transaction = begin(&other);
    add(&mut transaction, 8, &[(1, -1), (2, 1)]).await.expect("updates");
    transaction.commit().await.expect("commit");
    assert_eq!(bed.prepared().await, 10);
    for n in 1..6 {
        other
            .end_prepared(&format!("stays {n}"), "app", End::Commit)
            .await
            .expect("end");
    }
    assert_eq!(bed.prepared().await, 0);
}

#[tokio::test]
async fn what_has_ended_is_forgotten() {
    let bed = Bed::start(2).await;
    let gateway = bed.gateway("gw1", 1).await;
    let fragments = fragments("SELECT sum(balance)::bigint FROM account");
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
    transaction.prepare("short").await.expect("prepare");
    gateway.end_prepared("short", "app", End::Commit).await.expect("end");
    let mut reader = begin(&gateway);
    reader.open_cut(&fragments).await.expect("a cut that shows it");
    let known = "SELECT (SELECT count(*) FROM pgherd.dtx) \
                      + (SELECT count(*) FROM pgherd.dtx_sequence WHERE sequence LIKE 'gw1:1.c%')";
    assert_eq!((bed.number(1, known).await, bed.number(2, known).await), (2, 2));
    // As if half a minute had gone by.
    for shard in bed.ids() {
        bed.sql(
            shard,
            "UPDATE pgherd.dtx_sequence SET settled_at = now() - interval '1 minute' WHERE sequence LIKE '%.c%'",
        )
        .await;
    }
    let begun = Instant::now();
    while bed.number(1, known).await + bed.number(2, known).await > 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "its marker and sequence stay"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Who has seen it does not look for it any more.
    let begun = Instant::now();
    reader.open_cut(&fragments).await.expect("a cut without it");
    assert!(begun.elapsed() < Duration::from_secs(10), "it was looked for");
    reader.rollback().await.expect("rollback");
}

#[tokio::test]
async fn readers_keep_their_locks_and_read_only_leaves_no_trace() {
    let bed = Bed::start(3).await;
    let gateway = bed.gateway("gw1", 1).await;
    // No shard at all: the home shard has it.
    assert_eq!(
        begin(&gateway).prepare("empty").await.expect("prepare").tag,
        "PREPARE TRANSACTION"
    );
    assert_eq!((bed.prepared().await, rows(&bed, "true").await), (1, 1));
    gateway.end_prepared("empty", "app", End::Commit).await.expect("commit");

    let mut transaction = begin(&gateway);
    run(&mut transaction, 2, "SELECT 1 FROM account WHERE id = 1 FOR UPDATE")
        .await
        .expect("lock");
    run(&mut transaction, 3, "SELECT 1 FROM account").await.expect("read");
    transaction.prepare("locks").await.expect("prepare");
    assert_eq!(bed.prepared().await, 2);
    let mut other = begin(&gateway);
    let waits = run(&mut other, 2, "SELECT 1 FROM account WHERE id = 1 FOR UPDATE NOWAIT").await;
    assert_eq!(state(&waits.expect_err("it is locked")), "55P03");
    other.rollback().await.expect("rollback");
    gateway
        .end_prepared("locks", "app", End::RollBack)
        .await
        .expect("rollback");

    let mode = Mode {
        read_only: Some(true),
        ..Mode::default()
    };
    for end in [End::Commit, End::RollBack] {
        let mut transaction = gateway.begin(app(), mode.clone());
        run(&mut transaction, 3, "SELECT 1 FROM account").await.expect("read");
        run(&mut transaction, 2, "SELECT 1 FROM account").await.expect("read");
        transaction.prepare("read only").await.expect("prepare");
        assert_eq!(bed.prepared().await, 2);
        gateway.end_prepared("read only", "app", end).await.expect("end");
        assert_eq!((bed.prepared().await, rows(&bed, "true").await), (0, 0));
    }
    assert_eq!(bed.balances(1).await, [BALANCE; 3]);
}

#[tokio::test]
async fn names_and_roles() {
    let bed = Bed::start(2).await;
    let gateway = bed.gateway("gw1", 1).await;
    for (name, code) in [("x".repeat(200), "22023"), ("pgherd:test:x".into(), "42939")] {
        let mut transaction = begin(&gateway);
        add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
        assert_eq!(state(&transaction.prepare(&name).await.expect_err("refused")), code);
    }
    let name = "ü".repeat(99);
    for code in [None, Some("42710")] {
        let mut transaction = begin(&gateway);
        add(&mut transaction, if code.is_none() { 1 } else { 2 }, &[(1, -1), (2, 1)])
            .await
            .expect("updates");
        let prepared = transaction.prepare(&name).await;
        assert_eq!(prepared.err().map(|e| state(&e)).as_deref(), code);
    }
    bed.sql(1, "CREATE ROLE other LOGIN").await;
    let refused = gateway.end_prepared(&name, "other", End::Commit).await;
    assert_eq!(state(&refused.expect_err("it is app's")), "42501");
    assert_eq!(bed.prepared().await, 2);
    gateway
        .end_prepared(&name, "postgres", End::Commit)
        .await
        .expect("a superuser may");
    // One that cannot be prepared on one shard is prepared on none.
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, -1)]).await.expect("update");
    run(&mut transaction, 2, "CREATE TEMP TABLE t (a int)")
        .await
        .expect("temp");
    let refused = transaction.prepare("temp").await.expect_err("refused");
    assert_eq!(state(&refused), "0A000");
    assert_eq!((bed.prepared().await, rows(&bed, "true").await), (0, 0));
    // No client can write the marker.
    let mut transaction = begin(&gateway);
    let forged = run(
        &mut transaction,
        1,
        "SELECT pgherd.write_client_marker('pgherd:test:x:2:gw1:1.c1:1', 'x')",
    )
    .await;
    assert_eq!(state(&forged.expect_err("forged")), "42501");
    transaction.rollback().await.expect("rollback");
}
