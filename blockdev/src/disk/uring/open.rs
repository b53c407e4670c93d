//! Opening a file or block device as a disk: checks, exclusive use, geometry.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::threads::Threads;
use crate::disk::{DiskError, DiskGeometry, DiskResult, IO_ALIGN};
use crate::error::{Context, Error, ErrorKind, Result};

/// `BLKSSZGET`, `_IO(0x12, 104)` of linux/fs.h: logical sector size as an int.
const BLKSSZGET: libc::c_ulong = 0x1268;
/// `BLKROGET`, `_IO(0x12, 94)` of linux/fs.h: whether the device is set read-only, as an int.
const BLKROGET: libc::c_ulong = 0x125e;
/// `BLKGETSIZE64`, `_IOR(0x12, 114, size_t)` of linux/fs.h (generic encoding): size in bytes as a u64.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// How often claiming a busy block device is repeated. Device managers probe with a claim of their own, and the claim of a disk
/// just closed lives on in a process that is just being started; both last for milliseconds.
const CLAIM_TRIES: u32 = 20;
const CLAIM_PAUSE: Duration = Duration::from_millis(5);

/// How to open a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Makes a regular file of so many bytes (sparse, rounded down to [`IO_ALIGN`]) where the path does not exist or is an
    /// empty file. Anything else that exists is opened as it is.
    pub create_size: Option<u64>,
    /// Refuses a disk that somebody else uses, and keeps others from using it: an OFD lock, and O_EXCL for block devices.
    pub exclusive: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { create_size: None, exclusive: true }
    }
}

/// An open file or block device with what must be known of it.
pub(super) struct OpenFile {
    file: File,
    path: PathBuf,
    is_device: bool,
    is_direct: bool,
    geometry: DiskGeometry,
    /// Why the disk must not be used any more.
    failed: OnceLock<String>,
    /// Started when it is needed. Of its own, for a device that does not answer keeps it.
    discards: OnceLock<Threads>,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // Closing is not enough: a process this one is just starting has the same open description until it executes.
        // Failure means that no lock was held, or that the file is gone with it.
        let _ = set_lock(&self.file, libc::F_UNLCK);
    }
}

impl AsRawFd for OpenFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl OpenFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn geometry(&self) -> DiskGeometry {
        self.geometry
    }

    /// Whether it is a block device (else a regular file).
    pub(super) fn is_device(&self) -> bool {
        self.is_device
    }

    /// Whether it is a block device that was unplugged since it was opened: the kernel takes its size away.
    pub(super) fn is_gone(&self) -> bool {
        let mut size: u64 = 0;
        // SAFETY: BLKGETSIZE64 writes a u64.
        let told =
            self.is_device && unsafe { libc::ioctl(self.file.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) } == 0;
        told && size == 0
    }

    /// Whether transfers bypass the page cache.
    pub(super) fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Who does its discards, where those are calls that block.
    pub(super) fn discards(&self) -> &Threads {
        self.discards.get_or_init(Threads::for_discards)
    }

    /// From now on every request is refused.
    pub(super) fn mark_failed(&self, why: &str) {
        if self.failed.set(why.to_owned()).is_ok() {
            tracing::error!("disk failed, it is not used until it is opened again: {why}");
        }
    }

    /// The first failure, if there was one.
    pub(super) fn check(&self) -> DiskResult<()> {
        match self.failed.get() {
            None => Ok(()),
            Some(why) => Err(DiskError::Failed(format!("{}: failed before: {why}", self.path.display()))),
        }
    }

    /// Opens `path`. Errors name the path.
    pub(super) fn open(path: &Path, options: OpenOptions) -> Result<Self> {
        Self::open_unnamed(path, options).context(path.display())
    }

    fn open_unnamed(path: &Path, options: OpenOptions) -> Result<Self> {
        let existing = match std::fs::metadata(path) {
            Ok(meta) => Some(meta),
            Err(e) if e.kind() == io::ErrorKind::NotFound && options.create_size.is_some() => None,
            Err(e) => return Err(os_error("cannot be opened", &e)),
        };
        // Before opening, since opening a pipe or a terminal can have effects.
        let is_device = match existing.as_ref().map(std::fs::Metadata::file_type) {
            None => false,
            Some(t) if t.is_file() => false,
            Some(t) if t.is_block_device() => true,
            Some(_) => return Err(Error::invalid("is neither a regular file nor a block device")),
        };
        let (file, created) = match existing {
            None => (create(path)?, true),
            Some(_) => (open_existing(path, is_device && options.exclusive)?, false),
        };
        let opened = Self::finish_open(path, file, is_device, options);
        if created {
            match &opened {
                Ok(_) => sync_parent(path)?,
                // Somebody else took it in the moment before it was locked.
                Err(e) if e.kind() == ErrorKind::Busy => {}
                Err(_) => drop(std::fs::remove_file(path)),
            }
        }
        opened
    }

    fn finish_open(
        path: &Path,
        (file, is_direct): (File, bool),
        is_device: bool,
        options: OpenOptions,
    ) -> Result<Self> {
        let meta = file.metadata().map_err(|e| os_error("cannot be examined", &e))?;
        if meta.file_type().is_block_device() != is_device || !(is_device || meta.is_file()) {
            return Err(Error::new(ErrorKind::Busy, "was replaced while it was opened"));
        }
        if options.exclusive {
            lock(&file)?;
        }
        if let Some(size) = options.create_size
            && !is_device
            && meta.len() == 0
        {
            let size = size - size % IO_ALIGN as u64;
            file.set_len(size)
                .and_then(|()| file.sync_all())
                .map_err(|e| os_error(&format!("cannot be made {size} bytes long"), &e))?;
        }
        let (geometry, is_direct) =
            if is_device { (device_geometry(&file)?, is_direct) } else { file_geometry(&file, is_direct)? };
        if geometry.size == 0 {
            return Err(Error::invalid(format!("is smaller than {IO_ALIGN} bytes")));
        }
        let path = path.to_owned();
        Ok(Self { file, path, is_device, is_direct, geometry, failed: OnceLock::new(), discards: OnceLock::new() })
    }
}

fn os_error(what: &str, e: &io::Error) -> Error {
    let kind = match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM) => ErrorKind::NotFound,
        Some(libc::EROFS) => ErrorKind::ReadOnly,
        Some(libc::EBUSY | libc::ETXTBSY) => ErrorKind::Busy,
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => ErrorKind::NoSpace,
        Some(libc::EEXIST) => ErrorKind::AlreadyExists,
        Some(libc::EINVAL | libc::ENAMETOOLONG | libc::ELOOP) => ErrorKind::InvalidArgument,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("{what}: {e}"))
}

fn flags(extra: i32) -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOCTTY | extra);
    options
}

/// Opens with O_DIRECT where possible; tells whether it was.
fn open_direct(path: &Path, options: impl Fn(i32) -> std::fs::OpenOptions) -> io::Result<(File, bool)> {
    match options(libc::O_DIRECT).open(path) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok((options(0).open(path)?, false)),
        opened => Ok((opened?, true)),
    }
}

fn create(path: &Path) -> Result<(File, bool)> {
    // O_CREAT leaves a file behind where O_DIRECT is refused, hence in two steps.
    let made = flags(0).create_new(true).open(path).map_err(|e| os_error("cannot be created", &e))?;
    let reopened = open_direct(path, flags);
    drop(made);
    reopened.map_err(|e| os_error("cannot be opened", &e))
}

fn open_existing(path: &Path, claim: bool) -> Result<(File, bool)> {
    let extra = if claim { libc::O_EXCL } else { 0 };
    let mut tries = 0;
    let opened = loop {
        match open_direct(path, |direct| flags(direct | extra)) {
            Err(e) if claim && e.raw_os_error() == Some(libc::EBUSY) && tries < CLAIM_TRIES => {
                tries += 1;
                std::thread::sleep(CLAIM_PAUSE);
            }
            opened => break opened,
        }
    };
    opened.map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => Error::new(
            ErrorKind::Busy,
            "is already in use (mounted, or claimed by RAID, LVM, a loop device or another process)",
        ),
        Some(libc::ETXTBSY) => Error::new(ErrorKind::Busy, "is already in use (as swap space or a running program)"),
        _ => os_error("cannot be opened for writing", &e),
    })
}

/// Makes the directory entry of a new file durable.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| os_error("its directory cannot be synchronised", &e))
}

/// Sets the lock on the whole file, which belongs to this opening of it.
fn set_lock(file: &File, kind: libc::c_int) -> io::Result<()> {
    let range = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads a `flock` from its argument.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the write lock.
fn lock(file: &File) -> Result<()> {
    set_lock(file, libc::F_WRLCK).map_err(|e| match e.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Error::new(ErrorKind::Busy, "is already in use by another process"),
        _ => os_error("cannot be locked", &e),
    })
}

fn device_geometry(file: &File) -> Result<DiskGeometry> {
    let mut read_only: libc::c_int = 0;
    // SAFETY: BLKROGET writes an int.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET as _, &raw mut read_only) } == 0 && read_only != 0 {
        return Err(Error::new(ErrorKind::ReadOnly, "is a read-only device"));
    }
    let mut sector: libc::c_int = 0;
    let mut size: u64 = 0;
    // SAFETY: BLKSSZGET writes an int.
    let sector_result = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET as _, &raw mut sector) };
    // SAFETY: BLKGETSIZE64 writes a u64.
    if sector_result != 0 || unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) } != 0 {
        return Err(os_error("does not tell its size", &io::Error::last_os_error()));
    }
    match u32::try_from(sector) {
        Ok(sector_size @ (512 | 1024 | 2048 | 4096)) => {
            // The in-between sizes exist (old optical and magneto-optical drives); requests are of 4096 anyway.
            let sector_size = if sector_size == 512 { 512 } else { 4096 };
            Ok(DiskGeometry { size: size - size % IO_ALIGN as u64, sector_size })
        }
        _ => Err(Error::new(ErrorKind::Unsupported, format!("has sectors of {sector} bytes, at most {IO_ALIGN} work"))),
    }
}

/// Geometry of a regular file. Gives up O_DIRECT where it demands more than [`IO_ALIGN`].
fn file_geometry(file: &File, is_direct: bool) -> Result<(DiskGeometry, bool)> {
    let len = file.metadata().map_err(|e| os_error("cannot be examined", &e))?.len();
    let size = len - len % IO_ALIGN as u64;
    let alignment = direct_io_alignment(file).filter(|_| is_direct);
    let sector_size = if alignment.is_some_and(|a| a <= 512) { 512 } else { 4096 };
    let geometry = DiskGeometry { size, sector_size };
    if alignment.is_none_or(|a| a as usize <= IO_ALIGN) {
        return Ok((geometry, is_direct));
    }
    // O_DIRECT is a flag of the open description, so the lock taken on it stays.
    // SAFETY: no memory is involved.
    let cleared = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        flags >= 0 && libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_DIRECT) == 0
    };
    if cleared { Ok((geometry, false)) } else { Err(os_error("cannot leave direct I/O", &io::Error::last_os_error())) }
}

/// Bytes to which direct I/O must be aligned, if the file system tells.
fn direct_io_alignment(file: &File) -> Option<u32> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    let (mask, empty) = (libc::STATX_DIOALIGN, c"");
    // SAFETY: `empty` is a C string and `answer` has the size of what is written.
    let result =
        unsafe { libc::statx(file.as_raw_fd(), empty.as_ptr(), libc::AT_EMPTY_PATH, mask, answer.as_mut_ptr()) };
    // SAFETY: all-zero bytes are a valid `statx`.
    let answer = unsafe { answer.assume_init() };
    let told = result == 0 && answer.stx_mask & mask != 0 && answer.stx_dio_offset_align != 0;
    told.then(|| answer.stx_dio_offset_align.max(answer.stx_dio_mem_align))
}
