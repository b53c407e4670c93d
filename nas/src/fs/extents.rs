//! Where the blocks of a file lie.

use redb::ReadableTable;

use super::data::SIZE_MAX;
use crate::alloc::{FIRST_BLOCK, Run};
use crate::meta::tables::EXTENTS;
use crate::meta::txn::{Metadata, fault};
use crate::{BLOCK, Errno, Result};

/// Consecutive blocks of a file, all on consecutive blocks of the volume or all in a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// First block in the file.
    pub block: u64,
    /// Never 0.
    pub len: u64,
    /// First block on the volume; none in a hole.
    pub at: Option<u64>,
}

impl Piece {
    pub(super) fn end(&self) -> u64 {
        self.block + self.len
    }
}

/// An extent as the table has it. EIO for what cannot be one.
fn decode(meta: &Metadata, (ino, block): (u64, u64), (at, len): (u64, u64)) -> Result<Piece> {
    let fits = at >= FIRST_BLOCK
        && len > 0
        && at.checked_add(len).is_some_and(|end| end <= meta.counters.blocks)
        && block.checked_add(len).is_some_and(|end| end <= SIZE_MAX / BLOCK);
    if !fits {
        tracing::error!(ino, block, at, len, "an extent of the file system is damaged");
        return Err(Errno::IO);
    }
    Ok(Piece { block, len, at: Some(at) })
}

/// The extent that holds `block`, or the first after it.
fn from(meta: &Metadata, ino: u64, block: u64) -> Result<Option<Piece>> {
    let table = meta.txn.table(EXTENTS)?;
    let before = table.range((ino, 0)..=(ino, block)).map_err(fault)?.next_back();
    if let Some(row) = before {
        let (key, value) = row.map_err(fault)?;
        let extent = decode(meta, key.value(), value.value())?;
        if extent.end() > block {
            return Ok(Some(extent));
        }
    }
    let after = table.range((ino, block)..=(ino, u64::MAX)).map_err(fault)?.next();
    let Some(row) = after else { return Ok(None) };
    let (key, value) = row.map_err(fault)?;
    decode(meta, key.value(), value.value()).map(Some)
}

/// All of `block..block + len`, in order, holes too.
pub(super) fn pieces(meta: &Metadata, ino: u64, block: u64, len: u64) -> Result<Vec<Piece>> {
    let (mut found, mut at, end) = (Vec::new(), block, block + len);
    let first = from(meta, ino, block)?;
    let table = meta.txn.table(EXTENTS)?;
    let after = first.map_or(end, |extent| extent.end()).min(end);
    let rest = table.range((ino, after)..(ino, end)).map_err(fault)?.map(|row| {
        let (key, value) = row.map_err(fault)?;
        decode(meta, key.value(), value.value())
    });
    for extent in first.into_iter().map(Ok).chain(rest) {
        let extent = extent?;
        let (from, to) = (extent.block.max(at), extent.end().min(end));
        if from >= end {
            break;
        }
        if from > at {
            found.push(Piece { block: at, len: from - at, at: None });
        }
        if to > from {
            found.push(Piece { block: from, len: to - from, at: extent.at.map(|start| start + (from - extent.block)) });
            at = to;
        }
    }
    if at < end {
        found.push(Piece { block: at, len: end - at, at: None });
    }
    Ok(found)
}

/// The first block from `block` on that is a hole, or that is none, below `end`. None when there is none; an error is the block at which to go on, after
/// `max` extents.
pub(super) fn next(
    meta: &Metadata,
    ino: u64,
    block: u64,
    end: u64,
    hole: bool,
    max: usize,
) -> Result<std::result::Result<Option<u64>, u64>> {
    let Some(first) = from(meta, ino, block)? else { return Ok(Ok(hole.then_some(block))) };
    if !hole {
        return Ok(Ok(Some(first.block.max(block)).filter(|found| *found < end)));
    }
    let mut at = block;
    let table = meta.txn.table(EXTENTS)?;
    for row in table.range((ino, first.block)..(ino, end)).map_err(fault)?.take(max) {
        let (key, value) = row.map_err(fault)?;
        let extent = decode(meta, key.value(), value.value())?;
        if extent.block > at {
            return Ok(Ok(Some(at)));
        }
        at = extent.end();
    }
    let more = at < end && table.get((ino, at)).map_err(fault)?.is_some();
    Ok(if more { Err(at) } else { Ok(Some(at.min(end))) })
}

/// Where the block before `block` lies, if there is one: what follows best lies behind it.
pub(super) fn goal(meta: &Metadata, ino: u64, block: u64) -> Result<Option<u64>> {
    let Some(before) = block.checked_sub(1) else { return Ok(None) };
    let piece = from(meta, ino, before)?.filter(|extent| extent.block <= before);
    Ok(piece.and_then(|extent| extent.at.map(|at| at + (block - extent.block))))
}

/// Puts blocks into a hole. Joins what lies before, and behind.
pub(super) fn insert(meta: &mut Metadata, ino: u64, block: u64, run: Run) -> Result<()> {
    let before = match block.checked_sub(1) {
        Some(before) => from(meta, ino, before)?.filter(|extent| extent.end() == block),
        None => None,
    };
    let before = before.filter(|extent| extent.at.is_some_and(|at| at + extent.len == run.start));
    let behind = from(meta, ino, block + run.len)?;
    let behind = behind.filter(|extent| extent.block == block + run.len && extent.at == Some(run.end()));
    let mut table = meta.txn.change(EXTENTS)?;
    if behind.is_some() {
        table.remove((ino, block + run.len)).map_err(fault)?;
    }
    let (less, more) = (before.map_or(0, |extent| extent.len), behind.map_or(0, |extent| extent.len));
    table.insert((ino, block - less), (run.start - less, less + run.len + more)).map_err(fault)?;
    drop(table);
    meta.alloc.publish(&meta.txn, run)?;
    meta.counters.used += run.len;
    Ok(())
}

/// Makes a hole of `start..end`, at most `max` extents of it from its end: how many blocks were freed, and whether all of it is a hole now.
pub(super) fn cut(meta: &mut Metadata, ino: u64, start: u64, end: u64, max: usize) -> Result<(u64, bool)> {
    let mut touched: Vec<Piece> = Vec::new();
    {
        let table = meta.txn.table(EXTENTS)?;
        for row in table.range((ino, 0)..(ino, end)).map_err(fault)?.rev() {
            let (key, value) = row.map_err(fault)?;
            let extent = decode(meta, key.value(), value.value())?;
            if extent.end() <= start || touched.len() > max {
                break;
            }
            touched.push(extent);
        }
    }
    let done = touched.len() <= max;
    touched.truncate(max);
    let mut freed = Vec::new();
    let mut table = meta.txn.change(EXTENTS)?;
    for extent in touched {
        let at = extent.at.unwrap_or_default();
        let (from, to) = (extent.block.max(start), extent.end().min(end));
        if from > extent.block {
            table.insert((ino, extent.block), (at, from - extent.block)).map_err(fault)?;
        } else {
            table.remove((ino, extent.block)).map_err(fault)?;
        }
        if to < extent.end() {
            table.insert((ino, to), (at + (to - extent.block), extent.end() - to)).map_err(fault)?;
        }
        freed.push(Run { start: at + (from - extent.block), len: to - from });
    }
    drop(table);
    let mut blocks = 0;
    for run in freed {
        meta.alloc.free(&meta.txn, run)?;
        blocks += run.len;
    }
    meta.counters.used = meta.counters.used.saturating_sub(blocks);
    Ok((blocks, done))
}
