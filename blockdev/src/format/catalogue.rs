//! The catalogue: everything of a checkpoint that is not in pages. Written whole, alternating between two places on every disk.

use super::cursor::{Get, Put};
use super::page::PagePtr;
use super::record::{SegmentRecord, VolumeRecord};
use crate::error::{Error, Result};
use crate::units::{DiskId, Uuid};

const MAGIC: u32 = 0x4348_5341; // "ASHC"

/// A disk as the catalogue knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRecord {
    /// Index.
    pub id: DiskId,
    /// Identity in its label.
    pub uuid: Uuid,
    /// Bytes.
    pub size: u64,
    /// Newest checkpoint that was written to this disk: a disk that shows an older one was rolled back or replaced by a copy.
    pub last_checkpoint: u64,
    /// Declared failed: not to be used, even when it answers, until it is reinstated.
    pub failed: bool,
}

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Catalogue {
    /// Number of the newest record that the checkpoint contains.
    pub record: u64,
    /// Newest host operation that it contains.
    pub seqno: u64,
    /// Next [`SegmentRecord::incarnation`].
    pub next_incarnation: u64,
    /// Next volume identity.
    pub next_volume: u32,
    /// Entries of the block table, used or free; the first never used virtual block.
    pub table_len: u64,
    /// Disks.
    pub disks: Vec<DiskRecord>,
    /// Segments in use.
    pub segments: Vec<SegmentRecord>,
    /// Volumes.
    pub volumes: Vec<VolumeRecord>,
    /// The block table's directory pages.
    pub directory: Vec<PagePtr>,
    /// Bytes of data blocks in use, before and after compression.
    pub unique_bytes: u64,
    /// See `unique_bytes`.
    pub stored_bytes: u64,
}

impl Catalogue {
    /// Encodes: a short header, then the zstd-compressed body.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        for v in [self.record, self.seqno, self.next_incarnation, self.next_volume.into(), self.table_len] {
            body.put_varint(v);
        }
        body.put_varint(self.unique_bytes);
        body.put_varint(self.stored_bytes);
        body.put_varint(self.disks.len() as u64);
        for d in &self.disks {
            body.put_varint(d.id.0.into());
            body.extend_from_slice(&d.uuid.0);
            body.put_varint(d.size);
            body.put_varint(d.last_checkpoint);
            body.put_u8(d.failed.into());
        }
        body.put_varint(self.segments.len() as u64);
        self.segments.iter().for_each(|s| s.encode(&mut body));
        body.put_varint(self.volumes.len() as u64);
        self.volumes.iter().for_each(|v| v.encode(&mut body));
        body.put_varint(self.directory.len() as u64);
        self.directory.iter().for_each(|p| p.encode(&mut body));

        let packed = zstd::bulk::compress(&body, 1).map_err(|e| Error::io(format!("catalogue: compressing failed: {e}")))?;
        let mut out = Vec::with_capacity(packed.len() + 16);
        out.put_u32(MAGIC);
        out.put_u32(super::FORMAT_VERSION);
        out.put_u64(body.len() as u64);
        out.extend_from_slice(&packed);
        Ok(out)
    }

    /// Decodes what [`Catalogue::encode`] made; its checksum is in the superblock and must have been verified.
    pub fn decode(data: &[u8]) -> Result<Self> {
        let mut head = Get(data);
        if head.u32()? != MAGIC {
            return Err(Error::corrupt("catalogue: no magic"));
        }
        let version = head.u32()?;
        if version != super::FORMAT_VERSION {
            return Err(Error::new(
                crate::error::ErrorKind::Unsupported,
                format!("catalogue: format version {version} is unknown to this release"),
            ));
        }
        let raw_len = usize::try_from(head.u64()?).unwrap_or(usize::MAX);
        if raw_len > 1 << 30 {
            return Err(Error::corrupt("catalogue: impossible length"));
        }
        let body =
            zstd::bulk::decompress(head.0, raw_len).map_err(|e| Error::corrupt(format!("catalogue: {e}")))?;
        let mut get = Get(&body);
        let limit = body.len();
        let mut out = Self {
            record: get.varint()?,
            seqno: get.varint()?,
            next_incarnation: get.varint()?,
            next_volume: get.varint32()?,
            table_len: get.varint()?,
            unique_bytes: get.varint()?,
            stored_bytes: get.varint()?,
            ..Self::default()
        };
        for _ in 0..get.count(limit)? {
            let id = DiskId(u16::try_from(get.varint()?).map_err(|_| Error::corrupt("disk index exceeds 16 bits"))?);
            out.disks.push(DiskRecord {
                id,
                uuid: get.uuid()?,
                size: get.varint()?,
                last_checkpoint: get.varint()?,
                failed: get.u8()? != 0,
            });
        }
        for _ in 0..get.count(limit)? {
            out.segments.push(SegmentRecord::decode(&mut get)?);
        }
        for _ in 0..get.count(limit)? {
            out.volumes.push(VolumeRecord::decode(&mut get)?);
        }
        for _ in 0..get.count(limit)? {
            out.directory.push(PagePtr::decode(&mut get)?);
        }
        get.finish()?;
        Ok(out)
    }
}
