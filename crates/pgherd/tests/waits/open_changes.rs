//! A schema change that a client leaves open locks its tables, and holds up nobody who does not name them.

use super::{Session, run, three_shards, value};
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
