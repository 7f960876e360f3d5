//! `/metrics` for Prometheus and `/health`, over the smallest HTTP that serves both.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A process has one recorder, whichever of its gateways asks first.
fn recorder() -> &'static PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER.get_or_init(|| {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        // Another recorder may be installed by whoever embeds the gateway; theirs then has the numbers.
        let _ = metrics::set_global_recorder(recorder);
        handle
    })
}

/// Serves until the gateway stops; returns the address.
pub(crate) async fn serve(at: SocketAddr, mut stopping: watch::Receiver<bool>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(at).await?;
    let address = listener.local_addr()?;
    recorder();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        tokio::spawn(async move {
                            let _ = tokio::time::timeout(Duration::from_secs(5), answer(stream)).await;
                        });
                    }
                }
                _ = stopping.changed() => return,
            }
        }
    });
    Ok(address)
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = vec![0; 2048];
    let mut length = 0;
    while length < request.len() && !request[..length].windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut request[length..]).await? {
            0 => break,
            n => length += n,
        }
    }
    let line = String::from_utf8_lossy(&request[..length]);
    let (status, body) = match line.split_whitespace().nth(1) {
        Some("/metrics") => ("200 OK", recorder().render()),
        Some("/health") => ("200 OK", "ok\n".to_owned()),
        _ => ("404 Not Found", "try /metrics or /health\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}
