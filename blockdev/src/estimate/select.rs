//! Which regions are read.

use super::extrapolate::GROUPS;
use crate::env::Rng;

/// Chooses exactly so many of a known number of regions, each set of that size with the same chance, in their order and in no memory: selection sampling
/// (Fan, Muller and Rezucha 1962; algorithm S in Knuth, The Art of Computer Programming, volume 2, 3.4.2).
pub struct Selection {
    rng: Rng,
    wanted: u64,
    left: u64,
}

impl Selection {
    /// `wanted` of `regions`; `seed` decides which.
    pub fn new(seed: u64, wanted: u64, regions: u64) -> Self {
        Self { rng: Rng::new(seed), wanted: wanted.min(regions), left: regions }
    }

    /// All, however many there are.
    pub fn all() -> Self {
        Self::new(0, u64::MAX, u64::MAX)
    }

    /// Whether the next region is read, and the group it counts in then.
    #[expect(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> Option<u8> {
        let chosen = self.wanted > 0 && self.rng.chance(self.wanted, self.left);
        self.left = self.left.saturating_sub(1);
        self.wanted -= u64::from(chosen);
        chosen.then(|| self.rng.below(GROUPS as u64) as u8)
    }
}
