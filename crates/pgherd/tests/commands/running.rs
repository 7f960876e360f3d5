//! Runs the `pgherd` command for a test, and ends it with the test.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A `pgherd` that runs until it is told to stop. It also stops when this process is gone.
pub struct Running {
    child: Child,
    /// What the `ready:` line says after "ready: ".
    pub ready: String,
}

/// The command, as the user whom the tests run as.
pub fn pgherd() -> Command {
    command(Path::new(env!("CARGO_BIN_EXE_pgherd")))
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").stdin(Stdio::null());
    command
}

impl Running {
    /// Runs the command until it says that it is ready. Panics with its error output when it ends before.
    pub fn start(mut command: Command) -> Self {
        command
            .arg("--until-stdin-ends")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("run pgherd");
        let mut stderr = child.stderr.take().expect("stderr");
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let stdout = BufReader::new(child.stdout.take().expect("stdout"));
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(ready) = line.strip_prefix("ready: ") {
                    let _ = sender.send(ready.to_string());
                }
            }
        });
        match receiver.recv_timeout(Duration::from_secs(120)) {
            Ok(ready) => Self { child, ready },
            Err(_) => {
                let _ = child.kill();
                let status = child.wait();
                panic!(
                    "pgherd was not ready ({status:?}):\n{}",
                    errors.join().unwrap_or_default()
                );
            }
        }
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        let mut words = self.ready.split_whitespace().skip_while(|word| *word != "-p");
        words
            .nth(1)
            .and_then(|port| port.parse().ok())
            .expect("a port in the ready line")
    }

    /// Connects as `postgres` to database `postgres`.
    pub async fn connect(&self) -> tokio_postgres::Client {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port())
            .user("postgres")
            .dbname("postgres");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("connect");
        tokio::spawn(connection);
        client
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("kill");
    }

    /// Sends a signal, waits for the end, and returns whether it ended well.
    pub fn end(mut self, signal: Signal) -> bool {
        self.signal(signal);
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.success();
            }
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "pgherd did not end within 60 s of {signal}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its end of the pipe closes with this; it then stops its shards.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A process that another test forked while the program was copied has it open for writing until it executes its own: till then nobody
/// can run it.
fn wait_until_nobody_writes(program: &Path) {
    let until = Instant::now() + Duration::from_secs(10);
    while let Err(error) = command(program).arg("--version").output() {
        let goes_away = error.kind() == std::io::ErrorKind::ExecutableFileBusy && Instant::now() < until;
        assert!(goes_away, "{} cannot be run: {error}", program.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A folder that is removed afterwards, and that root's servers can enter.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        let place = tempfile::tempdir().expect("folder");
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o777)).expect("permissions");
        Self(place)
    }

    pub fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    /// The command as an ordinary user, also when the tests run as root.
    fn ordinary_user(&self) -> Command {
        if !nix::unistd::geteuid().is_root() {
            return pgherd();
        }
        // The build's folder may be closed to that user; the copy goes away with the place.
        let program = self.0.path().join("pgherd");
        if !program.exists() {
            std::fs::copy(env!("CARGO_BIN_EXE_pgherd"), &program).expect("copy");
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("permissions");
            wait_until_nobody_writes(&program);
        }
        let user = User::from_name("postgres")
            .expect("user database")
            .expect("user postgres");
        let mut command = command(&program);
        command
            .uid(user.uid.as_raw())
            .gid(user.gid.as_raw())
            .env("HOME", "/nonexistent")
            .env_remove("SUDO_UID");
        command
    }

    /// The processes whose arguments name a shard of this place.
    pub fn servers(&self) -> Vec<u32> {
        let needle = self.0.path().as_os_str().as_encoded_bytes();
        let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
        pids.filter(|pid| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = arguments.split(|byte| *byte == 0);
            words.next().is_some_and(|program| program.ends_with(b"/postgres"))
                && words.any(|word| word.starts_with(needle))
        })
        .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // For a test that fails between a kill -9 and the next start.
        for pid in self.servers() {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGQUIT);
        }
    }
}

/// `pgherd up` in a place, on a free port, without metrics.
pub fn up(place: &Place, shards: usize, ordinary_user: bool) -> Command {
    up_at(place, shards, ordinary_user, "127.0.0.1:0")
}

/// `pgherd up` in a place, at an address.
pub fn up_at(place: &Place, shards: usize, ordinary_user: bool, listen: &str) -> Command {
    let mut command = if ordinary_user { place.ordinary_user() } else { pgherd() };
    command
        .args(["up", "--listen", listen, "--shards", &shards.to_string(), "--data"])
        .arg(place.data());
    command
}

/// Runs a command that ends by itself.
pub fn output(mut command: Command) -> Output {
    command.output().expect("run pgherd")
}

/// What a command that must fail said.
pub fn refusal(command: Command) -> String {
    let output = output(command);
    assert!(!output.status.success(), "it should have been refused: {output:?}");
    String::from_utf8(output.stderr).expect("text")
}
