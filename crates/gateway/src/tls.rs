//! TLS with clients: the gateway's certificate, and what is known of a connection once it is encrypted.

use pgherd_model::{ServerError, SqlState};
use pgherd_shards::pem::{certificates, private_key};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};
use tokio_rustls::server::TlsStream;

/// Files in PEM format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// the gateway's certificate, then those of the authorities between it and the root
    pub certificate: PathBuf,
    /// its private key, readable by its owner only
    pub key: PathBuf,
    /// the authorities that sign clients' certificates
    pub client_authorities: Option<PathBuf>,
}

/// Ready to encrypt connections.
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    /// the certificate's hash, for SCRAM's channel binding; none where RFC 5929 defines none
    end_point: Option<Vec<u8>>,
}

/// What an encrypted connection told of its peer and itself.
#[derive(Debug, Clone)]
pub(crate) struct Encrypted {
    /// for SCRAM's channel binding
    pub(crate) end_point: Option<Vec<u8>>,
    /// the client's certificate was signed by one of the configured authorities
    pub(crate) signed: bool,
    /// whom the client's certificate names
    pub(crate) common_name: Option<String>,
}

/// An encrypted connection. It says when it ends, as PostgreSQL's do: clients tell that from a line that broke.
pub(crate) struct EncryptedStream(pub(crate) TlsStream<TcpStream>);

impl Deref for EncryptedStream {
    type Target = TlsStream<TcpStream>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for EncryptedStream {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Drop for EncryptedStream {
    fn drop(&mut self) {
        let (socket, tls) = self.0.get_mut();
        tls.send_close_notify();
        // A client that does not read is not waited for.
        while tls.wants_write() && tls.write_tls(&mut AtOnce(socket)).is_ok() {}
    }
}

/// Takes what the socket takes without waiting.
struct AtOnce<'a>(&'a TcpStream);

impl io::Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tls {
    /// Reads the files. Errors: a text with the file's name and what to do.
    pub(crate) fn load(files: &TlsFiles) -> Result<Self, String> {
        let chain = certificates(&files.certificate)?;
        let key = private_key(&files.key)?;
        let end_point = end_point(&chain[0]);
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?;
        let builder = match &files.client_authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots
                        .add(certificate)
                        .map_err(|e| format!("cannot use {}: {e}", path.display()))?;
                }
                // Whether a certificate is needed, the rule that lets the client in says, as in PostgreSQL.
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|e| format!("cannot use {}: {e}", path.display()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|e| {
            format!(
                "the certificate {} and the key {} do not go together: {e}",
                files.certificate.display(),
                files.key.display()
            )
        })?;
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            end_point,
        })
    }

    /// Encrypts a connection whose client asked for it.
    pub(crate) async fn accept(&self, stream: TcpStream) -> std::io::Result<(TlsStream<TcpStream>, Encrypted)> {
        let stream = self.acceptor.accept(stream).await?;
        let peer = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
        let encrypted = Encrypted {
            end_point: self.end_point.clone(),
            signed: peer.is_some(),
            common_name: peer.and_then(common_name),
        };
        Ok((stream, encrypted))
    }
}

/// RFC 5929, tls-server-end-point: the certificate under its signature's hash, MD5 and SHA-1 replaced by SHA-256.
fn end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let algorithm = parsed.signature_algorithm.algorithm.to_id_string();
    Some(match algorithm.as_str() {
        // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => Sha256::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Sha384::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Sha512::digest(certificate).to_vec(),
        _ => return None,
    })
}

fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

/// What the client is told when the handshake is not possible any more.
pub(crate) fn data_before_handshake() -> ServerError {
    ServerError::new(
        SqlState::PROTOCOL_VIOLATION,
        "received unencrypted data after SSL request",
    )
    .with_detail("This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.")
}
