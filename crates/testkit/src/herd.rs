//! A pgherd cluster as processes: shards that this process starts and owns, and gateways that run as the `pgherd`
//! program does for anybody.
//!
//! A gateway can be killed, paused and started again without the shards noticing, which is what fault tests want; and it
//! has a memory of its own to look at, which is what the benchmark wants. Nothing outlives this process, even if it is
//! killed itself: the shards have a watchdog, and gateways end when their standard input does.

use crate::{Error, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgherd_local_cluster::{Account, LocalCluster};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_postgres::SimpleQueryMessage;

/// How long a gateway may take from its start to its `ready:` line, recovery included.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a gateway that was told to stop may take to end its sessions.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Shards, and the configuration with which any number of gateways run on them.
pub struct Herd {
    // Dropped first: it stops the shards and removes the folder that the configuration lies in.
    cluster: LocalCluster,
    program: PathBuf,
    config: PathBuf,
}

impl Herd {
    /// Starts `shards` shards that do not wait for the disk, and prepares them with `pgherd init`.
    pub async fn start(program: &Path, shards: usize) -> Result<Self> {
        Self::prepare(program, LocalCluster::ephemeral(shards).await?).await
    }

    /// Starts them, and a gateway of that name.
    pub async fn with_gateway(program: &Path, shards: usize, name: &str) -> Result<(Self, Gateway)> {
        let herd = Self::start(program, shards).await?;
        let gateway = herd.gateway(name).await?;
        Ok((herd, gateway))
    }

    /// As [`Herd::start`], with shards that flush their log as those of a kept cluster, and with more settings of PostgreSQL.
    pub async fn start_durable(program: &Path, shards: usize, settings: Vec<(String, String)>) -> Result<Self> {
        Self::prepare(program, LocalCluster::ephemeral_durable(shards, settings).await?).await
    }

    async fn prepare(program: &Path, cluster: LocalCluster) -> Result<Self> {
        let config = cluster.data().join("pgherd.toml");
        let addresses = cluster.shards().iter().map(|shard| (shard.socket_dir(), shard.port()));
        write_config(&cluster, &config, addresses)?;
        let herd = Self {
            cluster,
            program: program.to_path_buf(),
            config,
        };
        let mut command = Command::new(&herd.program);
        command.args(["init", "--config"]).arg(&herd.config);
        run("pgherd init", command).await?;
        Ok(herd)
    }

    /// Starts a gateway of that name on a free port; it serves when this returns.
    ///
    /// Errors: it ended before it was ready, or took more than a minute; what it wrote to standard error is in the error.
    pub async fn gateway(&self, name: &str) -> Result<Gateway> {
        self.gateway_with(name, &["--metrics-listen", "off"], &[]).await
    }

    /// The same with more arguments, and with variables in its environment.
    pub async fn gateway_with(
        &self,
        name: &str,
        arguments: &[&str],
        environment: &[(&str, &OsStr)],
    ) -> Result<Gateway> {
        Gateway::start(self.command(&self.config, name, arguments, environment)).await
    }

    /// The command that runs a gateway by this configuration.
    pub(crate) fn command(
        &self,
        config: &Path,
        name: &str,
        arguments: &[&str],
        environment: &[(&str, &OsStr)],
    ) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["gateway", "--listen", "127.0.0.1:0", "--name", name]);
        command
            .args(arguments)
            .arg("--until-stdin-ends")
            .arg("--config")
            .arg(config);
        command.envs(environment.iter().copied());
        command
    }

    /// Another configuration, by which a gateway finds the shards at other addresses.
    pub(crate) fn config_through<'a>(
        &self,
        file: &str,
        addresses: impl Iterator<Item = (&'a Path, u16)>,
    ) -> Result<PathBuf> {
        let config = self.folder().join(file);
        write_config(&self.cluster, &config, addresses)?;
        Ok(config)
    }

    /// The same with settings of its own: lines of the table `[gateway]`.
    pub async fn gateway_with_settings(&self, name: &str, settings: &str) -> Result<Gateway> {
        let config = self.folder().join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&self.config).map_err(file_error(&self.config))?;
        std::fs::write(&config, format!("{text}\n[gateway]\n{settings}\n")).map_err(file_error(&config))?;
        self.account().own(&config)?;
        Gateway::start(self.command(&config, name, &["--metrics-listen", "off"], &[])).await
    }

    /// The shards, to look behind the gateways' back, to kill one, and to start it again.
    pub fn cluster(&self) -> &LocalCluster {
        &self.cluster
    }

    /// The folder that everything of this cluster lies in; it goes away with this value.
    pub fn folder(&self) -> &Path {
        self.cluster.data()
    }

    /// The account that the shards run as.
    pub fn account(&self) -> &Account {
        self.cluster.account()
    }

    /// Asks every shard directly for one integer, and adds them up.
    pub async fn sum_over_shards(&self, sql: &str) -> Result<i64> {
        let mut sum = 0;
        for shard in self.cluster.shards() {
            let client = shard.connect("postgres", "postgres").await?;
            sum += client.query_one(sql, &[]).await?.try_get::<_, i64>(0)?;
        }
        Ok(sum)
    }

    /// How many transactions are prepared on the shards, and neither committed nor rolled back.
    pub async fn prepared_transactions(&self) -> Result<i64> {
        self.sum_over_shards("SELECT count(*) FROM pg_prepared_xacts").await
    }

    /// Stops the shards cleanly.
    pub async fn stop(self) {
        self.cluster.stop().await;
    }
}

fn write_config<'a>(
    cluster: &LocalCluster,
    config: &Path,
    addresses: impl Iterator<Item = (&'a Path, u16)>,
) -> Result<()> {
    let secret = "0123456789abcdef".repeat(4);
    let mut text = format!("[cluster]\nname = \"herd\"\nsecret = \"{secret}\"\n");
    for ((shard, (host, port)), id) in cluster.shards().iter().zip(addresses).zip(1..) {
        let (name, host) = (shard.name(), host.display());
        text.push_str(&format!(
            "\n[[shards]]\nid = {id}\nname = \"{name}\"\nhost = \"{host}\"\nport = {port}\n"
        ));
    }
    std::fs::write(config, text).map_err(file_error(config))?;
    Ok(cluster.account().own(config)?)
}

/// The first value of a statement, as text; empty where there is none, or it is NULL. Panics where the statement fails.
pub async fn value(client: &tokio_postgres::Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.expect(sql);
    let mut rows = messages.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    rows.next().unwrap_or_default().to_owned()
}

/// A gateway process that is on its way to serving. Dropping it kills it.
pub(crate) struct Starting {
    pid: Option<u32>,
    task: JoinHandle<Result<Gateway>>,
}

impl Starting {
    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid
            && !self.task.is_finished()
        {
            let _ = kill(Pid::from_raw(pid as i32), signal);
        }
    }

    /// Waits until it serves.
    pub(crate) async fn finish(mut self) -> Result<Gateway> {
        let ended = (&mut self.task).await;
        ended.unwrap_or_else(|error| {
            Err(Error::Program {
                program: "pgherd".into(),
                output: error.to_string(),
            })
        })
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A gateway process. Dropping it kills it.
pub struct Gateway {
    child: Child,
    port: u16,
    errors: Arc<Mutex<String>>,
}

impl Gateway {
    /// Runs a command that prints `ready: psql … -p PORT …` and goes on running: `pgherd gateway` or `pgherd up`.
    pub async fn start(command: Command) -> Result<Self> {
        Self::begin(command)?.finish().await
    }

    /// The same without waiting for it.
    pub(crate) fn begin(mut command: Command) -> Result<Starting> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir("/")
            .kill_on_drop(true);
        let child = command.spawn().map_err(cannot_run("pgherd"))?;
        let pid = child.id();
        let task = tokio::spawn(Self::until_ready(child));
        Ok(Starting { pid, task })
    }

    async fn until_ready(mut child: Child) -> Result<Self> {
        let errors = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(collect(stderr, errors.clone()));
        }
        let stdout = child.stdout.take();
        match tokio::time::timeout(START_LIMIT, ready_port(stdout)).await {
            Ok(Some(port)) => Ok(Self { child, port, errors }),
            outcome => {
                let _ = child.kill().await;
                // The reader of standard error is a task of its own, which may be a moment behind.
                tokio::time::sleep(Duration::from_millis(100)).await;
                let what = if outcome.is_ok() {
                    "it ended"
                } else {
                    "it took too long"
                };
                let said = errors.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Err(Error::Program {
                    program: "pgherd".into(),
                    output: format!("{what} before it was ready:\n{said}"),
                })
            }
        }
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How a client connects, as role and database `postgres`.
    pub fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .user("postgres")
            .dbname("postgres");
        config
    }

    /// Connects; the connection's task ends when the client is dropped.
    pub async fn connect(&self) -> Result<tokio_postgres::Client> {
        Ok(self.connect_to("postgres", "postgres").await?)
    }

    /// The same as this role, to this database.
    pub async fn connect_to(
        &self,
        role: &str,
        database: &str,
    ) -> std::result::Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config = self.config();
        let (client, connection) = config
            .user(role)
            .dbname(database)
            .connect(tokio_postgres::NoTls)
            .await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The process id; `None` once it has been waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The most memory that the process has used so far, in bytes; 0 where the system does not tell.
    pub fn peak_memory_bytes(&self) -> u64 {
        self.child.id().map_or(0, peak_memory_bytes)
    }

    /// What it wrote to standard error so far.
    pub fn errors(&self) -> String {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a signal: SIGSTOP and SIGCONT pause and resume it.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id() {
            let _ = kill(Pid::from_raw(pid as i32), signal);
        }
    }

    /// Ends it as `kill -9` does, and waits until it is gone.
    pub async fn kill(mut self) {
        let _ = self.child.kill().await;
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Tells it to stop, and returns whether it ended well and in time.
    pub async fn stop(mut self) -> bool {
        self.signal(Signal::SIGTERM);
        let ended = tokio::time::timeout(STOP_LIMIT, self.child.wait()).await;
        ended.is_ok_and(|status| status.is_ok_and(|status| status.success()))
    }
}

async fn ready_port(stdout: Option<tokio::process::ChildStdout>) -> Option<u16> {
    let mut lines = BufReader::new(stdout?).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Some(ready) = line.strip_prefix("ready: ") else {
            continue;
        };
        let port = ready.split_whitespace().skip_while(|word| *word != "-p").nth(1);
        // Read on, so that the process never waits for a reader of what it prints.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        return port?.parse().ok();
    }
    None
}

async fn collect(mut from: tokio::process::ChildStderr, into: Arc<Mutex<String>>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let text = String::from_utf8_lossy(&buffer[..count]);
        into.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
    }
}

/// The most resident memory that a process has had, from `/proc`; 0 where there is none.
pub fn peak_memory_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// The rows that a statement gave: their values, with NULL for null, joined by `|`.
pub fn lines(messages: &[SimpleQueryMessage]) -> Vec<String> {
    let line = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let values: Vec<_> = (0..row.len()).map(|i| row.get(i).unwrap_or("NULL")).collect();
            Some(values.join("|"))
        }
        _ => None,
    };
    messages.iter().filter_map(line).collect()
}

/// Runs a program that ends by itself, and returns what it printed to standard output.
///
/// Errors: it cannot be run, or its exit status is not 0; then both of its outputs are in the error.
pub async fn run(what: &str, mut command: Command) -> Result<String> {
    command.stdin(Stdio::null()).current_dir("/").kill_on_drop(true);
    let output = command.output().await.map_err(cannot_run(what))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(Error::Program {
        program: what.to_string(),
        output: format!("{}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr)),
    })
}

pub(crate) fn cannot_run(program: &str) -> impl FnOnce(std::io::Error) -> Error {
    let program = program.to_string();
    move |error| Error::Program {
        program,
        output: format!("cannot be run: {error}"),
    }
}

pub(crate) fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::File { path, source }
}
