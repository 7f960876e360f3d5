//! PostgreSQL's own regression and isolation tests, from its sources, on a plain PostgreSQL and on pgherd: are the results
//! the same?
//!
//! The sources are not part of this project: without a folder of them, nothing is run. Nor are PostgreSQL's expected files
//! used. What a plain PostgreSQL of the same machine answers is what is expected, so that locale, build and version count
//! for nothing. The tests run one after the other in the order of their schedules, first all of them on PostgreSQL, then all
//! of them on pgherd, since later ones need what earlier ones have made.
//!
//! `suite` runs the tests as PostgreSQL's own drivers do, `score` compares two outputs statement by statement, `report` writes
//! the table of `docs/compatibility.md`.

mod arguments;
mod report;
mod score;
mod suite;

pub use arguments::Arguments;
pub use report::Report;
pub use score::{Difference, Score};

use crate::Result;
use std::path::PathBuf;
use std::time::Duration;
use suite::Suite;

/// What to run, where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The sources of PostgreSQL, as their archive unpacks.
    pub source: PathBuf,
    /// Folder of `regress.so`, `refint.so` and `autoinc.so`, which tests load; readable by the servers.
    pub modules: PathBuf,
    /// PostgreSQL's `isolationtester`; the isolation tests are run instead of the regression tests.
    pub isolationtester: Option<PathBuf>,
    /// Plain PostgreSQL.
    pub reference: String,
    /// pgherd.
    pub url: String,
    /// Settings of pgherd's sessions.
    pub settings: Vec<(String, String)>,
    /// Only these tests; all of the schedule where it is empty.
    pub only: Vec<String>,
    /// Use the databases of the two URLs as they are.
    pub keep_databases: bool,
    /// Nothing is run: the outputs that an earlier run has left are compared.
    pub compare_only: bool,
    /// Where outputs are left.
    pub output: PathBuf,
    /// How long one file may take.
    pub file_limit: Duration,
}

/// Runs the tests on both servers and compares.
///
/// # Errors
/// Sources without tests, a program that cannot be run, a server that cannot be reached. Differences are no error.
pub async fn run(options: &Options) -> Result<Report> {
    let suite = Suite::open(options)?;
    let (expected, actual) = match options.compare_only {
        true => (suite.outputs("postgresql")?, suite.outputs("pgherd")?),
        false => (
            suite.run(&options.reference, &[], "postgresql").await?,
            suite.run(&options.url, &options.settings, "pgherd").await?,
        ),
    };
    let files = suite.tests().iter().zip(expected.iter().zip(&actual));
    let scores = files.map(|(test, (expected, actual))| {
        let score = match &suite.script(test) {
            Some(script) => score::statements(script, expected, actual),
            None => score::permutations(expected, actual),
        };
        (test.clone(), score)
    });
    Ok(Report::new(suite.name(), scores.collect()))
}
