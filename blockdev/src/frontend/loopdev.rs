//! Loop devices over files, by the kernel's own interface (no external tools), and the few system calls around a
//! file that this very process serves through FUSE: mounting, unmounting, the I/O flusher state.
//!
//! Every call that may touch such a file runs by [`with_private_files`]: a thread waiting for our own FUSE server must
//! not share our table of open files. If it did and the process were killed, the waiting thread would keep `/dev/fuse`
//! open for ever, the kernel would never learn that the server is gone, and the process could not die.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::errno::from_io;
use crate::error::{Error, ErrorKind, Result};

const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_PARTSCAN: u32 = 8;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// How often another process may snatch the free device before we give up.
const ATTACH_ATTEMPTS: usize = 64;

/// How long the kernel may take to let go of a backing file after the last close.
const DETACH_WAIT: Duration = Duration::from_secs(5);

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
#[derive(Clone)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
#[derive(Clone)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

/// How to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Bypass the page cache for the backing file, so that blocks are not cached twice.
    pub direct_io: bool,
    /// Scan for partitions (`/dev/loop0p1`).
    pub partitions: bool,
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self { read_only: false, direct_io: true, partitions: false }
    }
}

/// A device just attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Such as `/dev/loop0`.
    pub device: PathBuf,
    /// Logical block in bytes: 4096, or 512 where the kernel or the size of the file does not allow 4096.
    pub block_size: u32,
    /// Whether direct I/O is really in force; the kernel falls back silently.
    pub direct_io: bool,
}

/// A loop device that has a backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopInUse {
    /// Such as `/dev/loop0`.
    pub device: PathBuf,
    /// The file as the kernel names it now.
    pub backing_file: PathBuf,
    /// The name of the file is gone; the file lives on for this device.
    pub deleted: bool,
}

/// Attaches a free loop device to `file`. The device stays until [`detach`], whatever becomes of this process.
pub fn attach(file: &Path, options: LoopOptions) -> Result<Attached> {
    let path = file.to_path_buf();
    with_private_files(move || attach_here(&path, options))?
        .map_err(|e| e.context(format_args!("attach a loop device to {}", file.display())))
}

fn attach_here(path: &Path, options: LoopOptions) -> Result<Attached> {
    let backing = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .open(path)
        .map_err(|e| from_io(&e, format_args!("open {}", path.display())))?;
    let size = backing.metadata().map_err(|e| from_io(&e, "stat"))?.len();
    let control = open_device(Path::new("/dev/loop-control"), 0)?;
    let mut config = LoopConfig {
        fd: backing.as_raw_fd() as u32,
        block_size: if size.is_multiple_of(4096) { 4096 } else { 512 },
        info: LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: if options.read_only { LO_FLAGS_READ_ONLY } else { 0 }
                | if options.direct_io { LO_FLAGS_DIRECT_IO } else { 0 }
                | if options.partitions { LO_FLAGS_PARTSCAN } else { 0 },
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // The last byte stays zero: the kernel wants a terminated string.
    for (to, from) in config.info.file_name[..63].iter_mut().zip(path.as_os_str().as_bytes()) {
        *to = *from;
    }

    for _ in 0..ATTACH_ATTEMPTS {
        // SAFETY: the descriptor is open for the call and this request takes no pointer.
        let number = unsafe { ioctl_int(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0) }
            .map_err(|e| from_io(&e, "ask for a free loop device"))?;
        let device = PathBuf::from(format!("/dev/loop{number}"));
        let node = open_device(&device, 0)?;
        // SAFETY: `config` is a `struct loop_config` that lives through the call; the kernel only reads it.
        match unsafe { ioctl_ptr(node.as_raw_fd(), LOOP_CONFIGURE, &raw mut config) } {
            Ok(_) => {
                let direct = std::fs::read_to_string(format!("/sys/block/loop{number}/loop/dio")).unwrap_or_default();
                return Ok(Attached { device, block_size: config.block_size, direct_io: direct.trim() == "1" });
            }
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && config.block_size != 512 => config.block_size = 512,
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => {
                return Err(Error::new(ErrorKind::Unsupported, "LOOP_CONFIGURE needs Linux 5.8 or later"));
            }
            Err(e) => return Err(from_io(&e, format_args!("configure {}", device.display()))),
        }
    }
    Err(Error::new(ErrorKind::Busy, "other processes took every free loop device first; try again"))
}

/// Detaches `device`. Refused with [`ErrorKind::Busy`], changing nothing, while it is mounted or claimed otherwise.
pub fn detach(device: &Path) -> Result<()> {
    detach_with(device, libc::O_EXCL)
}

/// Detaches `device`; if it is in use now, [`ErrorKind::Busy`] says so and the kernel detaches it at the last close.
pub fn detach_when_unused(device: &Path) -> Result<()> {
    detach_with(device, 0)
}

/// As [`detach`], unless the device is over another file than `file` by now, or over none: then it is somebody else's, and left alone.
pub fn detach_from(device: &Path, file: &Path) -> Result<()> {
    if !is_over(device, file) {
        return Ok(());
    }
    detach_checked(device, libc::O_EXCL, Some(file.to_path_buf()))
}

/// Whether `device` is over `file`, named as for [`find`].
fn is_over(device: &Path, file: &Path) -> bool {
    let backing = sysfs_of(device).ok().and_then(|sysfs| backing_file(&sysfs));
    backing.is_some_and(|(path, _)| path == file)
}

fn detach_with(device: &Path, flags: i32) -> Result<()> {
    detach_checked(device, flags, None)
}

fn detach_checked(device: &Path, flags: i32, file: Option<PathBuf>) -> Result<()> {
    let path = device.to_path_buf();
    let run = move || -> Result<()> {
        let sysfs = sysfs_of(&path)?.join("loop/backing_file");
        let node = open_device(&path, flags)?;
        // While it is open it stays over the same file.
        if file.is_some_and(|file| !is_over(&path, &file)) {
            return Ok(());
        }
        // SAFETY: the descriptor is open for the call and this request takes no pointer.
        unsafe { ioctl_int(node.as_raw_fd(), LOOP_CLR_FD, 0) }.map_err(|e| match e.raw_os_error() {
            Some(libc::ENXIO) => Error::new(ErrorKind::NotFound, "it is not attached to any file"),
            _ => from_io(&e, "LOOP_CLR_FD"),
        })?;
        drop(node);
        let mut waited = Duration::ZERO;
        while sysfs.exists() {
            if waited >= DETACH_WAIT {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "it is in use; the kernel detaches it when the last user closes it",
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
            waited += Duration::from_millis(5);
        }
        Ok(())
    };
    with_private_files(run)?.map_err(|e| e.context(format_args!("detach {}", device.display())))
}

/// Makes `device` take the present size of its backing file; gives that size in bytes.
pub fn set_capacity(device: &Path) -> Result<u64> {
    let path = device.to_path_buf();
    let run = move || -> Result<u64> {
        let sysfs = sysfs_of(&path)?;
        if let Ok(backing) = std::fs::read_to_string(sysfs.join("loop/backing_file")) {
            // The kernel takes the size from its cached attributes. A file without a path keeps the older size.
            let _ = refresh_attributes(Path::new(backing.trim_end_matches('\n')));
        }
        let node = open_device(&path, 0)?;
        // SAFETY: the descriptor is open for the call and this request takes no pointer.
        unsafe { ioctl_int(node.as_raw_fd(), LOOP_SET_CAPACITY, 0) }.map_err(|e| from_io(&e, "LOOP_SET_CAPACITY"))?;
        let text = std::fs::read_to_string(sysfs.join("size")).map_err(|e| from_io(&e, "read its size"))?;
        let sectors: u64 = text.trim().parse().map_err(|_| Error::io(format!("'{}' is no size", text.trim())))?;
        Ok(sectors * 512)
    };
    with_private_files(run)?.map_err(|e| e.context(format_args!("resize {}", device.display())))
}

/// Every loop device that has a backing file, by number. Reads sysfs only, so a dead or stuck file does not matter.
pub fn in_use() -> Result<Vec<LoopInUse>> {
    let mut found = Vec::new();
    let list = std::fs::read_dir("/sys/block").map_err(|e| from_io(&e, "list /sys/block"))?;
    for entry in list.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|n| n.strip_prefix("loop")).and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let Some((backing_file, deleted)) = backing_file(&entry.path()) else { continue };
        found.push((number, LoopInUse { device: Path::new("/dev").join(&name), backing_file, deleted }));
    }
    found.sort_by_key(|(number, _)| *number);
    Ok(found.into_iter().map(|(_, device)| device).collect())
}

/// The file below the loop device with this directory in sysfs, and whether it was deleted.
fn backing_file(sysfs: &Path) -> Option<(PathBuf, bool)> {
    let text = std::fs::read(sysfs.join("loop/backing_file")).ok()?;
    let text = text.strip_suffix(b"\n").unwrap_or(&text);
    let (path, deleted) = match text.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (text, false),
    };
    Some((PathBuf::from(OsStr::from_bytes(path)), deleted))
}

/// The loop devices over `file`, or over files below it when it is a directory. `file` must be absolute and free of
/// symbolic links, as the kernel reports it.
pub fn find(file: &Path) -> Result<Vec<LoopInUse>> {
    Ok(in_use()?.into_iter().filter(|device| device.backing_file.starts_with(file)).collect())
}

fn sysfs_of(device: &Path) -> Result<PathBuf> {
    device
        .file_name()
        .and_then(OsStr::to_str)
        .filter(|name| name.strip_prefix("loop").is_some_and(|n| n.parse::<u32>().is_ok()))
        .map(|name| Path::new("/sys/block").join(name))
        .ok_or_else(|| Error::invalid("it is no loop device (/dev/loop0, /dev/loop1, ...)"))
}

fn open_device(path: &Path, flags: i32) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    opened.map_err(|e| from_io(&e, format_args!("open {}", path.display())))
}

/// Runs `work` on a thread of its own with no files open but the standard streams, and gives its result.
///
/// See the top of this module for why. Numbers of open files mean nothing across this border: `work` may use only
/// files it opens itself. So it must not bring an open file in or give one back, nor log (to a file), nor call or wake
/// anything that belongs to a runtime: what was meant for another file would be lost, or go to one that has its number
/// here.
pub fn with_private_files<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let thread = std::thread::Builder::new().name("private-files".into()).spawn(move || {
        leave_shared_files();
        work()
    });
    let thread = thread.map_err(|e| from_io(&e, "start a thread"))?;
    thread.join().map_err(|_| Error::io("a thread for a loop device or a mount panicked"))
}

/// Gives the calling thread its own, empty table of open files; for the very start of a thread, before it holds any.
/// Linux before 5.9 lacks the call: the thread then keeps sharing, which only matters if the process is killed
/// meanwhile.
pub(super) fn leave_shared_files() {
    // SAFETY: CLOSE_RANGE_UNSHARE gives this thread a table of its own without the descriptors from 3 upwards. No file
    // owned by another thread is closed, and this thread has opened none yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
}

/// Marks the calling thread, and threads it starts later, as one that writes out dirty memory, so that an allocation
/// in it never waits for writeback that itself waits for this thread. Needs CAP_SYS_RESOURCE; without it, false.
///
/// For every thread that serves a block device to the same machine: the runtime's workers (`on_thread_start`) as well.
pub fn set_io_flusher() -> bool {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: the call changes flags of this thread only and takes no pointer.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1 as libc::c_ulong, 0, 0, 0) == 0 }
}

/// Makes the kernel ask the server of `path` for its attributes, however fresh the cached ones seem.
fn refresh_attributes(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut out = std::mem::MaybeUninit::<libc::statx>::uninit();
    // SAFETY: the path is terminated and lives through the call; the kernel fills `out`, which is as large as it
    // expects.
    let result = unsafe {
        libc::statx(libc::AT_FDCWD, path.as_ptr(), libc::AT_STATX_FORCE_SYNC, libc::STATX_SIZE, out.as_mut_ptr())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// mount(2).
pub(super) fn mount(source: &str, target: &Path, fstype: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let (source, fstype, data) = (CString::new(source)?, CString::new(fstype)?, CString::new(data)?);
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: all four are terminated strings that live through the call; the kernel only reads them.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags, data.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// umount2(2), never following a symbolic link.
pub(super) fn unmount(target: &Path, flags: libc::c_int) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: a terminated string that lives through the call; the kernel only reads it.
    let result = unsafe { libc::umount2(target.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// # Safety
/// `request` must not make the kernel touch memory of this process.
pub(super) unsafe fn ioctl_int(fd: RawFd, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: as the caller vouches.
    let result = unsafe { libc::ioctl(fd, request as libc::Ioctl, argument) };
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}

/// # Safety
/// `argument` must point to what `request` expects and stay valid through the call.
unsafe fn ioctl_ptr<T>(fd: RawFd, request: libc::c_ulong, argument: *mut T) -> io::Result<libc::c_int> {
    // SAFETY: as the caller vouches.
    let result = unsafe { libc::ioctl(fd, request as libc::Ioctl, argument) };
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}
