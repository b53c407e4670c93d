//! A directory with one regular file per volume, served through FUSE.
//!
//! With a loop device over such a file ([`super::loopdev`]) a volume is a block device on any kernel. Files bypass the
//! page cache (`FOPEN_DIRECT_IO`), so the engine's cache is the only one, and may be written by many at a time.
//!
//! The process that serves must never wait for its own files with a thread that shares its table of open files; see
//! [`super::loopdev::with_private_files`]. Killed, it leaves a mount on which everything fails with ENOTCONN, and
//! which the next [`FuseServer::mount`] there clears away.

mod filesystem;
mod inflight;
mod mountpoint;
mod session;
mod tree;
mod volume_ops;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

use self::filesystem::VolumeDirectory;
use self::inflight::Gate;
pub use self::mountpoint::{clear_stale, dead_mounts};
use self::session::{CLOSE_GRACE, not_ended};
pub use self::session::{HowToMount, MountedSession, Unmounted};
use self::tree::{Node, ROOT, Tree};
use super::BlockDevice;
use crate::error::{Error, ErrorKind, Result};

/// How long requests already given to a device may take to come back before they are given up.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// How to mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuseOptions {
    /// Threads that take requests from the kernel, at least 1.
    pub threads: usize,
    /// Let users other than root in, as far as owner and mode of a file permit.
    pub allow_other: bool,
    /// Payload in bytes of all requests under way; further ones wait in the kernel.
    pub bytes: usize,
}

impl Default for FuseOptions {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self { threads: processors.clamp(2, 4), allow_other: false, bytes: 64 << 20 }
    }
}

/// What the session threads and the server share.
struct Shared {
    runtime: tokio::runtime::Handle,
    tree: Tree,
    gate: Arc<Gate>,
    /// None once the session has ended: it would keep `/dev/fuse` open.
    notifier: Mutex<Option<Notifier>>,
    /// Set when unmounting begins: nothing is opened any more.
    stopping: AtomicBool,
}

/// A mounted directory of volumes. Dropping it unmounts.
pub struct FuseServer {
    shared: Arc<Shared>,
    path: PathBuf,
    session: Mutex<Option<MountedSession>>,
}

impl FuseServer {
    /// Mounts at `mountpoint`, which is created if missing and then removed again in the end. Blocks briefly.
    ///
    /// A mount left there by a killed server is cleared, and loop devices over its files are detached. A living mount
    /// is [`ErrorKind::Busy`]. Operations that are not ready at once run on `runtime`.
    pub fn mount(runtime: tokio::runtime::Handle, mountpoint: &Path, options: FuseOptions) -> Result<Self> {
        Self::mount_there(runtime, mountpoint, options)
            .map_err(|e| e.context(format_args!("mount volumes at {}", mountpoint.display())))
    }

    fn mount_there(runtime: tokio::runtime::Handle, mountpoint: &Path, options: FuseOptions) -> Result<Self> {
        let shared = Arc::new(Shared {
            runtime,
            tree: Tree::new(),
            gate: Arc::new(Gate::new(options.bytes)),
            notifier: Mutex::new(None),
            stopping: AtomicBool::new(false),
        });
        let watched = Arc::clone(&shared);
        let how = HowToMount { threads: options.threads, allow_other: options.allow_other, data_only: true };
        let notified = Arc::clone(&shared);
        let session = MountedSession::start(
            mountpoint,
            VolumeDirectory(Arc::clone(&shared)),
            how,
            move |notifier| *notified.notifier.lock() = Some(notifier),
            move || {
                // Whoever still waits gets an answer only when the last descriptor of the connection is closed.
                watched.notifier.lock().take();
                watched.gate.close();
            },
        )?;
        let path = session.path().to_owned();
        Ok(Self { shared, path, session: Mutex::new(Some(session)) })
    }

    /// Where it is mounted, without symbolic links.
    pub fn mountpoint(&self) -> &Path {
        &self.path
    }

    /// Presents `device` as a file and gives its path.
    pub fn add(&self, name: &str, device: Arc<dyn BlockDevice>) -> Result<PathBuf> {
        if self.shared.stopping.load(Ordering::Acquire) || self.shared.notifier.lock().is_none() {
            return Err(Error::new(ErrorKind::Unavailable, format!("{} is no longer mounted", self.path.display())));
        }
        let sizes = device.watch_size();
        let node = self.shared.tree.add(name, device)?;
        let follow = follow_size(Arc::downgrade(&self.shared), node.ino, sizes, node.usage.closing());
        self.shared.runtime.spawn(follow);
        Ok(self.path.join(name))
    }

    /// Takes a file away; afterwards nothing here uses its device.
    ///
    /// While it is open (by a loop device, say), [`ErrorKind::Busy`]; with `force` it goes all the same, and those
    /// that have it open get errors from then on. Blocks until requests in flight are answered, and shortly for a file
    /// just closed.
    pub fn remove(&self, name: &str, force: bool) -> Result<()> {
        let until = Instant::now() + CLOSE_GRACE;
        let node = loop {
            match self.shared.tree.remove(name, force) {
                None => return Err(Error::new(ErrorKind::NotFound, format!("no file '{name}' is presented"))),
                Some(Ok(node)) => break node,
                Some(Err(error)) if Instant::now() >= until => return Err(error),
                Some(Err(_)) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        self.shared.gate.close_volume(&node.usage);
        self.forget(&node);
        if !self.shared.gate.drained_of(&node.usage, DRAIN_LIMIT) {
            node.usage.cut();
            let text = format!("'{name}' is removed; its device did not answer for {} s", DRAIN_LIMIT.as_secs());
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        Ok(())
    }

    /// Tells the kernel that a name is gone.
    fn forget(&self, node: &Node) {
        let notifier = self.shared.notifier.lock().clone();
        if let Some(notifier) = notifier
            && let Err(error) = notifier.inval_entry(ROOT, node.name.as_ref())
        {
            tracing::debug!(volume = node.name, %error, "the kernel did not take back a name");
        }
    }

    /// Names of the files that are open, and how often.
    pub fn open_files(&self) -> Vec<(String, usize)> {
        self.shared.tree.open_files()
    }

    /// Unmounts and waits until the session has really ended. Files still open after a grace of two seconds are cut
    /// off: [`Unmounted::Forced`]. Blocks; the runtime must keep running meanwhile. Done already, it is
    /// [`Unmounted::Clean`].
    pub fn unmount(&self) -> Result<Unmounted> {
        let Some(session) = self.session.lock().take() else { return Ok(Unmounted::Clean) };
        self.shared.stopping.store(true, Ordering::Release);
        let outcome = session.unmount(|path| {
            let open = self.shared.tree.open_files();
            tracing::warn!(path = %path.display(), ?open, "unmounting lazily and cutting off open files");
            self.shared.gate.close();
        })?;
        let drained = self.shared.gate.drained(DRAIN_LIMIT);
        for node in self.shared.tree.clear() {
            node.usage.cut();
        }
        if drained { Ok(outcome) } else { Err(not_ended(&self.path, "a device did not answer", DRAIN_LIMIT)) }
    }
}

impl Drop for FuseServer {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::error!(path = %self.path.display(), %error, "cannot unmount");
        }
    }
}

/// Makes the kernel ask for the attributes again whenever the size changes; ends with the volume or the server.
async fn follow_size(
    shared: Weak<Shared>,
    ino: INodeNo,
    mut sizes: tokio::sync::watch::Receiver<u64>,
    closing: impl Future<Output = ()>,
) {
    let mut closing = std::pin::pin!(closing);
    loop {
        tokio::select! {
            () = &mut closing => return,
            changed = sizes.changed() => if changed.is_err() { return },
        }
        let Some(shared) = shared.upgrade() else { return };
        let notifier = shared.notifier.lock().clone();
        // A negative offset means attributes only: there are no cached pages, and none to wait for.
        if let Some(notifier) = notifier
            && let Err(error) = notifier.inval_inode(ino, -1, 0)
        {
            tracing::debug!(%error, "the kernel did not take back attributes");
        }
    }
}
