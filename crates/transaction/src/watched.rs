//! Which of this gateway's transactions have several shards, and what each is at: what the search for deadlocks starts
//! from. A transaction enters when its second shard joins; one that stays on one shard costs nothing.
//!
//! A statement begins when it first asks for a shard, and ends when its session says so. Only the gateway itself cancels
//! a victim, and only while the very statement runs that was found to wait: [`Watched::end`] waits for a cancel request
//! on its way, so that it cannot hit what comes next.

use parking_lot::Mutex;
use pgherd_model::ShardId;
use pgherd_shards::CancelToken;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Unique in this process, so that databases of one gateway cannot take the same.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The transactions over several shards that are open.
#[derive(Default)]
pub(crate) struct Registry(Mutex<BTreeMap<u64, Arc<Watched>>>);

/// One of them.
pub(crate) struct Watched {
    pub number: u64,
    pub started_at: SystemTime,
    inner: Mutex<Inner>,
    /// held while cancel requests are under way
    cancelling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Inner {
    backends: Vec<(ShardId, CancelToken)>,
    /// counts the statements
    statement: u64,
    /// when the present one began
    since: Option<Instant>,
    /// it did not wait a moment ago, so nobody asks before then
    asked_again_at: Option<Instant>,
    /// it was cancelled to end a deadlock: how that came about
    verdict: Option<String>,
}

/// A transaction's place in the registry, until this is dropped.
pub(crate) struct Registration {
    registry: Arc<Registry>,
    pub watched: Arc<Watched>,
}

/// A statement that has run for a while.
pub(crate) struct Slow {
    pub watched: Arc<Watched>,
    pub statement: u64,
    pub backends: Vec<(ShardId, i32)>,
}

impl Registry {
    pub(crate) fn enter(self: &Arc<Self>, started_at: SystemTime) -> Registration {
        let watched = Arc::new(Watched {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            started_at,
            inner: Mutex::default(),
            cancelling: tokio::sync::Mutex::default(),
        });
        self.0.lock().insert(watched.number, watched.clone());
        Registration {
            registry: self.clone(),
            watched,
        }
    }

    /// Those whose present statement has run for longer than `limit`.
    pub(crate) fn slow(&self, limit: Duration) -> Vec<Slow> {
        let watched = self.0.lock();
        watched.values().filter_map(|w| w.slow(limit)).collect()
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<Watched>> {
        self.0.lock().get(&number).cloned()
    }
}

impl Watched {
    /// One more shard takes part.
    pub(crate) fn join(&self, shard: ShardId, token: CancelToken) {
        self.inner.lock().backends.push((shard, token));
    }

    /// A shard's connection is given back.
    pub(crate) async fn leave(&self, shard: ShardId) {
        self.inner.lock().backends.retain(|(s, _)| *s != shard);
        let _none_under_way = self.cancelling.lock().await;
    }

    /// A statement asks for a shard: its first question is its beginning.
    pub(crate) fn begin(&self) {
        let mut inner = self.inner.lock();
        if inner.since.is_none() {
            inner.since = Some(Instant::now());
            inner.asked_again_at = None;
            inner.statement += 1;
            inner.verdict = None;
        }
    }

    /// The statement has ended; why it was cancelled, if it was for a deadlock.
    pub(crate) async fn end(&self) -> Option<String> {
        self.inner.lock().since = None;
        let _none_under_way = self.cancelling.lock().await;
        self.inner.lock().verdict.take()
    }

    fn slow(self: &Arc<Self>, limit: Duration) -> Option<Slow> {
        let inner = self.inner.lock();
        let now = Instant::now();
        let is_slow = inner.since.is_some_and(|since| now.duration_since(since) > limit);
        let is_due = inner.asked_again_at.is_none_or(|at| at <= now);
        (is_slow && is_due).then(|| Slow {
            watched: self.clone(),
            statement: inner.statement,
            backends: inner.backends.iter().map(|(s, t)| (*s, t.process_id())).collect(),
        })
    }

    /// This statement was seen not to wait.
    pub(crate) fn pause(&self, statement: u64, longest: Duration) {
        let mut inner = self.inner.lock();
        if let (Some(since), true) = (inner.since, inner.statement == statement) {
            let pause = (since.elapsed() / 2).min(longest);
            inner.asked_again_at = Some(Instant::now() + pause);
        }
    }

    /// Whether this statement still runs.
    pub(crate) fn is_at(&self, statement: u64) -> bool {
        let inner = self.inner.lock();
        inner.since.is_some() && inner.statement == statement
    }

    /// Cancels the statement on all its shards, if it still runs; whether it does, for the first time.
    pub(crate) async fn cancel(&self, statement: u64, why: &str) -> bool {
        let _one_at_a_time = self.cancelling.lock().await;
        let (tokens, is_first) = {
            let mut inner = self.inner.lock();
            if inner.since.is_none() || inner.statement != statement {
                return false;
            }
            let is_first = inner.verdict.replace(why.into()).is_none();
            (inner.backends.clone(), is_first)
        };
        let requests = tokens.iter().map(async |(shard, token)| {
            if let Err(e) = token.cancel().await {
                tracing::warn!(%shard, "a deadlock's victim could not be cancelled: {e}");
            }
        });
        futures::future::join_all(requests).await;
        is_first
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.0.lock().remove(&self.watched.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_verdict_holds_for_its_statement_only() {
        let registry = Arc::new(Registry::default());
        let registration = registry.enter(SystemTime::now());
        let watched = &registration.watched;
        assert!(registry.slow(Duration::ZERO).is_empty(), "nothing runs");
        watched.begin();
        watched.begin();
        while registry.slow(Duration::ZERO).is_empty() {
            tokio::task::yield_now().await;
        }
        let statement = registry.slow(Duration::ZERO)[0].statement;
        assert!(watched.is_at(statement) && !watched.is_at(statement + 1));
        assert!(!watched.cancel(statement + 1, "of another").await);
        assert!(watched.cancel(statement, "in a circle").await);
        assert!(!watched.cancel(statement, "in a circle").await, "told before");
        assert_eq!(watched.end().await.as_deref(), Some("in a circle"));
        assert!(!watched.cancel(statement, "too late").await);
        watched.begin();
        assert_eq!(watched.end().await, None);
        let number = watched.number;
        drop(registration);
        assert!(registry.get(number).is_none());
    }
}
