//! Writes the rows that were found, each on its shard, by place and version.
//!
//! On each shard the rows that leave it are deleted, then the others are written where they are; at the end those that
//! left are inserted where they belong. So no row is in the way of another that has gone.

use super::Found;
use super::returning::{Returning, value_sql};
use super::shape::Shape;
use super::source::Source;
use super::target::Target;
use crate::Transaction;
use crate::carrier::{Batch, Carrier};
use crate::plan::row;
use crate::relay::{self, RowBatch};
use crate::statement::Statement;
use bytes::Bytes;
use pgherd_model::{ServerError, ShardId, SqlState, quote_identifier};
use pgherd_shards::Backend;
use postgres_protocol::message::frontend;
use std::collections::{BTreeMap, BTreeSet};

/// A shard gets as many bytes, or rows, in one statement.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_ROWS: usize = 5000;

/// One statement for several shards, with the rows as arrays.
pub(super) struct Step {
    sql: String,
    /// identity columns, then values
    carriers: Vec<Carrier>,
    /// the rows' identities come first
    identified: bool,
    /// values of the source
    values: Vec<usize>,
    /// each row that is sent must be written
    pub(super) exact: bool,
    /// its rows are the client's
    returns: bool,
    /// its count is the client's
    counts: bool,
}

/// What a statement does on shards.
pub(super) struct Writer<'a> {
    pub statement: &'a Statement<'a>,
    pub source: &'a Source,
    pub target: &'a Target,
    /// locks rows first, where row triggers may keep them from being written
    lock: Option<Step>,
    /// locks rows that leave
    pub(super) hold: Step,
    /// finds rows that leave while others refer to them, for each of the target's [`Target::referencing`]
    pub(super) referred: Vec<Step>,
    leave: Step,
    write: Step,
    enter: Step,
}

/// What was done so far.
#[derive(Default)]
pub(super) struct Done {
    count: u64,
    returned: RowBatch,
    /// shards on which the table's fence is held
    fenced: BTreeSet<ShardId>,
}

/// The text of a statement's pieces.
pub(super) struct Texts<'a> {
    text: &'a str,
    shape: &'a Shape,
    target: &'a Target,
    source: &'a Source,
    returning: &'a Returning,
    /// number of the first array's parameter
    first: usize,
}

impl<'a> Writer<'a> {
    pub fn new(
        statement: &'a Statement<'a>,
        shape: &'a Shape,
        target: &'a Target,
        source: &'a Source,
        returning: &'a Returning,
    ) -> Self {
        let texts = Texts {
            text: statement.text,
            shape,
            target,
            source,
            returning,
            first: statement.parameters.len() + 1,
        };
        Self {
            lock: target.has_row_triggers.then(|| texts.lock()),
            hold: texts.lock(),
            referred: target
                .referencing
                .iter()
                .map(|(table, key)| texts.referred(table, key))
                .collect(),
            leave: texts.leave(),
            write: texts.write(),
            enter: texts.enter(),
            statement,
            source,
            target,
        }
    }

    /// Writes all; None where a row was changed by somebody else. One shard after the other, so that two statements
    /// that write the same rows wait for each other in the same order.
    pub async fn write(
        &self,
        found: &[Found],
        transaction: &mut Transaction,
    ) -> Result<Option<(u64, RowBatch)>, ServerError> {
        let mut done = Done::default();
        let written = self.write_all(found, &mut done, transaction).await;
        self.end(written, done, transaction).await
    }

    /// Inserts all, each row where it moves to. A row without a shard gets its error from PostgreSQL on any.
    pub async fn insert(
        &self,
        found: &[Found],
        transaction: &mut Transaction,
    ) -> Result<Option<(u64, RowBatch)>, ServerError> {
        let mut entering = BTreeMap::<_, Vec<_>>::new();
        for row in found {
            entering
                .entry(row.moves_to.unwrap_or(self.target.any_shard))
                .or_default()
                .push(row);
        }
        if entering.is_empty() {
            // Sent without rows, so that PostgreSQL checks what it checks.
            entering.insert(self.target.any_shard, Vec::new());
        }
        let (mut done, mut written) = (Done::default(), Ok(true));
        for (shard, rows) in entering {
            if matches!(written, Ok(true)) {
                written = self.run(&self.enter, shard, &rows, &mut done, transaction).await;
            }
        }
        self.end(written, done, transaction).await
    }

    async fn end(
        &self,
        written: Result<bool, ServerError>,
        done: Done,
        transaction: &mut Transaction,
    ) -> Result<Option<(u64, RowBatch)>, ServerError> {
        if matches!(written, Ok(true)) {
            return Ok(Some((done.count, done.returned)));
        }
        for (_, backend) in transaction.participants() {
            relay::stop(backend).await;
        }
        match written {
            // A row that went to another partition of its shard meanwhile: it is found there the next time.
            Err(error) if error.sqlstate() == SqlState::SERIALIZATION_FAILURE => Ok(None),
            other => other.map(|_| None),
        }
    }

    async fn write_all(
        &self,
        found: &[Found],
        done: &mut Done,
        transaction: &mut Transaction,
    ) -> Result<bool, ServerError> {
        let (mut here, mut entering) = (BTreeMap::<_, (Vec<_>, Vec<_>)>::new(), BTreeMap::<_, Vec<_>>::new());
        for row in found {
            let (leaving, staying) = here.entry(row.shard).or_default();
            match row.moves_to {
                Some(to) => {
                    leaving.push(row);
                    entering.entry(to).or_default().push(row);
                }
                None => staying.push(row),
            }
        }
        if !found.iter().any(|row| row.moves_to.is_none()) {
            // Sent without rows, so that PostgreSQL checks what it checks.
            here.entry(self.target.any_shard).or_default();
        }
        for (shard, (leaving, staying)) in here {
            if !self.lock_rows(shard, &staying, done, transaction).await?
                || !self
                    .may_leave(shard, &leaving, found.len() == 1, done, transaction)
                    .await?
                || !leaving.is_empty() && !self.run(&self.leave, shard, &leaving, done, transaction).await?
            {
                return Ok(false);
            }
            let is_needed = !staying.is_empty() || shard == self.target.any_shard;
            if is_needed {
                let written = self.run(&self.write, shard, &staying, done, transaction).await;
                // A row that enters may be the one that a key still needs.
                let written = written.map_err(|e| match !entering.is_empty() && self.target.is_referenced {
                    true => self.target.unless_broken(e),
                    false => e,
                });
                if !written? {
                    return Ok(false);
                }
            }
        }
        for (shard, rows) in entering {
            if !self.run(&self.enter, shard, &rows, done, transaction).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where row triggers may keep rows from being written, the rows are counted before.
    async fn lock_rows(
        &self,
        shard: ShardId,
        rows: &[&Found],
        done: &mut Done,
        transaction: &mut Transaction,
    ) -> Result<bool, ServerError> {
        let Some(lock) = self.lock.as_ref().filter(|_| !rows.is_empty()) else {
            return Ok(true);
        };
        if !self.target.may_lock {
            return Err(ServerError::unsupported(
                "this statement needs rows of more than one shard of a table with row triggers",
                "It wants the privilege UPDATE on the table.",
            ));
        }
        self.run(lock, shard, rows, done, transaction).await
    }

    /// Runs a step on one shard; false where a row was not there any more.
    pub(super) async fn run(
        &self,
        step: &Step,
        shard: ShardId,
        rows: &[&Found],
        done: &mut Done,
        transaction: &mut Transaction,
    ) -> Result<bool, ServerError> {
        let mut rows = rows;
        loop {
            let sent = self.send(step, shard, rows, done, transaction).await?;
            let backend = transaction.participant(shard).await?;
            let count = read_reply(backend, step.returns, &mut done.returned).await?;
            if step.exact && count != sent as u64 {
                return Ok(false);
            }
            if step.counts {
                done.count += count;
            }
            rows = &rows[sent..];
            if rows.is_empty() {
                return Ok(true);
            }
        }
    }

    /// Sends the next rows of a shard; returns how many.
    pub(super) async fn send(
        &self,
        step: &Step,
        shard: ShardId,
        rows: &[&Found],
        done: &mut Done,
        transaction: &mut Transaction,
    ) -> Result<usize, ServerError> {
        let garbled = || ServerError::internal("a row to write does not fit its description");
        let mut batch = Batch::new(step.carriers.len());
        let mut fields = Vec::new();
        let mut sent = 0;
        for found in rows {
            row::fields(&found.message, &mut fields).ok_or_else(garbled)?;
            let identity = found.identity.iter().filter(|_| step.identified);
            let values = step.values.iter().map(|value| {
                let field = fields.get(self.source.places[*value]).cloned().flatten();
                field.map(|field| &found.message[field])
            });
            batch.add(identity.map(|part| Some(part.as_bytes())).chain(values));
            sent += 1;
            let is_full = batch.bytes >= BATCH_BYTES || batch.rows >= BATCH_ROWS;
            if is_full && !self.target.refers_to_itself {
                break;
            }
        }
        let (types, arrays) = batch.take(&step.carriers);
        transaction.participant(shard).await?;
        if sent > 0 {
            transaction.wrote(shard);
        }
        let backend = transaction.participant(shard).await?;
        if let Some(sharded) = self.target.sharded().filter(|_| done.fenced.insert(shard)) {
            backend.queue_silent(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", sharded.fence));
        }
        let own = self.statement.parameters.len();
        let (mut parameter_types, mut parameters) = crate::fragment::parameters(self.statement, &step.sql, shard);
        parameter_types.truncate(own);
        parameters.truncate(own);
        parameter_types.extend(types);
        parameters.extend(arrays.into_iter().map(|array| (true, Some(array))));
        let formats = if step.returns {
            self.statement.result_formats
        } else {
            &[]
        };
        put(backend, &step.sql, &parameter_types, &parameters, formats)?;
        relay::sync(backend).await?;
        Ok(sent)
    }
}

pub(crate) fn put(
    backend: &mut Backend,
    sql: &str,
    types: &[u32],
    parameters: &[(bool, Option<Bytes>)],
    formats: &[i16],
) -> Result<(), ServerError> {
    let out = backend.outbox();
    let nul = |_| ServerError::internal("a message to a shard cannot be encoded");
    frontend::parse("", sql, types.iter().copied(), out).map_err(nul)?;
    crate::fragment::bind("", parameters, formats, out)?;
    frontend::execute("", 0, out).map_err(nul)
}

/// Reads one statement's reply: its count, and its rows.
pub(crate) async fn read_reply(
    backend: &mut Backend,
    returns: bool,
    returned: &mut RowBatch,
) -> Result<u64, ServerError> {
    let (mut failed, mut count) = (None, 0);
    loop {
        let message = backend.next_message().await?;
        match message.tag {
            b'D' if returns => returned.add(&message.body),
            b'C' => {
                let tag = String::from_utf8_lossy(message.body.strip_suffix(&[0]).unwrap_or(&message.body));
                count = tag.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            }
            b'E' => failed = Some(ServerError::from_body(&message.body).with_position(None)),
            b'Z' => {
                returned.came_from(backend.shard());
                return failed.map_or(Ok(count), Err);
            }
            _ => {}
        }
    }
}

impl Texts<'_> {
    pub(super) fn alias(&self) -> String {
        quote_identifier(&self.shape.alias)
    }

    fn name(&self) -> &str {
        &self.text[self.shape.name_span.clone()]
    }

    /// The table with its alias, as the client wrote it.
    pub(super) fn named(&self) -> &str {
        &self.text[self.shape.target.clone()]
    }

    pub(super) fn step(
        &self,
        identified: bool,
        values: Vec<usize>,
        returns: bool,
        sql: impl Fn(&str) -> String,
    ) -> Step {
        let identity = (0..3).filter(|_| identified).map(|_| Carrier::text());
        let carriers: Vec<_> = identity
            .chain(values.iter().map(|value| self.source.carriers[*value].clone()))
            .collect();
        let mut names: Vec<_> = ["pgherd_t", "pgherd_r", "pgherd_x"].map(str::to_owned).into();
        names.truncate(if identified { 3 } else { 0 });
        names.extend(values.iter().map(|value| format!("pgherd_v{value}")));
        let arrays: Vec<_> = carriers
            .iter()
            .enumerate()
            .map(|(i, carrier)| carrier.array_sql(self.first + i))
            .collect();
        let (arrays, names) = (arrays.join(", "), names.join(", "));
        let rows = match identified {
            true => format!("unnest({arrays}) AS pgherd_new ({names})"),
            // Rows of RETURNING are found by their number.
            false => format!("unnest({arrays}) WITH ORDINALITY AS pgherd_new ({names}, pgherd_n)"),
        };
        Step {
            sql: sql(&rows),
            carriers,
            identified,
            values,
            exact: true,
            returns,
            counts: false,
        }
    }

    pub(super) fn is_row(&self) -> String {
        let alias = self.alias();
        format!(
            "{alias}.tableoid = CAST(pgherd_new.pgherd_t AS pg_catalog.oid) \
             AND {alias}.ctid = CAST(pgherd_new.pgherd_r AS pg_catalog.tid) \
             AND {alias}.xmin = CAST(pgherd_new.pgherd_x AS pg_catalog.xid)"
        )
    }

    fn carried(&self) -> Vec<usize> {
        self.source.carried.iter().cloned().flatten().collect()
    }

    fn returning(&self) -> Option<String> {
        let values = |entry: usize| {
            let values = self.source.carried.get(entry).cloned().unwrap_or_default();
            values
                .map(|value| value_sql(&self.source.carriers[value], value))
                .collect()
        };
        self.returning
            .list_sql(self.text, &self.shape.alias, &self.target.columns, &values)
    }

    /// The client's UPDATE or DELETE for rows that stay where they are.
    fn write(&self) -> Step {
        let given: Vec<usize> = self.source.set.iter().filter_map(|(_, value)| *value).collect();
        let values: Vec<_> = given.into_iter().chain(self.carried()).collect();
        let returning = self.returning();
        let tail = returning
            .as_ref()
            .map_or(String::new(), |list| format!(" RETURNING {list}"));
        let set = self.source.set.iter().map(|(name, value)| {
            let value = value.map(|value| value_sql(&self.source.carriers[value], value));
            format!("{name} = {}", value.unwrap_or("DEFAULT".to_owned()))
        });
        let set = set.collect::<Vec<_>>().join(", ");
        let step = self.step(true, values, returning.is_some(), |rows| match self.shape.deletes {
            true => format!(
                "DELETE FROM {} USING {rows} WHERE {}{tail}",
                self.named(),
                self.is_row()
            ),
            false => format!(
                "UPDATE {} SET {set} FROM {rows} WHERE {}{tail}",
                self.named(),
                self.is_row()
            ),
        });
        Step {
            exact: !self.target.has_row_triggers,
            counts: true,
            ..step
        }
    }

    /// Locks the rows that the statement is going to write.
    fn lock(&self) -> Step {
        self.step(true, Vec::new(), false, |rows| {
            format!(
                "SELECT 1 FROM {} CROSS JOIN {rows} WHERE {} FOR UPDATE OF {}",
                self.named(),
                self.is_row(),
                self.alias()
            )
        })
    }

    /// Deletes rows that go to another shard.
    fn leave(&self) -> Step {
        self.step(true, Vec::new(), false, |rows| {
            format!("DELETE FROM {} USING {rows} WHERE {}", self.named(), self.is_row())
        })
    }

    /// Inserts the rows that came from other shards. RETURNING sees them beside what came along, by their number: rows are
    /// inserted, and returned, in order.
    fn enter(&self) -> Step {
        let columns: Vec<_> = self
            .source
            .inserted
            .iter()
            .map(|(name, _)| quote_identifier(name))
            .collect();
        let given: Vec<usize> = self.source.inserted.iter().map(|(_, value)| *value).collect();
        let new: Vec<_> = given
            .iter()
            .map(|value| value_sql(&self.source.carriers[*value], *value))
            .collect();
        let (columns, new) = (columns.join(", "), new.join(", "));
        let values: Vec<_> = given.into_iter().chain(self.carried()).collect();
        let list = self.returning();
        let step = self.step(false, values, list.is_some(), |rows| {
            let insert = format!(
                "INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE SELECT {new} FROM {rows} ORDER BY pgherd_new.pgherd_n",
                self.name()
            );
            match &list {
                None => insert,
                Some(list) => format!(
                    "WITH pgherd_in AS ({insert} RETURNING *), \
                     {alias} AS (SELECT *, pg_catalog.row_number() OVER () AS pgherd_n FROM pgherd_in) \
                     SELECT {list} FROM {alias} JOIN {rows} ON {alias}.pgherd_n = pgherd_new.pgherd_n",
                    alias = self.alias()
                ),
            }
        });
        Step { counts: true, ..step }
    }
}
