//! Such memory as files of a memory file system.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, fallocate};

use super::{Region, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::units::Uuid;

/// How often, and after which pause, a lock is asked for: somebody may hold it who only looks.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Files in a directory, `ashlar-POOL.carry`; the directory should be on tmpfs.
#[derive(Clone, Debug)]
pub struct SharedMemory {
    directory: PathBuf,
}

/// A mapped file, locked as long as it is mapped.
struct Mapped {
    map: MmapRaw,
    _locked: File,
}

fn failed(what: &str, path: &Path, e: &io::Error) -> Error {
    let kind = if e.kind() == io::ErrorKind::StorageFull { ErrorKind::NoSpace } else { ErrorKind::Io };
    Error::new(kind, format!("{what} {}: {e}", path.display()))
}

fn lock(file: &File, path: &Path) -> Result<()> {
    let mut tries = LOCK_TRIES;
    loop {
        tries -= 1;
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if tries > 0 => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("{} is in use by another process: another daemon serves this pool", path.display()),
                ));
            }
            Err(TryLockError::Error(e)) => return Err(failed("locking", path, &e)),
        }
    }
}

/// The directory is everybody's: what another user puts there holds nothing of ours, and must not keep a pool from being opened.
fn not_ours(path: &Path) -> Option<Arc<Region>> {
    tracing::warn!(path = %path.display(), "somebody else's file in the place of memory that a daemon leaves is passed over");
    None
}

fn map(file: File, len: usize, path: &Path) -> Result<Arc<Region>> {
    let map = MmapOptions::new().len(len).map_raw(&file).map_err(|e| failed("mapping", path, &e))?;
    let Some(start) = NonNull::new(map.as_mut_ptr()) else {
        return Err(Error::io(format!("mapping {}: no address", path.display())));
    };
    let owner = Box::new(Mapped { map, _locked: file });
    debug_assert_eq!(owner.map.len(), len);
    // SAFETY: the mapping has `len` bytes from the start of a page on, all allocated in the file, and lives as long as its owner. No process that obeys the lock
    // changes the file meanwhile.
    Ok(Arc::new(unsafe { Region::new(start, len, owner) }))
}

impl SharedMemory {
    /// Files in this directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Files that no process has locked: what killed daemons left.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn left(&self) -> Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed("reading", &self.directory, &e)),
        };
        let ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.starts_with("ashlar-") && name.ends_with(".carry")
        };
        let unlocked = |path: &PathBuf| {
            let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
            opened.is_ok_and(|file| file.try_lock().is_ok())
        };
        Ok(entries.flatten().map(|entry| entry.path()).filter(ours).filter(unlocked).collect())
    }

    fn path(&self, pool: Uuid) -> PathBuf {
        self.directory.join(format!("ashlar-{pool}.carry"))
    }
}

impl Store for SharedMemory {
    fn find(&self, pool: Uuid) -> Result<Option<Arc<Region>>> {
        let path = self.path(pool);
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) => return Ok(not_ours(&path)),
            Err(e) => return Err(failed("opening", &path, &e)),
        };
        let facts = file.metadata().map_err(|e| failed("looking at", &path, &e))?;
        let me = rustix::process::geteuid().as_raw();
        if facts.uid() != me {
            return Ok(not_ours(&path));
        }
        if !facts.is_file() || facts.mode() & 0o077 != 0 {
            return Err(Error::invalid(format!(
                "{} is no private file, as a daemon makes it: find out who changed it, and remove it",
                path.display()
            )));
        }
        lock(&file, &path)?;
        // To touch a page that is not there would end the process.
        let allocated = facts.blocks().saturating_mul(512);
        if facts.len() == 0 || allocated < facts.len() {
            return Err(Error::corrupt(format!(
                "{} is not whole ({} bytes, {allocated} allocated): somebody has changed it. It held writes that hosts were told are done; remove it \
                 to give them up",
                path.display(),
                facts.len()
            )));
        }
        let len =
            usize::try_from(facts.len()).map_err(|_| Error::corrupt(format!("{} is too long", path.display())))?;
        map(file, len, &path).map(Some)
    }

    fn create(&self, pool: Uuid, len: usize) -> Result<Arc<Region>> {
        let (path, new) = (self.path(pool), self.directory.join(format!("ashlar-{pool}.carry.new")));
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("removing", &new, &e)),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&new).map_err(|e| failed("making", &new, &e))?;
        let made = || {
            lock(&file, &new)?;
            // All of it now, as in `find`.
            fallocate(&file, FallocateFlags::empty(), 0, len as u64)
                .map_err(|e| failed("allocating", &new, &e.into()))?;
            std::fs::rename(&new, &path).map_err(|e| failed("naming", &path, &e))
        };
        if let Err(e) = made() {
            let _ = std::fs::remove_file(&new);
            return Err(e);
        }
        map(file, len, &path)
    }

    fn remove(&self, pool: Uuid) {
        let path = self.path(pool);
        if let Err(e) = std::fs::remove_file(&path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), error = %e, "memory that is not needed any more stays");
        }
    }

    fn describe(&self, pool: Uuid) -> String {
        self.path(pool).display().to_string()
    }
}
