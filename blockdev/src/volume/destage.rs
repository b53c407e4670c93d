//! From host writes to reduced batches: finds duplicates and compresses what is unique.
//!
//! Batches are formed and looked up in order; verification and compression of several batches run at the same time; commits
//! are in order again.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::future::join_all;
use rustc_hash::FxBuildHasher;
use tokio::sync::{mpsc, oneshot};

use super::frame::{Effort, Group, ReducedFrame, compress};
use super::gate::Pass;
use super::intake::{BATCH_BLOCKS, HostBlock, HostOp, Numbered};
use super::{Engine, PoolConfig};
use crate::codec::FRAME_BLOCKS;
use crate::dedupe::{ListId, Lookup};
use crate::env::compute;
use crate::error::Error;
use crate::format::part::Content;
use crate::map::Miss;
use crate::map::tree::LEVELS_MAX;
use crate::planted::{self, Bug};
use crate::units::{BLOCK_SIZE, Lba, Seqno, VirtualBlock, VolumeId};

/// Batches between destaging and committing: duplicates are read from disks and compared meanwhile, which should have enough to do. As
/// many as fill a third of the write buffer, within these bounds.
const BATCHES_IN_FLIGHT: RangeInclusive<usize> = 8..=24;
/// Frames compressed in one piece of processor work.
const FRAMES_PER_JOB: usize = 8;
/// Frames of writes with at least this many blocks are not kept in the frame cache: streams would drive out everything else.
const STREAM_BLOCKS: usize = 16;
/// Batches of at most this many blocks are compressed in place: handing them over would cost more.
const INLINE_BLOCKS: usize = 2;

/// What becomes of one block.
#[derive(Clone, Debug)]
pub enum Plan {
    /// Takes no space.
    Zero,
    /// Equal to a stored block, byte for byte: the block and its [`Stamp`] when it was compared.
    Stored(VirtualBlock, Stamp),
    /// Equal to a block of an earlier batch, or earlier in this one, whose identity will be known when this is committed.
    Pending(Twin),
    /// New: the frame and the position in it.
    Unique(u32, u8),
}

/// Checkpoint interval in which a virtual block was given its present content. A block that was freed and given out again has
/// another one, so what was compared earlier is never taken for what is there now.
pub type Stamp = u32;

/// What the blocks of a batch became, in order; those that nobody can ask for may stay empty.
pub type Identities = Arc<[OnceLock<(VirtualBlock, Stamp)>]>;

/// Tells later batches which block a unique block became.
#[derive(Clone, Debug)]
pub struct Twin {
    batch: Identities,
    index: usize,
}

impl Twin {
    /// The block, once it is committed; none when its volume was deleted before.
    pub fn get(&self) -> Option<(VirtualBlock, Stamp)> {
        self.batch[self.index].get().copied()
    }
}

/// A write whose blocks have plans.
pub struct ReducedWrite {
    /// Place in the order.
    pub seqno: Seqno,
    /// Volume.
    pub volume: VolumeId,
    /// First block.
    pub lba: Lba,
    /// Content.
    pub data: Bytes,
    /// Content and plan of each block.
    pub blocks: Vec<(HostBlock, Plan)>,
    /// Room in the write buffer, given back when the write is committed.
    pub room: tokio::sync::OwnedSemaphorePermit,
}

/// A batch ready to be committed.
pub enum Reduced {
    /// Writes.
    Writes {
        /// In order.
        writes: Vec<ReducedWrite>,
        /// Frames that [`Plan::Unique`] points to.
        frames: Vec<ReducedFrame>,
        /// Where later batches look for what the blocks became.
        identities: Identities,
    },
    /// A discard.
    Unmap {
        /// Place in the order.
        seqno: Seqno,
        /// Volume.
        volume: VolumeId,
        /// First block.
        lba: Lba,
        /// Blocks.
        count: u64,
        /// The answer.
        done: oneshot::Sender<crate::error::Result<()>>,
    },
}

/// Blocks of batches that are not committed, by fingerprint.
type PendingBlocks = HashMap<u128, (Bytes, Twin), FxBuildHasher>;

/// A batch on its way to be committed: the keys of its blocks in [`PendingBlocks`], and their positions.
struct Uncommitted {
    batch: Identities,
    keys: Vec<(u128, usize)>,
}

impl Uncommitted {
    fn is_committed(&self) -> bool {
        self.keys.last().is_none_or(|(_, last)| self.batch[*last].get().is_some())
    }

    fn forget(self, pending: &mut PendingBlocks) {
        for (key, _) in &self.keys {
            // A block of a later batch may have taken the key over.
            if pending.get(key).is_some_and(|(_, twin)| Arc::ptr_eq(&twin.batch, &self.batch)) {
                pending.remove(key);
            }
        }
    }
}

/// Batches under way.
pub fn batches_in_flight(config: &PoolConfig) -> usize {
    let third = (config.write_buffer() / 3 / (BATCH_BLOCKS * BLOCK_SIZE) as u64) as usize;
    let usual = third.clamp(*BATCHES_IN_FLIGHT.start(), *BATCHES_IN_FLIGHT.end());
    config.batches.unwrap_or(usual).max(1)
}

impl Engine {
    /// The task that forms batches.
    pub(super) async fn destage(self: Arc<Self>, batches: mpsc::Sender<oneshot::Receiver<Reduced>>) {
        let mut pending = PendingBlocks::default();
        let mut uncommitted: VecDeque<Uncommitted> = VecDeque::new();
        loop {
            if !self.wait_for_batch().await {
                return;
            }
            let ops = self.intake.take(self.space().batch_blocks(BATCH_BLOCKS));
            // What earlier batches wrote is in the index once they are committed, which they are in order, and whole.
            while uncommitted.front().is_some_and(Uncommitted::is_committed) {
                uncommitted.pop_front().into_iter().for_each(|batch| batch.forget(&mut pending));
            }
            let (send, receive) = oneshot::channel();
            if batches.send(receive).await.is_err() {
                return;
            }
            // Only now: batches in front may wait for space, and the checkpoint that makes space waits for all passes.
            let pass = self.gate.enter();
            let mut keys = Vec::new();
            match self.plan(ops, &mut pending, &mut keys).await {
                Some(Planned::Unmap(op)) => {
                    let _ = send.send(op);
                }
                Some(Planned::Writes(writes, identities)) => {
                    if !keys.is_empty() {
                        uncommitted.push_back(Uncommitted { batch: identities.clone(), keys });
                    }
                    let engine = self.clone();
                    let reduce = async move {
                        let reduced = engine.reduce(writes, identities, pass).await;
                        let _ = send.send(reduced);
                    };
                    self.spawn(reduce);
                }
                None => {}
            }
        }
    }

    /// Waits until there is something to do that should not wait for more; false when the pool stops.
    async fn wait_for_batch(&self) -> bool {
        let mut lingered = false;
        loop {
            if self.is_dead() {
                return false;
            }
            let (ops, due) = self.intake.waiting();
            if ops > 0 && (due || lingered) {
                return true;
            }
            if ops == 0 {
                lingered = false;
                self.intake.arrival().await;
                continue;
            }
            let deadline = self.env.sleep(self.config.linger);
            tokio::pin!(deadline);
            while !lingered {
                let arrival = self.intake.arrival();
                tokio::pin!(arrival);
                match futures::future::select(arrival, &mut deadline).await {
                    futures::future::Either::Left(_) => {
                        if self.intake.waiting().1 || self.is_dead() {
                            break;
                        }
                    }
                    futures::future::Either::Right(_) => lingered = true,
                }
            }
        }
    }

    /// Looks every block up, in order.
    async fn plan(
        self: &Arc<Self>,
        ops: Vec<Numbered>,
        pending: &mut PendingBlocks,
        keys: &mut Vec<(u128, usize)>,
    ) -> Option<Planned> {
        let found = self.look_up(&ops).await;
        let mut found = found.into_iter();
        let blocks = |n: &Numbered| match &n.op {
            HostOp::Write { blocks, .. } => blocks.len(),
            HostOp::Unmap { .. } => 0,
        };
        let identities: Identities = (0..ops.iter().map(blocks).sum()).map(|_| OnceLock::new()).collect();
        let mut writes = Vec::with_capacity(ops.len());
        let mut position = 0;
        for Numbered { seqno, op } in ops {
            match op {
                HostOp::Unmap { volume, lba, count, done } => {
                    return Some(Planned::Unmap(Reduced::Unmap { seqno, volume, lba, count, done }));
                }
                HostOp::Write { volume, lba, data, blocks, room } => {
                    let mut plan = |block: HostBlock| {
                        let twin = || Twin { batch: identities.clone(), index: position };
                        let plan = self.plan_block(&block, found.next(), twin, pending);
                        if matches!(plan, Plan::Unique(..)) {
                            keys.push((self.dedupe_key(block.fingerprint), position));
                        }
                        position += 1;
                        (block, plan)
                    };
                    let blocks = blocks.into_iter().map(&mut plan).collect();
                    writes.push(ReducedWrite { seqno, volume, lba, data, blocks, room });
                }
            }
        }
        Some(Planned::Writes(writes, identities))
    }

    fn plan_block(
        &self,
        block: &HostBlock,
        found: Option<Lookup>,
        twin: impl FnOnce() -> Twin,
        pending: &mut PendingBlocks,
    ) -> Plan {
        if block.is_zero() {
            return Plan::Zero;
        }
        let key = self.dedupe_key(block.fingerprint);
        if let Some((data, twin)) = pending.get(&key)
            && (*data == block.data || planted::active(Bug::NoVerify))
        {
            return Plan::Pending(twin.clone());
        }
        match found {
            Some(Lookup::Recent(candidate)) => Plan::Stored(candidate, 0),
            _ => {
                pending.insert(key, (block.data.clone(), twin()));
                Plan::Unique(0, 0)
            }
        }
    }

    fn dedupe_key(&self, fingerprint: u128) -> u128 {
        match self.config.fingerprint_bits {
            Some(bits) => fingerprint & ((1 << bits) - 1),
            None => fingerprint,
        }
    }

    /// Looks up every block. Loads the fingerprint lists that hooks among them point to first, and begins to load those that a stream
    /// will want next.
    async fn look_up(self: &Arc<Self>, ops: &[Numbered]) -> Vec<Lookup> {
        let blocks = || {
            ops.iter().flat_map(|n| match &n.op {
                HostOp::Write { blocks, .. } => &blocks[..],
                HostOp::Unmap { .. } => &[],
            })
        };
        let look = || {
            let (mut wanted, mut ahead) = (BTreeSet::new(), Vec::new());
            let mut index = self.index.lock();
            blocks().filter(|b| !b.is_zero()).for_each(|b| index.prefetch(b.fingerprint));
            let mut look_up = |block: &HostBlock| {
                if block.is_zero() {
                    return Lookup::Miss;
                }
                let found = index.lookup(block.fingerprint);
                if let Lookup::Hook(list) = found {
                    wanted.insert(list);
                }
                if found != Lookup::Miss {
                    index.read_ahead(block.fingerprint, &mut ahead);
                }
                found
            };
            let found: Vec<Lookup> = blocks().map(&mut look_up).collect();
            drop(index);
            // At once: what is wanted may be among them.
            for list in ahead {
                let engine = self.clone();
                self.spawn(async move {
                    let _pass = engine.gate.enter();
                    engine.load_list(list).await;
                });
            }
            (found, wanted)
        };
        let (found, wanted) = look();
        if wanted.is_empty() {
            return found;
        }
        join_all(wanted.into_iter().map(|list| self.await_list(list))).await;
        look().0
    }

    /// Loads a list, or waits for whoever does already.
    async fn await_list(&self, list: ListId) {
        let mut waited = false;
        loop {
            let loaded = self.list_loaded.notified();
            if !self.index.lock().is_loading(list) || self.is_dead() {
                break;
            }
            waited = true;
            loaded.await;
        }
        if !waited {
            self.load_list(list).await;
        }
    }

    /// Reads the fingerprint list a hook points to.
    async fn load_list(&self, list: ListId) {
        let mut entries = Vec::new();
        if let Some(part) = self.read_part(list.segment(), list.part()).await {
            for item in part.items {
                if let Content::Data(blocks) = item.content {
                    entries.extend(blocks.into_iter().filter(|(v, _)| !v.is_none()).map(|(v, fp)| (fp, v)));
                }
            }
        }
        self.index.lock().cache_list(list, entries);
        self.list_loaded.notify_waiters();
    }

    /// Compares candidates byte by byte, then compresses what is unique.
    async fn reduce(self: &Arc<Self>, mut writes: Vec<ReducedWrite>, identities: Identities, pass: Pass) -> Reduced {
        self.preload(&writes).await;
        self.verify(&mut writes).await;
        let mut unique: Vec<(usize, usize)> = Vec::new();
        for (w, write) in writes.iter().enumerate() {
            for (b, (_, plan)) in write.blocks.iter().enumerate() {
                if matches!(plan, Plan::Unique(..)) {
                    unique.push((w, b));
                }
            }
        }
        let per_frame = self.config.frame_blocks.clamp(1, FRAME_BLOCKS);
        let mut groups: Vec<Group> = Vec::with_capacity(unique.len() / per_frame + 1);
        for (n, group) in unique.chunks(per_frame).enumerate() {
            for (i, &(w, b)) in group.iter().enumerate() {
                writes[w].blocks[b].1 = Plan::Unique(n as u32, i as u8);
            }
            let (w, first) = group[0];
            let keep = group.iter().any(|&(w, _)| writes[w].blocks.len() < STREAM_BLOCKS);
            let consecutive = group.iter().enumerate().all(|(i, &at)| at == (w, first + i));
            groups.push(if consecutive {
                Group::slice(writes[w].data.slice(first * BLOCK_SIZE..(first + group.len()) * BLOCK_SIZE), keep)
            } else {
                Group::blocks(group.iter().map(|&(w, b)| writes[w].blocks[b].0.data.clone()).collect(), keep)
            });
        }
        let compression = self.config.compression;
        let expected = groups.len();
        let frames: Vec<ReducedFrame> = if unique.len() <= INLINE_BLOCKS {
            compress(&groups, compression, Effort::Usual)
        } else {
            let mut jobs = Vec::new();
            while !groups.is_empty() {
                let rest = groups.split_off(groups.len().min(FRAMES_PER_JOB));
                let job = std::mem::replace(&mut groups, rest);
                jobs.push(compute(&self.env, move || compress(&job, compression, Effort::Usual)));
            }
            join_all(jobs).await.into_iter().flatten().flatten().collect()
        };
        // What was compared and read may be moved from now on; commits look again before they share it.
        drop(pass);
        if frames.len() != expected {
            self.fail(Error::io("compressing a batch did not end well"));
        }
        Reduced::Writes { writes, frames, identities }
    }

    /// Makes the metadata resident that committing the writes will change, all of it at the same time: the commit, which goes one by one,
    /// should find it there. What cannot be read is left for the commit to report.
    async fn preload(&self, writes: &[ReducedWrite]) {
        // Each round gets one level deeper: directory and table page of a map page, the page, and so on to the entries.
        for _ in 0..3 * LEVELS_MAX {
            let missing: BTreeSet<Miss> = {
                let state = self.state.read();
                let blocks = |w: &ReducedWrite| w.blocks.len();
                writes.iter().flat_map(|w| state.missing(w.volume, w.lba, blocks(w))).collect()
            };
            if missing.is_empty() {
                return;
            }
            if join_all(missing.into_iter().map(|miss| self.load(miss))).await.iter().any(Result::is_err) {
                return;
            }
        }
    }

    /// Turns candidates that are not equal after all into unique blocks.
    async fn verify(&self, writes: &mut [ReducedWrite]) {
        if planted::active(Bug::NoVerify) {
            return;
        }
        let mut wanted: Vec<(VirtualBlock, HostBlock)> = Vec::new();
        for (block, plan) in writes.iter().flat_map(|w| &w.blocks) {
            if let Plan::Stored(candidate, _) = plan {
                wanted.push((*candidate, block.clone()));
            }
        }
        if wanted.is_empty() {
            return;
        }
        let (mut hits, mut misses) = (0, 0);
        let mut stamps = self.compare(wanted).await.into_iter();
        for (_, plan) in writes.iter_mut().flat_map(|w| &mut w.blocks) {
            if let Plan::Stored(_, stamp) = plan {
                match stamps.next().flatten() {
                    Some(equal) => {
                        *stamp = equal;
                        hits += 1;
                    }
                    None => {
                        *plan = Plan::Unique(0, 0);
                        misses += 1;
                    }
                }
            }
        }
        self.counters.dedupe_hits.fetch_add(hits, Ordering::Relaxed);
        self.counters.dedupe_misses.fetch_add(misses, Ordering::Relaxed);
    }
}

enum Planned {
    Writes(Vec<ReducedWrite>, Identities),
    Unmap(Reduced),
}
