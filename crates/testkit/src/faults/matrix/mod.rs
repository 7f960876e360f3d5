//! The fault matrix: every step of a commit and of recovery, times everything that may befall a gateway or a shard there, with
//! and without another gateway alive.
//!
//! A gateway of a debug build stops at a named step (see `control` in the transaction crate) until something has been done to it or to a
//! shard. Afterwards, whatever was taken down comes back, and then: nothing stays prepared for more than five seconds, both
//! shards have the transaction or neither has, an acknowledged one is there, a refused one is not, and nobody waits for ever.
//!
//! - `case`: what there is to try.
//! - `stage`: two shards, the gateways, and the ways between them.
//! - `trial`: one case, from its beginning to its verdict.
//! - `report`: what was found, as a table.

mod arguments;
mod case;
mod report;
mod stage;
mod trial;

pub use arguments::Arguments;
pub use case::{Case, Companion, Fault, Path, cases};
pub use report::Report;

use crate::Result;
use crate::herd::file_error;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use stage::Stage;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// the pgherd program, of a debug build
    pub program: PathBuf,
    /// so many cases, chosen by the seed; all without it
    pub sample: Option<usize>,
    /// chooses the sample
    pub seed: u64,
    /// only cases whose name contains this
    pub only: Option<String>,
    /// a file with what was found before: those cases are not run again
    pub state: Option<PathBuf>,
    /// begins no case after this time
    pub limit: Option<Duration>,
}

/// What came of one case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// the case's name
    pub case: String,
    /// what its client was told: a command tag, a SQLSTATE, or how the connection ended
    pub told: String,
    /// whether the transaction is there
    pub committed: bool,
    /// from the last restart until nothing was prepared any more, in milliseconds
    pub settled_ms: u64,
    /// what is wrong; empty when all is well
    pub wrong: Vec<String>,
}

/// Runs the cases, one after the other.
///
/// # Errors
/// Shards or gateways that cannot be started, or a state file that cannot be written. What a case finds is in the report.
pub async fn run(options: &Options) -> Result<Report> {
    let mut wanted = cases();
    if let Some(only) = &options.only {
        wanted.retain(|case| case.to_string().contains(only));
    }
    if let Some(sample) = options.sample {
        wanted.shuffle(&mut StdRng::seed_from_u64(options.seed));
        wanted.truncate(sample);
    }
    // Gateways that come and go cost the most: cases with the same ones stand together.
    wanted.sort_by_key(|case| case.companion == Companion::Alive);
    let mut known = read_state(options)?;
    let mut stage = None;
    let begun = Instant::now();
    let count = wanted.len();
    for (at, case) in wanted.iter().enumerate() {
        let name = case.to_string();
        let is_late = options.limit.is_some_and(|limit| begun.elapsed() > limit);
        if is_late || known.contains_key(&name) {
            continue;
        }
        let verdict = trial::run(&mut stage, &options.program, case, at as i64 + 1).await?;
        let word = if verdict.wrong.is_empty() { "ok" } else { "WRONG" };
        eprintln!(
            "{}/{count} {word} {name}: {}, settled after {} ms ({} s) {}",
            at + 1,
            verdict.told,
            verdict.settled_ms,
            begun.elapsed().as_secs(),
            verdict.wrong.join("; ")
        );
        if !verdict.wrong.is_empty() {
            // What a failure left behind must not be the next case's.
            stage = None;
        }
        append_state(options, &verdict)?;
        known.insert(name, verdict);
    }
    if let Some(stage) = stage {
        Stage::stop(stage).await;
    }
    let verdicts = wanted
        .iter()
        .filter_map(|c| Some((c.clone(), known.remove(&c.to_string())?)));
    Ok(Report::new(verdicts.collect()))
}

fn read_state(options: &Options) -> Result<BTreeMap<String, Verdict>> {
    let Some(file) = &options.state else {
        return Ok(BTreeMap::new());
    };
    let text = match std::fs::read_to_string(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.map_err(file_error(file))?,
    };
    // A line that was cut short belongs to a case that did not end.
    let verdicts = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Verdict>(line).ok());
    Ok(verdicts.map(|v| (v.case.clone(), v)).collect())
}

fn append_state(options: &Options, verdict: &Verdict) -> Result<()> {
    let Some(path) = &options.state else { return Ok(()) };
    let line = serde_json::to_string(verdict).unwrap_or_default();
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(file_error(path))?;
    writeln!(file, "{line}").map_err(file_error(path))
}
