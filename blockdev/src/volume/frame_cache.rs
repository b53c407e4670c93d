//! Uncompressed frames, for reads of neighbours and for the comparison of duplicates.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::map::ghosts::Ghosts;

/// Incarnation of the segment and offset in it: never means two different frames.
pub type FrameKey = (u64, u32);

const SHARDS: usize = 8;

#[derive(Default)]
struct Shard {
    frames: FxHashMap<FrameKey, (Bytes, AtomicBool)>,
    clock: VecDeque<FrameKey>,
    bytes: usize,
    ghosts: Ghosts<FrameKey>,
}

impl Shard {
    /// Evicts what was not used lately, until so many bytes fit within the limit.
    fn make_room(&mut self, bytes: usize, limit: usize, remembered: usize) {
        while self.bytes + bytes > limit {
            let Some(oldest) = self.clock.pop_front() else { break };
            match self.frames.get(&oldest) {
                Some((_, used)) if used.swap(false, Ordering::Relaxed) => self.clock.push_back(oldest),
                Some((frame, _)) => {
                    self.bytes -= frame.len();
                    self.frames.remove(&oldest);
                    self.ghosts.add(oldest, remembered);
                }
                None => {}
            }
        }
    }
}

/// A cache of frames, bounded in bytes.
pub struct FrameCache {
    shards: [Mutex<Shard>; SHARDS],
    /// Bytes of each shard.
    limit: AtomicUsize,
    /// Evicted frames that each shard remembers.
    remembered: usize,
    /// Frames that were asked for and had been evicted not long ago.
    missed: AtomicU64,
    /// The shard that is looked at when the limit is next lowered.
    turn: AtomicUsize,
    /// Tags of frames that were read as a whole lately, each in one of the places its key hashes to. Advice only: collisions do no harm.
    passed: Box<[[AtomicU32; WAYS]]>,
}

/// Tags in [`FrameCache::passed`] for each frame the cache has room for.
const PASSED_PER_FRAME: usize = 4;
/// Places for a key: with one, two frames that share it would drive each other out for ever.
const WAYS: usize = 4;
/// Bytes of the usual frame.
const FRAME_BYTES: usize = 16 << 10;

impl FrameCache {
    /// A cache of at most `limit` bytes that remembers evicted frames of so many.
    pub fn new(limit: usize, remembered: usize) -> Self {
        let sets = (limit / FRAME_BYTES * PASSED_PER_FRAME / WAYS).max(64).next_power_of_two();
        Self {
            shards: Default::default(),
            limit: AtomicUsize::new(limit / SHARDS),
            remembered: remembered / FRAME_BYTES / SHARDS,
            missed: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
            passed: (0..sets).map(|_| Default::default()).collect(),
        }
    }

    fn shard(&self, key: &FrameKey) -> &Mutex<Shard> {
        &self.shards[(mix(key) >> 61) as usize % SHARDS]
    }

    /// Notes that a frame was read as a whole; whether that is the second time of late. Streams pass the cache by, but what comes again and
    /// again is worth a place.
    pub fn comes_again(&self, key: &FrameKey) -> bool {
        let mixed = mix(key);
        let tag = (mixed >> 29) as u32 | 1;
        let set = &self.passed[mixed as usize & (self.passed.len() - 1)];
        if set.iter().any(|place| place.load(Ordering::Relaxed) == tag) {
            return true;
        }
        // The oldest goes.
        set.iter().fold(tag, |tag, place| place.swap(tag, Ordering::Relaxed));
        false
    }

    /// The frame, if cached.
    pub fn get(&self, key: &FrameKey) -> Option<Bytes> {
        let mut shard = self.shard(key).lock();
        if let Some((data, used)) = shard.frames.get(key) {
            used.store(true, Ordering::Relaxed);
            return Some(data.clone());
        }
        if shard.ghosts.take(key) {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
        None
    }

    /// Bytes of frames that were asked for since this was last asked, and had been evicted not long before.
    pub fn take_missed(&self) -> usize {
        match self.missed.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.missed.swap(0, Ordering::Relaxed) as usize * FRAME_BYTES,
        }
    }

    /// Changes the limit. Where it is lower now, what is too much goes with the next frames, and a part of it at once.
    pub fn set_limit(&self, limit: usize) {
        let limit = limit / SHARDS;
        if self.limit.swap(limit, Ordering::Relaxed) > limit {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % SHARDS;
            self.shards[turn].lock().make_room(0, limit, self.remembered);
        }
    }

    /// Puts a frame in; others that were not used lately go.
    pub fn insert(&self, key: FrameKey, data: Bytes) {
        let limit = self.limit.load(Ordering::Relaxed);
        if data.len() > limit {
            return;
        }
        let mut shard = self.shard(&key).lock();
        let shard = &mut *shard;
        shard.make_room(data.len(), limit, self.remembered);
        shard.bytes += data.len();
        match shard.frames.insert(key, (data, AtomicBool::new(false))) {
            Some((old, _)) => shard.bytes -= old.len(),
            None => shard.clock.push_back(key),
        }
    }

    /// Forgets a frame.
    pub fn remove(&self, key: &FrameKey) {
        let mut shard = self.shard(key).lock();
        if let Some((old, _)) = shard.frames.remove(key) {
            shard.bytes -= old.len();
        }
    }

    /// Bytes held.
    pub fn memory(&self) -> usize {
        let shard = |s: &Mutex<Shard>| {
            let s = s.lock();
            s.bytes + s.ghosts.memory()
        };
        self.shards.iter().map(shard).sum::<usize>() + self.passed.len() * size_of::<[AtomicU32; WAYS]>()
    }
}

fn mix(key: &FrameKey) -> u64 {
    let mixed = (key.0.rotate_left(32) ^ u64::from(key.1)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_is_noticed_and_a_stream_is_not() {
        let cache = FrameCache::new(16 << 20, 0);
        let key = |n: u32| (7 + u64::from(n >> 10), (n & 1023) * 5000);
        let again = |from: u32, to: u32| (from..to).filter(|n| cache.comes_again(&key(*n))).count();
        // More than there are places.
        assert_eq!(again(0, 100_000), 0);
        assert_eq!(again(200_000, 201_000), 0);
        assert!(again(200_000, 201_000) > 900);
    }

    #[test]
    fn the_cache_keeps_to_its_limit() {
        let cache = FrameCache::new(1 << 20, 0);
        for n in 0..1000 {
            cache.insert((1, n * 9000), Bytes::from(vec![n as u8; 16 << 10]));
            assert!(cache.memory() <= (1 << 20) + (4 << 10));
        }
        assert_eq!(cache.get(&(1, 999 * 9000)).map(|data| data[0]), Some(231));
        assert!(cache.get(&(1, 0)).is_none());
    }

    #[test]
    fn what_is_missed_soon_after_it_went_is_told_and_the_limit_follows() {
        let cache = FrameCache::new(1 << 20, 1 << 20);
        let frame = || Bytes::from(vec![1; 16 << 10]);
        let key = |n: u32| (1, n * 9000);
        (0..96).for_each(|n| cache.insert(key(n), frame()));
        assert_eq!(cache.take_missed(), 0);
        let gone = (0..96).filter(|n| cache.get(&key(*n)).is_none()).count();
        assert!(gone >= 32, "{gone}");
        assert_eq!(cache.take_missed(), gone * FRAME_BYTES);
        assert_eq!(cache.take_missed(), 0, "told once");
        // One never seen tells nothing.
        assert!(cache.get(&(9, 9)).is_none());
        assert_eq!(cache.take_missed(), 0);
        let before = cache.memory();
        (0..SHARDS as u32).for_each(|n| cache.set_limit((512 << 10) - n as usize * SHARDS));
        assert!(cache.memory() <= before - (400 << 10), "{} of {before}", cache.memory());
        cache.set_limit(4 << 20);
        (0..96).for_each(|n| cache.insert(key(n), frame()));
        assert!((0..96).all(|n| cache.get(&key(n)).is_some()));
    }
}
