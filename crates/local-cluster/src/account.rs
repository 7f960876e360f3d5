//! Which account PostgreSQL runs as. PostgreSQL refuses to run as root, so root's servers run as somebody else.
//!
//! An ordinary user's servers run as that user, and nothing here changes anything for them.

use crate::{Error, Result};
use nix::unistd::{Gid, Uid, User};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// An account, and whether this process must change to it first.
#[derive(Debug, Clone)]
pub struct Account {
    /// The name in the user database.
    pub name: String,
    uid: Uid,
    gid: Gid,
    /// This process is root and the account is not.
    other: bool,
}

impl Account {
    /// The account for servers whose data lies in `data` (which need not exist yet).
    ///
    /// As root: who owns the data that is there already, so that a folder keeps its owner; else who called `sudo`; else
    /// `postgres`, as the packages of every distribution call it; else `nobody`.
    pub fn for_folder(data: &Path) -> Result<Self> {
        let me = Uid::effective();
        let owners = [data.join("shard1"), data.to_path_buf()];
        let owners = owners
            .iter()
            .filter_map(|path| std::fs::metadata(path).ok())
            .map(|meta| Uid::from_raw(meta.uid()));
        if !me.is_root() {
            if let Some(owner) = owners.into_iter().find(|owner| *owner != me) {
                let owner = user(owner).map_or_else(|| owner.to_string(), |user| user.name);
                return Err(Error::ForeignOwner {
                    folder: data.to_path_buf(),
                    owner,
                });
            }
            let name = user(me).map_or_else(|| me.to_string(), |user| user.name);
            return Ok(Self {
                name,
                uid: me,
                gid: Gid::effective(),
                other: false,
            });
        }
        let caller = std::env::var("SUDO_UID")
            .ok()
            .and_then(|uid| uid.parse().ok())
            .map(Uid::from_raw);
        let named = ["postgres", "nobody"]
            .into_iter()
            .filter_map(|name| User::from_name(name).ok().flatten());
        let user = owners
            .chain(caller)
            .filter_map(user)
            .chain(named)
            .find(|user| !user.uid.is_root())
            .ok_or(Error::NoAccount)?;
        Ok(Self {
            name: user.name,
            uid: user.uid,
            gid: user.gid,
            other: true,
        })
    }

    /// Makes `command` run as this account, without root's groups.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if self.other {
            command.uid(self.uid.as_raw()).gid(self.gid.as_raw());
        }
        command
    }

    /// Makes this account the owner of a file or folder (not of what is in it).
    pub fn own(&self, path: &Path) -> Result<()> {
        if !self.other {
            return Ok(());
        }
        let (uid, gid) = (Some(self.uid.as_raw()), Some(self.gid.as_raw()));
        std::os::unix::fs::lchown(path, uid, gid).map_err(Error::io("change the owner of", path))
    }

    /// Whether this account can enter the folder; asked of the kernel, since access lists may say more than mode bits.
    pub fn can_enter(&self, folder: &Path) -> bool {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "cd -- \"$1\"", "sh"])
            .arg(folder)
            .current_dir("/")
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        self.apply(&mut command).status().is_ok_and(|status| status.success())
    }

    /// Whether the file or folder belongs to this account.
    pub(crate) fn owns(&self, meta: &std::fs::Metadata) -> bool {
        meta.uid() == self.uid.as_raw()
    }

    /// Whether this process is root and the account is somebody else.
    pub fn is_other(&self) -> bool {
        self.other
    }

    /// The account's number in the user database.
    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// Gives up root for good: this process becomes the account. Does nothing for an ordinary user.
    ///
    /// For a gateway: once its sockets are bound it needs none of root's rights, and it talks to the network.
    pub fn become_it(&self) -> Result<()> {
        if !self.other {
            return Ok(());
        }
        let drop = || -> nix::Result<()> {
            nix::unistd::setgroups(&[self.gid])?;
            nix::unistd::setresgid(self.gid, self.gid, self.gid)?;
            nix::unistd::setresuid(self.uid, self.uid, self.uid)
        };
        drop().map_err(|errno| Error::io("change to the account", &self.name)(errno.into()))
    }
}

fn user(uid: Uid) -> Option<User> {
    User::from_uid(uid).ok().flatten()
}
