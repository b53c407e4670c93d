//! `ashlar hold-frozen`: the daemon's child that freezes file systems and thaws them again, whatever becomes of the daemon.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blockdev::error::{Context, Error, Result};
use blockdev::frontend::freeze::Mounted;

use crate::exit::{CommandResult, Exit, Failure};

/// What it is to freeze.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// For how long at most
    #[arg(long)]
    limit_ms: u64,
    /// Number of the mount, a colon, where it is
    #[arg(required = true)]
    mounts: Vec<OsString>,
}

/// First line: what is dirty is written, and it may begin.
pub const READY: &str = "ready";
/// Second line, when all are frozen.
pub const FROZEN: &str = "frozen";
/// Last line, with the milliseconds for which writers were held: told to thaw in time.
pub const THAWED: &str = "thawed";
/// The same when the limit had passed.
pub const EXPIRED: &str = "expired";
/// Last line when something could not be thawed.
pub const STUCK: &str = "stuck";

/// Whoever reads may be gone: that is no reason not to thaw.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// The mount that is meant: something else may be mounted there by now.
fn open(argument: &OsString) -> Result<(PathBuf, Mounted)> {
    let bytes = argument.as_bytes();
    let colon = bytes.iter().position(|b| *b == b':');
    let number = colon.and_then(|at| std::str::from_utf8(&bytes[..at]).ok()?.parse::<u64>().ok());
    let (Some(colon), Some(number)) = (colon, number) else {
        return Err(Error::invalid(format!("{}: NUMBER:PATH is expected", argument.display())));
    };
    let path = PathBuf::from(OsString::from_vec(bytes[colon + 1..].to_vec()));
    let mounted = Mounted::open(&path)?;
    if mounted.id()? != number {
        return Err(Error::invalid(format!("{}: something else is mounted there by now", path.display())));
    }
    Ok((path, mounted))
}

/// What happens to whoever waits.
enum News {
    /// All are frozen, or one cannot be.
    Done(Result<()>),
    /// Told to thaw, or the daemon is gone.
    End,
}

/// What is frozen.
#[derive(Default)]
struct Held {
    frozen: Vec<usize>,
    /// Nothing is to be frozen any more.
    over: bool,
    /// Something could not be thawed.
    stuck: bool,
}

impl Held {
    fn thaw(&mut self, mounts: &[(PathBuf, Mounted)], i: usize) {
        let (path, mounted) = &mounts[i];
        if let Err(e) = mounted.thaw() {
            eprintln!("thawing {}: {e}", path.display());
            self.stuck = true;
        }
    }
}

type Shared = Arc<Mutex<Held>>;

fn lock(held: &Shared) -> std::sync::MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Freezes one after another. What is frozen when it is over already is thawed at once.
fn freeze(mounts: &[(PathBuf, Mounted)], held: &Shared, tell: &Sender<News>) {
    for (i, (path, mounted)) in mounts.iter().enumerate() {
        if lock(held).over {
            return;
        }
        let done = mounted.freeze().context(format!("freezing {}", path.display()));
        if let Err(e) = done {
            let _ = tell.send(News::Done(Err(e)));
            return;
        }
        let mut held = lock(held);
        match held.over {
            true => held.thaw(mounts, i),
            false => held.frozen.push(i),
        }
    }
    let _ = tell.send(News::Done(Ok(())));
}

pub fn run(arguments: &Arguments) -> CommandResult<Exit> {
    let limit = Duration::from_millis(arguments.limit_ms);
    let mounts = arguments.mounts.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mounts = Arc::new(mounts);
    // Most is written while writers go on.
    for (_, mounted) in mounts.iter() {
        let _ = mounted.sync();
    }
    say(READY);
    // One byte to begin; then there is nothing more to read until it is to thaw, or the daemon is gone.
    if std::io::stdin().read(&mut [0]).map_or(0, |n| n) == 0 {
        return Ok(Exit::Failure);
    }
    let (tell, news) = channel();
    let end = tell.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        let _ = end.send(News::End);
    });
    let held = Shared::default();
    let begun = Instant::now();
    let freezing = {
        let (mounts, held) = (mounts.clone(), held.clone());
        std::thread::spawn(move || freeze(&mounts, &held, &tell))
    };
    let mut failed = None;
    let in_time = loop {
        match news.recv_timeout(limit.saturating_sub(begun.elapsed())) {
            Ok(News::Done(Ok(()))) => say(FROZEN),
            Ok(News::Done(Err(e))) => {
                failed = Some(e);
                break false;
            }
            Ok(News::End) => break true,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break false,
        }
    };
    {
        let mut held = lock(&held);
        held.over = true;
        for i in std::mem::take(&mut held.frozen).into_iter().rev() {
            held.thaw(&mounts, i);
        }
    }
    let ms = begun.elapsed().as_millis();
    // What is being frozen at this moment is thawed by whoever does that.
    let _ = freezing.join();
    match (lock(&held).stuck, failed) {
        (true, _) => say(STUCK),
        (false, Some(e)) => return Err(Failure::from(e)),
        (false, None) => say(&format!("{} {ms}", if in_time { THAWED } else { EXPIRED })),
    }
    Ok(Exit::Ok)
}
