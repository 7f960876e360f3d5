//! The state of the model: shards, one gateway that commits one transaction, recoverers, a reader, and the messages that are on
//! their way between them.
//!
//! A shard is modelled as far as the protocol depends on PostgreSQL: a block that dies with its connection, a marker
//! that is a row with a primary key, a prepared transaction that `pg_prepared_xacts` lists before its standby has it.

use pgherd_model::ShardId;
use pgherd_transaction::recovery::Observation;
use pgherd_transaction::two_phase_commit::{Action, Commit, Event, Fence, Finish, Last, Marker, Outcome, Prepare};

/// What a shard has of the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// the open block of the gateway's connection
    Open,
    /// the same, with the marker in it: its key is taken, and nobody sees it
    Marked,
    /// prepared and listed, and the standby may not have it yet
    Written,
    /// prepared, as durable as the shard makes things
    Prepared,
    /// the last one's COMMIT: waits for the standby, and nobody sees it
    Committing,
    /// the same after its wait was cut short, by a crash too: all see it, and the standby may not have it yet
    Exposed,
    Committed,
    RolledBack,
}

/// The key of the marker, apart from a row that the transaction itself holds or has committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    Free,
    /// marker a
    Fence,
    /// the marker was deleted, whichever it was
    Forgotten,
}

/// The way between the gateway and one shard; it asks each shard one thing at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    Idle,
    Asked(Action),
    Answered(Event),
}

impl Part {
    /// Whether rows and marker can be seen.
    pub fn is_visible(self) -> bool {
        matches!(self, Part::Exposed | Part::Committed)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shard {
    pub part: Part,
    pub key: Key,
    pub wire: Wire,
    /// a request whose sender has given up on it, and which may arrive all the same
    pub late: Option<Action>,
    /// the gateway's sequence is closed here: no marker of it is taken any more
    pub closed: bool,
    /// this shard was told that the transaction is settled
    pub told: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Life {
    Alive,
    /// stands still, and has lost its lease
    Paused,
    Dead,
}

/// What a recoverer is about to do on a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    Commit,
    RollBack,
    Fence,
    Confirm,
}

/// Somebody who recovers: looks at one shard at a time, decides, and acts on one shard at a time. The first is a task of the
/// gateway itself while that lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Recoverer {
    Idle,
    Looking {
        seen: Vec<Option<Observation>>,
        confirmed: bool,
    },
    Acting {
        tasks: Vec<Option<Task>>,
        confirmed: bool,
        /// it began so long ago that it must begin anew
        is_late: bool,
    },
}

/// What a reader's snapshot of one shard shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// the transaction's rows
    pub rows: bool,
    /// its marker, in the list of those that were not known to be settled
    pub listed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reader {
    Absent,
    Waiting,
    Binding {
        /// it knew the transaction to be settled before it began
        knows: bool,
        bound: Vec<Option<Snapshot>>,
    },
    Done,
}

/// What must never come about, and would be forgotten by the next state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// a decided transaction was not found
    Alarm,
    /// recovery found a commit and a fence
    Torn,
    /// a cut showed one half
    Fractured,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub shards: Vec<Shard>,
    /// the shard that is not prepared
    pub last: Option<usize>,
    pub commit: Commit,
    pub gateway: Life,
    /// the gateway has left something to recovery
    pub handed_over: bool,
    pub told: Option<Outcome>,
    /// visible on all shards or rolled back on all, as far as its gateway knows (for a dead one: as far as others know)
    pub settled: bool,
    pub recoverers: Vec<Recoverer>,
    pub reader: Reader,
    /// how much more may go wrong
    pub faults: u8,
    pub wrong: Option<Wrong>,
    /// a snapshot had to be taken again
    pub refreshed: bool,
}

impl World {
    pub fn part(&self, wanted: impl Fn(Part) -> bool) -> bool {
        self.shards.iter().any(|s| wanted(s.part))
    }

    pub fn is_prepared(&self) -> bool {
        self.part(|p| matches!(p, Part::Written | Part::Prepared))
    }
}

impl Shard {
    pub fn new(first: Option<Action>) -> Self {
        Self {
            part: Part::Open,
            key: Key::Free,
            wire: first.map_or(Wire::Idle, Wire::Asked),
            late: None,
            closed: false,
            told: false,
        }
    }

    /// Whether marker p can be seen.
    pub fn shows_marker(&self) -> bool {
        self.part.is_visible() && self.key != Key::Forgotten
    }

    pub fn observe(&self) -> Observation {
        match self.part {
            _ if self.shows_marker() => Observation::Committed,
            _ if self.key == Key::Fence => Observation::Fenced,
            Part::Written | Part::Prepared => Observation::Prepared,
            _ => Observation::Missing,
        }
    }

    /// COMMIT PREPARED or ROLLBACK PREPARED.
    pub fn finish(&mut self, to: Part) -> Finish {
        if !matches!(self.part, Part::Written | Part::Prepared) {
            return Finish::NotFound;
        }
        self.part = to;
        Finish::Done
    }

    /// Writes marker a, or finds why not. A backend that holds the key without being prepared is ended, which cuts short a COMMIT's
    /// wait; what is prepared or committed is only told once the standby has it.
    pub fn fence(&mut self) -> Option<Fence> {
        match self.part {
            _ if self.shows_marker() => Some(Fence::Committed),
            Part::Written | Part::Prepared => Some(Fence::Prepared),
            Part::Marked => {
                self.part = Part::RolledBack;
                None
            }
            Part::Committing => {
                self.part = Part::Exposed;
                None
            }
            _ => {
                self.key = Key::Fence;
                Some(Fence::NeverPrepared)
            }
        }
    }

    /// Where the sequence is closed, the marker may have been there and be forgotten.
    pub fn look_for_marker(&self) -> Marker {
        match (self.shows_marker(), self.closed) {
            (true, _) => Marker::Visible,
            (false, true) => Marker::Unreachable,
            (false, false) => Marker::Missing,
        }
    }

    /// The machine stops; where a standby takes over, it lacks what was not waited for.
    pub fn crash(&mut self, failover: bool) {
        let is_local = matches!(self.part, Part::Written | Part::Committing | Part::Exposed);
        if matches!(self.part, Part::Open | Part::Marked) || (failover && is_local) {
            self.part = Part::RolledBack;
        } else if self.part == Part::Committing {
            self.part = Part::Exposed;
        }
        if let Wire::Asked(action) = self.wire {
            self.wire = Wire::Answered(unanswered(action));
        }
        self.late = None;
    }
}

pub fn index(shard: ShardId) -> usize {
    shard.0 as usize - 1
}

pub fn shard_of(action: Action) -> Option<ShardId> {
    match action {
        Action::Prepare(s)
        | Action::CommitLast(s)
        | Action::RollBackLast(s)
        | Action::Fence(s)
        | Action::CommitPrepared(s)
        | Action::RollbackPrepared(s)
        | Action::LookForMarker(s) => Some(s),
        Action::HandOver(_) | Action::Alarm(_) | Action::Acknowledge(_) => None,
    }
}

/// What the gateway takes a lost connection for.
pub fn unanswered(action: Action) -> Event {
    match action {
        Action::Prepare(s) => Event::Prepare(s, Prepare::Unknown),
        Action::CommitLast(s) => Event::Last(s, Last::Unknown),
        Action::Fence(s) => Event::Fence(s, Fence::Unreachable),
        Action::CommitPrepared(s) => Event::Commit(s, Finish::Unreachable),
        Action::RollbackPrepared(s) => Event::Rollback(s, Finish::Unreachable),
        Action::LookForMarker(s) => Event::Marker(s, Marker::Unreachable),
        Action::RollBackLast(_) | Action::HandOver(_) | Action::Alarm(_) | Action::Acknowledge(_) => {
            unreachable!("nothing is asked")
        }
    }
}

/// The same answer, lost on its way.
pub fn lost(event: Event) -> Event {
    match event {
        Event::Prepare(s, _) => Event::Prepare(s, Prepare::Unknown),
        Event::Last(s, _) => Event::Last(s, Last::Unknown),
        Event::Fence(s, _) => Event::Fence(s, Fence::Unreachable),
        Event::Commit(s, _) => Event::Commit(s, Finish::Unreachable),
        Event::Rollback(s, _) => Event::Rollback(s, Finish::Unreachable),
        Event::Marker(s, _) => Event::Marker(s, Marker::Unreachable),
    }
}
