//! PostgreSQL parses before it does anything else: text that is no SQL is 42601 also in a failed transaction, and none of a
//! text's statements runs when one of them is wrong.

use super::{Problem, Session};
use pgherd_model::{ServerError, SqlState};
use pgherd_sql::Kind;

impl Session {
    /// 42601 if PostgreSQL cannot parse the text: asked in a failed transaction of the home shard, where it does no more than
    /// that.
    pub(crate) async fn check_syntax(&mut self, text: &str) -> Result<(), Problem> {
        let home = self.gateway.shards.home();
        let who = pgherd_shards::Identity {
            pin: None,
            ..self.who.clone()
        };
        let mut backend = self.database.coordinator.autocommit(home, &who).await?;
        // It fails with 22012, which is what it is for.
        let _ = backend.simple("BEGIN; SELECT 1 / 0").await;
        let said = backend.simple(text).await.err().map(ServerError::from);
        backend.simple("ROLLBACK").await?;
        match said {
            Some(error) if error.sqlstate() == SqlState::SYNTAX_ERROR => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// In a failed block: 42601 for what is no SQL, else 25P02.
    pub(crate) async fn refuse_in_failed(&mut self, text: &str) -> Result<(), Problem> {
        if self.block.is_failed() {
            self.check_syntax(text).await?;
        }
        Ok(self.check_not_failed()?)
    }
}

/// Whether PostgreSQL's parser might refuse a statement of this kind.
pub(crate) fn is_doubtful(kind: &Kind) -> bool {
    matches!(kind, Kind::Other)
}
