//! Arrays that are sent along as parameters.

use crate::carrier::Carrier;
use crate::fragment;
use crate::statement::Statement;
use bytes::Bytes;
use pgherd_model::ShardId;
use std::collections::HashMap;

/// An array in PostgreSQL's binary format.
pub(super) enum Array {
    /// the same to all
    Same(Bytes),
    /// to each shard what can matter there, and to all others one without elements
    ByShard(HashMap<ShardId, Bytes>, Bytes),
}

impl Array {
    fn on(&self, shard: ShardId) -> Bytes {
        match self {
            Array::Same(array) => array.clone(),
            Array::ByShard(arrays, empty) => arrays.get(&shard).unwrap_or(empty).clone(),
        }
    }
}

/// Parameters that are added behind the client's own, with their types.
pub(super) struct Added {
    behind: usize,
    arrays: Vec<(u32, Array)>,
}

impl Added {
    /// None yet.
    pub fn behind(statement: &Statement<'_>) -> Self {
        Self {
            behind: statement.parameters.len(),
            arrays: Vec::new(),
        }
    }

    /// Adds one with values of this type; returns its name in SQL, as `$3`.
    pub fn push(&mut self, carrier: &Carrier, array: Array) -> String {
        self.arrays.push((carrier.array(), array));
        format!("${}", self.behind + self.arrays.len())
    }

    pub fn count(&self) -> usize {
        self.arrays.len()
    }

    /// All of them as one shard gets them.
    pub fn on(&self, shard: ShardId) -> Vec<(u32, Bytes)> {
        self.arrays.iter().map(|(oid, array)| (*oid, array.on(shard))).collect()
    }

    /// Types and values for a piece of SQL that uses some of the client's parameters and all of these.
    pub fn with(&self, statement: &Statement<'_>, sql: &str, shard: ShardId) -> (Vec<u32>, Vec<(bool, Option<Bytes>)>) {
        let (mut types, mut values) = fragment::parameters(statement, sql, shard);
        types.resize(self.behind, 25);
        values.resize(self.behind, (false, None));
        for (array_type, array) in self.on(shard) {
            types.push(array_type);
            values.push((true, Some(array)));
        }
        (types, values)
    }
}
