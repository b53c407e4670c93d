//! One bit for each block of an allocation group.

use super::GROUP_BLOCKS;

const WORDS: usize = (GROUP_BLOCKS / 64) as usize;
/// Bytes when encoded.
const LEN: usize = WORDS * 8;

/// Set bits are used.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bitmap(Box<[u64; WORDS]>);

impl Default for Bitmap {
    fn default() -> Self {
        Self(Box::new([0; WORDS]))
    }
}

impl Bitmap {
    /// Bit 0 is the lowest of the first byte.
    pub(crate) fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        for (bytes, word) in out.chunks_exact_mut(8).zip(self.0.iter()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// None when `bytes` has another length.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != LEN {
            return None;
        }
        let mut this = Self::default();
        for (word, bytes) in this.0.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        Some(this)
    }

    /// Calls `f` with each word that `from..from + len` touches and the bits of it.
    fn words(&mut self, from: u64, len: u64, mut f: impl FnMut(&mut u64, u64)) {
        let (mut at, end) = (from, from + len);
        while at < end {
            let shift = at % 64;
            let bits = (end - at).min(64 - shift);
            let mask = if bits == 64 { u64::MAX } else { ((1 << bits) - 1) << shift };
            f(&mut self.0[(at / 64) as usize], mask);
            at += bits;
        }
    }

    pub(crate) fn set(&mut self, from: u64, len: u64) {
        self.words(from, len, |word, mask| *word |= mask);
    }

    pub(crate) fn clear(&mut self, from: u64, len: u64) {
        self.words(from, len, |word, mask| *word &= !mask);
    }

    pub(crate) fn get(&self, at: u64) -> bool {
        self.0[(at / 64) as usize] >> (at % 64) & 1 == 1
    }

    /// Bits set.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// First position from `from` on whose bit is `set`; the number of bits when there is none.
    fn next(&self, from: u64, set: bool) -> u64 {
        let mut at = from;
        while at < GROUP_BLOCKS {
            let word = self.0[(at / 64) as usize];
            let word = (if set { word } else { !word }) >> (at % 64);
            if word != 0 {
                return at + u64::from(word.trailing_zeros());
            }
            at = (at / 64 + 1) * 64;
        }
        GROUP_BLOCKS
    }

    /// Whether `len` bits from `from` on are all `set`.
    pub(crate) fn all(&self, from: u64, len: u64, set: bool) -> bool {
        self.next(from, !set) >= from + len
    }

    /// The first run of `want` free blocks from `from` on, or one that begins at `from` itself, however short, or else the longest: where it begins, and
    /// how many of it are wanted.
    pub(crate) fn free_run(&self, from: u64, want: u64) -> Option<(u64, u64)> {
        let mut best: Option<(u64, u64)> = None;
        let mut start = self.next(from, false);
        while start < GROUP_BLOCKS {
            let end = self.next(start, true);
            let run = (start, (end - start).min(want));
            if best.is_none_or(|best| best.1 < run.1) {
                best = Some(run);
            }
            if run.1 == want || (start == from && from != 0) {
                return Some(run);
            }
            start = self.next(end, false);
        }
        best
    }
}
