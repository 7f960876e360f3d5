//! SQLite's original dialect of the format, in which the largest public collection of files is written.
//!
//! It differs from today's in three ways: results stand one value to a line, `onlyif` and `skipif` carry comments, and
//! the type letters of a query say how its values are printed (`I` without fraction, `R` with three digits of it).

use sqllogictest::{Control, DefaultColumnType, QueryExpect, Record, ResultMode, parse_with_name};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Result};

/// Reads a file of the dialect as records of today's.
pub(super) fn parse(path: &Path) -> Result<Vec<Record<DefaultColumnType>>> {
    let text = std::fs::read(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().map(|line| match line.split_once('#') {
        Some((condition, _)) if condition.starts_with("onlyif ") || condition.starts_with("skipif ") => {
            condition.trim_end()
        }
        _ => line.trim_end(),
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    let name: Arc<str> = path.display().to_string().into();
    let parsed = parse_with_name(&text, name).map_err(|error| Error::Script(error.to_string()))?;
    let mut records = vec![Record::Control(Control::ResultMode(ResultMode::ValueWise))];
    for record in parsed {
        if let Record::Query {
            expected: QueryExpect::Results { results, .. },
            loc,
            ..
        } = &record
        {
            // Files state the hash of a long result whatever threshold was set when they were written.
            let hashed = results.first().is_some_and(|line| line.contains(" values hashing to "));
            records.push(Record::HashThreshold {
                loc: loc.clone(),
                threshold: u64::from(hashed),
            });
        }
        if !matches!(record, Record::HashThreshold { .. }) {
            records.push(record);
        }
    }
    Ok(records)
}

/// The types that the record at hand expects; shared between the file, which knows, and the connection, which prints.
#[derive(Debug, Clone, Default)]
pub(super) struct ExpectedTypes(Arc<Mutex<Vec<DefaultColumnType>>>);

impl ExpectedTypes {
    pub(super) fn set(&self, record: &Record<DefaultColumnType>) {
        let types = match record {
            Record::Query {
                expected: QueryExpect::Results { types, .. },
                ..
            } => types.clone(),
            _ => Vec::new(),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = types;
    }

    /// Prints a value, which is not NULL, as the dialect wants it in that column.
    pub(super) fn show(&self, column: usize, value: String) -> String {
        let types = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (types.get(column), value.parse::<f64>()) {
            (Some(DefaultColumnType::Integer), Ok(number)) if value.contains(['.', 'e', 'E']) => {
                format!("{}", number.trunc() as i64)
            }
            (Some(DefaultColumnType::Integer), Err(_)) if !value.is_empty() => "0".to_owned(),
            (Some(DefaultColumnType::FloatingPoint), Ok(number)) => format!("{number:.3}"),
            (Some(DefaultColumnType::Text), _) => value
                .chars()
                .map(|c| if (' '..='~').contains(&c) { c } else { '@' })
                .collect(),
            _ => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_lose_their_comments_and_statements_keep_theirs() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let text = "onlyif mysql # DIV for integer division\nquery I rowsort label-1\nSELECT 1 # 2\n----\n3\n";
        std::fs::write(file.path(), text).expect("write");
        let records = parse(file.path()).expect("well-formed");
        let Some(Record::Query { sql, conditions, .. }) = records.last() else {
            panic!("a query")
        };
        assert_eq!((sql.as_str(), conditions.len()), ("SELECT 1 # 2", 1));
    }

    #[test]
    fn values_are_printed_as_their_column_says() {
        let types = ExpectedTypes::default();
        let script = "query IRTT\nSELECT 1\n----\n";
        types.set(&sqllogictest::parse(script).expect("well-formed")[0]);
        let shown = |column, value: &str| types.show(column, value.to_owned());
        assert_eq!(shown(0, "-7"), "-7");
        assert_eq!(shown(0, "1.9"), "1");
        assert_eq!(shown(0, "9007199254740993"), "9007199254740993");
        assert_eq!(shown(1, "2"), "2.000");
        assert_eq!(shown(1, "0.66666666"), "0.667");
        assert_eq!(shown(2, "a\nä"), "a@@");
    }
}
