//! Snapshots that sessions share: `pg_export_snapshot()` and SET TRANSACTION SNAPSHOT, as `pg_dump -j` uses them.
//!
//! At REPEATABLE READ what is exported is the transaction's cut over all shards; its name holds the names of the shards' snapshots. At other
//! levels, and while no table is sharded, PostgreSQL's own function answers, and the name is one of the home shard.

use super::enter::changed_under_transaction;
use super::{Problem, Session};
use pgherd_model::{ServerError, SqlState};
use pgherd_transaction::{Isolation, SnapshotName};
use std::collections::BTreeMap;

/// The snapshot has gone, or never was.
const INVALID_IDENTIFIER: &str = "22023";

impl Session {
    /// The name of what the transaction shows; None where PostgreSQL is to say it.
    pub(super) async fn exported_snapshot(&mut self) -> Result<Option<String>, Problem> {
        if self
            .block
            .open()
            .is_none_or(|open| open.implicit || open.overlay.is_some())
        {
            return Ok(None);
        }
        self.check_catalog_is_shown(true)?;
        let epoch = self.catalog().snapshot().epoch.0;
        let Some(open) = self.block.open_mut() else {
            return Ok(None);
        };
        Ok(open
            .transaction
            .export_snapshot(epoch)
            .await?
            .map(|name| name.to_string()))
    }

    /// SET TRANSACTION SNAPSHOT.
    pub(super) async fn import_snapshot(&mut self, text: &str) -> Result<(), Problem> {
        let (catalog, home) = (self.catalog().snapshot(), self.gateway.shards.home());
        let invalid = || {
            ServerError::new(
                SqlState::from_code(INVALID_IDENTIFIER),
                format!("invalid snapshot identifier: \"{text}\""),
            )
        };
        let open = self.block.open_mut().filter(|open| !open.implicit);
        let level = open.as_ref().and_then(|open| open.transaction.mode().isolation);
        let Some(open) = open.filter(|_| level == Some(Isolation::RepeatableRead)) else {
            return Err(wrong_level(level).into());
        };
        if !open.transaction.is_open_repeatable_read() {
            let message = "SET TRANSACTION SNAPSHOT must be called before any query";
            return Err(ServerError::new(SqlState::from_code("25001"), message).into());
        }
        let names = match SnapshotName::parse(text) {
            // Rows of a range that has moved since would be in none of the places where they are looked for.
            Some(name) if name.epoch != catalog.epoch.0 => return Err(changed_under_transaction().into()),
            Some(name) => name.shards,
            None => BTreeMap::from([(home, text.to_owned())]),
        };
        open.first_catalog = Some(catalog);
        open.transaction.import_snapshot(names)?;
        // Whether it is there, PostgreSQL says now.
        match open.transaction.participant(home).await?.simple("SELECT 1").await {
            Err(pgherd_shards::Error::Server(e)) if e.sqlstate().code() == INVALID_IDENTIFIER => Err(invalid().into()),
            Err(e) => Err(ServerError::from(e).into()),
            Ok(_) => Ok(()),
        }
    }
}

fn wrong_level(level: Option<Isolation>) -> ServerError {
    let message = "a snapshot-importing transaction must have isolation level SERIALIZABLE or REPEATABLE READ";
    let error = ServerError::new(SqlState::FEATURE_NOT_SUPPORTED, message);
    match level {
        Some(Isolation::Serializable | Isolation::StrictLocking) => {
            error.with_hint("Through a gateway it must be REPEATABLE READ.")
        }
        _ => error,
    }
}
