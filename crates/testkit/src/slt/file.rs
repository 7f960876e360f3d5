//! Runs the records of one file and collects what fails.

use super::classic::{self, ExpectedTypes};
use super::database::{Database, Shared, TransactionStatus, same_types};
use super::{Options, rewrite};
use crate::place::Place;
use crate::wire::{Protocol, Target};
use crate::{Error, Failure, FileOutcome, Result};
use regex::Regex;
use sqllogictest::{
    DefaultColumnType, ExpectedError, MakeConnection, QueryExpect, Record, Runner, StatementExpect, TestError,
    TestErrorKind,
};
use std::path::PathBuf;
use std::time::Instant;

/// Never fails: what goes wrong with the file is part of its outcome.
pub(super) async fn run(path: PathBuf, target: &Target, options: &Options) -> FileOutcome {
    let start = Instant::now();
    let mut outcome = FileOutcome::new(path);
    if let Err(error) = run_in_place(&mut outcome, target, options).await {
        outcome.failures.push(Failure::from(error));
    }
    outcome.elapsed = start.elapsed();
    outcome
}

async fn run_in_place(outcome: &mut FileOutcome, target: &Target, options: &Options) -> Result<()> {
    let records = if options.classic {
        classic::parse(&outcome.path)?
    } else {
        sqllogictest::parse_file(&outcome.path).map_err(|error| Error::Script(error.to_string()))?
    };
    let place = Place::make(target, options.isolation).await?;
    let shared = Shared {
        protocol: options.protocol,
        statement_limit: options.statement_limit,
        status: TransactionStatus::default(),
        expected_types: options.classic.then(ExpectedTypes::default),
    };
    let mut runner = Runner::new(|| Database::open(&place.target, shared.clone()));
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
        apply(records, &mut runner, options, &shared, outcome).await;
    }
    runner.shutdown_async().await;
    drop(runner);
    place.remove().await
}

async fn apply<M: MakeConnection<Conn = Database>>(
    records: Vec<Record<DefaultColumnType>>,
    runner: &mut Runner<Database, M>,
    options: &Options,
    shared: &Shared,
    outcome: &mut FileOutcome,
) {
    let total = records.iter().filter(|record| is_test(record)).count();
    for record in records {
        if matches!(record, Record::Halt { .. }) {
            return;
        }
        outcome.records += usize::from(is_test(&record));
        if let Some(types) = &shared.expected_types {
            types.set(&record);
        }
        let Err(error) = runner.run_async(ignore_sqlstate_line(record.clone())).await else {
            continue;
        };
        let goes_on = if options.accept_refusals && is_refusal(&error) {
            outcome.refusals.push(Failure::from(error));
            changes_nothing(&record) && !shared.status.in_block()
        } else {
            outcome.failures.push(Failure::from(error));
            options.keep_going
        };
        if !goes_on {
            outcome.skipped = total - outcome.records;
            return;
        }
    }
}

/// Whether the server said "not supported" where the file expects something else.
fn is_refusal(error: &TestError) -> bool {
    let (TestErrorKind::Fail { err, .. } | TestErrorKind::ErrorMismatch { err, .. }) = error.kind() else {
        return false;
    };
    err.downcast_ref::<Error>().and_then(Error::sqlstate) == Some("0A000")
}

/// Whether the records after this one mean the same if it was refused.
fn changes_nothing(record: &Record<DefaultColumnType>) -> bool {
    let sql = match record {
        Record::Statement {
            expected: StatementExpect::Error(_),
            ..
        }
        | Record::Query {
            expected: QueryExpect::Error(_),
            ..
        } => return true,
        Record::Statement { sql, .. } | Record::Query { sql, .. } => sql.to_lowercase(),
        _ => return false,
    };
    let reads = ["select", "values", "table", "with", "show", "("]
        .iter()
        .any(|word| sql.starts_with(word));
    let writes = ["insert", "update", "delete", "nextval", "setval", "set_config", "into"];
    reads && !writes.iter().any(|word| sql.contains(word))
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
