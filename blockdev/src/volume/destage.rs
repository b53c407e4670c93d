//! From host writes to reduced batches: finds duplicates and compresses what is unique.
//!
//! Batches are formed and looked up in order; verification and compression of several batches run at the same time; commits
//! are in order again.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use rustc_hash::FxBuildHasher;
use tokio::sync::{mpsc, oneshot};

use super::Engine;
use super::gate::Pass;
use super::intake::{HostBlock, HostOp, Numbered};
use crate::codec::{Codec, Compressor};
use crate::dedupe::{ListId, Lookup};
use crate::env::compute;
use crate::error::Error;
use crate::format::part::Content;
use crate::planted::{self, Bug};
use crate::units::{BLOCK_SIZE, Lba, Seqno, VirtualBlock, VolumeId};

/// Batches between destaging and committing.
pub const BATCHES_IN_FLIGHT: usize = 4;
/// A batch is cut at this many blocks.
const BATCH_BLOCKS: usize = 256;
/// Frames compressed in one piece of processor work.
const FRAMES_PER_JOB: usize = 8;
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

/// Tells later batches which block a unique block became.
pub type Twin = Arc<OnceLock<(VirtualBlock, Stamp)>>;

/// A compressed frame.
pub struct ReducedFrame {
    /// Stored bytes.
    pub stored: Vec<u8>,
    /// Uncompressed bytes.
    pub raw: Bytes,
    /// How it is compressed.
    pub codec: Codec,
    /// Blocks in it.
    pub blocks: u8,
}

/// A write whose blocks have plans.
pub struct ReducedWrite {
    /// Place in the order.
    pub seqno: Seqno,
    /// Volume.
    pub volume: VolumeId,
    /// First block.
    pub lba: Lba,
    /// Content and plan of each block, and the cell that tells later batches its identity.
    pub blocks: Vec<(HostBlock, Plan, Twin)>,
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

impl Engine {
    /// The task that forms batches.
    pub(super) async fn destage(self: Arc<Self>, batches: mpsc::Sender<oneshot::Receiver<Reduced>>) {
        let mut pending = PendingBlocks::default();
        loop {
            if !self.wait_for_batch().await {
                return;
            }
            let ops = self.intake.take(self.space().batch_blocks(BATCH_BLOCKS));
            // What earlier batches wrote is in the index once they are committed.
            pending.retain(|_, (_, cell)| cell.get().is_none());
            let (send, receive) = oneshot::channel();
            if batches.send(receive).await.is_err() {
                return;
            }
            // Only now: batches in front may wait for space, and the checkpoint that makes space waits for all passes.
            let pass = self.gate.enter();
            match self.plan(ops, &mut pending).await {
                Some(Planned::Unmap(op)) => {
                    let _ = send.send(op);
                }
                Some(Planned::Writes(writes)) => {
                    let engine = self.clone();
                    let reduce = async move {
                        let reduced = engine.reduce(writes, pass).await;
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
            let (ops, blocks, urgent) = self.intake.waiting();
            if ops > 0 && (urgent || lingered || blocks >= BATCH_BLOCKS) {
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
                        let (_, blocks, urgent) = self.intake.waiting();
                        if urgent || blocks >= BATCH_BLOCKS || self.is_dead() {
                            break;
                        }
                    }
                    futures::future::Either::Right(_) => lingered = true,
                }
            }
        }
    }

    /// Looks every block up, in order.
    async fn plan(&self, ops: Vec<Numbered>, pending: &mut PendingBlocks) -> Option<Planned> {
        self.load_lists(&ops).await;
        let mut writes = Vec::with_capacity(ops.len());
        for Numbered { seqno, op } in ops {
            match op {
                HostOp::Unmap { volume, lba, count, done } => {
                    return Some(Planned::Unmap(Reduced::Unmap { seqno, volume, lba, count, done }));
                }
                HostOp::Write { volume, lba, blocks, room } => {
                    let mut out = Vec::with_capacity(blocks.len());
                    for block in blocks {
                        let cell = Arc::new(OnceLock::new());
                        let plan = self.plan_block(&block, &cell, pending).await;
                        out.push((block, plan, cell));
                    }
                    writes.push(ReducedWrite { seqno, volume, lba, blocks: out, room });
                }
            }
        }
        Some(Planned::Writes(writes))
    }

    async fn plan_block(&self, block: &HostBlock, cell: &Twin, pending: &mut PendingBlocks) -> Plan {
        if block.is_zero() {
            return Plan::Zero;
        }
        let key = self.dedupe_key(block.fingerprint);
        if let Some((data, twin)) = pending.get(&key)
            && (*data == block.data || planted::active(Bug::NoVerify))
        {
            return Plan::Pending(twin.clone());
        }
        let found = self.index.lock().lookup(block.fingerprint);
        match found {
            Lookup::Recent(candidate) => Plan::Stored(candidate, 0),
            _ => {
                pending.insert(key, (block.data.clone(), cell.clone()));
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

    /// Loads the fingerprint lists that hooks among the blocks point to, and those that a stream would want next.
    async fn load_lists(&self, ops: &[Numbered]) {
        let blocks = ops.iter().flat_map(|n| match &n.op {
            HostOp::Write { blocks, .. } => &blocks[..],
            HostOp::Unmap { .. } => &[],
        });
        let wanted: BTreeSet<ListId> = {
            let mut index = self.index.lock();
            let mut wanted = BTreeSet::new();
            for block in blocks.filter(|b| !b.is_zero()) {
                match index.lookup(block.fingerprint) {
                    Lookup::Miss => continue,
                    Lookup::Hook(list) => {
                        wanted.insert(list);
                    }
                    Lookup::Recent(_) => {}
                }
                wanted.extend(index.list_after(block.fingerprint));
            }
            wanted
        };
        join_all(wanted.into_iter().map(|list| self.load_list(list))).await;
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
    }

    /// Compares candidates byte by byte, then compresses what is unique.
    async fn reduce(self: &Arc<Self>, mut writes: Vec<ReducedWrite>, pass: Pass) -> Reduced {
        self.verify(&mut writes).await;
        let mut unique: Vec<(usize, usize)> = Vec::new();
        for (w, write) in writes.iter().enumerate() {
            for (b, (_, plan, _)) in write.blocks.iter().enumerate() {
                if matches!(plan, Plan::Unique(..)) {
                    unique.push((w, b));
                }
            }
        }
        let per_frame = self.config.frame_blocks.clamp(1, 4);
        let mut groups: Vec<Vec<Bytes>> = Vec::new();
        for (n, group) in unique.chunks(per_frame).enumerate() {
            let mut blocks = Vec::with_capacity(group.len());
            for (i, &(w, b)) in group.iter().enumerate() {
                let (block, plan, _) = &mut writes[w].blocks[b];
                *plan = Plan::Unique(n as u32, i as u8);
                blocks.push(block.data.clone());
            }
            groups.push(blocks);
        }
        let compression = self.config.compression;
        let expected = groups.len();
        let frames: Vec<ReducedFrame> = if unique.len() <= INLINE_BLOCKS {
            compress(groups, compression)
        } else {
            let mut jobs = Vec::new();
            while !groups.is_empty() {
                let rest = groups.split_off(groups.len().min(FRAMES_PER_JOB));
                let job = std::mem::replace(&mut groups, rest);
                jobs.push(compute(&self.env, move || compress(job, compression)));
            }
            join_all(jobs).await.into_iter().flatten().flatten().collect()
        };
        // What was compared and read may be moved from now on; commits look again before they share it.
        drop(pass);
        if frames.len() != expected {
            self.fail(Error::io("compressing a batch did not end well"));
        }
        Reduced::Writes { writes, frames }
    }

    /// Turns candidates that are not equal after all into unique blocks.
    async fn verify(&self, writes: &mut [ReducedWrite]) {
        if planted::active(Bug::NoVerify) {
            return;
        }
        let mut wanted: Vec<(usize, usize, VirtualBlock)> = Vec::new();
        for (w, write) in writes.iter().enumerate() {
            for (b, (_, plan, _)) in write.blocks.iter().enumerate() {
                if let Plan::Stored(candidate, _) = plan {
                    wanted.push((w, b, *candidate));
                }
            }
        }
        if wanted.is_empty() {
            return;
        }
        let blocks: Vec<VirtualBlock> = wanted.iter().map(|(_, _, v)| *v).collect();
        let sums: Vec<u64> = wanted.iter().map(|&(w, b, _)| writes[w].blocks[b].0.fingerprint as u64).collect();
        let stored = self.read_blocks_matching(&blocks, &sums).await;
        for ((w, b, _), stored) in wanted.into_iter().zip(stored) {
            let (block, plan, _) = &mut writes[w].blocks[b];
            match (stored, &mut *plan) {
                (Some((data, stamp)), Plan::Stored(_, known)) if data == block.data => {
                    *known = stamp;
                    self.counters.dedupe_hits.fetch_add(1, Ordering::Relaxed);
                }
                _ => {
                    self.counters.dedupe_misses.fetch_add(1, Ordering::Relaxed);
                    *plan = Plan::Unique(0, 0);
                }
            }
        }
    }
}

enum Planned {
    Writes(Vec<ReducedWrite>),
    Unmap(Reduced),
}

thread_local! {
    static COMPRESSOR: std::cell::RefCell<Compressor> = std::cell::RefCell::new(Compressor::new());
}

/// Compresses groups of blocks into frames.
pub fn compress(groups: Vec<Vec<Bytes>>, compression: crate::report::Compression) -> Vec<ReducedFrame> {
    COMPRESSOR.with_borrow_mut(|compressor| {
        let pack = |blocks: Vec<Bytes>| {
            let raw = match &blocks[..] {
                // A copy: the frame cache must not keep the host's whole buffer for one block of it.
                [one] => Bytes::copy_from_slice(one),
                _ => {
                    let mut raw = BytesMut::with_capacity(blocks.len() * BLOCK_SIZE);
                    blocks.iter().for_each(|b| raw.extend_from_slice(b));
                    raw.freeze()
                }
            };
            let mut stored = Vec::with_capacity(raw.len());
            let codec = compressor.compress(compression, &raw, &mut stored);
            ReducedFrame { stored, raw, codec, blocks: blocks.len() as u8 }
        };
        groups.into_iter().map(pack).collect()
    })
}
