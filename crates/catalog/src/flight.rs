//! Statements in flight, counted by the names they use, and names that are closed by a change.
//!
//! A statement first counts itself and then looks whether a name is closed; a change first closes its names and then
//! waits until the counts are zero. Both sides are sequentially consistent, so one of them sees the other (Dekker).

use parking_lot::RwLock;
use pgherd_model::Snapshot;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

/// Names share counters: a long statement may hold up a change of another name with the same stripe.
const STRIPES: usize = 4096;
/// Stands for all names, in a statement's list and in a change's.
pub(crate) const ALL_NAMES: u64 = 0;

/// The counters and the closed names of one catalog.
pub(crate) struct Flight {
    stripes: Box<[AtomicU32]>,
    total: AtomicUsize,
    closed_count: AtomicUsize,
    closed: RwLock<HashMap<u64, i64>>,
}

impl Flight {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            stripes: (0..STRIPES).map(|_| AtomicU32::new(0)).collect(),
            total: AtomicUsize::new(0),
            closed_count: AtomicUsize::new(0),
            closed: RwLock::default(),
        })
    }

    fn stripe(name: u64) -> u16 {
        // The upper bits too, in case a hash is weak in its lower ones.
        ((name ^ (name >> 32)) % STRIPES as u64) as u16
    }

    /// Counts a statement in.
    pub(crate) fn register(self: &Arc<Self>, names: &[u64]) -> Registration {
        let mut stripes = Stripes::default();
        self.total.fetch_add(1, SeqCst);
        for &name in names {
            let stripe = Self::stripe(name);
            self.stripes[stripe as usize].fetch_add(1, SeqCst);
            stripes.push(stripe);
        }
        Registration {
            flight: self.clone(),
            stripes,
        }
    }

    /// Whether one of the names is closed by a change other than `own`.
    pub(crate) fn is_closed(&self, names: &[u64], own: Option<i64>) -> bool {
        if self.closed_count.load(SeqCst) == 0 {
            return false;
        }
        let closed = self.closed.read();
        let other = |name: &u64| closed.get(name).is_some_and(|&root| Some(root) != own);
        other(&ALL_NAMES)
            || names
                .iter()
                .any(|name| other(name) || (*name == ALL_NAMES && closed.values().any(|&root| Some(root) != own)))
    }

    /// Replaces the set of closed names, each with the change that closes it.
    pub(crate) fn set_closed(&self, names: impl IntoIterator<Item = (u64, i64)>) {
        let mut closed = self.closed.write();
        closed.clear();
        closed.extend(names);
        self.closed_count.store(closed.len(), SeqCst);
    }

    /// Adds closed names.
    pub(crate) fn close(&self, names: impl IntoIterator<Item = (u64, i64)>) {
        let mut closed = self.closed.write();
        closed.extend(names);
        self.closed_count.store(closed.len(), SeqCst);
    }

    /// Opens names that `root` has closed.
    pub(crate) fn open(&self, names: &[u64], root: i64) {
        let mut closed = self.closed.write();
        for name in names {
            if closed.get(name) == Some(&root) {
                closed.remove(name);
            }
        }
        self.closed_count.store(closed.len(), SeqCst);
    }

    /// Whether no statement in flight uses one of the names.
    pub(crate) fn is_drained(&self, names: &[u64]) -> bool {
        names.iter().all(|&name| {
            if name == ALL_NAMES {
                self.total.load(SeqCst) == 0
            } else {
                self.stripes[Self::stripe(name) as usize].load(SeqCst) == 0
            }
        })
    }
}

/// Stripes of one statement; most have few names.
#[derive(Default)]
struct Stripes {
    count: u8,
    inline: [u16; 6],
    more: Vec<u16>,
}

impl Stripes {
    fn push(&mut self, stripe: u16) {
        match self.inline.get_mut(self.count as usize) {
            Some(slot) => {
                *slot = stripe;
                self.count += 1;
            }
            None => self.more.push(stripe),
        }
    }

    fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.inline[..self.count as usize].iter().chain(&self.more).copied()
    }
}

/// A statement that is counted; dropping it counts it out.
pub(crate) struct Registration {
    flight: Arc<Flight>,
    stripes: Stripes,
}

impl Drop for Registration {
    fn drop(&mut self) {
        for stripe in self.stripes.iter() {
            self.flight.stripes[stripe as usize].fetch_sub(1, SeqCst);
        }
        self.flight.total.fetch_sub(1, SeqCst);
    }
}

/// A statement under way: as long as this lives, no change of its names takes effect. Drop it when the last row is with
/// the client.
pub struct StatementGuard {
    /// what the statement is routed by
    pub snapshot: Arc<Snapshot>,
    pub(crate) registration: Registration,
    pub(crate) lease: Arc<crate::heartbeat::Lease>,
    pub(crate) generation: u64,
}

impl StatementGuard {
    /// Whether the lease held all the time since the statement began. Ask after the shards' reply came and before its rows
    /// go to the client: the answer of a gateway that was paused may be stale.
    pub fn is_valid(&self) -> bool {
        self.lease.is_valid() && self.lease.generation() == self.generation
    }

    /// The same, where there is time to take a lease again that has lapsed: it holds if nothing has changed meanwhile.
    pub async fn holds(&self) -> bool {
        self.lease.holds(self.generation).await
    }
}

impl std::fmt::Debug for StatementGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.registration.stripes.iter().collect();
        write!(f, "StatementGuard(epoch {}, stripes {names:?})", self.snapshot.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_one_name_neither_sees_nor_stops_statements_on_another() {
        let flight = Flight::new();
        let other = flight.register(&[7]);
        flight.close([(5, 1)]);
        assert!(flight.is_drained(&[5]) && !flight.is_drained(&[7]));
        assert!(flight.is_closed(&[5], None) && !flight.is_closed(&[7], None));
        assert!(
            !flight.is_closed(&[5], Some(1)),
            "the changing transaction itself goes on"
        );
        drop(other);
        assert!(flight.is_drained(&[7]));
    }

    #[test]
    fn a_change_of_all_names_waits_for_every_statement() {
        let flight = Flight::new();
        let statement = flight.register(&[7, 8, 9, 10, 11, 12, 13, 14]);
        flight.close([(ALL_NAMES, 1)]);
        assert!(!flight.is_drained(&[ALL_NAMES]));
        assert!(flight.is_closed(&[7], None));
        drop(statement);
        assert!(flight.is_drained(&[ALL_NAMES]));
    }
}
