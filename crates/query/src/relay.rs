//! Rows as bytes: taken from a shard's replies message by message, without looking inside.

use crate::plan::row;
use crate::{Fragment, Transaction, fragment};
use bytes::{Buf, Bytes, BytesMut};
use pgherd_model::{ServerError, ShardId};
use pgherd_shards::Backend;
use postgres_protocol::message::frontend;

/// A batch is handed on when it has this many bytes, or when no more have arrived.
const BATCH_BYTES: usize = 64 * 1024;

/// Rows as the client gets them.
#[derive(Debug, Default)]
pub struct RowBatch {
    /// how many
    pub rows: usize,
    /// whole DataRow messages: `D`, length, column count, values in the formats that were asked for
    pub bytes: BytesMut,
    /// the shards whose own OIDs are in binary values of users' types, each up to that byte; all rows are the home shard's where there
    /// is none
    pub origins: Vec<(usize, ShardId)>,
}

impl RowBatch {
    /// Adds a row, from its DataRow's body.
    pub(crate) fn add(&mut self, body: &[u8]) {
        self.rows += 1;
        self.bytes.extend_from_slice(b"D");
        self.bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        self.bytes.extend_from_slice(body);
    }

    /// All rows that were added since the last time are that shard's.
    pub(crate) fn came_from(&mut self, shard: ShardId) {
        let end = self.bytes.len();
        if self.origins.last().map_or(0, |(last, _)| *last) < end {
            self.origins.push((end, shard));
        }
    }
}

/// What comes next in a statement's reply.
pub(crate) enum Next {
    /// some rows
    Rows(RowBatch),
    /// the row limit of the Execute was reached
    Paused,
    /// CommandComplete
    Complete,
}

/// The next rows of the statement whose reply is being read; None after its CommandComplete. The
/// ReadyForQuery that follows is not read. An error leaves the rest of the replies unread.
pub(crate) async fn next_rows(backend: &mut Backend) -> Result<Option<RowBatch>, ServerError> {
    match next_rows_or_pause(backend).await? {
        Next::Rows(batch) => Ok(Some(batch)),
        Next::Paused | Next::Complete => Ok(None),
    }
}

/// Like [`next_rows`], for an Execute with a row limit.
pub(crate) async fn next_rows_or_pause(backend: &mut Backend) -> Result<Next, ServerError> {
    backend.skip_silent().await?;
    loop {
        let (bytes, rows) = whole_rows(backend.inbox());
        if rows > 0 {
            let bytes = backend.inbox().split_to(bytes);
            return Ok(Next::Rows(RowBatch {
                rows,
                bytes,
                origins: Vec::new(),
            }));
        }
        if backend.inbox().first().is_none_or(|tag| *tag == b'D') {
            backend.fill().await?;
            continue;
        }
        let message = backend.next_message().await?;
        match message.tag {
            // A notice stood before it.
            b'D' => {
                let mut batch = RowBatch::default();
                batch.add(&message.body);
                return Ok(Next::Rows(batch));
            }
            b'C' | b'I' => return Ok(Next::Complete),
            b's' => return Ok(Next::Paused),
            b'E' => return Err(ServerError::from_body(&message.body)),
            // Ready without a CommandComplete: the statement was skipped after an error somebody else has read.
            b'Z' => {
                return Err(ServerError::internal(
                    "a shard answered fewer statements than it was sent",
                ));
            }
            _ => {}
        }
    }
}

/// How many bytes of whole DataRow messages a buffer starts with, and how many messages they are.
fn whole_rows(buffer: &[u8]) -> (usize, usize) {
    let (mut at, mut rows) = (0, 0);
    while at < BATCH_BYTES && buffer.len() >= at + 5 && buffer[at] == b'D' {
        let length = u32::from_be_bytes([buffer[at + 1], buffer[at + 2], buffer[at + 3], buffer[at + 4]]) as usize;
        if buffer.len() < at + 1 + length {
            break;
        }
        at += 1 + length;
        rows += 1;
    }
    (at, rows)
}

/// Turns DataRow messages with binary values into CopyData messages of `COPY … (FORMAT binary)`, in place: both hold a count of
/// fields and then each field with its length, so only the message's letter differs.
pub(crate) fn rows_to_binary_copy(rows: &mut BytesMut) {
    let mut at = 0;
    while at + 5 <= rows.len() {
        rows[at] = b'd';
        at += 1 + u32::from_be_bytes([rows[at + 1], rows[at + 2], rows[at + 3], rows[at + 4]]) as usize;
    }
}

/// Turns DataRow messages with text values into one CopyData message of `COPY … (FORMAT text)`.
pub(crate) fn rows_to_text_copy(mut rows: BytesMut, out: &mut BytesMut) {
    let start = out.len();
    out.extend_from_slice(b"d\0\0\0\0");
    while rows.len() >= 7 {
        rows.advance(5);
        let fields = rows.get_i16();
        for field in 0..fields {
            if field > 0 {
                out.extend_from_slice(b"\t");
            }
            let length = rows.get_i32();
            if length < 0 {
                out.extend_from_slice(b"\\N");
                continue;
            }
            for &byte in rows.split_to(length as usize).iter() {
                match byte {
                    b'\\' => out.extend_from_slice(b"\\\\"),
                    b'\n' => out.extend_from_slice(b"\\n"),
                    b'\r' => out.extend_from_slice(b"\\r"),
                    b'\t' => out.extend_from_slice(b"\\t"),
                    other => out.extend_from_slice(&[other]),
                }
            }
        }
        out.extend_from_slice(b"\n");
    }
    let length = (out.len() - start - 1) as u32;
    out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
}

/// Queues Execute for a portal that is not needed again: one that stays open keeps its tables from being altered by the
/// same transaction.
pub(crate) fn queue_execute(backend: &mut Backend, portal: &str) -> Result<(), ServerError> {
    let nul = |_| ServerError::internal("a portal's name holds a NUL");
    frontend::execute(portal, 0, backend.outbox()).map_err(nul)?;
    frontend::close(b'P', portal, backend.outbox()).map_err(nul)
}

/// Sends a statement that is parsed, bound and executed at once, under no name. Its reply is to be read, and then drained.
pub(crate) async fn send(
    backend: &mut Backend,
    sql: &str,
    types: &[u32],
    parameters: &[(bool, Option<Bytes>)],
    formats: &[i16],
) -> Result<(), ServerError> {
    let nul = |_| ServerError::internal("a message to a shard cannot be encoded");
    frontend::parse("", sql, types.iter().copied(), backend.outbox()).map_err(nul)?;
    fragment::bind("", parameters, formats, backend.outbox())?;
    queue_execute(backend, "")?;
    sync(backend).await
}

/// The rows of a statement that has one text column, none of them NULL; with what an error leaves, the reply is read to its end.
pub(crate) async fn lines(backend: &mut Backend) -> Result<Vec<String>, ServerError> {
    let read = read_lines(backend).await;
    backend.drain().await?;
    read
}

async fn read_lines(backend: &mut Backend) -> Result<Vec<String>, ServerError> {
    let (mut lines, mut fields) = (Vec::new(), Vec::new());
    while let Some(batch) = next_rows(backend).await? {
        for message in row::messages(&batch.bytes) {
            let garbled = || ServerError::internal("a shard's answer is no text");
            row::fields(message, &mut fields).ok_or_else(garbled)?;
            let text = fields.first().cloned().flatten().ok_or_else(garbled)?;
            lines.push(String::from_utf8_lossy(&message[text]).into_owned());
        }
    }
    Ok(lines)
}

/// Queues Sync and sends everything.
pub(crate) async fn sync(backend: &mut Backend) -> Result<(), ServerError> {
    queue_sync(backend);
    Ok(backend.flush().await?)
}

fn queue_sync(backend: &mut Backend) {
    frontend::sync(backend.outbox());
    backend.expect_ready();
}

/// Sends Execute for all portals, each shard's in order: all shards start at once.
pub(crate) async fn execute_all(fragments: &[Fragment], transaction: &mut Transaction) -> Result<(), ServerError> {
    execute(fragments, transaction, false).await
}

/// The same; where `ends`, nothing else is to come on these shards, and nothing was or will be written: the transaction ends there with it.
pub(crate) async fn execute(
    fragments: &[Fragment],
    transaction: &mut Transaction,
    ends: bool,
) -> Result<(), ServerError> {
    let mut shards: Vec<_> = fragments.iter().map(|f| f.shard).collect();
    shards.sort();
    shards.dedup();
    for shard in shards {
        let backend = transaction.participant(shard).await?;
        for fragment in fragments.iter().filter(|f| f.shard == shard) {
            queue_execute(backend, &fragment.portal)?;
        }
        queue_sync(backend);
        if ends {
            transaction.end_behind_statement(shard)?;
        }
        transaction.participant(shard).await?.flush().await?;
    }
    Ok(())
}

/// Reads what is left after the rows, or, after an error, stops what still runs. A statement that succeeds may not be stopped:
/// being cancelled would fail the transaction.
pub(crate) async fn finish(transaction: &mut Transaction, succeeded: bool) -> Result<(), ServerError> {
    let mut failed = Ok(());
    for (_, backend) in transaction.participants() {
        if !backend.is_awaiting() {
            continue;
        }
        if succeeded && failed.is_ok() {
            failed = backend.drain().await.map_err(ServerError::from);
        } else {
            stop(backend).await;
        }
    }
    failed
}

/// Stops what a connection is doing and reads its replies to the end, so that it can be used again.
pub(crate) async fn stop(backend: &mut Backend) {
    if !backend.is_broken() && backend.is_awaiting() {
        let _ = backend.cancel_token().cancel().await;
        let _ = backend.drain().await;
    }
}
