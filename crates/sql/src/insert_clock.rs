//! Defaults that have the transaction's time, and constants that mean it, written into an INSERT, so that they are the same on every
//! shard of the transaction.

use crate::clock::{NOW, timed_default};
use crate::insert::{Cell, CellKind, InsertPlan};
use crate::moment::is_now;
use crate::scalar::Scalar;
use pgherd_model::Column;
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

    /// The strings that are the transaction's time by the types of their columns. Keys are computed in one place anyway.
    fn moments(&self) -> impl Iterator<Item = (&Cell, &Column)> {
        let rows = self.rows.iter().filter(|_| !self.is_judged());
        let cells = rows.flat_map(|row| row.cells.iter().zip(&self.columns));
        cells.filter_map(|(cell, &place)| {
            let column = self.table.columns.get(place)?;
            let is_moment = matches!(&cell.kind, CellKind::Scalar(Scalar::Text(text)) if is_now(text))
                && TIMES.contains(&column.type_oid)
                && !self.key.contains(&place);
            is_moment.then_some((cell, column))
        })
    }

    /// Whether a string in it is the transaction's time.
    pub fn has_moments(&self) -> bool {
        self.moments().next().is_some()
    }

    /// Writes those defaults and constants into the statement.
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
        let moments = self.moments();
        out.extend(moments.map(|(cell, column)| (cell.span.clone(), format!("CAST({NOW} AS {})", column.type_name))));
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

/// OIDs of date, time, timestamp, and of the latter two with time zones.
const TIMES: [u32; 5] = [1082, 1083, 1114, 1184, 1266];

fn is_default(kind: &CellKind) -> bool {
    matches!(kind, CellKind::Default)
}
