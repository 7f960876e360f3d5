//! Writes what an [`Upsert`] has found, each row on the shard of its key, in three shares: rows with nothing in the way, rows that are
//! refused by the condition, and rows that change what is in their way.
//!
//! All of them are proposed to PostgreSQL, which checks them and locks what is in the way. Each share has a count that it must come
//! to: another one tells of a row that others have changed, added or taken away since it was read.

use super::upsert::{IN_FRONT, Upsert};
use super::upsert_moves::Place;
use crate::carrier::{Batch, Carrier, select_sql};
use crate::plan::row;
use crate::relay::{self, RowBatch};
use crate::statement::Statement;
use crate::write::apply::{put, read_reply};
use crate::{Transaction, gather};
use pgherd_model::{Key, Name, Range, ServerError, ShardId, SqlState, quote_identifier};
use std::collections::{BTreeMap, HashMap};

/// Rows that are changed are looked up by the row in their way, one by one.
const CHANGED_AT_ONCE: usize = 500;
/// The rows of one statement are kept until they are written.
const MOST_BYTES: usize = 256 << 20;

/// A row of the source.
pub(super) struct Proposed {
    message: Vec<u8>,
    /// its place among the source's rows
    number: usize,
    action: Action,
    /// `tableoid`, `ctid`, `xmin` of what is in its way
    identity: Option<[String; 3]>,
    /// the shard to which that goes, where it is another one
    pub(super) moves_to: Option<ShardId>,
}

/// What a shard gets of the rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    /// the rows as they are proposed
    Proposed,
    /// these, with the rows in their way and the values for those
    Changed,
    /// the rows in the way, with new keys among their values
    Rekeyed,
    /// the rows in the way, which leave the shard
    Leaving,
    /// these, whole, on the shard that they go to
    Entering,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Action {
    Insert,
    Nothing,
    Update,
}

/// What was done so far.
#[derive(Default)]
struct Done {
    count: u64,
    /// rows of RETURNING with their places
    returned: Vec<(usize, ShardId, Vec<u8>)>,
}

/// Finds the rows and writes them; None where somebody else changed one of them meanwhile.
pub(crate) async fn attempt(
    upsert: &Upsert<'_>,
    again: bool,
    transaction: &mut Transaction,
) -> Result<Option<(u64, RowBatch)>, ServerError> {
    let shards = find(upsert, again, transaction).await?;
    let mut done = Done::default();
    match write_all(upsert, shards, &mut done, transaction).await {
        Ok(true) => {
            done.returned.sort_by_key(|(number, ..)| *number);
            let mut returned = RowBatch::default();
            for (_, shard, message) in done.returned {
                returned.add(&message[5..]);
                returned.came_from(shard);
            }
            Ok(Some((done.count, returned)))
        }
        other => {
            for (_, backend) in transaction.participants() {
                relay::stop(backend).await;
            }
            match other {
                Err(error) if error.sqlstate() == SqlState::SERIALIZATION_FAILURE => Ok(None),
                other => other.map(|_| None),
            }
        }
    }
}

async fn find(
    upsert: &Upsert<'_>,
    again: bool,
    transaction: &mut Transaction,
) -> Result<BTreeMap<ShardId, Vec<Proposed>>, ServerError> {
    let select = Statement {
        text: &upsert.find,
        result_formats: &upsert.formats,
        ..upsert.statement
    };
    if again && upsert.checked.may_lock {
        gather::lock_target(&select, upsert.target_at, transaction).await?;
    }
    let mut rows = gather::select_target(&select, Some(upsert.target_at), transaction).await?;
    let mut shards = BTreeMap::<ShardId, Vec<Proposed>>::new();
    let mut bytes = 0;
    while let Some(batch) = rows.next().await? {
        for message in row::messages(&batch.bytes) {
            bytes += message.len();
            let (shard, row) = upsert.read(message)?;
            shards.entry(shard).or_default().push(row);
        }
        if bytes > MOST_BYTES {
            return Err(ServerError::unsupported(
                "an INSERT that reads tables in ON CONFLICT has too many rows",
                "Insert in smaller parts.",
            ));
        }
    }
    shards
        .values()
        .try_for_each(|rows| once_each(rows, upsert.moves.is_some()))?;
    if shards.is_empty() {
        // Sent without rows, so that PostgreSQL checks what it checks.
        shards.insert(upsert.checked.any_shard, Vec::new());
    }
    Ok(shards)
}

/// A row may be changed once.
fn once_each(rows: &[Proposed], moves: bool) -> Result<(), ServerError> {
    let mut seen = HashMap::<&[String; 3], Action>::new();
    for row in rows {
        let Some(identity) = &row.identity else { continue };
        let Some(before) = seen.insert(identity, row.action) else {
            continue;
        };
        match (before, row.action) {
            // Where it has another key since, PostgreSQL finds none in the way of the next.
            (Action::Update, Action::Update) if !moves => {
                let told = "ON CONFLICT DO UPDATE command cannot affect row a second time";
                return Err(ServerError::new(SqlState::from_code("21000"), told).with_hint(
                    "Ensure that no rows proposed for insertion within the same command have duplicate constrained values.",
                ));
            }
            (Action::Nothing, Action::Nothing) => {}
            _ => {
                return Err(ServerError::unsupported(
                    "rows that an INSERT proposes for the same key, of which ON CONFLICT takes some, need more than one shard",
                    "Ensure that the proposed rows have different keys.",
                ));
            }
        }
    }
    Ok(())
}

async fn write_all(
    upsert: &Upsert<'_>,
    shards: BTreeMap<ShardId, Vec<Proposed>>,
    done: &mut Done,
    transaction: &mut Transaction,
) -> Result<bool, ServerError> {
    if let Some((refused, range)) = upsert.refused(&shards) {
        let add = format!("{} {}", upsert.insert_sql(Some(&range.child)), upsert.returning());
        let shard = (range.shard, Share::Proposed);
        upsert.send(shard, &add, &[refused], done, transaction).await?;
        return Err(ServerError::internal("a row without its key was inserted"));
    }
    let add = upsert.add_sql();
    let change = upsert.change_sql();
    let mut entering = BTreeMap::<ShardId, Vec<&Proposed>>::new();
    let statements: usize = shards.values().map(|rows| 1 + rows.len() / CHANGED_AT_ONCE).sum();
    for (&shard, rows) in &shards {
        let share = |action: Action| rows.iter().filter(|row| row.action == action).collect::<Vec<_>>();
        let (added, passed, changed) = (share(Action::Insert), share(Action::Nothing), share(Action::Update));
        let broken = |error: ServerError| match statements > 1 && upsert.checked.refers_to_itself {
            true => upsert.checked.unless_broken(error),
            false => error,
        };
        if !added.is_empty() || rows.is_empty() {
            let count = upsert
                .send((shard, Share::Proposed), &add, &added, done, transaction)
                .await
                .map_err(broken)?;
            if count != added.len() as u64 {
                return Ok(false);
            }
        }
        if !passed.is_empty()
            && upsert
                .send((shard, Share::Proposed), &add, &passed, done, transaction)
                .await?
                != 0
        {
            return Ok(false);
        }
        if upsert.moves.is_some() {
            if !upsert.rekey(shard, &changed, &mut entering, done, transaction).await? {
                return Ok(false);
            }
            continue;
        }
        for some in changed.chunks(CHANGED_AT_ONCE) {
            let count = upsert
                .send((shard, Share::Changed), &change, some, done, transaction)
                .await
                .map_err(broken)?;
            if count != some.len() as u64 {
                return Ok(false);
            }
        }
    }
    for (shard, rows) in entering {
        let enter = upsert.enter_sql();
        let count = upsert
            .send((shard, Share::Entering), &enter, &rows, done, transaction)
            .await?;
        if count != rows.len() as u64 {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Upsert<'_> {
    fn read(&self, message: &[u8]) -> Result<(ShardId, Proposed), ServerError> {
        let garbled = || ServerError::internal("a proposed row does not fit its description");
        let mut fields = Vec::new();
        row::fields(message, &mut fields).ok_or_else(garbled)?;
        let (width, keys) = (self.carriers.len(), self.plan.key.len());
        let text = |at: usize| -> Option<&str> { std::str::from_utf8(&message[fields.get(at)?.clone()?]).ok() };
        let action = match text(width + keys + 1).ok_or_else(garbled)? {
            "0" => Action::Insert,
            "1" => Action::Nothing,
            _ => Action::Update,
        };
        let number = text(width + keys + 2)
            .and_then(|n| n.parse().ok())
            .ok_or_else(garbled)?;
        let identity = match text(width + keys) {
            None => None,
            Some(identity) => {
                let parts: Vec<&str> = identity.split('/').collect();
                let [_, table, place, version] = parts[..] else {
                    return Err(garbled());
                };
                Some([table, place, version].map(str::to_owned))
            }
        };
        let (mut shard, mut key) = (self.checked.any_shard, None);
        if let Some(sharded) = self.plan.table.as_ref().and_then(|t| t.sharded()) {
            let places = (width..width + keys).zip(&sharded.key_types);
            key = places
                .map(|(at, key_type)| key_type.parse_binary(&message[fields.get(at)?.clone()?]))
                .collect::<Option<Key>>();
            // A row without a range gets its error from PostgreSQL: no shard has a partition for it.
            let range = key.as_ref().and_then(|key| sharded.ranges.find(key));
            shard = range.map_or(shard, |range| range.shard);
        }
        let moves_to = match action {
            Action::Update => self.moves_to(message, &fields, key.as_ref(), shard)?,
            _ => None,
        };
        let row = Proposed {
            message: message.to_vec(),
            number,
            action,
            identity,
            moves_to,
        };
        Ok((shard, row))
    }

    /// The first row whose key has a NULL that may not be, and the range that tells so.
    fn refused<'r>(&self, shards: &'r BTreeMap<ShardId, Vec<Proposed>>) -> Option<(&'r Proposed, &Range)> {
        let (width, keys) = (self.carriers.len(), self.plan.key.len());
        let mut fields = Vec::new();
        let rows = shards.values().flatten().filter_map(|row| {
            row::fields(&row.message, &mut fields)?;
            let key = fields.get(width..width + keys)?;
            let range = self
                .plan
                .tells_of_nulls(self.statement.snapshot.home(), key.iter().map(Option::is_none))?;
            Some((row, range))
        });
        rows.min_by_key(|(row, _)| row.number)
    }

    /// Where in a row of the SELECT the values of SET begin.
    pub(super) fn first_value(&self) -> usize {
        self.carriers.len() + self.plan.key.len() + IN_FRONT
    }

    /// Gives rows other keys; false where one of them was changed by others. Those that belong to other shards then are deleted.
    async fn rekey<'r>(
        &self,
        shard: ShardId,
        rows: &[&'r Proposed],
        entering: &mut BTreeMap<ShardId, Vec<&'r Proposed>>,
        done: &mut Done,
        transaction: &mut Transaction,
    ) -> Result<bool, ServerError> {
        self.may_leave(rows)?;
        let (leaving, staying): (Vec<_>, Vec<_>) = rows.iter().copied().partition(|row| row.moves_to.is_some());
        // Proposed in vain: PostgreSQL checks them all the same.
        let add = self.add_sql();
        if !rows.is_empty()
            && self
                .send((shard, Share::Proposed), &add, rows, done, transaction)
                .await?
                != 0
        {
            return Ok(false);
        }
        let mut all = 0;
        if !leaving.is_empty() {
            let leave = self.leave_sql();
            all += self
                .send((shard, Share::Leaving), &leave, &leaving, done, transaction)
                .await?;
        }
        // UPDATE returns rows as they lie.
        let at_once = if self.conflict.returning.is_empty() {
            CHANGED_AT_ONCE
        } else {
            1
        };
        let rekey = self.rekey_sql();
        for some in staying.chunks(at_once) {
            all += self
                .send((shard, Share::Rekeyed), &rekey, some, done, transaction)
                .await?;
        }
        for row in leaving {
            entering.entry(row.moves_to.unwrap_or(shard)).or_default().push(row);
        }
        Ok(all == rows.len() as u64)
    }

    /// What a share consists of, in the order of the statement's arrays.
    fn columns_of(&self, share: Share) -> Vec<(Carrier, Place)> {
        let identity = || (0..3).map(|i| (Carrier::text(), Place::Identity(i)));
        let fields = |carriers: &[Carrier], first: usize| {
            let carriers = carriers.iter().cloned().enumerate();
            carriers
                .map(|(i, carrier)| (carrier, Place::Field(first + i)))
                .collect::<Vec<_>>()
        };
        let proposed = || fields(&self.carriers, 0).into_iter();
        let set = || fields(&self.set_carriers, self.first_value()).into_iter();
        match share {
            Share::Proposed => proposed().collect(),
            Share::Changed => proposed().chain(identity()).chain(set()).collect(),
            Share::Rekeyed => identity().chain(set()).collect(),
            Share::Leaving => identity().collect(),
            Share::Entering => set().chain(self.taken_along()).collect(),
        }
    }

    /// Sends a share of the rows to a shard; how many it has inserted, changed or deleted.
    async fn send(
        &self,
        (shard, share): (ShardId, Share),
        sql: &str,
        rows: &[&Proposed],
        done: &mut Done,
        transaction: &mut Transaction,
    ) -> Result<u64, ServerError> {
        let garbled = || ServerError::internal("a proposed row does not fit its description");
        let (carriers, places): (Vec<Carrier>, Vec<Place>) = self.columns_of(share).into_iter().unzip();
        let mut batch = Batch::new(places.len());
        let mut fields = Vec::new();
        for row in rows {
            row::fields(&row.message, &mut fields).ok_or_else(garbled)?;
            let value = |place: &Place| match place {
                Place::Identity(part) => row.identity.as_ref().map(|identity| identity[*part].as_bytes()),
                Place::Field(at) => Some(&row.message[fields.get(*at)?.clone()?]),
            };
            batch.add(places.iter().map(value));
        }
        transaction.participant(shard).await?;
        if !rows.is_empty() {
            transaction.wrote(shard);
        }
        let backend = transaction.participant(shard).await?;
        if let Some(sharded) = self.plan.table.as_ref().and_then(|t| t.sharded()) {
            backend.queue_silent(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", sharded.fence));
        }
        let own = self.statement.parameters.len();
        let (mut types, mut parameters) = crate::fragment::parameters(&self.statement, sql, shard);
        types.truncate(own);
        parameters.truncate(own);
        let (row_types, arrays) = batch.take(&carriers);
        types.extend(row_types);
        parameters.extend(arrays.into_iter().map(|array| (true, Some(array))));
        put(backend, sql, &types, &parameters, self.statement.result_formats)?;
        relay::sync(backend).await?;
        let returns = !self.conflict.returning.is_empty();
        let mut returned = RowBatch::default();
        let count = read_reply(backend, returns, &mut returned).await?;
        // Rows are inserted, and returned, in order.
        for (message, row) in row::messages(&returned.bytes).zip(rows) {
            done.returned.push((row.number, shard, message.to_vec()));
        }
        if share != Share::Leaving {
            done.count += count;
        }
        Ok(count)
    }

    /// How the identities of rows in the way, and their new values, travel.
    pub(super) fn found_carriers(&self) -> Vec<Carrier> {
        let identity = (0..3).map(|_| Carrier::text());
        identity.chain(self.set_carriers.iter().cloned()).collect()
    }

    /// `INSERT INTO t (…) SELECT … FROM unnest(…) ON CONFLICT (…)`
    fn head_sql(&self) -> String {
        let tail = &self.statement.text[self.plan.target.tail.clone()];
        format!("{} {}", self.insert_sql(None), &tail[self.conflict.target.clone()])
    }

    /// `INSERT INTO t (…) SELECT … FROM unnest(…)`; into this child of the table, where one is given.
    fn insert_sql(&self, child: Option<&Name>) -> String {
        format!(
            "{} {}",
            self.plan.head_sql(self.statement.text, child),
            select_sql(&self.carriers, self.statement.parameters.len() + 1)
        )
    }

    pub(super) fn returning(&self) -> &str {
        &self.statement.text[self.plan.target.tail.clone()][self.conflict.returning.clone()]
    }

    /// For rows that change nothing that is there.
    fn add_sql(&self) -> String {
        let alias = quote_identifier(&self.plan.target.alias);
        let set = match self.set.iter().find(|(_, value)| value.is_some()).or(self.set.first()) {
            Some((name, Some(_))) => {
                let name = quote_identifier(name);
                format!("{name} = {alias}.{name}")
            }
            Some((name, None)) => format!("{} = DEFAULT", quote_identifier(name)),
            None => String::new(),
        };
        format!(
            "{} DO UPDATE SET {set} WHERE false {}",
            self.head_sql(),
            self.returning()
        )
    }

    /// For rows whose values were found, by the row in their way.
    fn change_sql(&self) -> String {
        let found = self.found_sql(self.carriers.len(), self.set_carriers.len());
        format!(
            "{} DO UPDATE SET {} WHERE EXISTS (SELECT {found}) {}",
            self.head_sql(),
            self.set_sql(&found),
            self.returning()
        )
    }

    /// The rows in the way by all that identifies them, with so many of their new values: arrays behind so many others of ours.
    pub(super) fn found_sql(&self, behind: usize, values: usize) -> String {
        let alias = quote_identifier(&self.plan.target.alias);
        let first = self.statement.parameters.len() + 1 + behind;
        let arrays: Vec<_> = self
            .found_carriers()
            .iter()
            .take(3 + values)
            .enumerate()
            .map(|(i, carrier)| carrier.array_sql(first + i))
            .collect();
        let names = ["pgherd_t", "pgherd_r", "pgherd_x"].map(str::to_owned).into_iter();
        let names: Vec<_> = names.chain((0..values).map(|i| format!("pgherd_v{i}"))).collect();
        format!(
            "FROM unnest({}) AS pgherd_new ({}) \
             WHERE {alias}.tableoid = CAST(pgherd_new.pgherd_t AS pg_catalog.oid) \
             AND {alias}.ctid = CAST(pgherd_new.pgherd_r AS pg_catalog.tid) \
             AND {alias}.xmin = CAST(pgherd_new.pgherd_x AS pg_catalog.xid)",
            arrays.join(", "),
            names.join(", ")
        )
    }

    /// SET with the values that come with the rows in the way.
    pub(super) fn set_sql(&self, found: &str) -> String {
        let (mut columns, mut values, mut set) = (Vec::new(), Vec::new(), Vec::new());
        for (name, value) in &self.set {
            match value {
                None => set.push(format!("{} = DEFAULT", quote_identifier(name))),
                Some(number) => {
                    columns.push(quote_identifier(name));
                    values.push(self.set_carriers[*number].value_sql(&format!("pgherd_new.pgherd_v{number}")));
                }
            }
        }
        if !columns.is_empty() {
            set.push(format!(
                "({}) = (SELECT {} {found})",
                columns.join(", "),
                values.join(", ")
            ));
        }
        set.join(", ")
    }
}
