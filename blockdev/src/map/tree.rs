//! Volume maps: a radix tree of pages from LBA to virtual block, 9 bits a level.
//!
//! Pages are virtual blocks themselves. A page keeps its virtual block while it changes within one generation: only its place in the
//! block table moves when a checkpoint writes it, so its parent stays as it is. A page that a version shares with the snapshot it goes on
//! from is copied before it is changed ([`Floor`]).

use super::cache::PageCache;
use super::{Miss, Need};
use crate::format::page::{MAP_FANOUT, MapPage};
use crate::format::volume::VolumeRecord;
use crate::units::{Lba, VirtualBlock, VolumeId};

const BITS: u32 = MAP_FANOUT.trailing_zeros();
/// Levels of the largest map: 2^36 blocks, 256 TiB.
pub const LEVELS_MAX: u8 = 4;
/// Blocks of the largest volume.
pub const VOLUME_BLOCKS_MAX: u64 = 1 << (BITS * LEVELS_MAX as u32);

/// Levels that a map of `blocks` needs.
pub fn levels_for(blocks: u64) -> u8 {
    (1..LEVELS_MAX).find(|&l| blocks <= 1 << (BITS * u32::from(l))).unwrap_or(LEVELS_MAX)
}

fn slot(lba: u64, level: u8) -> usize {
    (lba >> (BITS * u32::from(level))) as usize % MAP_FANOUT
}

/// Splits `count` LBAs at the borders of leaf pages: the first LBA of each piece, and which of the LBAs are in it.
pub fn by_leaf(lba: Lba, count: usize) -> impl Iterator<Item = (Lba, std::ops::Range<usize>)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let first = lba.0 + from as u64;
        let len = (MAP_FANOUT - slot(first, 0)).min(count - from);
        from += len;
        (len > 0).then_some((Lba(first), from - len..from))
    })
}

/// Index of the page of `level` that covers an LBA.
pub fn page_index(lba: u64, level: u8) -> u64 {
    lba >> (BITS * (u32::from(level) + 1))
}

/// LBAs that a volume's map reaches. Its volume may have been larger a moment ago.
fn covered(volume: &VolumeRecord) -> u64 {
    page_end(volume.levels - 1, 0)
}

/// The LBA behind a page.
pub fn page_end(level: u8, index: u64) -> u64 {
    (index + 1) << (BITS * (u32::from(level) + 1))
}

/// Which references are a version's own: those born in a later generation than this. What was born before belongs to the snapshots it goes on from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// Generation of the parent.
    pub parent: u32,
    /// The parent is being deleted: what ends before this is no longer its own.
    pub handed: u64,
    /// Generation of the parent's parent.
    pub grandparent: u32,
}

impl Floor {
    /// The floor of what ends before the LBA `end`.
    pub fn at(&self, end: u64) -> u32 {
        if end <= self.handed { self.grandparent } else { self.parent }
    }

    fn owns_page(&self, birth: u32, level: u8, index: u64) -> bool {
        birth > self.at(page_end(level, index))
    }

    /// Whether the mapping of an LBA that was born then is the version's own.
    pub fn owns(&self, birth: u32, lba: u64) -> bool {
        birth > self.at(lba + 1)
    }
}

/// A stretch of consecutive LBAs with equal treatment: mapped blocks, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First block.
    pub lba: u64,
    /// Blocks.
    pub len: u64,
    /// Whether they are mapped.
    pub mapped: bool,
}

/// An entry of a page that leads somewhere, and its birth.
pub(super) fn entry(page: &MapPage, slot: usize) -> Option<(VirtualBlock, u32)> {
    let block = page.entries[slot];
    (!block.is_none()).then(|| (block, page.birth(slot)))
}

/// The resident pages of all maps.
#[derive(Default)]
pub struct VolumeMaps {
    /// Pages by virtual block.
    pub pages: PageCache<MapPage>,
}

impl VolumeMaps {
    pub(super) fn page(&self, block: VirtualBlock) -> Need<&MapPage> {
        self.pages.get(block.0).ok_or(Miss::Map(block))
    }

    /// The virtual block at an LBA.
    pub fn lookup(&self, volume: &VolumeRecord, lba: Lba) -> Need<VirtualBlock> {
        if lba.0 >= covered(volume) {
            return Ok(VirtualBlock::NONE);
        }
        let mut at = volume.root;
        for level in (0..volume.levels).rev() {
            if at.is_none() {
                return Ok(at);
            }
            at = self.page(at)?.entries[slot(lba.0, level)];
        }
        Ok(at)
    }

    /// The virtual blocks of `count` LBAs.
    pub fn lookup_range(&self, volume: &VolumeRecord, lba: Lba, count: usize, out: &mut Vec<VirtualBlock>) -> Need<()> {
        let (mut at, end) = (lba.0, lba.0 + count as u64);
        while at < end {
            let n = (end - at).min(MAP_FANOUT as u64 - at % MAP_FANOUT as u64) as usize;
            match self.leaf(volume, at)? {
                Some(leaf) => {
                    let first = slot(at, 0);
                    out.extend_from_slice(&self.page(leaf)?.entries[first..first + n]);
                }
                None => out.resize(out.len() + n, VirtualBlock::NONE),
            }
            at += n as u64;
        }
        Ok(())
    }

    /// The leaf page that covers an LBA.
    fn leaf(&self, volume: &VolumeRecord, lba: u64) -> Need<Option<VirtualBlock>> {
        if lba >= covered(volume) {
            return Ok(None);
        }
        let mut at = volume.root;
        for level in (1..volume.levels).rev() {
            if at.is_none() {
                return Ok(None);
            }
            at = self.page(at)?.entries[slot(lba, level)];
        }
        Ok((!at.is_none()).then_some(at))
    }

    /// Calls `missing` for each page on the way to an LBA that must come into being before the LBA is mapped anew, as there is none or it is not
    /// the volume's own; fails when one that exists is not resident.
    pub fn walk(&self, volume: &VolumeRecord, floor: &Floor, lba: Lba, mut missing: impl FnMut(u8, u64)) -> Need<()> {
        let (mut at, mut birth) = (volume.root, volume.root_birth);
        for level in (0..volume.levels).rev() {
            let index = page_index(lba.0, level);
            if at.is_none() {
                missing(level, index);
                continue;
            }
            if !floor.owns_page(birth, level, index) {
                missing(level, index);
            }
            let page = self.page(at)?;
            (at, birth) = (page.entries[slot(lba.0, level)], page.birth(slot(lba.0, level)));
        }
        Ok(())
    }

    /// The pages on the way to an LBA, root first, as far as they exist.
    pub fn path(&self, volume: &VolumeRecord, lba: Lba, out: &mut Vec<VirtualBlock>) -> Need<()> {
        let mut at = volume.root;
        for level in (0..volume.levels).rev() {
            if at.is_none() {
                break;
            }
            out.push(at);
            at = self.page(at)?.entries[slot(lba.0, level)];
        }
        Ok(())
    }

    /// Whether there is a leaf page for an LBA.
    pub fn has_leaf(&self, volume: &VolumeRecord, lba: Lba) -> Need<bool> {
        Ok(self.leaf(volume, lba.0)?.is_some())
    }

    /// What `count` LBAs of one leaf page are mapped to, as far as it is the volume's own: what it gives back when they are mapped anew.
    pub fn own_blocks(
        &self,
        volume: &VolumeRecord,
        floor: &Floor,
        lba: Lba,
        count: usize,
    ) -> Need<impl Iterator<Item = VirtualBlock> + use<'_>> {
        let leaf = match self.leaf(volume, lba.0)? {
            Some(leaf) => Some(self.page(leaf)?),
            None => None,
        };
        let floor = *floor;
        let of = move |leaf| {
            (lba.0..lba.0 + count as u64).filter_map(move |lba| {
                let (block, birth) = entry(leaf, slot(lba, 0))?;
                floor.owns(birth, lba).then_some(block)
            })
        };
        Ok(leaf.into_iter().flat_map(of))
    }

    /// Maps consecutive LBAs within one leaf page; `new_page` gives identities for pages that must come into being. What was mapped
    /// before and was the volume's own goes to `replaced`, the pages on the way, root first, to `path`.
    ///
    /// All pages on the way must be resident ([`Self::walk`]).
    #[expect(clippy::too_many_arguments, reason = "what is changed, and what is told of it")]
    pub fn set_in_leaf(
        &mut self,
        volume: &mut VolumeRecord,
        floor: &Floor,
        lba: Lba,
        to: &[VirtualBlock],
        mut new_page: impl FnMut() -> VirtualBlock,
        replaced: &mut Vec<VirtualBlock>,
        path: &mut Vec<VirtualBlock>,
    ) -> Need<()> {
        let (family, generation, levels) = (volume.family, volume.generation, volume.levels);
        // The page itself if it is the volume's own, else a copy, or a new one.
        let mut own = |pages: &mut PageCache<MapPage>, (at, birth): (VirtualBlock, u32), level: u8| {
            let index = page_index(lba.0, level);
            if !at.is_none() && floor.owns_page(birth, level, index) {
                return Ok(at);
            }
            let page = match at.is_none() {
                true => MapPage::new(family, level, index),
                false => pages.get(at.0).ok_or(Miss::Map(at))?.clone(),
            };
            let block = new_page();
            pages.insert_dirty(block.0, page);
            Ok(block)
        };
        let root = own(&mut self.pages, (volume.root, volume.root_birth), levels - 1)?;
        if root != volume.root {
            (volume.root, volume.root_birth) = (root, generation);
        }
        let mut at = root;
        for level in (1..levels).rev() {
            path.push(at);
            let index = slot(lba.0, level);
            let page = self.page(at)?;
            let (below, birth) = (page.entries[index], page.birth(index));
            if level == 1 && !below.is_none() && !floor.owns_page(birth, 0, page_index(lba.0, 0)) {
                // A leaf that would be copied only to be emptied.
                let leaf = self.page(below)?;
                let first = slot(lba.0, 0);
                let mapped = leaf.entries[first..first + to.len()].iter().filter(|e| !e.is_none()).count();
                if mapped == usize::from(leaf.used) && to.iter().all(|b| b.is_none()) {
                    self.pages.get_mut(at.0).ok_or(Miss::Map(at))?.set(index, VirtualBlock::NONE, generation);
                    volume.mapped = volume.mapped.saturating_sub(mapped as u64);
                    return Ok(());
                }
            }
            let next = own(&mut self.pages, (below, birth), level - 1)?;
            if next != below {
                self.pages.get_mut(at.0).ok_or(Miss::Map(at))?.set(index, next, generation);
            }
            at = next;
        }
        path.push(at);
        let leaf = self.pages.get_mut(at.0).ok_or(Miss::Map(at))?;
        for (lba, &to) in (lba.0..).zip(to) {
            let index = slot(lba, 0);
            let own = floor.owns(leaf.birth(index), lba);
            let old = leaf.set(index, to, generation);
            match (old.is_none(), to.is_none()) {
                (true, false) => volume.mapped += 1,
                (false, true) => volume.mapped = volume.mapped.saturating_sub(1),
                _ => {}
            }
            if !old.is_none() && own {
                replaced.push(old);
            }
        }
        Ok(())
    }

    /// The first mapped LBA in `from..end`, skipping absent subtrees without visiting them.
    pub fn next_mapped(&self, volume: &VolumeRecord, from: u64, end: u64) -> Need<Option<u64>> {
        self.next_present(volume, from, end, 0)
    }

    /// The first LBA in `from..end` that a leaf is there for, without looking into the leaf: something near it is mapped.
    pub fn next_in_leaf(&self, volume: &VolumeRecord, from: u64, end: u64) -> Need<Option<u64>> {
        self.next_present(volume, from, end, 1)
    }

    fn next_present(&self, volume: &VolumeRecord, from: u64, end: u64, lowest: u8) -> Need<Option<u64>> {
        if volume.root.is_none() {
            return Ok(None);
        }
        let (mut at, end) = (from, end.min(covered(volume)));
        'search: while at < end {
            let mut page = volume.root;
            for level in (lowest..volume.levels).rev() {
                let span = 1u64 << (BITS * u32::from(level));
                if page.is_none() {
                    return Ok(None);
                }
                let entries = &self.page(page)?.entries;
                let first = slot(at, level);
                match (first..MAP_FANOUT).find(|&s| !entries[s].is_none()) {
                    Some(s) if s == first => page = entries[s],
                    Some(s) => {
                        at = (at / span + (s - first) as u64) * span;
                        page = entries[s];
                    }
                    None => {
                        at = (at / span + (MAP_FANOUT - first) as u64) * span;
                        continue 'search;
                    }
                }
            }
            return Ok((at < end).then_some(at));
        }
        Ok(None)
    }

    /// The first LBA in `from..end` that is not mapped; `end` when all are.
    pub fn next_hole(&self, volume: &VolumeRecord, from: u64, end: u64) -> Need<u64> {
        let mut at = from;
        while at < end {
            let Some(leaf) = self.leaf(volume, at)? else { return Ok(at) };
            let first = slot(at, 0);
            let entries = &self.page(leaf)?.entries;
            if let Some(s) = (first..MAP_FANOUT).find(|&s| entries[s].is_none()) {
                return Ok(end.min(at + (s - first) as u64));
            }
            at += (MAP_FANOUT - first) as u64;
        }
        Ok(end)
    }

    /// Removes pages on the way to an LBA that have become empty, leaf first; calls `freed` for each.
    pub fn prune(&mut self, volume: &mut VolumeRecord, lba: Lba, mut freed: impl FnMut(VirtualBlock)) -> Need<()> {
        let mut path = Vec::new();
        self.path(volume, lba, &mut path)?;
        while let Some(block) = path.pop() {
            if self.page(block)?.used > 0 {
                break;
            }
            let level = volume.levels - 1 - path.len() as u8;
            match path.last() {
                Some(parent) => {
                    let index = slot(lba.0, level + 1);
                    self.pages.get_mut(parent.0).ok_or(Miss::Map(*parent))?.set(index, VirtualBlock::NONE, 0);
                }
                None => volume.root = VirtualBlock::NONE,
            }
            self.pages.remove(block.0);
            freed(block);
        }
        Ok(())
    }

    /// Puts roots on top until the map covers `blocks`.
    pub fn grow(&mut self, volume: &mut VolumeRecord, blocks: u64, mut new_page: impl FnMut() -> VirtualBlock) {
        while volume.levels < levels_for(blocks) {
            if !volume.root.is_none() {
                let block = new_page();
                let mut page = MapPage::new(volume.family, volume.levels, 0);
                page.set(0, volume.root, volume.root_birth);
                self.pages.insert_dirty(block.0, page);
                (volume.root, volume.root_birth) = (block, volume.generation);
            }
            volume.levels += 1;
        }
    }
}

/// Identity of a page by what it covers, to count pages that several operations would create.
pub type PageKey = (VolumeId, u8, u64);
