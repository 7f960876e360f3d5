//! What was found, as a table for people and as JSON.

use super::Options;
use crate::Result;
use crate::bench::Spread;
use crate::files::write_page;
use serde::Serialize;
use std::fmt::{Display, Formatter, Write};
use std::path::Path;

/// One query on one side.
#[derive(Debug, Clone, Serialize)]
pub struct SideOutcome {
    /// which side
    pub side: &'static str,
    /// how long it took, over the rounds
    pub seconds: Option<Spread>,
    /// the same divided by plain PostgreSQL's time in the same round
    pub ratio: Option<Spread>,
    /// why it failed, or how its answer differs
    pub problem: Option<String>,
}

impl SideOutcome {
    pub(super) fn new(side: &'static str) -> Self {
        Self {
            side,
            seconds: None,
            ratio: None,
            problem: None,
        }
    }
}

/// One query.
#[derive(Debug, Clone, Serialize)]
pub struct Query {
    /// its number
    pub number: u8,
    /// how many rows it returns
    pub rows: usize,
    /// plain PostgreSQL first
    pub sides: Vec<SideOutcome>,
}

impl Display for Query {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "query {}, {} rows:", self.number, self.rows)?;
        for side in &self.sides {
            match (&side.problem, side.seconds, side.ratio) {
                (Some(problem), ..) => write!(f, "  {}: WRONG: {problem}", side.side)?,
                (None, Some(seconds), Some(ratio)) => {
                    write!(f, "  {}: {:.3} s ({:.2})", side.side, seconds.median, ratio.median)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// All of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// TPC-H's scale factor
    pub scale: f64,
    /// how often each query ran on each side
    pub rounds: usize,
    /// how many cores everything together had
    pub cores: usize,
    /// in order
    pub queries: Vec<Query>,
    /// of each gateway
    pub peak_memory_bytes: Vec<(&'static str, u64)>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            scale: options.scale,
            rounds: options.rounds,
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            ..Self::default()
        }
    }

    /// What failed or differs, in words.
    pub fn problems(&self) -> Vec<String> {
        let sides = self
            .queries
            .iter()
            .flat_map(|q| q.sides.iter().map(move |s| (q.number, s)));
        sides
            .filter_map(|(number, side)| {
                let problem = side.problem.as_ref()?;
                Some(format!("query {number} on {}: {problem}", side.side))
            })
            .collect()
    }

    /// The geometric mean of the ratios of one side, by its place; None where a query has none.
    pub fn geometric_mean(&self, side: usize) -> Option<f64> {
        let logarithms: Option<Vec<f64>> = self
            .queries
            .iter()
            .map(|query| Some(query.sides.get(side)?.ratio?.median.ln()))
            .collect();
        let logarithms = logarithms.filter(|l| !l.is_empty())?;
        Some((logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp())
    }

    /// The table, as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| query | rows |");
        let sides: Vec<_> = self
            .queries
            .first()
            .map_or(Vec::new(), |q| q.sides.iter().map(|s| s.side).collect());
        for side in &sides {
            let _ = write!(text, " {side}, s |");
        }
        for side in sides.iter().skip(1) {
            let _ = write!(text, " {side}, ratio |");
        }
        let columns = 2 + 2 * sides.len() - usize::from(!sides.is_empty());
        let _ = write!(text, "\n|{}\n", "---|".repeat(columns));
        for query in &self.queries {
            let _ = write!(text, "| {} | {} |", query.number, query.rows);
            for side in &query.sides {
                let _ = match (&side.problem, side.seconds) {
                    (Some(_), _) => write!(text, " wrong |"),
                    (None, seconds) => write!(text, " {} |", Spread::show(seconds, 3)),
                };
            }
            for side in query.sides.iter().skip(1) {
                let _ = write!(text, " {} |", Spread::show(side.ratio, 2));
            }
            text.push('\n');
        }
        let _ = write!(text, "| geometric mean |{}", " |".repeat(1 + sides.len()));
        for side in 1..sides.len() {
            let mean = self
                .geometric_mean(side)
                .map_or("–".into(), |mean| format!("{mean:.2}"));
            let _ = write!(text, " {mean} |");
        }
        text.push('\n');
        text
    }

    fn notes(&self) -> String {
        let mut text = format!(
            "\nMedians of {} rounds, (smallest–largest). Scale {}, {} cores for everything together; a ratio above 1 is slower \
             than plain PostgreSQL. [benchmark.md](../benchmark.md#tpc-h) says how the tables lie.\n\n",
            self.rounds, self.scale, self.cores
        );
        for (side, bytes) in &self.peak_memory_bytes {
            let _ = writeln!(text, "- {side}: peak memory of the gateway {} MiB", bytes >> 20);
        }
        for problem in self.problems() {
            let _ = writeln!(text, "- WRONG: {problem}");
        }
        text
    }

    /// Writes `tpch.md` and `tpch.json` into the folder.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let page = format!("# TPC-H\n\n{}{}", self.markdown(), self.notes());
        write_page(folder, "tpch", &page, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_geometric_and_wrong_answers_show() {
        let outcome = |ratio: f64, problem: Option<&str>| SideOutcome {
            ratio: Spread::of([ratio]),
            problem: problem.map(str::to_owned),
            ..SideOutcome::new("pgherd, colocated")
        };
        let query = |number, ratio, problem| Query {
            number,
            rows: 1,
            sides: vec![SideOutcome::new("PostgreSQL"), outcome(ratio, problem)],
        };
        let report = Report {
            queries: vec![query(1, 0.5, None), query(2, 2.0, Some("no rows"))],
            ..Report::default()
        };
        assert_eq!(report.geometric_mean(1), Some(1.0));
        assert_eq!(report.problems(), ["query 2 on pgherd, colocated: no rows"]);
        assert!(report.markdown().contains("| 2 | 1 |"), "{}", report.markdown());
    }
}
