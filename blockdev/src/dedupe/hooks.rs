//! The hook table: from a sampled fingerprint to the list that has it.
//!
//! Lists get consecutive numbers as they come, and their identities lie in a ring by number. A hook is 8 bytes, 32 bits
//! of the fingerprint and the number, in buckets of 32, so a wrong hit has a chance of about 2^-27. The number is also
//! the age by which a full bucket lets go of its oldest hook, and tells when the ring has moved on past its list.

use rustc_hash::FxHashMap;

use super::{Key, ListId};
use crate::units::SegmentId;

const WAYS: usize = 32;
/// Hooks there must be at least for each place of the ring of lists. With lists of fewer on average (of fewer than 256
/// to 512 blocks), the ring forgets lists before the table forgets their hooks.
const HOOKS_PER_LIST: usize = 4;
/// Segments given back that are remembered before the ring is searched for their lists, in one go for all.
const DROPPED_MAX: usize = 1024;
/// In the ring: a list that is gone.
const NO_LIST: u64 = u64::MAX;

/// Bytes of a hook.
const HOOK: usize = 8;

pub struct Hooks {
    /// Lower halves of keys by bucket. This and the others are zeroed memory, so that what was never used is never
    /// touched.
    tags: Vec<[u32; WAYS]>,
    /// Numbers of lists by bucket, 0 for an empty place.
    numbers: Vec<[u32; WAYS]>,
    /// Identity of list `n` at `n` modulo the length, which is a power of two so that this survives the numbers
    /// wrapping. Places not yet used are never looked at.
    ring: Vec<u64>,
    /// Number of the newest list. Numbers wrap after 2^32 lists and leave out 0.
    newest: u32,
    /// Segments given back, with the newest list then: lists of the segment up to that one are gone.
    dropped: FxHashMap<SegmentId, u32>,
}

impl Hooks {
    pub fn new(budget: usize) -> Self {
        let ring = 1 << (budget / (HOOK * HOOKS_PER_LIST + size_of::<u64>())).max(1).ilog2();
        let buckets = ((budget - ring * size_of::<u64>()) / (HOOK * WAYS)).max(1);
        Self {
            tags: vec![[0; WAYS]; buckets],
            numbers: vec![[0; WAYS]; buckets],
            ring: vec![0; ring],
            newest: 0,
            dropped: FxHashMap::with_capacity_and_hasher(DROPPED_MAX, Default::default()),
        }
    }

    /// Hooks it has room for.
    pub fn capacity(&self) -> usize {
        self.tags.len() * WAYS
    }

    /// Lists it has room for.
    #[cfg(test)]
    pub fn lists(&self) -> usize {
        self.ring.len()
    }

    #[cfg(test)]
    pub fn set_newest(&mut self, number: u32) {
        self.newest = number;
    }

    fn ring_place(&self, number: u32) -> usize {
        number as usize & (self.ring.len() - 1)
    }

    /// How many lists ago list `number` came.
    fn age(&self, number: u32) -> u32 {
        self.newest.wrapping_sub(number)
    }

    /// The identity of list `number`, if the ring still has it and its segment was not given back since.
    fn resolve(&self, number: u32) -> Option<ListId> {
        if number == 0 || self.age(number) as usize >= self.ring.len() {
            return None;
        }
        let list = ListId(self.ring[self.ring_place(number)]);
        let gone = self.dropped.get(&list.segment()).is_some_and(|&last| self.age(number) >= self.age(last));
        (list.0 != NO_LIST && !gone).then_some(list)
    }

    fn find(&self, key: Key) -> Option<u32> {
        let place = key.place(self.tags.len());
        let (tags, numbers) = (&self.tags[place], &self.numbers[place]);
        (0..WAYS).find(|&i| tags[i] == key.0 as u32 && numbers[i] != 0).map(|i| numbers[i])
    }

    pub fn get(&self, key: Key) -> Option<ListId> {
        self.resolve(self.find(key)?)
    }

    /// The lists that came after the one this hook names, in order, as far as they are known.
    pub fn after(&self, key: Key) -> impl Iterator<Item = ListId> {
        let named = self.find(key).filter(|&number| self.resolve(number).is_some());
        let mut at = named.unwrap_or(self.newest);
        std::iter::from_fn(move || {
            if at == self.newest {
                return None;
            }
            at = next_number(at);
            self.resolve(at)
        })
    }

    /// Starts a list: the hooks inserted from now on belong to it.
    pub fn begin_list(&mut self, list: ListId) {
        self.newest = next_number(self.newest);
        let place = self.ring_place(self.newest);
        self.ring[place] = list.0;
    }

    pub fn insert(&mut self, key: Key) {
        let newest = self.newest;
        let place = key.place(self.tags.len());
        let (tags, numbers) = (&mut self.tags[place], &mut self.numbers[place]);
        // The hook itself if it is there, else an empty place, else the oldest. Without branches, as there is no
        // guessing where it will be.
        let (mut same, mut empty, mut oldest) = (0u32, 0u32, 0u64);
        for (i, (&tag, &number)) in tags.iter().zip(numbers.iter()).enumerate() {
            same |= u32::from(tag == key.0 as u32) << i;
            empty |= u32::from(number == 0) << i;
            oldest = oldest.max(u64::from(newest.wrapping_sub(number)) << 8 | i as u64);
        }
        same &= !empty;
        let at = match (same, empty) {
            (0, 0) => (oldest & 0xFF) as usize,
            (0, _) => empty.trailing_zeros() as usize,
            _ => same.trailing_zeros() as usize,
        };
        tags[at] = key.0 as u32;
        numbers[at] = newest;
    }

    pub fn drop_segment(&mut self, segment: SegmentId) {
        self.dropped.insert(segment, self.newest);
        if self.dropped.len() < DROPPED_MAX {
            return;
        }
        let mut ring = std::mem::take(&mut self.ring);
        let mask = ring.len() as u32 - 1;
        for (place, list) in ring.iter_mut().enumerate() {
            // The newest number that belongs at this place.
            let number = self.newest.wrapping_sub(self.newest.wrapping_sub(place as u32) & mask);
            if self.dropped.get(&ListId(*list).segment()).is_some_and(|&last| self.age(number) >= self.age(last)) {
                *list = NO_LIST;
            }
        }
        self.ring = ring;
        self.dropped.clear();
    }

    pub fn memory_used(&self) -> usize {
        // A map entry takes its size and a control byte.
        let dropped = self.dropped.capacity() * (size_of::<(SegmentId, u32)>() + 1) * 8 / 7;
        self.capacity() * HOOK + self.ring.capacity() * size_of::<u64>() + dropped
    }
}

fn next_number(number: u32) -> u32 {
    number.wrapping_add(1).max(1)
}
