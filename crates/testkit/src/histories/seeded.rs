//! Bugs for the checkers to find. They are put into the shards and between shards and gateways, from outside: pgherd itself is
//! what it is, and has no switch for them.

use crate::herd::{Herd, file_error};
use crate::{Error, Result};
use bytes::{Buf, BufMut, BytesMut};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// Shards show no markers, so that every set of snapshots passes for a cut.
    NoMarkerCheck,
    /// Markers are deleted as soon as they are visible, while readers still compare them.
    EarlyCleanUp,
    /// Shards commit where they were to prepare, and some lose the connection instead: too late to stop the others.
    CommitWithoutPrepare,
    /// No bug, to compare with: some shards lose the connection instead of preparing, and that is all.
    LostPrepares,
}

/// One of so many PREPAREs is lost with its connection, where that is to happen.
const LOST_ONE_OF: u64 = 10;
/// How often markers are deleted.
const CLEAN_UP_PAUSE: Duration = Duration::from_millis(1);
/// What shows no marker, for whatever is known.
const BLIND: &str = "CREATE OR REPLACE FUNCTION pgherd.visible_markers(known text[], settled_through bigint[])
     RETURNS text[] LANGUAGE sql STABLE SECURITY DEFINER AS $$ SELECT '{}'::text[] $$";

/// A bug that is in a cluster, until this is dropped.
pub(super) struct Planted {
    tasks: JoinSet<()>,
    losses: Arc<Losses>,
}

impl Planted {
    /// From now on PREPAREs are lost, where that belongs to the bug. Not before there are tables.
    pub(super) fn begin(&self) {
        self.losses.have_begun.store(true, Ordering::SeqCst);
    }
}

/// What decides which PREPARE is lost, for all links together.
#[derive(Default)]
struct Losses {
    have_begun: AtomicBool,
    prepares: AtomicU64,
}

impl Losses {
    fn next_is_lost(&self) -> bool {
        self.have_begun.load(Ordering::SeqCst)
            && self.prepares.fetch_add(1, Ordering::SeqCst) % LOST_ONE_OF == LOST_ONE_OF - 1
    }
}

/// Puts a bug in before the first gateway starts.
pub(super) async fn put(bug: Seed, herd: &Herd) -> Result<Planted> {
    let mut planted = Planted {
        tasks: JoinSet::new(),
        losses: Arc::default(),
    };
    if matches!(bug, Seed::CommitWithoutPrepare | Seed::LostPrepares) {
        lead_through_links(herd, bug, &mut planted)?;
        return Ok(planted);
    }
    for shard in herd.cluster().shards() {
        let client = shard.connect("postgres", "postgres").await?;
        if bug == Seed::NoMarkerCheck {
            client.batch_execute(BLIND).await?;
            continue;
        }
        planted.tasks.spawn(async move {
            while client
                .batch_execute("DELETE FROM pgherd.dtx WHERE state = 'p'")
                .await
                .is_ok()
            {
                tokio::time::sleep(CLEAN_UP_PAUSE).await;
            }
        });
    }
    Ok(planted)
}

/// Changes the configuration so that gateways reach each shard through a socket of ours.
fn lead_through_links(herd: &Herd, bug: Seed, planted: &mut Planted) -> Result<()> {
    let folder = herd.folder().join("links");
    std::fs::create_dir(&folder).map_err(file_error(&folder))?;
    for shard in herd.cluster().shards() {
        let name = format!(".s.PGSQL.{}", shard.port());
        let (link, real) = (folder.join(&name), shard.socket_dir().join(&name));
        let listener = UnixListener::bind(&link).map_err(file_error(&link))?;
        herd.account().own(&link)?;
        planted.tasks.spawn(serve(listener, real, bug, planted.losses.clone()));
    }
    herd.account().own(&folder)?;
    let config = herd.folder().join("pgherd.toml");
    let text = std::fs::read_to_string(&config).map_err(file_error(&config))?;
    let host = |folder: &Path| format!("host = \"{}\"", folder.display());
    let mut changed = text.clone();
    for shard in herd.cluster().shards() {
        changed = changed.replace(&host(shard.socket_dir()), &host(&folder));
    }
    if changed == text {
        return Err(Error::Script(
            "the configuration does not name the shards' sockets".into(),
        ));
    }
    std::fs::write(&config, changed).map_err(file_error(&config))
}

async fn serve(listener: UnixListener, real: PathBuf, bug: Seed, losses: Arc<Losses>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        // Ended connections are forgotten now and then.
        while connections.try_join_next().is_some() {}
        let (real, losses) = (real.clone(), losses.clone());
        connections.spawn(async move {
            // A shard that is down: the gateway's connection ends.
            let Ok(server) = UnixStream::connect(real).await else {
                return;
            };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let tags = Tags::default();
            let requests = Requests {
                tags: tags.clone(),
                has_begun: false,
                commits: bug == Seed::CommitWithoutPrepare,
                losses,
                is_lost: false,
            };
            // Whichever side ends, ends both.
            tokio::select! {
                () = forward(from_client, to_server, requests) => {}
                () = forward(from_server, to_client, Replies { tags, has_failed: false }) => {}
            }
        });
    }
}

/// What happens to the messages of one direction.
trait Rewrite {
    /// Takes the first whole message of what has come, as it is to go on; `None` when it has not come wholly.
    fn next(&mut self, incoming: &mut BytesMut) -> Option<BytesMut>;

    /// Whether the connection is lost here.
    fn is_lost(&self) -> bool {
        false
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut rewrite: impl Rewrite) {
    let mut incoming = BytesMut::new();
    while from.read_buf(&mut incoming).await.is_ok_and(|count| count > 0) {
        let mut outgoing = BytesMut::new();
        while let Some(message) = rewrite.next(&mut incoming) {
            outgoing.unsplit(message);
        }
        if rewrite.is_lost() {
            return;
        }
        if to.write_all(&outgoing).await.is_err() {
            return;
        }
    }
}

/// Command tags that come, and what the gateway is to see instead.
type Tags = Arc<Mutex<VecDeque<(&'static str, &'static str)>>>;

struct Requests {
    tags: Tags,
    /// The messages before and with the start-up message have no tag.
    has_begun: bool,
    /// Whether statements of the two phases are rewritten.
    commits: bool,
    losses: Arc<Losses>,
    is_lost: bool,
}

/// The protocol versions that are none: requests for encryption.
const ENCRYPTION_REQUESTS: [u32; 2] = [80_877_103, 80_877_104];

const PREPARE: &str = "PREPARE TRANSACTION";
/// What a statement becomes, the tag that the shard gives it, and the one that the gateway waits for.
const REWRITTEN: [(&str, &str, &str); 3] = [
    (PREPARE, "COMMIT", "COMMIT"),
    ("COMMIT PREPARED", "DO 'BEGIN END'", "DO"),
    ("ROLLBACK PREPARED", "DO 'BEGIN END'", "DO"),
];

impl Rewrite for Requests {
    fn next(&mut self, incoming: &mut BytesMut) -> Option<BytesMut> {
        if !self.has_begun {
            let length = incoming.get(..4)?.get_u32() as usize;
            let code = incoming.get(4..8)?.get_u32();
            if incoming.len() < length {
                return None;
            }
            self.has_begun = !ENCRYPTION_REQUESTS.contains(&code);
            return Some(incoming.split_to(length));
        }
        let message = take_message(incoming)?;
        // A Parse has the statement's name in front of the text.
        let text_at = match message[0] {
            b'Q' => 5,
            b'P' => 5 + message[5..].iter().position(|byte| *byte == 0)? + 1,
            _ => return Some(message),
        };
        let text_end = text_at + message[text_at..].iter().position(|byte| *byte == 0)?;
        let found = REWRITTEN
            .iter()
            .find(|(begin, ..)| message[text_at..text_end].starts_with(begin.as_bytes()));
        let Some((waited_for, instead, given)) = found else {
            return Some(message);
        };
        self.is_lost |= *waited_for == PREPARE && self.losses.next_is_lost();
        if !self.commits {
            return Some(message);
        }
        let mut tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        tags.push_back((given, waited_for));
        Some(changed(&message, text_at, text_end, instead.as_bytes()))
    }

    fn is_lost(&self) -> bool {
        self.is_lost
    }
}

struct Replies {
    tags: Tags,
    has_failed: bool,
}

impl Rewrite for Replies {
    fn next(&mut self, incoming: &mut BytesMut) -> Option<BytesMut> {
        let message = take_message(incoming)?;
        let mut tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        match message[0] {
            b'C' => {
                let tag_end = message.len() - 1;
                let renamed = tags.pop_front_if(|(given, _)| message[5..tag_end] == *given.as_bytes());
                return Some(match renamed {
                    Some((_, waited_for)) => changed(&message, 5, tag_end, waited_for.as_bytes()),
                    None => message,
                });
            }
            b'E' => self.has_failed = true,
            // What came behind an error was not run and has no tag.
            b'Z' if std::mem::take(&mut self.has_failed) => tags.clear(),
            _ => {}
        }
        Some(message)
    }
}

fn take_message(incoming: &mut BytesMut) -> Option<BytesMut> {
    let length = incoming.get(1..5)?.get_u32() as usize + 1;
    (incoming.len() >= length).then(|| incoming.split_to(length))
}

/// The message with other bytes in the place of some.
fn changed(message: &[u8], from: usize, to: usize, instead: &[u8]) -> BytesMut {
    let mut new = BytesMut::with_capacity(message.len() + instead.len());
    new.put_u8(message[0]);
    new.put_u32((message.len() - 1 - (to - from) + instead.len()) as u32);
    new.put_slice(&message[5..from]);
    new.put_slice(instead);
    new.put_slice(&message[to..]);
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_protocol::message::frontend;

    #[test]
    fn a_prepare_becomes_a_commit_that_answers_prepare() {
        let tags = Tags::default();
        let mut requests = Requests {
            tags: tags.clone(),
            has_begun: true,
            commits: true,
            losses: Arc::default(),
            is_lost: false,
        };
        let mut replies = Replies {
            tags,
            has_failed: false,
        };
        let mut sent = BytesMut::new();
        frontend::parse("", "PREPARE TRANSACTION 'pgherd:x'", [25], &mut sent).expect("parse");
        frontend::query("SELECT 1", &mut sent).expect("query");
        let mut wanted = BytesMut::new();
        frontend::parse("", "COMMIT", [25], &mut wanted).expect("parse");
        assert_eq!(requests.next(&mut sent), Some(wanted));
        let same = sent.clone();
        assert_eq!(requests.next(&mut sent), Some(same));
        assert_eq!(requests.next(&mut sent), None);
        let mut reply = BytesMut::from(&b"C\0\0\0\x0bCOMMIT\0C\0\0\0\x0bCOMMIT\0C\0\0"[..]);
        assert_eq!(
            replies.next(&mut reply).as_deref(),
            Some(&b"C\0\0\0\x18PREPARE TRANSACTION\0"[..])
        );
        assert_eq!(replies.next(&mut reply).as_deref(), Some(&b"C\0\0\0\x0bCOMMIT\0"[..]));
        assert_eq!(replies.next(&mut reply), None);
    }
}
