//! The command line of `pgherd soak`, so that the binary only has to name it.

use super::{Level, SoakOptions, Workload};
use crate::Result;
use crate::herd::cannot_run;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Run transactions through two gateways over three shards, kill and pause both, and check what clients saw
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// How long each pair of workload and level runs
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Only these workloads
    #[arg(long, value_enum, value_name = "WORKLOADS", value_delimiter = ',')]
    only: Vec<Workload>,
    /// Only these levels
    #[arg(long, value_enum, value_name = "LEVELS", value_delimiter = ',')]
    levels: Vec<Level>,
    /// How many sessions at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=200))]
    sessions: u32,
    /// Where clients and faults take their chances from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Without faults
    #[arg(long)]
    quiet: bool,
    /// Also the pairs that the results have already
    #[arg(long)]
    again: bool,
    /// The results, of which FILE.json is added to and FILE.md written anew after each pair
    #[arg(long, value_name = "FILE", default_value = "docs/soak")]
    output: PathBuf,
}

impl Arguments {
    /// What the arguments ask for, with gateways started from the running program.
    ///
    /// # Errors
    /// The system does not tell which program this is.
    pub fn options(self) -> Result<SoakOptions> {
        let program = std::env::current_exe().map_err(cannot_run("pgherd"))?;
        let mut options = SoakOptions::new(program);
        options.time = Duration::from_secs_f64((self.minutes * 60.0).max(1.0));
        if !self.only.is_empty() {
            options.workloads = self.only;
        }
        if !self.levels.is_empty() {
            options.levels = self.levels;
        }
        options.sessions = self.sessions as usize;
        options.seed = self.seed;
        options.faults = !self.quiet;
        options.again = self.again;
        options.output = self.output;
        Ok(options)
    }
}
