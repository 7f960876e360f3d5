//! Which error an INSERT … VALUES gives where its rows break constraints on several shards: PostgreSQL goes row by row, so the one of
//! the earliest row; and foreign keys are looked at when all rows are there, so any other error comes before theirs.
//!
//! Each shard has told of its own first row. Which row of the statement that is follows from the shard key, which stands in
//! the error's detail: unique constraints and foreign keys include it, and other constraints show the whole row. Where it cannot be
//! told, the first shard's error is given.

use pgherd_model::{ServerError, SqlState, Table};
use pgherd_sql::{Analysis, ParameterValue};

/// The place among these errors of the one to give; they are in the order of shards.
pub(super) fn earliest(analysis: &Analysis, values: &[ParameterValue<'_>], errors: &[&ServerError]) -> usize {
    let at_the_end = |error: &ServerError| error.sqlstate() == SqlState::FOREIGN_KEY_VIOLATION;
    let none_earlier = errors.iter().all(|error| at_the_end(error));
    let candidates = errors
        .iter()
        .enumerate()
        .filter(|(_, error)| at_the_end(error) == none_earlier);
    let rows: Vec<_> = candidates
        .map(|(place, error)| (place, row_of(analysis, values, error)))
        .collect();
    let first = rows.first().map_or(0, |(place, _)| *place);
    if rows.iter().any(|(_, row)| row.is_none()) {
        return first;
    }
    rows.into_iter()
        .min_by_key(|(_, row)| *row)
        .map_or(first, |(place, _)| place)
}

fn row_of(analysis: &Analysis, values: &[ParameterValue<'_>], error: &ServerError) -> Option<usize> {
    let table = analysis.sharded.first()?;
    let detail = error.fields().detail.as_deref()?;
    let told = told(table, detail)?;
    let of = |column: &str| {
        let (_, value) = told.iter().find(|(name, _)| name == column)?;
        Some(value.clone())
    };
    analysis.row_with_key(values, &of)
}

/// The columns and values in `Key (a, b)=(1, 2) …` or `Failing row contains (1, 2, …).`; None where values with commas leave
/// it open which is which.
fn told(table: &Table, detail: &str) -> Option<Vec<(String, String)>> {
    let list = |text: &str| text.split(", ").map(str::to_owned).collect::<Vec<_>>();
    let (columns, values) = if let Some(rest) = detail.strip_prefix("Key (") {
        let (columns, rest) = rest.split_once(")=(")?;
        let (values, _) = rest.rsplit_once(')')?;
        (list(columns), list(values))
    } else {
        let rest = detail.strip_prefix("Failing row contains (")?;
        let columns = table.columns.iter().map(|c| c.name.clone()).collect();
        (columns, list(rest.strip_suffix(").")?))
    };
    (columns.len() == values.len()).then(|| columns.into_iter().zip(values).collect())
}
