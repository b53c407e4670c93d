//! The laboratory's daemon as a process: started in the background, asked to stop, killed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::layout::Lab;
use crate::client::{Client, socket_in};
use crate::daemon::instance::holder;
use crate::exit::{CommandResult, Exit, Failure};
use crate::wire::Health;

/// How long a daemon may take until it answers: replaying the log and presenting volumes are in there.
const START_MAX: Duration = Duration::from_secs(120);
/// How long a daemon may take to close its pool.
const STOP_MAX: Duration = Duration::from_secs(60);
/// Log size, in bytes, at which a start puts the log aside.
const LOG_MAX: u64 = 16 << 20;
/// Bytes of the log shown when a start fails.
const TAIL: u64 = 4096;

/// The process that serves the laboratory, if one does.
pub fn running(lab: &Lab) -> CommandResult<Option<u32>> {
    Ok(holder(&lab.pid_file())?)
}

/// The client of the laboratory's daemon.
pub fn client(lab: &Lab) -> Client {
    Client::new(socket_in(&lab.dir), Some(lab.dir.clone()))
}

/// Starts the daemon and waits until it answers; gives its process id. One that runs already is left alone.
pub fn start(lab: &Lab, read_only: bool) -> CommandResult<(u32, bool)> {
    if let Some(pid) = running(lab)? {
        wait_until_it_answers(lab, None)?;
        return Ok((pid, false));
    }
    lab.make_dirs()?;
    let log = lab.log();
    let trouble = |e: std::io::Error| Failure::other(format!("the log {}: {e}", log.display()));
    if log.metadata().is_ok_and(|m| m.len() > LOG_MAX) {
        std::fs::rename(&log, lab.old_log()).map_err(trouble)?;
    }
    let out = OpenOptions::new().append(true).create(true).open(&log).map_err(trouble)?;
    let begin = out.metadata().map_err(trouble)?.len();
    let program = std::env::current_exe().map_err(|e| Failure::other(format!("finding this program: {e}")))?;
    let mut child = Command::new(program)
        .args(["serve", "--background", "--dir"])
        .arg(&lab.dir)
        .args(read_only.then_some("--read-only"))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out.try_clone().map_err(trouble)?)
        .stderr(out)
        .spawn()
        .map_err(|e| Failure::other(format!("starting the daemon: {e}")))?;
    match wait_until_it_answers(lab, Some(&mut child)) {
        Ok(()) => Ok((child.id(), true)),
        Err(mut failure) => {
            let tail = tail(&log, begin);
            if !tail.is_empty() {
                failure.message.push_str(&format!("; its log {} ends with:\n{tail}", log.display()));
            }
            Err(failure)
        }
    }
}

fn wait_until_it_answers(lab: &Lab, mut child: Option<&mut Child>) -> CommandResult {
    let client = client(lab);
    let since = Instant::now();
    loop {
        let health = crate::cli::talk(client.get::<Health>("/v1/health"));
        match health {
            Ok(_) => return Ok(()),
            Err(failure) if failure.exit != Exit::Unreachable => return Err(failure),
            Err(_) => {}
        }
        let ended = child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        if let Some(status) = ended {
            return Err(Failure {
                exit: status.code().map_or(Exit::Failure, exit_from_code),
                ..Failure::other(format!("the daemon ended at once ({status})"))
            });
        }
        if since.elapsed() > START_MAX {
            let seconds = START_MAX.as_secs();
            return Err(Failure::unreachable(format!("the daemon did not answer within {seconds} s")));
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// The daemon's exit code as ours: what stopped it is what the caller should know.
fn exit_from_code(code: i32) -> Exit {
    let all = [
        Exit::Usage,
        Exit::NotFound,
        Exit::Conflict,
        Exit::NoSpace,
        Exit::Unreachable,
        Exit::Corrupt,
        Exit::Unsupported,
        Exit::Unavailable,
    ];
    all.into_iter().find(|e| *e as i32 == code).unwrap_or(Exit::Failure)
}

/// The last lines of what was logged since `begin`.
fn tail(path: &Path, begin: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(begin.max(len.saturating_sub(TAIL))))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// Ends the daemon in order, or at once; false when none was running.
pub fn end(lab: &Lab, at_once: bool) -> CommandResult<bool> {
    let Some(pid) = running(lab)? else { return Ok(false) };
    let Some(process) = open(pid)? else { return Ok(false) };
    // The handle is fixed to one process now; make sure that it is still the one that holds the lock.
    if running(lab)? != Some(pid) {
        return Ok(true);
    }
    let signal = if at_once { Signal::KILL } else { Signal::TERM };
    match pidfd_send_signal(&process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(e) => return Err(Failure::other(format!("stopping the daemon (process {pid}): {e}"))),
    }
    if !wait_for_end(&process, STOP_MAX)? {
        return Err(Failure::other(format!(
            "the daemon (process {pid}) did not stop within {} s; see {}, or end it with `ashlar lab kill --dir {}`",
            STOP_MAX.as_secs(),
            lab.log().display(),
            lab.dir.display()
        )));
    }
    Ok(true)
}

fn open(pid: u32) -> CommandResult<Option<OwnedFd>> {
    let bad = || Failure::other(format!("{pid} is not a process id"));
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(bad)?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Ok(Some(process)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(e) => Err(Failure::other(format!("opening the daemon's process: {e}"))),
    }
}

/// Waits until a process has ended; false when it did not in time.
fn wait_for_end(process: &OwnedFd, limit: Duration) -> CommandResult<bool> {
    let since = Instant::now();
    loop {
        let left = limit.saturating_sub(since.elapsed());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Failure::other(format!("waiting for the daemon to end: {e}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_begins_at_this_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "old\nnew 1\nnew 2\n").unwrap();
        assert_eq!(tail(&path, 4), "new 1\nnew 2");
        assert_eq!(tail(&path, 1000), "");
        std::fs::write(&path, "x".repeat(10_000)).unwrap();
        assert_eq!(tail(&path, 0).len(), 4096);
        assert_eq!(tail(&dir.path().join("none"), 0), "");
    }

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = open(child.id()).unwrap().unwrap();
        assert!(!wait_for_end(&process, Duration::from_millis(1)).unwrap());
        pidfd_send_signal(&process, Signal::KILL).unwrap();
        assert!(wait_for_end(&process, Duration::from_secs(30)).unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn codes_are_passed_on() {
        assert_eq!(exit_from_code(4), Exit::Conflict);
        assert_eq!(exit_from_code(9), Exit::Unavailable);
        assert_eq!(exit_from_code(101), Exit::Failure);
    }
}
