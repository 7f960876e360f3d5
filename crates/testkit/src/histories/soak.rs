//! `pgherd soak`: each pair of workload and level for minutes, one after the other, and a table of what was found.
//!
//! After each pair the results are written, and a pair that they have is not run again: the command can be stopped at any time
//! and goes on where it was.

use super::{Account, Fault, Level, Options, Workload, round};
use crate::herd::file_error;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// What to run, and how long.
#[derive(Debug, Clone)]
pub struct SoakOptions {
    /// The `pgherd` program that gateways are started from.
    pub program: PathBuf,
    /// How long each pair runs.
    pub time: Duration,
    /// Which workloads.
    pub workloads: Vec<Workload>,
    /// Which levels.
    pub levels: Vec<Level>,
    /// Sessions at a time.
    pub sessions: usize,
    /// Where clients and faults take their chances from.
    pub seed: u64,
    /// Whether anything dies or pauses.
    pub faults: bool,
    /// Whether pairs are run that the results have already.
    pub again: bool,
    /// The results' path, without `.json` and `.md`.
    pub output: PathBuf,
}

impl SoakOptions {
    /// All pairs, for two minutes each, with faults.
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            time: Duration::from_secs(120),
            workloads: Workload::ALL.to_vec(),
            levels: vec![Level::ReadCommitted, Level::RepeatableRead, Level::Serializable],
            sessions: 8,
            seed: 1,
            faults: true,
            again: false,
            output: "docs/soak".into(),
        }
    }
}

/// One pair's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pair {
    workload: Workload,
    level: Level,
    sessions: usize,
    seed: u64,
    /// Whether pgherd was built with optimisation.
    optimised: bool,
    account: Account,
}

/// Runs the pairs that are missing; whether there is no violation in any of the results.
///
/// # Errors
/// A cluster that cannot be started, results that cannot be read or written, a request to stop.
pub async fn soak(options: SoakOptions) -> Result<bool> {
    let stop = |kind| signal(kind).map_err(Error::from);
    let (mut interrupt, mut terminate) = (stop(SignalKind::interrupt())?, stop(SignalKind::terminate())?);
    tokio::select! {
        clean = run_all(&options) => clean,
        // Dropping the run stops what it has started.
        _ = interrupt.recv() => Err(Error::Interrupted),
        _ = terminate.recv() => Err(Error::Interrupted),
    }
}

async fn run_all(options: &SoakOptions) -> Result<bool> {
    let mut pairs = read(options)?;
    let wanted: Vec<_> = options
        .levels
        .iter()
        .flat_map(|level| options.workloads.iter().map(|workload| (*workload, *level)))
        .collect();
    for (number, (workload, level)) in wanted.iter().enumerate() {
        let is_this = |pair: &Pair| pair.workload == *workload && pair.level == *level;
        let at = format!("{} of {}: {workload} at {level}", number + 1, wanted.len());
        if !options.again
            && pairs
                .iter()
                .any(|pair| is_this(pair) && pair.account.seconds >= options.time.as_secs())
        {
            eprintln!("{at}: the results have it");
            continue;
        }
        eprintln!("{at}, {} s", options.time.as_secs());
        let account = round::run(&round_options(options, *workload, *level)).await?;
        say(&account);
        pairs.retain(|pair| !is_this(pair));
        pairs.push(Pair {
            workload: *workload,
            level: *level,
            sessions: options.sessions,
            seed: options.seed,
            optimised: !cfg!(debug_assertions),
            account,
        });
        pairs.sort_by_key(|pair| (pair.level, pair.workload));
        write(options, &pairs)?;
    }
    Ok(pairs.iter().all(|pair| pair.account.violations().is_empty()))
}

fn round_options(options: &SoakOptions, workload: Workload, level: Level) -> Options {
    Options {
        workloads: vec![workload],
        sessions: options.sessions,
        time: options.time,
        between_faults: Duration::from_secs(4),
        faults: match options.faults {
            true => Fault::ALL.to_vec(),
            false => Vec::new(),
        },
        seed: options.seed,
        ..Options::new(options.program.clone(), level)
    }
}

fn say(account: &Account) {
    for verdict in account.verdicts.values() {
        eprintln!(
            "  {} ok, {} failed, {} unknown, {} reads compared, {} faults",
            verdict.ok,
            verdict.failed,
            verdict.unknown,
            verdict.reads,
            account.faults.values().sum::<u64>()
        );
        for (what, count) in &verdict.named {
            eprintln!("  {count} times: {what}");
        }
    }
    for violation in account.violations() {
        eprintln!("  VIOLATION {violation}");
    }
}

fn path(options: &SoakOptions, extension: &str) -> PathBuf {
    let mut name = options.output.clone().into_os_string();
    name.push(extension);
    name.into()
}

fn read(options: &SoakOptions) -> Result<Vec<Pair>> {
    let path = path(options, ".json");
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| Error::Script(format!("{}: {error}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(file_error(&path)(error)),
    }
}

fn write(options: &SoakOptions, pairs: &[Pair]) -> Result<()> {
    let json = serde_json::to_string_pretty(pairs).map_err(|error| Error::Script(error.to_string()))?;
    for (extension, text) in [(".json", json + "\n"), (".md", table(pairs))] {
        let path = path(options, extension);
        std::fs::write(&path, text).map_err(file_error(&path))?;
    }
    Ok(())
}

fn table(pairs: &[Pair]) -> String {
    let mut text = String::from(
        "# Soak\n\n\
         What `pgherd soak` found: transactions through two gateways over three shards, while gateways are killed and paused and shards\n\
         crash and pause, one fault every few seconds. What each workload does and which anomalies its checker looks for is in\n\
         `crates/testkit/src/histories`; what each level promises is in [isolation.md](isolation.md). *Can happen* counts what that page\n\
         says can happen; a *violation* is anything else. *Unknown* transactions had no answer to COMMIT, or 08007.\n\n\
         | level | workload | time | ok | failed | unknown | reads compared | faults | can happen | violations |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for pair in pairs {
        let Some(verdict) = pair.account.verdicts.get(&pair.workload) else {
            continue;
        };
        let named: Vec<_> = verdict
            .named
            .iter()
            .map(|(what, count)| format!("{count} × {what}"))
            .collect();
        let violations = match pair.account.violations().len() {
            0 => "none".to_owned(),
            _ => format!("**{}**", verdict.violation_count() + pair.account.wrong.len() as u64),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} s | {} | {} | {} | {} | {} | {} | {violations} |",
            pair.level,
            pair.workload,
            pair.account.seconds,
            verdict.ok,
            verdict.failed,
            verdict.unknown,
            verdict.reads,
            pair.account.faults.values().sum::<u64>(),
            named.join(", "),
        );
    }
    let mut faults: BTreeMap<Fault, u64> = BTreeMap::new();
    for (fault, count) in pairs.iter().flat_map(|pair| &pair.account.faults) {
        *faults.entry(*fault).or_default() += count;
    }
    let faults: Vec<_> = faults
        .iter()
        .map(|(fault, count)| format!("{count} × {fault}"))
        .collect();
    let minutes = pairs.iter().map(|pair| pair.account.seconds).sum::<u64>() / 60;
    let _ = writeln!(text, "\n{minutes} minutes in all. Faults: {}.", faults.join(", "));
    if pairs.iter().any(|pair| !pair.optimised) {
        text.push_str("The program was a debug build.\n");
    }
    for pair in pairs {
        for violation in pair.account.violations() {
            let _ = write!(
                text,
                "\n- **{} at {}**: {}",
                pair.workload,
                pair.level,
                violation.replace('\n', " ")
            );
        }
    }
    text
}
