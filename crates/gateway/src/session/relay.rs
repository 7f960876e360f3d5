//! Relays a backend's reply to the client as bytes.
//!
//! Runs of messages that pass unchanged are copied in one piece; only errors, notices and the end of the reply are
//! looked at. An error is returned, not written, so that the caller can retry a stale route. A notice is sent at once, as
//! PostgreSQL sends it: the statement may wait for long behind it.

use crate::client::{Client, FLUSH_AT};
use crate::origins::Naming;
use crate::user_types::{Asking, Holding, has_user_types, holding};
use bytes::BytesMut;
use pgherd_catalog::{Catalog, StatementGuard};
use pgherd_model::ServerError;
use pgherd_shards::Backend;
use std::time::Duration;

/// PostgreSQL sends 8 kB at a time, and its last message may be whole with the next ones only.
const SENT_BY_POSTGRESQL: usize = 4 * 1024;
/// How long a shard says nothing before what has gathered is sent.
const MOMENT: Duration = Duration::from_millis(50);

/// What of an extended reply the client is not to see, because the gateway answered it already or asked itself.
#[derive(Clone, Copy, Default)]
pub(crate) struct Filter<'a> {
    /// ParseComplete and BindComplete
    pub(crate) hide_preparation: bool,
    /// CommandComplete and PortalSuspended, which the caller sends when a commit has succeeded
    pub(crate) hold_tag: bool,
    /// NoData, which the simple protocol does not have
    pub(crate) hide_no_data: bool,
    /// RowDescription and NoData, which only the gateway asked for
    pub(crate) hide_description: bool,
    /// who translates the OIDs of users' types, where it is not the home shard that answers
    pub(crate) foreign: Option<&'a Asking<'a>>,
    /// who names the tables of columns that are described
    pub(crate) naming: Option<&'a Naming<'a>>,
    /// what of the rows, or of a binary COPY's, has such OIDs, where they were described before
    pub(crate) holding: &'a [(usize, u32)],
}

/// What must hold before bytes become visible to the client: else they may come from where the cluster was before a change.
#[derive(Clone, Copy)]
pub(crate) enum Fresh<'a> {
    /// this gateway's view since the statement began
    Statement(&'a StatementGuard),
    /// its lease, for what was routed by earlier statements
    Lease(&'a Catalog),
}

impl Fresh<'_> {
    /// Waits for a lease that has lapsed: it holds if nothing has changed meanwhile.
    pub(crate) async fn holds(&self) -> bool {
        match self {
            Self::Statement(guard) => guard.holds().await,
            Self::Lease(catalog) => catalog.has_lease().await,
        }
    }
}

/// How a reply ended.
#[derive(Debug)]
pub(crate) enum End {
    /// ReadyForQuery came
    Ready(Reply),
    /// CopyInResponse or CopyOutResponse came and was relayed; the copy is the caller's
    Copy(u8),
}

/// What a reply was.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// the first error
    pub(crate) error: Option<ServerError>,
    /// something of it was put into the client's buffer
    pub(crate) delivered: bool,
    /// the last command tag
    pub(crate) tag: Option<String>,
    /// the portal has more rows
    pub(crate) suspended: bool,
    /// ParseComplete came
    pub(crate) prepared: bool,
    /// rows came, or a copy's data
    has_rows: bool,
    /// a notice was put into the client's buffer, and not sent yet
    noticed: bool,
    /// columns whose values are translated
    pub(crate) holding: Holding,
}

/// Why relaying stopped.
pub(crate) enum Failure {
    /// the shard's connection
    Shard(pgherd_shards::Error),
    /// the client is gone
    Client,
    /// this gateway lost its lease: the answer may be stale
    Stale,
}

impl From<pgherd_shards::Error> for Failure {
    fn from(error: pgherd_shards::Error) -> Self {
        Self::Shard(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(_: std::io::Error) -> Self {
        Self::Client
    }
}

/// Relays until ReadyForQuery (which is not relayed) or a copy begins. `fresh` tells, each time before bytes become
/// visible to the client, whether this gateway's view was valid when they were made.
pub(crate) async fn relay(
    backend: &mut Backend,
    client: &mut Client,
    filter: Filter<'_>,
    fresh: Fresh<'_>,
) -> Result<End, Failure> {
    if let Some(error) = backend.silent_error().await? {
        // The statement behind it failed with it; its reply is read all the same.
        backend.drain().await.or_else(|e| match e {
            pgherd_shards::Error::Server(_) => Ok(()),
            other => Err(other),
        })?;
        return Ok(End::Ready(Reply {
            error: Some(error),
            ..Reply::default()
        }));
    }
    let mut reply = Reply {
        holding: filter.holding.to_vec(),
        ..Reply::default()
    };
    let mut before = client.out.len();
    loop {
        // Less, where it was sent meanwhile.
        before = before.min(client.out.len());
        let step = take_messages(backend, client, filter, &mut reply);
        reply.delivered |= client.out.len() > before;
        let is_row = matches!(step, Step::Row(_));
        match step {
            Step::Ready => {
                if !fresh.holds().await {
                    return Err(Failure::Stale);
                }
                return Ok(End::Ready(reply));
            }
            Step::Copy(tag) => return Ok(End::Copy(tag)),
            Step::Described(mut message) => {
                let mut body = message.split_off(HEADER);
                if let Some(asking) = filter.foreign {
                    reply.holding = holding(&body);
                    let described = asking.describe(backend.shard(), &mut body).await;
                    told(backend, described)?;
                }
                if let Some(naming) = filter.naming.filter(|_| !filter.hide_description) {
                    naming.learn_and_put(backend.shard(), &mut body).await;
                }
                message.unsplit(body);
                if !filter.hide_description {
                    client.out.extend_from_slice(&message);
                }
                continue;
            }
            Step::Row(mut message) => {
                let start = HEADER + row_start(&message);
                if let Some(asking) = filter.foreign.filter(|_| start < message.len()) {
                    let body = &mut message[start..];
                    let translated = asking.translate_row(backend.shard(), &reply.holding, body).await;
                    told(backend, translated)?;
                }
                client.out.extend_from_slice(&message);
                if client.out.len() < FLUSH_AT {
                    continue;
                }
            }
            Step::More => {}
        }
        if client.out.len() >= FLUSH_AT || std::mem::take(&mut reply.noticed) {
            if !fresh.holds().await {
                return Err(Failure::Stale);
            }
            client.flush().await?;
        }
        if is_row {
            continue;
        }
        // What stands before the first row may be taken back yet.
        let filled = match reply.has_rows && client.out.len() >= SENT_BY_POSTGRESQL {
            true => fill_or_send(backend, client, fresh).await?,
            false => backend.fill().await,
        };
        match (filled, &reply.error) {
            // The shard said why it ends the connection.
            (Err(_), Some(_)) => return Ok(End::Ready(reply)),
            (filled, _) => filled?,
        }
    }
}

/// Receives more. Rows do not wait here for those that the shard has yet to find: what PostgreSQL would have sent by now is
/// sent, when nothing else comes for a moment.
async fn fill_or_send(
    backend: &mut Backend,
    client: &mut Client,
    fresh: Fresh<'_>,
) -> Result<Result<(), pgherd_shards::Error>, Failure> {
    if let Ok(filled) = tokio::time::timeout(MOMENT, backend.fill()).await {
        return Ok(filled);
    }
    if !fresh.holds().await {
        return Err(Failure::Stale);
    }
    client.flush().await?;
    Ok(backend.fill().await)
}

/// What could not be translated ends the reply, whose rows are not read.
fn told(backend: &mut Backend, asked: Result<(), ServerError>) -> Result<(), Failure> {
    asked.map_err(|error| {
        backend.taint();
        Failure::Shard(error.into())
    })
}

/// Bytes before a message's body: its letter and its length.
const HEADER: usize = 5;

/// Where the fields of a row begin in a message's body. In a binary COPY's first message its header comes before them; where nothing
/// comes behind that, or the message is the trailer, there is no row: the body's end.
fn row_start(message: &[u8]) -> usize {
    // Signature and flags; then as many bytes as the next number says.
    const BEFORE_EXTENSION: usize = 15;
    const TRAILER: &[u8] = &[0xff, 0xff];
    let body = &message[HEADER..];
    if message[0] != b'd' {
        return 0;
    }
    let row = match body.get(BEFORE_EXTENSION..BEFORE_EXTENSION + 4) {
        Some([a, b, c, d]) if body.starts_with(b"PGCOPY\n") => {
            BEFORE_EXTENSION + 4 + u32::from_be_bytes([*a, *b, *c, *d]) as usize
        }
        _ => 0,
    };
    match body.get(row..) {
        None | Some([] | TRAILER) => body.len(),
        Some(_) => row,
    }
}

enum Step {
    More,
    /// a RowDescription with OIDs that are that shard's own
    Described(BytesMut),
    /// a DataRow, or a CopyData, that may have such OIDs in it
    Row(BytesMut),
    Ready,
    Copy(u8),
}

/// Takes all whole messages from the inbox.
fn take_messages(backend: &mut Backend, client: &mut Client, filter: Filter<'_>, reply: &mut Reply) -> Step {
    // [0, passed) of the inbox goes to the client as it is; messages are only looked at, and copied in runs.
    let mut passed = 0;
    let shard = backend.shard();
    loop {
        let inbox = backend.inbox();
        let rest = &mut inbox[passed..];
        let whole = match rest {
            [_, a, b, c, d, ..] => 1 + u32::from_be_bytes([*a, *b, *c, *d]) as usize,
            _ => usize::MAX,
        };
        if rest.len() < whole {
            let run = inbox.split_to(passed);
            client.out.extend_from_slice(&run);
            return Step::More;
        }
        let tag = rest[0];
        let passes = match tag {
            b'T' => {
                let body = &mut rest[HEADER..whole];
                !filter.hide_description
                    && (filter.foreign.is_none() || !has_user_types(body))
                    && filter.naming.is_none_or(|naming| naming.put(shard, body))
            }
            b'D' | b'd' => {
                reply.has_rows = true;
                reply.holding.is_empty()
            }
            b't' | b'I' | b'c' => true,
            b'n' => !filter.hide_no_data && !filter.hide_description,
            b'C' => {
                if filter.hold_tag {
                    reply.tag = Some(String::from_utf8_lossy(&rest[5..whole - 1]).into_owned());
                }
                !filter.hold_tag
            }
            b's' => {
                reply.suspended = true;
                !filter.hold_tag
            }
            b'1' => {
                reply.prepared = true;
                !filter.hide_preparation
            }
            b'2' | b'3' => !filter.hide_preparation,
            _ => false,
        };
        if passes {
            passed += whole;
            continue;
        }
        if passed > 0 {
            let run = inbox.split_to(passed);
            client.out.extend_from_slice(&run);
            passed = 0;
        }
        let message = backend.inbox().split_to(whole);
        let body = &message[5..];
        match tag {
            b'Z' => {
                backend.note(tag, body);
                return Step::Ready;
            }
            b'E' => {
                reply.error.get_or_insert_with(|| ServerError::from_body(body));
            }
            b'T' => return Step::Described(message),
            b'D' | b'd' => return Step::Row(message),
            b'S' => {
                backend.note(tag, body);
                client.relay_parameter(body);
            }
            b'G' | b'H' | b'W' => {
                client.out.extend_from_slice(&message);
                return Step::Copy(tag);
            }
            // The client gets notifications between transactions.
            b'A' => backend.note(tag, body),
            b'N' => {
                let signals = client.signals.as_ref();
                if signals.is_some_and(|signals| signals.take(&ServerError::from_body(body))) {
                    continue;
                }
                client.out.extend_from_slice(&message);
                reply.noticed = true;
            }
            _ => {}
        }
    }
}
