//! A disk made slow on purpose: for tests of back-pressure, and for laboratories that imitate other hardware.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Disk, DiskError, DiskGeometry, DiskResult};
use crate::env::{BoxFuture, Env};

#[cfg(test)]
mod tests;

/// How slow. The default is not slow at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    /// Bytes read and written per second, all together. None or 0: no limit.
    pub bytes_per_s: Option<u64>,
    /// Requests of all kinds per second. None or 0: no limit.
    pub requests_per_s: Option<u64>,
    /// Time added to every request, on top of what the limits make it wait. Requests spend it side by side.
    pub latency: Duration,
}

impl Throttle {
    /// How long a request of `len` bytes keeps the disk for itself: a disk that does one request after the other at the
    /// given rates, whichever is the tighter one.
    fn service_time(&self, len: u64) -> Duration {
        let share = |amount: u64, rate: Option<u64>| match rate {
            None | Some(0) => Duration::ZERO,
            Some(rate) => {
                let nanos = u128::from(amount) * 1_000_000_000 / u128::from(rate);
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
        };
        share(len, self.bytes_per_s).max(share(1, self.requests_per_s))
    }
}

/// A [`Disk`] that passes requests on to another one no faster than a [`Throttle`] allows.
///
/// Requests are served in the order they are made. There is no credit for idle time. Flushes and discards count as requests
/// without bytes.
pub struct ThrottledDisk {
    inner: Arc<dyn Disk>,
    env: Arc<dyn Env>,
    state: Mutex<State>,
}

struct State {
    throttle: Throttle,
    /// When the requests accepted so far will have been served.
    free_at: Duration,
}

impl ThrottledDisk {
    /// Slows `inner` down, by the clock of `env`.
    pub fn new(inner: Arc<dyn Disk>, env: Arc<dyn Env>, throttle: Throttle) -> Arc<Self> {
        Arc::new(Self { inner, env, state: Mutex::new(State { throttle, free_at: Duration::ZERO }) })
    }

    /// Changes the limits for requests made from now on.
    pub fn set(&self, throttle: Throttle) {
        self.state.lock().throttle = throttle;
    }

    /// The limits.
    pub fn throttle(&self) -> Throttle {
        self.state.lock().throttle
    }

    /// How long a request of `len` bytes that is made now has to wait before the disk below gets it.
    fn admit(&self, len: u64) -> Duration {
        let now = self.env.now();
        let mut state = self.state.lock();
        let done = state.free_at.max(now).saturating_add(state.throttle.service_time(len));
        state.free_at = done;
        done.saturating_add(state.throttle.latency).saturating_sub(now)
    }

    fn delayed<T: Send + 'static>(
        &self,
        len: u64,
        request: impl FnOnce(&dyn Disk) -> BoxFuture<DiskResult<T>> + Send + 'static,
    ) -> BoxFuture<DiskResult<T>> {
        let delay = self.admit(len);
        if delay.is_zero() {
            return request(&*self.inner);
        }
        // In a task, since dropping the future of a request does not cancel it.
        let (reply, answer) = tokio::sync::oneshot::channel();
        let (inner, sleep) = (self.inner.clone(), self.env.sleep(delay));
        self.env.spawn(Box::pin(async move {
            sleep.await;
            let _ = reply.send(request(&*inner).await);
        }));
        let name = self.name();
        Box::pin(async move {
            let stopped = || Err(DiskError::Failed(format!("{name}: stopped while a request was delayed")));
            answer.await.unwrap_or_else(|_| stopped())
        })
    }
}

impl Disk for ThrottledDisk {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn geometry(&self) -> DiskGeometry {
        self.inner.geometry()
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<DiskResult<Bytes>> {
        self.delayed(len as u64, move |disk| disk.read(offset, len))
    }

    fn write(&self, offset: u64, data: Vec<Bytes>, durable: bool) -> BoxFuture<DiskResult<()>> {
        let len = data.iter().map(|piece| piece.len() as u64).sum();
        self.delayed(len, move |disk| disk.write(offset, data, durable))
    }

    fn flush(&self) -> BoxFuture<DiskResult<()>> {
        self.delayed(0, |disk| disk.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<DiskResult<()>> {
        self.delayed(0, move |disk| disk.discard(offset, len))
    }

    fn abandon(&self, why: &str) {
        self.inner.abandon(why);
    }
}
