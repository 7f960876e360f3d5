//! A schema change that a client leaves open locks its tables, and holds up nobody who does not name them.

use super::{Session, run, three_shards, two_gateways, until_waiting, value};
use std::time::{Duration, Instant};

/// Longer than a lease, which is six seconds.
const OPEN_FOR: Duration = Duration::from_secs(9);

#[tokio::test(flavor = "multi_thread")]
async fn an_open_change_stops_neither_other_changes_nor_the_gateway() {
    let (_herd, gateway) = three_shards().await;
    let client = gateway.connect().await.expect("connect");
    run(
        &client,
        "CREATE TABLE defaults (k int PRIMARY KEY, v text DEFAULT 'x') PARTITION BY RANGE (k);
         CREATE TABLE plain (k int PRIMARY KEY); CREATE TABLE log (k int);
         INSERT INTO defaults VALUES (1), (5), (9)",
    )
    .await;
    let changing = Session::open(&gateway).await;
    run(
        &changing.client,
        "BEGIN; ALTER TABLE defaults ADD COLUMN added int DEFAULT 1",
    )
    .await;
    // The catalog has the columns of all sharded tables, with their defaults.
    let begun = Instant::now();
    run(&client, "CREATE TABLE meanwhile (k int PRIMARY KEY)").await;
    assert_eq!(value(&client, "SELECT sum(v) FROM t").await, "0");
    run(&changing.client, "COMMIT").await;
    assert!(begun.elapsed() < OPEN_FOR, "{:?}", begun.elapsed());
    assert_eq!(value(&client, "SELECT sum(added) FROM defaults").await, "3");

    // It has the texts of views, of rules and of functions' bodies, too, and reads them again when another change commits.
    run(
        &client,
        "CREATE VIEW wide AS SELECT k, v FROM defaults;
         CREATE FUNCTION counted() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM plain; END;
         CREATE RULE logged AS ON UPDATE TO log DO ALSO INSERT INTO plain VALUES (NEW.k)",
    )
    .await;
    let other = Session::open(&gateway).await;
    run(&other.client, "BEGIN; CREATE TABLE one (k int PRIMARY KEY)").await;
    run(
        &changing.client,
        "BEGIN; ALTER TABLE defaults ADD COLUMN late int; ALTER TABLE plain ADD COLUMN late int; ALTER TABLE log ADD COLUMN late int",
    )
    .await;
    run(&other.client, "COMMIT").await;
    let begun = Instant::now();
    while begun.elapsed() < OPEN_FOR {
        assert_eq!(value(&client, "SELECT sum(v) FROM t").await, "0");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    run(&changing.client, "COMMIT").await;
    assert_eq!(value(&client, "SELECT count(*) FROM wide WHERE v = 'x'").await, "3");
    assert_eq!(value(&client, "SELECT counted()").await, "0");
    run(&client, "INSERT INTO log VALUES (7); UPDATE log SET k = 8").await;
    assert_eq!(value(&client, "SELECT counted()").await, "1");
    assert!(gateway.stop().await);
}

/// A statement waits for a lock, and finds behind it a table that was sharded, or made at all, when it had been told where its tables are.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_made_meanwhile_is_dropped_and_emptied_on_all_shards() {
    let (herd, gateway, other) = two_gateways().await;
    let client = gateway.connect().await.expect("connect");
    run(&client, "CREATE TABLE busy (k int)").await;
    let holder = other.connect().await.expect("connect");
    let make =
        "CREATE TABLE late (k int PRIMARY KEY) PARTITION BY RANGE (k); INSERT INTO late SELECT generate_series(1, 9)";
    let places = "SELECT count(*) FROM pg_class WHERE relname = 'late'";
    for (sql, in_block) in [
        ("DROP TABLE IF EXISTS busy, late CASCADE", false),
        ("DROP TABLE IF EXISTS busy, late", false),
        ("TRUNCATE busy, late", false),
        ("DROP TABLE IF EXISTS busy, late CASCADE", true),
    ] {
        run(&client, "CREATE TABLE IF NOT EXISTS busy (k int)").await;
        run(&client, "DROP TABLE IF EXISTS late").await;
        run(&holder, "BEGIN; LOCK TABLE busy").await;
        if in_block {
            run(&client, "BEGIN").await;
        }
        let changing = client.batch_execute(sql);
        let meanwhile = async {
            until_waiting(&herd, 1).await;
            let maker = other.connect().await.expect("connect");
            run(&maker, "SET pgherd.initial_bounds = 'int 3,7'").await;
            run(&maker, make).await;
            run(&holder, "COMMIT").await;
        };
        let (changed, ()) = tokio::join!(changing, meanwhile);
        if in_block {
            let code = changed.expect_err(sql).code().map(|code| code.code().to_owned());
            assert_eq!(code.as_deref(), Some("40001"), "{sql}");
            run(&client, "ROLLBACK").await;
            assert_eq!(value(&client, "SELECT count(*) FROM late").await, "9");
            run(&client, sql).await;
        } else {
            changed.expect(sql);
        }
        match sql.starts_with("DROP") {
            true => assert_eq!(herd.sum_over_shards(places).await.expect("asked"), 0, "{sql}"),
            false => assert_eq!(value(&client, "SELECT count(*) FROM late").await, "0", "{sql}"),
        }
    }
    assert!(gateway.stop().await);
    assert!(other.stop().await);
}
