//! What to do with a transaction that somebody left between the two phases, as pure code: [`decide`] takes what was seen
//! on each of its shards. Looking and acting is `resolver`'s work, which then looks again, until it is settled.
//!
//! - A visible marker p anywhere: all shards were prepared. Commit the rest. Where it is the *last* one's, whose COMMIT was the
//!   decision, a small write there first: after a crash its marker shows before its standby has it.
//! - A marker a anywhere: one shard can never be prepared. Roll back the rest.
//! - Prepared on all: commit, once a small write has come back from each of them. `pg_prepared_xacts` also lists a
//!   transaction whose PREPARE still waits for its standby, and that may yet be lost.
//! - Missing on one: it is not prepared there *yet*. Fence it, and look again.

use pgherd_model::ShardId;

/// What was seen on one shard: prepared transactions first, markers after them, so that a commit in between shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Observation {
    /// no answer
    Unreachable,
    /// in `pg_prepared_xacts`, no marker visible
    Prepared,
    /// marker p is visible
    Committed,
    /// marker a is visible
    Fenced,
    /// none of them
    Missing,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// COMMIT PREPARED there
    Commit(Vec<ShardId>),
    /// ROLLBACK PREPARED there
    RollBack(Vec<ShardId>),
    /// write there, and wait until it is as durable as that shard makes things; then ask again with `confirmed`
    Confirm(Vec<ShardId>),
    /// write marker a there, then look again
    Fence(Vec<ShardId>),
    /// nothing can be done before these shards answer
    Wait(Vec<ShardId>),
    /// nothing is left to do; `lost` lists shards without a transaction that others have committed
    Settled {
        /// whether it is committed
        committed: bool,
        /// empty unless a shard lost data
        lost: Vec<ShardId>,
    },
    /// committed on one and fenced on another, which the protocol rules out: for a person to look at
    Torn,
}

/// Decides from what was seen on all participants, of which `last` was to commit without being prepared.
pub fn decide(seen: &[(ShardId, Observation)], last: Option<ShardId>, confirmed: bool) -> Decision {
    use Observation::*;
    let all =
        |wanted: Observation| -> Vec<ShardId> { seen.iter().filter(|(_, o)| *o == wanted).map(|(s, _)| *s).collect() };
    let (prepared, committed, fenced) = (all(Prepared), all(Committed), all(Fenced));
    let (missing, unreachable) = (all(Missing), all(Unreachable));
    if !committed.is_empty() && !fenced.is_empty() {
        return Decision::Torn;
    }
    if !prepared.is_empty() {
        return if !committed.is_empty() {
            // Any other one is committed only after the last one is so for good.
            let by_last_alone = committed.iter().all(|shard| Some(*shard) == last);
            match by_last_alone && !confirmed {
                true => Decision::Confirm(committed),
                false => Decision::Commit(prepared),
            }
        } else if !fenced.is_empty() {
            Decision::RollBack(prepared)
        } else if !missing.is_empty() {
            Decision::Fence(missing)
        } else if !unreachable.is_empty() {
            Decision::Wait(unreachable)
        } else if confirmed {
            Decision::Commit(prepared)
        } else {
            Decision::Confirm(prepared)
        };
    }
    // Nothing is prepared where it can be seen, but it may yet become so where nobody has fenced it.
    if committed.is_empty() && fenced.is_empty() && !missing.is_empty() {
        return Decision::Fence(missing);
    }
    if !unreachable.is_empty() {
        return Decision::Wait(unreachable);
    }
    // Seen missing, perhaps before the others were prepared: only a second look tells that it was lost.
    if !committed.is_empty() && !missing.is_empty() && !confirmed {
        return Decision::Confirm(missing);
    }
    Decision::Settled {
        committed: !committed.is_empty(),
        lost: if committed.is_empty() { Vec::new() } else { missing },
    }
}

#[cfg(test)]
mod tests {
    use super::Observation::*;
    use super::*;

    const A: ShardId = ShardId(1);
    const B: ShardId = ShardId(2);
    const C: ShardId = ShardId(3);

    #[test]
    fn each_case() {
        let settled = |committed, lost: &[ShardId]| Decision::Settled {
            committed,
            lost: lost.to_vec(),
        };
        let cases = [
            ([Prepared, Prepared, Prepared], false, Decision::Confirm(vec![A, B, C])),
            ([Prepared, Prepared, Prepared], true, Decision::Commit(vec![A, B, C])),
            ([Committed, Prepared, Unreachable], false, Decision::Commit(vec![B])),
            ([Committed, Committed, Unreachable], false, Decision::Wait(vec![C])),
            ([Committed, Prepared, Missing], false, Decision::Commit(vec![B])),
            ([Committed, Committed, Missing], false, Decision::Confirm(vec![C])),
            ([Committed, Committed, Missing], true, settled(true, &[C])),
            ([Committed, Committed, Committed], false, settled(true, &[])),
            ([Fenced, Prepared, Missing], false, Decision::RollBack(vec![B])),
            ([Fenced, Missing, Missing], false, settled(false, &[])),
            ([Fenced, Prepared, Unreachable], false, Decision::RollBack(vec![B])),
            ([Fenced, Missing, Unreachable], false, Decision::Wait(vec![C])),
            ([Prepared, Missing, Missing], true, Decision::Fence(vec![B, C])),
            ([Prepared, Missing, Unreachable], false, Decision::Fence(vec![B])),
            ([Prepared, Prepared, Unreachable], true, Decision::Wait(vec![C])),
            ([Missing, Missing, Missing], false, Decision::Fence(vec![A, B, C])),
            ([Committed, Fenced, Prepared], false, Decision::Torn),
        ];
        for (seen, confirmed, expected) in cases {
            let seen: Vec<_> = [A, B, C].into_iter().zip(seen).collect();
            assert_eq!(decide(&seen, None, confirmed), expected, "{seen:?}");
        }
    }

    #[test]
    fn the_last_ones_marker_is_confirmed_first() {
        let seen = |a, b, c| [(A, a), (B, b), (C, c)];
        let last = Some(A);
        let decided = seen(Committed, Prepared, Prepared);
        assert_eq!(decide(&decided, last, false), Decision::Confirm(vec![A]));
        assert_eq!(decide(&decided, last, true), Decision::Commit(vec![B, C]));
        let begun = seen(Committed, Committed, Prepared);
        assert_eq!(decide(&begun, last, false), Decision::Commit(vec![C]));
        let undecided = seen(Missing, Prepared, Prepared);
        assert_eq!(decide(&undecided, last, false), Decision::Fence(vec![A]));
        assert_eq!(
            decide(&seen(Unreachable, Prepared, Prepared), last, true),
            Decision::Wait(vec![A])
        );
    }
}
