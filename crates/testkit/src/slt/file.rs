//! Runs the records of one file and collects what fails.

use super::database::{Database, same_types};
use super::{Options, rewrite};
use crate::place::Place;
use crate::wire::{Protocol, Target};
use crate::{Error, Failure, FileOutcome, Result};
use regex::Regex;
use sqllogictest::{DefaultColumnType, ExpectedError, MakeConnection, QueryExpect, Record, Runner, StatementExpect};
use std::path::PathBuf;
use std::time::Instant;

/// Never fails: what goes wrong with the file is part of its outcome.
pub(super) async fn run(path: PathBuf, target: &Target, options: &Options) -> FileOutcome {
    let start = Instant::now();
    let mut outcome = FileOutcome {
        path,
        records: 0,
        failures: Vec::new(),
        elapsed: start.elapsed(),
    };
    if let Err(error) = run_in_place(&mut outcome, target, options).await {
        outcome.failures.push(Failure::from(error));
    }
    outcome.elapsed = start.elapsed();
    outcome
}

async fn run_in_place(outcome: &mut FileOutcome, target: &Target, options: &Options) -> Result<()> {
    let records = sqllogictest::parse_file(&outcome.path).map_err(|error| Error::Script(error.to_string()))?;
    let place = Place::make(target, options.isolation).await?;
    let mut runner = Runner::new(|| Database::open(&place.target, options.protocol, options.statement_limit));
    runner.add_label("postgresql");
    runner.add_label(match options.protocol {
        Protocol::Simple => "simple",
        Protocol::Extended => "extended",
    });
    for label in &options.labels {
        runner.add_label(label);
    }
    if options.check_types {
        runner.with_column_validator(same_types);
    }
    if options.rewrite {
        outcome.records = rewrite::rewrite(&outcome.path, records, &mut runner).await?;
    } else {
        apply(records, &mut runner, options.keep_going, outcome).await;
    }
    runner.shutdown_async().await;
    drop(runner);
    place.remove().await
}

async fn apply<M: MakeConnection<Conn = Database>>(
    records: Vec<Record<DefaultColumnType>>,
    runner: &mut Runner<Database, M>,
    keep_going: bool,
    outcome: &mut FileOutcome,
) {
    for record in records {
        if matches!(record, Record::Halt { .. }) {
            break;
        }
        outcome.records += usize::from(is_test(&record));
        if let Err(error) = runner.run_async(ignore_sqlstate_line(record)).await {
            outcome.failures.push(Failure::from(error));
            if !keep_going {
                break;
            }
        }
    }
}

/// Whether a record is counted in the report.
pub(super) fn is_test(record: &Record<DefaultColumnType>) -> bool {
    matches!(
        record,
        Record::Statement { .. } | Record::Query { .. } | Record::System { .. }
    )
}

/// An error message that a file gives in full, under `----`, was written for runners that show no SQLSTATE line.
fn ignore_sqlstate_line(mut record: Record<DefaultColumnType>) -> Record<DefaultColumnType> {
    let expected = match &mut record {
        Record::Statement {
            expected: StatementExpect::Error(expected),
            ..
        }
        | Record::Query {
            expected: QueryExpect::Error(expected),
            ..
        } => expected,
        _ => return record,
    };
    if let ExpectedError::Multiline(text) = expected
        && !text.contains("\nSQLSTATE: ")
        && let Ok(pattern) = Regex::new(&format!(r"^\s*{}(\nSQLSTATE: \w+)?\s*$", regex::escape(text.trim())))
    {
        *expected = ExpectedError::Inline(pattern);
    }
    record
}
