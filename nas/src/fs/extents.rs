//! Where the blocks of a file lie.

use redb::ReadableTable;

use crate::Result;
use crate::alloc::Run;
use crate::meta::tables::EXTENTS;
use crate::meta::txn::{Metadata, fault};

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

/// The extent that holds `block`, or the first after it.
fn from(meta: &Metadata, ino: u64, block: u64) -> Result<Option<Piece>> {
    let table = meta.txn.table(EXTENTS)?;
    let before = table.range((ino, 0)..=(ino, block)).map_err(fault)?.next_back();
    if let Some(row) = before {
        let (key, value) = row.map_err(fault)?;
        let (piece, start) = (key.value().1, value.value());
        if piece + start.1 > block {
            return Ok(Some(Piece { block: piece, len: start.1, at: Some(start.0) }));
        }
    }
    let after = table.range((ino, block)..=(ino, u64::MAX)).map_err(fault)?.next();
    let Some(row) = after else { return Ok(None) };
    let (key, value) = row.map_err(fault)?;
    let (at, len) = value.value();
    Ok(Some(Piece { block: key.value().1, len, at: Some(at) }))
}

/// All of `block..block + len`, in order, holes too.
pub(super) fn pieces(meta: &Metadata, ino: u64, block: u64, len: u64) -> Result<Vec<Piece>> {
    let (mut found, mut at, end) = (Vec::new(), block, block + len);
    let mut next = from(meta, ino, block)?;
    let table = meta.txn.table(EXTENTS)?;
    while at < end {
        let piece = match next {
            Some(extent) if extent.block <= at => {
                let skip = at - extent.block;
                Piece { block: at, len: (extent.len - skip).min(end - at), at: extent.at.map(|start| start + skip) }
            }
            Some(extent) => Piece { block: at, len: extent.block.min(end) - at, at: None },
            None => Piece { block: at, len: end - at, at: None },
        };
        found.push(piece);
        at = piece.end();
        if at < end && piece.at.is_some() {
            let row = table.range((ino, at)..=(ino, u64::MAX)).map_err(fault)?.next();
            next = match row {
                Some(row) => {
                    let (key, value) = row.map_err(fault)?;
                    let (start, len) = value.value();
                    Some(Piece { block: key.value().1, len, at: Some(start) })
                }
                None => None,
            };
        }
    }
    Ok(found)
}

/// The first piece from `block` on that is a hole, or that is none, at most up to `end`.
pub(super) fn next(meta: &Metadata, ino: u64, block: u64, end: u64, hole: bool) -> Result<Option<u64>> {
    let mut at = block;
    while at < end {
        let extent = from(meta, ino, at)?;
        match (extent, hole) {
            (Some(extent), false) => return Ok(Some(extent.block.max(at)).filter(|found| *found < end)),
            (None, false) => return Ok(None),
            (Some(extent), true) if extent.block <= at => at = extent.end(),
            (_, true) => return Ok(Some(at)),
        }
    }
    Ok(if hole { Some(end) } else { None })
}

/// Where the block before `block` lies, if there is one: what follows best lies behind it.
pub(super) fn goal(meta: &Metadata, ino: u64, block: u64) -> Result<Option<u64>> {
    let Some(before) = block.checked_sub(1) else { return Ok(None) };
    let piece = from(meta, ino, before)?.filter(|extent| extent.block <= before);
    Ok(piece.and_then(|extent| extent.at.map(|at| at + (block - extent.block))))
}

/// Puts blocks into a hole. Joins what lies before.
pub(super) fn insert(meta: &mut Metadata, ino: u64, block: u64, run: Run) -> Result<()> {
    let before = match block.checked_sub(1) {
        Some(before) => from(meta, ino, before)?.filter(|extent| extent.end() == block),
        None => None,
    };
    let mut table = meta.txn.change(EXTENTS)?;
    match before {
        Some(extent) if extent.at.is_some_and(|at| at + extent.len == run.start) => {
            table.insert((ino, extent.block), (run.start - extent.len, extent.len + run.len)).map_err(fault)?;
        }
        _ => {
            table.insert((ino, block), (run.start, run.len)).map_err(fault)?;
        }
    }
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
            let (at, len) = value.value();
            let extent = Piece { block: key.value().1, len, at: Some(at) };
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
