//! What `pgherd.sessions` and `pg_stat_activity` show of a session: where its client is, what it is at, and what keeps a connection to the home shard for it.

use parking_lot::Mutex;
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

/// Bytes of a statement that `pg_stat_activity` shows, as PostgreSQL does by default.
const SHOWN_OF_QUERY: usize = 1023;

/// The last statement, and when things happened.
struct Doing {
    /// as much of it as is shown; the room is kept
    query: String,
    query_start: Option<SystemTime>,
    xact_start: Option<SystemTime>,
    state_change: SystemTime,
    application_name: String,
    /// of the settings that have this name
    fingerprint: u64,
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
    doing: Mutex<Doing>,
}

impl Standing {
    pub(crate) fn new(client: Option<SocketAddr>) -> Self {
        Self {
            client,
            since: SystemTime::now(),
            status: AtomicU8::new(b'I'),
            keeps: AtomicU8::new(0),
            home_process: AtomicI32::new(0),
            doing: Mutex::new(Doing {
                query: String::new(),
                query_start: None,
                xact_start: None,
                state_change: SystemTime::now(),
                application_name: String::new(),
                fingerprint: 0,
            }),
        }
    }

    /// ReadyForQuery is said, with this letter. The application's name is asked for where the settings are not those whose name is known.
    pub(crate) fn ready(&self, letter: u8, fingerprint: u64, application_name: impl FnOnce() -> String) {
        self.status.store(letter, Ordering::Relaxed);
        let mut doing = self.doing.lock();
        doing.state_change = SystemTime::now();
        if letter == b'I' {
            doing.xact_start = None;
        }
        if doing.fingerprint != fingerprint {
            doing.application_name = application_name();
            doing.fingerprint = fingerprint;
        }
    }

    /// The client has sent a statement.
    pub(crate) fn begin(&self, query: &str) {
        let now = SystemTime::now();
        let mut doing = self.doing.lock();
        doing.query.clear();
        doing.query.push_str(shown_text(query));
        doing.query_start = Some(now);
        doing.state_change = now;
        doing.xact_start.get_or_insert(now);
    }

    /// The application's name under these settings.
    pub(crate) fn set_name(&self, name: String, fingerprint: u64) {
        let mut doing = self.doing.lock();
        doing.application_name = name;
        doing.fingerprint = fingerprint;
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

    /// The kept connection's process on the home shard.
    pub(crate) fn home_process(&self) -> Option<i32> {
        let process = self.home_process.load(Ordering::Relaxed);
        (process != 0).then_some(process)
    }

    /// The columns of `pg_stat_activity` that are in here; times are in seconds.
    pub(crate) fn activity(&self, is_active: bool) -> Value {
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let doing = self.doing.lock();
        json!({
            "client_addr": self.client.map(|client| client.ip().to_canonical().to_string()),
            "client_port": self.client.map_or(-1, |client| i32::from(client.port())),
            "backend_start": seconds(self.since),
            "xact_start": doing.xact_start.map(seconds),
            "query_start": doing.query_start.map(seconds),
            "state_change": seconds(doing.state_change),
            "state": self.state(is_active),
            "application_name": doing.application_name,
            "query": doing.query,
        })
    }

    fn state(&self, is_active: bool) -> &'static str {
        match (is_active, self.status.load(Ordering::Relaxed)) {
            (true, _) => "active",
            (false, b'T') => "idle in transaction",
            (false, b'E') => "idle in transaction (aborted)",
            (false, _) => "idle",
        }
    }

    /// The columns of `pgherd.sessions` that are in here; the time is in seconds.
    pub(crate) fn shown(&self, is_active: bool) -> Value {
        let bits = self.keeps.load(Ordering::Relaxed);
        let reasons = Keeps::ALL.into_iter().filter(|why| bits & *why as u8 != 0);
        json!({
            "client_addr": self.client.map(|client| client.ip().to_canonical().to_string()),
            "client_port": self.client.map(|client| client.port()),
            "started_at": self.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            "state": self.state(is_active),
            "pinned": bits != 0,
            "pinned_by": reasons.map(Keeps::name).collect::<Vec<_>>(),
            "home_pid": self.home_process(),
        })
    }
}

/// As much of a statement as is shown.
fn shown_text(query: &str) -> &str {
    let mut end = query.len().min(SHOWN_OF_QUERY);
    while !query.is_char_boundary(end) {
        end -= 1;
    }
    &query[..end]
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
        standing.ready(b'E', 0, String::new);
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
