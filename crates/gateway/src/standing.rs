//! What `pgherd.sessions` shows of a session: where its client is, what it is at, and what keeps a connection to the home shard for it.

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Why a session keeps a connection to the home shard between transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeps {
    TemporaryTables = 1,
    SequenceValues = 2,
    Notifications = 4,
    HeldCursors = 8,
    AdvisoryLocks = 16,
    /// `pgherd.pool_mode = session`
    Always = 32,
}

impl Keeps {
    const ALL: [Self; 6] = [
        Self::TemporaryTables,
        Self::SequenceValues,
        Self::Notifications,
        Self::HeldCursors,
        Self::AdvisoryLocks,
        Self::Always,
    ];

    /// What takes away of this kind what others left on the connection.
    pub(crate) fn reset(self) -> &'static str {
        match self {
            Self::TemporaryTables => "DISCARD TEMP",
            Self::SequenceValues => "DISCARD SEQUENCES",
            Self::Notifications => "UNLISTEN *",
            Self::HeldCursors => "CLOSE ALL",
            Self::AdvisoryLocks => "SELECT pg_catalog.pg_advisory_unlock_all()",
            Self::Always => "DISCARD TEMP; DISCARD SEQUENCES",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::TemporaryTables => "temporary tables",
            Self::SequenceValues => "sequence values",
            Self::Notifications => "LISTEN",
            Self::HeldCursors => "cursors WITH HOLD",
            Self::AdvisoryLocks => "advisory locks",
            Self::Always => "pgherd.pool_mode",
        }
    }
}

/// One session's.
pub(crate) struct Standing {
    client: Option<SocketAddr>,
    since: SystemTime,
    /// the last ReadyForQuery's letter
    status: AtomicU8,
    /// [`Keeps`], as bits
    keeps: AtomicU8,
    /// the kept connection's process on the home shard
    home_process: AtomicI32,
}

impl Standing {
    pub(crate) fn new(client: Option<SocketAddr>) -> Self {
        Self {
            client,
            since: SystemTime::now(),
            status: AtomicU8::new(b'I'),
            keeps: AtomicU8::new(0),
            home_process: AtomicI32::new(0),
        }
    }

    pub(crate) fn set_status(&self, letter: u8) {
        self.status.store(letter, Ordering::Relaxed);
    }

    /// The session keeps its connection for this, too.
    pub(crate) fn keeps(&self, why: Keeps) {
        self.keeps.fetch_or(why as u8, Ordering::Relaxed);
    }

    pub(crate) fn set_home_process(&self, process_id: i32) {
        self.home_process.store(process_id, Ordering::Relaxed);
    }

    /// It keeps none any more.
    pub(crate) fn keeps_nothing(&self) {
        self.keeps.store(0, Ordering::Relaxed);
        self.set_home_process(0);
    }

    /// The columns of `pgherd.sessions` that are in here; the time is in seconds.
    pub(crate) fn shown(&self, is_active: bool) -> Value {
        let bits = self.keeps.load(Ordering::Relaxed);
        let reasons = Keeps::ALL.into_iter().filter(|why| bits & *why as u8 != 0);
        let process = self.home_process.load(Ordering::Relaxed);
        let state = match (is_active, self.status.load(Ordering::Relaxed)) {
            (true, _) => "active",
            (false, b'T') => "idle in transaction",
            (false, b'E') => "idle in transaction (aborted)",
            (false, _) => "idle",
        };
        json!({
            "client_addr": self.client.map(|client| client.ip().to_canonical().to_string()),
            "client_port": self.client.map(|client| client.port()),
            "started_at": self.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            "state": state,
            "pinned": bits != 0,
            "pinned_by": reasons.map(Keeps::name).collect::<Vec<_>>(),
            "home_pid": (process != 0).then_some(process),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_add_up_until_nothing_is_kept() {
        let standing = Standing::new(None);
        standing.keeps(Keeps::AdvisoryLocks);
        standing.keeps(Keeps::TemporaryTables);
        standing.set_home_process(7);
        standing.set_status(b'E');
        let shown = standing.shown(false);
        assert_eq!(shown["pinned_by"], json!(["temporary tables", "advisory locks"]));
        assert_eq!(
            (&shown["pinned"], &shown["home_pid"], &shown["state"]),
            (&json!(true), &json!(7), &json!("idle in transaction (aborted)"))
        );
        standing.keeps_nothing();
        let shown = standing.shown(true);
        assert_eq!((&shown["pinned_by"], &shown["home_pid"]), (&json!([]), &Value::Null));
        assert_eq!((&shown["pinned"], &shown["state"]), (&json!(false), &json!("active")));
    }
}
