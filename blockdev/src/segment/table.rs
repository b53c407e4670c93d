//! Which segments exist, how much of each is live, and which chunks of the disks are free.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::format::layout::PoolGeometry;
use crate::format::page::Location;
use crate::format::record::{SegmentRecord, Stream};
use crate::redundancy::array::{DiskArray, Extent};
use crate::redundancy::layout::{Width, resiliency_sets, width};
use crate::redundancy::placement::{DiskSpace, place};
use crate::report::{Redundancy, Tolerance};
use crate::units::{ChunkIndex, DiskId, SegmentId};

/// A segment in use.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its record; `stale_columns` is kept in `extent` while the pool is open.
    pub record: SegmentRecord,
    /// Where its columns lie.
    pub extent: Arc<Extent>,
}

/// Chunks of one disk.
#[derive(Clone, Debug)]
struct Chunks {
    id: DiskId,
    used: Vec<bool>,
    free: u32,
    /// Where the search for a free chunk goes on.
    next: u32,
}

/// All segments in use.
#[derive(Clone, Debug)]
pub struct SegmentTable {
    segments: BTreeMap<SegmentId, Segment>,
    chunks: Vec<Chunks>,
    /// Next [`SegmentRecord::incarnation`].
    pub next_incarnation: u64,
    live: u64,
    /// Raised whenever chunks are taken or given back.
    pub version: u64,
    /// Where the search for a free identity goes on.
    next_id: u32,
}

impl SegmentTable {
    /// A table with the given segments over disks of the given sizes in bytes.
    pub fn new(
        geometry: PoolGeometry,
        disks: impl Iterator<Item = (DiskId, u64)>,
        segments: Vec<SegmentRecord>,
        next_incarnation: u64,
    ) -> Self {
        let chunks = disks
            .map(|(id, size)| {
                let n = geometry.chunks(size);
                Chunks { id, used: vec![false; n as usize], free: n, next: 0 }
            })
            .collect();
        let mut out = Self { segments: BTreeMap::new(), chunks, next_incarnation, live: 0, version: 0, next_id: 0 };
        segments.into_iter().for_each(|s| out.insert(s));
        out
    }

    fn mark(&mut self, columns: &[(DiskId, ChunkIndex)], used: bool) {
        for (disk, chunk) in columns {
            if let Some(chunks) = self.chunks.iter_mut().find(|c| c.id == *disk)
                && let Some(slot) = chunks.used.get_mut(chunk.0 as usize)
                && *slot != used
            {
                *slot = used;
                chunks.free = if used { chunks.free - 1 } else { chunks.free + 1 };
            }
        }
    }

    /// Puts a segment in use. An older use of its identity ends.
    pub fn insert(&mut self, record: SegmentRecord) {
        self.remove(record.id);
        self.version += 1;
        self.mark(&record.columns, true);
        self.next_incarnation = self.next_incarnation.max(record.incarnation + 1);
        let extent = Arc::new(Extent::of(&record));
        self.live += record.live;
        self.segments.insert(record.id, Segment { record, extent });
    }

    /// Gives a segment's chunks back.
    pub fn remove(&mut self, id: SegmentId) {
        if let Some(old) = self.segments.remove(&id) {
            self.live -= old.record.live;
            self.version += 1;
            self.mark(&old.record.columns, false);
        }
    }

    /// The segment of an identity.
    pub fn get(&self, id: SegmentId) -> Option<&Segment> {
        self.segments.get(&id)
    }

    /// The segment of an identity, for changing.
    pub fn get_mut(&mut self, id: SegmentId) -> Option<&mut Segment> {
        self.segments.get_mut(&id)
    }

    /// All segments in use, by identity.
    pub fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.segments.values()
    }

    /// Segments in use.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether no segment is in use.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Records for a catalogue.
    pub fn records(&self) -> Vec<SegmentRecord> {
        let stale = |s: &Segment| s.extent.stale.load(Ordering::Acquire);
        self.iter().map(|s| SegmentRecord { stale_columns: stale(s), ..s.record.clone() }).collect()
    }

    /// Counts stored bytes as live.
    pub fn add_live(&mut self, at: &Location, bytes: u64) {
        if let Some(s) = self.segments.get_mut(&at.segment) {
            s.record.live += bytes;
            self.live += bytes;
        }
    }

    /// Counts stored bytes as dead.
    pub fn sub_live(&mut self, at: &Location, bytes: u64) {
        if let Some(s) = self.segments.get_mut(&at.segment) {
            debug_assert!(s.record.live >= bytes, "segment {}: live bytes below zero", at.segment);
            let bytes = bytes.min(s.record.live);
            s.record.live -= bytes;
            self.live -= bytes;
        }
    }

    /// Bytes of frames that are referenced, over all segments.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// Chunks in use on a disk.
    pub fn allocated(&self, id: DiskId) -> u64 {
        self.chunks.iter().find(|c| c.id == id).map_or(0, |c| c.used.len() as u64 - u64::from(c.free))
    }

    /// How well live data is protected with the disks that are there.
    pub fn redundancy(&self, array: &DiskArray) -> Redundancy {
        let (absent, tolerance) = (array.absent(), array.tolerance.drives());
        let mut out = Redundancy::default();
        for s in self.iter() {
            let lost = s.extent.lost_columns(absent).count_ones() as usize;
            let class = match s.extent.parity.checked_sub(lost) {
                None => &mut out.lost,
                Some(left) if left >= tolerance => &mut out.full,
                Some(0) => &mut out.none,
                Some(_) => &mut out.reduced,
            };
            *class += s.record.live;
        }
        out
    }

    /// Bytes of live data, parity included, that columns on a disk lack.
    pub fn behind(&self, id: DiskId) -> u64 {
        let lacks = |s: &Segment| {
            let stale = s.extent.stale.load(Ordering::Acquire);
            let mut columns = s.record.columns.iter().enumerate();
            columns.any(|(i, (disk, _))| *disk == id && stale >> i & 1 == 1)
        };
        self.iter().filter(|s| lacks(s)).map(|s| s.record.live / u64::from(s.record.data.max(1))).sum()
    }

    fn spaces(&self, array: &DiskArray) -> Vec<DiskSpace> {
        let online: Vec<DiskId> = array.online().iter().map(|m| m.id).collect();
        let sets = resiliency_sets(self.chunks.len(), array.tolerance).max(1);
        let spaces = self.chunks.iter().enumerate().map(|(i, c)| DiskSpace {
            id: c.id,
            set: (i % sets) as u16,
            total_chunks: c.used.len() as u32,
            free_chunks: if online.contains(&c.id) { c.free } else { 0 },
            wear: 0,
        });
        spaces.collect()
    }

    /// Layout of segments opened now. With too few disks left for the tolerance, as much redundancy as they allow.
    pub fn width(&self, array: &DiskArray) -> Option<Width> {
        let sets = resiliency_sets(self.chunks.len(), array.tolerance).max(1);
        let disks = array.online().len() / sets;
        let lesser = [array.tolerance, Tolerance::Single, Tolerance::None];
        lesser.into_iter().filter(|t| t.drives() <= array.tolerance.drives()).find_map(|t| width(disks, t))
    }

    /// Segments that could still be opened with the disks that are online, of the present width.
    pub fn free(&self, array: &DiskArray) -> u64 {
        let Some(width) = self.width(array) else { return 0 };
        let spaces = self.spaces(array);
        let sets = spaces.iter().map(|s| s.set).max().map_or(0, |m| m + 1);
        (0..sets)
            .map(|set| {
                let chunks: Vec<u32> = spaces.iter().filter(|s| s.set == set).map(|s| s.free_chunks).collect();
                crate::redundancy::placement::max_extents(&chunks, width.columns())
            })
            .sum()
    }

    /// Segments of the present width that the disks that are online have room for.
    pub fn total(&self, array: &DiskArray) -> u64 {
        let Some(width) = self.width(array) else { return 0 };
        let (sets, absent) = (resiliency_sets(self.chunks.len(), array.tolerance).max(1), array.absent());
        (0..sets)
            .map(|set| {
                let here = |id: DiskId| absent.checked_shr(id.0.into()).unwrap_or(0) & 1 == 0;
                let own = self.chunks.iter().enumerate().filter(|(i, c)| i % sets == set && here(c.id));
                let chunks: Vec<u32> = own.map(|(_, c)| c.used.len() as u32).collect();
                crate::redundancy::placement::max_extents(&chunks, width.columns())
            })
            .sum()
    }

    /// Chooses the place of a new segment and reserves its chunks; None when there is no room.
    pub fn open(&mut self, array: &DiskArray, stream: Stream) -> Option<SegmentRecord> {
        let width = self.width(array)?;
        let disks = place(&self.spaces(array), width.columns(), self.next_incarnation)?;
        let mut columns = Vec::with_capacity(disks.len());
        for disk in disks {
            let chunks = self.chunks.iter_mut().find(|c| c.id == disk)?;
            let n = chunks.used.len() as u32;
            let chunk = (0..n).map(|i| (chunks.next + i) % n).find(|&c| !chunks.used[c as usize])?;
            chunks.next = chunk + 1;
            columns.push((disk, ChunkIndex(chunk)));
        }
        let from = self.next_id;
        let id = (from..).chain(0..from).map(SegmentId).find(|id| !self.segments.contains_key(id))?;
        // Identities stay small: the search starts anew once it is far beyond what is in use.
        self.next_id = if id.0 as usize > 2 * self.segments.len() + 64 { 0 } else { id.0 + 1 };
        let record = SegmentRecord {
            id,
            incarnation: self.next_incarnation,
            stream,
            data: width.data as u8,
            parity: width.parity as u8,
            columns,
            sealed: false,
            written: 0,
            live: 0,
            last_part: Location::default(),
            stale_columns: 0,
        };
        self.insert(record.clone());
        Some(record)
    }

    /// Whether some segments have another layout than new ones, or columns on disks that are gone: given back they are worth less than a
    /// new one takes.
    pub fn is_uneven(&self, array: &DiskArray) -> bool {
        let Some(width) = self.width(array) else { return true };
        let gone = array.absent() != 0;
        gone || self.iter().any(|s| usize::from(s.record.data + s.record.parity) != width.columns())
    }

    /// Data bytes, out of `segment` for a whole one, that new segments have in the place of an emptied one.
    pub fn worth(&self, array: &DiskArray, segment: u64) -> impl Fn(&SegmentRecord) -> u64 + use<> {
        let columns = self.width(array).map_or(0, |w| w.columns() as u64);
        let absent = array.absent();
        move |record| {
            let here = |disk: DiskId| absent.checked_shr(disk.0.into()).unwrap_or(0) & 1 == 0;
            let chunks = record.columns.iter().filter(|(disk, _)| here(*disk)).count() as u64;
            (segment * chunks).checked_div(columns).unwrap_or(0)
        }
    }

    /// Data bytes that segments in use hold or make room for: of each what is live, or what it is worth, whichever is more.
    pub fn room(&self, array: &DiskArray, segment: u64) -> u64 {
        let worth = self.worth(array, segment);
        self.iter().map(|s| s.record.live.max(worth(&s.record))).sum()
    }
}

/// Disks that a pool of this tolerance needs at least.
pub fn disks_min(tolerance: Tolerance) -> usize {
    tolerance.drives() + 1
}
