//! Reading stored bytes: frames, metadata pages, part summaries. Verifies, and repairs from redundancy.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Engine;
use super::damage::is_unreadable;
use super::shares::{Cache, PAGE_MEMORY};
use super::state::{Blocked, State};
use crate::codec::{self, Codec};
use crate::error::{Error, Result};
use crate::format::page::{
    BlockKind, DIRECTORY_PAGE_SIZE, DirectoryPage, Location, MapPage, TABLE_PAGE_SIZE, TablePage,
};
use crate::format::part::{PART_BYTES_MAX, Part};
use crate::map::{Miss, Need};
use crate::redundancy::array::Extent;
use crate::units::{SegmentId, VirtualBlock};

/// Bytes that are read in all ways by themselves: what disks lose at once.
const PIECE: u32 = 4096;
/// Ways to put pieces together that are tried.
const COMBINATIONS_MAX: usize = 1024;

impl Engine {
    /// Where a segment's columns lie.
    pub fn extent(&self, segment: SegmentId) -> Result<Arc<Extent>> {
        let state = self.state.read();
        let found = state.segments.get(segment).map(|s| s.extent.clone());
        found.ok_or_else(|| Error::corrupt(format!("segment {segment} is referred to but not in use")))
    }

    /// Stored bytes of a segment: from the open end in memory, else from disk. Columns in `avoid` are reconstructed.
    pub async fn read_stored(&self, extent: &Extent, offset: u32, len: usize, avoid: u32) -> Result<Bytes> {
        let appender = self.appenders.read().get(&extent.segment).cloned();
        let Some(appender) = appender else {
            return self.array.read_avoiding(extent, offset, len, avoid).await;
        };
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let at = offset + out.len() as u32;
            let rest = (len - out.len()).min(appender.stripe_rest(at));
            match appender.read(at, rest) {
                Some(data) => out.extend_from_slice(&data),
                None => out.extend_from_slice(&self.array.read_avoiding(extent, at, rest, avoid).await?),
            }
        }
        Ok(Bytes::from(out))
    }

    /// As [`Self::read_stored`] without `avoid`, in the pieces the disks hold: where each starts, and what it holds.
    pub(super) async fn read_pieces(&self, extent: &Extent, offset: u32, len: usize) -> Vec<(u32, Result<Bytes>)> {
        let open = self.appenders.read().contains_key(&extent.segment);
        if open {
            return vec![(offset, self.read_stored(extent, offset, len, 0).await)];
        }
        self.array.read_strips(extent, offset, len).await
    }

    /// Reads and uncompresses a frame and checks it with `accept`. What does not pass is reconstructed from other columns: first
    /// without each single column that holds the frame, then, with double parity, without each pair.
    pub async fn read_frame(
        &self,
        at: &Location,
        codec: Codec,
        raw_len: usize,
        accept: impl Fn(&Bytes) -> bool,
    ) -> Result<Bytes> {
        let extent = self.extent(at.segment)?;
        let decode = |stored: &[u8]| {
            let mut raw = vec![0; raw_len];
            codec::decompress(codec, stored, &mut raw).ok()?;
            let raw = Bytes::from(raw);
            accept(&raw).then_some(raw)
        };
        let first = self.read_stored(&extent, at.offset, at.len.into(), 0).await;
        if let Ok(stored) = &first
            && let Some(raw) = decode(stored)
        {
            return Ok(raw);
        }
        let columns = self.array.columns_of(&extent, at.offset, at.len.into());
        for avoid in ways_around(&columns, &extent) {
            let Ok(stored) = self.read_stored(&extent, at.offset, at.len.into(), avoid).await else { continue };
            if let Some(raw) = decode(&stored) {
                self.counters.repaired.fetch_add(1, Ordering::Relaxed);
                let lost = extent.lost_columns(self.array.absent());
                self.array.blame(&extent, avoid & !lost, at.offset);
                self.array.suspect(&extent, avoid);
                return Ok(raw);
            }
        }
        if let Some((raw, avoid)) = self.piece_together(&extent, at.offset, at.len.into(), &decode).await {
            self.counters.repaired.fetch_add(1, Ordering::Relaxed);
            self.array.suspect(&extent, avoid);
            return Ok(raw);
        }
        if extent.lost_columns(self.array.absent()).count_ones() as usize <= extent.parity {
            extent.damaged.store(true, Ordering::Release);
        }
        first?;
        Err(Error::corrupt(format!(
            "segment {}, offset {}: checksum mismatch, and redundancy does not give the data back",
            at.segment, at.offset
        )))
    }

    /// The last resort for stored bytes that no set of columns gives as a whole: each piece as wide as a sector is read in all ways, and
    /// the ways are combined until `decode` takes them. Also gives the columns that were not taken as they are.
    pub(super) async fn piece_together<T>(
        &self,
        extent: &Extent,
        offset: u32,
        len: usize,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Option<(T, u32)> {
        let end = offset + len as u32;
        let mut pieces: Vec<Vec<(Bytes, u32)>> = Vec::new();
        let (mut at, mut combinations) = (offset, 1usize);
        while at < end {
            let next = (at / PIECE + 1).saturating_mul(PIECE).min(end);
            let len = (next - at) as usize;
            let columns = self.array.columns_of(extent, at, len);
            let mut ways: Vec<(Bytes, u32)> = Vec::new();
            for avoid in std::iter::once(0).chain(ways_around(&columns, extent)) {
                if let Ok(data) = self.read_stored(extent, at, len, avoid).await
                    && ways.iter().all(|(known, _)| *known != data)
                {
                    ways.push((data, avoid));
                }
            }
            combinations = combinations.checked_mul(ways.len()).filter(|n| (1..=COMBINATIONS_MAX).contains(n))?;
            pieces.push(ways);
            at = next;
        }
        let mut stored = Vec::with_capacity(len);
        (0..combinations).find_map(|mut number| {
            stored.clear();
            let mut avoided = 0;
            for ways in &pieces {
                let (data, avoid) = &ways[number % ways.len()];
                number /= ways.len();
                stored.extend_from_slice(data);
                avoided |= avoid;
            }
            Some((decode(&stored)?, avoided))
        })
    }

    /// Runs `ask` on the state until everything it needs is resident.
    pub async fn with_state<T>(&self, mut ask: impl FnMut(&State) -> Need<T>) -> Result<T> {
        let mut gone = None;
        loop {
            let answer = ask(&self.state.read());
            let miss = match answer {
                Ok(value) => return Ok(value),
                Err(miss) => miss,
            };
            if let Err(e) = self.load(miss).await {
                // A page that was given back between question and load: what led to it leads elsewhere now.
                if gone == Some(miss) || !self.was_given_back(miss) {
                    return Err(e);
                }
                gone = Some(miss);
            }
        }
    }

    /// As [`Self::with_state`], with the state for changing.
    pub async fn with_state_mut<T>(
        &self,
        mut ask: impl FnMut(&mut State) -> std::result::Result<T, Blocked>,
    ) -> Result<T> {
        loop {
            let answer = ask(&mut self.state.write());
            match answer {
                Ok(value) => return Ok(value),
                Err(Blocked::Bad(e)) => return Err(e),
                Err(Blocked::Miss(miss)) => {
                    let lost = self.state.read().table.lost();
                    if let Err(e) = self.load(miss).await
                        && self.state.read().table.lost() == lost
                    {
                        return Err(e);
                    }
                    // What is lost may not be needed.
                }
            }
        }
    }

    /// Makes a metadata page resident.
    pub fn load(&self, miss: Miss) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            match miss {
                Miss::Map(block) => self.load_map_page(block).await,
                Miss::Table(page) => self.load_table_page(page).await,
                Miss::Directory(page) => self.load_directory_page(page).await,
            }
        })
    }

    async fn load_map_page(&self, block: VirtualBlock) -> Result<()> {
        let entry = self.with_state(|s| s.table.entry(block)).await?;
        if self.state.read().maps.pages.contains(block.0) {
            return Ok(());
        }
        if entry.refcount == 0 || entry.kind != BlockKind::MapPage || entry.frame.len == 0 {
            return Err(Error::corrupt(format!("virtual block {block} is not a stored map page")));
        }
        let sum = |raw: &Bytes| crate::format::checksum(raw) == entry.checksum;
        let raw = self.read_frame(&entry.frame, entry.codec, entry.raw_len.into(), sum).await?;
        let page = MapPage::decode(&raw)?;
        let mut state = self.state.write();
        // Only if it still lies where it was read: else somebody else has loaded, changed and written it meanwhile.
        if state.table.entry(block).is_ok_and(|e| e.refcount > 0 && e.frame == entry.frame) {
            if state.maps.pages.insert_clean(block.0, page) {
                self.missed(Cache::Maps, PAGE_MEMORY);
            }
            self.evict_beyond(&mut state);
        }
        Ok(())
    }

    async fn load_table_page(&self, page: u64) -> Result<()> {
        let pointer = self.with_state(|s| s.table.pointer(page)).await?;
        if pointer.is_none() || self.state.read().table.pages.contains(page) {
            return Ok(());
        }
        let sum = |raw: &Bytes| crate::format::checksum(raw) == pointer.checksum;
        let read = self.read_frame(&pointer.at, pointer.codec, TABLE_PAGE_SIZE, sum).await;
        let mut state = self.state.write();
        // What was written elsewhere meanwhile was there.
        if state.table.pointer(page).is_ok_and(|p| p.at == pointer.at) && !state.table.pages.contains(page) {
            state.table.set_page_lost(page, read.as_ref().is_err_and(is_unreadable));
        }
        let decoded = TablePage::decode(&read?)?;
        if state.table.pointer(page).is_ok_and(|p| p.at == pointer.at) {
            if state.table.pages.insert_clean(page, decoded) {
                self.missed(Cache::Table, PAGE_MEMORY);
            }
            self.evict_beyond(&mut state);
        }
        Ok(())
    }

    async fn load_directory_page(&self, page: u64) -> Result<()> {
        let pointer = {
            let state = self.state.read();
            if state.table.directory.contains(page) {
                return Ok(());
            }
            state.table.roots.get(page as usize).copied().unwrap_or_default()
        };
        if pointer.is_none() {
            return Err(Error::corrupt(format!("directory page {page} was never written")));
        }
        let sum = |raw: &Bytes| crate::format::checksum(raw) == pointer.checksum;
        let read = self.read_frame(&pointer.at, pointer.codec, DIRECTORY_PAGE_SIZE, sum).await;
        let mut state = self.state.write();
        if state.table.roots.get(page as usize).is_some_and(|p| p.at == pointer.at)
            && !state.table.directory.contains(page)
        {
            state.table.set_directory_lost(page, read.as_ref().is_err_and(is_unreadable));
        }
        let decoded = DirectoryPage::decode(&read?)?;
        if state.table.roots.get(page as usize).is_some_and(|p| p.at == pointer.at) {
            state.table.directory.insert_clean(page, decoded);
            state.table.directory.evict_beyond(self.directory_pages());
        }
        Ok(())
    }

    /// Where a segment ends that is wholly on disk.
    fn written(&self, segment: SegmentId) -> Option<u32> {
        let state = self.state.read();
        let s = state.segments.get(segment).filter(|s| s.record.sealed && s.record.written > 0)?;
        let open = self.appenders.read().contains_key(&segment);
        (!open).then_some(s.record.written)
    }

    /// Reads the part summary that starts at `offset`; None when there is none (any more) of this segment's present use.
    pub async fn read_part(&self, segment: SegmentId, offset: u32) -> Option<Part> {
        let extent = self.extent(segment).ok()?;
        // What was never written may be unreadable, and nobody would mend it.
        let end = self.written(segment).unwrap_or_else(|| extent.capacity(&self.array.geometry));
        let room = end.checked_sub(offset)? as usize;
        let intact = |data: &[u8]| {
            let part = Part::decode(data).ok()?;
            (part.segment == segment && part.incarnation == extent.incarnation).then_some(part)
        };
        let len = room.min(PART_BYTES_MAX);
        let columns = self.array.columns_of(&extent, offset, len);
        for avoid in std::iter::once(0).chain(ways_around(&columns, &extent)) {
            if let Ok(data) = self.read_stored(&extent, offset, len, avoid).await
                && let Some(part) = intact(&data)
            {
                return Some(part);
            }
        }
        None
    }
}

/// Sets of columns to do without when what lies in `columns` is not what it should be: first each single one of them, then, with double parity,
/// each with any other. A lost column is computed from others, of which any may be the bad one.
pub(super) fn ways_around<'a>(columns: &'a [usize], extent: &'a Extent) -> impl Iterator<Item = u32> + 'a {
    let all = extent.columns.len();
    let singles = columns.iter().map(|&c| 1u32 << c);
    let pairs = columns.iter().flat_map(move |&a| (0..all).filter(move |&b| b != a).map(move |b| 1u32 << a | 1 << b));
    singles.chain(pairs.filter(|_| extent.parity >= 2))
}

/// A boxed future that borrows.
pub type LocalFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
