//! Replies taken apart, for callers that look inside rather than relay.

use bytes::{Buf, Bytes};

/// One column of a RowDescription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnDescription {
    /// its name
    pub name: String,
    /// the table it comes from, 0 for an expression
    pub table_oid: u32,
    /// its attribute number there
    pub column_number: i16,
    /// the type's OID, as that shard numbers it
    pub type_oid: u32,
    /// typlen
    pub type_size: i16,
    /// typmod
    pub type_modifier: i32,
    /// 0 text, 1 binary
    pub format: i16,
}

/// A row's values: None for NULL.
pub type Row = Vec<Option<Bytes>>;

/// What one statement of a simple query returned.
#[derive(Debug, Clone, Default)]
pub struct SimpleResult {
    /// the command tag; empty for an empty query
    pub tag: String,
    /// empty when it returns no rows
    pub columns: Vec<ColumnDescription>,
    /// the rows
    pub rows: Vec<Row>,
}

impl SimpleResult {
    /// A value as text; None for NULL and where there is none.
    pub fn text(&self, row: usize, column: usize) -> Option<&str> {
        std::str::from_utf8(self.rows.get(row)?.get(column)?.as_deref()?).ok()
    }
}

/// The body of a RowDescription. Short bodies end the list early.
pub fn parse_row_description(mut body: Bytes) -> Vec<ColumnDescription> {
    if body.remaining() < 2 {
        return Vec::new();
    }
    let count = body.get_i16();
    let mut columns = Vec::with_capacity(count.max(0) as usize);
    for _ in 0..count {
        let Some(end) = body.iter().position(|&b| b == 0) else {
            break;
        };
        let name = String::from_utf8_lossy(&body.split_to(end)).into_owned();
        body.advance(1);
        if body.remaining() < 18 {
            break;
        }
        columns.push(ColumnDescription {
            name,
            table_oid: body.get_u32(),
            column_number: body.get_i16(),
            type_oid: body.get_u32(),
            type_size: body.get_i16(),
            type_modifier: body.get_i32(),
            format: body.get_i16(),
        });
    }
    columns
}

/// The body of a DataRow.
pub fn parse_data_row(mut body: Bytes) -> Row {
    if body.remaining() < 2 {
        return Vec::new();
    }
    let count = body.get_i16();
    let mut row = Vec::with_capacity(count.max(0) as usize);
    for _ in 0..count {
        if body.remaining() < 4 {
            break;
        }
        let length = body.get_i32();
        row.push((length >= 0).then(|| body.split_to((length as usize).min(body.len()))));
    }
    row
}
