//! Replies on their way to a peer.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::wire::Header;

/// Slices per system call.
pub(super) const SLICES: usize = 64;

/// Payload bytes a request is charged with, from its start until its reply is sent.
#[derive(Default)]
pub(super) struct Charge {
    /// Of the connection's own allowance.
    pub(super) own: usize,
    /// Of all connections' shared allowance.
    pub(super) shared: Option<OwnedSemaphorePermit>,
}

impl Charge {
    /// Bytes taken from the shared allowance.
    pub(super) fn shared_bytes(&self) -> usize {
        self.shared.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }
}

enum Chunk {
    Header(Header),
    Data(Bytes, Charge),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Header(header) => header.as_slice(),
            Self::Data(data, _) => data,
        }
    }
}

/// Encoded replies, oldest first.
#[derive(Default)]
pub(super) struct Output {
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that are sent.
    sent: usize,
    bytes: usize,
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes to be sent.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Pieces to be sent.
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    pub(super) fn push_header(&mut self, header: Header) {
        self.bytes += header.as_slice().len();
        self.chunks.push_back(Chunk::Header(header));
    }

    /// Queues `data`, which must not be empty; `charge` comes back from [`Output::advance`].
    pub(super) fn push_data(&mut self, data: Bytes, charge: Charge) {
        debug_assert!(!data.is_empty());
        self.bytes += data.len();
        self.chunks.push_back(Chunk::Data(data, charge));
    }

    /// The next bytes to send; the number of slices filled in.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let mut skip = self.sent;
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk.bytes().get(skip..).unwrap_or_default());
            skip = 0;
            count += 1;
        }
        count
    }

    /// Takes `sent` bytes off the front, and gives the charges of what is sent in full to `released`.
    pub(super) fn advance(&mut self, sent: usize, mut released: impl FnMut(Charge)) {
        self.sent += sent;
        self.bytes = self.bytes.saturating_sub(sent);
        while let Some(front) = self.chunks.front() {
            let len = front.bytes().len();
            if self.sent < len {
                break;
            }
            self.sent -= len;
            if let Some(Chunk::Data(_, charge)) = self.chunks.pop_front() {
                released(charge);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::simple_reply;
    use super::*;

    #[test]
    fn bytes_leave_in_order_whatever_the_socket_takes() {
        for step in 1..40 {
            let mut output = Output::default();
            let mut expected = Vec::new();
            for cookie in 0..5 {
                let header = simple_reply(cookie, 0);
                output.push_header(header);
                output.push_data(Bytes::from(vec![cookie as u8; 10]), Charge { own: 10, shared: None });
                expected.extend_from_slice(header.as_slice());
                expected.extend_from_slice(&[cookie as u8; 10]);
            }
            let mut got = Vec::new();
            let mut released = 0;
            while !output.is_empty() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = output.slices(&mut slices);
                let all: Vec<u8> = slices[..count].iter().flat_map(|s| s.iter().copied()).collect();
                assert_eq!(all.len(), output.bytes());
                let taken = step.min(all.len());
                got.extend_from_slice(&all[..taken]);
                output.advance(taken, |charge| released += charge.own);
                assert!(released <= got.len());
            }
            assert_eq!((got, released, output.bytes()), (expected, 50, 0));
        }
    }
}
