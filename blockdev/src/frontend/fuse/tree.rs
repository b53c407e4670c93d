//! The mounted directory: which volume has which name and inode number, who has it open, and the attributes people set.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use parking_lot::{Mutex, RwLock};

use super::inflight::Usage;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::BlockDevice;

/// The directory itself.
pub(super) const ROOT: INodeNo = INodeNo::ROOT;

/// Inode numbers of volumes start here; they are never given twice while mounted, so no generations are needed.
const FIRST_VOLUME: u64 = 16;

/// Longest name, in bytes: NAME_MAX of Linux.
pub(super) const NAME_MAX: usize = 255;

/// What chmod, chown and utimes left, kept in memory only.
#[derive(Clone, Copy, Debug)]
struct Meta {
    /// None while nobody has chosen: 0600, or 0400 when read-only.
    mode: Option<u16>,
    uid: u32,
    gid: u32,
    atime: SystemTime,
    ctime: SystemTime,
}

/// What a setattr request asks for; None leaves as it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) atime: Option<TimeOrNow>,
    pub(super) mtime: Option<TimeOrNow>,
}

/// Owner, mode and times of a volume or of the directory.
pub(super) struct Attributes {
    meta: Mutex<Meta>,
    /// Nanoseconds since 1970; apart from the rest because every write sets it.
    mtime_ns: AtomicU64,
}

impl Attributes {
    fn new() -> Self {
        let now = SystemTime::now();
        let meta = Meta { mode: None, uid: 0, gid: 0, atime: now, ctime: now };
        Self { meta: Mutex::new(meta), mtime_ns: AtomicU64::new(nanoseconds(now)) }
    }

    /// Notes that content changed just now.
    pub(super) fn modified(&self) {
        self.mtime_ns.store(nanoseconds(SystemTime::now()), Ordering::Relaxed);
    }

    /// Applies what was asked for.
    pub(super) fn change(&self, change: Change) {
        let now = SystemTime::now();
        let when = |time: TimeOrNow| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => now,
        };
        let mut meta = self.meta.lock();
        if let Some(mode) = change.mode {
            meta.mode = Some((mode & 0o7777) as u16);
        }
        meta.uid = change.uid.unwrap_or(meta.uid);
        meta.gid = change.gid.unwrap_or(meta.gid);
        meta.atime = change.atime.map_or(meta.atime, when);
        if let Some(mtime) = change.mtime {
            self.mtime_ns.store(nanoseconds(when(mtime)), Ordering::Relaxed);
        }
        meta.ctime = now;
    }

    fn fill(&self, ino: INodeNo, size: u64, kind: FileType, mode: u16, blksize: u32) -> FileAttr {
        let meta = *self.meta.lock();
        let mtime = UNIX_EPOCH + Duration::from_nanos(self.mtime_ns.load(Ordering::Relaxed));
        FileAttr {
            ino,
            size,
            blocks: allocated_sectors(size),
            atime: meta.atime,
            mtime,
            ctime: meta.ctime.max(mtime),
            crtime: UNIX_EPOCH,
            kind,
            perm: meta.mode.unwrap_or(mode),
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: meta.uid,
            gid: meta.gid,
            rdev: 0,
            blksize,
            flags: 0,
        }
    }
}

/// `st_blocks`. How much a thin volume really takes would need a walk over its map, so the size stands in, one block
/// short: copying tools look for holes only in files with fewer blocks than bytes, and some take zero blocks for "all
/// hole".
fn allocated_sectors(size: u64) -> u64 {
    size.saturating_sub(4096).max(size.min(4096)).div_ceil(512)
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A presented volume.
pub(super) struct Node {
    pub(super) ino: INodeNo,
    pub(super) name: String,
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) attributes: Attributes,
    /// Open files. Changed under the tree's lock only, so that removal and opening exclude each other.
    opens: AtomicUsize,
    pub(super) usage: Arc<Usage>,
    /// Requests answered with an error, to thin out the log.
    failures: AtomicU64,
}

impl Node {
    /// Attributes now; the size and whether it is read-only are asked of the device every time.
    pub(super) fn attr(&self) -> FileAttr {
        let geometry = self.device.geometry();
        let mode = if geometry.read_only { 0o400 } else { 0o600 };
        let blksize = geometry.optimal_io.clamp(4096, 1 << 20);
        let mut attr = self.attributes.fill(self.ino, geometry.size, FileType::RegularFile, mode, blksize);
        if geometry.read_only {
            attr.perm &= !0o222;
        }
        attr
    }

    /// Notes a failed request; true if it should be logged (the 1st, 2nd, 4th, 8th, ...).
    pub(super) fn failed(&self) -> Option<u64> {
        let count = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        count.is_power_of_two().then_some(count)
    }
}

#[derive(Default)]
struct Table {
    by_ino: BTreeMap<u64, Arc<Node>>,
    by_name: HashMap<String, u64>,
    next: u64,
}

/// All presented volumes.
pub(super) struct Tree {
    table: RwLock<Table>,
    root: Attributes,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self { table: RwLock::new(Table { next: FIRST_VOLUME, ..Table::default() }), root: Attributes::new() }
    }

    /// Adds a volume.
    pub(super) fn add(&self, name: &str, device: Arc<dyn BlockDevice>) -> Result<Arc<Node>> {
        check_name(name)?;
        let mut table = self.table.write();
        if table.by_name.contains_key(name) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("a file '{name}' is presented already")));
        }
        let ino = table.next;
        table.next += 1;
        let node = Arc::new(Node {
            ino: INodeNo(ino),
            name: name.to_owned(),
            device,
            attributes: Attributes::new(),
            opens: AtomicUsize::new(0),
            usage: Usage::new(),
            failures: AtomicU64::new(0),
        });
        table.by_ino.insert(ino, Arc::clone(&node));
        table.by_name.insert(name.to_owned(), ino);
        drop(table);
        self.root.modified();
        Ok(node)
    }

    /// Takes a volume away; refused while it is open unless `force`. None if there is no such name.
    pub(super) fn remove(&self, name: &str, force: bool) -> Option<Result<Arc<Node>>> {
        let mut table = self.table.write();
        let ino = *table.by_name.get(name)?;
        let opens = table.by_ino.get(&ino)?.opens.load(Ordering::Relaxed);
        if opens > 0 && !force {
            let text = format!("'{name}' is open {opens} times (a loop device, or a program)");
            return Some(Err(Error::new(ErrorKind::Busy, text)));
        }
        table.by_name.remove(name);
        let node = table.by_ino.remove(&ino)?;
        drop(table);
        self.root.modified();
        Some(Ok(node))
    }

    /// Takes all volumes away, open or not.
    pub(super) fn clear(&self) -> Vec<Arc<Node>> {
        let mut table = self.table.write();
        table.by_name.clear();
        std::mem::take(&mut table.by_ino).into_values().collect()
    }

    pub(super) fn by_ino(&self, ino: INodeNo) -> Option<Arc<Node>> {
        self.table.read().by_ino.get(&ino.0).cloned()
    }

    pub(super) fn by_name(&self, name: &str) -> Option<Arc<Node>> {
        let table = self.table.read();
        table.by_name.get(name).and_then(|ino| table.by_ino.get(ino)).cloned()
    }

    /// Counts one more open file, if `allowed` says so of the volume.
    pub(super) fn open(
        &self,
        ino: INodeNo,
        allowed: impl FnOnce(&Node) -> std::result::Result<(), Errno>,
    ) -> std::result::Result<(), Errno> {
        let table = self.table.read();
        let node = table.by_ino.get(&ino.0).ok_or(Errno::ENOENT)?;
        allowed(node)?;
        node.opens.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Counts one open file less.
    pub(super) fn release(&self, ino: INodeNo) {
        if let Some(node) = self.table.read().by_ino.get(&ino.0) {
            node.opens.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Volumes with an inode number above `after`, in that order.
    pub(super) fn list(&self, after: u64) -> Vec<Arc<Node>> {
        self.table.read().by_ino.range(after.saturating_add(1)..).map(|(_, node)| Arc::clone(node)).collect()
    }

    /// Names and numbers of open files of the volumes that are open.
    pub(super) fn open_files(&self) -> Vec<(String, usize)> {
        let opens = |node: &Arc<Node>| (node.name.clone(), node.opens.load(Ordering::Relaxed));
        self.table.read().by_ino.values().map(opens).filter(|(_, opens)| *opens > 0).collect()
    }

    pub(super) fn root_attr(&self) -> FileAttr {
        let mut attr = self.root.fill(ROOT, 0, FileType::Directory, 0o755, 4096);
        attr.blocks = 0;
        attr
    }

    pub(super) fn root(&self) -> &Attributes {
        &self.root
    }
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.len() > NAME_MAX || name.contains(['/', '\0']) {
        let text = format!("'{}' cannot be a file name (1 to {NAME_MAX} bytes without '/')", name.escape_debug());
        return Err(Error::invalid(text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_directory_can_hold_are_refused() {
        let long = "x".repeat(NAME_MAX + 1);
        for bad in ["", ".", "..", "a/b", "a\0b", &long] {
            assert_eq!(check_name(bad).unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad:?}");
        }
        for good in ["a", "...", "a b", "ä", &long[1..]] {
            check_name(good).unwrap();
        }
    }

    #[test]
    fn block_count_invites_a_search_for_holes_but_is_never_zero() {
        assert_eq!(allocated_sectors(0), 0);
        assert_eq!(allocated_sectors(1), 1);
        assert_eq!(allocated_sectors(4096), 8);
        assert_eq!(allocated_sectors(6000), 8);
        assert_eq!(allocated_sectors(1 << 20), (1 << 11) - 8);
    }

    #[test]
    fn times_before_1970_do_not_wrap() {
        assert_eq!(nanoseconds(UNIX_EPOCH - Duration::from_secs(1)), 0);
    }
}
