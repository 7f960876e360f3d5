//! What a shard is sent when a client's statements belong to it alone: what plain PostgreSQL would have got, read from the shard's
//! own log. What a commit over two shards costs is counted in the transaction room's `tests/price.rs`.

use pgherd_testkit::herd::Herd;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

async fn run(client: &Client, sql: &str) {
    let done = client.simple_query(sql).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// The statements that the role `app` ran, from this many bytes of the log on.
fn statements(log: &Path, from: usize) -> Vec<String> {
    let log = std::fs::read(log).expect("the log");
    let log = String::from_utf8_lossy(&log[from..]).into_owned();
    let ours = log.lines().filter(|line| line.contains(" app@postgres "));
    ours.filter_map(|line| Some(line.split_once("LOG:  statement: ")?.1.to_owned()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_shard_gets_what_the_client_said() {
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 2)
        .await
        .expect("shards");
    for shard in herd.cluster().shards() {
        let client = shard.connect("postgres", "postgres").await.expect("connect");
        run(&client, "ALTER SYSTEM SET log_statement = 'all'").await;
        run(&client, "SELECT pg_reload_conf()").await;
    }
    let gateway = herd.gateway("one").await.expect("gateway");
    let owner = gateway.connect().await.expect("connect");
    for sql in [
        "CREATE ROLE app LOGIN",
        "CREATE TABLE local (k int PRIMARY KEY, v int)",
        "SET pgherd.initial_bounds = 'int 100'",
        "CREATE TABLE ranged (k int PRIMARY KEY, v int) PARTITION BY RANGE (k)",
        "INSERT INTO local VALUES (1, 0)",
        "INSERT INTO ranged VALUES (1, 0), (200, 0)",
        "GRANT ALL ON local, ranged TO app",
    ] {
        run(&owner, sql).await;
    }
    let (client, connection) = gateway
        .config()
        .user("app")
        .connect(tokio_postgres::NoTls)
        .await
        .expect("connect");
    tokio::spawn(connection);
    let logs: Vec<_> = herd.cluster().shards().iter().map(|shard| shard.log_path()).collect();
    for table in ["local", "ranged"] {
        let said = [
            format!("SELECT v FROM {table} WHERE k BETWEEN 1 AND 2"),
            format!("UPDATE {table} SET v = v + 1 WHERE k BETWEEN 1 AND 2"),
            "BEGIN".to_string(),
            format!("UPDATE {table} SET v = v + 1 WHERE k BETWEEN 1 AND 2"),
            format!("SELECT v FROM {table} WHERE k BETWEEN 1 AND 2 FOR UPDATE"),
            "COMMIT".to_string(),
        ];
        // The first time, connections are made and tables are looked up.
        for sql in &said {
            run(&client, sql).await;
        }
        let from: Vec<usize> = logs
            .iter()
            .map(|log| std::fs::read(log).expect("the log").len())
            .collect();
        for sql in &said {
            run(&client, sql).await;
        }
        let begun = Instant::now();
        let got = loop {
            let got = statements(&logs[0], from[0]);
            if got.last().is_some_and(|last| last == "COMMIT") {
                break got;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{got:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        // A range is called by its own name.
        let called = match table {
            "local" => "local",
            _ => "\"pgherd_data\".\"t1_r1\" AS \"ranged\"",
        };
        let expected: Vec<_> = said.iter().map(|sql| sql.replace(table, called)).collect();
        assert_eq!(got, expected);
        assert_eq!(statements(&logs[1], from[1]), Vec::<String>::new(), "the other shard");
    }
    assert!(gateway.stop().await);
}
