//! Two-level mapping: volume maps from LBA to virtual block, and the block table from virtual block to place and checksum.
//!
//! Everything here is in memory and synchronous. What is not resident is reported as a [`Miss`]; the caller loads it
//! (without holding any lock) and asks again.

pub mod cache;
pub mod diff;
pub mod ghosts;
pub mod table;
pub mod tree;
pub mod versions;

use crate::units::VirtualBlock;

/// A metadata page that must be loaded first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Miss {
    /// A volume map page.
    Map(VirtualBlock),
    /// A block table page, by index.
    Table(u64),
    /// A directory page, by index.
    Directory(u64),
}

/// A value, or what must be loaded to compute it.
pub type Need<T> = std::result::Result<T, Miss>;
