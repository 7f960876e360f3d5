//! LISTEN, UNLISTEN and what comes of NOTIFY.
//!
//! A session that listens keeps a home-shard connection of its own: PostgreSQL does the rest, also between gateways. What
//! it is told goes to the client when no transaction is open: before ReadyForQuery, or while the client is silent.
//!
//! A notification names the process that sent it, and clients compare that with their own. The home shard's process is the
//! sender's session where that listens too, and where it ran NOTIFY or pg_notify() on a connection of the pool that nobody has used
//! since; other numbers (of other gateways, of triggers) name nobody.

use super::{Problem, Session, Unit};
use crate::standing::Keeps;
use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use pgherd_shards::Backend;
use pgherd_sql::Kind;
use std::collections::HashMap;
use std::sync::Arc;

/// The gateway's sessions that listen or notify: process ids that their clients know, by those of their home-shard backends.
#[derive(Default)]
pub(crate) struct Listeners {
    sessions: Mutex<HashMap<i32, i32>>,
}

/// A session's entry; dropped with the session or its connection, or when the connection has another user.
pub(crate) struct Listening {
    listeners: Arc<Listeners>,
    backend: i32,
}

impl Listeners {
    fn enter(self: &Arc<Self>, backend: i32, session: i32) -> Listening {
        self.sessions.lock().insert(backend, session);
        Listening {
            listeners: self.clone(),
            backend,
        }
    }

    /// Before a statement that notifies runs on this connection of the home shard.
    pub(crate) fn note_sender(self: &Arc<Self>, session: i32, backend: &mut Backend) {
        if let Some(entry) = self.sends(backend.process_id(), session) {
            backend.keep_until_reused(Box::new(entry));
        }
    }

    /// The entry of a session that notifies; None where it listens, too.
    fn sends(self: &Arc<Self>, backend: i32, session: i32) -> Option<Listening> {
        let known = self.sessions.lock().contains_key(&backend);
        (!known).then(|| self.enter(backend, session))
    }

    /// A notification's body with its sender as clients know it.
    fn translate(&self, body: &Bytes) -> BytesMut {
        let mut translated = BytesMut::with_capacity(body.len());
        let Some((backend, rest)) = body.split_first_chunk() else {
            return translated;
        };
        let backend = i32::from_be_bytes(*backend);
        let sender = self.sessions.lock().get(&backend).copied().unwrap_or(backend);
        translated.put_i32(sender);
        translated.put_slice(rest);
        translated
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.listeners.sessions.lock().remove(&self.backend);
    }
}

impl Session {
    /// Runs LISTEN or UNLISTEN.
    pub(crate) async fn listen(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        if matches!(unit.statement.parsed.kind, Kind::Unlisten(_)) && self.listening.is_none() {
            self.client.put_tag("UNLISTEN");
            return Ok(());
        }
        self.begin_listening().await?;
        self.judged_by_home(unit).await
    }

    /// A DO block may listen, too.
    pub(crate) async fn listen_within(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        match unit.statement.text.to_ascii_lowercase().contains("listen") {
            true => self.begin_listening().await,
            false => Ok(()),
        }
    }

    async fn begin_listening(&mut self) -> Result<(), Problem> {
        self.pin_home(Keeps::Notifications).await?;
        if self.listening.is_none() {
            let home = self.gateway.shards.home();
            let backend = match self.block.open_mut() {
                Some(open) if open.transaction.enlisted(home) => open.transaction.participant(home).await?.process_id(),
                _ => self.home_backend().await?.process_id(),
            };
            self.listening = Some(self.gateway.listeners.enter(backend, self.cancel.process_id));
        }
        Ok(())
    }

    /// Hands on the notifications that have come, unless a transaction is open.
    pub(crate) fn put_notifications(&mut self) {
        if self.listening.is_none() || !self.block.is_none() {
            return;
        }
        let Some(pin) = &self.who.pin else { return };
        for body in pin.take_notifications() {
            let body = self.gateway.listeners.translate(&body);
            self.client.put(b'A', &body);
        }
    }

    /// What waits for notifications while the client is silent; None for a session that gets none now.
    pub(crate) fn notified(&self) -> Option<Arc<pgherd_shards::Pin>> {
        match self.listening.is_some() && self.block.is_none() && self.gathered.is_empty() {
            true => self.who.pin.clone(),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_that_listen_are_named_as_their_clients_know_them() {
        let listeners = Arc::new(Listeners::default());
        let entry = listeners.enter(4711, 7);
        let body = |sender: i32| Bytes::from([&sender.to_be_bytes()[..], b"channel\0payload\0"].concat());
        assert_eq!(listeners.translate(&body(4711)), body(7));
        assert_eq!(listeners.translate(&body(4712)), body(4712));
        assert!(listeners.sends(4711, 8).is_none(), "it listens there");
        drop(entry);
        assert_eq!(listeners.translate(&body(4711)), body(4711));
        let sender = listeners.sends(4711, 8);
        assert_eq!(listeners.translate(&body(4711)), body(8));
        drop(sender);
        assert_eq!(listeners.translate(&body(4711)), body(4711));
    }
}
