//! Requests of the kernel, one method each, carried out where they arrive.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use crate::fs::{Fallocate, FileSystem, New, RenameFlags, SetAttr, Whence, XattrFlags};
use crate::meta::attr::{Attr, Kind, Time};
use crate::{BLOCK, Result};

/// How long the kernel may trust names and attributes. It makes all changes itself, so it learns of each.
const TTL: Duration = Duration::from_secs(1);

/// Requests of the kernel's own that may be under way: readahead, direct I/O.
const BACKGROUND_MAX: u16 = 256;

/// Longest write of the kernel, in bytes: a thread has one of them in memory. Longer ones were no faster.
const REQUEST_MAX: u32 = 256 << 10;

/// Names listed in one look at a directory.
const LIST: usize = 256;

/// Inode numbers are never given twice.
const GENERATION: Generation = Generation(1);

pub(super) struct Requests {
    fs: Arc<FileSystem>,
}

fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.s.unsigned_abs());
    let time_of = if time.s < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    time_of.and_then(|t| t.checked_add(Duration::from_nanos(time.ns.into()))).unwrap_or(UNIX_EPOCH)
}

fn time(system: SystemTime) -> Time {
    match system.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { s: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), ns: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => Time { s: -seconds, ns: 0 },
                ns => Time { s: -seconds - 1, ns: 1_000_000_000 - ns },
            }
        }
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks * (BLOCK / 512),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK as u32,
        flags: 0,
    }
}

fn error(errno: crate::Errno) -> Errno {
    Errno::from_i32(errno.raw_os_error())
}

fn empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(error(errno)),
    }
}

impl Requests {
    pub(super) fn new(fs: Arc<FileSystem>) -> Self {
        Self { fs }
    }

    /// Answers with an inode, which the kernel keeps in mind from now on.
    fn entry(&self, reply: ReplyEntry, result: Result<Attr>) {
        match result {
            Ok(attr) => {
                self.fs.remember(attr.ino);
                reply.entry(&TTL, &file_attr(&attr), GENERATION);
            }
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn attr(reply: ReplyAttr, result: Result<Attr>) {
        match result {
            Ok(attr) => reply.attr(&TTL, &file_attr(&attr)),
            Err(errno) => reply.error(error(errno)),
        }
    }
}

/// The inode that a mode's type bits and permissions ask for.
fn new_inode(req: &Request, kind: Kind, mode: u32, umask: u32) -> New<'static> {
    New {
        kind,
        mode: (mode & 0o7777) as u16,
        umask: (umask & 0o777) as u16,
        uid: req.uid(),
        gid: req.gid(),
        rdev: 0,
        target: &[],
    }
}

/// What the type bits of a mode say.
fn kind_of(mode: u32) -> Option<Kind> {
    match mode & 0o170_000 {
        0 | 0o100_000 => Some(Kind::File),
        0o010_000 => Some(Kind::Fifo),
        0o140_000 => Some(Kind::Socket),
        0o020_000 => Some(Kind::CharDevice),
        0o060_000 => Some(Kind::BlockDevice),
        _ => None,
    }
}

impl Filesystem for Requests {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            // Handles of files outlive what the kernel has in mind.
            InitFlags::FUSE_EXPORT_SUPPORT,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
            // The kernel checks access control lists; what is made gets its permissions here, from them or the umask.
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
        ];
        for flag in wanted {
            // Older kernels do without; then it is slower, or handles end with the mount.
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!(?missing, "the kernel's FUSE cannot do this");
            }
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_max_write(REQUEST_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(reply, self.fs.lookup(parent.0, name.as_bytes()));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.fs.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        Self::attr(reply, self.fs.getattr(ino.0));
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
        let given = |which: TimeOrNow| match which {
            TimeOrNow::SpecificTime(system) => time(system),
            TimeOrNow::Now => time(SystemTime::now()),
        };
        let set = SetAttr {
            mode: mode.map(|mode| (mode & 0o7777) as u16),
            uid,
            gid,
            size,
            atime: atime.map(given),
            mtime: mtime.map(given),
        };
        Self::attr(reply, self.fs.setattr(ino.0, &set));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fs.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let Some(kind) = kind_of(mode) else { return reply.error(Errno::EINVAL) };
        let new = New { rdev, ..new_inode(req, kind, mode, umask) };
        self.entry(reply, self.fs.create(parent.0, name.as_bytes(), &new));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.entry(reply, self.fs.create(parent.0, name.as_bytes(), &new_inode(req, Kind::Directory, mode, umask)));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.fs.unlink(parent.0, name.as_bytes()));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.fs.rmdir(parent.0, name.as_bytes()));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let new = New { target: target.as_os_str().as_bytes(), ..new_inode(req, Kind::Symlink, 0o777, 0) };
        self.entry(reply, self.fs.create(parent.0, name.as_bytes(), &new));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = if flags.is_empty() {
            RenameFlags::Replace
        } else if flags == fuser::RenameFlags::RENAME_NOREPLACE {
            RenameFlags::NoReplace
        } else if flags == fuser::RenameFlags::RENAME_EXCHANGE {
            RenameFlags::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        empty(reply, self.fs.rename(parent.0, name.as_bytes(), newparent.0, newname.as_bytes(), flags));
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.entry(reply, self.fs.link(ino.0, newparent.0, newname.as_bytes()));
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.fs.opened(ino.0) {
            // Pages stay from one opening to the next: all changes come through this kernel.
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(errno) => reply.error(error(errno)),
        }
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
        match self.fs.read(ino.0, offset, size as usize) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.fs.write(ino.0, offset, &Bytes::copy_from_slice(data)) {
            Ok(written) => reply.written(written as u32),
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
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
        self.fs.release(ino.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.fs.fsync(ino.0, datasync));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.fs.opened(ino.0) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR),
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.fs.readdir(ino.0, offset, LIST) {
            Ok(entries) => {
                for entry in entries {
                    let name = OsStr::from_bytes(&entry.name);
                    if reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let entries = match self.fs.readdir_plus(ino.0, offset, LIST) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(error(errno)),
        };
        for (entry, attr) in entries {
            let name = OsStr::from_bytes(&entry.name);
            // Of what the kernel is told here, it keeps all in mind but the dots.
            let dots = entry.cookie <= 2;
            if !dots {
                self.fs.remember(entry.ino);
            }
            if reply.add(INodeNo(entry.ino), entry.cookie, name, &TTL, &file_attr(&attr), GENERATION) {
                if !dots {
                    self.fs.forget(entry.ino, 1);
                }
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.fs.release(ino.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.fs.fsync(ino.0, false));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let space = self.fs.space();
        // Inodes are made as they are needed: there may be as many as there are blocks, and more.
        let inodes = space.inodes + space.free;
        reply.statfs(space.blocks, space.free, space.free, inodes, space.free, BLOCK as u32, 255, BLOCK as u32);
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = match flags {
            0 => XattrFlags::Any,
            1 => XattrFlags::Create,
            2 => XattrFlags::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        empty(reply, self.fs.setxattr(ino.0, name.as_bytes(), value, flags));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.fs.getxattr(ino.0, name.as_bytes()) {
            Ok(value) => sized(reply, size, &value),
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.fs.listxattr(ino.0) {
            Ok(names) => {
                let list: Vec<u8> = names.iter().flat_map(|name| name.iter().copied().chain([0])).collect();
                sized(reply, size, &list);
            }
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.fs.removexattr(ino.0, name.as_bytes()));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made =
            self.fs.create(parent.0, name.as_bytes(), &new_inode(req, Kind::File, mode, umask)).and_then(|attr| {
                self.fs.opened(attr.ino)?;
                self.fs.remember(attr.ino);
                Ok(attr)
            });
        match made {
            Ok(attr) => {
                reply.created(&TTL, &file_attr(&attr), GENERATION, FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(errno) => reply.error(error(errno)),
        }
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
        // FALLOC_FL_KEEP_SIZE, _PUNCH_HOLE and _ZERO_RANGE of linux/falloc.h.
        let what = match mode {
            0 | 1 => Fallocate::Allocate { keep_size: mode == 1 },
            3 => Fallocate::PunchHole,
            0x10 | 0x11 => Fallocate::ZeroRange { keep_size: mode & 1 == 1 },
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        empty(reply, self.fs.fallocate(ino.0, what, offset, length));
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        // SEEK_DATA and SEEK_HOLE.
        let whence = match whence {
            3 => Whence::Data,
            4 => Whence::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.fs.seek(ino.0, offset, whence) {
            Ok(at) => reply.offset(at.cast_signed()),
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The answer counts in 32 bits; whoever wants more asks again.
        let len = len.min(1 << 30);
        match self.fs.copy_range(ino_in.0, offset_in, ino_out.0, offset_out, len) {
            Ok(copied) => reply.written(copied as u32),
            Err(errno) => reply.error(error(errno)),
        }
    }
}

/// A value, or how long it is for those who ask with no room.
fn sized(reply: ReplyXattr, size: u32, value: &[u8]) {
    match size {
        0 => reply.size(value.len() as u32),
        _ if value.len() > size as usize => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}
