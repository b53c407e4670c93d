//! Metadata pages: volume map pages, block table pages, directory pages.

use super::cursor::{Get, Put};
use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::units::{SegmentId, VirtualBlock, VolumeId};

/// Entries of a map page; 9 bits of LBA per level.
pub const MAP_FANOUT: usize = 512;
/// Entries of a block table page.
pub const TABLE_FANOUT: usize = 128;
/// Entries of a directory page.
pub const DIRECTORY_FANOUT: usize = 256;
/// Bytes of an encoded block table page.
pub const TABLE_PAGE_SIZE: usize = TABLE_FANOUT * BlockEntry::SIZE;
/// Bytes of an encoded directory page.
pub const DIRECTORY_PAGE_SIZE: usize = DIRECTORY_FANOUT * PagePtr::SIZE;
/// Upper bound of the encoded bytes of any metadata page.
pub const PAGE_SIZE_MAX: usize = 16 << 10;

/// Levels of the largest map: 2^36 blocks, 256 TiB.
pub const MAP_LEVELS_MAX: u8 = 4;
/// Blocks of the largest volume.
pub const MAP_BLOCKS_MAX: u64 = 1 << (MAP_FANOUT.trailing_zeros() * MAP_LEVELS_MAX as u32);
/// Virtual blocks are below this: they take 6 bytes in a map page.
pub const VIRTUAL_BLOCKS_MAX: u64 = 1 << 48;

/// Where a stored run of bytes lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Location {
    /// Segment.
    pub segment: SegmentId,
    /// Bytes from the start of the segment's data space.
    pub offset: u32,
    /// Stored bytes.
    pub len: u16,
}

impl Location {
    /// This, unless its end does not fit 32 bits.
    pub(super) fn checked(self) -> Result<Self> {
        match self.offset.checked_add(self.len.into()) {
            Some(_) => Ok(self),
            None => {
                Err(Error::corrupt(format!("{} bytes at {} are beyond the end of any segment", self.len, self.offset)))
            }
        }
    }

    fn decode(get: &mut Get<'_>) -> Result<Self> {
        Self { segment: SegmentId(get.u32()?), offset: get.u32()?, len: get.u16()? }.checked()
    }
}

/// What a virtual block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BlockKind {
    /// A 4 KiB block of a volume.
    #[default]
    Data,
    /// A page of a volume map.
    MapPage,
}

/// One entry of the block table: where a virtual block lies, how often it is referenced, and its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BlockEntry {
    /// Frame that holds the block. Undefined while `refcount` is 0.
    pub frame: Location,
    /// Codec of the frame.
    pub codec: Codec,
    /// Position of the block in the frame.
    pub index: u8,
    /// Blocks in the frame; 1 for a map page.
    pub frame_blocks: u8,
    /// Kind.
    pub kind: BlockKind,
    /// References; 0 means free. Saturates: an entry at the maximum is never freed.
    pub refcount: u32,
    /// Checksum of the uncompressed block.
    pub checksum: u64,
    /// Uncompressed bytes of the frame.
    pub raw_len: u16,
    /// Checkpoint interval in which the block was given its content or, when free, in which it was freed: a free entry is reused only
    /// once that checkpoint is durable.
    pub interval: u32,
}

impl BlockEntry {
    /// Encoded bytes.
    pub const SIZE: usize = 32;

    /// The part of the frame's stored bytes that is laid to this block. Shares of all blocks add up to the frame.
    pub fn share(&self) -> u64 {
        let (len, n, i) = (u64::from(self.frame.len), u64::from(self.frame_blocks.max(1)), u64::from(self.index));
        len * (i + 1) / n - len * i / n
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.frame.segment.0);
        out.put_u32(self.frame.offset);
        out.put_u16(self.frame.len);
        out.put_u8(self.codec as u8);
        out.put_u8(match self.kind {
            BlockKind::Data => 0,
            BlockKind::MapPage => 1,
        });
        out.put_u8(self.index);
        out.put_u8(self.frame_blocks);
        out.put_u16(self.raw_len);
        out.put_u32(self.refcount);
        out.put_u32(self.interval);
        out.put_u64(self.checksum);
    }

    fn decode(get: &mut Get<'_>) -> Result<Self> {
        let frame = Location::decode(get)?;
        let codec = Codec::try_from(get.u8()?)?;
        let kind = match get.u8()? {
            0 => BlockKind::Data,
            1 => BlockKind::MapPage,
            k => return Err(Error::corrupt(format!("block table: kind {k} is unknown"))),
        };
        let (index, frame_blocks) = (get.u8()?, get.u8()?);
        let raw_len = get.u16()?;
        let (refcount, interval) = (get.u32()?, get.u32()?);
        let checksum = get.u64()?;
        if refcount > 0 && index >= frame_blocks {
            return Err(Error::corrupt("block table: block index beyond its frame"));
        }
        Ok(Self { frame, codec, index, frame_blocks, kind, refcount, checksum, raw_len, interval })
    }
}

/// A page of the block table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePage(pub Box<[BlockEntry; TABLE_FANOUT]>);

impl Default for TablePage {
    fn default() -> Self {
        Self(Box::new([BlockEntry::default(); TABLE_FANOUT]))
    }
}

impl TablePage {
    /// Encodes to [`TABLE_PAGE_SIZE`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TABLE_PAGE_SIZE);
        self.0.iter().for_each(|e| e.encode(&mut out));
        out
    }

    /// Decodes.
    pub fn decode(data: &[u8]) -> Result<Self> {
        let mut get = Get(data);
        let mut out = Self::default();
        for entry in out.0.iter_mut() {
            *entry = BlockEntry::decode(&mut get)?;
        }
        get.finish()?;
        Ok(out)
    }
}

/// Pointer to a page of the block table or of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PagePtr {
    /// Where the page lies; `len` 0 means the page was never written (all entries free).
    pub at: Location,
    /// Codec of the page.
    pub codec: Codec,
    /// Checksum of the uncompressed page.
    pub checksum: u64,
    /// Block table entries in use below this pointer.
    pub used: u32,
}

impl PagePtr {
    /// Encoded bytes.
    pub const SIZE: usize = 24;

    /// Whether the page exists on disk.
    pub fn is_none(&self) -> bool {
        self.at.len == 0
    }

    /// Appends [`Self::SIZE`] bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.at.segment.0);
        out.put_u32(self.at.offset);
        out.put_u16(self.at.len);
        out.put_u8(self.codec as u8);
        out.put_u8(0);
        out.put_u32(self.used);
        out.put_u64(self.checksum);
    }

    /// Decodes.
    pub fn decode(get: &mut Get<'_>) -> Result<Self> {
        let at = Location::decode(get)?;
        let codec = Codec::try_from(get.u8()?)?;
        if get.u8()? != 0 {
            return Err(Error::corrupt("page pointer: the reserved byte is not 0"));
        }
        let used = get.u32()?;
        Ok(Self { at, codec, used, checksum: get.u64()? })
    }
}

/// A page of the block table's directory: pointers to table pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryPage(pub Box<[PagePtr; DIRECTORY_FANOUT]>);

impl Default for DirectoryPage {
    fn default() -> Self {
        Self(Box::new([PagePtr::default(); DIRECTORY_FANOUT]))
    }
}

impl DirectoryPage {
    /// Encodes to [`DIRECTORY_PAGE_SIZE`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(DIRECTORY_PAGE_SIZE);
        self.0.iter().for_each(|p| p.encode(&mut out));
        out
    }

    /// Decodes.
    pub fn decode(data: &[u8]) -> Result<Self> {
        let mut get = Get(data);
        let mut out = Self::default();
        for ptr in out.0.iter_mut() {
            *ptr = PagePtr::decode(&mut get)?;
        }
        get.finish()?;
        Ok(out)
    }
}

/// Generations in which the entries of a map page were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Births {
    /// All entries alike.
    Uniform(u32),
    /// One for each entry.
    Each(Box<[u32; MAP_FANOUT]>),
}

/// A page of a volume map: at level 0 entries are data blocks, above they are map pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPage {
    /// Volume in whose map the page was written.
    pub volume: VolumeId,
    /// 0 for leaves.
    pub level: u8,
    /// Which page of its level: LBA >> 9 * (level + 1).
    pub index: u64,
    /// Entries; [`VirtualBlock::NONE`] where nothing is mapped.
    pub entries: Box<[VirtualBlock; MAP_FANOUT]>,
    /// Generation in which each entry was written: decides, against the newest snapshot, who owns the reference.
    pub births: Births,
    /// Entries that are mapped.
    pub used: u16,
}

impl MapPage {
    /// An empty page.
    pub fn new(volume: VolumeId, level: u8, index: u64) -> Self {
        let entries = Box::new([VirtualBlock::NONE; MAP_FANOUT]);
        Self { volume, level, index, entries, births: Births::Uniform(0), used: 0 }
    }

    /// Replaces an entry and its birth generation; returns the old entry.
    pub fn set(&mut self, slot: usize, to: VirtualBlock, birth: u32) -> VirtualBlock {
        let old = std::mem::replace(&mut self.entries[slot], to);
        match (&mut self.births, to.is_none()) {
            (_, true) => {}
            (Births::Uniform(b), false) if *b == birth => {}
            (Births::Uniform(b), false) if self.used == 0 => *b = birth,
            (Births::Uniform(b), false) => {
                let mut each = Box::new([*b; MAP_FANOUT]);
                each[slot] = birth;
                self.births = Births::Each(each);
            }
            (Births::Each(each), false) => each[slot] = birth,
        }
        self.used = self.used + u16::from(!to.is_none()) - u16::from(!old.is_none());
        old
    }

    /// Birth generation of an entry.
    pub fn birth(&self, slot: usize) -> u32 {
        match &self.births {
            Births::Uniform(b) => *b,
            Births::Each(each) => each[slot],
        }
    }

    /// Encodes; at most [`PAGE_SIZE_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + MAP_FANOUT * 10);
        out.put_u32(self.volume.0);
        out.put_u8(self.level);
        out.put_u64(self.index);
        for v in self.entries.iter() {
            out.extend_from_slice(&v.0.to_le_bytes()[..6]);
        }
        match &self.births {
            Births::Uniform(b) => {
                out.put_u8(0);
                out.put_u32(*b);
            }
            Births::Each(each) => {
                out.put_u8(1);
                each.iter().for_each(|b| out.put_u32(*b));
            }
        }
        out
    }

    /// Decodes.
    pub fn decode(data: &[u8]) -> Result<Self> {
        let mut get = Get(data);
        let mut out = Self::new(VolumeId(get.u32()?), get.u8()?, get.u64()?);
        if out.level >= MAP_LEVELS_MAX || out.index >= MAP_BLOCKS_MAX >> (9 * (u32::from(out.level) + 1)) {
            return Err(Error::corrupt(format!("map page: there is no page {} at level {}", out.index, out.level)));
        }
        for v in out.entries.iter_mut() {
            let mut wide = [0; 8];
            wide[..6].copy_from_slice(get.take(6)?);
            *v = VirtualBlock(u64::from_le_bytes(wide));
            out.used += u16::from(!v.is_none());
        }
        out.births = match get.u8()? {
            0 => Births::Uniform(get.u32()?),
            1 => {
                let mut each = Box::new([0; MAP_FANOUT]);
                for b in each.iter_mut() {
                    *b = get.u32()?;
                }
                Births::Each(each)
            }
            k => return Err(Error::corrupt(format!("map page: births of kind {k} are unknown"))),
        };
        get.finish()?;
        Ok(out)
    }
}
