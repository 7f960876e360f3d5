//! The commit of a transaction with several writers, as pure code: [`Commit::step`] takes an [`Event`] and says what to do.
//!
//! There is no decision record. A transaction is decided when it is prepared on every shard it wrote (as in Cornus,
//! VLDB 2022): whoever finds all of them prepared commits, and whoever wants to abort must first keep one of them from
//! ever being prepared, with a fence. Sending, waiting and naming errors is `commit`'s work; what happens after a
//! gateway died is [`crate::recovery`]'s.
//!
//! ```text
//! Prepare ─ all prepared ───────────────► CommitPrepared ► (Committed)
//!    │     one refused ─────────────────► RollbackPrepared ► (Aborted)
//!    └──── a reply lost ► Fence ─ fenced ────────┘
//!                            ├─── prepared after all ► as if it had answered
//!                            └─── out of reach, or prepared without its standby ► (Unknown), recovery goes on
//! ```
//!
//! One shard may be the *last*: its part holds what PostgreSQL does not prepare, such as temporary tables. It is asked when all
//! others are prepared, and its plain COMMIT, with the marker in it, decides:
//!
//! ```text
//! Prepare ─ all others prepared ► CommitLast ─ committed ► CommitPrepared ► (Committed)
//!    │                               │         refused ──► RollbackPrepared ► (Aborted)
//!    │                               └──────── lost ─────► Fence, as above; a marker that stands is a commit
//!    └───── anything else ► RollBackLast, RollbackPrepared ► (Aborted)
//! ```

use pgherd_model::ShardId;

/// What a shard answered to marker and PREPARE TRANSACTION.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prepare {
    /// the tag was PREPARE TRANSACTION
    Prepared,
    /// prepared, but the wait for its standby was cut short: not to be counted on
    NotDurable,
    /// an error, or another tag: it is not prepared and never will be
    Refused,
    /// no answer
    Unknown,
}

/// What the last shard answered to marker and COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Last {
    /// the tag was COMMIT
    Committed,
    /// committed, but the wait for its standby was cut short: not to be counted on
    NotDurable,
    /// an error, or another tag: it is not committed and never will be
    Refused,
    /// no answer
    Unknown,
}

/// What a fence found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fence {
    /// it was not prepared, and never will be
    NeverPrepared,
    /// the fence was refused: it is prepared
    Prepared,
    /// the fence was refused: somebody else has committed it
    Committed,
    /// no answer
    Unreachable,
}

/// What a shard answered to COMMIT PREPARED or ROLLBACK PREPARED.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Finish {
    /// done
    Done,
    /// 42704: no such prepared transaction
    NotFound,
    /// not now
    Busy,
    /// no answer
    Unreachable,
}

/// What a look for the marker found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Marker {
    /// visible: the transaction is committed there
    Visible,
    /// not there
    Missing,
    /// no answer
    Unreachable,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// answers [`Action::Prepare`]
    Prepare(ShardId, Prepare),
    /// answers [`Action::CommitLast`]
    Last(ShardId, Last),
    /// answers [`Action::Fence`]
    Fence(ShardId, Fence),
    /// answers [`Action::CommitPrepared`]
    Commit(ShardId, Finish),
    /// answers [`Action::RollbackPrepared`]
    Rollback(ShardId, Finish),
    /// answers [`Action::LookForMarker`]
    Marker(ShardId, Marker),
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// decided; visible on every shard that can be reached
    Committed,
    /// rolled back, or never to be committed
    Aborted,
    /// the client must be told that nobody knows
    Unknown,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// write the marker and PREPARE TRANSACTION, in one pipeline
    Prepare(ShardId),
    /// write the marker and COMMIT, in one pipeline
    CommitLast(ShardId),
    /// end the block that was to be committed last; answers nothing
    RollBackLast(ShardId),
    /// keep it from being prepared, on a connection of its own
    Fence(ShardId),
    /// COMMIT PREPARED
    CommitPrepared(ShardId),
    /// ROLLBACK PREPARED
    RollbackPrepared(ShardId),
    /// see whether somebody else has committed it
    LookForMarker(ShardId),
    /// leave the rest on this shard to recovery
    HandOver(ShardId),
    /// a decided transaction is gone from this shard: a bug, or a shard that lost data
    Alarm(ShardId),
    /// tell the client; comes once, after all else that the client waits for
    Acknowledge(Outcome),
}

/// How far one shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Preparing,
    /// the last one, which waits for the others
    Held,
    CommittingLast,
    Prepared,
    NotDurable,
    Refused,
    Lost,
    Fencing,
    OutOfReach,
    Committed,
    Finishing,
    Over,
}

/// One commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Commit {
    shards: Vec<(ShardId, State)>,
    decided: Option<Outcome>,
    acknowledged: bool,
}

impl Commit {
    /// For these writers, at least two, one of which may have to be the last; with the first things to do.
    pub fn start(writers: &[ShardId], last: Option<ShardId>) -> (Self, Vec<Action>) {
        let first = |shard: &ShardId| match Some(*shard) == last {
            true => (*shard, State::Held),
            false => (*shard, State::Preparing),
        };
        let this = Self {
            shards: writers.iter().map(first).collect(),
            decided: None,
            acknowledged: false,
        };
        let prepared = writers.iter().filter(|s| Some(**s) != last);
        (this, prepared.map(|s| Action::Prepare(*s)).collect())
    }

    /// What was decided; `None` while it is open.
    pub fn decision(&self) -> Option<Outcome> {
        self.decided
    }

    /// Takes what happened. Panics on an event that answers nothing asked: a bug of the caller.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Prepare(shard, reply) => {
                let state = match reply {
                    Prepare::Prepared => State::Prepared,
                    Prepare::NotDurable => State::NotDurable,
                    Prepare::Refused => State::Refused,
                    Prepare::Unknown => State::Lost,
                };
                self.change(shard, State::Preparing, state);
                self.decide()
            }
            Event::Last(shard, reply) => {
                let state = match reply {
                    Last::Committed => State::Committed,
                    Last::NotDurable => State::NotDurable,
                    Last::Refused => State::Refused,
                    Last::Unknown => State::Lost,
                };
                self.change(shard, State::CommittingLast, state);
                self.decide()
            }
            Event::Fence(shard, found) => {
                let state = match found {
                    Fence::NeverPrepared => State::Refused,
                    Fence::Prepared => State::Prepared,
                    Fence::Committed => State::Committed,
                    Fence::Unreachable => State::OutOfReach,
                };
                self.change(shard, State::Fencing, state);
                self.decide()
            }
            Event::Commit(shard, Finish::Busy) => vec![Action::CommitPrepared(shard)],
            Event::Commit(shard, Finish::NotFound) => vec![Action::LookForMarker(shard)],
            Event::Commit(shard, Finish::Done) | Event::Marker(shard, Marker::Visible) => self.over(shard, None),
            Event::Marker(shard, Marker::Missing) => self.over(shard, Some(Action::Alarm(shard))),
            Event::Commit(shard, Finish::Unreachable) | Event::Marker(shard, Marker::Unreachable) => {
                self.over(shard, Some(Action::HandOver(shard)))
            }
            // Rolled back by recovery, that took this gateway for dead.
            Event::Rollback(shard, Finish::Done | Finish::NotFound) => self.over(shard, None),
            Event::Rollback(shard, Finish::Busy | Finish::Unreachable) => {
                self.over(shard, Some(Action::HandOver(shard)))
            }
        }
    }

    fn change(&mut self, shard: ShardId, from: State, to: State) {
        let entry = self.shards.iter_mut().find(|(s, _)| *s == shard);
        let (_, state) = entry.expect("only participants answer");
        assert_eq!(*state, from, "an answer from shard {shard} to what was not asked");
        *state = to;
    }

    fn any(&self, wanted: impl Fn(State) -> bool) -> bool {
        self.shards.iter().any(|(_, s)| wanted(*s))
    }

    /// Once no answer is outstanding.
    fn decide(&mut self) -> Vec<Action> {
        if self.any(|s| matches!(s, State::Preparing | State::Fencing | State::CommittingLast)) {
            return Vec::new();
        }
        if let Some(at) = self.shards.iter().position(|(_, s)| *s == State::Held) {
            // Without the last one's marker nobody can commit, so all that is not as it should be ends it.
            if self.any(|s| !matches!(s, State::Held | State::Prepared)) {
                return self.finish(Outcome::Aborted);
            }
            let (shard, state) = &mut self.shards[at];
            *state = State::CommittingLast;
            return vec![Action::CommitLast(*shard)];
        }
        // The last one; or somebody who took this gateway for dead found all of them prepared.
        if self.any(|s| s == State::Committed) {
            return self.finish(Outcome::Committed);
        }
        if self.any(|s| s == State::Refused) {
            return self.finish(Outcome::Aborted);
        }
        if self.any(|s| s == State::Lost) {
            let lost = self.shards.iter_mut().filter(|(_, s)| *s == State::Lost);
            return lost
                .map(|(shard, state)| {
                    *state = State::Fencing;
                    Action::Fence(*shard)
                })
                .collect();
        }
        // Prepared without its standby: recovery commits it once the standby has it. Rolling it back would race with a
        // recoverer who has seen it prepared everywhere.
        if self.any(|s| matches!(s, State::OutOfReach | State::NotDurable)) {
            return self.finish(Outcome::Unknown);
        }
        self.finish(Outcome::Committed)
    }

    /// Decided: what is left to do on each shard.
    fn finish(&mut self, outcome: Outcome) -> Vec<Action> {
        self.decided = Some(outcome);
        let mut actions = Vec::new();
        for (shard, state) in &mut self.shards {
            let (next, action) = match (outcome, *state) {
                (_, State::Refused | State::Committed) => (State::Over, None),
                (_, State::Held) => (State::Over, Some(Action::RollBackLast(*shard))),
                (Outcome::Committed, _) => (State::Finishing, Some(Action::CommitPrepared(*shard))),
                (Outcome::Aborted, State::Prepared | State::NotDurable) => {
                    (State::Finishing, Some(Action::RollbackPrepared(*shard)))
                }
                (Outcome::Aborted | Outcome::Unknown, _) => (State::Over, Some(Action::HandOver(*shard))),
            };
            *state = next;
            actions.extend(action);
        }
        self.acknowledge_if_over(actions)
    }

    fn over(&mut self, shard: ShardId, action: Option<Action>) -> Vec<Action> {
        self.change(shard, State::Finishing, State::Over);
        self.acknowledge_if_over(action.into_iter().collect())
    }

    fn acknowledge_if_over(&mut self, mut actions: Vec<Action>) -> Vec<Action> {
        if let (Some(outcome), false) = (self.decided, self.acknowledged)
            && !self.any(|s| s == State::Finishing)
        {
            self.acknowledged = true;
            actions.push(Action::Acknowledge(outcome));
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Acknowledge, Alarm, CommitPrepared, HandOver, LookForMarker, RollbackPrepared};

    const A: ShardId = ShardId(1);
    const B: ShardId = ShardId(2);

    fn after(events: &[Event]) -> Vec<Action> {
        let (mut commit, _) = Commit::start(&[A, B], None);
        events.iter().map(|e| commit.step(*e)).last().unwrap_or_default()
    }

    fn prepared(shard: ShardId) -> Event {
        Event::Prepare(shard, Prepare::Prepared)
    }

    #[test]
    fn all_prepared_decides() {
        assert_eq!(after(&[prepared(A)]), []);
        assert_eq!(
            after(&[prepared(A), prepared(B)]),
            [CommitPrepared(A), CommitPrepared(B)]
        );
        let done = [prepared(A), prepared(B), Event::Commit(B, Finish::Done)];
        assert_eq!(after(&done), []);
        assert_eq!(
            after(&[&done[..], &[Event::Commit(A, Finish::Done)]].concat()),
            [Acknowledge(Outcome::Committed)]
        );
    }

    #[test]
    fn one_refusal_aborts() {
        assert_eq!(
            after(&[Event::Prepare(A, Prepare::Refused), prepared(B)]),
            [RollbackPrepared(B)]
        );
        let refused = [Event::Prepare(A, Prepare::Refused), Event::Prepare(B, Prepare::Refused)];
        assert_eq!(after(&refused), [Acknowledge(Outcome::Aborted)]);
        let with_unknown = [Event::Prepare(A, Prepare::Refused), Event::Prepare(B, Prepare::Unknown)];
        assert_eq!(after(&with_unknown), [HandOver(B), Acknowledge(Outcome::Aborted)]);
        let not_durable = [Event::Prepare(A, Prepare::NotDurable), prepared(B)];
        assert_eq!(
            after(&not_durable),
            [HandOver(A), HandOver(B), Acknowledge(Outcome::Unknown)]
        );
        let not_durable = [
            Event::Prepare(A, Prepare::NotDurable),
            Event::Prepare(B, Prepare::Refused),
        ];
        assert_eq!(after(&not_durable), [RollbackPrepared(A)]);
    }

    #[test]
    fn a_lost_reply_is_fenced_first() {
        let lost = [prepared(A), Event::Prepare(B, Prepare::Unknown)];
        assert_eq!(after(&lost), [Action::Fence(B)]);
        let with = |found| after(&[&lost[..], &[Event::Fence(B, found)]].concat());
        assert_eq!(with(Fence::NeverPrepared), [RollbackPrepared(A)]);
        assert_eq!(with(Fence::Prepared), [CommitPrepared(A), CommitPrepared(B)]);
        assert_eq!(with(Fence::Committed), [CommitPrepared(A)]);
        assert_eq!(
            with(Fence::Unreachable),
            [HandOver(A), HandOver(B), Acknowledge(Outcome::Unknown)]
        );
    }

    #[test]
    fn decided_stays_decided_when_a_shard_dies() {
        let events = [prepared(A), prepared(B), Event::Commit(A, Finish::Unreachable)];
        assert_eq!(after(&events), [HandOver(A)]);
        let events = [&events[..], &[Event::Commit(B, Finish::NotFound)]].concat();
        assert_eq!(after(&events), [LookForMarker(B)]);
        let events = [&events[..], &[Event::Marker(B, Marker::Visible)]].concat();
        assert_eq!(after(&events), [Acknowledge(Outcome::Committed)]);
    }

    #[test]
    fn a_decided_transaction_that_is_gone_raises_an_alarm() {
        let events = [
            prepared(A),
            prepared(B),
            Event::Commit(A, Finish::NotFound),
            Event::Marker(A, Marker::Missing),
        ];
        assert_eq!(after(&events), [Alarm(A)]);
    }

    #[test]
    fn the_last_one_decides() {
        let with_last = |events: &[Event]| {
            let (mut commit, first) = Commit::start(&[A, B], Some(A));
            assert_eq!(first, [Action::Prepare(B)]);
            events.iter().map(|e| commit.step(*e)).last().unwrap_or_default()
        };
        assert_eq!(with_last(&[prepared(B)]), [Action::CommitLast(A)]);
        let then = |last: Event| with_last(&[prepared(B), last]);
        assert_eq!(then(Event::Last(A, Last::Committed)), [CommitPrepared(B)]);
        assert_eq!(then(Event::Last(A, Last::Refused)), [RollbackPrepared(B)]);
        assert_eq!(then(Event::Last(A, Last::Unknown)), [Action::Fence(A)]);
        let not_durable = [HandOver(A), HandOver(B), Acknowledge(Outcome::Unknown)];
        assert_eq!(then(Event::Last(A, Last::NotDurable)), not_durable);
        let found = |found| {
            let lost = Event::Last(A, Last::Unknown);
            with_last(&[prepared(B), lost, Event::Fence(A, found)])
        };
        assert_eq!(found(Fence::Committed), [CommitPrepared(B)]);
        assert_eq!(found(Fence::NeverPrepared), [RollbackPrepared(B)]);
        assert_eq!(found(Fence::Unreachable), not_durable);
    }

    #[test]
    fn the_last_one_is_not_asked_unless_all_others_are_prepared() {
        for (reply, other) in [
            (Prepare::Refused, None),
            (Prepare::Unknown, Some(HandOver(B))),
            (Prepare::NotDurable, Some(RollbackPrepared(B))),
        ] {
            let (mut commit, _) = Commit::start(&[A, B], Some(A));
            let actions = commit.step(Event::Prepare(B, reply));
            assert_eq!(actions[0], Action::RollBackLast(A), "{reply:?}");
            assert_eq!(
                actions.get(1).copied(),
                other.or(Some(Acknowledge(Outcome::Aborted))),
                "{reply:?}"
            );
        }
    }
}
