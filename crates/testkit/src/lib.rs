//! Everything that tests pgherd from outside, as a client does: golden files, transcripts, faults, histories and
//! benchmarks. It never links the gateway, so that what passes here passes for any PostgreSQL client.

pub mod bench;
pub mod bulk;
pub mod differential;
mod error;
pub mod faults;
mod files;
pub mod herd;
pub mod histories;
mod place;
pub mod regress;
mod report;
pub mod slt;
pub mod tpch;
pub mod transcript;
pub mod wire;

pub use error::{Error, Result};
pub use place::Isolation;
pub use report::{Comparison, Failure, FileOutcome, Summary};
