//! The shards of one cluster in one folder.

use crate::folder::DataFolder;
use crate::server::{Event, Progress, Server, Spec};
use crate::watchdog::EphemeralFolder;
use crate::{Account, Binaries, Error, Result};
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Shard `n` has this port plus `n`. It only names a Unix socket in a folder of the cluster's own, so it never collides.
const BASE_PORT: u16 = 6000;
/// More would be a mistake on one machine.
const MOST_SHARDS: usize = 64;

/// What cluster to start, and where.
#[derive(Clone)]
pub struct Options {
    /// The data folder; made if it does not exist.
    pub data: PathBuf,
    /// How many shards, 1 to 64. Must be the number that the folder was made with.
    pub shards: usize,
    /// Survives a crash of the machine. Off only for data that is thrown away.
    pub durable: bool,
    /// More settings of `postgresql.conf`, used when a shard's data is made.
    pub settings: Vec<(String, String)>,
    /// Who is told how the start goes.
    pub progress: Progress,
}

impl Options {
    /// A cluster that is kept, with nobody watching its start.
    pub fn new(data: impl Into<PathBuf>, shards: usize) -> Self {
        Self {
            data: data.into(),
            shards,
            durable: true,
            settings: Vec::new(),
            progress: Arc::new(|_| {}),
        }
    }
}

/// Running shards. Dropping this stops them, as [`Self::stop`] does; an ephemeral cluster's data is removed then.
pub struct LocalCluster {
    // The order matters: servers end before the folder is unlocked, and it is unlocked before it is removed.
    shards: Vec<Arc<Server>>,
    folder: DataFolder,
    account: Account,
    _ephemeral: Option<EphemeralFolder>,
}

impl LocalCluster {
    /// Starts the cluster of a folder: makes it the first time, takes over shards that an earlier process left running.
    ///
    /// Errors: the folder is in use, belongs to somebody else or holds another number of shards; no PostgreSQL; a shard
    /// that does not come up. Then nothing that this call started keeps running. Dropping the future does the same.
    pub async fn start(options: Options) -> Result<Self> {
        Self::start_in(options, None).await
    }

    /// Starts a cluster for one test, in a folder of its own that disappears with it or with this process.
    pub async fn ephemeral(shards: usize) -> Result<Self> {
        Self::ephemeral_with(shards, Vec::new()).await
    }

    /// Like [`Self::ephemeral`], with more settings of `postgresql.conf`.
    pub async fn ephemeral_with(shards: usize, settings: Vec<(String, String)>) -> Result<Self> {
        Self::ephemeral_as(shards, false, settings).await
    }

    /// Like [`Self::ephemeral_with`], with shards that flush their log as those of a kept cluster do: for benchmarks.
    pub async fn ephemeral_durable(shards: usize, settings: Vec<(String, String)>) -> Result<Self> {
        Self::ephemeral_as(shards, true, settings).await
    }

    async fn ephemeral_as(shards: usize, durable: bool, settings: Vec<(String, String)>) -> Result<Self> {
        let folder = EphemeralFolder::new()?;
        let options = Options {
            durable,
            settings,
            ..Options::new(folder.path(), shards)
        };
        Self::start_in(options, Some(folder)).await
    }

    async fn start_in(options: Options, ephemeral: Option<EphemeralFolder>) -> Result<Self> {
        if !(1..=MOST_SHARDS).contains(&options.shards) {
            return Err(Error::BadShardCount(options.shards));
        }
        let account = Account::for_folder(&options.data)?;
        if ephemeral.is_some() {
            account.own(&options.data)?;
        }
        let mut folder = DataFolder::open(&options.data, options.shards, &account)?;
        (options.progress)(Event::Finding);
        let binaries = Arc::new(Binaries::find(&account, data_major(&folder)?).await?);
        let socket_dir = folder.sockets(&account)?;
        let shards: Vec<_> = (1..=options.shards)
            .map(|number| {
                let name = format!("shard{number}");
                let spec = Spec {
                    folder: folder.storage().join(&name),
                    name,
                    socket_dir: socket_dir.clone(),
                    port: BASE_PORT + number as u16,
                    tcp: false,
                    shard: true,
                    durable: options.durable,
                    settings: options.settings.clone(),
                };
                Arc::new(Server::new(spec, binaries.clone(), account.clone()))
            })
            .collect();
        Self::make(&shards, &mut folder, &options.progress).await?;
        try_join_all(shards.iter().map(|shard| shard.start(&options.progress))).await?;
        Ok(Self {
            shards,
            folder,
            account,
            _ephemeral: ephemeral,
        })
    }

    /// Makes the data of shards that have none yet, unless they had some before.
    async fn make(shards: &[Arc<Server>], folder: &mut DataFolder, progress: &Progress) -> Result<()> {
        let missing: Vec<_> = shards.iter().filter(|shard| !shard.folder().exists()).collect();
        if let Some(shard) = missing.first().filter(|_| folder.was_made()) {
            return Err(Error::MissingShard {
                shard: shard.name().into(),
                folder: shard.folder().into(),
            });
        }
        try_join_all(missing.into_iter().map(|shard| {
            progress(Event::Making(shard.name().to_string()));
            shard.make()
        }))
        .await?;
        if folder.was_made() {
            return Ok(());
        }
        folder.set_made(shards[0].account())
    }

    /// The data folder, as a canonical path.
    pub fn data(&self) -> &Path {
        self.folder.path()
    }

    /// The account that the shards run as.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The shards, in the order of their ids, which count from 1.
    pub fn shards(&self) -> &[Arc<Server>] {
        &self.shards
    }

    /// The shard with that id; ids count from 1. Panics when there is none: a mistake of the caller.
    pub fn shard(&self, id: u32) -> &Server {
        assert!(
            (1..=self.shards.len()).contains(&(id as usize)),
            "shard {id} of {}",
            self.shards.len()
        );
        &self.shards[id as usize - 1]
    }

    /// Ends a shard as a crash would: no clean shutdown, sessions are cut off, the next start recovers from the log.
    pub async fn kill_shard(&self, id: u32) {
        self.end(id, Signal::SIGQUIT).await;
    }

    /// Stops a shard cleanly.
    pub async fn stop_shard(&self, id: u32) {
        self.end(id, Signal::SIGINT).await;
    }

    /// Starts a shard, after ending it cleanly if it still runs.
    pub async fn restart_shard(&self, id: u32) -> Result<()> {
        self.end(id, Signal::SIGINT).await;
        let silent: Progress = Arc::new(|_| {});
        self.shard(id).start(&silent).await
    }

    async fn end(&self, id: u32, signal: Signal) {
        assert!(
            (1..=self.shards.len()).contains(&(id as usize)),
            "shard {id} of {}",
            self.shards.len()
        );
        let shard = self.shards[id as usize - 1].clone();
        // Blocking, since a destructor has to be able to do the same.
        let _ = tokio::task::spawn_blocking(move || shard.stop_now(signal)).await;
    }

    /// Stops all shards cleanly, side by side.
    pub async fn stop(self) {
        futures::future::join_all((1..=self.shards.len() as u32).map(|id| self.end(id, Signal::SIGINT))).await;
    }
}

/// The major version of PostgreSQL that the folder's data was made with; `None` when there is no data yet.
fn data_major(folder: &DataFolder) -> Result<Option<u32>> {
    let path = folder.storage().join("shard1").join("PG_VERSION");
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| Error::State {
            path,
            reason: format!("it says {text:?} where a version should be"),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}
