//! A PostgreSQL connection that shows results exactly as the server prints them.
//!
//! Both protocols ask for text results, which `tokio-postgres` cannot do in the extended one, and every field of an
//! error, every notice and every command tag is kept, since those are what a compatibility test compares. There is no
//! TLS here. A COPY FROM STDIN gets what [`Session::feed`] was given before, or is ended at once.

mod server_error;
mod startup;

pub use server_error::ServerError;
pub use startup::Target;

use crate::{Error, Result};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::IsNull;
use postgres_protocol::message::backend::{DataRowBody, Message, RowDescriptionBody};
use postgres_protocol::message::frontend;
use startup::Stream;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Which of PostgreSQL's two query protocols carries the statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// One `Query` message; the text may hold several statements.
    #[default]
    Simple,
    /// `Parse`, `Bind`, `Describe`, `Execute`, `Sync` without parameters; one statement per text.
    Extended,
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The name as the server labels it.
    pub name: String,
    /// The type's OID.
    pub type_oid: u32,
}

/// What one statement produced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatementResult {
    /// `None` for a statement that returns no rows.
    pub columns: Option<Vec<Column>>,
    /// Values in the server's text format; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
    /// What COPY TO STDOUT sent, a message's bytes each; `None` for anything else.
    pub copied: Option<Vec<String>>,
    /// The command tag, such as `UPDATE 3`; empty if the text was empty.
    pub tag: String,
}

impl StatementResult {
    /// The row count that the command tag carries, 0 where it carries none.
    pub fn affected_rows(&self) -> u64 {
        self.tag
            .rsplit(' ')
            .next()
            .and_then(|last| last.parse().ok())
            .unwrap_or(0)
    }
}

/// Everything that came back for one query text, up to `ReadyForQuery`.
#[derive(Debug, Default)]
pub struct Reply {
    /// The statements that completed, in order.
    pub results: Vec<StatementResult>,
    /// The error that ended the text early.
    pub error: Option<ServerError>,
    /// Notices in the order of arrival.
    pub notices: Vec<ServerError>,
}

/// An open connection. Dropping it closes the socket.
pub struct Session {
    stream: Stream,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// What the next COPY FROM STDIN gets.
    fed: Option<String>,
    transaction_status: u8,
    usable: bool,
}

impl Session {
    /// Runs one text and waits for `ReadyForQuery`.
    ///
    /// # Errors
    /// Only failures of the connection itself; what the server says about the statement is in [`Reply::error`]. After
    /// an error, the session answers [`Error::Closed`].
    pub async fn run(&mut self, sql: &str, protocol: Protocol, limit: Duration) -> Result<Reply> {
        if !self.usable {
            return Err(Error::Closed);
        }
        self.exchange(sql, protocol, &[], false, limit).await
    }

    /// Runs one statement by the extended protocol, with parameters in text format and types left to the server. Binary results
    /// are shown as the hexadecimal digits of their bytes.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub async fn run_with(
        &mut self,
        sql: &str,
        parameters: &[Option<String>],
        binary: bool,
        limit: Duration,
    ) -> Result<Reply> {
        if !self.usable {
            return Err(Error::Closed);
        }
        self.exchange(sql, Protocol::Extended, parameters, binary, limit).await
    }

    /// Keeps the data that the next COPY FROM STDIN is to get.
    pub fn feed(&mut self, data: &str) {
        self.fed = Some(data.to_owned());
    }

    async fn exchange(
        &mut self,
        sql: &str,
        protocol: Protocol,
        parameters: &[Option<String>],
        binary: bool,
        limit: Duration,
    ) -> Result<Reply> {
        self.usable = false;
        let exchange = async {
            self.send(sql, protocol, parameters, binary).await?;
            self.receive(protocol, binary).await
        };
        let reply = tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| Error::Timeout(limit))??;
        self.fed = None;
        self.usable = true;
        Ok(reply)
    }

    /// Runs one text by the simple protocol and turns the server's error into `Err`.
    ///
    /// # Errors
    /// As [`Session::run`], and [`Error::Server`].
    pub async fn execute(&mut self, sql: &str, limit: Duration) -> Result<Vec<StatementResult>> {
        let reply = self.run(sql, Protocol::Simple, limit).await?;
        match reply.error {
            Some(error) => Err(Error::Server(error)),
            None => Ok(reply.results),
        }
    }

    /// The status byte of the last `ReadyForQuery`: `I` idle, `T` in a transaction, `E` in a failed one.
    pub fn transaction_status(&self) -> char {
        char::from(self.transaction_status)
    }

    /// Says goodbye as the protocol wants it.
    pub async fn close(&mut self) {
        self.usable = false;
        self.outgoing.clear();
        frontend::terminate(&mut self.outgoing);
        // The server may already be gone, and then there is nobody to say goodbye to.
        let _ = self.stream.write_all(&self.outgoing).await;
        let _ = self.stream.shutdown().await;
    }

    async fn send(&mut self, sql: &str, protocol: Protocol, parameters: &[Option<String>], binary: bool) -> Result<()> {
        let buffer = &mut self.outgoing;
        buffer.clear();
        match protocol {
            Protocol::Simple => frontend::query(sql, buffer)?,
            Protocol::Extended => {
                frontend::parse("", sql, [], buffer)?;
                let write = |value: &Option<String>, out: &mut BytesMut| {
                    out.extend_from_slice(value.as_deref().unwrap_or_default().as_bytes());
                    Ok(if value.is_some() { IsNull::No } else { IsNull::Yes })
                };
                frontend::bind("", "", [], parameters, write, [i16::from(binary)], buffer)
                    .map_err(|_| Error::Protocol("a Bind message could not be written".into()))?;
                frontend::describe(b'P', "", buffer)?;
                frontend::execute("", 0, buffer)?;
                frontend::sync(buffer);
            }
        }
        self.stream.write_all(&self.outgoing).await?;
        Ok(())
    }

    async fn receive(&mut self, protocol: Protocol, binary: bool) -> Result<Reply> {
        let mut reply = Reply::default();
        let mut current = StatementResult::default();
        loop {
            match self.next_message().await? {
                Message::RowDescription(body) => current.columns = Some(read_columns(&body)?),
                Message::DataRow(body) => current.rows.push(read_row(&body, binary)?),
                Message::CommandComplete(body) => {
                    current.tag = body.tag()?.to_owned();
                    reply.results.push(std::mem::take(&mut current));
                }
                Message::EmptyQueryResponse => reply.results.push(std::mem::take(&mut current)),
                Message::ErrorResponse(body) => reply.error = Some(ServerError::read(body.fields())?),
                Message::NoticeResponse(body) => reply.notices.push(ServerError::read(body.fields())?),
                Message::CopyInResponse(_) => self.answer_copy(protocol).await?,
                Message::CopyOutResponse(_) => current.copied = Some(Vec::new()),
                Message::CopyData(body) => current
                    .copied
                    .get_or_insert_default()
                    .push(String::from_utf8_lossy(body.data()).into_owned()),
                Message::ReadyForQuery(body) => {
                    self.transaction_status = body.status();
                    return Ok(reply);
                }
                Message::ParseComplete
                | Message::BindComplete
                | Message::NoData
                | Message::ParameterStatus(_)
                | Message::NotificationResponse(_)
                | Message::CopyDone => {}
                _ => return Err(Error::Protocol("unexpected message in answer to a query".into())),
            }
        }
    }

    async fn answer_copy(&mut self, protocol: Protocol) -> Result<()> {
        let buffer = &mut self.outgoing;
        buffer.clear();
        match self.fed.take() {
            Some(data) => {
                frontend::CopyData::new(data.as_bytes())?.write(buffer);
                frontend::copy_done(buffer);
            }
            None => frontend::copy_fail("COPY FROM STDIN has no data here", buffer)?,
        }
        // The server leaves the Sync that stood behind Execute unread: it comes while COPY waits for data.
        if protocol == Protocol::Extended {
            frontend::sync(buffer);
        }
        self.stream.write_all(&self.outgoing).await?;
        Ok(())
    }

    async fn next_message(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = Message::parse(&mut self.incoming)? {
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.incoming).await? == 0 {
                return Err(Error::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

fn read_columns(body: &RowDescriptionBody) -> Result<Vec<Column>> {
    let columns = body.fields().map(|field| {
        Ok(Column {
            name: field.name().to_owned(),
            type_oid: field.type_oid(),
        })
    });
    Ok(columns.collect()?)
}

fn read_row(body: &DataRowBody, binary: bool) -> Result<Vec<Option<String>>> {
    let text = |range: std::ops::Range<usize>| match &body.buffer()[range] {
        bytes if binary => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        bytes => String::from_utf8_lossy(bytes).into_owned(),
    };
    Ok(body.ranges().map(|range| Ok(range.map(text))).collect()?)
}
