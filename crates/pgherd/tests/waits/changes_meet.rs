//! Schema changes beside each other: what PostgreSQL does with the second one, and all shards the same afterwards.

use super::{Session, run, three_shards, two_gateways, value};
use std::time::Duration;

/// As long as the second change is let wait for the first one, unless it ends before.
const BESIDE: Duration = Duration::from_millis(300);

/// The first change is open when the second one begins, and commits. It is told of a table that is another one, or none, when its turn comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_waited_takes_what_is_there_then() {
    let (herd, gateway, other) = two_gateways().await;
    let client = gateway.connect().await.expect("connect");
    let missing = Err("42P01: relation \"a\" does not exist");
    for (first, second, expected) in [
        ("DROP TABLE a CASCADE", "TRUNCATE a", missing),
        ("DROP TABLE a CASCADE", "ALTER TABLE a ADD UNIQUE (k, v)", missing),
        ("DROP TABLE a CASCADE", "ALTER TABLE a SET SCHEMA elsewhere", missing),
        ("DROP TABLE a CASCADE", "CREATE INDEX ON a (v)", missing),
        ("ALTER TABLE a RENAME TO z", "TRUNCATE a", missing),
        // Nobody waits for a view that is being dropped.
        ("DROP TABLE a CASCADE", "DROP TABLE IF EXISTS c", Ok(())),
        // It becomes local.
        ("ALTER TABLE a ADD UNIQUE (v)", "ALTER INDEX ia RENAME TO ib", Ok(())),
        ("ALTER TABLE a ADD UNIQUE (v)", "ALTER TABLE a RENAME TO z", Ok(())),
        (
            "ALTER TABLE a ADD UNIQUE (v)",
            "ALTER TABLE a ENABLE ROW LEVEL SECURITY",
            Ok(()),
        ),
        ("ALTER TABLE a ADD COLUMN n int", "TRUNCATE a, b", Ok(())),
    ] {
        let pair = format!("{first}; {second}");
        run(
            &client,
            "SET client_min_messages = error; DROP SCHEMA IF EXISTS meet, elsewhere CASCADE; CREATE SCHEMA meet; CREATE SCHEMA elsewhere;
             SET search_path = meet; SET pgherd.default_distribution = 'primary_key'; SET pgherd.initial_bounds = 'int 3,7';
             CREATE TABLE a (k int PRIMARY KEY, v int); CREATE TABLE b (k int PRIMARY KEY); CREATE TABLE c (k int PRIMARY KEY);
             CREATE INDEX ia ON a (v); CREATE VIEW va AS SELECT k, v FROM a; INSERT INTO a SELECT n, n FROM generate_series(1, 9) n",
        )
        .await;
        let (changing, waiting) = (Session::open(&gateway).await, Session::open(&other).await);
        for session in [&changing, &waiting] {
            run(
                &session.client,
                "SET search_path = meet; SET client_min_messages = error",
            )
            .await;
        }
        run(&changing.client, &format!("BEGIN; {first}")).await;
        let beside = waiting.start(second.to_owned());
        tokio::time::sleep(BESIDE).await;
        run(&changing.client, "COMMIT").await;
        let (done, _) = beside.await.expect("joined");
        let done = done.map_err(|e| format!("{}: {}", e.code().code(), e.message()));
        assert_eq!(done.as_ref().copied().map_err(String::as_str), expected, "{pair}");
        if first.contains("ADD COLUMN") {
            // What the view reads was being changed when the catalog was read last.
            assert_eq!(value(&waiting.client, "SELECT count(*) FROM va").await, "0", "{pair}");
        }
        // What is sharded is on all shards, and so is the view of it; that of a local table is on the home shard.
        let found = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                     WHERE nspname = 'meet' AND (relkind = 'p' OR relname = 'va')";
        let found = herd.sum_over_shards(found).await.expect("asked");
        let (sharded, of_views) = match first {
            "DROP TABLE a CASCADE" => (2, 0),
            "ALTER TABLE a ADD UNIQUE (v)" => (2, 1),
            _ => (3, 3),
        };
        let dropped = i64::from(second.starts_with("DROP"));
        assert_eq!(found, 3 * (sharded - dropped) + of_views, "{pair}");
    }
    assert!(gateway.stop().await);
    assert!(other.stop().await);
}

/// A view whose text somebody changes, or might, when the catalog is read is waited for, as in PostgreSQL.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_over_what_is_changed_is_waited_for() {
    let (_herd, gateway) = three_shards().await;
    let client = gateway.connect().await.expect("connect");
    run(&client, "CREATE VIEW shown AS SELECT k, v FROM t").await;
    let (changing, holding) = (Session::open(&gateway).await, Session::open(&gateway).await);
    run(&changing.client, "BEGIN; ALTER TABLE t ADD COLUMN n int").await;
    run(&holding.client, "BEGIN").await;
    let beside = holding.start("TRUNCATE t".to_owned());
    tokio::time::sleep(BESIDE).await;
    run(&changing.client, "COMMIT").await;
    beside.await.expect("joined").0.expect("truncated");
    // The gateway has read the new catalog by then, but for this view's text.
    let reader = Session::open(&gateway).await;
    for (setting, code) in [("statement_timeout", "57014"), ("lock_timeout", "55P03")] {
        run(&reader.client, &format!("SET {setting} = '300ms'")).await;
        let refused = super::error(&reader.client, "SELECT FROM shown").await;
        assert_eq!(refused.code().code(), code, "{refused:?}");
        run(&reader.client, &format!("RESET {setting}")).await;
    }
    let cancelled = reader.start("SELECT FROM shown".to_owned());
    tokio::time::sleep(BESIDE).await;
    let token = reader.client.cancel_token();
    token.cancel_query(tokio_postgres::NoTls).await.expect("asked");
    let refused = cancelled.await.expect("joined").0.expect_err("cancelled");
    assert_eq!(refused.message(), "canceling statement due to user request");
    let waiting = reader.start("SELECT FROM shown".to_owned());
    tokio::time::sleep(BESIDE).await;
    assert!(!waiting.is_finished());
    run(&holding.client, "ROLLBACK").await;
    waiting.await.expect("joined").0.expect("read");
    assert_eq!(value(&client, "SELECT count(*) FROM shown").await, "9");
    assert!(gateway.stop().await);
}

/// Each session's views come to all shards, whoever else makes some at that moment.
#[tokio::test(flavor = "multi_thread")]
async fn views_are_made_side_by_side() {
    let (herd, gateway, other) = two_gateways().await;
    let mut sessions = Vec::new();
    for number in 0..4 {
        let gateway = if number % 2 == 0 { &gateway } else { &other };
        let client = gateway.connect().await.expect("connect");
        sessions.push(tokio::spawn(async move {
            for view in 0..6 {
                run(
                    &client,
                    &format!("CREATE VIEW made_{number}_{view} AS SELECT k, v FROM t"),
                )
                .await;
                if view % 3 == 2 {
                    run(&client, &format!("DROP VIEW made_{number}_{}", view - 1)).await;
                }
            }
        }));
    }
    for session in sessions {
        session.await.expect("no view failed");
    }
    let views = "SELECT count(*) FROM pg_class WHERE relkind = 'v' AND relname LIKE 'made%'";
    assert_eq!(herd.sum_over_shards(views).await.expect("asked"), 3 * 16);
    let client = gateway.connect().await.expect("connect");
    for number in 0..4 {
        let sql = format!("SELECT sum(k) FROM made_{number}_5");
        assert_eq!(value(&client, &sql).await, "45");
    }
    assert!(gateway.stop().await);
    assert!(other.stop().await);
}
