//! The catalogue: everything of a checkpoint that is not in pages. Written whole, alternating between two places on every disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use super::cursor::{COUNTER_LIMIT, Get, Put, check_version};
use super::layout::DISK_SIZE_MAX;
use super::page::{DIRECTORY_FANOUT, PagePtr, TABLE_FANOUT, VIRTUAL_BLOCKS_MAX};
use super::record::SegmentRecord;
use super::volume::{Setting, VolumeRecord};
use crate::error::{Context, Error, Result};
use crate::report::Tolerance;
use crate::units::{DiskId, Uuid, VolumeId};

const MAGIC: u32 = 0x4348_5341; // "ASHC"
/// Most bytes of a catalogue before compression.
const BODY_MAX: usize = 1 << 30;
/// The block table is at most this many directory pages longer than those that exist: the newest entries may never have been used.
const DIRECTORIES_AHEAD: u64 = 64;

/// Numbers of disks are below this: sets of disks are masks of so many bits.
pub const DISK_IDS: u16 = 128;

/// Bit of the byte for [`Service`] that is set when an administrator declared the disk failed.
const DECLARED: u8 = 1 << 7;

/// Fewest bytes of an encoded [`DiskRecord`].
const DISK_RECORD_MIN: usize = 26;

/// What a pool expects of a disk. The numbers are on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Service {
    /// It served when the checkpoint was made.
    #[default]
    Serving = 0,
    /// It was not there, and what it lacks is written to it when it comes back.
    Away = 1,
    /// It was not there, and what it held is being rebuilt on other disks.
    GivenUp = 2,
    /// As [`Self::GivenUp`], and nothing lies on it any more: it does not count towards the failures that are tolerated.
    Empty = 3,
    /// It is to be removed: what lies on it, if it is there, is moved to others, and nothing new is put there.
    Leaving = 4,
    /// It makes too many errors: as [`Self::Leaving`], but in the end it is declared failed.
    Failing = 5,
    /// As [`Self::Empty`], because it made too many errors: it is not used again, whether it is there or not.
    Condemned = 6,
}

impl Service {
    fn decode(number: u8) -> Result<Self> {
        [Self::Serving, Self::Away, Self::GivenUp, Self::Empty, Self::Leaving, Self::Failing, Self::Condemned]
            .into_iter()
            .find(|s| *s as u8 == number)
            .ok_or_else(|| Error::corrupt(format!("disk: service {number} is unknown")))
    }
}

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
    /// What is expected of it.
    pub service: Service,
    /// An administrator declared it failed: it stays out, whether it is there or not.
    pub declared: bool,
    /// Its resiliency set.
    pub set: u16,
    /// What it did wrong since it joined.
    pub errors: DiskErrors,
    /// What it did since it joined: its wear.
    pub traffic: DiskTraffic,
}

/// Bytes that went to and came from a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskTraffic {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

/// What a disk did wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskErrors {
    /// Requests to read that failed.
    pub read: u64,
    /// Writes and flushes that failed.
    pub write: u64,
    /// Frames whose checksum did not match because of what it gave back.
    pub checksum: u64,
}

/// How far the newest scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubRecord {
    /// When it began, in seconds since 1970; 0 when there never was one.
    pub begun_s: u64,
    /// When it ended; 0 as long as it goes on.
    pub ended_s: u64,
    /// Segments of this incarnation and later have not been looked at.
    pub next: u64,
    /// Segments of this incarnation and later are none of its business.
    pub end: u64,
    /// Columns that were not what they should be, and were written anew.
    pub repaired: u64,
    /// Segments in which something could not be given back.
    pub damaged: u64,
}

impl ScrubRecord {
    /// Whether it goes on.
    pub fn is_running(&self) -> bool {
        self.begun_s > 0 && self.ended_s == 0
    }
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
    /// Bytes of data blocks, each as often as it is referred to.
    pub referenced_bytes: u64,
    /// The newest scrub.
    pub scrub: ScrubRecord,
    /// Drive failures that new data survives.
    pub tolerance: Tolerance,
    /// Drive failures that all data survives; by it failures are counted.
    pub guaranteed: Tolerance,
    /// Segments or log entries may lie across resiliency sets: failures in all of them count together.
    pub mixed: bool,
    /// What the pool's clock showed, in seconds since 1970.
    pub clock_s: u64,
    /// What whoever manages the pool keeps in it, by name.
    pub settings: Vec<Setting>,
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
        body.put_varint(self.referenced_bytes);
        body.put_varint(self.disks.len() as u64);
        for d in &self.disks {
            body.put_varint(d.id.0.into());
            body.extend_from_slice(&d.uuid.0);
            body.put_varint(d.size);
            body.put_varint(d.last_checkpoint);
            body.put_u8(d.service as u8 | if d.declared { DECLARED } else { 0 });
            body.put_varint(d.set.into());
            for v in [d.errors.read, d.errors.write, d.errors.checksum, d.traffic.read, d.traffic.written] {
                body.put_varint(v);
            }
        }
        body.put_varint(self.segments.len() as u64);
        self.segments.iter().for_each(|s| s.encode(&mut body));
        body.put_varint(self.volumes.len() as u64);
        self.volumes.iter().for_each(|v| v.encode(&mut body));
        body.put_varint(self.directory.len() as u64);
        self.directory.iter().for_each(|p| p.encode(&mut body));
        let s = &self.scrub;
        for v in [s.begun_s, s.ended_s, s.next, s.end, s.repaired, s.damaged] {
            body.put_varint(v);
        }
        body.put_u8(self.tolerance.drives() as u8);
        body.put_u8(self.guaranteed.drives() as u8);
        body.put_u8(self.mixed.into());
        body.put_varint(self.clock_s);
        body.put_varint(self.settings.len() as u64);
        self.settings.iter().for_each(|s| s.encode(&mut body));

        let packed =
            zstd::bulk::compress(&body, 1).map_err(|e| Error::io(format!("catalogue: compressing failed: {e}")))?;
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
        check_version(head.u32()?, "catalogue")?;
        let body = unpack(head.u64()?, head.0)?;
        Self::decode_body(&body).context("catalogue")
    }

    fn decode_body(body: &[u8]) -> Result<Self> {
        let mut get = Get(body);
        let mut out = Self {
            record: get.below(COUNTER_LIMIT, "record")?,
            seqno: get.below(COUNTER_LIMIT, "host operation")?,
            next_incarnation: get.below(COUNTER_LIMIT, "incarnation")?,
            next_volume: get.varint32()?,
            table_len: get.below(VIRTUAL_BLOCKS_MAX + 1, "length of the block table")?,
            unique_bytes: get.below(COUNTER_LIMIT, "unique bytes")?,
            stored_bytes: get.below(COUNTER_LIMIT, "stored bytes")?,
            referenced_bytes: get.below(COUNTER_LIMIT, "referenced bytes")?,
            ..Self::default()
        };
        for _ in 0..get.count(DISK_RECORD_MIN)? {
            let id = DiskId(get.varint16()?);
            let uuid = get.uuid()?;
            let size = get.below(DISK_SIZE_MAX + 1, "disk size")?;
            let last_checkpoint = get.below(COUNTER_LIMIT, "checkpoint")?;
            let service = get.u8()?;
            out.disks.push(DiskRecord {
                id,
                uuid,
                size,
                last_checkpoint,
                service: Service::decode(service & !DECLARED)?,
                declared: service & DECLARED != 0,
                set: get.varint16()?,
                errors: DiskErrors {
                    read: get.below(COUNTER_LIMIT, "read errors")?,
                    write: get.below(COUNTER_LIMIT, "write errors")?,
                    checksum: get.below(COUNTER_LIMIT, "checksum errors")?,
                },
                traffic: DiskTraffic {
                    read: get.below(COUNTER_LIMIT, "bytes read")?,
                    written: get.below(COUNTER_LIMIT, "bytes written")?,
                },
            });
        }
        for _ in 0..get.count(SegmentRecord::SIZE_MIN)? {
            out.segments.push(SegmentRecord::decode(&mut get)?);
        }
        for _ in 0..get.count(VolumeRecord::SIZE_MIN)? {
            out.volumes.push(VolumeRecord::decode(&mut get)?);
        }
        for _ in 0..get.count(PagePtr::SIZE)? {
            out.directory.push(PagePtr::decode(&mut get)?);
        }
        out.scrub = ScrubRecord {
            begun_s: get.below(COUNTER_LIMIT, "begin of the scrub")?,
            ended_s: get.below(COUNTER_LIMIT, "end of the scrub")?,
            next: get.below(COUNTER_LIMIT, "place of the scrub")?,
            end: get.below(COUNTER_LIMIT, "last segment of the scrub")?,
            repaired: get.below(COUNTER_LIMIT, "columns repaired")?,
            damaged: get.below(COUNTER_LIMIT, "segments damaged")?,
        };
        let tolerance = |n| Tolerance::of(n).ok_or_else(|| Error::corrupt(format!("tolerance {n} is unknown")));
        out.tolerance = tolerance(get.u8()?)?;
        out.guaranteed = tolerance(get.u8()?)?;
        out.mixed = get.flag().context("mixed sets")?;
        out.clock_s = get.below(COUNTER_LIMIT, "time")?;
        for _ in 0..get.count(Setting::SIZE_MIN)? {
            out.settings.push(Setting::decode(&mut get)?);
        }
        get.finish()?;
        if let Some(disk) = out.disks.iter().find(|d| d.id.0 >= DISK_IDS) {
            return Err(Error::corrupt(format!("disk {}: there is no such number", disk.id)));
        }
        out.check()?;
        Ok(out)
    }

    /// Refuses what would make its readers allocate or add up without bound, or take one thing for another.
    fn check(&self) -> Result<()> {
        let directories = self.directory.len() as u64 + DIRECTORIES_AHEAD;
        if !self.table_len.is_multiple_of(TABLE_FANOUT as u64)
            || self.table_len > directories * (TABLE_FANOUT * DIRECTORY_FANOUT) as u64
        {
            return Err(Error::corrupt(format!(
                "a block table of {} entries does not fit {} directory pages",
                self.table_len,
                self.directory.len()
            )));
        }
        let disks: BTreeSet<DiskId> = self.disks.iter().map(|d| d.id).collect();
        let uuids: BTreeSet<Uuid> = self.disks.iter().map(|d| d.uuid).collect();
        if disks.len() < self.disks.len() || uuids.len() < self.disks.len() {
            return Err(Error::corrupt("a disk is listed twice"));
        }
        if let Some(s) = self.segments.iter().find(|s| s.columns.iter().any(|(disk, _)| !disks.contains(disk))) {
            return Err(Error::corrupt(format!("segment {} lies on a disk that is not listed", s.id)));
        }
        let versions: BTreeMap<VolumeId, &VolumeRecord> = self.volumes.iter().map(|v| (v.id, v)).collect();
        let fits = |v: &VolumeRecord, p: &VolumeRecord| {
            p.is_snapshot() && p.generation < v.generation && p.levels <= v.levels && p.family == v.family
        };
        let fits = |v: &VolumeRecord| v.parent == VolumeId(0) || versions.get(&v.parent).is_some_and(|p| fits(v, p));
        if let Some(v) = self.volumes.iter().find(|v| !fits(v)) {
            return Err(Error::corrupt(format!("volume {} goes on from {}, which does not fit it", v.id, v.parent)));
        }
        if !self.segments.is_sorted_by(|a, b| a.id < b.id) || !self.volumes.is_sorted_by(|a, b| a.id < b.id) {
            return Err(Error::corrupt("segments or volumes are out of order"));
        }
        if !self.settings.is_sorted_by(|a, b| a.name < b.name) || self.settings.iter().any(|s| s.value.is_empty()) {
            return Err(Error::corrupt("settings are out of order, or one is empty"));
        }
        Ok(())
    }
}

/// Decompresses a body that claims to have `len` bytes; takes memory only for what really comes out.
fn unpack(len: u64, packed: &[u8]) -> Result<Vec<u8>> {
    let bad = |why: &str| Error::corrupt(format!("catalogue: {why}"));
    let len = usize::try_from(len).ok().filter(|&len| len <= BODY_MAX).ok_or_else(|| bad("impossible length"))?;
    let mut body = Vec::new();
    let mut decoder = zstd::stream::read::Decoder::new(packed).map_err(|e| bad(&e.to_string()))?;
    decoder.by_ref().take(len as u64 + 1).read_to_end(&mut body).map_err(|e| bad(&e.to_string()))?;
    if body.len() == len { Ok(body) } else { Err(bad("its length is not what its header says")) }
}
