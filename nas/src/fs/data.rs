//! The content of files.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::FileSystem;
use super::acl::ACCESS;
use super::extents::{self, Piece};
use super::nodes::Node;
use crate::alloc::Run;
use crate::meta::attr::{Attr, Kind, Time};
use crate::meta::tables::{ORPHANS, XATTRS};
use crate::meta::txn::{Metadata, fault};
use crate::planted::{Bug, active};
use crate::{BLOCK, Errno, Result};

/// Largest file, in bytes: what `off_t` can say, in whole blocks.
pub(crate) const SIZE_MAX: u64 = (i64::MAX as u64) / BLOCK * BLOCK;

/// Longest piece that is moved at once, in bytes.
const CHUNK: u64 = 1 << 20;

/// Blocks given out in one change of the metadata.
const BATCH_BLOCKS: u64 = 8192;

/// Extents taken away in one change of the metadata.
pub(super) const CUT_MAX: usize = 1000;

/// Blocks set aside behind a file that grows: as many as it has, within these bounds.
const WINDOW_BLOCKS: Range<u64> = 8..2048;

/// What `fallocate` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Gives blocks to holes; the file grows unless `keep_size`.
    Allocate {
        /// The size stays.
        keep_size: bool,
    },
    /// Takes blocks away; what is left of the range reads as zeroes.
    PunchHole,
    /// The range reads as zeroes and has blocks.
    ZeroRange {
        /// The size stays.
        keep_size: bool,
    },
}

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// Bytes that have blocks.
    Data,
    /// Bytes that have none, or the end.
    Hole,
}

/// Attributes to be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permissions with set-user-ID, set-group-ID and sticky bit.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<Time>,
    /// Last change of content.
    pub mtime: Option<Time>,
}

/// The blocks that a range of bytes touches: the first, and how many.
fn blocks_of(offset: u64, len: u64) -> (u64, u64) {
    let first = offset / BLOCK;
    (first, (offset + len).div_ceil(BLOCK) - first)
}

/// Blocks set aside for a piece of a hole.
struct Given {
    block: u64,
    run: Run,
}

impl FileSystem {
    fn file(&self, ino: u64) -> Result<Arc<Node>> {
        let node = self.node(ino)?;
        match node.state.lock().attr.kind {
            Kind::File => {}
            Kind::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        Ok(node)
    }

    fn pieces(&self, ino: u64, offset: u64, len: u64) -> Result<Vec<Piece>> {
        let (block, count) = blocks_of(offset, len);
        self.look(|meta| extents::pieces(meta, ino, block, count))
    }

    /// At most `len` bytes from `offset` on; fewer at the end of the file.
    pub fn read(&self, ino: u64, offset: u64, len: usize) -> Result<Bytes> {
        let node = self.file(ino)?;
        let content = node.content.read();
        let size = node.state.lock().attr.size;
        let len = size.saturating_sub(offset).min(len as u64);
        if len == 0 {
            return Ok(Bytes::new());
        }
        let pieces = self.pieces(ino, offset, len)?;
        let data = self.read_pieces(&pieces, offset, len)?;
        drop(content);
        self.accessed(&node);
        Ok(data)
    }

    fn read_pieces(&self, pieces: &[Piece], offset: u64, len: u64) -> Result<Bytes> {
        let clip = |piece: &Piece| {
            let from = (piece.block * BLOCK).max(offset);
            (from, (piece.end() * BLOCK).min(offset + len) - from)
        };
        let ranges: Vec<(u64, usize)> = pieces
            .iter()
            .filter_map(|piece| {
                let (from, len) = clip(piece);
                piece.at.map(|at| (at * BLOCK + (from - piece.block * BLOCK), len as usize))
            })
            .collect();
        let mut read = self.pair.data.read_all(&ranges).map_err(data_error)?.into_iter();
        if pieces.len() == 1 && ranges.len() == 1 {
            return read.next().ok_or(Errno::IO);
        }
        let mut out = BytesMut::with_capacity(len as usize);
        for piece in pieces {
            match piece.at {
                Some(_) => out.extend_from_slice(&read.next().ok_or(Errno::IO)?),
                None => out.resize(out.len() + clip(piece).1 as usize, 0),
            }
        }
        Ok(out.freeze())
    }

    /// A read changes the time of the last one if that is older than the last change, or a day.
    fn accessed(&self, node: &Arc<Node>) {
        if self.read_only {
            return;
        }
        let now = self.now();
        let attr = node.state.lock().attr;
        if attr.atime <= attr.mtime || attr.atime <= attr.ctime || now.s - attr.atime.s >= 86_400 {
            self.touch(node, |attr| attr.atime = now);
        }
    }

    /// Writes `data`, and gives how much of it: less than all only when an error came up after a part. The file grows if need be; what lies between its end and
    /// `offset` becomes zeroes.
    pub fn write(&self, ino: u64, offset: u64, data: &Bytes) -> Result<usize> {
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > SIZE_MAX) {
            return Err(Errno::FBIG);
        }
        if self.read_only {
            return Err(Errno::ROFS);
        }
        let node = self.file(ino)?;
        let mut at = 0;
        while at < data.len() {
            let from = offset + at as u64;
            let len = (CHUNK - from % CHUNK).min((data.len() - at) as u64);
            match self.write_chunk(&node, from, data.slice(at..at + len as usize)) {
                Ok(()) => at += len as usize,
                Err(_) if at > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(at)
    }

    fn write_chunk(&self, node: &Arc<Node>, offset: u64, data: Bytes) -> Result<()> {
        let end = offset + data.len() as u64;
        {
            let _content = node.content.read();
            let size = node.state.lock().attr.size;
            if end <= size {
                let pieces = self.pieces(node.ino, offset, data.len() as u64)?;
                if pieces.iter().all(|piece| piece.at.is_some()) {
                    self.pair.data.write_all(in_place(&pieces, offset, &data)).map_err(data_error)?;
                    let now = self.now();
                    self.touch(node, |attr| (attr.mtime, attr.ctime) = (now, now));
                    return Ok(());
                }
            }
        }
        let _content = node.content.write();
        if node.state.lock().dead {
            return Err(Errno::STALE);
        }
        let size = node.state.lock().attr.size;
        if offset > size {
            self.zero_mapped(node.ino, size, offset)?;
        }
        let pieces = self.pieces(node.ino, offset, data.len() as u64)?;
        let given = self.give(node, &pieces, end >= size)?;
        let mut writes = in_place(&pieces, offset, &data);
        writes.extend(given.iter().map(|given| filled(given, offset, &data)));
        if active(Bug::NotWrittenFirst) {
            self.publish(node, &given, Some(end))?;
            self.commit_changes()?;
            return self.pair.data.write_all(writes).map_err(data_error);
        }
        self.fill(node, &given, |fs| fs.pair.data.write_all(writes))?;
        self.publish(node, &given, Some(end))
    }

    /// Brings content to blocks set aside; they are given back if that fails.
    fn fill(
        &self,
        node: &Arc<Node>,
        given: &[Given],
        write: impl FnOnce(&Self) -> blockdev::error::Result<()>,
    ) -> Result<()> {
        write(self).map_err(|error| {
            let mut meta = self.meta.lock();
            // Some of them may have been written: they are discarded first.
            given.iter().for_each(|given| meta.alloc.discard_first(given.run));
            if let Some(window) = node.state.lock().window.take() {
                meta.alloc.give_back(window);
            }
            data_error(error)
        })
    }

    /// Blocks that were set aside and written are the file's, whose end is at least `end` now.
    fn publish(&self, node: &Arc<Node>, given: &[Given], end: Option<u64>) -> Result<()> {
        self.change(|meta| {
            for given in given {
                extents::insert(meta, node.ino, given.block, given.run)?;
            }
            let now = self.now();
            self.moved(meta, node);
            self.touch(node, |attr| {
                attr.size = attr.size.max(end.unwrap_or(0));
                attr.blocks += given.iter().map(|given| given.run.len).sum::<u64>();
                (attr.mtime, attr.ctime) = (now, now);
            });
            Ok(())
        })
    }

    /// Size or blocks of a file change with the open transaction.
    fn moved(&self, meta: &Metadata, node: &Node) {
        node.state.lock().moved = meta.counters.commits + 1;
    }

    /// Sets blocks aside for all holes among `pieces`, and some more behind them for a file that grows.
    fn give(&self, node: &Arc<Node>, pieces: &[Piece], grows: bool) -> Result<Vec<Given>> {
        let holes = || pieces.iter().filter(|piece| piece.at.is_none());
        if holes().next().is_none() {
            return Ok(Vec::new());
        }
        for last in [false, true] {
            let given = self.look(|meta| {
                let mut given = Vec::new();
                for hole in holes() {
                    if !self.give_hole(meta, node, hole, grows && !last, &mut given)? {
                        for given in given {
                            meta.alloc.give_back(given.run);
                        }
                        return Ok(None);
                    }
                }
                Ok(Some(given))
            })?;
            match given {
                Some(given) => return Ok(given),
                None if last => break,
                // What others have set aside, and what was deleted and is not freed or not discarded yet, may be enough.
                None => {
                    self.give_back_windows();
                    self.reap_orphans()?;
                    self.commit_changes()?;
                    self.discard_freed()?;
                }
            }
        }
        Err(Errno::NOSPC)
    }

    fn give_hole(
        &self,
        meta: &mut Metadata,
        node: &Arc<Node>,
        hole: &Piece,
        ahead: bool,
        given: &mut Vec<Given>,
    ) -> Result<bool> {
        let goal = match given.last() {
            Some(last) if last.block + last.run.len == hole.block => Some(last.run.end()),
            _ => extents::goal(meta, node.ino, hole.block)?,
        };
        let (mut block, mut left, mut goal) = (hole.block, hole.len, goal);
        let window = node.state.lock().window.take();
        if let Some(window) = window {
            if goal.is_none_or(|goal| goal == window.start) {
                let len = window.len.min(left);
                given.push(Given { block, run: Run { start: window.start, len } });
                (block, left, goal) = (block + len, left - len, Some(window.start + len));
                if len < window.len {
                    node.state.lock().window = Some(Run { start: window.start + len, len: window.len - len });
                }
            } else {
                meta.alloc.give_back(window);
            }
        }
        while left > 0 {
            let more = if ahead { block.clamp(WINDOW_BLOCKS.start, WINDOW_BLOCKS.end) } else { 0 };
            let Some(run) = meta.alloc.reserve(&meta.txn, goal, left + more)? else { return Ok(false) };
            let len = run.len.min(left);
            given.push(Given { block, run: Run { start: run.start, len } });
            if len < run.len {
                node.state.lock().window = Some(Run { start: run.start + len, len: run.len - len });
            }
            (block, left, goal) = (block + len, left - len, Some(run.start + len));
        }
        Ok(true)
    }

    /// Zeroes what has blocks in `start..end`. Beyond the end of a file they may hold anything: what was written there before a crash, and not
    /// committed. So what becomes part of a file and is not written goes through here.
    fn zero_mapped(&self, ino: u64, start: u64, end: u64) -> Result<()> {
        if start >= end || active(Bug::NotZeroed) {
            return Ok(());
        }
        let mut at = start;
        while at < end {
            // A part after the other: a file may have many extents. But a hole is one, however large.
            let part = self.pieces(ino, at, (end - at).min(BATCH_BLOCKS * BLOCK))?;
            for piece in part {
                if let Some(block) = piece.at {
                    let (from, to) = ((piece.block * BLOCK).max(at), (piece.end() * BLOCK).min(end));
                    let offset = block * BLOCK + (from - piece.block * BLOCK);
                    self.pair.data.write_zeroes(offset, to - from).map_err(data_error)?;
                }
            }
            at = (at + BATCH_BLOCKS * BLOCK) / BLOCK * BLOCK;
            let next = self.look(|meta| extents::next(meta, ino, at / BLOCK, u64::MAX, false, 1))?;
            at = match next {
                Ok(Some(block)) => at.max(block.saturating_mul(BLOCK)),
                _ => end,
            };
        }
        Ok(())
    }

    /// Changes attributes, the size among them.
    pub fn setattr(&self, ino: u64, set: &SetAttr) -> Result<Attr> {
        if self.read_only {
            return Err(Errno::ROFS);
        }
        if let Some(size) = set.size {
            self.truncate(ino, size)?;
        }
        let node = self.node(ino)?;
        self.change(|meta| {
            if node.state.lock().dead {
                return Err(Errno::STALE);
            }
            if let Some(mode) = set.mode
                && let Some(list) = self.list_in(meta, ino, ACCESS)?
            {
                let value = list.with_mode(mode).encode();
                meta.txn.change(XATTRS)?.insert((ino, ACCESS), value.as_slice()).map_err(fault)?;
            }
            let now = self.now();
            Ok(self.touch(&node, |attr| {
                attr.mode = set.mode.map_or(attr.mode, |mode| mode & 0o7777);
                attr.uid = set.uid.unwrap_or(attr.uid);
                attr.gid = set.gid.unwrap_or(attr.gid);
                attr.atime = set.atime.unwrap_or(attr.atime);
                attr.mtime = set.mtime.unwrap_or(attr.mtime);
                attr.ctime = now;
            }))
        })
    }

    fn truncate(&self, ino: u64, size: u64) -> Result<()> {
        if size > SIZE_MAX {
            return Err(Errno::FBIG);
        }
        let node = self.file(ino)?;
        let _content = node.content.write();
        let old = node.state.lock().attr.size;
        if size > old {
            self.zero_mapped(ino, old, size)?;
        }
        let window = node.state.lock().window.take();
        let now = self.now();
        let mut first = true;
        loop {
            let done = self.change(|meta| {
                if node.state.lock().dead {
                    return Err(Errno::STALE);
                }
                if let Some(window) = window.filter(|_| first) {
                    meta.alloc.give_back(window);
                }
                // Of a file that does not get smaller, too: what was given to it beyond its end is taken away.
                let (freed, done) = extents::cut(meta, ino, size.div_ceil(BLOCK), u64::MAX, CUT_MAX)?;
                let nameless = node.state.lock().attr.nlink == 0;
                if !done && first {
                    self.orphan(meta, ino)?;
                } else if done && !first && !nameless {
                    meta.txn.change(ORPHANS)?.remove(ino).map_err(fault)?;
                }
                self.moved(meta, &node);
                self.touch(&node, |attr| {
                    attr.size = size;
                    attr.blocks = attr.blocks.saturating_sub(freed);
                    if first {
                        (attr.mtime, attr.ctime) = (now, now);
                    }
                });
                Ok(done)
            })?;
            if done {
                return Ok(());
            }
            first = false;
        }
    }

    /// Gives blocks to a range, or takes them away.
    pub fn fallocate(&self, ino: u64, what: Fallocate, offset: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(Errno::ROFS);
        }
        let end = offset.checked_add(len).filter(|end| *end <= SIZE_MAX).ok_or(Errno::FBIG)?;
        if len == 0 {
            return Err(Errno::INVAL);
        }
        let node = self.file(ino)?;
        // Before all that is left goes to one file that cannot have what it asks for.
        let most = self.space().free + node.state.lock().attr.blocks;
        if what != Fallocate::PunchHole && end.div_ceil(BLOCK) - offset / BLOCK > most {
            return Err(Errno::NOSPC);
        }
        let _content = node.content.write();
        if node.state.lock().dead {
            return Err(Errno::STALE);
        }
        let size = node.state.lock().attr.size;
        match what {
            Fallocate::PunchHole => self.punch(&node, offset, end),
            Fallocate::Allocate { keep_size } | Fallocate::ZeroRange { keep_size } => {
                if end > size && !keep_size {
                    self.zero_mapped(ino, size, end)?;
                }
                if matches!(what, Fallocate::ZeroRange { .. }) {
                    self.zero_mapped(ino, offset, end.min(size))?;
                }
                let (mut block, last) = (offset / BLOCK, end.div_ceil(BLOCK));
                while block < last {
                    let len = BATCH_BLOCKS.min(last - block);
                    self.allocate(&node, block, len)?;
                    block += len;
                }
                self.publish(&node, &[], (!keep_size).then_some(end))
            }
        }
    }

    /// Gives blocks of zeroes to the holes of a range of blocks.
    fn allocate(&self, node: &Arc<Node>, block: u64, len: u64) -> Result<()> {
        let pieces = self.look(|meta| extents::pieces(meta, node.ino, block, len))?;
        let given = self.give(node, &pieces, false)?;
        self.fill(node, &given, |fs| {
            given.iter().try_for_each(|given| fs.pair.data.write_zeroes(given.run.start * BLOCK, given.run.len * BLOCK))
        })?;
        self.publish(node, &given, None)
    }

    fn punch(&self, node: &Arc<Node>, offset: u64, end: u64) -> Result<()> {
        let (first, last) = (offset.div_ceil(BLOCK), end / BLOCK);
        // What lies beyond the end is nobody's to see, except in an older commit.
        let size = node.state.lock().attr.size;
        if first > last {
            self.zero_mapped(node.ino, offset, end.min(size))?;
        } else {
            self.zero_mapped(node.ino, offset, (first * BLOCK).min(size))?;
            self.zero_mapped(node.ino, last * BLOCK, end.min(size))?;
        }
        let now = self.now();
        loop {
            let done = self.change(|meta| {
                let (freed, done) = match first < last {
                    true => extents::cut(meta, node.ino, first, last, CUT_MAX)?,
                    false => (0, true),
                };
                self.moved(meta, node);
                self.touch(node, |attr| {
                    attr.blocks = attr.blocks.saturating_sub(freed);
                    (attr.mtime, attr.ctime) = (now, now);
                });
                Ok(done)
            })?;
            if done {
                return Ok(());
            }
        }
    }

    /// Where the next data or hole is, from `offset` on. ENXIO when there is none.
    pub fn seek(&self, ino: u64, offset: u64, whence: Whence) -> Result<u64> {
        let node = self.file(ino)?;
        let _content = node.content.read();
        let size = node.state.lock().attr.size;
        if offset >= size {
            return Err(Errno::NXIO);
        }
        let hole = whence == Whence::Hole;
        let (mut block, end) = (offset / BLOCK, size.div_ceil(BLOCK));
        let found = loop {
            match self.look(|meta| extents::next(meta, ino, block, end, hole, CUT_MAX))? {
                Ok(found) => break found,
                Err(at) => block = at,
            }
        };
        match found {
            Some(block) => Ok((block * BLOCK).clamp(offset, size)),
            None => Err(Errno::NXIO),
        }
    }

    /// Copies a range from one file to another, or within one; gives the bytes copied, fewer at the end of the source. What is equal is stored once.
    pub fn copy_range(&self, from: u64, offset: u64, to: u64, to_offset: u64, len: u64) -> Result<u64> {
        if from == to && offset < to_offset.saturating_add(len) && to_offset < offset.saturating_add(len) {
            return Err(Errno::INVAL);
        }
        let mut copied = 0;
        while copied < len {
            let data = self.read(from, offset + copied, CHUNK.min(len - copied) as usize)?;
            if data.is_empty() {
                break;
            }
            match self.write(to, to_offset.saturating_add(copied), &data) {
                Ok(written) => copied += written as u64,
                Err(_) if copied > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(copied)
    }

    /// Makes a file durable: its content, and, unless `data_only`, all of its attributes; also its name.
    pub fn fsync(&self, ino: u64, data_only: bool) -> Result<()> {
        let node = self.node(ino)?;
        let moved = node.state.lock().moved;
        let committed = data_only && {
            let meta = self.meta.lock();
            if meta.failed {
                return Err(Errno::IO);
            }
            moved <= meta.counters.commits || active(Bug::FdatasyncWithoutSize)
        };
        if !committed && !active(Bug::FsyncNotCommitted) {
            self.commit_changes()?;
        }
        self.flush_volume()
    }
}

/// The writes to blocks that the file has.
fn in_place(pieces: &[Piece], offset: u64, data: &Bytes) -> Vec<(u64, Bytes)> {
    let end = offset + data.len() as u64;
    let write = |piece: &Piece| {
        let at = piece.at?;
        let (from, to) = ((piece.block * BLOCK).max(offset), (piece.end() * BLOCK).min(end));
        let bytes = data.slice((from - offset) as usize..(to - offset) as usize);
        Some((at * BLOCK + (from - piece.block * BLOCK), bytes))
    };
    pieces.iter().filter_map(write).collect()
}

/// The write to blocks set aside: all of them, with zeroes where `data` does not reach.
fn filled(given: &Given, offset: u64, data: &Bytes) -> (u64, Bytes) {
    let (start, end) = (given.block * BLOCK, (given.block + given.run.len) * BLOCK);
    let (from, to) = (start.max(offset), end.min(offset + data.len() as u64));
    let part = data.slice((from - offset) as usize..(to - offset) as usize);
    if (from, to) == (start, end) {
        return (given.run.start * BLOCK, part);
    }
    let mut whole = BytesMut::zeroed((end - start) as usize);
    whole[(from - start) as usize..(to - start) as usize].copy_from_slice(&part);
    (given.run.start * BLOCK, whole.freeze())
}

/// What an error of the data volume is to a caller.
pub(super) fn data_error(error: blockdev::error::Error) -> Errno {
    let errno = Errno::from_raw_os_error(blockdev::frontend::errno::errno(error.kind()));
    if errno != Errno::NOSPC {
        tracing::error!(%error, "the data volume of a file system");
    }
    errno
}
