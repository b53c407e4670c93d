//! Admission to a disk: bounds what is in flight, and lets closing wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counts the requests of one disk that are with the kernel.
pub(super) struct Gate {
    places: Arc<Semaphore>,
    in_flight: AtomicUsize,
    closed: AtomicBool,
    abandoned: AtomicBool,
    idle: Mutex<()>,
    became_idle: Condvar,
}

/// The right to have one request in flight; given back by dropping it.
pub(super) struct Pass {
    gate: Arc<Gate>,
    _place: OwnedSemaphorePermit,
}

impl Gate {
    /// A gate for at most `depth` requests at a time.
    pub(super) fn new(depth: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(depth)),
            in_flight: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            idle: Mutex::new(()),
            became_idle: Condvar::new(),
        })
    }

    /// A place, if one is free and nobody waits in front.
    pub(super) fn try_enter(self: &Arc<Self>) -> Option<Pass> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        self.admit(place)
    }

    /// A place, in the order of asking. None when the disk was closed meanwhile.
    pub(super) async fn enter(self: &Arc<Self>) -> Option<Pass> {
        let place = self.places.clone().acquire_owned().await.ok()?;
        self.admit(place)
    }

    fn admit(self: &Arc<Self>, place: OwnedSemaphorePermit) -> Option<Pass> {
        // Counted before looking at `closed`, as `close` sets `closed` before looking at the count: one sees the other.
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let pass = Pass { gate: self.clone(), _place: place };
        (!self.closed.load(Ordering::SeqCst)).then_some(pass)
    }

    /// Lets nobody in any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.places.close();
    }

    /// Nobody waits for what is in flight, which may be for ever.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        self.close();
    }

    /// See [`Gate::abandon`].
    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// Blocks until nothing is in flight, at most for `timeout`; true if nothing is. Call [`Gate::close`] first.
    pub(super) fn wait_idle(&self, timeout: Duration) -> bool {
        let mut guard = self.idle.lock();
        let is_busy = |_: &mut ()| self.in_flight.load(Ordering::SeqCst) != 0;
        !self.became_idle.wait_while_for(&mut guard, is_busy, timeout).timed_out()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let last = self.gate.in_flight.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.gate.closed.load(Ordering::SeqCst) {
            // Under the lock, so that it cannot fall between a waiter's look at the count and its sleep.
            let _guard = self.gate.idle.lock();
            self.gate.became_idle.notify_all();
        }
    }
}
