//! Rows that one part of a statement has returned, as a query of constants in another part's text.

use super::with_writes::not_in_parts;
use super::{Problem, Session};
use crate::messages::Messages;
use bytes::Bytes;
use pgherd_model::quote_literal;
use pgherd_shards::{ColumnDescription, Row, parse_data_row};

/// The returned rows of one part are kept in memory, and become text.
const MOST_BYTES: usize = 64 << 20;

impl Session {
    /// The columns' types as SQL, and the collations that columns have of their own.
    pub(super) async fn column_types(
        &mut self,
        columns: &[ColumnDescription],
    ) -> Result<Vec<(String, String)>, Problem> {
        let types = columns.iter().map(|c| {
            format!(
                "pg_catalog.format_type({}, {}), (SELECT ' COLLATE ' || quote_ident(n.nspname) || '.' || quote_ident(l.collname) \
                 FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
                 JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace \
                 WHERE a.attrelid = {} AND a.attnum = {} AND a.attcollation <> t.typcollation)",
                c.type_oid, c.type_modifier, c.table_oid, c.column_number
            )
        });
        let types: Vec<_> = types.collect();
        let results = self.ask_home(&format!("SELECT {}", types.join(", "))).await?;
        let text = |i: usize| results.first().and_then(|r| r.text(0, i));
        let of = |i: usize| {
            let name = text(2 * i).unwrap_or("text").to_owned();
            (name, text(2 * i + 1).unwrap_or_default().to_owned())
        };
        Ok((0..columns.len()).map(of).collect())
    }

    /// Rows as a query of constants of their types, without what they have beyond these columns.
    pub(super) async fn constants(&mut self, columns: &[ColumnDescription], rows: Bytes) -> Result<String, Problem> {
        if rows.len() > MOST_BYTES {
            return Err(not_in_parts("A part of it returns too many rows.").into());
        }
        self.check_text(columns.iter().map(|c| c.type_oid)).await?;
        let types = self.column_types(columns).await?;
        let value = |i: usize, value: Option<Bytes>| match value {
            Some(value) => format!("{}::{}", quote_literal(&String::from_utf8_lossy(&value)), types[i].0),
            None => format!("NULL::{}", types[i].0),
        };
        let collated = |i: usize, v: Option<Bytes>| value(i, v) + &types[i].1;
        let mut tuples = Vec::new();
        for row in data_rows(rows) {
            let own = row.into_iter().take(columns.len()).enumerate();
            // The first row gives the columns their collations.
            let values: Vec<_> = match tuples.is_empty() {
                true => own.map(|(i, v)| collated(i, v)).collect(),
                false => own.map(|(i, v)| value(i, v)).collect(),
            };
            tuples.push(format!("({})", values.join(", ")));
        }
        Ok(match tuples.is_empty() {
            true => {
                let nulls: Vec<_> = (0..columns.len()).map(|i| collated(i, None)).collect();
                format!("SELECT {} WHERE false", nulls.join(", "))
            }
            false => format!("VALUES {}", tuples.join(", ")),
        })
    }
}

/// The values of the DataRow messages among these.
pub(super) fn data_rows(messages: Bytes) -> Vec<Row> {
    let mut rows = Vec::new();
    for (tag, message) in Messages(messages) {
        if tag == b'D' {
            rows.push(parse_data_row(message.slice(5..)));
        }
    }
    rows
}
