//! Commits, one after another: gives frames their places, writes the record, changes the state.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustc_hash::FxBuildHasher;
use tokio::sync::{mpsc, oneshot};

use super::Engine;
use super::destage::{Plan, Reduced, ReducedFrame, ReducedWrite, Stamp};
use super::group_commit::Queued;
use super::state::Blocked;
use crate::codec::Codec;
use crate::dedupe::ListId;
use crate::env::compute;
use crate::error::{Error, ErrorKind, Result};
use crate::format::page::{BlockKind, Location};
use crate::format::part::Content;
use crate::format::record::{BlockRef, Frame, Op, Record, Stream};
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
                Reduced::Writes { writes, frames } => self.commit_writes(writes, frames).await,
                Reduced::Unmap { seqno, volume, lba, count, done } => {
                    let result = self.commit_unmap(volume, lba, count, seqno).await;
                    let _ = done.send(result.clone());
                    result
                }
            };
            if let Err(e) = result {
                self.fail(e.context("committing"));
            }
        }
    }

    async fn commit_writes(self: &Arc<Self>, writes: Vec<ReducedWrite>, mut frames: Vec<ReducedFrame>) -> Result<()> {
        let bytes: usize = frames.iter().map(|f| f.stored.len()).sum();
        self.wait_for_space(bytes).await?;
        let mut committer = self.committer.lock().await;
        let _pass = self.gate.enter();
        // Checkpoints take their instant under the commit lock: the interval stays as it is until this is committed.
        let interval = self.state.read().table.interval;
        let seqno = writes.last().map_or(Seqno(0), |w| w.seqno);
        // A volume that was deleted meanwhile takes no more writes.
        let (writes, orphans): (Vec<_>, Vec<_>) = {
            let state = self.state.read();
            writes.into_iter().partition(|w| state.volumes.contains_key(&w.volume))
        };

        // Identities.
        let mut refs: Vec<Vec<Option<BlockRef>>> = Vec::with_capacity(writes.len());
        let mut fresh = 0;
        for write in &writes {
            let mut out = Vec::with_capacity(write.blocks.len());
            for (block, plan, _) in &write.blocks {
                let candidate = match plan {
                    Plan::Zero => {
                        out.push(Some(BlockRef::Zero));
                        continue;
                    }
                    Plan::Stored(v, stamp) => Some((*v, *stamp)),
                    Plan::Pending(cell) => cell.get().copied(),
                    Plan::Unique(..) => None,
                };
                let shared = match candidate {
                    Some((v, stamp)) if self.is_sharable(v, stamp, block.fingerprint as u64).await? => {
                        Some(BlockRef::Shared(v))
                    }
                    _ => None,
                };
                fresh += usize::from(shared.is_none());
                out.push(shared);
            }
            refs.push(out);
        }
        let mut identities = Vec::with_capacity(fresh);
        self.with_state_mut(|s| Ok(s.table.allocate(fresh - identities.len(), &mut identities)?)).await?;
        let mut identities = identities.into_iter();

        // A twin of an earlier block of this very batch becomes a reference to it.
        let mut decided_now: HashSet<VirtualBlock, FxBuildHasher> = HashSet::default();
        let mut record = Record { seqno, ..Record::default() };
        let empty = (VirtualBlock::NONE, 0);
        let mut contents: Vec<Vec<(VirtualBlock, u128)>> =
            frames.iter().map(|f| vec![empty; f.blocks.into()]).collect();
        for (write, refs) in writes.iter().zip(refs) {
            let mut blocks = Vec::with_capacity(refs.len());
            for ((block, plan, cell), known) in write.blocks.iter().zip(refs) {
                let twin = match plan {
                    Plan::Pending(twin) => twin.get().map(|(v, _)| *v),
                    _ => None,
                };
                let decided = match (known, plan) {
                    (Some(known), _) => known,
                    (None, Plan::Pending(_)) if twin.is_some_and(|v| decided_now.contains(&v)) => {
                        twin.map_or(BlockRef::Zero, BlockRef::Shared)
                    }
                    (None, _) => {
                        let id = identities.next().ok_or_else(|| Error::io("too few identities were allocated"))?;
                        let (frame, index) = match plan {
                            Plan::Unique(frame, index) => (*frame, *index),
                            _ => {
                                // It was to be shared, but what it equals is gone: stored as it is.
                                frames.push(ReducedFrame {
                                    stored: block.data.to_vec(),
                                    raw: block.data.clone(),
                                    codec: Codec::Raw,
                                    blocks: 1,
                                });
                                contents.push(vec![empty]);
                                (frames.len() as u32 - 1, 0)
                            }
                        };
                        contents[frame as usize][usize::from(index)] = (id, block.fingerprint);
                        BlockRef::New { block: id, frame, index, fingerprint: block.fingerprint }
                    }
                };
                match decided {
                    BlockRef::New { block, .. } | BlockRef::Shared(block) => {
                        let stamp = match decided {
                            BlockRef::New { .. } => interval,
                            _ => self.state.read().table.entry(block).map_or(interval, |e| e.interval),
                        };
                        let _ = cell.set((block, stamp));
                        decided_now.insert(block);
                    }
                    BlockRef::Zero => {
                        self.counters.zero_bytes.fetch_add(BLOCK_SIZE as u64, Ordering::Relaxed);
                    }
                }
                blocks.push(decided);
            }
            record.ops.push(Op::Write { volume: write.volume, lba: write.lba, blocks });
        }

        let mut draft = Draft { record, ..Draft::default() };
        let contents: Vec<Content> = contents.into_iter().map(Content::Data).collect();
        self.place_frames(&mut committer, Stream::Data, &frames, contents, &mut draft)?;
        for (frame, placed) in frames.iter().zip(&draft.record.frames) {
            self.cache_frame(placed, frame);
        }
        self.commit(&mut committer, draft).await?;
        drop(committer);

        for write in &orphans {
            // Nobody may wait for their identities.
            for (_, _, cell) in &write.blocks {
                let _ = cell.set((VirtualBlock::NONE, 0));
            }
        }
        for write in writes.into_iter().chain(orphans) {
            self.intake.committed(write.volume, write.lba, write.blocks.len(), write.seqno);
            let mut index = self.index.lock();
            for (block, plan, cell) in &write.blocks {
                if let (false, Some((v, _))) = (matches!(plan, Plan::Zero), cell.get())
                    && !v.is_none()
                {
                    index.insert_recent(block.fingerprint, *v);
                }
            }
            drop(write.room);
        }
        self.checkpoint_if_due();
        Ok(())
    }

    /// Whether a block may get one more reference: it is in use and still is what was compared.
    async fn is_sharable(&self, block: VirtualBlock, stamp: Stamp, checksum: u64) -> Result<bool> {
        let entry = self
            .with_state_mut(|s| {
                s.table.ensure(block)?;
                Ok(s.table.entry(block)?)
            })
            .await?;
        let sum = (entry.checksum == checksum && entry.interval == stamp) || planted::active(Bug::NoVerify);
        Ok(entry.refcount > 0 && entry.refcount < u32::MAX - 1 && entry.kind == BlockKind::Data && sum)
    }

    fn cache_frame(&self, placed: &Frame, frame: &ReducedFrame) {
        if let Ok(extent) = self.extent(placed.at.segment) {
            self.frames.insert((extent.incarnation, placed.at.offset), frame.raw.clone());
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
            draft.record.frames.push(Frame {
                at,
                codec: frame.codec,
                blocks: frame.blocks,
                raw_len: frame.raw.len() as u16,
            });
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
        let hurt = |a: &Appender| a.extent.stale.load(Ordering::Acquire) != 0;
        if let Some(open) = slot
            && (!open.fits(stored.len(), blocks) || hurt(open))
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

        let needed = self.with_state_mut(|s| s.prepare(&record)).await?;
        let mut pages = Vec::with_capacity(needed);
        self.with_state_mut(|s| Ok(s.table.allocate(needed - pages.len(), &mut pages)?)).await?;
        record.pages = pages;

        let number = self
            .with_state_mut(|s| {
                record.number = s.record + 1;
                s.apply(&record)?;
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
        // Nothing (more) was mapped: an empty record carries the number on.
        let mut committer = self.committer.lock().await;
        let _pass = self.gate.enter();
        let record = Record { seqno, ..Record::default() };
        self.commit(&mut committer, Draft { record, ..Draft::default() }).await?;
        Ok(())
    }

    /// Commits changes of the catalogue; durable when this completes, and so is every host operation before it.
    pub async fn commit_ops(self: &Arc<Self>, ops: Vec<Op>) -> Result<()> {
        self.check_alive()?;
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

impl From<Error> for Blocked {
    fn from(error: Error) -> Self {
        Self::Bad(error)
    }
}
