//! File operations that a block device does not have under that name.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::frontend::BlockDevice;
use crate::units::BLOCK_BYTES;

/// Extents asked for at a time when searching.
const EXTENTS: usize = 256;

/// How much of `len` bytes at `offset` lies before the end at `size`.
pub(super) fn truncated(size: u64, offset: u64, len: u64) -> u64 {
    len.min(size.saturating_sub(offset))
}

/// Gives whole blocks back and clears the partial ones at the ends: a hole reads as zeroes from its first byte to its
/// last.
pub(super) async fn punch_hole(device: Arc<dyn BlockDevice>, offset: u64, len: u64) -> Result<()> {
    let end = offset + len;
    let block = u64::from(device.geometry().block_size).max(BLOCK_BYTES);
    let first = offset.next_multiple_of(block).min(end);
    // The end of the device ends its last block, whole or not; what discard leaves alone there is cleared as a part.
    let last = (end / block * block).max(first);
    if offset < first {
        device.write_zeroes(offset, first - offset, false).await?;
    }
    if first < last {
        device.discard(first, last - first).await?;
    }
    if last < end {
        device.write_zeroes(last, end - last, false).await?;
    }
    Ok(())
}

/// The first offset from `offset` that is `mapped`, as SEEK_DATA (true) and SEEK_HOLE (false) want it: the end of the
/// device counts as a hole, and there is nothing (None) from there on.
pub(super) async fn seek(device: Arc<dyn BlockDevice>, offset: u64, mapped: bool) -> Result<Option<u64>> {
    let size = device.geometry().size;
    let mut position = offset;
    while position < size {
        let extents = device.block_status(position, size - position, EXTENTS).await?;
        let before = position;
        for extent in extents {
            let end = extent.offset.saturating_add(extent.len);
            if end <= position {
                continue;
            }
            if extent.mapped == mapped {
                return Ok(Some(extent.offset.max(position)));
            }
            position = end;
        }
        if position == before {
            return Err(Error::io(format!("the device tells no state at offset {position}")));
        }
    }
    Ok((!mapped && offset < size).then_some(size))
}
