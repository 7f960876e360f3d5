//! The command line of `pgherd bench`, so that the binary only has to name it.

use super::{Kind, Options};
use crate::Result;
use crate::herd::cannot_run;
use clap::Args;
use std::path::PathBuf;

/// Compare pgherd with PostgreSQL and PgBouncer on this machine
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// How often each workload runs on each side
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long one run takes, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How many clients at a time
    #[arg(long, short, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    clients: u32,
    /// pgbench's scale: 100,000 accounts per unit
    #[arg(long, short, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    scale: u32,
    /// How many shards the pgherd clusters have
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    shards: u32,
    /// Only these workloads, such as select-simple,transfer
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these sides; PostgreSQL itself always takes part
    #[arg(long, value_enum, value_name = "SIDES", value_delimiter = ',')]
    sides: Vec<Kind>,
    /// The folder for the table and the plot
    #[arg(long, value_name = "FOLDER", default_value = "docs/benchmark")]
    output: PathBuf,
}

impl Arguments {
    /// What the arguments ask for, with gateways started from the running program.
    ///
    /// # Errors
    /// The system does not tell which program this is.
    pub fn options(self) -> Result<Options> {
        let program = std::env::current_exe().map_err(cannot_run("pgherd"))?;
        Ok(Options {
            rounds: self.rounds as usize,
            seconds: self.seconds,
            clients: self.clients as usize,
            scale: self.scale,
            shards: self.shards as usize,
            only: self.only,
            sides: self.sides,
            output: self.output,
            ..Options::new(program)
        })
    }
}
