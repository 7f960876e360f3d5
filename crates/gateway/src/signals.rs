//! Signals to sessions whose process ids a statement computes: `pg_terminate_backend(pid)` over `pg_stat_activity`.
//!
//! A shard cannot end a gateway's session. The functions of schema `pgherd` that stand for PostgreSQL's say in a message which session is
//! meant, at the moment when PostgreSQL would signal its process; the message is for the gateway, which acts on it.

use crate::cancel::{CancelRegistry, Why};
use pgherd_model::ServerError;
use std::collections::HashSet;
use std::sync::Arc;

/// The SQLSTATE of such a message.
const SIGNAL: &str = "PH002";

/// What a statement may signal. Anybody can raise a message like these, so it holds which sessions the role may signal at all.
pub(crate) struct Signals {
    registry: Arc<CancelRegistry>,
    allowed: HashSet<i32>,
}

impl Signals {
    pub(crate) fn new(registry: Arc<CancelRegistry>, allowed: HashSet<i32>) -> Self {
        Self { registry, allowed }
    }

    /// Whether the message is a signal, which is sent then.
    pub(crate) fn take(&self, notice: &ServerError) -> bool {
        if notice.sqlstate().code() != SIGNAL {
            return false;
        }
        let told = notice.fields().message.split_once(' ');
        let Some((why, process_id)) = told.and_then(|(why, id)| Some((why_of(why)?, id.parse().ok()?))) else {
            return false;
        };
        if !self.allowed.contains(&process_id) {
            return false;
        }
        let registry = self.registry.clone();
        // The session that is meant may be the one that reads this.
        tokio::spawn(async move { registry.signal(process_id, why).await });
        true
    }
}

fn why_of(word: &str) -> Option<Why> {
    match word {
        "terminate" => Some(Why::Terminated),
        "cancel" => Some(Why::Client),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_model::SqlState;

    #[tokio::test]
    async fn only_signals_that_are_allowed_are_taken() {
        let signals = Signals::new(Arc::default(), HashSet::from([7]));
        let takes = |code, message: &str| signals.take(&ServerError::new(SqlState::from_code(code), message));
        assert!(takes(SIGNAL, "terminate 7"));
        assert!(takes(SIGNAL, "cancel 7"));
        assert!(!takes(SIGNAL, "terminate 8"));
        assert!(!takes(SIGNAL, "stop 7"));
        assert!(!takes("00000", "terminate 7"));
    }
}
