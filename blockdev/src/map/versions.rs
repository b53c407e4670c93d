//! What a version that is being deleted owns and none of its children sees: found by walking the maps only where they differ.

use super::Need;
use super::tree::{Floor, VolumeMaps, entry, page_end};
use crate::format::page::MAP_FANOUT;
use crate::format::volume::VolumeRecord;
use crate::units::VirtualBlock;

/// Pages of a version that are its own, that no child has at the same place, and of which nothing is left to look at but this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// They end before this LBA.
    pub end: u64,
    /// The pages, lowest first.
    pub pages: Vec<VirtualBlock>,
    /// Entries of the lowest, if that is a leaf, that are the version's own and that no child has.
    pub entries: Vec<(u16, VirtualBlock)>,
    /// Whether the lowest is a leaf.
    pub leaf: bool,
}

/// A version and those that go on from it.
pub struct Leaving<'a> {
    /// The version.
    pub version: &'a VolumeRecord,
    /// What is its own.
    pub floor: Floor,
    /// Its children.
    pub children: Vec<&'a VolumeRecord>,
    /// Pages that cannot be read: what they refer to is passed over.
    pub unreadable: &'a dyn Fn(VirtualBlock) -> bool,
}

/// A place in a map: page, level, index.
type Place = (VirtualBlock, u8, u64);

impl VolumeMaps {
    /// The page of a level and index, if there is one.
    fn page_at(&self, volume: &VolumeRecord, level: u8, index: u64) -> Need<Option<VirtualBlock>> {
        let mut at = volume.root;
        for above in (level + 1..volume.levels).rev() {
            if at.is_none() {
                return Ok(None);
            }
            at = self.page(at)?.entries[(index >> (9 * u32::from(above - level - 1))) as usize % MAP_FANOUT];
        }
        Ok((!at.is_none() && level < volume.levels).then_some(at))
    }

    /// The first event that ends behind `from`.
    pub fn next_event(&self, of: &Leaving<'_>, from: u64) -> Need<Option<Event>> {
        let version = of.version;
        let level = version.levels - 1;
        let end = page_end(level, 0);
        if version.root.is_none() || from >= end || version.root_birth <= of.floor.at(end) {
            return Ok(None);
        }
        let mut others = Vec::with_capacity(of.children.len());
        for child in &of.children {
            others.extend(self.page_at(child, level, 0)?);
        }
        if others.contains(&version.root) || (of.unreadable)(version.root) {
            return Ok(None);
        }
        Ok(Some(self.event_in(of, (version.root, level, 0), &others, from)?))
    }

    /// The first event in or of a page that is the version's own; `others` are the pages that children have there.
    fn event_in(&self, of: &Leaving<'_>, at: Place, others: &[VirtualBlock], from: u64) -> Need<Event> {
        let (block, level, index) = at;
        let end = page_end(level, index);
        if level == 0 {
            let entries = self.entries_of(of, at, others)?;
            return Ok(Event { end, pages: vec![block], entries, leaf: true });
        }
        // What a child has behind a page that cannot be read is not known.
        let blind = others.iter().any(|o| (of.unreadable)(*o));
        let page = self.page(block)?;
        let span = page_end(level - 1, 0);
        let first = from.saturating_sub(end - span * MAP_FANOUT as u64) / span;
        for slot in (first as usize..MAP_FANOUT).take_while(|_| !blind) {
            let Some((below, birth)) = entry(page, slot) else { continue };
            let place = (below, level - 1, index * MAP_FANOUT as u64 + slot as u64);
            if birth <= of.floor.at(page_end(place.1, place.2)) || (of.unreadable)(below) {
                continue;
            }
            let mut beside = Vec::with_capacity(others.len());
            for other in others {
                beside.extend(entry(self.page(*other)?, slot).map(|(block, _)| block));
            }
            if beside.contains(&below) {
                continue;
            }
            let mut event = self.event_in(of, place, &beside, from)?;
            if event.end == end {
                event.pages.push(block);
            }
            return Ok(event);
        }
        Ok(Event { end, pages: vec![block], entries: Vec::new(), leaf: false })
    }

    fn entries_of(&self, of: &Leaving<'_>, at: Place, others: &[VirtualBlock]) -> Need<Vec<(u16, VirtualBlock)>> {
        let (block, _, index) = at;
        if others.iter().any(|o| (of.unreadable)(*o)) {
            return Ok(Vec::new());
        }
        let page = self.page(block)?;
        let mut out = Vec::new();
        for slot in 0..MAP_FANOUT {
            let Some((block, birth)) = entry(page, slot) else { continue };
            if of.floor.owns(birth, index * MAP_FANOUT as u64 + slot as u64) {
                out.push((slot as u16, block, birth));
            }
        }
        for other in others {
            let other = self.page(*other)?;
            out.retain(|(slot, block, birth)| entry(other, usize::from(*slot)) != Some((*block, *birth)));
        }
        Ok(out.into_iter().map(|(slot, block, _)| (slot, block)).collect())
    }
}
