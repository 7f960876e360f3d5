//! Few groups are put together here, as their rows come: a plan of DataFusion's takes longer to make than to run over them.

use super::Plan;
use super::finish::{Finish, Group, row_of};
use super::merge::garbled;
use super::row::{fields, messages};
use crate::Transaction;
use crate::read_ahead::ReadAhead;
use crate::relay::RowBatch;
use pgherd_model::ServerError;
use std::collections::HashMap;
use std::ops::Range;

/// More rows of partial results than this are DataFusion's, which counts its memory and spills.
const MOST_ROWS: usize = 4096;
const MOST_BYTES: usize = 256 * 1024;

/// Reads the shards' partial results and finishes their groups. None where they are too many; what was read is in `ahead` then.
pub(super) async fn few(
    plan: &Plan,
    finish: &Finish,
    ahead: &mut ReadAhead,
    transaction: &mut Transaction,
) -> Result<Option<RowBatch>, ServerError> {
    let (mut rows, mut bytes) = (0, 0);
    for portal in 0..plan.fragments.len() {
        while let Some(batch) = ahead.more(portal, &plan.fragments, transaction).await? {
            (rows, bytes) = (rows + batch.rows, bytes + batch.bytes.len());
            ahead.keep(portal, batch);
            if rows > MOST_ROWS || bytes > MOST_BYTES {
                return Ok(None);
            }
        }
    }
    let mut groups = Groups::default();
    for batch in (0..plan.fragments.len()).flat_map(|portal| ahead.of(portal)) {
        for message in messages(&batch.bytes) {
            groups.add(plan, finish, message)?;
        }
    }
    let results = groups.all.iter().map(|group| group.sortable(finish));
    let mut results = results.collect::<Result<Vec<_>, _>>()?;
    if !plan.shape.sort.is_empty() {
        results.sort_unstable();
    }
    let limit = plan.shape.limit.unwrap_or(u64::MAX);
    let mut out = RowBatch::default();
    for result in results.iter().skip(plan.shape.offset as usize).take(limit as usize) {
        out.bytes.extend_from_slice(row_of(result).ok_or_else(garbled)?);
        out.rows += 1;
    }
    Ok(Some(out))
}

/// Groups in the order of their first rows.
#[derive(Default)]
struct Groups {
    all: Vec<Group>,
    by_key: HashMap<Vec<u8>, usize>,
    key: Vec<u8>,
    values: Vec<Option<Range<usize>>>,
}

impl Groups {
    fn add(&mut self, plan: &Plan, finish: &Finish, message: &[u8]) -> Result<(), ServerError> {
        fields(message, &mut self.values).ok_or_else(garbled)?;
        self.key.clear();
        for (column, kind) in &plan.shape.group_keys {
            let value = self.values.get(*column).ok_or_else(garbled)?.clone();
            let Some(value) = value.map(|v| &message[v]) else {
                self.key.push(0);
                continue;
            };
            self.key.push(1);
            if kind.is_number() {
                let number = kind.number(value).ok_or_else(garbled)?;
                self.key.extend_from_slice(&number.to_be_bytes());
            } else {
                let bytes = kind.bytes(value).ok_or_else(garbled)?;
                self.key.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                self.key.extend_from_slice(&bytes);
            }
        }
        let at = match self.by_key.get(&self.key) {
            Some(at) => *at,
            None => {
                self.by_key.insert(self.key.clone(), self.all.len());
                self.all.push(finish.group());
                self.all.len() - 1
            }
        };
        self.all[at].add(finish, message)
    }
}
