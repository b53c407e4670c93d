//! How much of the memory for what was read each cache has: who is asked again for what it just gave up grows at the expense of the others.
//! `docs/design/0020-memory.md` has the rules.

use super::state::State;
use super::{Engine, PoolConfig};

/// Bytes a metadata page takes in memory, of either kind, with what belongs to it.
pub const PAGE_MEMORY: usize = 5248;
/// Bytes a directory page takes in memory.
pub const DIRECTORY_MEMORY: usize = 8192 + 128;
/// Least number of map and of table pages in memory: more than any record needs at once.
const PAGES_MIN: usize = 1024;
/// Part of the whole that each cache keeps, whatever the others miss.
const LEAST: usize = 16;
/// Part of the whole, for each cache, of which it is remembered what was in it: the same for all, so that what they miss of it can be compared.
const REMEMBERED: usize = 8;

/// Who shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Pages of volume maps: 512 blocks each.
    Maps,
    /// Pages of the block table: 128 blocks each.
    Table,
    /// Uncompressed frames.
    Frames,
}

/// The shares, in bytes. Their sum is always the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares {
    of: [usize; 3],
    least: usize,
}

impl Shares {
    /// What the caches begin with. A map page is good for four times as many blocks as a page of the table, where each block is mapped once.
    pub fn new(total: usize) -> Self {
        let maps = total * 3 / 10;
        let frames = total / 5;
        Self { of: [maps, total - maps - frames, frames], least: total / LEAST }
    }

    /// The share of a cache.
    pub fn of(&self, cache: Cache) -> usize {
        self.of[cache as usize]
    }

    /// A cache was asked for so many bytes that it had until lately: it grows by as much.
    pub fn grow(&mut self, cache: Cache, bytes: usize) {
        let spare = |shares: &Self, i: usize| if i == cache as usize { 0 } else { shares.of[i] - shares.least };
        let all: usize = (0..3).map(|i| spare(self, i)).sum();
        let mut left = bytes.min(all);
        self.of[cache as usize] += left;
        let (wanted, before) = (left, self.clone());
        for i in 0..3 {
            let part = (spare(&before, i) * wanted).checked_div(all).unwrap_or(0).min(left);
            self.of[i] -= part;
            left -= part;
        }
        // What rounding left over.
        for i in 0..3 {
            let part = spare(self, i).min(left);
            self.of[i] -= part;
            left -= part;
        }
    }
}

fn pages(shares: &Shares, cache: Cache) -> usize {
    (shares.of(cache) / PAGE_MEMORY).max(PAGES_MIN)
}

impl PoolConfig {
    /// Bytes for map pages, pages of the block table and frames together.
    pub fn cache_bytes(&self) -> usize {
        (self.memory / 8 * 5) as usize
    }

    /// Bytes of each cache of which it is remembered what was in it.
    pub fn remembered_bytes(&self) -> usize {
        self.cache_bytes() / REMEMBERED
    }
}

impl Engine {
    /// A cache was asked for so many bytes that it had until lately.
    pub(super) fn missed(&self, cache: Cache, bytes: usize) {
        let frames = {
            let mut shares = self.shares.lock();
            shares.grow(cache, bytes);
            shares.of(Cache::Frames)
        };
        self.frames.set_limit(frames);
    }

    /// Frames were asked for that had been there until lately. Pages give way at once: perhaps none is loaded for long, with which others would go.
    pub(super) fn missed_frames(&self, bytes: usize) {
        self.missed(Cache::Frames, bytes);
        let shares = self.shares.lock().clone();
        let beyond = {
            let state = self.state.read();
            let (maps, table) = (&state.maps.pages, &state.table.pages);
            maps.is_beyond(pages(&shares, Cache::Maps)) || table.is_beyond(pages(&shares, Cache::Table))
        };
        if beyond {
            self.evict_beyond(&mut self.state.write());
        }
    }

    /// Evicts pages where there are clearly more than there is room for: not with every page that is loaded.
    pub(super) fn evict_beyond(&self, state: &mut State) {
        let shares = self.shares.lock().clone();
        state.maps.pages.evict_beyond(pages(&shares, Cache::Maps));
        state.table.pages.evict_beyond(pages(&shares, Cache::Table));
    }

    fn pages(&self, cache: Cache) -> usize {
        pages(&self.shares.lock(), cache)
    }

    /// Map pages that may be in memory.
    pub(super) fn map_pages(&self) -> usize {
        self.pages(Cache::Maps)
    }

    /// Pages of the block table that may be in memory.
    pub(super) fn table_pages(&self) -> usize {
        self.pages(Cache::Table)
    }

    /// Pages of the directory that may be in memory: each is good for 256 pages of the table.
    pub(super) fn directory_pages(&self) -> usize {
        (self.config.memory / 32) as usize / DIRECTORY_MEMORY + 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_nobody_is_driven_out() {
        let mut rng = crate::env::Rng::new(1);
        for total in [1 << 20, (5 << 20) + 7, 320 << 20] {
            let mut shares = Shares::new(total);
            for _ in 0..20_000 {
                let cache = [Cache::Maps, Cache::Table, Cache::Frames][rng.below(3) as usize];
                shares.grow(cache, rng.below(40_000) as usize);
                assert_eq!(shares.of.iter().sum::<usize>(), total);
                assert!(shares.of.iter().all(|s| *s >= shares.least), "{shares:?}");
            }
            for _ in 0..2 * total / PAGE_MEMORY {
                shares.grow(Cache::Table, PAGE_MEMORY);
            }
            assert_eq!(shares.of(Cache::Maps), shares.least);
            assert_eq!(shares.of(Cache::Table), total - 2 * shares.least);
        }
    }

    /// Two caches over working sets of different sizes, both asked for something at random each time: the one whose pages are asked for more often gets
    /// all it can use. Compared with shares that stay as they are.
    #[test]
    fn memory_goes_where_it_saves_most() {
        use crate::map::cache::PageCache;
        const PAGES: u64 = 20_000;
        const SETS: [u64; 2] = [9_000, 36_000];
        let play = |adapts: bool| {
            let total = PAGES as usize * PAGE_MEMORY;
            let mut shares = Shares { of: [total / 4, total / 2, total - total / 4 - total / 2], least: total / LEAST };
            let mut caches = [PageCache::default(), PageCache::default()];
            caches.iter_mut().for_each(|c: &mut PageCache<u64>| c.remember(total / REMEMBERED / PAGE_MEMORY));
            let mut rng = crate::env::Rng::new(3);
            let mut missed = 0;
            for round in 0..600_000 {
                for (i, cache) in [Cache::Maps, Cache::Table].into_iter().enumerate() {
                    let key = rng.below(SETS[i]);
                    if caches[i].get(key).is_some() {
                        continue;
                    }
                    missed += u64::from(round >= 500_000);
                    if caches[i].insert_clean(key, key) && adapts {
                        shares.grow(cache, PAGE_MEMORY);
                    }
                    let room = [shares.of(Cache::Maps), shares.of(Cache::Table)].map(|bytes| bytes / PAGE_MEMORY);
                    caches[0].evict_beyond(room[0]);
                    caches[1].evict_beyond(room[1]);
                }
            }
            (missed, shares)
        };
        let ((fixed, _), (adapted, shares)) = (play(false), play(true));
        assert!(adapted * 10 < fixed * 8, "{adapted} missed, {fixed} with fixed shares; {shares:?}");
        assert!(shares.of(Cache::Maps) >= SETS[0] as usize * PAGE_MEMORY * 7 / 10, "{shares:?}");
        assert!(shares.of(Cache::Frames) <= shares.least * 3 / 2, "nobody asks for frames: {shares:?}");
    }
}
