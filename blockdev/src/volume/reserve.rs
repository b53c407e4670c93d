//! Space that is set aside for volumes, whatever others write. `docs/design/0022-reservations.md` shows that it suffices.

use std::sync::atomic::Ordering;

use super::Engine;
use super::space::Space;
use super::state::State;
use crate::error::{Error, ErrorKind, Result};
use crate::format::volume::{RESERVED_ALL, VolumeRecord};
use crate::units::{BLOCK_BYTES, VolumeId};

/// How much to reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// So many bytes; 0 for nothing.
    Bytes(u64),
    /// The whole volume, whatever its size.
    All,
}

impl Reserve {
    /// Blocks as a record has them, for a volume of so many.
    pub(crate) fn blocks(self, name: &str, blocks: u64) -> Result<u64> {
        match self {
            Self::All => Ok(RESERVED_ALL),
            Self::Bytes(bytes) if !bytes.is_multiple_of(BLOCK_BYTES) => {
                Err(Error::invalid(format!("volume '{name}': {bytes} bytes are no multiple of {BLOCK_BYTES}")))
            }
            Self::Bytes(bytes) if bytes / BLOCK_BYTES > blocks => Err(Error::invalid(format!(
                "volume '{name}': {bytes} bytes are more than its size of {}; reserve all of it",
                blocks * BLOCK_BYTES
            ))),
            Self::Bytes(bytes) => Ok(bytes / BLOCK_BYTES),
        }
    }
}

/// Part of what is set aside that metadata may take on top.
const METADATA: u64 = 32;

/// What there would be to set aside if volumes were otherwise.
pub(crate) struct Changed<'a> {
    /// Blocks reserved for a volume that is about to be made.
    pub new: u64,
    /// A volume as it would be; None: as it is.
    pub of: &'a (dyn Fn(&VolumeRecord) -> Option<VolumeRecord> + Sync),
}

/// Room that is kept for a change that is about to be made.
pub(crate) struct Promise<'a> {
    engine: &'a Engine,
    bytes: u64,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.engine.promised.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// What reservations come to, in blocks.
#[derive(Default)]
struct Sum {
    reserved: u64,
    /// Of these, the ones that are there and no snapshot holds.
    covered: u64,
}

impl Sum {
    fn add(&mut self, v: &VolumeRecord) {
        let reserved = v.reserved_blocks();
        self.reserved += reserved;
        self.covered += v.owned.min(v.mapped).min(reserved);
    }

    /// Bytes to be left: for what has not been written yet, and, as far as sharing and compression save anything at all, for what has: overwriting that
    /// may give less back than it takes.
    fn set_aside(&self, saved: u64) -> u64 {
        let bytes = (self.reserved - self.covered) * BLOCK_BYTES + saved.min(self.covered * BLOCK_BYTES);
        bytes + bytes / METADATA
    }
}

impl State {
    fn reservations(&self) -> Sum {
        let mut sum = Sum::default();
        self.reserving.iter().filter_map(|id| self.live(*id)).for_each(|v| sum.add(v));
        sum
    }

    fn reservations_if(&self, changed: &Changed<'_>) -> Sum {
        let mut sum = Sum { reserved: changed.new, ..Sum::default() };
        for v in self.volumes.values().filter(|v| !v.deleting) {
            match (changed.of)(v) {
                Some(other) => sum.add(&other),
                None => sum.add(v),
            }
        }
        sum
    }

    fn saved(&self) -> u64 {
        self.referenced_bytes.saturating_sub(self.stored_bytes)
    }

    /// Bytes reserved for volumes.
    pub fn reserved(&self) -> u64 {
        self.reservations().reserved * BLOCK_BYTES
    }
}

impl Engine {
    /// Whether a volume writes into what is set aside for it.
    pub(super) fn is_reserved(&self, volume: VolumeId) -> bool {
        let state = self.state.read();
        let Some(v) = state.live(volume).filter(|v| v.reserved > 0) else { return false };
        let under_way = (self.intake.memory() as u64).div_ceil(BLOCK_BYTES);
        v.reserved_blocks() == v.blocks || v.owned + under_way <= v.reserved_blocks()
    }

    /// Fails with `NoSpace` when there is no room for what would have to be set aside, unless it is no more than now. Until what is given is dropped, which
    /// is to be after the change, nobody else takes that room.
    pub(crate) fn check_reservations(&self, changed: &Changed<'_>, what: &str) -> Result<Promise<'_>> {
        let space = self.space();
        let (now, then) = {
            let state = self.state.read();
            let (now, then) = (state.reservations(), state.reservations_if(changed));
            (self.room_for(&now, state.saved(), &space), self.room_for(&then, state.saved(), &space))
        };
        let promise = Promise { engine: self, bytes: then.saturating_sub(now) };
        self.promised.fetch_add(promise.bytes, Ordering::SeqCst);
        // Only now: what was let in before is on its way or stored, and what comes later finds the promise.
        let taken = self.intake.memory() as u64;
        let room = self.space().available().saturating_sub(taken);
        if then <= now || then <= room {
            return Ok(promise);
        }
        Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "pool {}: {what} needs {} MiB that nobody else may write to, and {} MiB are free: delete snapshots or volumes, reserve less, or add \
                 drives",
                self.name,
                then.div_ceil(1 << 20),
                room >> 20
            ),
        ))
    }

    /// What is to be left for reservations, and for what those who have them may have under way.
    fn room_for(&self, sum: &Sum, saved: u64, space: &Space) -> u64 {
        let under_way = self.intake.most_memory().min(sum.reserved * BLOCK_BYTES).min(space.usable / 8);
        sum.set_aside(saved) + under_way
    }

    /// What is set aside now, or is about to be.
    pub(super) fn set_aside(&self, state: &State, space: &Space) -> u64 {
        let promised = self.promised.load(Ordering::SeqCst);
        match state.reserving.is_empty() {
            true => promised,
            false => promised + self.room_for(&state.reservations(), state.saved(), space),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Rng;
    use crate::format::catalogue::Catalogue;
    use crate::segment::table::SegmentTable;

    /// Volumes over blocks that are shared and compressed in all ways; those with reservations overwrite all that is theirs with what neither can be
    /// shared nor compressed, in any order: what is set aside is enough.
    #[test]
    fn what_is_set_aside_is_enough() {
        for seed in 0..2000 {
            let mut rng = Rng::new(seed);
            let blocks = rng.between(1, 30) as usize;
            let stored: Vec<u64> = (0..blocks).map(|_| rng.between(100, BLOCK_BYTES)).collect();
            let mut references = vec![0u64; blocks];
            let volumes: Vec<(VolumeRecord, Vec<usize>)> = (0..rng.between(1, 5))
                .map(|n| {
                    let owned: Vec<usize> = (0..rng.below(20)).map(|_| rng.index(blocks)).collect();
                    owned.iter().for_each(|b| references[*b] += 1);
                    let size = owned.len() as u64 + rng.below(10);
                    let mut v = VolumeRecord::empty(VolumeId(n as u32 + 1), &format!("v{n}"), size, 1);
                    (v.mapped, v.owned) = (owned.len() as u64, owned.len() as u64);
                    v.reserved = if rng.chance(1, 2) { rng.below(size + 5) } else { 0 };
                    (v, owned)
                })
                .collect();
            let used = |references: &[u64]| -> u64 {
                references.iter().zip(&stored).filter(|(r, _)| **r > 0).map(|(_, bytes)| bytes).sum()
            };
            let catalogue = Catalogue {
                volumes: volumes.iter().map(|(v, _)| v.clone()).collect(),
                referenced_bytes: references.iter().sum::<u64>() * BLOCK_BYTES,
                stored_bytes: used(&references),
                ..Catalogue::default()
            };
            let geometry = crate::format::layout::PoolGeometry {
                chunk_size: 256 << 10,
                strip_size: 64 << 10,
                catalogue_size: 64 << 10,
                log_extent_size: 64 << 10,
                log_extents: 4,
            };
            let table = SegmentTable::new(geometry, std::iter::empty(), Vec::new(), 1);
            let state = State::of(&catalogue, table, 1);
            let limit = used(&references) + state.reservations().set_aside(state.saved());
            let mut written = 0;
            for (v, owned) in &volumes {
                let reserved = v.reserved_blocks() as usize;
                for i in 0..reserved {
                    // What was there, if anything, goes.
                    if let Some(block) = owned.get(i) {
                        references[*block] -= 1;
                    }
                    written += BLOCK_BYTES;
                }
            }
            assert!(used(&references) + written <= limit, "seed {seed}: {} of {limit}", used(&references) + written);
        }
    }
}
