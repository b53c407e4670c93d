//! The write log: entries mirrored on tolerance + 1 disks, in extents that rotate over all disks.
//!
//! The log is a sequence of numbered extents. Each has a slot in the log region of every disk that mirrors it; which slot is not
//! recorded anywhere: replay looks at all of them ([`replay`]). Entries say which pool, epoch and extent they belong to, so what an
//! older use of a slot or of the disk left behind is never taken for new.

pub mod replay;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::disk::AlignedBuf;
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::encode_entry;
use crate::planted::{self, Bug};
use crate::redundancy::array::DiskArray;
use crate::units::{DiskId, Epoch, SegmentId, Uuid};

/// A place of an extent on one disk.
pub type Mirror = (DiskId, u32);

struct Current {
    number: u64,
    offset: u32,
    mirrors: Vec<Mirror>,
}

struct Inner {
    current: Option<Current>,
    next_extent: u64,
    next_entry: u64,
    /// Extents that hold entries which may still be needed.
    extents: BTreeMap<u64, Vec<Mirror>>,
}

/// The log of a pool that is open for writing. One task writes; checkpoints trim.
pub struct Log {
    array: Arc<DiskArray>,
    pool: Uuid,
    epoch: Epoch,
    inner: Mutex<Inner>,
    trimmed: Notify,
    /// Entries written.
    pub entries: AtomicU64,
}

impl Log {
    /// A log that goes on behind what replay found: `extents` stay untouched until they are trimmed.
    pub fn new(
        array: Arc<DiskArray>,
        pool: Uuid,
        epoch: Epoch,
        extents: BTreeMap<u64, Vec<Mirror>>,
        next_extent: u64,
    ) -> Self {
        let inner = Inner { current: None, next_extent, next_entry: 1, extents };
        Self { array, pool, epoch, inner: Mutex::new(inner), trimmed: Notify::new(), entries: AtomicU64::new(0) }
    }

    /// Writes one entry; durable on all its mirrors when this completes. `full` is called when the log has no room and
    /// a checkpoint must come first; it says whether to wait for that.
    pub async fn write(
        &self,
        durable: &[(SegmentId, u32)],
        inline: &[(SegmentId, u32, &[u8])],
        records: &[&[u8]],
        mut full: impl FnMut() -> bool,
    ) -> Result<()> {
        let number = {
            let mut inner = self.inner.lock();
            inner.next_entry += 1;
            inner.next_entry - 1
        };
        loop {
            let trimmed = self.trimmed.notified();
            let Some((extent, mirrors, offset, data)) = self.place(number, durable, inline, records)? else {
                if !full() {
                    return Err(Error::new(ErrorKind::Unavailable, "the pool is stopped"));
                }
                self.array.check_quorum()?;
                trimmed.await;
                continue;
            };
            let data = AlignedBuf::padded(&data).freeze();
            let sync = !planted::active(Bug::LogNotDurable);
            let writes = mirrors.iter().map(|&(disk, slot)| {
                let at = self.array.geometry.log_extent(slot) + u64::from(offset);
                self.array.write(disk, at, vec![data.clone()], sync)
            });
            let results = join_all(writes).await;
            if results.iter().all(Result::is_ok) {
                self.entries.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            // A mirror is gone: the entry is written again where all mirrors are there. Replay takes either copy.
            self.array.check_quorum()?;
            let mut inner = self.inner.lock();
            if inner.current.as_ref().is_some_and(|c| c.number == extent) {
                inner.current = None;
            }
        }
    }

    /// Finds room for an entry and encodes it for that place; None when the log is full.
    #[expect(clippy::type_complexity, reason = "a private tuple, taken apart at once")]
    fn place(
        &self,
        number: u64,
        durable: &[(SegmentId, u32)],
        inline: &[(SegmentId, u32, &[u8])],
        records: &[&[u8]],
    ) -> Result<Option<(u64, Vec<Mirror>, u32, Vec<u8>)>> {
        let size = self.array.geometry.log_extent_size;
        let mut inner = self.inner.lock();
        for _ in 0..2 {
            if inner.current.is_none() && !self.start_extent(&mut inner) {
                return Ok(None);
            }
            let Some(current) = &mut inner.current else { return Ok(None) };
            let data = encode_entry((self.pool, self.epoch, current.number, number), durable, inline, records);
            if data.len() > size as usize {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!("a log entry of {} bytes exceeds a log extent of {size}", data.len()),
                ));
            }
            if current.offset as usize + data.len() <= size as usize {
                let offset = current.offset;
                current.offset += data.len() as u32;
                return Ok(Some((current.number, current.mirrors.clone(), offset, data)));
            }
            inner.current = None;
        }
        Ok(None)
    }

    /// Whether entries that may still be needed have copies on a disk.
    pub fn uses(&self, disk: DiskId) -> bool {
        self.inner.lock().extents.values().flatten().any(|(on, _)| *on == disk)
    }

    /// Takes a free slot on each of tolerance + 1 disks, those with the most free slots first.
    fn start_extent(&self, inner: &mut Inner) -> bool {
        let slots = self.array.geometry.log_extents;
        let busy: BTreeSet<Mirror> = inner.extents.values().flatten().copied().collect();
        let free = |disk: DiskId| (0..slots).filter(|&s| !busy.contains(&(disk, s))).collect::<Vec<_>>();
        let (online, unreliable) = (self.array.online(), self.array.unreliable() | self.array.closed());
        // Copies on disks that the labels call absent are not replayed, and a disk that is to be removed must not be needed.
        let counts = |disk: DiskId| unreliable.checked_shr(disk.0.into()).unwrap_or(0) & 1 == 0;
        let mut sets: BTreeMap<u16, Vec<(DiskId, Vec<u32>)>> = BTreeMap::new();
        for m in online.iter().filter(|m| counts(m.id)) {
            sets.entry(m.set()).or_default().push((m.id, free(m.id)));
        }
        // All copies within one set, which by itself survives its failures: one with enough disks, and of these one with room. Sets take turns.
        let copies = self.array.tolerance().drives() + 1;
        let wanted = sets.values().map(Vec::len).max().unwrap_or(0).min(copies);
        let mut sets: Vec<Vec<(DiskId, Vec<u32>)>> = sets.into_values().filter(|disks| disks.len() >= wanted).collect();
        let turn = inner.next_extent as usize % sets.len().max(1);
        sets.rotate_left(turn);
        let mirrors = sets.into_iter().find_map(|mut disks| {
            // Equal disks take turns.
            let turn = inner.next_extent as usize * wanted % disks.len().max(1);
            disks.rotate_left(turn);
            disks.sort_by_key(|(_, free)| std::cmp::Reverse(free.len()));
            let found = disks.iter().take(wanted).filter_map(|(disk, free)| free.first().map(|&s| (*disk, s)));
            let mirrors: Vec<Mirror> = found.collect();
            (mirrors.len() == wanted && wanted > 0).then_some(mirrors)
        });
        let Some(mirrors) = mirrors else { return false };
        let number = inner.next_extent;
        inner.next_extent += 1;
        inner.extents.insert(number, mirrors.clone());
        inner.current = Some(Current { number, offset: 0, mirrors });
        true
    }

    /// The next entry starts a new extent; returns its number.
    pub fn rotate(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.current = None;
        inner.next_extent
    }

    /// Entries in extents before `start` are no longer needed.
    pub fn trim(&self, start: u64) {
        let mut inner = self.inner.lock();
        inner.extents = inner.extents.split_off(&start);
        drop(inner);
        self.trimmed.notify_waiters();
    }

    /// Wakes a writer that waits for room, because the pool failed.
    pub fn interrupt(&self) {
        self.trimmed.notify_waiters();
    }

    /// Share of the log in use, 0 to 1.
    pub fn fullness(&self) -> f64 {
        let disks = self.usable();
        let inner = self.inner.lock();
        let used = inner.extents.values().flatten().filter(|(disk, _)| disks.contains(disk)).count();
        used as f64 / self.slots_of(&disks) as f64
    }

    /// Share of the log that records of so many bytes will take, about: every copy of them.
    pub fn share(&self, bytes: usize) -> f64 {
        let copies = self.array.tolerance().drives() + 1;
        let slots = self.slots_of(&self.usable()) as f64;
        (bytes * copies) as f64 / (slots * f64::from(self.array.geometry.log_extent_size))
    }

    /// Disks on which a new extent may lie: that take data, in sets with enough of them.
    fn usable(&self) -> BTreeSet<DiskId> {
        let bad = self.array.unreliable() | self.array.closed();
        let counts = |disk: DiskId| bad.checked_shr(disk.0.into()).unwrap_or(0) & 1 == 0;
        let mut sets: BTreeMap<u16, Vec<DiskId>> = BTreeMap::new();
        for m in self.array.online().iter().filter(|m| counts(m.id)) {
            sets.entry(m.set()).or_default().push(m.id);
        }
        let copies = self.array.tolerance().drives() + 1;
        let wanted = sets.values().map(Vec::len).max().unwrap_or(0).min(copies);
        sets.into_values().filter(|disks| disks.len() >= wanted).flatten().collect()
    }

    fn slots_of(&self, disks: &BTreeSet<DiskId>) -> usize {
        (disks.len() * self.array.geometry.log_extents as usize).max(1)
    }
}

#[cfg(test)]
mod tests;
