//! What a run shows: progress while it runs, the failures, a table at the end.

use crate::Error;
use crate::files::short_path;
use comfy_table::{CellAlignment, Table, presets};
use console::{Term, style};
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What became of one file.
#[derive(Debug, Clone)]
pub struct FileOutcome {
    /// The file.
    pub path: PathBuf,
    /// How many statements and queries were run.
    pub records: usize,
    /// What went wrong, in order; empty if the file passed.
    pub failures: Vec<Failure>,
    /// What the server said it does not support, where that is accepted.
    pub refusals: Vec<Failure>,
    /// How many statements and queries could not be run after a failure or a refusal.
    pub skipped: usize,
    /// Wall-clock time.
    pub elapsed: Duration,
}

impl FileOutcome {
    pub(crate) fn new(path: PathBuf) -> Self {
        FileOutcome {
            path,
            records: 0,
            failures: Vec::new(),
            refusals: Vec::new(),
            skipped: 0,
            elapsed: Duration::ZERO,
        }
    }

    /// Whether every record that was run did what the file says, but for accepted refusals.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

/// In a few words: `ok`, or how much failed, was refused, was skipped.
impl fmt::Display for FileOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.failures.len(), "failed"),
            (self.refusals.len(), "refused"),
            (self.skipped, "skipped"),
        ];
        let said: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        f.write_str(if said.is_empty() { "ok".into() } else { said.join(", ") }.as_str())
    }
}

/// One thing that went wrong in a file.
#[derive(Debug, Clone)]
pub struct Failure {
    pub(crate) plain: String,
    pub(crate) coloured: String,
}

impl Failure {
    /// The statement, what was expected and what came; with ANSI colours if asked for.
    pub fn text(&self, coloured: bool) -> &str {
        if coloured { &self.coloured } else { &self.plain }
    }
}

impl From<sqllogictest::TestError> for Failure {
    fn from(error: sqllogictest::TestError) -> Self {
        Failure {
            plain: error.display(false).to_string(),
            coloured: error.display(true).to_string(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let plain = error.to_string();
        Failure {
            coloured: plain.clone(),
            plain,
        }
    }
}

/// The outcome of a whole run. Its `Display` is a table.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// In the order in which they were asked for.
    pub files: Vec<FileOutcome>,
}

impl Summary {
    /// Whether every file passed.
    pub fn all_passed(&self) -> bool {
        self.files.iter().all(FileOutcome::passed)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table
            .load_preset(presets::UTF8_FULL_CONDENSED)
            .set_header(["file", "records", "ms", "result"]);
        for file in &self.files {
            let elapsed_ms = file.elapsed.as_millis().to_string();
            table.add_row([
                short_path(&file.path),
                file.records.to_string(),
                elapsed_ms,
                file.to_string(),
            ]);
        }
        for numbers in [1, 2] {
            if let Some(column) = table.column_mut(numbers) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let passed = self.files.iter().filter(|file| file.passed()).count();
        let records: usize = self.files.iter().map(|file| file.records).sum();
        write!(
            f,
            "{table}\n{passed} of {} files passed, {records} records",
            self.files.len()
        )
    }
}

/// The same files on several servers. Its `Display` is a table of file and server.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// The servers' names and what became of the files there; all with the same files.
    pub targets: Vec<(String, Summary)>,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        let names = self.targets.iter().map(|(name, _)| name.clone());
        table
            .load_preset(presets::ASCII_MARKDOWN)
            .set_header(std::iter::once("file".to_owned()).chain(names));
        let Some((_, first)) = self.targets.first() else {
            return Ok(());
        };
        for (row, file) in first.files.iter().enumerate() {
            let name = file
                .path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            let cells = self.targets.iter().map(|(_, summary)| summary.files[row].to_string());
            table.add_row(std::iter::once(name).chain(cells));
        }
        write!(f, "{table}")
    }
}

/// A progress bar on a terminal, a line per file elsewhere, nothing if not asked for.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    show: bool,
    coloured: bool,
}

impl Progress {
    pub(crate) fn new(files: usize, show: bool) -> Self {
        let terminal = Term::stderr().features().is_attended();
        let bar = (show && terminal).then(|| {
            let template = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}");
            ProgressBar::new(files as u64).with_style(template.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress {
            bar,
            show,
            coloured: terminal && console::colors_enabled_stderr(),
        }
    }

    pub(crate) fn started(&self, path: &Path) {
        if let Some(bar) = &self.bar {
            bar.set_message(short_path(path));
        }
    }

    pub(crate) fn finished(&self, outcome: &FileOutcome) {
        let path = short_path(&outcome.path);
        match &self.bar {
            Some(bar) => {
                bar.inc(1);
                if !outcome.passed() {
                    bar.suspend(|| self.print_failures(&path, outcome));
                }
            }
            None if self.show && outcome.passed() => {
                eprintln!(
                    "ok     {path} ({} records, {} ms)",
                    outcome.records,
                    outcome.elapsed.as_millis()
                );
            }
            None if self.show => self.print_failures(&path, outcome),
            None => {}
        }
    }

    pub(crate) fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn print_failures(&self, path: &str, outcome: &FileOutcome) {
        let heading = style(format!("FAILED {path}"))
            .red()
            .bold()
            .force_styling(self.coloured);
        eprintln!("{heading}");
        for failure in &outcome.failures {
            for line in failure.text(self.coloured).trim_end().lines() {
                eprintln!("       {line}");
            }
            eprintln!();
        }
    }
}
