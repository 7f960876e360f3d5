//! READ COMMITTED over several shards through two gateways: statements of one transaction do not go back in time, and a statement
//! that copies rows on every shard copies those of one moment.

use pgherd_testkit::herd::{Gateway, Herd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

const TABLE: &str = "SET pgherd.default_distribution = 'primary_key'; SET pgherd.initial_bounds = 'int 10,20'; \
    CREATE TABLE version (k int PRIMARY KEY, n int NOT NULL, t text); \
    INSERT INTO version VALUES (5, 0, 'a'), (15, 0, 'a'), (25, 0, 'a')";

async fn connect(gateway: &Gateway) -> Client {
    let address = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", gateway.port());
    let (client, connection) = tokio_postgres::connect(&address, NoTls).await.expect("a connection");
    tokio::spawn(connection);
    client
}

/// All rows are counted up together. Each reader goes from shard to shard, in every kind of statement.
#[tokio::test(flavor = "multi_thread")]
async fn readers_go_forward_from_shard_to_shard() {
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3)
        .await
        .expect("three shards");
    let gateways = [
        herd.gateway("one").await.expect("gateway"),
        herd.gateway("two").await.expect("gateway"),
    ];
    connect(&gateways[0]).await.batch_execute(TABLE).await.expect(TABLE);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (client, stop) = (connect(&gateways[0]).await, stop.clone());
        async move {
            let mut commits = 0;
            while !stop.load(Ordering::Relaxed) {
                let sql = "BEGIN; UPDATE version SET n = n + 1 WHERE k = 5; UPDATE version SET n = n + 1 WHERE k = 15; \
                           UPDATE version SET n = n + 1 WHERE k = 25; COMMIT";
                client.batch_execute(sql).await.expect("a commit");
                commits += 1;
            }
            commits
        }
    });
    let mut readers = Vec::new();
    for gateway in &gateways {
        let (client, stop) = (connect(gateway).await, stop.clone());
        readers.push(tokio::spawn(async move {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                client.batch_execute("BEGIN").await.expect("BEGIN");
                let mut last = 0;
                for (sql, k) in [
                    ("SELECT n FROM version WHERE k = $1", 5),
                    ("SELECT n FROM version WHERE k = $1", 15),
                    ("SELECT min(n) FROM version WHERE k <> $1 AND k > 10", 1),
                    ("SELECT n FROM version WHERE k = $1", 5),
                    ("SELECT min(n) FROM version WHERE k > $1", 10),
                    ("SELECT n FROM version WHERE k = $1", 25),
                ] {
                    let n: i32 = client.query_one(sql, &[&k]).await.expect(sql).get(0);
                    assert!(n >= last, "{sql} ({k}): {n} after {last}");
                    last = n;
                }
                // A write by a whole key that finds nothing has looked too early.
                let blind = "UPDATE version SET t = 'b' WHERE k = 15 AND n >= $1";
                let found = client.execute(blind, &[&last]).await.expect(blind);
                assert_eq!(found, 1, "{blind} ({last})");
                client.batch_execute("ROLLBACK").await.expect("ROLLBACK");
                rounds += 1;
            }
            rounds
        }));
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    stop.store(true, Ordering::Relaxed);
    let commits: u32 = writer.await.expect("the writer");
    let mut rounds: u32 = 0;
    for reader in readers {
        rounds += reader.await.expect("a reader");
    }
    eprintln!("{commits} commits, {rounds} rounds");
    assert!(commits > 5 && rounds > 5);
    for gateway in gateways {
        gateway.stop().await;
    }
    herd.stop().await;
}

/// Every shard copies its own rows, while money goes from one shard to another: the copies are of one moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rows_that_every_shard_copies_are_of_one_moment() {
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3)
        .await
        .expect("herd");
    let gateways = [
        herd.gateway("one").await.expect("one"),
        herd.gateway("two").await.expect("two"),
    ];
    let setup = connect(&gateways[0]).await;
    setup
        .batch_execute(
            "SET pgherd.default_distribution = primary_key; SET pgherd.initial_bounds = 'int 10,20';
             CREATE TABLE account (k int PRIMARY KEY, balance int);
             CREATE TABLE copied (k int PRIMARY KEY, balance int);
             INSERT INTO account VALUES (5, 100), (15, 100), (25, 100)",
        )
        .await
        .expect("tables");
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for gateway in &gateways {
        let (client, stop) = (connect(gateway).await, stop.clone());
        writers.push(tokio::spawn(async move {
            let mut commits = 0;
            while !stop.load(Ordering::Relaxed) {
                let (from, to) = [(5, 15), (5, 25), (15, 25), (5, 15)][commits as usize % 4];
                let sql = format!(
                    "BEGIN; UPDATE account SET balance = balance - 1 WHERE k = {from};
                     UPDATE account SET balance = balance + 1 WHERE k = {to}; COMMIT"
                );
                client.batch_execute(&sql).await.expect("a transfer");
                commits += 1;
            }
            commits
        }));
    }
    let (mut copies, end) = (0, Instant::now() + Duration::from_secs(4));
    while Instant::now() < end {
        let sql = match copies % 2 {
            0 => "INSERT INTO copied SELECT * FROM account",
            _ => {
                "MERGE INTO copied c USING account a ON a.k = c.k WHEN MATCHED THEN DELETE \
                 WHEN NOT MATCHED THEN INSERT VALUES (a.k, a.balance)"
            }
        };
        assert_eq!(setup.execute(sql, &[]).await.expect(sql), 3);
        let sum: i64 = setup
            .query_one("SELECT sum(balance) FROM copied", &[])
            .await
            .expect("sum")
            .get(0);
        assert_eq!(sum, 300, "copy {copies}");
        setup.batch_execute("DELETE FROM copied").await.expect("DELETE");
        copies += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let mut commits: u32 = 0;
    for writer in writers {
        commits += writer.await.expect("a writer");
    }
    eprintln!("{commits} commits, {copies} copies");
    assert!(commits > 5 && copies > 5);
    for gateway in gateways {
        gateway.stop().await;
    }
    herd.stop().await;
}
