//! `CALL pgherd.resolve('gid')`: an operator finishes a transaction that waits between the two phases of its commit, as
//! recovery would. What may be done is the coordinator's to know.

use super::block::notice;
use super::{Problem, Session, Unit};
use pgherd_model::{ServerError, SqlState};
use pgherd_sql::Literal;
use pgherd_transaction::Requester;

impl Session {
    pub(super) async fn resolve_in_doubt(
        &mut self,
        unit: Unit<'_>,
        arguments: &[(Option<String>, Literal)],
    ) -> Result<(), Problem> {
        if self.block.open().is_some() {
            // As COMMIT PREPARED: it is a transaction of its own, which the block could not take back.
            return Err(ServerError::new(
                SqlState::ACTIVE_TRANSACTION,
                "pgherd.resolve cannot run inside a transaction block",
            )
            .into());
        }
        let gid = pgherd_operations::named_transaction(arguments)?;
        // Without a valid lease this gateway does nothing to others' transactions, either.
        let entered = self.enter(unit).await?;
        drop(entered);
        let by = self.requester().await?;
        let resolved = self
            .database
            .coordinator
            .resolve(&gid, &by)
            .await
            .map_err(ServerError::from)?;
        let outcome = if resolved.committed { "committed" } else { "rolled back" };
        self.put_notice(&notice(
            "NOTICE",
            SqlState::SUCCESS,
            &format!("transaction \"{gid}\" was {outcome}"),
        ));
        if !resolved.outstanding.is_empty() {
            let shards: Vec<String> = resolved.outstanding.iter().map(ToString::to_string).collect();
            let warning = notice(
                "WARNING",
                SqlState::from_code("01000"),
                &format!("no answer from shard {}", shards.join(", ")),
            );
            let warning =
                warning.with_detail("Whatever is left of the transaction there is finished when the shard is back.");
            self.put_notice(&warning);
        }
        self.client.put_tag("CALL");
        Ok(())
    }

    /// Who this session is, as the home shard sees it now.
    async fn requester(&mut self) -> Result<Requester, Problem> {
        let sql = "SELECT rolname, rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user";
        let results = self
            .home_backend()
            .await?
            .simple(sql)
            .await
            .map_err(ServerError::from)?;
        let row = results.last();
        let text = |column| row.and_then(|r| r.text(0, column)).unwrap_or_default().to_owned();
        Ok(Requester {
            role: text(0),
            is_superuser: text(1) == "t",
        })
    }
}
