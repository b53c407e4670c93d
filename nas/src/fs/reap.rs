//! Freeing what has no name any more, and discarding what was freed.

use std::sync::Arc;

use redb::ReadableTable;

use super::data::CUT_MAX;
use super::nodes::Node;
use super::{FileSystem, extents};
use crate::alloc::Run;
use crate::meta::attr::Kind;
use crate::meta::tables::{INODES, LINKS, ORPHANS, XATTRS};
use crate::meta::txn::{Metadata, fault};
use crate::{BLOCK, Errno, Result};

/// Orphans looked at in one go.
const BATCH: usize = 256;

impl FileSystem {
    /// Frees all that has no name and is not in use, and cuts off what lies beyond the end of files whose shortening a crash cut short.
    pub(super) fn reap_orphans(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let _alone = self.reaping.lock();
        let mut after = 0;
        loop {
            let batch: Vec<u64> = self.look(|meta| {
                let table = meta.txn.table(ORPHANS)?;
                let rows = table.range(after..).map_err(fault)?.take(BATCH);
                rows.map(|row| Ok(row.map_err(fault)?.0.value())).collect()
            })?;
            let Some(last) = batch.last() else { return Ok(()) };
            after = last.saturating_add(1);
            for ino in batch {
                match self.reap(ino) {
                    Ok(()) => {}
                    Err(Errno::STALE) => self.change(|meta| unlist(meta, ino))?,
                    Err(errno) if self.is_failed() => return Err(errno),
                    // Others can be freed all the same.
                    Err(errno) => tracing::warn!(ino, %errno, "a file without a name cannot be freed"),
                }
            }
        }
    }

    fn reap(&self, ino: u64) -> Result<()> {
        let node = self.node(ino)?;
        // Somebody who has it cannot be waited for: he may wait for what is freed here.
        let Some(_content) = node.content.try_write() else { return Ok(()) };
        loop {
            let done = self.change(|meta| {
                let attr = node.state.lock().attr;
                if attr.nlink > 0 {
                    return self.cut_off(meta, &node, attr.size.div_ceil(BLOCK), true);
                }
                if self.in_use(ino) {
                    return Ok(true);
                }
                if !self.cut_off(meta, &node, 0, false)? {
                    return Ok(false);
                }
                self.erase(meta, &node)?;
                Ok(true)
            })?;
            if done {
                return Ok(());
            }
        }
    }

    /// Frees blocks from `block` on, as many as one change may; whether that was all.
    fn cut_off(&self, meta: &mut Metadata, node: &Arc<Node>, block: u64, unlisted: bool) -> Result<bool> {
        let attr = node.state.lock().attr;
        let (freed, done) = match attr.kind {
            Kind::File => extents::cut(meta, node.ino, block, u64::MAX, CUT_MAX)?,
            _ => (0, true),
        };
        self.touch(node, |attr| attr.blocks = attr.blocks.saturating_sub(freed));
        if done && unlisted {
            unlist(meta, node.ino)?;
        }
        Ok(done)
    }

    /// The inode is gone.
    fn erase(&self, meta: &mut Metadata, node: &Arc<Node>) -> Result<()> {
        let ino = node.ino;
        meta.txn.change(INODES)?.remove(ino).map_err(fault)?;
        meta.txn.change(LINKS)?.remove(ino).map_err(fault)?;
        meta.txn.change(XATTRS)?.retain_in((ino, &[][..])..(ino + 1, &[][..]), |_, _| false).map_err(fault)?;
        unlist(meta, ino)?;
        meta.counters.inodes = meta.counters.inodes.saturating_sub(1);
        let window = {
            let mut state = node.state.lock();
            state.dead = true;
            state.window.take()
        };
        if let Some(window) = window {
            meta.alloc.give_back(window);
        }
        self.nodes.remove(ino);
        Ok(())
    }

    /// Discards what committed transactions freed, and lets it be given out again.
    pub(super) fn discard_freed(&self) -> Result<()> {
        // Who waits for room gets what somebody else is discarding.
        let _alone = self.reaping.lock();
        let runs = self.meta.lock().alloc.take_to_discard();
        self.discard(&runs);
        self.meta.lock().alloc.discarded(&runs);
        Ok(())
    }

    pub(super) fn discard(&self, runs: &[Run]) {
        for run in runs {
            // Space that does not go back to the pool now goes back when it is written again, or trimmed.
            if let Err(error) = self.pair.data.discard(run.start * BLOCK, run.len * BLOCK) {
                tracing::warn!(%error, "discard freed blocks of a file system");
            }
        }
    }
}

fn unlist(meta: &mut Metadata, ino: u64) -> Result<()> {
    meta.txn.change(ORPHANS)?.remove(ino).map_err(fault)?;
    Ok(())
}
