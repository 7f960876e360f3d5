//! Writes a server's answers into a file as the expected results.
//!
//! Meant for a plain PostgreSQL, which is the reference. What the file already says is kept where it holds (sort mode,
//! `count`, layout of matching rows, `?` as type); an error becomes its SQLSTATE.

use super::database::{Database, same_types};
use super::file::is_test;
use crate::{Error, Result};
use sqllogictest::runner::RecordOutput;
use sqllogictest::{
    DefaultColumnType, ExpectedError, MakeConnection, QueryExpect, Record, Runner, StatementExpect, default_normalizer,
    default_validator, update_record_with_output,
};
use std::fmt::Write;
use std::path::Path;

/// Returns the number of records that were run.
pub(super) async fn rewrite<M: MakeConnection<Conn = Database>>(
    path: &Path,
    records: Vec<Record<DefaultColumnType>>,
    runner: &mut Runner<Database, M>,
) -> Result<usize> {
    if records
        .iter()
        .any(|record| matches!(record, Record::Include { .. } | Record::Injected(_)))
    {
        return Err(Error::Script(format!(
            "{}: a file with `include` cannot be rewritten",
            path.display()
        )));
    }
    let mut text = String::new();
    let mut count = 0;
    let mut halted = false;
    for record in records {
        halted |= matches!(record, Record::Halt { .. });
        let updated = if halted {
            record
        } else {
            answer(record, runner, &mut count).await
        };
        writeln!(text, "{updated}").map_err(|_| Error::Script("a record cannot be written".into()))?;
    }
    let text = format!("{}\n", text.trim_end_matches('\n'));
    std::fs::write(path, text).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })?;
    Ok(count)
}

async fn answer<M: MakeConnection<Conn = Database>>(
    record: Record<DefaultColumnType>,
    runner: &mut Runner<Database, M>,
    count: &mut usize,
) -> Record<DefaultColumnType> {
    *count += usize::from(is_test(&record));
    let output = runner.apply_record(record.clone()).await;
    if let Some(error) = server_error(&output) {
        return expect_error(record, error);
    }
    update_record_with_output(&record, &output, " ", default_validator, default_normalizer, same_types)
        .unwrap_or(record)
}

fn server_error(output: &RecordOutput<DefaultColumnType>) -> Option<&Error> {
    let (RecordOutput::Query { error: Some(error), .. } | RecordOutput::Statement { error: Some(error), .. }) = output
    else {
        return None;
    };
    error.downcast_ref::<Error>()
}

/// An expression that matches says more than a SQLSTATE, so it stays.
fn expect_error(mut record: Record<DefaultColumnType>, error: &Error) -> Record<DefaultColumnType> {
    let Some(sqlstate) = error.sqlstate() else {
        return record;
    };
    let holds = |expected: &ExpectedError| {
        !matches!(expected, ExpectedError::Empty) && expected.is_match(&error.to_string(), Some(sqlstate))
    };
    let actual = ExpectedError::SqlState(sqlstate.to_owned());
    match &mut record {
        Record::Statement {
            expected: StatementExpect::Error(expected),
            ..
        }
        | Record::Query {
            expected: QueryExpect::Error(expected),
            ..
        } if holds(expected) => {}
        Record::Statement { expected, .. } => *expected = StatementExpect::Error(actual),
        Record::Query { expected, .. } => *expected = QueryExpect::Error(actual),
        _ => {}
    }
    record
}
