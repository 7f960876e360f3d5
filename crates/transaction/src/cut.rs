//! Whether snapshots of several shards show the same transactions, as pure code.
//!
//! Each shard's snapshot shows which markers are committed in it. A transaction over shards A and B whose marker is in A's
//! snapshot and not in B's was committed on A first: B's snapshot is too old, and is taken again. When no such transaction is
//! left, the snapshots are a *cut*: every transaction is visible everywhere or nowhere.
//!
//! A portal's snapshot is taken when it is bound, so a statement's own snapshot cannot list its markers. They are read by two
//! other portals, bound before and after: what the first shows, the statement sees; what the second does not show, it does not
//! see; what is only in the second is open, and the shard is bound again.
//!
//! The lists are short, because transactions that were known to be settled *before the cut began* are visible in every
//! snapshot of it and are left out: by a watermark for each gateway, the same on all shards.

use crate::gid::Gid;
use pgherd_model::ShardId;
use std::collections::BTreeSet;
use std::time::Duration;

/// What is known of settled transactions may not be older than this when a cut begins.
pub const KNOWLEDGE_LIMIT: Duration = Duration::from_secs(10);
/// A cut that takes longer begins anew on all shards: markers may be gone by then.
pub const TIME_LIMIT: Duration = Duration::from_secs(12);

/// What one shard showed around the statement's snapshots.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// markers in a snapshot before the first of them
    pub before: BTreeSet<Gid>,
    /// markers in a snapshot after the last of them
    pub after: BTreeSet<Gid>,
    /// whether all snapshots in between are one and the same; only asked for where there are several
    pub is_one: bool,
}

impl Seen {
    /// What a snapshot shows that can be asked itself.
    pub fn of_one(markers: BTreeSet<Gid>) -> Self {
        Self {
            before: markers.clone(),
            after: markers,
            is_one: true,
        }
    }
}

/// The shards whose snapshots must be taken again; empty when this is a cut. `earlier` is what the transaction's earlier
/// statements saw: it does not go back in time.
pub fn stale(seen: &[(ShardId, &Seen)], earlier: &BTreeSet<Gid>) -> BTreeSet<ShardId> {
    let mut stale = BTreeSet::new();
    let shows = |shard: ShardId, gid: &Gid| seen.iter().any(|(s, seen)| *s == shard && seen.before.contains(gid));
    for (shard, here) in seen {
        // Only what another shard of the cut can contradict has to be known.
        let open = here.after.difference(&here.before);
        let matters = |gid: &Gid| {
            seen.iter()
                .any(|(other, _)| other != shard && gid.participants.contains(other))
        };
        if !here.is_one || open.into_iter().any(matters) {
            stale.insert(*shard);
        }
    }
    for gid in seen.iter().flat_map(|(_, seen)| &seen.before).chain(earlier) {
        let lacking = seen
            .iter()
            .map(|(s, _)| *s)
            .filter(|s| gid.participants.contains(s) && !shows(*s, gid));
        stale.extend(lacking);
    }
    stale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gid::SequenceId;

    const NONE: [u32; 0] = [];

    fn gid(number: u64, participants: &[u32]) -> Gid {
        Gid {
            cluster: "c".into(),
            database: "d".into(),
            participants: participants.iter().map(|n| ShardId(*n)).collect(),
            sequence: SequenceId {
                gateway: "g".into(),
                incarnation: 1,
                generation: 0,
            },
            number,
            last: None,
        }
    }

    fn seen(before: &[&Gid], after: &[&Gid]) -> Seen {
        let set = |gids: &[&Gid]| gids.iter().map(|g| (*g).clone()).collect();
        Seen {
            before: set(before),
            after: set(after),
            is_one: true,
        }
    }

    fn check(shards: &[Seen], earlier: &[&Gid]) -> Vec<u32> {
        let shards: Vec<_> = shards
            .iter()
            .enumerate()
            .map(|(n, s)| (ShardId(n as u32 + 1), s))
            .collect();
        let earlier = earlier.iter().map(|g| (*g).clone()).collect();
        stale(&shards, &earlier).into_iter().map(|s| s.0).collect()
    }

    #[test]
    fn the_shard_that_lacks_a_marker_is_older() {
        let g = gid(1, &[1, 2]);
        assert_eq!(check(&[seen(&[], &[]), seen(&[], &[])], &[]), NONE);
        assert_eq!(check(&[seen(&[&g], &[&g]), seen(&[&g], &[&g])], &[]), NONE);
        assert_eq!(check(&[seen(&[&g], &[&g]), seen(&[], &[])], &[]), [2]);
        let of_others = gid(2, &[1, 4]);
        assert_eq!(
            check(&[seen(&[&of_others], &[&of_others]), seen(&[], &[])], &[]),
            NONE,
            "shard 4 is not in the cut"
        );
    }

    #[test]
    fn what_came_in_between_is_open() {
        let g = gid(1, &[1, 2]);
        assert_eq!(check(&[seen(&[], &[&g]), seen(&[], &[])], &[]), [1]);
        assert_eq!(check(&[seen(&[], &[&g]), seen(&[&g], &[&g])], &[]), [1]);
        let of_others = gid(2, &[1, 4]);
        assert_eq!(check(&[seen(&[], &[&of_others]), seen(&[], &[])], &[]), NONE);
        let mut torn = seen(&[], &[]);
        torn.is_one = false;
        assert_eq!(check(&[torn, seen(&[], &[])], &[]), [1]);
    }

    #[test]
    fn a_transaction_does_not_go_back_in_time() {
        let g = gid(1, &[1, 2]);
        assert_eq!(check(&[seen(&[], &[]), seen(&[], &[])], &[&g]), [1, 2]);
        assert_eq!(check(&[seen(&[&g], &[&g]), seen(&[&g], &[&g])], &[&g]), NONE);
    }
}
