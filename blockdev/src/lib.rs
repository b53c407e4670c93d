//! Ashlar's block engine. See `ARCHITECTURE.md` for the map of its modules.

pub mod carry;
pub mod codec;
pub mod dedupe;
pub mod disk;
pub mod env;
pub mod error;
pub mod estimate;
pub mod format;
pub mod frontend;
pub mod lock;
pub mod log;
pub mod map;
pub mod planted;
pub mod pool;
pub mod redundancy;
pub mod report;
pub mod segment;
pub mod units;
pub mod volume;
