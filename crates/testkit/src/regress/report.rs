//! What a suite gave, as a table, and as a section of a page.

use super::Score;
use crate::Result;
use crate::herd::file_error;
use std::fmt::{self, Write};
use std::path::Path;

/// The scores of a suite's files.
#[derive(Debug, Clone)]
pub struct Report {
    suite: &'static str,
    scores: Vec<(String, Score)>,
}

impl Report {
    pub(super) fn new(suite: &'static str, scores: Vec<(String, Score)>) -> Self {
        Self { suite, scores }
    }

    /// How many percent of the files gave the same output, rounded down.
    pub fn percent_identical(&self) -> usize {
        let identical = self.scores.iter().filter(|(_, score)| score.identical).count();
        identical * 100 / self.scores.len().max(1)
    }

    /// Writes all statements that differ into `differences.txt` of that folder, for reading.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_differences(&self, folder: &Path) -> Result<()> {
        let file = folder.join("differences.txt");
        std::fs::write(&file, self.differences()).map_err(file_error(&file))
    }

    fn differences(&self) -> String {
        let mut text = String::new();
        for (test, score) in &self.scores {
            for difference in &score.differences {
                let _ = writeln!(
                    text,
                    "=== {test}\n{}\n--- PostgreSQL\n{}\n--- pgherd\n{}\n",
                    difference.statement.trim(),
                    difference.expected,
                    difference.actual
                );
            }
        }
        text
    }

    /// Replaces this suite's section in a page, between two comments; a page without it gets one at its end.
    ///
    /// # Errors
    /// The page cannot be read or written.
    pub fn write(&self, page: &Path) -> Result<()> {
        let (begin, end) = (
            format!("<!-- {} tests: written by `pgherd regress` -->\n", self.suite),
            format!("<!-- end of {} tests -->\n", self.suite),
        );
        let text = std::fs::read_to_string(page).map_err(file_error(page))?;
        let section = format!("{begin}\n{self}\n{end}");
        let place = text.find(&begin).zip(text.find(&end));
        let text = match place {
            Some((from, to)) => format!("{}{section}{}", &text[..from], &text[to + end.len()..]),
            None => format!("{}\n\n{section}", text.trim_end()),
        };
        std::fs::write(page, text).map_err(file_error(page))
    }
}

/// A sum, and the files that are not the same.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |of: fn(&Score) -> usize| self.scores.iter().map(|(_, score)| of(score)).sum::<usize>();
        let identical = self.scores.iter().filter(|(_, score)| score.identical).count();
        let unit = if self.suite == "isolation" {
            "permutations"
        } else {
            "statements"
        };
        writeln!(
            f,
            "{identical} of {} files give PostgreSQL's output to the byte ({} %). Of {} {unit}, {} give the same lines, {} the \
             same lines in another order, {} other lines.\n",
            self.scores.len(),
            self.percent_identical(),
            sum(Score::statements),
            sum(|s| s.same),
            sum(|s| s.reordered),
            sum(|s| s.differences.len()),
        )?;
        let differing: Vec<_> = self.scores.iter().filter(|(_, score)| !score.identical).collect();
        if differing.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "| file | {unit} | same | another order | different |\n|---|---|---|---|---|"
        )?;
        for (test, score) in differing {
            writeln!(
                f,
                "| {test} | {} | {} | {} | {} |",
                score.statements(),
                score.same,
                score.reordered,
                score.differences.len()
            )?;
        }
        Ok(())
    }
}
