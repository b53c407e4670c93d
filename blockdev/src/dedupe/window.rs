//! The recent window: a table of fixed size in which new entries take the place of the oldest.
//!
//! Buckets of 16 entries of 16 bytes. An entry goes to one bucket, in place of the oldest there if it is full, so what
//! leaves is nearly the oldest of all: of entries that are half as old as the table is large, 99 in 100 are still
//! there.

use super::Key;
use crate::units::VirtualBlock;

const WAYS: usize = 16;
/// Ticks of the clock in the time in which as many entries come as the table holds. Ages have 16 bits, so they are good
/// for 256 such times; no entry lives a tenth as long.
const TICKS_PER_TURN: usize = 256;
const BLOCK_BITS: u32 = 48;

/// Keys, then values: the block in the lower 48 bits, 0 for an empty place; above, the tick it came in. Zeroed memory,
/// so that what was never used is never touched.
type Bucket = [[u64; WAYS]; 2];

pub struct Window {
    buckets: Vec<Bucket>,
    tick: u16,
    until_tick: usize,
}

fn block_of(value: u64) -> VirtualBlock {
    VirtualBlock(value & ((1 << BLOCK_BITS) - 1))
}

/// Where the key may be, one bit a place: empty places are not told apart. Without branches, for nearly all answers are
/// different and the processor should be at the next bucket already.
fn matches(keys: &[u64; WAYS], key: Key) -> u32 {
    keys.iter().enumerate().fold(0, |mask, (i, &k)| mask | u32::from(k == key.0) << i)
}

/// The set bits, ascending.
fn places(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(at)
    })
}

impl Window {
    pub fn new(budget: usize) -> Self {
        let buckets = vec![[[0; WAYS]; 2]; (budget / size_of::<Bucket>()).max(1)];
        let mut window = Self { buckets, tick: 0, until_tick: 0 };
        window.until_tick = window.tick_len();
        window
    }

    /// Entries it has room for.
    pub fn capacity(&self) -> usize {
        self.buckets.len() * WAYS
    }

    fn tick_len(&self) -> usize {
        (self.capacity() / TICKS_PER_TURN).max(1)
    }

    /// Has the processor fetch what [`Self::get`] and [`Self::insert`] will look at.
    pub fn prefetch(&self, key: Key) {
        let [keys, values] = &self.buckets[key.place(self.buckets.len())];
        super::prefetch::prefetch(&keys[0]);
        super::prefetch::prefetch(&keys[WAYS / 2]);
        super::prefetch::prefetch(&values[0]);
        super::prefetch::prefetch(&values[WAYS / 2]);
    }

    pub fn get(&self, key: Key) -> Option<VirtualBlock> {
        let [keys, values] = &self.buckets[key.place(self.buckets.len())];
        places(matches(keys, key)).map(|i| values[i]).find(|&value| value != 0).map(block_of)
    }

    /// Blocks beyond 48 bits, which no format has, are not remembered.
    pub fn insert(&mut self, key: Key, block: VirtualBlock) {
        if block.0 >> BLOCK_BITS != 0 {
            return;
        }
        self.until_tick -= 1;
        if self.until_tick == 0 {
            self.tick = self.tick.wrapping_add(1);
            self.until_tick = self.tick_len();
        }
        let place = key.place(self.buckets.len());
        let [keys, values] = &mut self.buckets[place];
        // The entry itself if it is there, else an empty place, else the oldest.
        let mut same = matches(keys, key);
        let (mut empty, mut oldest) = (0, 0);
        for (i, &value) in values.iter().enumerate() {
            empty |= u32::from(value == 0) << i;
            let age = self.tick.wrapping_sub((value >> BLOCK_BITS) as u16);
            oldest = oldest.max(u32::from(age) << 8 | i as u32);
        }
        same &= !empty;
        let at = match (same, empty) {
            (0, 0) => (oldest & 0xFF) as usize,
            (0, _) => empty.trailing_zeros() as usize,
            _ => same.trailing_zeros() as usize,
        };
        keys[at] = key.0;
        values[at] = block.0 | u64::from(self.tick) << BLOCK_BITS;
    }

    pub fn remove(&mut self, key: Key, block: VirtualBlock) {
        let place = key.place(self.buckets.len());
        let [keys, values] = &mut self.buckets[place];
        for at in places(matches(keys, key)) {
            if block_of(values[at]) == block {
                values[at] = 0;
            }
        }
    }

    pub fn memory_used(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }
}
