//! The wire between a gateway and its shards, listened to: sockets of our own in front of the shards' sockets.
#![allow(dead_code, reason = "only some test files listen")]

use super::Bed;
use pgherd_local_cluster::SERVICE_ROLE;
use pgherd_model::ShardId;
use pgherd_shards::{Options, ShardConfig, Shards};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

/// One message of a gateway to a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub shard: u32,
    /// who logged in on this connection
    pub role: String,
    /// counts up within its connection: everything that was sent before an answer was waited for is one round
    pub round: u32,
    /// its text where it is a Query or a Parse, else its letter
    pub text: String,
}

/// Everything that is sent to the shards, from [`Wire::before`] on.
pub struct Wire {
    heard: Arc<Mutex<Vec<Message>>>,
    folder: PathBuf,
}

/// One connection, as far as it has been heard.
struct Line {
    shard: u32,
    role: String,
    round: u32,
    /// replies that are to come
    awaited: u32,
    answered: bool,
}

impl Wire {
    /// Puts itself before a bed's shards, for gateways that are opened afterwards.
    pub fn before(bed: Bed) -> (Bed, Self) {
        let folder = std::env::temp_dir().join(format!(
            "pgherd-wire-{}-{:x}",
            std::process::id(),
            rand::random::<u32>()
        ));
        std::fs::create_dir(&folder).expect("a folder");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut configs = Vec::new();
        for config in bed.shards.all() {
            let host = folder.join(config.id.0.to_string());
            std::fs::create_dir(&host).expect("a folder");
            let socket = format!(".s.PGSQL.{}", config.port);
            let listener = UnixListener::bind(host.join(&socket)).expect("a socket");
            let real = PathBuf::from(&config.host).join(&socket);
            tokio::spawn(listen(listener, real, config.id, heard.clone()));
            configs.push(ShardConfig {
                host: host.to_string_lossy().into_owned(),
                ..config.clone()
            });
        }
        let shards = Shards::new(Options::new(configs, SERVICE_ROLE));
        (Bed { shards, ..bed }, Self { heard, folder })
    }

    /// What was sent since this was last called.
    pub fn heard(&self) -> Vec<Message> {
        std::mem::take(&mut *self.heard.lock().expect("heard"))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn listen(listener: UnixListener, real: PathBuf, shard: ShardId, heard: Arc<Mutex<Vec<Message>>>) {
    while let Ok((gateway, _)) = listener.accept().await {
        let server = UnixStream::connect(&real).await.expect("the shard's socket");
        let line = Arc::new(Mutex::new(Line {
            shard: shard.0,
            role: String::new(),
            round: 0,
            awaited: 1,
            answered: false,
        }));
        let (from_gateway, to_gateway) = gateway.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::spawn(pass_on(
            from_gateway,
            to_server,
            Side::Gateway(heard.clone()),
            line.clone(),
        ));
        tokio::spawn(pass_on(from_server, to_gateway, Side::Shard, line));
    }
}

enum Side {
    Gateway(Arc<Mutex<Vec<Message>>>),
    Shard,
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, side: Side, line: Arc<Mutex<Line>>) {
    let (mut waiting, mut chunk, mut started) = (Vec::new(), vec![0; 1 << 16], false);
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        waiting.extend_from_slice(&chunk[..count]);
        // Before it is passed on: whoever reads it may answer at once.
        {
            let mut line = line.lock().expect("line");
            match &side {
                Side::Gateway(heard) => {
                    if !started {
                        started = line.start(&mut waiting);
                    }
                    if started {
                        messages(&mut waiting, |tag, body| line.sent(tag, body, heard));
                    }
                }
                Side::Shard => messages(&mut waiting, |tag, _| line.came(tag)),
            }
        }
        if to.write_all(&chunk[..count]).await.is_err() {
            return;
        }
    }
}

/// Takes whole messages.
fn messages(waiting: &mut Vec<u8>, mut each: impl FnMut(u8, &[u8])) {
    let mut at = 0;
    while let Some(length) = waiting.get(at + 1..at + 5) {
        let end = at + 1 + u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        let Some(body) = waiting.get(at + 5..end) else { break };
        each(waiting[at], body);
        at = end;
    }
    waiting.drain(..at);
}

impl Line {
    /// The start-up message, or a request to cancel, has no letter.
    fn start(&mut self, waiting: &mut Vec<u8>) -> bool {
        let Some(length) = waiting.first_chunk::<4>() else {
            return false;
        };
        let length = u32::from_be_bytes(*length) as usize;
        if waiting.len() < length {
            return false;
        }
        let body: Vec<u8> = waiting.drain(..length).skip(8).collect();
        let mut parts = body.split(|b| *b == 0).map(|p| String::from_utf8_lossy(p).into_owned());
        if parts.any(|part| part == "user") {
            self.role = parts.next().unwrap_or_default();
        }
        true
    }

    fn sent(&mut self, tag: u8, body: &[u8], heard: &Mutex<Vec<Message>>) {
        if std::mem::take(&mut self.answered) {
            self.round += 1;
        }
        self.awaited += u32::from(matches!(tag, b'Q' | b'S'));
        let part = |n: usize| {
            let text = body.split(|b| *b == 0).nth(n).unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        };
        let text = match tag {
            b'Q' => part(0),
            b'P' => part(1),
            letter => char::from(letter).to_string(),
        };
        heard.lock().expect("heard").push(Message {
            shard: self.shard,
            role: self.role.clone(),
            round: self.round,
            text,
        });
    }

    fn came(&mut self, tag: u8) {
        if tag == b'Z' {
            self.awaited -= 1;
            self.answered = self.awaited == 0;
        }
    }
}
