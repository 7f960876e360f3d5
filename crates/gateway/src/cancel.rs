//! Cancel requests: a client's process id and secret, or a statement's time limit, lead to the shard statements that its
//! session runs now.

use crate::standing::Standing;
use futures::future::join_all;
use parking_lot::Mutex;
use pgherd_model::ShardId;
use pgherd_shards::{CancelToken, Identity};
use rand::Rng;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Why a statement is to be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// the client asked for it
    Client,
    /// statement_timeout is over
    Timeout,
    /// the session is to end
    Terminated,
}

/// The running statements of one session.
#[derive(Default)]
pub(crate) struct CancelSlot {
    running: Mutex<Running>,
    /// held while requests are under way
    cancelling: tokio::sync::Mutex<()>,
    terminated: AtomicBool,
    /// wakes a session that is to end
    end: Notify,
}

#[derive(Default)]
struct Running {
    tokens: Vec<CancelToken>,
    requested: Option<Why>,
}

impl CancelSlot {
    /// The statement starts on these backends; an old request does not hit it.
    pub(crate) fn start(&self, token: CancelToken) {
        self.start_all([token]);
    }

    /// A statement starts that enlists backends as it goes; these it has already.
    pub(crate) fn start_all(&self, tokens: impl IntoIterator<Item = CancelToken>) {
        let mut running = self.running.lock();
        // In the room of the last statement's: most statements have one token.
        running.tokens.clear();
        running.tokens.extend(tokens);
        // A statement that is put together from several keeps its time limit.
        running.requested = running.requested.filter(|why| *why == Why::Timeout);
    }

    /// Why the statement is to be cancelled, if it is.
    pub(crate) fn requested(&self) -> Option<Why> {
        self.running.lock().requested
    }

    /// Whether the session is to end.
    pub(crate) fn is_terminated(&self) -> bool {
        self.terminated.load(Ordering::Relaxed)
    }

    /// Returns when the session is to end.
    pub(crate) async fn terminated(&self) {
        let told = self.end.notified();
        if !self.is_terminated() {
            told.await;
        }
    }

    /// It runs on one more backend.
    pub(crate) fn add(&self, token: CancelToken) {
        self.running.lock().tokens.push(token);
    }

    /// Nothing runs, or what runs must not be cancelled.
    pub(crate) fn clear(&self) {
        self.running.lock().tokens.clear();
    }

    /// A commit begins, which no request may hit, not even one that is under way.
    pub(crate) async fn close(&self) {
        self.clear();
        let _none_under_way = self.cancelling.lock().await;
    }

    /// Ends the session, and what it runs.
    pub(crate) async fn terminate(&self) {
        self.cancel(Why::Terminated).await;
    }

    fn is_running(&self) -> bool {
        !self.running.lock().tokens.is_empty()
    }

    /// The process of a shard that it runs on now.
    fn process_of(&self, shard: ShardId) -> Option<i32> {
        let running = self.running.lock();
        let token = running.tokens.iter().find(|token| token.shard() == shard)?;
        Some(token.process_id())
    }

    async fn cancel(&self, why: Why) {
        if why == Why::Terminated {
            self.terminated.store(true, Ordering::Relaxed);
            self.end.notify_one();
        }
        let _under_way = self.cancelling.lock().await;
        let tokens = {
            let mut running = self.running.lock();
            running.requested.get_or_insert(why);
            running.tokens.clone()
        };
        for sent in join_all(tokens.iter().map(CancelToken::cancel)).await {
            if let Err(error) = sent {
                tracing::warn!("a cancel request did not reach its shard: {error}");
            }
        }
    }
}

/// Cancels a statement when its time is over. The shards have the same limit, but each knows of its own part only.
pub(crate) struct StatementTimer {
    slot: Arc<CancelSlot>,
    task: JoinHandle<()>,
}

impl StatementTimer {
    pub(crate) fn start(slot: &Arc<CancelSlot>, limit: Duration) -> Self {
        let of_task = slot.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            of_task.cancel(Why::Timeout).await;
        });
        Self {
            slot: slot.clone(),
            task,
        }
    }

    /// The statement has ended; whether its time was over before. Nothing of it hits the next one.
    pub(crate) async fn end(mut self) -> bool {
        self.slot.close().await;
        self.task.abort();
        let _ = (&mut self.task).await;
        self.slot.running.lock().requested.take() == Some(Why::Timeout)
    }
}

impl Drop for StatementTimer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The first process id that is given out: beyond those of operating systems, so that it is never a shard's process.
const FIRST_PROCESS_ID: i32 = 1 << 22;

struct Entry {
    secret: i32,
    role: Arc<str>,
    database: Arc<str>,
    slot: Arc<CancelSlot>,
    standing: Arc<Standing>,
    /// the client's socket, to look at while the session does not read
    socket: Option<RawFd>,
}

/// All sessions of the gateway by process id.
#[derive(Default)]
pub(crate) struct CancelRegistry {
    sessions: Mutex<HashMap<i32, Entry>>,
    next: AtomicI32,
}

/// A session's entry; dropped with the session.
pub(crate) struct Registered {
    registry: Arc<CancelRegistry>,
    pub(crate) process_id: i32,
    pub(crate) secret: i32,
    pub(crate) slot: Arc<CancelSlot>,
    pub(crate) standing: Arc<Standing>,
}

impl CancelRegistry {
    /// Enters a session. `socket` is its client's, and is closed no earlier than what is returned is dropped.
    pub(crate) fn register(self: &Arc<Self>, who: &Identity, socket: Option<RawFd>, standing: Standing) -> Registered {
        let (slot, standing) = (Arc::new(CancelSlot::default()), Arc::new(standing));
        let secret = rand::rng().random();
        let mut sessions = self.sessions.lock();
        let process_id = loop {
            let next = self.next.fetch_add(1, Ordering::Relaxed) & i32::MAX;
            let id = FIRST_PROCESS_ID + next % (i32::MAX - FIRST_PROCESS_ID);
            if !sessions.contains_key(&id) {
                break id;
            }
        };
        let (role, database) = (who.role.clone(), who.database.clone());
        let entry = Entry {
            secret,
            role,
            database,
            slot: slot.clone(),
            standing: standing.clone(),
            socket,
        };
        sessions.insert(process_id, entry);
        Registered {
            registry: self.clone(),
            process_id,
            secret,
            slot,
            standing,
        }
    }

    /// Cancels what the session runs; unknown ids and wrong secrets do nothing, as in PostgreSQL.
    pub(crate) async fn cancel(&self, process_id: i32, secret: i32) {
        let slot = match self.sessions.lock().get(&process_id) {
            Some(entry) if entry.secret == secret => entry.slot.clone(),
            _ => return,
        };
        slot.cancel(Why::Client).await;
    }

    /// The role of a session.
    pub(crate) fn role(&self, process_id: i32) -> Option<Arc<str>> {
        self.sessions.lock().get(&process_id).map(|entry| entry.role.clone())
    }

    /// All sessions, as rows of `pgherd.sessions`; the one that asks is at work, though not on a shard yet.
    pub(crate) fn shown(&self, asking: i32) -> Value {
        self.rows(asking, |entry, is_active| {
            let mut row = entry.standing.shown(is_active);
            row["role"] = json!(&*entry.role);
            row["database"] = json!(&*entry.database);
            row
        })
    }

    /// All sessions, as rows of `pg_stat_activity`, with their process `at` the home shard.
    pub(crate) fn activity(&self, asking: i32, home: ShardId) -> Value {
        self.rows(asking, |entry, is_active| {
            let mut row = entry.standing.activity(is_active);
            row["usename"] = json!(&*entry.role);
            row["datname"] = json!(&*entry.database);
            row["at"] = json!(entry.slot.process_of(home));
            row
        })
    }

    /// A row for each session, of what it is and whether it is at work, with its process id.
    fn rows(&self, asking: i32, row: impl Fn(&Entry, bool) -> Value) -> Value {
        let sessions = self.sessions.lock();
        let rows = sessions.iter().map(|(process_id, entry)| {
            let mut row = row(entry, *process_id == asking || entry.slot.is_running());
            row["pid"] = json!(process_id);
            row
        });
        Value::Array(rows.collect())
    }

    /// The sessions by process id, with their roles and with their processes at the home shard, as far as they have one now.
    pub(crate) fn roles(&self, home: ShardId) -> Vec<(i32, Arc<str>, Option<i32>)> {
        let sessions = self.sessions.lock();
        let all = sessions.iter().map(|(process_id, entry)| {
            let at = entry.slot.process_of(home).or_else(|| entry.standing.home_process());
            (*process_id, entry.role.clone(), at)
        });
        all.collect()
    }

    /// How many sessions a database has.
    pub(crate) fn sessions_of(&self, database: &str) -> usize {
        self.sessions_where(|_, of| of == database)
    }

    /// How many sessions there are of such a role and database.
    pub(crate) fn sessions_where(&self, wanted: impl Fn(&str, &str) -> bool) -> usize {
        let sessions = self.sessions.lock();
        sessions
            .values()
            .filter(|entry| wanted(&entry.role, &entry.database))
            .count()
    }

    /// The sessions that run something on shards, and whose client's socket is like that.
    pub(crate) fn running(&self, wanted: impl Fn(BorrowedFd<'_>) -> bool) -> Vec<Arc<CancelSlot>> {
        let sessions = self.sessions.lock();
        let running = sessions.values().filter(|entry| entry.slot.is_running());
        let found = running.filter(|entry| entry.socket.is_some_and(|socket| wanted(borrow(socket))));
        found.map(|entry| entry.slot.clone()).collect()
    }

    /// [`CancelRegistry::signal`] for all sessions of a database.
    pub(crate) async fn signal_database(&self, database: &str, why: Why) {
        let of = |entry: &&Entry| &*entry.database == database;
        let slots: Vec<_> = self
            .sessions
            .lock()
            .values()
            .filter(of)
            .map(|e| e.slot.clone())
            .collect();
        join_all(slots.iter().map(|slot| slot.cancel(why))).await;
    }

    /// Cancels what a session runs, for one who may, or ends the session.
    pub(crate) async fn signal(&self, process_id: i32, why: Why) {
        let slot = self.sessions.lock().get(&process_id).map(|entry| entry.slot.clone());
        if let Some(slot) = slot {
            slot.cancel(why).await;
        }
    }
}

/// A session's socket, while the list of sessions is locked. A second descriptor for each client would be safe without saying so, and
/// halve how many clients there can be.
#[expect(
    unsafe_code,
    reason = "the descriptor is open: its entry leaves the list before the client is dropped"
)]
fn borrow<'a>(socket: RawFd) -> BorrowedFd<'a> {
    // SAFETY: see above, and `Session`, whose entry is dropped before its client.
    unsafe { BorrowedFd::borrow_raw(socket) }
}

impl Registered {
    /// Takes this process id, unless another session has it.
    pub(crate) fn take_process_id(&mut self, process_id: i32) {
        let mut sessions = self.registry.sessions.lock();
        if !sessions.contains_key(&process_id)
            && let Some(entry) = sessions.remove(&self.process_id)
        {
            sessions.insert(process_id, entry);
            self.process_id = process_id;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.sessions.lock().remove(&self.process_id);
    }
}
