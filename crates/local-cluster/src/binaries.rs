//! Finds an installed PostgreSQL that is new enough, or the one that matches data which already exists.

use crate::{Account, Error, OLDEST_POSTGRES, Result, fetch};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The programs of one PostgreSQL installation.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// The folder that holds `postgres`, `initdb`, `psql` and the others.
    pub bindir: PathBuf,
    /// The major version, such as 15.
    pub major: u32,
}

impl Binaries {
    /// Finds PostgreSQL for `account`: `PGHERD_PG_BINDIR`, `pg_config --bindir`, PATH, the usual folders of
    /// distributions, and at last a download. `data_major` is the version that existing data demands.
    pub async fn find(account: &Account, data_major: Option<u32>) -> Result<Self> {
        if let Some(bindir) = std::env::var_os("PGHERD_PG_BINDIR") {
            let bindir = PathBuf::from(bindir);
            return probe(&bindir, account, data_major).map_err(|reason| Error::BadBindir { bindir, reason });
        }
        let mut looked_at = Vec::new();
        for bindir in candidates() {
            match probe(&bindir, account, data_major) {
                Ok(found) => return Ok(found),
                Err(reason) => looked_at.push(format!("{}: {reason}", bindir.display())),
            }
        }
        let fetched = match fetch::fetch(data_major.unwrap_or(OLDEST_POSTGRES), account).await {
            Ok(bindir) => probe(&bindir, account, data_major),
            Err(reason) => Err(reason),
        };
        fetched.map_err(|fetch| Error::NoPostgres {
            wanted: data_major.map_or_else(|| format!("{OLDEST_POSTGRES} or newer"), |major| major.to_string()),
            looked_at: if looked_at.is_empty() {
                "PATH and the usual folders".into()
            } else {
                looked_at.join("; ")
            },
            fetch,
        })
    }

    /// The path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bindir.join(name)
    }
}

/// Folders that may hold PostgreSQL, best first, without repetition.
fn candidates() -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output() {
        found.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    found.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let roots = [
        ("/usr/lib/postgresql", "bin"),
        ("/opt/homebrew/opt", "bin"),
        ("/usr/local/opt", "bin"),
        ("/usr", "bin"),
    ];
    for (root, bin) in roots {
        let mut versions: Vec<_> = std::fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| root.ends_with("postgresql") || is_postgres_folder(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.path().join(bin))
            .collect();
        versions.sort();
        found.extend(versions.into_iter().rev());
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|bindir| bindir.join("postgres").exists() && seen.insert(bindir.clone()));
    found
}

/// Homebrew's `postgresql@15` and the `pgsql-15` of PostgreSQL's own packages for Red Hat.
fn is_postgres_folder(name: &str) -> bool {
    name.starts_with("postgresql@") || name.starts_with("pgsql-")
}

/// Looks whether `bindir` holds a PostgreSQL that does; the error says why not.
fn probe(bindir: &Path, account: &Account, data_major: Option<u32>) -> Result<Binaries, String> {
    if let Some(missing) = ["postgres", "initdb"]
        .into_iter()
        .find(|name| !bindir.join(name).exists())
    {
        return Err(format!("it has no `{missing}`"));
    }
    let mut command = Command::new(bindir.join("postgres"));
    command.arg("--version").current_dir("/").stdin(Stdio::null());
    let output = account.apply(&mut command).output();
    let output = output.map_err(|error| format!("user {} cannot run its `postgres`: {error}", account.name))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let major = parse_major(&text).ok_or_else(|| format!("its `postgres --version` printed {text:?}"))?;
    match data_major {
        Some(wanted) if wanted != major => Err(format!("it is version {major}, and the data is of version {wanted}")),
        _ if major < OLDEST_POSTGRES => Err(format!("it is version {major}, older than {OLDEST_POSTGRES}")),
        _ => Ok(Binaries {
            bindir: bindir.to_path_buf(),
            major,
        }),
    }
}

/// The major version in the output of `postgres --version`, such as "postgres (PostgreSQL) 15.8 (Debian …)".
fn parse_major(text: &str) -> Option<u32> {
    let number = text.split_once("(PostgreSQL)")?.1.trim_start();
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_versions() {
        assert_eq!(
            parse_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_major("postgres 15"), None);
    }
}
