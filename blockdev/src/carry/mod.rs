//! Memory that outlives the process: writes that hosts were told are done wait here for the log, and are found by the next process when this one
//! is killed. A power cut takes them, as it takes what is in the volatile cache of a drive.
//!
//! `docs/design/0012-writes-that-outlive-the-daemon.md` has the invariants.

mod region;
mod ring;
mod shared;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use crate::units::Uuid;

pub use region::Region;
pub use ring::{Found, Kind, Operation, Place, Record, Ring};
pub use shared::SharedMemory;

/// Where such memory is had: one region for each pool.
pub trait Store: fmt::Debug + Send + Sync {
    /// What an earlier process left.
    ///
    /// # Errors
    /// When it cannot be read, or another process uses it.
    fn find(&self, pool: Uuid) -> Result<Option<Arc<Region>>>;

    /// New memory of `len` bytes, zeroed, in the place of any that is there.
    ///
    /// # Errors
    /// When there is not as much.
    fn create(&self, pool: Uuid, len: usize) -> Result<Arc<Region>>;

    /// Gives the memory of a pool back. Regions in use stay valid.
    fn remove(&self, pool: Uuid);

    /// Where it is, for people.
    fn describe(&self, pool: Uuid) -> String;
}
