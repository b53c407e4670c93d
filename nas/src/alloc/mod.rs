//! Which blocks of the data volume are used.
//!
//! Blocks are given out in *allocation groups*; each has a bitmap of what is used in the open transaction, and one of what may not be given
//! out: that, and what was freed but not yet committed and discarded, and what was set aside and is not part of a file yet.

mod bitmap;

use redb::ReadableTable;
use rustc_hash::FxHashMap;

pub(crate) use self::bitmap::Bitmap;
use crate::meta::tables::GROUPS;
use crate::meta::txn::{Txn, fault};
use crate::planted::{Bug, active};
use crate::{Errno, Result};

/// Blocks of an allocation group: 32 MiB.
pub(crate) const GROUP_BLOCKS: u64 = 8192;

/// Bitmaps of groups that did not change and are kept in memory: 2 KiB each.
const KEPT_MAX: usize = 4096;

/// Groups looked into for room for all that is wanted, before the longest free run seen is taken.
const LOOK_MAX: u64 = 32;

/// Consecutive blocks on the data volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    pub start: u64,
    /// Never 0.
    pub len: u64,
}

impl Run {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len
    }
}

struct Group {
    /// What the open transaction says is used.
    used: Bitmap,
    /// What may not be given out.
    busy: Bitmap,
    /// `used` differs from the table.
    dirty: bool,
}

/// See the module.
pub(crate) struct Allocator {
    /// Blocks of the volume; those beyond the last are never given out.
    blocks: u64,
    groups: FxHashMap<u64, Group>,
    /// Groups known to have nothing to give out; looked at again when something in them is given back.
    full: FxHashMap<u64, ()>,
    /// Where the next new file goes.
    cursor: u64,
    /// Freed in the open transaction.
    freed: Vec<Run>,
    /// Freed by a commit, to be discarded before they are given out.
    to_discard: Vec<Run>,
}

/// The header's block belongs to no file.
pub(crate) const FIRST_BLOCK: u64 = 1;

impl Allocator {
    pub(crate) fn new(blocks: u64) -> Self {
        let (groups, full) = (FxHashMap::default(), FxHashMap::default());
        Self { blocks, groups, full, cursor: FIRST_BLOCK, freed: Vec::new(), to_discard: Vec::new() }
    }

    fn group(&mut self, txn: &Txn, index: u64) -> Result<&mut Group> {
        if !self.groups.contains_key(&index) {
            self.make_room();
            let used = match txn.table(GROUPS)?.get(index).map_err(fault)? {
                Some(bytes) => Bitmap::decode(bytes.value()).ok_or_else(|| {
                    tracing::error!(group = index, "a bitmap of the file system has a wrong length");
                    Errno::IO
                })?,
                None => Bitmap::default(),
            };
            let mut busy = used.clone();
            let start = index * GROUP_BLOCKS;
            if index == 0 {
                busy.set(0, FIRST_BLOCK);
            }
            let within = self.blocks.saturating_sub(start).min(GROUP_BLOCKS);
            busy.set(within, GROUP_BLOCKS - within);
            for run in self.freed.iter().chain(&self.to_discard) {
                debug_assert!(run.start / GROUP_BLOCKS != index, "a group with freed blocks was dropped: {run:?}");
            }
            self.groups.insert(index, Group { used, busy, dirty: false });
        }
        Ok(self.groups.get_mut(&index).expect("it was put there"))
    }

    /// Drops groups that are as the table has them, with nothing set aside or waiting.
    fn make_room(&mut self) {
        if self.groups.len() >= KEPT_MAX {
            let blocks = self.blocks;
            self.groups.retain(|index, group| {
                let outside = GROUP_BLOCKS - blocks.saturating_sub(index * GROUP_BLOCKS).min(GROUP_BLOCKS);
                let fixed = outside + if *index == 0 { FIRST_BLOCK } else { 0 };
                group.dirty || group.busy.count() != group.used.count() + fixed
            });
        }
    }

    /// Sets at most `want` consecutive blocks aside, at `goal` or soon after it if they are free. None when the volume is full.
    pub(crate) fn reserve(&mut self, txn: &Txn, goal: Option<u64>, want: u64) -> Result<Option<Run>> {
        let groups = self.blocks.div_ceil(GROUP_BLOCKS);
        let goal = goal.filter(|goal| *goal < self.blocks).unwrap_or(self.cursor);
        let (first, at) = (goal / GROUP_BLOCKS, goal % GROUP_BLOCKS);
        let mut best: Option<Run> = None;
        // The group of the goal comes twice: what lies after the goal first, all of it last.
        for (looked, step) in (0..=groups).enumerate() {
            let index = (first + step) % groups;
            if self.full.contains_key(&index) {
                continue;
            }
            let from = if step == 0 { at } else { 0 };
            let found = self.group(txn, index)?.busy.free_run(from, want);
            let Some((start, len)) = found else {
                if from == 0 {
                    self.full.insert(index, ());
                }
                continue;
            };
            let run = Run { start: index * GROUP_BLOCKS + start, len };
            if best.is_none_or(|best| best.len < run.len) {
                best = Some(run);
            }
            if run.len == want || run.start == goal || looked as u64 >= LOOK_MAX {
                break;
            }
        }
        let Some(run) = best else { return Ok(None) };
        self.group(txn, run.start / GROUP_BLOCKS)?.busy.set(run.start % GROUP_BLOCKS, run.len);
        self.cursor = if run.end() < self.blocks { run.end() } else { FIRST_BLOCK };
        Ok(Some(run))
    }

    /// Gives back what was set aside and not used.
    pub(crate) fn give_back(&mut self, run: Run) {
        let index = run.start / GROUP_BLOCKS;
        if let Some(group) = self.groups.get_mut(&index) {
            let at = run.start % GROUP_BLOCKS;
            debug_assert!(
                group.busy.all(at, run.len, true) && group.used.all(at, run.len, false),
                "{run:?} is not set aside"
            );
            group.busy.clear(at, run.len);
        }
        self.full.remove(&index);
    }

    /// Gives back what was set aside and may have been written.
    pub(crate) fn discard_first(&mut self, run: Run) {
        self.to_discard.push(run);
    }

    /// What was set aside is part of a file from the next commit on.
    pub(crate) fn publish(&mut self, txn: &Txn, run: Run) -> Result<()> {
        let group = self.group(txn, run.start / GROUP_BLOCKS)?;
        let at = run.start % GROUP_BLOCKS;
        debug_assert!(
            group.busy.all(at, run.len, true) && group.used.all(at, run.len, false),
            "{run:?} is not set aside"
        );
        group.used.set(at, run.len);
        group.dirty = true;
        Ok(())
    }

    /// No file has these blocks from the next commit on. They may lie in several groups.
    pub(crate) fn free(&mut self, txn: &Txn, run: Run) -> Result<()> {
        let mut at = run.start;
        while at < run.end() {
            let index = at / GROUP_BLOCKS;
            let len = (run.end() - at).min((index + 1) * GROUP_BLOCKS - at);
            let group = self.group(txn, index)?;
            debug_assert!(group.used.all(at % GROUP_BLOCKS, len, true), "{run:?} is not used");
            group.used.clear(at % GROUP_BLOCKS, len);
            group.dirty = true;
            if active(Bug::GivenOutEarly) {
                group.busy.clear(at % GROUP_BLOCKS, len);
                at += len;
                continue;
            }
            self.freed.push(Run { start: at, len });
            at += len;
        }
        Ok(())
    }

    /// Puts changed bitmaps into the transaction.
    pub(crate) fn write(&mut self, txn: &Txn) -> Result<()> {
        let mut table = txn.table(GROUPS)?;
        for (index, group) in self.groups.iter_mut().filter(|(_, group)| group.dirty) {
            if active(Bug::BitmapsLeftOut) {
            } else if group.used.count() == 0 {
                table.remove(index).map_err(fault)?;
            } else {
                table.insert(index, group.used.encode().as_slice()).map_err(fault)?;
            }
            group.dirty = false;
        }
        Ok(())
    }

    /// The transaction is committed: what it freed may be discarded.
    pub(crate) fn committed(&mut self) {
        self.to_discard.append(&mut self.freed);
    }

    /// What is to be discarded and then handed to [`Allocator::discarded`], neighbours as one run within a group.
    pub(crate) fn take_to_discard(&mut self) -> Vec<Run> {
        let mut runs = std::mem::take(&mut self.to_discard);
        runs.sort_unstable();
        runs.dedup_by(|next, run| {
            let joined = run.end() == next.start && run.start / GROUP_BLOCKS == next.start / GROUP_BLOCKS;
            if joined {
                run.len += next.len;
            }
            joined
        });
        runs
    }

    pub(crate) fn discarded(&mut self, runs: &[Run]) {
        for run in runs {
            self.give_back(*run);
        }
    }

    /// The volume has grown.
    pub(crate) fn grow(&mut self, blocks: u64) {
        let old = self.blocks;
        self.blocks = blocks.max(old);
        let last = old / GROUP_BLOCKS;
        self.full.remove(&last);
        if let Some(group) = self.groups.get_mut(&last) {
            let from = old % GROUP_BLOCKS;
            let to = (self.blocks - last * GROUP_BLOCKS).min(GROUP_BLOCKS);
            group.busy.clear(from, to - from);
        }
    }
}

#[cfg(test)]
mod tests;
