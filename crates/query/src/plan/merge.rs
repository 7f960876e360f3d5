//! Rows of several shards as one result without computing: one shard after the other, or merged in the order in which each
//! shard has sorted its own; then OFFSET and LIMIT.

use super::key::append_sort_key;
use super::row::{RowWriter, fields, messages};
use super::shape::{Shape, SortBy, SortKey};
use crate::relay::{self, RowBatch};
use crate::{Fragment, Transaction};
use bytes::{Bytes, BytesMut};
use pgherd_model::ServerError;
use std::collections::VecDeque;

/// A batch is handed on at this size, bytes.
const BATCH_BYTES: usize = 64 * 1024;

/// A shard's sorted rows as far as they have arrived.
struct Run {
    fragment: usize,
    waiting: VecDeque<(Vec<u8>, Bytes)>,
    ended: bool,
}

/// The rows on their way.
pub(crate) struct Merge {
    fragments: Vec<Fragment>,
    sort: Vec<SortKey>,
    /// the result's columns come first in the shards' rows
    outputs: usize,
    /// rows pass as they are
    whole: bool,
    runs: Vec<Run>,
    skip: u64,
    left: Option<u64>,
    current: usize,
}

impl Merge {
    /// For portals that are open and executing.
    pub fn new(shape: &Shape, fragments: Vec<Fragment>) -> Self {
        Self {
            sort: shape.sort.clone(),
            outputs: shape.outputs.len(),
            whole: shape.select.len() == shape.outputs.len(),
            runs: (0..fragments.len())
                .map(|fragment| Run {
                    fragment,
                    waiting: VecDeque::new(),
                    ended: false,
                })
                .collect(),
            fragments,
            skip: shape.offset,
            left: shape.limit,
            current: 0,
        }
    }

    /// The next rows. After None or an error nothing runs on the shards any more.
    pub async fn next(&mut self, transaction: &mut Transaction) -> Result<Option<RowBatch>, ServerError> {
        let next = if self.left == Some(0) {
            Ok(None)
        } else if self.sort.is_empty() {
            self.concatenate(transaction).await
        } else {
            self.merge(transaction).await
        };
        match next {
            Ok(Some(batch)) => Ok(Some(batch)),
            // Where a limit was reached, the shards have limited their own rows too: little is left to read.
            Ok(None) => relay::finish(transaction, true).await.map(|()| None),
            Err(error) => {
                let _ = relay::finish(transaction, false).await;
                Err(error)
            }
        }
    }

    async fn concatenate(&mut self, transaction: &mut Transaction) -> Result<Option<RowBatch>, ServerError> {
        while let Some(fragment) = self.fragments.get(self.current) {
            let backend = transaction.participant(fragment.shard).await?;
            let Some(batch) = relay::next_rows(backend).await? else {
                self.current += 1;
                continue;
            };
            if self.skip == 0 && self.left.is_none() && self.whole {
                return Ok(Some(batch));
            }
            let mut out = RowBatch::default();
            for message in messages(&batch.bytes) {
                self.emit(message, &mut out)?;
            }
            if out.rows > 0 || self.left == Some(0) {
                return Ok((out.rows > 0).then_some(out));
            }
        }
        Ok(None)
    }

    async fn merge(&mut self, transaction: &mut Transaction) -> Result<Option<RowBatch>, ServerError> {
        let mut out = RowBatch::default();
        while out.bytes.len() < BATCH_BYTES && self.left != Some(0) {
            for run in &mut self.runs {
                while run.waiting.is_empty() && !run.ended {
                    let backend = transaction.participant(self.fragments[run.fragment].shard).await?;
                    match relay::next_rows(backend).await? {
                        Some(batch) => take_keys(&self.sort, batch.bytes, &mut run.waiting)?,
                        None => run.ended = true,
                    }
                }
            }
            let heads = self
                .runs
                .iter()
                .enumerate()
                .filter_map(|(i, r)| Some((i, &r.waiting.front()?.0)));
            let Some((first, _)) = heads.min_by(|a, b| a.1.cmp(b.1)) else {
                break;
            };
            if let Some((_, row)) = self.runs[first].waiting.pop_front() {
                self.emit(&row, &mut out)?;
            }
        }
        Ok((out.rows > 0).then_some(out))
    }

    /// Adds a row to a batch, as far as OFFSET and LIMIT have it.
    fn emit(&mut self, message: &[u8], out: &mut RowBatch) -> Result<(), ServerError> {
        if self.skip > 0 {
            self.skip -= 1;
            return Ok(());
        }
        if self.left == Some(0) {
            return Ok(());
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        out.rows += 1;
        if self.whole {
            out.bytes.extend_from_slice(message);
            return Ok(());
        }
        let mut values = Vec::new();
        fields(message, &mut values).ok_or_else(garbled)?;
        let mut row = RowWriter::new(&mut out.bytes);
        for value in values.into_iter().take(self.outputs) {
            row.value(value.map(|v| &message[v]));
        }
        row.finish();
        Ok(())
    }
}

fn take_keys(sort: &[SortKey], batch: BytesMut, to: &mut VecDeque<(Vec<u8>, Bytes)>) -> Result<(), ServerError> {
    let batch = batch.freeze();
    let mut values = Vec::new();
    for message in messages(&batch) {
        fields(message, &mut values).ok_or_else(garbled)?;
        let mut key = Vec::with_capacity(16);
        for part in sort {
            let SortBy::Column(column) = part.by else {
                return Err(garbled());
            };
            let value = values.get(column).ok_or_else(garbled)?.clone();
            append_sort_key(&mut key, part.kind, value.map(|v| &message[v]), part.direction).ok_or_else(garbled)?;
        }
        to.push_back((key, batch.slice_ref(message)));
    }
    Ok(())
}

/// A shard's row that does not have the form that was asked for.
pub(crate) fn garbled() -> ServerError {
    ServerError::internal("a shard sent a row that does not fit the statement it was sent")
}
