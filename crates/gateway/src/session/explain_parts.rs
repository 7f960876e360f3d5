//! EXPLAIN of what runs as several statements, one after the other: WITH that writes, RETURNING with subqueries, subqueries that lock.
//! The statement is taken apart as if it ran, and each part gives its plan in place of its rows. Later parts are planned as if
//! the earlier ones had returned nothing.

use super::enter::Entered;
use super::{Problem, Session, Unit};
use crate::explain_text::{Distributed, ShardPlan};
use pgherd_model::ServerError;
use pgherd_sql::{ExplainOptions, Route};
use std::time::Instant;

/// While a statement is taken apart for its plan.
#[derive(Debug, Default)]
pub(crate) struct Explaining {
    /// `EXPLAIN (…) `, for the shards
    head: String,
    parts: Vec<Distributed>,
}

impl Session {
    /// Whether statements give their plans now instead of running.
    pub(crate) fn is_explaining(&self) -> bool {
        self.explaining.is_some()
    }

    /// What a statement by the name of EXPLAIN's does instead of running: it is noted what would run where.
    pub(super) async fn note_part(&mut self, unit: Unit<'_>, entered: &Entered, route: &Route) -> Result<(), Problem> {
        let head = self.explaining.as_ref().map(|e| e.head.clone()).unwrap_or_default();
        let part = self.what_runs_where(unit, entered, route, &head).await?;
        if let Some(explaining) = &mut self.explaining {
            explaining.parts.push(part);
        }
        Ok(())
    }

    /// The plan of a statement in parts; with ANALYZE, what it took when it ran.
    pub(super) async fn explain_in_parts(
        &mut self,
        inner: Unit<'_>,
        options: &ExplainOptions,
    ) -> Result<Distributed, Problem> {
        let began = Instant::now();
        self.explaining = Some(Explaining {
            head: options.head(false),
            ..Explaining::default()
        });
        let taken_apart = Box::pin(self.routed(inner)).await;
        let parts = self.explaining.take().unwrap_or_default().parts;
        taken_apart?;
        let mut distributed = one_after_the_other(parts)?;
        match options.analyze {
            true => self.run_explained(inner, &mut distributed).await?,
            false => distributed.planning_ms = Some(began.elapsed().as_secs_f64() * 1e3),
        }
        Ok(distributed)
    }
}

fn one_after_the_other(parts: Vec<Distributed>) -> Result<Distributed, ServerError> {
    let combine = |(i, part): (usize, &Distributed)| format!("part {}: {}", i + 1, part.combine);
    let combine: Vec<_> = parts.iter().enumerate().map(combine).collect();
    if parts.is_empty() {
        return Err(ServerError::internal("a statement in parts has none"));
    }
    let labelled = |(i, part): (usize, Distributed)| {
        part.shards.into_iter().map(move |shard| ShardPlan {
            relation: Some(match shard.relation {
                Some(relation) => format!("part {}, {relation}", i + 1),
                None => format!("part {}", i + 1),
            }),
            ..shard
        })
    };
    Ok(Distributed {
        tier: "parts",
        reason: "it runs as several statements, one after the other".to_owned(),
        combine: combine.join("; "),
        shards: parts.into_iter().enumerate().flat_map(labelled).collect(),
        ..Distributed::default()
    })
}
