//! Reads: what is not yet committed comes from the overlay, the rest through map, block table, frame.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures::future::join_all;

use super::Engine;
use super::destage::Stamp;
use crate::codec;
use crate::env::compute;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::page::{BlockEntry, BlockKind, Location};
use crate::redundancy::array::Extent;
use crate::units::{BLOCK_SIZE, Lba, VirtualBlock, VolumeId};

/// Frames that lie at most this many bytes apart are read at once.
const GAP_MAX: u32 = 8 << 10;
/// Bytes read at once.
const RUN_MAX: u32 = 256 << 10;
/// Runs with more frames than this are uncompressed by the processor pool.
const FRAMES_INLINE: usize = 4;

/// Frames next to each other, read at once.
struct Run {
    extent: Arc<Extent>,
    frames: Vec<Wanted>,
}

/// One frame and which of the wanted blocks lie in it.
struct Wanted {
    at: Location,
    entry: BlockEntry,
    /// Index into the request, and entry, of each wanted block.
    blocks: Vec<(usize, BlockEntry)>,
}

impl Engine {
    /// Reads whole blocks of a volume.
    pub async fn read_lbas(&self, volume: VolumeId, lba: Lba, count: usize) -> Result<Bytes> {
        let _pass = self.gate.enter();
        let mut pending: Vec<Option<Bytes>> = Vec::with_capacity(count);
        pending.extend((0..count as u64).map(|i| self.intake.lookup(volume, lba.0 + i)));
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

    /// The content and stamp of those blocks that are in use and have the given checksum; None for all others.
    pub(super) async fn read_blocks_matching(
        &self,
        blocks: &[VirtualBlock],
        sums: &[u64],
    ) -> Vec<Option<(Bytes, Stamp)>> {
        let mut out = vec![None; blocks.len()];
        let mut wanted = Vec::new();
        for (i, (&block, &sum)) in blocks.iter().zip(sums).enumerate() {
            let Ok(entry) = self.with_state(|s| s.table.entry(block)).await else { continue };
            if entry.refcount > 0 && entry.kind == BlockKind::Data && entry.checksum == sum {
                wanted.push((i, entry));
            }
        }
        let found = self.fetch_blocks(&wanted.iter().map(|(_, e)| *e).collect::<Vec<_>>()).await;
        for ((i, entry), block) in wanted.into_iter().zip(found) {
            out[i] = block.ok().map(|data| (data, entry.interval));
        }
        out
    }

    /// The content of blocks, one result for each. Frames next to each other are read together.
    pub async fn fetch_blocks(&self, entries: &[BlockEntry]) -> Vec<Result<Bytes>> {
        let mut out: Vec<Result<Bytes>> = Vec::with_capacity(entries.len());
        let mut frames: BTreeMap<Location, Wanted> = BTreeMap::new();
        for (i, entry) in entries.iter().enumerate() {
            out.push(Err(Error::io("not read")));
            let slot = frames.entry(entry.frame);
            slot.or_insert_with(|| Wanted { at: entry.frame, entry: *entry, blocks: Vec::new() })
                .blocks
                .push((i, *entry));
        }
        let mut runs: Vec<Run> = Vec::new();
        for (at, wanted) in frames {
            if let Some(run) = runs.last_mut()
                && run.extent.segment == at.segment
                && run.frames.last().is_some_and(|l| at.offset <= l.at.offset + u32::from(l.at.len) + GAP_MAX)
                && run.frames.first().is_some_and(|f| at.offset + u32::from(at.len) - f.at.offset <= RUN_MAX)
            {
                if !self.take_from_cache(&run.extent, &wanted, &mut out) {
                    run.frames.push(wanted);
                }
                continue;
            }
            match self.extent(at.segment) {
                Ok(extent) => {
                    if !self.take_from_cache(&extent, &wanted, &mut out) {
                        runs.push(Run { extent, frames: vec![wanted] });
                    }
                }
                Err(e) => wanted.blocks.iter().for_each(|(i, _)| out[*i] = Err(e.clone())),
            }
        }
        for results in join_all(runs.into_iter().map(|run| self.read_run(run))).await {
            for (i, result) in results {
                out[i] = result;
            }
        }
        out
    }

    fn take_from_cache(&self, extent: &Extent, wanted: &Wanted, out: &mut [Result<Bytes>]) -> bool {
        let Some(raw) = self.frames.get(&(extent.incarnation, wanted.at.offset)) else { return false };
        // Only the blocks that were wanted when the frame was read have been verified.
        if !verify(&raw, &wanted.blocks) {
            self.frames.remove(&(extent.incarnation, wanted.at.offset));
            return false;
        }
        for (i, e) in &wanted.blocks {
            out[*i] = Ok(block_of(&raw, e));
        }
        true
    }

    async fn read_run(&self, run: Run) -> Vec<(usize, Result<Bytes>)> {
        let (Some(first), Some(last)) = (run.frames.first(), run.frames.last()) else { return Vec::new() };
        let start = first.at.offset;
        let len = (last.at.offset + u32::from(last.at.len) - start) as usize;
        let stored = self.read_stored(&run.extent, start, len, 0).await;
        let mut decoded: Vec<(Wanted, Option<Bytes>)> = match stored {
            Err(_) => run.frames.into_iter().map(|w| (w, None)).collect(),
            Ok(stored) if run.frames.len() <= FRAMES_INLINE => decode_all(run.frames, &stored, start),
            Ok(stored) => {
                let mut jobs = Vec::new();
                let mut frames = run.frames;
                while !frames.is_empty() {
                    let rest = frames.split_off(frames.len().min(2 * FRAMES_INLINE));
                    let job = std::mem::replace(&mut frames, rest);
                    let stored = stored.clone();
                    jobs.push(compute(&self.env, move || decode_all(job, &stored, start)));
                }
                join_all(jobs).await.into_iter().flatten().flatten().collect()
            }
        };
        let mut out = Vec::new();
        for (wanted, raw) in decoded.drain(..) {
            let raw = match raw {
                Some(raw) => Ok(raw),
                None => self.repair_frame(&wanted).await,
            };
            if let Ok(raw) = &raw
                && wanted.blocks.len() < usize::from(wanted.entry.frame_blocks)
            {
                self.frames.insert((run.extent.incarnation, wanted.at.offset), raw.clone());
            }
            for (i, entry) in &wanted.blocks {
                out.push((*i, raw.clone().map(|raw| block_of(&raw, entry))));
            }
        }
        out
    }

    async fn repair_frame(&self, wanted: &Wanted) -> Result<Bytes> {
        let accept = |raw: &[u8]| verify(raw, &wanted.blocks);
        let entry = &wanted.entry;
        let raw = self.read_frame(&wanted.at, entry.codec, entry.raw_len.into(), accept).await;
        if raw.is_err() {
            tracing::error!(segment = wanted.at.segment.0, offset = wanted.at.offset, "a frame cannot be read");
        }
        raw.context("reading stored data")
    }

    /// Counts a host read.
    pub(super) fn count_read(&self, bytes: usize) {
        self.counters.host_reads.fetch_add(1, Ordering::Relaxed);
        self.counters.host_read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

fn block_of(raw: &Bytes, entry: &BlockEntry) -> Bytes {
    let start = usize::from(entry.index) * BLOCK_SIZE;
    raw.slice(start..start + BLOCK_SIZE)
}

fn verify(raw: &[u8], blocks: &[(usize, BlockEntry)]) -> bool {
    blocks.iter().all(|(_, e)| {
        let start = usize::from(e.index) * BLOCK_SIZE;
        raw.get(start..start + BLOCK_SIZE).is_some_and(|block| crate::format::checksum(block) == e.checksum)
    })
}

/// Uncompresses and verifies frames out of the bytes that were read from `start` on; None for those that do not pass.
fn decode_all(frames: Vec<Wanted>, stored: &Bytes, start: u32) -> Vec<(Wanted, Option<Bytes>)> {
    let decode = |wanted: &Wanted| {
        let from = (wanted.at.offset - start) as usize;
        let stored = stored.get(from..from + usize::from(wanted.at.len))?;
        let raw_len = usize::from(wanted.entry.raw_len);
        let mut raw = Vec::with_capacity(raw_len);
        codec::decompress(wanted.entry.codec, stored, raw_len, &mut raw).ok()?;
        verify(&raw, &wanted.blocks).then(|| Bytes::from(raw))
    };
    frames
        .into_iter()
        .map(|w| {
            let raw = decode(&w);
            (w, raw)
        })
        .collect()
}
