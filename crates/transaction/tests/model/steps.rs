//! What can happen next, and what comes of it.

use crate::reader;
use crate::recoverers::{give_up, looking, runs, see};
use crate::world::*;
use pgherd_model::ShardId;
use pgherd_transaction::recovery::Observation;
use pgherd_transaction::two_phase_commit::{Action, Commit, Event, Fence, Last, Prepare};

/// Mistakes that the properties must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bug {
    None,
    /// the gateway commits although a shard would not prepare
    CommitWithoutPrepare,
    /// a shard takes a marker although a fence is there
    FenceIgnored,
    /// recovery rolls back what is not prepared everywhere, without a fence
    NoFence,
    /// recovery rolls back what its own gateway is at work on
    AbortsTheLive,
    /// recovery commits before the standbys have what is prepared
    NoConfirmation,
    /// recovery commits although one shard has not prepared
    CommitTooEarly,
    /// markers go as soon as the client has its answer
    EarlyCleanUp,
    /// markers go while a reader does not know that they are settled
    CleanUpUnderReaders,
    /// a transaction counts as settled when its client has its answer
    EarlyWatermark,
    /// a shard takes markers of numbers that it was told to be settled
    LateMarker,
    /// a gateway that was taken for dead trusts its own fences
    StaleFence,
    /// recovery takes the last one's marker for a commit before its standby has it
    LastNotConfirmed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// a request reaches its shard
    Arrive(usize),
    /// PREPARE TRANSACTION or COMMIT, right behind the marker
    Write(usize),
    /// its standby has it
    Sync(usize),
    /// an answer reaches the gateway
    Answer(usize),
    /// a request arrives that nobody waits for any more
    ArriveLate(usize),
    /// a shard finds out that the other end of a connection is gone
    HangUp(usize),
    Wake,
    Begin(usize),
    Look(usize, usize),
    Decide(usize),
    Act(usize, usize),
    /// the sequence of a gateway that was taken for dead takes no more markers there
    Close(usize),
    /// nobody holds a marker of a closed sequence any more
    FindEmpty,
    /// a shard is told that the transaction is settled
    Tell(usize),
    /// the marker is deleted
    Forget(usize),
    Learn,
    Bind(usize),
    Judge,
    // From here on: what goes wrong.
    LoseRequest(usize),
    LoseReply(usize),
    Crash(usize),
    FailOver(usize),
    /// the wait for the standby is cut short
    CutShort(usize),
    Pause,
    Kill,
    /// a recoverer gets no answer from a shard
    Blind(usize, usize),
    /// a recoverer dies, and another begins anew
    Replace(usize),
}

impl Step {
    fn is_fault(self) -> bool {
        use Step::*;
        matches!(
            self,
            LoseRequest(_)
                | LoseReply(_)
                | Crash(_)
                | FailOver(_)
                | CutShort(_)
                | Pause
                | Kill
                | Blind(..)
                | Replace(_)
        )
    }
}

/// What is checked.
#[derive(Debug, Clone)]
pub struct Protocol {
    pub shards: u32,
    /// the gateway's own and those of others
    pub recoverers: usize,
    pub faults: u8,
    pub reader: bool,
    /// the first shard is not prepared, and commits last
    pub last: bool,
    pub bug: Bug,
}

impl Protocol {
    pub fn first(&self) -> World {
        let ids: Vec<ShardId> = (1..=self.shards).map(ShardId).collect();
        let last = self.last.then_some(0);
        let (commit, actions) = Commit::start(&ids, last.map(id));
        let first = |at: &ShardId| actions.iter().copied().find(|a| shard_of(*a) == Some(*at));
        World {
            shards: ids.iter().map(first).map(Shard::new).collect(),
            last,
            commit,
            gateway: Life::Alive,
            handed_over: false,
            told: None,
            settled: false,
            recoverers: vec![Recoverer::Idle; self.recoverers],
            reader: if self.reader { Reader::Waiting } else { Reader::Absent },
            faults: self.faults,
            wrong: None,
            refreshed: false,
        }
    }

    /// Everything that may be tried; [`Self::next`] says what comes of it, if anything.
    pub fn possible(&self, world: &World, steps: &mut Vec<Step>) {
        use Step::*;
        let shards = world.shards.len();
        for s in 0..shards {
            steps.extend([Arrive(s), Write(s), Sync(s), Answer(s), ArriveLate(s), HangUp(s)]);
        }
        steps.push(Wake);
        for (r, recoverer) in world.recoverers.iter().enumerate() {
            match recoverer {
                Recoverer::Idle => steps.push(Begin(r)),
                Recoverer::Looking { .. } => {
                    steps.extend((0..shards).map(|s| Look(r, s)));
                    steps.push(Decide(r));
                }
                Recoverer::Acting { .. } => steps.extend((0..shards).map(|s| Act(r, s))),
            }
        }
        for s in 0..shards {
            steps.extend([Close(s), Tell(s), Forget(s), Bind(s)]);
        }
        steps.extend([FindEmpty, Learn, Judge]);
        if world.faults == 0 {
            return;
        }
        for s in 0..shards {
            steps.extend([LoseRequest(s), LoseReply(s), Crash(s), FailOver(s), CutShort(s)]);
        }
        steps.extend([Pause, Kill]);
        for r in 0..world.recoverers.len() {
            steps.push(Replace(r));
            steps.extend((0..shards).map(|s| Blind(r, s)));
        }
    }

    /// The state after a step; `None` where it cannot happen or changes nothing.
    pub fn next(&self, before: &World, step: Step) -> Option<World> {
        if !self.can(before, step) {
            return None;
        }
        let mut world = before.clone();
        if step.is_fault() {
            world.faults -= 1;
        }
        self.take(&mut world, step);
        (world != *before).then_some(world)
    }

    /// Only what is cheap to see without a copy of the world.
    fn can(&self, world: &World, step: Step) -> bool {
        use Step::*;
        let shard = |s: usize| &world.shards[s];
        let alive = world.gateway == Life::Alive;
        match step {
            Arrive(s) => matches!(shard(s).wire, Wire::Asked(_)) && shard(s).part != Part::Marked && !waits(shard(s)),
            Write(s) => shard(s).part == Part::Marked,
            Sync(s) => matches!(shard(s).part, Part::Written | Part::Committing | Part::Exposed),
            Answer(s) => alive && matches!(shard(s).wire, Wire::Answered(_)),
            ArriveLate(s) => shard(s).late.is_some() && shard(s).part != Part::Marked,
            HangUp(s) => {
                let given_up = !alive_for(world, s);
                shard(s).part == Part::Open && given_up
            }
            Wake => world.gateway == Life::Paused,
            Begin(r) => self.may_begin(world, r),
            Look(r, _) | Decide(r) | Act(r, _) | Blind(r, _) => runs(world, r),
            Replace(r) => world.recoverers[r] != Recoverer::Idle,
            Close(s) => !alive && !shard(s).closed,
            FindEmpty => {
                !world.settled
                    && world.shards.iter().all(|s| s.closed)
                    && !world.is_prepared()
                    && !world.part(|p| matches!(p, Part::Marked | Part::Committing))
            }
            Tell(s) => self.is_settled(world) && !shard(s).told,
            Forget(s) => self.may_forget(world, s),
            Learn => world.reader == Reader::Waiting,
            Bind(_) | Judge => matches!(world.reader, Reader::Binding { .. }),
            LoseRequest(s) => matches!(shard(s).wire, Wire::Asked(_)) && alive,
            LoseReply(s) => matches!(shard(s).wire, Wire::Answered(e) if e != lost(e)),
            Crash(s) => matches!(shard(s).part, Part::Open | Part::Marked) || matches!(shard(s).wire, Wire::Asked(_)),
            FailOver(s) => matches!(shard(s).part, Part::Written | Part::Committing | Part::Exposed),
            CutShort(s) => matches!(shard(s).part, Part::Written | Part::Committing) && waits(shard(s)),
            Pause => alive,
            Kill => world.gateway != Life::Dead && (world.told.is_none() || !world.settled),
        }
    }

    fn may_begin(&self, world: &World, r: usize) -> bool {
        if self.bug == Bug::AbortsTheLive && world.is_prepared() {
            return true;
        }
        match (r, world.gateway) {
            // Its own task leaves alone what is in flight.
            (0, Life::Alive) => world.told.is_some() && (!world.settled || world.is_prepared()),
            (0, Life::Paused) => false,
            (_, Life::Alive) => false,
            (_, Life::Paused | Life::Dead) => world.is_prepared(),
        }
    }

    fn is_settled(&self, world: &World) -> bool {
        world.settled || (self.bug == Bug::EarlyWatermark && world.told.is_some())
    }

    fn may_forget(&self, world: &World, s: usize) -> bool {
        let shard = &world.shards[s];
        if shard.key == Key::Forgotten || (shard.key == Key::Free && !shard.part.is_visible()) {
            return false;
        }
        // Markers stay for longer than a reader works with what it learned at its beginning.
        let unaware = matches!(world.reader, Reader::Binding { knows: false, .. });
        match self.bug {
            Bug::EarlyCleanUp => world.told.is_some(),
            Bug::CleanUpUnderReaders => world.shards.iter().all(|s| s.told),
            _ => world.shards.iter().all(|s| s.told) && !unaware,
        }
    }

    fn take(&self, world: &mut World, step: Step) {
        use Step::*;
        match step {
            Arrive(s) => {
                let Wire::Asked(action) = world.shards[s].wire else {
                    return;
                };
                if let Some(event) = self.carry_out(world, s, action) {
                    world.shards[s].wire = Wire::Answered(event);
                }
            }
            Write(s) => {
                world.shards[s].part = match world.last == Some(s) {
                    true => Part::Committing,
                    false => Part::Written,
                }
            }
            Sync(s) => synchronise(&mut world.shards[s]),
            Answer(s) => self.answer(world, s),
            ArriveLate(s) => {
                let late = world.shards[s].late.take().expect("checked");
                self.carry_out(world, s, late);
            }
            HangUp(s) => world.shards[s].part = Part::RolledBack,
            Wake => world.gateway = Life::Alive,
            Begin(r) => world.recoverers[r] = looking(world.shards.len(), false),
            Look(r, s) => {
                let seen = world.shards[s].observe();
                see(&mut world.recoverers[r], s, seen);
            }
            Decide(r) => self.decide(world, r),
            Act(r, s) => self.act(world, r, s),
            Close(s) => world.shards[s].closed = true,
            FindEmpty => world.settled = true,
            Tell(s) => world.shards[s].told = true,
            Forget(s) => {
                world.shards[s].key = Key::Forgotten;
                world.recoverers.iter_mut().for_each(give_up);
            }
            Learn => {
                world.reader = Reader::Binding {
                    knows: world.shards.iter().any(|s| s.told),
                    bound: vec![None; world.shards.len()],
                }
            }
            Bind(s) => reader::bind(world, s),
            Judge => reader::judge(world),
            fault => strike(world, fault),
        }
    }

    /// What a shard does with a request, and answers; a PREPARE's answer comes with [`Step::Sync`].
    fn carry_out(&self, world: &mut World, s: usize, action: Action) -> Option<Event> {
        let shard = &mut world.shards[s];
        match action {
            Action::Prepare(id) | Action::CommitLast(id) => {
                if shard.part != Part::Open {
                    // The block is gone, and its connection with it.
                    return Some(unanswered(action));
                }
                let fenced = shard.key == Key::Fence && self.bug != Bug::FenceIgnored;
                let settled = shard.told && self.bug != Bug::LateMarker;
                if fenced || shard.closed || settled {
                    shard.part = Part::RolledBack;
                    return Some(match action {
                        Action::CommitLast(_) => Event::Last(id, Last::Refused),
                        _ => Event::Prepare(id, Prepare::Refused),
                    });
                }
                if shard.key == Key::Forgotten {
                    shard.key = Key::Free;
                }
                shard.part = Part::Marked;
                None
            }
            Action::CommitPrepared(id) => Some(Event::Commit(id, shard.finish(Part::Committed))),
            Action::RollbackPrepared(id) => Some(Event::Rollback(id, shard.finish(Part::RolledBack))),
            Action::LookForMarker(id) => Some(Event::Marker(id, shard.look_for_marker())),
            Action::Fence(id) => {
                let found = shard.fence();
                if matches!(found, Some(Fence::Prepared | Fence::Committed)) && self.bug != Bug::NoConfirmation {
                    synchronise(shard);
                }
                let found = match found? {
                    Fence::NeverPrepared if shard.closed && self.bug != Bug::StaleFence => Fence::Unreachable,
                    found => found,
                };
                Some(Event::Fence(id, found))
            }
            Action::RollBackLast(_) | Action::HandOver(_) | Action::Alarm(_) | Action::Acknowledge(_) => None,
        }
    }

    fn answer(&self, world: &mut World, s: usize) {
        let Wire::Answered(event) = world.shards[s].wire else {
            return;
        };
        world.shards[s].wire = Wire::Idle;
        let event = match event {
            Event::Prepare(id, _) if self.bug == Bug::CommitWithoutPrepare => Event::Prepare(id, Prepare::Prepared),
            event => event,
        };
        let (mut handed_over, mut outcome) = (false, None);
        for action in world.commit.step(event) {
            match action {
                Action::Acknowledge(told) => outcome = Some(told),
                Action::HandOver(_) => handed_over = true,
                Action::Alarm(_) => world.wrong = Some(Wrong::Alarm),
                // Its block ends with [`Step::HangUp`].
                Action::RollBackLast(_) => {}
                request => {
                    let shard = shard_of(request).expect("sent to a shard");
                    world.shards[index(shard)].wire = Wire::Asked(request);
                }
            }
        }
        // Whether anything was handed over stays with the gateway until its client is told.
        if handed_over {
            world.handed_over = true;
        }
        if let Some(outcome) = outcome {
            world.told = Some(outcome);
            world.settled |= !world.handed_over;
        }
    }
}

pub fn id(s: usize) -> ShardId {
    ShardId(s as u32 + 1)
}

/// Its PREPARE or last COMMIT was taken, and its answer has not been sent.
fn waits(shard: &Shard) -> bool {
    matches!(shard.wire, Wire::Asked(Action::Prepare(_) | Action::CommitLast(_)))
        && matches!(shard.part, Part::Written | Part::Prepared | Part::Committing)
}

/// The standby has all that the shard has written; who waits for that is answered.
pub fn synchronise(shard: &mut Shard) {
    shard.part = match shard.part {
        Part::Written => Part::Prepared,
        Part::Committing | Part::Exposed => Part::Committed,
        other => other,
    };
    match (shard.part, shard.wire) {
        (Part::Prepared, Wire::Asked(Action::Prepare(id))) => {
            shard.wire = Wire::Answered(Event::Prepare(id, Prepare::Prepared));
        }
        (Part::Committed, Wire::Asked(Action::CommitLast(id))) => {
            shard.wire = Wire::Answered(Event::Last(id, Last::Committed));
        }
        _ => {}
    }
}

/// Whether the gateway's connection for the transaction is still of use.
fn alive_for(world: &World, s: usize) -> bool {
    let is_of_use = match world.shards[s].wire {
        Wire::Asked(action) => matches!(action, Action::Prepare(_) | Action::CommitLast(_)),
        Wire::Idle => world.last == Some(s) && world.commit.decision().is_none(),
        Wire::Answered(_) => false,
    };
    world.gateway != Life::Dead && is_of_use
}

/// What goes wrong.
fn strike(world: &mut World, fault: Step) {
    use Step::*;
    match fault {
        LoseRequest(s) => {
            let Wire::Asked(action) = world.shards[s].wire else {
                return;
            };
            // A PREPARE that was taken is not on its way any more: only its answer is lost.
            if !waits(&world.shards[s]) {
                world.shards[s].late = Some(action);
            }
            world.shards[s].wire = Wire::Answered(unanswered(action));
        }
        LoseReply(s) => {
            if let Wire::Answered(event) = world.shards[s].wire {
                world.shards[s].wire = Wire::Answered(lost(event));
            }
        }
        Crash(s) => world.shards[s].crash(false),
        FailOver(s) => world.shards[s].crash(true),
        CutShort(s) => {
            let shard = &mut world.shards[s];
            shard.wire = Wire::Answered(match shard.part {
                Part::Committing => {
                    shard.part = Part::Exposed;
                    Event::Last(id(s), Last::NotDurable)
                }
                _ => Event::Prepare(id(s), Prepare::NotDurable),
            });
        }
        Pause => world.gateway = Life::Paused,
        Kill => kill(world),
        Replace(r) => world.recoverers[r] = Recoverer::Idle,
        Blind(r, s) => see(&mut world.recoverers[r], s, Observation::Unreachable),
        _ => unreachable!("{fault:?} is no fault"),
    }
}

fn kill(world: &mut World) {
    world.gateway = Life::Dead;
    world.recoverers[0] = Recoverer::Idle;
    for shard in &mut world.shards {
        if let Wire::Asked(action) = shard.wire
            && !waits(shard)
        {
            shard.late = Some(action);
        }
        shard.wire = Wire::Idle;
    }
}
