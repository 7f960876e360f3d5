//! The connection that the `sqllogictest` crate drives, and how values and types are shown in a file.

use super::classic::ExpectedTypes;
use crate::wire::{Protocol, Session, StatementResult, Target};
use crate::{Error, Result};
use async_trait::async_trait;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Whether the session that spoke last is in a transaction block; shared by the sessions of a file.
#[derive(Debug, Clone, Default)]
pub(super) struct TransactionStatus(Arc<AtomicBool>);

impl TransactionStatus {
    pub(super) fn in_block(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the sessions of a file have in common.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) protocol: Protocol,
    pub(super) statement_limit: Duration,
    pub(super) status: TransactionStatus,
    /// Set for files of the classic dialect.
    pub(super) expected_types: Option<ExpectedTypes>,
}

/// One session of a file.
pub(super) struct Database {
    session: Session,
    shared: Shared,
}

impl Database {
    pub(super) async fn open(target: &Target, shared: Shared) -> Result<Self> {
        let session = target.connect().await?;
        Ok(Database { session, shared })
    }
}

#[async_trait]
impl AsyncDB for Database {
    type Error = Error;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>> {
        let shared = &self.shared;
        let reply = self.session.run(sql, shared.protocol, shared.statement_limit).await?;
        shared
            .status
            .0
            .store(self.session.transaction_status() != 'I', Ordering::Relaxed);
        match reply.error {
            Some(error) => Err(Error::Server(error)),
            None => Ok(to_output(reply.results, shared.expected_types.as_ref())),
        }
    }

    async fn shutdown(&mut self) {
        self.session.close().await;
    }

    fn engine_name(&self) -> &str {
        "postgres"
    }

    async fn sleep(duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    async fn run_command(command: Command) -> std::io::Result<Output> {
        tokio::process::Command::from(command).output().await
    }

    fn error_sql_state(error: &Error) -> Option<String> {
        error.sqlstate().map(str::to_owned)
    }
}

/// Rows of all statements of the text one after the other; without any, the row count of the last command tag.
fn to_output(results: Vec<StatementResult>, expected: Option<&ExpectedTypes>) -> DBOutput<DefaultColumnType> {
    if !results.iter().any(|result| result.columns.is_some()) {
        return DBOutput::StatementComplete(results.last().map_or(0, StatementResult::affected_rows));
    }
    let mut types = Vec::new();
    let mut rows = Vec::new();
    for result in results {
        if let Some(columns) = result.columns {
            types = columns.iter().map(|column| column_type(column.type_oid)).collect();
            rows.extend(result.rows.into_iter().map(|row| show_row(row, expected)));
        }
    }
    DBOutput::Rows { types, rows }
}

/// The conventions of the format: NULL and the empty string would otherwise be invisible.
fn show_row(row: Vec<Option<String>>, expected: Option<&ExpectedTypes>) -> Vec<String> {
    let show = |(column, value)| match (value, expected) {
        (None, _) => "NULL".to_owned(),
        (Some(value), _) if String::is_empty(&value) => "(empty)".to_owned(),
        (Some(value), Some(expected)) => expected.show(column, value),
        (Some(value), None) => value,
    };
    row.into_iter().enumerate().map(show).collect()
}

/// The format's three letters for PostgreSQL's built-in types, by OID (pg_type.dat).
fn column_type(type_oid: u32) -> DefaultColumnType {
    match type_oid {
        20 | 21 | 23 | 26 => DefaultColumnType::Integer,
        700 | 701 | 1700 => DefaultColumnType::FloatingPoint,
        _ => DefaultColumnType::Text,
    }
}

/// Compares column types where the file states them; `?` stands for any.
#[expect(clippy::ptr_arg, reason = "the runner's validator type is written with &Vec")]
pub(super) fn same_types(actual: &Vec<DefaultColumnType>, expected: &Vec<DefaultColumnType>) -> bool {
    actual.len() == expected.len()
        && actual
            .iter()
            .zip(expected)
            .all(|(actual, expected)| actual == expected || *expected == DefaultColumnType::Any)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Column;

    fn result(values: &[Option<&str>], tag: &str) -> StatementResult {
        let column = Column {
            name: "a".into(),
            type_oid: 23,
        };
        let rows = values.iter().map(|value| vec![value.map(str::to_owned)]).collect();
        StatementResult {
            columns: Some(vec![column]),
            rows,
            tag: tag.into(),
            ..StatementResult::default()
        }
    }

    #[test]
    fn null_and_empty_are_visible_and_rows_of_all_statements_count() {
        let output = to_output(
            vec![
                result(&[None, Some("")], "SELECT 2"),
                StatementResult {
                    tag: "UPDATE 4".into(),
                    ..StatementResult::default()
                },
                result(&[Some("x y")], "SELECT 1"),
            ],
            None,
        );
        let DBOutput::Rows { types, rows } = output else {
            panic!("rows expected")
        };
        assert_eq!(types, [DefaultColumnType::Integer]);
        assert_eq!(rows, [["NULL"], ["(empty)"], ["x y"]]);
    }

    #[test]
    fn a_statement_without_rows_gives_the_count_of_its_tag() {
        for (tag, count) in [("INSERT 0 3", 3), ("UPDATE 12", 12), ("CREATE TABLE", 0), ("", 0)] {
            let output = to_output(
                vec![StatementResult {
                    tag: tag.into(),
                    ..StatementResult::default()
                }],
                None,
            );
            assert!(
                matches!(output, DBOutput::StatementComplete(actual) if actual == count),
                "{tag}"
            );
        }
    }
}
