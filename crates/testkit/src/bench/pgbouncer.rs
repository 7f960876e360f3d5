//! PgBouncer in front of the plain server: transaction pooling, as people use it and as pgherd pools.

use crate::herd::{self, cannot_run, file_error, peak_memory_bytes};
use crate::{Error, Result};
use pgherd_local_cluster::Server;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const START_LIMIT: Duration = Duration::from_secs(10);

/// Starts PgBouncer, says its process id, and ends it when standard input does: then nothing is left even if the
/// process that measures is killed.
const SCRIPT: &str = "\"$1\" \"$2\" & pid=$!; echo $pid; cat >/dev/null; kill -INT $pid; wait $pid";

/// A running PgBouncer. Dropping it stops it.
pub(crate) struct PgBouncer {
    child: Child,
    pid: u32,
    port: u16,
    version: String,
    prepared_statements: bool,
}

impl PgBouncer {
    /// Starts it in front of `server`, with as many server connections as there are `clients`: no client has to wait for
    /// one, as in pgherd. Its files lie in `scratch`.
    ///
    /// Errors: it is not installed, or it does not come up; its log is in the error.
    pub(crate) async fn start(server: &Server, clients: usize, scratch: &Path) -> Result<Self> {
        let program = find().ok_or_else(|| Error::Program {
            program: "pgbouncer".into(),
            output: "it is not installed\nInstall it (Debian, Ubuntu: apt-get install pgbouncer; macOS: brew install \
                     pgbouncer), or leave it out with --sides"
                .into(),
        })?;
        let mut version = Command::new(&program);
        version.arg("--version");
        let version = herd::run("pgbouncer --version", version).await?;
        let version = version
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("PgBouncer ")
            .to_string();
        let prepared_statements = knows_prepared_statements(&version);
        let port = free_port()?;
        let config = scratch.join("pgbouncer.ini");
        let log = scratch.join("pgbouncer.log");
        let text = configuration(server, port, clients, scratch, prepared_statements);
        let users = scratch.join("pgbouncer.users");
        for (path, text) in [
            (&config, text),
            (&users, "\"postgres\" \"\"\n".into()),
            (&log, String::new()),
        ] {
            std::fs::write(path, text).map_err(file_error(path))?;
            server.account().own(path)?;
        }
        let mut command = std::process::Command::new("/bin/sh");
        command
            .args(["-c", SCRIPT, "sh"])
            .arg(&program)
            .arg(&config)
            .current_dir("/");
        // PgBouncer, as PostgreSQL, refuses to run as root.
        server.account().apply(&mut command);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = Command::from(command).spawn().map_err(cannot_run("pgbouncer"))?;
        let pid = read_pid(&mut child).await.unwrap_or(0);
        let bouncer = Self {
            child,
            pid,
            port,
            version,
            prepared_statements,
        };
        if tokio::time::timeout(START_LIMIT, bouncer.answers()).await.is_err() {
            return Err(Error::Program {
                program: "pgbouncer".into(),
                output: std::fs::read_to_string(&log).unwrap_or_default(),
            });
        }
        Ok(bouncer)
    }

    async fn answers(&self) {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .user("postgres")
            .dbname("postgres");
        while config.connect(tokio_postgres::NoTls).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn peak_memory_bytes(&self) -> u64 {
        peak_memory_bytes(self.pid)
    }

    /// Whether prepared statements work with transaction pooling.
    pub(crate) fn prepared_statements(&self) -> bool {
        self.prepared_statements
    }

    /// Stops it, and waits until it is gone.
    pub(crate) async fn stop(mut self) {
        drop(self.child.stdin.take());
        let _ = tokio::time::timeout(START_LIMIT, self.child.wait()).await;
    }
}

async fn read_pid(child: &mut Child) -> Option<u32> {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut()?).read_line(&mut line).await.ok()?;
    line.trim().parse().ok()
}

/// Whether there is a PgBouncer to compare with.
pub fn is_installed() -> bool {
    find().is_some()
}

/// On PATH, or where Debian puts it, which is not on the PATH of ordinary users.
fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders
        .map(|folder| folder.join("pgbouncer"))
        .find(|program| program.is_file())
}

/// From 1.21, transaction pooling keeps track of prepared statements.
fn knows_prepared_statements(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (1, 21)
}

fn configuration(server: &Server, port: u16, clients: usize, scratch: &Path, prepared_statements: bool) -> String {
    let (host, server_port) = (server.socket_dir().display(), server.port());
    let scratch = scratch.display();
    let prepared = if prepared_statements {
        "max_prepared_statements = 200\n"
    } else {
        ""
    };
    format!(
        "[databases]\n* = host={host} port={server_port}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n\
         auth_file = {scratch}/pgbouncer.users\nlogfile = {scratch}/pgbouncer.log\npool_mode = transaction\n\
         default_pool_size = {clients}\nmin_pool_size = {clients}\nmax_client_conn = 1000\n\
         log_connections = 0\nlog_disconnections = 0\n{prepared}"
    )
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_versions_know_prepared_statements() {
        assert!(!knows_prepared_statements("1.18.0"));
        assert!(knows_prepared_statements("1.21.0") && knows_prepared_statements("2.0"));
        assert!(!knows_prepared_statements("?"));
    }
}
