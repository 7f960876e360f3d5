//! What to do with a transaction that a client has prepared, as pure code: [`decide`] takes what its row says and what was seen
//! on its shards.

use crate::recovery::Observation;
use pgherd_model::ShardId;

/// What the row of the home shard says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// there is none
    Missing,
    /// its gateway is at it
    Preparing,
    /// all shards have it, and it is the client's to end
    Prepared,
    /// COMMIT PREPARED
    Commit,
    /// ROLLBACK PREPARED, or it could not be prepared
    RollBack,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// nothing: somebody else's turn
    Hold,
    /// have its row say that it is rolled back, unless it has come to be prepared meanwhile; then look again
    GiveUp,
    /// COMMIT PREPARED there
    Commit(Vec<ShardId>),
    /// ROLLBACK PREPARED there
    RollBack(Vec<ShardId>),
    /// nothing can be done before these shards answer
    Wait(Vec<ShardId>),
    /// ended everywhere; `lost` lists shards without a transaction that was prepared there
    Settled {
        /// whether it is committed
        committed: bool,
        /// empty unless a shard lost data
        lost: Vec<ShardId>,
    },
    /// committed on one shard and to be rolled back, which the protocol rules out: for a person to look at
    Torn,
}

/// Decides from the row, read before the shards were looked at. `live`: its gateway may be at it. `marked`: it wrote a marker
/// where it was prepared.
pub fn decide(record: Record, live: bool, marked: bool, seen: &[(ShardId, Observation)]) -> Decision {
    match record {
        Record::Prepared => return Decision::Hold,
        Record::Preparing | Record::Missing if live => return Decision::Hold,
        Record::Preparing => return Decision::GiveUp,
        Record::Missing | Record::Commit | Record::RollBack => {}
    }
    let all =
        |wanted: Observation| -> Vec<ShardId> { seen.iter().filter(|(_, o)| *o == wanted).map(|(s, _)| *s).collect() };
    let is_committed = !all(Observation::Committed).is_empty();
    // Without a row, a marker tells: the row was there until all was committed, unless the home shard lost it.
    let commits = match record {
        Record::Commit => true,
        Record::RollBack if is_committed => return Decision::Torn,
        _ => is_committed,
    };
    let (prepared, unreachable) = (all(Observation::Prepared), all(Observation::Unreachable));
    if !prepared.is_empty() {
        return match commits {
            true => Decision::Commit(prepared),
            // A shard that does not answer may show that it was committed.
            false if record == Record::Missing && !unreachable.is_empty() => Decision::Wait(unreachable),
            false => Decision::RollBack(prepared),
        };
    }
    if !unreachable.is_empty() {
        return Decision::Wait(unreachable);
    }
    let lost = match commits && marked {
        true => [all(Observation::Missing), all(Observation::Fenced)].concat(),
        false => Vec::new(),
    };
    Decision::Settled {
        committed: commits,
        lost,
    }
}

#[cfg(test)]
mod tests {
    use super::Observation::{Committed, Missing, Prepared, Unreachable};
    use super::*;

    const A: ShardId = ShardId(1);
    const B: ShardId = ShardId(2);

    fn check(record: Record, live: bool, seen: [Observation; 2]) -> Decision {
        let seen: Vec<_> = [A, B].into_iter().zip(seen).collect();
        decide(record, live, true, &seen)
    }

    fn settled(committed: bool, lost: &[ShardId]) -> Decision {
        let lost = lost.to_vec();
        Decision::Settled { committed, lost }
    }

    #[test]
    fn prepared_is_the_clients_to_end() {
        for live in [true, false] {
            assert_eq!(check(Record::Prepared, live, [Prepared, Prepared]), Decision::Hold);
            assert_eq!(check(Record::Prepared, live, [Prepared, Missing]), Decision::Hold);
        }
    }

    #[test]
    fn what_a_dead_gateway_was_preparing_is_given_up() {
        assert_eq!(check(Record::Preparing, true, [Prepared, Missing]), Decision::Hold);
        assert_eq!(check(Record::Preparing, false, [Prepared, Missing]), Decision::GiveUp);
        assert_eq!(check(Record::Preparing, false, [Prepared, Prepared]), Decision::GiveUp);
    }

    #[test]
    fn what_is_decided_is_carried_out_by_anybody() {
        let commit = |seen| check(Record::Commit, true, seen);
        assert_eq!(commit([Prepared, Prepared]), Decision::Commit(vec![A, B]));
        assert_eq!(commit([Committed, Prepared]), Decision::Commit(vec![B]));
        assert_eq!(commit([Prepared, Unreachable]), Decision::Commit(vec![A]));
        assert_eq!(commit([Committed, Unreachable]), Decision::Wait(vec![B]));
        assert_eq!(commit([Committed, Committed]), settled(true, &[]));
        assert_eq!(commit([Committed, Missing]), settled(true, &[B]));
        let back = |seen| check(Record::RollBack, true, seen);
        assert_eq!(back([Prepared, Prepared]), Decision::RollBack(vec![A, B]));
        assert_eq!(back([Missing, Prepared]), Decision::RollBack(vec![B]));
        assert_eq!(back([Missing, Unreachable]), Decision::Wait(vec![B]));
        assert_eq!(back([Missing, Missing]), settled(false, &[]));
        assert_eq!(back([Committed, Prepared]), Decision::Torn);
    }

    #[test]
    fn without_a_row_nobody_was_told() {
        assert_eq!(check(Record::Missing, true, [Prepared, Missing]), Decision::Hold);
        let dead = |seen| check(Record::Missing, false, seen);
        assert_eq!(dead([Prepared, Missing]), Decision::RollBack(vec![A]));
        assert_eq!(dead([Prepared, Unreachable]), Decision::Wait(vec![B]));
        assert_eq!(dead([Prepared, Committed]), Decision::Commit(vec![A]));
        assert_eq!(dead([Missing, Missing]), settled(false, &[]));
        assert_eq!(dead([Committed, Committed]), settled(true, &[]));
    }

    #[test]
    fn read_only_leaves_no_trace() {
        let seen = [(A, Missing)];
        assert_eq!(decide(Record::Commit, false, false, &seen), settled(true, &[]));
    }
}
