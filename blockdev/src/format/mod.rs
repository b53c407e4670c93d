//! Every byte that reaches a disk: pure encoding and decoding, shared by the engine and the offline tools.
//!
//! Byte tables are in `docs/format.md`. All integers are little-endian. Decoders check bounds, versions and checksums and
//! return [`crate::error::ErrorKind::Corrupt`]; they never panic, whatever the input.

pub mod catalogue;
pub mod cursor;
pub mod label;
pub mod layout;
pub mod page;
pub mod part;
pub mod record;
pub mod superblock;
pub mod volume;

/// Version of the on-disk format; anything else is refused.
pub const FORMAT_VERSION: u32 = 8;

/// Checksum of metadata and of 4 KiB blocks: the low 64 bits of XXH3-128.
pub fn checksum(data: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_128(data) as u64
}

#[cfg(test)]
mod tests;
