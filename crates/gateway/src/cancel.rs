//! Cancel requests: a client's process id and secret lead to the shard statements that its session runs now.

use parking_lot::Mutex;
use pgherd_shards::CancelToken;
use rand::Rng;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// The running statements of one session.
#[derive(Default)]
pub(crate) struct CancelSlot {
    running: Mutex<Vec<CancelToken>>,
    requested: AtomicBool,
}

impl CancelSlot {
    /// The statement starts on these backends; an old request does not hit it.
    pub(crate) fn start(&self, token: CancelToken) {
        let mut running = self.running.lock();
        running.clear();
        running.push(token);
        self.requested.store(false, Ordering::Relaxed);
    }

    /// A statement starts that enlists backends as it goes; these it has already.
    pub(crate) fn start_all(&self, tokens: Vec<CancelToken>) {
        *self.running.lock() = tokens;
        self.requested.store(false, Ordering::Relaxed);
    }

    /// Whether the client asked to cancel since the statement started.
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// It runs on one more backend.
    pub(crate) fn add(&self, token: CancelToken) {
        self.running.lock().push(token);
    }

    /// Nothing runs, or what runs must not be cancelled (a commit).
    pub(crate) fn clear(&self) {
        self.running.lock().clear();
    }
}

/// All sessions of the gateway by process id.
#[derive(Default)]
pub(crate) struct CancelRegistry {
    sessions: Mutex<HashMap<i32, (i32, Arc<CancelSlot>)>>,
    next: AtomicI32,
}

/// A session's entry; dropped with the session.
pub(crate) struct Registered {
    registry: Arc<CancelRegistry>,
    pub(crate) process_id: i32,
    pub(crate) secret: i32,
    pub(crate) slot: Arc<CancelSlot>,
}

impl CancelRegistry {
    pub(crate) fn register(self: &Arc<Self>) -> Registered {
        let slot = Arc::new(CancelSlot::default());
        let secret = rand::rng().random();
        let mut sessions = self.sessions.lock();
        let process_id = loop {
            let id = self.next.fetch_add(1, Ordering::Relaxed) & i32::MAX;
            if id != 0 && !sessions.contains_key(&id) {
                break id;
            }
        };
        sessions.insert(process_id, (secret, slot.clone()));
        Registered {
            registry: self.clone(),
            process_id,
            secret,
            slot,
        }
    }

    /// Cancels what the session runs; unknown ids and wrong secrets do nothing, as in PostgreSQL.
    pub(crate) async fn cancel(&self, process_id: i32, secret: i32) {
        let slot = match self.sessions.lock().get(&process_id) {
            Some((expected, slot)) if *expected == secret => slot.clone(),
            _ => return,
        };
        slot.requested.store(true, Ordering::Relaxed);
        let tokens = slot.running.lock().clone();
        for token in tokens {
            if let Err(error) = token.cancel().await {
                tracing::warn!("a cancel request did not reach its shard: {error}");
            }
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.sessions.lock().remove(&self.process_id);
    }
}
