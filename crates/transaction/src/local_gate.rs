//! A lock for two groups, commits and cuts: any number of either may be inside, but not of both where they touch.
//!
//! A commit is inside while it becomes visible on one shard after the other, a cut while it takes its snapshots: so no cut finds
//! a commit of this gateway half visible. They touch when they have two shards or more in common. The groups take turns: who
//! arrives while the other group waits, waits as well, and whoever leaves last lets in all who wait on the other side. Nobody waits
//! for a commit that takes too long: its shard may not answer.

use crate::gid::Gid;
use parking_lot::{Mutex, MutexGuard};
use pgherd_model::ShardId;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A commit that is inside for longer is passed by.
const OVERDUE: Duration = Duration::from_millis(250);

/// The two groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// makes a transaction visible on several shards
    Commit,
    /// takes snapshots of several shards
    Cut,
}

/// A set of shards, which a name of a transaction can tell too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShardMask([u128; 2]);

impl FromIterator<ShardId> for ShardMask {
    fn from_iter<I: IntoIterator<Item = ShardId>>(shards: I) -> Self {
        let mut mask = [0; 2];
        for shard in shards.into_iter().filter(|shard| Gid::fits(*shard)) {
            mask[shard.0 as usize / 128] |= 1 << (shard.0 % 128);
        }
        Self(mask)
    }
}

impl ShardMask {
    /// Whether a transaction over these shards can be half visible in snapshots of those.
    fn touches(self, other: Self) -> bool {
        let common = |at: usize| (self.0[at] & other.0[at]).count_ones();
        common(0) + common(1) > 1
    }
}

/// The lock.
#[derive(Default)]
pub(crate) struct LocalGate {
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    last_id: u64,
    inside: Vec<Inside>,
    waiting: Vec<Waiting>,
}

struct Inside {
    id: u64,
    group: Group,
    shards: ShardMask,
    since: Instant,
}

struct Waiting {
    id: u64,
    group: Group,
    shards: ShardMask,
    admitted: oneshot::Sender<Pass>,
}

/// Inside, until it is dropped.
pub(crate) struct Pass {
    gate: Arc<LocalGate>,
    id: u64,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.leave(self.id);
    }
}

/// Waits, until it is dropped: then those behind it need not wait for it any more.
struct Place<'a> {
    gate: &'a Arc<LocalGate>,
    id: u64,
    group: Group,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.gate.give_up(self.id, self.group);
    }
}

impl LocalGate {
    /// Whether somebody of the other group is inside, or waits.
    pub(crate) fn is_contended(&self, group: Group, shards: ShardMask) -> bool {
        self.entries.lock().keep_out(group, shards)
    }

    /// Enters when nobody of the other group is inside or waits, or when that was waited for long enough.
    pub(crate) async fn enter(self: &Arc<Self>, group: Group, shards: ShardMask, limit: Option<Duration>) -> Pass {
        let (place, admission) = {
            let mut entries = self.entries.lock();
            if !entries.keep_out(group, shards) {
                return self.admit(&mut entries, group, shards);
            }
            let (admitted, admission) = oneshot::channel();
            let id = entries.next_id();
            entries.waiting.push(Waiting {
                id,
                group,
                shards,
                admitted,
            });
            (Place { gate: self, id, group }, admission)
        };
        let admitted = match limit {
            Some(limit) => tokio::time::timeout(limit, admission).await.ok(),
            None => Some(admission.await),
        };
        match admitted {
            Some(Ok(pass)) => pass,
            _ => {
                let pass = self.admit(&mut self.entries.lock(), group, shards);
                drop(place);
                pass
            }
        }
    }

    fn admit(self: &Arc<Self>, entries: &mut Entries, group: Group, shards: ShardMask) -> Pass {
        let id = entries.next_id();
        entries.inside.push(Inside {
            id,
            group,
            shards,
            since: Instant::now(),
        });
        Pass { gate: self.clone(), id }
    }

    fn leave(self: &Arc<Self>, id: u64) {
        let mut entries = self.entries.lock();
        if let Some(at) = entries.inside.iter().position(|inside| inside.id == id) {
            let group = entries.inside.swap_remove(at).group;
            self.sweep(entries, group.other());
        }
    }

    fn give_up(self: &Arc<Self>, id: u64, group: Group) {
        let mut entries = self.entries.lock();
        if let Some(at) = entries.waiting.iter().position(|waiting| waiting.id == id) {
            entries.waiting.remove(at);
            self.sweep(entries, group.other());
        }
    }

    /// Lets in all of that group that nobody inside keeps out, then those of the other one that need not wait for its next turn.
    fn sweep(self: &Arc<Self>, mut entries: MutexGuard<'_, Entries>, first: Group) {
        let mut admitted = Vec::new();
        for turn in [first, first.other()] {
            let (here, others) = std::mem::take(&mut entries.waiting)
                .into_iter()
                .partition(|waiting| waiting.group == turn);
            entries.waiting = others;
            let mut left = Vec::new();
            for waiting in here {
                let enters = match turn == first {
                    true => !entries.is_inside(turn.other(), waiting.shards),
                    false => !entries.keep_out(turn, waiting.shards),
                };
                if enters {
                    let pass = self.admit(&mut entries, turn, waiting.shards);
                    admitted.push((waiting.admitted, pass));
                } else {
                    left.push(waiting);
                }
            }
            entries.waiting.append(&mut left);
        }
        drop(entries);
        for (sender, pass) in admitted {
            // Whoever does not wait any more leaves at once.
            let _ = sender.send(pass);
        }
    }
}

impl Entries {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Whether one of this group waits for the other.
    fn keep_out(&self, group: Group, shards: ShardMask) -> bool {
        let other = group.other();
        let waits = |waiting: &Waiting| waiting.group == other && waiting.shards.touches(shards);
        self.is_inside(other, shards) || self.waiting.iter().any(waits)
    }

    /// Whether somebody of the group is inside, and is waited for.
    fn is_inside(&self, group: Group, shards: ShardMask) -> bool {
        self.inside.iter().any(|inside| {
            let counts = inside.group == Group::Cut || inside.since.elapsed() < OVERDUE;
            inside.group == group && inside.shards.touches(shards) && counts
        })
    }
}

impl Group {
    fn other(self) -> Self {
        match self {
            Self::Commit => Self::Cut,
            Self::Cut => Self::Commit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn mask(shards: &[u32]) -> ShardMask {
        shards.iter().map(|n| ShardId(*n)).collect()
    }

    #[test]
    fn groups_take_turns() {
        let gate = Arc::new(LocalGate::default());
        let enter = |group| Box::pin(gate.enter(group, mask(&[1, 2]), None));
        let first = enter(Group::Commit).now_or_never().expect("nobody is inside");
        let second = enter(Group::Commit).now_or_never().expect("commits share");
        let mut cut = enter(Group::Cut);
        assert!((&mut cut).now_or_never().is_none());
        let (mut third, mut fourth) = (enter(Group::Commit), enter(Group::Commit));
        assert!((&mut third).now_or_never().is_none(), "a cut waits");
        assert!((&mut fourth).now_or_never().is_none());
        let mut other_cut = enter(Group::Cut);
        assert!((&mut other_cut).now_or_never().is_none());
        drop(first);
        assert!((&mut cut).now_or_never().is_none());
        drop(second);
        let cut = cut.now_or_never().expect("all commits have left");
        let other_cut = other_cut.now_or_never().expect("cuts share");
        drop(cut);
        assert!((&mut third).now_or_never().is_none());
        let mut late_cut = enter(Group::Cut);
        assert!((&mut late_cut).now_or_never().is_none(), "commits wait");
        drop(other_cut);
        let third = third.now_or_never().expect("the cuts have left");
        // One that gives up is not waited for, whether it was let in or not.
        drop(fourth);
        drop(late_cut);
        drop(third);
        assert!(!gate.is_contended(Group::Cut, mask(&[1, 2])));
        assert!(!gate.is_contended(Group::Commit, mask(&[1, 2])));
    }

    #[test]
    fn nobody_waits_behind_one_who_has_given_up() {
        let gate = Arc::new(LocalGate::default());
        let inside = gate.enter(Group::Commit, mask(&[1, 2]), None).now_or_never();
        let mut cut = Box::pin(gate.enter(Group::Cut, mask(&[1, 2]), None));
        assert!((&mut cut).now_or_never().is_none());
        let mut behind = Box::pin(gate.enter(Group::Commit, mask(&[1, 2]), None));
        assert!((&mut behind).now_or_never().is_none());
        drop(cut);
        assert!(behind.now_or_never().is_some() && inside.is_some());
    }

    #[test]
    fn one_common_shard_shows_no_half() {
        let gate = Arc::new(LocalGate::default());
        let _commit = gate.enter(Group::Commit, mask(&[1, 2]), None).now_or_never();
        assert!(!gate.is_contended(Group::Cut, mask(&[2, 3])));
        assert!(gate.is_contended(Group::Cut, mask(&[1, 2, 3])));
        assert!(!gate.is_contended(Group::Commit, mask(&[1, 2])));
        assert!(!gate.is_contended(Group::Cut, mask(&[129, 130])));
    }

    #[tokio::test]
    async fn what_does_not_leave_is_passed_by() {
        let gate = Arc::new(LocalGate::default());
        let _stuck = gate.enter(Group::Commit, mask(&[1, 2]), None).await;
        let limit = Some(Duration::from_millis(20));
        let cut = gate.enter(Group::Cut, mask(&[1, 2]), limit).await;
        let mut commit = Box::pin(gate.enter(Group::Commit, mask(&[1, 2]), None));
        assert!((&mut commit).now_or_never().is_none(), "the cut is inside all the same");
        drop(cut);
        assert!(commit.now_or_never().is_some());
    }
}
