//! The recent window: a table of fixed size in which new entries take the place of the oldest.
//!
//! Buckets of 16 entries of 16 bytes. An entry goes to one bucket, in place of the oldest there if it is full, so what
//! leaves is nearly the oldest of all: of entries that are half as old as the table is large, 99 in 100 are still there.

use super::Key;
use crate::units::VirtualBlock;

const WAYS: usize = 16;
/// Ticks of the clock in the time in which as many entries come as the table holds. Ages have 16 bits, so they are good
/// for 256 such times; no entry lives a tenth as long.
const TICKS_PER_TURN: usize = 256;
const BLOCK_BITS: u32 = 48;

/// Bytes of an entry.
const ENTRY: usize = 16;

pub struct Window {
    /// Keys by bucket, apart from the values because most searches find none. Zeroed memory, so that what was never
    /// used is never touched.
    keys: Vec<[u64; WAYS]>,
    /// The block in the lower 48 bits, 0 for an empty place; above, the tick it came in.
    values: Vec<[u64; WAYS]>,
    tick: u16,
    until_tick: usize,
}

fn block_of(value: u64) -> VirtualBlock {
    VirtualBlock(value & ((1 << BLOCK_BITS) - 1))
}

impl Window {
    pub fn new(budget: usize) -> Self {
        let buckets = (budget / (ENTRY * WAYS)).max(1);
        let (keys, values) = (vec![[0; WAYS]; buckets], vec![[0; WAYS]; buckets]);
        let mut window = Self { keys, values, tick: 0, until_tick: 0 };
        window.until_tick = window.tick_len();
        window
    }

    /// Entries it has room for.
    pub fn capacity(&self) -> usize {
        self.keys.len() * WAYS
    }

    fn tick_len(&self) -> usize {
        (self.capacity() / TICKS_PER_TURN).max(1)
    }

    pub fn get(&self, key: Key) -> Option<VirtualBlock> {
        let place = key.place(self.keys.len());
        let (keys, values) = (&self.keys[place], &self.values[place]);
        let at = (0..WAYS).find(|&i| keys[i] == key.0 && values[i] != 0)?;
        Some(block_of(values[at]))
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
        let tick = self.tick;
        let place = key.place(self.keys.len());
        let (keys, values) = (&mut self.keys[place], &mut self.values[place]);
        // The entry itself if it is there, else an empty place, else the oldest.
        let rank = |i: usize| match values[i] {
            0 => 1 << 16,
            _ if keys[i] == key.0 => 1 << 17,
            value => u32::from(tick.wrapping_sub((value >> BLOCK_BITS) as u16)),
        };
        let at = (0..WAYS).max_by_key(|&i| rank(i)).unwrap_or(0);
        keys[at] = key.0;
        values[at] = block.0 | u64::from(tick) << BLOCK_BITS;
    }

    pub fn remove(&mut self, key: Key, block: VirtualBlock) {
        let place = key.place(self.keys.len());
        for (entry_key, value) in self.keys[place].iter().zip(&mut self.values[place]) {
            if *entry_key == key.0 && block_of(*value) == block {
                *value = 0;
            }
        }
    }

    pub fn memory_used(&self) -> usize {
        self.capacity() * ENTRY
    }
}
