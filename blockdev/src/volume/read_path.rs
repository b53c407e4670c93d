//! Reads: what is not yet committed comes from the overlay, the rest through map, block table, frame.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures::future::join_all;

use super::Engine;
use super::destage::Stamp;
use super::intake::HostBlock;
use crate::codec;
use crate::env::compute;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::page::{BlockEntry, BlockKind, Location};
use crate::map::Need;
use crate::redundancy::array::Extent;
use crate::units::{BLOCK_SIZE, Lba, VirtualBlock, VolumeId};

/// Frames that lie at most this many bytes apart are read at once.
const GAP_MAX: u32 = 8 << 10;
/// Bytes read at once.
const RUN_MAX: u32 = 256 << 10;
/// Runs with more frames than this are uncompressed by the processor pool.
const FRAMES_INLINE: usize = 4;

/// A block to be found.
struct WantedBlock {
    /// Index into the request.
    index: usize,
    /// Where it is.
    entry: BlockEntry,
    /// What it may be equal to.
    like: Option<Bytes>,
}

/// A block that was found, and its checksum right.
#[derive(Clone)]
struct Found {
    /// Content.
    data: Bytes,
    /// Whether it is equal to [`WantedBlock::like`], byte for byte.
    equal: bool,
}

/// What became of wanted blocks.
type Answers = Vec<(WantedBlock, Result<Found>)>;

/// One frame and which of the wanted blocks lie in it.
struct WantedFrame {
    at: Location,
    entry: BlockEntry,
    blocks: Vec<WantedBlock>,
}

impl WantedFrame {
    /// The wanted blocks in the uncompressed frame; None when one of them is not what its checksum says.
    fn look_at(&self, raw: &Bytes) -> Option<Vec<Found>> {
        let find = |wanted: &WantedBlock| {
            let start = usize::from(wanted.entry.index) * BLOCK_SIZE;
            let block = raw.get(start..start + BLOCK_SIZE)?;
            // What equals a block of the same checksum needs no other proof.
            let equal = wanted.like.as_ref().is_some_and(|like| like == block);
            let right = equal || crate::format::checksum(block) == wanted.entry.checksum;
            right.then(|| Found { data: raw.slice(start..start + BLOCK_SIZE), equal })
        };
        self.blocks.iter().map(find).collect()
    }
}

/// A frame that was read, and what was found in it unless it is damaged.
struct Decoded {
    frame: WantedFrame,
    raw: Option<(Bytes, Vec<Found>)>,
}

/// Frames next to each other, read at once.
struct Run {
    extent: Arc<Extent>,
    frames: Vec<WantedFrame>,
}

impl Run {
    /// Whether a frame behind the others is near enough.
    fn takes(&self, at: &Location) -> bool {
        let near = |last: &WantedFrame| at.offset <= last.at.offset + u32::from(last.at.len) + GAP_MAX;
        let short = |first: &WantedFrame| at.offset + u32::from(at.len) - first.at.offset <= RUN_MAX;
        self.extent.segment == at.segment
            && self.frames.last().is_some_and(near)
            && self.frames.first().is_some_and(short)
    }
}

impl Engine {
    /// Reads whole blocks of a volume.
    pub async fn read_lbas(&self, volume: VolumeId, lba: Lba, count: usize) -> Result<Bytes> {
        let _pass = self.gate.enter();
        let mut pending: Vec<Option<Bytes>> = Vec::with_capacity(count);
        self.intake.lookup(volume, lba, count, &mut pending);
        if let [Some(one)] = &pending[..]
            && !one.is_empty()
        {
            return Ok(one.clone());
        }
        let entries = if pending.iter().all(Option::is_some) {
            Vec::new()
        } else {
            self.entries_of(volume, lba, count, &pending).await?
        };
        let blocks = self.fetch_blocks(&entries.iter().map(|(_, e)| *e).collect::<Vec<_>>()).await;
        let at_lba = |i: usize, e: Error| e.context(format!("volume {volume}, block {}", lba.0 + i as u64));
        if count == 1
            && let ([(i, _)], Some(block)) = (&entries[..], blocks.first())
        {
            return block.clone().map_err(|e| at_lba(*i, e));
        }
        let mut out = BytesMut::zeroed(count * BLOCK_SIZE);
        for (i, data) in pending.iter().enumerate() {
            if let Some(data) = data
                && !data.is_empty()
            {
                out[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE].copy_from_slice(data);
            }
        }
        for ((i, _), block) in entries.into_iter().zip(blocks) {
            let block = block.map_err(|e| at_lba(i, e))?;
            out[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE].copy_from_slice(&block);
        }
        Ok(out.freeze())
    }

    /// Block table entries of the LBAs that are mapped and not pending, with their index in the request.
    async fn entries_of(
        &self,
        volume: VolumeId,
        lba: Lba,
        count: usize,
        pending: &[Option<Bytes>],
    ) -> Result<Vec<(usize, BlockEntry)>> {
        let found = self
            .with_state(|s| {
                let Some(v) = s.volumes.get(&volume) else { return Ok(None) };
                let mut blocks = Vec::with_capacity(count);
                s.maps.lookup_range(v, lba, count, &mut blocks)?;
                let mut out = Vec::with_capacity(count);
                for (i, block) in blocks.into_iter().enumerate() {
                    if pending[i].is_none() && !block.is_none() {
                        out.push((i, s.table.entry(block)?));
                    }
                }
                Ok(Some(out))
            })
            .await?;
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("volume {volume} is gone")))
    }

    /// Compares blocks with what may be their like in the pool, byte by byte: the stamp of those that are equal.
    pub(super) async fn compare(&self, pairs: Vec<(VirtualBlock, HostBlock)>) -> Vec<Option<Stamp>> {
        let entries = self.with_state(|s| pairs.iter().map(|(v, _)| s.table.entry(*v)).collect::<Need<Vec<_>>>()).await;
        let Ok(entries) = entries else { return vec![None; pairs.len()] };
        let mut stamps = vec![None; pairs.len()];
        let mut wanted = Vec::with_capacity(pairs.len());
        for (i, ((_, block), entry)) in pairs.into_iter().zip(entries).enumerate() {
            // The fingerprint's lower half is the checksum: where that differs there is nothing to compare.
            let alike = entry.checksum == block.fingerprint as u64;
            if entry.refcount > 0 && entry.kind == BlockKind::Data && alike {
                wanted.push(WantedBlock { index: i, entry, like: Some(block.data) });
            }
        }
        for (wanted, found) in self.fetch(wanted).await {
            if found.is_ok_and(|found| found.equal) {
                stamps[wanted.index] = Some(wanted.entry.interval);
            }
        }
        stamps
    }

    /// The content of blocks, one result for each. Frames next to each other are read together.
    pub async fn fetch_blocks(&self, entries: &[BlockEntry]) -> Vec<Result<Bytes>> {
        let mut out: Vec<Result<Bytes>> = Vec::with_capacity(entries.len());
        out.resize_with(entries.len(), || Err(Error::io("not read")));
        let wanted = entries.iter().enumerate();
        let wanted = wanted.map(|(index, entry)| WantedBlock { index, entry: *entry, like: None }).collect();
        for (wanted, found) in self.fetch(wanted).await {
            out[wanted.index] = found.map(|found| found.data);
        }
        out
    }

    /// Finds blocks in the cache or on disk, in any order.
    async fn fetch(&self, mut wanted: Vec<WantedBlock>) -> Answers {
        wanted.sort_by_key(|w| (w.entry.frame, w.index));
        let mut out = Vec::with_capacity(wanted.len());
        let mut runs: Vec<Run> = Vec::new();
        let mut rest = wanted.into_iter().peekable();
        while let Some(first) = rest.next() {
            let (at, entry) = (first.entry.frame, first.entry);
            let mut blocks = vec![first];
            while let Some(next) = rest.next_if(|w| w.entry.frame == at) {
                blocks.push(next);
            }
            let frame = WantedFrame { at, entry, blocks };
            if let Some(run) = runs.last_mut()
                && run.takes(&at)
            {
                if let Some(frame) = self.take_from_cache(&run.extent, frame, &mut out) {
                    run.frames.push(frame);
                }
                continue;
            }
            match self.extent(at.segment) {
                Ok(extent) => {
                    if let Some(frame) = self.take_from_cache(&extent, frame, &mut out) {
                        runs.push(Run { extent, frames: vec![frame] });
                    }
                }
                Err(e) => out.extend(frame.blocks.into_iter().map(|w| (w, Err(e.clone())))),
            }
        }
        match runs.len() {
            0 => {}
            1 => {
                for run in runs {
                    out.append(&mut self.read_run(run).await);
                }
            }
            _ => join_all(runs.into_iter().map(|run| self.read_run(run))).await.into_iter().for_each(|a| out.extend(a)),
        }
        out
    }

    /// Answers from the cache, or gives the frame back.
    fn take_from_cache(&self, extent: &Extent, frame: WantedFrame, out: &mut Answers) -> Option<WantedFrame> {
        let key = (extent.incarnation, frame.at.offset);
        let Some(raw) = self.frames.get(&key) else { return Some(frame) };
        // Only the blocks that were wanted when the frame was read have been verified.
        match frame.look_at(&raw) {
            Some(found) => {
                out.extend(frame.blocks.into_iter().zip(found.into_iter().map(Ok)));
                None
            }
            None => {
                self.frames.remove(&key);
                Some(frame)
            }
        }
    }

    async fn read_run(&self, run: Run) -> Answers {
        let (Some(first), Some(last)) = (run.frames.first(), run.frames.last()) else { return Vec::new() };
        let start = first.at.offset;
        let len = (last.at.offset + u32::from(last.at.len) - start) as usize;
        let stored = Arc::new(self.read_pieces(&run.extent, start, len).await);
        let decoded: Vec<Decoded> = if run.frames.len() <= FRAMES_INLINE {
            decode_all(run.frames, &stored)
        } else {
            let mut jobs = Vec::new();
            let mut frames = run.frames;
            while !frames.is_empty() {
                let rest = frames.split_off(frames.len().min(2 * FRAMES_INLINE));
                let job = std::mem::replace(&mut frames, rest);
                let stored = stored.clone();
                jobs.push(compute(&self.env, move || decode_all(job, &stored)));
            }
            join_all(jobs).await.into_iter().flatten().flatten().collect()
        };
        let mut out = Vec::new();
        for Decoded { frame, raw } in decoded {
            let raw = match raw {
                Some(raw) => Ok(raw),
                None => self.repair_frame(&frame).await,
            };
            match raw {
                Ok((raw, found)) => {
                    let key = (run.extent.incarnation, frame.at.offset);
                    let whole = frame.blocks.len() >= usize::from(frame.entry.frame_blocks);
                    if !whole || self.frames.comes_again(&key) {
                        self.frames.insert(key, raw);
                    }
                    out.extend(frame.blocks.into_iter().zip(found.into_iter().map(Ok)));
                }
                // One may be there where another is not.
                Err(e) => {
                    let several = frame.blocks.len() > 1;
                    for wanted in frame.blocks {
                        let one = WantedFrame { at: frame.at, entry: frame.entry, blocks: vec![wanted] };
                        let found = if several { self.repair_frame(&one).await } else { Err(e.clone()) };
                        let found = found.and_then(|(_, mut found)| found.pop().ok_or_else(|| e.clone()));
                        out.extend(one.blocks.into_iter().map(|w| (w, found.clone())));
                    }
                }
            }
        }
        out
    }

    async fn repair_frame(&self, frame: &WantedFrame) -> Result<(Bytes, Vec<Found>)> {
        let entry = &frame.entry;
        let accept = |raw: &Bytes| frame.look_at(raw).is_some();
        let raw = self.read_frame(&frame.at, entry.codec, entry.raw_len.into(), accept).await;
        if raw.is_err() {
            tracing::error!(segment = frame.at.segment.0, offset = frame.at.offset, "a frame cannot be read");
        }
        let raw = raw.context("reading stored data")?;
        let found = frame.look_at(&raw).ok_or_else(|| Error::corrupt("a frame changed while it was looked at"))?;
        Ok((raw, found))
    }

    /// Counts a host read.
    pub(super) fn count_read(&self, bytes: usize) {
        self.counters.host_reads.fetch_add(1, Ordering::Relaxed);
        self.counters.host_read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Stored bytes at consecutive offsets, as they came from the disks: where each piece starts, and what it holds.
type Pieces = Vec<(u32, Result<Bytes>)>;

/// The stored bytes of a frame; None when they could not be read.
fn stored_of(pieces: &Pieces, at: &Location) -> Option<Bytes> {
    let first = pieces.partition_point(|(start, _)| *start <= at.offset).checked_sub(1)?;
    let (start, piece) = &pieces[first];
    let (from, len) = ((at.offset - start) as usize, usize::from(at.len));
    let piece = piece.as_ref().ok()?;
    if from + len <= piece.len() {
        return Some(piece.slice(from..from + len));
    }
    let mut out = BytesMut::with_capacity(len);
    out.extend_from_slice(piece.get(from..)?);
    for (_, piece) in &pieces[first + 1..] {
        let piece = piece.as_ref().ok()?;
        out.extend_from_slice(&piece[..piece.len().min(len - out.len())]);
    }
    (out.len() == len).then(|| out.freeze())
}

/// Uncompresses and verifies frames.
fn decode_all(frames: Vec<WantedFrame>, stored: &Pieces) -> Vec<Decoded> {
    let decode = |frame: &WantedFrame| {
        let stored = stored_of(stored, &frame.at)?;
        let raw_len = usize::from(frame.entry.raw_len);
        let mut raw = Vec::new();
        codec::decompress(frame.entry.codec, &stored, raw_len, &mut raw).ok()?;
        let raw = Bytes::from(raw);
        let found = frame.look_at(&raw)?;
        Some((raw, found))
    };
    frames
        .into_iter()
        .map(|frame| {
            let raw = decode(&frame);
            Decoded { frame, raw }
        })
        .collect()
}
