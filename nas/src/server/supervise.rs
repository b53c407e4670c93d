//! Keeps the programs of a NAS server running.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use blockdev::error::{Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, kill_process};

use super::enter::Enter;
use super::mounts;

/// How often programs are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Waiting time before a program that ended is started again: the first, and the longest; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What has run for so long may end again without waiting longer.
const SETTLED: Duration = Duration::from_secs(60);

/// How long a program may take until it listens, and until it ends when told to.
const LISTEN: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(3);

/// How long one that is killed may take: it may wait for a request to a file system.
const KILLED: Duration = Duration::from_secs(10);

/// A log longer than this becomes the old one.
const LOG_MAX: u64 = 8 << 20;

/// A program of a server.
#[derive(Clone, Debug)]
pub struct Program {
    /// Name of the service.
    pub name: &'static str,
    /// The program's file.
    pub path: PathBuf,
    /// Debian packages that bring it.
    pub package: &'static str,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Whether [`super::FSID_LIBRARY`] is loaded into it.
    pub preload: bool,
    /// TCP port on which it listens when it is ready. One without is done when it ends well.
    pub port: Option<u16>,
    /// Done before each of its starts.
    pub before: Option<Before>,
}

/// What is done before a program starts.
#[derive(Clone)]
pub struct Before(pub Arc<dyn Fn() -> Result<()> + Send + Sync>);

impl std::fmt::Debug for Before {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Before")
    }
}

/// What a program of a server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does not listen yet, or waits to be started again.
    Starting,
    /// It listens, or does what it is there for.
    Running,
    /// It has done what it was there for.
    Done,
    /// It was told to end.
    Stopped,
}

/// A program of a server, now.
#[derive(Clone, Debug)]
pub struct Service {
    /// Name.
    pub name: &'static str,
    /// What it does.
    pub state: State,
    /// Its process.
    pub pid: Option<u32>,
    /// How often it ended by itself and was started again.
    pub restarts: u64,
    /// When it last began to listen, in seconds since 1970.
    pub since_s: Option<u64>,
    /// What it says.
    pub log: PathBuf,
    /// Why it ended the last time.
    pub error: Option<String>,
}

struct Kept {
    program: Program,
    child: Option<Child>,
    started: Instant,
    wait: Duration,
    service: Service,
    /// It is to read its configuration again, once it listens.
    reload: bool,
}

#[derive(Default)]
struct Shared {
    /// As of the last look. The programs are the thread's alone: it waits for some that end.
    services: Mutex<Vec<Service>>,
    orders: Mutex<Orders>,
    told: Condvar,
}

#[derive(Default)]
struct Orders {
    stop: bool,
    reload: Vec<&'static str>,
}

/// Programs that are kept running, by a thread.
pub struct Supervisor {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Supervisor {
    /// Starts the programs, in their order. `logs` is where each writes what it says, as `PREFIX-NAME.log`.
    pub fn start(enter: Enter, preload: &Path, programs: Vec<Program>, logs: &Path, prefix: &str) -> Result<Self> {
        if let Some(missing) = programs.iter().find(|program| !program.path.exists()) {
            let text = format!("{} is not there: install {}", missing.path.display(), missing.package);
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let kept = |program: Program| {
            let log = logs.join(format!("{prefix}-{}.log", program.name));
            let service = Service {
                name: program.name,
                state: State::Starting,
                pid: None,
                restarts: 0,
                since_s: None,
                log,
                error: None,
            };
            Kept { program, child: None, started: Instant::now(), wait: Duration::ZERO, service, reload: false }
        };
        let mut all: Vec<Kept> = programs.into_iter().map(kept).collect();
        let shared = Arc::new(Shared::default());
        shared.publish(&all);
        let (theirs, preload) = (shared.clone(), preload.to_owned());
        // The programs are killed when the thread that started them ends, so it lives as long as they.
        let spawned = std::thread::Builder::new()
            .name("nas-supervisor".into())
            .spawn(move || theirs.run(&mut all, &enter, &preload));
        let thread = spawned.map_err(|e| Error::io(format!("start a thread: {e}")))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// What the programs do.
    pub fn services(&self) -> Vec<Service> {
        self.shared.services.lock().clone()
    }

    /// Has a program read its configuration again (SIGHUP), once it listens.
    pub fn reload(&self, name: &'static str) {
        self.shared.orders.lock().reload.push(name);
        self.shared.told.notify_all();
    }

    /// Whether a program that runs sees a mount of this process, at a path of its own.
    pub fn sees_mount(&self, name: &str, mount: &Path, path: &str) -> bool {
        let read = |pid: &str| mounts(&std::fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default());
        let pid = self.services().iter().find(|service| service.name == name).and_then(|service| service.pid);
        let Some(pid) = pid else { return false };
        let (ours, theirs) = (read("self"), read(&pid.to_string()));
        // The last one counts.
        let device = |all: &[(String, PathBuf)], path: &Path| Some(all.iter().rfind(|(_, at)| at == path)?.0.clone());
        let ours = device(&ours, mount);
        ours.is_some() && ours == device(&theirs, Path::new(path))
    }

    /// Ends all programs, the last first.
    pub fn stop(&self) {
        self.shared.orders.lock().stop = true;
        self.shared.told.notify_all();
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that keeps programs running has panicked");
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn publish(&self, programs: &[Kept]) {
        *self.services.lock() = programs.iter().map(|kept| kept.service.clone()).collect();
    }

    fn run(&self, programs: &mut [Kept], enter: &Enter, preload: &Path) {
        loop {
            look(programs, enter, preload);
            self.publish(programs);
            let mut orders = self.orders.lock();
            if !orders.stop && orders.reload.is_empty() {
                self.told.wait_for(&mut orders, TICK);
            }
            for kept in programs.iter_mut().filter(|kept| orders.reload.contains(&kept.program.name)) {
                kept.reload = true;
            }
            orders.reload.clear();
            if orders.stop {
                break;
            }
        }
        for kept in programs.iter_mut().rev() {
            kept.end(END);
            kept.service.state = State::Stopped;
        }
        self.publish(programs);
    }
}

/// Looks at each program. One is started when those before it listen; when one has ended, those after it begin anew.
fn look(programs: &mut [Kept], enter: &Enter, preload: &Path) {
    for at in 0..programs.len() {
        if programs[at].has_ended() {
            for later in programs[at + 1..].iter_mut().rev() {
                later.end(Duration::ZERO);
                (later.service.state, later.wait) = (State::Starting, Duration::ZERO);
            }
        }
        let kept = &mut programs[at];
        if kept.child.is_none() && kept.service.state != State::Done && kept.started.elapsed() >= kept.wait {
            kept.start(enter, preload);
        }
        kept.listen(preload);
        if !matches!(kept.service.state, State::Running | State::Done) {
            break;
        }
        if std::mem::take(&mut kept.reload) {
            kept.signal(Signal::HUP);
        }
    }
}

impl Kept {
    fn start(&mut self, enter: &Enter, preload: &Path) {
        self.started = Instant::now();
        match self.spawn(enter, preload) {
            Ok(child) => {
                self.service.pid = Some(child.id());
                self.child = Some(child);
            }
            Err(error) => self.failed(error.to_string()),
        }
    }

    fn spawn(&self, enter: &Enter, preload: &Path) -> Result<Child> {
        let log = open_log(&self.service.log)?;
        let failed = |e| Error::io(format!("starting {}: {e}", self.program.path.display()));
        if let Some(Before(before)) = &self.program.before {
            before()?;
        }
        // The program that runs now, whatever lies at its path by now.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("nas-enter")
            .arg("--name")
            .arg(&enter.name)
            .arg("--namespace")
            .arg(&enter.namespace)
            .arg("--run")
            .arg(&enter.run);
        command
            .arg("--state")
            .arg(&enter.state)
            .arg("--file-systems")
            .arg(&enter.file_systems)
            .arg("--parent")
            .arg(enter.parent.to_string());
        if self.program.preload {
            command.arg("--preload").arg(preload);
        }
        command.arg("--").arg(&self.program.path).args(&self.program.arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        command.spawn().map_err(failed)
    }

    /// Whether it has ended since it was last looked at.
    fn has_ended(&mut self) -> bool {
        let Some(child) = &mut self.child else { return false };
        match child.try_wait() {
            Ok(None) => false,
            Ok(Some(status)) if status.success() && self.program.port.is_none() => {
                (self.child, self.service.pid, self.service.state) = (None, None, State::Done);
                false
            }
            Ok(Some(status)) => {
                self.failed(format!("it ended: {status}"));
                true
            }
            Err(error) => {
                self.failed(format!("waiting for it: {error}"));
                true
            }
        }
    }

    fn failed(&mut self, why: String) {
        (self.child, self.service.pid) = (None, None);
        let settled = self.service.state == State::Running && self.started.elapsed() > SETTLED;
        self.wait = if settled { FIRST_WAIT } else { (self.wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT) };
        tracing::warn!(service = self.service.name, log = %self.service.log.display(), why, "a protocol server has ended");
        self.service.restarts += 1;
        self.service.error = Some(why);
        (self.service.state, self.started) = (State::Starting, Instant::now());
    }

    /// Looks whether it listens by now. One that never does is ended, and so begins anew.
    fn listen(&mut self, preload: &Path) {
        let Some(pid) = self.service.pid else { return };
        if self.service.state == State::Running {
            if std::fs::metadata(&self.service.log).is_ok_and(|log| log.len() > LOG_MAX) {
                let _ = open_log(&self.service.log);
            }
        } else if self.program.port.is_none_or(|port| listens(pid, port)) {
            if self.program.preload && !has_loaded(pid, preload) {
                let library = preload.display();
                self.end(Duration::ZERO);
                self.failed(format!("{library} is not loaded: does it lie on a file system that is mounted noexec?"));
                return;
            }
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
            (self.service.state, self.service.since_s) = (State::Running, Some(now));
            tracing::info!(service = self.service.name, pid, "a protocol server is there");
        } else if self.started.elapsed() > LISTEN {
            self.signal(Signal::KILL);
        }
    }

    fn signal(&self, signal: Signal) {
        // Not reaped yet, so the number is still its own.
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()));
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends it, with so much time to do it by itself.
    fn end(&mut self, patience: Duration) {
        self.signal(if patience.is_zero() { Signal::KILL } else { Signal::TERM });
        let told = Instant::now();
        let Some(mut child) = self.child.take() else { return };
        self.service.pid = None;
        while matches!(child.try_wait(), Ok(None)) && told.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let killed = Instant::now();
        while matches!(child.try_wait(), Ok(None)) {
            if killed.elapsed() > KILLED {
                let (service, pid) = (self.service.name, child.id());
                tracing::error!(service, pid, "a protocol server does not end when it is killed");
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether a library is part of a process.
fn has_loaded(pid: u32, library: &Path) -> bool {
    let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    is_executable(&maps, &name)
}

/// Whether a file is mapped to be executed, in the words of `/proc/PID/maps`. One that could not be loaded leaves what may only be read.
fn is_executable(maps: &str, name: &str) -> bool {
    let end = format!("/{name}");
    maps.lines().any(|line| line.ends_with(&end) && line.split(' ').nth(1).is_some_and(|may| may.contains('x')))
}

/// A log to be appended to. A long one becomes the old one, also while a program writes to it.
fn open_log(path: &Path) -> Result<File> {
    let failed = |e| Error::io(format!("{}: {e}", path.display()));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let log = OpenOptions::new().append(true).create(true).open(path).map_err(failed)?;
    if log.metadata().map_err(failed)?.len() > LOG_MAX {
        std::fs::copy(path, path.with_extension("log.old")).map_err(failed)?;
        log.set_len(0).map_err(failed)?;
    }
    Ok(log)
}

/// Whether something listens on a TCP port, in the network that a process sees.
fn listens(pid: u32, port: u16) -> bool {
    ["tcp", "tcp6"].iter().any(|family| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{family}")).unwrap_or_default();
        listening(&text, port)
    })
}

/// The same, in the words of `/proc/net/tcp`: the second field ends with the port, the fourth is 0A.
fn listening(text: &str, port: u16) -> bool {
    let port = format!(":{port:04X}");
    text.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&port)) && fields.nth(1) == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_read_from_the_kernel() {
        let text = "  sl  local_address rem_address   st tx_queue\n   0: 00000000:0801 00000000:0000 0A 00000000:00000000\n   \
                    1: 0100007F:0050 0100007F:0801 01 00000000:00000000\n";
        assert!(listening(text, 2049) && !listening(text, 80) && !listening(text, 111));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        assert!(listens(std::process::id(), listener.local_addr().expect("its address").port()));
    }

    #[test]
    fn what_could_not_be_loaded_is_not() {
        let read = "7f1b650a2000-7f1b650a6000 r--p 00000000 00:27 28                         /lib/nas-fsid.so\n";
        let loaded = "7f1b650a6000-7f1b650a7000 r-xp 00001000 00:27 28                         /lib/nas-fsid.so\n";
        assert!(!is_executable(read, "nas-fsid.so") && !is_executable("", "nas-fsid.so"));
        assert!(is_executable(&format!("{read}{loaded}"), "nas-fsid.so") && !is_executable(loaded, "fsid.so"));
    }

    #[test]
    fn a_long_log_becomes_the_old_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nas-files-nfs.log");
        std::fs::write(&path, vec![b'x'; LOG_MAX as usize + 1]).expect("a long log");
        open_log(&path).expect("it opens");
        assert_eq!(std::fs::metadata(&path).map(|m| m.len()).ok(), Some(0));
        let old = path.with_extension("log.old");
        assert_eq!(std::fs::metadata(old).map(|m| m.len()).ok(), Some(LOG_MAX + 1));
    }
}
