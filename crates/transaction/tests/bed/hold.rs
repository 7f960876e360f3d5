//! A gateway that stands still at a step, for as long as the test likes: a commit between its halves.

use pgherd_transaction::Coordinator;
use pgherd_transaction::control::Point;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A test that failed must not hold the gateway for ever.
const LONGEST: Duration = Duration::from_secs(40);

/// Needs a runtime of several threads: the step that is held has one of them for itself.
pub struct Hold {
    reached: Arc<AtomicBool>,
    released: Arc<AtomicBool>,
}

impl Hold {
    /// Holds the gateway at each point of this kind, until it is released.
    pub fn at(gateway: &Coordinator, is_here: impl Fn(Point) -> bool + Send + Sync + 'static) -> Self {
        let (reached, released) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (told, waited_for) = (reached.clone(), released.clone());
        gateway.set_control(Some(Arc::new(move |point| {
            if is_here(point) {
                let begun = Instant::now();
                told.store(true, Ordering::SeqCst);
                tokio::task::block_in_place(|| {
                    while !waited_for.load(Ordering::SeqCst) && begun.elapsed() < LONGEST {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
            }
            true
        })));
        Self { reached, released }
    }

    /// Waits until the gateway has come to such a point.
    pub async fn reached(&self) {
        while !self.reached.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
    }
}
