//! The way between one gateway and one shard, which can be cut, or fall silent: bytes are taken, and do not arrive before it
//! speaks again. So a network that drops packets looks to both ends, without any right to change the real one.

use crate::Result;
use crate::herd::file_error;
use nix::sys::stat::Mode;
use pgherd_local_cluster::{Account, Server};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    silent: bool,
    /// grows with each cut: connections made before it end
    cuts: u64,
}

/// A Unix socket that stands for a shard's.
pub struct Proxy {
    folder: PathBuf,
    port: u16,
    state: watch::Sender<State>,
    listening: JoinHandle<()>,
}

impl Proxy {
    /// Listens in `folder`, which is made, for what is meant for `shard`. `account` may connect.
    pub fn start(shard: &Server, folder: &Path, account: &Account) -> Result<Self> {
        nix::unistd::mkdir(folder, Mode::S_IRWXU).map_err(|e| file_error(folder)(e.into()))?;
        account.own(folder)?;
        let socket = |folder: &Path| folder.join(format!(".s.PGSQL.{}", shard.port()));
        let own = socket(folder);
        let listener = UnixListener::bind(&own).map_err(file_error(&own))?;
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&own, open).map_err(file_error(&own))?;
        let (state, watched) = watch::channel(State { silent: false, cuts: 0 });
        let target = socket(shard.socket_dir());
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, watched) = (target.clone(), watched.clone());
                tokio::spawn(async move {
                    if let Ok(server) = UnixStream::connect(&target).await {
                        pass_on(client, server, watched).await;
                    }
                });
            }
        });
        Ok(Self {
            folder: folder.to_path_buf(),
            port: shard.port(),
            state,
            listening,
        })
    }

    /// Where a gateway finds it: the host and port of its configuration.
    pub fn address(&self) -> (&Path, u16) {
        (&self.folder, self.port)
    }

    /// Ends all connections; new ones may be made.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Holds back everything from now on, or lets it go on.
    pub fn silence(&self, silent: bool) {
        self.state.send_modify(|state| state.silent = silent);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

async fn pass_on(client: UnixStream, server: UnixStream, mut state: watch::Receiver<State>) {
    let cuts = state.borrow().cuts;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (up, down) = (state.clone(), state.clone());
    tokio::select! {
        () = pump(from_client, to_server, up) => {}
        () = pump(from_server, to_client, down) => {}
        _ = state.wait_for(|s| s.cuts != cuts) => {}
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut state: watch::Receiver<State>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if state.wait_for(|s| !s.silent).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // An end of the connection is told no sooner than the bytes before it.
    let _ = state.wait_for(|s| !s.silent).await;
}
