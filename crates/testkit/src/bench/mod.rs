//! `pgherd bench`: the same pgbench workloads on plain PostgreSQL, through PgBouncer and through pgherd, side by side.
//!
//! What is reported are ratios, not transactions per second: on a machine whose speed changes from minute to minute, only
//! runs that follow each other closely can be compared. So the sides take turns in short runs, round after round, and a
//! ratio is formed within each round. docs/benchmark.md says how each side is set up and how to read the table.
//!
//! One call to [`run`]: [`side`] starts and loads the servers, [`pgbench`] runs each of the [`workload`]s on each of them,
//! [`statistics`] forms the ratios, [`report`] and [`plot`] write them down. Nothing here reaches into pgherd; the
//! gateway is a process of its own, started from the program that this runs in.

mod arguments;
mod pgbench;
mod pgbouncer;
mod plot;
mod report;
mod side;
mod statistics;
mod workload;

pub use arguments::Arguments;
pub use pgbench::Measurement;
pub use pgbouncer::is_installed as pgbouncer_is_installed;
pub use report::{Environment, Report};
pub use side::Kind;
pub use statistics::Spread;
pub use workload::Workload;

use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use side::Sides;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// What to measure, and how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often each workload runs on each side; the medians are taken over this many.
    pub rounds: usize,
    /// How long one run takes, in seconds.
    pub seconds: u64,
    /// How many clients pgbench plays at a time.
    pub clients: usize,
    /// How many threads pgbench uses.
    pub threads: usize,
    /// pgbench's scale: 100,000 accounts (about 15 MB) per unit.
    pub scale: u32,
    /// How many shards the pgherd clusters have.
    pub shards: usize,
    /// Which workloads, by name; empty means all.
    pub only: Vec<String>,
    /// Which sides; empty means all. PostgreSQL itself always takes part, since it is what others are compared with.
    pub sides: Vec<Kind>,
    /// The folder for the results; made if it does not exist.
    pub output: PathBuf,
    /// The `pgherd` program that gateways are started from.
    pub program: PathBuf,
    /// Whether progress is shown, on standard error.
    pub show: bool,
}

impl Options {
    /// Five rounds of five seconds with eight clients at scale 10, into `docs/benchmark`.
    pub fn new(program: PathBuf) -> Self {
        Self {
            rounds: 5,
            seconds: 5,
            clients: 8,
            threads: 2,
            scale: 10,
            shards: 3,
            only: Vec::new(),
            sides: Vec::new(),
            output: PathBuf::from("docs/benchmark"),
            program,
            show: true,
        }
    }
}

/// Measures, writes the results into the output folder, and returns them.
///
/// Everything that was started is stopped and removed when this returns, on Ctrl-C and SIGTERM too.
///
/// # Errors
/// An unknown workload, a server or program that cannot be started or loaded, files that cannot be written, a request to
/// stop. Transactions that fail while measuring are no error: they are counted in the report (see
/// [`Report::failed_transactions`]).
pub async fn run(options: Options) -> Result<Report> {
    let stop = |kind| signal(kind).map_err(Error::from);
    let (mut interrupt, mut terminate) = (stop(SignalKind::interrupt())?, stop(SignalKind::terminate())?);
    tokio::select! {
        report = measure(&options) => report,
        // Dropping the measurement stops what it has started.
        _ = interrupt.recv() => Err(Error::Interrupted),
        _ = terminate.recv() => Err(Error::Interrupted),
    }
}

async fn measure(options: &Options) -> Result<Report> {
    let workloads = workload::chosen(&options.only)?;
    let progress = Progress::begin(options.show);
    let sides = Sides::start(options, &progress).await?;
    let runs = workloads.len() * sides.list().len() * options.rounds;
    progress.expect(runs as u64);
    let mut measurements = Vec::with_capacity(runs);
    for round in 1..=options.rounds {
        for workload in &workloads {
            for side in sides.list() {
                if !side.supports(workload) {
                    progress.step();
                    continue;
                }
                progress.say(format!(
                    "round {round} of {}: {} on {}",
                    options.rounds, workload.name, side.kind
                ));
                let measurement = pgbench::measure(options, workload, side, round).await;
                progress.done(&measurement);
                measurements.push(measurement);
            }
        }
    }
    progress.say("checking what was written".into());
    let wrong_sums = sides.check_sums().await?;
    let environment = sides.environment(options).await?;
    sides.stop().await;
    progress.end();
    let report = Report::new(environment, &workloads, measurements, wrong_sums);
    report.write(&options.output)?;
    Ok(report)
}

/// What a person sees: a bar in a terminal, a line per run elsewhere.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
}

impl Progress {
    fn begin(show: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = (show && terminal).then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{spinner:.green} {bar:24.green/dim} {pos}/{len} {eta} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            bar,
            lines: show && !terminal,
        }
    }

    fn expect(&self, runs: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(runs);
            bar.reset_eta();
        }
    }

    fn say(&self, message: String) {
        match &self.bar {
            Some(bar) => bar.set_message(message),
            None if self.lines => eprintln!("{message}"),
            None => {}
        }
    }

    fn step(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    fn done(&self, measurement: &Measurement) {
        self.step();
        let text = match &measurement.error {
            Some(error) => format!("  failed: {error}"),
            None => format!("  {:.0} transactions per second", measurement.tps),
        };
        match &self.bar {
            // What went wrong stays on the screen; the rest is in the table.
            Some(bar) if measurement.error.is_some() => bar.println(text),
            None if self.lines => eprintln!("{text}"),
            _ => {}
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
