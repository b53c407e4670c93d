//! The set of disks under a pool: who is in, who failed, and I/O that survives the loss of some of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::Notify;

use super::member::Stalled;
pub use super::member::{CONDEMNED, DECLARED, Member};
use super::parity::{self, Recovery};
use crate::disk::{AlignedBuf, Disk, DiskError, IO_ALIGN};
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalogue::Service;
use crate::format::layout::PoolGeometry;
use crate::format::record::SegmentRecord;
use crate::lock::{Mutex, Rank, RwLock};
use crate::planted::{self, Bug};
use crate::report::Tolerance;
use crate::units::{ChunkIndex, DiskId, SegmentId};

/// Pause before a write is tried again that failed for want of space under a file-backed disk.
const NO_SPACE_RETRY: Duration = Duration::from_millis(500);

/// Where a segment's columns lie; shared by everybody who reads or writes it.
#[derive(Debug)]
pub struct Extent {
    /// Segment.
    pub segment: SegmentId,
    /// Which use of the segment's identity.
    pub incarnation: u64,
    /// Data columns.
    pub data: usize,
    /// Parity columns.
    pub parity: usize,
    /// Chunk of each column, data first.
    pub columns: Vec<(DiskId, ChunkIndex)>,
    /// Bit per column whose strips may be missing on its disk.
    pub stale: AtomicU32,
    /// Bit per column that did not give what it should when somebody read it: to be looked at. A hint, kept nowhere else.
    pub suspect: AtomicU32,
    /// Something live could not be read in any way.
    pub damaged: AtomicBool,
}

impl Extent {
    /// The extent of a segment record.
    pub fn of(record: &SegmentRecord) -> Self {
        Self {
            segment: record.id,
            incarnation: record.incarnation,
            data: record.data.into(),
            parity: record.parity.into(),
            columns: record.columns.clone(),
            stale: AtomicU32::new(record.stale_columns),
            suspect: AtomicU32::new(0),
            damaged: AtomicBool::new(record.damaged),
        }
    }

    /// Bit per column that cannot be read, with `absent` a bit per disk that is not there.
    pub fn lost_columns(&self, absent: u128) -> u32 {
        let gone = |disk: DiskId| absent.checked_shr(disk.0.into()).unwrap_or(0) & 1 == 1;
        let columns = self.columns.iter().enumerate().filter(|(_, (disk, _))| gone(*disk));
        columns.fold(self.stale.load(Ordering::Acquire), |bits, (column, _)| bits | 1 << column)
    }

    /// Bytes of data space.
    pub fn capacity(&self, geometry: &PoolGeometry) -> u32 {
        geometry.chunk_size * self.data as u32
    }

    /// Bytes of data in a stripe.
    pub fn stripe_size(&self, geometry: &PoolGeometry) -> u32 {
        geometry.strip_size * self.data as u32
    }
}

/// The disks.
pub struct DiskArray {
    env: Arc<dyn Env>,
    /// Sizes of regions.
    pub geometry: PoolGeometry,
    /// Drive failures that new data survives.
    tolerance: AtomicU8,
    /// Drive failures that all data survives.
    guaranteed: AtomicU8,
    /// Segments or log entries may lie across sets.
    mixed: AtomicBool,
    members: RwLock<Vec<Arc<Member>>>,
    /// Raised whenever a disk is declared failed; readers compare it to notice.
    failures: AtomicU64,
    stopped: AtomicBool,
    /// Raised whenever a disk goes or comes.
    changes: AtomicU64,
    /// Answer of [`Self::closed`] as of a number of changes: it is asked for with every frame that is appended.
    closed: Mutex<(u64, u128)>,
    /// Wakes who gives segments their redundancy back: a disk went or came.
    pub changed: Notify,
    /// Wakes who looks at segments in which something did not match.
    pub suspected: Notify,
    /// Bytes written and read, all kinds.
    pub written: AtomicU64,
    /// See `written`.
    pub read: AtomicU64,
}

impl DiskArray {
    /// An array of `members`, ordered by index.
    pub fn new(env: Arc<dyn Env>, geometry: PoolGeometry, tolerance: Tolerance, members: Vec<Member>) -> Self {
        Self {
            env,
            geometry,
            tolerance: AtomicU8::new(tolerance.drives() as u8),
            guaranteed: AtomicU8::new(tolerance.drives() as u8),
            mixed: AtomicBool::new(false),
            members: RwLock::new(Rank::Members, members.into_iter().map(Arc::new).collect()),
            failures: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            closed: Mutex::new(Rank::Closed, (u64::MAX, 0)),
            changed: Notify::new(),
            suspected: Notify::new(),
            stopped: AtomicBool::new(false),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
        }
    }

    /// Drive failures that new data survives.
    pub fn tolerance(&self) -> Tolerance {
        Tolerance::of(self.tolerance.load(Ordering::Acquire)).unwrap_or_default()
    }

    /// Changes what new data survives.
    pub fn set_tolerance(&self, tolerance: Tolerance) {
        self.tolerance.store(tolerance.drives() as u8, Ordering::Release);
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// Drive failures that all data survives: more than these in one set, and the pool is not served.
    pub fn guaranteed(&self) -> Tolerance {
        Tolerance::of(self.guaranteed.load(Ordering::Acquire)).unwrap_or_default()
    }

    /// Changes what all data survives.
    pub fn set_guaranteed(&self, tolerance: Tolerance) {
        self.guaranteed.store(tolerance.drives() as u8, Ordering::Release);
    }

    /// Whether segments or log entries may lie across sets: then failures in all of them count together.
    pub fn is_mixed(&self) -> bool {
        self.mixed.load(Ordering::Acquire)
    }

    /// See [`Self::is_mixed`].
    pub fn set_mixed(&self, mixed: bool) {
        self.mixed.store(mixed, Ordering::Release);
    }

    /// Puts members into sets.
    pub fn set_sets(&self, sets: &[(DiskId, u16)]) {
        for (id, set) in sets {
            if let Some(member) = self.member(*id) {
                member.set.store(*set, Ordering::Release);
            }
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// The set of each member.
    pub fn sets(&self) -> BTreeMap<DiskId, u16> {
        self.members.read().iter().map(|m| (m.id, m.set())).collect()
    }

    /// All members.
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.members.read().clone()
    }

    /// The member of an index.
    pub fn member(&self, id: DiskId) -> Option<Arc<Member>> {
        self.members.read().iter().find(|m| m.id == id).cloned()
    }

    /// Members that serve.
    pub fn online(&self) -> Vec<Arc<Member>> {
        self.members.read().iter().filter(|m| m.online().is_some()).cloned().collect()
    }

    /// How often a disk was declared failed so far.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Acquire)
    }

    /// The pool stops: what waits for space is given up.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Bit per disk that is not there.
    pub fn absent(&self) -> u128 {
        let gone = |m: &&Arc<Member>| m.online().is_none();
        self.members.read().iter().filter(gone).fold(0, |bits, m| bits | 1u128.checked_shl(m.id.0.into()).unwrap_or(0))
    }

    /// Bit per disk that takes no data: not there, to be removed, or new and in no checkpoint yet.
    pub fn closed(&self) -> u128 {
        // Counted after each change: what changes while this looks is seen by the next one who asks.
        let changes = self.changes();
        let mut known = self.closed.lock();
        if known.0 != changes {
            let members = self.members.read();
            let bad = members.iter().filter(|m| !m.takes_data());
            *known = (changes, bad.fold(0, |bits, m| bits | 1u128.checked_shl(m.id.0.into()).unwrap_or(0)));
        }
        known.1
    }

    /// Takes in a new member, which must be labelled. It takes no data until [`Self::open_to_data`].
    pub fn add(&self, member: Member) {
        member.joining.store(true, Ordering::Release);
        member.unsettled.store(true, Ordering::Release);
        let mut members = self.members.write();
        members.push(Arc::new(member));
        members.sort_by_key(|m| m.id);
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// A durable checkpoint names the new member: it may be used.
    pub fn open_to_data(&self, id: DiskId) {
        if let Some(member) = self.member(id) {
            member.joining.store(false, Ordering::Release);
            self.settle(id);
        }
    }

    /// Lets a member go on which nothing lies.
    pub fn remove(&self, id: DiskId) {
        self.members.write().retain(|m| m.id != id);
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// Changes what is expected of a member.
    pub fn set_service(&self, id: DiskId, service: Service) {
        if let Some(member) = self.member(id) {
            member.set_service(service);
            self.changes.fetch_add(1, Ordering::AcqRel);
            self.changed.notify_one();
        }
    }

    /// Bit per disk that is not there, or is back and lacks what no checkpoint tells of yet.
    pub fn unreliable(&self) -> u128 {
        let bad = |m: &&Arc<Member>| m.online().is_none() || m.unsettled.load(Ordering::Acquire);
        self.members.read().iter().filter(bad).fold(0, |bits, m| bits | 1u128.checked_shl(m.id.0.into()).unwrap_or(0))
    }

    /// How often a disk went or came so far.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Fails when more disks are gone than the tolerance allows; says which, and what to do.
    pub fn check_quorum(&self) -> Result<()> {
        self.check_quorum_with(self.guaranteed(), self.is_mixed())
    }

    /// As [`Self::check_quorum`], if that were what all data survives, and if failures in all sets counted together or not.
    pub fn check_quorum_with(&self, guaranteed: Tolerance, mixed: bool) -> Result<()> {
        let members = self.members.read();
        let tolerance = guaranteed.drives();
        let gone: Vec<&Arc<Member>> = members.iter().filter(|m| m.online().is_none() && m.is_counted()).collect();
        let together = |m: &Member| gone.iter().filter(|other| mixed || other.set() == m.set()).count();
        if gone.len() <= tolerance || gone.iter().all(|m| together(m) <= tolerance) {
            return Ok(());
        }
        let names: Vec<String> = gone.iter().map(|m| m.describe_gone()).collect();
        Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "{} of {} disks are gone, more than the tolerance of {}: {}; attach them and open the pool again, or restore its \
                 data from a backup",
                gone.len(),
                members.len(),
                tolerance,
                names.join("; ")
            ),
        ))
    }

    /// Whether no more disks were gone than all data survives if those of the bit set were. Those that came back count as gone until a checkpoint
    /// tells what they lack.
    pub fn has_quorum_without(&self, disks: u128) -> bool {
        let members = self.members.read();
        let is_one = |m: &Member| disks.checked_shr(m.id.0.into()).unwrap_or(0) & 1 == 1;
        let gone: Vec<&Arc<Member>> =
            members.iter().filter(|m| m.is_counted() && (is_one(m) || !m.is_settled())).collect();
        let (tolerance, mixed) = (self.guaranteed().drives(), self.is_mixed());
        let together = |m: &Member| gone.iter().filter(|other| mixed || other.set() == m.set()).count();
        gone.iter().all(|m| together(m) <= tolerance)
    }

    /// Declares a disk failed: it is not used again until it is reinstated.
    pub fn fail(&self, id: DiskId, why: &str) {
        if let Some(member) = self.member(id)
            && !member.failed.swap(true, Ordering::AcqRel)
        {
            *member.gone_since.lock() = Some(self.env.now());
            if member.failing.swap(false, Ordering::AcqRel) {
                member.given_up.store(true, Ordering::Release);
            }
            self.failures.fetch_add(1, Ordering::AcqRel);
            self.changes.fetch_add(1, Ordering::AcqRel);
            self.changed.notify_one();
            member.set_trouble(why);
            let name = member.disk.read().as_ref().map(|d| d.name()).unwrap_or_default();
            tracing::error!(disk = id.0, name, why, "disk declared failed");
        }
    }

    /// Declares a disk failed because an administrator says so: it stays out, and what it held is rebuilt elsewhere.
    pub fn declare_failed(&self, id: DiskId) {
        if let Some(member) = self.member(id) {
            member.declared.store(true, Ordering::Release);
            self.fail(id, DECLARED);
            member.set_trouble(DECLARED);
            member.given_up.store(true, Ordering::Release);
            self.changes.fetch_add(1, Ordering::AcqRel);
            self.changed.notify_one();
        }
    }

    /// Takes back that a disk was declared failed. It may be reinstated then, and does not leave any more if it did.
    pub fn take_back_declaration(&self, id: DiskId) {
        if let Some(member) = self.member(id) {
            member.declared.store(false, Ordering::Release);
            member.leaving.store(false, Ordering::Release);
            member.set_trouble("it was declared failed, and is taken back when it is found");
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Declares a disk failed for good, on which nothing lies as a durable checkpoint shows.
    pub fn condemn(&self, id: DiskId) {
        if let Some(member) = self.member(id) {
            // First: from now on it does not count.
            member.set_empty();
            let (why, service) = match member.is_declared_failed() {
                true => (DECLARED, Service::Empty),
                false => (CONDEMNED, Service::Condemned),
            };
            self.fail(id, why);
            self.set_service(id, service);
        }
    }

    /// Takes a failed or missing disk back, after the caller has verified its label.
    pub fn reinstate(&self, id: DiskId, disk: Arc<dyn Disk>) {
        if let Some(member) = self.member(id) {
            member.set_path(disk.name());
            *member.disk.write() = Some(disk);
            member.set_trouble("");
            member.start_anew();
            member.unsettled.store(true, Ordering::Release);
            member.returns.fetch_add(1, Ordering::AcqRel);
            // It serves before it counts.
            member.failed.store(false, Ordering::Release);
            let leaving = member.leaving.load(Ordering::Acquire);
            member.set_service(Service::Serving);
            member.leaving.store(leaving, Ordering::Release);
            *member.gone_since.lock() = None;
            self.changes.fetch_add(1, Ordering::AcqRel);
            tracing::warn!(disk = id.0, "disk reinstated");
            if member.is_declared_failed() {
                // That was said this very moment.
                self.declare_failed(id);
            }
        }
    }

    /// Gives up disks that have been away for longer than the grace time of their kind; says whether there were any.
    pub fn give_up_overdue(&self, failed: Duration, missing: Duration) -> bool {
        let now = self.env.now();
        let mut any = false;
        for member in self.members() {
            if member.online().is_some() || member.is_given_up() {
                continue;
            }
            let since = *member.gone_since.lock().get_or_insert(now);
            if now.saturating_sub(since) >= if member.is_failed() { failed } else { missing } {
                tracing::warn!(disk = member.id.0, "disk given up: what it holds is rebuilt elsewhere");
                member.given_up.store(true, Ordering::Release);
                if member.online().is_some() {
                    // It came back this very moment.
                    member.given_up.store(false, Ordering::Release);
                }
                self.changes.fetch_add(1, Ordering::AcqRel);
                any = true;
            }
        }
        any
    }

    /// A checkpoint says what a disk that was taken back lacks.
    pub fn settle(&self, id: DiskId) {
        if let Some(member) = self.member(id)
            && member.unsettled.swap(false, Ordering::AcqRel)
        {
            self.changes.fetch_add(1, Ordering::AcqRel);
            self.changed.notify_one();
        }
    }

    /// Notes columns that did not give what they should, as far as their disks serve at all: somebody should look at the segment.
    pub fn suspect(&self, extent: &Extent, columns: u32) {
        let serves = |c: &usize| self.member(extent.columns[*c].0).is_some_and(|m| m.online().is_some());
        let columns = (0..extent.columns.len()).filter(|c| columns >> c & 1 == 1).filter(serves);
        let columns = columns.fold(0, |bits, c| bits | 1 << c);
        if columns & !extent.suspect.fetch_or(columns, Ordering::AcqRel) != 0 {
            self.suspected.notify_one();
        }
    }

    /// Lays a checksum mismatch to disks: those of the given columns of a segment, at an offset of its data space. One that is not new is not
    /// counted.
    pub fn blame(&self, extent: &Extent, columns: u32, offset: u32) {
        let row = offset / extent.stripe_size(&self.geometry);
        for (column, (disk, chunk)) in extent.columns.iter().enumerate() {
            if columns >> column & 1 == 1 {
                let strip = u64::from(self.geometry.strip_size);
                self.blame_place(*disk, self.geometry.chunk(chunk.0) + u64::from(row) * strip);
            }
        }
    }

    /// Counts mismatches that are perhaps the fault of the disks of these columns.
    pub fn count_mismatch(&self, extent: &Extent, columns: u32) {
        for (column, (disk, _)) in extent.columns.iter().enumerate() {
            if let Some(member) = self.member(*disk).filter(|_| columns >> column & 1 == 1) {
                member.checksum_errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// As [`Self::blame`], for a place of a disk.
    pub fn blame_place(&self, id: DiskId, offset: u64) {
        if let Some(member) = self.member(id)
            && member.note_error(self.env.now(), offset / u64::from(self.geometry.strip_size))
        {
            member.checksum_errors.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(disk = id.0, offset, "a disk gave back something else than was written");
        }
    }

    /// Writes to one disk. A disk that cannot write is declared failed.
    pub async fn write(&self, id: DiskId, offset: u64, data: Vec<Bytes>, durable: bool) -> Result<()> {
        let gone = || Error::io(format!("disk {id} is not available"));
        let member = self.member(id).ok_or_else(gone)?;
        let bytes: usize = data.iter().map(Bytes::len).sum();
        let mut stalled = None;
        loop {
            let disk = member.online().ok_or_else(gone)?;
            match disk.write(offset, data.clone(), durable).await {
                Ok(()) => {
                    member.writes.fetch_add(1, Ordering::AcqRel);
                    member.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
                    self.written.fetch_add(bytes as u64, Ordering::Relaxed);
                    return Ok(());
                }
                Err(DiskError::NoSpace(why)) => {
                    if stalled.is_none() {
                        stalled = Some(Stalled::on(&member, &why));
                    }
                    if self.stopped.load(Ordering::Acquire) {
                        return Err(Error::new(
                            ErrorKind::Unavailable,
                            format!("disk {id}: {why}; the pool is stopped"),
                        ));
                    }
                    self.env.sleep(NO_SPACE_RETRY).await;
                }
                Err(e) => {
                    member.write_errors.fetch_add(1, Ordering::Relaxed);
                    self.fail(id, &e.to_string());
                    return Err(Error::io(format!("disk {id}: {e}")));
                }
            }
        }
    }

    /// Reads from one disk.
    pub async fn read_disk(&self, id: DiskId, offset: u64, len: usize) -> Result<Bytes> {
        let gone = || Error::io(format!("disk {id} is not available"));
        let member = self.member(id).ok_or_else(gone)?;
        let disk = member.online().ok_or_else(gone)?;
        match disk.read(offset, len).await {
            Ok(data) => {
                member.bytes_read.fetch_add(len as u64, Ordering::Relaxed);
                self.read.fetch_add(len as u64, Ordering::Relaxed);
                Ok(data)
            }
            Err(e) => {
                // A place that cannot be read says nothing about the rest of the disk.
                member.read_errors.fetch_add(1, Ordering::Relaxed);
                member.note_error(self.env.now(), offset / u64::from(self.geometry.strip_size));
                if matches!(e, DiskError::Failed(_)) {
                    self.fail(id, &e.to_string());
                }
                Err(Error::io(format!("disk {id}: {e}")))
            }
        }
    }

    /// Makes all completed writes durable on every disk that serves. A disk that cannot is declared failed; the others count.
    pub async fn flush(&self) -> Result<()> {
        let flushes = self.online().into_iter().map(|member| async move {
            let upto = member.writes.load(Ordering::Acquire);
            if upto == member.flushed.load(Ordering::Acquire) {
                return;
            }
            let Some(disk) = member.online() else { return };
            match disk.flush().await {
                Ok(()) => {
                    member.flushed.fetch_max(upto, Ordering::AcqRel);
                }
                Err(e) => {
                    member.write_errors.fetch_add(1, Ordering::Relaxed);
                    self.fail(member.id, &format!("flush: {e}"));
                }
            }
        });
        join_all(flushes).await;
        self.check_quorum()
    }

    /// Writes one whole stripe: `data` is its data strips in column order. Columns whose disk is gone are marked stale.
    ///
    /// Fails when more columns are missing than there is parity.
    pub async fn write_stripe(&self, extent: &Extent, stripe: u32, data: Bytes, parity: Vec<Bytes>) -> Result<()> {
        let strip = self.geometry.strip_size as usize;
        let writes = extent.columns.iter().enumerate().map(|(column, &(disk, chunk))| {
            let content = match column.checked_sub(extent.data) {
                None => data.slice(column * strip..(column + 1) * strip),
                Some(p) => parity[p].clone(),
            };
            let offset = self.geometry.chunk(chunk.0) + u64::from(stripe) * strip as u64;
            async move {
                if self.write(disk, offset, vec![content], false).await.is_err() {
                    extent.stale.fetch_or(1 << column, Ordering::AcqRel);
                }
            }
        });
        join_all(writes).await;
        let missing = extent.stale.load(Ordering::Acquire).count_ones() as usize;
        if missing > extent.parity {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("segment {}: {missing} of {} columns cannot be written", extent.segment, extent.columns.len()),
            ));
        }
        Ok(())
    }

    /// Parity strips of a stripe whose data strips are concatenated in `data`.
    pub fn parity_of(&self, data: &[u8], columns: usize, parity: usize) -> Vec<Bytes> {
        let strip = data.len() / columns;
        let strips: Vec<&[u8]> = data.chunks_exact(strip).collect();
        let mut p = (parity >= 1).then(|| AlignedBuf::recycled(strip));
        let mut q = (parity >= 2).then(|| AlignedBuf::recycled(strip));
        parity::encode(&strips, p.as_deref_mut(), q.as_deref_mut());
        p.into_iter().chain(q).map(AlignedBuf::freeze).collect()
    }

    /// Reads `len` bytes of a segment's data space; what disks cannot deliver is reconstructed.
    pub async fn read_segment(&self, extent: &Extent, offset: u32, len: usize) -> Result<Bytes> {
        self.read_avoiding(extent, offset, len, 0).await
    }

    /// Columns that hold a range of a segment's data space.
    pub fn columns_of(&self, extent: &Extent, offset: u32, len: usize) -> Vec<usize> {
        let strip = self.geometry.strip_size;
        let (first, last) = (offset / strip, (offset + len.max(1) as u32 - 1) / strip);
        let mut out: Vec<usize> = (first..=last).take(extent.data).map(|s| s as usize % extent.data).collect();
        out.sort_unstable();
        out
    }

    /// As [`Self::read_segment`], reconstructing the columns in the bit set `avoid` even if their disks answer.
    pub async fn read_avoiding(&self, extent: &Extent, offset: u32, len: usize, avoid: u32) -> Result<Bytes> {
        let mut pieces = self.read_split(extent, offset, len, avoid).await;
        if pieces.len() == 1
            && let Some((_, piece)) = pieces.pop()
        {
            return piece;
        }
        let mut out = Vec::with_capacity(len);
        for (_, piece) in pieces {
            out.extend_from_slice(&piece?);
        }
        Ok(Bytes::from(out))
    }

    /// As [`Self::read_segment`], strip by strip: where in the data space each piece starts, and what it holds.
    pub async fn read_strips(&self, extent: &Extent, offset: u32, len: usize) -> Vec<(u32, Result<Bytes>)> {
        self.read_split(extent, offset, len, 0).await
    }

    async fn read_split(&self, extent: &Extent, offset: u32, len: usize, avoid: u32) -> Vec<(u32, Result<Bytes>)> {
        let strip = self.geometry.strip_size;
        if u64::from(offset) + len as u64 > u64::from(extent.capacity(&self.geometry)) {
            let message = format!("segment {}: offset {offset} + {len} is beyond its end", extent.segment);
            return vec![(offset, Err(Error::corrupt(message)))];
        }
        let end = offset + len as u32;
        if end <= (offset / strip + 1) * strip {
            return vec![(offset, self.read_piece(extent, offset, len, avoid).await)];
        }
        let mut pieces = Vec::new();
        let mut at = offset;
        while at < end {
            let piece = (strip - at % strip).min(end - at);
            pieces.push((at, piece as usize));
            at += piece;
        }
        let read = |(at, n)| async move { (at, self.read_piece(extent, at, n, avoid).await) };
        join_all(pieces.into_iter().map(read)).await
    }

    /// Reads bytes that lie within one strip.
    async fn read_piece(&self, extent: &Extent, at: u32, len: usize, avoid: u32) -> Result<Bytes> {
        let strip = self.geometry.strip_size;
        let column = (at / strip) as usize % extent.data;
        let stripe = at / strip / extent.data as u32;
        let within = (at % strip) as usize;
        let (start, end) = (within / IO_ALIGN * IO_ALIGN, (within + len).next_multiple_of(IO_ALIGN));
        let row = u64::from(stripe) * u64::from(strip) + start as u64;
        let cut = |data: Bytes| data.slice(within - start..within - start + len);

        let stale = extent.stale.load(Ordering::Acquire);
        let avoid = if planted::active(Bug::StaleColumnRead) { avoid } else { avoid | stale };
        let mut why = None;
        if avoid & (1 << column) == 0 {
            match self.read_column(extent, column, row, end - start).await {
                Ok(data) => return Ok(cut(data)),
                Err(e) => {
                    self.suspect(extent, 1 << column);
                    why = Some(e);
                }
            }
        }
        match self.reconstruct(extent, column, row, end - start, avoid).await {
            Ok(data) => Ok(cut(data)),
            Err(e) => Err(why.unwrap_or(e).context(format!("segment {}", extent.segment))),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.env.now()
    }

    /// Reads bytes of a column as its disk has them.
    pub async fn read_column(&self, extent: &Extent, column: usize, row: u64, len: usize) -> Result<Bytes> {
        let (disk, chunk) = extent.columns[column];
        self.read_disk(disk, self.geometry.chunk(chunk.0) + row, len).await
    }

    /// Computes a column from the others. Reads just enough of them, and more when some of those fail too.
    async fn reconstruct(&self, extent: &Extent, wanted: usize, row: u64, len: usize, avoid: u32) -> Result<Bytes> {
        let columns = extent.columns.len();
        let mut present: Vec<bool> = (0..columns)
            .map(|c| {
                c != wanted
                    && avoid & (1 << c) == 0
                    && self.member(extent.columns[c].0).is_some_and(|m| m.online().is_some())
            })
            .collect();
        let mut have: Vec<Option<Bytes>> = vec![None; columns];
        loop {
            let plan = Recovery::plan(extent.data, extent.parity, &present, wanted)
                .map_err(|_| Error::io(format!("column {wanted} cannot be read and too few others are left")))?;
            let missing: Vec<usize> = plan.sources().filter(|&c| have[c].is_none()).collect();
            if missing.is_empty() {
                let mut out = AlignedBuf::zeroed(len);
                plan.apply(|c| have[c].as_deref().unwrap_or_default(), &mut out);
                return Ok(out.freeze());
            }
            let reads = join_all(missing.iter().map(|&c| self.read_column(extent, c, row, len))).await;
            for (c, read) in missing.into_iter().zip(reads) {
                match read {
                    Ok(data) => have[c] = Some(data),
                    Err(_) => {
                        self.suspect(extent, 1 << c);
                        present[c] = false;
                    }
                }
            }
        }
    }

    /// Reads all columns of a stripe and compares its parity; None when a column cannot be read or is stale.
    pub async fn verify_stripe(&self, extent: &Extent, stripe: u32) -> Option<bool> {
        if extent.stale.load(Ordering::Acquire) != 0 {
            return None;
        }
        let strip = self.geometry.strip_size as usize;
        let row = u64::from(stripe) * strip as u64;
        let reads = (0..extent.columns.len()).map(|c| self.read_column(extent, c, row, strip));
        let columns: Vec<Bytes> = join_all(reads).await.into_iter().collect::<Result<_>>().ok()?;
        let (data, parity) = columns.split_at(extent.data);
        let data: Vec<&[u8]> = data.iter().map(|b| &b[..]).collect();
        Some(parity::verify(&data, parity.first().map(|b| &b[..]), parity.get(1).map(|b| &b[..])))
    }
}

#[cfg(test)]
mod tests;
