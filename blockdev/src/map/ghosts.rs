//! Keys of what was evicted lately: who asks for one of them again would have found it in a larger cache.

use std::collections::VecDeque;
use std::hash::Hash;

use rustc_hash::FxHashMap;

/// Keys that were evicted, the newest of them.
pub struct Ghosts<K> {
    keys: FxHashMap<K, u64>,
    order: VecDeque<(K, u64)>,
    next: u64,
}

impl<K> Default for Ghosts<K> {
    fn default() -> Self {
        Self { keys: FxHashMap::default(), order: VecDeque::new(), next: 0 }
    }
}

impl<K: Copy + Eq + Hash> Ghosts<K> {
    /// A key was evicted; at most so many are remembered.
    pub fn add(&mut self, key: K, most: usize) {
        self.next += 1;
        self.keys.insert(key, self.next);
        self.order.push_back((key, self.next));
        while self.order.len() > most {
            let Some((old, number)) = self.order.pop_front() else { break };
            if self.keys.get(&old) == Some(&number) {
                self.keys.remove(&old);
            }
        }
    }

    /// Whether a key was evicted lately; it is forgotten.
    pub fn take(&mut self, key: &K) -> bool {
        self.keys.remove(key).is_some()
    }

    /// Bytes taken, about.
    pub fn memory(&self) -> usize {
        self.order.capacity() * size_of::<(K, u64)>() + self.keys.capacity() * (size_of::<(K, u64)>() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered_and_each_tells_once() {
        let mut ghosts = Ghosts::default();
        (0..10).for_each(|key| ghosts.add(key, 4));
        assert!(!ghosts.take(&5) && ghosts.take(&6) && ghosts.take(&9));
        assert!(!ghosts.take(&9), "once");
        // One that comes back and goes again is as new as its last going.
        ghosts.add(6, 4);
        ghosts.add(20, 4);
        ghosts.add(21, 4);
        ghosts.add(22, 4);
        assert!(ghosts.take(&6) && !ghosts.take(&7));
        assert!(ghosts.order.len() <= 4 && ghosts.keys.len() <= 4);
    }
}
