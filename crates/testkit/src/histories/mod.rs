//! Histories: workloads whose clients write down what they asked for and what they were told, through two gateways over
//! three shards, while gateways and shards die and pause; checkers then say what no order of transactions can explain.
//!
//! A client knows three outcomes. *Ok*: COMMIT was answered. *Failed*: it is certain that nothing is left, because COMMIT was
//! never sent or was refused. *Unknown*: nobody answered COMMIT, or the answer was 08007; such a transaction may be there or
//! not, but always wholly.
//!
//! | module | its part |
//! |---|---|
//! | `stage` | what all clients of a run share: gateways' addresses, the clock, the end |
//! | `client` | one session, its transactions and their outcomes |
//! | `record` | what clients write down |
//! | `nemesis` | kills and pauses gateways and shards |
//! | `lists`, `registers` | transactions over lists and registers, checked for cycles by the crate `adya` (`cycles`) |
//! | `bank`, `order`, `write_skew`, `set`, `monotonic` | one invariant each, with a checker of its own |
//! | `round` | a fresh cluster, some workloads at one level, faults, the verdict |
//! | `seeded` | bugs for the checkers to find |
//! | `soak` | the command that runs each pair of workload and level for minutes, and its table |
//!
//! What a level promises over several shards is docs/isolation.md; a checker counts what that page says can happen
//! ([`Verdict::named`]) and everything else is a violation.

mod arguments;
mod bank;
mod client;
mod cycles;
mod lists;
mod monotonic;
mod nemesis;
mod order;
mod record;
mod registers;
mod round;
mod seeded;
mod set;
mod soak;
mod stage;
mod verdict;
mod write_skew;

pub use arguments::Arguments;
pub use nemesis::Fault;
pub use round::{Account, Options, run};
pub use seeded::Seed;
pub use soak::{SoakOptions, soak};
pub use verdict::Verdict;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How far transactions are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Each statement sees whole transactions.
    ReadCommitted,
    /// A transaction sees one cut.
    RepeatableRead,
    /// As if transactions ran one after the other.
    Serializable,
}

impl Level {
    /// The statement that begins a transaction.
    pub(crate) fn begin(self) -> &'static str {
        match self {
            Level::ReadCommitted => "BEGIN ISOLATION LEVEL READ COMMITTED",
            Level::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            Level::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        }
    }

    /// Whether all statements of a transaction see the same state of the database, so that it is one step for a checker.
    /// At READ COMMITTED each statement is a step of its own.
    pub(crate) fn is_one_step(self) -> bool {
        self != Level::ReadCommitted
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::ReadCommitted => "READ COMMITTED",
            Level::RepeatableRead => "REPEATABLE READ",
            Level::Serializable => "SERIALIZABLE",
        })
    }
}

/// What clients do, and what is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Appends to lists and reads of lists, checked for cycles.
    Lists,
    /// Writes and reads of registers, checked for cycles.
    Registers,
    /// Money moves; every sum is right.
    Bank,
    /// Three transactions at the same time; readers agree on their order.
    LongFork,
    /// One transaction after the other; nobody sees the later one without the earlier one.
    CausalReverse,
    /// Two transactions read the same rows and each writes another one.
    WriteSkew,
    /// Rows are inserted and move between shards; none is lost, doubled or invented.
    Set,
    /// Counters that only grow are never read smaller than before.
    Monotonic,
}

impl Workload {
    /// All of them.
    pub const ALL: [Workload; 8] = [
        Workload::Lists,
        Workload::Registers,
        Workload::Bank,
        Workload::LongFork,
        Workload::CausalReverse,
        Workload::WriteSkew,
        Workload::Set,
        Workload::Monotonic,
    ];
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Workload::Lists => "lists",
            Workload::Registers => "registers",
            Workload::Bank => "bank",
            Workload::LongFork => "long-fork",
            Workload::CausalReverse => "causal-reverse",
            Workload::WriteSkew => "write-skew",
            Workload::Set => "set",
            Workload::Monotonic => "monotonic",
        })
    }
}
