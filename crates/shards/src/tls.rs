//! TLS with shards. The settings have libpq's names and meanings (`sslmode`, `sslrootcert`, `sslcert`, `sslkey`), but for `allow`
//! and `prefer`, with which anybody between gateway and shard could have the connection in the clear.
//!
//! Backends ask for encryption themselves ([`Tls::connect`]); service connections let tokio-postgres do it ([`Connector`]).

use crate::pem;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_postgres::Socket;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{self, CryptoProvider};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// PostgreSQL's request for encryption: its length, and the code that stands in the protocol version's place.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// How much is asked of a shard's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// nothing, unless there is a root certificate: then the same as `VerifyCa`
    Require,
    /// that one of the root certificates' authorities has signed it
    VerifyCa,
    /// and that it names the shard's host
    VerifyFull,
}

/// Files in PEM format, and what is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// what is asked of the shard's certificate
    pub mode: SslMode,
    /// the authorities that sign shards' certificates
    pub root: Option<PathBuf>,
    /// the gateway's own certificate and its private key
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Ready to encrypt connections to a shard.
#[derive(Clone)]
pub struct Tls(TlsConnector);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// A text with the file's name and what to do.
    pub fn load(settings: &TlsSettings) -> Result<Self, String> {
        let provider = Arc::new(crypto::ring::default_provider());
        let signed = match &settings.root {
            Some(path) => {
                let unusable = |e: &dyn std::fmt::Display| format!("cannot use {}: {e}", path.display());
                let mut roots = RootCertStore::empty();
                for certificate in pem::certificates(path)? {
                    roots.add(certificate).map_err(|e| unusable(&e))?;
                }
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
                Some(verifier.build().map_err(|e| unusable(&e))?)
            }
            None if settings.mode == SslMode::Require => None,
            None => return Err("sslmode verify-ca and verify-full need sslrootcert".into()),
        };
        let verifier: Arc<dyn ServerCertVerifier> = match (signed, settings.mode) {
            (Some(signed), SslMode::VerifyFull) => signed,
            (signed, _) => Arc::new(WhateverName {
                signed,
                provider: provider.clone(),
            }),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match &settings.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(pem::certificates(certificate)?, pem::private_key(key)?)
                .map_err(|e| {
                    format!(
                        "the certificate {} and the key {} do not go together: {e}",
                        certificate.display(),
                        key.display()
                    )
                })?,
        };
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Asks the server for encryption, and encrypts.
    pub(crate) async fn connect(&self, host: &str, mut stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        stream.write_all(&SSL_REQUEST).await?;
        let mut answer = [0];
        stream.read_exact(&mut answer).await?;
        match answer[0] {
            b'S' => self.0.connect(server_name(host)?, stream).await,
            _ => Err(io::Error::other("server does not support SSL, but SSL was required")),
        }
    }
}

fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(io::Error::other)
}

/// Asks that the certificate was signed by somebody who is trusted, or not even that; but not whom it names.
#[derive(Debug)]
struct WhateverName {
    signed: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for WhateverName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(signed) = &self.signed else {
            return Ok(ServerCertVerified::assertion());
        };
        // The signatures are looked at before the name.
        match signed.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// For tokio-postgres: encrypts where the shard's connections are to be encrypted.
#[derive(Clone)]
pub struct Connector(pub(crate) Option<Tls>);

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Encrypted;
    type TlsConnect = Connecting;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Connecting> {
        Ok(Connecting {
            tls: self.0.clone(),
            host: host.to_owned(),
        })
    }
}

/// One connection of a [`Connector`].
pub struct Connecting {
    tls: Option<Tls>,
    host: String,
}

impl TlsConnect<Socket> for Connecting {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted>> + Send>>;

    fn connect(self, stream: Socket) -> Self::Future {
        Box::pin(async move {
            let tls = self.tls.ok_or_else(|| io::Error::other("TLS is not configured"))?;
            let stream = tls.0.connect(server_name(&self.host)?, stream).await?;
            Ok(Encrypted(Box::new(stream)))
        })
    }
}

/// An encrypted service connection.
pub struct Encrypted(Box<TlsStream<Socket>>);

impl tokio_postgres::tls::TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
