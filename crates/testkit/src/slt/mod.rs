//! Runs sqllogictest files against any server that speaks PostgreSQL's protocol.
//!
//! The file format and the comparison are those of the `sqllogictest` crate; this module brings the connection, a clean
//! place for every file, progress, a report, and the rewriting of expected results. It knows nothing of pgherd: labels
//! for `onlyif` and `skipif` come from the caller.
//!
//! One call to [`run`] walks a file as follows: the crate's `place` makes a schema or a database if asked to,
//! `database` opens a session for each `connection` name, `file` applies the records and collects failures, the
//! crate's `report` shows them.

mod arguments;
mod classic;
mod database;
mod file;
mod rewrite;

pub use crate::{Failure, FileOutcome, Isolation, Summary};
pub use arguments::Arguments;

use crate::report::Progress;
use crate::wire::{Protocol, Target};
use crate::{Result, files};
use futures::StreamExt;
use std::path::PathBuf;
use std::time::Duration;

/// What to run, where, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// `postgres://user@host:port/database?options=…`, or PostgreSQL's `key=value` form.
    pub url: String,
    /// Files, folders (searched for `*.slt`), in the order in which they are reported.
    pub files: Vec<PathBuf>,
    /// How many files run at the same time; at least 1. More than 1 wants an isolation other than `None`.
    pub jobs: usize,
    /// Which query protocol carries the statements.
    pub protocol: Protocol,
    /// Whether each file gets a schema or a database of its own.
    pub isolation: Isolation,
    /// Settings for the start-up options of every session, such as `pgherd.default_distribution`.
    pub settings: Vec<(String, String)>,
    /// Labels that `onlyif` and `skipif` know, next to `postgres`, `postgresql` and `simple` or `extended`.
    pub labels: Vec<String>,
    /// Goes on after a failed record instead of leaving the file.
    pub keep_going: bool,
    /// Counts a record that fails with 0A000 as refused instead of failed. The file goes on after it where that cannot
    /// change what follows, else the rest is skipped.
    pub accept_refusals: bool,
    /// Compares the column types too: `I` integers, `R` other numbers, `T` the rest, `?` anything.
    pub check_types: bool,
    /// Reads SQLite's original dialect of the format: a value per line, printed as the query's type letters say.
    pub classic: bool,
    /// Writes what the server answers into the files as the expected result, instead of comparing.
    pub rewrite: bool,
    /// How long one statement may take.
    pub statement_limit: Duration,
    /// Whether progress and failures go to the terminal.
    pub show: bool,
}

impl Options {
    /// The usual choices: simple protocol, no isolation, one file after another, progress shown.
    pub fn new(url: impl Into<String>, files: Vec<PathBuf>) -> Self {
        Options {
            url: url.into(),
            files,
            jobs: 1,
            protocol: Protocol::Simple,
            isolation: Isolation::None,
            settings: Vec::new(),
            labels: Vec::new(),
            keep_going: false,
            accept_refusals: false,
            check_types: false,
            classic: false,
            rewrite: false,
            statement_limit: Duration::from_secs(60),
            show: true,
        }
    }

    pub(crate) fn target(&self) -> Result<Target> {
        let target: Target = self.url.parse()?;
        Ok(self
            .settings
            .iter()
            .fold(target, |target, (name, value)| target.with_setting(name, value)))
    }
}

/// Runs all files and returns what became of each, in the order given.
///
/// # Errors
/// A bad URL, a server that cannot be reached at all, or a path that names no file. Failed files are not an error here:
/// see [`Summary::all_passed`].
pub async fn run(options: Options) -> Result<Summary> {
    let target = options.target()?;
    let files = files::find(&options.files, "slt")?;
    // One connection ahead of the files: a server that is down should be one message, not one per file.
    target.connect().await?.close().await;
    let progress = Progress::new(files.len(), options.show);
    let runs = files.into_iter().map(|path| {
        let (options, target, progress) = (&options, &target, &progress);
        async move {
            progress.started(&path);
            let outcome = file::run(path, target, options).await;
            progress.finished(&outcome);
            outcome
        }
    });
    let files = futures::stream::iter(runs)
        .buffered(options.jobs.max(1))
        .collect()
        .await;
    progress.done();
    Ok(Summary { files })
}
