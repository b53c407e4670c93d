//! A sparse block device in memory: the reference the front ends are tested against, and the device that costs nothing in
//! their benchmarks. It keeps what is written until it is dropped; a flush has nothing to do.

use std::collections::BTreeMap;
use std::future::ready;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::watch;

use super::{BlockDevice, Extent, Geometry};
use crate::env::BoxFuture;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BLOCK_BYTES, BLOCK_SIZE};

#[cfg(test)]
mod tests;

/// Pages under one lock: 2 MiB, so that neighbouring requests of a deep queue rarely meet.
const REGION_PAGES: u64 = 512;
const REGION_BYTES: u64 = REGION_PAGES * BLOCK_BYTES;

type Page = Box<[u8; BLOCK_SIZE]>;

static ZERO_PAGE: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];

/// One region's pages; `None` is unmapped.
struct Region {
    pages: Vec<Option<Page>>,
    mapped: usize,
}

impl Region {
    fn new() -> Self {
        Self { pages: (0..REGION_PAGES).map(|_| None).collect(), mapped: 0 }
    }

    fn page_mut(&mut self, index: usize) -> &mut Page {
        let slot = &mut self.pages[index];
        if slot.is_none() {
            self.mapped += 1;
        }
        slot.get_or_insert_with(|| Box::new(ZERO_PAGE))
    }

    fn unmap(&mut self, index: usize) {
        if self.pages[index].take().is_some() {
            self.mapped -= 1;
        }
    }
}

/// Regions by index. Ordinary requests hold the outer lock shared, so holding it exclusively excludes them all.
type Regions = BTreeMap<u64, RwLock<Region>>;

/// An in-memory sparse [`BlockDevice`] of 4 KiB pages.
///
/// A page is mapped by the first write into it, whatever the bytes, and unmapped by a discard or a zeroing that covers it
/// whole. The last page counts as covered when the range reaches the end of the device.
pub struct MemoryDevice {
    size: watch::Sender<u64>,
    /// The value of `size`, for the request path.
    size_now: AtomicU64,
    read_only: AtomicBool,
    regions: RwLock<Regions>,
}

impl MemoryDevice {
    /// A device of `size` bytes, any number of them, with nothing mapped.
    pub fn new(size: u64) -> Self {
        Self {
            size: watch::Sender::new(size),
            size_now: AtomicU64::new(size),
            read_only: AtomicBool::new(false),
            regions: RwLock::new(Regions::new()),
        }
    }

    /// Refuses writes from now on, or takes them again.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Relaxed);
    }

    /// Grows or shrinks to `size` bytes. What is cut off is lost: growing again shows zeroes.
    pub fn resize(&self, size: u64) {
        let mut regions = self.regions.write();
        let old = self.size_now.load(Ordering::Relaxed);
        if size < old {
            zero_range(&regions, size..old, old);
            regions.retain(|_, region| region.get_mut().mapped != 0);
        }
        self.size_now.store(size, Ordering::Relaxed);
        drop(regions);
        self.size.send_replace(size);
    }

    /// Bytes in mapped pages.
    pub fn mapped_bytes(&self) -> u64 {
        self.regions.read().values().map(|region| region.read().mapped as u64 * BLOCK_BYTES).sum()
    }

    fn end_of(&self, offset: u64, len: u64) -> Result<u64> {
        let size = self.size_now.load(Ordering::Relaxed);
        offset.checked_add(len).filter(|end| *end <= size).ok_or_else(|| {
            Error::invalid(format!("range of {len} bytes at {offset} is beyond the end of the device ({size} bytes)"))
        })
    }

    fn writable(&self) -> Result<()> {
        if self.read_only.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::ReadOnly, "the device is read-only"));
        }
        Ok(())
    }

    /// The regions, shared, with every region of `range` present.
    fn with_regions_of(&self, range: &Range<u64>) -> RwLockReadGuard<'_, Regions> {
        let wanted = range.start / REGION_BYTES..range.end.div_ceil(REGION_BYTES);
        let regions = self.regions.read();
        if wanted.clone().all(|index| regions.contains_key(&index)) {
            return regions;
        }
        drop(regions);
        let mut regions = self.regions.write();
        for index in wanted {
            regions.entry(index).or_insert_with(|| RwLock::new(Region::new()));
        }
        RwLockWriteGuard::downgrade(regions)
    }

    fn read_now(&self, offset: u64, len: usize) -> Result<Bytes> {
        let regions = self.regions.read();
        let end = self.end_of(offset, len as u64)?;
        Ok(copy_out(&regions, offset..end).into())
    }

    fn write_now(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.writable()?;
        let range = offset..self.end_of(offset, data.len() as u64)?;
        let regions = self.with_regions_of(&range);
        // A resize may have come in between.
        self.end_of(offset, data.len() as u64)?;
        copy_in(&regions, offset, data);
        Ok(())
    }

    fn zero_now(&self, offset: u64, len: u64, partial: Partial) -> Result<()> {
        self.writable()?;
        let mut emptied = false;
        {
            let regions = self.regions.read();
            let range = offset..self.end_of(offset, len)?;
            let size = self.size_now.load(Ordering::Relaxed);
            let range = match partial {
                Partial::Zero => range,
                Partial::Keep => whole_pages(range, size),
            };
            emptied |= zero_range(&regions, range, size);
        }
        if emptied {
            self.regions.write().retain(|_, region| region.get_mut().mapped != 0);
        }
        Ok(())
    }

    fn compare_and_write_now(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<bool> {
        self.writable()?;
        if expected.len() != new.len() {
            return Err(Error::invalid(format!("compare of {} bytes with write of {}", expected.len(), new.len())));
        }
        let mut regions = self.regions.write();
        let range = offset..self.end_of(offset, new.len() as u64)?;
        if copy_out(&regions, range.clone()) != expected {
            return Ok(false);
        }
        for index in range.start / REGION_BYTES..range.end.div_ceil(REGION_BYTES) {
            regions.entry(index).or_insert_with(|| RwLock::new(Region::new()));
        }
        copy_in(&regions, offset, new);
        Ok(true)
    }

    fn block_status_now(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        let regions = self.regions.read();
        let end = self.end_of(offset, len)?;
        let mut extents: Vec<Extent> = Vec::new();
        // False once `max` extents are complete.
        let mut add = |upto: u64, mapped: bool| -> bool {
            let at = extents.last().map_or(offset, |e| e.offset + e.len);
            let upto = upto.min(end);
            if upto <= at {
                return true;
            }
            let full = extents.len() == max;
            match extents.last_mut() {
                Some(last) if last.mapped == mapped => last.len += upto - at,
                _ if full => return false,
                _ => extents.push(Extent { offset: at, len: upto - at, mapped }),
            }
            true
        };
        if len == 0 || max == 0 {
            return Ok(extents);
        }
        for (&index, region) in regions.range(offset / REGION_BYTES..end.div_ceil(REGION_BYTES)) {
            let start = index * REGION_BYTES;
            if !add(start, false) {
                return Ok(extents);
            }
            for (page, slot) in region.read().pages.iter().enumerate() {
                if !add(start.saturating_add((page as u64 + 1) * BLOCK_BYTES), slot.is_some()) {
                    return Ok(extents);
                }
            }
        }
        add(end, false);
        Ok(extents)
    }
}

/// What zeroing does to pages that the range covers in part.
#[derive(Clone, Copy)]
enum Partial {
    Zero,
    Keep,
}

/// The part of `range` that covers whole pages, of a device of `size` bytes.
fn whole_pages(range: Range<u64>, size: u64) -> Range<u64> {
    let start = range.start.next_multiple_of(BLOCK_BYTES).min(range.end);
    let end = if range.end == size { size } else { range.end / BLOCK_BYTES * BLOCK_BYTES };
    start..end.max(start)
}

/// Cuts `range` at page borders: region index, page index in it, and bytes in the page.
fn pieces(range: Range<u64>) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let page_start = at / BLOCK_BYTES * BLOCK_BYTES;
        let until = range.end.min(page_start.saturating_add(BLOCK_BYTES));
        let piece = (at - page_start) as usize..(until - page_start) as usize;
        let page = (page_start % REGION_BYTES / BLOCK_BYTES) as usize;
        let region = page_start / REGION_BYTES;
        at = until;
        Some((region, page, piece))
    })
}

/// Cuts `range` at region borders.
fn by_region(range: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let region = at / REGION_BYTES;
        let until = range.end.min((region + 1).saturating_mul(REGION_BYTES));
        let part = at..until;
        at = until;
        Some((region, part))
    })
}

fn copy_out(regions: &Regions, range: Range<u64>) -> Vec<u8> {
    let mut out = Vec::with_capacity((range.end - range.start) as usize);
    for (index, part) in by_region(range) {
        let Some(region) = regions.get(&index) else {
            out.resize(out.len() + (part.end - part.start) as usize, 0);
            continue;
        };
        let region = region.read();
        for (_, page, bytes) in pieces(part) {
            match &region.pages[page] {
                Some(page) => out.extend_from_slice(&page[bytes]),
                None => out.extend_from_slice(&ZERO_PAGE[bytes]),
            }
        }
    }
    out
}

/// Every region of the range must be present.
fn copy_in(regions: &Regions, offset: u64, mut data: &[u8]) {
    for (index, part) in by_region(offset..offset + data.len() as u64) {
        let Some(region) = regions.get(&index) else {
            debug_assert!(false, "region {index} was prepared by the caller");
            return;
        };
        let mut region = region.write();
        for (_, page, bytes) in pieces(part) {
            let (now, later) = data.split_at(bytes.len());
            region.page_mut(page)[bytes].copy_from_slice(now);
            data = later;
        }
    }
}

/// Zeroes `range` of a device of `size` bytes, unmapping pages it covers whole; true if a region became empty.
fn zero_range(regions: &Regions, range: Range<u64>, size: u64) -> bool {
    let mut emptied = false;
    if range.is_empty() {
        return false;
    }
    for (&index, region) in regions.range(range.start / REGION_BYTES..range.end.div_ceil(REGION_BYTES)) {
        let start = index * REGION_BYTES;
        let part = range.start.max(start)..range.end.min(start.saturating_add(REGION_BYTES));
        let mut region = region.write();
        for (_, page, bytes) in pieces(part) {
            let page_start = start + page as u64 * BLOCK_BYTES;
            let covered = bytes.start == 0 && (bytes.end == BLOCK_SIZE || page_start + bytes.end as u64 == size);
            if covered {
                region.unmap(page);
            } else if let Some(page) = &mut region.pages[page] {
                page[bytes].fill(0);
            }
        }
        emptied |= region.mapped == 0;
    }
    emptied
}

impl BlockDevice for MemoryDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.size_now.load(Ordering::Relaxed),
            block_size: BLOCK_SIZE as u32,
            optimal_io: 64 * 1024,
            read_only: self.read_only.load(Ordering::Relaxed),
        }
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<Result<Bytes>> {
        Box::pin(ready(self.read_now(offset, len)))
    }

    fn write(&self, offset: u64, data: Bytes, _fua: bool) -> BoxFuture<Result<()>> {
        Box::pin(ready(self.write_now(offset, &data)))
    }

    fn flush(&self) -> BoxFuture<Result<()>> {
        Box::pin(ready(Ok(())))
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<Result<()>> {
        Box::pin(ready(self.zero_now(offset, len, Partial::Keep)))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _fua: bool) -> BoxFuture<Result<()>> {
        Box::pin(ready(self.zero_now(offset, len, Partial::Zero)))
    }

    fn compare_and_write(&self, offset: u64, expected: Bytes, new: Bytes) -> BoxFuture<Result<bool>> {
        Box::pin(ready(self.compare_and_write_now(offset, &expected, &new)))
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> BoxFuture<Result<Vec<Extent>>> {
        Box::pin(ready(self.block_status_now(offset, len, max)))
    }

    fn watch_size(&self) -> watch::Receiver<u64> {
        self.size.subscribe()
    }
}
