//! CREATE, ALTER and DROP TABLESPACE, and ALTER SYSTEM: what concerns whole servers, on every shard.
//!
//! PostgreSQL does none of it in a transaction, so neither is it atomic here: the home shard comes first, whose word on the
//! statement is the client's, and what CREATE has made is dropped again where a later shard refuses.

use super::{Problem, Session, Unit};
use pgherd_model::{ServerError, ShardId, SqlState, quote_identifier};

impl Session {
    /// Runs the statement on every shard.
    pub(crate) async fn whole_server(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let text = unit.statement.text.clone();
        let words: Vec<String> = unit.statement.parsed.identifiers(&text).take(3).collect();
        let word = |i: usize| words.get(i).map_or("", String::as_str);
        if self.block.open().is_some() {
            // PostgreSQL has its own words for why not.
            return self.judged_by_home(unit).await;
        }
        let shards: Vec<ShardId> = self.gateway.shards.all().iter().map(|s| s.id).collect();
        let mut tag = String::new();
        for (i, shard) in shards.iter().enumerate() {
            match self.on_server(*shard, &text).await {
                Ok(said) if i == 0 => tag = said,
                Ok(_) => {}
                // An earlier attempt came further here than on the home shard.
                Err(error) if i > 0 && word(0) == "drop" && error.sqlstate() == SqlState::UNDEFINED_OBJECT => {}
                Err(error) => {
                    if word(0) == "create" {
                        self.drop_tablespace(word(2), &shards[..i]).await;
                    }
                    return Err(error.into());
                }
            }
        }
        self.client.put_tag(&tag);
        Ok(())
    }

    /// Runs the text on one shard; what the home shard notices goes to the client.
    async fn on_server(&mut self, shard: ShardId, text: &str) -> Result<String, ServerError> {
        let mut backend = self.database.coordinator.autocommit(shard, &self.who).await?;
        self.cancel.slot.start(backend.cancel_token());
        let result = backend.simple(text).await;
        let notices = backend.take_notices();
        if shard == self.gateway.shards.home() {
            notices.iter().for_each(|notice| self.client.put_notice(notice));
        }
        self.cancel.slot.clear();
        Ok(result?.last().map(|r| r.tag.clone()).unwrap_or_default())
    }

    /// Takes back what CREATE TABLESPACE has made on these shards.
    async fn drop_tablespace(&mut self, name: &str, shards: &[ShardId]) {
        let sql = format!("DROP TABLESPACE {}", quote_identifier(name));
        for shard in shards {
            if let Err(error) = self.on_server(*shard, &sql).await {
                tracing::warn!(%shard, "{sql}: {error}");
            }
        }
    }
}
