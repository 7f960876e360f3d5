//! Subqueries and queries of WITH that lock rows, in a statement that needs several shards: each runs first, as the statement that it
//! is, and its rows stand in its place as constants of their types. A query that locks the rows of its one subquery is such a statement too.
//!
//! PostgreSQL runs such a subquery once as well, where it names nothing of the statement around it. What it has locked nobody
//! changes until the rest of the statement reads it, so that it does not matter that the rest has a snapshot of its own at READ
//! COMMITTED; in one snapshot both are the same.

use super::{Mode, Problem, Session, Unit};
use pgherd_model::{ServerError, quote_identifier};
use pgherd_sql::{LockingSubquery, locked_inside, locking_subqueries};

impl Session {
    /// Runs the statement with its locking subqueries first.
    pub(crate) async fn with_locking_subqueries(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        if let Mode::Extended { max_rows: 1.., .. } = unit.mode {
            return Err(not_first("Its client asks for rows a few at a time.").into());
        }
        // PostgreSQL judges the whole, and settles the types of parameters.
        let snapshot = self.present_snapshot();
        let types = self.description(unit, &snapshot).await?.parameter_types.clone();
        let unit = Unit { types: &types, ..unit };
        let (own, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        let inside = locked_inside(own, tokens).map(|text| self.database.cache.parse(&text));
        let inside = inside.transpose()?;
        let statement = inside.as_ref().and_then(|all| all.first()).unwrap_or(unit.statement);
        let text = statement.text.clone();
        let found = locking_subqueries(&text, &statement.parsed.tokens);
        let made = self.ensure_block();
        let held = self.client.hold_tag();
        let result = self.run_locking_first(unit, &text, &found).await;
        let result = self.end_as_one(held, result);
        self.finish_statement(made, result).await
    }

    async fn run_locking_first(
        &mut self,
        unit: Unit<'_>,
        text: &str,
        found: &[LockingSubquery],
    ) -> Result<(), Problem> {
        let mut whole = String::with_capacity(text.len());
        let mut at = 0;
        for subquery in found {
            if subquery.is_bound {
                return Err(not_first("PostgreSQL would run it as often, and as far, as its rows are needed.").into());
            }
            whole.push_str(&text[at..subquery.body.start]);
            whole.push_str(&self.locked_rows(unit, &text[subquery.body.clone()]).await?);
            at = subquery.body.end;
        }
        whole.push_str(&text[at..]);
        let statements = self.database.cache.parse(&whole)?;
        let [statement] = &statements[..] else {
            return Err(not_first("Its form is not understood.").into());
        };
        Box::pin(self.routed(Unit { statement, ..unit })).await
    }

    /// Runs one; its rows as a query of constants.
    async fn locked_rows(&mut self, unit: Unit<'_>, body: &str) -> Result<String, Problem> {
        let statements = self.database.cache.parse(body)?;
        let [statement] = &statements[..] else {
            return Err(not_first("A subquery of it is not understood.").into());
        };
        let part = Unit {
            statement,
            mode: Mode::HIDDEN,
            ..unit
        };
        let snapshot = self.present_snapshot();
        let columns = match self.description(part, &snapshot).await {
            Ok(description) => description.columns.clone().unwrap_or_default(),
            // It names what only the statement around it has.
            Err(Problem::Error(error)) if error.sqlstate().code().starts_with("42") => {
                return Err(not_first("A subquery that locks rows refers to the query around it.").into());
            }
            Err(other) => return Err(other),
        };
        if columns.is_empty() {
            return Err(not_first("A subquery that locks rows has no columns.").into());
        }
        let rows = self.rows_of(part).await?;
        let rows = self.constants(&columns, rows).await?;
        let names: Vec<_> = columns.iter().map(|c| quote_identifier(&c.name)).collect();
        Ok(format!(
            "SELECT * FROM ({rows}) AS pgherd_locked ({})",
            names.join(", ")
        ))
    }
}

fn not_first(detail: &str) -> ServerError {
    ServerError::unsupported(
        "a subquery that locks rows is not supported here over several shards",
        "Lock the rows in a SELECT of its own, in the same transaction.",
    )
    .with_detail(detail)
}
