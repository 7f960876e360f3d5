//! A statement as a gather reads it: views expanded, every relation found, and what the home shard says of them.

use super::source::{self, Resolution};
use super::staged;
use super::versions;
use crate::metadata::{self, Metadata};
use crate::plan::engine::Engine;
use crate::statement::Statement;
use crate::views::{self, ParsedQuery, Which};
use crate::{Transaction, refusal};
use pgherd_model::{ServerError, Table};
use std::sync::Arc;

/// The statement, read once for all ways of gathering.
pub(crate) struct Reading {
    pub parsed: ParsedQuery,
    /// views were expanded, so positions mean nothing to the client
    pub has_views: bool,
    /// a function that must run in the transaction itself
    pub home_function: Option<&'static str>,
    /// numbers are drawn from sequences: in the transaction itself, if its rows can travel to it
    pub draws: bool,
    /// where the relation that is to have a column more is named now
    pub(super) target: Option<usize>,
    pub(super) resolutions: Vec<Resolution>,
}

impl Reading {
    /// Reads it. `target` is the byte at which a relation is named that is to have a column more. Errors: 0A000 for what no gather can
    /// answer.
    pub fn of(statement: &Statement<'_>, target: Option<usize>) -> Result<Self, ServerError> {
        let expanded = views::expand(statement, target, Which::NotEverywhere)?;
        refusal::check(&expanded.parsed)?;
        Ok(Self {
            resolutions: source::resolve(statement, &expanded.parsed)?,
            has_views: expanded.has_views,
            home_function: refusal::home_function(&expanded.parsed),
            draws: refusal::draws(&expanded.parsed),
            target: expanded.at,
            parsed: expanded.parsed,
        })
    }

    /// Reads a SELECT that the gateway has made of a statement's; None where it does not understand it.
    pub(super) fn instead(statement: &Statement<'_>, text: &str) -> Result<Option<Self>, ServerError> {
        let Ok(parsed) = views::parse_query(text) else {
            return Ok(None);
        };
        Ok(Some(Self {
            home_function: None,
            draws: false,
            resolutions: source::resolve(statement, &parsed)?,
            parsed,
            has_views: true,
            target: None,
        }))
    }

    /// Whether it has to run in the transaction itself, where the rows can travel to it.
    pub fn runs_inside(&self, statement: &Statement<'_>) -> bool {
        statement.schema_is_own || self.home_function.is_some() || self.draws
    }

    /// Whether its list has a relation's `xmin`.
    pub fn shows_versions(&self) -> bool {
        versions::find(&self.parsed).is_some_and(|found| !found.is_empty())
    }

    /// How many rows each relation has, roughly, as far as they are sharded.
    pub async fn rows(&self, transaction: &Transaction, engine: &Engine) -> Result<Vec<f64>, ServerError> {
        staged::sizes::total_rows(&self.resolutions, transaction, engine).await
    }

    /// What the home shard says of the relations and functions. Where only a new epoch can change it, it is asked once.
    pub async fn metadata(
        &self,
        statement: &Statement<'_>,
        transaction: &mut Transaction,
        engine: Option<&Engine>,
    ) -> Result<Metadata, ServerError> {
        // Where pg_catalog is no longer searched first, another session may write the types of its columns in other words.
        let told = statement.told_by_epoch && !statement.search_path.iter().any(|schema| &**schema == "pg_catalog");
        let engine = engine.filter(|_| told);
        if let Some(known) = engine.and_then(|engine| self.remembered(statement, engine)) {
            return Ok(known);
        }
        let names: Vec<String> = self.resolutions.iter().map(|r| r.lookup.clone()).collect();
        let home = transaction.participant(statement.snapshot.home()).await?;
        let metadata = metadata::read(home, &names, &self.parsed.words).await?;
        if let Some(engine) = engine {
            for (resolution, relation) in self.resolutions.iter().zip(&metadata.relations) {
                if let (Some(table), Some(relation)) = (sharded(resolution), relation)
                    && relation.is_self_contained()
                {
                    engine.learn_relation(table, statement.snapshot.epoch, relation.clone());
                }
            }
        }
        Ok(metadata)
    }

    fn remembered(&self, statement: &Statement<'_>, engine: &Engine) -> Option<Metadata> {
        let epoch = statement.snapshot.epoch;
        let relation = |r| {
            engine
                .relation_of(sharded(r)?, epoch)
                .map(|known| Some((*known).clone()))
        };
        Some(Metadata {
            relations: self.resolutions.iter().map(relation).collect::<Option<_>>()?,
            // Nothing in such relations travels as text.
            text_is_exact: true,
            ..Metadata::default()
        })
    }
}

fn sharded(resolution: &Resolution) -> Option<&Arc<Table>> {
    resolution.table.as_ref().filter(|table| table.sharded().is_some())
}
