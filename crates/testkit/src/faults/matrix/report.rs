//! What the matrix found, as a page.

use super::Verdict;
use super::case::{Case, Companion};
use crate::Result;
use crate::herd::file_error;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Cases with their verdicts.
pub struct Report {
    verdicts: Vec<(Case, Verdict)>,
}

impl Report {
    pub(super) fn new(verdicts: Vec<(Case, Verdict)>) -> Self {
        Self { verdicts }
    }

    /// One line for each case in which something is wrong.
    pub fn wrong(&self) -> Vec<String> {
        let wrong = self.verdicts.iter().filter(|(_, v)| !v.wrong.is_empty());
        wrong
            .map(|(case, v)| {
                format!(
                    "{case}: {} (told {}, committed {})",
                    v.wrong.join("; "),
                    v.told,
                    v.committed
                )
            })
            .collect()
    }

    /// Writes the page.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        std::fs::write(file, self.page()).map_err(file_error(file))
    }

    /// The page `docs/faults.md`.
    pub fn page(&self) -> String {
        let mut text = String::from(
            "# Faults\n\n\
             Written by `cargo run -- faults`; [life-of-a-commit.md](life-of-a-commit.md) explains the steps. A transaction writes on both of two \
             shards (shard 1 is the home shard). At the step, something happens; then whatever was taken down comes back. Each cell \
             says what the client was told, and how it ended: C committed on both shards, R rolled back on both; first with no other \
             gateway, then with another one alive. All of it holds in each cell: nothing is prepared five seconds after the last restart, both shards \
             agree, what was acknowledged is there, what was refused is not, an answer came in time. **What does not hold is in bold.**\n\n\
             *no answer*: the gateway of the client was killed, or its connection ended. 08007: the client was told that the outcome is unknown.\n",
        );
        let mut paths: BTreeMap<_, Vec<&(Case, Verdict)>> = BTreeMap::new();
        for entry in &self.verdicts {
            paths.entry(entry.0.path).or_default().push(entry);
        }
        for (path, entries) in paths {
            let mut faults: Vec<_> = entries.iter().map(|(c, _)| c.fault).collect();
            faults.sort();
            faults.dedup();
            let mut points: Vec<&str> = Vec::new();
            for (case, _) in &entries {
                if !points.contains(&case.point) {
                    points.push(case.point);
                }
            }
            let _ = write!(text, "\n## {path}\n\n| step |");
            faults.iter().for_each(|fault| _ = write!(text, " {fault} |"));
            text.push_str("\n|---|");
            faults.iter().for_each(|_| text.push_str("---|"));
            for point in points {
                let _ = write!(text, "\n| {point} |");
                for fault in &faults {
                    let cell = |companion| {
                        let found = entries
                            .iter()
                            .find(|(c, _)| c.point == point && c.fault == *fault && c.companion == companion);
                        found.map_or_else(|| "–".into(), |(_, v)| cell_of(v))
                    };
                    let _ = write!(text, " {}; {} |", cell(Companion::None), cell(Companion::Alive));
                }
            }
            text.push('\n');
        }
        let slowest = self.verdicts.iter().map(|(_, v)| v.settled_ms).max().unwrap_or(0);
        let wrong = self.wrong();
        let _ = write!(
            text,
            "\n{} cases, {} of them wrong. The slowest took {slowest} ms from the last restart until nothing was prepared.\n",
            self.verdicts.len(),
            wrong.len()
        );
        for line in wrong {
            let _ = writeln!(text, "- {line}");
        }
        text
    }
}

fn cell_of(verdict: &Verdict) -> String {
    let end = if verdict.committed { "C" } else { "R" };
    match verdict.wrong.is_empty() {
        true => format!("{} {end}", verdict.told),
        false => format!("**{} {end}**", verdict.told),
    }
}
