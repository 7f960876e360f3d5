//! Commit and recovery against model shards, with everything that can go wrong in an order that a seed chooses.
//!
//! Gateways commit transactions that move money between shards, by [`Commit::step`]. Messages are delivered in any order.
//! Gateways die or pause (and are then taken for dead), shards crash, replies get lost, and two recoverers look at
//! the shards one at a time, so that what they saw is old when they act on it by [`decide`]. In the end everybody
//! comes back, recovery runs to its end, and all shards must agree with each other and with what clients were told.
//!
//! [`Bug`]s show that the checks can fail.

use crate::recovery::{Decision, Observation, decide};
use crate::two_phase_commit::{Action, Commit, Event, Fence, Finish, Last, Marker, Outcome, Prepare};
use pgherd_model::ShardId;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};

const SHARDS: u32 = 3;
const GATEWAYS: usize = 2;
const TRANSACTIONS: usize = 4;
const STEPS: usize = 400;
const SEEDS: u64 = 2000;

/// Mistakes that the checks must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// recovery rolls back what is not prepared everywhere, without a fence
    NoFence,
    /// a shard prepares although a fence is there
    FenceIgnored,
    /// recovery commits although one shard has not prepared
    CommitTooEarly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    InProgress,
    Prepared,
    Committed,
    RolledBack,
}

#[derive(Debug, Default)]
struct Shard {
    parts: BTreeMap<usize, Part>,
    fences: BTreeSet<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    Paused,
    Dead,
}

#[derive(Debug, Clone, Copy)]
enum Message {
    Do(usize, Action),
    Tell(usize, Event),
    Disconnect(usize, ShardId),
}

struct Transaction {
    gateway: usize,
    /// the shard that is not prepared
    last: Option<ShardId>,
    changes: BTreeMap<ShardId, i64>,
    commit: Commit,
    told: Option<Outcome>,
    handed_over: bool,
}

/// Somebody who recovers: looks at one shard per step, then acts.
#[derive(Default)]
struct Recoverer {
    at: Option<usize>,
    seen: Vec<(ShardId, Observation)>,
    confirmed: bool,
}

struct World {
    random: StdRng,
    bug: Bug,
    shards: BTreeMap<ShardId, Shard>,
    gateways: Vec<Life>,
    transactions: Vec<Transaction>,
    messages: Vec<Message>,
    recoverers: Vec<Recoverer>,
    alarms: Vec<String>,
}

impl World {
    fn new(seed: u64, bug: Bug) -> Self {
        let mut this = Self {
            random: StdRng::seed_from_u64(seed),
            bug,
            shards: (1..=SHARDS).map(|n| (ShardId(n), Shard::default())).collect(),
            gateways: vec![Life::Alive; GATEWAYS],
            transactions: Vec::new(),
            messages: Vec::new(),
            recoverers: vec![Recoverer::default(), Recoverer::default()],
            alarms: Vec::new(),
        };
        for gid in 0..TRANSACTIONS {
            this.begin(gid);
        }
        this
    }

    fn begin(&mut self, gid: usize) {
        let mut changes: BTreeMap<ShardId, i64> = BTreeMap::from([(ShardId(1), -2), (ShardId(2), 1), (ShardId(3), 1)]);
        if self.random.random_bool(0.5) {
            changes = BTreeMap::from([(ShardId(1), -1), (ShardId(self.random.random_range(2..=SHARDS)), 1)]);
        }
        let writers: Vec<ShardId> = changes.keys().copied().collect();
        for shard in &writers {
            self.shard(*shard).parts.insert(gid, Part::InProgress);
        }
        let last = self.random.random_bool(0.3).then_some(ShardId(1));
        let (commit, actions) = Commit::start(&writers, last);
        self.messages.extend(actions.into_iter().map(|a| Message::Do(gid, a)));
        self.transactions.push(Transaction {
            gateway: gid % GATEWAYS,
            last,
            changes,
            commit,
            told: None,
            handed_over: false,
        });
    }

    fn shard(&mut self, shard: ShardId) -> &mut Shard {
        self.shards.get_mut(&shard).expect("a shard of the model")
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            match self.random.random_range(0..100) {
                0..60 => self.deliver(),
                60..62 => self.change_life(),
                62..63 => self.crash_shard(),
                _ => {
                    let who = self.random.random_range(0..self.recoverers.len());
                    self.recover(who);
                }
            }
        }
        self.gateways
            .iter_mut()
            .filter(|g| **g == Life::Paused)
            .for_each(|g| *g = Life::Alive);
        while !self.messages.is_empty() {
            self.deliver();
        }
        // Everybody who still commits is done by now.
        self.gateways = vec![Life::Dead; GATEWAYS];
        for _ in 0..200 {
            for who in 0..self.recoverers.len() {
                self.recover(who);
            }
        }
        self.check()
    }

    fn deliver(&mut self) {
        if self.messages.is_empty() {
            return;
        }
        let at = self.random.random_range(0..self.messages.len());
        match self.messages[at] {
            Message::Tell(gid, event) => {
                let gateway = self.transactions[gid].gateway;
                match self.gateways[gateway] {
                    Life::Paused => {}
                    Life::Dead => {
                        self.messages.swap_remove(at);
                    }
                    Life::Alive => {
                        self.messages.swap_remove(at);
                        self.tell(gid, event);
                    }
                }
            }
            Message::Do(gid, action) => {
                self.messages.swap_remove(at);
                let event = self.act(gid, action);
                let event = if self.random.random_bool(0.05) {
                    lost(event)
                } else {
                    event
                };
                self.messages.push(Message::Tell(gid, event));
            }
            Message::Disconnect(gid, shard) => {
                self.messages.swap_remove(at);
                self.abort(gid, shard);
            }
        }
    }

    fn tell(&mut self, gid: usize, event: Event) {
        let transaction = &mut self.transactions[gid];
        let shard = shard_of(event);
        if event == Event::Prepare(shard, Prepare::Unknown) || event == Event::Last(shard, Last::Unknown) {
            // Its connection is gone, and the backend finds out sooner or later.
            self.messages.push(Message::Disconnect(gid, shard));
        }
        for action in transaction.commit.step(event) {
            match action {
                Action::Acknowledge(outcome) => {
                    assert!(transaction.told.is_none(), "told twice");
                    transaction.told = Some(outcome);
                }
                Action::HandOver(_) => transaction.handed_over = true,
                Action::RollBackLast(shard) => self.messages.push(Message::Disconnect(gid, shard)),
                Action::Alarm(shard) => self.alarms.push(format!("{gid} is gone from shard {shard}")),
                other => self.messages.push(Message::Do(gid, other)),
            }
        }
    }

    fn act(&mut self, gid: usize, action: Action) -> Event {
        let ignore_fences = self.bug == Bug::FenceIgnored;
        match action {
            Action::Prepare(shard) => {
                let here = self.shard(shard);
                let fenced = here.fences.contains(&gid) && !ignore_fences;
                let part = here.parts.get_mut(&gid).expect("it has a part");
                if *part == Part::InProgress && !fenced {
                    *part = Part::Prepared;
                    return Event::Prepare(shard, Prepare::Prepared);
                }
                if *part == Part::InProgress {
                    *part = Part::RolledBack;
                }
                Event::Prepare(shard, Prepare::Refused)
            }
            Action::CommitLast(shard) => {
                let here = self.shard(shard);
                let fenced = here.fences.contains(&gid) && !ignore_fences;
                let part = here.parts.get_mut(&gid).expect("it has a part");
                if *part == Part::InProgress && !fenced {
                    *part = Part::Committed;
                    return Event::Last(shard, Last::Committed);
                }
                if *part == Part::InProgress {
                    *part = Part::RolledBack;
                }
                Event::Last(shard, Last::Refused)
            }
            Action::CommitPrepared(shard) => Event::Commit(shard, self.finish(gid, shard, Part::Committed)),
            Action::RollbackPrepared(shard) => Event::Rollback(shard, self.finish(gid, shard, Part::RolledBack)),
            Action::LookForMarker(shard) => {
                let visible = self.shard(shard).parts[&gid] == Part::Committed;
                Event::Marker(shard, if visible { Marker::Visible } else { Marker::Missing })
            }
            Action::Fence(shard) => {
                let here = self.shard(shard);
                let found = match here.parts[&gid] {
                    Part::Prepared => Fence::Prepared,
                    Part::Committed => Fence::Committed,
                    _ => {
                        here.fences.insert(gid);
                        Fence::NeverPrepared
                    }
                };
                Event::Fence(shard, found)
            }
            Action::RollBackLast(_) | Action::HandOver(_) | Action::Alarm(_) | Action::Acknowledge(_) => {
                unreachable!("nothing to send")
            }
        }
    }

    fn finish(&mut self, gid: usize, shard: ShardId, to: Part) -> Finish {
        let part = self.shard(shard).parts.get_mut(&gid).expect("it has a part");
        if *part != Part::Prepared {
            return Finish::NotFound;
        }
        *part = to;
        Finish::Done
    }

    fn abort(&mut self, gid: usize, shard: ShardId) {
        let part = self.shard(shard).parts.get_mut(&gid).expect("it has a part");
        if *part == Part::InProgress {
            *part = Part::RolledBack;
        }
    }

    fn change_life(&mut self) {
        let gateway = self.random.random_range(0..GATEWAYS);
        self.gateways[gateway] = match self.gateways[gateway] {
            Life::Alive if self.random.random_bool(0.5) => Life::Paused,
            Life::Alive => Life::Dead,
            Life::Paused => Life::Alive,
            Life::Dead => return,
        };
        if self.gateways[gateway] == Life::Dead {
            for gid in (0..TRANSACTIONS).filter(|g| self.transactions[*g].gateway == gateway) {
                let shards: Vec<ShardId> = self.transactions[gid].changes.keys().copied().collect();
                self.messages
                    .extend(shards.into_iter().map(|s| Message::Disconnect(gid, s)));
                // What was on its way arrives or not.
                let random = &mut self.random;
                self.messages
                    .retain(|m| !matches!(m, Message::Do(g, _) if *g == gid && random.random_bool(0.5)));
            }
        }
    }

    /// Prepared transactions survive; what was on its way to it is lost, and the gateways notice.
    fn crash_shard(&mut self) {
        let shard = ShardId(self.random.random_range(1..=SHARDS));
        for part in self.shard(shard).parts.values_mut().filter(|p| **p == Part::InProgress) {
            *part = Part::RolledBack;
        }
        for message in &mut self.messages {
            if let Message::Do(gid, action) = message
                && let Some(event) = unanswered(*action, shard)
            {
                *message = Message::Tell(*gid, event);
            }
        }
    }

    /// One step of one recoverer.
    fn recover(&mut self, who: usize) {
        let mut me = std::mem::take(&mut self.recoverers[who]);
        if me.at.is_none() {
            let left: Vec<usize> = (0..TRANSACTIONS).filter(|gid| self.may_recover(*gid)).collect();
            me.at = left.choose(&mut self.random).copied();
        }
        if let Some(gid) = me.at {
            let shards: Vec<ShardId> = self.transactions[gid].changes.keys().copied().collect();
            if let Some(next) = shards.get(me.seen.len()) {
                me.seen.push((*next, self.observe(gid, *next)));
            } else {
                let decision = decide(&me.seen, self.transactions[gid].last, me.confirmed);
                me.confirmed = matches!(decision, Decision::Confirm(_));
                if self.carry_out(gid, decision, &me.seen.clone()) {
                    me.at = None;
                }
                me.seen.clear();
            }
        }
        self.recoverers[who] = me;
    }

    fn may_recover(&self, gid: usize) -> bool {
        let transaction = &self.transactions[gid];
        let prepared = self.shards.values().any(|s| s.parts.get(&gid) == Some(&Part::Prepared));
        prepared && (self.gateways[transaction.gateway] != Life::Alive || transaction.told.is_some())
    }

    fn observe(&mut self, gid: usize, shard: ShardId) -> Observation {
        if self.random.random_bool(0.05) {
            return Observation::Unreachable;
        }
        let here = self.shard(shard);
        match here.parts[&gid] {
            Part::Committed => Observation::Committed,
            _ if here.fences.contains(&gid) => Observation::Fenced,
            Part::Prepared => Observation::Prepared,
            _ => Observation::Missing,
        }
    }

    /// Whether there is nothing more to do.
    fn carry_out(&mut self, gid: usize, decision: Decision, seen: &[(ShardId, Observation)]) -> bool {
        match decision {
            Decision::Commit(shards) => self.finish_all(gid, &shards, Part::Committed),
            Decision::RollBack(shards) => self.finish_all(gid, &shards, Part::RolledBack),
            Decision::Fence(shards) => match self.bug {
                Bug::NoFence => self.finish_all(gid, &prepared_of(seen), Part::RolledBack),
                Bug::CommitTooEarly => self.finish_all(gid, &prepared_of(seen), Part::Committed),
                _ => {
                    for shard in shards {
                        let here = self.shard(shard);
                        // Marker and PREPARE are one step here; once they were taken, the key is held.
                        if matches!(here.parts[&gid], Part::InProgress | Part::RolledBack) {
                            here.fences.insert(gid);
                        }
                    }
                }
            },
            Decision::Confirm(_) => {}
            Decision::Wait(_) => return true,
            Decision::Settled { lost, .. } => {
                self.alarms
                    .extend(lost.iter().map(|shard| format!("{gid} is lost on shard {shard}")));
                return true;
            }
            Decision::Torn => {
                self.alarms.push(format!("{gid} looks torn"));
                return true;
            }
        }
        false
    }

    fn finish_all(&mut self, gid: usize, shards: &[ShardId], to: Part) {
        for shard in shards {
            self.finish(gid, *shard, to);
        }
    }

    fn check(&self) -> Result<(), String> {
        if let Some(alarm) = self.alarms.first() {
            return Err(alarm.clone());
        }
        let mut total = 0;
        for (gid, transaction) in self.transactions.iter().enumerate() {
            let parts: Vec<Part> = transaction.changes.keys().map(|s| self.shards[s].parts[&gid]).collect();
            if parts.contains(&Part::Prepared) {
                return Err(format!("{gid} is still prepared: {parts:?}"));
            }
            let committed = parts.iter().filter(|p| **p == Part::Committed).count();
            if committed != 0 && committed != parts.len() {
                return Err(format!("{gid} is torn: {parts:?}"));
            }
            match (transaction.told, committed) {
                (Some(Outcome::Committed), 0) => return Err(format!("{gid} was acknowledged and is lost")),
                (Some(Outcome::Aborted), 1..) => return Err(format!("{gid} was refused and is there")),
                _ => {}
            }
            let changes = transaction
                .changes
                .iter()
                .zip(&parts)
                .filter(|(_, p)| **p == Part::Committed);
            total += changes.map(|((_, change), _)| change).sum::<i64>();
        }
        if total != 0 {
            return Err(format!("the total changed by {total}"));
        }
        Ok(())
    }
}

fn prepared_of(seen: &[(ShardId, Observation)]) -> Vec<ShardId> {
    seen.iter()
        .filter(|(_, o)| *o == Observation::Prepared)
        .map(|(s, _)| *s)
        .collect()
}

fn shard_of(event: Event) -> ShardId {
    match event {
        Event::Prepare(s, _)
        | Event::Last(s, _)
        | Event::Fence(s, _)
        | Event::Commit(s, _)
        | Event::Rollback(s, _)
        | Event::Marker(s, _) => s,
    }
}

/// The same, without an answer.
fn lost(event: Event) -> Event {
    match event {
        Event::Prepare(s, _) => Event::Prepare(s, Prepare::Unknown),
        Event::Last(s, _) => Event::Last(s, Last::Unknown),
        Event::Fence(s, _) => Event::Fence(s, Fence::Unreachable),
        Event::Commit(s, _) => Event::Commit(s, Finish::Unreachable),
        Event::Rollback(s, _) => Event::Rollback(s, Finish::Unreachable),
        Event::Marker(s, _) => Event::Marker(s, Marker::Unreachable),
    }
}

fn unanswered(action: Action, crashed: ShardId) -> Option<Event> {
    let (shard, event) = match action {
        Action::Prepare(s) => (s, Event::Prepare(s, Prepare::Unknown)),
        Action::CommitLast(s) => (s, Event::Last(s, Last::Unknown)),
        Action::Fence(s) => (s, Event::Fence(s, Fence::Unreachable)),
        Action::CommitPrepared(s) => (s, Event::Commit(s, Finish::Unreachable)),
        Action::RollbackPrepared(s) => (s, Event::Rollback(s, Finish::Unreachable)),
        Action::LookForMarker(s) => (s, Event::Marker(s, Marker::Unreachable)),
        Action::RollBackLast(_) | Action::HandOver(_) | Action::Alarm(_) | Action::Acknowledge(_) => return None,
    };
    (shard == crashed).then_some(event)
}

fn failures(seeds: u64, bug: Bug) -> Vec<String> {
    let run = |seed| World::new(seed, bug).run().err().map(|e| format!("seed {seed}: {e}"));
    (0..seeds).filter_map(run).collect()
}

#[test]
fn nothing_tears_a_transaction() {
    let failures = failures(SEEDS, Bug::None);
    assert!(
        failures.is_empty(),
        "{} of {SEEDS}, first {:?}",
        failures.len(),
        failures.first()
    );
}

#[test]
fn the_checks_find_mistakes() {
    for bug in [Bug::NoFence, Bug::FenceIgnored, Bug::CommitTooEarly] {
        assert!(!failures(SEEDS / 2, bug).is_empty(), "{bug:?} goes unnoticed");
    }
}
