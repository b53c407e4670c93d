//! Inodes in memory, and who uses them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

use super::FileSystem;
use crate::alloc::Run;
use crate::meta::attr::Attr;
use crate::meta::tables::ORPHANS;
use crate::meta::txn::{Metadata, fault};
use crate::planted::{Bug, active};
use crate::{Errno, Result};

const SHARDS: usize = 64;

/// About what a node takes, in bytes, with its place in the table.
const NODE_BYTES: usize = 320;

/// One inode.
pub(super) struct Node {
    pub ino: u64,
    /// Held by whoever reads the file's content, alone by who changes where it lies.
    pub content: RwLock<()>,
    pub state: Mutex<State>,
    /// Asked for since the last time that nodes were dropped.
    recent: AtomicBool,
}

/// Changed under the node's lock, for moments only.
pub(super) struct State {
    pub attr: Attr,
    /// The transaction does not have `attr` yet.
    pub dirty: bool,
    /// It is gone from the tables; whoever still has the number is told so.
    pub dead: bool,
    /// How often it is open.
    pub opens: u64,
    /// Set aside behind the last block that was written.
    pub window: Option<Run>,
    /// The number of the commit that has the last change of the content's size or place.
    pub moved: u64,
}

#[derive(Default)]
struct Shard {
    nodes: FxHashMap<u64, Arc<Node>>,
    /// How often the kernel was told of an inode and did not forget it.
    lookups: FxHashMap<u64, u64>,
}

/// Nodes that are open, not committed, or were asked for of late; and which inodes the kernel has in mind.
pub(super) struct Nodes {
    shards: Vec<Mutex<Shard>>,
    /// Nodes of a shard beyond which those that nobody uses are dropped.
    most: usize,
}

impl Nodes {
    /// Unused nodes take about so many bytes at most.
    pub(super) fn within(bytes: usize) -> Self {
        let most = (bytes / NODE_BYTES / SHARDS).max(16);
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), most }
    }

    fn shard(&self, ino: u64) -> &Mutex<Shard> {
        &self.shards[(ino % SHARDS as u64) as usize]
    }

    pub(super) fn get(&self, ino: u64) -> Option<Arc<Node>> {
        let node = self.shard(ino).lock().nodes.get(&ino).cloned();
        node.inspect(|node| node.recent.store(true, Ordering::Relaxed))
    }

    /// The node with `attr`, or the one that was there already.
    pub(super) fn insert(&self, attr: Attr) -> Arc<Node> {
        let mut shard = self.shard(attr.ino).lock();
        if shard.nodes.len() >= self.most {
            shard.nodes.retain(|_, node| node.recent.swap(false, Ordering::Relaxed) || !is_unused(node));
            if shard.nodes.len() >= self.most {
                shard.nodes.retain(|_, node| !is_unused(node));
            }
        }
        let make = || {
            let state = State { attr, dirty: false, dead: false, opens: 0, window: None, moved: 0 };
            let (content, recent) = (RwLock::new(()), AtomicBool::new(true));
            Arc::new(Node { ino: attr.ino, content, state: Mutex::new(state), recent })
        };
        Arc::clone(shard.nodes.entry(attr.ino).or_insert_with(make))
    }

    pub(super) fn remove(&self, ino: u64) {
        self.shard(ino).lock().nodes.remove(&ino);
    }

    fn is_remembered(&self, ino: u64) -> bool {
        self.shard(ino).lock().lookups.contains_key(&ino)
    }

    /// All of them, for what is done rarely.
    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.shards.iter().flat_map(|shard| shard.lock().nodes.values().cloned().collect::<Vec<_>>()).collect()
    }
}

/// Whether the tables have all that is known of a node that only the table of nodes refers to.
fn is_unused(node: &Arc<Node>) -> bool {
    // Whoever gets it does so under the lock of its shard, which the caller holds.
    Arc::strong_count(node) == 1 && {
        let state = node.state.lock();
        !state.dirty && state.opens == 0 && state.window.is_none()
    }
}

impl FileSystem {
    /// Notes that somebody keeps `ino` in mind: it stays, without a name, until [`FileSystem::forget`].
    pub fn remember(&self, ino: u64) {
        *self.nodes.shard(ino).lock().lookups.entry(ino).or_default() += 1;
    }

    /// Takes back `times` of [`FileSystem::remember`].
    pub fn forget(&self, ino: u64, times: u64) {
        {
            let mut shard = self.nodes.shard(ino).lock();
            let Some(lookups) = shard.lookups.get_mut(&ino) else { return };
            *lookups = lookups.saturating_sub(times);
            if *lookups > 0 {
                return;
            }
            shard.lookups.remove(&ino);
        }
        if let Some(node) = self.nodes.get(ino) {
            self.hurry_if_nameless(&node);
        }
    }

    /// Notes that `ino` is open: its content stays, without a name, until [`FileSystem::release`].
    pub fn opened(&self, ino: u64) -> Result<()> {
        let node = self.node(ino)?;
        let mut state = node.state.lock();
        if state.dead {
            return Err(Errno::STALE);
        }
        state.opens += 1;
        Ok(())
    }

    /// Takes back one [`FileSystem::opened`].
    pub fn release(&self, ino: u64) {
        let Some(node) = self.nodes.get(ino) else { return };
        let (closed, window) = {
            let mut state = node.state.lock();
            state.opens = state.opens.saturating_sub(1);
            let closed = state.opens == 0;
            (closed, if closed { state.window.take() } else { None })
        };
        if let Some(window) = window {
            self.meta.lock().alloc.give_back(window);
        }
        if closed {
            self.hurry_if_nameless(&node);
        }
    }

    /// Files and directories that are open.
    pub fn open_files(&self) -> u64 {
        self.nodes.all().iter().filter(|node| node.state.lock().opens > 0).count() as u64
    }

    /// Nodes in memory.
    pub fn nodes_in_memory(&self) -> usize {
        self.nodes.shards.iter().map(|shard| shard.lock().nodes.len()).sum()
    }

    /// What has no name and is not used any more is freed soon.
    fn hurry_if_nameless(&self, node: &Node) {
        let nameless = {
            let state = node.state.lock();
            state.opens == 0 && state.attr.nlink == 0 && !state.dead
        };
        if nameless && !self.nodes.is_remembered(node.ino) {
            self.hurry();
        }
    }

    /// Whether a file without a name must stay.
    pub(super) fn in_use(&self, ino: u64) -> bool {
        self.nodes.is_remembered(ino) || self.nodes.get(ino).is_some_and(|node| node.state.lock().opens > 0)
    }

    /// The file is in the list of what a mount frees.
    pub(super) fn orphan(&self, meta: &mut Metadata, ino: u64) -> Result<()> {
        if !active(Bug::OrphanNotListed) {
            meta.txn.change(ORPHANS)?.insert(ino, ()).map_err(fault)?;
        }
        Ok(())
    }

    /// Takes back everything that was set aside for files that may grow.
    pub(super) fn give_back_windows(&self) {
        let windows: Vec<Run> = self.nodes.all().iter().filter_map(|node| node.state.lock().window.take()).collect();
        let mut meta = self.meta.lock();
        for window in windows {
            meta.alloc.give_back(window);
        }
    }
}
