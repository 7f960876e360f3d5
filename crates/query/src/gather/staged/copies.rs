//! What passes through the gateway on its way to the shards: rows of small relations, and keys that bound larger ones, both as
//! arrays in PostgreSQL's binary format.

use super::added::Array;
use super::by_range::ByRange;
use crate::carrier::{Batch, Carrier, TargetType, carriers};
use crate::plan::engine::Engine;
use crate::plan::row::{fields, messages};
use bytes::Bytes;
use datafusion::execution::memory_pool::MemoryReservation;
use pgherd_model::{ServerError, ShardId};
use pgherd_shards::Backend;
use std::collections::{HashMap, HashSet};

/// More keys than this bound nothing: the list would cost more than the rows it spares.
const MOST_KEYS: usize = 100_000;
/// Rows that pass through for one statement may take so many bytes.
const MOST_BYTES: usize = 256 << 20;

/// How values of each type travel, by the type's OID.
pub(super) struct Types(HashMap<u32, Carrier>);

impl Types {
    /// Asks the home shard for the types of these columns: (type, as SQL).
    pub async fn of(home: &mut Backend, columns: &[(u32, String)]) -> Result<Self, ServerError> {
        let mut known: Vec<(u32, String)> = columns.to_vec();
        known.sort();
        known.dedup_by_key(|(oid, _)| *oid);
        if known.is_empty() {
            return Ok(Self(HashMap::new()));
        }
        let oids: Vec<u32> = known.iter().map(|(oid, _)| *oid).collect();
        let targets: Vec<TargetType> = known.into_iter().map(|(oid, sql)| TargetType { oid, sql }).collect();
        let carriers = carriers(home, &oids, &targets).await?;
        Ok(Self(oids.into_iter().zip(carriers).collect()))
    }

    /// The carrier of a type, where its values travel in binary.
    pub fn get(&self, oid: u32) -> Option<&Carrier> {
        self.0.get(&oid).filter(|c| c.format == 1)
    }
}

/// The different values of a column.
#[derive(Debug, Default)]
pub(super) struct Keys {
    values: HashSet<Bytes>,
    too_many: bool,
}

impl Keys {
    fn add(&mut self, value: &[u8]) {
        if !self.too_many && !self.values.contains(value) {
            self.values.insert(Bytes::copy_from_slice(value));
            self.too_many = self.values.len() > MOST_KEYS;
        }
        if self.too_many {
            self.values = HashSet::new();
        }
    }

    /// Bytes in memory, roughly.
    fn bytes(&self) -> usize {
        const EACH: usize = 64;
        self.values.len() * EACH
    }

    /// How many there are; None where there are too many.
    pub fn count(&self) -> Option<usize> {
        (!self.too_many).then_some(self.values.len())
    }

    fn batch(&self) -> Batch {
        let mut batch = Batch::new(1);
        for value in &self.values {
            batch.add([Some(value.as_ref())].into_iter());
        }
        batch
    }

    /// The array.
    pub fn array(&self, carrier: &Carrier) -> Array {
        let (_, mut arrays) = self.batch().take(std::slice::from_ref(carrier));
        Array::Same(arrays.pop().unwrap_or_default())
    }

    /// For each of these shards the array of the values that can be keys there.
    pub fn by_range(&self, carrier: &Carrier, by_range: ByRange<'_>, shards: &[ShardId]) -> Array {
        let (_, mut arrays) = by_range.divide(&self.batch(), 0, std::slice::from_ref(carrier), shards);
        arrays.pop().unwrap_or(Array::Same(Bytes::new()))
    }
}

/// What is kept of a fetch's rows.
pub(super) struct Kept {
    /// all rows, for a stage
    pub rows: Option<Batch>,
    /// by the place of the column
    pub keys: HashMap<usize, Keys>,
    /// it was too much to keep
    pub gave_up: bool,
    values: Vec<Option<std::ops::Range<usize>>>,
}

impl Kept {
    /// For rows of so many columns.
    pub fn new(columns: usize, rows: bool, keys: &[usize]) -> Self {
        Self {
            rows: rows.then(|| Batch::new(columns)),
            keys: keys.iter().map(|&place| (place, Keys::default())).collect(),
            gave_up: false,
            values: Vec::new(),
        }
    }

    /// Whether it wants to see rows at all.
    pub fn is_empty(&self) -> bool {
        self.rows.is_none() && self.keys.is_empty()
    }

    /// Bytes in memory, roughly. Rows will also lie in the buffers of so many connections at the same time.
    pub fn bytes(&self, connections: usize) -> usize {
        let rows = self.rows.as_ref().map_or(0, |rows| rows.bytes);
        rows * (1 + connections) + self.keys.values().map(Keys::bytes).sum::<usize>()
    }

    /// Keeps nothing any more.
    pub fn give_up(&mut self) {
        self.gave_up = true;
        self.rows = None;
        self.keys.clear();
    }

    /// Takes DataRow messages with binary values.
    pub fn add(&mut self, batch: &[u8]) -> Option<()> {
        for message in messages(batch) {
            fields(message, &mut self.values)?;
            for (place, keys) in &mut self.keys {
                if let Some(value) = self.values.get(*place)? {
                    keys.add(&message[value.clone()]);
                }
            }
            if let Some(rows) = &mut self.rows {
                rows.add(self.values.iter().map(|v| v.clone().map(|v| &message[v])));
            }
        }
        Some(())
    }
}

/// What the statement keeps in the gateway's memory, within the limit for all statements.
pub(super) struct Memory {
    reservation: MemoryReservation,
    /// bytes of what is complete
    complete: usize,
    /// on how many connections rows may lie at the same time
    connections: usize,
}

impl Memory {
    /// For rows that lie on so many connections at the same time.
    pub fn new(engine: &Engine, connections: usize) -> Self {
        Self {
            reservation: engine.memory("a gather in stages"),
            complete: 0,
            connections,
        }
    }

    /// Counts what is being read; what does not fit is given up.
    pub fn count(&mut self, kept: &mut Kept) {
        let bytes = self.complete + kept.bytes(self.connections);
        if bytes > MOST_BYTES || self.reservation.try_resize(bytes).is_err() {
            kept.give_up();
        }
    }

    /// It is complete and stays.
    pub fn stays(&mut self, kept: &Kept) {
        self.complete += kept.bytes(self.connections);
    }
}
