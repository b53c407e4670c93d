//! Where two maps differ: both are walked only where their pages do.

use std::ops::Range;

use super::Need;
use super::tree::{VolumeMaps, page_end};
use crate::format::page::{MAP_FANOUT, MapPage};
use crate::format::volume::VolumeRecord;
use crate::units::VirtualBlock;

/// Pages that are there twice and hold the same, looked at in one go.
const SAME_MAX: usize = 64;

/// What is found behind an LBA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// These are mapped to other blocks, all within one leaf; whether the second map has any there.
    Run(Range<u64>, bool),
    /// Nothing before this; there may be more behind it.
    NotBefore(u64),
    /// Nothing.
    None,
}

/// The top of what a map has for a place: a page of that level, or of a lower one when the map reaches no further; or nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Top {
    block: VirtualBlock,
    level: u8,
}

impl VolumeMaps {
    /// The first LBAs in `from..end` for which two maps lead to different blocks.
    pub fn next_difference(&self, a: &VolumeRecord, b: &VolumeRecord, from: u64, end: u64) -> Need<Difference> {
        let top = |v: &VolumeRecord| Top { block: v.root, level: v.levels - 1 };
        let level = a.levels.max(b.levels) - 1;
        let mut same = SAME_MAX;
        Ok(match self.differ([top(a), top(b)], level, 0, (from, end), &mut same)? {
            Difference::Run(run, _) if run.start >= end => Difference::None,
            Difference::Run(run, mapped) => Difference::Run(run.start..run.end.min(end), mapped),
            Difference::NotBefore(at) if at >= end => Difference::None,
            other => other,
        })
    }

    fn differ(
        &self,
        tops: [Top; 2],
        level: u8,
        index: u64,
        (from, end): (u64, u64),
        same: &mut usize,
    ) -> Need<Difference> {
        let [a, b] = tops;
        if a == b || a.block.is_none() && b.block.is_none() {
            return Ok(Difference::None);
        }
        // Pages of this level; none where a map has nothing, or does not reach so far.
        let page = |top: Top| match top.block.is_none() || top.level < level {
            true => Ok(None),
            false => self.page(top.block).map(Some),
        };
        let (first, second) = (page(a)?, page(b)?);
        if level == 0 {
            return Ok(self.leaves_differ([first, second], index, from, same));
        }
        let (start, span) = (page_end(level, index) - page_end(level, 0), page_end(level - 1, 0));
        let below = |top: Top, page: Option<&MapPage>, slot: usize| match page {
            Some(page) => Top { block: page.entries[slot], level: level - 1 },
            None if top.level < level && slot == 0 && index == 0 => top,
            None => Top { block: VirtualBlock::NONE, level: level - 1 },
        };
        let slots = (from.saturating_sub(start) / span) as usize..MAP_FANOUT;
        for slot in slots.take_while(|slot| start + *slot as u64 * span < end) {
            let tops = [below(a, first, slot), below(b, second, slot)];
            let place = index * MAP_FANOUT as u64 + slot as u64;
            match self.differ(tops, level - 1, place, (from, end), same)? {
                Difference::None => {}
                found => return Ok(found),
            }
        }
        // Pages that were copied and lead to the same again count, too: what must be in memory for one answer is bounded.
        Ok(nothing_before(page_end(level, index), same))
    }

    fn leaves_differ(&self, leaves: [Option<&MapPage>; 2], index: u64, from: u64, same: &mut usize) -> Difference {
        let entry = |leaf: Option<&MapPage>, slot: usize| leaf.map_or(VirtualBlock::NONE, |leaf| leaf.entries[slot]);
        let pair = |slot: usize| (entry(leaves[0], slot), entry(leaves[1], slot));
        let start = index * MAP_FANOUT as u64;
        let differs = |slot: &usize| pair(*slot).0 != pair(*slot).1;
        let Some(first) = (from.saturating_sub(start) as usize..MAP_FANOUT).find(differs) else {
            return nothing_before(start + MAP_FANOUT as u64, same);
        };
        let mapped = !pair(first).1.is_none();
        let run = (first..MAP_FANOUT).take_while(|slot| differs(slot) && pair(*slot).1.is_none() != mapped).count();
        Difference::Run(start + first as u64..start + (first + run) as u64, mapped)
    }
}

/// Nothing differs before this, which took one more look.
fn nothing_before(end: u64, same: &mut usize) -> Difference {
    *same = same.saturating_sub(1);
    if *same == 0 { Difference::NotBefore(end) } else { Difference::None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Rng;
    use crate::map::tree::{Floor, levels_for};
    use crate::units::{Lba, VolumeId};

    fn volume(blocks: u64) -> VolumeRecord {
        VolumeRecord::empty(VolumeId(1), "v", blocks, levels_for(blocks))
    }

    fn all(maps: &VolumeMaps, a: &VolumeRecord, b: &VolumeRecord) -> Vec<(u64, bool)> {
        let (mut at, mut out) = (0, Vec::new());
        loop {
            match maps.next_difference(a, b, at, 1 << 30).expect("all is in memory") {
                Difference::Run(run, mapped) => {
                    out.extend(run.clone().map(|lba| (lba, mapped)));
                    at = run.end;
                }
                Difference::NotBefore(next) => at = next,
                Difference::None => return out,
            }
        }
    }

    /// Maps that share pages, one of them with more levels, against a comparison of all entries.
    #[test]
    fn differences_are_those_of_all_entries() {
        let mut rng = Rng::new(3);
        for round in 0..60 {
            let mut maps = VolumeMaps::default();
            let mut next = 1u64;
            let mut new = || {
                next += 1;
                VirtualBlock(next)
            };
            let span = [400, 2000, 300_000][round % 3];
            let mut old = volume(span);
            let mut change = |maps: &mut VolumeMaps, v: &mut VolumeRecord, floor: Floor, span: u64, rng: &mut Rng| {
                for _ in 0..rng.between(1, 60) {
                    let lba = rng.below(span);
                    let len = rng.between(1, 9).min(512 - lba % 512).min(span - lba);
                    let kept = rng.chance(1, 6);
                    let to: Vec<VirtualBlock> = (0..len)
                        .map(|i| match rng.below(4) {
                            0 => VirtualBlock::NONE,
                            // Rewritten with the same: another page, no difference.
                            _ if kept => maps.lookup(v, Lba(lba + i)).expect("in memory"),
                            _ => new(),
                        })
                        .collect();
                    let (mut replaced, mut path) = (Vec::new(), Vec::new());
                    maps.set_in_leaf(v, &floor, Lba(lba), &to, &mut new, &mut replaced, &mut path).expect("in memory");
                    maps.prune(v, Lba(lba), |_| {}).expect("in memory");
                }
            };
            change(&mut maps, &mut old, Floor::default(), span, &mut rng);
            let mut now = VolumeRecord { generation: 2, ..old.clone() };
            let floor = Floor { parent: 1, ..Floor::default() };
            let mut fresh = 1u64 << 40;
            if rng.chance(1, 3) {
                now.blocks = span * 600;
                maps.grow(&mut now, span * 600, || {
                    fresh += 1;
                    VirtualBlock(fresh)
                });
            }
            let blocks = now.blocks;
            change(&mut maps, &mut now, floor, blocks.min(span * 3), &mut rng);
            let entry = |v: &VolumeRecord, lba: u64| maps.lookup(v, Lba(lba)).expect("in memory");
            let expected: Vec<(u64, bool)> = (0..span * 3)
                .filter(|lba| entry(&old, *lba) != entry(&now, *lba))
                .map(|lba| (lba, !entry(&now, lba).is_none()))
                .collect();
            assert_eq!(all(&maps, &old, &now), expected, "round {round}");
            assert_eq!(all(&maps, &now, &old).len(), expected.len(), "round {round}");
            assert!(all(&maps, &now, &now).is_empty());
        }
    }
}
