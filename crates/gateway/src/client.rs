//! The client's side of a session: messages in, bytes out. One write per batch of replies.

use crate::encoding::binary_copy::BinaryCopy;
use crate::encoding::values::Shapes;
use crate::encoding::{Column, Encoding};
use crate::signals::Signals;
use crate::tls::{self, Encrypted, Tls};
use bytes::{BufMut, Bytes, BytesMut};
use pgherd_model::{ServerError, SqlState};
use pgwire::error::PgWireError;
use pgwire::messages::{DecodeContext, PgWireFrontendMessage, ProtocolVersion};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Replies are sent when this much has gathered, also in the middle of a statement.
pub(crate) const FLUSH_AT: usize = 64 * 1024;

/// The largest message from a client that has not logged in, as in PostgreSQL.
const BEFORE_LOGIN: usize = 65_535;

/// A connection, encrypted or not.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
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

/// The settings that decide how constants of dates, times and intervals are read, as the client was told of them.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Styles {
    date: String,
    time_zone: String,
    interval: String,
}

impl Styles {
    /// The settings by their names.
    pub(crate) fn named(&self) -> [(&'static str, &str); 3] {
        [
            ("DateStyle", &self.date),
            ("TimeZone", &self.time_zone),
            ("IntervalStyle", &self.interval),
        ]
    }

    fn place(&mut self, name: &str) -> Option<&mut String> {
        match name {
            "DateStyle" => Some(&mut self.date),
            "TimeZone" => Some(&mut self.time_zone),
            "IntervalStyle" => Some(&mut self.interval),
            _ => None,
        }
    }
}

/// How a client with another encoding is spoken to.
struct Converter {
    encoding: Arc<Encoding>,
    /// so much of `out` is converted already
    done: usize,
    /// what the present rows are like
    columns: Vec<Column>,
    /// COPY FROM STDIN: the beginning of a character at the end of the last message
    begun: Vec<u8>,
    /// a COPY in binary is under way
    binary_copy: Option<BinaryCopy>,
}

impl Converter {
    /// A message of COPY data without the beginning of a character at its end, which goes to the next one; where the data ends
    /// in the middle of a character, it is left for the conversion to refuse.
    fn completed(&mut self, message: BytesMut) -> BytesMut {
        if self.binary_copy.is_some() {
            return message;
        }
        let body = match message.first() {
            Some(b'd') => &message[5..],
            Some(b'c') if !self.begun.is_empty() => &[],
            _ => {
                self.begun.clear();
                return message;
            }
        };
        let is_last = message[0] == b'c';
        let mut data = std::mem::take(&mut self.begun);
        data.extend_from_slice(body);
        if !is_last {
            self.begun = data.split_off(data.len() - self.encoding.incomplete(&data));
        }
        let mut whole = BytesMut::with_capacity(data.len() + 10);
        whole.put_u8(b'd');
        whole.put_u32(data.len() as u32 + 4);
        whole.put_slice(&data);
        whole
    }
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

    /// From now on, this is the client's encoding.
    pub(crate) fn set_encoding(&mut self, encoding: Option<Arc<Encoding>>) -> Result<(), ServerError> {
        self.convert()?;
        self.encoding = encoding.map(|encoding| Converter {
            encoding,
            done: self.out.len(),
            columns: Vec::new(),
            begun: Vec::new(),
            binary_copy: None,
        });
        Ok(())
    }

    /// What the next rows are like that come without a RowDescription.
    pub(crate) fn expect_columns(&mut self, columns: Vec<Column>) -> Result<(), ServerError> {
        self.convert()?;
        if let Some(converter) = &mut self.encoding {
            converter.columns = columns;
        }
        Ok(())
    }

    /// From now on, data of COPY is in binary, and of columns of these types; None: no longer.
    pub(crate) fn expect_binary_copy(&mut self, types: Option<Vec<u32>>) -> Result<(), ServerError> {
        self.convert()?;
        if let Some(converter) = &mut self.encoding {
            converter.binary_copy = types.map(BinaryCopy::new);
        }
        Ok(())
    }

    /// Puts what has gathered into the client's encoding. What has no equivalent there is an error: the replies before
    /// it are left, and nothing from there on.
    pub(crate) fn convert(&mut self) -> Result<(), ServerError> {
        // What is a part's is read here.
        let is_captured = self.discarding.as_ref().is_some_and(|d| d.wanted);
        let Some(converter) = self.encoding.as_mut().filter(|_| !is_captured) else {
            return Ok(());
        };
        let from = converter.done.min(self.out.len());
        let result = converter.encoding.outgoing(
            &mut self.out,
            from,
            &mut converter.columns,
            &self.shapes,
            converter.binary_copy.as_mut(),
        );
        converter.done = self.out.len();
        result
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
        self.stream = Stream::Tls(Box::new(stream));
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

    /// The message that comes next, with its strings as UTF-8. One whose strings are none in the client's encoding is taken
    /// out and refused.
    fn convert_message(&mut self) -> Result<(), Gone> {
        if self.encoding.is_none() || !self.has_whole_message() {
            return Ok(());
        }
        let Some(converter) = &mut self.encoding else {
            return Ok(());
        };
        let length = u32::from_be_bytes([self.inbox[1], self.inbox[2], self.inbox[3], self.inbox[4]]) as usize;
        let mut message = converter.completed(self.inbox.split_to(1 + length));
        if let Some(copy) = converter
            .binary_copy
            .as_mut()
            .filter(|_| matches!(message[0], b'd' | b'c'))
        {
            let is_last = message[0] == b'c';
            let data = match is_last {
                true => Ok(copy.rest()),
                false => converter.encoding.incoming_binary(copy, &message[5..], &self.shapes),
            };
            let data = data.map_err(|error| Gone::Text((error, false)))?;
            let end = message.split_to(if is_last { message.len() } else { 0 });
            message = BytesMut::with_capacity(data.len() + 10);
            if !is_last || !data.is_empty() {
                message.put_u8(b'd');
                message.put_u32(data.len() as u32 + 4);
                message.put_slice(&data);
            }
            message.put_slice(&end);
            message.unsplit(self.inbox.split());
            self.inbox = message;
            return Ok(());
        }
        let simple = message[0] == b'Q';
        let mut converted = converter
            .encoding
            .incoming(message)
            .map_err(|error| Gone::Text((error, simple)))?;
        converted.unsplit(self.inbox.split());
        self.inbox = converted;
        Ok(())
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

    /// A message of a letter and a body.
    pub(crate) fn put(&mut self, tag: u8, body: &[u8]) {
        self.out.put_u8(tag);
        self.out.put_i32(body.len() as i32 + 4);
        self.out.put_slice(body);
    }

    /// CommandComplete.
    pub(crate) fn put_tag(&mut self, tag: &str) {
        if let Some(discarded) = &mut self.discarding {
            discarded.tag = tag.to_owned();
        }
        if let Some(held) = &mut self.held_tag {
            *held = Some(tag.to_owned());
            return;
        }
        self.out.put_u8(b'C');
        self.out.put_i32(tag.len() as i32 + 5);
        self.out.put_slice(tag.as_bytes());
        self.out.put_u8(0);
    }

    /// Whether what is to be sent ends with ReadyForQuery.
    pub(crate) fn has_whole_answer(&self) -> bool {
        let end = self.out.len().checked_sub(6).map(|at| &self.out[at..]);
        end.is_some_and(|end| end.starts_with(b"Z\0\0\0\x05"))
    }

    /// ReadyForQuery with its status letter.
    pub(crate) fn put_ready(&mut self, status: u8) {
        self.put(b'Z', &[status]);
    }

    /// ErrorResponse.
    pub(crate) fn put_error(&mut self, error: &ServerError) {
        error.write_message(b'E', &mut self.out);
    }

    /// NoticeResponse.
    pub(crate) fn put_notice(&mut self, notice: &ServerError) {
        if self.signals.as_ref().is_some_and(|signals| signals.take(notice)) {
            return;
        }
        notice.write_message(b'N', &mut self.out);
    }

    /// ParameterStatus.
    pub(crate) fn put_parameter(&mut self, name: &str, value: &str) {
        let mut body = Vec::with_capacity(name.len() + value.len() + 2);
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
        self.relay_parameter(&body);
    }

    /// ParameterStatus, as a shard has sent it.
    pub(crate) fn relay_parameter(&mut self, body: &[u8]) {
        let mut strings = body.split(|b| *b == 0).map(String::from_utf8_lossy);
        if let (Some(name), Some(value)) = (strings.next(), strings.next()) {
            let mut styles = Styles::clone(&self.styles);
            if let Some(place) = styles.place(&name).filter(|place| **place != value) {
                *place = value.into_owned();
                self.styles = Arc::new(styles);
            }
        }
        self.put(b'S', body);
    }

    /// RowDescription with the formats given.
    pub(crate) fn put_row_description(&mut self, columns: &[pgherd_shards::ColumnDescription], formats: &[i16]) {
        let start = self.out.len();
        self.out.put_u8(b'T');
        self.out.put_i32(0);
        self.out.put_i16(columns.len() as i16);
        for (i, column) in columns.iter().enumerate() {
            self.out.put_slice(column.name.as_bytes());
            self.out.put_u8(0);
            self.out.put_u32(column.table_oid);
            self.out.put_i16(column.column_number);
            self.out.put_u32(column.type_oid);
            self.out.put_i16(column.type_size);
            self.out.put_i32(column.type_modifier);
            self.out.put_i16(format_of(formats, i));
        }
        let length = (self.out.len() - start - 1) as i32;
        self.out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
    }

    /// DataRow of text values.
    pub(crate) fn put_row(&mut self, values: &[Option<&[u8]>]) {
        let start = self.out.len();
        self.out.put_u8(b'D');
        self.out.put_i32(0);
        self.out.put_i16(values.len() as i16);
        for value in values {
            match value {
                Some(bytes) => {
                    self.out.put_i32(bytes.len() as i32);
                    self.out.put_slice(bytes);
                }
                None => self.out.put_i32(-1),
            }
        }
        let length = (self.out.len() - start - 1) as i32;
        self.out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
    }
}

/// The format of column `i`, from Bind's list: none (text), one for all, or one each.
pub(crate) fn format_of(formats: &[i16], i: usize) -> i16 {
    match formats {
        [] => 0,
        [one] => *one,
        many => many.get(i).copied().unwrap_or(0),
    }
}

#[cfg(test)]
mod fuzz;
