//! A file system as the kernel sees it, through FUSE.

mod requests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::error::Result;
use blockdev::frontend::fuse::{HowToMount, MountedSession, Unmounted};
use parking_lot::Mutex;

use self::requests::Requests;
use crate::fs::FileSystem;

/// How a file system is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Threads that take requests from the kernel and carry them out, at least 1.
    pub threads: usize,
    /// Let users other than the one who mounts in.
    pub allow_other: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self { threads: (2 * processors).clamp(4, 32), allow_other: true }
    }
}

/// A mounted file system. Dropping it unmounts.
pub struct Mount {
    fs: Arc<FileSystem>,
    path: PathBuf,
    session: Mutex<Option<MountedSession>>,
    ended: Arc<AtomicBool>,
}

impl Mount {
    /// Mounts `fs` at `path`, which is created if missing and then removed again in the end.
    pub fn new(fs: Arc<FileSystem>, path: &Path, options: MountOptions) -> Result<Self> {
        let how = HowToMount { threads: options.threads, allow_other: options.allow_other, data_only: false };
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        let end = move || told.store(true, Ordering::Release);
        let session = MountedSession::start(path, Requests::new(Arc::clone(&fs)), how, drop, end)
            .map_err(|e| e.context(format_args!("mount the file system at {}", path.display())))?;
        let path = session.path().to_owned();
        Ok(Self { fs, path, session: Mutex::new(Some(session)), ended })
    }

    /// Where it is mounted, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the kernel has let go of it: somebody unmounted it.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// What is mounted.
    pub fn fs(&self) -> &Arc<FileSystem> {
        &self.fs
    }

    /// Unmounts. What was done is durable once the file system is closed. Done already, it is [`Unmounted::Clean`].
    pub fn unmount(&self) -> Result<Unmounted> {
        let Some(session) = self.session.lock().take() else { return Ok(Unmounted::Clean) };
        session.unmount(|path| tracing::warn!(path = %path.display(), "unmounting under open files"))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::error!(path = %self.path.display(), %error, "cannot unmount");
        }
    }
}
