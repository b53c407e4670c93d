//! A POSIX file system, as operations on inode numbers. Permissions are whoever calls to check: the kernel, for FUSE.

mod acl;
mod data;
mod extents;
mod namespace;
mod nodes;
mod reap;
mod rename;
mod space;
mod xattr;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex, MutexGuard};
use redb::ReadableTable;

pub use self::data::{Fallocate, SetAttr, Whence};
pub(crate) use self::namespace::ENTRY_SIZE;
pub use self::namespace::{DirEntry, New};
use self::nodes::{Node, Nodes};
pub use self::rename::RenameFlags;
pub use self::space::Space;
pub use self::xattr::XattrFlags;
use crate::alloc::FIRST_BLOCK;
use crate::meta::attr::{Attr, Kind, Time};
use crate::meta::tables::{HASH_BITS_MAX, INODES};
use crate::meta::txn::{Counters, Metadata, Seen, database, fault};
use crate::planted::{Bug, active};
use crate::store::{Backend, Pair};
use crate::{Errno, Result};

/// The root directory, as FUSE numbers it.
pub const ROOT: u64 = 1;

/// Operations in a transaction after which it is committed.
const CHANGES_MAX: usize = 5_000;

/// How long a change may wait for its commit.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// How a file system is opened.
pub struct Options {
    /// Memory for metadata, in bytes: a quarter for attributes, the rest for pages of the database.
    pub cache_bytes: usize,
    /// Commits in the background, and frees what was deleted; else only [`FileSystem::tick`] does.
    pub background: bool,
    /// The time of day.
    pub clock: Box<dyn Fn() -> Time + Send + Sync>,
    /// Key of the hashes of names, for a file system that is opened for the first time.
    pub hash_key: u64,
    /// Bits of those hashes that tell names apart, at most 55, for a file system that is opened for the first time. Few make names share them, which
    /// tests want.
    pub hash_bits: u64,
}

impl Default for Options {
    fn default() -> Self {
        let mut key = [0; 8];
        // Chance only keeps others from choosing names of one hash; without it all is right, only guessable.
        let _ = rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty());
        Self {
            cache_bytes: 64 << 20,
            background: true,
            clock: Box::new(now),
            hash_key: u64::from_le_bytes(key),
            hash_bits: HASH_BITS_MAX,
        }
    }
}

fn now() -> Time {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Time { s: since.as_secs().cast_signed(), ns: since.subsec_nanos() },
        Err(_) => Time::default(),
    }
}

/// An open file system.
///
/// Locks, in the order in which they are taken: a node's `content`, the metadata, the list of dirty nodes, a node's state.
pub struct FileSystem {
    pair: Pair,
    meta: Mutex<Metadata>,
    nodes: Nodes,
    /// Nodes whose attributes are not in the transaction yet.
    dirty: Mutex<Vec<Arc<Node>>>,
    clock: Box<dyn Fn() -> Time + Send + Sync>,
    read_only: bool,
    /// Bytes of the database.
    meta_length: Arc<AtomicU64>,
    seen: Arc<Seen>,
    background: Mutex<Option<JoinHandle<()>>>,
    /// One thread at a time discards and frees.
    reaping: Mutex<()>,
    stop: Stop,
}

#[derive(Default)]
struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
    /// Something was deleted, or much is to be committed.
    hurry: AtomicBool,
}

impl FileSystem {
    /// Opens the file system on `pair`; one that was never opened gets its root directory, of mode 0755 and owned by root.
    ///
    /// What deletions before a crash left is freed by and by. With `background`, a thread commits every second until the last reference is dropped.
    pub fn open(pair: Pair, options: Options) -> blockdev::error::Result<Arc<Self>> {
        let read_only = pair.meta.read_only() || pair.data.read_only();
        let blocks = pair.data_blocks();
        let backend = Backend::new(&pair, read_only)?;
        let meta_length = backend.length();
        let db = database(backend, options.cache_bytes / 4 * 3)?;
        let fresh = Counters {
            next_ino: ROOT + 1,
            hash_key: options.hash_key,
            hash_bits: options.hash_bits,
            blocks,
            used: 0,
            inodes: 0,
            commits: 0,
        };
        let failed = |errno: Errno| blockdev::error::Error::io(format!("open the file system: {errno}"));
        let (mut meta, is_new) = Metadata::new(db, fresh).map_err(failed)?;
        if blocks < meta.counters.blocks {
            let text = format!(
                "the data volume has {blocks} blocks, the file system {}: it was made smaller; give it its size back",
                meta.counters.blocks
            );
            return Err(blockdev::error::Error::invalid(text));
        }
        if blocks > meta.counters.blocks {
            meta.counters.blocks = blocks;
            meta.alloc.grow(blocks);
        }
        if is_new {
            let time = (options.clock)();
            meta.operation(|meta| make_root(meta, time)).map_err(failed)?;
            meta.commit().map_err(failed)?;
        }
        let seen = meta.seen();
        let this = Arc::new(Self {
            pair,
            meta: Mutex::new(meta),
            nodes: Nodes::within(options.cache_bytes / 4),
            dirty: Mutex::default(),
            clock: options.clock,
            read_only,
            meta_length,
            seen,
            background: Mutex::default(),
            reaping: Mutex::default(),
            stop: Stop::default(),
        });
        if is_new {
            this.flush_volume().map_err(failed)?;
        }
        if options.background {
            let weak = Arc::downgrade(&this);
            let spawned = std::thread::Builder::new().name("nas-commit".into()).spawn(move || background(&weak));
            let thread = spawned.map_err(|e| blockdev::error::Error::io(format!("start a thread: {e}")))?;
            *this.background.lock() = Some(thread);
        }
        Ok(this)
    }

    /// Commits made so far, over the whole life of the file system. After a crash it shows the last one that was durable.
    pub fn commits(&self) -> u64 {
        self.meta.lock().counters.commits
    }

    /// Bytes of the metadata volume that are in use, or were once.
    pub fn metadata_bytes(&self) -> u64 {
        self.meta_length.load(Ordering::Relaxed)
    }

    /// What both volumes carry.
    pub fn identity(&self) -> [u8; 16] {
        self.pair.identity
    }

    /// Checks all metadata of the last commit, while the file system is used.
    pub fn check(&self) -> blockdev::error::Result<crate::check::Report> {
        let closed = || blockdev::error::Error::io("the file system is closed");
        let db = self.meta.lock().database().ok_or_else(closed)?;
        crate::check::check_database(&db)
    }

    /// Makes everything done so far durable.
    pub fn sync(&self) -> Result<()> {
        self.commit_changes()?;
        self.flush_volume()
    }

    /// What the background thread does: commits, frees what was deleted, discards.
    pub fn tick(&self) -> Result<()> {
        if self.commit_changes()? {
            self.flush_volume()?;
        }
        self.reap_orphans()?;
        self.discard_freed()
    }

    fn flush_volume(&self) -> Result<()> {
        if active(Bug::FsyncNotFlushed) {
            return Ok(());
        }
        self.pair.flush().map_err(|error| {
            self.meta.lock().fail(&format!("flush: {error}"));
            Errno::IO
        })
    }

    /// Commits if there is anything to commit, and says whether there was.
    fn commit_changes(&self) -> Result<bool> {
        let mut meta = self.meta.lock();
        if meta.failed {
            return Err(Errno::IO);
        }
        let any = meta.changes > 0 || !self.dirty.lock().is_empty();
        if any {
            self.commit(&mut meta)?;
        }
        Ok(any)
    }

    fn commit(&self, meta: &mut MutexGuard<'_, Metadata>) -> Result<()> {
        if active(Bug::DiscardedEarly) {
            meta.alloc.committed();
            let runs = meta.alloc.take_to_discard();
            self.discard(&runs);
            meta.alloc.discarded(&runs);
        }
        let committed = self.write_dirty(meta).and_then(|()| meta.commit());
        if let Err(errno) = committed {
            meta.fail(&format!("a commit: {errno}"));
            return Err(Errno::IO);
        }
        Ok(())
    }

    /// Puts the attributes of changed nodes into the transaction.
    fn write_dirty(&self, meta: &mut Metadata) -> Result<()> {
        let mut dirty = self.dirty.lock();
        let mut inodes = meta.txn.table(INODES)?;
        for node in dirty.drain(..) {
            // The table may have to be read from drives: nobody waits for that with the attributes.
            let (attr, dead) = {
                let mut state = node.state.lock();
                state.dirty = false;
                (state.attr, state.dead)
            };
            if !dead && !active(Bug::AttributesLeftOut) {
                inodes.insert(node.ino, attr.encode().as_slice()).map_err(fault)?;
            }
        }
        Ok(())
    }

    /// An operation that changes metadata; see [`Metadata::operation`].
    fn change<T>(&self, operation: impl FnOnce(&mut Metadata) -> Result<T>) -> Result<T> {
        if self.read_only {
            return Err(Errno::ROFS);
        }
        let mut meta = self.meta.lock();
        let result = meta.operation(operation)?;
        if meta.changes >= CHANGES_MAX {
            self.commit(&mut meta)?;
        }
        Ok(result)
    }

    fn look<T>(&self, operation: impl FnOnce(&mut Metadata) -> Result<T>) -> Result<T> {
        self.meta.lock().operation(operation)
    }

    /// The node of an inode that exists.
    fn node(&self, ino: u64) -> Result<Arc<Node>> {
        match self.nodes.get(ino) {
            Some(node) => Ok(node),
            None => self.look(|meta| self.node_in(meta, ino)),
        }
    }

    fn node_in(&self, meta: &mut Metadata, ino: u64) -> Result<Arc<Node>> {
        if let Some(node) = self.nodes.get(ino) {
            return Ok(node);
        }
        let table = meta.txn.table(INODES)?;
        let value = table.get(ino).map_err(fault)?.ok_or(Errno::STALE)?;
        let attr = Attr::decode(ino, value.value()).ok_or_else(|| {
            tracing::error!(ino, "an inode of the file system is damaged");
            Errno::IO
        })?;
        Ok(self.nodes.insert(attr))
    }

    fn now(&self) -> Time {
        (self.clock)()
    }

    /// Changes a node's attributes, in memory; the next commit has them.
    fn touch(&self, node: &Arc<Node>, change: impl FnOnce(&mut Attr)) -> Attr {
        let mut dirty = self.dirty.lock();
        let mut state = node.state.lock();
        change(&mut state.attr);
        if !state.dirty {
            state.dirty = true;
            dirty.push(Arc::clone(node));
        }
        state.attr
    }

    fn hurry(&self) {
        if !self.stop.hurry.swap(true, Ordering::AcqRel) {
            self.stop.changed.notify_all();
        }
    }

    /// Commits, and lets go of the volumes for good: whoever still has this file system can change nothing any more, nor can what it had begun.
    /// Waits for writes under way.
    pub fn close(&self) -> Result<()> {
        *self.stop.asked.lock() = true;
        self.stop.changed.notify_all();
        let background = self.background.lock().take();
        if background.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the background thread of a file system panicked");
        }
        let ended = if self.read_only || self.is_failed() {
            Ok(())
        } else {
            self.give_back_windows();
            self.tick().and_then(|()| self.sync())
        };
        self.meta.lock().close();
        self.pair.fence();
        ended
    }
}

fn make_root(meta: &mut Metadata, time: Time) -> Result<()> {
    let attr = Attr {
        ino: ROOT,
        kind: Kind::Directory,
        mode: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        size: 0,
        blocks: 0,
        rdev: 0,
        parent: ROOT,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
    };
    meta.txn.change(INODES)?.insert(ROOT, attr.encode().as_slice()).map_err(fault)?;
    meta.counters.inodes = 1;
    meta.counters.used = FIRST_BLOCK;
    Ok(())
}

/// Ends when asked to, or with the file system.
fn background(weak: &Weak<FileSystem>) {
    loop {
        let Some(fs) = weak.upgrade() else { return };
        {
            let mut asked = fs.stop.asked.lock();
            if !*asked && !fs.stop.hurry.load(Ordering::Acquire) {
                fs.stop.changed.wait_for(&mut asked, COMMIT_EVERY);
            }
            if *asked {
                return;
            }
        }
        fs.stop.hurry.store(false, Ordering::Release);
        // An error was said where it came up; the next operations tell of it.
        let _ = fs.tick();
    }
}
