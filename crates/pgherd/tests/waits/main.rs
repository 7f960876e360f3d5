//! Waits over several shards: circles are found and broken in time, and nothing else is; time limits hold for a statement
//! and a session as a whole. Keys 1, 5 and 9 of table `t` lie on three shards.

mod changes_meet;
mod circles;
mod limits;
mod open_changes;

use pgherd_testkit::herd::{Gateway, Herd};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::error::DbError;
use tokio_postgres::{Client, SimpleQueryMessage};

/// How long anything may take. A circle is broken within two seconds on an idle machine; these tests may share theirs.
const LIMIT: Duration = Duration::from_secs(10);

/// Three shards, a gateway, and table `t` with a row for each of the keys 1 to 9.
async fn three_shards() -> (Herd, Gateway) {
    let (herd, gateway) = Herd::with_gateway(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3, "one")
        .await
        .expect("a cluster");
    let client = gateway.connect().await.expect("connect");
    run(&client, "SET pgherd.initial_bounds = 'int 3,7'").await;
    run(
        &client,
        "CREATE TABLE t (k int PRIMARY KEY, v int NOT NULL) PARTITION BY RANGE (k);
         INSERT INTO t SELECT n, 0 FROM generate_series(1, 9) n",
    )
    .await;
    let shards = value(
        &client,
        "SELECT count(DISTINCT shard) FROM pgherd.ranges WHERE \"table\" = 't'",
    )
    .await;
    assert_eq!(shards, "3");
    (herd, gateway)
}

/// The same with a second gateway.
async fn two_gateways() -> (Herd, Gateway, Gateway) {
    let (herd, gateway) = three_shards().await;
    let other = herd.gateway("other").await.expect("a gateway");
    (herd, gateway, other)
}

async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!("{sql}: {error:?}");
    }
}

/// One value, as text.
async fn value(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await;
    let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_string()),
        _ => None,
    });
    row.unwrap_or_else(|| panic!("{sql}: no row"))
}

async fn error(client: &Client, sql: &str) -> DbError {
    match client.batch_execute(sql).await {
        Ok(()) => panic!("{sql}: succeeded"),
        Err(error) => error
            .as_db_error()
            .unwrap_or_else(|| panic!("{sql}: {error:?}"))
            .clone(),
    }
}

/// A session that is told what to do, and may wait while the test goes on.
struct Session {
    client: std::sync::Arc<Client>,
}

type Outcome = (Result<(), DbError>, Instant);

impl Session {
    async fn open(gateway: &Gateway) -> Self {
        let client = gateway.connect().await.expect("connect");
        Self { client: client.into() }
    }

    /// Begins, and writes the row.
    async fn begin_with(gateway: &Gateway, key: i32) -> Self {
        let this = Self::open(gateway).await;
        run(&this.client, "BEGIN").await;
        this.update(key).await;
        this
    }

    async fn update(&self, key: i32) {
        run(&self.client, &update(key)).await;
    }

    /// Starts a statement; what became of it, and when.
    fn start(&self, sql: String) -> JoinHandle<Outcome> {
        let client = self.client.clone();
        tokio::spawn(async move {
            let done = client.batch_execute(&sql).await;
            let done = done.map_err(|e| e.as_db_error().unwrap_or_else(|| panic!("{sql}: {e:?}")).clone());
            (done, Instant::now())
        })
    }
}

fn update(key: i32) -> String {
    format!("UPDATE t SET v = v + 1 WHERE k = {key}")
}

/// Waits until so many backends wait for a lock on the shards together.
async fn until_waiting(herd: &Herd, count: i64) {
    let begun = Instant::now();
    let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    while herd.sum_over_shards(sql).await.expect("locks") < count {
        assert!(begun.elapsed() < LIMIT, "fewer than {count} wait");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
