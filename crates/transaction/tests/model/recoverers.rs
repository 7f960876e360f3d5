//! Recoverers: they look, decide by [`decide`], and act.

use crate::steps::{Bug, Protocol, id, synchronise};
use crate::world::*;
use pgherd_model::ShardId;
use pgherd_transaction::recovery::{Decision, Observation, decide};
use pgherd_transaction::two_phase_commit::Action;

impl Protocol {
    pub fn decide(&self, world: &mut World, r: usize) {
        let Recoverer::Looking { seen, confirmed } = &world.recoverers[r] else {
            return;
        };
        let Some(seen) = seen
            .iter()
            .enumerate()
            .map(|(s, o)| Some((id(s), (*o)?)))
            .collect::<Option<Vec<_>>>()
        else {
            return;
        };
        let confirmed = *confirmed || self.bug == Bug::NoConfirmation;
        let all = |wanted: Observation| {
            seen.iter()
                .filter(|(_, o)| *o == wanted)
                .map(|(s, _)| *s)
                .collect::<Vec<_>>()
        };
        let prepared = all(Observation::Prepared);
        let last = world.last.filter(|_| self.bug != Bug::LastNotConfirmed).map(id);
        let decision = match (decide(&seen, last, confirmed), self.bug) {
            (Decision::Fence(_), Bug::NoFence) if !prepared.is_empty() => Decision::RollBack(prepared),
            (Decision::Fence(_), Bug::CommitTooEarly) if !prepared.is_empty() => Decision::Commit(prepared),
            (Decision::Confirm(_) | Decision::Fence(_), Bug::AbortsTheLive) => Decision::RollBack(prepared),
            (decision, _) => decision,
        };
        let shards = world.shards.len();
        let acting = |on: &[ShardId], task: Task, confirmed: bool| {
            let tasks = (0..shards).map(|s| on.contains(&id(s)).then_some(task)).collect();
            Recoverer::Acting {
                tasks,
                confirmed,
                is_late: false,
            }
        };
        world.recoverers[r] = match decision {
            Decision::Commit(on) => acting(&on, Task::Commit, confirmed),
            Decision::RollBack(on) => acting(&on, Task::RollBack, confirmed),
            Decision::Fence(on) => acting(&on, Task::Fence, confirmed),
            Decision::Confirm(on) => acting(&on, Task::Confirm, true),
            Decision::Wait(_) => Recoverer::Idle,
            Decision::Settled { lost, .. } => {
                // Where markers are forgotten, everything was settled before.
                if lost.iter().any(|s| world.shards[index(*s)].key != Key::Forgotten) {
                    world.wrong = Some(Wrong::Alarm);
                }
                // Only the gateway's own task tells others.
                world.settled |= r == 0 && world.gateway == Life::Alive;
                Recoverer::Idle
            }
            Decision::Torn => {
                world.wrong = Some(Wrong::Torn);
                Recoverer::Idle
            }
        };
    }

    pub fn act(&self, world: &mut World, r: usize, s: usize) {
        let Recoverer::Acting {
            tasks,
            confirmed,
            is_late,
        } = &mut world.recoverers[r]
        else {
            return;
        };
        let (task, confirmed, is_late) = (tasks[s].take(), *confirmed, *is_late);
        let is_over = tasks.iter().all(Option::is_none);
        let shard = &mut world.shards[s];
        match task {
            None => return,
            Some(Task::Commit) => _ = shard.finish(Part::Committed),
            Some(Task::RollBack) => _ = shard.finish(Part::RolledBack),
            Some(Task::Confirm) => synchronise(shard),
            Some(Task::Fence) => {
                let is_held = matches!(shard.part, Part::Marked | Part::Committing);
                shard.fence();
                // The backend that held the key was ended.
                if let (true, Wire::Asked(asked @ (Action::Prepare(_) | Action::CommitLast(_)))) = (is_held, shard.wire)
                {
                    shard.wire = Wire::Answered(unanswered(asked));
                }
            }
        }
        if is_over {
            world.recoverers[r] = match is_late {
                true => Recoverer::Idle,
                false => looking(world.shards.len(), confirmed),
            };
        }
    }
}

pub fn looking(shards: usize, confirmed: bool) -> Recoverer {
    Recoverer::Looking {
        seen: vec![None; shards],
        confirmed,
    }
}

/// Markers are kept for longer than anybody goes on with what it has seen.
pub fn give_up(recoverer: &mut Recoverer) {
    match recoverer {
        Recoverer::Idle => {}
        Recoverer::Looking { .. } => *recoverer = Recoverer::Idle,
        Recoverer::Acting { is_late, .. } => *is_late = true,
    }
}

pub fn see(recoverer: &mut Recoverer, s: usize, what: Observation) {
    if let Recoverer::Looking { seen, .. } = recoverer
        && seen[s].is_none()
    {
        seen[s] = Some(what);
    }
}

/// The gateway's own task stands still with it.
pub fn runs(world: &World, r: usize) -> bool {
    !(r == 0 && world.gateway == Life::Paused)
}
