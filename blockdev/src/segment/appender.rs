//! The open end of a segment: frames are appended in memory, whole stripes go to disk, and reads see both.
//!
//! A stripe is in memory from its first byte until its write completed. Offsets: `filled` ≥ `completed` ≥ `flushed`; the latter two
//! are multiples of the stripe size. What lies below `flushed` is on stable storage.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::disk::AlignedBuf;
use crate::format::layout::PoolGeometry;
use crate::format::page::Location;
use crate::format::part::{Content, Item, PART_BLOCKS, PART_BYTES_MAX, PART_OVERHEAD, Part, item_bytes_max};
use crate::redundancy::array::Extent;

enum Stripe {
    /// What was not filled yet has any content.
    Filling(AlignedBuf),
    Full(Bytes),
}

struct Inner {
    filled: u32,
    completed: u32,
    flushed: u32,
    /// Stripes below this one were handed out to be written.
    handed: u32,
    /// End of the bytes that the log holds (or that are on disk).
    logged: u32,
    stripes: BTreeMap<u32, Stripe>,
    done: Vec<u32>,
    items: Vec<Item>,
    summary_bytes: usize,
    blocks: usize,
    last_part: Location,
    sealed: bool,
    /// `filled` when the running checkpoint took its instant.
    frozen: u32,
}

/// The open end of one segment.
pub struct Appender {
    /// Where its columns lie.
    pub extent: Arc<Extent>,
    stripe_size: u32,
    capacity: u32,
    /// Frames and their summary end here; the rest is kept for the summary that a recovery may have to write behind everything else.
    limit: u32,
    inner: Mutex<Inner>,
    progress: Notify,
}

/// Longest part summary in a segment of `capacity` bytes: in small ones parts are shorter.
fn summary_max(capacity: u32) -> u32 {
    (capacity / 16).clamp(4096, PART_BYTES_MAX as u32)
}

/// Bytes at the end of every segment that only a recovery uses: whole stripes with room for one summary.
pub fn recovery_room(capacity: u32, stripe_size: u32) -> u32 {
    summary_max(capacity).next_multiple_of(stripe_size)
}

/// A stripe that is complete and must be written.
pub struct ReadyStripe {
    /// Its number in the segment.
    pub stripe: u32,
    /// Its data strips.
    pub data: Bytes,
}

impl Appender {
    /// An appender for a segment whose first `written` bytes (whole stripes) are on disk.
    pub fn new(extent: Arc<Extent>, geometry: &PoolGeometry, written: u32, last_part: Location) -> Self {
        let inner = Inner {
            filled: written,
            completed: written,
            flushed: written,
            handed: written / extent.stripe_size(geometry),
            logged: written,
            stripes: BTreeMap::new(),
            done: Vec::new(),
            items: Vec::new(),
            summary_bytes: PART_OVERHEAD,
            blocks: 0,
            last_part,
            sealed: false,
            frozen: written,
        };
        let (stripe_size, capacity) = (extent.stripe_size(geometry), extent.capacity(geometry));
        let limit = capacity - recovery_room(capacity, stripe_size);
        Self { extent, stripe_size, capacity, limit, inner: Mutex::new(inner), progress: Notify::new() }
    }

    /// Bytes of data in a stripe.
    pub fn stripe_size(&self) -> u32 {
        self.stripe_size
    }

    /// Bytes appended.
    pub fn filled(&self) -> u32 {
        self.inner.lock().filled
    }

    /// A checkpoint takes its instant now.
    pub fn freeze(&self) {
        let mut inner = self.inner.lock();
        inner.frozen = inner.filled;
    }

    /// Bytes appended when the running checkpoint took its instant.
    pub fn frozen(&self) -> u32 {
        self.inner.lock().frozen
    }

    /// Whether a frame of `len` bytes and `blocks` blocks fits, with the summary that must follow.
    pub fn fits(&self, len: usize, blocks: usize) -> bool {
        let inner = self.inner.lock();
        // The running part may have to be closed before the frame: then there are two summaries.
        let summaries = inner.summary_bytes + PART_OVERHEAD + item_bytes_max(blocks);
        inner.filled as usize + len + summaries <= self.limit as usize
    }

    /// Bytes of frames that still fit, about: with many small ones summaries take more.
    pub fn room(&self) -> u64 {
        let inner = self.inner.lock();
        let summaries = inner.summary_bytes + 2 * (PART_OVERHEAD + item_bytes_max(1));
        let room = (self.limit as usize).saturating_sub(inner.filled as usize + summaries);
        // A frame that does not fit into the rest leaves it.
        room.saturating_sub(crate::codec::FRAME_MAX / 2) as u64
    }

    /// Whether the summary of what was described still fits behind it.
    pub fn has_room_for_summary(&self) -> bool {
        let inner = self.inner.lock();
        inner.items.is_empty() || inner.filled as usize + inner.summary_bytes <= self.capacity as usize
    }

    /// Whether the running part is long enough to be closed before a frame of `blocks` blocks is added.
    pub fn part_is_full(&self, blocks: usize) -> bool {
        let inner = self.inner.lock();
        inner.blocks + blocks > PART_BLOCKS
            || inner.summary_bytes + item_bytes_max(blocks) > summary_max(self.capacity) as usize
    }

    /// Whether there are frames that no summary describes.
    pub fn has_items(&self) -> bool {
        !self.inner.lock().items.is_empty()
    }

    /// Appends a frame's bytes; returns its place and the stripes that became complete.
    pub fn append(&self, frame: &[u8], ready: &mut Vec<ReadyStripe>) -> Location {
        let mut inner = self.inner.lock();
        let offset = inner.filled;
        assert!(offset as usize + frame.len() <= self.capacity as usize, "append beyond the end of a segment");
        // Appending fills a stripe from its first byte on, so it need not be cleared before.
        Self::put(&mut inner, self.stripe_size, offset, frame, AlignedBuf::recycled);
        inner.filled += frame.len() as u32;
        self.take_ready(&mut inner, ready);
        Location { segment: self.extent.segment, offset, len: frame.len() as u16 }
    }

    /// Describes a frame that was appended.
    pub fn describe(&self, item: Item, blocks: usize) {
        let mut inner = self.inner.lock();
        inner.summary_bytes += item_bytes_max(blocks);
        inner.blocks += blocks;
        inner.items.push(item);
    }

    /// Appends the summary of the frames since the last one; returns its place and the fingerprints in it. None when there are none.
    pub fn close_part(&self, ready: &mut Vec<ReadyStripe>) -> Option<(Location, Vec<u128>)> {
        let (part, previous) = {
            let mut inner = self.inner.lock();
            if inner.items.is_empty() {
                return None;
            }
            inner.summary_bytes = PART_OVERHEAD;
            inner.blocks = 0;
            (std::mem::take(&mut inner.items), inner.last_part)
        };
        let fingerprints = part.iter().flat_map(|i| match &i.content {
            Content::Data(blocks) => blocks.iter().map(|(_, fp)| *fp).collect(),
            _ => Vec::new(),
        });
        let fingerprints = fingerprints.collect();
        let (segment, incarnation) = (self.extent.segment, self.extent.incarnation);
        let at = self.append(&Part { segment, incarnation, previous, items: part }.encode(), ready);
        self.inner.lock().last_part = at;
        Some((at, fingerprints))
    }

    /// Pads to the end of the stripe, so that everything appended can be written.
    pub fn pad(&self, ready: &mut Vec<ReadyStripe>) {
        let mut inner = self.inner.lock();
        let (stripe, within) = (inner.filled / self.stripe_size, (inner.filled % self.stripe_size) as usize);
        if let Some(Stripe::Filling(buf)) = inner.stripes.get_mut(&stripe) {
            buf[within..].fill(0);
        }
        inner.filled = inner.filled.next_multiple_of(self.stripe_size);
        self.take_ready(&mut inner, ready);
    }

    /// Nothing more will be appended; pads.
    pub fn seal(&self, ready: &mut Vec<ReadyStripe>) {
        self.pad(ready);
        self.inner.lock().sealed = true;
    }

    /// Puts recovered bytes back to where they were; they lie beyond what is on disk.
    pub fn restore(&self, offset: u32, data: &[u8]) {
        let mut inner = self.inner.lock();
        let skip = (inner.completed.saturating_sub(offset) as usize).min(data.len());
        // Between what is restored there may be gaps, which must be zeroes.
        Self::put(&mut inner, self.stripe_size, offset + skip as u32, &data[skip..], AlignedBuf::zeroed);
        inner.filled = inner.filled.max(offset + data.len() as u32);
    }

    /// All stripes below `filled` that are not on disk, for recovery after [`Self::restore`] and a pad.
    pub fn restored(&self, ready: &mut Vec<ReadyStripe>) {
        self.pad(ready);
    }

    fn put(inner: &mut Inner, stripe_size: u32, mut offset: u32, mut data: &[u8], new: impl Fn(usize) -> AlignedBuf) {
        while !data.is_empty() {
            let (stripe, within) = (offset / stripe_size, (offset % stripe_size) as usize);
            let n = data.len().min(stripe_size as usize - within);
            let slot = inner.stripes.entry(stripe).or_insert_with(|| Stripe::Filling(new(stripe_size as usize)));
            if let Stripe::Filling(buf) = slot {
                buf[within..within + n].copy_from_slice(&data[..n]);
            }
            offset += n as u32;
            data = &data[n..];
        }
    }

    fn take_ready(&self, inner: &mut Inner, ready: &mut Vec<ReadyStripe>) {
        let end = inner.filled / self.stripe_size;
        for stripe in inner.handed..end {
            match inner.stripes.get_mut(&stripe) {
                Some(slot @ Stripe::Filling(_)) => {
                    let Stripe::Filling(buf) = std::mem::replace(slot, Stripe::Full(Bytes::new())) else { continue };
                    let data = buf.freeze();
                    *slot = Stripe::Full(data.clone());
                    ready.push(ReadyStripe { stripe, data });
                }
                Some(Stripe::Full(_)) => {}
                // A gap that recovery found: frames of records that were lost. It is written as zeroes.
                None => {
                    let data = AlignedBuf::zeroed(self.stripe_size as usize).freeze();
                    inner.stripes.insert(stripe, Stripe::Full(data.clone()));
                    ready.push(ReadyStripe { stripe, data });
                }
            }
        }
        inner.handed = inner.handed.max(end);
    }

    /// A stripe's write completed.
    pub fn complete(&self, stripe: u32) {
        let mut inner = self.inner.lock();
        inner.stripes.remove(&stripe);
        inner.done.push(stripe);
        loop {
            let next = inner.completed / self.stripe_size;
            let Some(i) = inner.done.iter().position(|&s| s == next) else { break };
            inner.done.swap_remove(i);
            inner.completed += self.stripe_size;
        }
        drop(inner);
        self.progress.notify_waiters();
    }

    /// Wakes those that wait for completion, because the pool failed.
    pub fn interrupt(&self) {
        self.progress.notify_waiters();
    }

    /// Bytes whose stripes were written (though perhaps not flushed).
    pub fn completed(&self) -> u32 {
        self.inner.lock().completed
    }

    /// Waits until stripes up to `offset` were written, or `stop` says that this will never be.
    pub async fn wait_completed(&self, offset: u32, stop: impl Fn() -> bool) {
        loop {
            let notified = self.progress.notified();
            if self.completed() >= offset || stop() {
                return;
            }
            notified.await;
        }
    }

    /// Bytes on stable storage.
    pub fn flushed(&self) -> u32 {
        self.inner.lock().flushed
    }

    /// All disks were flushed after `completed` was read as `upto`.
    pub fn set_flushed(&self, upto: u32) {
        let mut inner = self.inner.lock();
        inner.flushed = inner.flushed.max(upto);
        inner.logged = inner.logged.max(upto);
    }

    /// Whether it is sealed and everything is on stable storage: the appender can go.
    pub fn is_finished(&self) -> bool {
        let inner = self.inner.lock();
        inner.sealed && inner.flushed == inner.filled
    }

    /// The bytes up to `end` that neither stable storage nor the log holds yet: their offset and content.
    pub fn unlogged(&self, end: u32) -> Option<(u32, Vec<u8>)> {
        let inner = self.inner.lock();
        let from = inner.logged.max(inner.flushed);
        if from >= end {
            return None;
        }
        let mut out = Vec::with_capacity((end - from) as usize);
        let mut at = from;
        while at < end {
            let (stripe, within) = (at / self.stripe_size, (at % self.stripe_size) as usize);
            let n = (self.stripe_size as usize - within).min((end - at) as usize);
            let bytes: &[u8] = match inner.stripes.get(&stripe)? {
                Stripe::Filling(buf) => buf,
                Stripe::Full(data) => data,
            };
            out.extend_from_slice(&bytes[within..within + n]);
            at += n as u32;
        }
        Some((from, out))
    }

    /// Whether everything up to `end` is on stable storage or in the log.
    pub fn is_safe(&self, end: u32) -> bool {
        let inner = self.inner.lock();
        inner.logged.max(inner.flushed) >= end
    }

    /// The log holds everything up to `end`.
    pub fn set_logged(&self, end: u32) {
        let mut inner = self.inner.lock();
        inner.logged = inner.logged.max(end);
    }

    /// Bytes that are in memory, up to the end of their stripe; None when the byte at `offset` must be read from disk.
    pub fn read(&self, offset: u32, len: usize) -> Option<Vec<u8>> {
        let inner = self.inner.lock();
        let (stripe, within) = (offset / self.stripe_size, (offset % self.stripe_size) as usize);
        let n = len.min(self.stripe_size as usize - within);
        match inner.stripes.get(&stripe)? {
            Stripe::Filling(buf) => Some(buf[within..within + n].to_vec()),
            Stripe::Full(data) => Some(data[within..within + n].to_vec()),
        }
    }

    /// Bytes from `offset` to the end of its stripe.
    pub fn stripe_rest(&self, offset: u32) -> usize {
        (self.stripe_size - offset % self.stripe_size) as usize
    }

    /// Memory held, in bytes.
    pub fn memory(&self) -> usize {
        self.inner.lock().stripes.len() * self.stripe_size as usize
    }
}
