//! One PostgreSQL as it comes, without pgherd: what answers and speed are compared with.

use crate::server::{Progress, Server, Spec};
use crate::watchdog::EphemeralFolder;
use crate::{Account, Binaries, Error, Result};
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

/// A running plain PostgreSQL with the same locale and encoding as a shard. Dropping it stops and removes it.
pub struct PlainServer {
    server: Server,
    _folder: EphemeralFolder,
}

impl PlainServer {
    /// Starts a server for one test; with `tcp` it also listens on a free port of 127.0.0.1 ([`Server::port`]).
    pub async fn ephemeral(tcp: bool) -> Result<Self> {
        Self::ephemeral_with(tcp, false, Vec::new()).await
    }

    /// Like [`Self::ephemeral`], with a shard's settings, so that clients can prepare transactions as on pgherd.
    pub async fn ephemeral_like_a_shard(tcp: bool) -> Result<Self> {
        Self::ephemeral_with(tcp, false, crate::shard_settings()).await
    }

    /// Like [`Self::ephemeral`], with more settings of `postgresql.conf`; `durable` keeps fsync on, for fair benchmarks.
    pub async fn ephemeral_with(tcp: bool, durable: bool, settings: Vec<(String, String)>) -> Result<Self> {
        let folder = EphemeralFolder::new()?;
        let account = Account::for_folder(folder.path())?;
        account.own(folder.path())?;
        let binaries = Arc::new(Binaries::find(&account, None).await?);
        let path = folder.path();
        let socket_dir = path.join("sockets");
        let made = std::fs::DirBuilder::new().mode(0o700).create(&socket_dir);
        made.map_err(Error::io("make the folder", &socket_dir))?;
        account.own(&socket_dir)?;
        let port = if tcp { free_port()? } else { 6000 };
        let name = "plain".to_string();
        let spec = Spec {
            folder: path.join(&name),
            name,
            socket_dir,
            port,
            tcp,
            shard: false,
            durable,
            settings,
        };
        let server = Server::new(spec, binaries, account);
        server.make().await?;
        let silent: Progress = Arc::new(|_| {});
        server.start(&silent).await?;
        Ok(Self {
            server,
            _folder: folder,
        })
    }
}

impl Deref for PlainServer {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// A TCP port that nobody listens on at this moment.
fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(Error::io("listen on", "127.0.0.1"))?;
    Ok(listener
        .local_addr()
        .map_err(Error::io("listen on", "127.0.0.1"))?
        .port())
}
