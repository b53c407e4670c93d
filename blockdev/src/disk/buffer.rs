//! Memory aligned for O_DIRECT.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;

use super::IO_ALIGN;

/// A zero-filled, growable-by-choice byte buffer whose start is aligned to [`IO_ALIGN`].
///
/// Freeze it with [`AlignedBuf::freeze`]: the resulting [`Bytes`] and its slices at multiples of [`IO_ALIGN`] stay aligned.
#[derive(Debug)]
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
    /// Whether its memory goes to [`KEPT`] afterwards.
    keep: bool,
}

#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Page([u8; IO_ALIGN]);

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Page")
    }
}

/// Recycled buffers of this many pages and more are kept. Their sizes are powers of two, lest there be too many kinds to find one again.
const KEPT_PAGES_MIN: usize = 16;
/// Pages kept in all: 16 MiB.
const KEPT_PAGES_MAX: usize = 4096;

/// Buffers that nobody uses at the moment, by their number of pages.
struct Kept {
    buffers: BTreeMap<usize, Vec<Vec<Page>>>,
    pages: usize,
}

impl Kept {
    /// Keeps a buffer; when there are too many, one of the size that takes most room goes.
    fn put(&mut self, pages: Vec<Page>) {
        self.pages += pages.len();
        self.buffers.entry(pages.len()).or_default().push(pages);
        if self.pages > KEPT_PAGES_MAX {
            let most = self.buffers.values_mut().max_by_key(|b| b.len() * b.first().map_or(0, Vec::len));
            let gone = most.and_then(Vec::pop);
            self.pages -= gone.map_or(0, |b| b.len());
        }
    }
}

static KEPT: Mutex<Kept> = Mutex::new(Kept { buffers: BTreeMap::new(), pages: 0 });

impl AlignedBuf {
    /// A buffer of `len` bytes whose content is that of some buffer before it, for those who write all of it: large buffers that
    /// come and go cost the system a page fault for every page otherwise.
    pub fn recycled(len: usize) -> Self {
        if len <= (KEPT_PAGES_MIN - 1) * IO_ALIGN {
            return Self::zeroed(len);
        }
        let count = len.div_ceil(IO_ALIGN).next_power_of_two();
        let kept = {
            let mut kept = KEPT.lock();
            let found = kept.buffers.get_mut(&count).and_then(Vec::pop);
            kept.pages -= found.as_ref().map_or(0, Vec::len);
            found
        };
        let pages = kept.unwrap_or_else(|| vec![Page([0; IO_ALIGN]); count]);
        Self { pages, len, keep: true }
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self { pages: vec![Page([0; IO_ALIGN]); len.div_ceil(IO_ALIGN)], len, keep: false }
    }

    /// A buffer holding a copy of `data`, padded with zeroes to a multiple of [`IO_ALIGN`].
    pub fn padded(data: &[u8]) -> Self {
        let mut out = Self::zeroed(data.len().next_multiple_of(IO_ALIGN));
        out[..data.len()].copy_from_slice(data);
        out
    }

    /// The buffer as shareable bytes, without copying.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.keep {
            KEPT.lock().put(std::mem::take(&mut self.pages));
        }
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `pages` holds at least `len` initialised bytes in one allocation, and `Page` has no padding.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.len) }
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive borrow of `self` covers the pages.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recycled_buffers_have_their_length_and_zeroed_ones_are_zero() {
        for round in 1..4u8 {
            let len = KEPT_PAGES_MIN * IO_ALIGN;
            let mut one = AlignedBuf::recycled(len);
            let mut other = AlignedBuf::recycled(len);
            assert_eq!((one.len(), other.len(), AlignedBuf::recycled(3 * IO_ALIGN).len()), (len, len, 3 * IO_ALIGN));
            one.fill(round);
            other.fill(round + 100);
            assert!(one.iter().all(|&b| b == round) && other.iter().all(|&b| b == round + 100));
            assert_eq!(one.as_ptr().addr() % IO_ALIGN, 0);
            drop((one.freeze(), other));
            assert!(AlignedBuf::zeroed(len).iter().all(|&b| b == 0));
            assert!(AlignedBuf::padded(&[7; 100])[100..].iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let many: Vec<AlignedBuf> = (0..100).map(|_| AlignedBuf::recycled(1 << 20)).collect();
        drop(many);
        assert!(KEPT.lock().pages <= KEPT_PAGES_MAX);
    }
}
