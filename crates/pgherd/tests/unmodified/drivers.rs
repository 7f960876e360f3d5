//! Programs in Python, in `tests/python/`. Each also runs against plain PostgreSQL first, so that it is known to be right.

use super::{cluster, set_environment};
use pgherd_local_cluster::PlainServer;
use pgherd_testkit::herd;
use std::path::Path;
use tokio::process::Command;

/// Python with that package, or nothing, said clearly. The Python that `PGHERD_TEST_PYTHON` names must have it.
async fn python(package: &str) -> Option<String> {
    let named = std::env::var("PGHERD_TEST_PYTHON").ok();
    let python = named.clone().unwrap_or_else(|| "python3".into());
    let mut command = Command::new(&python);
    command.args(["-c", &format!("import {package}")]);
    match herd::run(&python, command).await {
        Ok(_) => Some(python),
        Err(error) if named.is_some() => panic!("{error}"),
        Err(error) => {
            eprintln!("NOT RUN: there is no Python with {package} (pip install {package}): {error}");
            None
        }
    }
}

/// `sharded`: tables that lie on all three shards when the script has ended.
async fn play(package: &str, script: &str, sharded: &[&str]) {
    let Some(python) = python(package).await else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let command = || {
        let mut command = Command::new(&python);
        command.arg(&script).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    };
    let plain = PlainServer::ephemeral_like_a_shard(true).await.expect("start");
    let mut reference = command();
    reference
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", plain.port().to_string());
    reference.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
    let expected = herd::run(&format!("{package} on PostgreSQL"), reference)
        .await
        .unwrap_or_else(|error| panic!("{error}"));

    let (_herd, gateway) = cluster().await;
    let mut ours = command();
    set_environment(&mut ours, &gateway);
    let found = herd::run(&format!("{package} on pgherd"), ours)
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", gateway.errors()));
    assert_eq!(found, expected, "{package} prints the same on both");
    let client = gateway.connect().await.expect("connect");
    for table in sharded {
        let sql = "SELECT count(DISTINCT shard) FROM pgherd.ranges WHERE \"table\" = $1";
        let shards: i64 = client.query_one(sql, &[table]).await.expect("ranges").get(0);
        assert_eq!(shards, 3, "{table}");
    }
    assert!(gateway.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg() {
    play("psycopg", "with_psycopg.py", &["customer", "purchase"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncpg() {
    play("asyncpg", "with_asyncpg.py", &["customer", "purchase"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncpg_with_types_of_users() {
    play("asyncpg", "with_user_types.py", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg_with_what_a_session_keeps() {
    play("psycopg", "with_session_state.py", &["words", "menu"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_in_unusual_orders() {
    play("socket", "with_messages.py", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_columns_are_of() {
    play("socket", "with_origins.py", &["a", "b"]).await;
}
