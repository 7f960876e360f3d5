//! One raw connection to a shard, checked out by one owner.
//!
//! The owner writes protocol messages into [`Backend::outbox`] (with `postgres_protocol`), sends them in
//! one write with [`Backend::flush`], and reads replies message by message or relays them from
//! [`Backend::inbox`]. Every Sync or Query sent must be told with [`Backend::expect_ready`], so that a
//! connection whose replies nobody has read never goes back to the pool.

use crate::connection::{CancelToken, Connection, Message, TransactionStatus};
use crate::pool::Pool;
use crate::reply::{SimpleResult, parse_data_row, parse_row_description};
use crate::{Error, Pin, Row};
use bytes::BytesMut;
use pgherd_model::{ServerError, ShardId};
use postgres_protocol::message::frontend;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::OwnedSemaphorePermit;

/// A connection in use by one owner. Dropped in a clean state it returns to its pool; in any other it is closed.
pub struct Backend {
    connection: Option<Connection>,
    pool: Arc<Pool>,
    permit: Option<OwnedSemaphorePermit>,
    pin: Option<Arc<Pin>>,
}

impl Backend {
    pub(crate) fn new(mut connection: Connection, pool: Arc<Pool>, permit: OwnedSemaphorePermit) -> Self {
        connection.received = 0;
        connection.until_reused = None;
        Self {
            connection: Some(connection),
            pool,
            permit: Some(permit),
            pin: None,
        }
    }

    fn connection(&self) -> &Connection {
        self.connection
            .as_ref()
            .expect("a backend has its connection until it is dropped")
    }

    fn connection_mut(&mut self) -> &mut Connection {
        self.connection
            .as_mut()
            .expect("a backend has its connection until it is dropped")
    }

    /// The shard it is connected to.
    pub fn shard(&self) -> ShardId {
        self.connection().shard
    }

    /// Bytes that came from the shard since the connection was checked out.
    pub fn received(&self) -> u64 {
        self.connection().received
    }

    /// The transaction status of the last ReadyForQuery.
    pub fn status(&self) -> TransactionStatus {
        self.connection().status
    }

    /// What cancels its statement.
    pub fn cancel_token(&self) -> CancelToken {
        self.connection().cancel.clone()
    }

    /// The backend's process id on the shard.
    pub fn process_id(&self) -> i32 {
        self.connection().cancel.process_id
    }

    /// Keeps this until somebody else checks the connection out, or it is closed.
    pub fn keep_until_reused(&mut self, kept: Box<dyn std::any::Any + Send + Sync>) {
        self.connection_mut().until_reused = Some(kept);
    }

    /// Whether the connection broke.
    pub fn is_broken(&self) -> bool {
        self.connection().broken
    }

    /// Messages to send; see [`postgres_protocol::message::frontend`].
    pub fn outbox(&mut self) -> &mut BytesMut {
        &mut self.connection_mut().outbox
    }

    /// Tells that a Query or Sync was put into the outbox.
    pub fn expect_ready(&mut self) {
        self.connection_mut().awaited += 1;
    }

    /// Whether replies are still to come.
    pub fn is_awaiting(&self) -> bool {
        self.connection().awaited > 0
    }

    /// Queues a statement whose reply nobody wants to see, to travel with the next flush (BEGIN, LOCK TABLE of a
    /// fence). Its error comes from the next read. Only for what may fail without harm to what
    /// is queued behind it: inside a transaction block, a failure fails all that follows.
    pub fn queue_silent(&mut self, sql: &str) {
        let connection = self.connection_mut();
        frontend::query(sql, &mut connection.outbox).expect("gateway statements hold no NUL");
        connection.awaited += 1;
        connection.silent += 1;
    }

    /// Sends the outbox in one write. Where the shard does not take it at once, replies are taken in meanwhile: the notices of a COPY, or
    /// of a long statement, could else fill the connection while the shard waits for them to be read.
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.connection_mut().flush().await
    }

    /// Whether the inbox holds an ErrorResponse that nobody has taken yet.
    pub fn has_error(&self) -> bool {
        let mut rest = &self.connection().inbox[..];
        while let [tag, a, b, c, d, ..] = rest {
            if *tag == b'E' {
                return true;
            }
            let whole = 1 + u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            rest = rest.get(whole..).unwrap_or_default();
        }
        false
    }

    /// Reads more bytes into the inbox.
    pub async fn fill(&mut self) -> Result<(), Error> {
        self.connection_mut().fill().await
    }

    /// Bytes received and not yet taken, for relaying. Whoever takes messages from here tells [`Backend::note`] of
    /// each `Z`, `S` and `A`, and calls [`Backend::skip_silent`] first.
    pub fn inbox(&mut self) -> &mut BytesMut {
        &mut self.connection_mut().inbox
    }

    /// Bookkeeping for a message that was taken from the inbox directly.
    pub fn note(&mut self, tag: u8, body: &[u8]) {
        self.connection_mut().note(tag, body);
    }

    /// Consumes the replies of queued statements; their first error is returned after the last of them ended.
    pub async fn skip_silent(&mut self) -> Result<(), Error> {
        match self.silent_error().await? {
            Some(error) => Err(Error::Server(error)),
            None => Ok(()),
        }
    }

    /// Consumes the replies of queued statements, and returns their first error. What stands behind a failed one in its block fails
    /// with it (25P02): this is the error that says why.
    pub async fn silent_error(&mut self) -> Result<Option<ServerError>, Error> {
        let connection = self.connection_mut();
        let mut failed = None;
        while connection.silent > 0 {
            let message = connection.next_raw().await?;
            match message.tag {
                b'Z' => connection.silent -= 1,
                b'E' => {
                    failed.get_or_insert_with(|| ServerError::from_body(&message.body));
                }
                b'N' => connection.notices.push(ServerError::from_body(&message.body)),
                _ => {}
            }
        }
        Ok(failed)
    }

    /// The next message, after the replies of queued statements. Notices are kept for
    /// [`Backend::take_notices`]; ParameterStatus and notifications are returned like any other.
    pub async fn next_message(&mut self) -> Result<Message, Error> {
        self.skip_silent().await?;
        loop {
            let message = self.connection_mut().next_raw().await?;
            if message.tag != b'N' {
                return Ok(message);
            }
            let notice = ServerError::from_body(&message.body);
            self.connection_mut().notices.push(notice);
        }
    }

    /// Notices that came since the last call.
    pub fn take_notices(&mut self) -> Vec<ServerError> {
        std::mem::take(&mut self.connection_mut().notices)
    }

    /// Reads until no reply is awaited any more; the first error is returned then.
    pub async fn drain(&mut self) -> Result<(), Error> {
        // A queued statement may still wait for one to travel with: nobody would answer it.
        if self.is_awaiting() {
            self.flush().await?;
        }
        let mut failed = self.skip_silent().await.err();
        if matches!(failed, Some(Error::Lost { .. })) {
            return Err(failed.expect("just matched"));
        }
        while self.connection().awaited > 0 {
            let message = self.next_message().await?;
            if message.tag == b'E' && failed.is_none() {
                failed = Some(Error::Server(ServerError::from_body(&message.body)));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Puts a simple Query into the outbox.
    pub fn queue_query(&mut self, sql: &str) -> Result<(), Error> {
        let connection = self.connection_mut();
        frontend::query(sql, &mut connection.outbox).map_err(|e| connection.lost(e))?;
        connection.awaited += 1;
        Ok(())
    }

    /// Runs SQL by the simple protocol and collects all results; on an error the rest is read first.
    pub async fn simple(&mut self, sql: &str) -> Result<Vec<SimpleResult>, Error> {
        self.queue_query(sql)?;
        self.flush().await?;
        self.read_simple().await
    }

    /// Reads until what was asked last has been answered. A time limit that strikes between two messages of the extended protocol is told
    /// at once, with a ReadyForQuery that nobody has asked for: from then on replies are one behind.
    ///
    /// # Errors
    /// [`Error::Lost`] where that does not help.
    pub async fn resynchronise(&mut self) -> Result<(), Error> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        const MOST_BEHIND: usize = 4;
        let token = format!(
            "pgherd-{}-{}",
            self.process_id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        self.queue_query(&format!("SELECT '{token}'"))?;
        self.flush().await?;
        for _ in 0..=MOST_BEHIND {
            match self.read_simple().await {
                Ok(results) if results.iter().any(|result| result.text(0, 0) == Some(&token)) => return Ok(()),
                Ok(_) | Err(Error::Server(_)) => self.expect_ready(),
                Err(lost) => return Err(lost),
            }
        }
        Err(self.connection_mut().lost("its replies are out of step"))
    }

    /// Collects the results of one queued Query, up to its ReadyForQuery.
    pub async fn read_simple(&mut self) -> Result<Vec<SimpleResult>, Error> {
        let (mut results, mut current, mut failed) = (Vec::new(), SimpleResult::default(), None);
        loop {
            let message = self.next_message().await?;
            match message.tag {
                b'T' => current.columns = parse_row_description(message.body),
                b'D' => current.rows.push(parse_data_row(message.body)),
                b'C' => {
                    current.tag = tag_text(&message.body);
                    results.push(std::mem::take(&mut current));
                }
                b'I' => results.push(SimpleResult::default()),
                b'E' => failed = Some(ServerError::from_body(&message.body)),
                b'Z' => return failed.map_or(Ok(results), |e| Err(Error::Server(e))),
                _ => {}
            }
        }
    }

    /// What [`LOGIN_DEFAULTS_SQL`](crate::LOGIN_DEFAULTS_SQL) gives here.
    pub async fn login_defaults(&mut self) -> Result<i64, Error> {
        let results = self.simple(crate::LOGIN_DEFAULTS_SQL).await?;
        let number = results.first().and_then(|r| r.text(0, 0)).and_then(|n| n.parse().ok());
        // 0 is who never asked.
        Ok(number.map_or(1, |n: i64| n | 1))
    }

    /// Runs one statement by the extended protocol with text parameters and text results.
    pub async fn query(&mut self, sql: &str, parameters: &[Option<&str>]) -> Result<Vec<Row>, Error> {
        let connection = self.connection_mut();
        let out = &mut connection.outbox;
        frontend::parse("", sql, [], out).map_err(|e| Error::Lost {
            shard: connection.shard,
            cause: e.to_string(),
        })?;
        let bound = frontend::bind(
            "",
            "",
            [],
            parameters.iter(),
            |value, buf| match value {
                Some(text) => {
                    buf.extend_from_slice(text.as_bytes());
                    Ok(postgres_protocol::IsNull::No)
                }
                None => Ok(postgres_protocol::IsNull::Yes),
            },
            [0],
            out,
        );
        if bound.is_err() {
            return Err(connection.lost("a value is too large to send"));
        }
        frontend::execute("", 0, out).expect("an empty name holds no NUL");
        frontend::sync(out);
        connection.awaited += 1;
        self.flush().await?;
        let results = self.read_extended().await?;
        Ok(results)
    }

    async fn read_extended(&mut self) -> Result<Vec<Row>, Error> {
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            let message = self.next_message().await?;
            match message.tag {
                b'D' => rows.push(parse_data_row(message.body)),
                b'E' => failed = Some(ServerError::from_body(&message.body)),
                b'Z' => return failed.map_or(Ok(rows), |e| Err(Error::Server(e))),
                _ => {}
            }
        }
    }

    /// Whether the prepared statement `s<id>` exists on this connection.
    pub fn has_statement(&self, id: u64) -> bool {
        self.connection().statements.contains(&id)
    }

    /// How many prepared statements exist on this connection.
    pub fn statement_count(&self) -> usize {
        self.connection().statements.len()
    }

    /// Notes that `s<id>` was prepared.
    pub fn add_statement(&mut self, id: u64) {
        self.connection_mut().statements.insert(id);
    }

    /// Notes that `s<id>` is gone.
    pub fn remove_statement(&mut self, id: u64) {
        self.connection_mut().statements.remove(&id);
    }

    /// Notes that all prepared statements are gone (DISCARD ALL, DEALLOCATE ALL), and returns their ids.
    pub fn take_statements(&mut self) -> Vec<u64> {
        self.connection_mut().statements.drain().collect()
    }

    /// The fingerprint of the session settings that were applied here; 0 for the role's own.
    pub fn settings(&self) -> u64 {
        self.connection().settings
    }

    /// Notes the fingerprint of the settings that are now applied.
    pub fn set_settings(&mut self, fingerprint: u64) {
        self.connection_mut().settings = fingerprint;
    }

    /// A parameter that the shard has reported (server_version, TimeZone …).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.connection()
            .parameters
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// All parameters that the shard has reported.
    pub fn parameters(&self) -> &[(String, String)] {
        &self.connection().parameters
    }

    /// The connection belongs to a session from now on: instead of going back to the pool, it waits for the session's next
    /// checkout of this shard.
    pub fn pin(&mut self, pin: Option<Arc<Pin>>) {
        self.pin = pin;
    }

    /// Whether the connection belongs to a session.
    pub fn is_pinned(&self) -> bool {
        self.pin.is_some()
    }

    /// State was left on the connection that no other owner may see (temporary objects, advisory locks …): it will be
    /// closed instead of going back to the pool.
    pub fn taint(&mut self) {
        self.connection_mut().tainted = true;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let (Some(mut connection), Some(permit)) = (self.connection.take(), self.permit.take()) else {
            return;
        };
        // Whoever uses it next is not told what this use has left.
        connection.notices.clear();
        match self.pin.take() {
            Some(pin) if connection.is_kept() => pin.hold(connection, self.pool.clone(), permit),
            Some(pin) => pin.lose(),
            None => self.pool.give_back(connection),
        }
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Backend(shard {}, pid {})", self.shard(), self.process_id())
    }
}

/// The text of a CommandComplete's body.
fn tag_text(body: &[u8]) -> String {
    String::from_utf8_lossy(body.strip_suffix(&[0]).unwrap_or(body)).into_owned()
}
