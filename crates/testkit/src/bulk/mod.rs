//! `pgherd bulk`: millions of rows into tables, out of them and from one into another, on plain PostgreSQL and on pgherd.
//!
//! Both have the same tables; pgherd's lie in three ranges on three shards. Each piece of work runs on one side after the
//! other, round after round, so that a ratio is formed between runs that follow each other closely, and what it wrote is
//! compared. Servers write to the disk as in production.
//!
//! [`rows`] makes the rows, [`work`] has the pieces of work, [`report`] writes the table.

mod report;
mod rows;
mod work;

pub use report::Report;

use crate::bench::Spread;
use crate::herd::{Gateway, Herd, cannot_run};
use crate::{Error, Result};
use clap::Args;
use pgherd_local_cluster::{PlainServer, Server, shard_settings};
use report::{Measured, SideRate};
use std::path::PathBuf;
use std::time::Instant;
use tokio_postgres::Client;
use work::Work;

/// Move millions of rows into tables and between them, on plain PostgreSQL and on pgherd
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// How many rows each table gets; ten million take about 4 GiB of disk on each of both sides
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(3..=1_000_000_000))]
    rows: u64,
    /// How often each piece of work runs on each side
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The folder for the table
    #[arg(long, value_name = "FOLDER", default_value = "docs/benchmark")]
    pub output: PathBuf,
}

impl Arguments {
    /// What the arguments ask for, with gateways started from the running program.
    ///
    /// # Errors
    /// The system does not tell which program this is.
    pub fn options(&self) -> Result<Options> {
        Ok(Options {
            rows: self.rows,
            rounds: self.rounds as usize,
            program: std::env::current_exe().map_err(cannot_run("pgherd"))?,
            show: true,
        })
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// how many rows each table gets
    pub rows: u64,
    /// how often each piece of work runs on each side
    pub rounds: usize,
    /// the `pgherd` program that the gateway is started from
    pub program: PathBuf,
    /// whether progress is shown, on standard error
    pub show: bool,
}

impl Options {
    fn say(&self, text: impl std::fmt::Display) {
        if self.show {
            eprintln!("{text}");
        }
    }
}

/// Where the tables are.
struct Side {
    name: &'static str,
    client: Client,
}

/// Makes the tables, does the work on both sides and compares what was written. Everything that was started is stopped when
/// this returns.
///
/// # Errors
/// A server that cannot be started, and work that fails on plain PostgreSQL. What fails or differs on pgherd is in the report.
pub async fn run(options: &Options) -> Result<Report> {
    options.say("starting PostgreSQL and pgherd");
    let plain = PlainServer::ephemeral_with(true, true, shard_settings()).await?;
    let herd = Herd::start_durable(&options.program, 3, Vec::new()).await?;
    let gateway = herd.gateway("bulk").await?;
    let sides = [
        Side {
            name: "PostgreSQL",
            client: plain.connect("postgres", "postgres").await?,
        },
        Side {
            name: "pgherd",
            client: gateway.connect().await?,
        },
    ];
    work::create_tables(&sides[0].client, None).await?;
    work::create_tables(&sides[1].client, Some(options.rows)).await?;
    let mut report = Report::new(options);
    for work in &work::ALL {
        let shards = herd.cluster().shards().iter().map(|shard| &**shard);
        let servers: Vec<&Server> = std::iter::once(&*plain).chain(shards).collect();
        report.works.push(measure(options, &sides, &servers, work).await?);
    }
    report.peak_memory_bytes = gateway.peak_memory_bytes();
    stop(gateway, herd).await;
    Ok(report)
}

async fn stop(gateway: Gateway, herd: Herd) {
    gateway.stop().await;
    herd.stop().await;
}

/// One piece of work on both sides, round after round.
async fn measure(options: &Options, sides: &[Side; 2], servers: &[&Server], work: &Work) -> Result<Measured> {
    let mut rates: [Vec<(usize, f64)>; 2] = Default::default();
    let mut problem = None;
    for round in 0..options.rounds {
        let mut written = Vec::new();
        for (side, rates) in sides.iter().zip(&mut rates) {
            work.prepare(&side.client).await?;
            settle(servers).await?;
            let began = Instant::now();
            match work.run(&side.client, options.rows).await {
                Ok(moved) => {
                    let rate = options.rows as f64 / began.elapsed().as_secs_f64();
                    options.say(format_args!("{} on {}: {rate:.0} rows/s", work.title, side.name));
                    rates.push((round, rate));
                    written.push((moved, work.sums(&side.client).await?));
                }
                Err(error) if side.name == sides[0].name => return Err(error),
                Err(error) => problem = Some(error.to_string()),
            }
        }
        if let [expected, found] = &written[..]
            && expected != found
        {
            problem = Some(format!("{found:?} instead of {expected:?}"));
        }
    }
    let of = |i: usize| SideRate {
        side: sides[i].name,
        rows_per_second: Spread::of(rates[i].iter().map(|(_, rate)| *rate)),
        ratio: Spread::of_ratios(&rates[i], &rates[0]),
    };
    Ok(Measured {
        name: work.name,
        title: work.title,
        sides: vec![of(0), of(1)],
        problem,
    })
}

/// Nothing of what went before is left to write to the disk while the clock runs.
async fn settle(servers: &[&Server]) -> Result<()> {
    for server in servers {
        let client = server.connect("postgres", "postgres").await?;
        client.batch_execute("CHECKPOINT").await.map_err(Error::from)?;
    }
    Ok(())
}
