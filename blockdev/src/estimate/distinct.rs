//! How many distinct blocks there are, in bounded memory: all fingerprints while they fit, then a sample of them.
//!
//! Kept are fingerprints that end in at least *level* zero bits; when there is no room the level rises by one, which lets half of them go. That is
//! Wegman's adaptive sampling (Flajolet, On adaptive sampling, Computing 43, 1990), as a sample of distinct values with what is known of each: Gibbons,
//! Distinct sampling for highly-accurate answers to distinct values queries and event reports, VLDB 2001. Whether a content is in the sample depends on the
//! content alone, not on how often or when it comes: so counts and sums over the sample, times 2^level, are unbiased for all distinct blocks, with the
//! errors of drawing each with chance 2^-level.

use std::collections::HashMap;

use rustc_hash::FxBuildHasher;

/// Regions of a content beyond the number of which nothing is told apart.
pub const REGIONS_TOLD: usize = 3;

/// What is known of one content.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Bytes it takes; 0 until that is known.
    pub share: u16,
    /// Zero bits at the end of the fingerprint.
    level: u8,
    /// Regions it was in, [`REGIONS_TOLD`] + 1 for all beyond.
    regions: u8,
    /// Groups of the first of them.
    groups: [u8; REGIONS_TOLD],
}

impl Entry {
    /// Regions it was in, [`REGIONS_TOLD`] + 1 for all beyond.
    pub fn regions(&self) -> usize {
        self.regions.into()
    }

    /// Groups of these regions, of the first [`REGIONS_TOLD`].
    pub fn groups(&self) -> &[u8] {
        &self.groups[..self.regions().min(REGIONS_TOLD)]
    }
}

/// Memory of a slot of the table, in bytes: key, entry, control byte.
const SLOT: u64 = (size_of::<(u64, Entry)>() + 1) as u64;

/// What is known of a block when it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Its content was there before.
    Before,
    /// Its content was not there before.
    First,
    /// Its content is not in the sample.
    Outside,
}

/// A sample of distinct contents.
pub struct DistinctSample {
    /// By the upper half of the fingerprint; the lower half decides what is sampled.
    entries: HashMap<u64, Entry, FxBuildHasher>,
    limit: usize,
    level: u8,
    /// Sum of all shares.
    share: u64,
}

impl DistinctSample {
    /// Takes at most `memory` bytes, and no more than `blocks` distinct contents need.
    pub fn new(memory: u64, blocks: u64) -> Self {
        // The table has a power of two of slots, of which seven eighths are used.
        let slots = (memory / SLOT).max(16);
        let limit = (1u64 << slots.ilog2()) / 8 * 7;
        let entries = HashMap::with_capacity_and_hasher(limit.min(blocks) as usize, FxBuildHasher);
        Self { entries, limit: limit as usize, level: 0, share: 0 }
    }

    /// Takes note of a content in a region of `group`. The caller tells each region's contents once.
    pub fn see(&mut self, fingerprint: u128, group: u8) -> Seen {
        let level = (fingerprint as u64).trailing_zeros() as u8;
        if level < self.level {
            return Seen::Outside;
        }
        if let Some(entry) = self.entries.get_mut(&key(fingerprint)) {
            if let Some(place) = entry.groups.get_mut(usize::from(entry.regions)) {
                *place = group;
            }
            entry.regions = (entry.regions + 1).min(REGIONS_TOLD as u8 + 1);
            return Seen::Before;
        }
        while self.entries.len() >= self.limit {
            self.level += 1;
            self.entries.retain(|_, entry| entry.level >= self.level);
            self.share = self.entries.values().map(|e| u64::from(e.share)).sum();
        }
        if level < self.level {
            return Seen::Outside;
        }
        let entry = Entry { share: 0, level, regions: 1, groups: [group; REGIONS_TOLD] };
        self.entries.insert(key(fingerprint), entry);
        Seen::First
    }

    /// Notes the bytes a content takes, if it is still in the sample.
    pub fn set_share(&mut self, fingerprint: u128, share: u16) {
        if let Some(entry) = self.entries.get_mut(&key(fingerprint)) {
            self.share = self.share + u64::from(share) - u64::from(entry.share);
            entry.share = share;
        }
    }

    /// One in so many distinct contents is in the sample: 1 while all of them fit.
    pub fn one_in(&self) -> u64 {
        1 << self.level.min(63)
    }

    /// The sample.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Estimated bytes that all distinct contents so far take.
    pub fn stored(&self) -> u64 {
        self.share * self.one_in()
    }
}

fn key(fingerprint: u128) -> u64 {
    (fingerprint >> 64) as u64
}
