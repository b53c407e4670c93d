//! How much room there is.

use std::sync::atomic::Ordering;

use super::FileSystem;
use crate::Result;

/// Room of a file system, in blocks of 4 KiB, and inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All blocks.
    pub blocks: u64,
    /// Not used by files.
    pub free: u64,
    /// Inodes that exist.
    pub inodes: u64,
    /// It answers everything with an error until it is mounted again.
    pub failed: bool,
}

impl FileSystem {
    /// How much room there is. Waits for nobody.
    pub fn space(&self) -> Space {
        let (blocks, used) = (self.seen.blocks.load(Ordering::Relaxed), self.seen.used.load(Ordering::Relaxed));
        Space {
            blocks,
            free: blocks.saturating_sub(used),
            inodes: self.seen.inodes.load(Ordering::Relaxed),
            failed: self.is_failed(),
        }
    }

    /// Whether it has failed: see [`Space::failed`]. Waits for nobody.
    pub fn is_failed(&self) -> bool {
        self.seen.failed.load(Ordering::Relaxed)
    }

    /// Takes over that its data volume has grown.
    pub fn grow(&self) -> Result<()> {
        let blocks = self.pair.data_blocks();
        self.change(|meta| {
            if blocks > meta.counters.blocks {
                meta.counters.blocks = blocks;
                meta.alloc.grow(blocks);
                meta.changes += 1;
            }
            Ok(())
        })?;
        self.sync()
    }
}
