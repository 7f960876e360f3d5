//! Two sessions through one gateway and through two, three over three shards, a chain through a transaction of one shard, and
//! what is not to be cancelled.

use super::{LIMIT, Outcome, Session, error, run, three_shards, until_waiting, update, value};
use pgherd_testkit::herd::{Gateway, Herd};
use std::time::{Duration, Instant};
use tokio_postgres::error::{DbError, SqlState};

/// What a victim's client is told.
fn assert_is_deadlock(error: &DbError, shards: &[&str]) {
    assert_eq!(error.code(), &SqlState::T_R_DEADLOCK_DETECTED, "{error:?}");
    assert_eq!(error.message(), "deadlock detected");
    let detail = error.detail().unwrap_or_default();
    for line in detail.lines() {
        assert!(
            line.starts_with("Process ") && line.contains(" waits for ShareLock on transaction "),
            "{detail}"
        );
    }
    for shard in shards {
        assert!(detail.contains(&format!(" on shard {shard} waits for ")), "{detail}");
    }
    assert_eq!(detail.lines().count(), shards.len(), "{detail}");
}

/// The old one has written key 1 and waits for key 9, the young one the reverse.
async fn two_sessions(herd: &Herd, of_old: &Gateway, of_young: &Gateway) {
    let old = Session::begin_with(of_old, 1).await;
    let young = Session::begin_with(of_young, 9).await;
    run(&young.client, "SAVEPOINT before").await;
    // The young one waits first, so that it is not just the last to wait that is taken.
    let young_waits = young.start(update(1));
    until_waiting(herd, 1).await;
    let closed = Instant::now();
    let old_waits = old.start(update(9));
    let (outcome, at) = young_waits.await.expect("task");
    let error_of_young = outcome.expect_err("the youngest gives way");
    assert_is_deadlock(&error_of_young, &["shard1", "shard3"]);
    assert!(at - closed < LIMIT, "it took {:?}", at - closed);
    eprintln!("broken {:?} after the circle was closed", at - closed);
    assert_eq!(
        error(&young.client, "SELECT 1").await.code().code(),
        "25P02",
        "the transaction is failed"
    );
    // The savepoint came after key 9 was written: the old one goes on waiting.
    run(&young.client, "ROLLBACK TO before").await;
    assert_eq!(value(&young.client, "SELECT v FROM t WHERE k = 9").await, "1");
    run(&young.client, "ROLLBACK").await;
    let (outcome, _): Outcome = old_waits.await.expect("task");
    outcome.expect("the other one goes on");
    run(&old.client, "COMMIT").await;
    assert_eq!(
        value(
            &young.client,
            "SELECT string_agg(k || '=' || v, ' ' ORDER BY k) FROM t WHERE k IN (1, 9)"
        )
        .await,
        "1=1 9=1"
    );
    run(&young.client, "UPDATE t SET v = 0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_through_one_gateway_and_through_two() {
    let (herd, one) = three_shards().await;
    two_sessions(&herd, &one, &one).await;
    let two = herd.gateway("two").await.expect("gateway");
    two_sessions(&herd, &one, &two).await;
    two_sessions(&herd, &two, &one).await;
    // What was published is withdrawn.
    let home = herd.cluster().shard(1).connect("postgres", "postgres").await;
    let home = home.expect("connect");
    let begun = Instant::now();
    loop {
        let row = home
            .query_one("SELECT count(*) FROM pgherd.waiting_transaction", &[])
            .await;
        if row.expect("count").get::<_, i64>(0) == 0 {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "rows are left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(two.stop().await);
    assert!(one.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_sessions_over_three_shards() {
    let (herd, one) = three_shards().await;
    let two = herd.gateway("two").await.expect("gateway");
    let first = Session::begin_with(&one, 1).await;
    let second = Session::begin_with(&two, 5).await;
    let third = Session::begin_with(&one, 9).await;
    let waits = [third.start(update(1)), first.start(update(5)), second.start(update(9))];
    let [third_waits, first_waits, second_waits] = waits;
    let (outcome, _) = third_waits.await.expect("task");
    assert_is_deadlock(
        &outcome.expect_err("the youngest gives way"),
        &["shard1", "shard2", "shard3"],
    );
    // Its locks are gone on all shards, also before it says ROLLBACK.
    second_waits.await.expect("task").0.expect("the second goes on");
    run(&second.client, "COMMIT").await;
    first_waits.await.expect("task").0.expect("the first goes on");
    run(&first.client, "COMMIT").await;
    let sum = value(&first.client, "SELECT sum(v) FROM t").await;
    assert_eq!(sum, "4");
    run(&third.client, "ROLLBACK").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_through_a_transaction_of_one_shard() {
    let (herd, gateway) = three_shards().await;
    // It stays on key 1's shard, holds key 2 there, and waits for key 1.
    let old = Session::begin_with(&gateway, 1).await;
    let single = Session::begin_with(&gateway, 2).await;
    let young = Session::begin_with(&gateway, 9).await;
    let single_waits = single.start(update(1));
    until_waiting(&herd, 1).await;
    let young_waits = young.start(update(2));
    until_waiting(&herd, 2).await;
    let old_waits = old.start(update(9));
    let (outcome, _) = young_waits.await.expect("task");
    assert_is_deadlock(
        &outcome.expect_err("the youngest gives way"),
        &["shard1", "shard1", "shard3"],
    );
    run(&young.client, "ROLLBACK").await;
    old_waits.await.expect("task").0.expect("the old one goes on");
    run(&old.client, "COMMIT").await;
    single_waits.await.expect("task").0.expect("the single one goes on");
    run(&single.client, "COMMIT").await;
    assert_eq!(value(&old.client, "SELECT sum(v) FROM t").await, "4");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_over_several_shards_at_once() {
    let (herd, gateway) = three_shards().await;
    // Each session's second statement is one UPDATE that wants rows on all shards; one of them is autocommit.
    let old = Session::begin_with(&gateway, 9).await;
    let other = Session::open(&gateway).await;
    let other_waits = other.start("UPDATE t SET v = v + 1 WHERE k IN (1, 5, 9)".into());
    until_waiting(&herd, 1).await;
    let old_waits = old.start("UPDATE t SET v = v + 1 WHERE k IN (1, 5)".into());
    // The youngest gives way, and takes the shards in their order: it waits for the old one, as it would on one server.
    old_waits.await.expect("task").0.expect("the old one goes on");
    assert!(
        !other_waits.is_finished(),
        "it waits for the rows of a transaction that is open"
    );
    run(&old.client, "COMMIT").await;
    other_waits.await.expect("task").0.expect("and then it has them");
    assert_eq!(value(&other.client, "SELECT sum(v) FROM t").await, "6");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_wait_is_no_deadlock() {
    let (herd, gateway) = three_shards().await;
    let holder = Session::begin_with(&gateway, 1).await;
    holder.update(5).await;
    let waiter = Session::begin_with(&gateway, 9).await;
    let waits = waiter.start(update(1));
    until_waiting(&herd, 1).await;
    // Many looks long: whoever takes a wait for a circle, or a look for two, cancels it meanwhile.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!waits.is_finished(), "it still waits");
    assert_eq!(
        herd.sum_over_shards("SELECT count(*) FROM pg_locks WHERE NOT granted")
            .await
            .expect("locks"),
        1
    );
    run(&holder.client, "COMMIT").await;
    waits.await.expect("task").0.expect("it goes on");
    run(&waiter.client, "COMMIT").await;
    assert_eq!(value(&waiter.client, "SELECT sum(v) FROM t").await, "4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circle_on_one_shard_is_broken_by_postgresql() {
    let (herd, gateway) = three_shards().await;
    let old = Session::begin_with(&gateway, 1).await;
    let young = Session::begin_with(&gateway, 2).await;
    // Both have a second shard, which has nothing to do with it.
    old.update(5).await;
    young.update(9).await;
    let young_waits = young.start(update(1));
    until_waiting(&herd, 1).await;
    let old_waits = old.start(update(2));
    // Whose deadlock_timeout comes first gives way.
    let (of_young, of_old) = (young_waits.await.expect("task").0, old_waits.await.expect("task").0);
    let (told, winner) = match (of_young, of_old) {
        (Err(told), Ok(())) => (told, &old),
        (Ok(()), Err(told)) => (told, &young),
        neither => panic!("one gives way and the other goes on: {neither:?}"),
    };
    assert_eq!(told.code(), &SqlState::T_R_DEADLOCK_DETECTED, "{told:?}");
    let detail = told.detail().unwrap_or_default();
    assert!(!detail.contains("on shard"), "PostgreSQL's own words: {detail}");
    run(&winner.client, "COMMIT").await;
    assert_eq!(value(&winner.client, "SELECT sum(v) FROM t").await, "3");
}

/// On one server, the second of two statements that change the same rows waits for the first. Here they take the rows on several
/// shards at once, each in another order, and must not fail for that.
#[tokio::test(flavor = "multi_thread")]
async fn statements_that_change_the_same_rows_on_all_shards_wait_for_each_other() {
    const SESSIONS: usize = 3;
    const ROUNDS: usize = 4;
    let (herd, one) = three_shards().await;
    let two = herd.gateway("two").await.expect("gateway");
    let sessions = (0..SESSIONS).map(async |n| {
        let client = if n % 2 == 0 { &one } else { &two }.connect().await.expect("connect");
        for _ in 0..ROUNDS {
            run(&client, "UPDATE t SET v = v + 1 WHERE k IN (1, 5, 9)").await;
        }
    });
    futures::future::join_all(sessions).await;
    let client = one.connect().await.expect("connect");
    assert_eq!(
        value(&client, "SELECT min(v) || ' ' || max(v) FROM t WHERE k IN (1, 5, 9)").await,
        format!("{0} {0}", SESSIONS * ROUNDS)
    );
    assert!(one.stop().await && two.stop().await);
}
