//! What the tests of the disks share.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{AlignedBuf, Disk, DiskGeometry, DiskResult};
use crate::env::{BoxFuture, Env};

/// Runs a future to its end on this thread.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// An aligned buffer of `len` bytes of `value`.
pub(super) fn filled(len: usize, value: u8) -> Bytes {
    let mut buf = AlignedBuf::zeroed(len);
    buf.fill(value);
    buf.freeze()
}

/// A small deterministic generator (xorshift64*), enough to scatter requests.
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % bound
    }
}

/// A disk in memory that does everything at once.
pub(super) struct Memory(Mutex<Vec<u8>>);

impl Memory {
    pub(super) fn new(size: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![0; size])))
    }
}

impl Disk for Memory {
    fn name(&self) -> String {
        "memory".into()
    }

    fn geometry(&self) -> DiskGeometry {
        DiskGeometry { size: self.0.lock().len() as u64, sector_size: 4096 }
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<DiskResult<Bytes>> {
        let bytes = Bytes::copy_from_slice(&self.0.lock()[offset as usize..][..len]);
        Box::pin(std::future::ready(Ok(bytes)))
    }

    fn write(&self, offset: u64, data: Vec<Bytes>, _durable: bool) -> BoxFuture<DiskResult<()>> {
        let data = data.concat();
        self.0.lock()[offset as usize..][..data.len()].copy_from_slice(&data);
        Box::pin(std::future::ready(Ok(())))
    }

    fn flush(&self) -> BoxFuture<DiskResult<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn discard(&self, _offset: u64, _len: u64) -> BoxFuture<DiskResult<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Time that passes only when nothing else can happen.
#[derive(Default)]
pub(super) struct VirtualEnv {
    state: Mutex<VirtualTime>,
}

#[derive(Default)]
struct VirtualTime {
    now: Duration,
    serial: u64,
    sleepers: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
}

impl VirtualEnv {
    /// Runs `future` to its end, with time passing as needed.
    pub(super) fn run<F: Future>(&self, future: F) -> F::Output {
        block_on(async {
            let mut future = std::pin::pin!(future);
            loop {
                for _ in 0..64 {
                    if let Poll::Ready(output) = futures::poll!(&mut future) {
                        return output;
                    }
                    tokio::task::yield_now().await;
                }
                let mut state = self.state.lock();
                let ((at, _), sleeper) = state.sleepers.pop_first().expect("nothing can happen any more");
                state.now = at;
                let _ = sleeper.send(());
            }
        })
    }
}

impl Env for VirtualEnv {
    fn now(&self) -> Duration {
        self.state.lock().now
    }

    fn wall_clock_s(&self) -> u64 {
        0
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let (wake, woken) = oneshot::channel();
        let mut state = self.state.lock();
        let key = (state.now + duration, state.serial);
        state.serial += 1;
        state.sleepers.insert(key, wake);
        Box::pin(async move { drop(woken.await) })
    }

    fn spawn(&self, task: BoxFuture<()>) {
        tokio::spawn(task);
    }

    fn compute(&self, work: Box<dyn FnOnce() + Send>) {
        work();
    }

    fn parallelism(&self) -> usize {
        1
    }

    fn random_u64(&self) -> u64 {
        4
    }
}
