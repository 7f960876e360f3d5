//! SERIALIZABLE over shards, through two gateways: what must not happen does not, what cannot be made sure is refused, and
//! whoever may read may also read at this level. Keys 1, 5 and 9 of table `t` lie on three shards.

mod anomalies;
mod foreign_keys;
mod histories;
mod limits;
mod roles;
mod savepoints;
mod schema_changes;

use pgherd_testkit::herd::{Gateway, Herd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::error::DbError;
use tokio_postgres::{Client, SimpleQueryMessage};

const BEGIN: &str = "BEGIN ISOLATION LEVEL SERIALIZABLE";
/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
const TABLES: &str = "CREATE TABLE t (k int PRIMARY KEY, v int NOT NULL) PARTITION BY RANGE (k);
     INSERT INTO t SELECT n, 0 FROM generate_series(1, 9) n;
     CREATE TABLE near (k int PRIMARY KEY, v int NOT NULL); INSERT INTO near VALUES (1, 0), (2, 0)";

struct Bed {
    herd: Herd,
    gateways: [Gateway; 2],
}

impl Bed {
    /// Without any table.
    async fn bare() -> Self {
        let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3)
            .await
            .expect("three shards");
        let gateways = [
            herd.gateway("one").await.expect("gateway"),
            herd.gateway("two").await.expect("gateway"),
        ];
        Self { herd, gateways }
    }

    async fn start() -> Self {
        let bed = Self::bare().await;
        let client = bed.client(0).await;
        run(&client, "SET pgherd.initial_bounds = 'int 3,7'").await;
        run(&client, TABLES).await;
        bed
    }

    async fn client(&self, number: usize) -> Arc<Client> {
        let client = self.gateways[number % 2].connect().await.expect("connect");
        Arc::new(client)
    }

    /// Waits until so many sessions wait for a lock.
    async fn until_waiting(&self, sessions: i64, what: &str) {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        let begun = Instant::now();
        loop {
            let found = self.herd.sum_over_shards(waiting).await.expect("pg_locks");
            if found == sessions {
                return;
            }
            assert!(
                begun.elapsed() < LIMIT,
                "{what}: {sessions} sessions never waited, but {found}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(self) {
        for gateway in self.gateways {
            assert!(gateway.stop().await, "the gateway did not end well");
        }
        self.herd.stop().await;
    }
}

/// The first column of the last result's rows, joined by commas.
async fn ask(client: &Client, sql: &str) -> Result<String, DbError> {
    let messages = match client.simple_query(sql).await {
        Ok(messages) => messages,
        Err(error) => {
            return Err(error
                .as_db_error()
                .unwrap_or_else(|| panic!("{sql}: {error:?}"))
                .clone());
        }
    };
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    });
    Ok(rows.collect::<Vec<_>>().join(","))
}

async fn run(client: &Client, sql: &str) -> String {
    ask(client, sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

/// The SQLSTATE.
async fn refused(client: &Client, sql: &str) -> String {
    match ask(client, sql).await {
        Ok(answer) => panic!("{sql}: succeeded with {answer}"),
        Err(error) => error.code().code().to_owned(),
    }
}

/// A statement that may wait while the test goes on.
fn spawn(client: &Arc<Client>, sql: &str) -> JoinHandle<Result<String, DbError>> {
    let (client, sql) = (client.clone(), sql.to_owned());
    tokio::spawn(async move { ask(&client, &sql).await })
}

async fn ended(task: JoinHandle<Result<String, DbError>>) -> Result<String, DbError> {
    let task = tokio::time::timeout(LIMIT, task).await.expect("it never ended");
    task.expect("the task")
}
