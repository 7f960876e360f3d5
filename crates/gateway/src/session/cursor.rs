//! Cursors in SQL: DECLARE goes where its query goes whole; FETCH, MOVE and CLOSE follow it there.

use super::{Problem, Session, Unit};
use pgherd_model::{ServerError, SqlState};
use pgherd_sql::{Kind, Part, Route};

impl Session {
    /// Runs one of the four.
    pub(crate) async fn cursor(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        match &unit.statement.parsed.kind {
            Kind::Declare { name, hold, inner } => self.declare(unit, name, *hold, inner.clone()).await,
            Kind::Fetch { name, .. } => self.on_cursor(unit, name).await,
            Kind::Close(Some(name)) => self.on_cursor(unit, name).await,
            Kind::Close(None) => {
                if let Some(open) = self.block.open_mut() {
                    open.cursors.clear();
                    for (_, backend) in open.transaction.participants() {
                        backend.simple("CLOSE ALL").await?;
                    }
                }
                self.client.put_tag("CLOSE CURSOR ALL");
                Ok(())
            }
            _ => Err(ServerError::internal("not a cursor statement").into()),
        }
    }

    async fn declare(
        &mut self,
        unit: Unit<'_>,
        name: &str,
        hold: bool,
        inner: std::ops::Range<usize>,
    ) -> Result<(), Problem> {
        if self.block.is_none() && !hold {
            return Err(ServerError::new(
                SqlState::NO_ACTIVE_TRANSACTION,
                "DECLARE CURSOR can only be used in transaction blocks",
            )
            .into());
        }
        if hold {
            return Err(ServerError::unsupported(
                "WITH HOLD cursors are not supported through a gateway yet",
                "Declare the cursor without HOLD, in a transaction block.",
            )
            .into());
        }
        let text = unit.statement.text.clone();
        let head = text.get(..inner.start).unwrap_or_default();
        let statements = self.gateway.cache.parse(text.get(inner.clone()).unwrap_or_default())?;
        let statement = statements
            .first()
            .ok_or_else(|| ServerError::new(SqlState::SYNTAX_ERROR, "syntax error at end of input"))?;
        let entered = self.enter(Unit { statement, ..unit }).await?;
        match entered.analysis.route(&entered.snapshot, &[]) {
            Route::Forward(part) => {
                let shifted = Part {
                    text: format!("{head}{}", part.text).into(),
                    replaced: [].into(),
                    ..part
                };
                self.forward(unit, &entered, &shifted).await?;
                if let Some(open) = self.block.open_mut() {
                    open.cursors.insert(name.to_owned(), shifted.shard);
                }
                Ok(())
            }
            Route::Refuse(error) => Err(error.into()),
            _ => Err(ServerError::unsupported(
                "a cursor over several ranges is not supported yet",
                "Run the query without a cursor; drivers can limit the rows per Execute instead.",
            )
            .into()),
        }
    }

    async fn on_cursor(&mut self, unit: Unit<'_>, name: &str) -> Result<(), Problem> {
        let home = self.gateway.shards.home();
        let shard = self
            .block
            .open()
            .and_then(|open| open.cursors.get(name).copied())
            .unwrap_or(home);
        let part = Part {
            shard,
            text: unit.statement.text.clone(),
            parameters: None,
            fences: vec![],
            replaced: [].into(),
        };
        let entered = self.enter(unit).await?;
        self.forward(unit, &entered, &part).await?;
        if let (Kind::Close(_), Some(open)) = (&unit.statement.parsed.kind, self.block.open_mut()) {
            open.cursors.remove(name);
        }
        Ok(())
    }
}
