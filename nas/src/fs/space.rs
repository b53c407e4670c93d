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
}

impl FileSystem {
    /// How much room there is.
    pub fn space(&self) -> Result<Space> {
        let counters = self.meta.lock().counters;
        Ok(Space {
            blocks: counters.blocks,
            free: counters.blocks.saturating_sub(counters.used),
            inodes: counters.inodes,
        })
    }
}
