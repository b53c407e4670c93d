//! Front ends, and the only face of the engine they see: [`BlockDevice`].

use bytes::Bytes;

pub mod errno;
pub mod freeze;
pub mod fuse;
pub mod loopdev;
pub mod memory;
pub mod nbd;
pub mod ublk;

use crate::env::BoxFuture;
use crate::error::Result;

/// What a host needs to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes.
    pub size: u64,
    /// Grain below which requests are read-modify-write inside the engine, in bytes.
    pub block_size: u32,
    /// Request size, in bytes, at which sequential I/O is at its best.
    pub optimal_io: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// State of a range, as NBD's `base:allocation` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the start of the device.
    pub offset: u64,
    /// Bytes; never 0.
    pub len: u64,
    /// Whether data is mapped here. An unmapped range reads as zeroes.
    pub mapped: bool,
}

/// A volume as front ends see it. Offsets and lengths are bytes of any alignment; ranges beyond the end are
/// [`crate::error::ErrorKind::InvalidArgument`].
///
/// Semantics are those of a disk with a volatile write cache: a completed write is visible to every later read, and durable
/// once a later [`BlockDevice::flush`] completed or when it was written with `fua`. After a crash the device shows the state
/// of one instant not before the last completed flush.
pub trait BlockDevice: Send + Sync + 'static {
    /// Size and grain now.
    fn geometry(&self) -> Geometry;

    /// Reads `len` bytes at `offset`; unmapped ranges are zeroes.
    fn read(&self, offset: u64, len: usize) -> BoxFuture<Result<Bytes>>;

    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<Result<()>>;

    /// Makes all completed operations durable.
    fn flush(&self) -> BoxFuture<Result<()>>;

    /// Gives whole blocks of the range back. Afterwards they read as zeroes; partial blocks at the ends are left alone.
    fn discard(&self, offset: u64, len: u64) -> BoxFuture<Result<()>>;

    /// The range reads as zeroes afterwards, including partial blocks at the ends. Takes no space, whatever the length.
    fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<Result<()>>;

    /// Writes `new` if the range equals `expected`, atomically against all other writes; true if written.
    fn compare_and_write(&self, offset: u64, expected: Bytes, new: Bytes) -> BoxFuture<Result<bool>>;

    /// Consecutive extents from `offset`, at most `max` of them, covering at most `len` bytes, alternating in state.
    fn block_status(&self, offset: u64, len: u64, max: usize) -> BoxFuture<Result<Vec<Extent>>>;

    /// From now on completed operations outlive this process, if that can be had: a host that goes on without it finds them when the next process
    /// serves the device. Says whether they do; when not, only what is durable does. Blocks briefly.
    fn outlive(&self) -> bool {
        false
    }

    /// The size in bytes, and its changes by resizing.
    fn watch_size(&self) -> tokio::sync::watch::Receiver<u64>;
}
