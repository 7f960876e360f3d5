//! What there is to try. Shard 1 is the home shard, shard 2 is not; the transaction writes on both.

use std::fmt;

/// How a transaction comes to where it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// it commits
    Commit,
    /// shard 2 refuses to prepare
    Refused,
    /// shard 1 cannot be prepared, and commits last
    Last,
    /// shard 2's connection is lost before it prepared
    Lost,
    /// its gateway was killed when all was prepared, and is started again: recovery commits
    RecoverWhole,
    /// its gateway was killed when shard 1 alone was prepared, and is started again: recovery rolls back
    RecoverHalf,
}

/// What happens at that step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9` of the gateway
    Kill,
    /// SIGSTOP, until it was taken for dead where another gateway lives, else for three seconds
    Pause,
    /// all its connections to shards are cut
    Disconnect,
    /// nothing passes between it and the shards for three seconds
    Silence,
    /// nothing passes between it and shard 2 until its client has an answer
    LongSilence,
    /// a shard stops as in a crash, and is started again
    Crash(u32),
    /// all processes of a shard are stopped for three seconds
    Freeze(u32),
}

/// Whether there is another gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Companion {
    /// none
    None,
    /// one that is alive
    Alive,
}

/// One combination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// how it gets there
    pub path: Path,
    /// the name of the step
    pub point: &'static str,
    /// what happens there
    pub fault: Fault,
    /// who else is there
    pub companion: Companion,
}

const POINTS: [(Path, &[&str]); 6] = [
    (
        Path::Commit,
        &[
            "before prepare 1",
            "before prepare 2",
            "after prepare 1",
            "after prepare 2",
            "before commit 1",
            "before commit 2",
            "after commit 1",
            "after commit 2",
        ],
    ),
    (
        Path::Refused,
        &["after prepare 2", "before rollback 1", "after rollback 1"],
    ),
    (
        Path::Last,
        &[
            "before prepare 2",
            "after prepare 2",
            "before last 1",
            "after last 1",
            "before commit 2",
            "after commit 2",
        ],
    ),
    (
        Path::Lost,
        &[
            "before fence 2",
            "after fence 2",
            "before rollback 1",
            "after rollback 1",
        ],
    ),
    (
        Path::RecoverWhole,
        &[
            "before recovery look 1",
            "after recovery look 2",
            "before recovery confirm 1",
            "after recovery confirm 2",
            "before recovery commit 1",
            "before recovery commit 2",
            "after recovery commit 1",
            "after recovery commit 2",
        ],
    ),
    (
        Path::RecoverHalf,
        &[
            "before recovery look 2",
            "after recovery look 1",
            "before recovery fence 2",
            "after recovery fence 2",
            "before recovery rollback 1",
            "after recovery rollback 1",
        ],
    ),
];

const FAULTS: [Fault; 8] = [
    Fault::Kill,
    Fault::Pause,
    Fault::Disconnect,
    Fault::Silence,
    Fault::Crash(1),
    Fault::Crash(2),
    Fault::Freeze(1),
    Fault::Freeze(2),
];

/// All of them.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (path, points) in POINTS {
        for point in points {
            let long = path == Path::Commit && ["before prepare 2", "before commit 2"].contains(point);
            let faults = FAULTS.into_iter().chain(long.then_some(Fault::LongSilence));
            for fault in faults {
                for companion in [Companion::None, Companion::Alive] {
                    all.push(Case {
                        path,
                        point,
                        fault,
                        companion,
                    });
                }
            }
        }
    }
    all
}

impl Path {
    /// Whether a gateway is stopped that recovers what another left, rather than one that commits.
    pub fn is_recovery(self) -> bool {
        matches!(self, Path::RecoverWhole | Path::RecoverHalf)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Path::Commit => "commit",
            Path::Refused => "refused",
            Path::Last => "shard 1 last",
            Path::Lost => "lost answer",
            Path::RecoverWhole => "recovery, all prepared",
            Path::RecoverHalf => "recovery, one prepared",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill => f.write_str("gateway killed"),
            Fault::Pause => f.write_str("gateway paused"),
            Fault::Disconnect => f.write_str("gateway cut off"),
            Fault::Silence => f.write_str("packets lost"),
            Fault::LongSilence => f.write_str("packets lost for long"),
            Fault::Crash(s) => write!(f, "shard {s} crashes"),
            Fault::Freeze(s) => write!(f, "shard {s} paused"),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let companion = match self.companion {
            Companion::None => "alone",
            Companion::Alive => "with another",
        };
        write!(f, "{} / {} / {} / {companion}", self.path, self.point, self.fault)
    }
}
