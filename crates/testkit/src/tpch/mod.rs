//! `pgherd tpch`: the 22 queries of TPC-H on plain PostgreSQL and on pgherd, their answers compared and their times set
//! side by side.
//!
//! pgherd holds the tables twice: once with lineitem beside its orders and partsupp beside its parts, and once with no two
//! tables on the same ranges. Each query runs on one side after the other, round after round, so that a ratio is formed between
//! runs that follow each other closely. An answer counts as the same when it has the same rows in the same order, as text.
//!
//! [`tables`] makes and fills the tables, [`queries`] has the statements, [`report`] writes the table.

mod arguments;
mod queries;
mod report;
mod tables;

pub use arguments::Arguments;
pub use report::Report;
pub use tables::Layout;

use crate::bench::Spread;
use crate::herd::{Gateway, Herd, lines};
use crate::{Error, Result};
use pgherd_local_cluster::{PlainServer, Server, shard_settings};
use report::{Query, SideOutcome};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// TPC-H's scale factor: about a gigabyte of tables per unit
    pub scale: f64,
    /// how often each query runs on each side
    pub rounds: usize,
    /// the numbers of the queries; empty means all
    pub only: Vec<u8>,
    /// how pgherd's tables lie; plain PostgreSQL always takes part
    pub layouts: Vec<Layout>,
    /// the time after which a query counts as failed
    pub limit: Duration,
    /// the `pgherd` program that gateways are started from
    pub program: PathBuf,
    /// whether progress is shown, on standard error
    pub show: bool,
    /// after the tables are filled, say where they are and wait for Ctrl-C instead of measuring
    pub serve: bool,
}

impl Options {
    /// One round at scale 0.01 in both layouts.
    pub fn new(program: PathBuf) -> Self {
        Self {
            scale: 0.01,
            rounds: 1,
            only: Vec::new(),
            layouts: vec![Layout::Colocated, Layout::Scattered],
            limit: Duration::from_secs(600),
            program,
            show: false,
            serve: false,
        }
    }

    fn say(&self, text: impl std::fmt::Display) {
        if self.show {
            eprintln!("{text}");
        }
    }
}

/// A place where the tables are. Dropping it stops its servers.
struct Side {
    layout: Option<Layout>,
    client: Client,
    gateway: Option<(Gateway, Herd)>,
}

impl Side {
    fn name(&self) -> &'static str {
        self.layout.map_or("PostgreSQL", Layout::title)
    }
}

/// Makes the tables, runs the queries and compares. Everything that was started is stopped when this returns.
///
/// # Errors
/// A server that cannot be started or filled. Queries that fail or answer differently are in the report.
pub async fn run(options: &Options) -> Result<Report> {
    options.say("starting PostgreSQL");
    let plain = PlainServer::ephemeral_with(true, true, shard_settings()).await?;
    let mut sides = vec![Side {
        layout: None,
        client: plain.connect("postgres", "postgres").await?,
        gateway: None,
    }];
    options.say(format_args!("filling PostgreSQL at scale {}", options.scale));
    tables::fill(&sides[0].client, None, options.scale).await?;
    settle(&plain).await?;
    for layout in &options.layouts {
        sides.push(start(options, *layout).await?);
    }
    if options.serve {
        serve(&plain, &sides).await?;
        return Ok(Report::default());
    }
    let mut report = Report::new(options);
    for query in queries::chosen(&options.only)? {
        let measured = measure(options, &sides, query.0, &query.1).await?;
        options.say(&measured);
        report.queries.push(measured);
    }
    report.peak_memory_bytes = sides
        .iter()
        .filter_map(|side| Some((side.name(), side.gateway.as_ref()?.0.peak_memory_bytes())))
        .collect();
    for side in sides {
        if let Some((gateway, herd)) = side.gateway {
            gateway.stop().await;
            herd.stop().await;
        }
    }
    Ok(report)
}

async fn start(options: &Options, layout: Layout) -> Result<Side> {
    options.say(format_args!("filling {}", layout.title()));
    let herd = Herd::start_durable(&options.program, 3, Vec::new()).await?;
    let gateway = herd.gateway("tpch").await?;
    let client = gateway.connect().await?;
    tables::fill(&client, Some(layout), options.scale).await?;
    for shard in herd.cluster().shards() {
        settle(shard).await?;
    }
    Ok(Side {
        layout: Some(layout),
        client,
        gateway: Some((gateway, herd)),
    })
}

/// What every side has before it is measured: statistics, visibility maps, and nothing left to write to the disk.
async fn settle(server: &Server) -> Result<()> {
    let client = server.connect("postgres", "postgres").await?;
    client.batch_execute("VACUUM (ANALYZE)").await?;
    Ok(client.batch_execute("CHECKPOINT").await?)
}

async fn serve(plain: &Server, sides: &[Side]) -> Result<()> {
    println!("PostgreSQL: port {}", plain.port());
    for side in sides {
        if let Some((gateway, herd)) = &side.gateway {
            println!("{}: port {}, {}", side.name(), gateway.port(), herd.folder().display());
        }
    }
    tokio::signal::ctrl_c().await.map_err(Error::from)
}

/// One query on all sides, round after round.
async fn measure(options: &Options, sides: &[Side], number: u8, sql: &str) -> Result<Query> {
    let mut outcomes: Vec<SideOutcome> = sides.iter().map(|side| SideOutcome::new(side.name())).collect();
    let mut times: Vec<Vec<(usize, f64)>> = vec![Vec::new(); sides.len()];
    let mut expected: Option<Vec<String>> = None;
    for round in 0..options.rounds {
        for (i, side) in sides.iter().enumerate() {
            if outcomes[i].problem.is_some() {
                continue;
            }
            match once(&side.client, sql, options.limit).await {
                Ok((time, rows)) => {
                    times[i].push((round, time.as_secs_f64()));
                    match &expected {
                        Some(expected) => outcomes[i].problem = difference(expected, &rows),
                        None => expected = Some(rows),
                    }
                }
                Err(error) if i == 0 => return Err(error),
                Err(error) => outcomes[i].problem = Some(error.to_string()),
            }
        }
    }
    for (outcome, own) in outcomes.iter_mut().zip(&times) {
        outcome.seconds = Spread::of(own.iter().map(|(_, seconds)| *seconds));
        outcome.ratio = Spread::of_ratios(own, &times[0]);
    }
    let rows = expected.map_or(0, |rows| rows.len());
    Ok(Query {
        number,
        rows,
        sides: outcomes,
    })
}

/// The rows as text, and how long it took until the last one was there.
async fn once(client: &Client, sql: &str, limit: Duration) -> Result<(Duration, Vec<String>)> {
    let began = Instant::now();
    let cancel = client.cancel_token();
    let messages = match tokio::time::timeout(limit, client.simple_query(sql)).await {
        Ok(messages) => messages?,
        Err(_) => {
            cancel.cancel_query(tokio_postgres::NoTls).await?;
            return Err(Error::Timeout(limit));
        }
    };
    let took = began.elapsed();
    Ok((took, lines(&messages)))
}

/// The first row that differs, in words.
fn difference(expected: &[String], rows: &[String]) -> Option<String> {
    let at = (0..expected.len().max(rows.len())).find(|&i| expected.get(i) != rows.get(i))?;
    let show = |rows: &[String]| rows.get(at).cloned().unwrap_or_else(|| "nothing".into());
    Some(format!(
        "{} rows instead of {}; row {}: {} instead of {}",
        rows.len(),
        expected.len(),
        at + 1,
        show(rows),
        show(expected)
    ))
}
