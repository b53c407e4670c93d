//! Disks: where bytes are kept. The trait is small on purpose; everything above it sees only this.

use std::fmt;

use bytes::Bytes;

use crate::env::BoxFuture;

mod arena;
mod buffer;
pub mod fault;
pub mod health;
mod memory;
pub mod signature;
mod sim;
#[cfg(test)]
mod test_support;
pub mod throttled;
pub mod timeout;
pub mod uring;

pub use buffer::AlignedBuf;
pub use fault::FaultDisk;
pub use memory::MemoryDisk;
pub use sim::{CrashPlan, CrashTrigger, DiskCounters, FaultBudget, FaultCounts, FaultRate, SimDisk};
pub use throttled::{Throttle, ThrottledDisk};
pub use timeout::TimeoutDisk;
pub use uring::{FileDisk, OpenOptions};

/// Alignment, in bytes, of the offset, length and memory of every disk request.
///
/// 4096 suits both 512-byte and 4096-byte sectors, and keeps file-backed disks off the file system's slow path.
pub const IO_ALIGN: usize = 4096;

/// A disk's size and grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskGeometry {
    /// Usable bytes, a multiple of [`IO_ALIGN`].
    pub size: u64,
    /// Logical sector in bytes: 512 or 4096.
    pub sector_size: u32,
}

/// Why a disk request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// This range cannot be read (latent sector error, bad medium); other ranges may be fine.
    Medium(String),
    /// The disk as a whole failed: removed, dead, a failed flush. It must not be used again until it was opened anew.
    Failed(String),
    /// No space under a file-backed disk; the write did not happen.
    NoSpace(String),
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Medium(m) | Self::Failed(m) | Self::NoSpace(m) => f.write_str(m),
        }
    }
}

impl std::error::Error for DiskError {}

/// Result of a disk request.
pub type DiskResult<T> = Result<T, DiskError>;

/// A disk: a device, a file, memory, or a simulation of one.
///
/// Requests may be issued at any time and complete in any order. A completed write is *not* durable until a later
/// [`Disk::flush`] completed, or the write itself was `durable`. Dropping the future of a request does not cancel it.
/// All offsets and lengths are multiples of [`IO_ALIGN`]; buffers for writes must be aligned too (use [`AlignedBuf`]).
pub trait Disk: Send + Sync + 'static {
    /// What people call it: a path, or a name in the laboratory.
    fn name(&self) -> String;

    /// Size and grain; constant while open.
    fn geometry(&self) -> DiskGeometry;

    /// Reads `len` bytes at `offset`.
    fn read(&self, offset: u64, len: usize) -> BoxFuture<DiskResult<Bytes>>;

    /// Writes the concatenation of `data` at `offset`. With `durable`, completes only when the bytes are on stable storage (FUA).
    fn write(&self, offset: u64, data: Vec<Bytes>, durable: bool) -> BoxFuture<DiskResult<()>>;

    /// Makes every write that completed before this call durable. A failure is [`DiskError::Failed`]: it is never retried.
    fn flush(&self) -> BoxFuture<DiskResult<()>>;

    /// Tells the disk that a range is no longer needed. Advice; the content of the range is undefined afterwards.
    fn discard(&self, offset: u64, len: u64) -> BoxFuture<DiskResult<()>>;

    /// The disk does not answer, and nobody waits any longer: every later request is refused with [`DiskError::Failed`], and closing the disk does not
    /// wait for those under way. They may still be done; opening it anew is refused until they have ended.
    /// Nothing to do for a disk that always answers.
    fn abandon(&self, _why: &str) {}
}
