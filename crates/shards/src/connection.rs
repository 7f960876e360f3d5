//! The connection to a shard itself: its socket, its buffers, and what every message changes in its state. It outlives its
//! checkouts; who has it checked out uses it through [`Backend`](crate::Backend).

use crate::stream::Stream;
use crate::{Error, Identity, ShardConfig};
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use pgherd_model::{ServerError, ShardId, SqlState};
use postgres_protocol::message::{backend, frontend};
use std::collections::HashSet;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

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
    pub(crate) place: Arc<ShardConfig>,
    pub(crate) process_id: i32,
    pub(crate) secret_key: i32,
}

impl CancelToken {
    /// Asks the shard to cancel; returns when the shard has taken the request (not when the statement ended).
    pub async fn cancel(&self) -> std::io::Result<()> {
        let mut stream = Stream::connect(&self.place).await?;
        let mut message = BytesMut::new();
        frontend::cancel_request(self.process_id, self.secret_key, &mut message);
        stream.write_all(&message).await?;
        stream.flush().await?;
        // The server closes when it has sent the signal.
        let _ = stream.read(&mut [0; 1]).await;
        Ok(())
    }

    /// The backend's process id.
    pub fn process_id(&self) -> i32 {
        self.process_id
    }

    /// The shard that it is a process of.
    pub fn shard(&self) -> ShardId {
        self.place.id
    }
}

/// The process ids of open connections by shard.
pub(crate) type Processes = Arc<Mutex<HashSet<(ShardId, i32)>>>;

/// A connection's entry among the open ones; it goes with the connection.
pub(crate) struct Listed {
    processes: Processes,
    process: (ShardId, i32),
}

impl Listed {
    pub(crate) fn new(processes: &Processes, shard: ShardId, process_id: i32) -> Self {
        let process = (shard, process_id);
        processes.lock().insert(process);
        Self {
            processes: processes.clone(),
            process,
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.processes.lock().remove(&self.process);
    }
}

/// The connection itself, which outlives its checkouts.
pub(crate) struct Connection {
    stream: Stream,
    pub(crate) shard: ShardId,
    pub(crate) inbox: BytesMut,
    pub(crate) outbox: BytesMut,
    pub(crate) status: TransactionStatus,
    /// ReadyForQuery messages still to come
    pub(crate) awaited: u32,
    /// of those, the first that belong to queued statements nobody looks at
    pub(crate) silent: u32,
    pub(crate) cancel: CancelToken,
    pub(crate) statements: HashSet<u64>,
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) notices: Vec<ServerError>,
    /// bodies of NotificationResponse messages that nobody has taken yet
    notifications: Vec<Bytes>,
    pub(crate) settings: u64,
    pub(crate) broken: bool,
    pub(crate) tainted: bool,
    /// the how many-th of its pool
    pub(crate) number: u64,
    pub(crate) idle_since: Instant,
    /// bytes read since it was checked out
    pub(crate) received: u64,
    /// dropped when the next owner checks it out
    pub(crate) until_reused: Option<Box<dyn std::any::Any + Send + Sync>>,
    /// its entry among all that are open
    pub(crate) listed: Option<Listed>,
}

impl Connection {
    pub(crate) async fn open(config: &Arc<ShardConfig>, who: &Identity) -> Result<Self, Error> {
        let unreachable = |cause: String| Error::Unreachable {
            shard: config.id,
            name: config.name.clone(),
            address: format!("{}:{}", config.host, config.port),
            cause,
        };
        let stream = Stream::connect(config).await.map_err(|e| unreachable(e.to_string()))?;
        let cancel = CancelToken {
            place: config.clone(),
            process_id: 0,
            secret_key: 0,
        };
        let mut this = Self {
            stream,
            shard: config.id,
            received: 0,
            until_reused: None,
            listed: None,
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
        // No application_name: it would be what a client that gave none is shown of its own.
        let parameters = [("user", &*who.role), ("database", &*who.database)];
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
        self.is_kept() && self.inbox.is_empty() && !self.stream.has_news()
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
            match poll_read(&mut self.stream, &mut self.inbox, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.closed())),
                Poll::Ready(Ok(_)) => self.take_unasked()?,
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

    pub(crate) fn lost(&mut self, cause: impl ToString) -> Error {
        self.broken = true;
        Error::Lost {
            shard: self.shard,
            cause: cause.to_string(),
        }
    }

    fn closed(&mut self) -> Error {
        self.lost("the server closed the connection unexpectedly")
    }

    /// Sends the outbox and meanwhile takes in what comes, so that neither side waits for the other to read.
    pub(crate) async fn flush(&mut self) -> Result<(), Error> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        let (stream, outbox, inbox) = (&mut self.stream, &self.outbox, &mut self.inbox);
        let received = &mut self.received;
        let mut sent = 0;
        let all = std::future::poll_fn(|context| {
            while sent < outbox.len() {
                match std::pin::Pin::new(&mut *stream).poll_write(context, &outbox[sent..]) {
                    Poll::Ready(Ok(n)) if n > 0 => sent += n,
                    Poll::Ready(Ok(_)) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => match poll_read(stream, inbox, context) {
                        Poll::Ready(Ok(0)) => return Poll::Ready(Err(std::io::ErrorKind::UnexpectedEof.into())),
                        Poll::Ready(Ok(read)) => *received += read as u64,
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => return Poll::Pending,
                    },
                }
            }
            Poll::Ready(Ok(()))
        });
        let mut sent = all.await;
        if sent.is_ok() {
            sent = self.stream.flush().await;
        }
        self.outbox.clear();
        sent.map_err(|e| self.lost(e))
    }

    pub(crate) async fn fill(&mut self) -> Result<(), Error> {
        self.inbox.reserve(READ_SIZE);
        match self.stream.read_buf(&mut self.inbox).await {
            Ok(0) => Err(self.closed()),
            Ok(read) => {
                self.received += read as u64;
                Ok(())
            }
            Err(e) => Err(self.lost(e)),
        }
    }

    /// The next message with the bookkeeping that every message needs.
    pub(crate) async fn next_raw(&mut self) -> Result<Message, Error> {
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
    pub(crate) fn note(&mut self, tag: u8, body: &[u8]) {
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

/// Reads what has come, into the inbox; how many bytes, 0 at the end.
fn poll_read(stream: &mut Stream, inbox: &mut BytesMut, context: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
    let mut piece = [0; 4096];
    let mut piece = ReadBuf::new(&mut piece);
    let read = std::pin::Pin::new(stream).poll_read(context, &mut piece);
    read.map_ok(|()| {
        inbox.extend_from_slice(piece.filled());
        piece.filled().len()
    })
}
