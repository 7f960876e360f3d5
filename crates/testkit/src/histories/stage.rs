//! What all clients of a run share: where the gateways are, the clock, what errors were seen, and when it is over.

use super::{Level, Workload};
use crate::wire::Target;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

/// SQLSTATEs that faults and concurrency explain. Anything else that a client is told is a bug: here nothing is misspelt,
/// forbidden or too big.
const EXPLAINED: [&str; 7] = ["connection lost", "40001", "40P01", "53300", "55P03", "57014", "25P02"];

pub(super) struct Stage {
    pub(super) level: Level,
    pub(super) seed: u64,
    clock: AtomicU64,
    processes: AtomicU64,
    closing: AtomicBool,
    gateways: Vec<RwLock<Target>>,
    errors: Mutex<BTreeMap<String, (u64, String)>>,
    /// By workload, how many steps were successful.
    steps: [AtomicU64; Workload::ALL.len()],
}

impl Stage {
    pub(super) fn new(level: Level, seed: u64, gateways: Vec<Target>) -> Self {
        Self {
            level,
            seed,
            clock: AtomicU64::new(1),
            processes: AtomicU64::new(1),
            closing: AtomicBool::new(false),
            gateways: gateways.into_iter().map(RwLock::new).collect(),
            errors: Mutex::default(),
            steps: Default::default(),
        }
    }

    /// The next moment. What was ticked before another tick was asked for has a smaller number.
    pub(super) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// A name for a line of steps that come one after the other.
    pub(super) fn new_process(&self) -> u64 {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn is_open(&self) -> bool {
        !self.closing.load(Ordering::SeqCst)
    }

    /// Clients finish what they are at and begin nothing new.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    pub(super) fn gateways(&self) -> usize {
        self.gateways.len()
    }

    pub(super) fn gateway(&self, number: usize) -> Target {
        let target = self.gateways[number % self.gateways.len()].read();
        target.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A gateway was started again, elsewhere.
    pub(super) fn moved(&self, number: usize, target: Target) {
        *self.gateways[number].write().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Counts a successful step.
    pub(super) fn stepped(&self, workload: Workload) {
        self.steps[workload as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The fewest successful steps of any of these workloads.
    pub(super) fn least_steps(&self, workloads: &[Workload]) -> u64 {
        let steps = workloads
            .iter()
            .map(|workload| self.steps[*workload as usize].load(Ordering::Relaxed));
        steps.min().unwrap_or_default()
    }

    /// Counts an error, and keeps the first message of its kind.
    pub(super) fn note(&self, state: &str, message: &str) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = errors
            .entry(state.to_owned())
            .or_insert_with(|| (0, message.to_owned()));
        entry.0 += 1;
    }

    /// The errors that clients were told, with how often and an example.
    pub(super) fn errors(&self) -> BTreeMap<String, (u64, String)> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether faults or other clients explain this error.
pub(super) fn is_explained(state: &str) -> bool {
    state.starts_with("08") || state.starts_with("57P") || EXPLAINED.contains(&state)
}
