//! A mount to test on, tools to run on it, and the certainty that all of it is gone afterwards.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use blockdev::frontend::BlockDevice;
use blockdev::frontend::fuse::{FuseOptions, FuseServer};
use blockdev::frontend::loopdev::{self, LoopOptions};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A test that has not ended by then is cut off.
const TEST_LIMIT: Duration = Duration::from_secs(240);

/// A tool that has not ended by then is killed.
const TOOL_LIMIT: Duration = Duration::from_secs(120);

/// Why mounts cannot be tested here, if so.
pub fn missing(tools: &[&str]) -> Option<String> {
    if std::fs::metadata("/proc/self").map_or(1, |meta| meta.uid()) != 0 {
        return Some("needs root".to_owned());
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if OpenOptions::new().read(true).write(true).open(device).is_err() {
            return Some(format!("cannot open {device}"));
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |tool: &&&str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    tools.iter().find(|tool| !found(tool)).map(|tool| format!("needs {tool}"))
}

/// Ends the test, printing why, where it cannot run.
#[macro_export]
macro_rules! need {
    ($($tool:expr),*) => {
        if let Some(reason) = $crate::support::missing(&[$($tool),*]) {
            $crate::skip::skip(&format!("{}: skipped, it {reason}", module_path!()));
            return;
        }
    };
}

/// Cuts a mount off if it is not dropped in time, so that nothing waits for ever, and ends the test process.
struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    fn over(mountpoint: PathBuf) -> Self {
        let (alive, dropped) = channel::<()>();
        std::thread::spawn(move || {
            if dropped.recv_timeout(TEST_LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("test on {} took too long: cutting the mount off", mountpoint.display());
                cut_off(&mountpoint);
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}

/// Aborts the FUSE connection of whatever is mounted there, without asking its server.
pub fn cut_off(mountpoint: &Path) {
    let _ = Command::new("umount").args(["-f", "-l", "-i"]).arg(mountpoint).stderr(Stdio::null()).status();
}

/// A mount in a temporary directory.
pub struct Fixture {
    pub server: Arc<FuseServer>,
    pub runtime: Runtime,
    file_systems: Vec<PathBuf>,
    dir: TempDir,
    _watchdog: Watchdog,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(FuseOptions { threads: 2, ..FuseOptions::default() })
    }

    pub fn with(options: FuseOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = FuseServer::mount(runtime.handle().clone(), &dir.path().join("volumes"), options).unwrap();
        let watchdog = Watchdog::over(server.mountpoint().to_owned());
        Self { server: Arc::new(server), runtime, file_systems: Vec::new(), dir, _watchdog: watchdog }
    }

    pub fn add(&self, name: &str, device: impl BlockDevice) -> PathBuf {
        self.server.add(name, Arc::new(device)).unwrap()
    }

    /// A scratch path outside of the mount.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    /// A loop device over `file`, detached at the end at the latest.
    pub fn attach(&self, file: &Path) -> PathBuf {
        let attached = loopdev::attach(file, LoopOptions::default()).unwrap();
        assert!(attached.direct_io, "the kernel refused direct I/O for {attached:?}");
        assert_eq!(attached.block_size, 4096);
        attached.device
    }

    /// Mounts the file system on `device`, until the end at the latest.
    pub fn mount(&mut self, device: &Path) -> PathBuf {
        let target = self.scratch(&format!("fs-{}", self.file_systems.len()));
        std::fs::create_dir_all(&target).unwrap();
        run(Command::new("mount").arg(device).arg(&target));
        self.file_systems.push(target.clone());
        target
    }

    pub fn unmount(&mut self, target: &Path) {
        // Programs that other tests start hold our open files until they execute.
        eventually("unmounted", || try_run(Command::new("umount").arg(target)).0);
        self.file_systems.retain(|path| path != target);
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for target in self.file_systems.drain(..).rev() {
            if !Command::new("umount").arg(&target).status().is_ok_and(|status| status.success()) {
                cut_off(self.server.mountpoint());
                let _ = Command::new("umount").arg("-l").arg(&target).status();
            }
        }
        detach_all(self.server.mountpoint());
        let _ = self.server.unmount();
    }
}

/// Detaches every loop device over files below `mountpoint`.
pub fn detach_all(mountpoint: &Path) {
    for left in loopdev::find(mountpoint).unwrap_or_default() {
        let _ = loopdev::detach_when_unused(&left.device);
    }
}

/// Runs `work` on a thread that does not share the open files of this process, which serves the mount. It may use
/// files it opens itself, and nothing of the server or its runtime: those belong into `during` of [`while_open`].
pub fn user<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    loopdev::with_private_files(work).unwrap()
}

/// Opens `path` and writes to it as a [`user`], runs `during` here, then gives the still open file to `then`, as the
/// user.
pub fn while_open(path: &Path, during: impl FnOnce(), then: impl FnOnce(&File) + Send + 'static) {
    let (opened, is_open) = channel();
    let (go, go_on) = channel::<()>();
    let path = path.to_owned();
    let thread = std::thread::spawn(move || {
        user(move || {
            let file = open(&path, 0).unwrap();
            file.write_all_at(b"x", 0).unwrap();
            opened.send(()).unwrap();
            go_on.recv().unwrap();
            then(&file);
        });
    });
    is_open.recv().unwrap();
    during();
    go.send(()).unwrap();
    thread.join().unwrap();
}

/// The errno of a failed call.
pub fn errno_of<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().expect("an error of the system"))
}

/// Opens for reading and writing; to be called inside [`user`].
pub fn open(path: &Path, flags: i32) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// Runs a tool to its end, for at most [`TOOL_LIMIT`]; whether it succeeded, and what it said on both streams.
pub fn try_run(command: &mut Command) -> (bool, String) {
    let output = tempfile::tempfile().unwrap();
    let text = command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output.try_clone().unwrap());
    let mut child = text.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let status = wait(&mut child, TOOL_LIMIT).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("{command:?} took too long");
    });
    let mut said = String::new();
    use std::io::{Read, Seek};
    let mut output = output;
    output.rewind().unwrap();
    output.read_to_string(&mut said).unwrap();
    (status, said)
}

/// [`try_run`] that must succeed; what the tool said.
pub fn run(command: &mut Command) -> String {
    let (success, said) = try_run(command);
    assert!(success, "{command:?} failed:\n{said}");
    said
}

/// Waits for `child`; whether it succeeded, or None if it has not ended by then.
pub fn wait(child: &mut Child, limit: Duration) -> Option<bool> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.success());
        }
        if Instant::now() >= until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `done`, which must come true.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < until, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Pseudo-random bytes and numbers, the same in every run (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}
