//! ON CONFLICT DO UPDATE that sets the shard key.
//!
//! A shard's own ON CONFLICT takes no row to another partition. So the row is proposed first, in vain, for what PostgreSQL checks and locks
//! then; after that the row in its way is changed as an UPDATE of the key is: in place on its shard, or deleted there and inserted where
//! its new key belongs. Tables of declared partitions give PostgreSQL's error where the row would leave its partition.

use super::columns::TargetColumn;
use super::source::base_type;
use super::upsert::Upsert;
use super::upsert_write::Proposed;
use super::{Plan, conflict};
use crate::carrier::{Carrier, TargetType, carriers};
use crate::write::shape::Value;
use crate::write::target::Target;
use pgherd_model::{Key, ServerError, ShardId, Sharded, SqlState, Table, quote_identifier};
use pgherd_shards::Backend;
use std::ops::Range;

/// What rows with new keys take along, behind the values of SET.
pub(super) struct Moves {
    /// columns that SET leaves as they are
    kept: Vec<(String, TargetType)>,
    carriers: Vec<Carrier>,
    /// columns of the key, which stand before them
    keys: usize,
}

/// Whether SET gives a column of the key another value than that of the row that was proposed.
pub(super) fn sets_key(tail: &str, table: &Table) -> bool {
    let Some(sharded) = table.sharded() else {
        return false;
    };
    conflict::parse(tail).is_ok_and(|conflict| conflict.set.iter().any(|set| moves(set, sharded)))
}

fn moves((name, value): &(String, Value), sharded: &Sharded) -> bool {
    let same = |sql: &String| {
        let words: Vec<&str> = sql.split('.').map(str::trim).collect();
        matches!(words[..], ["excluded", column] if column.trim_matches('"') == name)
    };
    sharded.key.contains(name) && !matches!(value, Value::Expression(sql) if same(sql))
}

/// Where SET gives rows other keys: what they take along, and how the SELECT has it. `set`: its columns with the numbers of their values.
pub(super) fn plan(
    plan: &Plan,
    columns: &[TargetColumn],
    checked: &Target,
    (set, values): (&[(String, Option<usize>)], &[String]),
    alias: &str,
) -> (Option<Moves>, Vec<String>) {
    let Some(sharded) = plan.table.as_ref().and_then(|t| t.sharded()) else {
        return (None, Vec::new());
    };
    if !set.iter().any(|(name, _)| sharded.key.contains(name)) {
        return (None, Vec::new());
    }
    let alias = quote_identifier(alias);
    let column = |name: &str| columns.iter().find(|c| c.name == name);
    let new_key = |(name, key_type): (&String, &pgherd_model::KeyType)| {
        let value = match set.iter().find(|(n, _)| n == name) {
            None => format!("{alias}.{}", quote_identifier(name)),
            Some((_, Some(number))) => values[*number].clone(),
            Some((_, None)) => column(name)
                .and_then(|c| c.default.clone())
                .unwrap_or("NULL".to_owned()),
        };
        let stored = column(name).map_or("pg_catalog.text", |c| &c.type_sql);
        format!(
            "CASE WHEN pgherd_m.pgherd_a = 2 THEN CAST(CAST(({value}) AS {stored}) AS {}) END",
            base_type(*key_type)
        )
    };
    let mut list: Vec<String> = sharded.key.iter().zip(&sharded.key_types).map(new_key).collect();
    let is_kept = |c: &&TargetColumn| !c.generated && !set.iter().any(|(name, _)| *name == c.name);
    let kept = columns.iter().filter(is_kept).filter_map(|c| {
        let own = checked.columns.iter().find(|own| own.name == c.name)?;
        let target = TargetType {
            oid: own.type_oid,
            sql: own.type_sql.clone(),
        };
        Some((c.name.clone(), target))
    });
    let kept: Vec<_> = kept.collect();
    list.extend(
        kept.iter()
            .map(|(name, _)| format!("{alias}.{}", quote_identifier(name))),
    );
    let moves = Moves {
        kept,
        carriers: Vec::new(),
        keys: sharded.key.len(),
    };
    (Some(moves), list)
}

impl Moves {
    /// Takes the types that the SELECT has for the keys and for what rows take along.
    pub(super) async fn describe(&mut self, types: &[u32], home: &mut Backend) -> Result<(), ServerError> {
        let garbled = || ServerError::internal("the home shard described other columns than it was asked for");
        let types = types.get(self.keys..).ok_or_else(garbled)?;
        let targets: Vec<_> = self.kept.iter().map(|(_, target)| target.clone()).collect();
        self.carriers = carriers(home, types, &targets).await?;
        Carrier::check(&self.carriers)
    }

    /// The formats of these columns.
    pub(super) fn formats(&self) -> impl Iterator<Item = i16> {
        let keys = (0..self.keys).map(|_| 1);
        keys.chain(self.carriers.iter().map(|c| c.format))
    }
}

/// What a value of an array that is sent to a shard is.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// part of the identity of the row in the way
    Identity(usize),
    /// a column of the SELECT
    Field(usize),
}

impl Upsert<'_> {
    /// The shard to which the row in the way goes, where it is another one.
    pub(super) fn moves_to(
        &self,
        message: &[u8],
        fields: &[Option<Range<usize>>],
        old: Option<&Key>,
        here: ShardId,
    ) -> Result<Option<ShardId>, ServerError> {
        let (Some(moves), Some(sharded)) = (&self.moves, self.plan.table.as_ref().and_then(|t| t.sharded())) else {
            return Ok(None);
        };
        let first = self.first_value() + self.set_carriers.len();
        let places = (first..first + moves.keys).zip(&sharded.key_types);
        let key: Option<Key> = places
            .map(|(at, key_type)| key_type.parse_binary(&message[fields.get(at)?.clone()?]))
            .collect();
        let range = key.and_then(|key| sharded.ranges.find_index(&key));
        let before = old.and_then(|key| sharded.ranges.find_index(key));
        if !sharded.automatic && before != range {
            return Err(
                ServerError::new(SqlState::FEATURE_NOT_SUPPORTED, "invalid ON UPDATE specification")
                    .with_detail("The result tuple would appear in a different partition than the original tuple."),
            );
        }
        // A key without a range gets its error from PostgreSQL: no shard has a partition for it.
        let to = range.map(|range| sharded.ranges.ranges()[range].shard);
        Ok(to.filter(|to| *to != here))
    }

    /// Refuses rows that leave their shard where the table cannot have that.
    pub(super) fn may_leave(&self, rows: &[&Proposed]) -> Result<(), ServerError> {
        if !rows.iter().any(|row| row.moves_to.is_some()) {
            return Ok(());
        }
        match self.checked.keeps_rows() {
            Some(error) => Err(error),
            None if !self.checked.referencing.is_empty() => Err(self.checked.stays("Foreign keys refer to its rows.")),
            None => Ok(()),
        }
    }

    /// Names the rows by their places, which PostgreSQL goes to directly, and by all that identifies them.
    fn is_found(&self, values: usize) -> String {
        let alias = quote_identifier(&self.plan.target.alias);
        let places = Carrier::text().array_sql(self.statement.parameters.len() + 2);
        format!(
            "{alias}.ctid = ANY (CAST({places} AS pg_catalog.tid[])) AND EXISTS (SELECT {})",
            self.found_sql(0, values)
        )
    }

    fn named(&self) -> &str {
        &self.statement.text[self.plan.target.named.clone()]
    }

    /// For rows that stay on their shard.
    pub(super) fn rekey_sql(&self) -> String {
        let values = self.set_carriers.len();
        format!(
            "UPDATE {} SET {} WHERE {} {}",
            self.named(),
            self.set_sql(&self.found_sql(0, values)),
            self.is_found(values),
            self.returning()
        )
    }

    /// For rows that go to another shard, where they are.
    pub(super) fn leave_sql(&self) -> String {
        format!("DELETE FROM {} WHERE {}", self.named(), self.is_found(0))
    }

    /// For the same, where they go.
    pub(super) fn enter_sql(&self) -> String {
        let first = self.statement.parameters.len() + 1;
        let kept = self.moves.iter().flat_map(|m| m.kept.iter().zip(&m.carriers));
        let set = self.set.iter().filter_map(|(name, value)| Some((name, (*value)?)));
        let set: Vec<_> = set.collect();
        let mut columns: Vec<_> = set.iter().map(|(name, _)| quote_identifier(name)).collect();
        let mut values: Vec<_> = set
            .iter()
            .map(|(_, number)| self.set_carriers[*number].value_sql(&format!("pgherd_new.pgherd_v{number}")))
            .collect();
        let mut arrays: Vec<_> = self.set_carriers.iter().collect();
        for ((name, _), carrier) in kept {
            columns.push(quote_identifier(name));
            values.push(carrier.value_sql(&format!("pgherd_new.pgherd_v{}", arrays.len())));
            arrays.push(carrier);
        }
        let names: Vec<_> = (0..arrays.len()).map(|i| format!("pgherd_v{i}")).collect();
        let arrays: Vec<_> = arrays.iter().enumerate().map(|(i, c)| c.array_sql(first + i)).collect();
        format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} \
             FROM unnest({}) WITH ORDINALITY AS pgherd_new ({}, pgherd_n) ORDER BY pgherd_new.pgherd_n {}",
            self.named(),
            columns.join(", "),
            values.join(", "),
            arrays.join(", "),
            names.join(", "),
            self.returning()
        )
    }

    /// What rows that enter a shard bring with them besides the values of SET.
    pub(super) fn taken_along(&self) -> Vec<(Carrier, Place)> {
        let behind = self.first_value() + self.set_carriers.len();
        let kept = self.moves.iter().flat_map(|m| {
            let carriers = m.carriers.iter().cloned().enumerate();
            carriers.map(move |(i, carrier)| (carrier, Place::Field(behind + m.keys + i)))
        });
        kept.collect()
    }
}
