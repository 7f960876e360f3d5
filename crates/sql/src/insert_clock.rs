//! Defaults that have the transaction's time, written into an INSERT, so that they are the same on every shard of the
//! transaction.

use crate::clock::timed_default;
use crate::insert::{CellKind, InsertPlan};
use std::ops::Range;

impl InsertPlan {
    /// The columns to which this INSERT gives a default with the transaction's time, and the expression to write.
    fn timed(&self) -> Vec<(usize, String)> {
        if self.is_judged() {
            return Vec::new();
        }
        let columns = self.table.columns.iter().enumerate();
        columns
            .filter_map(|(i, column)| Some((i, format!("({})", timed_default(column)?))))
            .filter(|(column, _)| match self.columns.iter().position(|c| c == column) {
                None => true,
                Some(place) => self.rows.iter().any(|r| is_default(&r.cells[place].kind)),
            })
            .collect()
    }

    /// Whether a default that it leaves to PostgreSQL has the transaction's time.
    pub fn has_timed_defaults(&self) -> bool {
        !self.timed().is_empty()
    }

    /// Writes those defaults into the statement.
    pub fn write_timed_defaults(&self, out: &mut Vec<(Range<usize>, String)>) {
        let timed = self.timed();
        let left_out: Vec<_> = timed.iter().filter(|(c, _)| !self.columns.contains(c)).collect();
        let columns: Vec<_> = left_out.iter().map(|(c, _)| *c).collect();
        let values: Vec<_> = left_out.iter().map(|(_, e)| e.as_str()).collect();
        let values = values.join(", ");
        if self.default_values {
            let text = format!("({}) VALUES ({values})", self.names(&columns));
            out.push((self.values_at.clone(), text));
            return;
        }
        self.column_list(false, &columns, out);
        for row in &self.rows {
            for (cell, column) in row.cells.iter().zip(&self.columns) {
                if let (true, Some((_, text))) = (is_default(&cell.kind), timed.iter().find(|(c, _)| c == column)) {
                    out.push((cell.span.clone(), text.clone()));
                }
            }
            if !columns.is_empty() {
                let close = row.span.end - 1;
                out.push((close..close, format!(", {values}")));
            }
        }
    }
}

fn is_default(kind: &CellKind) -> bool {
    matches!(kind, CellKind::Default)
}
