//! Grace periods: what was freed is reused only when nobody who might still look at it is left (as in read-copy-update).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Counts those inside, by the parity of the epoch they entered in.
#[derive(Default)]
pub struct Gate {
    epoch: AtomicU64,
    inside: [AtomicU64; 2],
    left: Notify,
}

/// Somebody inside.
pub struct Pass {
    gate: Arc<Gate>,
    parity: usize,
}

impl Gate {
    /// Enters; leaves when the pass is dropped.
    pub fn enter(self: &Arc<Self>) -> Pass {
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let parity = (epoch % 2) as usize;
            self.inside[parity].fetch_add(1, Ordering::SeqCst);
            if self.epoch.load(Ordering::SeqCst) == epoch {
                return Pass { gate: self.clone(), parity };
            }
            self.leave(parity);
        }
    }

    fn leave(&self, parity: usize) {
        if self.inside[parity].fetch_sub(1, Ordering::SeqCst) == 1 {
            self.left.notify_waiters();
        }
    }

    /// Waits until all who were inside at the call have left. One caller at a time.
    pub async fn synchronize(&self) {
        let old = self.epoch.fetch_add(1, Ordering::SeqCst);
        let parity = (old % 2) as usize;
        loop {
            let notified = self.left.notified();
            if self.inside[parity].load(Ordering::SeqCst) == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.leave(self.parity);
    }
}
