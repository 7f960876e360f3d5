//! Control points: every step of a commit and of recovery has a name, at which a test can end the coordinator as a crash
//! would, or hold a gateway's process until it has done to it what it wants.
//!
//! In production no hook is set and a point costs one uncontended lock. Debug builds take `PGHERD_CONTROL_POINTS`, a folder:
//! a process that comes to the point whose name stands in the folder's file `hold` writes the name to `reached`, and
//! waits there until `hold` is gone or names another one.

use crate::prepared::Step;
use crate::two_phase_commit::{Action, Event};
use pgherd_model::ShardId;
use std::fmt;
use std::sync::Arc;

/// Where a commit or a recovery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// a commit is about to do this
    Before(Action),
    /// this came back and nobody has acted on it
    After(Event),
    /// a transaction that a client prepares, or has prepared, came this far
    OfClient(Step),
    /// recovery is about to do this
    BeforeRecovery(Recover),
    /// recovery has done this and knows nothing of it yet
    AfterRecovery(Recover),
}

/// What recovery does on a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recover {
    /// see whether it is prepared, and its marker
    Look(ShardId),
    /// write, to know that what is prepared is durable
    Confirm(ShardId),
    /// write marker a
    Fence(ShardId),
    /// COMMIT PREPARED
    Commit(ShardId),
    /// ROLLBACK PREPARED
    RollBack(ShardId),
}

/// Whether the commit or recovery goes on from a point; if not, it ends as if the gateway had died there: connections are
/// cut, nobody is told.
pub type Control = Arc<dyn Fn(Point) -> bool + Send + Sync>;

/// `before prepare 2`, `after commit 1`, `before recovery fence 3`.
impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Before(Action::Prepare(s)) => write!(f, "before prepare {s}"),
            Point::Before(Action::CommitLast(s)) => write!(f, "before last {s}"),
            Point::Before(Action::RollBackLast(s)) => write!(f, "before roll back last {s}"),
            Point::Before(Action::Fence(s)) => write!(f, "before fence {s}"),
            Point::Before(Action::CommitPrepared(s)) => write!(f, "before commit {s}"),
            Point::Before(Action::RollbackPrepared(s)) => write!(f, "before rollback {s}"),
            Point::Before(Action::LookForMarker(s)) => write!(f, "before look {s}"),
            Point::Before(Action::HandOver(s)) => write!(f, "before hand-over {s}"),
            Point::Before(Action::Alarm(s)) => write!(f, "before alarm {s}"),
            Point::Before(Action::Acknowledge(_)) => write!(f, "before acknowledge"),
            Point::After(Event::Prepare(s, _)) => write!(f, "after prepare {s}"),
            Point::After(Event::Last(s, _)) => write!(f, "after last {s}"),
            Point::After(Event::Fence(s, _)) => write!(f, "after fence {s}"),
            Point::After(Event::Commit(s, _)) => write!(f, "after commit {s}"),
            Point::After(Event::Rollback(s, _)) => write!(f, "after rollback {s}"),
            Point::After(Event::Marker(s, _)) => write!(f, "after look {s}"),
            Point::OfClient(step) => write!(f, "client {step}"),
            Point::BeforeRecovery(step) => write!(f, "before recovery {step}"),
            Point::AfterRecovery(step) => write!(f, "after recovery {step}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Recorded => write!(f, "recorded"),
            Step::Preparing(s) => write!(f, "before prepare {s}"),
            Step::Voted(s) => write!(f, "after prepare {s}"),
            Step::AllPrepared => write!(f, "all prepared"),
            Step::Prepared => write!(f, "prepared"),
            Step::Decided => write!(f, "decided"),
            Step::Ending(s) => write!(f, "before end {s}"),
            Step::Ended(s) => write!(f, "after end {s}"),
        }
    }
}

impl fmt::Display for Recover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Recover::Look(s) => write!(f, "look {s}"),
            Recover::Confirm(s) => write!(f, "confirm {s}"),
            Recover::Fence(s) => write!(f, "fence {s}"),
            Recover::Commit(s) => write!(f, "commit {s}"),
            Recover::RollBack(s) => write!(f, "rollback {s}"),
        }
    }
}

/// The hook that the process's environment asks for.
#[cfg(debug_assertions)]
pub(crate) fn from_environment() -> Option<Control> {
    let folder = std::path::PathBuf::from(std::env::var_os("PGHERD_CONTROL_POINTS")?);
    Some(Arc::new(move |point| {
        // The thread is handed back meanwhile: the rest of the gateway, its lease above all, goes on.
        tokio::task::block_in_place(|| hold(&folder, &point.to_string()));
        true
    }))
}

/// Release builds have no such hook.
#[cfg(not(debug_assertions))]
pub(crate) fn from_environment() -> Option<Control> {
    None
}

#[cfg(debug_assertions)]
fn hold(folder: &std::path::Path, name: &str) {
    let is_wanted = || std::fs::read_to_string(folder.join("hold")).is_ok_and(|text| text.trim() == name);
    if !is_wanted() {
        return;
    }
    if let Err(e) = std::fs::write(folder.join("reached"), name) {
        tracing::error!("cannot tell that {name} was reached: {e}");
    }
    while is_wanted() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::two_phase_commit::Finish;

    #[test]
    fn points_have_names() {
        let shard = ShardId(2);
        let names = [
            Point::Before(Action::CommitPrepared(shard)).to_string(),
            Point::After(Event::Commit(shard, Finish::Done)).to_string(),
            Point::AfterRecovery(Recover::Fence(shard)).to_string(),
        ];
        assert_eq!(names, ["before commit 2", "after commit 2", "after recovery fence 2"]);
    }
}
