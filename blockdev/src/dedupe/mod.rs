//! The deduplication index: where a block with this fingerprint may be stored already.
//!
//! It is advice. An answer may be stale or simply wrong, and must be checked by comparing bytes; a block may be
//! forgotten; all of it may be lost and nothing but space savings is. In return its memory is fixed when it is made.
//!
//! # How it finds blocks
//! * The **recent window** knows nearly every block of the last while, each by itself (`window`).
//! * For everything older, fingerprints lie on disk in *lists*: one per sealed part of a segment, in the order the
//!   blocks were written. The **hooks** (`hooks`) name the list of one fingerprint in [`HOOK_SAMPLING`]. Data that
//!   comes again mostly comes in the order it came first; so when a hook is hit the caller loads its list, and with it
//!   the neighbours of that block.
//! * **Loaded lists** are kept while they are used (`lists`).
//!
//! A caller that looks up some hundred blocks before it decides on the first of them, and after every answer but a miss
//! asks [`DedupeIndex::read_ahead`] which lists to load in time, finds nearly all of a stream that comes again.
//!
//! # Memory
//! Of the budget, an eighth goes to the recent window, a sixteenth to loaded lists, the rest to hooks. For 1 TiB of
//! physical space whose data compresses 2:1:
//!
//! ```text
//! distinct blocks     2 TiB / 4 KiB          = 512 Mi
//! hooks               512 Mi / 64            =   8 Mi
//! a hook              8 bytes, and 2 for the table of lists = 10 bytes
//! 100 MiB             hooks 81.25 MiB        = 8.1 Mi places: room for all
//!                     recent 12.5 MiB        = 0.8 Mi blocks, 3.1 GiB of distinct data
//!                     lists 6.25 MiB         = 0.2 Mi blocks, 0.75 GiB of distinct data
//! ```
//!
//! A place is one of 32 in a bucket, and where a bucket overflows the oldest hook goes; with as many hooks as places
//! that costs 7 % of the hooks. A list of 512 blocks has 8 of them. With a smaller budget the oldest hooks go first.

mod hooks;
mod lists;
mod prefetch;
#[cfg(test)]
mod tests;
mod window;

use rustc_hash::FxHashSet;

use crate::units::{SegmentId, VirtualBlock};
use hooks::Hooks;
use lists::LoadedLists;
use window::Window;

/// One fingerprint in so many is a hook.
///
/// Sparser hooks would need less memory but leave more blocks in front of the first hook of a list undiscovered, and
/// lists would have to be longer to have hooks at all; denser ones would not fit the target for memory.
pub const HOOK_SAMPLING: u64 = 64;

/// Lists read ahead of a stream. A list is some hundred blocks: as much as is looked up while one is read.
const READ_AHEAD: usize = 4;

/// Blocks there must be room for in loaded lists, for each list read ahead: what is in use must not be driven out.
const LIST_ROOM: usize = 4096;

/// Smallest budget in bytes; a smaller one is raised to this.
pub const BUDGET_MIN: usize = 64 << 10;

/// Where a fingerprint list lies: the segment in the upper half, where in the segment in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListId(pub u64);

impl ListId {
    /// The list at `part` (in units the caller chooses) of `segment`.
    pub fn new(segment: SegmentId, part: u32) -> Self {
        Self(u64::from(segment.0) << 32 | u64::from(part))
    }

    /// The segment.
    pub fn segment(self) -> SegmentId {
        SegmentId((self.0 >> 32) as u32)
    }

    /// Where in the segment.
    pub fn part(self) -> u32 {
        self.0 as u32
    }
}

/// What the index knows of a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Nothing.
    Miss,
    /// This block may be the same: compare.
    Recent(VirtualBlock),
    /// This list, which is not loaded, may name a block that is the same, and its neighbours those of what comes next.
    /// Load it, hand it to [`DedupeIndex::cache_list`], and look up again.
    Hook(ListId),
}

/// What fingerprints are reduced to: 64 well-mixed bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key(u64);

impl Key {
    /// Whether it is one of those that become hooks. Uses bits in the middle: tables take their places from the upper
    /// bits and hooks their tags from the lower.
    fn is_hook(self) -> bool {
        (self.0 >> 32).is_multiple_of(HOOK_SAMPLING)
    }

    /// A place in a table of `places`, evenly.
    fn place(self, places: usize) -> usize {
        ((u128::from(self.0) * places as u128) >> 64) as usize
    }
}

/// The index. See the [module](self).
pub struct DedupeIndex {
    recent: Window,
    lists: LoadedLists,
    hooks: Hooks,
    /// Lists that are being read ahead.
    loading: FxHashSet<ListId>,
    fingerprint_mask: u128,
}

impl DedupeIndex {
    /// An empty index that never takes more than about `budget` bytes (at least [`BUDGET_MIN`]).
    pub fn new(budget: usize) -> Self {
        let budget = budget.max(BUDGET_MIN);
        let (recent, lists) = (budget / 8, budget / 16);
        Self {
            recent: Window::new(recent),
            lists: LoadedLists::new(lists),
            hooks: Hooks::new(budget - recent - lists),
            loading: FxHashSet::default(),
            fingerprint_mask: u128::MAX,
        }
    }

    /// For tests of what relies on the index: fingerprints are cut to so many bits from now on, so that different
    /// blocks often share one. `None` for whole fingerprints.
    pub fn set_truncation(&mut self, bits: Option<u32>) {
        self.fingerprint_mask = match bits {
            Some(bits) if bits < u128::BITS => (1 << bits) - 1,
            _ => u128::MAX,
        };
    }

    fn key(&self, fingerprint: u128) -> Key {
        let cut = fingerprint & self.fingerprint_mask;
        // The finaliser of MurmurHash3, so that cut fingerprints spread as well.
        let mut x = (cut as u64) ^ ((cut >> 64) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        x = (x ^ (x >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
        Key(x ^ (x >> 33))
    }

    /// Has the processor fetch what looking `fingerprint` up, or inserting it, will touch. The tables are far larger than its caches: done for
    /// a batch before its first look-up, that is much of the time of all of them.
    pub fn prefetch(&self, fingerprint: u128) {
        let key = self.key(fingerprint);
        self.recent.prefetch(key);
        self.lists.prefetch(key);
    }

    /// What is known of `fingerprint`. A loaded list counts as used when it answers.
    pub fn lookup(&mut self, fingerprint: u128) -> Lookup {
        let key = self.key(fingerprint);
        if let Some(block) = self.recent.get(key).or_else(|| self.lists.get(key)) {
            return Lookup::Recent(block);
        }
        match key.is_hook().then(|| self.hooks.get(key)).flatten() {
            // Its list was loaded and does not have it after all.
            Some(list) if self.lists.contains(list) => Lookup::Miss,
            Some(list) => Lookup::Hook(list),
            None => Lookup::Miss,
        }
    }

    /// Appends to `out` the lists that were added after the one the hook of `fingerprint` names and are neither loaded nor about to be:
    /// what a stream that has hit this hook will probably want next. The caller must load them and end with [`Self::cache_list`].
    /// None for fingerprints that are no hooks.
    pub fn read_ahead(&mut self, fingerprint: u128, out: &mut Vec<ListId>) {
        let key = self.key(fingerprint);
        if !key.is_hook() {
            return;
        }
        let ahead = (self.lists.capacity() / LIST_ROOM).clamp(1, READ_AHEAD);
        for list in self.hooks.after(key).take(ahead) {
            if !self.lists.contains(list) && self.loading.insert(list) {
                out.push(list);
            }
        }
    }

    /// Whether [`Self::read_ahead`] gave the list away to be loaded, and that has not ended.
    pub fn is_loading(&self, list: ListId) -> bool {
        self.loading.contains(&list)
    }

    /// Remembers that `block` was just stored under `fingerprint`, in place of any other.
    pub fn insert_recent(&mut self, fingerprint: u128, block: VirtualBlock) {
        if !block.is_none() {
            self.recent.insert(self.key(fingerprint), block);
        }
    }

    /// Forgets that `fingerprint` is `block`, which turned out to be wrong or was freed.
    pub fn remove(&mut self, fingerprint: u128, block: VirtualBlock) {
        let key = self.key(fingerprint);
        self.recent.remove(key, block);
        self.lists.remove(key, block);
    }

    /// Takes the hooks of a sealed part, whose `fingerprints` the caller has stored as `list`.
    pub fn add_list(&mut self, list: ListId, fingerprints: impl Iterator<Item = u128>) {
        self.hooks.begin_list(list);
        for fingerprint in fingerprints {
            let key = self.key(fingerprint);
            if key.is_hook() {
                self.hooks.insert(key);
            }
        }
    }

    /// Forgets all lists of a segment that was given back. Lists added for it afterwards are not concerned.
    pub fn drop_lists_of_segment(&mut self, segment: SegmentId) {
        self.hooks.drop_segment(segment);
        self.lists.drop_segment(segment);
    }

    /// Keeps a list the caller has loaded, in place of those not used for longest. A list longer than the room for all
    /// is kept in part; one that could not be read may be given as empty, so that it is not asked for again at once.
    pub fn cache_list(&mut self, list: ListId, entries: Vec<(u128, VirtualBlock)>) {
        let keys = entries.into_iter().filter(|(_, block)| !block.is_none()).map(|(f, block)| (self.key(f), block));
        let keys: Vec<_> = keys.collect();
        self.loading.remove(&list);
        self.lists.insert(list, keys);
    }

    /// Bytes taken, whether filled or not.
    pub fn memory_used(&self) -> usize {
        size_of::<Self>() + self.recent.memory_used() + self.lists.memory_used() + self.hooks.memory_used()
    }
}
