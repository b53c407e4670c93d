//! Uncompressed frames, for reads of neighbours and for the comparison of duplicates.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

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
}

impl FrameCache {
    /// A cache of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { shards: Default::default(), limit: limit / SHARDS }
    }

    fn shard(&self, key: &FrameKey) -> &Mutex<Shard> {
        let mixed = (key.0 ^ u64::from(key.1) >> 9).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        &self.shards[(mixed >> 61) as usize % SHARDS]
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
        self.shards.iter().map(|s| s.lock().bytes).sum()
    }
}
