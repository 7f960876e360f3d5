//! The command line of `pgherd faults`, so that the binary only has to name it.

use super::Options;
use crate::Result;
use crate::herd::cannot_run;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Kill, pause and cut off gateways and shards at every step of a commit and of recovery (debug builds)
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// Only so many cases, chosen by the seed
    #[arg(long)]
    sample: Option<usize>,
    /// Chooses the sample
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only cases whose name contains this, such as "gateway killed"
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Where results are kept: what is there is not run again
    #[arg(long, value_name = "FILE", default_value = "target/faults.jsonl")]
    state: PathBuf,
    /// Begin no case after so many seconds; run it again to go on
    #[arg(long)]
    seconds: Option<u64>,
    /// Where the table is written
    #[arg(long, value_name = "FILE", default_value = "docs/faults.md")]
    pub output: PathBuf,
}

impl Arguments {
    /// What the arguments ask for, with gateways started from the running program.
    ///
    /// # Errors
    /// The system does not tell which program this is.
    pub fn options(&self) -> Result<Options> {
        Ok(Options {
            program: std::env::current_exe().map_err(cannot_run("pgherd"))?,
            sample: self.sample,
            seed: self.seed,
            only: self.only.clone(),
            state: Some(self.state.clone()),
            limit: self.seconds.map(Duration::from_secs),
        })
    }
}
