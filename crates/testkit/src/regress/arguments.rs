//! The command line of `pgherd regress`, so that the binary only has to name it.

use super::Options;
use crate::files::parse_setting;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Run PostgreSQL's regression or isolation tests on PostgreSQL and on pgherd, and compare
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// The sources of PostgreSQL, as their archive unpacks
    #[arg(long, value_name = "FOLDER")]
    source: PathBuf,
    /// Folder of regress.so, refint.so and autoinc.so
    #[arg(long = "library", value_name = "FOLDER")]
    modules: PathBuf,
    /// PostgreSQL's isolationtester: run the isolation tests with it
    #[arg(long, value_name = "FILE")]
    isolationtester: Option<PathBuf>,
    /// A plain PostgreSQL, and the database to run in
    #[arg(long, value_name = "URL")]
    reference: String,
    /// pgherd, and the database to run in
    #[arg(
        long,
        env = "PGHERD_URL",
        default_value = "postgres://postgres@127.0.0.1:7432/regression"
    )]
    url: String,
    /// A setting for the start-up options of pgherd's sessions
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_setting)]
    settings: Vec<(String, String)>,
    /// Use the databases as they are, instead of making them anew
    #[arg(long)]
    keep_databases: bool,
    /// Run nothing: compare the outputs that an earlier run has left
    #[arg(long)]
    compare_only: bool,
    /// Where outputs are left
    #[arg(long, value_name = "FOLDER", default_value = "target/regress")]
    output: PathBuf,
    /// Seconds that one file may take
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    timeout: u64,
    /// Replace this suite's section of a page, such as docs/compatibility.md
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// How many percent of the files must be the same
    #[arg(long, default_value_t = 0, value_name = "PERCENT")]
    pub least: usize,
    /// Only these tests
    #[arg(value_name = "TEST")]
    only: Vec<String>,
}

impl Arguments {
    /// What the arguments ask for.
    pub fn options(&self) -> Options {
        Options {
            source: self.source.clone(),
            modules: self.modules.clone(),
            isolationtester: self.isolationtester.clone(),
            reference: self.reference.clone(),
            url: self.url.clone(),
            settings: self.settings.clone(),
            only: self.only.clone(),
            keep_databases: self.keep_databases,
            compare_only: self.compare_only,
            output: self.output.clone(),
            file_limit: Duration::from_secs(self.timeout),
        }
    }
}
