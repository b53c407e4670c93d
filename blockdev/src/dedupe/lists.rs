//! Lists loaded from disk: one table over the fingerprints of all of them, and which list was used when.

use rustc_hash::FxHashMap;

use super::{Key, ListId};
use crate::units::{SegmentId, VirtualBlock};

/// Lists at once; their slots are 16 bits wide.
const LISTS_MAX: usize = 1 << 16;
/// Bytes a list takes beside its keys: in the slots, the map and the allocator.
const LIST_OVERHEAD: usize = 128;
const BLOCK_BITS: u32 = 48;

/// An entry of the table: the key, and the block with the slot of its list above; 0 for an empty place.
#[derive(Clone, Copy, Default)]
struct Entry {
    key: u64,
    value: u64,
}

impl Entry {
    fn block(self) -> VirtualBlock {
        VirtualBlock(self.value & ((1 << BLOCK_BITS) - 1))
    }

    fn slot(self) -> usize {
        (self.value >> BLOCK_BITS) as usize
    }
}

struct Loaded {
    list: ListId,
    keys: Box<[Key]>,
    /// Neighbours in the order of use.
    newer: Option<u16>,
    older: Option<u16>,
}

pub struct LoadedLists {
    /// Open addressing with linear probing; never more than three quarters full.
    table: Vec<Entry>,
    entries: usize,
    slots: Vec<Option<Loaded>>,
    free_slots: Vec<u16>,
    by_id: FxHashMap<ListId, u16>,
    newest: Option<u16>,
    oldest: Option<u16>,
    /// Bytes of `slots` and what hangs on them.
    list_bytes: usize,
    list_bytes_max: usize,
}

impl LoadedLists {
    pub fn new(budget: usize) -> Self {
        // For every 4 places of 16 bytes 3 keys of 8 bytes, and what a list of 64 keys or more costs beside them.
        let places = (budget / (16 + 6 + 3)).max(16);
        Self {
            table: vec![Entry::default(); places],
            entries: 0,
            slots: Vec::new(),
            free_slots: Vec::new(),
            by_id: FxHashMap::default(),
            newest: None,
            oldest: None,
            list_bytes: 0,
            list_bytes_max: budget.saturating_sub(places * size_of::<Entry>()),
        }
    }

    /// Fingerprints it has room for.
    pub fn capacity(&self) -> usize {
        self.table.len() / 4 * 3
    }

    pub fn contains(&self, list: ListId) -> bool {
        self.by_id.contains_key(&list)
    }

    /// Has the processor fetch where [`Self::get`] will look first.
    pub fn prefetch(&self, key: Key) {
        super::prefetch::prefetch(&self.table[key.place(self.table.len())]);
    }

    pub fn get(&mut self, key: Key) -> Option<VirtualBlock> {
        let at = self.find(key)?;
        let entry = self.table[at];
        self.touch(entry.slot() as u16);
        Some(entry.block())
    }

    pub fn insert(&mut self, list: ListId, mut keys: Vec<(Key, VirtualBlock)>) {
        if let Some(&slot) = self.by_id.get(&list) {
            self.evict(slot);
        }
        let fits = |max: usize| (max.saturating_sub(LIST_OVERHEAD)) / size_of::<Key>();
        keys.retain(|(_, block)| block.0 >> BLOCK_BITS == 0);
        keys.truncate(self.capacity().min(fits(self.list_bytes_max)));
        let bytes = LIST_OVERHEAD + keys.len() * size_of::<Key>();
        while self.entries + keys.len() > self.capacity()
            || self.list_bytes + bytes > self.list_bytes_max
            || self.by_id.len() >= LISTS_MAX
        {
            let Some(oldest) = self.oldest else { break };
            self.evict(oldest);
        }
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u16
        });
        for &(key, block) in &keys {
            self.put(key, block, slot);
        }
        let keys = keys.into_iter().map(|(key, _)| key).collect();
        self.slots[usize::from(slot)] = Some(Loaded { list, keys, newer: None, older: None });
        self.by_id.insert(list, slot);
        self.list_bytes += bytes;
        self.link_newest(slot);
    }

    pub fn remove(&mut self, key: Key, block: VirtualBlock) {
        if let Some(at) = self.find(key)
            && self.table[at].block() == block
        {
            self.vacate(at);
        }
    }

    pub fn drop_segment(&mut self, segment: SegmentId) {
        let gone: Vec<u16> = self.by_id.iter().filter(|(id, _)| id.segment() == segment).map(|(_, &s)| s).collect();
        gone.into_iter().for_each(|slot| self.evict(slot));
    }

    pub fn memory_used(&self) -> usize {
        self.table.capacity() * size_of::<Entry>() + self.list_bytes
    }

    /// Lists from the one unused for longest to the one used last.
    #[cfg(test)]
    pub fn by_use(&self) -> Vec<ListId> {
        let mut out = vec![];
        let mut at = self.oldest;
        while let Some(loaded) = at.and_then(|slot| self.slots[usize::from(slot)].as_ref()) {
            out.push(loaded.list);
            at = loaded.newer;
        }
        out
    }

    fn touch(&mut self, slot: u16) {
        if self.newest != Some(slot) {
            self.unlink(slot);
            self.link_newest(slot);
        }
    }

    fn link_newest(&mut self, slot: u16) {
        let before = self.newest.replace(slot);
        if let Some(loaded) = &mut self.slots[usize::from(slot)] {
            (loaded.newer, loaded.older) = (None, before);
        }
        match before.and_then(|s| self.slots[usize::from(s)].as_mut()) {
            Some(before) => before.newer = Some(slot),
            None => self.oldest = Some(slot),
        }
    }

    fn unlink(&mut self, slot: u16) {
        let Some(loaded) = &mut self.slots[usize::from(slot)] else { return };
        let (newer, older) = (loaded.newer.take(), loaded.older.take());
        match newer.and_then(|s| self.slots[usize::from(s)].as_mut()) {
            Some(other) => other.older = older,
            None => self.newest = older,
        }
        match older.and_then(|s| self.slots[usize::from(s)].as_mut()) {
            Some(other) => other.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn evict(&mut self, slot: u16) {
        self.unlink(slot);
        let Some(loaded) = self.slots[usize::from(slot)].take() else { return };
        for &key in &loaded.keys {
            // Another list may have taken the key over.
            if let Some(at) = self.find(key)
                && self.table[at].slot() == usize::from(slot)
            {
                self.vacate(at);
            }
        }
        self.by_id.remove(&loaded.list);
        self.list_bytes -= LIST_OVERHEAD + loaded.keys.len() * size_of::<Key>();
        self.free_slots.push(slot);
    }

    fn following(&self, at: usize) -> usize {
        if at + 1 == self.table.len() { 0 } else { at + 1 }
    }

    fn find(&self, key: Key) -> Option<usize> {
        let mut at = key.place(self.table.len());
        while self.table[at].value != 0 {
            if self.table[at].key == key.0 {
                return Some(at);
            }
            at = self.following(at);
        }
        None
    }

    /// There is always an empty place, because keys are counted before they are put.
    fn put(&mut self, key: Key, block: VirtualBlock, slot: u16) {
        let mut at = key.place(self.table.len());
        while self.table[at].value != 0 && self.table[at].key != key.0 {
            at = self.following(at);
        }
        self.entries += usize::from(self.table[at].value == 0);
        self.table[at] = Entry { key: key.0, value: block.0 | u64::from(slot) << BLOCK_BITS };
    }

    /// Empties a place, moving up the entries behind it that would no longer be found.
    fn vacate(&mut self, mut hole: usize) {
        let len = self.table.len();
        let mut at = hole;
        loop {
            at = self.following(at);
            let entry = self.table[at];
            if entry.value == 0 {
                break;
            }
            let home = Key(entry.key).place(len);
            // Distances along the table, from the entry's home to the hole and to where it is.
            let distance = |to: usize| if to >= home { to - home } else { to + len - home };
            if distance(hole) < distance(at) {
                self.table[hole] = entry;
                hole = at;
            }
        }
        self.table[hole] = Entry::default();
        self.entries -= 1;
    }
}
