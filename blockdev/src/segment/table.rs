//! Which segments exist, how much of each is live, and which chunks of the disks are free.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::format::layout::PoolGeometry;
use crate::format::page::Location;
use crate::format::record::{ColumnMove, SegmentRecord, Stream};
use crate::redundancy::array::{DiskArray, Extent, Member};
use crate::redundancy::layout::{Width, has_spare, width, width_now};
use crate::redundancy::placement::{DiskSpace, max_extents, place};
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

impl Segment {
    /// Whether something live lies in it, or may come to.
    fn is_needed(&self) -> bool {
        self.record.live > 0 || !self.record.sealed
    }
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

impl Chunks {
    /// A free chunk.
    fn find_free(&mut self) -> Option<ChunkIndex> {
        let n = self.used.len() as u32;
        let chunk = (0..n).map(|i| (self.next + i) % n).find(|&c| !self.used[c as usize])?;
        self.next = chunk + 1;
        Some(ChunkIndex(chunk))
    }
}

/// All segments in use.
#[derive(Clone, Debug)]
pub struct SegmentTable {
    segments: BTreeMap<SegmentId, Segment>,
    chunks: Vec<Chunks>,
    /// Next [`SegmentRecord::incarnation`].
    pub next_incarnation: u64,
    live: u64,
    /// Sealed segments in which nothing is live.
    emptied: u64,
    /// Raised whenever chunks are taken or given back.
    pub version: u64,
    /// Where the search for a free identity goes on.
    next_id: u32,
    /// Chunks that columns were moved away from: taken until the checkpoint that says so is durable, and their readers are gone.
    left: Vec<(DiskId, ChunkIndex)>,
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
        let mut out = Self {
            segments: BTreeMap::new(),
            chunks,
            next_incarnation,
            live: 0,
            emptied: 0,
            version: 0,
            next_id: 0,
            left: Vec::new(),
        };
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
        self.emptied += u64::from(record.sealed && record.live == 0);
        self.segments.insert(record.id, Segment { record, extent });
    }

    /// Gives a segment's chunks back.
    pub fn remove(&mut self, id: SegmentId) {
        if let Some(old) = self.segments.remove(&id) {
            self.live -= old.record.live;
            self.emptied -= u64::from(!old.is_needed());
            self.version += 1;
            self.mark(&old.record.columns, false);
        }
    }

    /// Takes a free chunk of a disk; None when it has none.
    pub fn reserve(&mut self, disk: DiskId) -> Option<ChunkIndex> {
        let chunk = self.chunks.iter_mut().find(|c| c.id == disk)?.find_free()?;
        self.version += 1;
        self.mark(&[(disk, chunk)], true);
        Some(chunk)
    }

    /// Gives a chunk back that no segment came to lie on.
    pub fn unreserve(&mut self, at: (DiskId, ChunkIndex)) {
        self.version += 1;
        self.mark(&[at], false);
    }

    /// Columns of a segment were written anew: they are whole, and lie where the moves say. Those that no longer fit are left out; says
    /// whether all did.
    pub fn move_columns(&mut self, id: SegmentId, incarnation: u64, moves: &[ColumnMove]) -> bool {
        let Some(s) = self.segments.get_mut(&id).filter(|s| s.record.incarnation == incarnation) else { return false };
        let mut stale = s.extent.stale.load(Ordering::Acquire);
        let (mut taken, mut complete) = (Vec::new(), true);
        for m in moves {
            let elsewhere = |(i, c): (usize, &(DiskId, ChunkIndex))| i != usize::from(m.column) && c.0 == m.to.0;
            let fits = s.record.columns.get(usize::from(m.column)) == Some(&m.from)
                && !s.record.columns.iter().enumerate().any(elsewhere);
            complete &= fits;
            if fits {
                s.record.columns[usize::from(m.column)] = m.to;
                stale &= !(1 << m.column);
                if m.from != m.to {
                    self.left.push(m.from);
                    taken.push(m.to);
                }
            }
        }
        s.record.stale_columns = stale;
        s.record.damaged = s.extent.damaged.load(Ordering::Acquire);
        s.extent = Arc::new(Extent::of(&s.record));
        self.version += 1;
        self.mark(&taken, true);
        complete
    }

    /// Chunks that columns were moved away from so far.
    pub fn left(&self) -> &[(DiskId, ChunkIndex)] {
        &self.left
    }

    /// Gives chunks back that columns were moved away from.
    pub fn release(&mut self, left: &[(DiskId, ChunkIndex)]) {
        self.version += u64::from(!left.is_empty());
        self.left.retain(|at| !left.contains(at));
        self.mark(left, false);
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
        let now = |s: &Segment| SegmentRecord {
            stale_columns: s.extent.stale.load(Ordering::Acquire),
            damaged: s.extent.damaged.load(Ordering::Acquire),
            ..s.record.clone()
        };
        self.iter().map(now).collect()
    }

    /// Counts stored bytes as live.
    pub fn add_live(&mut self, at: &Location, bytes: u64) {
        if let Some(s) = self.segments.get_mut(&at.segment) {
            let before = s.is_needed();
            s.record.live += bytes;
            self.live += bytes;
            self.emptied -= u64::from(!before && s.is_needed());
        }
    }

    /// Counts stored bytes as dead.
    pub fn sub_live(&mut self, at: &Location, bytes: u64) {
        if let Some(s) = self.segments.get_mut(&at.segment) {
            debug_assert!(s.record.live >= bytes, "segment {}: live bytes below zero", at.segment);
            let bytes = bytes.min(s.record.live);
            let before = s.is_needed();
            s.record.live -= bytes;
            self.live -= bytes;
            self.emptied += u64::from(before && !s.is_needed());
        }
    }

    /// Nothing more is appended to a segment.
    pub fn seal(&mut self, id: SegmentId) {
        if let Some(s) = self.segments.get_mut(&id) {
            let before = s.is_needed();
            s.record.sealed = true;
            self.emptied += u64::from(before && !s.is_needed());
        }
    }

    /// Segments that the next checkpoint gives back: nothing lies in them any more.
    pub fn emptied(&self) -> u64 {
        self.emptied
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
        let (absent, tolerance) = (array.absent(), array.tolerance().drives());
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

    /// The disk that is to take a column of a segment: one that serves, holds no column of it, is of its set, and has the largest share of its chunks
    /// free. None when there is no such disk.
    pub fn target(&self, array: &DiskArray, record: &SegmentRecord) -> Option<DiskId> {
        let spaces = self.spaces(array);
        let home = home(record, &array.sets());
        let holds = |disk: DiskId| record.columns.iter().any(|(other, _)| *other == disk);
        let fits = |s: &&DiskSpace| s.free_chunks > 0 && !holds(s.id) && Some(s.set) == home;
        let share = |s: &DiskSpace| (u64::from(s.free_chunks) << 32) / u64::from(s.total_chunks.max(1));
        spaces.iter().filter(fits).max_by_key(|s| (share(s), Reverse(s.id))).map(|s| s.id)
    }

    /// Whether a column of some segment lies on a disk, or was left there not long ago.
    pub fn is_used(&self, id: DiskId) -> bool {
        self.allocated(id) > 0
    }

    /// Takes in the chunks of a new disk.
    pub fn add_disk(&mut self, id: DiskId, chunks: u32) {
        self.chunks.push(Chunks { id, used: vec![false; chunks as usize], free: chunks, next: 0 });
        self.chunks.sort_by_key(|c| c.id);
        self.version += 1;
    }

    /// Forgets the chunks of a disk on which nothing lies.
    pub fn remove_disk(&mut self, id: DiskId) {
        self.chunks.retain(|c| c.id != id);
        self.version += 1;
    }

    /// Chunks of the disks that are not to be removed, by set.
    fn staying(&self, array: &DiskArray) -> BTreeMap<u16, Vec<&Chunks>> {
        let members = array.members();
        let mut out: BTreeMap<u16, Vec<&Chunks>> = BTreeMap::new();
        for member in members.iter().filter(|m| !m.is_leaving() && !m.is_condemned()) {
            out.entry(member.set()).or_default().extend(self.chunks.iter().find(|c| c.id == member.id));
        }
        out
    }

    /// How full the disks are, by set.
    pub fn spaces(&self, array: &DiskArray) -> Vec<DiskSpace> {
        let closed = array.closed();
        let open = |id: DiskId| closed.checked_shr(id.0.into()).unwrap_or(0) & 1 == 0;
        let sets = array.sets();
        let spaces = self.chunks.iter().map(|c| DiskSpace {
            id: c.id,
            set: sets.get(&c.id).copied().unwrap_or_default(),
            total_chunks: c.used.len() as u32,
            free_chunks: if open(c.id) { c.free } else { 0 },
            wear: 0,
        });
        spaces.collect()
    }

    /// Layout of segments opened now. With too few disks left for the tolerance, as much redundancy as they allow.
    pub fn width(&self, array: &DiskArray) -> Option<Width> {
        let members = array.members();
        let sets: BTreeSet<u16> = members.iter().map(|m| m.set()).collect();
        let count = |which: &dyn Fn(&Member) -> bool| members.iter().filter(|m| which(m)).count();
        // Each set could have its own; the narrowest is for all, so that segments are worth the same. A set of too few disks gets none.
        let of_set = |set: u16, tolerance: Tolerance| {
            let disks = count(&|m| m.set() == set && !m.is_leaving() && !m.is_condemned());
            width_now(disks, count(&|m| m.set() == set && m.takes_data()), tolerance)
        };
        let narrowest = |t: Tolerance| sets.iter().filter_map(|set| of_set(*set, t)).min_by_key(|w| w.data);
        let lesser = [array.tolerance(), Tolerance::Single, Tolerance::None];
        lesser.into_iter().filter(|t| t.drives() <= array.tolerance().drives()).find_map(narrowest)
    }

    /// Whether columns of a segment that is in use lie in several sets.
    pub fn straddles(&self, sets: &BTreeMap<DiskId, u16>) -> bool {
        self.iter().any(|s| s.is_needed() && strays(&s.record, sets) != 0)
    }

    /// Whether a segment in use has less parity than that.
    pub fn has_less_parity(&self, parity: usize) -> bool {
        self.iter().any(|s| s.is_needed() && usize::from(s.record.parity) < parity)
    }

    /// Segments that could still be opened with the disks that are online, of the present width.
    pub fn free(&self, array: &DiskArray) -> u64 {
        let Some(width) = self.width(array) else { return 0 };
        let spaces = self.spaces(array);
        let sets: BTreeSet<u16> = spaces.iter().map(|s| s.set).collect();
        sets.into_iter()
            .map(|set| {
                let chunks: Vec<u32> = spaces.iter().filter(|s| s.set == set).map(|s| s.free_chunks).collect();
                max_extents(&chunks, width.columns())
            })
            .sum()
    }

    /// Segments, without the spare, that the disks that stay have room for with another tolerance and in other sets, and their width. `joining` is a
    /// disk that is no member yet, with its chunks.
    pub fn capacity_with(
        &self,
        tolerance: Tolerance,
        sets: &BTreeMap<DiskId, u16>,
        joining: Option<(DiskId, u32)>,
    ) -> Option<(u64, Width)> {
        let mut chunks: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
        for (id, count) in self.chunks.iter().map(|c| (c.id, c.used.len() as u32)).chain(joining) {
            if let Some(set) = sets.get(&id) {
                chunks.entry(*set).or_default().push(count);
            }
        }
        let widths = chunks.values().filter_map(|own| width(own.len(), tolerance));
        let width = widths.min_by_key(|w| w.data)?;
        let extents = |mut own: Vec<u32>| {
            own.sort_unstable();
            if has_spare(own.len(), tolerance) {
                own.pop();
            }
            max_extents(&own, width.columns())
        };
        Some((chunks.into_values().map(extents).sum(), width))
    }

    /// Segments of the present width that the disks that are online have room for, and how many of these are the spare: what would not
    /// have room any more if the largest disk of each set were gone.
    pub fn total(&self, array: &DiskArray) -> (u64, u64) {
        let Some(width) = self.width(array) else { return (0, 0) };
        let closed = array.closed();
        let here = |id: DiskId| closed.checked_shr(id.0.into()).unwrap_or(0) & 1 == 0;
        let (mut total, mut spare) = (0, 0);
        for own in self.staying(array).into_values() {
            let count = |c: &&&Chunks| c.used.len() as u32;
            let now: Vec<u32> = own.iter().filter(|c| here(c.id)).map(|c| count(&c)).collect();
            let now = max_extents(&now, width.columns());
            total += now;
            if has_spare(own.len(), array.tolerance()) {
                // What was promised when the pool was whole: the same with a disk away.
                let mut promised: Vec<u32> = own.iter().map(|c| count(&c)).collect();
                promised.sort_unstable();
                promised.pop();
                spare += now.saturating_sub(max_extents(&promised, width.columns()));
            }
        }
        (total, spare)
    }

    /// Segments of the present width that the largest disk of each set makes the difference for, when all are there.
    pub fn spare_wanted(&self, array: &DiskArray) -> u64 {
        let Some(width) = self.width(array) else { return 0 };
        let worth = |own: Vec<&Chunks>| {
            let mut chunks: Vec<u32> = own.iter().map(|c| c.used.len() as u32).collect();
            if !has_spare(chunks.len(), array.tolerance()) {
                return 0;
            }
            chunks.sort_unstable();
            let all = max_extents(&chunks, width.columns());
            chunks.pop();
            all - max_extents(&chunks, width.columns())
        };
        self.staying(array).into_values().map(worth).sum()
    }

    /// Chooses the place of a new segment and reserves its chunks; None when there is no room.
    pub fn open(&mut self, array: &DiskArray, stream: Stream) -> Option<SegmentRecord> {
        let width = self.width(array)?;
        let disks = place(&self.spaces(array), width.columns(), self.next_incarnation)?;
        let mut columns = Vec::with_capacity(disks.len());
        for disk in disks {
            let chunks = self.chunks.iter_mut().find(|c| c.id == disk)?;
            columns.push((disk, chunks.find_free()?));
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
            damaged: false,
        };
        self.insert(record.clone());
        Some(record)
    }

    /// Whether some segments have another layout than new ones, or columns on disks that are gone: given back they are worth less than a
    /// new one takes.
    pub fn is_uneven(&self, array: &DiskArray) -> bool {
        let Some(width) = self.width(array) else { return true };
        let gone = array.closed() != 0;
        gone || self.iter().any(|s| usize::from(s.record.data + s.record.parity) != width.columns())
    }

    /// Data bytes, out of `segment` for a whole one, that new segments have in the place of an emptied one.
    pub fn worth(&self, array: &DiskArray, segment: u64) -> impl Fn(&SegmentRecord) -> u64 + use<> {
        let columns = self.width(array).map_or(0, |w| w.columns() as u64);
        let closed = array.closed();
        move |record| {
            let here = |disk: DiskId| closed.checked_shr(disk.0.into()).unwrap_or(0) & 1 == 0;
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

/// The set that holds most columns of a segment.
pub fn home(record: &SegmentRecord, sets: &BTreeMap<DiskId, u16>) -> Option<u16> {
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    for set in record.columns.iter().filter_map(|(disk, _)| sets.get(disk)) {
        *counts.entry(*set).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(set, count)| (*count, Reverse(*set))).map(|(set, _)| set)
}

/// Bit per column of a segment that lies in another set than most.
pub fn strays(record: &SegmentRecord, sets: &BTreeMap<DiskId, u16>) -> u32 {
    let home = home(record, sets);
    let stray = |(_, (disk, _)): &(usize, &(DiskId, ChunkIndex))| sets.get(disk).copied() != home;
    record.columns.iter().enumerate().filter(stray).fold(0, |bits, (i, _)| bits | 1 << i)
}

/// Disks that a pool of this tolerance needs at least.
pub fn disks_min(tolerance: Tolerance) -> usize {
    tolerance.drives() + 1
}

#[cfg(test)]
mod tests;
