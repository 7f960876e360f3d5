//! Shards' rows as a DataFusion table: a column for each key, and the whole row as bytes.

use super::key::KeyKind;
use super::merge::garbled;
use super::row::{fields, messages};
use crate::read_ahead::ReadAhead;
use crate::relay::{self, RowBatch};
use crate::{Fragment, Transaction};
use arrow::array::{ArrayRef, BinaryBuilder, Int64Builder, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use pgherd_model::{ServerError, ShardId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Batches that may wait between a shard and DataFusion.
const WAITING: usize = 4;

type Item = Result<RecordBatch, DataFusionError>;

/// The key columns of a scan: the place in the shard's rows, and the kind.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub keys: Vec<(usize, KeyKind)>,
    pub schema: SchemaRef,
}

impl Layout {
    /// Columns `<prefix>_k0`, `<prefix>_k1`, …, and `<prefix>_row`.
    pub fn new(prefix: &str, keys: Vec<(usize, KeyKind)>) -> Self {
        let mut columns: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(i, (_, kind))| {
                let data_type = if kind.is_number() {
                    DataType::Int64
                } else {
                    DataType::Binary
                };
                Field::new(format!("{prefix}_k{i}"), data_type, true)
            })
            .collect();
        columns.push(Field::new(format!("{prefix}_row"), DataType::Binary, true));
        Self {
            keys,
            schema: Arc::new(Schema::new(columns)),
        }
    }

    /// DataRow messages as a batch.
    fn batch(&self, rows: &[u8], count: usize) -> Result<RecordBatch, ServerError> {
        enum Keys {
            Numbers(Int64Builder),
            Bytes(BinaryBuilder),
        }
        let mut keys: Vec<Keys> = self
            .keys
            .iter()
            .map(|(_, kind)| match kind.is_number() {
                true => Keys::Numbers(Int64Builder::with_capacity(count)),
                false => Keys::Bytes(BinaryBuilder::with_capacity(count, rows.len() / 4)),
            })
            .collect();
        let mut whole = BinaryBuilder::with_capacity(count, rows.len());
        let mut values = Vec::new();
        for message in messages(rows) {
            fields(message, &mut values).ok_or_else(garbled)?;
            for (builder, (column, kind)) in keys.iter_mut().zip(&self.keys) {
                let value = values.get(*column).ok_or_else(garbled)?.clone().map(|v| &message[v]);
                match (builder, value) {
                    (Keys::Numbers(b), Some(v)) => b.append_value(kind.number(v).ok_or_else(garbled)?),
                    (Keys::Numbers(b), None) => b.append_null(),
                    (Keys::Bytes(b), Some(v)) => b.append_value(kind.bytes(v).ok_or_else(garbled)?),
                    (Keys::Bytes(b), None) => b.append_null(),
                }
            }
            whole.append_value(message);
        }
        let mut columns: Vec<ArrayRef> = keys
            .into_iter()
            .map(|keys| -> ArrayRef {
                match keys {
                    Keys::Numbers(mut b) => Arc::new(b.finish()),
                    Keys::Bytes(mut b) => Arc::new(b.finish()),
                }
            })
            .collect();
        columns.push(Arc::new(whole.finish()));
        RecordBatch::try_new(self.schema.clone(), columns).map_err(|_| garbled())
    }
}

/// One shard's rows, as they come out of a channel; can be read once.
struct Shard {
    schema: SchemaRef,
    rows: Mutex<Option<mpsc::Receiver<Item>>>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shard")
    }
}

impl PartitionStream for Shard {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = self.rows.lock().ok().and_then(|mut rows| rows.take());
        let stream = futures::stream::unfold(rows, async |rows| {
            let mut rows = rows?;
            let item = rows.recv().await?;
            Some((item, Some(rows)))
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), stream))
    }
}

/// The side of a scan that is fed: one sender per fragment.
pub(crate) struct Feed {
    layout: Layout,
    senders: Vec<mpsc::Sender<Item>>,
}

/// A table over `fragments` shards' rows, and what feeds it.
pub(crate) fn table(layout: Layout, fragments: usize) -> Result<(Arc<StreamingTable>, Feed), DataFusionError> {
    let (mut senders, mut partitions) = (Vec::new(), Vec::<Arc<dyn PartitionStream>>::new());
    for _ in 0..fragments.max(1) {
        let (sender, receiver) = mpsc::channel(WAITING);
        partitions.push(Arc::new(Shard {
            schema: layout.schema.clone(),
            rows: Mutex::new(Some(receiver)),
        }));
        senders.push(sender);
    }
    // Without a shard there is one partition, which ends at once.
    senders.truncate(fragments);
    let table = StreamingTable::try_new(layout.schema.clone(), partitions)?;
    Ok((Arc::new(table), Feed { layout, senders }))
}

/// A portal's way into its table.
struct Lane {
    layout: Layout,
    sender: mpsc::Sender<Item>,
    /// rows that were read before
    read: Vec<RowBatch>,
    /// there are no others
    ended: bool,
}

/// Reads all portals, shards in parallel, each shard's portals in order, and feeds the tables: with what was read ahead, then
/// with what comes. `feeds` are in the order of the fragments. What nobody wants any more is read and dropped; after an error the
/// shards are stopped.
pub(crate) async fn pump(
    feeds: Vec<Feed>,
    fragments: Vec<Fragment>,
    mut ahead: ReadAhead,
    transaction: &mut Transaction,
) -> Result<(), ServerError> {
    let mut lanes: HashMap<ShardId, Vec<Lane>> = HashMap::new();
    let mut fragments = fragments.into_iter().enumerate();
    for feed in feeds {
        for sender in feed.senders {
            if let Some((portal, fragment)) = fragments.next() {
                lanes.entry(fragment.shard).or_default().push(Lane {
                    layout: feed.layout.clone(),
                    sender,
                    read: ahead.take(portal),
                    ended: ahead.has_ended(portal),
                });
            }
        }
    }
    let reading = transaction
        .participants()
        .filter(|(_, backend)| backend.is_awaiting())
        .map(|(shard, backend)| read_shard(backend, lanes.remove(&shard).unwrap_or_default()));
    let reading: Vec<_> = reading.collect();
    drop(lanes);
    let read = futures::future::try_join_all(reading).await;
    let finished = crate::relay::finish(transaction, read.is_ok()).await;
    read?;
    finished
}

async fn read_shard(backend: &mut pgherd_shards::Backend, lanes: Vec<Lane>) -> Result<(), ServerError> {
    for lane in lanes {
        let mut read = lane.read.into_iter();
        loop {
            let next = match read.next() {
                Some(batch) => Ok(Some(batch)),
                None if lane.ended => break,
                None => relay::next_rows(backend).await,
            };
            let batch = match next {
                Ok(Some(batch)) => lane.layout.batch(&batch.bytes, batch.rows),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            // The error goes the way of the rows as well: a stream that just ended would pass for the whole.
            let failed = batch.as_ref().err().cloned();
            let item = batch.map_err(|e| DataFusionError::External(Box::new(e)));
            let wanted = lane.sender.send(item).await.is_ok();
            if let Some(error) = failed {
                return Err(error);
            }
            if !wanted {
                return Ok(());
            }
        }
    }
    Ok(())
}
