//! Work that goes on while things break, and what must be true of it afterwards, all seen as a client sees it.
//!
//! - [`bank`]: money moves between accounts on several shards; nothing may be lost, invented or half done.
//! - [`whole_answers`]: a table is read in a loop while others change it; every answer is the whole one, or an error.
//! - [`malformed`]: bytes that no decent client sends.
//! - [`matrix`]: every step of a commit and of recovery, times everything that may happen there; [`proxy`] cuts and silences ways.
//!
//! What breaks, and when, is the business of the test: see [`crate::herd`] for gateways that can be killed and paused.

pub mod bank;
pub mod malformed;
pub mod matrix;
pub mod proxy;
pub mod whole_answers;
