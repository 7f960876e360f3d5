//! The last step of a planned SELECT: from shards' rows (or a group's partial results) to rows of the result with their
//! sort keys.

use super::key::append_sort_key;
use super::merge::garbled;
use super::row::{RowWriter, fields};
use super::shape::{Output, SortBy, SortKey};
use super::total::Total;
use bytes::BytesMut;
use pgherd_model::ServerError;

/// How rows become results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finish {
    pub outputs: Vec<Output>,
    /// the client's formats, one per output
    pub formats: Vec<i16>,
    pub sort: Vec<SortKey>,
    /// columns of a shard's row
    pub columns: usize,
}

/// A group: its first row, and its aggregates.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    first: Option<Vec<u8>>,
    totals: Vec<Option<Total>>,
}

impl Finish {
    /// A group without rows.
    pub fn group(&self) -> Group {
        Group {
            first: None,
            totals: self.outputs.iter().map(Total::of).collect(),
        }
    }
}

impl Group {
    /// Adds a row (a whole DataRow message) of partial results.
    pub fn add(&mut self, finish: &Finish, message: &[u8]) -> Result<(), ServerError> {
        let mut values = Vec::with_capacity(finish.columns);
        fields(message, &mut values).ok_or_else(garbled)?;
        let value = |column: usize| -> Result<Option<&[u8]>, ServerError> {
            Ok(values.get(column).ok_or_else(garbled)?.clone().map(|v| &message[v]))
        };
        for (output, total) in finish.outputs.iter().zip(&mut self.totals) {
            if let (
                Output::Aggregate {
                    value: first, second, ..
                },
                Some(total),
            ) = (output, total)
            {
                total.add(value(*first)?, value(*second)?)?;
            }
        }
        if self.first.is_none() {
            self.first = Some(message.to_vec());
        }
        Ok(())
    }

    /// The group as one row of partial results.
    pub fn partial(&self, finish: &Finish) -> Result<Option<Vec<u8>>, ServerError> {
        let Some(first) = &self.first else {
            return Ok(None);
        };
        let mut values = Vec::new();
        fields(first, &mut values).ok_or_else(garbled)?;
        let mut row: Vec<Option<Vec<u8>>> = values.into_iter().map(|v| v.map(|v| first[v].to_vec())).collect();
        for (output, total) in finish.outputs.iter().zip(&self.totals) {
            if let (
                Output::Aggregate {
                    value,
                    second,
                    key,
                    what,
                },
                Some(total),
            ) = (output, total)
            {
                let (partial, other) = total.partial()?;
                *row.get_mut(*value).ok_or_else(garbled)? = partial;
                if key.is_some() || *what == super::shape::Aggregate::Average {
                    *row.get_mut(*second).ok_or_else(garbled)? = other;
                }
            }
        }
        let mut out = BytesMut::new();
        let mut writer = RowWriter::new(&mut out);
        row.iter().for_each(|value| writer.value(value.as_deref()));
        writer.finish();
        Ok(Some(out.to_vec()))
    }

    /// Appends the result's row, as a DataRow message.
    pub fn write_row(&self, finish: &Finish, out: &mut BytesMut) -> Result<(), ServerError> {
        let mut values = Vec::new();
        if let Some(first) = &self.first {
            fields(first, &mut values).ok_or_else(garbled)?;
        }
        let mut row = RowWriter::new(out);
        for ((output, total), format) in finish.outputs.iter().zip(&self.totals).zip(&finish.formats) {
            match (output, total) {
                (_, Some(total)) => row.value(total.value(*format)?.as_deref()),
                (Output::Column(column), None) => {
                    let value = values.get(*column).cloned().flatten();
                    row.value(value.map(|v| &self.first.as_deref().unwrap_or_default()[v]));
                }
                (Output::Aggregate { .. }, None) => return Err(garbled()),
            }
        }
        row.finish();
        Ok(())
    }

    /// Bytes that sort as the results are to be ordered: sort key, row, and the key's length in four bytes.
    pub fn sortable(&self, finish: &Finish) -> Result<Vec<u8>, ServerError> {
        let mut values = Vec::new();
        let first = self.first.as_deref().unwrap_or_default();
        if !first.is_empty() {
            fields(first, &mut values).ok_or_else(garbled)?;
        }
        let mut key = Vec::new();
        for part in &finish.sort {
            match part.by {
                SortBy::Column(column) => {
                    let value = values.get(column).cloned().flatten().map(|v| &first[v]);
                    append_sort_key(&mut key, part.kind, value, part.direction).ok_or_else(garbled)?;
                }
                SortBy::Output(output) => {
                    let total = self.totals.get(output).and_then(Option::as_ref).ok_or_else(garbled)?;
                    total.sort_key(part.kind, part.direction, &mut key)?;
                }
            }
        }
        let mut out = BytesMut::from(key.as_slice());
        self.write_row(finish, &mut out)?;
        out.extend_from_slice(&(key.len() as u32).to_be_bytes());
        Ok(out.to_vec())
    }

    /// Bytes held.
    pub fn size(&self) -> usize {
        let totals: usize = self
            .totals
            .iter()
            .flatten()
            .map(|t| size_of::<Total>() + t.extra_size())
            .sum();
        size_of::<Self>() + totals + self.first.as_ref().map_or(0, Vec::len)
    }
}

/// The row in what [`Group::sortable`] made.
pub(crate) fn row_of(sortable: &[u8]) -> Option<&[u8]> {
    let (rest, length) = sortable.split_last_chunk::<4>()?;
    rest.get(u32::from_be_bytes(*length) as usize..)
}
