//! One daemon per appliance: a lock file that also tells who holds it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use blockdev::error::{Error, ErrorKind, Result};

/// Held while a daemon serves; the kernel lets go of it when the process ends, however it ends.
pub struct Instance {
    file: File,
}

fn open(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    opened.map_err(|e| Error::io(format!("opening the lock file {}: {e}", path.display())))
}

impl Instance {
    /// Takes the lock, or tells which process has it.
    pub fn claim(path: &Path) -> Result<Self> {
        let mut file = open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = read_pid(&mut file).map_or_else(String::new, |pid| format!(" (process {pid})"));
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("a daemon{holder} serves this appliance already: it holds {}", path.display()),
                ));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(format!("locking {}: {e}", path.display()))),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        written.map_err(|e| Error::io(format!("writing the lock file {}: {e}", path.display())))?;
        Ok(Self { file })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The file stays: removing it would let a second daemon lock a new one while a third waits on the old.
        let _ = self.file.set_len(0);
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The process that serves, if one does.
pub fn holder(path: &Path) -> Result<Option<u32>> {
    if !path.exists() {
        return Ok(None);
    }
    let mut file = open(path)?;
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => match read_pid(&mut file) {
            Some(pid) => Ok(Some(pid)),
            None => Err(Error::new(ErrorKind::Busy, format!("{} is locked by an unknown process", path.display()))),
        },
        Err(TryLockError::Error(e)) => Err(Error::io(format!("locking {}: {e}", path.display()))),
    }
}

/// Removes what a daemon that was killed left at `path`, unless somebody listens there.
pub fn clear_socket(path: &PathBuf) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| Error::io(format!("making {}: {e}", parent.display())))?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Error::new(ErrorKind::Busy, format!("another process listens on {}", path.display())));
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing the old socket {}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        assert_eq!(holder(&path).unwrap(), None);
        let first = Instance::claim(&path).unwrap();
        let error = Instance::claim(&path).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        assert_eq!(holder(&path).unwrap(), Some(std::process::id()));
        drop(first);
        assert_eq!(holder(&path).unwrap(), None);
        drop(Instance::claim(&path).unwrap());
    }

    #[test]
    fn sockets_in_use_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/api.sock");
        clear_socket(&path).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(clear_socket(&path).unwrap_err().kind(), ErrorKind::Busy);
        drop(listener);
        assert!(path.exists());
        clear_socket(&path).unwrap();
        assert!(!path.exists());
    }
}
