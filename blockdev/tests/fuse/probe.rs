//! A memory device that can be told to wait, to fail, to panic or to hang, and counts what reaches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockdev::env::BoxFuture;
use blockdev::error::{Error, ErrorKind, Result};
use blockdev::frontend::memory::MemoryDevice;
use blockdev::frontend::{BlockDevice, Extent, Geometry};
use bytes::Bytes;
use parking_lot::Mutex;

/// How requests behave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// Answered at once.
    #[default]
    Prompt,
    /// Answered after giving way to other tasks.
    Deferred,
    /// Refused.
    Failing(ErrorKind),
    /// A panic in the device.
    Panicking,
    /// Never answered.
    Hanging,
}

#[derive(Default)]
struct Counters {
    flushes: AtomicU64,
    fua: AtomicU64,
    discards: AtomicU64,
    started: AtomicBool,
}

/// See the top of the file.
#[derive(Clone)]
pub struct Probe {
    pub memory: Arc<MemoryDevice>,
    mood: Arc<Mutex<Mood>>,
    counters: Arc<Counters>,
}

impl Probe {
    pub fn new(size: u64) -> Self {
        Self { memory: Arc::new(MemoryDevice::new(size)), mood: Arc::default(), counters: Arc::default() }
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    pub fn flushes(&self) -> u64 {
        self.counters.flushes.load(Ordering::SeqCst)
    }

    pub fn fua_writes(&self) -> u64 {
        self.counters.fua.load(Ordering::SeqCst)
    }

    pub fn discards(&self) -> u64 {
        self.counters.discards.load(Ordering::SeqCst)
    }

    /// Whether any request came.
    pub fn was_used(&self) -> bool {
        self.counters.started.load(Ordering::SeqCst)
    }

    fn go<T: Send + 'static>(
        &self,
        run: impl FnOnce(Arc<MemoryDevice>) -> BoxFuture<Result<T>> + Send + 'static,
    ) -> BoxFuture<Result<T>> {
        self.counters.started.store(true, Ordering::SeqCst);
        let memory = Arc::clone(&self.memory);
        let mood = *self.mood.lock();
        match mood {
            Mood::Prompt => run(memory),
            Mood::Deferred => Box::pin(async move {
                tokio::task::yield_now().await;
                run(memory).await
            }),
            Mood::Failing(kind) => Box::pin(async move { Err(Error::new(kind, "planted")) }),
            Mood::Panicking => panic!("planted"),
            Mood::Hanging => Box::pin(std::future::pending()),
        }
    }
}

impl BlockDevice for Probe {
    fn geometry(&self) -> Geometry {
        self.memory.geometry()
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<Result<Bytes>> {
        self.go(move |memory| memory.read(offset, len))
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<Result<()>> {
        self.counters.fua.fetch_add(u64::from(fua), Ordering::SeqCst);
        self.go(move |memory| memory.write(offset, data, fua))
    }

    fn flush(&self) -> BoxFuture<Result<()>> {
        self.counters.flushes.fetch_add(1, Ordering::SeqCst);
        self.go(|memory| memory.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<Result<()>> {
        self.counters.discards.fetch_add(1, Ordering::SeqCst);
        self.go(move |memory| memory.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<Result<()>> {
        self.go(move |memory| memory.write_zeroes(offset, len, fua))
    }

    fn compare_and_write(&self, offset: u64, expected: Bytes, new: Bytes) -> BoxFuture<Result<bool>> {
        self.go(move |memory| memory.compare_and_write(offset, expected, new))
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> BoxFuture<Result<Vec<Extent>>> {
        self.go(move |memory| memory.block_status(offset, len, max))
    }

    fn watch_size(&self) -> tokio::sync::watch::Receiver<u64> {
        self.memory.watch_size()
    }
}
