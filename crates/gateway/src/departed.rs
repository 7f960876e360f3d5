//! Clients that leave while their statement runs.
//!
//! A session does not read while a statement runs, so it would notice only when it sends the reply, and a statement that waits for a
//! lock may wait for long, with all that its transaction has locked. Every second the sockets of the sessions that run something are
//! looked at; where the other side has closed, or its system does not answer any more (keep-alive), the session is ended as
//! `pg_terminate_backend()` would: its statement is cancelled on all shards, and its transaction rolled back. A commit goes on.
//!
//! PostgreSQL does the same when `client_connection_check_interval` is set. Here it is always done: what is held is held on
//! several servers.

use crate::cancel::CancelRegistry;
use futures::future::join_all;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Ends the sessions whose clients have left, until the gateway stops.
pub(crate) async fn end_departed(cancels: Arc<CancelRegistry>, mut stopping: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            _ = stopping.changed() => return,
        }
        let departed = cancels.running(has_left);
        join_all(departed.iter().map(|slot| slot.terminate())).await;
    }
}

/// Linux's POLLRDHUP, which nix has no name for: the other side will send no more.
const CLOSED_BY_PEER: PollFlags = PollFlags::from_bits_retain(0x2000);

/// Whether the other side of a connection has closed it, or is gone.
fn has_left(socket: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::new(socket, CLOSED_BY_PEER)];
    // What is not asked for (POLLHUP, POLLERR) is told all the same.
    matches!(poll(&mut asked, PollTimeout::ZERO), Ok(1..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn what_waits_to_be_read_is_no_departure() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let mut client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        client.write_all(b"next").expect("write");
        assert!(!has_left(server.as_fd()));
        client.shutdown(Shutdown::Both).expect("shutdown");
        std::thread::sleep(Duration::from_millis(50));
        assert!(has_left(server.as_fd()));
    }
}
