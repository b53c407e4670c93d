//! Where the regions of a disk lie. See `docs/format.md`.

use crate::error::{Error, Result};

/// Bytes of a label, and of a superblock slot.
pub const LABEL_SIZE: usize = 4096;
/// Superblock slots; checkpoint n is written to slot n mod 4, so that a torn write spoils none of the last three.
pub const SUPERBLOCK_SLOTS: u64 = 4;
/// Bytes kept at each end of the disk for label and superblocks.
pub const EDGE: u64 = 64 * 1024;
/// Alternating places of the catalogue.
pub const CATALOGUE_SLOTS: u64 = 2;
/// Most bytes of a chunk: with the 16 data columns of the widest layout a segment has 2 GiB, so that offsets within a
/// segment, and the ends of what lies there, fit 32 bits.
pub const CHUNK_SIZE_MAX: u32 = 128 << 20;
/// Most bytes of a strip: the unfinished stripes of two streams, of 16 strips each, must fit a log extent.
pub const STRIP_SIZE_MAX: u32 = 1 << 20;
/// Most bytes of a log extent.
pub const REGION_SIZE_MAX: u32 = 64 << 20;
/// Most bytes of a catalogue place: enough for 96 disks of 20 TB that are full of what does not compress.
pub const CATALOGUE_SIZE_MAX: u32 = 1 << 30;
/// Bytes of a catalogue that a chunk in use takes at most: its share of the record of its segment.
const CATALOGUE_CHUNK: u64 = 20;
/// Bytes that a pointer of the block table's directory takes: there is one for each [`DIRECTORY_DATA`] of blocks.
const CATALOGUE_POINTER: u64 = 24;
/// Bytes of blocks that a directory page stands for.
const DIRECTORY_DATA: u64 = 128 << 20;
/// Bytes of a catalogue for everything else.
const CATALOGUE_BASE: u64 = 4 << 10;
/// Share of its place that a catalogue may fill: above it hosts are told that there is no space.
pub const CATALOGUE_FULL: f64 = 0.85;
/// Most bytes of a disk: sums over all disks of a pool fit 64 bits by far.
pub const DISK_SIZE_MAX: u64 = 1 << 56;
/// Most log extents of a disk.
pub const LOG_EXTENTS_MAX: u32 = 1024;

/// Sizes chosen when a pool is created; equal on all its disks and stored in every label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolGeometry {
    /// Bytes of a chunk: one disk's share of a segment.
    pub chunk_size: u32,
    /// Bytes of a strip: one disk's share of a stripe. Divides `chunk_size`.
    pub strip_size: u32,
    /// Bytes of one place of the catalogue.
    pub catalogue_size: u32,
    /// Bytes of a log extent.
    pub log_extent_size: u32,
    /// Log extents on each disk.
    pub log_extents: u32,
}

impl PoolGeometry {
    /// Sizes that suit a pool whose smallest disk has `smallest` bytes and which has `total` bytes in all.
    ///
    /// A chunk is between 1/1024 and 1/512 of the smallest disk, so that segments are fine enough for the cleaner and few enough
    /// for the catalogue, and at least 256 KiB, so that a strip of 64 KiB leaves several stripes to a segment.
    pub fn choose(smallest: u64, total: u64, chunk: Option<u64>, strip: Option<u32>) -> Result<Self> {
        let chunk_size = match chunk {
            Some(c) => c,
            None => (smallest / 1024).next_power_of_two().clamp(256 << 10, CHUNK_SIZE_MAX.into()),
        };
        let strip_size = strip.unwrap_or(64 << 10).min(chunk_size.try_into().unwrap_or(u32::MAX));
        let segments = total / chunk_size.max(1);
        // About 100 bytes of catalogue a segment before compression, and room for volumes.
        // One pointer of the block table's directory for each 128 MiB of unique data, four times as much as is stored.
        let directory = total / DIRECTORY_DATA * CATALOGUE_POINTER * 4;
        let most = (smallest / 64).clamp(64 << 20, CATALOGUE_SIZE_MAX.into());
        let catalogue_size = segments.saturating_mul(100).saturating_add(directory).clamp(0, 1 << 32) + (48 << 10);
        let catalogue_size = catalogue_size.next_multiple_of(64 << 10).clamp(64 << 10, most);
        // An extent holds at least one entry with the unfinished stripes of two streams inline.
        let strips = if strip_size < 32 << 10 { 32 } else { 64 };
        let needed = strips * u64::from(strip_size);
        let log_extent_size =
            (smallest / 512).min(4 << 20).next_power_of_two().max(needed).min(REGION_SIZE_MAX.into()) as u32;
        let log_extents = (smallest / 32 / u64::from(log_extent_size)).clamp(4, 64) as u32;
        let out = Self {
            chunk_size: u32::try_from(chunk_size).map_err(|_| Error::invalid("chunk size must be below 4 GiB"))?,
            strip_size,
            catalogue_size: catalogue_size as u32,
            log_extent_size,
            log_extents,
        };
        out.validate()?;
        Ok(out)
    }

    /// Bytes that the catalogue takes, at most, when disks of `total` bytes are full of blocks that are stored as large as they are.
    pub fn catalogue_needed(&self, total: u64) -> u64 {
        let chunks = total / u64::from(self.chunk_size.max(1));
        chunks * CATALOGUE_CHUNK + total / DIRECTORY_DATA * CATALOGUE_POINTER + CATALOGUE_BASE
    }

    /// Fails when the catalogue has no room for disks of `total` bytes that are full.
    pub fn check_catalogue(&self, total: u64) -> Result<()> {
        let (needed, room) = (self.catalogue_needed(total), f64::from(self.catalogue_size) * CATALOGUE_FULL);
        if needed as f64 <= room {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "disks of {} GiB in chunks of {} KiB need up to {} KiB of catalogue, and it has room for {} KiB",
            total >> 30,
            self.chunk_size >> 10,
            needed.div_ceil(1 << 10),
            room as u64 >> 10
        )))
    }

    /// Checks the relations the engine relies on.
    pub fn validate(&self) -> Result<()> {
        let aligned = |v: u32| v != 0 && v.is_multiple_of(4096);
        if !aligned(self.strip_size) || !aligned(self.chunk_size) || !self.chunk_size.is_multiple_of(self.strip_size) {
            return Err(Error::invalid(format!(
                "chunk size {} and strip size {} must be multiples of 4096, the chunk a multiple of the strip",
                self.chunk_size, self.strip_size
            )));
        }
        let limits = [
            ("chunk size", self.chunk_size, CHUNK_SIZE_MAX),
            ("strip size", self.strip_size, STRIP_SIZE_MAX),
            ("catalogue size", self.catalogue_size, CATALOGUE_SIZE_MAX),
            ("log extent size", self.log_extent_size, REGION_SIZE_MAX),
            ("number of log extents", self.log_extents, LOG_EXTENTS_MAX),
        ];
        if let Some((what, value, max)) = limits.into_iter().find(|(_, value, max)| value > max) {
            return Err(Error::invalid(format!("{what} {value} exceeds the limit of {max}")));
        }
        if !aligned(self.catalogue_size) || !aligned(self.log_extent_size) || self.log_extents < 2 {
            return Err(Error::invalid("catalogue and log regions are not aligned or too small"));
        }
        Ok(())
    }

    /// Byte offset of superblock slot `slot` at the start of the disk.
    pub fn superblock(&self, slot: u64) -> u64 {
        LABEL_SIZE as u64 * (1 + slot % SUPERBLOCK_SLOTS)
    }

    /// Byte offset of catalogue slot `slot`.
    pub fn catalogue(&self, slot: u64) -> u64 {
        EDGE + (slot % CATALOGUE_SLOTS) * u64::from(self.catalogue_size)
    }

    /// Byte offset of log extent `slot`.
    pub fn log_extent(&self, slot: u32) -> u64 {
        EDGE + CATALOGUE_SLOTS * u64::from(self.catalogue_size) + u64::from(slot) * u64::from(self.log_extent_size)
    }

    /// Byte offset of chunk `index`.
    pub fn chunk(&self, index: u32) -> u64 {
        self.log_extent(self.log_extents) + u64::from(index) * u64::from(self.chunk_size)
    }

    /// Chunks on a disk of `size` bytes; 0 when it is too small to be used.
    pub fn chunks(&self, size: u64) -> u32 {
        let room = size.saturating_sub(EDGE).saturating_sub(self.chunk(0));
        u32::try_from(room / u64::from(self.chunk_size)).unwrap_or(u32::MAX)
    }

    /// Byte offset of the block of labels and superblocks at the end of a disk of `size` bytes; 0 when it is too small to have one.
    pub fn tail(&self, size: u64) -> u64 {
        (size / 4096 * 4096).saturating_sub(EDGE)
    }
}
