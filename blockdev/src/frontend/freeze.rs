//! Holding the writers of a mounted file system, so that a snapshot of what is below it needs no repair. See ioctl_fs(2): `FIFREEZE`, `FITHAW`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::loopdev::ioctl_int;
use crate::error::{Error, ErrorKind, Result};

const FIFREEZE: libc::c_ulong = 0xC004_5877;
const FITHAW: libc::c_ulong = 0xC004_5878;

/// A mounted file system.
pub struct Mounted(File);

impl Mounted {
    /// The file system that is mounted here.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = File::open(path);
        opened.map(Self).map_err(|e| Error::io(format!("opening {}: {e}", path.display())))
    }

    /// Which mount it is, by the number in `/proc/self/mountinfo`.
    pub fn id(&self) -> Result<u64> {
        let path = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(format!("{path}: {e}")))?;
        let number = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        number.ok_or_else(|| Error::io(format!("{path} tells no mount")))
    }

    /// Writes what is dirty, while writers go on.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.0).map_err(|e| Error::io(format!("syncfs: {e}")))
    }

    /// Writes what is dirty, and holds writers from now on. Waits for as long as that takes.
    pub fn freeze(&self) -> Result<()> {
        // SAFETY: the descriptor is open for the call and this request does not look at its argument.
        let done = unsafe { ioctl_int(self.0.as_raw_fd(), FIFREEZE, 0) };
        done.map(drop).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => Error::new(ErrorKind::Busy, "it is frozen by somebody else"),
            Some(libc::EOPNOTSUPP | libc::ENOTTY) => {
                Error::new(ErrorKind::Unsupported, "its kind of file system cannot be frozen")
            }
            Some(libc::EPERM) => Error::new(ErrorKind::Unsupported, "only root can freeze it"),
            _ => Error::io(format!("FIFREEZE: {e}")),
        })
    }

    /// Lets writers go on. False when it was not frozen.
    pub fn thaw(&self) -> Result<bool> {
        // SAFETY: the descriptor is open for the call and this request does not look at its argument.
        match unsafe { ioctl_int(self.0.as_raw_fd(), FITHAW, 0) } {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(e) => Err(Error::io(format!("FITHAW: {e}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_frozen_is_told() {
        // Neither a file system of its own, nor a privilege: either way nothing is frozen.
        let proc = Mounted::open(Path::new("/proc")).unwrap();
        assert!(proc.freeze().is_err());
        assert!(Mounted::open(Path::new("/nothing/here")).is_err());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let id = proc.id().unwrap().to_string();
        assert!(mounts.lines().any(|line| line.split(' ').next() == Some(&id) && line.contains(" /proc ")), "{id}");
    }
}
