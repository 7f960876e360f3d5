//! Statements that are run in other words: without ONLY where it means nothing, with the transaction's time of one shard
//! where several would give their own, with what the session remembers of sequences.

use super::stored::with_position;
use super::{Problem, Session, Unit};
use crate::statements::Statement;
use pgherd_model::{ServerError, ShardId};
use pgherd_sql::{Analysis, Clock, Instead, Route};
use std::sync::Arc;

impl Session {
    /// Runs what stands in a statement's place; positions of errors are the client's.
    pub(crate) async fn run_instead(&mut self, unit: Unit<'_>, instead: &Instead) -> Result<(), Problem> {
        let statement = &self.in_other_words(unit, instead)?;
        let result = Box::pin(self.routed(Unit { statement, ..unit })).await;
        result.map_err(|problem| in_clients_words(problem, instead))
    }

    /// The same where what stands there may have to be run in other words once more.
    pub(crate) async fn run_all_instead(&mut self, unit: Unit<'_>, instead: &Instead) -> Result<(), Problem> {
        if instead.text == unit.statement.text {
            // It would be put into other words for ever.
            return Err(ServerError::internal("a statement in other words is the same").into());
        }
        let statement = &self.in_other_words(unit, instead)?;
        let result = Box::pin(self.run_by_kind(Unit { statement, ..unit })).await;
        result.map_err(|problem| in_clients_words(problem, instead))
    }

    fn in_other_words(&self, unit: Unit<'_>, instead: &Instead) -> Result<Arc<Statement>, Problem> {
        if unit.template.is_some() {
            return Err(Problem::NeedsWholeText);
        }
        let statements = self.database.cache.parse(&instead.text)?;
        match &statements[..] {
            [statement] => Ok(statement.clone()),
            _ => Err(ServerError::internal("a statement in other words is not one statement").into()),
        }
    }

    /// Whether the statement would take the transaction's time from a shard that is not the transaction's first. Outside
    /// of a block, one shard's own `now()` is PostgreSQL's.
    pub(crate) fn needs_shared_clock(&self, analysis: &Analysis, route: &Route) -> bool {
        if analysis.clock == Clock::None {
            return false;
        }
        let first = self.block.open().map(|open| open.transaction.first_shard());
        match route {
            Route::Forward(part) => first.flatten().is_some_and(|first| first != part.shard),
            Route::Scatter { .. } => first.is_some() || analysis.clock == Clock::Text,
            Route::Defaults { .. } => first.is_some(),
            // The query room sees to it itself.
            Route::Plan | Route::GatherWrite | Route::Refuse(_) => false,
        }
    }

    /// The SET that goes before a statement with the shared clock: it asks the transaction's first shard, which is `shard`
    /// where there is none yet.
    pub(crate) async fn clock_setting(&mut self, shard: ShardId) -> Result<Option<String>, Problem> {
        let Some(open) = self.block.open_mut() else {
            return Ok(None);
        };
        if open.transaction.first_shard().is_none() {
            open.transaction.participant(shard).await?;
        }
        let clock = open.transaction.clock().await?;
        Ok(clock.map(|time| format!("SET LOCAL pgherd.transaction_time TO '{time}'")))
    }
}

fn in_clients_words(problem: Problem, instead: &Instead) -> Problem {
    with_position(problem, |position| position.map(|p| instead.map_position(p)))
}
