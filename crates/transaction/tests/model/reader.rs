//! The reader, whose cut [`stale`] judges.

use crate::steps::id;
use crate::world::*;
use pgherd_transaction::cut::{Seen, stale};
use pgherd_transaction::gid::{Gid, SequenceId};
use std::collections::BTreeSet;

/// Takes the snapshot of one shard, between what it lists before and after.
pub fn bind(world: &mut World, s: usize) {
    let shard = &world.shards[s];
    if let Reader::Binding { knows, bound } = &mut world.reader
        && bound[s].is_none()
    {
        bound[s] = Some(Snapshot {
            rows: shard.part.is_visible(),
            listed: shard.shows_marker() && !*knows,
        });
    }
}

/// The rule for cuts, and whether what it lets through is whole.
pub fn judge(world: &mut World) {
    let Reader::Binding { bound, .. } = &mut world.reader else {
        return;
    };
    let Some(shown) = bound.iter().copied().collect::<Option<Vec<_>>>() else {
        return;
    };
    let gid = Gid {
        cluster: "c".into(),
        database: "d".into(),
        participants: (0..shown.len()).map(id).collect(),
        sequence: SequenceId {
            gateway: "g".into(),
            incarnation: 1,
            generation: 0,
        },
        number: 1,
        last: world.last.map(id),
    };
    let list = |listed: bool| {
        if listed {
            BTreeSet::from([gid.clone()])
        } else {
            BTreeSet::new()
        }
    };
    let seen: Vec<Seen> = shown.iter().map(|s| Seen::of_one(list(s.listed))).collect();
    let seen: Vec<_> = seen.iter().enumerate().map(|(s, seen)| (id(s), seen)).collect();
    let again = stale(&seen, &BTreeSet::new());
    for shard in &again {
        bound[index(*shard)] = None;
    }
    if !again.is_empty() {
        world.refreshed = true;
        return;
    }
    if shown.iter().any(|s| s.rows != shown[0].rows) {
        world.wrong = Some(Wrong::Fractured);
    }
    world.reader = Reader::Done;
}
