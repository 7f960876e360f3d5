//! statement_timeout, lock_timeout, idle_in_transaction_session_timeout and idle_session_timeout.

use super::{LIMIT, Session, error, run, three_shards, until_waiting, update, value};
use bytes::Bytes;
use futures::{SinkExt, TryStreamExt};
use pgherd_testkit::herd::Gateway;
use std::time::{Duration, Instant};
use tokio_postgres::Client;
use tokio_postgres::error::DbError;

fn assert_statement_timeout(error: &DbError) {
    assert_eq!(
        (error.code().code(), error.message()),
        ("57014", "canceling statement due to statement timeout"),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_as_a_whole_has_one_time_limit() {
    let (herd, gateway) = three_shards().await;
    let client = gateway.connect().await.expect("connect");
    let holder = Session::begin_with(&gateway, 1).await;
    run(&client, "SET statement_timeout = '400ms'").await;
    // One shard, several shards, alone and in a block.
    for sql in [
        "UPDATE t SET v = 1 WHERE k = 1",
        "UPDATE t SET v = 1",
        "BEGIN; UPDATE t SET v = 1 WHERE k = 9; UPDATE t SET v = 1 WHERE k = 1",
        "INSERT INTO t SELECT k, 7 FROM t WHERE k IN (1, 9) ON CONFLICT (k) DO UPDATE SET v = 7",
        "SELECT k FROM t WHERE k IN (1, 9) AND pg_sleep(k * 0 + 5) IS NOT NULL",
        "SELECT count(*) FROM t WHERE pg_sleep(5) IS NOT NULL",
    ] {
        let begun = Instant::now();
        assert_statement_timeout(&error(&client, sql).await);
        assert!(begun.elapsed() >= Duration::from_millis(400), "{sql}");
        assert!(begun.elapsed() < Duration::from_secs(4), "{sql}: {:?}", begun.elapsed());
        run(&client, "ROLLBACK").await;
    }
    let begun = Instant::now();
    let copy = client.copy_out("COPY (SELECT k FROM t WHERE pg_sleep(5) IS NOT NULL) TO STDOUT");
    let told = match copy.await {
        Ok(rows) => rows.try_collect::<Vec<Bytes>>().await.map(|_| ()),
        Err(error) => Err(error),
    };
    let told = told.expect_err("too slow");
    assert_statement_timeout(told.as_db_error().expect("an error of the server"));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    // Two shards, each within its own limit, and together over it: gathered rows, one shard's after the other's.
    run(&client, "SET statement_timeout = '1s'").await;
    let gathered = "SELECT a.k, sum(a.v) OVER () FROM t a WHERE k IN (5, 9) AND pg_sleep(0.7) IS NOT NULL \
                    UNION ALL SELECT k, pg_sleep(0.9)::text::bigint FROM t WHERE k = 5";
    assert_statement_timeout(&error(&client, gathered).await);
    run(&holder.client, "ROLLBACK").await;
    assert_eq!(value(&client, "SELECT sum(v) FROM t").await, "0");
    assert_eq!(herd.prepared_transactions().await.expect("prepared"), 0);
    assert!(gateway.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits_come_from_anywhere_and_go_again() {
    let (_herd, gateway) = three_shards().await;
    let client = gateway.connect().await.expect("connect");
    let slow = "SELECT count(*) FROM t WHERE k IN (1, 9) AND pg_sleep(1) IS NOT NULL";
    run(&client, "BEGIN; SET LOCAL statement_timeout = '100ms'").await;
    assert_statement_timeout(&error(&client, slow).await);
    run(&client, "ROLLBACK").await;
    assert_eq!(value(&client, slow).await, "2");
    run(
        &client,
        "BEGIN; SAVEPOINT s; SET LOCAL statement_timeout = '100ms'; ROLLBACK TO s",
    )
    .await;
    assert_eq!(value(&client, slow).await, "2");
    run(&client, "SET LOCAL statement_timeout = '100ms'; COMMIT").await;
    assert_eq!(value(&client, slow).await, "2");
    run(&client, "SELECT set_config('statement_timeout', '100', false)").await;
    assert_statement_timeout(&error(&client, slow).await);
    run(&client, "RESET statement_timeout").await;
    assert_eq!(value(&client, slow).await, "2");
    run(
        &client,
        "CREATE ROLE hasty LOGIN; ALTER ROLE hasty SET statement_timeout = '100ms'; GRANT ALL ON t TO hasty",
    )
    .await;
    let hasty = connect_as(&gateway, "hasty").await;
    assert_statement_timeout(&error(&hasty, slow).await);
    run(&hasty, "SET statement_timeout = 0").await;
    assert_eq!(value(&hasty, slow).await, "2");
}

async fn connect_as(gateway: &Gateway, role: &str) -> Client {
    let (client, connection) = gateway
        .config()
        .user(role)
        .connect(tokio_postgres::NoTls)
        .await
        .expect("connect");
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_a_time_limit_and_a_commit_has_none() {
    let (herd, gateway) = three_shards().await;
    let client = gateway.connect().await.expect("connect");
    run(&client, "SET statement_timeout = '300ms'").await;
    let mut sink = Box::pin(client.copy_in::<_, Bytes>("COPY t FROM STDIN").await.expect("COPY"));
    sink.send(Bytes::from_static(b"11\t1\n-3\t1\n")).await.expect("rows");
    // The client says nothing more.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = sink.as_mut().finish().await.expect_err("too slow");
    assert_statement_timeout(told.as_db_error().expect("an error of the server"));
    drop(sink);
    run(&client, "RESET statement_timeout").await;
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, "9");
    // The commit waits longer than a statement may take: for somebody who holds its marker's table.
    for shard in herd.cluster().shards() {
        let other = shard.connect("postgres", "postgres").await.expect("connect");
        run(&other, "BEGIN; LOCK TABLE pgherd.dtx IN SHARE MODE").await;
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            run(&other, "ROLLBACK").await;
        });
    }
    run(&client, "SET statement_timeout = '500ms'").await;
    let begun = Instant::now();
    run(&client, "UPDATE t SET v = 5 WHERE k IN (1, 9)").await;
    assert!(begun.elapsed() > Duration::from_millis(600), "{:?}", begun.elapsed());
    assert_eq!(value(&client, "SELECT sum(v) FROM t").await, "10");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_a_lock_has_its_limit_on_every_shard() {
    let (herd, gateway) = three_shards().await;
    let holder = Session::begin_with(&gateway, 9).await;
    let client = gateway.connect().await.expect("connect");
    run(&client, "SET lock_timeout = '300ms'").await;
    for sql in [
        "UPDATE t SET v = 1 WHERE k IN (1, 5, 9)",
        "BEGIN; UPDATE t SET v = 1 WHERE k = 1; UPDATE t SET v = 1 WHERE k = 9",
        "BEGIN; SET LOCAL lock_timeout = '200ms'; UPDATE t SET v = 1 WHERE k = 1; UPDATE t SET v = 1 WHERE k = 9",
    ] {
        let told = error(&client, sql).await;
        assert_eq!(
            (told.code().code(), told.message()),
            ("55P03", "canceling statement due to lock timeout"),
            "{sql}"
        );
        run(&client, "ROLLBACK").await;
    }
    // Whose own limit is longer than the search for circles takes goes on waiting.
    let waiter = Session::begin_with(&gateway, 1).await;
    run(&waiter.client, "SET LOCAL lock_timeout = '30s'").await;
    let waits = waiter.start(update(9));
    until_waiting(&herd, 1).await;
    run(&holder.client, "COMMIT").await;
    waits.await.expect("task").0.expect("it goes on");
}

/// Waits for the session's end, and says how it ended.
async fn until_closed(client: &Client) -> Duration {
    let begun = Instant::now();
    while !client.is_closed() {
        assert!(begun.elapsed() < LIMIT, "the session goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_idle_in_a_transaction_are_ended() {
    let (herd, gateway) = three_shards().await;
    let watcher = gateway.connect().await.expect("connect");
    for block in [
        "BEGIN",
        "BEGIN; UPDATE t SET v = 1 WHERE k = 1",
        "BEGIN; UPDATE t SET v = 1 WHERE k = 1; UPDATE t SET v = 1 WHERE k = 9",
        "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '400ms'; UPDATE t SET v = 1 WHERE k = 9",
    ] {
        let (client, mut connection) = gateway.config().connect(tokio_postgres::NoTls).await.expect("connect");
        // An error outside of any statement comes to the connection.
        let ending = tokio::spawn(std::future::poll_fn(move |context| {
            loop {
                match std::task::ready!(connection.poll_message(context)) {
                    Some(Ok(_)) => continue,
                    other => return std::task::Poll::Ready(other),
                }
            }
        }));
        run(&client, "SET idle_in_transaction_session_timeout = '400ms'").await;
        // Not in a transaction: it may be idle.
        tokio::time::sleep(Duration::from_millis(600)).await;
        run(&client, block).await;
        until_closed(&client).await;
        let told = match ending.await.expect("task") {
            Some(Err(told)) => told,
            other => panic!("{block}: {:?}", other.map(|r| r.is_ok())),
        };
        let told = told.as_db_error().unwrap_or_else(|| panic!("{block}: {told:?}"));
        assert_eq!(
            (told.severity(), told.code().code(), told.message()),
            (
                "FATAL",
                "25P03",
                "terminating connection due to idle-in-transaction timeout"
            ),
            "{block}"
        );
        // Its locks are gone.
        run(&watcher, "SET lock_timeout = '5s'; UPDATE t SET v = 0").await;
    }
    assert_eq!(value(&watcher, "SELECT sum(v) FROM t").await, "0");
    // A shard that has nothing to do for long does not end a session that is busy on another one.
    let busy = gateway.connect().await.expect("connect");
    run(&busy, "SET idle_in_transaction_session_timeout = '1s'").await;
    run(&busy, "BEGIN; UPDATE t SET v = 1 WHERE k = 1").await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2500) {
        run(
            &busy,
            "UPDATE t SET v = v + 1 WHERE k = 9; SELECT pg_sleep(0.1) FROM t WHERE k = 9",
        )
        .await;
    }
    run(&busy, "UPDATE t SET v = 2 WHERE k = 1; COMMIT").await;
    assert_eq!(value(&watcher, "SELECT v FROM t WHERE k = 1").await, "2");
    run(&busy, "SET idle_session_timeout = '300ms'").await;
    until_closed(&busy).await;
    assert_eq!(herd.prepared_transactions().await.expect("prepared"), 0);
}
