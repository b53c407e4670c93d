//! Requests of the kernel, one method each. Metadata is answered in place; whatever touches a volume goes by [`carry`].

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::Shared;
use super::inflight::{Permit, carry};
use super::mountpoint::REQUEST_MAX;
use super::tree::{Change, NAME_MAX, Node, ROOT};
use super::volume_ops::{punch_hole, seek, truncated};
use crate::env::BoxFuture;
use crate::error::{Error, ErrorKind};
use crate::frontend::BlockDevice;
use crate::frontend::errno::errno;
use crate::units::BLOCK_BYTES;

/// How long the kernel may trust names and attributes. All changes come from it or are pushed to it, so this is only a
/// safety net.
const TTL: Duration = Duration::from_secs(60);

/// Asynchronous requests the kernel keeps in flight; its default of 12 would cap the queue depth of a loop device.
const BACKGROUND_MAX: u16 = 256;

/// Above this many the kernel calls the connection congested.
const CONGESTION_THRESHOLD: u16 = 192;

/// The file system: a directory of volumes.
pub(super) struct VolumeDirectory(pub(super) Arc<Shared>);

impl VolumeDirectory {
    /// The volume and the right to start a request of `bytes` payload on it.
    fn begin(&self, ino: INodeNo, bytes: usize) -> Result<(Arc<Node>, Permit), Errno> {
        if ino == ROOT {
            return Err(Errno::EISDIR);
        }
        let node = self.0.tree.by_ino(ino).ok_or(Errno::ENODEV)?;
        let permit = self.0.gate.enter(bytes, &node.usage).ok_or(Errno::ENODEV)?;
        Ok((node, permit))
    }

    fn carry<T: Send + 'static>(
        &self,
        (node, permit): (Arc<Node>, Permit),
        what: &'static str,
        start: impl FnOnce(&dyn BlockDevice) -> BoxFuture<Result<T, Error>>,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let device = Arc::clone(&node.device);
        let done = move |result: Result<T, Error>| {
            reply(result.map_err(|error| report(&node, what, &error)));
        };
        carry(&self.0.runtime, permit, || start(&*device), done);
    }
}

/// Logs a failure of the device, but not each of many, and gives its errno.
fn report(node: &Node, what: &str, error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::InvalidArgument | ErrorKind::ReadOnly | ErrorKind::Unsupported => {
            tracing::debug!(volume = node.name, %error, "{what} refused");
        }
        _ => {
            if let Some(count) = node.failed() {
                tracing::warn!(volume = node.name, count, %error, "{what} failed");
            }
        }
    }
    Errno::from_i32(errno(error.kind()))
}

fn writable(node: &Node) -> Result<(), Errno> {
    if node.device.geometry().read_only { Err(Errno::EROFS) } else { Ok(()) }
}

impl Filesystem for VolumeDirectory {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is an optimisation that older kernels lack; they do without.
        for wish in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS] {
            if let Err(missing) = config.add_capabilities(wish) {
                tracing::debug!(?missing, "the kernel's FUSE lacks a capability");
            }
        }
        let nearest = |value| io::Error::other(format!("the kernel interface allows {value} at most"));
        config.set_max_write(REQUEST_MAX).map_err(nearest)?;
        let nearest = |value| io::Error::other(format!("the kernel interface allows {value} at least"));
        config.set_max_background(BACKGROUND_MAX).map_err(nearest)?;
        config.set_congestion_threshold(CONGESTION_THRESHOLD).map_err(nearest)?;
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        match name.to_str().and_then(|name| self.0.tree.by_name(name)) {
            Some(node) => reply.entry(&TTL, &node.attr(), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if ino == ROOT {
            return reply.attr(&TTL, &self.0.tree.root_attr());
        }
        match self.0.tree.by_ino(ino) {
            Some(node) => reply.attr(&TTL, &node.attr()),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change { mode, uid, gid, atime, mtime };
        if ino == ROOT {
            self.0.tree.root().change(change);
            return reply.attr(&TTL, &self.0.tree.root_attr());
        }
        let Some(node) = self.0.tree.by_ino(ino) else { return reply.error(Errno::ENOENT) };
        // A volume is resized by its owner, not by whoever opens the file with O_TRUNC.
        if size.is_some_and(|size| size != node.device.geometry().size) {
            return reply.error(Errno::EPERM);
        }
        node.attributes.change(change);
        reply.attr(&TTL, &node.attr());
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.0.stopping.load(Ordering::Acquire) {
            return reply.error(Errno::ENODEV);
        }
        let allowed = |node: &Node| if flags.acc_mode() == OpenAccMode::O_RDONLY { Ok(()) } else { writable(node) };
        match self.0.tree.open(ino, allowed) {
            Err(error) => reply.error(error),
            Ok(()) => {
                let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
                reply.opened(FileHandle(0), direct | FopenFlags::FOPEN_NOFLUSH);
            }
        }
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.tree.release(ino);
        reply.ok();
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let begun = match self.begin(ino, size as usize) {
            Ok(begun) => begun,
            Err(error) => return reply.error(error),
        };
        let len = truncated(begun.0.device.geometry().size, offset, u64::from(size));
        if len == 0 {
            return reply.data(&[]);
        }
        self.carry(
            begun,
            "read",
            |device| device.read(offset, len as usize),
            |result| match result {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(error),
            },
        );
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let begun = match self.begin(ino, data.len()).and_then(|begun| writable(&begun.0).map(|()| begun)) {
            Ok(begun) => begun,
            Err(error) => return reply.error(error),
        };
        if data.is_empty() {
            return reply.written(0);
        }
        let len = truncated(begun.0.device.geometry().size, offset, data.len() as u64) as usize;
        if len == 0 {
            return reply.error(Errno::EFBIG);
        }
        let fua = flags.0 & libc::O_DSYNC != 0;
        begun.0.attributes.modified();
        let data = Bytes::copy_from_slice(&data[..len]);
        self.carry(
            begun,
            "write",
            |device| device.write(offset, data, fua),
            move |result| match result {
                Ok(()) => reply.written(len as u32),
                Err(error) => reply.error(error),
            },
        );
    }

    /// Only a hint at close; durability is fsync's.
    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let begun = match self.begin(ino, 0) {
            Ok(begun) => begun,
            Err(error) => return reply.error(error),
        };
        self.carry(
            begun,
            "flush",
            |device| device.flush(),
            |result| match result {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error),
            },
        );
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let begun = match self.begin(ino, 0).and_then(|begun| writable(&begun.0).map(|()| begun)) {
            Ok(begun) => begun,
            Err(error) => return reply.error(error),
        };
        let device = Arc::clone(&begun.0.device);
        let size = device.geometry().size;
        let inside = truncated(size, offset, length);
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let punch = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            // A thin volume reserves nothing, and its end is fixed.
            0 if inside == length => return reply.ok(),
            0 => return reply.error(Errno::EFBIG),
            // The part beyond the end has nothing to clear.
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE if keep_size && inside == 0 => return reply.ok(),
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => true,
            libc::FALLOC_FL_ZERO_RANGE if keep_size || inside == length => false,
            libc::FALLOC_FL_ZERO_RANGE => return reply.error(Errno::EFBIG),
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let start = |volume: &dyn BlockDevice| -> BoxFuture<Result<(), Error>> {
            if punch {
                Box::pin(punch_hole(device, offset, inside))
            } else {
                volume.write_zeroes(offset, inside, false)
            }
        };
        let what = if punch { "discard" } else { "write zeroes" };
        begun.0.attributes.modified();
        self.carry(begun, what, start, |result| match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        });
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let mapped = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let begun = match self.begin(ino, 0) {
            Ok(begun) => begun,
            Err(error) => return reply.error(error),
        };
        let device = Arc::clone(&begun.0.device);
        self.carry(
            begun,
            "block status",
            |_| Box::pin(seek(device, offset, mapped)),
            |result| match result {
                Ok(Some(found)) => match i64::try_from(found) {
                    Ok(found) => reply.offset(found),
                    Err(_) => reply.error(Errno::EOVERFLOW),
                },
                Ok(None) => reply.error(Errno::ENXIO),
                Err(error) => reply.error(error),
            },
        );
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        // The offset of an entry is its inode number, so a listing survives additions and removals in between; the two
        // dots come first with numbers below any volume's.
        let dots = [(1, "."), (2, "..")].into_iter().filter(|(number, _)| *number > offset);
        for (number, name) in dots {
            if reply.add(ROOT, number, FileType::Directory, name) {
                return reply.ok();
            }
        }
        for node in self.0.tree.list(offset.max(2)) {
            if reply.add(node.ino, node.ino.0, FileType::RegularFile, &node.name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let nodes = self.0.tree.list(0);
        let blocks = nodes.iter().map(|node| node.device.geometry().size.div_ceil(BLOCK_BYTES)).sum();
        // A loop device takes the block size as its discard granularity.
        reply.statfs(blocks, 0, 0, nodes.len() as u64, 0, BLOCK_BYTES as u32, NAME_MAX as u32, BLOCK_BYTES as u32);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks owner and mode itself (default_permissions).
        reply.ok();
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel then copies by reading and writing.
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        // Asked before every write; this answer makes the kernel stop asking.
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, _target: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }
}
