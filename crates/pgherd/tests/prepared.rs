//! A client's own PREPARE TRANSACTION while gateways are killed: another gateway finishes what was decided, rolls back what was
//! never told to a client, and leaves alone what clients have prepared. Keys 0, 100 and 200 lie on three shards.

use pgherd_testkit::herd::{Gateway, Herd};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, SimpleQueryMessage};

/// A dead gateway's lease must be over before others touch what it was at.
const LIMIT: Duration = Duration::from_secs(40);
const WORKERS: i32 = 7;

async fn three_shards() -> (Herd, Gateway, Gateway) {
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3)
        .await
        .expect("three shards");
    let dies = herd.gateway("dies").await.expect("gateway");
    let lives = herd.gateway("lives").await.expect("gateway");
    let client = lives.connect().await.expect("connect");
    run(&client, "SET pgherd.initial_bounds = 'int 100,200'").await;
    run(
        &client,
        "CREATE TABLE account (k int PRIMARY KEY, v int NOT NULL) PARTITION BY RANGE (k);
         INSERT INTO account SELECT n, 100 FROM generate_series(0, 299) n;
         CREATE TABLE ledger (k int, n int, PRIMARY KEY (k, n)) PARTITION BY RANGE (k)",
    )
    .await;
    (herd, dies, lives)
}

async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!("{sql}: {error:?}");
    }
}

/// The first column.
async fn values(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await;
    let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_string()),
        _ => None,
    });
    rows.collect()
}

/// Between two rows that only this worker uses; of one that stays prepared, just its mark in the ledger.
fn transfer(n: i32, name: &str) -> String {
    let [from, to] = [n % 3, (n + 1) % 3].map(|place| 100 * place + n % WORKERS);
    let money = match stays(n) {
        true => String::new(),
        false => format!("UPDATE account SET v = v - 1 WHERE k = {from}; UPDATE account SET v = v + 1 WHERE k = {to};"),
    };
    format!("BEGIN; {money} INSERT INTO ledger VALUES ({from}, {n}), ({to}, {n}); PREPARE TRANSACTION '{name}'")
}

fn stays(n: i32) -> bool {
    n % 10 == 3 && n < 60
}

/// Waits until nothing is under way any more: what is prepared is known, and is its client's.
async fn until_quiet(herd: &Herd) {
    let begun = Instant::now();
    let home = herd
        .cluster()
        .shard(1)
        .connect("postgres", "postgres")
        .await
        .expect("home");
    loop {
        let sql = "SELECT count(*) FROM pgherd.client_transaction WHERE state <> 'prepared'";
        let under_way: i64 = home.query_one(sql, &[]).await.expect("rows").get(0);
        let gids = "SELECT gid FROM pgherd.client_transaction";
        let known = home.query(gids, &[]).await.expect("rows");
        let known: BTreeSet<String> = known.iter().map(|r| r.get(0)).collect();
        let mut strays = 0;
        for shard in herd.cluster().shards() {
            let client = shard.connect("postgres", "postgres").await.expect("connect");
            let there = client
                .query("SELECT gid FROM pg_prepared_xacts", &[])
                .await
                .expect("gids");
            strays += there.iter().filter(|r| !known.contains(r.get::<_, &str>(0))).count();
        }
        if under_way == 0 && strays == 0 {
            return;
        }
        assert!(
            begun.elapsed() < LIMIT,
            "{under_way} are under way, {strays} belong to nobody"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_killed_between_two_prepares() {
    let (herd, dies, lives) = three_shards().await;
    // The last shard can read markers and not write its own, and so does not prepare.
    let shard = herd
        .cluster()
        .shard(3)
        .connect("postgres", "postgres")
        .await
        .expect("connect");
    run(&shard, "BEGIN; LOCK TABLE pgherd.dtx IN SHARE MODE").await;
    let client = dies.connect().await.expect("connect");
    let preparing = tokio::spawn(async move {
        client
            .batch_execute("BEGIN; UPDATE account SET v = v + 1; PREPARE TRANSACTION 'half'")
            .await
    });
    let begun = Instant::now();
    while herd.prepared_transactions().await.expect("count") < 2 {
        assert!(begun.elapsed() < LIMIT, "two shards do not prepare");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    dies.kill().await;
    assert!(preparing.await.expect("task").is_err());
    run(&shard, "COMMIT").await;
    let client = lives.connect().await.expect("connect");
    // It was never told to a client, so it never was.
    assert!(values(&client, "SELECT gid FROM pg_prepared_xacts").await.is_empty());
    until_quiet(&herd).await;
    assert_eq!(herd.prepared_transactions().await.expect("count"), 0);
    assert_eq!(values(&client, "SELECT sum(v) FROM account").await, ["30000"]);
    run(&client, &transfer(0, "half")).await;
    assert_eq!(values(&client, "SELECT gid FROM pg_prepared_xacts").await, ["half"]);
    run(&client, "COMMIT PREPARED 'half'").await;
    assert!(lives.stop().await);
}

/// What a client that transfers again and again was told.
#[derive(Default)]
struct Told {
    prepared: BTreeSet<i32>,
    committed: BTreeSet<i32>,
}

/// One transfer after the other until the gateway is gone; some stay prepared.
async fn keep_transferring(client: Client, worker: i32, told: Arc<Mutex<Told>>) {
    for n in (worker..).step_by(WORKERS as usize) {
        let name = format!("transfer {n}");
        match client.batch_execute(&transfer(n, &name)).await {
            Ok(()) => {
                told.lock().expect("told").prepared.insert(n);
            }
            Err(error) if error.as_db_error().is_some() => panic!("{n}: {error:?}"),
            Err(_) => return,
        }
        if stays(n) {
            continue;
        }
        if client
            .batch_execute(&format!("COMMIT PREPARED '{name}'"))
            .await
            .is_err()
        {
            return;
        }
        told.lock().expect("told").committed.insert(n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_gateway_keeps_what_was_told() {
    let (herd, dies, lives) = three_shards().await;
    let told = Arc::new(Mutex::new(Told::default()));
    let mut workers = Vec::new();
    for worker in 0..WORKERS {
        let client = dies.connect().await.expect("connect");
        workers.push(tokio::spawn(keep_transferring(client, worker, told.clone())));
    }
    let begun = Instant::now();
    while told.lock().expect("told").prepared.is_empty() || begun.elapsed() < Duration::from_secs(2) {
        assert!(begun.elapsed() < LIMIT, "nothing was prepared");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    dies.kill().await;
    for worker in workers {
        worker.await.expect("worker");
    }
    until_quiet(&herd).await;

    let client = lives.connect().await.expect("connect");
    let left = values(&client, "SELECT gid FROM pg_prepared_xacts").await;
    let number = |name: &String| {
        name.strip_prefix("transfer ")
            .and_then(|n| n.parse::<i32>().ok())
            .expect("ours")
    };
    let left: BTreeSet<i32> = left.iter().map(number).collect();
    let (mut committed, prepared) = {
        let told = told.lock().expect("told");
        (told.committed.clone(), told.prepared.clone())
    };
    let lost: Vec<_> = committed.intersection(&left).collect();
    assert!(lost.is_empty(), "committed, and still prepared: {lost:?}");
    for n in &left {
        let how = if n % 2 == 0 { "COMMIT" } else { "ROLLBACK" };
        run(&client, &format!("{how} PREPARED 'transfer {n}'")).await;
        if n % 2 == 0 {
            committed.insert(*n);
        }
    }
    assert_eq!(herd.prepared_transactions().await.expect("count"), 0);
    assert_eq!(values(&client, "SELECT sum(v) FROM account").await, ["30000"]);
    let rows = values(&client, "SELECT n FROM ledger").await;
    let mut found = BTreeSet::new();
    for n in &rows {
        found.insert(n.parse::<i32>().expect("a number"));
    }
    assert_eq!(rows.len(), 2 * found.len(), "both halves of each");
    assert!(committed.is_subset(&found), "{committed:?} {found:?}");
    let invented: Vec<_> = found.iter().filter(|n| left.contains(n) && *n % 2 == 1).collect();
    assert!(invented.is_empty(), "rolled back, and there: {invented:?}");
    // What was prepared is there, was rolled back here, or was committed by a statement that nobody got an answer to.
    for n in prepared {
        assert!(found.contains(&n) || left.contains(&n), "{n} was prepared and is lost");
    }
    eprintln!("{} committed, {} left prepared", committed.len(), left.len());
    assert!(lives.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_prepared_outlives_everything() {
    let (herd, dies, lives) = three_shards().await;
    let client = dies.connect().await.expect("connect");
    run(&client, &transfer(1, "stays")).await;
    assert!(dies.stop().await, "a gateway that is told to stop does not wait for it");
    lives.kill().await;
    for shard in 1..=3 {
        herd.cluster().kill_shard(shard).await;
    }
    for shard in 1..=3 {
        herd.cluster().restart_shard(shard).await.expect("restart");
    }
    let gateway = herd.gateway("other").await.expect("gateway");
    let client = gateway.connect().await.expect("connect");
    let name = "SELECT gid || ' of ' || owner || ' in ' || database FROM pg_prepared_xacts";
    assert_eq!(values(&client, name).await, ["stays of postgres in postgres"]);
    let begun = Instant::now();
    run(&client, "UPDATE account SET v = v + 1 WHERE k IN (50, 150, 250)").await;
    assert!(begun.elapsed() < Duration::from_secs(8), "the shards wait for nothing");
    // The cluster's own name for it is not the client's.
    let home = herd
        .cluster()
        .shard(1)
        .connect("postgres", "postgres")
        .await
        .expect("home");
    let gid: String = home
        .query_one("SELECT gid FROM pgherd.client_transaction", &[])
        .await
        .expect("row")
        .get(0);
    for sql in [format!("COMMIT PREPARED '{gid}'"), format!("ROLLBACK PREPARED '{gid}'")] {
        let error = client.batch_execute(&sql).await.expect_err("refused");
        assert_eq!(error.code().map(|c| c.code()), Some("42704"));
    }
    let sly = format!("COMMIT PREPARED U&'!{:04x}{}' UESCAPE '!'", 'p' as u32, &gid[1..]);
    let error = client.batch_execute(&sly).await.expect_err("refused");
    assert_eq!(error.code().map(|c| c.code()), Some("0A000"));
    run(&client, "COMMIT PREPARED 'stays'").await;
    assert_eq!(values(&client, "SELECT count(*) FROM ledger").await, ["2"]);
    assert!(gateway.stop().await);
}
