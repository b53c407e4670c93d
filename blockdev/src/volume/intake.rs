//! Where host operations arrive: they get their place in the order, become visible to reads, and wait to be committed.

use std::collections::VecDeque;
use std::ops::Range;
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
        data: Bytes,
        /// Content, block by block.
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

/// A batch of operations is cut at this many blocks.
pub const BATCH_BLOCKS: usize = 256;

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

/// Newest content by volume and group of LBAs.
type Shard = Mutex<FxHashMap<(VolumeId, u64), Box<Group>>>;
const SHARDS: usize = 16;
/// Consecutive LBAs in one group: what is written together is entered together.
const GROUP: usize = 16;

/// The newest content of one LBA.
#[derive(Clone, Default)]
struct Slot {
    /// Of the write; 0 when there is none.
    seqno: Seqno,
    data: Bytes,
}

impl Slot {
    fn content(&self) -> Option<Bytes> {
        (self.seqno.0 != 0).then(|| self.data.clone())
    }
}

/// The newest content of consecutive LBAs.
#[derive(Default)]
struct Group {
    slots: [Slot; GROUP],
    /// Slots that have content.
    used: usize,
}

impl Group {
    fn put(&mut self, slot: usize, seqno: Seqno, data: Bytes) {
        let slot = &mut self.slots[slot];
        self.used += usize::from(slot.seqno.0 == 0);
        *slot = Slot { seqno, data };
    }

    /// Forgets the content if it is still that of write `seqno`.
    fn clear(&mut self, slot: usize, seqno: Seqno) {
        let slot = &mut self.slots[slot];
        if slot.seqno == seqno {
            *slot = Slot::default();
            self.used -= 1;
        }
    }
}

/// Those of some LBAs that lie in one group.
struct Piece {
    group: u64,
    /// Slot of the first.
    slot: usize,
    /// Which of the LBAs.
    range: Range<usize>,
}

/// Splits `count` LBAs from `lba` on into groups.
fn pieces(lba: u64, count: usize) -> impl Iterator<Item = Piece> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = lba + from as u64;
        let slot = at as usize % GROUP;
        let len = (GROUP - slot).min(count - from);
        let range = from..from + len;
        from += len;
        (len > 0).then_some(Piece { group: at / GROUP as u64, slot, range })
    })
}

/// Operations that are acknowledged but not committed.
pub struct Intake {
    queue: Mutex<Queue>,
    wake: Notify,
    overlay: [Shard; SHARDS],
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

    /// Blocks that are worth a batch: half of the room at most, as writers that find none must not wait for company.
    fn worth_a_batch(&self) -> usize {
        BATCH_BLOCKS.min(self.write_blocks_max())
    }

    /// Most blocks one write may have.
    pub fn write_blocks_max(&self) -> usize {
        (self.room_blocks / 2) as usize
    }

    fn shard(&self, volume: VolumeId, group: u64) -> &Shard {
        &self.overlay[(group as usize).wrapping_add(volume.0 as usize) % SHARDS]
    }

    /// Waits for room for `blocks` in the write buffer.
    pub async fn reserve(&self, blocks: usize) -> Result<OwnedSemaphorePermit> {
        let closed = |_| Error::new(ErrorKind::Unavailable, "the pool is stopped");
        self.room.clone().acquire_many_owned(blocks as u32).await.map_err(closed)
    }

    /// Takes a write in: from now on reads see it.
    pub fn write(
        &self,
        volume: VolumeId,
        lba: Lba,
        data: Bytes,
        blocks: Vec<HostBlock>,
        room: OwnedSemaphorePermit,
    ) -> Seqno {
        let mut queue = self.queue.lock();
        queue.last += 1;
        let seqno = Seqno(queue.last);
        for piece in pieces(lba.0, blocks.len()) {
            let mut shard = self.shard(volume, piece.group).lock();
            let group = shard.entry((volume, piece.group)).or_default();
            for (slot, i) in (piece.slot..).zip(piece.range) {
                group.put(slot, seqno, blocks[i].data.clone());
            }
        }
        let (before, enough) = (queue.blocks, self.worth_a_batch());
        queue.blocks += blocks.len();
        // In between nobody waits for it, and waking costs more than the write.
        let tell = queue.ops.is_empty() || before < enough && queue.blocks >= enough;
        queue.ops.push_back(Numbered { seqno, op: HostOp::Write { volume, lba, data, blocks, room } });
        drop(queue);
        if tell {
            self.wake.notify_one();
        }
        seqno
    }

    /// Takes a discard in: its place, and the answer with which it is visible.
    pub fn unmap(&self, volume: VolumeId, lba: Lba, count: u64) -> (Seqno, oneshot::Receiver<Result<()>>) {
        let (done, answer) = oneshot::channel();
        let mut queue = self.queue.lock();
        if queue.closed {
            return (Seqno(0), answer);
        }
        queue.last += 1;
        let seqno = Seqno(queue.last);
        queue.urgent = queue.last;
        queue.ops.push_back(Numbered { seqno, op: HostOp::Unmap { volume, lba, count, done } });
        drop(queue);
        self.wake.notify_one();
        (seqno, answer)
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

    /// Operations that wait to be taken, and whether they should wait no longer: somebody wants them done, or they are worth a batch.
    pub fn waiting(&self) -> (usize, bool) {
        let queue = self.queue.lock();
        (queue.ops.len(), queue.urgent > queue.taken || queue.blocks >= self.worth_a_batch())
    }

    /// Completes when the first operation has arrived, or those that wait should do so no longer.
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

    /// Appends the newest uncommitted content of blocks to `out`: None where there is none, empty for zeroes.
    pub fn lookup(&self, volume: VolumeId, lba: Lba, count: usize, out: &mut Vec<Option<Bytes>>) {
        for piece in pieces(lba.0, count) {
            let shard = self.shard(volume, piece.group).lock();
            match shard.get(&(volume, piece.group)) {
                Some(group) => out.extend(group.slots[piece.slot..][..piece.range.len()].iter().map(Slot::content)),
                None => out.resize(out.len() + piece.range.len(), None),
            }
        }
    }

    /// A write was committed: what the overlay holds of it is no longer needed.
    pub fn committed(&self, volume: VolumeId, lba: Lba, blocks: usize, seqno: Seqno) {
        for piece in pieces(lba.0, blocks) {
            let mut shard = self.shard(volume, piece.group).lock();
            let Some(group) = shard.get_mut(&(volume, piece.group)) else { continue };
            for slot in piece.slot..piece.slot + piece.range.len() {
                group.clear(slot, seqno);
            }
            if group.used == 0 {
                shard.remove(&(volume, piece.group));
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

    /// Most bytes that can wait to be committed.
    pub fn most_memory(&self) -> u64 {
        u64::from(self.room_blocks) * BLOCK_SIZE as u64
    }

    /// Bytes that wait to be committed.
    pub fn memory(&self) -> usize {
        (self.room_blocks as usize).saturating_sub(self.room.available_permits()) * BLOCK_SIZE
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn blocks(value: u8, count: usize) -> (Bytes, Vec<HostBlock>) {
        let data = Bytes::from(vec![value; count * BLOCK_SIZE]);
        let block = |i| HostBlock::of(data.slice(i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE));
        (data.clone(), (0..count).map(block).collect())
    }

    #[tokio::test]
    async fn the_overlay_shows_the_newest_content_until_that_is_committed() {
        let (intake, volume) = (Intake::new(1 << 20, Seqno(0)), VolumeId(3));
        let write = async |lba: u64, value: u8, count: usize| {
            let (data, blocks) = blocks(value, count);
            let room = intake.reserve(count).await.unwrap();
            intake.write(volume, Lba(lba), data, blocks, room)
        };
        // First byte of each block; 255 where there is nothing.
        let seen = |lba: u64, count: usize| -> Vec<u8> {
            let mut out = Vec::new();
            intake.lookup(volume, Lba(lba), count, &mut out);
            out.iter().map(|b| b.as_ref().map_or(255, |b| b.first().copied().unwrap_or(0))).collect()
        };
        let first = write(10, 1, 40).await;
        let second = write(15, 0, 3).await;
        assert_eq!(seen(14, 5), [1, 0, 0, 0, 1]);
        assert_eq!((seen(9, 2), seen(49, 2)), (vec![255, 1], vec![1, 255]));
        intake.committed(volume, Lba(10), 40, first);
        assert_eq!(seen(10, 40), [[255; 5].as_slice(), &[0; 3], &[255; 32]].concat());
        let third = write(16, 2, 1).await;
        intake.committed(volume, Lba(15), 3, second);
        assert_eq!(seen(15, 3), [255, 2, 255]);
        intake.committed(volume, Lba(16), 1, third);
        assert!(intake.overlay.iter().all(|shard| shard.lock().is_empty()));
    }

    #[tokio::test]
    async fn who_takes_operations_is_woken_when_it_helps() {
        // Room for 256 blocks, of which 128 are worth a batch.
        let (intake, volume) = (Intake::new(1 << 20, Seqno(0)), VolumeId(1));
        let write = async |count: usize| {
            let (data, blocks) = blocks(1, count);
            let room = intake.reserve(count).await.unwrap();
            intake.write(volume, Lba(0), data, blocks, room);
            (intake.arrival().now_or_never().is_some(), intake.waiting().1)
        };
        assert_eq!(write(1).await, (true, false), "the first");
        assert_eq!(write(100).await, (false, false));
        assert_eq!(write(27).await, (true, true), "enough: writers without room wait for these");
        assert_eq!(write(1).await, (false, true));
        assert_eq!(intake.take(usize::MAX).len(), 4);
        assert_eq!(write(2).await, (true, false), "the first again");
        intake.hurry();
        assert_eq!((intake.arrival().now_or_never().is_some(), intake.waiting().1), (true, true), "somebody waits");
    }

    #[test]
    fn pieces_cover_all_blocks_once() {
        for (lba, count) in [(0, 0), (0, 16), (15, 1), (15, 2), (3, 100), (u64::from(u32::MAX) * 16 - 1, 17)] {
            let covered: Vec<u64> = pieces(lba, count)
                .flat_map(|p| {
                    p.range.clone().zip(p.slot..).map(move |(i, slot)| (i, p.group * GROUP as u64 + slot as u64))
                })
                .map(|(i, at)| {
                    assert_eq!(at, lba + i as u64);
                    at
                })
                .collect();
            assert_eq!(covered, (lba..lba + count as u64).collect::<Vec<_>>());
        }
    }
}
