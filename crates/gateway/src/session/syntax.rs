//! PostgreSQL parses before it does anything else: text that is no SQL is 42601 also in a failed transaction, and none of a
//! text's statements runs when one of them is wrong.

use super::forward::too_large;
use super::{Problem, Session};
use pgherd_model::ServerError;
use pgherd_shards::UNKNOWN_SETTINGS;
use pgherd_sql::{Kind, Parsed};
use postgres_protocol::message::frontend;

/// Stands before a text that is checked. A Parse message of several statements is refused as soon as all of them are parsed, before
/// PostgreSQL looks at what they mean.
const BEFORE: &str = "SELECT 1;";
/// The function of PostgreSQL's that refuses it then.
const BEHIND_THE_PARSER: &str = "exec_parse_message";

impl Session {
    /// What PostgreSQL's parser says about a text that it cannot parse. The home shard does no more than that.
    pub(crate) async fn check_syntax(&mut self, text: &str) -> Result<(), Problem> {
        let home = self.gateway.shards.home();
        let who = pgherd_shards::Identity {
            pin: None,
            ..self.who.clone()
        };
        let mut backend = self.database.coordinator.autocommit(home, &who).await?;
        if self.block.open().is_some_and(|open| open.has_local_settings) {
            let conforming = if self.settings.escapes_in_strings { "off" } else { "on" };
            backend.set_settings(UNKNOWN_SETTINGS);
            let set = format!("SET standard_conforming_strings = {conforming}");
            backend.simple(&set).await.map_err(ServerError::from)?;
        }
        frontend::parse("", &format!("{BEFORE}{text}"), [], backend.outbox()).map_err(too_large)?;
        frontend::sync(backend.outbox());
        backend.expect_ready();
        match backend.drain().await.map_err(ServerError::from) {
            Err(error) if !is_from(&error, BEHIND_THE_PARSER) => {
                let position = error.fields().position;
                let own = position.map(|p| p.saturating_sub(BEFORE.len() as u32));
                Err(error.with_position(own).into())
            }
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

/// Whether an error was raised in this function of PostgreSQL's.
fn is_from(error: &ServerError, function: &str) -> bool {
    error
        .fields()
        .other
        .iter()
        .any(|(letter, name)| *letter == b'R' && name == function)
}

/// Whether PostgreSQL's parser might refuse a statement: it was not read to its end here.
pub(crate) fn is_doubtful(parsed: &Parsed) -> bool {
    match parsed.kind {
        Kind::Select { .. } | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge => parsed.ast.is_none(),
        Kind::Begin { .. } | Kind::Commit { .. } | Kind::Rollback { .. } => false,
        Kind::Savepoint(_) | Kind::RollbackTo(_) | Kind::Release(_) => false,
        _ => true,
    }
}
