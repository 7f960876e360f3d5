//! UPDATE, DELETE and MERGE that need rows of several shards, or move rows between them.
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

pub(crate) mod apply;
mod merge;
mod referred;
mod returning;
pub(crate) mod shape;
mod source;
pub(crate) mod target;

use crate::plan::row;
use crate::relay::RowBatch;
use crate::rows::Rows;
use crate::statement::Statement;
use crate::{Fragment, Transaction, gather};
use apply::Writer;
pub(crate) use merge::fragments as merge_fragments;
pub use merge::merge;
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
    let tries = most_tries(transaction)?;
    let shape = shape::parse(statement.text)?;
    let home = transaction.participant(statement.snapshot.home()).await?;
    let target = Target::read(&statement, shape.schema.as_deref(), &shape.name, verb(&shape), home).await?;
    let items = returning_items(statement.ast);
    let mut list = Returning::read(
        statement.text,
        &shape,
        items,
        &target.columns,
        may_move(&shape, &target),
    )?;
    let source = source::build(&statement, &shape, &target, &mut list, transaction).await?;
    let work = Work::Rows(Box::new(Writer::new(&statement, &shape, &target, &source, &list)));
    let (count, rows) = until_unchanged(&statement, &work, tries, transaction).await?;
    Ok((count, returning.map(|_| Rows::ready(rows))))
}

/// Runs an INSERT whose ON CONFLICT reads tables. Returns the number of rows inserted or changed, and those of RETURNING.
pub(crate) async fn upsert(
    upsert: &crate::insert::Upsert<'_>,
    transaction: &mut Transaction,
) -> Result<(u64, RowBatch), ServerError> {
    let tries = most_tries(transaction)?;
    until_unchanged(&upsert.statement, &Work::Upsert(upsert), tries, transaction).await
}

fn verb(shape: &shape::Shape) -> &'static str {
    if shape.deletes { "DELETE" } else { "UPDATE" }
}

/// Whether it sets a column of the shard key.
fn may_move(shape: &shape::Shape, target: &Target) -> bool {
    let key = target.sharded().map_or(&[][..], |sharded| &sharded.key);
    shape.set.iter().any(|(name, _)| key.contains(name))
}

/// What is tried until nobody else has changed a row meanwhile.
enum Work<'a> {
    /// an UPDATE or DELETE
    Rows(Box<Writer<'a>>),
    /// a MERGE
    Merge(Vec<merge::When<'a>>),
    /// an INSERT whose ON CONFLICT reads tables
    Upsert(&'a crate::insert::Upsert<'a>),
}

/// How often a statement may be tried in this transaction.
fn most_tries(transaction: &Transaction) -> Result<u32, ServerError> {
    let isolation = transaction.mode().isolation;
    if isolation == Some(Isolation::Serializable) {
        return Err(ServerError::unsupported(
            "this statement needs rows of more than one shard, which is not supported at this isolation level",
            "Use READ COMMITTED or REPEATABLE READ, or name the shard key in WHERE with constants or parameters.",
        ));
    }
    // In a snapshot that stays, a row that has changed since would not be found another time either.
    Ok(match isolation.is_some_and(Isolation::is_one_snapshot) {
        true => 1,
        false => MOST_TRIES,
    })
}

async fn until_unchanged(
    statement: &Statement<'_>,
    work: &Work<'_>,
    tries: u32,
    transaction: &mut Transaction,
) -> Result<(u64, RowBatch), ServerError> {
    for tried in 0..tries {
        transaction.open_statement().await?;
        let again = tried > 0;
        let written = match work {
            Work::Rows(writer) => attempt(statement, writer, again, transaction).await?,
            Work::Merge(whens) => merge::attempt(statement, whens, again, transaction).await?,
            Work::Upsert(upsert) => crate::insert::upsert_write::attempt(upsert, again, transaction).await?,
        };
        match written {
            Some(written) => {
                transaction.keep_statement().await?;
                return Ok(written);
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
    let target = Target::read(statement, shape.schema.as_deref(), &shape.name, verb(&shape), home).await?;
    let items = returning_items(statement.ast);
    let mut list = Returning::read(
        statement.text,
        &shape,
        items,
        &target.columns,
        may_move(&shape, &target),
    )?;
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
    let mut found = Vec::new();
    find(statement, writer, again, transaction, |message| {
        found.push(Found::read(message, writer)?);
        Ok(())
    })
    .await?;
    found.sort_by(Found::as_they_lie);
    moved(&found, writer)?;
    writer.write(&found, transaction).await
}

/// Runs the SELECT of a write; another time with the target's rows locked before.
async fn find(
    statement: &Statement<'_>,
    writer: &Writer<'_>,
    again: bool,
    transaction: &mut Transaction,
    mut take: impl FnMut(&[u8]) -> Result<(), ServerError>,
) -> Result<(), ServerError> {
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
    let mut bytes = 0;
    while let Some(batch) = rows.next().await? {
        for message in row::messages(&batch.bytes) {
            bytes += message.len();
            take(message)?;
        }
        if bytes > MOST_BYTES {
            return Err(ServerError::unsupported(
                "a statement that writes over several shards has too many rows",
                "Write in smaller parts.",
            ));
        }
    }
    transaction.note_notices(rows.take_notices());
    Ok(())
}

/// Refuses rows that move where the table cannot have that.
fn moved(found: &[Found], writer: &Writer<'_>) -> Result<(), ServerError> {
    let moving = found.iter().any(|row| row.moves_to.is_some());
    match writer.target.keeps_rows().filter(|_| moving) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl Found {
    /// In the order in which rows lie on their shards.
    fn as_they_lie(a: &Self, b: &Self) -> std::cmp::Ordering {
        (a.shard, &a.identity[0], a.place).cmp(&(b.shard, &b.identity[0], b.place))
    }

    /// The number of the WHEN that takes a row of a MERGE, which stands behind its identity.
    fn action(message: &[u8]) -> Option<usize> {
        let mut fields = Vec::new();
        row::fields(message, &mut fields)?;
        std::str::from_utf8(&message[fields.get(1)?.clone()?])
            .ok()?
            .parse()
            .ok()
    }

    fn read(message: &[u8], writer: &Writer<'_>) -> Result<Self, ServerError> {
        let garbled = || ServerError::internal("a row to write does not fit its description");
        let mut fields = Vec::new();
        row::fields(message, &mut fields).ok_or_else(garbled)?;
        // A row that is to be inserted is nowhere yet.
        let identity = match fields.first().cloned().flatten() {
            Some(identity) => std::str::from_utf8(&message[identity]).map_err(|_| garbled())?,
            None => "0/0/(0,0)/0",
        };
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
