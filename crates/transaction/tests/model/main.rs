//! The commit protocol, checked in every order of events: [`two_phase_commit::Commit`](pgherd_transaction::two_phase_commit),
//! [`recovery::decide`](pgherd_transaction::recovery) and [`cut::stale`](pgherd_transaction::cut) are the ones that run in a gateway;
//! around them is a model of shards, connections, leases, watermarks (`world`, `steps`), recoverers and a reader.
//!
//! One gateway commits one transaction. A bounded number of faults may come at any moment: requests and replies are lost (and a
//! lost request may still arrive, at any later time), shards crash or fail over to a standby, the gateway pauses, is taken
//! for dead and wakes, or dies, recoverers die or find a shard unreachable. Everything else happens in any order and takes any time.
//!
//! `PGHERD_MODEL=deep cargo test -p pgherd-transaction --test model` takes some minutes and goes deeper than what runs by default.
//! Each [`Bug`] that is built in on purpose is found by a property: the properties can fail.

mod reader;
mod recoverers;
mod steps;
mod world;

use ahash::AHashSet;
use pgherd_transaction::two_phase_commit::Outcome;
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::cell::RefCell;
use std::time::Instant;
use steps::{Bug, Protocol, Step};
use world::{Key, Life, Part, Reader, World, Wrong};

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![self.first()]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        // What is wrong stays wrong; nothing is learnt from going on.
        if world.wrong.is_none() {
            self.possible(world, steps);
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        self.next(world, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always("committed on all shards or on none", |_, w: &World| {
                !(w.part(Part::is_visible) && w.part(|p| p == Part::RolledBack))
            }),
            Property::always("acknowledged is committed or prepared everywhere", |_, w: &World| {
                let safe = |p| matches!(p, Part::Prepared | Part::Committed);
                w.told != Some(Outcome::Committed) || !w.part(|p| !safe(p))
            }),
            Property::always("refused is committed nowhere", |_, w: &World| {
                w.told != Some(Outcome::Aborted) || !w.part(Part::is_visible)
            }),
            Property::always("nothing decided is lost, nothing looks torn", |_, w: &World| {
                !matches!(w.wrong, Some(Wrong::Alarm | Wrong::Torn))
            }),
            Property::always("a cut shows all of a transaction or nothing", |_, w: &World| {
                w.wrong != Some(Wrong::Fractured)
            }),
            Property::always(
                "when faults cease, it is finished as the client was told",
                |m: &Protocol, w| w.wrong.is_some() || finishes(m, w),
            ),
            Property::sometimes("acknowledged", |_, w: &World| w.told == Some(Outcome::Committed)),
            Property::sometimes("refused", |_, w: &World| w.told == Some(Outcome::Aborted)),
            Property::sometimes("unknown, and committed in the end", |_, w: &World| {
                w.told == Some(Outcome::Unknown) && w.shards.iter().all(|s| s.part == Part::Committed)
            }),
            Property::sometimes("recovery commits for a dead gateway", |_, w: &World| {
                w.gateway == Life::Dead && w.told.is_none() && w.shards.iter().all(|s| s.part == Part::Committed)
            }),
            Property::sometimes(
                "recovery rolls back for a gateway that wakes afterwards",
                |_, w: &World| {
                    w.gateway == Life::Alive && w.told.is_none() && w.shards.iter().all(|s| s.part == Part::RolledBack)
                },
            ),
            Property::sometimes("a fence is there before its PREPARE arrives", |_, w: &World| {
                w.shards
                    .iter()
                    .any(|s| s.key == Key::Fence && s.part == Part::Open && s.late.is_some())
            }),
            Property::sometimes("markers are forgotten", |_, w: &World| {
                w.shards
                    .iter()
                    .all(|s| s.key == Key::Forgotten && s.part == Part::Committed)
            }),
        ];
        if self.recoverers > 1 {
            all.push(Property::sometimes(
                "unknown, and rolled back in the end",
                |_, w: &World| w.told == Some(Outcome::Unknown) && w.shards.iter().all(|s| s.part == Part::RolledBack),
            ));
        }
        if self.reader {
            all.push(Property::sometimes("a half is seen, and read again", |_, w: &World| {
                w.refreshed && w.reader == Reader::Done
            }));
        }
        all
    }
}

const HASHER: ahash::RandomState = ahash::RandomState::with_seeds(1, 2, 3, 4);

thread_local! {
    /// Worlds from which [`finishes`] is known to come to a good end. The checker starts threads of its own.
    static GOOD: RefCell<AHashSet<u64>> = RefCell::default();
}

/// Lets everything arrive, everybody wake and recovery run, without further faults. This is no proof for every order of
/// what is left, but it is tried from every state that any order leads to.
fn finishes(protocol: &Protocol, from: &World) -> bool {
    let helps = |step: &Step| {
        use Step::*;
        matches!(
            step,
            Arrive(_)
                | Write(_)
                | Sync(_)
                | Answer(_)
                | ArriveLate(_)
                | HangUp(_)
                | Wake
                | Begin(_)
                | Look(..)
                | Decide(_)
                | Act(..)
        )
    };
    let mut world = from.clone();
    world.faults = 0;
    let (mut steps, mut passed) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let hash = HASHER.hash_one(&world);
        if GOOD.with_borrow(|good| good.contains(&hash)) {
            GOOD.with_borrow_mut(|good| good.extend(passed));
            return true;
        }
        passed.push(hash);
        steps.clear();
        protocol.possible(&world, &mut steps);
        let next = steps
            .iter()
            .filter(|s| helps(s))
            .find_map(|s| protocol.next(&world, *s));
        let Some(next) = next else {
            let answered = world.told.is_some() || world.gateway == Life::Dead;
            let all_the_same = !world.part(|p| p != world.shards[0].part);
            let good = answered && all_the_same && !world.is_prepared() && agrees(&world);
            if good {
                GOOD.with_borrow_mut(|good| good.extend(passed));
            }
            return good;
        };
        world = next;
    }
    false
}

fn agrees(world: &World) -> bool {
    let committed = world.shards[0].part == Part::Committed;
    match world.told {
        Some(Outcome::Committed) => committed,
        Some(Outcome::Aborted) => !committed,
        Some(Outcome::Unknown) | None => true,
    }
}

/// Checks every state, or ends with the first property that does not hold.
fn check(protocol: Protocol) -> (Vec<String>, usize) {
    let begun = Instant::now();
    let what = format!("{protocol:?}");
    let checker = protocol
        .clone()
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures);
    // This one needs many steps, which depth first comes to sooner; elsewhere the shortest way to a mistake is worth more.
    let checker: Box<dyn Checker<Protocol>> = match protocol.bug {
        Bug::StaleFence => Box::new(checker.spawn_dfs().join()),
        _ => Box::new(checker.spawn_bfs().join()),
    };
    let mut failed = Vec::new();
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        if property.expectation.discovery_is_failure() {
            failed.extend(found.map(|path| format!("{}: {:?}", property.name, path.into_actions())));
        } else if found.is_none() && checker.model().bug == Bug::None {
            failed.push(format!("never reached: {}", property.name));
        }
    }
    eprintln!(
        "{what}: {} states, depth {}, {:?}",
        checker.unique_state_count(),
        checker.max_depth(),
        begun.elapsed()
    );
    (failed, checker.unique_state_count())
}

/// Whether to take the minutes that more faults and more recoverers cost.
fn deep() -> bool {
    std::env::var("PGHERD_MODEL").is_ok_and(|text| text == "deep")
}

fn nothing_is_wrong(protocol: Protocol) {
    let (failed, states) = check(protocol);
    assert_eq!(failed, Vec::<String>::new());
    assert!(states > 1000, "{states}");
}

const TWO: Protocol = Protocol {
    shards: 2,
    recoverers: 2,
    faults: 1,
    reader: false,
    last: false,
    bug: Bug::None,
};

#[test]
fn one_commit_and_two_recoverers() {
    nothing_is_wrong(TWO);
    if deep() {
        nothing_is_wrong(Protocol { faults: 2, ..TWO });
        nothing_is_wrong(Protocol { recoverers: 3, ..TWO });
    }
}

#[test]
fn three_shards() {
    let three = Protocol {
        shards: 3,
        recoverers: 1,
        ..TWO
    };
    nothing_is_wrong(three.clone());
    nothing_is_wrong(Protocol { last: true, ..three });
}

#[test]
fn one_shard_commits_last() {
    let with_last = Protocol { last: true, ..TWO };
    nothing_is_wrong(with_last.clone());
    nothing_is_wrong(Protocol {
        reader: true,
        recoverers: 1,
        ..with_last.clone()
    });
    if deep() {
        nothing_is_wrong(Protocol {
            faults: 2,
            ..with_last.clone()
        });
        nothing_is_wrong(Protocol {
            recoverers: 3,
            ..with_last
        });
    }
}

#[test]
fn a_reader_beside_the_commit() {
    let reading = Protocol {
        reader: true,
        recoverers: 1,
        ..TWO
    };
    nothing_is_wrong(reading.clone());
    if deep() {
        nothing_is_wrong(Protocol {
            recoverers: 2,
            ..reading
        });
    }
}

#[test]
fn each_mistake_is_found() {
    use Bug::*;
    for (bug, faults, reader) in [
        (CommitWithoutPrepare, 1, false),
        (FenceIgnored, 2, false),
        (NoFence, 1, false),
        (AbortsTheLive, 0, false),
        (NoConfirmation, 2, false),
        (CommitTooEarly, 1, false),
        (EarlyCleanUp, 2, false),
        (CleanUpUnderReaders, 0, true),
        (EarlyWatermark, 1, true),
        (LateMarker, 2, false),
        (StaleFence, 2, false),
        (LastNotConfirmed, 2, false),
    ] {
        // The reader needs nobody else, the others need somebody who takes the gateway for dead.
        let recoverers = if reader { 1 } else { 2 };
        let (failed, _) = check(Protocol {
            faults,
            reader,
            recoverers,
            last: bug == LastNotConfirmed,
            bug,
            ..TWO
        });
        assert!(!failed.is_empty(), "{bug:?} goes unnoticed");
        eprintln!("{bug:?}: {}", failed[0]);
    }
}
