//! A volume as front ends see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use super::Engine;
use super::intake::HostBlock;
use super::pace::control::Kind;
use crate::carry::{self, Operation, Ring};
use crate::env::BoxFuture;
use crate::error::{Error, ErrorKind, Result};
use crate::format::page::MAP_FANOUT;
use crate::format::volume::VolumeRecord;
use crate::frontend::{BlockDevice, Extent, Geometry};
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Lba, VolumeId};

/// Where an operation is entered that is to outlive the process.
type Carry<'a> = Option<&'a Ring>;

/// Blocks of one piece of a large write.
const WRITE_BLOCKS: usize = 256;
/// Blocks of one piece of a large read.
const READ_BLOCKS: usize = 1024;

/// One volume of an open pool. All users of a volume share one of these.
pub struct Volume {
    engine: Arc<Engine>,
    id: VolumeId,
    name: String,
    size: watch::Sender<u64>,
    /// A snapshot: it does not change.
    snapshot: bool,
    gone: AtomicBool,
    /// Serialises writes that must read first: partial blocks, compare-and-write.
    exclusive: tokio::sync::RwLock<()>,
}

impl Engine {
    /// Blocks of the largest piece of a write.
    pub(super) fn write_piece_max(&self) -> usize {
        WRITE_BLOCKS.min(self.intake.write_blocks_max())
    }
}

impl Volume {
    /// A handle of the volume.
    pub fn new(engine: Arc<Engine>, record: &VolumeRecord, name: String) -> Self {
        let (size, _) = watch::channel(record.blocks * BLOCK_BYTES);
        let (id, snapshot, gone) = (record.id, record.is_snapshot(), AtomicBool::new(false));
        Self { engine, id, name, size, snapshot, gone, exclusive: tokio::sync::RwLock::new(()) }
    }

    fn check_writable(&self) -> Result<()> {
        if self.snapshot {
            let message = format!("snapshot {} does not change: clone it and write to the clone", self.name);
            return Err(Error::new(ErrorKind::ReadOnly, message));
        }
        self.engine.check_writable()
    }

    /// Identity.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// The volume was resized.
    pub fn set_blocks(&self, blocks: u64) {
        self.size.send_replace(blocks * BLOCK_BYTES);
    }

    /// The volume is being deleted: every request fails from now on.
    pub fn retire(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Keeps all writes of the volume out, those under way included, until the guard is dropped.
    pub async fn exclude_writes(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.exclusive.write().await
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        if self.gone.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::NotFound, format!("volume {} is deleted", self.name)));
        }
        let size = *self.size.borrow();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::invalid(format!(
                "volume {}: {len} bytes at {offset} are beyond its size of {size}",
                self.name
            ))),
        }
    }

    async fn read_bytes(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.check_range(offset, len as u64)?;
        self.engine.count_read(len);
        let asked = self.engine.asked();
        if len == 0 {
            return Ok(Bytes::new());
        }
        let first = offset / BLOCK_BYTES;
        let blocks = ((offset + len as u64).div_ceil(BLOCK_BYTES) - first) as usize;
        let skip = (offset % BLOCK_BYTES) as usize;
        if blocks <= READ_BLOCKS {
            let data = self.engine.read_lbas(self.id, Lba(first), blocks).await?;
            asked.answered(Kind::Read);
            return Ok(data.slice(skip..skip + len));
        }
        let mut out = BytesMut::with_capacity(blocks * BLOCK_SIZE);
        for at in (0..blocks).step_by(READ_BLOCKS) {
            let n = READ_BLOCKS.min(blocks - at);
            out.extend_from_slice(&self.engine.read_lbas(self.id, Lba(first + at as u64), n).await?);
        }
        asked.answered(Kind::Read);
        Ok(out.freeze().slice(skip..skip + len))
    }

    async fn write_bytes(&self, offset: u64, data: Bytes, carry: Carry<'_>) -> Result<()> {
        self.check_range(offset, data.len() as u64)?;
        self.check_writable()?;
        self.hold_back(&data).await?;
        if offset.is_multiple_of(BLOCK_BYTES) && data.len().is_multiple_of(BLOCK_SIZE) {
            let _shared = self.exclusive.read().await;
            // Again: the volume may have shrunk or gone while this waited.
            self.check_range(offset, data.len() as u64)?;
            return self.write_blocks(offset / BLOCK_BYTES, data, carry).await;
        }
        let _alone = self.exclusive.write().await;
        self.check_range(offset, data.len() as u64)?;
        let (first, data) = self.complete_blocks(offset, data).await?;
        self.write_blocks(first, data, carry).await
    }

    /// Zeroes take no room.
    async fn hold_back(&self, data: &[u8]) -> Result<()> {
        match crate::codec::is_zero(data) {
            true => Ok(()),
            false => self.engine.hold_back(data.len()).await,
        }
    }

    /// Fills the partial blocks at the ends with what is there. The caller holds the volume exclusively.
    async fn complete_blocks(&self, offset: u64, data: Bytes) -> Result<(u64, Bytes)> {
        let first = offset / BLOCK_BYTES;
        let blocks = ((offset + data.len() as u64).div_ceil(BLOCK_BYTES) - first) as usize;
        let skip = (offset % BLOCK_BYTES) as usize;
        let mut whole = BytesMut::zeroed(blocks * BLOCK_SIZE);
        let tail = (skip + data.len()) % BLOCK_SIZE;
        if skip > 0 {
            whole[..BLOCK_SIZE].copy_from_slice(&self.engine.read_lbas(self.id, Lba(first), 1).await?);
        }
        if tail > 0 && (skip == 0 || blocks > 1) {
            let last = self.engine.read_lbas(self.id, Lba(first + blocks as u64 - 1), 1).await?;
            whole[(blocks - 1) * BLOCK_SIZE..].copy_from_slice(&last);
        }
        whole[skip..skip + data.len()].copy_from_slice(&data);
        Ok((first, whole.freeze()))
    }

    async fn write_blocks(&self, first: u64, data: Bytes, carry: Carry<'_>) -> Result<()> {
        let engine = &self.engine;
        engine.counters.host_writes.fetch_add(1, Ordering::Relaxed);
        engine.counters.host_write_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        let all = data.len() / BLOCK_SIZE;
        let piece = engine.space().batch_blocks(engine.write_piece_max());
        for at in (0..all).step_by(piece) {
            let n = piece.min(all - at);
            let piece = data.slice(at * BLOCK_SIZE..(at + n) * BLOCK_SIZE);
            let block = |i: usize| HostBlock::of(piece.slice(i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE));
            let blocks: Vec<HostBlock> = (0..n).map(block).collect();
            let contents = carry.map(|_| blocks.iter().map(|b| b.fingerprint).collect::<Vec<_>>());
            engine.check_volume(self.id)?;
            let takes_space = blocks.iter().any(|b| !b.is_zero());
            let room = engine.intake.reserve(n).await?;
            if takes_space {
                engine.check_space(Some(self.id)).await?;
            }
            let place = match carry {
                Some(ring) => Some(engine.place_in(ring, piece.len()).await?),
                None => None,
            };
            engine.check_alive()?;
            let lba = Lba(first + at as u64);
            let seqno = engine.intake.write(self.id, lba, piece.clone(), blocks, room);
            if let (Some(place), Some(contents)) = (place, contents) {
                let (kind, blocks) = (carry::Kind::Write, n as u64);
                let operation = Operation { kind, volume: self.id, lba, blocks };
                place.fill(seqno, &operation, &piece, contents.into_iter());
            }
        }
        Ok(())
    }

    async fn flush_all(&self) -> Result<()> {
        self.engine.counters.host_flushes.fetch_add(1, Ordering::Relaxed);
        if self.engine.config.read_only {
            return Ok(());
        }
        let asked = self.engine.asked();
        let upto = self.engine.intake.hurry();
        self.engine.flush().await?;
        asked.answered(Kind::Flush);
        // What was taken before it was known is lost.
        let answer = self.engine.check_volume(self.id);
        if answer.is_err() {
            self.engine.tell_broken(self.id, upto);
        }
        answer
    }

    async fn unmap(&self, first: u64, count: u64, carry: Carry<'_>) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.check_writable()?;
        self.engine.check_volume(self.id)?;
        let place = match carry {
            Some(ring) => Some(self.engine.place_in(ring, 0).await?),
            None => None,
        };
        let (volume, lba) = (self.id, Lba(first));
        let (seqno, answer) = self.engine.intake.unmap(volume, lba, count);
        if let Some(place) = place {
            let operation = Operation { kind: carry::Kind::Unmap, volume, lba, blocks: count };
            place.fill(seqno, &operation, &[], std::iter::empty());
        }
        match answer.await {
            Ok(result) => result,
            Err(_) => self.engine.check_alive(),
        }
    }

    async fn zero_bytes(&self, offset: u64, len: u64, carry: Carry<'_>) -> Result<()> {
        self.check_range(offset, len)?;
        let (first, end) = (offset.div_ceil(BLOCK_BYTES), (offset + len) / BLOCK_BYTES);
        if first >= end {
            return self.write_bytes(offset, Bytes::from(vec![0; len as usize]), carry).await;
        }
        let head = first * BLOCK_BYTES - offset;
        let tail = offset + len - end * BLOCK_BYTES;
        if head > 0 {
            self.write_bytes(offset, Bytes::from(vec![0; head as usize]), carry).await?;
        }
        if tail > 0 {
            self.write_bytes(end * BLOCK_BYTES, Bytes::from(vec![0; tail as usize]), carry).await?;
        }
        let _shared = self.exclusive.read().await;
        self.check_range(offset, len)?;
        self.unmap(first, end - first, carry).await
    }

    async fn status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        self.check_range(offset, len)?;
        // What waits to be committed must show.
        if self.engine.intake.waiting().0 > 0 || self.engine.intake.memory() > 0 {
            self.engine.flush().await?;
        }
        let (end, mut at) = (offset + len, offset);
        let mut out: Vec<Extent> = Vec::new();
        while at < end {
            let block = at / BLOCK_BYTES;
            let last = end.div_ceil(BLOCK_BYTES);
            // A leaf of the map at a time: neither must all of them be resident at once, nor a checkpoint wait until the last was looked at.
            let leaf_end = last.min((block / MAP_FANOUT as u64 + 1) * MAP_FANOUT as u64);
            let _pass = self.engine.gate.enter();
            let (mapped, until) = self
                .engine
                .with_state(|s| {
                    let Some(v) = s.live(self.id) else { return Ok((false, last)) };
                    let hole = s.maps.next_hole(v, block, leaf_end)?;
                    if hole > block {
                        return Ok((true, hole));
                    }
                    Ok((false, s.maps.next_mapped(v, block, last)?.unwrap_or(last)))
                })
                .await?;
            let stop = (until * BLOCK_BYTES).min(end);
            if let Some(extent) = out.last_mut().filter(|extent| extent.mapped == mapped) {
                extent.len += stop - at;
            } else if out.len() < max {
                out.push(Extent { offset: at, len: stop - at, mapped });
            } else {
                break;
            }
            at = stop;
        }
        Ok(out)
    }
}

/// The device that front ends hold: a shared [`Volume`], and where its writes are entered that are to outlive the process.
#[derive(Clone)]
pub struct VolumeDevice {
    volume: Arc<Volume>,
    carry: Arc<OnceLock<Arc<Ring>>>,
}

impl VolumeDevice {
    /// A device of a volume.
    pub fn new(volume: Arc<Volume>) -> Self {
        Self { volume, carry: Arc::default() }
    }

    fn carry(&self) -> Carry<'_> {
        self.carry.get().map(Arc::as_ref)
    }
}

impl BlockDevice for VolumeDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: *self.volume.size.borrow(),
            block_size: BLOCK_SIZE as u32,
            optimal_io: 256 << 10,
            read_only: self.volume.snapshot || self.volume.engine.config.read_only,
        }
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<Result<Bytes>> {
        let volume = self.volume.clone();
        Box::pin(async move { volume.read_bytes(offset, len).await })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<Result<()>> {
        let this = self.clone();
        Box::pin(async move {
            let volume = &this.volume;
            volume.write_bytes(offset, data, this.carry().filter(|_| !fua)).await?;
            if fua { volume.flush_all().await } else { Ok(()) }
        })
    }

    fn flush(&self) -> BoxFuture<Result<()>> {
        let volume = self.volume.clone();
        Box::pin(async move { volume.flush_all().await })
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<Result<()>> {
        let this = self.clone();
        Box::pin(async move {
            let volume = &this.volume;
            let _shared = volume.exclusive.read().await;
            volume.check_range(offset, len)?;
            let (first, end) = (offset.div_ceil(BLOCK_BYTES), (offset + len) / BLOCK_BYTES);
            volume.unmap(first, end.saturating_sub(first), this.carry()).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<Result<()>> {
        let this = self.clone();
        Box::pin(async move {
            let volume = &this.volume;
            volume.zero_bytes(offset, len, this.carry().filter(|_| !fua)).await?;
            if fua { volume.flush_all().await } else { Ok(()) }
        })
    }

    fn compare_and_write(&self, offset: u64, expected: Bytes, new: Bytes) -> BoxFuture<Result<bool>> {
        let this = self.clone();
        Box::pin(async move {
            let volume = &this.volume;
            if expected.len() != new.len() {
                return Err(Error::invalid("compare-and-write needs two buffers of the same length"));
            }
            volume.hold_back(&new).await?;
            let _alone = volume.exclusive.write().await;
            if volume.read_bytes(offset, expected.len()).await? != expected {
                return Ok(false);
            }
            volume.check_writable()?;
            let (first, data) = volume.complete_blocks(offset, new).await?;
            volume.write_blocks(first, data, this.carry()).await?;
            Ok(true)
        })
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> BoxFuture<Result<Vec<Extent>>> {
        let volume = self.volume.clone();
        Box::pin(async move { volume.status(offset, len, max).await })
    }

    fn watch_size(&self) -> watch::Receiver<u64> {
        self.volume.size.subscribe()
    }

    fn outlive(&self) -> bool {
        let ring = self.volume.engine.ring();
        if let Some(ring) = ring {
            let _ = self.carry.set(ring);
        }
        self.carry.get().is_some()
    }
}
