//! What the tests of the disks share.

use std::future::Future;

use bytes::Bytes;

use super::AlignedBuf;

/// Runs a future to its end on this thread.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// An aligned buffer of `len` bytes of `value`.
pub(super) fn filled(len: usize, value: u8) -> Bytes {
    let mut buf = AlignedBuf::zeroed(len);
    buf.fill(value);
    buf.freeze()
}

/// A small deterministic generator (xorshift64*), enough to scatter requests.
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % bound
    }
}
