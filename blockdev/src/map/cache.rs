//! A cache of metadata pages with dirty tracking, freezing for checkpoints, and clock eviction of clean pages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustc_hash::FxHashMap;

use super::ghosts::Ghosts;

struct Slot<P> {
    page: Arc<P>,
    dirty: bool,
    /// Being written by a checkpoint: its new place is not yet known, so it must not be evicted.
    frozen: bool,
    used: AtomicBool,
}

/// Pages by key.
pub struct PageCache<P> {
    slots: FxHashMap<u64, Slot<P>>,
    dirty: Vec<u64>,
    frozen: usize,
    clock: VecDeque<u64>,
    ghosts: Ghosts<u64>,
    /// Evicted pages that are remembered.
    remembered: usize,
}

/// Clean pages that are left resident beside those that cannot be evicted: more than any single question or change needs at once.
const CLEAN_MIN: usize = 2048;

impl<P> Default for PageCache<P> {
    fn default() -> Self {
        Self {
            slots: FxHashMap::default(),
            dirty: Vec::new(),
            frozen: 0,
            clock: VecDeque::new(),
            ghosts: Ghosts::default(),
            remembered: 0,
        }
    }
}

impl<P: Clone> PageCache<P> {
    /// The page, if resident.
    pub fn get(&self, key: u64) -> Option<&P> {
        let slot = self.slots.get(&key)?;
        if !slot.used.load(Ordering::Relaxed) {
            slot.used.store(true, Ordering::Relaxed);
        }
        Some(&slot.page)
    }

    /// Whether the page is resident.
    pub fn contains(&self, key: u64) -> bool {
        self.slots.contains_key(&key)
    }

    /// The page for changing, if resident; it becomes dirty. A copy that a checkpoint holds stays as it was.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut P> {
        let slot = self.slots.get_mut(&key)?;
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(key);
        }
        slot.used.store(true, Ordering::Relaxed);
        Some(Arc::make_mut(&mut slot.page))
    }

    /// The page for changing, if it is resident and dirty already.
    pub fn get_dirty(&mut self, key: u64) -> Option<&mut P> {
        let slot = self.slots.get_mut(&key).filter(|slot| slot.dirty)?;
        Some(Arc::make_mut(&mut slot.page))
    }

    /// Changes a page without making it dirty: for what a checkpoint writes to the page's frozen copy as well.
    pub fn patch(&mut self, key: u64) -> Option<&mut P> {
        self.slots.get_mut(&key).map(|slot| Arc::make_mut(&mut slot.page))
    }

    /// So many pages are remembered after they were evicted.
    pub fn remember(&mut self, pages: usize) {
        self.remembered = pages;
    }

    /// Puts a page in, unless it is there already. Says whether it was evicted not long ago.
    pub fn insert_clean(&mut self, key: u64, page: P) -> bool {
        if self.contains(key) {
            return false;
        }
        self.insert(key, page, false);
        self.ghosts.take(&key)
    }

    /// Puts a new, dirty page in.
    pub fn insert_dirty(&mut self, key: u64, page: P) {
        self.insert(key, page, true);
        self.dirty.push(key);
    }

    fn insert(&mut self, key: u64, page: P, dirty: bool) {
        let slot = Slot { page: Arc::new(page), dirty, frozen: false, used: AtomicBool::new(true) };
        match self.slots.insert(key, slot) {
            None => self.clock.push_back(key),
            Some(old) => self.frozen -= usize::from(old.frozen),
        }
    }

    /// Forgets a page, dirty or not.
    pub fn remove(&mut self, key: u64) {
        if self.slots.remove(&key).is_some_and(|slot| slot.frozen) {
            self.frozen -= 1;
        }
    }

    /// Pages resident.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing is resident.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Pages dirty, about.
    pub fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// Pages that a checkpoint is about to write.
    pub fn frozen_len(&self) -> usize {
        self.frozen
    }

    /// Takes all dirty pages for a checkpoint. They count as clean from now on but stay resident until [`Self::thaw`].
    pub fn freeze(&mut self) -> Vec<(u64, Arc<P>)> {
        let mut keys = std::mem::take(&mut self.dirty);
        keys.sort_unstable();
        keys.dedup();
        let mut out = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(slot) = self.slots.get_mut(&key).filter(|slot| slot.dirty) else { continue };
            slot.dirty = false;
            self.frozen += usize::from(!std::mem::replace(&mut slot.frozen, true));
            out.push((key, slot.page.clone()));
        }
        out
    }

    /// Ends what [`Self::freeze`] began: the pages have their new places.
    pub fn thaw(&mut self, keys: impl Iterator<Item = u64>) {
        for key in keys {
            if let Some(slot) = self.slots.get_mut(&key) {
                self.frozen -= usize::from(std::mem::take(&mut slot.frozen));
            }
        }
    }

    /// Whether clearly more pages are there than `target`, and than those that stay in any case.
    pub fn is_beyond(&self, target: usize) -> bool {
        let target = self.attainable(target);
        self.slots.len() > target + target / 16 + 64
    }

    /// Evicts down to `target` when that is exceeded by a sixteenth: not for every page that is loaded.
    pub fn evict_beyond(&mut self, target: usize) {
        if self.is_beyond(target) {
            self.evict(target);
        }
    }

    /// Somebody who loads one page after another until all he needs are there must not see the first go while the last comes, however many
    /// pages are dirty or being written.
    fn attainable(&self, target: usize) -> usize {
        target.max(self.dirty.len() + self.frozen + CLEAN_MIN)
    }

    /// Evicts clean pages that were not used lately until at most `target` are left, as far as that goes in one round. Those that cannot be
    /// evicted, and some more, stay in any case.
    pub fn evict(&mut self, target: usize) {
        let target = self.attainable(target);
        let mut steps = 2 * self.clock.len();
        while self.slots.len() > target && steps > 0 {
            steps -= 1;
            let Some(key) = self.clock.pop_front() else { break };
            match self.slots.get(&key) {
                None => {}
                Some(slot) if slot.dirty || slot.frozen || slot.used.swap(false, Ordering::Relaxed) => {
                    self.clock.push_back(key);
                }
                Some(_) => {
                    self.slots.remove(&key);
                    self.ghosts.add(key, self.remembered);
                }
            }
        }
    }

    /// Bytes that what is remembered of evicted pages takes.
    pub fn ghost_memory(&self) -> usize {
        self.ghosts.memory()
    }
}
