//! The mount itself: finding what is mounted where, clearing what a killed server left, mounting and unmounting.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::frontend::errno::from_io;
use crate::frontend::loopdev;

/// File system type in `/proc/mounts`.
const FSTYPE: &str = "fuse.ashlar";

/// Longest request, in bytes, of either direction.
pub(super) const REQUEST_MAX: u32 = 1 << 20;

/// How long whoever serves a mount we find may take to open its directory.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// Dead mounts stacked on one directory that are cleared before we give up.
const STALE_MAX: usize = 16;

/// One line of `/proc/self/mountinfo`, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MountEntry {
    id: u64,
    parent: u64,
    mountpoint: PathBuf,
    fstype: String,
    /// What was given as the device.
    source: String,
}

fn parse_mountinfo(text: &[u8]) -> Vec<MountEntry> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let mut text = || fields.next().and_then(|field| std::str::from_utf8(field).ok());
    let id = text()?.parse().ok()?;
    let parent = text()?.parse().ok()?;
    let _device = fields.next()?;
    let _root_within_the_file_system = fields.next()?;
    let mountpoint = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.next()?)));
    let _optional = fields.by_ref().find(|field| *field == b"-")?;
    let fstype = std::str::from_utf8(fields.next()?).ok()?.to_owned();
    let source = String::from_utf8(unescape(fields.next()?)).ok()?;
    Some(MountEntry { id, parent, mountpoint, fstype, source })
}

/// Undoes the `\ooo` escapes of blanks and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok()));
        out.push(code.unwrap_or(byte));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    out
}

fn may_not_mount() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "the daemon may not mount file systems: run it as root (CAP_SYS_ADMIN), or present the volume by NBD instead",
    )
}

/// The topmost mount exactly at `path`.
fn mounted_at(path: &Path) -> Result<Option<MountEntry>> {
    let text = std::fs::read("/proc/self/mountinfo").map_err(|e| from_io(&e, "read /proc/self/mountinfo"))?;
    Ok(topmost(&parse_mountinfo(&text), path).cloned())
}

fn topmost<'a>(entries: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    let here = || entries.iter().filter(|entry| entry.mountpoint == path);
    here().find(|entry| !here().any(|other| other.parent == entry.id))
}

/// Our mount. Dropped without [`MountPoint::unmount`], it is detached lazily.
pub(super) struct MountPoint {
    path: PathBuf,
    /// The device name given to mount(2). It tells this mount from any other, which the numbers of mounts and devices
    /// do not: the kernel gives those to the next mount.
    source: String,
    created: bool,
    gone: bool,
}

impl MountPoint {
    /// Mounts at `path`, creating the directory if need be, and gives the mount and the connection to the kernel.
    pub(super) fn mount(path: &Path, allow_other: bool, data_only: bool) -> Result<(Self, File)> {
        let path = absolute(path)?;
        clear_stale(&path)?;
        let created = match std::fs::create_dir(&path) {
            Ok(()) => true,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => false,
            Err(e) => return Err(from_io(&e, format_args!("create the directory {}", path.display()))),
        };
        let mounted = Self::mount_on(&path, created, allow_other, data_only);
        if mounted.is_err() && created {
            let _ = std::fs::remove_dir(&path);
        }
        mounted
    }

    fn mount_on(path: &Path, created: bool, allow_other: bool, data_only: bool) -> Result<(Self, File)> {
        let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::new(ErrorKind::Unsupported, "/dev/fuse is missing: load the kernel module 'fuse'")
            }
            std::io::ErrorKind::PermissionDenied => may_not_mount(),
            _ => from_io(&e, "open /dev/fuse"),
        })?;
        let allow_other = if allow_other { ",allow_other" } else { "" };
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,max_read={REQUEST_MAX}{allow_other}",
            fuse.as_raw_fd()
        );
        let flags = if data_only { libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC } else { 0 };
        static MOUNTS: AtomicU64 = AtomicU64::new(1);
        let source = format!("ashlar-{}-{}", std::process::id(), MOUNTS.fetch_add(1, Ordering::Relaxed));
        loopdev::mount(&source, path, FSTYPE, flags, &data).map_err(|e| match e.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => may_not_mount(),
            _ => from_io(&e, "mount"),
        })?;
        Ok((Self { path: path.to_owned(), source, created, gone: false }, fuse))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether our mount is the one seen at the path.
    fn on_top(&self) -> Result<bool> {
        Ok(mounted_at(&self.path)?.is_some_and(|entry| entry.source == self.source))
    }

    /// Unmounts, trying for `patience` while files are open. True if it was unmounted; false if users remain.
    pub(super) fn unmount(&mut self, patience: Duration) -> Result<bool> {
        let until = Instant::now() + patience;
        while !self.gone {
            if !self.on_top()? {
                // Somebody unmounted it, or mounted something over it, which is not ours to take away.
                self.gone = true;
                break;
            }
            match loopdev::unmount(&self.path, 0) {
                Ok(()) => self.gone = true,
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Ok(false),
                Err(e) => return Err(from_io(&e, format_args!("unmount {}", self.path.display()))),
            }
        }
        self.remove_directory();
        Ok(true)
    }

    /// Cuts the connection, so that what users have open fails from now on, and takes the mount out of the tree.
    pub(super) fn abort(&mut self) -> Result<()> {
        if !self.gone && self.on_top()? {
            let flags = libc::MNT_FORCE | libc::MNT_DETACH;
            loopdev::unmount(&self.path, flags)
                .map_err(|e| from_io(&e, format_args!("unmount {} by force", self.path.display())))?;
        }
        self.gone = true;
        self.remove_directory();
        Ok(())
    }

    fn remove_directory(&mut self) {
        if std::mem::take(&mut self.created)
            && let Err(error) = std::fs::remove_dir(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the directory of the mount");
        }
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if let Err(error) = self.abort() {
            tracing::warn!(path = %self.path.display(), %error, "cannot unmount");
        }
    }
}

/// An absolute path without symbolic links, touching nothing at `path` itself, which may be a dead mount.
fn absolute(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::invalid(format!("'{}' is no directory name", path.display())))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|e| from_io(&e, format_args!("create {}", parent.display())))?;
    let parent = parent.canonicalize().map_err(|e| from_io(&e, format_args!("resolve {}", parent.display())))?;
    let path = parent.join(name);
    let link = std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_symlink());
    if link {
        return Err(Error::invalid(format!("{} is a symbolic link; name the directory itself", path.display())));
    }
    Ok(path)
}

/// Mounts of ours whose server is gone, in the calling process's mount namespace. Blocks for a while on one that does not answer.
pub fn dead_mounts() -> Result<Vec<PathBuf>> {
    let text = std::fs::read("/proc/self/mountinfo").map_err(|e| from_io(&e, "read /proc/self/mountinfo"))?;
    let ours = parse_mountinfo(&text).into_iter().filter(|entry| entry.fstype == FSTYPE);
    Ok(ours.map(|entry| entry.mountpoint).filter(|path| is_dead(path).unwrap_or(false)).collect())
}

/// Takes away mounts at `path` whose server is gone, and the loop devices over their files. A living one is
/// [`ErrorKind::Busy`].
pub fn clear_stale(path: &Path) -> Result<()> {
    for _ in 0..STALE_MAX {
        let Some(entry) = mounted_at(path)? else { return Ok(()) };
        if !entry.fstype.starts_with("fuse") || !is_dead(path)? {
            let text = format!("{} is mounted already ({})", path.display(), entry.fstype);
            return Err(Error::new(ErrorKind::Busy, text));
        }
        tracing::warn!(path = %path.display(), "clearing a mount whose server is gone");
        // After unmounting, the kernel would no longer tell where these files were.
        for stale in loopdev::find(path)? {
            match loopdev::detach_when_unused(&stale.device) {
                Ok(()) => {
                    tracing::warn!(device = %stale.device.display(), "detached a loop device over the dead mount")
                }
                Err(error) => tracing::warn!(%error, "a loop device over the dead mount stays"),
            }
        }
        loopdev::unmount(path, 0)
            .or_else(|_| loopdev::unmount(path, libc::MNT_DETACH))
            .map_err(|e| from_io(&e, format_args!("clear the dead mount at {}", path.display())))?;
    }
    Err(Error::new(ErrorKind::Busy, format!("more than {STALE_MAX} dead mounts at {}", path.display())))
}

/// Whether the FUSE server of the mount at `path` is gone. A server that lives but does not answer is an error.
fn is_dead(path: &Path) -> Result<bool> {
    let (send, receive) = std::sync::mpsc::channel();
    let probed = path.to_owned();
    let probe = move || {
        loopdev::leave_shared_files();
        // Attributes may come from the kernel's cache; opening the directory always asks the server.
        let _ = send.send(std::fs::read_dir(probed).map(drop));
    };
    let thread = std::thread::Builder::new().name("fuse-probe".into()).spawn(probe);
    thread.map_err(|e| from_io(&e, "start a thread")).context("look at the mount")?;
    match receive.recv_timeout(PROBE_LIMIT) {
        Ok(Err(e)) if matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)) => Ok(true),
        Ok(_) => Ok(false),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{} is mounted and its server does not answer; 'umount -f' cuts it off", path.display()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = br"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
40 22 0:33 / /mnt/a\040b\134 rw,nosuid master:2 propagate_from:3 - fuse.ashlar ashlar-1-2 rw,user_id=0
41 22 0:34 / /srv rw - tmpfs none rw
43 41 0:36 / /srv rw - fuse.ashlar ashlar rw
nonsense
42 41 0:35 /sub /srv/x rw -";

    #[test]
    fn mountinfo_is_parsed_with_escapes_and_optional_fields() {
        let entries = parse_mountinfo(SAMPLE);
        assert_eq!(entries.len(), 4);
        assert_eq!(entries[0].fstype, "ext4");
        let expected = MountEntry {
            id: 40,
            parent: 22,
            mountpoint: r"/mnt/a b\".into(),
            fstype: "fuse.ashlar".into(),
            source: "ashlar-1-2".into(),
        };
        assert_eq!(entries[1], expected);
    }

    #[test]
    fn topmost_is_the_one_nothing_covers() {
        let mut entries = parse_mountinfo(SAMPLE);
        assert_eq!(topmost(&entries, Path::new("/srv")).map(|e| e.id), Some(43));
        entries.reverse();
        assert_eq!(topmost(&entries, Path::new("/srv")).map(|e| e.id), Some(43));
        assert_eq!(topmost(&entries, Path::new("/srv/x")), None);
    }

    #[test]
    fn unescape_leaves_broken_escapes_alone() {
        assert_eq!(unescape(br"a\04"), br"a\04");
        assert_eq!(unescape(br"\999"), br"\999");
        assert_eq!(unescape(br"\040\134"), b" \\");
    }
}
