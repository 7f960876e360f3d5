//! Rows of the source go to the shards of their keys.

use super::source::{self, Source, sharded};
use super::{Plan, TargetType};
use crate::Transaction;
use crate::carrier::{Batch, Carrier, carriers, select_sql};
use crate::plan::row;
use crate::relay::{self, RowBatch};
use crate::statement::Statement;
use bytes::Bytes;
use pgherd_model::{Key, Name, Range, ServerError, ShardId, SqlState};
use pgherd_shards::Backend;
use postgres_protocol::message::frontend;
use std::collections::BTreeMap;

/// A shard's batch is sent when it has as many bytes, or rows.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_ROWS: usize = 10_000;
/// ON CONFLICT, triggers for statements, and a foreign key of the table to itself have to see all rows of a statement at once, and an array
/// ends at 1 GB.
const CONFLICT_BYTES: usize = 256 << 20;

/// What one shard gets.
struct Lane {
    batch: Batch,
    /// a statement was sent and its reply not read
    pending: bool,
}

impl Lane {
    fn new(width: usize) -> Self {
        Self {
            batch: Batch::new(width),
            pending: false,
        }
    }
}

/// Where a row goes.
enum Place<'p> {
    Shard(ShardId),
    /// its key has a NULL that may not be, which this range tells
    Nowhere(&'p Range),
}

struct Writer<'a> {
    statement: &'a Statement<'a>,
    sql: String,
    carriers: Vec<Carrier>,
    /// a shard gets its rows in one statement
    at_once: bool,
    lanes: BTreeMap<ShardId, Lane>,
    count: u64,
    returned: RowBatch,
}

/// Runs the whole statement.
pub(super) async fn run(
    statement: &Statement<'_>,
    mut plan: Plan,
    transaction: &mut Transaction,
) -> Result<(u64, RowBatch), ServerError> {
    let home_id = statement.snapshot.home();
    let wrapped = source::wrap(statement, &mut plan, transaction).await?;
    if plan.types.len() < wrapped.types.len() {
        // A local table: only columns that travel as text need its types.
        plan.types = local_types(&plan, wrapped.types.len(), statement, transaction).await?;
    }
    let home = transaction.participant(home_id).await?;
    let carriers = carriers(home, &wrapped.types, &plan.types).await?;
    Carrier::check(&carriers)?;
    let mut formats: Vec<i16> = carriers.iter().map(|c| c.format).collect();
    formats.extend(plan.key.iter().map(|_| 1));
    let has_statement_triggers =
        sharded(plan.table.as_ref()).is_none() && has_statement_triggers(&plan, home_id, transaction).await?;
    let mut writer = Writer {
        statement,
        sql: insert_sql(statement, &plan, &carriers, None),
        carriers,
        at_once: plan.target.conflict || refers_to_itself(&plan) || has_statement_triggers,
        lanes: BTreeMap::new(),
        count: 0,
        returned: RowBatch::default(),
    };
    let mut source = source::open(statement, &wrapped.sql, &formats, transaction).await?;
    let written = write_all(&mut writer, &mut source, &plan, home_id, transaction).await;
    if let Err(error) = written {
        for (_, backend) in transaction.participants() {
            relay::stop(backend).await;
        }
        return Err(error);
    }
    Ok((writer.count, writer.returned))
}

async fn write_all(
    writer: &mut Writer<'_>,
    source: &mut Source,
    plan: &Plan,
    home: ShardId,
    transaction: &mut Transaction,
) -> Result<(), ServerError> {
    while let Some(batches) = {
        // A source on the home participant shares its connection with the writes there.
        if matches!(source, Source::Home) {
            writer.read_reply(home, transaction).await?;
        }
        source.next(home, transaction).await?
    } {
        for batch in batches {
            for message in row::messages(&batch.bytes) {
                let shard = match writer.add(message, plan, home)? {
                    Place::Shard(shard) => shard,
                    Place::Nowhere(range) => return writer.refused(message, range, plan, transaction).await,
                };
                if writer.is_full(shard)? {
                    writer.send(shard, plan, transaction).await?;
                }
            }
        }
    }
    if writer.lanes.is_empty() {
        // Without rows a statement has its triggers and its rights still.
        writer.lanes.insert(home, Lane::new(writer.carriers.len()));
        writer.send_batch(home, plan, transaction).await?;
    }
    let shards: Vec<_> = writer.lanes.keys().copied().collect();
    for shard in &shards {
        writer.send(*shard, plan, transaction).await?;
    }
    for shard in shards {
        writer.read_reply(shard, transaction).await?;
    }
    Ok(())
}

/// What a shard runs for its rows, as arrays; into this child of the table, where one is given.
fn insert_sql(statement: &Statement<'_>, plan: &Plan, carriers: &[Carrier], child: Option<&Name>) -> String {
    format!(
        "{} {} {}",
        plan.head_sql(statement.text, child),
        select_sql(carriers, statement.parameters.len() + 1),
        plan.tail_sql(statement.text, child)
    )
}

/// Whether the sharded table has a foreign key to itself.
fn refers_to_itself(plan: &Plan) -> bool {
    let table = plan.table.as_ref().and_then(|t| Some((t, t.sharded()?)));
    table.is_some_and(|(t, s)| s.foreign_keys.iter().any(|key| key.referenced == t.name))
}

/// Whether a local table has triggers that fire once for each statement.
async fn has_statement_triggers(
    plan: &Plan,
    home: ShardId,
    transaction: &mut Transaction,
) -> Result<bool, ServerError> {
    let sql = format!(
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_trigger WHERE tgrelid = pg_catalog.to_regclass({}) \
         AND NOT tgisinternal AND tgtype & 1 = 0",
        pgherd_model::quote_literal(&plan.target.home_name())
    );
    let results = transaction.participant(home).await?.simple(&sql).await?;
    let count = results.last().and_then(|result| result.text(0, 0));
    Ok(count.is_some_and(|count| count != "0"))
}

/// The types of a local table's columns, from the home shard.
async fn local_types(
    plan: &Plan,
    count: usize,
    statement: &Statement<'_>,
    transaction: &mut Transaction,
) -> Result<Vec<TargetType>, ServerError> {
    let home = transaction.participant(statement.snapshot.home()).await?;
    let metadata = crate::metadata::read(home, &[plan.target.home_name()], &[]).await?;
    let relation = metadata.relations.into_iter().next().flatten();
    let columns = relation.map(|r| r.columns).unwrap_or_default();
    let of = |column: &crate::metadata::Column| TargetType {
        oid: column.type_oid,
        sql: column.type_sql.clone(),
    };
    let types: Vec<_> = match &plan.target.columns {
        Some(names) => names
            .iter()
            .filter_map(|n| columns.iter().find(|c| c.name == *n).map(of))
            .collect(),
        None => columns.iter().take(count).map(of).collect(),
    };
    match types.len() == count {
        true => Ok(types),
        false => Err(ServerError::new(
            SqlState::SYNTAX_ERROR,
            "INSERT has more expressions than target columns",
        )),
    }
}

impl Writer<'_> {
    /// Puts a row into the batch of its shard, unless its key has a NULL that may not be.
    fn add<'p>(&mut self, message: &[u8], plan: &'p Plan, home: ShardId) -> Result<Place<'p>, ServerError> {
        let garbled = || ServerError::internal("the source of an INSERT sent a row that does not fit its description");
        let mut fields = Vec::new();
        row::fields(message, &mut fields).ok_or_else(garbled)?;
        let width = self.carriers.len();
        let shard = match sharded(plan.table.as_ref()) {
            None => home,
            Some(sharded) => {
                let values = fields.get(width..).ok_or_else(garbled)?;
                if let Some(range) = plan.tells_of_nulls(home, values.iter().map(Option::is_none)) {
                    return Ok(Place::Nowhere(range));
                }
                let values = values.iter().zip(&sharded.key_types);
                let key: Option<Key> = values
                    .map(|(value, key_type)| key_type.parse_binary(&message[value.clone()?]))
                    .collect();
                // A row without a range gets its error from PostgreSQL: no shard has a partition for it.
                key.and_then(|key| sharded.ranges.find(&key))
                    .map_or(home, |range| range.shard)
            }
        };
        let lane = self.lanes.entry(shard).or_insert_with(|| Lane::new(width));
        lane.batch
            .add(fields.iter().map(|value| value.clone().map(|v| &message[v])));
        Ok(Place::Shard(shard))
    }

    /// The error of a row that no range takes.
    async fn refused(
        &mut self,
        message: &[u8],
        range: &Range,
        plan: &Plan,
        transaction: &mut Transaction,
    ) -> Result<(), ServerError> {
        let garbled = || ServerError::internal("the source of an INSERT sent a row that does not fit its description");
        self.read_reply(range.shard, transaction).await?;
        let mut fields = Vec::new();
        row::fields(message, &mut fields).ok_or_else(garbled)?;
        let mut lane = Lane::new(self.carriers.len());
        lane.batch
            .add(fields.iter().map(|value| value.clone().map(|v| &message[v])));
        self.lanes.insert(range.shard, lane);
        self.sql = insert_sql(self.statement, plan, &self.carriers, Some(&range.child));
        self.send_batch(range.shard, plan, transaction).await?;
        self.read_reply(range.shard, transaction).await?;
        Err(ServerError::internal("a row without its key was inserted"))
    }

    fn is_full(&self, shard: ShardId) -> Result<bool, ServerError> {
        let Some(lane) = self.lanes.get(&shard) else {
            return Ok(false);
        };
        if !self.at_once {
            return Ok(lane.batch.bytes >= BATCH_BYTES || lane.batch.rows >= BATCH_ROWS);
        }
        if lane.batch.bytes < CONFLICT_BYTES {
            return Ok(false);
        }
        Err(ServerError::unsupported(
            "INSERT … SELECT has too many rows for one shard where it needs all of them at once",
            "Insert in smaller parts.",
        ))
    }

    /// Sends a shard's batch, if it has rows, after reading the reply to the one before.
    async fn send(&mut self, shard: ShardId, plan: &Plan, transaction: &mut Transaction) -> Result<(), ServerError> {
        self.read_reply(shard, transaction).await?;
        match self.lanes.get(&shard).is_some_and(|lane| lane.batch.rows > 0) {
            true => self.send_batch(shard, plan, transaction).await,
            false => Ok(()),
        }
    }

    async fn send_batch(
        &mut self,
        shard: ShardId,
        plan: &Plan,
        transaction: &mut Transaction,
    ) -> Result<(), ServerError> {
        let Some(lane) = self.lanes.get_mut(&shard) else {
            return Ok(());
        };
        let (types, arrays) = lane.batch.take(&self.carriers);
        lane.pending = true;
        transaction.wrote(shard);
        let backend = transaction.participant(shard).await?;
        if let Some(sharded) = sharded(plan.table.as_ref()) {
            backend.queue_silent(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", sharded.fence));
        }
        let (mut parameter_types, mut parameters) = crate::fragment::parameters(self.statement, &self.sql, shard);
        parameter_types.truncate(self.statement.parameters.len());
        parameters.truncate(self.statement.parameters.len());
        parameter_types.extend(types);
        parameters.extend(arrays.into_iter().map(|array| (true, Some(array))));
        self.put(backend, &parameter_types, &parameters)?;
        relay::sync(backend).await
    }

    fn put(
        &self,
        backend: &mut Backend,
        types: &[u32],
        parameters: &[(bool, Option<Bytes>)],
    ) -> Result<(), ServerError> {
        let out = backend.outbox();
        let nul = |_| ServerError::internal("a message to a shard cannot be encoded");
        frontend::parse("", &self.sql, types.iter().copied(), out).map_err(nul)?;
        crate::fragment::bind("", parameters, self.statement.result_formats, out)?;
        frontend::execute("", 0, out).map_err(nul)
    }

    /// Reads a shard's reply, if one is to come: its rows and count.
    async fn read_reply(&mut self, shard: ShardId, transaction: &mut Transaction) -> Result<(), ServerError> {
        let Some(lane) = self.lanes.get_mut(&shard).filter(|lane| lane.pending) else {
            return Ok(());
        };
        lane.pending = false;
        let backend = transaction.participant(shard).await?;
        let mut failed = None;
        loop {
            let message = backend.next_message().await?;
            match message.tag {
                b'D' => self.returned.add(&message.body),
                b'C' => self.count += inserted(&message.body),
                b'E' => failed = Some(ServerError::from_body(&message.body).with_position(None)),
                b'Z' => {
                    self.returned.came_from(shard);
                    return failed.map_or(Ok(()), Err);
                }
                _ => {}
            }
        }
    }
}

/// The count in `INSERT 0 5`.
fn inserted(body: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(body.strip_suffix(&[0]).unwrap_or(body)).into_owned();
    text.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}
