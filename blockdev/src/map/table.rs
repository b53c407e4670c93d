//! The block table: virtual block → place, reference count, checksum. An array in pages, found through a two-level directory.
//!
//! Invariant: a dirty table page has a resident, dirty directory page above it, so that a checkpoint can write both as they
//! were at one instant without loading anything.
//!
//! A freed entry keeps the number of the checkpoint interval it was freed in and is not handed out again before that
//! checkpoint is durable and every reader that could still hold its number has gone ([`BlockTable::release`]).

use std::collections::BTreeSet;

use super::cache::PageCache;
use super::{Miss, Need};
use crate::format::page::{BlockEntry, DIRECTORY_FANOUT, DirectoryPage, PagePtr, TABLE_FANOUT, TablePage};
use crate::units::VirtualBlock;

const FANOUT: u64 = TABLE_FANOUT as u64;
const DIR_FANOUT: u64 = DIRECTORY_FANOUT as u64;
/// A page is searched for free entries only when it has at least this many.
const REUSE_MIN: u32 = 32;
/// Pages searched in vain before the table grows instead.
const FRUITLESS_MAX: usize = 8;
/// Pages looked at for reuse before the table grows instead.
const REUSE_STEPS: u64 = 64;

/// The block table.
pub struct BlockTable {
    /// Table pages by index.
    pub pages: PageCache<TablePage>,
    /// Directory pages by index.
    pub directory: PageCache<DirectoryPage>,
    /// Pointers to directory pages.
    pub roots: Vec<PagePtr>,
    /// Entries, used or free; a multiple of a page.
    pub len: u64,
    /// Number of the running checkpoint interval.
    pub interval: u32,
    /// Entries freed in intervals before this one may be reused.
    released: u32,
    /// Where allocation goes on: page and slot.
    cursor: (u64, usize),
    /// Where the search for reusable pages goes on.
    search: u64,
    /// Pages that gave blocks which nobody has written to yet: they look free and must not be searched again.
    handed_out: Vec<u64>,
    /// Table pages and directory pages that could not be read. Their entries are left alone: what is released there stays counted, and
    /// nothing is given out from there.
    lost: (BTreeSet<u64>, BTreeSet<u64>),
}

/// Index of the table page of a block.
pub fn page_of(block: VirtualBlock) -> u64 {
    block.0 / FANOUT
}

/// Slot of a block in its table page.
pub fn slot_of(block: VirtualBlock) -> usize {
    (block.0 % FANOUT) as usize
}

impl BlockTable {
    /// A table as a checkpoint of number `checkpoint` left it.
    pub fn new(roots: Vec<PagePtr>, len: u64, checkpoint: u64) -> Self {
        let interval = checkpoint as u32 + 1;
        Self {
            pages: PageCache::default(),
            directory: PageCache::default(),
            roots,
            len,
            interval,
            released: interval,
            cursor: (u64::MAX, TABLE_FANOUT),
            search: 0,
            handed_out: Vec::new(),
            lost: Default::default(),
        }
    }

    /// Notes whether a table page could be read.
    pub fn set_page_lost(&mut self, page: u64, lost: bool) {
        if lost {
            self.lost.0.insert(page)
        } else {
            self.lost.0.remove(&page)
        };
    }

    /// Notes whether a directory page could be read.
    pub fn set_directory_lost(&mut self, directory: u64, lost: bool) {
        if lost {
            self.lost.1.insert(directory)
        } else {
            self.lost.1.remove(&directory)
        };
    }

    /// What could not be read may be there again.
    pub fn forget_lost(&mut self) {
        self.lost = Default::default();
    }

    /// Pages that could not be read.
    pub fn lost(&self) -> usize {
        self.lost.0.len() + self.lost.1.len()
    }

    fn is_page_lost(&self, page: u64) -> bool {
        self.lost() > 0 && (self.lost.0.contains(&page) || self.lost.1.contains(&(page / DIR_FANOUT)))
    }

    /// Whether the entry of a block lies in a page that could not be read.
    pub fn is_lost(&self, block: VirtualBlock) -> bool {
        self.is_page_lost(page_of(block))
    }

    fn root(&self, directory: u64) -> PagePtr {
        self.roots.get(directory as usize).copied().unwrap_or_default()
    }

    /// Pointer to a table page.
    pub fn pointer(&self, page: u64) -> Need<PagePtr> {
        let (directory, slot) = (page / DIR_FANOUT, (page % DIR_FANOUT) as usize);
        match self.directory.get(directory) {
            Some(d) => Ok(d.0[slot]),
            None if self.root(directory).is_none() => Ok(PagePtr::default()),
            None => Err(Miss::Directory(directory)),
        }
    }

    /// The entry of a block; the default (free) entry where the table was never written.
    pub fn entry(&self, block: VirtualBlock) -> Need<BlockEntry> {
        let page = page_of(block);
        match self.pages.get(page) {
            Some(p) => Ok(p.0[slot_of(block)]),
            None if self.pointer(page)?.is_none() => Ok(BlockEntry::default()),
            None => Err(Miss::Table(page)),
        }
    }

    /// What [`Self::ensure`] would ask for.
    pub fn lacks(&self, block: VirtualBlock) -> Option<Miss> {
        let page = page_of(block);
        let directory = page / DIR_FANOUT;
        if !self.directory.contains(directory) {
            return (!self.root(directory).is_none()).then_some(Miss::Directory(directory));
        }
        let stored = !self.pages.contains(page) && self.pointer(page).is_ok_and(|p| !p.is_none());
        stored.then_some(Miss::Table(page))
    }

    /// Makes the pages above and of `block` resident, creating them where nothing was ever written.
    pub fn ensure(&mut self, block: VirtualBlock) -> Need<()> {
        let page = page_of(block);
        let directory = page / DIR_FANOUT;
        if !self.directory.contains(directory) {
            if !self.root(directory).is_none() {
                return Err(Miss::Directory(directory));
            }
            self.directory.insert_clean(directory, DirectoryPage::default());
        }
        if !self.pages.contains(page) {
            if !self.pointer(page)?.is_none() {
                return Err(Miss::Table(page));
            }
            self.pages.insert_clean(page, TablePage::default());
        }
        Ok(())
    }

    /// As [`Self::ensure`], for one of several blocks: those in the page `last` are known to be there.
    pub fn ensure_another(&mut self, block: VirtualBlock, last: &mut u64) -> Need<()> {
        if page_of(block) != *last {
            self.ensure(block)?;
            *last = page_of(block);
        }
        Ok(())
    }

    /// As [`Self::ensure_another`], for a block that is to be released: where its entry is lost nothing is needed.
    pub fn ensure_released(&mut self, block: VirtualBlock, last: &mut u64) -> Need<()> {
        if self.is_lost(block) { Ok(()) } else { self.ensure_another(block, last) }
    }

    /// Changes an entry by `change`; [`Self::ensure`] must have been called. Keeps the counts of used entries.
    pub fn update<T>(&mut self, block: VirtualBlock, change: impl FnOnce(&mut BlockEntry) -> T) -> Need<T> {
        let page = page_of(block);
        let (directory, slot) = (page / DIR_FANOUT, (page % DIR_FANOUT) as usize);
        let dirty = match self.pages.get_dirty(page) {
            Some(_) => true,
            None => {
                self.ensure(block)?;
                self.len = self.len.max((page + 1) * FANOUT);
                if self.roots.len() <= directory as usize {
                    self.roots.resize(directory as usize + 1, PagePtr::default());
                }
                false
            }
        };
        let entries = self.pages.get_mut(page).ok_or(Miss::Table(page))?;
        let entry = &mut entries.0[slot_of(block)];
        let before = entry.refcount > 0;
        let out = change(entry);
        let after = entry.refcount > 0;
        // Above a dirty page all is dirty, and of the size it must have.
        if !dirty || before != after {
            let pointers = self.directory.get_mut(directory).ok_or(Miss::Directory(directory))?;
            for used in [&mut pointers.0[slot].used, &mut self.roots[directory as usize].used] {
                *used = used.wrapping_add(u32::from(after)).wrapping_sub(u32::from(before));
            }
        }
        Ok(out)
    }

    /// Replaces an entry without making its page dirty; see [`PageCache::patch`]. The count of used entries must not change.
    pub fn patch(&mut self, block: VirtualBlock, entry: BlockEntry) -> Need<()> {
        let page = page_of(block);
        self.pages.patch(page).ok_or(Miss::Table(page))?.0[slot_of(block)] = entry;
        Ok(())
    }

    /// Marks the page of a block dirty, so that the next checkpoint writes it.
    pub fn touch(&mut self, block: VirtualBlock) -> Need<()> {
        self.update(block, |_| ())
    }

    /// Entries in use.
    pub fn used(&self) -> u64 {
        self.roots.iter().map(|r| u64::from(r.used)).sum()
    }

    /// Appends `count` free blocks to `out`. They stay free in the table until they are written to; the caller must use them
    /// before anybody else allocates.
    pub fn allocate(&mut self, count: usize, out: &mut Vec<VirtualBlock>) -> Need<()> {
        let target = out.len() + count;
        // Pages that look free but whose entries may not be reused yet are not looked at for ever.
        let mut fruitless = 0;
        while out.len() < target {
            let (page, from) = self.cursor;
            if from >= TABLE_FANOUT {
                let next = self.next_page(fruitless < FRUITLESS_MAX)?;
                fruitless += 1;
                self.handed_out.push(next);
                self.cursor = (next, 0);
                continue;
            }
            if self.is_page_lost(page) {
                self.cursor.1 = TABLE_FANOUT;
                continue;
            }
            self.ensure(VirtualBlock(page * FANOUT))?;
            let released = self.released;
            let entries = self.pages.get(page).ok_or(Miss::Table(page))?;
            let found = (from..TABLE_FANOUT).find(|&slot| {
                let e = &entries.0[slot];
                e.refcount == 0 && e.interval < released && (page, slot) != (0, 0)
            });
            match found {
                Some(slot) => {
                    self.cursor.1 = slot + 1;
                    fruitless = 0;
                    out.push(VirtualBlock(page * FANOUT + slot as u64));
                }
                None => self.cursor.1 = TABLE_FANOUT,
            }
        }
        Ok(())
    }

    /// What was allocated has been written to, or never will be.
    pub fn settle_allocations(&mut self) {
        self.handed_out.clear();
        self.handed_out.push(self.cursor.0);
    }

    /// A page with enough free entries when a good part of the table is free, else a new page at its end.
    fn next_page(&mut self, reuse: bool) -> Need<u64> {
        let pages = self.len / FANOUT;
        if reuse && pages > 0 && self.used() * 4 < self.len * 3 {
            for step in 0..REUSE_STEPS.min(pages) {
                let page = (self.search + step) % pages;
                if !self.handed_out.contains(&page)
                    && !self.is_page_lost(page)
                    && self.pointer(page)?.used + REUSE_MIN <= TABLE_FANOUT as u32
                {
                    self.search = (page + 1) % pages;
                    return Ok(page);
                }
            }
            self.search = (self.search + REUSE_STEPS) % pages;
        }
        self.len += FANOUT;
        Ok(pages)
    }

    /// Begins a new checkpoint interval; returns the one that ended.
    pub fn next_interval(&mut self) -> u32 {
        self.interval += 1;
        self.interval - 1
    }

    /// Lets entries be reused that were freed in `interval` or before: its checkpoint is durable and its readers are gone.
    pub fn release(&mut self, interval: u32) {
        self.released = self.released.max(interval + 1);
    }
}
