//! What asks pgherd to stop.

use crate::{Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Ctrl-C, SIGTERM, the terminal's end. Made before anything is started, so that nothing is left if one comes early.
pub struct Terminated {
    signals: [Signal; 3],
    /// Resolves when standard input has ended, if that was asked for.
    input: Option<oneshot::Receiver<()>>,
}

impl Terminated {
    /// Starts to listen; from now on these signals do not end the process by themselves.
    pub fn watch(until_stdin_ends: bool) -> Result<Self> {
        let watch = |kind| signal(kind).map_err(Error::Signals);
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(watch);
        let signals = [interrupt?, terminate?, hangup?];
        Ok(Self {
            signals,
            input: until_stdin_ends.then(end_of_input),
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        let input = async {
            match &mut self.input {
                Some(ended) => drop(ended.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            () = input => self.input = None,
        }
    }
}

fn end_of_input() -> oneshot::Receiver<()> {
    let (ended, receiver) = oneshot::channel();
    // A thread of its own: reading cannot be interrupted, and must not keep the process from ending.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = ended.send(());
    });
    receiver
}
