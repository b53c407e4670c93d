//! What deduplication, compression and leaving zeroes out would save on data that is not in a pool yet.
//!
//! Pure accounting, without I/O, threads or chance of its own. The caller cuts the data, in the order in which it would be written, into
//! *regions* of at most [`REGION_BLOCKS`] blocks and takes each of those it reads through four steps:
//!
//! 1. [`cut`]: zero blocks and fingerprints. By any thread.
//! 2. [`Estimator::admit`]: which blocks are new, and how they are packed into frames. In the order of regions.
//! 3. [`compress`]: what the frames take. By any thread.
//! 4. [`Estimator::record`]: notes that. In any order.
//!
//! Everything that is reduced here is reduced by the code of the write path, in its portions: the same zero detection, the same fingerprints, frames of
//! as many new blocks in sequence, the same compressor.
//!
//! Two things are estimated where memory or time does not suffice: distinct blocks, from a sample of all fingerprints ([`distinct`]), and the whole,
//! from regions chosen at random ([`Selection`], [`extrapolate`]). How, and how well, is in `docs/design/0017-estimator.md`.

pub mod distinct;
pub mod extrapolate;
mod select;

use std::collections::HashSet;

use rustc_hash::FxBuildHasher;

use crate::codec::{self, Compressor, FRAME_BLOCKS};
use crate::report::Compression;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE};
use distinct::{DistinctSample, Seen};
use extrapolate::{Counts, GROUPS};

pub use extrapolate::{Estimate, Figure};
pub use select::Selection;

/// Most blocks of one region: as many as the write path reduces together, so that frames end where they would end there.
pub const REGION_BLOCKS: usize = 256;
/// [`REGION_BLOCKS`] in bytes.
pub const REGION_SIZE: usize = REGION_BLOCKS * BLOCK_SIZE;

/// The blocks of a region in their order: fingerprints, and none for zero blocks.
pub struct Cut(Vec<Option<u128>>);

/// Looks at the blocks of a region. Its length is a multiple of [`BLOCK_SIZE`].
pub fn cut(region: &[u8]) -> Cut {
    let (blocks, rest) = region.as_chunks::<BLOCK_SIZE>();
    debug_assert!(rest.is_empty());
    Cut(blocks.iter().map(|block| (!codec::is_zero(block)).then(|| codec::fingerprint(block))).collect())
}

/// Blocks of a region that are compressed together: positions, and fingerprints of those whose size is wanted.
pub struct Frame(Vec<(usize, Option<u128>)>);

/// What a block takes: its fingerprint, and its share of its frame's stored bytes.
pub type Share = (u128, u16);

/// Compresses frames of a region. A frame's bytes are shared out among its blocks without a rest.
pub fn compress(region: &[u8], frames: &[Frame], compressor: &mut Compressor, compression: Compression) -> Vec<Share> {
    let (mut raw, mut stored) = (Vec::with_capacity(FRAME_BLOCKS * BLOCK_SIZE), Vec::new());
    let mut shares = Vec::new();
    for Frame(blocks) in frames {
        raw.clear();
        stored.clear();
        for (position, _) in blocks {
            raw.extend_from_slice(&region[position * BLOCK_SIZE..][..BLOCK_SIZE]);
        }
        compressor.compress(compression, &raw, &mut stored);
        let (count, len) = (blocks.len(), stored.len());
        for (i, (_, fingerprint)) in blocks.iter().enumerate() {
            let share = len * (i + 1) / count - len * i / count;
            shares.extend(fingerprint.map(|fingerprint| (fingerprint, share as u16)));
        }
    }
    shares
}

/// Adds up what regions hold, in bounded memory.
pub struct Estimator {
    sample: DistinctSample,
    /// Blocks of regions that were read, by group.
    read: [Counts; GROUPS],
    /// Blocks of regions that were passed over.
    passed: u64,
    /// Blocks known to be zeroes without reading.
    holes: u64,
}

impl Estimator {
    /// An estimator that takes at most `memory` bytes, and no more than `blocks` blocks can need.
    pub fn new(memory: u64, blocks: u64) -> Self {
        Self { sample: DistinctSample::new(memory, blocks), read: [Counts::default(); GROUPS], passed: 0, holes: 0 }
    }

    /// Counts a region, and tells which of its blocks have to be compressed. Regions are admitted in the order in which they would be written. `group` is
    /// what [`Selection::next`] gave.
    pub fn admit(&mut self, Cut(blocks): &Cut, group: u8) -> Vec<Frame> {
        let counts = &mut self.read[usize::from(group)];
        counts.regions += 1;
        counts.blocks += blocks.len() as u64;
        counts.zeroes += blocks.iter().filter(|b| b.is_none()).count() as u64;
        // A region counts once for each content, however often that repeats in it.
        let mut here: HashSet<u128, FxBuildHasher> = HashSet::with_capacity_and_hasher(blocks.len(), FxBuildHasher);
        let mut fresh = Vec::with_capacity(blocks.len());
        for (position, fingerprint) in blocks.iter().enumerate() {
            let Some(fingerprint) = *fingerprint else { continue };
            if !here.insert(fingerprint) {
                continue;
            }
            match self.sample.see(fingerprint, group) {
                Seen::Before => {}
                Seen::First => fresh.push((position, Some(fingerprint))),
                // Nobody knows. Duplicates come in runs, so what stands beside a new block is taken for new.
                Seen::Outside => fresh.push((position, None)),
            }
        }
        // Frames that nobody wants to know anything of need not be compressed.
        let wanted = fresh.chunks(FRAME_BLOCKS).filter(|frame| frame.iter().any(|(_, wanted)| wanted.is_some()));
        wanted.map(|frame| Frame(frame.to_vec())).collect()
    }

    /// Notes what blocks take.
    pub fn record(&mut self, shares: &[Share]) {
        shares.iter().for_each(|&(fingerprint, share)| self.sample.set_share(fingerprint, share));
    }

    /// Passes over blocks of regions that are not read.
    pub fn pass_over(&mut self, blocks: u64) {
        self.passed += blocks;
    }

    /// Counts blocks that are known to be zeroes without reading.
    pub fn hole(&mut self, blocks: u64) {
        self.holes += blocks;
    }

    /// Bytes that are not zero and the bytes they would take, of what was read so far: at a glance, without ranges and without a look beyond.
    pub fn so_far(&self) -> (u64, u64) {
        let filled: u64 = self.read.iter().map(|c| c.blocks - c.zeroes).sum();
        (filled * BLOCK_BYTES, self.sample.stored())
    }

    /// The estimate for everything that was admitted, passed over and known to be zeroes.
    pub fn estimate(&self) -> Estimate {
        extrapolate::estimate(&self.read, &self.sample, self.passed, self.holes)
    }
}

#[cfg(test)]
mod tests;
