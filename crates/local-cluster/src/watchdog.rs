//! Ends what a test started when the test's process is gone, however it went: return, panic, abort or `kill -9`.
//!
//! A destructor does not run in the last two. So every ephemeral folder has a small shell beside it that reads from a pipe
//! whose other end only this process holds: lines on it name the servers that were started, and its end means that this
//! process is gone. The kernel closes the pipe, so nothing has to be remembered, polled or signalled.

use crate::{Error, Result};
use std::collections::HashMap;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Waits for the end of the pipe, ends the servers that still run on the folder, and removes the folder. A number is only
/// signalled while its process has the folder in its arguments.
const SCRIPT: &str = r#"
trap '' HUP INT TERM QUIT
folder=$1
pids=
while read -r pid; do pids="$pids $pid"; done
alive() { tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -qF "$folder"; }
[ -e /proc/self/cmdline ] || alive() { ps -ww -o args= -p "$1" | grep -qF "$folder"; }
for signal in QUIT KILL; do
    waited=0
    for pid in $pids; do alive "$pid" && kill -s "$signal" "$pid" && kill -s CONT "$pid"; done
    for pid in $pids; do
        while alive "$pid" && [ "$waited" -lt 100 ]; do sleep 0.05; waited=$((waited + 1)); done
    done
done
rm -rf -- "$folder"
[ -e "$folder" ] && sleep 1 && rm -rf -- "$folder"
exit 0
"#;

static PIPES: LazyLock<Mutex<HashMap<PathBuf, ChildStdin>>> = LazyLock::new(Mutex::default);

/// A folder that disappears, with every server in it, when this value is dropped or this process ends.
pub(crate) struct EphemeralFolder {
    path: PathBuf,
    watchdog: Child,
}

impl EphemeralFolder {
    /// Makes a private folder in the system's temporary folder.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("pgherd-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir();
        let folder = folder.map_err(Error::io("make a folder in", std::env::temp_dir()))?;
        // Servers are told their canonical folder, and are recognised by it.
        let path = folder.path().canonicalize().map_err(Error::io("find", folder.path()))?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", SCRIPT, "pgherd-watchdog"])
            .arg(&path)
            .current_dir("/");
        // Nobody who waits for the end of the test's output should wait for the watchdog.
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let mut watchdog = command.spawn().map_err(Error::io("run", "/bin/sh"))?;
        let _kept_for_the_watchdog = folder.keep();
        if let Some(pipe) = watchdog.stdin.take() {
            pipes().insert(path.clone(), pipe);
        }
        Ok(Self { path, watchdog })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for EphemeralFolder {
    fn drop(&mut self) {
        // Closing the pipe is what the watchdog waits for; it then does here what it would do after a crash.
        drop(pipes().remove(&self.path));
        let _ = self.watchdog.wait();
    }
}

/// Tells the watchdog of the folder that a server lies in, if it has one, of the server's process.
pub(crate) fn watch(server_folder: &Path, pid: u32) {
    let mut pipes = pipes();
    if let Some((_, pipe)) = pipes.iter_mut().find(|(folder, _)| server_folder.starts_with(folder)) {
        // A watchdog that is gone cannot be told; the destructors still run.
        let _ = writeln!(pipe, "{pid}");
    }
}

fn pipes() -> MutexGuard<'static, HashMap<PathBuf, ChildStdin>> {
    PIPES.lock().unwrap_or_else(PoisonError::into_inner)
}
