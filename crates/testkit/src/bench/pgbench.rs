//! Runs pgbench, and reads what it prints.

use super::side::Side;
use super::workload::{Script, Workload};
use super::{Kind, Options};
use crate::herd::{self, file_error};
use crate::{Error, Result};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

/// How much longer than its seconds a run may take, connecting and its last transactions included.
const EXTRA_LIMIT: Duration = Duration::from_secs(60);

/// One run of one workload on one side.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// The workload's name.
    pub workload: &'static str,
    /// Where it ran.
    pub side: Kind,
    /// The round, from 1.
    pub round: usize,
    /// Transactions per second, the time to connect left out; 0 when the run failed.
    pub tps: f64,
    /// The mean latency of a transaction in milliseconds.
    pub latency_ms: f64,
    /// The latency, in milliseconds, that 99 of 100 transactions stayed under; where others work beside.
    pub p99_ms: Option<f64>,
    /// Transactions that succeeded.
    pub transactions: u64,
    /// Transactions that failed with an error that pgbench survives.
    pub failed: u64,
    /// Why the run as a whole failed.
    pub error: Option<String>,
}

/// What pgbench prints at the end of a run.
#[derive(Debug, Clone, PartialEq)]
struct Summary {
    tps: f64,
    latency_ms: f64,
    transactions: u64,
    failed: u64,
}

/// Runs one workload once. A run that fails is a measurement too.
pub(crate) async fn measure(options: &Options, workload: &Workload, side: &Side, round: usize) -> Measurement {
    let limit = Duration::from_secs(options.seconds) + EXTRA_LIMIT;
    let outcome = match tokio::time::timeout(limit, play_beside(options, workload, side)).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no end within {} s", limit.as_secs())),
    };
    let (summary, p99_ms, error) = match outcome {
        Ok((summary, p99_ms)) => (Some(summary), p99_ms, None),
        Err(error) => (None, None, Some(error)),
    };
    Measurement {
        workload: workload.name,
        side: side.kind,
        round,
        tps: summary.as_ref().map_or(0.0, |summary| summary.tps),
        latency_ms: summary.as_ref().map_or(0.0, |summary| summary.latency_ms),
        p99_ms,
        transactions: summary.as_ref().map_or(0, |summary| summary.transactions),
        failed: summary.as_ref().map_or(0, |summary| summary.failed),
        error,
    }
}

/// Runs a workload, with what others do beside it.
async fn play_beside(options: &Options, workload: &Workload, side: &Side) -> Result<(Summary, Option<f64>)> {
    let clients = workload.clients.unwrap_or(options.clients);
    let Some((script, others)) = workload.beside else {
        let summary = play(options, workload, workload.script, clients, side, None).await?;
        return Ok((summary, None));
    };
    let logs = tempfile::tempdir_in(&side.scratch).map_err(file_error(&side.scratch))?;
    let (summary, _) = tokio::try_join!(
        play(options, workload, workload.script, clients, side, Some(logs.path())),
        play(options, workload, script, others, side, None),
    )?;
    Ok((summary, percentile(latencies_ms(logs.path())?, 0.99)))
}

/// Runs a script. Each transaction's latency goes into files in the folder `logs`.
async fn play(
    options: &Options,
    workload: &Workload,
    script: Script,
    clients: usize,
    side: &Side,
    logs: Option<&Path>,
) -> Result<Summary> {
    let mut command = side.pgbench();
    // Vacuuming was done when the tables were filled.
    command.args(["-n", "-M", workload.mode]);
    command.args(["-c", &clients.to_string()]);
    command.args(["-j", &options.threads.min(clients).to_string()]);
    // Transactions that lose against others are run again, as applications do.
    command.arg("--max-tries=1000");
    command.args(["-T", &options.seconds.to_string()]);
    if let Some(logs) = logs {
        command
            .arg("-l")
            .arg(format!("--log-prefix={}", logs.join("latency").display()));
    }
    match script {
        Script::BuiltIn(name) => {
            command.args(["-b", name]);
        }
        Script::Own(text) => {
            let path = side.scratch.join(format!("{}-{clients}.pgbench", workload.name));
            std::fs::write(&path, text).map_err(file_error(&path))?;
            command
                .arg("-D")
                .arg(format!("scale={}", options.scale))
                .arg("-f")
                .arg(path);
        }
    }
    let text = herd::run("pgbench", command).await?;
    read_summary(&text).ok_or_else(|| Error::Program {
        program: "pgbench".into(),
        output: format!("printed what cannot be read:\n{text}"),
    })
}

/// The third word of each line of pgbench's logs, which is in microseconds.
fn latencies_ms(folder: &Path) -> Result<Vec<f64>> {
    let mut latencies = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(file_error(folder))? {
        let path = entry.map_err(file_error(folder))?.path();
        let text = std::fs::read_to_string(&path).map_err(file_error(&path))?;
        let microseconds = text
            .lines()
            .filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok());
        latencies.extend(microseconds.map(|us| us / 1000.0));
    }
    Ok(latencies)
}

/// The smallest number that this part of the numbers does not exceed.
fn percentile(mut numbers: Vec<f64>, part: f64) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let place = (numbers.len() as f64 * part).ceil() as usize;
    numbers.get(place.saturating_sub(1)).copied()
}

/// Makes and fills pgbench's tables, with the accounts in `partitions` ranges (0: not partitioned).
pub(crate) async fn load(side: &Side, scale: u32, partitions: usize) -> Result<()> {
    let mut command = side.pgbench();
    command.args(["-i", "-q", "-s", &scale.to_string()]);
    if partitions > 0 {
        command.arg(format!("--partitions={partitions}"));
    }
    herd::run(&format!("pgbench -i on {}", side.kind), command)
        .await
        .map(drop)
}

/// pgbench from the PostgreSQL in `bindir`, as role and database `postgres`.
pub(crate) fn command(bindir: &Path, port: u16) -> Command {
    let mut command = Command::new(bindir.join("pgbench"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres"]);
    command.env("PGDATABASE", "postgres");
    command
}

/// Reads the lines that matter; `None` when one is missing. PostgreSQL 14 and older did not count failures.
fn read_summary(text: &str) -> Option<Summary> {
    let value = |label: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(label))?;
        rest.trim_start_matches([' ', ':', '=']).split([' ', '/']).next()
    };
    Some(Summary {
        tps: value("tps")?.parse().ok()?,
        latency_ms: value("latency average")?.parse().ok()?,
        transactions: value("number of transactions actually processed")?.parse().ok()?,
        failed: value("number of failed transactions").unwrap_or("0").parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_numbers() {
        let numbers: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(numbers, 0.99), Some(198.0));
        assert_eq!(percentile(vec![7.0], 0.99), Some(7.0));
        assert_eq!(percentile(Vec::new(), 0.99), None);
    }

    const OUTPUT: &str = "\
pgbench (15.18 (Debian 15.18-0+deb12u1))
transaction type: <builtin: select only>
scaling factor: 10
query mode: simple
number of clients: 8
number of threads: 2
maximum number of tries: 1
duration: 5 s
number of transactions actually processed: 90142
number of failed transactions: 3 (0.003%)
latency average = 0.443 ms
initial connection time = 14.312 ms
tps = 18065.361012 (without initial connection time)
";

    #[test]
    fn the_summary_is_read() {
        let summary = Summary {
            tps: 18065.361012,
            latency_ms: 0.443,
            transactions: 90142,
            failed: 3,
        };
        assert_eq!(read_summary(OUTPUT), Some(summary));
    }

    #[test]
    fn a_fixed_number_of_transactions() {
        let text = OUTPUT.replace("processed: 90142", "processed: 80/80");
        assert_eq!(read_summary(&text).expect("read").transactions, 80);
    }

    #[test]
    fn an_older_pgbench_counts_no_failures() {
        let text = OUTPUT.replace("number of failed transactions: 3 (0.003%)\n", "");
        assert_eq!(read_summary(&text).expect("read").failed, 0);
    }

    #[test]
    fn what_is_incomplete_is_not_taken_for_a_result() {
        assert_eq!(read_summary("pgbench: error: connection refused\n"), None);
        assert_eq!(read_summary(&OUTPUT.replace("tps = ", "tps = ?")), None);
    }
}
