//! How much room there is.

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
    /// How much room there is.
    pub fn space(&self) -> Space {
        let meta = self.meta.lock();
        let counters = meta.counters;
        Space {
            blocks: counters.blocks,
            free: counters.blocks.saturating_sub(counters.used),
            inodes: counters.inodes,
            failed: meta.failed,
        }
    }

    /// Whether it has failed: see [`Space::failed`].
    pub fn is_failed(&self) -> bool {
        self.meta.lock().failed
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
