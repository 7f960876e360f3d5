//! The folder that a cluster lives in: who may use it, what it holds, where its sockets are.
//!
//! ```text
//! DATA/lock                locked by the process that works here
//! DATA/local-cluster.toml  how many shards, whether all of them were made, where they lie
//! DATA/shard1, shard2 …    PGDATA of each server; shard1.log its log
//! DATA/sockets             the servers' Unix sockets; mode 0700
//! ```
//! Two things may have to lie elsewhere, and are then symbolic links here: the sockets, when the path would be longer than
//! the kernel allows, and (for root only) the shards, when the account they run as cannot enter the folder.

use crate::{Account, Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// The longest path of a Unix socket that every supported system takes: Linux has 107 bytes, macOS 103.
const LONGEST_SOCKET_PATH: usize = 103;
/// Where root's shards go when the account they run as cannot enter the data folder.
const SYSTEM_STORAGE: &str = "/var/lib/pgherd";

/// A data folder that this process has locked.
pub(crate) struct DataFolder {
    path: PathBuf,
    state: State,
    /// Held for as long as this value lives; the kernel lets go of it however the process ends.
    lock: File,
}

/// `local-cluster.toml`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// The number of shards; never changes.
    shards: usize,
    /// Every shard's data has been made. Before that, an interrupted first start simply goes on.
    made: bool,
    /// Where the shards lie.
    storage: PathBuf,
}

impl DataFolder {
    /// Makes the folder if there is none, locks it, and checks that it is one for `shards` shards.
    pub fn open(path: &Path, shards: usize, account: &Account) -> Result<Self> {
        if !path.exists() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(Error::io("make the folder", path))?;
            account.own(path)?;
        }
        let path = path.canonicalize().map_err(Error::io("find", path))?;
        let lock = lock(&path, account)?;
        let file = path.join("local-cluster.toml");
        let state = match fs::read_to_string(&file) {
            Ok(text) => {
                let bad = |error: toml::de::Error| Error::State {
                    path: file.clone(),
                    reason: error.to_string(),
                };
                let mut state: State = toml::from_str(&text).map_err(bad)?;
                if state.shards != shards {
                    return Err(Error::OtherShardCount {
                        folder: path,
                        have: state.shards,
                        asked: shards,
                    });
                }
                // A folder that was moved holds its shards where it is now, unless they were elsewhere all along.
                if !state.storage.exists() || path.join("shard1").exists() && !path.join("shard1").is_symlink() {
                    state.storage.clone_from(&path);
                }
                state
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State {
                shards,
                made: false,
                storage: storage_for(&path, account)?,
            },
            Err(error) => return Err(Error::io("read", file)(error)),
        };
        let folder = Self { path, state, lock };
        folder.save(account)?;
        Ok(folder)
    }

    /// The canonical path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the shards lie: the folder itself, but for the case described above.
    pub fn storage(&self) -> &Path {
        &self.state.storage
    }

    /// Whether the shards' data was complete once, and so must not be made anew.
    pub fn was_made(&self) -> bool {
        self.state.made
    }

    /// Notes that all shards have data; the links to those that lie elsewhere are made here.
    pub fn set_made(&mut self, account: &Account) -> Result<()> {
        for number in (1..=self.state.shards).filter(|_| self.state.storage != self.path) {
            let name = format!("shard{number}");
            replace_with_link(&self.path.join(&name), &self.state.storage.join(&name))?;
        }
        self.state.made = true;
        self.save(account)
    }

    /// The folder for the sockets, made and checked.
    pub fn sockets(&self, account: &Account) -> Result<PathBuf> {
        let inside = self.state.storage.join("sockets");
        let longest = inside.as_os_str().len() + "/.s.PGSQL.65535".len();
        let folder = if longest <= LONGEST_SOCKET_PATH {
            if inside.is_symlink() {
                fs::remove_file(&inside).map_err(Error::io("remove", &inside))?;
            }
            inside
        } else {
            let hash = Sha256::digest(inside.as_os_str().as_encoded_bytes());
            let outside = PathBuf::from(format!("/tmp/pgherd-{}", &hex::encode(hash)[..16]));
            replace_with_link(&inside, &outside)?;
            outside
        };
        make_private(&folder, account)?;
        if self.state.storage != self.path {
            replace_with_link(&self.path.join("sockets"), &folder)?;
        }
        Ok(folder)
    }

    fn save(&self, account: &Account) -> Result<()> {
        let path = self.path.join("local-cluster.toml");
        let text = toml::to_string(&self.state).map_err(|error| Error::State {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let text = format!("# Written by pgherd; it says what lies in this folder. Not meant to be edited.\n{text}");
        // Written beside its place, synced and renamed: after a crash it is whole, the old one or the new one.
        let staging = path.with_extension("toml.new");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&staging)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&staging, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(Error::io("write", &path))?;
        account.own(&path)
    }
}

impl Drop for DataFolder {
    fn drop(&mut self) {
        // Sockets that lie elsewhere would be forgotten there. A folder that is still in use is not empty, and stays.
        if let Ok(outside) = fs::read_link(self.state.storage.join("sockets")) {
            let _ = fs::remove_dir(outside);
        }
        // Closing the file is not enough: a program that is being started has a copy of it for a moment, with the lock.
        let _ = self.lock.unlock();
    }
}

fn lock(folder: &Path, account: &Account) -> Result<File> {
    let path = folder.join("lock");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let mut file = file.map_err(Error::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() {
                "unknown".to_string()
            } else {
                pid.trim().to_string()
            };
            return Err(Error::InUse {
                folder: folder.to_path_buf(),
                pid,
            });
        }
        Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
    }
    let noted = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    noted.map_err(Error::io("write", &path))?;
    // Whoever owns the folder may run this without root's help the next time.
    account.own(&path)?;
    Ok(file)
}

/// The folder itself if the account can enter it, else a new one of the system's.
fn storage_for(path: &Path, account: &Account) -> Result<PathBuf> {
    if account.can_enter(path) {
        return Ok(path.to_path_buf());
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(SYSTEM_STORAGE);
    made.map_err(Error::io("make the folder", SYSTEM_STORAGE))?;
    let mut storage = tempfile::Builder::new();
    let storage = storage
        .prefix("cluster-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(SYSTEM_STORAGE);
    let storage = storage.map_err(Error::io("make a folder in", SYSTEM_STORAGE))?.keep();
    account.own(&storage)?;
    tracing::warn!(
        "user {} cannot enter {path:?}, so the shards' files lie in {storage:?}; links in the folder lead there",
        account.name
    );
    Ok(storage)
}

/// Makes a folder that only the account (and root) can enter, or checks that it is one: in /tmp, somebody else may have
/// made it first.
fn make_private(folder: &Path, account: &Account) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => return account.own(folder),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io("make the folder", folder)(error)),
    }
    let meta = fs::symlink_metadata(folder).map_err(Error::io("look at", folder))?;
    if !meta.is_dir() || !account.owns(&meta) {
        return Err(Error::ForeignOwner {
            folder: folder.to_path_buf(),
            owner: meta.uid().to_string(),
        });
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(Error::io("close to others", folder))
}

fn replace_with_link(link: &Path, target: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == target) {
        return Ok(());
    }
    if link.is_symlink() {
        fs::remove_file(link).map_err(Error::io("remove", link))?;
    } else if link.is_dir() {
        // Only ever an empty folder of sockets; PostgreSQL's data is not removed by this.
        fs::remove_dir(link).map_err(Error::io("remove", link))?;
    }
    symlink(target, link).map_err(Error::io("make the link", link))
}
