//! Uncompressed frames, for reads of neighbours and for the comparison of duplicates.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

/// Incarnation of the segment and offset in it: never means two different frames.
pub type FrameKey = (u64, u32);

const SHARDS: usize = 8;

#[derive(Default)]
struct Shard {
    frames: FxHashMap<FrameKey, (Bytes, AtomicBool)>,
    clock: VecDeque<FrameKey>,
    bytes: usize,
}

/// A cache of frames, bounded in bytes.
pub struct FrameCache {
    shards: [Mutex<Shard>; SHARDS],
    limit: usize,
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
    /// A cache of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let sets = (limit / FRAME_BYTES * PASSED_PER_FRAME / WAYS).max(64).next_power_of_two();
        Self {
            shards: Default::default(),
            limit: limit / SHARDS,
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
        let shard = self.shard(key).lock();
        let (data, used) = shard.frames.get(key)?;
        used.store(true, Ordering::Relaxed);
        Some(data.clone())
    }

    /// Puts a frame in; others that were not used lately go.
    pub fn insert(&self, key: FrameKey, data: Bytes) {
        if data.len() > self.limit {
            return;
        }
        let mut shard = self.shard(&key).lock();
        let shard = &mut *shard;
        while shard.bytes + data.len() > self.limit {
            let Some(oldest) = shard.clock.pop_front() else { break };
            match shard.frames.get(&oldest) {
                Some((_, used)) if used.swap(false, Ordering::Relaxed) => shard.clock.push_back(oldest),
                Some((frame, _)) => {
                    shard.bytes -= frame.len();
                    shard.frames.remove(&oldest);
                }
                None => {}
            }
        }
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
        self.shards.iter().map(|s| s.lock().bytes).sum::<usize>() + self.passed.len() * size_of::<[AtomicU32; WAYS]>()
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
        let cache = FrameCache::new(16 << 20);
        let key = |n: u32| (7 + u64::from(n >> 10), (n & 1023) * 5000);
        let again = |from: u32, to: u32| (from..to).filter(|n| cache.comes_again(&key(*n))).count();
        // More than there are places.
        assert_eq!(again(0, 100_000), 0);
        assert_eq!(again(200_000, 201_000), 0);
        assert!(again(200_000, 201_000) > 900);
    }

    #[test]
    fn the_cache_keeps_to_its_limit() {
        let cache = FrameCache::new(1 << 20);
        for n in 0..1000 {
            cache.insert((1, n * 9000), Bytes::from(vec![n as u8; 16 << 10]));
            assert!(cache.memory() <= (1 << 20) + (4 << 10));
        }
        assert_eq!(cache.get(&(1, 999 * 9000)).map(|data| data[0]), Some(231));
        assert!(cache.get(&(1, 0)).is_none());
    }
}
