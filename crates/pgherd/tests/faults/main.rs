//! What clients see while gateways and shards die, pause or are sent nonsense.

mod bad_input;
mod foreign_keys;
mod killed_gateway;
mod lost_shard;
mod matrix;
mod schema_change;

use pgherd_testkit::herd::Herd;
use std::path::Path;
use tokio_postgres::Client;

/// Three shards, and nothing that runs on them yet.
async fn three_shards() -> Herd {
    Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3)
        .await
        .expect("three shards")
}

/// One value, as text.
async fn value(client: &Client, sql: &str) -> String {
    for message in client
        .simple_query(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {}", say(&error)))
    {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            return row.get(0).unwrap_or("NULL").to_string();
        }
    }
    panic!("{sql}: no row");
}

async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!("{sql}: {}", say(&error));
    }
}

/// What the server said, which the error itself does not show.
fn say(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| format!("{error:?}"), |error| format!("{error:?}"))
}
