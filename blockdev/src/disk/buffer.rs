//! Memory aligned for O_DIRECT.

use bytes::Bytes;

use super::IO_ALIGN;

/// A zero-filled, growable-by-choice byte buffer whose start is aligned to [`IO_ALIGN`].
///
/// Freeze it with [`AlignedBuf::freeze`]: the resulting [`Bytes`] and its slices at multiples of [`IO_ALIGN`] stay aligned.
#[derive(Debug)]
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
}

#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Page([u8; IO_ALIGN]);

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Page")
    }
}

impl AlignedBuf {
    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self { pages: vec![Page([0; IO_ALIGN]); len.div_ceil(IO_ALIGN)], len }
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
