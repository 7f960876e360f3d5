//! A client's own two phases: PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED. What happens on the shards is the
//! transaction room's; here is what a session may say when, as PostgreSQL has it.

use super::block::{Ending, notice};
use super::{Mode, Problem, Session, Unit};
use pgherd_model::{ServerError, SqlState};
use pgherd_sql::Kind;
use pgherd_transaction::prepared::End;

impl Session {
    /// Runs a statement of these kinds. `Ok(false)`: not one of them.
    pub(crate) async fn two_phases(&mut self, unit: Unit<'_>) -> Result<bool, Problem> {
        let (name, end) = match &unit.statement.parsed.kind {
            Kind::PrepareTransaction(name) => (name, None),
            Kind::CommitPrepared(name) => (name, Some(End::Commit)),
            Kind::RollbackPrepared(name) => (name, Some(End::RollBack)),
            _ => return Ok(false),
        };
        let name = name.as_deref().ok_or_else(|| {
            ServerError::unsupported(
                "this way to write a transaction identifier is not supported",
                "Write it as a plain string constant.",
            )
        })?;
        match end {
            None => self.prepare_transaction(unit, name).await?,
            Some(end) => self.end_prepared(unit, name, end).await?,
        }
        Ok(true)
    }

    async fn prepare_transaction(&mut self, unit: Unit<'_>, name: &str) -> Result<(), Problem> {
        let outside = self.block.open().is_none_or(|open| open.implicit);
        if outside {
            let message = "there is no transaction in progress";
            self.put_notice(&notice("WARNING", SqlState::NO_ACTIVE_TRANSACTION, message));
        }
        let tag = if self.block.is_none() {
            "ROLLBACK"
        } else if outside && !matches!(unit.mode, Mode::Simple) {
            // Only statements of one text have a block that can be prepared. Those of a pipeline are committed, whatever the tag says.
            self.commit_block().await?;
            "ROLLBACK"
        } else if self.block.is_failed() {
            self.rollback_block().await?;
            "ROLLBACK"
        } else {
            if self.block.open().is_some_and(|open| open.change.is_some()) {
                self.rollback_block().await?;
                return Err(ServerError::unsupported(
                    "PREPARE TRANSACTION of a transaction that changed the schema is not supported yet",
                    "Change the schema in a transaction of its own.",
                )
                .into());
            }
            self.end_block(Ending::Prepare(name)).await?
        };
        self.client.put_tag(tag);
        Ok(())
    }

    async fn end_prepared(&mut self, unit: Unit<'_>, name: &str, end: End) -> Result<(), Problem> {
        self.refuse_in_failed(&unit.statement.text).await?;
        let tag = match end {
            End::Commit => "COMMIT PREPARED",
            End::RollBack => "ROLLBACK PREPARED",
        };
        if !self.block.is_none() {
            let message = format!("{tag} cannot run inside a transaction block");
            return Err(ServerError::new(SqlState::ACTIVE_TRANSACTION, message).into());
        }
        let role = self.ask_home("SELECT current_user").await?;
        let role = role.last().and_then(|r| r.text(0, 0)).map(str::to_owned);
        let role = role.ok_or_else(|| ServerError::internal("the home shard does not say who asks"))?;
        // Only a gateway with a lease acts.
        let entered = self.enter(unit).await?;
        self.database.coordinator.end_prepared(name, &role, end).await?;
        drop(entered);
        self.client.put_tag(tag);
        Ok(())
    }
}
