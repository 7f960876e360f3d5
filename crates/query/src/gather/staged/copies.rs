//! What passes through the gateway on its way to the shards: rows of small relations, and keys that bound larger ones, both as
//! arrays in PostgreSQL's binary format.

use crate::carrier::{Batch, Carrier, TargetType, carriers};
use crate::plan::row::{fields, messages};
use bytes::Bytes;
use pgherd_model::ServerError;
use pgherd_shards::Backend;
use std::collections::{HashMap, HashSet};

/// More keys than this bound nothing: the list would cost more than the rows it spares.
const MOST_KEYS: usize = 100_000;
/// Rows that pass through for one statement may take so many bytes.
pub(super) const MOST_BYTES: usize = 256 << 20;

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
    }

    /// How many there are; None where there are too many.
    pub fn count(&self) -> Option<usize> {
        (!self.too_many).then_some(self.values.len())
    }

    /// The array, with its type.
    pub fn array(&self, carrier: &Carrier) -> Option<(u32, Bytes)> {
        let mut batch = Batch::new(1);
        for value in &self.values {
            batch.add([Some(value.as_ref())].into_iter());
        }
        let (types, arrays) = batch.take(std::slice::from_ref(carrier));
        types.first().copied().zip(arrays.into_iter().next())
    }
}

/// What is kept of a fetch's rows.
pub(super) struct Kept {
    /// all rows, for a stage
    pub rows: Option<Batch>,
    /// by the place of the column
    pub keys: HashMap<usize, Keys>,
    values: Vec<Option<std::ops::Range<usize>>>,
}

impl Kept {
    /// For rows of so many columns.
    pub fn new(columns: usize, rows: bool, keys: &[usize]) -> Self {
        Self {
            rows: rows.then(|| Batch::new(columns)),
            keys: keys.iter().map(|&place| (place, Keys::default())).collect(),
            values: Vec::new(),
        }
    }

    /// Whether it wants to see rows at all.
    pub fn is_empty(&self) -> bool {
        self.rows.is_none() && self.keys.is_empty()
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
