//! The command line of `pgherd tpch`.

use super::{Layout, Options};
use crate::Result;
use crate::herd::cannot_run;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Run TPC-H on plain PostgreSQL and on pgherd: compare answers and times
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// TPC-H's scale factor: about a gigabyte of tables per unit, three times over
    #[arg(long, short, default_value_t = 1.0)]
    scale: f64,
    /// How often each query runs on each side
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only these queries, such as 1,6,13
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    only: Vec<u8>,
    /// Only these layouts of pgherd's tables
    #[arg(long, value_enum, value_name = "LAYOUTS", value_delimiter = ',')]
    layouts: Vec<Layout>,
    /// A query that takes more seconds has failed
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// Fill the tables, say where they are, and wait for Ctrl-C
    #[arg(long)]
    serve: bool,
    /// The folder for the table
    #[arg(long, value_name = "FOLDER", default_value = "docs/benchmark")]
    pub output: PathBuf,
}

impl Arguments {
    /// What the arguments ask for, with gateways started from the running program.
    ///
    /// # Errors
    /// The system does not tell which program this is.
    pub fn options(&self) -> Result<Options> {
        let program = std::env::current_exe().map_err(cannot_run("pgherd"))?;
        let mut options = Options::new(program);
        if !self.layouts.is_empty() {
            options.layouts = self.layouts.clone();
        }
        Ok(Options {
            scale: self.scale,
            rounds: self.rounds as usize,
            only: self.only.clone(),
            limit: Duration::from_secs(self.limit),
            show: true,
            serve: self.serve,
            ..options
        })
    }
}
