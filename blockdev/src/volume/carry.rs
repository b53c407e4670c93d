//! Writes that outlive the process: entering them into the ring, and those that an earlier process left into the pool.
//!
//! `docs/design/0012-writes-that-outlive-the-daemon.md` has the invariants.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::damage::is_unreadable;
use super::intake::HostBlock;
use super::{Durable, Engine, PoolConfig};
use crate::carry::{Found, Kind, Place, Record, Ring};
use crate::error::{Context, Result};
use crate::planted::{self, Bug};
use crate::units::{BLOCK_SIZE, Epoch, Seqno, Uuid};

/// Pause while the oldest record is being filled.
const PAUSE: Duration = Duration::from_micros(200);

/// What an earlier process left of a pool.
pub(super) struct Left {
    ring: Ring,
    records: Vec<Record>,
}

impl Left {
    /// All disks tell of the writer of this epoch.
    pub(super) fn settle(&self, epoch: Epoch) {
        self.ring.settle(epoch);
    }
}

/// Finds what an earlier process left, if its pool was opened last by the writer of epoch `newest`, and notes that the writer of epoch `next` goes
/// on with it.
pub(super) fn find(config: &PoolConfig, pool: Uuid, newest: Epoch, next: Epoch) -> Result<Option<Left>> {
    let Some(store) = &config.carry else { return Ok(None) };
    let Some(region) = store.find(pool)? else { return Ok(None) };
    let place = store.describe(pool);
    let opened = Ring::open(region, pool, newest)
        .context(format_args!("{place}, which holds writes that hosts were told are done (remove it to give them up)"));
    match opened? {
        Found::Left(ring, records) => {
            ring.claim(next);
            Ok(Some(Left { ring, records }))
        }
        Found::Old => {
            tracing::warn!(
                memory = store.describe(pool),
                "memory that an earlier daemon left is of a time before others opened the pool: it is dropped"
            );
            store.remove(pool);
            Ok(None)
        }
    }
}

impl Engine {
    /// The ring for writes that are to outlive the process, made when it is first asked for; none when there is no memory for it. Blocks briefly.
    pub(super) fn ring(&self) -> Option<Arc<Ring>> {
        let store = self.config.carry.as_ref()?;
        if self.config.read_only {
            return None;
        }
        let mut ring = self.carry.lock();
        if ring.is_none() && !self.is_dead() {
            let largest = self.write_piece_max() * BLOCK_SIZE;
            let len = Ring::region_len(self.config.carry_bytes(), largest);
            match store.create(self.uuid, len) {
                Ok(region) => {
                    *ring = Some(Arc::new(Ring::create(region, self.uuid, self.epoch, self.env.random_u64())))
                }
                Err(e) => tracing::warn!(
                    pool = self.name,
                    error = %e,
                    bytes = len,
                    "no memory that outlives the daemon: hosts that go on without it wait until each write is durable"
                ),
            }
        }
        ring.clone()
    }

    /// Room in the ring for an operation with so many bytes of data.
    pub(super) async fn place_in<'a>(&self, ring: &'a Ring, payload: usize) -> Result<Place<'a>> {
        loop {
            let early = planted::active(Bug::CarriedLetGoEarly);
            ring.release(if early { u64::MAX } else { self.durable.borrow().seqno });
            if let Some(place) = ring.reserve(payload) {
                if let Some(seqno) = ring.pressing() {
                    self.want_durable(Durable { seqno: seqno.0, record: 0 });
                }
                return Ok(place);
            }
            self.intake.hurry();
            match ring.oldest() {
                Some(seqno) => self.wait_durable(Durable { seqno: seqno.0, record: 0 }).await?,
                None => self.env.sleep(PAUSE).await,
            }
            self.check_alive()?;
        }
    }

    /// The log has all operations up to a number.
    pub(super) fn let_go(&self, durable: u64) {
        if let Some(ring) = &*self.carry.lock() {
            ring.release(durable);
        }
    }

    /// Enters again what an earlier process left and the log lacks, in order. Before anybody is served.
    pub(super) async fn enter_again(&self, left: Option<Left>) -> Result<()> {
        let Some(Left { ring, mut records }) = left else { return Ok(()) };
        let last = Seqno(self.durable.borrow().seqno);
        let sizes = |r: &Record| {
            let state = self.state.read();
            state.volumes.get(&r.operation.volume).filter(|v| !v.deleting).map(|v| v.blocks)
        };
        records.retain(|r| r.seqno > last && sizes(r).is_some_and(|blocks| r.operation.lba.0 < blocks));
        // Places are in another order when several threads take them.
        records.sort_unstable_by_key(|r| r.seqno);
        if !planted::active(Bug::CarriedNumbersKept) {
            ring.renumber(&mut records, last);
        }
        let bytes: usize = records.iter().map(|r| r.data.len()).sum();
        if !records.is_empty() {
            tracing::info!(
                pool = self.name,
                operations = records.len(),
                bytes,
                "writes that hosts were told are done were left by an earlier daemon, and are entered again"
            );
        }
        let mut unmapped = Vec::new();
        for Record { seqno, operation: o, data, .. } in records {
            let size = self.state.read().volumes.get(&o.volume).map_or(0, |v| v.blocks);
            let count = o.blocks.min(size.saturating_sub(o.lba.0));
            let entered = match o.kind {
                Kind::Write => {
                    let data = Bytes::from(data).slice(..count as usize * BLOCK_SIZE);
                    let block = |i: usize| HostBlock::of(data.slice(i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE));
                    let blocks: Vec<HostBlock> = (0..count as usize).map(block).collect();
                    let room = self.intake.reserve(blocks.len().min(self.intake.write_blocks_max())).await?;
                    self.intake.write(o.volume, o.lba, data, blocks, room)
                }
                Kind::Unmap => {
                    let (seqno, answer) = self.intake.unmap(o.volume, o.lba, count);
                    unmapped.push((o.volume, seqno, answer));
                    seqno
                }
            };
            self.check_alive()?;
            debug_assert!(entered == seqno || planted::active(Bug::CarriedNumbersKept), "{entered}, not {seqno}");
        }
        // Reads see writes as soon as they are taken in, but these only when they are committed.
        for (volume, seqno, answer) in unmapped {
            match answer.await {
                Ok(Ok(())) => {}
                // As with a write that was taken: the next flush tells.
                Ok(Err(e)) if is_unreadable(&e) && !self.is_dead() => self.note_dropped(volume, seqno),
                Ok(Err(e)) => return Err(e),
                Err(_) => self.check_alive()?,
            }
        }
        *self.carry.lock() = Some(Arc::new(ring));
        Ok(())
    }

    /// All is durable and nobody writes any more: the memory is given back.
    pub(crate) fn end_carrying(&self) {
        let mut ring = self.carry.lock();
        if let (Some(ring), Some(store)) = (ring.take(), &self.config.carry) {
            ring.release(self.durable.borrow().seqno);
            if ring.used() == 0 {
                store.remove(self.uuid);
            }
        }
    }
}
