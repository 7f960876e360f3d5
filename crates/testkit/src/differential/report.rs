//! What a run found.

use super::compare::Verdict;
use super::side::Carrier;
use regex::Regex;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

/// Something that is not the same on both sides.
#[derive(Debug, Clone)]
pub(super) struct Difference {
    pub(super) number: u64,
    pub(super) carrier: Carrier,
    pub(super) what: String,
    /// For psql.
    pub(super) script: String,
}

/// The account of a run. Its `Display` is for people.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How many statements were run, each by every protocol.
    pub statements: u64,
    with_rows: u64,
    without_rows: u64,
    open: u64,
    errors: BTreeMap<String, u64>,
    /// By message, with how many, an example's number and the shortest example.
    refusals: BTreeMap<String, (u64, u64, String)>,
    pub(super) differences: Vec<Difference>,
}

impl Report {
    pub(super) fn count(&mut self, number: u64, carrier: Carrier, sql: &str, verdict: &Verdict) {
        self.statements += u64::from(carrier == Carrier::Simple);
        match verdict {
            Verdict::Same(0) => self.without_rows += 1,
            Verdict::Same(_) => self.with_rows += 1,
            Verdict::SameError(code) => *self.errors.entry(code.clone()).or_default() += 1,
            Verdict::Refused(message) => {
                static NAMES: LazyLock<Regex> = LazyLock::new(|| Regex::new("\"[^\"]*\"").expect("a pattern"));
                let reason = NAMES.replace_all(message, "\"…\"").into_owned();
                self.refuse(reason, (1, number, sql.to_owned()));
            }
            Verdict::Open => self.open += 1,
            Verdict::Differs(_) => {}
        }
    }

    /// The counts, without the differences.
    pub fn summary(&self) -> impl fmt::Display + '_ {
        Summary(self)
    }

    /// How many statements do not give the same on both sides.
    pub fn differences(&self) -> usize {
        self.differences.len()
    }

    /// How many answers with rows were compared, over all protocols.
    pub fn answers_with_rows(&self) -> u64 {
        self.with_rows
    }

    fn refuse(&mut self, reason: String, (count, number, sql): (u64, u64, String)) {
        let known = self.refusals.entry(reason).or_insert((0, number, sql.clone()));
        known.0 += count;
        if sql.len() < known.2.len() {
            (known.1, known.2) = (number, sql);
        }
    }

    /// Adds another run's account.
    pub(super) fn add(&mut self, other: Report) {
        self.statements += other.statements;
        self.with_rows += other.with_rows;
        self.without_rows += other.without_rows;
        self.open += other.open;
        for (code, count) in other.errors {
            *self.errors.entry(code).or_default() += count;
        }
        for (reason, refused) in other.refusals {
            self.refuse(reason, refused);
        }
        self.differences.extend(other.differences);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for difference in &self.differences {
            writeln!(f, "{difference}")?;
        }
        write!(f, "{}", self.summary())
    }
}

/// The counts without the differences.
struct Summary<'a>(&'a Report);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let this = self.0;
        let errors: u64 = this.errors.values().sum();
        let refused: u64 = this.refusals.values().map(|(count, _, _)| count).sum();
        writeln!(
            f,
            "{} statements by {} protocols: {} answers with rows, {} without, {errors} errors, {} open, {refused} refused, {} differences",
            this.statements,
            Carrier::ALL.len(),
            this.with_rows,
            this.without_rows,
            this.open,
            this.differences.len(),
        )?;
        let counted: Vec<_> = this
            .errors
            .iter()
            .map(|(code, count)| format!("{count} × {code}"))
            .collect();
        writeln!(f, "errors: {}", counted.join(", "))?;
        for (reason, (count, number, sql)) in &this.refusals {
            writeln!(f, "refused {count} ×: {reason}\n  such as {number}: {sql}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "-- DIFFERENCE {}, {}", self.number, self.carrier)?;
        for line in self.what.lines() {
            writeln!(f, "--   {line}")?;
        }
        f.write_str(&self.script)
    }
}
