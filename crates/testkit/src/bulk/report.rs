//! What was found, as a table for people and as JSON.

use super::Options;
use crate::Result;
use crate::bench::Spread;
use crate::files::write_page;
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;

/// One piece of work on one side.
#[derive(Debug, Clone, Serialize)]
pub struct SideRate {
    /// which side
    pub side: &'static str,
    /// over the rounds
    pub rows_per_second: Option<Spread>,
    /// the same divided by plain PostgreSQL's in the same round
    pub ratio: Option<Spread>,
}

/// One piece of work.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// a short name
    pub name: &'static str,
    /// what the table calls it
    pub title: &'static str,
    /// plain PostgreSQL first
    pub sides: Vec<SideRate>,
    /// why it failed on pgherd, or how what it wrote differs
    pub problem: Option<String>,
}

/// All of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// how many rows each table got
    pub rows: u64,
    /// how often each piece of work ran on each side
    pub rounds: usize,
    /// how many cores everything together had
    pub cores: usize,
    /// in order
    pub works: Vec<Measured>,
    /// of the gateway, at the end
    pub peak_memory_bytes: u64,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            rows: options.rows,
            rounds: options.rounds,
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            ..Self::default()
        }
    }

    /// What failed or differs, in words.
    pub fn problems(&self) -> Vec<String> {
        let failed = |work: &Measured| Some(format!("{}: {}", work.name, work.problem.as_ref()?));
        self.works.iter().filter_map(failed).collect()
    }

    /// The table, as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| work | PostgreSQL, rows/s | pgherd, rows/s | ratio |\n|---|---|---|---|\n");
        for work in &self.works {
            let _ = write!(text, "| {} |", work.title);
            for side in &work.sides {
                let _ = write!(text, " {} |", Spread::show(side.rows_per_second, 0));
            }
            let ratio = work.sides.last().and_then(|side| side.ratio);
            let ratio = if work.problem.is_some() {
                "wrong".into()
            } else {
                Spread::show(ratio, 2)
            };
            let _ = writeln!(text, " {ratio} |");
        }
        text
    }

    fn notes(&self) -> String {
        let mut text = format!(
            "\nMedians of {} rounds, (smallest–largest). {} rows of about 75 bytes, three ranges on three shards, {} cores for \
             everything together. Written by `pgherd bulk`; [benchmark.md](../benchmark.md#bulk) says how.\n\n\
             - peak memory of the gateway: {} MiB\n",
            self.rounds,
            self.rows,
            self.cores,
            self.peak_memory_bytes >> 20
        );
        for problem in self.problems() {
            let _ = writeln!(text, "- WRONG: {problem}");
        }
        text
    }

    /// Writes `bulk.md` and `bulk.json` into the folder.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let page = format!("# Bulk\n\n{}{}", self.markdown(), self.notes());
        write_page(folder, "bulk", &page, self)
    }
}
