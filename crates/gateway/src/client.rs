//! The client's side of a session: messages in, bytes out. One write per batch of replies.

mod converting;
mod put;
mod styles;

use crate::encoding::values::Shapes;
use crate::signals::Signals;
use crate::tls::{self, Encrypted, EncryptedStream, Tls};
use bytes::{Bytes, BytesMut};
use converting::Converter;
use pgherd_model::{ServerError, SqlState};
use pgwire::error::PgWireError;
use pgwire::messages::{DecodeContext, PgWireFrontendMessage, ProtocolVersion};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) use put::format_of;
pub(crate) use styles::Styles;

/// Replies are sent when this much has gathered, also in the middle of a statement.
pub(crate) const FLUSH_AT: usize = 64 * 1024;

/// The largest message from a client that has not logged in, as in PostgreSQL.
const BEFORE_LOGIN: usize = 65_535;

/// A connection, encrypted or not.
enum Stream {
    Plain(TcpStream),
    Tls(Box<EncryptedStream>),
    /// in the middle of a handshake, or after one that failed
    None,
}

impl Stream {
    async fn read(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read_buf(into).await,
            Self::Tls(stream) => stream.read_buf(into).await,
            Self::None => Ok(0),
        }
    }

    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0),
            Self::None => None,
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Self::None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// A client's connection with its buffers.
pub(crate) struct Client {
    stream: Stream,
    encrypted: Option<Encrypted>,
    inbox: BytesMut,
    /// a message that is to come again
    put_back: Option<PgWireFrontendMessage>,
    /// replies not yet sent
    pub(crate) out: BytesMut,
    /// how often some were sent
    sendings: u64,
    context: DecodeContext,
    max_message_bytes: usize,
    /// None for UTF8
    encoding: Option<Converter>,
    /// replies are kept back
    discarding: Option<Discarded>,
    /// CommandComplete is kept back
    held_tag: Option<Option<String>>,
    /// messages that are signals to sessions, and not for the client
    pub(crate) signals: Option<Signals>,
    /// replaced when one of them changes
    pub(crate) styles: Arc<Styles>,
    /// of types, where text inside of binary values is converted
    pub(crate) shapes: Shapes,
}

/// Replies that the client does not get.
#[derive(Debug, Default)]
pub(crate) struct Discarded {
    /// where they begin among those that it gets
    from: usize,
    /// how many bytes
    pub(crate) bytes: u64,
    /// of the last CommandComplete
    pub(crate) tag: String,
    /// they are wanted
    wanted: bool,
}

/// What reading from a client can end with.
pub(crate) enum Gone {
    /// closed, or broken
    Closed,
    /// it sent what is no message; it is told and cut off
    Garbage(ServerError),
    /// a statement that is no UTF-8, by the simple protocol or not; it is told, and goes on
    Text((ServerError, bool)),
    /// data of a COPY that is none in the client's encoding; behind an error of the COPY it means nothing
    Data(ServerError),
    /// a function call, which pgwire does not know; the body of the message
    FunctionCall(Bytes),
}

impl Client {
    /// The client's end of the connection and this gateway's.
    pub(crate) fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let socket = self.stream.socket()?;
        Some((socket.peer_addr().ok()?, socket.local_addr().ok()?))
    }

    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream: Stream::Plain(stream),
            encrypted: None,
            inbox: BytesMut::with_capacity(8 * 1024),
            put_back: None,
            out: BytesMut::with_capacity(8 * 1024),
            sendings: 0,
            context: DecodeContext::new(ProtocolVersion::PROTOCOL3_0),
            max_message_bytes: BEFORE_LOGIN,
            encoding: None,
            discarding: None,
            held_tag: None,
            signals: None,
            styles: Arc::default(),
            shapes: Shapes::default(),
        }
    }

    /// The socket, which is open as long as this is not dropped.
    pub(crate) fn socket(&self) -> Option<RawFd> {
        match &self.stream {
            Stream::Plain(stream) => Some(stream.as_raw_fd()),
            Stream::Tls(stream) => Some(stream.get_ref().0.as_raw_fd()),
            Stream::None => None,
        }
    }

    /// Takes messages up to this size, once the client is known.
    pub(crate) fn allow_messages_of(&mut self, max_message_bytes: usize) {
        self.max_message_bytes = max_message_bytes;
    }

    /// What is known of an encrypted connection.
    pub(crate) fn encrypted(&self) -> Option<&Encrypted> {
        self.encrypted.as_ref()
    }

    /// Encrypts the connection, for a client that was just told that it may begin.
    ///
    /// Errors: it sent more than its request, which could have been put there by somebody else; or the handshake failed.
    pub(crate) async fn encrypt(&mut self, tls: &Tls) -> Result<(), Gone> {
        if !self.inbox.is_empty() {
            return Err(Gone::Garbage(tls::data_before_handshake()));
        }
        let Stream::Plain(stream) = std::mem::replace(&mut self.stream, Stream::None) else {
            return Err(Gone::Closed);
        };
        let (stream, encrypted) = tls.accept(stream).await.map_err(|e| {
            tracing::info!("a client's TLS handshake failed: {e}");
            Gone::Closed
        })?;
        self.stream = Stream::Tls(Box::new(EncryptedStream(stream)));
        self.encrypted = Some(encrypted);
        Ok(())
    }

    /// What the decoder expects next; the start-up changes it.
    pub(crate) fn context_mut(&mut self) -> &mut DecodeContext {
        &mut self.context
    }

    /// Whether a whole message is there already, so that replies can wait for its.
    pub(crate) fn has_message(&self) -> bool {
        self.put_back.is_some() || self.has_whole_message()
    }

    fn has_whole_message(&self) -> bool {
        self.inbox.len() >= 5 && {
            let length = u32::from_be_bytes([self.inbox[1], self.inbox[2], self.inbox[3], self.inbox[4]]);
            self.inbox.len() > length as usize
        }
    }

    /// The next message is this one.
    pub(crate) fn put_back(&mut self, message: PgWireFrontendMessage) {
        self.put_back = Some(message);
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Result<PgWireFrontendMessage, Gone> {
        if let Some(message) = self.put_back.take() {
            return Ok(message);
        }
        loop {
            self.check_length()?;
            self.check_text()?;
            self.convert_message()?;
            self.check_function_call()?;
            match self.decode() {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(PgWireError::InvalidMessageType(letter)) => {
                    return Err(Gone::Garbage(ServerError::new(
                        SqlState::PROTOCOL_VIOLATION,
                        format!("invalid frontend message type {letter}"),
                    )));
                }
                Err(PgWireError::InvalidElementCount(..)) => {
                    return Err(Gone::Garbage(ServerError::new(
                        SqlState::PROTOCOL_VIOLATION,
                        "insufficient data left in message",
                    )));
                }
                Err(error) => {
                    return Err(Gone::Garbage(ServerError::new(
                        SqlState::PROTOCOL_VIOLATION,
                        error.to_string(),
                    )));
                }
            }
            self.inbox.reserve(8 * 1024);
            match self.stream.read(&mut self.inbox).await {
                Ok(n) if n > 0 => {}
                _ => return Err(Gone::Closed),
            }
        }
    }

    /// Decodes one whole message, on its own, so that lying counts inside cannot reach into the next one. pgwire
    /// panics where a body ends too early; that is a protocol error, not the session's end.
    fn decode(&mut self) -> Result<Option<PgWireFrontendMessage>, PgWireError> {
        if self.context.awaiting_frontend_ssl || self.context.awaiting_frontend_startup {
            let (inbox, context) = (&mut self.inbox, &self.context);
            let decoding = std::panic::AssertUnwindSafe(|| PgWireFrontendMessage::decode(inbox, context));
            return std::panic::catch_unwind(decoding).unwrap_or(Err(PgWireError::InvalidStartupMessage));
        }
        if !self.has_whole_message() {
            return Ok(None);
        }
        let length = u32::from_be_bytes([self.inbox[1], self.inbox[2], self.inbox[3], self.inbox[4]]) as usize;
        let mut message = self.inbox.split_to(1 + length);
        let context = &self.context;
        let decoding = std::panic::AssertUnwindSafe(|| PgWireFrontendMessage::decode(&mut message, context));
        match std::panic::catch_unwind(decoding) {
            Ok(Ok(None)) | Err(_) => Err(PgWireError::InvalidElementCount(0, 0, 0)),
            Ok(decoded) => decoded,
        }
    }

    /// Refuses a message before its body is gathered, so that a length field cannot take memory.
    fn check_length(&self) -> Result<(), Gone> {
        if self.context.awaiting_frontend_ssl || self.context.awaiting_frontend_startup || self.inbox.len() < 5 {
            return Ok(());
        }
        let length = i32::from_be_bytes([self.inbox[1], self.inbox[2], self.inbox[3], self.inbox[4]]);
        if length < 4 {
            return Err(Gone::Garbage(ServerError::new(
                SqlState::PROTOCOL_VIOLATION,
                "invalid message length",
            )));
        }
        if length as usize > self.max_message_bytes {
            return Err(Gone::Garbage(
                ServerError::new(
                    SqlState::PROGRAM_LIMIT_EXCEEDED,
                    format!(
                        "a message of {length} bytes exceeds the limit of {} bytes",
                        self.max_message_bytes
                    ),
                )
                .with_hint("Raise max_message_bytes in the gateway's configuration, or use COPY for bulk data."),
            ));
        }
        Ok(())
    }

    /// A statement with bytes that are no UTF-8 is taken out and refused, as PostgreSQL does; decoding it would replace them.
    fn check_text(&mut self) -> Result<(), Gone> {
        if self.context.awaiting_frontend_startup
            || self.encoding.is_some()
            || !matches!(self.inbox.first(), Some(b'Q' | b'P'))
            || !self.has_whole_message()
        {
            return Ok(());
        }
        let length = u32::from_be_bytes([self.inbox[1], self.inbox[2], self.inbox[3], self.inbox[4]]) as usize;
        let body = &self.inbox[5..1 + length];
        // Query is one string; Parse is a name and a text, then numbers.
        let strings = if self.inbox[0] == b'Q' { 1 } else { 2 };
        let end = body
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == 0)
            .nth(strings - 1)
            .map_or(body.len(), |(i, _)| i);
        let Err(error) = std::str::from_utf8(&body[..end]) else {
            return Ok(());
        };
        let at = error.valid_up_to();
        let bytes: Vec<_> = body[at..(at + error.error_len().unwrap_or(1)).min(end)]
            .iter()
            .map(|b| format!("0x{b:02x}"))
            .collect();
        let message = format!("invalid byte sequence for encoding \"UTF8\": {}", bytes.join(" "));
        let simple = strings == 1;
        let _ = self.inbox.split_to(1 + length);
        Err(Gone::Text((
            ServerError::new(SqlState::from_code("22021"), message),
            simple,
        )))
    }

    /// Takes out a function call of a client that has logged in.
    fn check_function_call(&mut self) -> Result<(), Gone> {
        let starting = self.context.awaiting_frontend_ssl || self.context.awaiting_frontend_startup;
        if starting || self.inbox.first() != Some(&b'F') || !self.has_whole_message() {
            return Ok(());
        }
        let length = u32::from_be_bytes([self.inbox[1], self.inbox[2], self.inbox[3], self.inbox[4]]) as usize;
        let message = self.inbox.split_to(1 + length).freeze();
        Err(Gone::FunctionCall(message.slice(5..)))
    }

    /// Where in its replies the client is. Equal later, nothing was put for it, or sent, in between.
    pub(crate) fn position(&self) -> (u64, usize) {
        (self.sendings, self.out.len())
    }

    /// Sends what has gathered.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        if self.discarding.as_ref().is_some_and(|d| d.wanted) {
            return Ok(());
        }
        if let Some(discarded) = &mut self.discarding {
            discarded.bytes += (self.out.len() - discarded.from) as u64;
            self.out.truncate(discarded.from);
            return Ok(());
        }
        if !self.out.is_empty() {
            // In the middle of a reply nothing is left to do but to end it.
            let inconvertible = self.convert().err();
            if let Some(error) = &inconvertible {
                self.put_error(&error.clone().fatal());
            }
            self.sendings += 1;
            let sent = self.stream.write(&self.out).await;
            self.out.clear();
            if let Some(converter) = &mut self.encoding {
                converter.done = 0;
            }
            if let Some(error) = inconvertible {
                return Err(io::Error::other(error.to_string()));
            }
            // A single huge reply must not keep its memory for the session's life.
            if self.out.capacity() > 4 * FLUSH_AT {
                self.out = BytesMut::with_capacity(8 * 1024);
            }
            sent?;
        }
        Ok(())
    }

    /// Throws away what is put from here on.
    pub(crate) fn discard(&mut self) {
        self.discarding = Some(Discarded {
            from: self.out.len(),
            ..Discarded::default()
        });
    }

    /// The end of that, and what there was.
    pub(crate) fn keep(&mut self) -> Discarded {
        let mut discarded = self.discarding.take().unwrap_or_default();
        discarded.bytes += (self.out.len() - discarded.from) as u64;
        self.out.truncate(discarded.from);
        discarded
    }

    /// Keeps back what is put from here on; returns what was being kept back before.
    pub(crate) fn capture(&mut self) -> Option<Discarded> {
        self.discarding.replace(Discarded {
            from: self.out.len(),
            wanted: true,
            ..Discarded::default()
        })
    }

    /// The end of that: the messages.
    pub(crate) fn captured(&mut self, before: Option<Discarded>) -> BytesMut {
        let from = std::mem::replace(&mut self.discarding, before).map_or(self.out.len(), |d| d.from);
        self.out.split_off(from)
    }

    /// Keeps back the tag of what runs now, which is a part of something; returns what was kept back before.
    pub(crate) fn hold_tag(&mut self) -> Option<Option<String>> {
        self.held_tag.replace(None)
    }

    /// The last tag since then.
    pub(crate) fn release_tag(&mut self, before: Option<Option<String>>) -> Option<String> {
        std::mem::replace(&mut self.held_tag, before).flatten()
    }

    pub(crate) fn is_discarding(&self) -> bool {
        self.discarding.is_some()
    }

    /// Sends when much has gathered.
    pub(crate) async fn flush_if_large(&mut self) -> io::Result<()> {
        if self.out.len() >= FLUSH_AT {
            self.flush().await
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod fuzz;
