//! A byte stream to a shard: its Unix socket where the host is a folder, else TCP, encrypted where that is configured.

use crate::ShardConfig;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// Any kind of connection.
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(crate) async fn connect(config: &ShardConfig) -> io::Result<Self> {
        let (host, port) = (config.host.as_str(), config.port);
        if host.starts_with('/') {
            return Ok(Self::Unix(
                UnixStream::connect(format!("{host}/.s.PGSQL.{port}")).await?,
            ));
        }
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(match &config.tls {
            Some(tls) => Self::Tls(Box::new(tls.connect(host, stream).await?)),
            None => Self::Tcp(stream),
        })
    }

    /// Whether something came (or the other side closed) that nobody has read: from the reactor's cached
    /// readiness, so it costs no system call.
    pub(crate) fn has_news(&self) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match self {
            Self::Unix(s) => s.poll_read_ready(&mut context).is_ready(),
            Self::Tcp(s) => s.poll_read_ready(&mut context).is_ready(),
            Self::Tls(s) => s.get_ref().0.poll_read_ready(&mut context).is_ready(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(_) | Self::Tcp(_) => Poll::Ready(Ok(())),
            // What the socket did not take yet.
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
