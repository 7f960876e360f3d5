//! One raw connection to a shard, checked out by one owner.
//!
//! The owner writes protocol messages into [`Backend::outbox`] (with `postgres_protocol`), sends them in
//! one write with [`Backend::flush`], and reads replies message by message or relays them from
//! [`Backend::inbox`]. Every Sync or Query sent must be told with [`Backend::expect_ready`], so that a
//! connection whose replies nobody has read never goes back to the pool.

use crate::pool::Pool;
use crate::reply::{SimpleResult, parse_data_row, parse_row_description};
use crate::stream::Stream;
use crate::{Error, Identity, Pin, Row, ShardConfig};
use bytes::{Buf, Bytes, BytesMut};
use pgherd_model::{ServerError, ShardId, SqlState};
use postgres_protocol::message::{backend, frontend};
use std::collections::HashSet;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

/// How much room a read gets at least.
const READ_SIZE: usize = 16 * 1024;

/// The letter of the last ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionStatus {
    /// I
    Idle,
    /// T
    InBlock,
    /// E
    Failed,
}

/// A whole message: its letter and its body (without letter and length).
#[derive(Debug, Clone)]
pub struct Message {
    /// the type letter
    pub tag: u8,
    /// the body
    pub body: Bytes,
}

/// What cancels the statement that a connection is running.
#[derive(Debug, Clone)]
pub struct CancelToken {
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
    pub(crate) process_id: i32,
    pub(crate) secret_key: i32,
}

impl CancelToken {
    /// Asks the shard to cancel; returns when the shard has taken the request (not when the statement ended).
    pub async fn cancel(&self) -> std::io::Result<()> {
        let mut stream = Stream::connect(&self.host, self.port).await?;
        let mut message = BytesMut::new();
        frontend::cancel_request(self.process_id, self.secret_key, &mut message);
        stream.write_all(&message).await?;
        // The server closes when it has sent the signal.
        let _ = stream.read(&mut [0; 1]).await;
        Ok(())
    }

    /// The backend's process id.
    pub fn process_id(&self) -> i32 {
        self.process_id
    }
}

/// The connection itself, which outlives its checkouts.
pub(crate) struct Connection {
    stream: Stream,
    shard: ShardId,
    inbox: BytesMut,
    outbox: BytesMut,
    status: TransactionStatus,
    /// ReadyForQuery messages still to come
    awaited: u32,
    /// of those, the first that belong to queued statements nobody looks at
    silent: u32,
    cancel: CancelToken,
    statements: HashSet<u64>,
    parameters: Vec<(String, String)>,
    notices: Vec<ServerError>,
    /// bodies of NotificationResponse messages that nobody has taken yet
    notifications: Vec<Bytes>,
    settings: u64,
    broken: bool,
    tainted: bool,
    /// the how many-th of its pool
    pub(crate) number: u64,
    pub(crate) idle_since: Instant,
    /// bytes read since it was checked out
    received: u64,
}

impl Connection {
    pub(crate) async fn open(config: &ShardConfig, who: &Identity) -> Result<Self, Error> {
        let unreachable = |cause: String| Error::Unreachable {
            shard: config.id,
            name: config.name.clone(),
            address: format!("{}:{}", config.host, config.port),
            cause,
        };
        let stream = Stream::connect(&config.host, config.port)
            .await
            .map_err(|e| unreachable(e.to_string()))?;
        let cancel = CancelToken {
            host: config.host.as_str().into(),
            port: config.port,
            process_id: 0,
            secret_key: 0,
        };
        let mut this = Self {
            stream,
            shard: config.id,
            received: 0,
            inbox: BytesMut::with_capacity(READ_SIZE),
            outbox: BytesMut::with_capacity(1024),
            status: TransactionStatus::Idle,
            awaited: 1,
            silent: 0,
            cancel,
            statements: HashSet::new(),
            parameters: Vec::new(),
            notices: Vec::new(),
            notifications: Vec::new(),
            settings: 0,
            broken: false,
            tainted: false,
            number: 0,
            idle_since: Instant::now(),
        };
        let parameters = [
            ("user", &*who.role),
            ("database", &*who.database),
            ("application_name", "pgherd"),
        ];
        frontend::startup_message(parameters, &mut this.outbox).map_err(|e| unreachable(e.to_string()))?;
        this.flush().await.map_err(|e| unreachable(e.to_string()))?;
        loop {
            let message = match this.next_raw().await {
                Err(Error::Lost { cause, .. }) => return Err(unreachable(cause)),
                other => other?,
            };
            match message.tag {
                b'Z' => return Ok(this),
                b'K' if message.body.len() >= 8 => {
                    let mut body = message.body;
                    this.cancel.process_id = body.get_i32();
                    this.cancel.secret_key = body.get_i32();
                }
                b'R' if message.body.starts_with(&[0, 0, 0, 0]) => {}
                b'R' => {
                    return Err(Error::Server(
                        ServerError::new(
                            SqlState::INVALID_AUTHORIZATION,
                            format!("shard {} asks for a password for role \"{}\"", config.name, who.role),
                        )
                        .with_hint("Gateways log in as the client's role: allow it in the shard's pg_hba.conf by peer, cert or trust on the gateway's connection."),
                    ));
                }
                b'E' => return Err(Error::Server(ServerError::from_body(&message.body))),
                _ => {}
            }
        }
    }

    /// Whether it can serve another owner.
    pub(crate) fn is_reusable(&self) -> bool {
        !self.broken
            && !self.tainted
            && self.awaited == 0
            && self.status == TransactionStatus::Idle
            && self.outbox.is_empty()
            && self.inbox.is_empty()
            && !self.stream.has_news()
    }

    /// Whether its session can go on with it. What the shard says unasked (notifications) may be there already.
    pub(crate) fn is_kept(&self) -> bool {
        !self.broken
            && !self.tainted
            && self.awaited == 0
            && self.status == TransactionStatus::Idle
            && self.outbox.is_empty()
    }

    pub(crate) fn process_id(&self) -> i32 {
        self.cancel.process_id
    }

    pub(crate) fn take_notifications(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.notifications)
    }

    /// Reads what the shard says unasked. Ready when notifications are there, or when the shard has ended the connection.
    pub(crate) fn poll_unasked(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            if !self.notifications.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let mut piece = [0; 4096];
            let mut piece = ReadBuf::new(&mut piece);
            match std::pin::Pin::new(&mut self.stream).poll_read(context, &mut piece) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if piece.filled().is_empty() => {
                    return Poll::Ready(Err(self.lost("the server closed the connection unexpectedly")));
                }
                Poll::Ready(Ok(())) => {
                    self.inbox.extend_from_slice(piece.filled());
                    self.take_unasked()?;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.lost(error))),
            }
        }
    }

    /// Takes the whole messages of the inbox, where no reply is awaited.
    fn take_unasked(&mut self) -> Result<(), Error> {
        while let Some(header) = backend::Header::parse(&self.inbox).map_err(|e| self.lost(e))? {
            let whole = header.len() as usize + 1;
            if self.inbox.len() < whole {
                break;
            }
            let body = self.inbox.split_to(whole).freeze().slice(5..);
            match header.tag() {
                // Only an end of the connection is an error that comes unasked.
                b'E' => {
                    self.broken = true;
                    return Err(Error::Server(ServerError::from_body(&body)));
                }
                tag => self.note(tag, &body),
            }
        }
        Ok(())
    }

    fn lost(&mut self, cause: impl ToString) -> Error {
        self.broken = true;
        Error::Lost {
            shard: self.shard,
            cause: cause.to_string(),
        }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        let sent = self.stream.write_all(&self.outbox).await;
        self.outbox.clear();
        sent.map_err(|e| self.lost(e))
    }

    /// Sends the outbox and meanwhile takes in what comes, so that neither side waits for the other to read.
    async fn flush_listening(&mut self) -> Result<(), Error> {
        let (stream, outbox, inbox) = (&mut self.stream, &self.outbox, &mut self.inbox);
        let mut sent = 0;
        let all = std::future::poll_fn(|context| {
            while sent < outbox.len() {
                match std::pin::Pin::new(&mut *stream).poll_write(context, &outbox[sent..]) {
                    Poll::Ready(Ok(n)) if n > 0 => sent += n,
                    Poll::Ready(Ok(_)) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        let mut piece = [0; 4096];
                        let mut piece = ReadBuf::new(&mut piece);
                        match std::pin::Pin::new(&mut *stream).poll_read(context, &mut piece) {
                            Poll::Ready(Ok(())) if piece.filled().is_empty() => {
                                return Poll::Ready(Err(std::io::ErrorKind::UnexpectedEof.into()));
                            }
                            Poll::Ready(Ok(())) => inbox.extend_from_slice(piece.filled()),
                            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                            Poll::Pending => return Poll::Pending,
                        }
                    }
                }
            }
            Poll::Ready(Ok(()))
        });
        let sent = all.await;
        self.outbox.clear();
        sent.map_err(|e| self.lost(e))
    }

    async fn fill(&mut self) -> Result<(), Error> {
        self.inbox.reserve(READ_SIZE);
        match self.stream.read_buf(&mut self.inbox).await {
            Ok(0) => Err(self.lost("the server closed the connection unexpectedly")),
            Ok(read) => {
                self.received += read as u64;
                Ok(())
            }
            Err(e) => Err(self.lost(e)),
        }
    }

    /// The next message with the bookkeeping that every message needs.
    async fn next_raw(&mut self) -> Result<Message, Error> {
        loop {
            let header = backend::Header::parse(&self.inbox).map_err(|e| self.lost(e))?;
            match header {
                Some(header) if self.inbox.len() > header.len() as usize => {
                    let mut whole = self.inbox.split_to(header.len() as usize + 1).freeze();
                    whole.advance(5);
                    let message = Message {
                        tag: header.tag(),
                        body: whole,
                    };
                    self.note(message.tag, &message.body);
                    return Ok(message);
                }
                _ => self.fill().await?,
            }
        }
    }

    /// What every message changes in the connection's own state.
    fn note(&mut self, tag: u8, body: &[u8]) {
        match tag {
            b'Z' => {
                self.awaited = self.awaited.saturating_sub(1);
                self.status = match body.first() {
                    Some(b'T') => TransactionStatus::InBlock,
                    Some(b'E') => TransactionStatus::Failed,
                    _ => TransactionStatus::Idle,
                };
            }
            b'S' => {
                let mut parts = body.split(|&b| b == 0).map(|p| String::from_utf8_lossy(p).into_owned());
                if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
                    self.parameters.retain(|(n, _)| *n != name);
                    self.parameters.push((name, value));
                }
            }
            b'A' => self.notifications.push(Bytes::copy_from_slice(body)),
            _ => {}
        }
    }
}

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

    /// Sends the outbox in one write.
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.connection_mut().flush().await
    }

    /// Sends the outbox like [`Backend::flush`], taking in replies meanwhile: for a COPY, whose notices could else fill
    /// the connection while the shard waits for them to be read.
    pub async fn flush_listening(&mut self) -> Result<(), Error> {
        self.connection_mut().flush_listening().await
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
        failed.map_or(Ok(()), |e| Err(Error::Server(e)))
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

    /// State was left on the connection that no other owner may see (temporary objects, advisory locks …): it will be
    /// closed instead of going back to the pool.
    pub fn taint(&mut self) {
        self.connection_mut().tainted = true;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let (Some(connection), Some(permit)) = (self.connection.take(), self.permit.take()) else {
            return;
        };
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
