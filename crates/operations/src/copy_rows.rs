//! Moves rows between two participants of one transaction: COPY TO STDOUT on one, COPY FROM STDIN on the other, messages
//! handed on as they are.

use crate::work::Work;
use bytes::BufMut;
use pgherd_model::{ServerError, ShardId};
use pgherd_shards::Backend;

/// How many bytes are gathered before they are sent on.
const CHUNK: usize = 128 * 1024;

/// Under these settings, text is the value, and means the same on both sides.
const EXACT_TEXT: [(&str, &str); 5] = [
    ("datestyle", "ISO, MDY"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("array_nulls", "on"),
    ("xmloption", "content"),
];

/// Rows from a query on one shard into a table on another. Returns how many.
///
/// `format` is `binary` or `text`; binary is exact, but types that users made have other numbers on every shard.
pub(crate) async fn copy_rows(
    work: &mut Work<'_, '_>,
    (from, query): (ShardId, &str),
    (to, table, columns): (ShardId, &str, &str),
    builtin_types: bool,
) -> Result<u64, ServerError> {
    if work.shows_one_snapshot() {
        return Err(ServerError::unsupported(
            "a schema change that moves rows is not supported in a transaction at isolation level REPEATABLE READ",
            "It would move them as the transaction's snapshot shows them. Use READ COMMITTED.",
        ));
    }
    if from == to {
        // Identity columns that are GENERATED ALWAYS keep their values.
        let sql = format!("INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE {query}");
        let results = work.on(from, &sql).await?;
        let tag = results.last().map(|r| r.tag.clone()).unwrap_or_default();
        return Ok(tag.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0));
    }
    let format = if builtin_types { "binary" } else { "text" };
    let mut restore = Vec::new();
    if !builtin_types {
        for shard in [from, to] {
            restore.push((shard, current_settings(work, shard).await?));
            work.on(shard, &set_local(|i| EXACT_TEXT[i].1)).await?;
        }
    }
    work.transaction.participant(from).await?;
    work.transaction.participant(to).await?;
    let (mut source, mut sink) = (None, None);
    for (shard, backend) in work.transaction.participants() {
        if shard == from {
            source = Some(backend);
        } else if shard == to {
            sink = Some(backend);
        }
    }
    let (Some(source), Some(sink)) = (source, sink) else {
        return Err(ServerError::internal(
            "a shard left the transaction while rows were copied",
        ));
    };
    let out = format!("COPY ({query}) TO STDOUT WITH (FORMAT {format})");
    let into = format!("COPY {table} ({columns}) FROM STDIN WITH (FORMAT {format})");
    let copied = relay(source, &out, sink, &into).await;
    work.transaction.wrote(to);
    let copied = copied?;
    for (shard, sql) in restore {
        work.on(shard, &sql).await?;
    }
    Ok(copied)
}

/// The statements that bring back what these settings are now.
async fn current_settings(work: &mut Work<'_, '_>, shard: ShardId) -> Result<String, ServerError> {
    let asked = EXACT_TEXT.map(|(name, _)| format!("pg_catalog.current_setting('{name}')"));
    let results = work.on(shard, &format!("SELECT {}", asked.join(", "))).await?;
    Ok(set_local(|i| {
        results.last().and_then(|r| r.text(0, i)).unwrap_or_default()
    }))
}

/// Gives each of [`EXACT_TEXT`]'s settings a value for the rest of the transaction.
fn set_local<'v>(value: impl Fn(usize) -> &'v str) -> String {
    let names = EXACT_TEXT.iter().enumerate();
    let sets = names.map(|(i, (name, _))| format!("SET LOCAL {name} = {}", pgherd_model::quote_literal(value(i))));
    sets.collect::<Vec<_>>().join("; ")
}

async fn relay(source: &mut Backend, out: &str, sink: &mut Backend, into: &str) -> Result<u64, ServerError> {
    sink.queue_query(into)?;
    sink.flush().await?;
    let answer = sink.next_message().await?;
    if answer.tag != b'G' {
        let error = ServerError::from_body(&answer.body);
        sink.drain().await.ok();
        return Err(error);
    }
    source.queue_query(out)?;
    source.flush().await?;
    let mut failed = None;
    while source.is_awaiting() {
        let message = source.next_message().await?;
        match message.tag {
            b'd' => {
                let buffer = sink.outbox();
                buffer.put_u8(b'd');
                buffer.put_i32(message.body.len() as i32 + 4);
                buffer.extend_from_slice(&message.body);
                if buffer.len() > CHUNK {
                    sink.flush().await?;
                }
            }
            b'E' => failed = Some(ServerError::from_body(&message.body)),
            _ => {}
        }
    }
    let buffer = sink.outbox();
    match &failed {
        None => {
            buffer.put_u8(b'c');
            buffer.put_i32(4);
        }
        Some(_) => {
            buffer.put_u8(b'f');
            buffer.put_i32(5);
            buffer.put_u8(0);
        }
    }
    sink.flush().await?;
    let (mut rows, mut refused) = (0, None);
    while sink.is_awaiting() {
        let message = sink.next_message().await?;
        match message.tag {
            b'C' => rows = count(&message.body),
            b'E' => refused = Some(ServerError::from_body(&message.body)),
            _ => {}
        }
    }
    match failed.or(refused) {
        Some(error) => Err(error),
        None => Ok(rows),
    }
}

/// `COPY 12` → 12
fn count(body: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(body.strip_suffix(&[0]).unwrap_or(body)).into_owned();
    text.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}
