//! Programs that know nothing of pgherd: pgbench, psql, and Python with psycopg 3 and asyncpg; and how they log in.

mod authentication;
mod drivers;
mod dump;
mod pgbench;
mod programs;
mod psql;
mod shards_tls;

use pgherd_testkit::herd::{Gateway, Herd};
use std::path::Path;
use tokio::process::Command;

/// Three shards and a gateway.
async fn cluster() -> (Herd, Gateway) {
    Herd::with_gateway(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3, "one")
        .await
        .expect("a cluster")
}

/// One of PostgreSQL's programs, set to connect to the gateway as role and database `postgres`.
fn program(herd: &Herd, gateway: &Gateway, name: &str) -> Command {
    let mut command = Command::new(herd.cluster().shard(1).binaries().program(name));
    set_environment(&mut command, gateway);
    command
}

/// What libpq and asyncpg connect by.
fn set_environment(command: &mut Command, gateway: &Gateway) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    command
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", gateway.port().to_string());
    command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
}
