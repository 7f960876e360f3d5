//! Which range takes each row of an INSERT … VALUES, and the parts that this makes.

use crate::analysis::{Analysis, Decision};
use crate::insert::{CellKind, InsertPlan, Slot, default_scalar};
use crate::insert_text::Given;
use crate::route::{Merge, ParameterValue, Part, Route};
use crate::scalar::{Evaluated, Parameters};
use pgherd_model::{KeyValue, Numeric, ServerError, ShardId, Snapshot};
use std::sync::Arc;

impl InsertPlan {
    /// Whether the rows go, or may go, to several shards.
    pub fn spreads(&self, snapshot: &Snapshot, parameters: Parameters, slots: &[Vec<Slot>]) -> bool {
        if self.rows.len() < 2 || self.partition.is_some() {
            return false;
        }
        let is_key = |slot: &Slot| match slot {
            Slot::Cell(place) => self.key.contains(&self.columns[*place]),
            Slot::Omitted(column) => self.key.contains(column),
        };
        if slots.iter().flatten().any(is_key) {
            return true;
        }
        let Ok(ranges) = self.ranges(snapshot, parameters, None) else {
            return false;
        };
        let mut shards = ranges.into_iter().map(|range| self.shard_of(range, snapshot));
        let first = shards.next();
        shards.any(|shard| Some(shard) != first)
    }

    /// What a row has beside its [`InsertPlan::slots`] that one place must compute for all rows: in one statement
    /// `now()` has one value, which each shard would take from its own clock.
    pub fn at_once(&self, row: usize, parameters: Parameters) -> Vec<Slot> {
        let cells = self.rows[row].cells.iter().zip(&self.columns).enumerate();
        let here = cells.filter(|(_, (cell, column))| match &cell.kind {
            CellKind::Default => self.computed.contains(column),
            CellKind::Expression { home: false, time } => {
                *time && !self.key.contains(column) && self.can_inline(&cell.span, parameters)
            }
            _ => false,
        });
        let left_out = self.computed.iter().filter(|c| !self.columns.contains(c));
        here.map(|(place, _)| Slot::Cell(place))
            .chain(left_out.map(|&c| Slot::Omitted(c)))
            .collect()
    }

    pub fn shard_of(&self, range: Option<usize>, snapshot: &Snapshot) -> ShardId {
        range.map_or(snapshot.home(), |i| self.sharded().ranges.ranges()[i].shard)
    }

    /// The range of each row; None where no range holds it, or where its key has a NULL.
    pub fn ranges(
        &self,
        snapshot: &Snapshot,
        parameters: Parameters,
        given: Option<&Given>,
    ) -> Result<Vec<Option<usize>>, ServerError> {
        if self.partition.is_some() {
            return Ok(vec![self.partition; self.rows.len()]);
        }
        let (mut ranges, mut refused) = (Vec::with_capacity(self.rows.len()), Vec::new());
        for row in 0..self.rows.len() {
            let mut key = Vec::with_capacity(self.key.len());
            for &column in &self.key {
                key.push(self.key_value(row, column, parameters, given)?);
            }
            if key
                .iter()
                .zip(&self.key)
                .any(|(v, &c)| v.is_none() && self.table.columns[c].not_null)
            {
                refused.push(row);
            }
            let whole: Option<Vec<_>> = key.into_iter().collect();
            ranges.push(whole.and_then(|key| self.sharded().ranges.find_index(&key)));
        }
        // Where pgherd made the ranges, the table is none of partitions to its user: NOT NULL is what such a row
        // breaks, and any child says so before it looks at its bounds.
        if self.sharded().automatic && !refused.is_empty() {
            let any = ranges.iter().flatten().next().copied();
            let any = any.or_else(|| self.sharded().tells_of_nulls(snapshot.home()));
            refused.into_iter().for_each(|row| ranges[row] = any);
        }
        Ok(ranges)
    }

    /// A key column's value in a row; None for NULL.
    fn key_value(
        &self,
        row: usize,
        column: usize,
        parameters: Parameters,
        given: Option<&Given>,
    ) -> Result<Option<KeyValue>, ServerError> {
        let place = self.columns.iter().position(|&c| c == column);
        let slot = place.map_or(Slot::Omitted(column), Slot::Cell);
        let described = &self.table.columns[column];
        let value = match given.and_then(|g| g.answer(row, slot)) {
            Some(None) => Evaluated::Null,
            Some(Some(text)) => match self.key_type(column).parse_text(text) {
                Some(value) => Evaluated::Value(value),
                None => return Err(unreadable(&described.name, text)),
            },
            None => match place.map(|p| &self.rows[row].cells[p].kind) {
                Some(CellKind::Scalar(scalar)) => self.assigned(scalar, column, parameters),
                _ => match default_scalar(described.default.as_deref()) {
                    Some(scalar) => self.assigned(&scalar, column, parameters),
                    None => Evaluated::Null,
                },
            },
        };
        match value {
            Evaluated::Value(value) => Ok(Some(value)),
            Evaluated::Null => Ok(None),
            Evaluated::Unknown => Err(unreadable(&described.name, "default")),
        }
    }

    fn row_with_key(&self, parameters: Parameters, told: &dyn Fn(&str) -> Option<String>) -> Option<usize> {
        let of = |column: &usize| {
            let told = told(&self.table.columns[*column].name)?;
            self.key_type(*column).parse_text(&told)
        };
        let wanted: Vec<KeyValue> = self.key.iter().map(of).collect::<Option<_>>()?;
        (0..self.rows.len()).find(|&row| {
            let mut key = self.key.iter().zip(&wanted);
            key.all(|(&column, wanted)| {
                let value = self.key_value(row, column, parameters, None);
                matches!(value, Ok(Some(value)) if value == *wanted)
            })
        })
    }

    /// Rows that no range takes go to the home shard's parent, which says 23514 or 23502.
    pub fn place(
        &self,
        text: &Arc<str>,
        snapshot: &Snapshot,
        ranges: &[Option<usize>],
        given: Option<&Given>,
    ) -> Route {
        let shard_of = |range| self.shard_of(range, snapshot);
        let first = ranges.first().copied().flatten();
        let all_rows: Vec<_> = (0..ranges.len()).collect();
        if ranges.iter().all(|r| *r == ranges[0]) {
            let make = || self.part(text, shard_of(ranges[0]), &all_rows, ranges, given);
            return Route::Forward(match (first, given) {
                (Some(range), None) => self.ready[range].get_or_init(make).clone(),
                _ => make(),
            });
        }
        let by_row: Vec<_> = ranges.iter().map(|&r| shard_of(r)).collect();
        // In the order of their first rows: of several errors the client gets that of the first part.
        let mut shards: Vec<ShardId> = Vec::new();
        for shard in &by_row {
            if !shards.contains(shard) {
                shards.push(*shard);
            }
        }
        let parts: Vec<_> = shards
            .iter()
            .map(|&shard| {
                let rows: Vec<_> = all_rows.iter().copied().filter(|&r| by_row[r] == shard).collect();
                self.part(text, shard, &rows, ranges, given)
            })
            .collect();
        let mut parts = parts.into_iter();
        match (parts.next(), parts.len()) {
            (Some(only), 0) => Route::Forward(only),
            (first, _) => {
                let order = |s: &ShardId| shards.iter().position(|x| x == s).unwrap_or(0) as u16;
                Route::Scatter {
                    parts: first.into_iter().chain(parts).collect(),
                    merge: match self.returning {
                        true => Merge::Interleave(by_row.iter().map(order).collect()),
                        false => Merge::Concatenate,
                    },
                }
            }
        }
    }

    fn part(
        &self,
        text: &Arc<str>,
        shard: ShardId,
        rows: &[usize],
        ranges: &[Option<usize>],
        given: Option<&Given>,
    ) -> Part {
        let range = ranges[rows[0]];
        let one = rows.iter().all(|&r| ranges[r] == range);
        let child = range
            .filter(|_| one && self.address.direct)
            .map(|i| &self.sharded().ranges.ranges()[i].child);
        let (text, replaced, parameters) = self.rewrite(text, rows, child, given);
        let fences = match child.is_some() || self.partition.is_some() {
            true => Vec::new(),
            false => vec![self.sharded().fence.to_string().into()],
        };
        Part {
            shard,
            text,
            parameters,
            fences,
            replaced: replaced.into(),
        }
    }
}

impl Analysis {
    /// The first row of an INSERT … VALUES that has the key of which `told` tells each column, as PostgreSQL shows its value. None where
    /// no row is known to have it.
    pub fn row_with_key(&self, values: &[ParameterValue], told: &dyn Fn(&str) -> Option<String>) -> Option<usize> {
        let parameters = Parameters {
            values,
            types: &self.types,
        };
        match &self.decision {
            Decision::Insert(plan) => plan.row_with_key(parameters, told),
            _ => None,
        }
    }
}

/// A value as a column with this type modifier stores it; None where that needs PostgreSQL.
pub(crate) fn stored(value: KeyValue, modifier: i32) -> Option<KeyValue> {
    if modifier < 0 {
        return Some(value);
    }
    match value {
        // varchar(n): too long is an error on any shard, but blanks at the end are cut.
        KeyValue::Text(text) => {
            let most = (modifier - 4).max(0) as usize;
            let end = text.char_indices().nth(most).map_or(text.len(), |(at, _)| at);
            let blank = text[end..].bytes().all(|b| b == b' ');
            Some(KeyValue::Text(if blank { text[..end].to_owned() } else { text }))
        }
        KeyValue::Numeric(Numeric::Finite(number)) => {
            let scale = i64::from((modifier - 4) & 0x7ff);
            let fits = scale < 0x400 && number.normalized().fractional_digit_count() <= scale;
            fits.then_some(KeyValue::Numeric(Numeric::Finite(number)))
        }
        KeyValue::Timestamp(us) if us != i64::MAX && us != i64::MIN => {
            let step = 10_i64.pow(6 - modifier.clamp(0, 6) as u32);
            (us % step == 0).then_some(KeyValue::Timestamp(us))
        }
        other => Some(other),
    }
}

fn unreadable(column: &str, value: &str) -> ServerError {
    ServerError::unsupported(
        format!("the value {value} of shard key column \"{column}\" cannot be placed"),
        "Give the key as a constant in ISO form.",
    )
}
