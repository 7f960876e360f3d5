//! What clients write down, in one order for all of them.

use super::client::Stop;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};

/// What a client knows of its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    Ok,
    Failed,
    Unknown,
}

impl Outcome {
    pub(super) fn of<T>(result: &Result<T, Stop>) -> Self {
        match result {
            Ok(_) => Outcome::Ok,
            Err(Stop::Failed) => Outcome::Failed,
            Err(Stop::Unknown) => Outcome::Unknown,
        }
    }

    /// Whether it may have taken effect.
    pub(super) fn is_possible(self) -> bool {
        self != Outcome::Failed
    }
}

/// One transaction, or one statement where that is a step of its own.
#[derive(Debug, Clone)]
pub(super) struct Record<T> {
    /// Steps of one process come one after the other.
    pub(super) process: u64,
    /// The clock before it was sent: what ended before this moment, ended before the step began.
    pub(super) begun: u64,
    /// The clock after its answer.
    pub(super) ended: u64,
    pub(super) outcome: Outcome,
    pub(super) what: T,
}

/// Everything that the clients of one workload wrote down.
#[derive(Debug)]
pub(super) struct Log<T>(Mutex<Vec<Record<T>>>);

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Log<T> {
    pub(super) fn push(&self, record: Record<T>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }

    /// Takes all records, in the order in which they began.
    pub(super) fn take(&self) -> Vec<Record<T>> {
        let mut records = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        records.sort_by_key(|record| record.begun);
        records
    }
}

/// The greatest value of those that had ended before a moment. For what can only grow.
pub(super) struct Grown(Vec<(u64, i64)>);

impl Grown {
    /// From moments and values, in any order.
    pub(super) fn new(mut points: Vec<(u64, i64)>) -> Self {
        points.sort_unstable();
        let mut most = i64::MIN;
        for point in &mut points {
            most = most.max(point.1);
            point.1 = most;
        }
        Self(points)
    }

    /// `None` when nothing had ended yet.
    pub(super) fn before(&self, moment: u64) -> Option<i64> {
        let count = self.0.partition_point(|(ended, _)| *ended < moment);
        count.checked_sub(1).map(|last| self.0[last].1)
    }
}
