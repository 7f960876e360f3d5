//! `pgherd differential`: the two servers, and rounds until the statements or the time are over.

use super::Kind;
use super::report::Report;
use super::round::Round;
use crate::herd::Herd;
use crate::wire::Target;
use crate::{Error, Result};
use clap::ValueEnum;
use futures::StreamExt;
use pgherd_local_cluster::PlainServer;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Statements over one schema. A number's schema is that of `number / STATEMENTS`.
const STATEMENTS: u64 = 200;
const SHARDS: usize = 3;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `pgherd` program that the gateway is started from.
    pub program: PathBuf,
    /// Where all choices come from.
    pub seed: u64,
    /// The first statement's number.
    pub first: u64,
    /// How many statements.
    pub statements: u64,
    /// Ends after so long, if the statements last longer.
    pub time: Option<Duration>,
    /// Which kinds of statements; at least one.
    pub kinds: Vec<Kind>,
    /// How many schemas at a time.
    pub jobs: usize,
    /// Whether differences are made smaller.
    pub shrink: bool,
    /// Whether progress and differences go to the terminal as they come.
    pub show: bool,
}

impl Options {
    /// So many statements of all kinds.
    pub fn new(program: PathBuf, seed: u64, statements: u64) -> Self {
        Self {
            program,
            seed,
            first: 0,
            statements,
            time: None,
            kinds: Kind::value_variants().to_vec(),
            jobs: 2,
            shrink: true,
            show: false,
        }
    }
}

/// Runs the statements on both sides; what differs is in the report.
///
/// # Errors
/// Servers that cannot be started or used, a request to stop.
pub async fn run(options: &Options) -> Result<Report> {
    let stop = |kind| signal(kind).map_err(Error::from);
    let (mut interrupt, mut terminate) = (stop(SignalKind::interrupt())?, stop(SignalKind::terminate())?);
    tokio::select! {
        report = run_all(options) => report,
        // Dropping the run stops what it has started.
        _ = interrupt.recv() => Err(Error::Interrupted),
        _ = terminate.recv() => Err(Error::Interrupted),
    }
}

async fn run_all(options: &Options) -> Result<Report> {
    let plain_server = PlainServer::ephemeral_like_a_shard(false).await?;
    let herd = Herd::start(&options.program, SHARDS).await?;
    let gateway = herd.gateway("differential").await?;
    let plain: Target = plain_server.conninfo("postgres", "postgres").parse()?;
    let ours: Target = format!("postgres://postgres@127.0.0.1:{}/postgres", gateway.port()).parse()?;
    for target in [&plain, &ours] {
        let mut session = target.connect().await?;
        for extension in ["citext", "hstore"] {
            let sql = format!("CREATE EXTENSION {extension}");
            session.execute(&sql, Duration::from_secs(60)).await?;
        }
        session.close().await;
    }
    let end = options.time.map(|time| Instant::now() + time);
    let last = options.first + options.statements;
    let rounds = options.first / STATEMENTS..last.div_ceil(STATEMENTS);
    let each = rounds.map(|number| {
        let (plain, ours) = (&plain, &ours);
        async move {
            let mut report = Report::default();
            if end.is_none_or(|end| Instant::now() <= end) {
                let numbers = (number * STATEMENTS).max(options.first)..((number + 1) * STATEMENTS).min(last);
                round(options, number, numbers, (plain, ours), &mut report).await?;
            }
            Ok::<_, Error>(report)
        }
    });
    let mut reports = futures::stream::iter(each).buffer_unordered(options.jobs.max(1));
    let mut whole = Report::default();
    while let Some(report) = reports.next().await {
        let report = report?;
        whole.add(report);
        if options.show {
            eprintln!("{} statements, {} differences", whole.statements, whole.differences());
        }
    }
    drop(reports);
    gateway.stop().await;
    herd.stop().await;
    Ok(whole)
}

async fn round(
    options: &Options,
    number: u64,
    numbers: std::ops::Range<u64>,
    (plain, ours): (&Target, &Target),
    report: &mut Report,
) -> Result<()> {
    let mut round = Round::make(options, number, plain, ours).await?;
    for number in numbers {
        let done = round.statement(number, report).await;
        done.map_err(|error| Error::Script(format!("statement {number}: {error}")))?;
    }
    round.drop().await
}
