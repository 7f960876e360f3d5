//! Final aggregates: partial results of shards become values of the result.

use super::key::{Direction, KeyKind, append_sort_key};
use super::merge::garbled;
use super::numeric::Numeric;
use super::shape::{Aggregate, Output};
use pgherd_model::{ServerError, SqlState};

/// The value that min or max has found.
#[derive(Debug, Clone)]
struct Best {
    /// orders values so that the first is the one wanted
    key: Vec<u8>,
    /// as the client gets it
    value: Vec<u8>,
    binary: Vec<u8>,
}

/// One aggregate's state over the partial results of one group.
#[derive(Debug, Clone)]
pub(crate) struct Total {
    what: Aggregate,
    key: Option<KeyKind>,
    count: i64,
    sum: Option<Numeric>,
    best: Option<Best>,
}

/// A partial result, and what goes with it: the binary form of a least or greatest value, or an average's count.
type Partial = (Option<Vec<u8>>, Option<Vec<u8>>);

impl Total {
    /// For an aggregate of the result; None for other outputs.
    pub fn of(output: &Output) -> Option<Self> {
        let Output::Aggregate { what, key, .. } = output else {
            return None;
        };
        Some(Self {
            what: *what,
            key: *key,
            count: 0,
            sum: None,
            best: None,
        })
    }

    /// Adds a partial result: the values of the shard's columns `value` and `second`.
    pub fn add(&mut self, value: Option<&[u8]>, second: Option<&[u8]>) -> Result<(), ServerError> {
        match self.what {
            Aggregate::Count => self.count += whole(value)?.unwrap_or(0),
            Aggregate::SumBigint => self.add_sum(whole(value)?.map(Numeric::from_i64)),
            Aggregate::SumNumeric => self.add_sum(numeric(value)?),
            Aggregate::Average => {
                self.add_sum(numeric(value)?);
                self.count += whole(second)?.unwrap_or(0);
            }
            Aggregate::Min | Aggregate::Max => {
                let (Some(value), Some(binary), Some(kind)) = (value, second, self.key) else {
                    return Ok(());
                };
                let direction = Direction {
                    descending: self.what == Aggregate::Max,
                    nulls_first: false,
                };
                let mut key = Vec::new();
                append_sort_key(&mut key, kind, Some(binary), direction).ok_or_else(garbled)?;
                if self.best.as_ref().is_none_or(|best| key < best.key) {
                    let (value, binary) = (value.to_vec(), binary.to_vec());
                    self.best = Some(Best { key, value, binary });
                }
            }
        }
        Ok(())
    }

    fn add_sum(&mut self, value: Option<Numeric>) {
        let Some(value) = value else { return };
        self.sum = Some(match self.sum.take() {
            Some(sum) => sum.add(&value),
            None => value,
        });
    }

    /// The value in text (0) or binary (1) format.
    pub fn value(&self, format: i16) -> Result<Option<Vec<u8>>, ServerError> {
        let bigint = |value: i64| match format {
            0 => value.to_string().into_bytes(),
            _ => value.to_be_bytes().to_vec(),
        };
        let decimal = |value: Numeric| match format {
            0 => value.to_text().into_bytes(),
            _ => {
                let mut out = Vec::new();
                value.write(&mut out);
                out
            }
        };
        Ok(match self.what {
            Aggregate::Count => Some(bigint(self.count)),
            Aggregate::SumBigint => match &self.sum {
                Some(sum) => Some(bigint(sum.to_i64().ok_or_else(out_of_range)?)),
                None => None,
            },
            Aggregate::SumNumeric => self.sum.clone().map(decimal),
            Aggregate::Average => self
                .sum
                .clone()
                .map(|sum| decimal(sum.divide_by_count(self.count.max(1)))),
            Aggregate::Min | Aggregate::Max => self.best.as_ref().map(|best| best.value.clone()),
        })
    }

    /// The state as one more partial result, for [`Total::add`].
    pub fn partial(&self) -> Result<Partial, ServerError> {
        Ok(match self.what {
            Aggregate::Min | Aggregate::Max => match &self.best {
                Some(best) => (Some(best.value.clone()), Some(best.binary.clone())),
                None => (None, None),
            },
            Aggregate::Average => {
                let sum = self.sum.as_ref().map(|sum| {
                    let mut out = Vec::new();
                    sum.write(&mut out);
                    out
                });
                (sum, Some(self.count.to_be_bytes().to_vec()))
            }
            _ => (self.value(1)?, None),
        })
    }

    /// Bytes held beside the structure itself.
    pub fn extra_size(&self) -> usize {
        self.best
            .as_ref()
            .map_or(0, |b| b.key.len() + b.value.len() + b.binary.len())
            + 64
    }

    /// Appends the value to a row's sort key.
    pub fn sort_key(&self, kind: KeyKind, direction: Direction, out: &mut Vec<u8>) -> Result<(), ServerError> {
        let value = match self.what {
            Aggregate::Min | Aggregate::Max => self.best.as_ref().map(|best| best.binary.clone()),
            _ => self.value(1)?,
        };
        append_sort_key(out, kind, value.as_deref(), direction).ok_or_else(garbled)
    }
}

fn whole(value: Option<&[u8]>) -> Result<Option<i64>, ServerError> {
    let Some(value) = value else { return Ok(None) };
    KeyKind::Whole.number(value).map(Some).ok_or_else(garbled)
}

fn numeric(value: Option<&[u8]>) -> Result<Option<Numeric>, ServerError> {
    let Some(value) = value else { return Ok(None) };
    Numeric::parse(value).map(Some).ok_or_else(garbled)
}

fn out_of_range() -> ServerError {
    ServerError::new(SqlState::from_bytes(b"22003"), "bigint out of range")
}
