//! Commits, one after another: gives frames their places, writes the record, changes the state.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use tokio::sync::{mpsc, oneshot};

use super::Engine;
use super::damage::is_unreadable;
use super::destage::{Plan, Reduced, ReducedWrite, Stamp};
use super::frame::ReducedFrame;
use super::group_commit::Queued;
use super::intake::HostBlock;
use super::state::{Blocked, State};
use crate::codec::Codec;
use crate::dedupe::ListId;
use crate::env::compute;
use crate::error::{Error, ErrorKind, Result};
use crate::format::page::{BlockKind, Location};
use crate::format::part::Content;
use crate::format::record::{BlockRef, Frame, Op, Record, Stream};
use crate::map::Need;
use crate::planted::{self, Bug};
use crate::segment::appender::{Appender, ReadyStripe};
use crate::units::{BLOCK_SIZE, Lba, Seqno, VirtualBlock, VolumeId};

/// Stripes being written at the same time, over all segments.
pub(super) const STRIPES_IN_FLIGHT: usize = 24;
/// Mapped blocks one record gives back at most.
const UNMAP_BLOCKS: u64 = 512;

/// What only the holder of the commit lock may touch: the open segments of the data and the cold stream.
#[derive(Default)]
pub struct Committer {
    /// By stream.
    pub open: [Option<Arc<Appender>>; 2],
}

impl Committer {
    fn slot(&mut self, stream: Stream) -> &mut Option<Arc<Appender>> {
        &mut self.open[usize::from(stream == Stream::Cold)]
    }
}

/// How a block of a batch will be stored.
enum Sharing {
    /// Not at all.
    Zero,
    /// By itself.
    Not,
    /// As a reference to this block.
    With(VirtualBlock, Stamp),
    /// As a reference to a block in front of it in the same batch, if that gets stored.
    Later,
}

/// A record being put together, and what must happen once it is applied.
#[derive(Default)]
pub struct Draft {
    /// The record; its number is given on commit.
    pub record: Record,
    /// Summaries that the record closes, as operations in front of all others.
    pub layout: Vec<Op>,
    /// Stripes that became complete.
    pub ready: Vec<(Arc<Appender>, ReadyStripe)>,
}

impl Engine {
    /// The task that commits batches.
    pub(super) async fn commit_batches(self: Arc<Self>, mut batches: mpsc::Receiver<oneshot::Receiver<Reduced>>) {
        while let Some(batch) = batches.recv().await {
            let batch = match batch.await {
                Ok(batch) => batch,
                Err(_) => {
                    // Its place in the order would be skipped and a later flush answered without it.
                    self.fail(Error::io("a batch of writes was lost"));
                    continue;
                }
            };
            if self.is_dead() {
                continue;
            }
            let result = match batch {
                Reduced::Writes { writes, frames, identities } => self.commit_writes(writes, frames, &identities).await,
                Reduced::Unmap { seqno, volume, lba, count, done } => {
                    let result = self.commit_unmap(volume, lba, count, seqno).await;
                    let broken = result.as_ref().err().filter(|e| is_unreadable(e) && !self.is_dead());
                    // Before whoever waits for the answer looks.
                    broken.inspect(|e| self.break_volume(volume, (lba, count), e));
                    let _ = done.send(result.clone());
                    if broken.is_some() { self.carry_on(seqno).await } else { result }
                }
            };
            if let Err(e) = result {
                self.fail(e.context("committing"));
            }
        }
    }

    async fn commit_writes(
        self: &Arc<Self>,
        writes: Vec<ReducedWrite>,
        mut frames: Vec<ReducedFrame>,
        identities: &[OnceLock<(VirtualBlock, Stamp)>],
    ) -> Result<()> {
        let bytes: usize = frames.iter().map(|f| f.stored.len()).sum();
        self.wait_for_space(bytes).await?;
        self.back_pressure.stored.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut committer = self.committer.lock().await;
        let pass = self.gate.enter();
        let shared = self.shared_blocks(&writes).await?;
        self.find_broken(&writes).await?;
        // A volume that was deleted meanwhile takes no more writes, nor does one whose map cannot be read.
        let deleted: Vec<bool> = {
            let (state, broken) = (self.state.read(), self.broken.lock());
            let gone = |v| !state.volumes.contains_key(&v) || broken.contains_key(&v);
            writes.iter().map(|w| gone(w.volume)).collect()
        };
        for (write, _) in writes.iter().zip(&deleted).filter(|(_, deleted)| **deleted) {
            self.note_dropped(write.volume, write.seqno);
        }
        let fresh = shared.iter().filter(|s| matches!(s, Sharing::Not | Sharing::Later)).count();
        let mut free = Vec::with_capacity(fresh);
        // Checkpoints take their instant under the commit lock: the interval stays as it is until this is committed.
        let interval = self
            .with_state_mut(|s| {
                s.table.allocate(fresh.saturating_sub(free.len()), &mut free)?;
                Ok(s.table.interval)
            })
            .await?;
        let mut free = free.into_iter();

        let seqno = writes.last().map_or(Seqno(0), |w| w.seqno);
        let mut record = Record { seqno, ..Record::default() };
        let empty = (VirtualBlock::NONE, 0);
        let mut contents: Vec<Vec<(VirtualBlock, u128)>> =
            frames.iter().map(|f| vec![empty; f.blocks.into()]).collect();
        let (mut zeroes, mut position) = (0, 0);
        let mut stored = Vec::with_capacity(fresh);
        for (write, deleted) in writes.iter().zip(&deleted) {
            let mut blocks = Vec::with_capacity(write.blocks.len());
            for (block, plan) in &write.blocks {
                let (known, cell) = (&shared[position], &identities[position]);
                position += 1;
                if *deleted {
                    // Nobody may wait for its identity.
                    let _ = cell.set((VirtualBlock::NONE, 0));
                    continue;
                }
                let equal = match (known, plan) {
                    (Sharing::Zero, _) => {
                        zeroes += 1;
                        blocks.push(BlockRef::Zero);
                        continue;
                    }
                    (Sharing::With(v, stamp), _) => Some((*v, *stamp)),
                    // Equal to an earlier block of this very batch, unless the volume of that one is gone.
                    (Sharing::Later, Plan::Pending(twin)) => twin.get().filter(|(v, _)| !v.is_none()),
                    _ => None,
                };
                if let Some((v, stamp)) = equal {
                    let _ = cell.set((v, stamp));
                    blocks.push(BlockRef::Shared(v));
                    continue;
                }
                let id = free.next().ok_or_else(|| Error::io("too few identities were allocated"))?;
                let (frame, index) = match plan {
                    Plan::Unique(frame, index) => (*frame, *index),
                    _ => {
                        // It was to be shared, but what it equals is gone: stored as it is.
                        frames.push(ReducedFrame {
                            stored: block.data.clone(),
                            raw_len: BLOCK_SIZE as u16,
                            raw: None,
                            codec: Codec::Raw,
                            blocks: 1,
                        });
                        contents.push(vec![empty]);
                        (frames.len() as u32 - 1, 0)
                    }
                };
                contents[frame as usize][usize::from(index)] = (id, block.fingerprint);
                let _ = cell.set((id, interval));
                stored.push((block.fingerprint, id));
                blocks.push(BlockRef::New { block: id, frame, index, fingerprint: block.fingerprint });
            }
            if !deleted {
                record.ops.push(Op::Write { volume: write.volume, lba: write.lba, blocks });
            }
        }
        self.counters.zero_bytes.fetch_add(zeroes * BLOCK_SIZE as u64, Ordering::Relaxed);

        let mut draft = Draft { record, ..Draft::default() };
        let contents: Vec<Content> = contents.into_iter().map(Content::Data).collect();
        self.place_frames(&mut committer, Stream::Data, &frames, contents, &mut draft)?;
        for (frame, placed) in frames.iter().zip(&draft.record.frames) {
            self.cache_frame(placed, frame);
        }
        self.commit(&mut committer, draft).await?;
        drop((committer, pass));

        {
            let mut index = self.index.lock();
            stored.iter().for_each(|(fingerprint, _)| index.prefetch(*fingerprint));
            stored.into_iter().for_each(|(fingerprint, block)| index.insert_recent(fingerprint, block));
        }
        for write in writes {
            self.intake.committed(write.volume, write.lba, write.blocks.len(), write.seqno);
        }
        self.checkpoint_if_due();
        Ok(())
    }

    /// Which blocks of a batch can be stored as references. A block that is stored already may get one more when it is in use, and
    /// still is what was compared.
    async fn shared_blocks(&self, writes: &[ReducedWrite]) -> Result<Vec<Sharing>> {
        let blocks = || writes.iter().flat_map(|w| &w.blocks);
        let all = self.with_state(|s| blocks().map(|b| sharing_of(s, b)).collect()).await;
        match all {
            Err(e) if is_unreadable(&e) => {}
            other => return other,
        }
        // One by one: what cannot be looked at is not shared.
        let mut out = Vec::new();
        for block in blocks() {
            out.push(match self.with_state(|s| sharing_of(s, block)).await {
                Err(e) if is_unreadable(&e) => Sharing::Not,
                other => other?,
            });
        }
        Ok(out)
    }

    /// Finds volumes whose map cannot be read where writes change it: they take no more writes.
    async fn find_broken(&self, writes: &[ReducedWrite]) -> Result<()> {
        for w in writes {
            if let Some(e) = self.first_unreadable(w.volume, w.lba, w.blocks.len()).await? {
                self.break_volume(w.volume, (w.lba, w.blocks.len() as u64), &e);
            }
        }
        Ok(())
    }

    fn cache_frame(&self, placed: &Frame, frame: &ReducedFrame) {
        if let Some(raw) = &frame.raw
            && let Ok(extent) = self.extent(placed.at.segment)
        {
            self.frames.insert((extent.incarnation, placed.at.offset), raw.clone());
        }
    }

    /// Gives frames places in the open segment of a stream, opening new segments as needed.
    pub(super) fn place_frames(
        &self,
        committer: &mut Committer,
        stream: Stream,
        frames: &[ReducedFrame],
        contents: Vec<Content>,
        draft: &mut Draft,
    ) -> Result<()> {
        for (frame, content) in frames.iter().zip(contents) {
            let at = self.append(committer.slot(stream), stream, &frame.stored, content, frame.blocks.into(), draft)?;
            draft.record.frames.push(Frame { at, codec: frame.codec, blocks: frame.blocks, raw_len: frame.raw_len });
        }
        Ok(())
    }

    /// Appends stored bytes to the open segment of a stream.
    pub(super) fn append(
        &self,
        slot: &mut Option<Arc<Appender>>,
        stream: Stream,
        stored: &[u8],
        content: Content,
        blocks: usize,
        draft: &mut Draft,
    ) -> Result<Location> {
        if let Some(open) = slot
            && (!open.fits(stored.len(), blocks) || self.is_hurt(open))
        {
            self.seal(open, draft);
            *slot = None;
        }
        let open = match slot {
            Some(open) => open,
            None => {
                let record = self.state.write().segments.open(&self.array, stream).ok_or_else(|| {
                    Error::new(ErrorKind::NoSpace, format!("pool {}: no free segment is left", self.name))
                })?;
                let extent = self.extent(record.id)?;
                let appender = Arc::new(Appender::new(extent, &self.array.geometry, 0, Location::default()));
                self.appenders.write().insert(record.id, appender.clone());
                draft.layout.push(Op::OpenSegment(record));
                slot.insert(appender)
            }
        };
        let mut ready = Vec::new();
        if open.part_is_full(blocks) {
            self.close_part(open, &mut ready, draft);
        }
        let at = open.append(stored, &mut ready);
        open.describe(crate::format::part::Item { offset: at.offset, len: at.len, content }, blocks);
        draft.ready.extend(ready.into_iter().map(|r| (open.clone(), r)));
        Ok(at)
    }

    /// Whether an open segment lacks columns, so that new frames should go elsewhere.
    pub(super) fn is_hurt(&self, open: &Appender) -> bool {
        open.extent.lost_columns(self.array.closed()) != 0
    }

    /// Closes the part; from now on its fingerprints can be found.
    pub(super) fn close_part(&self, open: &Appender, ready: &mut Vec<ReadyStripe>, draft: &mut Draft) {
        if let Some((at, fingerprints)) = open.close_part(ready) {
            draft.layout.push(Op::ClosePart { at });
            self.index.lock().add_list(ListId::new(at.segment, at.offset), fingerprints.into_iter());
        }
    }

    /// Closes the part and the segment.
    pub(super) fn seal(&self, open: &Arc<Appender>, draft: &mut Draft) {
        let mut ready = Vec::new();
        self.close_part(open, &mut ready, draft);
        open.seal(&mut ready);
        draft.layout.push(Op::SealSegment(open.extent.segment));
        draft.ready.extend(ready.into_iter().map(|r| (open.clone(), r)));
    }

    /// Commits a draft: numbers the record, applies it, queues it for the log, sends stripes off.
    pub(super) async fn commit(self: &Arc<Self>, committer: &mut Committer, draft: Draft) -> Result<u64> {
        let Draft { mut record, mut layout, ready } = draft;
        layout.append(&mut record.ops);
        record.ops = layout;

        let number = self
            .with_state_mut(|s| {
                let needed = s.prepare(&record)?;
                let given = record.pages.len();
                s.table.allocate(needed.saturating_sub(given), &mut record.pages)?;
                record.number = s.record + 1;
                s.apply_prepared(&record)?;
                s.table.settle_allocations();
                Ok(record.number)
            })
            .await?;
        self.queue_for_log(committer, &record);
        for (appender, stripe) in ready {
            self.send_stripe(appender, stripe).await?;
        }
        Ok(number)
    }

    fn queue_for_log(&self, committer: &Committer, record: &Record) {
        let mut encoded = Vec::with_capacity(64 + record.ops.len() * 32);
        record.encode(&mut encoded);
        let ends = committer.open.iter().flatten().map(|a| (a.clone(), a.filled()));
        // A segment that was sealed by this record is no longer open: it is complete up to its end.
        let sealed = record.ops.iter().filter_map(|op| match op {
            Op::SealSegment(id) => self.appenders.read().get(id).cloned(),
            _ => None,
        });
        let ends = ends.chain(sealed.map(|a| (a.clone(), a.filled()))).collect();
        self.log_queue.lock().push(Queued::Record { number: record.number, seqno: record.seqno, encoded, ends });
        self.log_wake.notify_one();
    }

    /// Writes a complete stripe in the background; waits only while too many are on their way.
    pub(super) async fn send_stripe(self: &Arc<Self>, appender: Arc<Appender>, stripe: ReadyStripe) -> Result<()> {
        let closed = |_| Error::new(ErrorKind::Unavailable, "the pool is stopped");
        let permit = self.stripes.clone().acquire_owned().await.map_err(closed)?;
        let engine = self.clone();
        self.spawn(async move {
            let ReadyStripe { stripe, data } = stripe;
            let extent = appender.extent.clone();
            let (array, columns, parity) = (engine.array.clone(), extent.data, extent.parity);
            let source = data.clone();
            let mut strips = match parity {
                0 => Vec::new(),
                _ => match compute(&engine.env, move || array.parity_of(&source, columns, parity)).await {
                    Some(strips) => strips,
                    None => return engine.fail(Error::io("computing parity did not end well")),
                },
            };
            if planted::active(Bug::ParityMissing) {
                strips.iter_mut().for_each(|s| *s = crate::disk::AlignedBuf::zeroed(s.len()).freeze());
            }
            match engine.array.write_stripe(&extent, stripe, data, strips).await {
                Ok(()) => {
                    appender.complete(stripe);
                    engine.log_wake.notify_one();
                }
                Err(e) => engine.fail(e),
            }
            drop(permit);
        });
        Ok(())
    }

    /// Gives a range back, in several records when much is mapped.
    pub async fn commit_unmap(self: &Arc<Self>, volume: VolumeId, lba: Lba, count: u64, seqno: Seqno) -> Result<()> {
        let end = lba.0 + count;
        let mut at = lba.0;
        while at < end {
            self.wait_for_log().await?;
            self.checkpoint_if_due();
            let mut committer = self.committer.lock().await;
            let _pass = self.gate.enter();
            // As far as UNMAP_BLOCKS mapped blocks reach.
            let piece = self
                .with_state(|s| {
                    let Some(v) = s.volumes.get(&volume) else { return Ok(None) };
                    let Some(first) = s.maps.next_mapped(v, at, end)? else { return Ok(None) };
                    let stop = end.min((first / 512 + UNMAP_BLOCKS / 512) * 512);
                    Ok(Some((first, stop)))
                })
                .await?;
            let Some((first, stop)) = piece else { break };
            let last = stop == end;
            let record = Record {
                seqno: if last { seqno } else { Seqno(0) },
                ops: vec![Op::Unmap { volume, lba: Lba(first), count: stop - first }],
                ..Record::default()
            };
            self.commit(&mut committer, Draft { record, ..Draft::default() }).await?;
            at = stop;
            if last {
                return Ok(());
            }
        }
        // Nothing (more) was mapped.
        self.carry_on(seqno).await
    }

    /// An empty record, which carries the number of host operations on.
    async fn carry_on(self: &Arc<Self>, seqno: Seqno) -> Result<()> {
        let mut committer = self.committer.lock().await;
        let _pass = self.gate.enter();
        let record = Record { seqno, ..Record::default() };
        self.commit(&mut committer, Draft { record, ..Draft::default() }).await?;
        Ok(())
    }

    /// Commits changes of the catalogue; durable when this completes, and so is every host operation before it.
    pub async fn commit_ops(self: &Arc<Self>, ops: Vec<Op>) -> Result<()> {
        self.check_writable()?;
        self.flush().await?;
        self.wait_for_log().await?;
        let number = {
            let mut committer = self.committer.lock().await;
            let _pass = self.gate.enter();
            let record = Record { ops, ..Record::default() };
            self.commit(&mut committer, Draft { record, ..Draft::default() }).await?
        };
        self.wait_durable_record(number).await
    }
}

/// Whether a block can be stored as a reference to another one.
fn sharing_of(s: &State, (block, plan): &(HostBlock, Plan)) -> Need<Sharing> {
    let (v, stamp) = match plan {
        Plan::Zero => return Ok(Sharing::Zero),
        Plan::Unique(..) => return Ok(Sharing::Not),
        Plan::Stored(v, stamp) => (*v, *stamp),
        Plan::Pending(twin) => match twin.get() {
            Some(known) => known,
            None => return Ok(Sharing::Later),
        },
    };
    let e = s.table.entry(v)?;
    let same = e.checksum == block.fingerprint as u64 && e.interval == stamp;
    let same = same || planted::active(Bug::NoVerify);
    let sharable = e.refcount > 0 && e.refcount < u32::MAX - 1 && e.kind == BlockKind::Data && same;
    Ok(if sharable { Sharing::With(v, e.interval) } else { Sharing::Not })
}

impl From<Error> for Blocked {
    fn from(error: Error) -> Self {
        Self::Bad(error)
    }
}
