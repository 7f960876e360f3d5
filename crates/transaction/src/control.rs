//! Control points: every step of a commit has a name, at which a test can end the coordinator as a crash would.
//!
//! In production no hook is set and a point costs one uncontended lock.

use crate::prepared::Step;
use crate::two_phase_commit::{Action, Event};
use std::sync::Arc;

/// Where a commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// about to do this
    Before(Action),
    /// this came back and nobody has acted on it
    After(Event),
    /// a transaction that a client prepares, or has prepared, came this far
    OfClient(Step),
}

/// Whether the commit goes on from a point; if not, it ends as if the gateway had died there: connections are cut,
/// nobody is told.
pub type Control = Arc<dyn Fn(Point) -> bool + Send + Sync>;
