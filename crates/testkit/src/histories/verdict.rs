//! What a checker says.

use super::record::{Outcome, Record};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many violations of one kind are told in full; the rest are counted.
const MOST_TOLD: usize = 5;
/// An explanation longer than this helps nobody.
const LONGEST: usize = 1500;

/// What a workload's checker found in a history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Steps whose outcome was told as success: transactions, and statements where these are steps of their own.
    pub ok: u64,
    /// Steps that certainly did not happen.
    pub failed: u64,
    /// Steps whose outcome nobody could tell.
    pub unknown: u64,
    /// Of the successful steps, those in which something was read and compared.
    pub reads: u64,
    /// What docs/isolation.md says can happen at this level, and how often it did.
    pub named: BTreeMap<String, u64>,
    /// What must not happen: a sample of each kind.
    pub violations: Vec<String>,
    /// How many violations there were of each kind.
    pub kinds: BTreeMap<String, u64>,
}

impl Verdict {
    /// Counts the steps; `is_read` says which of them were compared with others.
    pub(super) fn of<T>(records: &[Record<T>], is_read: impl Fn(&T) -> bool) -> Self {
        let mut verdict = Verdict::default();
        for record in records {
            match record.outcome {
                Outcome::Ok => {
                    verdict.ok += 1;
                    verdict.reads += u64::from(is_read(&record.what));
                }
                Outcome::Failed => verdict.failed += 1,
                Outcome::Unknown => verdict.unknown += 1,
            }
        }
        verdict
    }

    /// Notes what must not happen.
    pub(super) fn violation(&mut self, kind: &str, text: impl Into<String>) {
        let count = self.kinds.entry(kind.to_owned()).or_default();
        *count += 1;
        if *count as usize <= MOST_TOLD {
            let text = text.into();
            let short: String = text.chars().take(LONGEST).collect();
            self.violations.push(format!("{kind}: {short}"));
        }
    }

    /// Notes what the level allows.
    pub(super) fn named(&mut self, kind: &str) {
        *self.named.entry(kind.to_owned()).or_default() += 1;
    }

    /// How many violations there were, those included that are not told in full.
    pub fn violation_count(&self) -> u64 {
        self.kinds.values().sum()
    }
}
