//! MERGE that needs rows of several shards. One SELECT ([`source`]) finds for each row of its source which WHEN takes it, in one
//! cut; then each WHEN's rows are written as an UPDATE, DELETE or INSERT of its own would write them. What is deleted goes first and
//! what is inserted comes last, where PostgreSQL goes row by row: a row that has gone is in nobody's way.

mod bounds;
mod shape;
mod source;

use super::apply::Writer;
use super::returning::Returning;
use super::target::Target;
use super::{Found, Work, find, most_tries, moved, until_unchanged};
use crate::relay::RowBatch;
use crate::statement::Statement;
use crate::{Fragment, Transaction, gather};
use pgherd_model::{ServerError, SqlState};
use std::collections::HashSet;

/// What one WHEN writes.
pub(super) struct When<'a> {
    /// its number among the clauses, from 1
    number: usize,
    /// in which order it comes: DELETE, UPDATE, INSERT
    rank: u8,
    writer: Writer<'a>,
}

/// Runs a MERGE over several shards. Returns the number of rows written.
///
/// # Errors
/// PostgreSQL's own; 0A000 for what cannot be done exactly; 40001 where others kept changing the rows.
pub async fn merge(statement: Statement<'_>, transaction: &mut Transaction) -> Result<u64, ServerError> {
    let tries = most_tries(transaction)?;
    let shape = shape::parse(statement.text)?;
    let home = transaction.participant(statement.snapshot.home()).await?;
    let target = Target::read(
        &statement,
        shape.target.schema.as_deref(),
        &shape.target.name,
        "MERGE",
        home,
    )
    .await?;
    let written = source::build(&statement, &shape, &target, transaction).await?;
    let nothing = Returning::default();
    let mut whens: Vec<_> = written
        .iter()
        .map(|written| When {
            number: written.clause + 1,
            rank: written.rank(),
            writer: Writer::new(&statement, &written.shape, &target, &written.source, &nothing),
        })
        .collect();
    whens.sort_by_key(|when| when.rank);
    let (count, _) = until_unchanged(&statement, &Work::Merge(whens), tries, transaction).await?;
    Ok(count)
}

/// What is asked of which shard to find the rows; for EXPLAIN.
pub(crate) async fn fragments(
    statement: &Statement<'_>,
    transaction: &mut Transaction,
) -> Result<Vec<(Option<String>, Fragment)>, ServerError> {
    let shape = shape::parse(statement.text)?;
    let home = transaction.participant(statement.snapshot.home()).await?;
    let target = Target::read(
        statement,
        shape.target.schema.as_deref(),
        &shape.target.name,
        "MERGE",
        home,
    )
    .await?;
    let written = source::build(statement, &shape, &target, transaction).await?;
    let Some(first) = written.first() else {
        return Ok(Vec::new());
    };
    let select = Statement {
        text: &first.source.sql,
        ..*statement
    };
    gather::fragments(&select, Some(first.source.target_at), transaction).await
}

/// Finds the rows and writes them; None where somebody else changed one of them meanwhile.
pub(super) async fn attempt(
    statement: &Statement<'_>,
    whens: &[When<'_>],
    again: bool,
    transaction: &mut Transaction,
) -> Result<Option<(u64, RowBatch)>, ServerError> {
    let Some(first) = whens.first() else {
        return Ok(Some((0, RowBatch::default())));
    };
    let mut found: Vec<Vec<Found>> = whens.iter().map(|_| Vec::new()).collect();
    let mut taken = HashSet::new();
    find(statement, &first.writer, again, transaction, |message| {
        let garbled = || ServerError::internal("a row of a MERGE does not fit its description");
        let number = Found::action(message).ok_or_else(garbled)?;
        let at = whens.iter().position(|w| w.number == number).ok_or_else(garbled)?;
        let row = Found::read(message, &whens[at].writer)?;
        if whens[at].rank < 2 && !taken.insert((row.shard, row.identity.clone())) {
            return Err(hit_twice());
        }
        found[at].push(row);
        Ok(())
    })
    .await?;
    let mut count = 0;
    let several = found.iter().filter(|rows| !rows.is_empty()).count() > 1;
    for (when, rows) in whens.iter().zip(&mut found) {
        rows.sort_by(Found::as_they_lie);
        if when.rank == 1 {
            moved(rows, &when.writer)?;
        }
        let written = match when.rank {
            2 => when.writer.insert(rows, transaction).await,
            _ => when.writer.write(rows, transaction).await,
        };
        let written = written.map_err(|e| match several && first.writer.target.is_referenced {
            true => first.writer.target.unless_broken(e),
            false => e,
        });
        match written? {
            Some((written, _)) => count += written,
            None => return Ok(None),
        }
    }
    Ok(Some((count, RowBatch::default())))
}

fn hit_twice() -> ServerError {
    ServerError::new(
        SqlState::from_code("21000"),
        "MERGE command cannot affect row a second time",
    )
    .with_hint("Ensure that not more than one source row matches any one target row.")
}
