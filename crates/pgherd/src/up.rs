//! `pgherd up`: PostgreSQL shards and a gateway on this machine, with one command.
//!
//! Everything lives in one folder, and everything that runs is stopped when this is told to stop. After a `kill -9` the
//! shards go on, and the next `pgherd up` takes them over.

use crate::config::{self, Config, Shard};
use crate::gateway::{self, AddressArgs};
use crate::progress::Progress;
use crate::terminated::Terminated;
use crate::{Error, Result};
use clap::Args;
use pgherd_gateway::GatewayHandle;
use pgherd_local_cluster::{LocalCluster, Options};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How often the shards are looked after.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Starts PostgreSQL shards and a gateway on this machine
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The folder for everything; made if it does not exist
    #[arg(long, value_name = "FOLDER", default_value = ".pgherd")]
    data: PathBuf,
    /// How many PostgreSQL servers; cannot be changed later
    #[arg(long, default_value_t = 3)]
    shards: usize,
    /// Also stop when standard input ends: for a program that starts pgherd and may die without stopping it
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
    #[command(flatten)]
    address: AddressArgs,
}

/// Runs the command until it is told to stop.
pub async fn run(args: UpArgs) -> Result<()> {
    let mut terminated = Terminated::watch(args.until_stdin_ends)?;
    // Three steps are not of a shard: finding PostgreSQL, the catalog, the gateway.
    let progress = Progress::begin(args.shards as u64 + 3);
    let started = tokio::select! {
        started = start(&args, &progress) => started,
        // Dropping a start that is under way stops what it has started so far.
        () = terminated.next() => {
            progress.end();
            return Ok(());
        }
    };
    progress.end();
    let (cluster, handle) = started?;
    gateway::announce(&handle);
    tokio::select! {
        () = terminated.next() => {}
        () = look_after(&cluster) => {}
    }
    let progress = Progress::begin(0);
    progress.say("stopping");
    gateway::stop(handle).await;
    cluster.stop().await;
    progress.end();
    Ok(())
}

async fn start(args: &UpArgs, progress: &Progress) -> Result<(LocalCluster, GatewayHandle)> {
    let path = args.data.join(config::FILE_NAME);
    // Before anything is started: whether the address can be had.
    let listen = match (args.address.listen, path.exists()) {
        (Some(listen), _) => listen,
        (None, true) => Config::load_unresolved(&path)?.gateway.listen,
        (None, false) => config::Gateway::default().listen,
    };
    gateway::check_address(listen)?;

    let shown = progress.clone();
    let options = Options {
        progress: Arc::new(move |event| shown.show(event)),
        ..Options::new(&args.data, args.shards)
    };
    let cluster = LocalCluster::start(options).await?;
    let config = configuration(&cluster, listen)?;
    progress.step();
    progress.say("preparing the catalog");
    gateway::prepare(&config, "postgres").await?;
    progress.step();
    progress.say("starting the gateway");
    let address = AddressArgs {
        listen: Some(listen),
        ..args.address.clone()
    };
    let handle = gateway::start(&config, &address).await?;
    // Its port is bound: a process that talks to the network has no use for root's rights.
    cluster.account().become_it()?;
    Ok((cluster, handle))
}

/// Reads the folder's configuration, or writes it the first time.
fn configuration(cluster: &LocalCluster, listen: SocketAddr) -> Result<Config> {
    let path = cluster.data().join(config::FILE_NAME);
    if !path.exists() {
        let shards = cluster.shards().iter().zip(1..);
        // Sockets from the file, so that the folder can be moved.
        let shards = shards.map(|(server, id)| Shard::new(id, server.name(), "./sockets", server.port()));
        Config::generate(listen, shards.collect()).write_new(&path)?;
        cluster.account().own(&path)?;
    }
    let config = Config::load(&path)?;
    for (server, id) in cluster.shards().iter().zip(1..) {
        let known = config.shards.iter().find(|shard| shard.id == id);
        let same = known.is_some_and(|shard| {
            shard.port == server.port() && server.socket_dir().to_str() == Some(shard.host.as_str())
        });
        if !same {
            let difference = format!(
                "shard {id} is {} at port {}",
                server.socket_dir().display(),
                server.port()
            );
            return Err(Error::OtherShards { path, difference });
        }
    }
    Ok(config)
}

/// Starts a shard again whose process has ended; never returns.
async fn look_after(cluster: &LocalCluster) {
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        for (shard, id) in cluster.shards().iter().zip(1..) {
            if shard.pid().is_some() {
                continue;
            }
            eprintln!(
                "{} has ended (its log: {}); starting it again",
                shard.name(),
                shard.log_path().display()
            );
            if let Err(error) = cluster.restart_shard(id).await {
                eprintln!("{error}");
            }
        }
    }
}
