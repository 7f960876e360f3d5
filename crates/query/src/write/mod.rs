//! UPDATE and DELETE that need rows of several shards, or move rows between them.
//!
//! 1. [`source`] makes a SELECT of the statement, which tells for each row to write who it is (shard, table, place and
//!    version) and what it gets. It runs by gathering, in one cut, and locks nothing.
//! 2. [`apply`] writes the rows on their shards, by place and version: a row that somebody has changed since is not
//!    found. Rows whose new key belongs to another shard are deleted there and inserted here.
//! 3. When a row was not found, the statement is undone on all shards and run again, this time with the rows locked
//!    first. So each row that is written is the row that was read, as in PostgreSQL, and only rows that are written are
//!    locked where nobody interferes.
//!
//! The design is in docs/designs/0007-gathered-writes.md.

mod apply;
mod returning;
mod shape;
mod source;
mod target;

use crate::plan::row;
use crate::relay::RowBatch;
use crate::rows::Rows;
use crate::statement::Statement;
use crate::{Fragment, Transaction, gather};
use apply::Writer;
use pgherd_model::{Key, ServerError, ShardId, SqlState};
use pgherd_shards::ColumnDescription;
use pgherd_transaction::Isolation;
use returning::Returning;
use sqlparser::ast::{SelectItem, SetExpr, Statement as Ast};
use std::time::Duration;
use target::Target;

/// How often a statement is run again because others changed its rows.
const MOST_TRIES: u32 = 30;
/// The rows of one statement are kept until they are written.
const MOST_BYTES: usize = 512 << 20;

/// A row to write.
pub(super) struct Found {
    /// where it is
    shard: ShardId,
    /// `tableoid`, `ctid`, `xmin`
    identity: [String; 3],
    /// block and offset, to write rows in the order in which they lie
    place: (u32, u32),
    /// DataRow of the source
    message: Vec<u8>,
    /// where it goes, if to another shard
    moves_to: Option<ShardId>,
}

/// Runs an UPDATE or DELETE over several shards. Returns the number of rows written, and those of RETURNING.
///
/// # Errors
/// PostgreSQL's own; 0A000 for what cannot be done exactly; 40001 where others kept changing the rows.
pub async fn gathered_write<'t>(
    statement: Statement<'_>,
    returning: Option<&[ColumnDescription]>,
    transaction: &'t mut Transaction,
) -> Result<(u64, Option<Rows<'t>>), ServerError> {
    let isolation = transaction.mode().isolation;
    if isolation == Some(Isolation::Serializable) {
        return Err(ServerError::unsupported(
            "this statement needs rows of more than one shard, which is not supported at this isolation level",
            "Use READ COMMITTED or REPEATABLE READ, or name the shard key in WHERE with constants or parameters.",
        ));
    }
    // In a snapshot that stays, a row that has changed since would not be found another time either.
    let tries = match isolation.is_some_and(Isolation::is_one_snapshot) {
        true => 1,
        false => MOST_TRIES,
    };
    let shape = shape::parse(statement.text)?;
    let home = transaction.participant(statement.snapshot.home()).await?;
    let target = Target::read(&statement, &shape, home).await?;
    let items = returning_items(statement.ast);
    let mut list = Returning::read(statement.text, &shape, items, &target.columns)?;
    let source = source::build(&statement, &shape, &target, &mut list, transaction).await?;
    let writer = Writer::new(&statement, &shape, &target, &source, &list);
    for tried in 0..tries {
        transaction.open_statement().await?;
        match attempt(&statement, &writer, tried > 0, transaction).await? {
            Some((count, rows)) => {
                transaction.keep_statement().await?;
                return Ok((count, returning.map(|_| Rows::ready(rows))));
            }
            None => transaction.undo_statement().await?,
        }
        let pause = Duration::from_millis(u64::from(tried.min(10)) * 2);
        tokio::time::sleep(pause).await;
    }
    Err(ServerError::new(
        SqlState::SERIALIZATION_FAILURE,
        "could not serialize access due to concurrent update",
    )
    .with_hint("Other transactions have changed the rows; run the transaction again."))
}

/// What is asked of which shard to find the rows; for EXPLAIN.
pub(crate) async fn fragments(
    statement: &Statement<'_>,
    transaction: &mut Transaction,
) -> Result<Vec<(Option<String>, Fragment)>, ServerError> {
    let shape = shape::parse(statement.text)?;
    let home = transaction.participant(statement.snapshot.home()).await?;
    let target = Target::read(statement, &shape, home).await?;
    let mut list = Returning::read(statement.text, &shape, returning_items(statement.ast), &target.columns)?;
    let source = source::build(statement, &shape, &target, &mut list, transaction).await?;
    let select = Statement {
        text: &source.sql,
        ..*statement
    };
    gather::fragments(&select, Some(source.target_at), transaction).await
}

fn returning_items(ast: &Ast) -> &[SelectItem] {
    let items = match ast {
        Ast::Update(update) => &update.returning,
        Ast::Delete(delete) => &delete.returning,
        Ast::Query(query) => match &*query.body {
            SetExpr::Update(inner) | SetExpr::Delete(inner) => return returning_items(inner),
            _ => &None,
        },
        _ => &None,
    };
    items.as_deref().unwrap_or_default()
}

/// Finds the rows and writes them; None where somebody else changed one of them meanwhile.
async fn attempt(
    statement: &Statement<'_>,
    writer: &Writer<'_>,
    again: bool,
    transaction: &mut Transaction,
) -> Result<Option<(u64, RowBatch)>, ServerError> {
    let select = Statement {
        text: &writer.source.sql,
        result_formats: &writer.source.formats,
        ..*statement
    };
    let at = writer.source.target_at;
    if again && writer.target.may_lock {
        gather::lock_target(&select, at, transaction).await?;
    }
    let mut rows = gather::select_target(&select, Some(at), transaction).await?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = rows.next().await? {
        for message in row::messages(&batch.bytes) {
            bytes += message.len();
            found.push(Found::read(message, writer)?);
        }
        if bytes > MOST_BYTES {
            return Err(ServerError::unsupported(
                "an UPDATE or DELETE over several shards has too many rows",
                "Write in smaller parts.",
            ));
        }
    }
    drop(rows);
    found.sort_by(|a, b| (a.shard, &a.identity[0], a.place).cmp(&(b.shard, &b.identity[0], b.place)));
    let moving = found.iter().any(|row| row.moves_to.is_some());
    if let Some(error) = writer.target.keeps_rows().filter(|_| moving) {
        return Err(error);
    }
    writer.write(&found, transaction).await
}

impl Found {
    fn read(message: &[u8], writer: &Writer<'_>) -> Result<Self, ServerError> {
        let garbled = || ServerError::internal("a row to write does not fit its description");
        let mut fields = Vec::new();
        row::fields(message, &mut fields).ok_or_else(garbled)?;
        let identity = fields.first().cloned().flatten().ok_or_else(garbled)?;
        let identity = std::str::from_utf8(&message[identity]).map_err(|_| garbled())?;
        let parts: Vec<&str> = identity.split('/').collect();
        let [shard, table, place, version] = parts[..] else {
            return Err(garbled());
        };
        let shard = ShardId(shard.parse().map_err(|_| garbled())?);
        let numbers = place.trim_matches(['(', ')']).split_once(',').ok_or_else(garbled)?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| garbled());
        let moves_to = writer.target.sharded().and_then(|sharded| {
            let places = writer.source.key.iter().zip(&sharded.key_types);
            let key: Option<Key> = places
                .map(|(place, key_type)| key_type.parse_binary(&message[fields.get(*place)?.clone()?]))
                .collect();
            // A key without a range gets its error from PostgreSQL: no shard has a partition for it.
            let key = key.filter(|key| !key.is_empty())?;
            sharded.ranges.find(&key).map(|range| range.shard)
        });
        Ok(Self {
            shard,
            identity: [table, place, version].map(str::to_owned),
            place: (number(numbers.0)?, number(numbers.1)?),
            message: message.to_vec(),
            moves_to: moves_to.filter(|to| *to != shard),
        })
    }
}
