//! Inodes in memory.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

use super::FileSystem;
use crate::alloc::Run;
use crate::meta::attr::Attr;
use crate::meta::tables::ORPHANS;
use crate::meta::txn::fault;
use crate::planted::{Bug, active};
use crate::{Errno, Result};

const SHARDS: usize = 64;

/// One inode.
pub(super) struct Node {
    pub ino: u64,
    /// Held by whoever reads the file's content, alone by who changes where it lies.
    pub content: RwLock<()>,
    pub state: Mutex<State>,
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
    /// How often the kernel was told of it and did not forget it.
    pub lookups: u64,
    /// Set aside behind the last block that was written.
    pub window: Option<Run>,
    /// Commits when size or place of the content changed last: nothing of it is missing on disk once a later commit is durable.
    pub moved: u64,
}

/// All nodes that are known, in use, or not committed.
pub(super) struct Nodes {
    shards: Vec<Mutex<FxHashMap<u64, Arc<Node>>>>,
}

impl Default for Nodes {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Nodes {
    fn shard(&self, ino: u64) -> &Mutex<FxHashMap<u64, Arc<Node>>> {
        &self.shards[(ino % SHARDS as u64) as usize]
    }

    pub(super) fn get(&self, ino: u64) -> Option<Arc<Node>> {
        self.shard(ino).lock().get(&ino).cloned()
    }

    /// The node with `attr`, or the one that was there already.
    pub(super) fn insert(&self, attr: Attr) -> Arc<Node> {
        let make = || {
            let state = State { attr, dirty: false, dead: false, opens: 0, lookups: 0, window: None, moved: 0 };
            Arc::new(Node { ino: attr.ino, content: RwLock::new(()), state: Mutex::new(state) })
        };
        Arc::clone(self.shard(attr.ino).lock().entry(attr.ino).or_insert_with(make))
    }

    pub(super) fn remove(&self, ino: u64) {
        self.shard(ino).lock().remove(&ino);
    }

    /// Drops a node that nobody uses and that the tables have as it is.
    fn drop_unused(&self, ino: u64) {
        let mut shard = self.shard(ino).lock();
        let unused = shard.get(&ino).is_some_and(|node| {
            let state = node.state.lock();
            Arc::strong_count(node) == 1
                && !state.dirty
                && state.opens == 0
                && state.lookups == 0
                && state.window.is_none()
        });
        if unused {
            shard.remove(&ino);
        }
    }

    /// All of them, for what is done rarely.
    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.shards.iter().flat_map(|shard| shard.lock().values().cloned().collect::<Vec<_>>()).collect()
    }
}

impl FileSystem {
    /// Notes that somebody keeps `ino` in mind: it stays, without a name, until [`FileSystem::forget`].
    pub fn remember(&self, ino: u64) -> Result<()> {
        self.node(ino)?.state.lock().lookups += 1;
        Ok(())
    }

    /// Takes back `times` of [`FileSystem::remember`].
    pub fn forget(&self, ino: u64, times: u64) {
        let Some(node) = self.nodes.get(ino) else { return };
        {
            let mut state = node.state.lock();
            state.lookups = state.lookups.saturating_sub(times);
        }
        self.unused(node);
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
            self.unused(node);
        }
    }

    /// Files and directories that are open.
    pub fn open_files(&self) -> u64 {
        self.nodes.all().iter().filter(|node| node.state.lock().opens > 0).count() as u64
    }

    /// What happens to a node when somebody stops using it.
    fn unused(&self, node: Arc<Node>) {
        let (idle, nameless) = {
            let state = node.state.lock();
            (state.opens == 0 && state.lookups == 0, state.attr.nlink == 0 && !state.dead)
        };
        if idle && nameless {
            self.hurry();
        }
        let ino = node.ino;
        drop(node);
        if idle {
            self.nodes.drop_unused(ino);
        }
    }

    /// Whether a file without a name must stay.
    pub(super) fn in_use(&self, ino: u64) -> bool {
        self.nodes.get(ino).is_some_and(|node| {
            let state = node.state.lock();
            state.opens > 0 || state.lookups > 0
        })
    }

    /// The file is in the list of what a mount frees.
    pub(super) fn orphan(&self, meta: &mut crate::meta::txn::Metadata, ino: u64) -> Result<()> {
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
