//! Reads: what is not yet committed comes from the overlay, the rest through map, block table, frame.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures::future::{join, join_all};

use super::Engine;
use super::answer::Answer;
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
/// Of runs with more frames than this, the others are uncompressed by the processor pool, as many at once.
const FRAMES_INLINE: usize = 8;

/// A block to be found.
struct WantedBlock {
    /// Index into the request.
    index: usize,
    /// Where it is.
    entry: BlockEntry,
    /// What it may be equal to: then only that is asked.
    like: Option<Bytes>,
    /// Empty room in the answer for the whole frame, with the first of its blocks where all of them are wanted in their order.
    room: Option<BytesMut>,
}

/// A block that was found, and its checksum right.
#[derive(Clone)]
enum Found {
    /// Its content.
    Content(Bytes),
    /// Its frame is in the room it had.
    Placed,
    /// Whether it is equal to [`WantedBlock::like`], byte for byte.
    Compared(bool),
}

/// What became of wanted blocks. Those whose frame had room come with it, filled or as it was.
type Answers = Vec<(WantedBlock, Result<Found>)>;

/// One frame and which of the wanted blocks lie in it.
struct WantedFrame {
    at: Location,
    entry: BlockEntry,
    blocks: Vec<WantedBlock>,
    /// Whether the frame cache is to have it.
    keep: bool,
}

impl WantedFrame {
    /// The wanted blocks in the uncompressed frame, as `content` gives them; None when one of them is not what its checksum says.
    fn look_at(&self, raw: &[u8], content: impl Fn(Range<usize>) -> Found) -> Option<Vec<Found>> {
        let find = |wanted: &WantedBlock| {
            let start = usize::from(wanted.entry.index) * BLOCK_SIZE;
            let block = raw.get(start..start + BLOCK_SIZE)?;
            // What equals a block of the same checksum needs no other proof.
            let equal = wanted.like.as_ref().map(|like| like == block);
            let right = equal == Some(true) || crate::format::checksum(block) == wanted.entry.checksum;
            right.then(|| equal.map_or_else(|| content(start..start + BLOCK_SIZE), Found::Compared))
        };
        self.blocks.iter().map(find).collect()
    }

    /// As [`Self::look_at`]; what is found are parts of `raw`.
    fn parts_of(&self, raw: &Bytes) -> Option<Vec<Found>> {
        self.look_at(raw, |part| Found::Content(raw.slice(part)))
    }

    /// All of the frame is wanted.
    fn is_whole(&self) -> bool {
        self.blocks.len() >= usize::from(self.entry.frame_blocks)
    }

    /// The room for it in the answer, unless blocks of it are wanted elsewhere as well.
    fn take_room(&mut self) -> Option<BytesMut> {
        let alone = self.blocks.len() == usize::from(self.entry.frame_blocks);
        self.blocks.first_mut().filter(|_| alone)?.room.take()
    }

    /// What was wanted is in the room now.
    fn fill_room(&mut self, room: BytesMut) -> Vec<Found> {
        if let Some(first) = self.blocks.first_mut() {
            first.room = Some(room);
        }
        vec![Found::Placed; self.blocks.len()]
    }
}

/// A frame that was read.
struct Decoded {
    frame: WantedFrame,
    /// What was found in it, unless it is damaged.
    found: Option<Vec<Found>>,
    /// What the cache is to have of it.
    kept: Option<Bytes>,
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
        let at_lba = |i: usize, e: Error| e.context(format!("volume {volume}, block {}", lba.0 + i as u64));
        if let [(i, entry)] = entries[..]
            && count == 1
        {
            let block = self.fetch_blocks(&[entry]).await.pop();
            return block.ok_or_else(not_read)?.map_err(|e| at_lba(i, e));
        }
        let mut answer = Answer::new(count);
        let mut wanted = Vec::with_capacity(entries.len());
        for (n, &(index, entry)) in entries.iter().enumerate() {
            // A frame begins with its block 0: where one has room, no other begins before its end.
            let room = whole_frame(&entries[n..]).map(|blocks| answer.take(index, blocks));
            wanted.push(WantedBlock { index, entry, like: None, room });
        }
        let mut single = Vec::new();
        for (wanted, found) in self.fetch(wanted).await {
            match found.map_err(|e| at_lba(wanted.index, e))? {
                Found::Content(block) => single.push((wanted.index, block)),
                Found::Placed | Found::Compared(_) => {}
            }
            if let Some(room) = wanted.room {
                answer.give_back(wanted.index, room);
            }
        }
        let mut out = answer.whole().ok_or_else(not_read)?;
        let pending = pending.into_iter().enumerate().filter_map(|(i, data)| data.map(|data| (i, data)));
        for (i, data) in pending.filter(|(_, data)| !data.is_empty()).chain(single) {
            out[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE].copy_from_slice(&data);
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
                let Some(v) = s.live(volume) else { return Ok(None) };
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
                wanted.push(WantedBlock { index: i, entry, like: Some(block.data), room: None });
            }
        }
        for (wanted, found) in self.fetch(wanted).await {
            if matches!(found, Ok(Found::Compared(true))) {
                stamps[wanted.index] = Some(wanted.entry.interval);
            }
        }
        stamps
    }

    /// The content of blocks, one result for each. Frames next to each other are read together.
    pub async fn fetch_blocks(&self, entries: &[BlockEntry]) -> Vec<Result<Bytes>> {
        let mut out: Vec<Result<Bytes>> = Vec::with_capacity(entries.len());
        out.resize_with(entries.len(), || Err(not_read()));
        let wanted = entries.iter().enumerate();
        let wanted = wanted.map(|(index, entry)| WantedBlock { index, entry: *entry, like: None, room: None });
        for (wanted, found) in self.fetch(wanted.collect()).await {
            out[wanted.index] = found.and_then(|found| match found {
                Found::Content(block) => Ok(block),
                Found::Placed | Found::Compared(_) => Err(not_read()),
            });
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
            let frame = WantedFrame { at, entry, blocks, keep: false };
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
    fn take_from_cache(&self, extent: &Extent, mut frame: WantedFrame, out: &mut Answers) -> Option<WantedFrame> {
        let key = (extent.incarnation, frame.at.offset);
        let Some(raw) = self.frames.get(&key) else { return Some(frame) };
        // Only the blocks that were wanted when the frame was read have been verified.
        let Some(mut found) = frame.parts_of(&raw) else {
            self.frames.remove(&key);
            return Some(frame);
        };
        if let Some(mut room) = frame.take_room() {
            room.extend_from_slice(&raw);
            found = frame.fill_room(room);
        }
        out.extend(frame.blocks.into_iter().zip(found.into_iter().map(Ok)));
        None
    }

    async fn read_run(&self, mut run: Run) -> Answers {
        let (Some(first), Some(last)) = (run.frames.first(), run.frames.last()) else { return Vec::new() };
        match self.frames.take_missed() {
            0 => {}
            bytes => self.missed_frames(bytes),
        }
        let start = first.at.offset;
        let len = (last.at.offset + u32::from(last.at.len) - start) as usize;
        for frame in &mut run.frames {
            frame.keep = !frame.is_whole() || self.frames.comes_again(&(run.extent.incarnation, frame.at.offset));
        }
        let stored = Arc::new(self.read_pieces(&run.extent, start, len).await);
        let mut jobs = Vec::new();
        let mut frames = run.frames;
        while frames.len() > FRAMES_INLINE {
            let rest = frames.split_off(FRAMES_INLINE);
            let job = std::mem::replace(&mut frames, rest);
            let stored = stored.clone();
            jobs.push(compute(&self.env, move || decode_all(job, &stored)));
        }
        let (elsewhere, here) = join(join_all(jobs), async { decode_all(frames, &stored) }).await;
        let decoded = elsewhere.into_iter().flatten().flatten().chain(here);
        let mut out = Vec::new();
        for Decoded { frame, found, kept } in decoded {
            let found = match found {
                Some(found) => Ok((kept, found)),
                None => self.repair_frame(&frame).await.map(|(raw, found)| (Some(raw).filter(|_| frame.keep), found)),
            };
            match found {
                Ok((kept, found)) => {
                    if let Some(raw) = kept {
                        self.frames.insert((run.extent.incarnation, frame.at.offset), raw);
                    }
                    out.extend(frame.blocks.into_iter().zip(found.into_iter().map(Ok)));
                }
                // One may be there where another is not.
                Err(e) => {
                    let several = frame.blocks.len() > 1;
                    for wanted in frame.blocks {
                        let one = WantedFrame { at: frame.at, entry: frame.entry, blocks: vec![wanted], keep: false };
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
        let accept = |raw: &Bytes| frame.parts_of(raw).is_some();
        let raw = self.read_frame(&frame.at, entry.codec, entry.raw_len.into(), accept).await;
        if raw.is_err() {
            tracing::error!(segment = frame.at.segment.0, offset = frame.at.offset, "a frame cannot be read");
        }
        let raw = raw.context("reading stored data")?;
        let found = frame.parts_of(&raw).ok_or_else(|| Error::corrupt("a frame changed while it was looked at"))?;
        Ok((raw, found))
    }

    /// Counts a host read.
    pub(super) fn count_read(&self, bytes: usize) {
        self.counters.host_reads.fetch_add(1, Ordering::Relaxed);
        self.counters.host_read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

fn not_read() -> Error {
    Error::io("not read")
}

/// The blocks of a frame, if what is wanted begins with all of them in their order.
fn whole_frame(entries: &[(usize, BlockEntry)]) -> Option<usize> {
    let (index, first) = entries.first()?;
    let blocks = usize::from(first.frame_blocks);
    let all = entries.get(..blocks).filter(|_| blocks > 0 && usize::from(first.raw_len) == blocks * BLOCK_SIZE)?;
    let in_order = |(n, (i, entry)): (usize, &(usize, BlockEntry))| {
        *i == index + n && entry.frame == first.frame && usize::from(entry.index) == n
    };
    all.iter().enumerate().all(in_order).then_some(blocks)
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

thread_local! {
    /// A frame that is looked at only.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Uncompresses and verifies frames.
fn decode_all(frames: Vec<WantedFrame>, stored: &Pieces) -> Vec<Decoded> {
    frames.into_iter().map(|frame| decode(frame, stored)).collect()
}

fn decode(mut frame: WantedFrame, stored: &Pieces) -> Decoded {
    let Some(stored) = stored_of(stored, &frame.at) else { return Decoded { frame, found: None, kept: None } };
    let (codec, raw_len) = (frame.entry.codec, usize::from(frame.entry.raw_len));
    let placed = |_| Found::Placed;
    if let Some(mut room) = frame.take_room() {
        room.resize(raw_len, 0);
        let found = codec::decompress(codec, &stored, &mut room).ok().and_then(|()| frame.look_at(&room, placed));
        if found.is_none() {
            room.clear();
        }
        let kept = (frame.keep && found.is_some()).then(|| Bytes::copy_from_slice(&room));
        frame.fill_room(room);
        return Decoded { frame, found, kept };
    }
    if !frame.keep && frame.blocks.iter().all(|wanted| wanted.like.is_some()) {
        let found = SCRATCH.with_borrow_mut(|raw| {
            raw.resize(raw_len, 0);
            codec::decompress(codec, &stored, raw).ok().and_then(|()| frame.look_at(raw, placed))
        });
        return Decoded { frame, found, kept: None };
    }
    let mut raw = vec![0; raw_len];
    let whole = codec::decompress(codec, &stored, &mut raw).is_ok();
    let raw = Bytes::from(raw);
    let found = frame.parts_of(&raw).filter(|_| whole);
    let kept = (frame.keep && found.is_some()).then_some(raw);
    Decoded { frame, found, kept }
}
