//! The numbers that this gateway gives to its commits, and which of them are settled.
//!
//! A number is *in flight* while the task that commits it lives: recovery leaves it alone. It is *unsettled* until its
//! transaction is known to be visible on all its shards or rolled back on all: the watermark stays below it.

use crate::gid::{Gid, SequenceId};
use parking_lot::Mutex;
use pgherd_model::ShardId;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers are unique in this process, so that databases of one gateway cannot take the same name.
static NEXT: AtomicU64 = AtomicU64::new(1);

pub(crate) struct Sequence {
    cluster: String,
    database: String,
    inner: Mutex<Inner>,
}

struct Inner {
    id: SequenceId,
    /// the highest number given under `id`
    last: i64,
    in_flight: HashSet<Gid>,
    unsettled: BTreeMap<(SequenceId, u64), Gid>,
}

/// A commit that is in flight until this is dropped.
pub(crate) struct InFlight {
    sequence: Arc<Sequence>,
    /// its name
    pub gid: Gid,
}

impl Sequence {
    pub(crate) fn new(cluster: String, database: String, id: SequenceId) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            database,
            inner: Mutex::new(Inner {
                id,
                last: -1,
                in_flight: HashSet::new(),
                unsettled: BTreeMap::new(),
            }),
        })
    }

    pub(crate) fn id(&self) -> SequenceId {
        self.inner.lock().id.clone()
    }

    /// Names a commit over these shards, of which one may commit last without being prepared.
    pub(crate) fn begin(self: &Arc<Self>, mut participants: Vec<ShardId>, last: Option<ShardId>) -> InFlight {
        participants.sort();
        let mut inner = self.inner.lock();
        // Under the lock, so that numbers of a sequence are given in order and the watermark holds.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let gid = Gid {
            cluster: self.cluster.clone(),
            database: self.database.clone(),
            participants,
            sequence: inner.id.clone(),
            number,
            last,
        };
        inner.last = number as i64;
        inner.in_flight.insert(gid.clone());
        inner.unsettled.insert((gid.sequence.clone(), number), gid.clone());
        InFlight {
            sequence: self.clone(),
            gid,
        }
    }

    /// Names a transaction that a client prepares. It is in flight until the client is told, and never among the unsettled:
    /// nothing waits for its end.
    pub(crate) fn begin_for_client(self: &Arc<Self>, mut participants: Vec<ShardId>) -> InFlight {
        participants.sort();
        let mut inner = self.inner.lock();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let gid = Gid {
            cluster: self.cluster.clone(),
            database: self.database.clone(),
            participants,
            sequence: inner.id.of_client(number),
            number,
            last: None,
        };
        inner.in_flight.insert(gid.clone());
        InFlight {
            sequence: self.clone(),
            gid,
        }
    }

    /// Others took this gateway for dead under `old`: go on under a new name.
    pub(crate) fn renew(&self, old: &SequenceId) {
        let mut inner = self.inner.lock();
        if inner.id == *old {
            inner.id.generation += 1;
            inner.last = -1;
        }
    }

    /// The current sequence, if nothing of this gateway is under way or unsettled.
    pub(crate) fn at_rest(&self) -> Option<SequenceId> {
        let inner = self.inner.lock();
        (inner.in_flight.is_empty() && inner.unsettled.is_empty()).then(|| inner.id.clone())
    }

    pub(crate) fn is_in_flight(&self, gid: &Gid) -> bool {
        self.inner.lock().in_flight.contains(gid)
    }

    /// Visible on all its shards, or rolled back on all.
    pub(crate) fn settle(&self, gid: &Gid) {
        self.inner.lock().unsettled.remove(&(gid.sequence.clone(), gid.number));
    }

    /// The current sequence, and up to where all its numbers are settled; -1 when none is.
    pub(crate) fn watermark(&self) -> (SequenceId, i64) {
        let inner = self.inner.lock();
        let first = inner.unsettled.range((inner.id.clone(), 0)..).next();
        let settled = match first {
            Some(((id, number), _)) if *id == inner.id => *number as i64 - 1,
            _ => inner.last,
        };
        (inner.id.clone(), settled)
    }

    /// Unsettled, and nobody works on them.
    pub(crate) fn abandoned(&self) -> Vec<Gid> {
        let inner = self.inner.lock();
        inner
            .unsettled
            .values()
            .filter(|g| !inner.in_flight.contains(g))
            .cloned()
            .collect()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.sequence.inner.lock().in_flight.remove(&self.gid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_does_not_pass_an_unsettled_number() {
        let id = SequenceId {
            gateway: "g".into(),
            incarnation: 1,
            generation: 0,
        };
        let sequence = Sequence::new("c".into(), "d".into(), id.clone());
        assert_eq!(sequence.watermark(), (id.clone(), -1));
        let (a, b) = (
            sequence.begin(vec![ShardId(2), ShardId(1)], None),
            sequence.begin(vec![ShardId(1), ShardId(2)], None),
        );
        assert_eq!(a.gid.participants, [ShardId(1), ShardId(2)]);
        assert_eq!(sequence.at_rest(), None);
        sequence.settle(&b.gid);
        assert_eq!(sequence.watermark().1, a.gid.number as i64 - 1, "a is not settled");
        assert!(sequence.abandoned().is_empty() && sequence.is_in_flight(&a.gid));
        let (a_gid, b_number) = (a.gid.clone(), b.gid.number as i64);
        drop(a);
        assert_eq!(sequence.abandoned(), std::slice::from_ref(&a_gid));
        assert_eq!(sequence.at_rest(), None, "a is not settled, and b in flight");
        sequence.settle(&a_gid);
        assert_eq!(sequence.watermark().1, b_number);
        sequence.renew(&id);
        assert_eq!(sequence.watermark().1, -1, "a new sequence starts over");
        assert_eq!(sequence.id().generation, 1);
        sequence.renew(&id);
        assert_eq!(sequence.id().generation, 1, "only once for one loss");
    }
}
