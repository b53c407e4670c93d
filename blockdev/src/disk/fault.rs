//! A disk that fails on command: the laboratory's way to pull a drive, and the tests' way to see what happens then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::{AlignedBuf, Disk, DiskError, DiskGeometry, DiskResult, IO_ALIGN};
use crate::env::{BoxFuture, Env};

#[cfg(test)]
mod tests;

/// Requests seen by a [`FaultDisk`] since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Reads asked for.
    pub reads: u64,
    /// Writes asked for.
    pub writes: u64,
    /// Flushes asked for.
    pub flushes: u64,
    /// Discards asked for.
    pub discards: u64,
    /// Bytes delivered by reads.
    pub bytes_read: u64,
    /// Bytes taken by writes.
    pub bytes_written: u64,
    /// Requests of all kinds that were made to fail.
    pub injected: u64,
}

/// A [`Disk`] that passes requests on to another one, unless told to fail.
pub struct FaultDisk {
    inner: Arc<dyn Disk>,
    env: Arc<dyn Env>,
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    failed: AtomicBool,
    read_errors: AtomicBool,
    delay_ns: AtomicU64,
    /// How often the disk failed; a request that sees it change was under way when the disk went.
    failures: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    injected: AtomicU64,
}

impl FaultDisk {
    /// Wraps `inner`; all is well at first. `env` is the clock for [`FaultDisk::set_delay`].
    pub fn new(inner: Arc<dyn Disk>, env: Arc<dyn Env>) -> Arc<Self> {
        Arc::new(Self { inner, env, control: Arc::default() })
    }

    /// The disk is gone: every request answers [`DiskError::Failed`], those under way included (whether they still reach the
    /// disk below is open, as with a drive that is pulled).
    pub fn fail(&self) {
        self.control.failures.fetch_add(1, Ordering::SeqCst);
        self.control.failed.store(true, Ordering::SeqCst);
    }

    /// The disk is back, with what it held.
    pub fn restore(&self) {
        self.control.failed.store(false, Ordering::SeqCst);
    }

    /// Whether the disk is gone.
    pub fn is_failed(&self) -> bool {
        self.control.failed.load(Ordering::SeqCst)
    }

    /// Whether reads answer [`DiskError::Medium`]; other requests work.
    pub fn set_read_errors(&self, on: bool) {
        self.control.read_errors.store(on, Ordering::SeqCst);
    }

    /// Time by which every request made from now on is late. Zero turns it off.
    pub fn set_delay(&self, delay: Duration) {
        self.control.delay_ns.store(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// The disk below, which knows of no faults: it answers also while this one does not.
    pub fn beneath(&self) -> Arc<dyn Disk> {
        self.inner.clone()
    }

    /// Puts other bytes on the disk below, silently, at any place and of any length: what was written rots. Works on a disk that is
    /// gone, too. A flush of the disk below makes it durable.
    ///
    /// The blocks of [`IO_ALIGN`] bytes around are read and written as a whole. A request for the same blocks that is under way at that
    /// moment may be undone: a lost write, which a drive that rots may show as well.
    ///
    /// # Errors
    /// [`DiskError::Medium`] beyond the end, otherwise those of the disk below.
    pub async fn corrupt(&self, offset: u64, bytes: &[u8]) -> DiskResult<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.geometry().size) {
            return Err(DiskError::Medium(format!("{}: {offset} + {} is beyond the end", self.name(), bytes.len())));
        }
        let align = IO_ALIGN as u64;
        let start = offset / align * align;
        let within = (offset - start) as usize;
        let len = (within + bytes.len()).next_multiple_of(IO_ALIGN);
        let before = self.inner.read(start, len).await?;
        let mut blocks = AlignedBuf::zeroed(len);
        blocks.copy_from_slice(&before);
        blocks[within..within + bytes.len()].copy_from_slice(bytes);
        self.inner.write(start, vec![blocks.freeze()], false).await
    }

    /// What was asked so far.
    pub fn counters(&self) -> FaultCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.control;
        FaultCounters {
            reads: get(&c.reads),
            writes: get(&c.writes),
            flushes: get(&c.flushes),
            discards: get(&c.discards),
            bytes_read: get(&c.bytes_read),
            bytes_written: get(&c.bytes_written),
            injected: get(&c.injected),
        }
    }

    fn run<T: Send + 'static>(
        &self,
        is_read: bool,
        request: impl FnOnce(&dyn Disk) -> BoxFuture<DiskResult<T>> + Send + 'static,
    ) -> BoxFuture<DiskResult<T>> {
        let guard = Guard { name: self.name(), is_read, since: self.control.failures.load(Ordering::SeqCst) };
        let control = self.control.clone();
        if let Err(e) = control.check(&guard) {
            return Box::pin(std::future::ready(Err(e)));
        }
        let delay = Duration::from_nanos(control.delay_ns.load(Ordering::SeqCst));
        if delay.is_zero() {
            let answer = request(&*self.inner);
            return Box::pin(async move {
                let answer = answer.await;
                control.check(&guard)?;
                answer
            });
        }
        // In a task, since dropping the future of a request does not cancel it.
        let (reply, answer) = tokio::sync::oneshot::channel();
        let (inner, sleep, name) = (self.inner.clone(), self.env.sleep(delay), self.name());
        self.env.spawn(Box::pin(async move {
            sleep.await;
            let answer = match control.check(&guard) {
                Ok(()) => request(&*inner).await,
                Err(e) => {
                    let _ = reply.send(Err(e));
                    return;
                }
            };
            let _ = reply.send(control.check(&guard).and(answer));
        }));
        Box::pin(async move {
            let stopped = || Err(DiskError::Failed(format!("{name}: stopped while a request was delayed")));
            answer.await.unwrap_or_else(|_| stopped())
        })
    }
}

/// What must still hold for a request to succeed.
struct Guard {
    name: String,
    is_read: bool,
    /// Failures counted when the request was made.
    since: u64,
}

impl Control {
    fn check(&self, guard: &Guard) -> DiskResult<()> {
        let failed = self.failed.load(Ordering::SeqCst) || self.failures.load(Ordering::SeqCst) != guard.since;
        let error = if failed {
            DiskError::Failed(format!("{}: injected failure of the disk", guard.name))
        } else if guard.is_read && self.read_errors.load(Ordering::SeqCst) {
            DiskError::Medium(format!("{}: injected read error", guard.name))
        } else {
            return Ok(());
        };
        self.injected.fetch_add(1, Ordering::Relaxed);
        Err(error)
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

impl Disk for FaultDisk {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn geometry(&self) -> DiskGeometry {
        self.inner.geometry()
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<DiskResult<Bytes>> {
        add(&self.control.reads, 1);
        let answer = self.run(true, move |disk| disk.read(offset, len));
        let control = self.control.clone();
        Box::pin(async move {
            let bytes = answer.await?;
            add(&control.bytes_read, bytes.len() as u64);
            Ok(bytes)
        })
    }

    fn write(&self, offset: u64, data: Vec<Bytes>, durable: bool) -> BoxFuture<DiskResult<()>> {
        add(&self.control.writes, 1);
        let len = data.iter().map(|piece| piece.len() as u64).sum();
        let answer = self.run(false, move |disk| disk.write(offset, data, durable));
        let control = self.control.clone();
        Box::pin(async move {
            answer.await?;
            add(&control.bytes_written, len);
            Ok(())
        })
    }

    fn flush(&self) -> BoxFuture<DiskResult<()>> {
        add(&self.control.flushes, 1);
        self.run(false, |disk| disk.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<DiskResult<()>> {
        add(&self.control.discards, 1);
        self.run(false, move |disk| disk.discard(offset, len))
    }

    /// Requests that are late because of [`FaultDisk::set_delay`] do not reach the disk below any more, which is in order then.
    fn abandon(&self, why: &str) {
        self.control.failures.fetch_add(1, Ordering::SeqCst);
        if self.control.delay_ns.load(Ordering::SeqCst) == 0 {
            self.inner.abandon(why);
        }
    }
}
