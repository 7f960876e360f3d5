//! `[[shards]]`: where a PostgreSQL server is, and how connections to it are encrypted.

use crate::{Error, Result};
use pgherd_model::ShardId;
use pgherd_shards::{ShardConfig, SslMode, Tls, TlsSettings};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// One of the tables `[[shards]]`. The settings of TLS have libpq's names and meanings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Counts from 1; never changes, never used again.
    pub id: u32,
    /// What people see.
    pub name: String,
    /// A host name or address; or the folder of a Unix socket, absolute or (starting with "./") relative to the file.
    pub host: String,
    /// The port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// `disable`, `require`, `verify-ca` or `verify-full`.
    pub sslmode: Option<String>,
    /// The authorities that sign the server's certificate; relative to the file, like the next two.
    pub sslrootcert: Option<PathBuf>,
    /// The gateway's certificate, with which it logs in as its clients' roles.
    pub sslcert: Option<PathBuf>,
    /// The private key of that.
    pub sslkey: Option<PathBuf>,
}

fn default_port() -> u16 {
    5432
}

impl Shard {
    /// Without TLS.
    pub fn new(id: u32, name: impl Into<String>, host: impl Into<String>, port: u16) -> Self {
        Self {
            id,
            name: name.into(),
            host: host.into(),
            port,
            sslmode: None,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
        }
    }

    /// Makes the files of TLS relative to a folder.
    pub(super) fn resolve(&mut self, base: &Path) {
        let files = [&mut self.sslrootcert, &mut self.sslcert, &mut self.sslkey];
        for file in files.into_iter().flatten() {
            *file = base.join(&*file);
        }
    }

    /// What TLS is to be, if it is to be.
    pub(super) fn tls(&self) -> std::result::Result<Option<TlsSettings>, String> {
        let wrong = |what: &str| Err(format!("shard {:?}: {what}", self.name));
        let mode = match self.sslmode.as_deref() {
            None | Some("disable") => None,
            Some("require") => Some(SslMode::Require),
            Some("verify-ca") => Some(SslMode::VerifyCa),
            Some("verify-full") => Some(SslMode::VerifyFull),
            Some(_) => return wrong("sslmode is \"disable\", \"require\", \"verify-ca\" or \"verify-full\""),
        };
        let Some(mode) = mode else {
            return match (&self.sslrootcert, &self.sslcert, &self.sslkey) {
                (None, None, None) => Ok(None),
                _ => wrong("sslrootcert, sslcert and sslkey need an sslmode"),
            };
        };
        if self.host.starts_with(['/', '.']) {
            return wrong("Unix sockets are not encrypted; leave sslmode out");
        }
        if mode != SslMode::Require && self.sslrootcert.is_none() {
            return wrong("sslmode verify-ca and verify-full need sslrootcert");
        }
        let own = match (self.sslcert.clone(), self.sslkey.clone()) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return wrong("sslcert and sslkey go together"),
        };
        Ok(Some(TlsSettings {
            mode,
            root: self.sslrootcert.clone(),
            own,
        }))
    }

    /// The shard as gateways know it. Reads the files of TLS.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn to_connect(&self) -> Result<ShardConfig> {
        let settings = self.tls().map_err(Error::Tls)?;
        let tls = settings.map(|settings| Tls::load(&settings)).transpose();
        Ok(ShardConfig {
            id: ShardId(self.id),
            name: self.name.clone(),
            host: self.host.clone(),
            port: self.port,
            tls: tls.map_err(|cause| Error::Tls(format!("shard {:?}: {cause}", self.name)))?,
        })
    }

    /// A connection to this shard, for one command.
    ///
    /// # Errors
    /// The outer one: a file of TLS that cannot be used. The inner one: as of tokio-postgres.
    pub async fn connect(
        &self,
        role: &str,
        database: &str,
    ) -> Result<std::result::Result<tokio_postgres::Client, tokio_postgres::Error>> {
        let shard = self.to_connect()?;
        let mut settings = shard.service_settings(role, database);
        settings.application_name("pgherd");
        settings.connect_timeout(std::time::Duration::from_secs(10));
        let connected = settings.connect(shard.connector()).await;
        Ok(connected.map(|(client, connection)| {
            tokio::spawn(connection);
            client
        }))
    }

    /// The table as it is written into the file.
    pub(super) fn annotated(&self) -> String {
        let quote = |text: &str| toml::Value::from(text).to_string();
        let mut table = format!(
            "\n[[shards]]\nid = {}\nname = {}\nhost = {}\nport = {}\n",
            self.id,
            quote(&self.name),
            quote(&self.host),
            self.port
        );
        let path = |file: &Option<PathBuf>| file.as_ref().map(|f| f.to_string_lossy().into_owned());
        let optional = [
            ("sslmode", self.sslmode.clone()),
            ("sslrootcert", path(&self.sslrootcert)),
            ("sslcert", path(&self.sslcert)),
            ("sslkey", path(&self.sslkey)),
        ];
        for (name, value) in optional {
            table.extend(value.map(|value| format!("{name} = {}\n", quote(&value))));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_tls_is_named() {
        let refused = |change: fn(&mut Shard)| {
            let mut shard = Shard::new(1, "one", "db1.example", 5432);
            change(&mut shard);
            shard.tls().expect_err("it must be refused")
        };
        assert!(refused(|s| s.sslmode = Some("prefer".into())).contains("sslmode is"));
        assert!(refused(|s| s.sslmode = Some("verify-full".into())).contains("need sslrootcert"));
        assert!(refused(|s| s.sslcert = Some("x".into())).contains("need an sslmode"));
        assert!(
            refused(|s| {
                s.sslmode = Some("require".into());
                s.sslkey = Some("x".into());
            })
            .contains("go together")
        );
        assert!(
            refused(|s| {
                s.sslmode = Some("require".into());
                s.host = "/run/postgresql".into();
            })
            .contains("Unix sockets")
        );
        assert_eq!(Shard::new(1, "one", "h", 1).tls(), Ok(None));
    }
}
