//! `pgherd.toml`: what a gateway must know before it can ask the shards for anything.
//!
//! The catalog on the home shard holds the rest (tables, ranges, gateways). Every gateway of a cluster reads the same
//! file; what differs between them (`--listen`, `--name`) is on the command line.

mod shard;

use crate::{Error, Result};
use pgherd_gateway::{DEFAULT_RULES, Rules, TlsFiles};
use rand::Rng;
use rand::distr::Alphanumeric;
use serde::Deserialize;
pub use shard::Shard;
use std::collections::HashSet;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file's name inside of a data folder.
pub const FILE_NAME: &str = "pgherd.toml";

/// The contents of `pgherd.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What all gateways of the cluster have in common.
    pub cluster: Cluster,
    /// What may differ between gateways.
    #[serde(default)]
    pub gateway: Gateway,
    /// The PostgreSQL servers. The one with the lowest id is the home shard.
    #[serde(default)]
    pub shards: Vec<Shard>,
}

/// The table `[cluster]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Part of the names of two-phase transactions; never changes.
    pub name: String,
    /// The key of the hashes that keep clients from forging markers. The environment's PGHERD_SECRET comes first.
    #[serde(default)]
    pub secret: String,
    /// The superuser that gateways use for connections of their own.
    #[serde(default = "default_service_role")]
    pub service_role: String,
    /// `none`, `local` or `primary_key`: the default of `pgherd.default_distribution`.
    pub default_distribution: Option<String>,
    /// The default of `pgherd.initial_bounds`.
    pub initial_bounds: Option<String>,
}

/// The table `[gateway]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where metrics and health are served: an address, "off", or none for the listening port plus 1000.
    pub metrics_listen: Option<String>,
    /// Who may connect from where, in the format of pg_hba.conf; the first rule that matches decides.
    pub access: Option<Vec<String>>,
    /// The certificate with which connections are encrypted, in PEM format; relative to the file.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key.
    pub tls_key: Option<PathBuf>,
    /// The authorities that sign clients' certificates.
    pub tls_client_authorities: Option<PathBuf>,
    /// The most connections per shard, role and database.
    pub pool_size: usize,
    /// The most clients at a time.
    pub max_clients: usize,
    /// The most clients of one role at a time.
    pub max_clients_per_role: Option<usize>,
    /// Seconds that a client may take to log in.
    pub startup_timeout_s: u64,
    /// The largest message taken from a client, in MiB.
    pub max_message_mib: usize,
    /// Seconds of silence after which it is asked whether a client is still there.
    pub tcp_keepalives_idle_s: u32,
    /// Memory for queries over several shards, all of them together, in MiB.
    pub query_memory_mib: usize,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7432)),
            metrics_listen: None,
            access: None,
            tls_certificate: None,
            tls_key: None,
            tls_client_authorities: None,
            pool_size: 40,
            max_clients: 2000,
            max_clients_per_role: None,
            startup_timeout_s: 60,
            max_message_mib: 256,
            tcp_keepalives_idle_s: 60,
            query_memory_mib: 1024,
        }
    }
}

fn default_service_role() -> String {
    pgherd_local_cluster::SERVICE_ROLE.to_string()
}

impl Gateway {
    /// Who may connect; without `access`, this machine's clients, and others by password.
    pub fn rules(&self) -> Result<Rules, String> {
        match &self.access {
            Some(lines) => Rules::parse(lines.iter().map(String::as_str)),
            None => Ok(Rules::default()),
        }
    }

    /// The files for TLS, where it is configured.
    pub fn tls(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            certificate: self.tls_certificate.clone()?,
            key: self.tls_key.clone()?,
            client_authorities: self.tls_client_authorities.clone(),
        })
    }
}

impl Config {
    /// A configuration with a name and a secret that nobody else has.
    pub fn generate(listen: SocketAddr, shards: Vec<Shard>) -> Self {
        let mut rng = rand::rng();
        let name: String = (&mut rng).sample_iter(Alphanumeric).take(8).map(char::from).collect();
        let secret: [u8; 32] = rng.random();
        Self {
            cluster: Cluster {
                name: format!("c{}", name.to_ascii_lowercase()),
                secret: hex::encode(secret),
                service_role: default_service_role(),
                default_distribution: None,
                initial_bounds: None,
            },
            gateway: Gateway {
                listen,
                ..Gateway::default()
            },
            shards,
        }
    }

    /// Reads and checks a file, without looking for the sockets that it names.
    pub fn load_unresolved(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NoConfig(path.to_path_buf()),
            _ => Error::Read {
                path: path.to_path_buf(),
                source,
            },
        })?;
        let bad = |reason: String| Error::BadConfig {
            path: path.to_path_buf(),
            reason,
        };
        let mut config: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if let Ok(secret) = std::env::var("PGHERD_SECRET") {
            config.cluster.secret = secret;
        }
        config.check().map_err(bad)?;
        Ok(config)
    }

    /// Reads and checks a file; the folders of sockets come back absolute.
    pub fn load(path: &Path) -> Result<Self> {
        let mut config = Self::load_unresolved(path)?;
        let base = path
            .canonicalize()
            .ok()
            .and_then(|path| path.parent().map(Path::to_path_buf))
            .unwrap_or_default();
        for shard in config.shards.iter_mut().filter(|shard| shard.host.starts_with('.')) {
            let folder = base.join(&shard.host);
            let found = folder.canonicalize().map_err(|_| Error::NoSockets {
                shard: shard.name.clone(),
                folder,
            })?;
            shard.host = found.to_string_lossy().into_owned();
        }
        let Gateway {
            tls_certificate,
            tls_key,
            tls_client_authorities,
            ..
        } = &mut config.gateway;
        for file in [tls_certificate, tls_key, tls_client_authorities].into_iter().flatten() {
            *file = base.join(&*file);
        }
        config.shards.iter_mut().for_each(|shard| shard.resolve(&base));
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let Cluster {
            name,
            secret,
            default_distribution,
            ..
        } = &self.cluster;
        // It goes into the names of prepared transactions, which are short and compared by prefix.
        let plain = |character: char| character.is_ascii_alphanumeric();
        if name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
            return Err(format!("cluster.name is {name:?}: it takes 1 to 32 letters and digits"));
        }
        if secret.len() < 32 {
            return Err("cluster.secret is shorter than 32 characters; `openssl rand -hex 32` makes one".into());
        }
        if let Some(other) = default_distribution
            .as_deref()
            .filter(|value| !["none", "local", "primary_key"].contains(value))
        {
            return Err(format!(
                "cluster.default_distribution is {other:?}: it is \"none\", \"local\" or \"primary_key\""
            ));
        }
        if self.gateway.pool_size == 0 {
            return Err("gateway.pool_size is 0, so that no statement could run; 40 is the default".into());
        }
        let Gateway {
            max_clients,
            max_clients_per_role,
            startup_timeout_s,
            max_message_mib,
            query_memory_mib,
            ..
        } = self.gateway;
        if max_clients == 0 || query_memory_mib == 0 || query_memory_mib > usize::MAX >> 20 {
            return Err("gateway.max_clients and gateway.query_memory_mib take numbers above 0".into());
        }
        if max_clients_per_role == Some(0) || startup_timeout_s == 0 {
            return Err("gateway.max_clients_per_role and gateway.startup_timeout_s take numbers above 0".into());
        }
        // The protocol's lengths have 31 bits.
        if !(1..2048).contains(&max_message_mib) {
            return Err("gateway.max_message_mib takes a number from 1 to 2047".into());
        }
        self.gateway.rules().map_err(|e| format!("gateway.access, {e}"))?;
        if self.gateway.tls_certificate.is_some() != self.gateway.tls_key.is_some() {
            return Err("gateway.tls_certificate and gateway.tls_key go together".into());
        }
        if self.gateway.tls_client_authorities.is_some() && self.gateway.tls_certificate.is_none() {
            return Err("gateway.tls_client_authorities needs gateway.tls_certificate and gateway.tls_key".into());
        }
        if self.shards.is_empty() {
            return Err("there is no [[shards]] table; name at least one PostgreSQL server".into());
        }
        let (mut ids, mut names, mut places) = (HashSet::new(), HashSet::new(), HashSet::new());
        for shard in &self.shards {
            shard.tls()?;
            if shard.id == 0 {
                return Err(format!("shard {:?} has id 0; ids count from 1", shard.name));
            }
            if !ids.insert(shard.id) || !names.insert(&shard.name) || !places.insert((&shard.host, shard.port)) {
                return Err(format!(
                    "shard {:?} shares its id, name or address with another one",
                    shard.name
                ));
            }
        }
        Ok(())
    }

    /// Writes a new annotated file that only its owner can read; leaves an existing one alone.
    pub fn write_new(&self, path: &Path) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let staging = path.with_extension("toml.new");
            let _ = std::fs::remove_file(&staging);
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&staging)?;
            file.write_all(self.annotated().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(staging, path)
        };
        write().map_err(|source| Error::Write {
            path: path.to_path_buf(),
            source,
        })
    }

    /// The file's text, with what each setting is for.
    fn annotated(&self) -> String {
        let quote = |text: &str| toml::Value::from(text).to_string();
        let optional = |name: &str, value: &Option<String>, example: &str| match value {
            Some(value) => format!("{name} = {}", quote(value)),
            None => format!("# {name} = {example}"),
        };
        let file = |name: &str, value: &Option<PathBuf>, example: &str| {
            optional(
                name,
                &value.as_ref().map(|path| path.to_string_lossy().into_owned()),
                example,
            )
        };
        let Cluster {
            name,
            secret,
            service_role,
            default_distribution,
            initial_bounds,
        } = &self.cluster;
        format!(
            include_str!("pgherd.toml.template"),
            name = quote(name),
            secret = quote(secret),
            service_role = quote(service_role),
            default_distribution = optional("default_distribution", default_distribution, "\"primary_key\""),
            initial_bounds = optional("initial_bounds", initial_bounds, "\"int 1000,2000; text h,q\""),
            listen = quote(&self.gateway.listen.to_string()),
            metrics_listen = optional("metrics_listen", &self.gateway.metrics_listen, "\"127.0.0.1:8432\""),
            access = self.annotated_access(),
            tls_certificate = file("tls_certificate", &self.gateway.tls_certificate, "\"gateway.crt\""),
            tls_key = file("tls_key", &self.gateway.tls_key, "\"gateway.key\""),
            tls_client_authorities = file(
                "tls_client_authorities",
                &self.gateway.tls_client_authorities,
                "\"clients.crt\""
            ),
            pool_size = self.gateway.pool_size,
            max_clients = self.gateway.max_clients,
            max_clients_per_role = match self.gateway.max_clients_per_role {
                Some(most) => format!("max_clients_per_role = {most}"),
                None => "# max_clients_per_role = 200".to_owned(),
            },
            startup_timeout_s = self.gateway.startup_timeout_s,
            max_message_mib = self.gateway.max_message_mib,
            tcp_keepalives_idle_s = self.gateway.tcp_keepalives_idle_s,
            query_memory_mib = self.gateway.query_memory_mib,
            shards = self.shards.iter().map(Shard::annotated).collect::<String>(),
        )
    }

    /// The list of rules; where there is none, the default ones as a comment.
    fn annotated_access(&self) -> String {
        let list = |rules: &mut dyn Iterator<Item = &str>, start: &str| {
            let lines = rules.map(|rule| format!("{start}    {},\n", toml::Value::from(rule)));
            format!("{start}access = [\n{}{start}]", lines.collect::<String>())
        };
        match &self.gateway.access {
            Some(rules) => list(&mut rules.iter().map(String::as_str), ""),
            None => list(&mut DEFAULT_RULES.into_iter(), "# "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: u32, host: &str) -> Shard {
        Shard::new(id, format!("shard{id}"), host, 6000 + id as u16)
    }

    fn check(config: &Config) -> String {
        config.check().expect_err("it must be refused")
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join(FILE_NAME);
        let listen = "[::1]:7432".parse().expect("address");
        let mut config = Config::generate(listen, vec![shard(1, "db1.example"), shard(2, "/run/a \"b\\")]);
        config.write_new(&path).expect("write");
        assert_eq!(Config::load(&path).expect("load"), config);

        config.cluster.default_distribution = Some("primary_key".into());
        config.cluster.initial_bounds = Some("text 'a\"b'".into());
        config.gateway.metrics_listen = Some("off".into());
        config.gateway.access = Some(vec![
            "hostssl all \"a b\" all cert".into(),
            "host all all all md5".into(),
        ]);
        config.gateway.tls_certificate = Some("/etc/pgherd/\"x\".crt".into());
        config.gateway.tls_key = Some("/etc/pgherd/x.key".into());
        config.gateway.max_clients_per_role = Some(7);
        config.shards[0].sslmode = Some("verify-full".into());
        config.shards[0].sslrootcert = Some("/etc/pgherd/root.crt".into());
        config.write_new(&path).expect("write");
        assert_eq!(Config::load(&path).expect("load"), config);
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().expect("metadata").permissions());
        assert_eq!(mode & 0o777, 0o600, "it holds a secret");
    }

    #[test]
    fn a_folder_of_sockets_is_found_beside_the_file() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join(FILE_NAME);
        let config = Config::generate("127.0.0.1:1".parse().expect("address"), vec![shard(1, "./sockets")]);
        config.write_new(&path).expect("write");
        let error = Config::load(&path).expect_err("there are no sockets yet").to_string();
        assert!(error.contains("pgherd up"), "{error}");
        std::fs::create_dir(folder.path().join("sockets")).expect("mkdir");
        let host = Config::load(&path).expect("load").shards[0].host.clone();
        assert_eq!(
            host,
            folder
                .path()
                .canonicalize()
                .expect("path")
                .join("sockets")
                .to_string_lossy()
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = Config::generate(
            "127.0.0.1:1".parse().expect("address"),
            vec![shard(1, "a"), shard(2, "b")],
        );
        good.check().expect("good");
        let with = |change: fn(&mut Config)| {
            let mut config = good.clone();
            change(&mut config);
            check(&config)
        };
        assert!(with(|config| config.cluster.name = "a b".into()).contains("cluster.name"));
        assert!(with(|config| config.cluster.secret = "short".into()).contains("openssl rand"));
        assert!(with(|config| config.cluster.default_distribution = Some("hash".into())).contains("\"primary_key\""));
        assert!(with(|config| config.gateway.pool_size = 0).contains("pool_size"));
        assert!(with(|config| config.gateway.access = Some(vec!["host all all".into()])).contains("gateway.access"));
        assert!(with(|config| config.gateway.tls_key = Some("x".into())).contains("tls_certificate"));
        assert!(with(|config| config.gateway.tls_client_authorities = Some("x".into())).contains("tls_key"));
        assert!(with(|config| config.shards.clear()).contains("[[shards]]"));
        assert!(with(|config| config.shards[1].id = 1).contains("shard2"));
        assert!(with(|config| config.shards[0].id = 0).contains("count from 1"));
        assert!(
            toml::from_str::<Config>("[cluster]\nname = 'a'\nsecret = ''\nspeed = 9").is_err(),
            "unknown settings"
        );
    }
}
