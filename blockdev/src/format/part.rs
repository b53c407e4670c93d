//! Part summaries: what the frames of one part of a segment hold. For the cleaner (reverse map) and for dedupe (fingerprints).

use super::cursor::{COUNTER_LIMIT, Get, Put};
use super::page::{Location, TABLE_FANOUT, VIRTUAL_BLOCKS_MAX};
use crate::codec::FRAME_BLOCKS_MAX;
use crate::error::{Error, Result};
use crate::units::{SegmentId, VirtualBlock};

const MAGIC: u32 = 0x5448_5341; // "ASHT"
/// A part is closed when it holds this many blocks: its list of fingerprints is about 24 KiB, one read.
pub const PART_BLOCKS: usize = 1024;

/// Fewest bytes of an encoded [`Item`].
const ITEM_MIN: usize = 3;

/// What one frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Blocks of volumes with their fingerprints, in frame order.
    Data(Vec<(VirtualBlock, u128)>),
    /// One map page.
    MapPage(VirtualBlock),
    /// Block table page of this index.
    TablePage(u64),
    /// Directory page of this index.
    DirectoryPage(u64),
}

/// One frame of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Bytes from the start of the segment's data space.
    pub offset: u32,
    /// Stored bytes.
    pub len: u16,
    /// What is in it.
    pub content: Content,
}

/// A part: the frames appended since the previous one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Segment.
    pub segment: SegmentId,
    /// Which use of the segment's identity.
    pub incarnation: u64,
    /// The part before; `len` 0 for the first.
    pub previous: Location,
    /// Frames in order.
    pub items: Vec<Item>,
}

/// Upper bound of the bytes that one frame of `blocks` blocks adds to a summary.
pub const fn item_bytes_max(blocks: usize) -> usize {
    10 + blocks * 23
}

/// Upper bound of the bytes of a summary without items.
pub const PART_OVERHEAD: usize = 64;
/// Upper bound of the bytes of any summary.
pub const PART_BYTES_MAX: usize = 48 << 10;

/// A virtual block; none where a frame has a place that no block took.
fn get_block(get: &mut Get<'_>) -> Result<VirtualBlock> {
    Ok(VirtualBlock(get.below(VIRTUAL_BLOCKS_MAX, "virtual block")?))
}

impl Part {
    /// Encodes with a checksum at the end.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32(MAGIC);
        out.put_u32(0);
        out.put_varint(self.segment.0.into());
        out.put_varint(self.incarnation);
        out.put_varint(self.previous.offset.into());
        out.put_varint(self.previous.len.into());
        out.put_varint(self.items.len() as u64);
        for item in &self.items {
            out.put_varint(item.offset.into());
            out.put_varint(item.len.into());
            match &item.content {
                Content::Data(blocks) => {
                    out.put_u8(blocks.len() as u8);
                    for (block, fingerprint) in blocks {
                        out.put_varint(block.0);
                        out.put_u128(*fingerprint);
                    }
                }
                Content::MapPage(v) => {
                    out.put_u8(0xff);
                    out.put_varint(v.0);
                }
                Content::TablePage(i) => {
                    out.put_u8(0xfe);
                    out.put_varint(*i);
                }
                Content::DirectoryPage(i) => {
                    out.put_u8(0xfd);
                    out.put_varint(*i);
                }
            }
        }
        let len = out.len() as u32 + 8;
        out[4..8].copy_from_slice(&len.to_le_bytes());
        let sum = super::checksum(&out);
        out.put_u64(sum);
        out
    }

    /// Decodes the summary at the start of `data`; what follows it is ignored.
    pub fn decode(data: &[u8]) -> Result<Self> {
        let mut head = Get(data);
        if head.u32()? != MAGIC {
            return Err(Error::corrupt("part summary: no magic"));
        }
        let len = head.u32()? as usize;
        let (body, sum) = data
            .get(..len)
            .and_then(|d| d.split_at_checked(len.checked_sub(8)?))
            .ok_or_else(|| Error::corrupt("part summary: too short"))?;
        if Get(sum).u64()? != super::checksum(body) {
            return Err(Error::corrupt("part summary: checksum mismatch"));
        }
        let mut get = Get(body);
        get.take(8)?;
        let segment = SegmentId(get.varint32()?);
        let incarnation = get.below(COUNTER_LIMIT, "incarnation")?;
        let previous = Location { segment, offset: get.varint32()?, len: get.varint16()? }.checked()?;
        let count = get.count(ITEM_MIN)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            let Location { offset, len, .. } =
                Location { segment, offset: get.varint32()?, len: get.varint16()? }.checked()?;
            let content = match get.u8()? {
                0xff => Content::MapPage(get_block(&mut get)?),
                0xfe => Content::TablePage(get.below(VIRTUAL_BLOCKS_MAX / TABLE_FANOUT as u64, "block table page")?),
                0xfd => Content::DirectoryPage(get.below(VIRTUAL_BLOCKS_MAX / TABLE_FANOUT as u64, "directory page")?),
                n if usize::from(n) > FRAME_BLOCKS_MAX => {
                    return Err(Error::corrupt(format!("part summary: a frame of kind {n} is unknown")));
                }
                n => {
                    let mut blocks = Vec::with_capacity(n.into());
                    for _ in 0..n {
                        blocks.push((get_block(&mut get)?, get.u128()?));
                    }
                    Content::Data(blocks)
                }
            };
            items.push(Item { offset, len, content });
        }
        get.finish()?;
        Ok(Self { segment, incarnation, previous, items })
    }
}
