//! The label: which pool and which disk this is. At the start of the disk and again in its last 64 KiB.

use super::cursor::{Put, counter, open_fixed, seal_fixed};
use super::layout::{DISK_SIZE_MAX, LABEL_SIZE, PoolGeometry};
use crate::error::{Error, Result};
use crate::report::Tolerance;
use crate::units::{DiskId, Epoch, Uuid};

const MAGIC: &[u8; 8] = b"ASHLARLB";

/// Identity of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The pool's identity.
    pub pool: Uuid,
    /// The pool's name, for messages before the catalogue can be read.
    pub pool_name: String,
    /// This disk's identity.
    pub disk: Uuid,
    /// This disk's index in the pool.
    pub id: DiskId,
    /// Writer epoch of the last opening for writing.
    pub epoch: Epoch,
    /// Drive failures tolerated, for messages; the catalogue decides.
    pub tolerance: Tolerance,
    /// Sizes of regions.
    pub geometry: PoolGeometry,
    /// Bytes of the disk when it was labelled; the copy at the end is found by it.
    pub size: u64,
    /// Bit per disk that was not there when log entries were written under this label: what it holds of them cannot be relied on.
    pub absent: u128,
}

impl Label {
    /// The label as [`LABEL_SIZE`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LABEL_SIZE);
        out.extend_from_slice(MAGIC);
        out.put_u32(super::FORMAT_VERSION);
        out.extend_from_slice(&self.pool.0);
        out.extend_from_slice(&self.disk.0);
        out.put_u16(self.id.0);
        out.put_u8(self.tolerance.drives() as u8);
        out.put_u64(self.epoch.0);
        out.put_u64(self.size);
        let g = &self.geometry;
        for v in [g.chunk_size, g.strip_size, g.catalogue_size, g.log_extent_size, g.log_extents] {
            out.put_u32(v);
        }
        out.put_bytes(self.pool_name.as_bytes());
        out.put_u128(self.absent);
        seal_fixed(out, LABEL_SIZE)
    }

    /// Decodes; [`crate::error::ErrorKind::NotFound`] when there is no label here at all.
    pub fn decode(data: &[u8]) -> Result<Self> {
        let mut get = open_fixed(data, MAGIC, "label")?;
        let pool = get.uuid()?;
        let disk = get.uuid()?;
        let id = DiskId(get.u16()?);
        let drives = get.u8()?;
        let tolerance =
            Tolerance::of(drives).ok_or_else(|| Error::corrupt(format!("label: tolerance {drives} is unknown")))?;
        let epoch = Epoch(counter(get.u64()?, "label: epoch")?);
        let size = get.u64()?;
        let geometry = PoolGeometry {
            chunk_size: get.u32()?,
            strip_size: get.u32()?,
            catalogue_size: get.u32()?,
            log_extent_size: get.u32()?,
            log_extents: get.u32()?,
        };
        geometry.validate().map_err(|e| Error::corrupt(format!("label: {e}")))?;
        if size > DISK_SIZE_MAX || geometry.chunks(size) == 0 {
            return Err(Error::corrupt(format!("label: a disk of {size} bytes is impossible")));
        }
        let pool_name = get.string(255)?;
        let absent = get.u128()?;
        Ok(Self { pool, pool_name, disk, id, epoch, tolerance, geometry, size, absent })
    }
}
