//! The io_uring all disks of the process share, and the one thread that harvests its completions.
//!
//! Requests are submitted by the thread that makes them, so an idle system has no hand-over before the device works.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::Duration;

use io_uring::{IoUring, cqueue};
use parking_lot::Mutex;

use super::request::{Request, Verdict};

/// Entries of the submission queue; it only holds what is between two system calls.
const SUBMISSIONS: u32 = 512;
/// Entries of the completion queue. Completions beyond it wait in the kernel (IORING_FEAT_NODROP), none is lost.
const COMPLETIONS: u32 = 8192;
/// Completions handled between two looks at the queue.
const BATCH: usize = 256;
/// Pause before a submission is repeated that the kernel had no memory for.
const PAUSE: Duration = Duration::from_micros(200);
/// IORING_ENTER_GETEVENTS of linux/io_uring.h.
const GETEVENTS: u32 = 1;

thread_local! {
    static IS_REAPER: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is one that completes requests, and therefore must not wait for completions.
pub(super) fn on_completion_thread() -> bool {
    IS_REAPER.get()
}

/// Marks the calling thread as one that completes requests.
pub(super) fn become_completion_thread() {
    IS_REAPER.set(true);
}

/// The shared ring.
pub(super) struct Ring {
    uring: IoUring,
    /// Serialises the producers of the submission queue.
    producers: Mutex<()>,
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
        let ring: &'static Self = Box::leak(Box::new(Self { uring, producers: Mutex::new(()) }));
        std::thread::Builder::new().name("disk-completion".into()).spawn(|| ring.reap())?;
        Ok(ring)
    }

    /// Gives a request to the kernel, which owns it until its completion is harvested.
    pub(super) fn issue(&self, mut request: Box<Request>) {
        let entry = request.entry();
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

    fn reap(&self) -> ! {
        become_completion_thread();
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            // SAFETY: no argument is passed; with nothing to submit this only waits.
            let waited = unsafe { self.uring.submitter().enter::<libc::sigset_t>(0, 1, GETEVENTS, None) };
            if let Err(e) = waited
                && e.raw_os_error() != Some(libc::EINTR)
            {
                tracing::error!("waiting for io_uring completions: {e}");
                std::thread::sleep(PAUSE);
            }
            loop {
                // SAFETY: this thread is the only one that touches the completion queue.
                batch.extend(unsafe { self.uring.completion_shared() }.take(BATCH));
                if batch.is_empty() {
                    break;
                }
                for completion in batch.drain(..) {
                    self.complete(&completion);
                }
            }
        }
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
    if catch_unwind(AssertUnwindSafe(|| request.finish(result))).is_err() {
        tracing::error!("a task panicked while it was told of a disk completion");
    }
}
