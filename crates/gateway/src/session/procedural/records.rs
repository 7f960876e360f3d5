//! Variables that hold rows: RECORD, and those of a table's or a composite type.

use super::inner::Words;
use super::run::Machine;
use super::values::Value;
use crate::session::{Problem, Session};
use pgherd_model::quote_identifier;

/// Names and values of a row's columns.
pub(super) type Fields = Vec<(String, Value)>;

/// What such a variable holds.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// the columns of the row; None before the first one of a RECORD
    row: Option<Fields>,
    /// its type, as written; None for RECORD
    of: Option<String>,
    /// there is a row
    is_set: bool,
}

impl Record {
    /// Of a type with these columns.
    pub(super) fn of(written: &str, fields: Fields) -> Self {
        Self {
            row: Some(fields),
            of: Some(written.to_owned()),
            is_set: false,
        }
    }

    pub(super) fn has_fields(&self) -> bool {
        self.row.is_some()
    }

    pub(super) fn field(&self, name: &str) -> Option<&Value> {
        let (_, value) = self.row.as_ref()?.iter().find(|(own, _)| own == name)?;
        Some(value)
    }

    pub(super) fn set_field(&mut self, name: &str, new: Value) {
        let fields = self.row.iter_mut().flatten();
        for (_, value) in fields.filter(|(own, _)| own == name) {
            *value = new.clone();
            self.is_set = true;
        }
    }

    pub(super) fn set(&mut self, row: Fields) {
        self.row = Some(row);
        self.is_set = true;
    }

    /// The columns that rows of its type have; None for RECORD, which takes what it is given.
    pub(super) fn shape(&self) -> Option<Fields> {
        self.row.clone().filter(|_| self.of.is_some())
    }

    /// SQL that gives the row.
    pub(super) fn literal(&self) -> String {
        let list = |named: bool| {
            let field = |(name, value): &(String, Value)| match named {
                true => format!("{} AS {}", value.literal(), quote_identifier(name)),
                false => value.literal(),
            };
            let fields = self.row.iter().flatten().map(field);
            fields.collect::<Vec<_>>().join(", ")
        };
        match (&self.of, self.is_set) {
            (Some(of), true) => format!("(ROW({})::{of})", list(false)),
            (Some(of), false) => format!("(NULL::{of})"),
            // Its columns keep their names.
            (None, true) => format!("(SELECT pgherd_row FROM (SELECT {}) AS pgherd_row)", list(true)),
            (None, false) => "(NULL::pg_catalog.record)".to_owned(),
        }
    }

    /// SQL for `variable.*`. PostgreSQL knows the columns of a declared type only.
    pub(super) fn all_fields(&self) -> Option<String> {
        self.of.as_ref()?;
        let fields: Vec<_> = self.row.iter().flatten().map(|(_, value)| value.literal()).collect();
        (!fields.is_empty()).then(|| fields.join(", "))
    }
}

impl Session {
    /// What was found, as a row of a variable's type: column by column, NULL where there is none.
    pub(super) async fn shaped(
        &mut self,
        machine: &mut Machine,
        shape: Fields,
        found: Fields,
    ) -> Result<Fields, Problem> {
        let mut found = found.into_iter();
        let mut row = Vec::with_capacity(shape.len());
        for (name, empty) in shape {
            let value = match found.next() {
                Some((_, value)) => self.cast(value, empty.type_oid, &empty.type_name).await?,
                None => Value { text: None, ..empty },
            };
            row.push((name, value));
        }
        let types = row.iter().filter(|(_, v)| v.text.is_some()).map(|(_, v)| v.type_oid);
        let types: Vec<_> = types.collect();
        self.check_values(machine, types).await?;
        Ok(row)
    }

    /// `row := expression`, for a variable of a declared type.
    pub(super) async fn assign_row(
        &mut self,
        machine: &mut Machine,
        target: &[String],
        expression: &str,
        words: Words<'_>,
    ) -> Result<(), Problem> {
        let of = machine.record(target).and_then(|record| record.of.clone());
        let Some(of) = of else {
            let why = format!(
                "\"{}\" is a record, which gets its value by INTO only.",
                target.join(".")
            );
            return Err(super::not_run(super::NotUnderstood(why)));
        };
        // Its columns, and whether there is a row at all.
        let head = "SELECT pgherd_value::pg_catalog.text IS NOT NULL, (pgherd_value).* FROM (SELECT CAST(";
        let query = format!("{head}{expression} AS {of}) AS pgherd_value OFFSET 0) AS pgherd_values");
        let words = Words {
            added: words.added + (head.len() - "SELECT ".len()) as u32,
            ..words
        };
        let answer = self.query(machine, &query, words).await?;
        let shape = machine.record(target).and_then(|record| record.shape());
        let (Some(row), Some(shape)) = (answer.rows.first(), shape) else {
            return Ok(());
        };
        let cells = row.iter().skip(1).cloned();
        let fields = shape
            .into_iter()
            .zip(cells)
            .map(|((name, empty), text)| (name, Value { text, ..empty }));
        let fields: Fields = fields.collect();
        let types = fields.iter().filter(|(_, v)| v.text.is_some()).map(|(_, v)| v.type_oid);
        let types: Vec<_> = types.collect();
        self.check_values(machine, types).await?;
        let is_set = row.first().is_some_and(|cell| cell.as_deref() == Some("t"));
        if let Some(record) = machine.record(target) {
            record.set(fields);
            record.is_set = is_set;
        }
        Ok(())
    }
}
