//! Ashlar's block engine. See `ARCHITECTURE.md` for the map of its modules.

pub mod codec;
pub mod dedupe;
pub mod disk;
pub mod env;
pub mod error;
pub mod frontend;
pub mod redundancy;
pub mod report;
pub mod units;
