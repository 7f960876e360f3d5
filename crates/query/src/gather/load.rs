//! Copies rows from shards into temporary tables as they arrive: but for what was read ahead nothing is kept, and a slow side
//! slows the other.

use super::source::Gathered;
use crate::read_ahead::ReadAhead;
use crate::relay::{RowBatch, rows_to_binary_copy, rows_to_text_copy};
use crate::{Fragment, Transaction};
use bytes::{BufMut, BytesMut};
use pgherd_model::ServerError;
use pgherd_shards::Backend;
use postgres_protocol::message::frontend;

/// The start of a binary COPY: signature, flags, length of the header's extension
/// (<https://www.postgresql.org/docs/15/sql-copy.html>).
const BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Fills the temporary tables: with what was read ahead, then with what is still to come.
pub(super) async fn load(
    sources: &[Gathered],
    fragments: &[Fragment],
    ahead: &mut ReadAhead,
    transaction: &mut Transaction,
    scratch: &mut Backend,
) -> Result<(), ServerError> {
    for source in sources {
        let rows = copy(source, fragments, ahead, transaction, scratch).await?;
        let finish = source.finish_sql(rows);
        if !finish.is_empty() {
            scratch.simple(&finish.join("; ")).await?;
        }
    }
    Ok(())
}

/// Fills one temporary table; returns the number of rows.
async fn copy(
    source: &Gathered,
    fragments: &[Fragment],
    ahead: &mut ReadAhead,
    transaction: &mut Transaction,
    scratch: &mut Backend,
) -> Result<u64, ServerError> {
    open_copy(scratch, &source.copy_sql(), source.binary).await?;
    let mut total = 0;
    for portal in source.first_portal..source.first_portal + source.portals() {
        for batch in ahead.take(portal) {
            total += batch.rows as u64;
            put_rows(scratch, batch, source.binary).await?;
        }
        while let Some(batch) = ahead.more(portal, fragments, transaction).await? {
            total += batch.rows as u64;
            put_rows(scratch, batch, source.binary).await?;
        }
    }
    close_copy(scratch, source.binary).await?;
    Ok(total)
}

/// Starts a COPY … FROM STDIN.
pub(super) async fn open_copy(scratch: &mut Backend, sql: &str, binary: bool) -> Result<(), ServerError> {
    scratch.queue_query(sql)?;
    scratch.flush().await?;
    loop {
        let message = scratch.next_message().await?;
        match message.tag {
            b'G' => break,
            b'E' => return Err(ServerError::from_body(&message.body)),
            _ => {}
        }
    }
    if binary {
        put_copy_data(scratch.outbox(), BINARY_HEADER);
    }
    Ok(())
}

/// Sends rows into it.
pub(super) async fn put_rows(scratch: &mut Backend, mut batch: RowBatch, binary: bool) -> Result<(), ServerError> {
    if binary {
        rows_to_binary_copy(&mut batch.bytes);
        scratch.outbox().extend_from_slice(&batch.bytes);
    } else {
        rows_to_text_copy(batch.bytes, scratch.outbox());
    }
    Ok(scratch.flush().await?)
}

/// Ends it.
pub(super) async fn close_copy(scratch: &mut Backend, binary: bool) -> Result<(), ServerError> {
    if binary {
        put_copy_data(scratch.outbox(), &(-1i16).to_be_bytes());
    }
    frontend::copy_done(scratch.outbox());
    scratch.flush().await?;
    Ok(scratch.drain().await?)
}

fn put_copy_data(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u8(b'd');
    out.put_i32(bytes.len() as i32 + 4);
    out.put_slice(bytes);
}
