//! Bytes that several processes see one after another.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Memory with an owner that keeps it mapped. Whoever uses it sees to it that no bytes are stored and loaded at the same time; words may be.
pub struct Region {
    start: NonNull<u8>,
    len: usize,
    _owner: Box<dyn Any + Send + Sync>,
    /// Stores that still have an effect: a process that was killed stores no more.
    #[cfg(test)]
    pub(super) stores: AtomicU64,
}

// SAFETY: it is a pointer to memory that no thread owns; access to it is by atomic words, or by copies that its user keeps apart.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Memory of an owner.
    ///
    /// # Safety
    /// `start` points to `len` bytes, aligned to 8, that stay valid for loads and stores as long as `owner` lives, and that nothing in this process
    /// accesses but through regions.
    ///
    /// # Panics
    /// When it is not aligned.
    pub unsafe fn new(start: NonNull<u8>, len: usize, owner: Box<dyn Any + Send + Sync>) -> Self {
        assert!(start.as_ptr().cast::<u64>().is_aligned(), "a region is aligned to words");
        Self {
            start,
            len,
            _owner: owner,
            #[cfg(test)]
            stores: AtomicU64::new(u64::MAX),
        }
    }

    /// Zeroed memory of this process alone: for tests, where one process plays several.
    pub fn private(len: usize) -> Self {
        let words: Box<[AtomicU64]> = (0..len.div_ceil(8)).map(|_| AtomicU64::new(0)).collect();
        let start = NonNull::from(&*words).cast::<u8>();
        // SAFETY: the words are on the heap, do not move with their box, may be changed through shared references, and live as long as the box.
        unsafe { Self::new(start, len, Box::new(words)) }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The start of `len` bytes at an offset.
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {offset} of {} of a region",
            self.len
        );
        // SAFETY: it is within the region.
        unsafe { self.start.as_ptr().add(offset) }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8), "word {at} of a region");
        // SAFETY: it is within the region, which is valid as long as `self`, and aligned, as the start is.
        unsafe { AtomicU64::from_ptr(self.at(at, 8).cast()) }
    }

    /// A word; what was stored before it by whoever stored it is seen afterwards.
    ///
    /// # Panics
    /// When it is not within the region, or not aligned.
    pub fn load(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::Acquire)
    }

    /// Stores a word, after all that was stored before.
    ///
    /// # Panics
    /// When it is not within the region, or not aligned.
    pub fn store(&self, at: usize, value: u64) {
        #[cfg(test)]
        if self.is_killed() {
            return;
        }
        self.word(at).store(value, Ordering::Release);
    }

    /// Stores bytes.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn put(&self, at: usize, data: &[u8]) {
        #[cfg(test)]
        if self.is_killed() {
            return;
        }
        // SAFETY: source and target are valid for as many bytes; nothing refers to the target but as raw bytes.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.at(at, data.len()), data.len()) }
    }

    /// A copy of bytes.
    ///
    /// # Panics
    /// When they are not within the region.
    pub fn get(&self, at: usize, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        // SAFETY: as in `put`.
        unsafe { std::ptr::copy_nonoverlapping(self.at(at, len), out.as_mut_ptr(), len) }
        out
    }

    #[cfg(test)]
    fn is_killed(&self) -> bool {
        self.stores.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("len", &self.len).finish_non_exhaustive()
    }
}
