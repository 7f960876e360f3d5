//! The command line of `pgherd differential`, so that the binary only has to name it.

use super::{Kind, Options};
use crate::Result;
use crate::herd::cannot_run;
use clap::Args;
use std::time::Duration;

/// Run random statements on plain PostgreSQL and on three shards, and show what does not agree
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// Where schemas, rows and statements come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many statements
    #[arg(long, default_value_t = 2000)]
    queries: u64,
    /// The first statement's number: with --queries 1 that one alone
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    from: u64,
    /// Ends after so many minutes, if the statements last longer
    #[arg(long)]
    minutes: Option<f64>,
    /// Only these kinds of statements
    #[arg(long, value_enum, value_name = "KINDS", value_delimiter = ',')]
    only: Vec<Kind>,
    /// How many schemas at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Show differences as they are found, without making them smaller
    #[arg(long)]
    as_found: bool,
}

impl Arguments {
    /// What the arguments ask for, with a gateway started from the running program.
    ///
    /// # Errors
    /// The system does not tell which program this is.
    pub fn options(self) -> Result<Options> {
        let program = std::env::current_exe().map_err(cannot_run("pgherd"))?;
        let mut options = Options::new(program, self.seed, self.queries);
        options.first = self.from;
        options.time = self
            .minutes
            .map(|minutes| Duration::from_secs_f64((minutes * 60.0).max(1.0)));
        if !self.only.is_empty() {
            options.kinds = self.only;
        }
        options.jobs = self.jobs;
        options.shrink = !self.as_found;
        options.show = true;
        Ok(options)
    }
}
