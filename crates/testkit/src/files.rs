//! Finding the test files that a user names, reading settings on command lines, and writing pages of results.

use crate::herd::file_error;
use crate::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Every path that names a file as it is; below a folder, the files with the extension, sorted.
pub(crate) fn find(paths: &[PathBuf], extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        let before = found.len();
        collect(path, extension, true, &mut found)?;
        found[before..].sort();
        if found.len() == before {
            return Err(Error::Script(format!("{}: no .{extension} file in it", path.display())));
        }
    }
    Ok(found)
}

/// A path that the user named counts whatever its extension.
fn collect(path: &Path, extension: &str, named: bool, found: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(failed)?.is_dir() {
        for entry in std::fs::read_dir(path).map_err(failed)? {
            collect(&entry.map_err(failed)?.path(), extension, false, found)?;
        }
    } else if named || path.extension().is_some_and(|actual| actual == extension) {
        found.push(path.to_owned());
    }
    Ok(())
}

/// Writes `<name>.md` and, with all that was measured, `<name>.json` into the folder.
pub(crate) fn write_page(folder: &Path, name: &str, page: &str, data: &impl Serialize) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(file_error(folder))?;
    let json = serde_json::to_string_pretty(data).map_err(std::io::Error::from)? + "\n";
    for (extension, text) in [("md", page), ("json", &json)] {
        let path = folder.join(name).with_extension(extension);
        std::fs::write(&path, text).map_err(file_error(&path))?;
    }
    Ok(())
}

/// A setting on a command line.
pub(crate) fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("NAME=VALUE is expected".to_owned()),
    }
}

/// The path as reports show it: relative to the working folder where that is shorter.
pub(crate) fn short_path(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
