//! Requests in flight: how many there may be, and how one is carried from the session thread to its reply.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::env::BoxFuture;
use crate::error::{Error, Result};

/// Requests taken from the kernel and not yet answered, over all volumes of a mount.
const REQUESTS_MAX: usize = 512;

/// Their payload in bytes. A single request always passes.
const BYTES_MAX: usize = 64 << 20;

/// Bounds the requests in flight: a session thread waits here before it starts one, and so takes no further request from
/// the kernel, which then holds its callers back.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    requests: usize,
    bytes: usize,
    closed: bool,
}

impl Gate {
    /// Waits for room for a request with `bytes` of payload that counts for `user`. None once the gate is closed.
    pub(super) fn enter(self: &Arc<Self>, bytes: usize, user: &Arc<AtomicUsize>) -> Option<Permit> {
        let mut state = self.state.lock();
        while !state.closed
            && (state.requests >= REQUESTS_MAX || (state.requests > 0 && state.bytes + bytes > BYTES_MAX))
        {
            self.changed.wait(&mut state);
        }
        if state.closed {
            return None;
        }
        state.requests += 1;
        state.bytes += bytes;
        user.fetch_add(1, Ordering::AcqRel);
        Some(Permit { gate: Arc::clone(self), bytes, user: Arc::clone(user) })
    }

    /// Lets nobody in any more; those that wait are turned away.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until nothing is in flight; false if that took longer than `limit`.
    pub(super) fn drained(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.state.lock();
        while state.requests > 0 {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return state.requests == 0;
            }
        }
        true
    }
}

/// The right to have one request in flight; given back on drop.
pub(super) struct Permit {
    gate: Arc<Gate>,
    bytes: usize,
    user: Arc<AtomicUsize>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        state.requests -= 1;
        state.bytes -= self.bytes;
        drop(state);
        self.user.fetch_sub(1, Ordering::AcqRel);
        self.gate.changed.notify_all();
    }
}

/// Starts an operation, drives it to its end and hands the result to `reply`.
///
/// It is polled once right here, since a request that hits a cache needs no other thread; if it is not ready it moves to
/// the runtime and is answered from there. A panic inside the device is an I/O error of this request alone.
pub(super) fn carry<T: Send + 'static>(
    runtime: &tokio::runtime::Handle,
    permit: Permit,
    start: impl FnOnce() -> BoxFuture<Result<T>>,
    reply: impl FnOnce(Result<T>) + Send + 'static,
) {
    let started = {
        let _runtime = runtime.enter();
        std::panic::catch_unwind(AssertUnwindSafe(|| {
            let mut operation = start();
            match operation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(result) => Ok(result),
                Poll::Pending => Err(operation),
            }
        }))
    };
    match started {
        Ok(Ok(result)) => {
            reply(result);
            drop(permit);
        }
        Ok(Err(operation)) => {
            // A panic there, or the end of the runtime, drops `reply`, which answers EIO by itself.
            runtime.spawn(async move {
                reply(operation.await);
                drop(permit);
            });
        }
        Err(_) => {
            reply(Err(Error::io("the request panicked")));
            drop(permit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Arc<AtomicUsize> {
        Arc::new(AtomicUsize::new(0))
    }

    #[test]
    fn full_by_count_waits_for_a_permit_to_drop() {
        let (gate, user) = (Arc::new(Gate::default()), user());
        let mut held: Vec<_> = (0..REQUESTS_MAX).map(|_| gate.enter(1, &user).unwrap()).collect();
        let waiter = {
            let (gate, user) = (Arc::clone(&gate), Arc::clone(&user));
            std::thread::spawn(move || gate.enter(1, &user).is_some())
        };
        assert!(!waiter.is_finished());
        held.pop();
        assert!(waiter.join().unwrap());
        drop(held);
        assert!(gate.drained(Duration::from_secs(10)));
        assert_eq!(user.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_oversized_request_passes_and_the_next_waits_until_closed() {
        let (gate, user) = (Arc::new(Gate::default()), user());
        let held = gate.enter(BYTES_MAX * 2, &user).unwrap();
        let waiter = {
            let (gate, user) = (Arc::clone(&gate), Arc::clone(&user));
            std::thread::spawn(move || gate.enter(1, &user).is_some())
        };
        gate.close();
        assert!(!waiter.join().unwrap());
        assert!(!gate.drained(Duration::ZERO));
        drop(held);
        assert!(gate.drained(Duration::ZERO));
    }

    #[test]
    fn pending_work_is_answered_from_the_runtime_and_panics_become_errors() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let (gate, user) = (Arc::new(Gate::default()), user());
        let (send, receive) = std::sync::mpsc::channel();
        let run = |operation: BoxFuture<Result<u32>>| {
            let send = send.clone();
            carry(
                runtime.handle(),
                gate.enter(1, &user).unwrap(),
                || operation,
                move |result| {
                    send.send((result.is_ok(), std::thread::current().id())).unwrap();
                },
            );
        };
        let here = std::thread::current().id();
        run(Box::pin(async { Ok(1) }));
        assert_eq!(receive.recv().unwrap(), (true, here));
        run(Box::pin(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(1)
        }));
        let (ok, thread) = receive.recv().unwrap();
        assert!(ok && thread != here);
        run(Box::pin(async { panic!("planted") }));
        assert_eq!(receive.recv().unwrap(), (false, here));
        assert!(gate.drained(Duration::from_secs(10)));
    }
}
