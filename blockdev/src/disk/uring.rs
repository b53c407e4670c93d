//! Files, block devices, partitions and loop devices as disks, by io_uring with O_DIRECT.
//!
//! A request is submitted to the kernel by the call that makes it, not by the first poll of its future. What the kernel
//! needs (buffers, scatter lists, the open file) belongs to the request, so dropping the future is harmless.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Disk, DiskError, DiskGeometry, DiskResult, IO_ALIGN};
use crate::env::{BoxFuture, lent};
use crate::error::{Error, Result};

mod gate;
mod open;
mod request;
mod ring;
mod scheduling;
mod threads;

#[cfg(test)]
mod lent_tests;
#[cfg(test)]
mod platform_tests;
#[cfg(test)]
mod tests;

use gate::{Gate, Pass};
use open::OpenFile;
pub use open::OpenOptions;
use request::{Operation, ReadBuf, Request};
use ring::Ring;
pub use scheduling::prefer_latency;
use threads::Threads;

/// Lets the current tokio runtime harvest completions for all disks of the process, for as long as it lives.
///
/// Tasks of that runtime then learn of a completion with one thread wake-up less than through the completion thread, which
/// does the work while no runtime is attached. Call it once at the start of a runtime whose tasks use disks. Where other threads
/// keep the processors busy, [`prefer_latency`] for the workers of that runtime saves more still.
///
/// # Errors
/// `Io` when the reactor refuses.
///
/// # Panics
/// Outside a runtime, and in one without the I/O driver.
pub fn attach_runtime() -> Result<()> {
    match Ring::shared() {
        Ok(ring) => {
            ring.attach_runtime().map_err(|e| Error::io(format!("attaching the disks' io_uring to tokio: {e}")))
        }
        Err(_) => Ok(()),
    }
}

/// Requests one disk has with the kernel at a time; more wait in their futures.
const QUEUE_DEPTH: usize = 256;
/// How long closing waits before it harvests itself.
const CLOSE_POLL: Duration = Duration::from_millis(1);
/// Longest read in bytes.
const READ_MAX: usize = 1 << 30;

/// How requests reach the kernel.
#[derive(Clone, Copy)]
enum Engine {
    Ring(&'static Ring),
    Threads(&'static Threads),
}

/// A file or block device as a [`Disk`].
///
/// A request is with the kernel when the method that makes it returns, unless [`FileDisk::QUEUE_DEPTH`] requests are there
/// already: then its future waits for a place, in order, and dropping that future before it had one withdraws the request. A read made
/// by a thread that lends its ring ([`lent`]) is with the kernel when that thread next enters it.
/// A request that is misaligned, out of range or too long is refused with [`DiskError::Medium`], and the disk stays usable.
/// After the first [`DiskError::Failed`] every later request is refused with [`DiskError::Failed`]: open the disk anew.
/// Dropping the disk waits for the requests in flight, and then releases the lock. One that was abandoned ([`Disk::abandon`]) is closed, and its lock
/// released, by the last of its requests.
pub struct FileDisk {
    file: Option<Arc<OpenFile>>,
    gate: Arc<Gate>,
    engine: Engine,
}

impl FileDisk {
    /// Requests one disk has with the kernel at a time.
    pub const QUEUE_DEPTH: usize = QUEUE_DEPTH;

    /// Opens `path`, a regular file or block device, for reading and writing.
    ///
    /// # Errors
    /// `NotFound`; `Busy` when somebody else uses it; `InvalidArgument` when it is something else, or too small; `Unsupported`
    /// for sectors above 4096 bytes; `ReadOnly`, `NoSpace` and `Io` as the system says. All name the path.
    pub fn open(path: &Path, options: OpenOptions) -> Result<Arc<Self>> {
        let engine = match Ring::shared() {
            Ok(ring) => Engine::Ring(ring),
            Err(why) => {
                tracing::warn!("{}: disk requests go by threads, which is slower: {why}", path.display());
                Engine::Threads(Threads::shared())
            }
        };
        Self::open_with(path, options, engine)
    }

    fn open_with(path: &Path, options: OpenOptions, engine: Engine) -> Result<Arc<Self>> {
        let file = Arc::new(OpenFile::open(path, options)?);
        Ok(Arc::new(Self { file: Some(file), gate: Gate::new(QUEUE_DEPTH), engine }))
    }

    /// Whether transfers bypass the page cache. False only for files on file systems without O_DIRECT.
    pub fn is_direct(&self) -> bool {
        self.file().is_direct()
    }

    /// Whether it is a block device (else a regular file).
    pub fn is_device(&self) -> bool {
        self.file().is_device()
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        self.file().path()
    }

    /// How requests reach the kernel: `io_uring` or `threads`.
    pub fn engine(&self) -> &'static str {
        match self.engine {
            Engine::Ring(_) => "io_uring",
            Engine::Threads(_) => "threads",
        }
    }

    fn file(&self) -> &Arc<OpenFile> {
        self.file.as_ref().expect("the file is only taken by drop")
    }

    fn check(&self, what: &str, offset: u64, len: u64) -> DiskResult<()> {
        self.file().check()?;
        let size = self.geometry().size;
        let grain = IO_ALIGN as u64;
        let refuse = |why: String| {
            Err(DiskError::Medium(format!("{}: {what} of {len} bytes at {offset}: {why}", self.path().display())))
        };
        if !offset.is_multiple_of(grain) || !len.is_multiple_of(grain) {
            return refuse(format!("not aligned to {grain} bytes"));
        }
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return refuse(format!("beyond the end at {size}"));
        }
        if what == "read" && len > READ_MAX as u64 {
            return refuse(format!("longer than {READ_MAX} bytes"));
        }
        Ok(())
    }

    /// Issues the operation, now if there is a place. `shape` makes the answer of what was read.
    fn start<T: Send + 'static>(
        &self,
        operation: Operation,
        offset: u64,
        len: u64,
        shape: fn(Bytes) -> T,
    ) -> BoxFuture<DiskResult<T>> {
        let engine = self.engine;
        if let Some(pass) = self.gate.try_enter() {
            let answer = engine.issue(operation, offset, len, self.file().clone(), pass);
            return Box::pin(async move { answer.await.map(shape) });
        }
        // A waiting request must not keep a closed disk's file open, and with it the lock.
        let (gate, file) = (self.gate.clone(), Arc::downgrade(self.file()));
        Box::pin(async move {
            let pass = gate.enter().await.ok_or_else(closed)?;
            let file = file.upgrade().ok_or_else(closed)?;
            file.check()?;
            engine.issue(operation, offset, len, file, pass).await.map(shape)
        })
    }
}

fn closed() -> DiskError {
    DiskError::Failed("the disk was closed while a request waited".into())
}

impl Engine {
    fn issue(self, operation: Operation, offset: u64, len: u64, file: Arc<OpenFile>, pass: Pass) -> Answer {
        let (reply, receiver) = oneshot::channel();
        // Held for no longer than the request is: closing waits for those.
        let thread = (file.is_device() && matches!(operation, Operation::Discard)).then(|| file.clone());
        let request = Box::new(Request::new(operation, offset, len, file, pass, reply));
        let mut shared = None;
        if let Some(file) = thread {
            file.discards().issue(request);
            return Answer { shared, receiver };
        }
        match self {
            Self::Ring(ring) => {
                if let Err(request) = request.borrow_ring() {
                    ring.issue(request);
                    shared = Some(ring);
                }
            }
            Self::Threads(threads) => threads.issue(request),
        }
        Answer { shared, receiver }
    }
}

/// Waits for a request.
struct Answer {
    /// Where it can be looked for: the shared ring, if it went there.
    shared: Option<&'static Ring>,
    receiver: oneshot::Receiver<DiskResult<Bytes>>,
}

impl Future for Answer {
    type Output = DiskResult<Bytes>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut answer = Pin::new(&mut self.receiver).poll(context);
        if answer.is_pending()
            && let Some(ring) = self.shared
        {
            ring.harvest_if_free();
            answer = Pin::new(&mut self.receiver).poll(context);
        }
        answer.map(|answer| answer.unwrap_or_else(|_| Err(closed())))
    }
}

fn refused<T: Send + 'static>(error: DiskError) -> BoxFuture<DiskResult<T>> {
    Box::pin(std::future::ready(Err(error)))
}

impl Disk for FileDisk {
    fn name(&self) -> String {
        self.path().display().to_string()
    }

    fn geometry(&self) -> DiskGeometry {
        self.file().geometry()
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<DiskResult<Bytes>> {
        if let Err(e) = self.check("read", offset, len as u64) {
            return refused(e);
        }
        if len == 0 {
            return Box::pin(std::future::ready(Ok(Bytes::new())));
        }
        self.start(Operation::Read(ReadBuf::new(len)), offset, len as u64, |bytes| bytes)
    }

    fn write(&self, offset: u64, mut data: Vec<Bytes>, durable: bool) -> BoxFuture<DiskResult<()>> {
        data.retain(|piece| !piece.is_empty());
        let len = data.iter().map(|piece| piece.len() as u64).sum();
        if let Err(e) = self.check("write", offset, len) {
            return refused(e);
        }
        let misaligned = |p: &Bytes| !p.len().is_multiple_of(IO_ALIGN) || !p.as_ptr().addr().is_multiple_of(IO_ALIGN);
        if let Some(piece) = data.iter().find(|p| misaligned(p)) {
            let (path, count, grain) = (self.path().display(), piece.len(), IO_ALIGN);
            return refused(DiskError::Medium(format!(
                "{path}: write at {offset}: a buffer of {count} bytes is not aligned to {grain} bytes in memory and length"
            )));
        }
        if len == 0 {
            return Box::pin(std::future::ready(Ok(())));
        }
        self.start(Operation::Write { data, durable }, offset, len, drop)
    }

    fn flush(&self) -> BoxFuture<DiskResult<()>> {
        if let Err(e) = self.check("flush", 0, 0) {
            return refused(e);
        }
        self.start(Operation::Flush, 0, 0, drop)
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<DiskResult<()>> {
        if let Err(e) = self.check("discard", offset, len) {
            return refused(e);
        }
        if len == 0 {
            return Box::pin(std::future::ready(Ok(())));
        }
        self.start(Operation::Discard, offset, len, drop)
    }

    fn abandon(&self, why: &str) {
        self.file().mark_failed(why);
        self.gate.abandon();
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        self.gate.close();
        // Waiting inside a completion could be waiting for itself, as could a thread with reads in its own ring. There the requests keep the file open
        // until they end.
        let may_wait = || !ring::is_completing() && lent::under_way() == 0 && !self.gate.is_abandoned();
        while may_wait() && !self.gate.wait_idle(CLOSE_POLL) {
            // The thread that would have harvested may be this one.
            if let Engine::Ring(ring) = self.engine {
                ring.harvest();
            }
        }
        self.file = None;
    }
}
