//! The servers that are compared, all on this machine, with the same PostgreSQL settings and the same data.

use super::pgbouncer::PgBouncer;
use super::report::{Environment, SideDescription};
use super::workload::{self, Workload};
use super::{Options, Progress, pgbench};
use crate::Result;
use crate::herd::{Gateway, Herd};
use clap::ValueEnum;
use pgherd_local_cluster::{PlainServer, Server, shard_settings};
use serde::Serialize;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// How many ranges pgbench cuts the accounts into for the sharded side.
const PARTITIONS: usize = 6;

/// One of the things that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Plain PostgreSQL, connected to directly: what the others are compared with.
    Postgres,
    /// PgBouncer in front of the same server.
    Pgbouncer,
    /// pgherd with pgbench's tables as it makes them by default, which are local tables.
    PgherdLocal,
    /// pgherd with the accounts in six ranges on its shards, tellers and branches spread as well; the history is local.
    PgherdSharded,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Postgres => "PostgreSQL",
            Kind::Pgbouncer => "PgBouncer",
            Kind::PgherdLocal => "pgherd, local tables",
            Kind::PgherdSharded => "pgherd, on shards",
        })
    }
}

/// Where pgbench connects for one kind.
pub(crate) struct Side {
    pub(crate) kind: Kind,
    /// A folder for scripts, removed afterwards.
    pub(crate) scratch: PathBuf,
    bindir: PathBuf,
    port: u16,
    prepared_statements: bool,
    connection: String,
}

impl Side {
    /// Whether the workload can run here at all.
    pub(crate) fn supports(&self, workload: &Workload) -> bool {
        self.prepared_statements || workload.mode != "prepared"
    }

    /// pgbench, connecting here.
    pub(crate) fn pgbench(&self) -> Command {
        pgbench::command(&self.bindir, self.port)
    }

    async fn connect(&self) -> Result<tokio_postgres::Client> {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .user("postgres")
            .dbname("postgres");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

/// All sides, running. Dropping this stops and removes them.
pub(crate) struct Sides {
    // Dropped from the top: what connects goes before what it connects to.
    list: Vec<Side>,
    bouncer: Option<PgBouncer>,
    herds: Vec<(Kind, Gateway, Herd)>,
    plain: PlainServer,
}

impl Sides {
    /// Starts and loads what the options ask for.
    pub(crate) async fn start(options: &Options, progress: &Progress) -> Result<Self> {
        let wanted = |kind| options.sides.is_empty() || options.sides.contains(&kind);
        progress.say("starting PostgreSQL".into());
        let plain = PlainServer::ephemeral_with(true, true, shard_settings()).await?;
        let mut sides = Self {
            list: Vec::new(),
            bouncer: None,
            herds: Vec::new(),
            plain,
        };
        sides.add(Kind::Postgres, sides.plain.port(), "TCP on the loopback interface");
        let direct = &sides.list[0];
        progress.say(format!("filling {}", direct.kind));
        pgbench::load(direct, options.scale, 0).await?;
        settle(&sides.plain).await?;
        if wanted(Kind::Pgbouncer) {
            progress.say("starting PgBouncer".into());
            let bouncer = PgBouncer::start(&sides.plain, most_clients(options)?, &sides.scratch()).await?;
            let (port, prepared) = (bouncer.port(), bouncer.prepared_statements());
            sides.bouncer = Some(bouncer);
            sides.add(
                Kind::Pgbouncer,
                port,
                "TCP on the loopback interface, then PostgreSQL's Unix socket",
            );
            if let Some(side) = sides.list.last_mut() {
                side.prepared_statements = prepared;
            }
        }
        for (kind, partitions) in [(Kind::PgherdLocal, 0), (Kind::PgherdSharded, PARTITIONS)] {
            if wanted(kind) {
                sides.add_herd(kind, partitions, options, progress).await?;
            }
        }
        Ok(sides)
    }

    async fn add_herd(&mut self, kind: Kind, partitions: usize, options: &Options, progress: &Progress) -> Result<()> {
        progress.say(format!("starting {kind}"));
        let herd = Herd::start_durable(&options.program, options.shards, Vec::new()).await?;
        let gateway = herd.gateway("bench").await?;
        self.add(
            kind,
            gateway.port(),
            "TCP on the loopback interface, then the shards' Unix sockets",
        );
        self.herds.push((kind, gateway, herd));
        progress.say(format!("filling {kind}"));
        if let (Some(side), Some((_, _, herd))) = (self.list.last(), self.herds.last()) {
            pgbench::load(side, options.scale, partitions).await?;
            if partitions > 0 {
                spread(side, options.scale).await?;
            }
            for shard in herd.cluster().shards() {
                settle(shard).await?;
            }
        }
        Ok(())
    }

    fn add(&mut self, kind: Kind, port: u16, connection: &str) {
        let side = Side {
            kind,
            scratch: self.scratch(),
            bindir: self.plain.binaries().bindir.clone(),
            port,
            prepared_statements: true,
            connection: connection.to_string(),
        };
        self.list.push(side);
    }

    /// The folder that the plain server lies in, which disappears with it.
    fn scratch(&self) -> PathBuf {
        self.plain.folder().parent().unwrap_or(Path::new("/tmp")).to_path_buf()
    }

    pub(crate) fn list(&self) -> &[Side] {
        &self.list
    }

    /// pgbench's own invariant, on each side: what was added to the accounts, tellers and branches is the same, and is
    /// what the history says. Returns what does not hold, in words.
    pub(crate) async fn check_sums(&self) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        for side in &self.list {
            let client = side.connect().await?;
            let mut sums = Vec::new();
            for (table, column) in [
                ("accounts", "abalance"),
                ("tellers", "tbalance"),
                ("branches", "bbalance"),
                ("history", "delta"),
            ] {
                let sql = format!("SELECT coalesce(sum({column}), 0)::bigint FROM pgbench_{table}");
                sums.push(client.query_one(&sql, &[]).await?.try_get::<_, i64>(0)?);
            }
            if sums.iter().any(|sum| *sum != sums[0]) {
                wrong.push(format!(
                    "{}: accounts, tellers, branches and history sum up to {sums:?}",
                    side.kind
                ));
            }
        }
        Ok(wrong)
    }

    /// What was compared, for the report.
    pub(crate) async fn environment(&self, options: &Options) -> Result<Environment> {
        let mut sides = Vec::new();
        for side in &self.list {
            let memory = match side.kind {
                Kind::Postgres => None,
                Kind::Pgbouncer => self.bouncer.as_ref().map(PgBouncer::peak_memory_bytes),
                kind => {
                    let mut gateways = self.herds.iter().filter(|(other, ..)| *other == kind);
                    gateways.next().map(|(_, gateway, _)| gateway.peak_memory_bytes())
                }
            };
            sides.push(SideDescription {
                kind: side.kind,
                connection: side.connection.clone(),
                peak_memory_bytes: memory,
            });
        }
        let client = self.plain.connect("postgres", "postgres").await?;
        let postgres = client
            .query_one("SELECT current_setting('server_version')", &[])
            .await?;
        let mut settings = Vec::new();
        for name in [
            "shared_buffers",
            "max_wal_size",
            "fsync",
            "synchronous_commit",
            "wal_level",
            "max_connections",
        ] {
            let value = client.query_one("SELECT current_setting($1)", &[&name]).await?;
            settings.push((name.to_string(), value.try_get(0)?));
        }
        Ok(Environment {
            postgres_version: postgres.try_get(0)?,
            pgbouncer_version: self.bouncer.as_ref().map(|bouncer| bouncer.version().to_string()),
            settings,
            sides,
            ..Environment::of_machine(options)
        })
    }

    /// Stops everything, and waits until it is gone.
    pub(crate) async fn stop(self) {
        if let Some(bouncer) = self.bouncer {
            bouncer.stop().await;
        }
        for (_, gateway, herd) in self.herds {
            gateway.stop().await;
            herd.stop().await;
        }
    }
}

/// Tellers and branches lie in three ranges as well, so that TPC-B meets several shards.
async fn spread(side: &Side, scale: u32) -> Result<()> {
    let client = side.connect().await?;
    for (table, key, rows) in [
        ("pgbench_tellers", "tid", 10 * scale),
        ("pgbench_branches", "bid", scale),
    ] {
        let (first, second) = (rows / 3 + 1, 2 * rows / 3 + 2);
        client
            .batch_execute(&format!(
                "SET pgherd.initial_bounds = 'int {first},{second}'; CALL pgherd.distribute('{table}', '{key}')"
            ))
            .await?;
    }
    Ok(())
}

/// PgBouncer has one server connection per client.
fn most_clients(options: &Options) -> Result<usize> {
    let chosen = workload::chosen(&options.only)?;
    let most = chosen.iter().filter_map(|workload| workload.clients).max();
    Ok(most.unwrap_or(0).max(options.clients))
}

/// Writes what was loaded to the disk, so that no side does it while another is measured.
async fn settle(server: &Server) -> Result<()> {
    let client = server.connect("postgres", "postgres").await?;
    Ok(client.batch_execute("CHECKPOINT").await?)
}
