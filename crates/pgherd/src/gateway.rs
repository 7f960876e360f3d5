//! `pgherd gateway`: runs one gateway on shards that a configuration names. `pgherd up` runs its own the same way.

use crate::config::{Config, Shard};
use crate::terminated::Terminated;
use crate::{Error, Result};
use clap::Args;
use pgherd_gateway::{Gateway, GatewayHandle, Options};
use pgherd_local_cluster::Account;
use pgherd_shards::{ShardConfig, Shards};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

/// How long sessions may take to end when the gateway stops; then they are cut off.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a gateway on the shards of a configuration
#[derive(Debug, Args)]
pub struct GatewayArgs {
    /// The configuration: the one that `pgherd up` wrote, or your own
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Also stop when standard input ends
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
    #[command(flatten)]
    pub address: AddressArgs,
}

/// Where a gateway is to be found.
#[derive(Debug, Clone, Args)]
pub struct AddressArgs {
    /// Where clients connect [default: what the configuration says, else 127.0.0.1:7432]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Where Prometheus metrics and /health are served, or "off" [default: the listening port plus 1000]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<String>,
    /// This gateway's name, different from all others of the cluster [default: the host's name and the port]
    #[arg(long)]
    pub name: Option<String>,
}

/// Runs the command until it is told to stop.
pub async fn run(args: GatewayArgs) -> Result<()> {
    let mut terminated = Terminated::watch(args.until_stdin_ends)?;
    let config = Config::load(&args.config)?;
    let handle = tokio::select! {
        handle = start(&config, &args.address) => handle?,
        () = terminated.next() => return Ok(()),
    };
    // The sockets are bound, so root's rights are not needed any more: whose configuration it is, runs it.
    if let Ok(account) = Account::for_folder(&args.config) {
        account.become_it()?;
    }
    announce(&handle);
    terminated.next().await;
    stop(handle).await;
    Ok(())
}

/// Starts a gateway; it serves when this returns.
pub async fn start(config: &Config, address: &AddressArgs) -> Result<GatewayHandle> {
    let listen = address.listen.unwrap_or(config.gateway.listen);
    let metrics = address
        .metrics_listen
        .as_ref()
        .or(config.gateway.metrics_listen.as_ref());
    let mut options = Options::new(config.cluster.name.clone(), shards(config)?);
    options.gateway_name = address.name.clone().unwrap_or_else(|| default_name(listen));
    options.listen = listen;
    options.metrics_listen = metrics_address(metrics.map(String::as_str), listen)?;
    options.service_role.clone_from(&config.cluster.service_role);
    options.secret.clone_from(&config.cluster.secret);
    options
        .default_distribution
        .clone_from(&config.cluster.default_distribution);
    options.initial_bounds.clone_from(&config.cluster.initial_bounds);
    let access = config.gateway.rules().map_err(pgherd_gateway::Error::Configuration);
    options.access = access?;
    options.tls = config.gateway.tls();
    options.pool_size = config.gateway.pool_size;
    options.max_clients = config.gateway.max_clients;
    options.max_clients_per_role = config.gateway.max_clients_per_role;
    options.startup_timeout = Duration::from_secs(config.gateway.startup_timeout_s);
    options.max_message_bytes = config.gateway.max_message_mib << 20;
    options.keepalive_idle_s = config.gateway.tcp_keepalives_idle_s;
    options.query_memory_bytes = config.gateway.query_memory_mib << 20;
    Ok(Gateway::start(options).await?)
}

/// Makes schema `pgherd` on the shards, where it is missing.
pub async fn prepare(config: &Config, database: &str) -> Result<()> {
    let shards = Shards::new(pgherd_shards::Options::new(
        shards(config)?,
        config.cluster.service_role.clone(),
    ));
    Ok(pgherd_catalog::install(&shards, database, &config.cluster.name, &config.cluster.secret).await?)
}

/// The configuration's shards, as the gateway knows them.
fn shards(config: &Config) -> Result<Vec<ShardConfig>> {
    config.shards.iter().map(Shard::to_connect).collect()
}

/// Refuses an address that is taken; asked before shards are started for nothing.
pub fn check_address(listen: SocketAddr) -> Result<()> {
    TcpListener::bind(listen)
        .map(drop)
        .map_err(|source| Error::Listen { listen, source })
}

/// Prints the line that says how to connect; scripts wait for it.
pub fn announce(handle: &GatewayHandle) {
    let address = handle.local_addr();
    println!(
        "ready: psql -h {} -p {} -U postgres",
        reachable(address.ip()),
        address.port()
    );
}

/// Ends a gateway, politely first.
pub async fn stop(handle: GatewayHandle) {
    if tokio::time::timeout(STOP_TIMEOUT, handle.stop()).await.is_err() {
        tracing::warn!(
            "sessions did not end within {} s and are cut off",
            STOP_TIMEOUT.as_secs()
        );
    }
}

/// An address to connect to, for one that means "all".
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// Gateways on several machines may all listen on the same port; where the port is left to the system, it is not known
/// yet, and the process tells gateways on one machine apart.
fn default_name(listen: SocketAddr) -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let host = host.unwrap_or_else(|| "gateway".into());
    match listen.port() {
        0 => format!("{host}-process-{}", std::process::id()),
        port => format!("{host}-{port}"),
    }
}

fn metrics_address(setting: Option<&str>, listen: SocketAddr) -> Result<Option<SocketAddr>> {
    match setting {
        Some("off") => Ok(None),
        Some(text) => {
            let bad = || Error::BadAddress {
                what: "metrics_listen",
                text: text.to_string(),
            };
            let address: SocketAddr = text.parse().map_err(|_| bad())?;
            TcpListener::bind(address).map_err(|source| Error::Listen {
                listen: address,
                source,
            })?;
            Ok(Some(address))
        }
        None => {
            // Nobody asked for this port, so that it is taken is no reason not to start.
            let port = listen.port().checked_add(1000).filter(|_| listen.port() != 0);
            let address = port.map(|port| SocketAddr::new(listen.ip(), port));
            let free = address.filter(|address| TcpListener::bind(address).is_ok());
            if free.is_none() {
                tracing::info!(
                    ?address,
                    "metrics and health are off, because that port is taken; see --metrics-listen"
                );
            }
            Ok(free)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_metrics_are_served() {
        let listen = "127.0.0.1:7432".parse().expect("address");
        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = taken.local_addr().expect("address");
        assert_eq!(metrics_address(Some("off"), listen).expect("off"), None);
        assert!(
            metrics_address(Some("8432"), listen)
                .expect_err("no host")
                .to_string()
                .contains("127.0.0.1:8432")
        );
        assert!(
            metrics_address(Some(&address.to_string()), listen).is_err(),
            "asked for, and taken"
        );
        let below = SocketAddr::new(address.ip(), address.port() - 1000);
        assert_eq!(
            metrics_address(None, below).expect("not asked for"),
            None,
            "the port is taken"
        );
        assert_eq!(
            metrics_address(None, "127.0.0.1:65000".parse().expect("address")).expect("none"),
            None
        );
    }

    #[test]
    fn a_taken_address_is_refused() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        let taken = check_address(taken.local_addr().expect("address"))
            .expect_err("taken")
            .to_string();
        assert!(taken.contains("--listen"), "{taken}");
        check_address("127.0.0.1:0".parse().expect("address")).expect("a free one");
    }
}
