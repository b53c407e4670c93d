//! The superblock: names the newest checkpoint. Slot n mod 4 on every disk, at its start and in its last 64 KiB.

use super::cursor::{Put, counter, open_fixed, seal_fixed};
use super::layout::LABEL_SIZE;
use crate::error::Result;
use crate::units::{Epoch, Uuid};

const MAGIC: &[u8; 8] = b"ASHLARSB";

/// Root of one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The pool's identity.
    pub pool: Uuid,
    /// Epoch of the newest writer that went on from the checkpoint, or made it. Superblocks are ordered by epoch first.
    pub epoch: Epoch,
    /// Number of the checkpoint; catalogue slot and superblock slot follow from it.
    pub checkpoint: u64,
    /// First log extent whose records come after the checkpoint.
    pub log_start: u64,
    /// Encoded bytes of the catalogue.
    pub catalogue_len: u32,
    /// Checksum of the encoded catalogue.
    pub catalogue_checksum: u64,
    /// Epoch of the log entries that come after the checkpoint: `epoch`, unless a later writer has only put its mark on the checkpoint.
    pub log_epoch: Epoch,
}

impl Superblock {
    /// The superblock as one slot.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LABEL_SIZE);
        out.extend_from_slice(MAGIC);
        out.put_u32(super::FORMAT_VERSION);
        out.extend_from_slice(&self.pool.0);
        out.put_u64(self.epoch.0);
        out.put_u64(self.checkpoint);
        out.put_u64(self.log_start);
        out.put_u32(self.catalogue_len);
        out.put_u64(self.catalogue_checksum);
        out.put_u64(self.log_epoch.0);
        seal_fixed(out, LABEL_SIZE)
    }

    /// Decodes one slot.
    pub fn decode(data: &[u8]) -> Result<Self> {
        let mut get = open_fixed(data, MAGIC, "superblock")?;
        Ok(Self {
            pool: get.uuid()?,
            epoch: Epoch(counter(get.u64()?, "superblock: epoch")?),
            checkpoint: counter(get.u64()?, "superblock: checkpoint")?,
            log_start: counter(get.u64()?, "superblock: log extent")?,
            catalogue_len: get.u32()?,
            catalogue_checksum: get.u64()?,
            log_epoch: Epoch(counter(get.u64()?, "superblock: log epoch")?),
        })
    }

    /// What decides which superblock is newest.
    pub fn rank(&self) -> (Epoch, u64) {
        (self.epoch, self.checkpoint)
    }
}
