//! A mount and the threads that serve it, whatever file system it is.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use fuser::{Config, Filesystem, Notifier, Session, SessionACL};

use super::mountpoint::MountPoint;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::errno::from_io;
use crate::frontend::loopdev;

/// How long a file may take to be closed before removal or unmounting counts it as in use: the kernel tells of a close
/// some time after the closing program went on.
pub(super) const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// How long the session threads may take to end once the kernel has let go.
const SESSION_END_LIMIT: Duration = Duration::from_secs(10);

/// How an unmount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// Nobody used it any more.
    Clean,
    /// Files were still open: the connection was cut and the mount detached lazily; their users get errors from now on.
    Forced,
}

/// How to mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HowToMount {
    /// Threads that take requests from the kernel, at least 1.
    pub threads: usize,
    /// Let users other than root in, as far as owner and mode of a file permit.
    pub allow_other: bool,
    /// No programs are run from it, and no devices opened.
    pub data_only: bool,
}

/// A file system of ours that the kernel has mounted. Dropped without [`MountedSession::unmount`], it is detached lazily.
pub struct MountedSession {
    mount: MountPoint,
    ended: Receiver<std::io::Result<()>>,
}

impl MountedSession {
    /// Mounts `filesystem` at `path`, which is created if missing and then removed again in the end, and serves it. `notifier` gets what tells the
    /// kernel of changes before it asks anything, `ended` is called when it has let go. A mount left there by a killed server is cleared; a living one is [`ErrorKind::Busy`].
    pub fn start(
        path: &Path,
        filesystem: impl Filesystem,
        how: HowToMount,
        notifier: impl FnOnce(Notifier),
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        if how.threads == 0 {
            return Err(Error::invalid("at least one thread is needed"));
        }
        let (mount, fuse) = MountPoint::mount(path, how.allow_other, how.data_only)?;
        let acl = if how.allow_other { SessionACL::All } else { SessionACL::Owner };
        let mut config = Config::default();
        config.acl = acl;
        config.n_threads = Some(how.threads);
        config.clone_fd = true;
        let session = Session::from_fd(filesystem, fuse.into(), acl, config)
            .map_err(|e| from_io(&e, "agree with the kernel's FUSE"))?;
        notifier(session.notifier());
        let (send, receive) = std::sync::mpsc::channel();
        let run = move || {
            if !loopdev::set_io_flusher() {
                tracing::debug!("not allowed to become an I/O flusher (CAP_SYS_RESOURCE)");
            }
            let result = session.run();
            ended();
            if let Err(error) = &result {
                tracing::error!(%error, "the FUSE session ended with an error");
            }
            let _ = send.send(result);
        };
        let thread = std::thread::Builder::new().name("fuse-session".into()).spawn(run);
        thread.map_err(|e| from_io(&e, "start the session thread"))?;
        Ok(Self { mount, ended: receive })
    }

    /// Where it is mounted, without symbolic links.
    pub fn path(&self) -> &Path {
        self.mount.path()
    }

    /// Unmounts and waits until the session has really ended. Files still open after a grace of two seconds are cut off, after `cutting` was
    /// called. Blocks.
    pub fn unmount(mut self, cutting: impl FnOnce(&Path)) -> Result<Unmounted> {
        let outcome = if self.mount.unmount(CLOSE_GRACE)? {
            Unmounted::Clean
        } else {
            cutting(self.mount.path());
            self.mount.abort()?;
            Unmounted::Forced
        };
        match self.ended.recv_timeout(SESSION_END_LIMIT) {
            Ok(result) => result.map_err(|e| from_io(&e, "the FUSE session ended with an error"))?,
            Err(RecvTimeoutError::Disconnected) => return Err(Error::io("the FUSE session thread panicked")),
            Err(RecvTimeoutError::Timeout) => {
                // Another mount namespace may hold a copy of the mount, which keeps the session alive.
                return Err(not_ended(self.path(), "its session did not end", SESSION_END_LIMIT));
            }
        }
        Ok(outcome)
    }
}

/// It is unmounted, and yet something goes on.
pub(super) fn not_ended(path: &Path, what: &str, limit: Duration) -> Error {
    let text = format!("{} is unmounted, but {what} within {} s", path.display(), limit.as_secs());
    Error::new(ErrorKind::Unavailable, text)
}
