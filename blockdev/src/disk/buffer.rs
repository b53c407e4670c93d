//! Memory aligned for O_DIRECT.

use bytes::Bytes;

use super::IO_ALIGN;
use super::arena::{PIECE_MIN, Piece};

/// A zero-filled, growable-by-choice byte buffer whose start is aligned to [`IO_ALIGN`].
///
/// Freeze it with [`AlignedBuf::freeze`]: the resulting [`Bytes`] and its slices at multiples of [`IO_ALIGN`] stay aligned.
#[derive(Debug)]
pub struct AlignedBuf {
    memory: Memory,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Own(Vec<Page>),
    Arena(Piece),
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
    /// A buffer of `len` bytes whose content is that of some buffer before it, for those who write all of it. Where there is
    /// room it is memory that the kernel has mapped already.
    pub fn recycled(len: usize) -> Self {
        let piece = if len >= PIECE_MIN { Piece::take(len) } else { None };
        piece.map_or_else(|| Self::zeroed(len), |piece| Self { memory: Memory::Arena(piece), len })
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self { memory: Memory::Own(vec![Page([0; IO_ALIGN]); len.div_ceil(IO_ALIGN)]), len }
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
        let start = match &self.memory {
            Memory::Own(pages) => pages.as_ptr().cast(),
            Memory::Arena(piece) => piece.start().as_ptr().cast_const(),
        };
        // SAFETY: the memory is one allocation, or piece, of at least `len` initialised bytes, and `Page` has no padding.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = match &mut self.memory {
            Memory::Own(pages) => pages.as_mut_ptr().cast(),
            Memory::Arena(piece) => piece.start().as_ptr(),
        };
        // SAFETY: as in `deref`; the exclusive borrow of `self` covers the memory.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
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
            let len = PIECE_MIN;
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
}
