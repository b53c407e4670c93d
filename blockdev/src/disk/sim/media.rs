//! What a simulated disk holds: persistent pages, and a volatile write cache in front of them.
//!
//! Every completed write has a number. `stable` is what survives a power cut; `visible` holds pages newer than that,
//! which reads prefer; `cache` lists the writes behind `visible` in order of completion. A write replaces whole pages,
//! because every request is aligned to them. An older write never replaces a newer one in `stable`.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};

use super::faults::{Dice, Fate};
use crate::disk::IO_ALIGN;
use crate::env::Rng;

/// Bytes in a page, the grain of every request.
pub(super) const PAGE: usize = IO_ALIGN;
/// Bytes in a sector, the grain of tearing.
pub(super) const SECTOR: usize = 512;
const SECTORS: usize = PAGE / SECTOR;

type PageData = Arc<[u8]>;

#[derive(Clone)]
struct Page {
    write: u64,
    data: PageData,
}

#[derive(Clone)]
struct CachedWrite {
    write: u64,
    first: u64,
    pages: Vec<PageData>,
    lost: bool,
}

#[derive(Clone, Default)]
pub(super) struct Media {
    stable: FxHashMap<u64, Page>,
    visible: FxHashMap<u64, Page>,
    cache: VecDeque<CachedWrite>,
    unreadable: FxHashSet<u64>,
    next_write: u64,
}

impl Media {
    /// Fills `out` with the content at `offset`. Err is the offset of the first unreadable page.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), u64> {
        for (page, piece) in (offset / PAGE as u64..).zip(out.chunks_mut(PAGE)) {
            if let Some(newest) = self.visible.get(&page) {
                piece.copy_from_slice(&newest.data);
            } else if self.unreadable.contains(&page) {
                return Err(page * PAGE as u64);
            } else if let Some(stable) = self.stable.get(&page) {
                piece.copy_from_slice(&stable.data);
            } else {
                piece.fill(0);
            }
        }
        Ok(())
    }

    /// What is visible at `page`, unreadable or not.
    pub fn peek(&self, page: u64) -> Option<&[u8]> {
        self.visible.get(&page).or_else(|| self.stable.get(&page)).map(|p| &*p.data)
    }

    /// A write completes.
    pub fn write(&mut self, offset: u64, data: &[Bytes], durable: bool, fate: Fate, dice: &mut Dice) {
        if fate == Fate::Lost {
            return;
        }
        let cached = CachedWrite {
            write: self.take_number(),
            first: offset / PAGE as u64,
            pages: pages_of(data).map(PageData::from).collect(),
            lost: fate == Fate::LostAtFlush,
        };
        if durable && !cached.lost {
            self.persist(cached, dice);
            return;
        }
        for (page, data) in (cached.first..).zip(&cached.pages) {
            self.visible.insert(page, Page { write: cached.write, data: data.clone() });
        }
        self.cache.push_back(cached);
    }

    /// The number the next write to complete will have: a flush submitted now covers all smaller ones.
    pub fn next_write(&self) -> u64 {
        self.next_write
    }

    /// A flush completes that was submitted when the next write had the number `limit`.
    pub fn flush(&mut self, limit: u64, dice: &mut Dice) {
        while self.cache.front().is_some_and(|w| w.write < limit) {
            if let Some(cached) = self.cache.pop_front() {
                self.persist(cached, dice);
            }
        }
    }

    /// The writes a flush with that `limit` would cover leave the cache as by a power cut.
    pub fn lose_cache(&mut self, limit: u64, rng: &mut Rng) {
        let mood = Mood::draw(rng);
        while self.cache.front().is_some_and(|w| w.write < limit) {
            let Some(cached) = self.cache.pop_front() else { break };
            let tear = mood.tear(cached.pages.len(), rng);
            for (index, (page, data)) in (cached.first..).zip(&cached.pages).enumerate() {
                if self.visible.get(&page).is_some_and(|p| p.write == cached.write) {
                    self.visible.remove(&page);
                }
                if !cached.lost {
                    self.persist_sectors(page, cached.write, data, tear.mask(index, rng));
                }
            }
        }
    }

    /// Power is cut: what is in the cache, and of the writes `in_flight`, persists in part or not at all.
    pub fn cut_power(&mut self, mut in_flight: Vec<(u64, Vec<Bytes>)>, rng: &mut Rng) {
        self.lose_cache(u64::MAX, rng);
        rng.shuffle(&mut in_flight);
        let mood = Mood::draw(rng);
        for (offset, data) in in_flight {
            let write = self.take_number();
            let tear = mood.tear(count_pages(&data), rng);
            for (index, (page, data)) in (offset / PAGE as u64..).zip(pages_of(&data)).enumerate() {
                self.persist_sectors(page, write, data, tear.mask(index, rng));
            }
        }
        debug_assert!(self.visible.is_empty(), "what is visible and not persistent is in the cache");
    }

    /// The host goes away, power stays: the writes `in_flight` reach the cache in part, in whole or not at all.
    pub fn cut_link(&mut self, mut in_flight: Vec<(u64, Vec<Bytes>)>, rng: &mut Rng) {
        rng.shuffle(&mut in_flight);
        let mood = Mood::draw(rng);
        for (offset, data) in in_flight {
            let tear = mood.tear(count_pages(&data), rng);
            for (index, (page, new)) in (offset / PAGE as u64..).zip(pages_of(&data)).enumerate() {
                let mask = tear.mask(index, rng);
                if mask == 0 {
                    continue;
                }
                let data = merge(self.peek(page), new, mask);
                let write = self.take_number();
                self.visible.insert(page, Page { write, data: data.clone() });
                self.cache.push_back(CachedWrite { write, first: page, pages: vec![data], lost: false });
            }
        }
    }

    /// A discard completes: each page of the range reads as before, as zeroes, or as junk.
    pub fn discard(&mut self, offset: u64, len: u64, rng: &mut Rng) {
        let range = offset / PAGE as u64..(offset + len) / PAGE as u64;
        let mut pages: Vec<u64>;
        if (range.end - range.start) as usize <= self.stable.len() + self.visible.len() {
            pages = range.filter(|page| self.peek(*page).is_some()).collect();
        } else {
            let held = self.stable.keys().chain(self.visible.keys());
            pages = held.filter(|page| range.contains(page)).copied().collect();
            pages.sort_unstable();
            pages.dedup();
        }
        for page in pages {
            match rng.below(4) {
                0 => {}
                1 => {
                    let junk = PageData::from(vec![rng.u64() as u8 | 1; PAGE]);
                    self.visible.remove(&page);
                    let write = self.take_number();
                    self.stable.insert(page, Page { write, data: junk });
                }
                _ => {
                    self.visible.remove(&page);
                    self.stable.remove(&page);
                }
            }
        }
    }

    /// Changes every byte of the range, wherever it is kept, behind everybody's back.
    pub fn corrupt(&mut self, offset: u64, len: u64, rng: &mut Rng) {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let page = at / PAGE as u64;
            let from = (at % PAGE as u64) as usize;
            let to = PAGE.min(from + (end - at) as usize);
            let change = rng.between(1, 255) as u8;
            for map in [&mut self.stable, &mut self.visible] {
                if let Some(held) = map.get_mut(&page) {
                    PageData::make_mut(&mut held.data)[from..to].iter_mut().for_each(|b| *b ^= change);
                }
            }
            if let Entry::Vacant(empty) = self.stable.entry(page) {
                let mut data = vec![0; PAGE];
                data[from..to].fill(change);
                empty.insert(Page { write: 0, data: data.into() });
            }
            // A cached write holds its own copy, which would bring the old bytes back at a flush.
            for cached in self.cache.iter_mut().filter(|w| page >= w.first && page - w.first < w.pages.len() as u64) {
                if let Some(data) = cached.pages.get_mut((page - cached.first) as usize) {
                    PageData::make_mut(data)[from..to].iter_mut().for_each(|b| *b ^= change);
                }
            }
            at += (to - from) as u64;
        }
    }

    /// Makes the pages that hold the range unreadable until they are written again.
    pub fn damage(&mut self, offset: u64, len: u64) {
        let pages = offset / PAGE as u64..(offset + len).div_ceil(PAGE as u64);
        self.unreadable.extend(pages);
    }

    fn take_number(&mut self) -> u64 {
        self.next_write += 1;
        self.next_write - 1
    }

    fn persist(&mut self, cached: CachedWrite, dice: &mut Dice) {
        let CachedWrite { write, first, mut pages, lost } = cached;
        if !lost && !pages.is_empty() && dice.bit_rot() {
            let page = dice.rng.index(pages.len());
            let data = PageData::make_mut(&mut pages[page]);
            let first_bit = dice.rng.index(PAGE * 8);
            for bit in first_bit..first_bit + 1 + dice.rng.index(8) {
                data[bit / 8 % PAGE] ^= 1 << (bit % 8);
            }
        }
        let count = pages.len() as u64;
        for (page, data) in (first..).zip(pages) {
            if self.visible.get(&page).is_some_and(|p| p.write <= write) {
                self.visible.remove(&page);
            }
            if lost || self.stable.get(&page).is_some_and(|p| p.write > write) {
                continue;
            }
            self.unreadable.remove(&page);
            self.stable.insert(page, Page { write, data });
        }
        if !lost && count > 0 && dice.medium_error() {
            self.unreadable.insert(first + dice.rng.below(count));
        }
    }

    fn persist_sectors(&mut self, page: u64, write: u64, new: &[u8], mask: u8) {
        let old = self.stable.get(&page);
        if mask == 0 || old.is_some_and(|p| p.write > write) {
            return;
        }
        let data = merge(old.map(|p| &*p.data), new, mask);
        if mask == u8::MAX {
            self.unreadable.remove(&page);
        }
        self.stable.insert(page, Page { write, data });
    }
}

/// The pages of a write's data, whose pieces are multiples of a page.
fn pages_of(data: &[Bytes]) -> impl Iterator<Item = &[u8]> {
    data.iter().flat_map(|piece| piece.chunks(PAGE))
}

fn count_pages(data: &[Bytes]) -> usize {
    data.iter().map(|piece| piece.len() / PAGE).sum()
}

/// `old` with the sectors of `mask` taken from `new`.
fn merge(old: Option<&[u8]>, new: &[u8], mask: u8) -> PageData {
    if mask == u8::MAX {
        return new.into();
    }
    let mut data = old.map_or_else(|| vec![0; PAGE], <[u8]>::to_vec);
    copy_sectors(&mut data, new, mask);
    data.into()
}

/// Copies the sectors of `mask` from one page to the other.
pub(super) fn copy_sectors(to: &mut [u8], from: &[u8], mask: u8) {
    for (sector, (to, from)) in to.chunks_mut(SECTOR).zip(from.chunks(SECTOR)).enumerate() {
        if mask & (1 << sector) != 0 {
            to.copy_from_slice(from);
        }
    }
}

/// How a whole power cut treats writes: at the extremes most ordering bugs show, between them the others.
#[derive(Clone, Copy)]
enum Mood {
    KeepsAll,
    KeepsNone,
    Mixed,
}

impl Mood {
    fn draw(rng: &mut Rng) -> Self {
        match rng.below(8) {
            0 => Self::KeepsAll,
            1 => Self::KeepsNone,
            _ => Self::Mixed,
        }
    }

    fn tear(self, pages: usize, rng: &mut Rng) -> Tear {
        match self {
            Self::KeepsAll => Tear::All,
            Self::KeepsNone => Tear::None,
            Self::Mixed => Tear::draw(pages, rng),
        }
    }
}

/// Which sectors of one write persist.
#[derive(Clone, Copy)]
pub(super) enum Tear {
    None,
    All,
    /// Sectors before this one.
    Head(usize),
    /// Sectors from this one on.
    Tail(usize),
    /// All but this sector.
    AllBut(usize),
    /// Each page whole or not.
    Pages,
    /// Each sector for itself.
    Sectors,
}

impl Tear {
    pub fn draw(pages: usize, rng: &mut Rng) -> Self {
        let sector = rng.index(pages * SECTORS);
        match rng.below(12) {
            0..3 => Self::None,
            3..6 => Self::All,
            6..8 => Self::Head(sector),
            8 => Self::Tail(sector),
            9 => Self::AllBut(sector),
            10 => Self::Pages,
            _ => Self::Sectors,
        }
    }

    /// The sectors of page number `page` of the write, the first in the lowest bit.
    pub fn mask(self, page: usize, rng: &mut Rng) -> u8 {
        let before = |sector: usize| match sector.saturating_sub(page * SECTORS) {
            count if count >= SECTORS => u8::MAX,
            count => (1 << count) - 1,
        };
        match self {
            Self::None => 0,
            Self::All => u8::MAX,
            Self::Head(sector) => before(sector),
            Self::Tail(sector) => !before(sector),
            Self::AllBut(sector) => before(sector) | !before(sector + 1),
            Self::Pages if rng.chance(1, 2) => u8::MAX,
            Self::Pages => 0,
            Self::Sectors => rng.u64() as u8,
        }
    }
}
