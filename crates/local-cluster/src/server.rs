//! One PostgreSQL server: made by `initdb`, started, taken over when it already runs, stopped.
//!
//! The postmaster is a child of this process, not of `pg_ctl`, so that its end is noticed at once. A postmaster that an
//! earlier run left behind is recognised by its `postmaster.pid` *and* by its command line naming the same data folder,
//! because process numbers are used again.

use crate::{Account, Binaries, Error, Result, SERVICE_ROLE, SUPERUSER, settings};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

mod process;
use process::{LockFile, Process};

/// Crash recovery of a large folder may take long; it is waited for as long as the process lives, up to this.
const START_TIMEOUT: Duration = Duration::from_secs(600);
/// How long backends of a postmaster that was killed may take to notice, and keep its shared memory in use.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a server that was found running may take to answer before it is restarted.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(15);
/// A log larger than this starts a new file at the next start; one older file is kept. Bytes.
const LOG_LIMIT: u64 = 16 << 20;

/// Something that a person who waits for a start may want to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// PostgreSQL is being looked for, and fetched if there is none.
    Finding,
    /// The named server's data folder is being made.
    Making(String),
    /// The named server is starting, recovering if it has to.
    Starting(String),
    /// The named server was already running, left by an earlier run, and is used.
    TakenOver(String),
    /// The named server accepts connections.
    Ready(String),
}

/// Who is told of [`Event`]s.
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

/// What a server is to be like; used when it is made and when it is started.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub name: String,
    /// The data folder (PGDATA).
    pub folder: PathBuf,
    pub socket_dir: PathBuf,
    pub port: u16,
    /// Also listen on 127.0.0.1.
    pub tcp: bool,
    /// Has what a shard needs, the service role among it.
    pub shard: bool,
    /// Survives a crash of the machine; off for tests, whose data is thrown away.
    pub durable: bool,
    pub settings: Vec<(String, String)>,
}

/// One PostgreSQL server of this machine. Dropping it stops it.
pub struct Server {
    spec: Spec,
    binaries: Arc<Binaries>,
    account: Account,
    process: Mutex<Option<Process>>,
}

impl Server {
    pub(crate) fn new(spec: Spec, binaries: Arc<Binaries>, account: Account) -> Self {
        Self {
            spec,
            binaries,
            account,
            process: Mutex::new(None),
        }
    }

    /// The server's name, such as "shard1".
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The folder of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.spec.socket_dir
    }

    /// The port: of the Unix socket, and of 127.0.0.1 where the server listens there.
    pub fn port(&self) -> u16 {
        self.spec.port
    }

    /// The data folder (PGDATA).
    pub fn folder(&self) -> &Path {
        &self.spec.folder
    }

    /// The programs of the PostgreSQL that it runs.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The account it runs as.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The postmaster's process id; `None` when it is not running.
    pub fn pid(&self) -> Option<u32> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let process = process.as_mut()?;
        process
            .is_alive(&self.spec.folder)
            .then(|| process.pid().as_raw() as u32)
    }

    /// How to connect through the Unix socket.
    pub fn config(&self, user: &str, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.spec.socket_dir)
            .port(self.spec.port)
            .user(user)
            .dbname(database);
        config
    }

    /// The same as [`Self::config`] as text for `psql`, `pgbench` and libpq.
    pub fn conninfo(&self, user: &str, database: &str) -> String {
        format!(
            "host={} port={} user={user} dbname={database}",
            self.spec.socket_dir.display(),
            self.spec.port
        )
    }

    /// Connects; the connection's task ends when the client is dropped.
    pub async fn connect(&self, user: &str, database: &str) -> Result<tokio_postgres::Client> {
        let refused = |source| Error::Server {
            server: self.spec.name.clone(),
            source,
        };
        let (client, connection) = self
            .config(user, database)
            .connect(tokio_postgres::NoTls)
            .await
            .map_err(refused)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to a local server ended");
            }
        });
        Ok(client)
    }

    /// Makes the data folder with `initdb`, beside its place first, so that an interrupted run leaves no half of one.
    pub(crate) async fn make(&self) -> Result<()> {
        let Spec {
            folder,
            durable,
            shard,
            tcp,
            settings,
            ..
        } = &self.spec;
        let parent = folder.parent().unwrap_or(Path::new("/"));
        let staging = tempfile::Builder::new()
            .prefix(&format!("{}.new-", self.spec.name))
            .tempdir_in(parent)
            .map_err(Error::io("make a folder in", parent))?;
        self.account.own(staging.path())?;
        let mut command = Command::new(self.binaries.program("initdb"));
        // macOS has no C.UTF-8; C orders the same way.
        let locale = if cfg!(target_os = "macos") {
            "--locale=C"
        } else {
            "--locale=C.UTF-8"
        };
        command.args([
            "--username",
            SUPERUSER,
            "--auth=trust",
            locale,
            "--encoding=UTF8",
            "--no-instructions",
            "-D",
        ]);
        command.arg(staging.path()).current_dir("/").stdin(Stdio::null());
        if !durable {
            command.arg("--no-sync");
        }
        forget_environment(&mut command);
        self.account.apply(&mut command);
        let output = tokio::process::Command::from(command).kill_on_drop(true).output().await;
        let output = output.map_err(Error::io("run", self.binaries.program("initdb")))?;
        if !output.status.success() {
            let output = [output.stdout, output.stderr].concat();
            let program = format!("initdb for {}", self.spec.name);
            return Err(Error::Program {
                program,
                output: String::from_utf8_lossy(&output).trim().to_string(),
            });
        }
        let write = |name: &str, text: String| -> Result<()> {
            let path = staging.path().join(name);
            std::fs::write(&path, text).map_err(Error::io("write", &path))?;
            if *durable {
                let file = std::fs::File::open(&path).and_then(|file| file.sync_all());
                file.map_err(Error::io("write", &path))?;
            }
            self.account.own(&path)
        };
        write("pgherd.conf", settings::configuration(*shard, *durable, settings))?;
        write("pg_hba.conf", settings::client_authentication(*tcp))?;
        let main = staging.path().join("postgresql.conf");
        let text = std::fs::read_to_string(&main).map_err(Error::io("read", &main))?;
        write("postgresql.conf", format!("{text}\ninclude 'pgherd.conf'\n"))?;
        std::fs::rename(staging.path(), folder).map_err(Error::io("rename a folder to", folder))
    }

    /// Starts the server, or takes over the one that runs on its data folder, and waits until it answers.
    pub(crate) async fn start(&self, progress: &Progress) -> Result<()> {
        if let Some(pid) = self.running()? {
            *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(Process::TakenOver(pid));
            match tokio::time::timeout(TAKE_OVER_TIMEOUT, self.answer()).await {
                Ok(Ok(())) => {
                    progress(Event::TakenOver(self.spec.name.clone()));
                    return Ok(());
                }
                outcome => tracing::warn!(
                    server = self.spec.name,
                    ?outcome,
                    "the server that was running does not answer: restarting it"
                ),
            }
            self.stop_now(Signal::SIGINT);
        }
        progress(Event::Starting(self.spec.name.clone()));
        let begun = Instant::now();
        loop {
            let log_start = self.spawn()?;
            match self.wait_until_ready(begun, log_start).await {
                Ok(()) => break,
                Err(Error::NotStarted { tail, .. })
                    if tail.contains("shared memory block") && begun.elapsed() < LEFTOVER_TIMEOUT =>
                {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(error),
            }
        }
        progress(Event::Ready(self.spec.name.clone()));
        Ok(())
    }

    /// The postmaster that already runs on this data folder, and listens where this one would.
    fn running(&self) -> Result<Option<Pid>> {
        let Some(lock) = LockFile::read(&self.spec.folder)? else {
            return Ok(None);
        };
        if !process::serves(lock.pid, &self.spec.folder) {
            // PostgreSQL itself clears a lock file whose process is gone, but not when the number is in use again. It
            // also finds backends that still use the old shared memory by the folder's inode, without this file.
            lock.remove();
            return Ok(None);
        }
        Ok(Some(lock.pid))
    }

    /// Starts the postmaster; returns where its part of the log begins.
    fn spawn(&self) -> Result<u64> {
        let Spec {
            folder,
            socket_dir,
            port,
            tcp,
            ..
        } = &self.spec;
        let path = self.log_path();
        if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > LOG_LIMIT) {
            std::fs::rename(&path, path.with_extension("log.old")).map_err(Error::io("rename", &path))?;
        }
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        self.account.own(&path)?;
        let log_start = log.metadata().map_err(Error::io("look at", &path))?.len();
        let error_log = log.try_clone().map_err(Error::io("open", &path))?;
        let mut command = Command::new(self.binaries.program("postgres"));
        command
            .arg("-D")
            .arg(folder)
            .arg("-k")
            .arg(socket_dir)
            .args(["-p", &port.to_string()]);
        command.args([
            "-c",
            if *tcp {
                "listen_addresses=127.0.0.1"
            } else {
                "listen_addresses="
            },
        ]);
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(error_log);
        // A group of its own: Ctrl-C in the terminal reaches pgherd, which stops servers in order.
        command.process_group(0);
        forget_environment(&mut command);
        let child = self.account.apply(&mut command).spawn();
        let child: Child = child.map_err(Error::io("run", self.binaries.program("postgres")))?;
        crate::watchdog::watch(&self.spec.folder, child.id());
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(Process::Child(child));
        Ok(log_start)
    }

    async fn wait_until_ready(&self, begun: Instant, log_start: u64) -> Result<()> {
        loop {
            if self.pid().is_none() {
                return Err(self.not_started("the process ended", log_start));
            }
            if LockFile::read(&self.spec.folder)?.is_some_and(|lock| lock.ready) {
                match self.answer().await {
                    // Another one may have come up at this address before this process noticed that it can't.
                    Ok(()) if self.pid().is_some() => return Ok(()),
                    Ok(()) => {}
                    Err(error) => tracing::debug!(%error, "not yet"),
                }
            }
            if begun.elapsed() > START_TIMEOUT {
                self.stop_now(Signal::SIGQUIT);
                return Err(self.not_started("it did not answer in time", log_start));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Connects, and makes the service role if it is missing.
    async fn answer(&self) -> Result<()> {
        let client = self.connect(SUPERUSER, "postgres").await?;
        let refused = |source| Error::Server {
            server: self.spec.name.clone(),
            source,
        };
        if !self.spec.shard {
            return client.simple_query("SELECT 1").await.map(drop).map_err(refused);
        }
        let known = client
            .query_opt("SELECT 1 FROM pg_roles WHERE rolname = $1", &[&SERVICE_ROLE])
            .await;
        if known.map_err(refused)?.is_none() {
            client
                .batch_execute(&format!("CREATE ROLE {SERVICE_ROLE} SUPERUSER LOGIN"))
                .await
                .map_err(refused)?;
        }
        Ok(())
    }

    /// Where the server's own log lies: beside its data folder.
    pub fn log_path(&self) -> PathBuf {
        self.spec.folder.with_extension("log")
    }

    fn not_started(&self, reason: &str, log_start: u64) -> Error {
        let log = self.log_path();
        let text = std::fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(text.get(log_start as usize..).unwrap_or_default()).into_owned();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(8)..].join("\n");
        Error::NotStarted {
            server: self.spec.name.clone(),
            reason: reason.to_string(),
            log,
            tail,
        }
    }

    /// Stops the server and waits for its end: `SIGINT` is PostgreSQL's fast shutdown, `SIGQUIT` its immediate one (as
    /// after a crash). What does not end in time is ended harder. Blocks.
    pub(crate) fn stop_now(&self, signal: Signal) {
        let mut slot = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut process) = slot.take() else { return };
        let patience = if signal == Signal::SIGINT { 60 } else { 5 };
        let steps = [(signal, patience), (Signal::SIGQUIT, 5), (Signal::SIGKILL, 5)];
        for (signal, seconds) in steps {
            if !process.is_alive(&self.spec.folder) {
                break;
            }
            let _ = kill(process.pid(), signal);
            // One that is stopped by SIGSTOP does not hear anything else.
            let _ = kill(process.pid(), Signal::SIGCONT);
            let deadline = Instant::now() + Duration::from_secs(seconds);
            while process.is_alive(&self.spec.folder) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_now(if self.spec.durable {
            Signal::SIGINT
        } else {
            Signal::SIGQUIT
        });
    }
}

/// PostgreSQL's programs take defaults from the environment, which is about somebody else's server.
fn forget_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
}
