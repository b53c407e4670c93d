//! A server in a temporary directory, devices to serve, and a way to run tools with a time limit.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use blockdev::env::BoxFuture;
use blockdev::error::{Error, ErrorKind, Result};
use blockdev::frontend::memory::MemoryDevice;
use blockdev::frontend::nbd::{Exports, Limits, Listen, NbdServer, TlsConfig};
use blockdev::frontend::{BlockDevice, Extent, Geometry};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

/// Devices by name; they can be taken away while the server runs.
#[derive(Default)]
pub struct Devices(Mutex<BTreeMap<String, Arc<dyn BlockDevice>>>);

impl Devices {
    pub fn remove(&self, name: &str) {
        self.0.lock().remove(name);
    }
}

impl Exports for Devices {
    fn list(&self) -> Vec<String> {
        self.0.lock().keys().cloned().collect()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        let missing = || Error::new(ErrorKind::NotFound, format!("there is no export '{name}'"));
        self.0.lock().get(name).cloned().ok_or_else(missing)
    }
}

/// Name of the servers' threads.
const SERVER_THREAD: &str = "nbd-server";

/// Panics in servers, which tokio would swallow.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name() == Some(SERVER_THREAD) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            print(panic);
        }));
    });
}

/// No server's thread may panic, whatever it is sent.
pub fn assert_no_panic() {
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a server panicked");
}

/// A running server; ended in order on drop.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub devices: Arc<Devices>,
    pub server: Arc<NbdServer>,
    pub runtime: tokio::runtime::Runtime,
}

/// How to start a [`Lab`].
#[derive(Default)]
pub struct Setup {
    pub limits: Limits,
    pub tls: Option<TlsConfig>,
    pub tcp: bool,
}

impl Lab {
    /// Serves these devices on a unix socket.
    pub fn new(devices: &[(&str, Arc<dyn BlockDevice>)]) -> Self {
        Self::with(devices, Setup::default())
    }

    pub fn with(devices: &[(&str, Arc<dyn BlockDevice>)], setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        count_panics();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).thread_name(SERVER_THREAD).enable_all().build().unwrap();
        let map = devices.iter().map(|(name, device)| ((*name).to_owned(), Arc::clone(device))).collect();
        let devices = Arc::new(Devices(Mutex::new(map)));
        let listen = if setup.tcp {
            Listen::Tcp("127.0.0.1:0".parse().unwrap())
        } else {
            Listen::Unix(dir.path().join("nbd.sock"), 0o600)
        };
        let handle = runtime.handle().clone();
        let server = NbdServer::start_with(handle, listen, devices.clone(), setup.tls, setup.limits).unwrap();
        Self { dir, devices, server: Arc::new(server), runtime }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    /// Waits until a condition holds, for a generous time.
    pub fn until(what: &str, condition: impl Fn() -> bool) {
        for _ in 0..3000 {
            if condition() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("waited in vain until {what}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.runtime.block_on(self.server.shutdown());
        if !std::thread::panicking() {
            assert_eq!(self.server.connections(), 0);
            assert_no_panic();
        }
    }
}

/// A tool to run with a time limit; None, with a note, where it is not installed.
pub fn tool(name: &str) -> Option<Command> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(name).is_file()));
    if !found {
        crate::skip::skip(&format!(
            "nbd: a test was skipped, this machine lacks the command '{name}' (scripts/setup.sh installs it)"
        ));
        return None;
    }
    let mut command = Command::new("timeout");
    command.args(["60", name]);
    Some(command)
}

/// Runs to success and gives standard output.
pub fn run(command: &mut Command) -> String {
    let output = run_any(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs and gives everything.
pub fn run_any(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// A memory device that counts, fails, and holds requests back on demand.
pub struct Probe {
    pub memory: MemoryDevice,
    pub flushes: AtomicUsize,
    pub fua_writes: AtomicUsize,
    pub reads_started: AtomicUsize,
    pub writes_started: AtomicUsize,
    /// While set, every request fails in this way.
    pub fail: Mutex<Option<ErrorKind>>,
    /// One permit per read or write; unlimited at first.
    pub gate: Arc<Semaphore>,
}

impl Probe {
    pub fn new(size: u64) -> Arc<Self> {
        Arc::new(Self {
            memory: MemoryDevice::new(size),
            flushes: AtomicUsize::new(0),
            fua_writes: AtomicUsize::new(0),
            reads_started: AtomicUsize::new(0),
            writes_started: AtomicUsize::new(0),
            fail: Mutex::new(None),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        })
    }

    /// Holds reads and writes back until [`Probe::open_gate`].
    pub fn close_gate(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub fn open_gate(&self) {
        self.gate.add_permits(1 << 20);
    }

    fn gated<T: Send + 'static>(&self, result: BoxFuture<Result<T>>) -> BoxFuture<Result<T>> {
        if let Some(kind) = *self.fail.lock() {
            return Box::pin(std::future::ready(Err(Error::new(kind, "failed on demand"))));
        }
        let gate = Arc::clone(&self.gate);
        Box::pin(async move {
            if let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
            result.await
        })
    }
}

impl BlockDevice for Probe {
    fn geometry(&self) -> Geometry {
        self.memory.geometry()
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<Result<Bytes>> {
        self.reads_started.fetch_add(1, Ordering::SeqCst);
        self.gated(self.memory.read(offset, len))
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<Result<()>> {
        self.writes_started.fetch_add(1, Ordering::SeqCst);
        self.fua_writes.fetch_add(fua.into(), Ordering::SeqCst);
        self.gated(self.memory.write(offset, data, fua))
    }

    fn flush(&self) -> BoxFuture<Result<()>> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.gated(self.memory.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<Result<()>> {
        self.gated(self.memory.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<Result<()>> {
        self.fua_writes.fetch_add(fua.into(), Ordering::SeqCst);
        self.gated(self.memory.write_zeroes(offset, len, fua))
    }

    fn compare_and_write(&self, offset: u64, expected: Bytes, new: Bytes) -> BoxFuture<Result<bool>> {
        self.gated(self.memory.compare_and_write(offset, expected, new))
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> BoxFuture<Result<Vec<Extent>>> {
        self.gated(self.memory.block_status(offset, len, max))
    }

    fn watch_size(&self) -> watch::Receiver<u64> {
        self.memory.watch_size()
    }
}

/// The result of a memory device's future.
pub fn now<T>(future: BoxFuture<T>) -> T {
    futures::FutureExt::now_or_never(future).expect("a memory device never waits")
}

/// A reproducible source of numbers.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}
