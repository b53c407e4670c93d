//! Frames on their way to disk: what is compressed together, and what comes out.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

use super::PoolConfig;
use crate::codec::{Codec, Compressor, FRAME_BLOCKS, FRAME_BLOCKS_MAX};
use crate::report::Compression;
use crate::units::BLOCK_SIZE;

/// Blocks to be compressed as one frame.
pub struct Group {
    content: Source,
    keep: bool,
}

enum Source {
    /// They follow each other in one buffer.
    Slice(Bytes),
    /// Each by itself.
    Blocks(Vec<Bytes>),
}

impl Group {
    /// Blocks that follow each other in the buffer of one write. `keep`: the frame is worth a place in the frame cache.
    pub fn slice(content: Bytes, keep: bool) -> Self {
        Self { content: Source::Slice(content), keep }
    }

    /// Blocks from anywhere. `keep` as in [`Self::slice`].
    pub fn blocks(blocks: Vec<Bytes>, keep: bool) -> Self {
        Self { content: Source::Blocks(blocks), keep }
    }

    fn len(&self) -> usize {
        match &self.content {
            Source::Slice(content) => content.len(),
            Source::Blocks(blocks) => blocks.len() * BLOCK_SIZE,
        }
    }
}

/// A compressed frame.
pub struct ReducedFrame {
    /// Stored bytes.
    pub stored: Bytes,
    /// Uncompressed bytes.
    pub raw_len: u16,
    /// The uncompressed bytes, where they are worth keeping.
    pub raw: Option<Bytes>,
    /// How it is compressed.
    pub codec: Codec,
    /// Blocks in it.
    pub blocks: u8,
}

/// How hard data is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Hosts wait for it.
    Usual,
    /// Nobody does, and it is seldom read.
    High,
}

impl Effort {
    /// Blocks of one frame.
    pub fn frame_blocks(self, config: &PoolConfig) -> usize {
        match self {
            Self::Usual => config.frame_blocks.clamp(1, FRAME_BLOCKS),
            Self::High => FRAME_BLOCKS_MAX,
        }
    }
}

/// Zstandard's level for data that nobody has changed for long: beyond it twice the time saves another part in a hundred.
const HIGH_LEVEL: i32 = 9;

thread_local! {
    /// A compressor, and room for blocks that do not lie next to each other.
    static COMPRESSOR: RefCell<(Compressor, Vec<u8>)> = RefCell::new((Compressor::new(), Vec::new()));
    /// The same for what is compressed harder.
    static HIGH: RefCell<(Compressor, Vec<u8>)> = RefCell::new((Compressor::with_level(HIGH_LEVEL), Vec::new()));
}

/// Compresses groups of blocks into frames. The frames share one buffer.
pub fn compress(groups: &[Group], compression: Compression, effort: Effort) -> Vec<ReducedFrame> {
    let own = match effort {
        Effort::Usual => &COMPRESSOR,
        Effort::High => &HIGH,
    };
    own.with_borrow_mut(|(compressor, room)| {
        let mut stored = Vec::with_capacity(groups.iter().map(Group::len).sum());
        let mut ends = Vec::with_capacity(groups.len());
        for group in groups {
            let raw: &[u8] = match &group.content {
                Source::Slice(content) => content,
                Source::Blocks(blocks) if blocks.len() == 1 => &blocks[0],
                Source::Blocks(blocks) => {
                    room.clear();
                    blocks.iter().for_each(|b| room.extend_from_slice(b));
                    room
                }
            };
            let codec = compressor.compress(compression, raw, &mut stored);
            ends.push((codec, stored.len()));
        }
        let stored = Bytes::from(stored);
        let mut start = 0;
        let frames = groups.iter().zip(ends).map(|(group, (codec, end))| {
            let frame = ReducedFrame {
                stored: stored.slice(start..end),
                raw_len: group.len() as u16,
                raw: group.keep.then(|| gather(group)),
                codec,
                blocks: (group.len() / BLOCK_SIZE) as u8,
            };
            start = end;
            frame
        });
        frames.collect()
    })
}

/// A copy of a group's blocks: the frame cache must not keep the host's whole buffer for some blocks of it.
fn gather(group: &Group) -> Bytes {
    match &group.content {
        Source::Slice(content) => Bytes::copy_from_slice(content),
        Source::Blocks(blocks) => {
            let mut raw = BytesMut::with_capacity(group.len());
            blocks.iter().for_each(|b| raw.extend_from_slice(b));
            raw.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::decompress;

    #[test]
    fn frames_hold_their_blocks_wherever_those_lie() {
        let data: Vec<u8> = (0..6 * BLOCK_SIZE).map(|i| (i / 100 % 251) as u8).collect();
        let data = Bytes::from(data);
        let block = |i: usize| data.slice(i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE);
        let groups = [
            Group::slice(data.slice(..4 * BLOCK_SIZE), false),
            Group::blocks(vec![block(5), block(2)], true),
            Group::blocks(vec![block(3)], true),
        ];
        for compression in [Compression::Off, Compression::Lz4, Compression::Zstd] {
            let frames = compress(&groups, compression, Effort::Usual);
            let raw: Vec<Vec<u8>> = frames
                .iter()
                .map(|f| {
                    let mut raw = vec![0; f.raw_len.into()];
                    decompress(f.codec, &f.stored, &mut raw).unwrap();
                    raw
                })
                .collect();
            assert_eq!(raw, [data[..4 * BLOCK_SIZE].to_vec(), [block(5), block(2)].concat(), block(3).to_vec()]);
            assert_eq!(frames.iter().map(|f| f.blocks).collect::<Vec<_>>(), [4, 2, 1]);
            let kept: Vec<Option<&[u8]>> = frames.iter().map(|f| f.raw.as_deref()).collect();
            assert_eq!(kept, [None, Some(&raw[1][..]), Some(&raw[2][..])]);
        }
    }
}
