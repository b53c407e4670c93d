//! Where host operations arrive: they get their place in the order, become visible to reads, and wait to be committed.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BLOCK_SIZE, Lba, Seqno, VolumeId};

/// One block of a host write.
#[derive(Clone, Debug)]
pub struct HostBlock {
    /// Content; empty for a zero block.
    pub data: Bytes,
    /// XXH3-128 of the content; 0 for a zero block.
    pub fingerprint: u128,
}

impl HostBlock {
    /// Looks at a block's content.
    pub fn of(data: Bytes) -> Self {
        debug_assert_eq!(data.len(), BLOCK_SIZE);
        if codec::is_zero(&data) {
            return Self { data: Bytes::new(), fingerprint: 0 };
        }
        let fingerprint = codec::fingerprint(&data);
        Self { data, fingerprint }
    }

    /// Whether the block is all zeroes.
    pub fn is_zero(&self) -> bool {
        self.data.is_empty()
    }
}

/// What a host asks for.
pub enum HostOp {
    /// Blocks at consecutive LBAs.
    Write {
        /// Volume.
        volume: VolumeId,
        /// First block.
        lba: Lba,
        /// Content.
        blocks: Vec<HostBlock>,
        /// Room in the write buffer.
        room: OwnedSemaphorePermit,
    },
    /// A range given back. Answered once it is committed.
    Unmap {
        /// Volume.
        volume: VolumeId,
        /// First block.
        lba: Lba,
        /// Blocks.
        count: u64,
        /// The answer.
        done: oneshot::Sender<Result<()>>,
    },
}

/// An operation in its place.
pub struct Numbered {
    /// Its place.
    pub seqno: Seqno,
    /// What.
    pub op: HostOp,
}

#[derive(Default)]
struct Queue {
    ops: VecDeque<Numbered>,
    blocks: usize,
    /// Newest number given.
    last: u64,
    /// Operations up to this one are waited for: no lingering.
    urgent: u64,
    /// Newest number taken out.
    taken: u64,
    /// The pool stops: nothing is taken in any more.
    closed: bool,
}

type Key = (VolumeId, u64);
const SHARDS: usize = 16;

/// Operations that are acknowledged but not committed.
pub struct Intake {
    queue: Mutex<Queue>,
    wake: Notify,
    overlay: [Mutex<FxHashMap<Key, (Seqno, Bytes)>>; SHARDS],
    room: Arc<Semaphore>,
    room_blocks: u32,
}

impl Intake {
    /// An intake that holds at most `bytes` of writes and goes on numbering after `last`.
    pub fn new(bytes: u64, last: Seqno) -> Self {
        let room_blocks = (bytes / BLOCK_SIZE as u64).clamp(64, 1 << 20) as u32;
        Self {
            queue: Mutex::new(Queue { last: last.0, taken: last.0, ..Queue::default() }),
            wake: Notify::new(),
            overlay: Default::default(),
            room: Arc::new(Semaphore::new(room_blocks as usize)),
            room_blocks,
        }
    }

    /// Numbering goes on after `last`; only before the first operation.
    pub fn resume(&self, last: u64) {
        let mut queue = self.queue.lock();
        queue.last = last;
        queue.taken = last;
    }

    /// Most blocks one write may have.
    pub fn write_blocks_max(&self) -> usize {
        (self.room_blocks / 2) as usize
    }

    fn shard(&self, key: &Key) -> &Mutex<FxHashMap<Key, (Seqno, Bytes)>> {
        &self.overlay[(key.1 as usize >> 3).wrapping_add(key.0.0 as usize) % SHARDS]
    }

    /// Waits for room for `blocks` in the write buffer.
    pub async fn reserve(&self, blocks: usize) -> Result<OwnedSemaphorePermit> {
        let closed = |_| Error::new(ErrorKind::Unavailable, "the pool is stopped");
        self.room.clone().acquire_many_owned(blocks as u32).await.map_err(closed)
    }

    /// Takes a write in: from now on reads see it.
    pub fn write(&self, volume: VolumeId, lba: Lba, blocks: Vec<HostBlock>, room: OwnedSemaphorePermit) -> Seqno {
        let mut queue = self.queue.lock();
        queue.last += 1;
        let seqno = Seqno(queue.last);
        for (i, block) in blocks.iter().enumerate() {
            let key = (volume, lba.0 + i as u64);
            self.shard(&key).lock().insert(key, (seqno, block.data.clone()));
        }
        queue.blocks += blocks.len();
        queue.ops.push_back(Numbered { seqno, op: HostOp::Write { volume, lba, blocks, room } });
        drop(queue);
        self.wake.notify_one();
        seqno
    }

    /// Takes a discard in; it is visible once its answer comes.
    pub fn unmap(&self, volume: VolumeId, lba: Lba, count: u64) -> oneshot::Receiver<Result<()>> {
        let (done, answer) = oneshot::channel();
        let mut queue = self.queue.lock();
        if queue.closed {
            return answer;
        }
        queue.last += 1;
        let seqno = Seqno(queue.last);
        queue.urgent = queue.last;
        queue.ops.push_back(Numbered { seqno, op: HostOp::Unmap { volume, lba, count, done } });
        drop(queue);
        self.wake.notify_one();
        answer
    }

    /// Newest operation taken in; it and all before it are hurried on.
    pub fn hurry(&self) -> Seqno {
        let mut queue = self.queue.lock();
        queue.urgent = queue.last;
        let last = queue.last;
        drop(queue);
        self.wake.notify_one();
        Seqno(last)
    }

    /// What is waiting: blocks, and whether somebody waits for it.
    pub fn waiting(&self) -> (usize, usize, bool) {
        let queue = self.queue.lock();
        (queue.ops.len(), queue.blocks, queue.urgent > queue.taken)
    }

    /// Completes when something may have arrived.
    pub async fn arrival(&self) {
        self.wake.notified().await;
    }

    /// Takes operations out, in order: whole ones, until they have `blocks` blocks or more. An unmap comes alone.
    pub fn take(&self, blocks: usize) -> Vec<Numbered> {
        let mut queue = self.queue.lock();
        let (mut out, mut taken) = (Vec::new(), 0);
        while taken < blocks {
            match queue.ops.front() {
                Some(Numbered { op: HostOp::Unmap { .. }, .. }) if !out.is_empty() => break,
                Some(_) => {}
                None => break,
            }
            let Some(op) = queue.ops.pop_front() else { break };
            queue.taken = op.seqno.0;
            let alone = match &op.op {
                HostOp::Write { blocks, .. } => {
                    taken += blocks.len();
                    queue.blocks -= blocks.len();
                    false
                }
                HostOp::Unmap { .. } => true,
            };
            out.push(op);
            if alone {
                break;
            }
        }
        out
    }

    /// The newest uncommitted content of a block; empty for zeroes.
    pub fn lookup(&self, volume: VolumeId, lba: u64) -> Option<Bytes> {
        let key = (volume, lba);
        self.shard(&key).lock().get(&key).map(|(_, data)| data.clone())
    }

    /// A write was committed: what the overlay holds of it is no longer needed.
    pub fn committed(&self, volume: VolumeId, lba: Lba, blocks: usize, seqno: Seqno) {
        for i in 0..blocks as u64 {
            let key = (volume, lba.0 + i);
            let mut shard = self.shard(&key).lock();
            if shard.get(&key).is_some_and(|(s, _)| *s == seqno) {
                shard.remove(&key);
            }
        }
    }

    /// Wakes everybody who waits, because the pool stops.
    pub fn interrupt(&self) {
        self.room.close();
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.ops.clear();
        drop(queue);
        self.wake.notify_one();
    }

    /// Bytes that wait to be committed.
    pub fn memory(&self) -> usize {
        (self.room_blocks as usize).saturating_sub(self.room.available_permits()) * BLOCK_SIZE
    }
}
