//! The child process that holds file systems frozen.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use blockdev::error::{Error, Result};
use blockdev::frontend::freeze::Mounted;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::mounts::{self, Mount};
use crate::cli::hold_frozen::{EXPIRED, FROZEN, READY, THAWED};

/// Longer than the child takes by itself: it is given up then.
const GRACE: Duration = Duration::from_secs(10);
/// How long it may take to end when it has answered, or does not.
const END: Duration = Duration::from_secs(5);
/// How long what is dirty may take to be written while writers go on.
const SYNC: Duration = Duration::from_secs(600);
/// Notes of what is frozen: this, and the child's number.
const NOTE: &str = "frozen-";
/// Pause between looks whether a child is gone.
const LOOK: Duration = Duration::from_millis(100);

/// File systems that are frozen.
pub struct Frozen {
    child: Child,
    answers: BufReader<ChildStdout>,
    limit: Duration,
    note: PathBuf,
}

impl Frozen {
    /// Freezes what is mounted here, for so long at most.
    pub async fn hold(mounts: &[Mount], limit: Duration, state_dir: &Path) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("hold-frozen").arg("--limit-ms").arg(limit.as_millis().to_string());
        for mount in mounts {
            let mut argument = OsString::from(format!("{}:", mount.id));
            argument.push(&mount.point);
            command.arg(argument);
        }
        // A signal from a terminal is for the daemon: the child thaws when its input ends.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn();
        let mut child = child.map_err(|e| Error::io(format!("starting what freezes file systems: {e}")))?;
        let answers = child.stdout.take().ok_or_else(|| Error::io("what freezes file systems does not answer"))?;
        let note = state_dir.join(format!("{NOTE}{}", child.id().unwrap_or(0)));
        let noted = std::fs::write(&note, text_of(mounts));
        noted.map_err(|e| Error::io(format!("writing {}: {e}", note.display())))?;
        let mut out = Self { child, answers: BufReader::new(answers), limit, note };
        match out.begin().await {
            true => Ok(out),
            false => Err(out.failure().await),
        }
    }

    /// Lets it begin, now that it is noted what for. Whether all is frozen.
    async fn begin(&mut self) -> bool {
        if !self.line(SYNC).await.is_ok_and(|line| line == READY) {
            return false;
        }
        let Some(input) = self.child.stdin.as_mut() else { return false };
        input.write_all(b"g").await.is_ok() && self.line(self.limit + GRACE).await.is_ok_and(|line| line == FROZEN)
    }

    async fn line(&mut self, limit: Duration) -> Result<String> {
        let mut line = String::new();
        let read = tokio::time::timeout(limit, self.answers.read_line(&mut line)).await;
        match read {
            Ok(Ok(_)) => Ok(line.trim().to_owned()),
            Ok(Err(e)) => Err(Error::io(format!("what freezes file systems: {e}"))),
            Err(_) => Err(Error::io("what freezes file systems does not answer: a flush of a file system may hang")),
        }
    }

    /// Waits for the child to end. One that does not, as when somebody has stopped it, is killed: what it leaves frozen is thawed once it is gone.
    async fn end(&mut self) {
        if tokio::time::timeout(END, self.child.wait()).await.is_err() {
            let _ = self.child.start_kill();
        }
    }

    /// Why nothing is frozen.
    async fn failure(mut self) -> Error {
        drop(self.child.stdin.take());
        self.end().await;
        settle(self.note);
        let mut text = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            let _ = tokio::time::timeout(END, errors.read_to_string(&mut text)).await;
        }
        let why = text.trim().trim_start_matches("error: ");
        Error::io(if why.is_empty() { "file systems could not be frozen within the limit (freeze_limit)" } else { why })
    }

    /// Thaws, and says for how long writers were held. Fails when they were let go before.
    pub async fn thaw(mut self) -> Result<Duration> {
        drop(self.child.stdin.take());
        let line = self.line(self.limit + GRACE).await;
        self.end().await;
        let line = line.inspect_err(|_| settle(self.note.clone()))?;
        let (word, ms) = line.split_once(' ').unwrap_or((&line, "0"));
        let held = Duration::from_millis(ms.parse().unwrap_or(0));
        match word {
            THAWED => {
                let _ = std::fs::remove_file(&self.note);
                Ok(held)
            }
            EXPIRED => {
                let _ = std::fs::remove_file(&self.note);
                Err(Error::io(format!(
                    "file systems were let go after {} ms, before the snapshot was complete (freeze_limit)",
                    held.as_millis()
                )))
            }
            _ => {
                settle(self.note.clone());
                Err(Error::io("what froze file systems ended before it was told to"))
            }
        }
    }
}

/// Identity and place of what is frozen, each ended by a zero byte.
fn text_of(mounts: &[Mount]) -> Vec<u8> {
    mounts.iter().flat_map(|m| [m.device.as_bytes(), b"\0", m.point.as_os_str().as_bytes(), b"\0"].concat()).collect()
}

/// Thaws what a note tells of once its child is gone, and takes the note away. On a thread of its own: file systems of devices that are not served yet may
/// have to be waited for.
fn settle(note: PathBuf) {
    std::thread::spawn(move || {
        let number = note.file_name().and_then(|name| name.to_str()?.strip_prefix(NOTE)?.parse::<u32>().ok());
        let there = |pid: u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("hold-frozen")
        };
        while number.is_some_and(there) {
            std::thread::sleep(LOOK);
        }
        let text = std::fs::read(&note).unwrap_or_default();
        let fields: Vec<&[u8]> = text.split(|b| *b == 0).collect();
        for pair in fields.chunks_exact(2) {
            let (device, point) = (String::from_utf8_lossy(pair[0]), OsString::from_vec(pair[1].to_vec()));
            let Some(id) = mounts::find(&device, Path::new(&point)) else { continue };
            let opened = Mounted::open(Path::new(&point));
            let thawed = opened.and_then(|m| if m.id()? == id { m.thaw() } else { Ok(false) });
            match thawed {
                Ok(true) => tracing::warn!(mount = %point.display(), "a file system was still frozen, and is thawed"),
                Ok(false) => {}
                Err(e) => tracing::error!(mount = %point.display(), error = %e, "a file system that may be frozen"),
            }
        }
        let _ = std::fs::remove_file(&note);
    });
}

/// Thaws what a daemon that was killed together with its child left frozen.
pub fn thaw_left_over(state_dir: &Path) {
    for entry in std::fs::read_dir(state_dir).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(NOTE.as_bytes()) {
            settle(entry.path());
        }
    }
}
