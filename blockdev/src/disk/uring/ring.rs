//! The io_uring all disks of the process share.
//!
//! Requests are submitted by the thread that makes them, so nothing is handed over before the device works. Completions are
//! harvested, in this order of preference, by
//! * the task that waits, when it looks and finds the ring not empty (transfers that the page cache or memory satisfied);
//! * a task of an attached runtime, which learns of completions by its own reactor: one wake-up from device to waiter;
//! * the completion thread: it waits in the kernel while no runtime is attached, and otherwise only looks after the ring from
//!   time to time, in case all threads of the runtime are blocked.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use io_uring::{IoUring, cqueue};
use parking_lot::{Mutex, MutexGuard};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::request::{Request, Verdict};
use crate::disk::arena;

/// Entries of the submission queue; it only holds what is between two system calls.
const SUBMISSIONS: u32 = 512;
/// Entries of the completion queue. Completions beyond it wait in the kernel (IORING_FEAT_NODROP), none is lost.
const COMPLETIONS: u32 = 8192;
/// Most workers of the kernel for requests that cannot be started at once. They exist only while they are needed. Its own bound, a few times the processors,
/// is as much as one disk that does not answer may keep waiting for a place in its queue: the flushes of all others would wait for those.
const WORKERS: u32 = 1024;
/// Completions taken from the queue at a time.
const BATCH: usize = 64;
/// Pause before a submission is repeated that the kernel had no memory for.
const PAUSE: Duration = Duration::from_micros(200);
/// IORING_ENTER_GETEVENTS of linux/io_uring.h.
const GETEVENTS: u32 = 1;

/// Time between two looks of the completion thread while a runtime is attached.
const BACKSTOP: Duration = Duration::from_millis(20);

thread_local! {
    static COMPLETING: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is completing a request further up its stack, and therefore must not wait for completions.
pub(super) fn is_completing() -> bool {
    COMPLETING.get()
}

/// The shared ring.
pub(super) struct Ring {
    uring: IoUring,
    /// Serialises the producers of the submission queue.
    producers: Mutex<()>,
    /// Serialises the consumers of the completion queue.
    consumers: Mutex<()>,
    /// Tasks that harvest.
    harvesters: AtomicUsize,
    /// Addresses of the memory that the kernel has mapped for this ring, as its buffer 0.
    mapped: Range<usize>,
}

impl Ring {
    /// The ring of this process, made at the first call. It lives as long as the process.
    pub(super) fn shared() -> Result<&'static Self, &'static str> {
        static SHARED: OnceLock<Result<&'static Ring, String>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start().map_err(|e| format!("io_uring: {e}"))).as_ref().copied().map_err(|e| &**e)
    }

    fn start() -> io::Result<&'static Self> {
        let uring = IoUring::builder().dontfork().setup_clamp().setup_cqsize(COMPLETIONS).build(SUBMISSIONS)?;
        let params = uring.params();
        if !params.is_feature_nodrop() || !params.is_feature_submit_stable() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel is too old (5.5 is needed)"));
        }
        if let Err(e) = uring.submitter().register_iowq_max_workers(&mut [WORKERS, 0]) {
            tracing::debug!("the kernel bounds the workers of io_uring by itself: {e}");
        }
        let mapped = Self::map_arena(&uring);
        let ring: &'static Self = Box::leak(Box::new(Self {
            uring,
            mapped,
            producers: Mutex::new(()),
            consumers: Mutex::new(()),
            harvesters: AtomicUsize::new(0),
        }));
        std::thread::Builder::new().name("disk-completion".into()).spawn(|| ring.reap())?;
        Ok(ring)
    }

    /// Has the kernel map the arena. It refuses where it may not lock so much memory: transfers are mapped one by one then.
    fn map_arena(uring: &IoUring) -> Range<usize> {
        let Some((start, len)) = arena::whole() else { return 0..0 };
        let buffer = libc::iovec { iov_base: start.as_ptr().cast(), iov_len: len };
        // SAFETY: the arena lives as long as the process.
        match unsafe { uring.submitter().register_buffers(&[buffer]) } {
            Ok(()) => start.addr().get()..start.addr().get() + len,
            Err(e) => {
                tracing::debug!("the kernel does not map {len} bytes for io_uring: {e}");
                0..0
            }
        }
    }

    /// Gives a request to the kernel, which owns it until its completion is harvested.
    pub(super) fn issue(&self, mut request: Box<Request>) {
        let entry = request.entry(&self.mapped);
        let entry = entry.user_data(Box::into_raw(request) as u64);
        loop {
            let pushed = {
                let _guard = self.producers.lock();
                // SAFETY: the lock makes this the only submission queue handle in use.
                let mut queue = unsafe { self.uring.submission_shared() };
                // SAFETY: everything the entry points to is owned by the request, which is leaked until its completion.
                unsafe { queue.push(&entry) }.is_ok()
            };
            self.submit();
            if pushed {
                return;
            }
        }
    }

    /// Makes the kernel take what is in the submission queue. Several threads may do so at once; one may find that
    /// another has taken its entry along.
    fn submit(&self) {
        loop {
            match self.uring.submit() {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => {
                    tracing::warn!("io_uring submission is delayed: {e}");
                    std::thread::sleep(PAUSE);
                }
            }
            let _guard = self.producers.lock();
            // SAFETY: the lock makes this the only submission queue handle in use.
            if unsafe { self.uring.submission_shared() }.is_empty() {
                return;
            }
        }
    }

    /// The completion thread.
    fn reap(&self) -> ! {
        super::prefer_latency();
        loop {
            if self.harvesters.load(Ordering::Relaxed) > 0 {
                std::thread::sleep(BACKSTOP);
            } else {
                // SAFETY: no argument is passed; with nothing to submit this only waits.
                let waited = unsafe { self.uring.submitter().enter::<libc::sigset_t>(0, 1, GETEVENTS, None) };
                if let Err(e) = waited
                    && e.raw_os_error() != Some(libc::EINTR)
                {
                    tracing::error!("waiting for io_uring completions: {e}");
                    std::thread::sleep(PAUSE);
                }
            }
            self.harvest();
        }
    }

    /// Completes the requests the kernel is done with.
    pub(super) fn harvest(&self) {
        while self.harvest_batch(self.consumers.lock()) == BATCH {}
    }

    /// Like [`Ring::harvest`], but leaves it to whoever is at it already. Never waits.
    pub(super) fn harvest_if_free(&self) {
        if let Some(consumer) = self.consumers.try_lock() {
            self.harvest_batch(consumer);
        }
    }

    fn harvest_batch(&self, consumer: MutexGuard<'_, ()>) -> usize {
        // SAFETY: the lock makes this the only completion queue handle in use.
        let queue = unsafe { self.uring.completion_shared() };
        if queue.is_empty() {
            return 0;
        }
        let mut batch = [const { None }; BATCH];
        let mut count = 0;
        for (place, completion) in batch.iter_mut().zip(queue) {
            *place = Some(completion);
            count += 1;
        }
        drop(consumer);
        batch[..count].iter().flatten().for_each(|completion| self.complete(completion));
        count
    }

    /// Harvests in a task of the current runtime, for as long as that lives. Needs its I/O driver.
    pub(super) fn attach_runtime(&'static self) -> io::Result<()> {
        struct RingFd(RawFd);
        impl AsRawFd for RingFd {
            fn as_raw_fd(&self) -> RawFd {
                self.0
            }
        }
        struct Attached(&'static Ring);
        impl Drop for Attached {
            fn drop(&mut self) {
                self.0.harvesters.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let inner = RingFd(self.uring.as_raw_fd());
        // SAFETY: the ring is leaked, so its descriptor stays open and the same.
        let fd = unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }.map_err(io::Error::from)?;
        self.harvesters.fetch_add(1, Ordering::Relaxed);
        let attached = Attached(self);
        tokio::spawn(async move {
            while let Ok(mut ready) = fd.readable().await {
                // Before the harvest, so that a completion that comes during it makes the ring ready again.
                ready.clear_ready();
                attached.0.harvest();
            }
        });
        Ok(())
    }

    fn complete(&self, completion: &cqueue::Entry) {
        // SAFETY: `issue` made the pointer from a box and leaked it; the kernel returns it exactly once.
        let mut request = unsafe { Box::from_raw(completion.user_data() as *mut Request) };
        match request.settle(completion.result()) {
            Verdict::Again => self.issue(request),
            Verdict::Done(result) => answer(request, result),
        }
    }
}

/// Answers a request. A panic in somebody's waker must not end the thread all disks depend on.
pub(super) fn answer(request: Box<Request>, result: crate::disk::DiskResult<()>) {
    let outer = COMPLETING.replace(true);
    if catch_unwind(AssertUnwindSafe(|| request.finish(result))).is_err() {
        tracing::error!("a task panicked while it was told of a disk completion");
    }
    COMPLETING.set(outer);
}
