//! A postmaster's process, and the lock file that names it.

use crate::{Error, Result};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running postmaster.
pub(super) enum Process {
    /// Started by this process.
    Child(Child),
    /// Started by an earlier run.
    TakenOver(Pid),
}

impl Process {
    pub fn pid(&self) -> Pid {
        match self {
            Self::Child(child) => Pid::from_raw(child.id() as i32),
            Self::TakenOver(pid) => *pid,
        }
    }

    pub fn is_alive(&mut self, folder: &Path) -> bool {
        match self {
            // Also reaps it, so that no zombie stays.
            Self::Child(child) => matches!(child.try_wait(), Ok(None)),
            Self::TakenOver(pid) => serves(*pid, folder),
        }
    }
}

/// The lines of `postmaster.pid` that matter here (PostgreSQL's `pidfile.h` names all of them).
pub(super) struct LockFile {
    path: PathBuf,
    pub pid: Pid,
    /// The postmaster says that it accepts connections.
    pub ready: bool,
}

impl LockFile {
    /// Reads the lock file of a data folder; `None` when there is none, or it is being written at this moment.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("postmaster.pid");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let lines: Vec<_> = text.lines().collect();
        // A standalone backend (`postgres --single`) writes its number negated.
        let Some(pid) = lines.first().and_then(|line| line.trim().parse::<i32>().ok()) else {
            return Ok(None);
        };
        let ready = lines
            .get(7)
            .is_some_and(|status| matches!(status.trim(), "ready" | "standby"));
        Ok(Some(Self {
            path,
            pid: Pid::from_raw(pid.abs()),
            ready,
        }))
    }

    /// Removes the file; for one whose process is not a PostgreSQL of this folder.
    pub fn remove(self) {
        let _ = std::fs::remove_file(self.path);
    }
}

/// Whether the process runs a PostgreSQL on that data folder: its arguments say so. They are readable for everybody,
/// also in a container, where root may not look at other users' working directories.
pub(super) fn serves(pid: Pid, folder: &Path) -> bool {
    let folder = folder.as_os_str().as_encoded_bytes();
    if Path::new("/proc/self/cmdline").exists() {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        return arguments.split(|byte| *byte == 0).any(|argument| argument == folder);
    }
    let output = Command::new("ps")
        .args(["-ww", "-o", "args=", "-p", &pid.to_string()])
        .stdin(Stdio::null())
        .output();
    output.is_ok_and(|output| output.stdout.windows(folder.len()).any(|window| window == folder))
}
