//! Requests in flight: how many there may be, and how one is carried from the session thread to its reply.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::env::BoxFuture;
use crate::error::{Error, ErrorKind, Result};

/// Requests taken from the kernel and not yet answered, over all volumes of a mount.
const REQUESTS_MAX: usize = 512;

/// Whether requests on one volume are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    /// They are.
    Open,
    /// New ones are refused; those in flight go on.
    Closing,
    /// Those in flight are answered with an error too, whatever the device does.
    Cut,
}

/// The requests in flight on one volume.
pub(super) struct Usage {
    requests: AtomicUsize,
    service: watch::Sender<Service>,
}

impl Usage {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { requests: AtomicUsize::new(0), service: watch::Sender::new(Service::Open) })
    }

    /// Ends requests in flight with an error. For a device that does not answer.
    pub(super) fn cut(&self) {
        self.service.send_replace(Service::Cut);
    }

    /// Completes when the volume is no longer served, or is gone altogether.
    pub(super) fn closing(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut service = self.service.subscribe();
        async move {
            let _ = service.wait_for(|service| *service != Service::Open).await;
        }
    }
}

/// Bounds the requests in flight: a session thread waits here before it starts one, and so takes no further request
/// from the kernel, which then holds its callers back.
pub(super) struct Gate {
    /// Payload in bytes that may be in flight. A single request always passes.
    bytes: usize,
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
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits for room for a request with `bytes` of payload on the volume of `usage`. None once the gate, or the
    /// volume, is closed.
    pub(super) fn enter(self: &Arc<Self>, bytes: usize, usage: &Arc<Usage>) -> Option<Permit> {
        let mut state = self.state.lock();
        let full =
            |state: &State| state.requests >= REQUESTS_MAX || (state.requests > 0 && state.bytes + bytes > self.bytes);
        let shut = |state: &State| state.closed || *usage.service.borrow() != Service::Open;
        while !shut(&state) && full(&state) {
            self.changed.wait(&mut state);
        }
        if shut(&state) {
            return None;
        }
        state.requests += 1;
        state.bytes += bytes;
        usage.requests.fetch_add(1, Ordering::AcqRel);
        Some(Permit { gate: Arc::clone(self), bytes, usage: Arc::clone(usage) })
    }

    /// Lets nobody in any more; those that wait are turned away.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Lets nobody in any more for one volume.
    pub(super) fn close_volume(&self, usage: &Usage) {
        // Under the lock, so that whoever is let in afterwards has seen it.
        let state = self.state.lock();
        usage.service.send_if_modified(|service| {
            let open = *service == Service::Open;
            if open {
                *service = Service::Closing;
            }
            open
        });
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until nothing is in flight; false if that took longer than `limit`.
    pub(super) fn drained(&self, limit: Duration) -> bool {
        self.wait_for(limit, |state| state.requests == 0)
    }

    /// Waits until nothing is in flight on one volume; false if that took longer than `limit`.
    pub(super) fn drained_of(&self, usage: &Usage, limit: Duration) -> bool {
        self.wait_for(limit, |_| usage.requests.load(Ordering::Acquire) == 0)
    }

    fn wait_for(&self, limit: Duration, done: impl Fn(&State) -> bool) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.state.lock();
        while !done(&state) {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return done(&state);
            }
        }
        true
    }
}

/// The right to have one request in flight; given back on drop.
pub(super) struct Permit {
    gate: Arc<Gate>,
    bytes: usize,
    usage: Arc<Usage>,
}

impl Permit {
    /// Completes when requests in flight on the volume must end.
    fn cut(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut service = self.usage.service.subscribe();
        async move {
            let _ = service.wait_for(|service| *service == Service::Cut).await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        state.requests -= 1;
        state.bytes -= self.bytes;
        self.usage.requests.fetch_sub(1, Ordering::AcqRel);
        drop(state);
        self.gate.changed.notify_all();
    }
}

/// Starts an operation, drives it to its end and hands the result to `reply`.
///
/// It is polled once right here, since a request that hits a cache needs no other thread; if it is not ready it moves
/// to the runtime and is answered from there. A panic inside the device is an I/O error of this request alone.
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
                let result = tokio::select! {
                    biased;
                    result = operation => result,
                    () = permit.cut() => Err(Error::new(ErrorKind::Unavailable, "given up: the device did not answer")),
                };
                reply(result);
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

    const BYTES: usize = 64 << 20;

    #[test]
    fn full_by_count_waits_for_a_permit_to_drop() {
        let (gate, usage) = (Arc::new(Gate::new(BYTES)), Usage::new());
        let mut held: Vec<_> = (0..REQUESTS_MAX).map(|_| gate.enter(1, &usage).unwrap()).collect();
        let waiter = {
            let (gate, usage) = (Arc::clone(&gate), Arc::clone(&usage));
            std::thread::spawn(move || gate.enter(1, &usage).is_some())
        };
        assert!(!waiter.is_finished());
        held.pop();
        assert!(waiter.join().unwrap());
        drop(held);
        assert!(gate.drained(Duration::from_secs(10)));
        assert!(gate.drained_of(&usage, Duration::ZERO));
    }

    #[test]
    fn one_oversized_request_passes_and_the_next_waits_until_closed() {
        let (gate, usage) = (Arc::new(Gate::new(BYTES)), Usage::new());
        let held = gate.enter(BYTES * 2, &usage).unwrap();
        let waiter = {
            let (gate, usage) = (Arc::clone(&gate), Arc::clone(&usage));
            std::thread::spawn(move || gate.enter(1, &usage).is_some())
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
        let (gate, usage) = (Arc::new(Gate::new(BYTES)), Usage::new());
        let (send, receive) = std::sync::mpsc::channel();
        let run = |operation: BoxFuture<Result<u32>>| {
            let send = send.clone();
            carry(
                runtime.handle(),
                gate.enter(1, &usage).unwrap(),
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

    #[test]
    fn closing_one_volume_refuses_its_requests_only_and_cutting_ends_them() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (gate, hung, healthy) = (Arc::new(Gate::new(BYTES)), Usage::new(), Usage::new());
        let (send, receive) = std::sync::mpsc::channel();
        let permit = gate.enter(BYTES, &hung).unwrap();
        let never = || -> BoxFuture<Result<()>> { Box::pin(std::future::pending()) };
        carry(runtime.handle(), permit, never, move |result| send.send(result).unwrap());
        let waiter = {
            let (gate, hung) = (Arc::clone(&gate), Arc::clone(&hung));
            std::thread::spawn(move || gate.enter(1, &hung).is_some())
        };
        let closing = hung.closing();
        gate.close_volume(&hung);
        runtime.block_on(closing);
        assert!(!waiter.join().unwrap(), "one that waited is turned away");
        assert!(!gate.drained_of(&hung, Duration::ZERO), "what is in flight goes on");
        assert!(gate.drained_of(&healthy, Duration::ZERO));
        assert!(receive.try_recv().is_err());
        hung.cut();
        assert_eq!(receive.recv().unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(gate.drained_of(&hung, Duration::from_secs(10)));
        assert!(gate.enter(1, &hung).is_none() && gate.enter(1, &healthy).is_some());
    }
}
