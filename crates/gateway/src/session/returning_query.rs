//! RETURNING with subqueries, where the statement needs several shards: what is written becomes a query of WITH that returns the
//! columns which the list names, and the list a query over its rows. Both see the same of the tables in PostgreSQL: what was there
//! before the statement.

use super::{Mode, Problem, Session, Unit};
use pgherd_model::{ServerError, quote_identifier};
use pgherd_sql::{ReturningQuery, returning_query};

impl Session {
    /// Runs such a statement as a WITH that writes.
    pub(crate) async fn with_returning_query(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let text = unit.statement.text.clone();
        let parts = returning_query(&text, &unit.statement.parsed.tokens)
            .ok_or_else(|| ServerError::internal("RETURNING has no subquery any more"))?;
        // PostgreSQL judges the whole, and settles the types of parameters.
        let snapshot = self.present_snapshot();
        let types = self.description(unit, &snapshot).await?.parameter_types.clone();
        let unit = Unit { types: &types, ..unit };
        let instead = self.as_with(unit, &text, &parts).await?;
        let statements = self.database.cache.parse(&instead)?;
        let [statement] = &statements[..] else {
            return Err(ServerError::internal("a WITH that stands for RETURNING is not one statement").into());
        };
        let held = self.client.hold_tag();
        let result = Box::pin(self.routed(Unit { statement, ..unit })).await;
        let tag = self.end_as_one(held, result)?;
        let tag = tag.map(|tag| {
            let rows = tag.rsplit(' ').next().unwrap_or("0");
            match parts.verb {
                "INSERT" => format!("INSERT 0 {rows}"),
                verb => format!("{verb} {rows}"),
            }
        });
        self.finish_statement(false, Ok(tag)).await
    }

    /// `WITH …, pgherd_written AS (INSERT … RETURNING a, b) SELECT list FROM pgherd_written AS t`
    async fn as_with(&mut self, unit: Unit<'_>, text: &str, parts: &ReturningQuery) -> Result<String, Problem> {
        let (with, write) = (&text[parts.with.clone()], &text[parts.write.clone()]);
        let statements = self.database.cache.parse(&format!("{with} {write} RETURNING *"))?;
        let [statement] = &statements[..] else {
            return Err(ServerError::internal("a statement with RETURNING * is not one statement").into());
        };
        let all = Unit {
            statement,
            mode: Mode::HIDDEN,
            ..unit
        };
        let snapshot = self.present_snapshot();
        let columns = self
            .description(all, &snapshot)
            .await?
            .columns
            .clone()
            .unwrap_or_default();
        // Only what the list names: the role may be allowed no more.
        let named = |name: &String| parts.all || parts.names.contains(name);
        let names = columns.iter().map(|c| &c.name).filter(|name| named(name));
        let mut names: Vec<_> = names.map(|name| quote_identifier(name).to_string()).collect();
        if names.is_empty() {
            names.push("1 AS pgherd_one".to_owned());
        }
        let with = match with {
            "" => "WITH".to_owned(),
            with => format!("{with},"),
        };
        Ok(format!(
            "{with} pgherd_written AS ({write} RETURNING {}) SELECT {} FROM pgherd_written AS {}",
            names.join(", "),
            parts.list_sql(text),
            quote_identifier(&parts.alias)
        ))
    }
}
