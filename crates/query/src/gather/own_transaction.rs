//! A gather in a transaction that has changed the schema: the functions, types and schemas that it made are seen by its own
//! participants alone. So the statement runs on the home shard's participant, and the rows travel as arrays with it: a participant that
//! had used a temporary table could not be prepared. So do statements with functions that lock or change what is the home shard's alone:
//! advisory locks, large objects.
//!
//! A statement that calls volatile functions of users runs READ ONLY there as it does elsewhere, under a savepoint that ends that.

use super::{Plan, few};
use crate::edit::Edited;
use crate::read_ahead::ReadAhead;
use crate::relay::{self, RowBatch};
use crate::rows::{Rows, Scratch};
use crate::statement::Statement;
use crate::{Transaction, refusal};
use pgherd_model::ServerError;

/// Rows of one relation, and bytes of all of them and of the result, that the gateway holds for one statement. With more, it runs
/// beside the transaction.
const MOST: (usize, usize) = (1_000_000, 64 << 20);

const READ_ONLY: &str = "SAVEPOINT \"pgherd gather\"; SET LOCAL transaction_read_only = on";
const READ_WRITE: &str = "ROLLBACK TO SAVEPOINT \"pgherd gather\"; RELEASE SAVEPOINT \"pgherd gather\"";

/// Where the statement runs.
enum Run {
    Inside(ReadAhead),
    Beside(Box<(Edited, Scratch)>),
}

/// Runs a planned gather whose rows have [arrays](Plan::has_arrays).
pub(super) async fn run(
    statement: &Statement<'_>,
    plan: Plan,
    transaction: &mut Transaction,
) -> Result<Rows<'static>, ServerError> {
    let fragments = plan.fragments(statement);
    transaction.open_cut(&fragments).await?;
    let read = async {
        relay::execute_all(&fragments, transaction).await?;
        let mut ahead = ReadAhead::new(fragments.len());
        if few::read(&plan, &fragments, &mut ahead, transaction, MOST).await? {
            return Ok(Run::Inside(ahead));
        }
        if let Some(function) = plan.reading.home_function {
            return Err(refusal::not_here(function));
        }
        plan.check_beside(statement)?;
        let scratch = super::checkout(statement, transaction).await?;
        let (edited, scratch) =
            super::start_over_copies(statement, &plan, &fragments, &mut ahead, transaction, scratch).await?;
        Ok(Run::Beside(Box::new((edited, scratch))))
    };
    let read: Result<Run, ServerError> = read.await;
    relay::finish(transaction, read.is_ok()).await?;
    let ahead = match read? {
        Run::Inside(ahead) => ahead,
        Run::Beside(beside) => {
            let (edited, scratch) = *beside;
            return Ok(Rows::scratch(scratch, plan.explain_errors(edited, statement)));
        }
    };
    let inlined = plan.inline(statement, &ahead)?;
    drop(ahead);
    let read_only = plan.read_only;
    let rows = inside(statement, &inlined, read_only, transaction).await;
    rows.map(Rows::ready)
        .map_err(plan.explain_errors(inlined.edited, statement))
}

/// The statement's rows, from the home shard's participant.
async fn inside(
    statement: &Statement<'_>,
    inlined: &few::Inlined,
    read_only: bool,
    transaction: &mut Transaction,
) -> Result<RowBatch, ServerError> {
    let home = transaction.participant(statement.snapshot.home()).await?;
    if read_only {
        home.simple(READ_ONLY).await?;
    }
    super::bind(statement, &inlined.edited.text, inlined.arrays(), home)?;
    relay::queue_execute(home, "")?;
    relay::sync(home).await?;
    let mut rows = RowBatch::default();
    let read = async {
        while let Some(batch) = relay::next_rows(home).await? {
            rows.rows += batch.rows;
            rows.bytes.unsplit(batch.bytes);
            if rows.bytes.len() > MOST.1 {
                return Err(too_many());
            }
        }
        Ok(())
    };
    let read = read.await;
    match read {
        Ok(()) => home.drain().await?,
        Err(error) => {
            relay::stop(home).await;
            return Err(error);
        }
    }
    if read_only {
        home.simple(READ_WRITE).await?;
    }
    Ok(rows)
}

fn too_many() -> ServerError {
    ServerError::unsupported(
        "a query over several shards in a transaction that has changed the schema has too many rows",
        "Commit the change first.",
    )
}
