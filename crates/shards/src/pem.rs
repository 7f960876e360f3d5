//! Certificates and private keys, from files in PEM format.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The certificates of a file, at least one.
///
/// # Errors
/// A text with the file's name.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(|found| found.collect::<Result<Vec<_>, _>>());
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("there is no certificate in {}", path.display())),
        Err(e) => Err(format!("cannot read certificates from {}: {e}", path.display())),
    }
}

/// A private key that nobody but its owner can read: as for PostgreSQL, a key that others can read is no secret.
///
/// # Errors
/// A text with the file's name and what to do.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let unreadable = |cause: String| format!("cannot read the private key {}: {cause}", path.display());
    let metadata = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(format!(
            "the private key {} can be read by others than its owner; chmod 600 it",
            path.display()
        ));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|e| unreadable(e.to_string()))
}
