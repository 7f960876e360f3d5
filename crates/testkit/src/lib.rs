//! Everything that tests pgherd from outside, as a client does: golden files, transcripts, faults and
//! benchmarks. It never links the gateway, so that what passes here passes for any PostgreSQL client.

pub mod bench;
mod error;
mod files;
mod place;
mod report;
