//! Types that users made have other OIDs on every shard. Clients know those of the home shard: what they declare is translated
//! for the shard that gets it, and what a shard describes is translated back, as are the OIDs inside of binary values ([`values`]).
//! Those inside of values that clients send stay as they are: PostgreSQL goes by the type that it expects there.
//!
//! Where the same type is elsewhere is asked once and remembered: an OID never comes to mean another type while its own exists,
//! and a type that is made anew has new ones everywhere.

mod values;

use self::values::{Found, Holds, Reader, may_hold};
use crate::databases::Database;
use crate::origins::Origins;
use bytes::BytesMut;
use parking_lot::Mutex;
use pgherd_model::{FIRST_OF_USERS, ServerError, ShardId};
use pgherd_query::{Description, RowBatch};
use pgherd_shards::{Identity, SimpleResult};
use pgherd_transaction::Coordinator;
use std::collections::{BTreeSet, HashMap};

/// Types come and go; so many are remembered at most.
const MOST_REMEMBERED: usize = 10_000;

/// From one shard's OID to another's.
type Key = (ShardId, ShardId, u32);

/// What is known of the OIDs in one database.
#[derive(Default)]
pub(crate) struct UserTypes {
    known: Mutex<HashMap<Key, u32>>,
    /// what their binary values hold
    held: Mutex<HashMap<ShardId, HashMap<u32, Holds>>>,
}

/// Columns whose binary values may have OIDs in them: the position, and the type's OID on the shard that answers; ascending.
pub(crate) type Holding = Vec<(usize, u32)>;

/// Who asks, and which shard's OIDs clients know.
pub(crate) struct Asking<'a> {
    types: &'a UserTypes,
    origins: &'a Origins,
    coordinator: &'a Coordinator,
    who: &'a Identity,
    home: ShardId,
}

impl<'a> Asking<'a> {
    /// For a session in that database.
    pub(crate) fn new(database: &'a Database, who: &'a Identity, home: ShardId) -> Self {
        Self {
            types: &database.types,
            origins: &database.origins,
            coordinator: &database.coordinator,
            who,
            home,
        }
    }

    /// What relations of shards are to clients.
    pub(crate) fn origins(&self) -> &'a Origins {
        self.origins
    }

    /// The shard whose OIDs clients know.
    pub(crate) fn home(&self) -> ShardId {
        self.home
    }

    /// What a shard answers the service role.
    pub(crate) async fn ask_catalog(&self, shard: ShardId, sql: &str) -> Result<Vec<SimpleResult>, ServerError> {
        let mut backend = self.coordinator.service(shard).await?;
        Ok(backend.simple(sql).await?)
    }

    /// Who translates what that shard describes: nobody on the home shard.
    pub(crate) fn foreign(&self, shard: ShardId) -> Option<&Self> {
        (shard != self.home).then_some(self)
    }

    /// The OIDs that clients know, as that shard numbers them; None where there is nothing to translate. A type that the shard
    /// does not have, or has not committed yet, becomes 0: the shard infers it.
    pub(crate) async fn on_shard(&self, shard: ShardId, oids: &[u32]) -> Result<Option<Vec<u32>>, ServerError> {
        if shard == self.home || !oids.iter().any(|oid| *oid >= FIRST_OF_USERS) {
            return Ok(None);
        }
        let known = self.translated(self.home, shard, oids.iter().copied()).await?;
        let translate = |oid: &u32| match *oid < FIRST_OF_USERS {
            true => *oid,
            false => known.get(oid).copied().unwrap_or(0),
        };
        Ok(Some(oids.iter().map(translate).collect()))
    }

    /// Gives a shard's RowDescription (from its length on) the OIDs that clients know. A type that only that shard has, such as a child
    /// table's row, keeps its own.
    pub(crate) async fn describe(&self, shard: ShardId, body: &mut BytesMut) -> Result<(), ServerError> {
        let places: Vec<_> = type_places(body).collect();
        let oids = places.iter().map(|at| oid_at(body, *at));
        let known = self.translated(shard, self.home, oids).await?;
        for at in places {
            if let Some(oid) = known.get(&oid_at(body, at)) {
                body[at..at + 4].copy_from_slice(&oid.to_be_bytes());
            }
        }
        Ok(())
    }

    /// Gives the binary values of these columns in a DataRow's body the OIDs that clients know.
    pub(crate) async fn translate_row(
        &self,
        shard: ShardId,
        columns: &[(usize, u32)],
        body: &mut [u8],
    ) -> Result<(), ServerError> {
        let found = loop {
            let found = self.find(shard, columns, body)?;
            if found.unknown.is_empty() {
                break found;
            }
            self.learn_held(shard, &found.unknown).await?;
        };
        if found.places.is_empty() {
            return Ok(());
        }
        let oids = found.places.iter().map(|at| oid_at(body, *at));
        let known = self.translated(shard, self.home, oids).await?;
        for at in found.places {
            if let Some(oid) = known.get(&oid_at(body, at)) {
                body[at..at + 4].copy_from_slice(&oid.to_be_bytes());
            }
        }
        Ok(())
    }

    /// The same for rows that several shards have returned, which the home shard describes so; in these formats.
    pub(crate) async fn translate_returned(
        &self,
        batch: &mut RowBatch,
        description: &Description,
        formats: &[i16],
    ) -> Result<(), ServerError> {
        if batch.origins.is_empty() || !formats.contains(&1) {
            return Ok(());
        }
        let is_binary = |position: usize| match formats {
            [format] => *format == 1,
            formats => formats.get(position) == Some(&1),
        };
        let columns = described(description, is_binary);
        if columns.is_empty() {
            return Ok(());
        }
        let mut start = 0;
        for (end, shard) in std::mem::take(&mut batch.origins) {
            let columns = self.holding_on(shard, &columns).await?;
            while start < end {
                let length = oid_at(&batch.bytes, start + 1) as usize;
                let body = start + 5..start + 1 + length;
                start = body.end;
                if !columns.is_empty() {
                    self.translate_row(shard, &columns, &mut batch.bytes[body]).await?;
                }
            }
        }
        Ok(())
    }

    /// The columns of rows that this shard returns in binary, which the home shard describes so, as [`Asking::translate_row`] wants them.
    pub(crate) async fn holding_in_binary(
        &self,
        shard: ShardId,
        description: &Description,
    ) -> Result<Holding, ServerError> {
        self.holding_on(shard, &described(description, |_| true)).await
    }

    /// These columns, whose types' OIDs are the home shard's, with those of another shard; none where there is nothing to translate.
    async fn holding_on(&self, shard: ShardId, columns: &[(usize, u32)]) -> Result<Holding, ServerError> {
        if self.foreign(shard).is_none() {
            return Ok(Holding::new());
        }
        let (positions, oids): (Vec<usize>, Vec<u32>) = columns.iter().copied().unzip();
        let there = self.on_shard(shard, &oids).await?;
        Ok(positions.into_iter().zip(there.unwrap_or(oids)).collect())
    }

    fn find(&self, shard: ShardId, columns: &[(usize, u32)], body: &[u8]) -> Result<Found, ServerError> {
        let mut held = self.types.held.lock();
        let mut reader = Reader {
            bytes: body,
            known: held.entry(shard).or_default(),
            found: Found::default(),
        };
        let whole = reader.row(columns);
        whole.ok_or_else(|| ServerError::internal("a shard's row is not what it was described as"))?;
        Ok(reader.found)
    }

    /// Asks a shard what values of its types hold.
    async fn learn_held(&self, shard: ShardId, oids: &BTreeSet<u32>) -> Result<(), ServerError> {
        let listed: Vec<_> = oids.iter().map(u32::to_string).collect();
        let sql = format!(
            "SELECT t.oid::pg_catalog.text, CASE WHEN t.typtype IN ('c', 'd', 'r', 'm') THEN t.typtype::pg_catalog.text \
             WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc THEN 'a' ELSE '' END, \
             CASE t.typtype WHEN 'd' THEN t.typbasetype WHEN 'r' THEN r.rngsubtype ELSE m.rngtypid END::pg_catalog.text \
             FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid \
             LEFT JOIN pg_catalog.pg_range m ON m.rngmultitypid = t.oid WHERE t.oid IN ({})",
            listed.join(", ")
        );
        let told = self.coordinator.autocommit(shard, self.who).await?.simple(&sql).await?;
        let mut held = self.types.held.lock();
        let held = held.entry(shard).or_default();
        if held.len() > MOST_REMEMBERED {
            held.clear();
        }
        // What is not there any more holds nothing.
        held.extend(oids.iter().map(|oid| (*oid, Holds::Nothing)));
        for (row, told) in told.iter().flat_map(|t| (0..t.rows.len()).map(move |row| (row, t))) {
            let number = |column| told.text(row, column).and_then(|n| n.parse().ok());
            let (Some(oid), of) = (number(0), number(2)) else {
                continue;
            };
            let holds = match (told.text(row, 1), of) {
                (Some("a"), _) => Holds::Elements,
                (Some("c"), _) => Holds::Fields,
                (Some("d"), Some(of)) => Holds::Same(of),
                (Some("r"), Some(of)) => Holds::Bounds(of),
                (Some("m"), Some(of)) => Holds::Ranges(of),
                _ => Holds::Nothing,
            };
            held.insert(oid, holds);
        }
        Ok(())
    }

    async fn translated(
        &self,
        from: ShardId,
        to: ShardId,
        oids: impl Iterator<Item = u32>,
    ) -> Result<HashMap<u32, u32>, ServerError> {
        let wanted: BTreeSet<u32> = oids.filter(|oid| *oid >= FIRST_OF_USERS).collect();
        let mut found = HashMap::new();
        {
            let known = self.types.known.lock();
            let pairs = wanted
                .iter()
                .filter_map(|oid| Some((*oid, *known.get(&(from, to, *oid))?)));
            found.extend(pairs);
        }
        let unknown: Vec<String> = wanted
            .iter()
            .filter(|oid| !found.contains_key(oid))
            .map(u32::to_string)
            .collect();
        if !unknown.is_empty() {
            let learned = self.ask(from, to, &unknown).await?;
            let mut known = self.types.known.lock();
            if known.len() > MOST_REMEMBERED {
                known.clear();
            }
            known.extend(learned.iter().map(|(here, there)| ((from, to, *here), *there)));
            found.extend(learned);
        }
        Ok(found)
    }

    async fn ask(&self, from: ShardId, to: ShardId, oids: &[String]) -> Result<Vec<(u32, u32)>, ServerError> {
        let names = format!(
            "SELECT t.oid::pg_catalog.text, n.nspname::pg_catalog.text, t.typname::pg_catalog.text \
             FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE t.oid IN ({})",
            oids.join(", ")
        );
        let mut backend = self.coordinator.autocommit(from, self.who).await?;
        let named = backend.simple(&names).await?;
        drop(backend);
        let Some(named) = named.first() else {
            return Ok(Vec::new());
        };
        let rows: Vec<_> = (0..named.rows.len())
            .filter_map(|row| {
                let literal = |column| Some(pgherd_model::quote_literal(named.text(row, column)?));
                Some(format!("({}, {}, {})", named.text(row, 0)?, literal(1)?, literal(2)?))
            })
            .collect();
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        // Not by a cast to regtype, which wants a right to use the schema.
        let numbers = format!(
            "SELECT v.here::pg_catalog.text, t.oid::pg_catalog.text FROM (VALUES {}) AS v(here, schema, name) \
             JOIN pg_catalog.pg_namespace n ON n.nspname = v.schema \
             JOIN pg_catalog.pg_type t ON t.typnamespace = n.oid AND t.typname = v.name",
            rows.join(", ")
        );
        let mut backend = self.coordinator.autocommit(to, self.who).await?;
        let numbered = backend.simple(&numbers).await?;
        let Some(numbered) = numbered.first() else {
            return Ok(Vec::new());
        };
        let pair = |row| {
            let number = |column| numbered.text(row, column)?.parse().ok();
            Some((number(0)?, number(1)?))
        };
        Ok((0..numbered.rows.len()).filter_map(pair).collect())
    }
}

/// Whether a RowDescription's body has a type that a user made, or that may be made of such.
pub(crate) fn has_user_types(body: &[u8]) -> bool {
    type_places(body).any(|at| may_hold(oid_at(body, at)))
}

/// Whether a column of this description, which is the home shard's, may have OIDs in its binary values.
pub(crate) fn may_be_held(description: &Description) -> bool {
    description
        .columns
        .iter()
        .flatten()
        .any(|column| may_hold(column.type_oid))
}

/// The columns of this description that are in binary, and whose values may have OIDs in them.
fn described(description: &Description, is_binary: impl Fn(usize) -> bool) -> Holding {
    let types = description.columns.iter().flatten().map(|column| column.type_oid);
    let columns = types.enumerate();
    columns
        .filter(|(position, oid)| is_binary(*position) && may_hold(*oid))
        .collect()
}

/// The columns that a RowDescription's body shows in binary, and whose values may have OIDs in them.
pub(crate) fn holding(body: &[u8]) -> Holding {
    // Behind the type's OID, its size and its modifier.
    const FORMAT: usize = 10;
    let places = type_places(body).enumerate();
    places
        .filter(|(_, at)| body[at + FORMAT..at + FORMAT + 2] == [0, 1])
        .map(|(position, at)| (position, oid_at(body, at)))
        .filter(|(_, oid)| may_hold(*oid))
        .collect()
}

/// Where the first column stands in a RowDescription's body: behind how many there are.
pub(crate) const FIRST_COLUMN: usize = 2;
/// How long what stands behind a column's name is: the table's OID, the column's number, the type's OID, its size and modifier, the format.
pub(crate) const FIELDS: usize = 18;

/// Where a column's fields begin, whose name stands here; None behind the last column.
pub(crate) fn fields_behind_name(body: &[u8], at: usize) -> Option<usize> {
    let name = body.get(at..)?.iter().position(|byte| *byte == 0)?;
    let fields = at + name + 1;
    (body.len() >= fields + FIELDS).then_some(fields)
}

/// Where the types' OIDs stand in a RowDescription's body: behind each name, the table's OID and the column's number.
fn type_places(body: &[u8]) -> impl Iterator<Item = usize> {
    const BEHIND_NAME: usize = 6;
    let mut at = FIRST_COLUMN;
    std::iter::from_fn(move || {
        let fields = fields_behind_name(body, at)?;
        at = fields + FIELDS;
        Some(fields + BEHIND_NAME)
    })
}

fn oid_at(body: &[u8], at: usize) -> u32 {
    body[at..at + 4].iter().fold(0, |oid, byte| oid << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_behind_names() {
        let mut body = 2i16.to_be_bytes().to_vec();
        for (name, oid) in [("k", 23u32), ("mood", 16740)] {
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(&[0, 0, 0, 64, 0, 0, 1]);
            body.extend_from_slice(&oid.to_be_bytes());
            body.extend_from_slice(&[0, 4, 255, 255, 255, 255, 0, 0]);
        }
        let oids: Vec<_> = type_places(&body).map(|at| oid_at(&body, at)).collect();
        assert_eq!(oids, [23, 16740]);
        assert!(has_user_types(&body));
        assert!(type_places(&body[..body.len() - 1]).count() < 2);
    }
}
