//! Checkpoints: the state of one instant written to disk while commits go on, so that the log before it can be dropped.
//!
//! 1. freeze: under the commit lock, open parts are closed and padded, and all dirty pages are taken as they are;
//! 2. map pages, then table pages, then directory pages are written to the metadata stream; each layer learns the places of the one below;
//! 3. all disks are flushed; the catalogue is written to every disk and flushed; the superblock is written to every disk;
//! 4. the log before the instant is dropped; segments and virtual blocks freed before it may be reused, once readers have gone.
//!
//! Until the superblock is durable nothing that the previous checkpoint refers to is overwritten.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::oneshot;

use super::Engine;
use super::commit::Draft;
use super::frame::ReducedFrame;
use super::group_commit::Queued;
use super::space::PAGE_BYTES;
use super::state::{Settings, map_page_entry};
use crate::codec::Compressor;
use crate::disk::{AlignedBuf, Disk, IO_ALIGN};
use crate::env::{BoxFuture, compute};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalogue::{Catalogue, DiskRecord, Service};
use crate::format::label::Label;
use crate::format::layout::LABEL_SIZE;
use crate::format::page::{DIRECTORY_FANOUT, DirectoryPage, Location, MapPage, PagePtr, TablePage};
use crate::format::part::Content;
use crate::format::record::{Frame, Op, Record, Stream};
use crate::format::superblock::Superblock;
use crate::format::volume::{Setting, VolumeRecord};
use crate::map::table::{page_of, slot_of};
use crate::planted::{self, Bug};
use crate::redundancy::array::DiskArray;
use crate::report::{Compression, Tolerance};
use crate::segment::appender::Appender;
use crate::segment::table::SegmentTable;
use crate::units::{DiskId, Epoch, SegmentId, Seqno, Uuid, VirtualBlock};

/// Pages encoded and compressed in one piece of processor work.
const PAGES_PER_JOB: usize = 32;
/// Deleted snapshots that others go on from are looked at this often.
const REAP_AGAIN: Duration = Duration::from_secs(600);
/// Records after which a checkpoint is made, so that replay stays short.
const RECORDS_MAX: u64 = 20_000;

/// What only the holder of the checkpoint lock may touch.
pub struct Checkpoints {
    /// Number of the newest checkpoint.
    pub number: u64,
    /// Newest record it contains.
    pub record: u64,
    /// What the pool's clock shows in it.
    pub clock_s: u64,
    /// The next checkpoint is made even if nothing has changed.
    pub forced: bool,
    /// The next checkpoint closes all segments that are being filled.
    pub close_segments: bool,
    /// Open segment of the metadata stream.
    pub open: Option<Arc<Appender>>,
    /// Disk failures that the newest checkpoint knows of.
    pub failures: u64,
    /// Segments that were open at the newest checkpoint, and the first incarnation after it.
    pub unflushed: (Vec<SegmentId>, u64),
}

/// The end of a checkpoint.
pub type Awaited = BoxFuture<Result<()>>;

/// The state of one instant.
struct Frozen {
    maps: Vec<(u64, Arc<MapPage>)>,
    table: BTreeMap<u64, Arc<TablePage>>,
    directory: BTreeMap<u64, Arc<DirectoryPage>>,
    roots: Vec<PagePtr>,
    table_len: u64,
    segments: SegmentTable,
    volumes: Vec<VolumeRecord>,
    record: u64,
    seqno: Seqno,
    next_volume: u32,
    settings: Settings,
    unique_bytes: u64,
    stored_bytes: u64,
    referenced_bytes: u64,
    interval: u32,
    /// The sets of the disks, and what new data survives.
    sets: BTreeMap<DiskId, u16>,
    tolerance: Tolerance,
    /// Whether segments lie in several sets, or have less parity than new ones.
    straddles: bool,
    less_parity: bool,
    /// Disks that were gone and given up: no log entry and no segment of later can lie on them.
    given_up: Vec<DiskId>,
    open: Vec<Arc<Appender>>,
}

impl Engine {
    /// The task that makes checkpoints when they are due.
    pub(super) async fn checkpoint_loop(self: Arc<Self>) {
        let mut reaped = self.env.now();
        loop {
            let wanted = self.checkpoint_wanted.notified();
            let timer = self.env.sleep(self.config.checkpoint_interval);
            tokio::pin!(wanted);
            futures::future::select(wanted, timer).await;
            if self.is_dead() {
                return;
            }
            if self.checkpoint().await.is_err() {
                // The pool has stopped and says why.
                return;
            }
            // What goes on from a deleted snapshot may see less of it by now.
            if self.env.now() - reaped > REAP_AGAIN && self.state.read().volumes.values().any(|v| v.deleting) {
                reaped = self.env.now();
                self.reap();
            }
        }
    }

    /// Asks for a checkpoint when memory or replay time call for one.
    pub(super) fn checkpoint_if_due(&self) {
        let due = {
            let state = self.state.read();
            let dirty = state.maps.pages.dirty_len() > self.map_pages() / 2
                || state.table.pages.dirty_len() > self.table_pages() / 2
                || state.table.directory.dirty_len() > self.directory_pages() / 2;
            dirty || state.record.is_multiple_of(RECORDS_MAX)
        };
        if due {
            self.checkpoint_wanted.notify_one();
        }
    }

    /// Makes a checkpoint; does nothing when nothing has changed since the last one.
    ///
    /// It is a task of its own: a caller that goes away must not leave pages behind that count as clean and were never written.
    pub async fn checkpoint(self: &Arc<Self>) -> Result<()> {
        self.begin_checkpoint().await
    }

    /// The same, not waited for yet.
    pub(super) fn begin_checkpoint(self: &Arc<Self>) -> Awaited {
        let (send, receive) = oneshot::channel();
        let engine = self.clone();
        self.spawn(async move {
            let _ = send.send(engine.make_checkpoint().await);
        });
        let ended = Error::new(ErrorKind::Unavailable, format!("pool {} is stopped", self.name));
        Box::pin(async move { receive.await.unwrap_or(Err(ended)) })
    }

    /// Asks for a checkpoint that gives segments back, unless one is under way.
    pub(super) fn ask_for_segments(&self) {
        if self.checkpoints.try_lock().is_ok() {
            self.checkpoint_wanted.notify_one();
        }
    }

    async fn make_checkpoint(self: Arc<Self>) -> Result<()> {
        let mut own = self.checkpoints.lock().await;
        if let Some(e) = self.failure() {
            return Err(e);
        }
        let changed = {
            let state = self.state.read();
            let dirty =
                state.maps.pages.dirty_len() + state.table.pages.dirty_len() + state.table.directory.dirty_len();
            // Also when the last one could not give back what is empty, as somebody read it.
            let idle = state.segments.emptied() > 0 && self.pins.load(Ordering::Acquire) == 0;
            self.array.failures() != own.failures || state.record != own.record || dirty > 0 || idle
        };
        let changed = changed || self.clock_is_to_be_kept(own.clock_s);
        if !changed && !own.forced {
            return Ok(());
        }
        let result = self.write_checkpoint(&mut own).await;
        if let Err(e) = &result
            && !self.is_stopping()
        {
            // What was frozen counts as clean, and was not written: the next checkpoint would leave it out.
            self.fail(e.clone().context("checkpoint"));
        }
        result
    }

    async fn write_checkpoint(self: &Arc<Self>, own: &mut Checkpoints) -> Result<()> {
        self.note_failures(own);
        let before = own.unflushed.clone();
        let (frozen, mark) = self.freeze(own).await?;
        let number = own.number + 1;
        let frozen = self.write_pages(own, frozen).await?;
        let log_start =
            mark.await.map_err(|_| Error::new(ErrorKind::Unavailable, format!("pool {} is stopped", self.name)))?;
        if planted::active(Bug::LogTrimmedEarly) {
            self.log.trim(log_start);
        }
        self.flush_disks(frozen.open.iter()).await?;
        // A disk that failed in this flush lacks what was written since the previous checkpoint.
        let since = std::mem::replace(&mut own.unflushed, before);
        self.note_failures(own);
        own.unflushed = since;

        let mut segments = frozen.segments.records();
        for appender in &frozen.open {
            if let Some(s) = segments.iter_mut().find(|s| s.incarnation == appender.extent.incarnation) {
                s.written = appender.flushed();
            }
        }
        let freed: Vec<(SegmentId, u64)> =
            segments.iter().filter(|s| s.sealed && s.live == 0).map(|s| (s.id, s.incarnation)).collect();
        segments.retain(|s| !(s.sealed && s.live == 0));
        if planted::active(Bug::SegmentReusedEarly) {
            self.give_back(&freed, frozen.interval);
        }
        // Behind the instant the log has begun anew, with the sets and the tolerance of then.
        let same = frozen.sets == self.array.sets();
        let held = self.in_transition.load(Ordering::Acquire) > 0;
        let mixed = self.array.is_mixed() && (held || !same || frozen.straddles);
        let guaranteed = match self.array.tolerance() {
            now if !held && now == frozen.tolerance && !frozen.less_parity => now,
            _ => self.array.guaranteed(),
        };
        let clock_s = self.clock_s();
        let catalogue = Catalogue {
            record: frozen.record,
            seqno: frozen.seqno.0,
            next_incarnation: frozen.segments.next_incarnation,
            next_volume: frozen.next_volume,
            table_len: frozen.table_len,
            disks: disk_records(&self.array, &|id| frozen.given_up.contains(&id) && !frozen.segments.is_used(id)),
            segments,
            volumes: frozen.volumes,
            directory: frozen.roots,
            unique_bytes: frozen.unique_bytes,
            stored_bytes: frozen.stored_bytes,
            referenced_bytes: frozen.referenced_bytes,
            scrub: *self.scrub.lock(),
            tolerance: self.array.tolerance(),
            guaranteed,
            mixed,
            clock_s,
            settings: frozen
                .settings
                .iter()
                .map(|(name, value)| Setting { name: name.clone(), value: value.clone() })
                .collect(),
        };
        self.check_fence().await?;
        // A task that ended half-way must not become the truth.
        if let Some(e) = self.failure() {
            return Err(e);
        }
        let encoded = catalogue.encode()?.len() as u64;
        self.catalogue_bytes.store(encoded, Ordering::Relaxed);
        write_root(&self.array, self.uuid, self.epoch, number, log_start, &catalogue).await?;

        self.noted_failures.store(own.failures, Ordering::Release);
        self.array.set_mixed(mixed);
        self.array.set_guaranteed(guaranteed);
        for disk in catalogue.disks.iter().filter(|d| d.service == Service::Empty) {
            if let Some(member) = self.array.member(disk.id).filter(|m| !m.is_empty()) {
                tracing::warn!(disk = disk.id.0, "nothing lies on the disk any more that was given up");
                member.set_empty();
            }
        }
        own.number = number;
        (own.forced, own.close_segments) = (false, false);
        own.record = frozen.record;
        own.clock_s = catalogue.clock_s;
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.log.trim(log_start);
        self.retire_appenders();
        self.gate.synchronize().await;
        if self.pins.load(Ordering::Acquire) == 0 {
            self.give_back(&freed, frozen.interval);
            self.state.write().segments.release(frozen.segments.left());
        } else {
            self.state.write().table.release(frozen.interval);
        }
        self.checkpointed.send_replace(number);
        Ok(())
    }

    fn give_back(&self, freed: &[(SegmentId, u64)], interval: u32) {
        let mut state = self.state.write();
        for (id, incarnation) in freed {
            if state.segments.get(*id).is_some_and(|s| s.record.incarnation == *incarnation && s.record.live == 0) {
                state.segments.remove(*id);
                self.index.lock().drop_lists_of_segment(*id);
            }
        }
        state.table.release(interval);
        state.maps.pages.evict(self.map_pages());
        state.table.pages.evict(self.table_pages());
        state.table.directory.evict(self.directory_pages());
    }

    /// Columns on disks that failed lack what was written since the last checkpoint, and perhaps what was written just before they failed.
    fn note_failures(&self, own: &mut Checkpoints) {
        let failures = self.array.failures();
        if failures == own.failures {
            return;
        }
        own.failures = failures;
        let failed: Vec<_> = self.array.members().into_iter().filter(|m| m.is_failed()).map(|m| m.id).collect();
        let state = self.state.read();
        for s in state.segments.iter() {
            let recent = s.record.incarnation >= own.unflushed.1 || own.unflushed.0.contains(&s.record.id);
            for (column, (disk, _)) in s.extent.columns.iter().enumerate() {
                if recent && failed.contains(disk) {
                    s.extent.stale.fetch_or(1 << column, Ordering::AcqRel);
                }
            }
        }
    }

    /// Takes a disk back that failed or was missing. What it missed stays marked; it gets a checkpoint at once.
    pub async fn reinstate(self: &Arc<Self>, id: DiskId, disk: Arc<dyn Disk>) -> Result<()> {
        {
            let mut own = self.checkpoints.lock().await;
            self.note_failures(&mut own);
            self.array.reinstate(id, disk);
            own.forced = true;
        }
        self.checkpoint().await?;
        // Only now do the labels say that it is there: what it lacks is on record.
        self.array.open_to_data(id);
        self.label_absent().await?;
        // Until now the log had no copies on it: in a pool of few disks too few. Another checkpoint ends the need for those.
        self.checkpoints.lock().await.forced = true;
        self.checkpoint().await
    }

    async fn freeze(self: &Arc<Self>, own: &mut Checkpoints) -> Result<(Frozen, oneshot::Receiver<u64>)> {
        let _pass = self.gate.enter();
        let mut committer = self.committer.lock().await;
        let mut draft = Draft::default();
        for slot in &mut committer.open {
            let Some(open) = slot else { continue };
            if own.close_segments || self.is_hurt(open) {
                self.seal(open, &mut draft);
                *slot = None;
                continue;
            }
            let mut ready = Vec::new();
            self.close_part(open, &mut ready, &mut draft);
            open.pad(&mut ready);
            draft.ready.extend(ready.into_iter().map(|r| (open.clone(), r)));
        }
        if !draft.layout.is_empty() || !draft.ready.is_empty() {
            draft.record = Record::default();
            self.commit(&mut committer, draft).await?;
        }
        let open: Vec<Arc<Appender>> = self.appenders.read().values().cloned().collect();
        open.iter().for_each(|a| a.freeze());
        let mut state = self.state.write();
        let state = &mut *state;
        own.unflushed = (open.iter().map(|a| a.extent.segment).collect(), state.segments.next_incarnation);
        let members = self.array.members();
        let given_up = members.iter().filter(|m| m.online().is_none() && m.is_given_up());
        let (sets, tolerance) = (self.array.sets(), self.array.tolerance());
        let frozen = Frozen {
            straddles: self.array.is_mixed() && state.segments.straddles(&sets),
            less_parity: self.array.guaranteed() != tolerance && state.segments.has_less_parity(tolerance.drives()),
            sets,
            tolerance,
            maps: state.maps.pages.freeze(),
            table: state.table.pages.freeze().into_iter().collect(),
            directory: state.table.directory.freeze().into_iter().collect(),
            roots: state.table.roots.clone(),
            table_len: state.table.len,
            segments: state.segments.clone(),
            volumes: state.volumes.values().cloned().collect(),
            record: state.record,
            seqno: state.seqno,
            next_volume: state.next_volume,
            settings: state.settings.clone(),
            unique_bytes: state.unique_bytes,
            stored_bytes: state.stored_bytes,
            referenced_bytes: state.referenced_bytes,
            interval: state.table.next_interval(),
            given_up: given_up.map(|m| m.id).collect(),
            open,
        };
        let (send, mark) = oneshot::channel();
        self.log_queue.lock().push(Queued::Mark(send));
        self.log_wake.notify_one();
        Ok((frozen, mark))
    }

    /// Writes all frozen pages and waits until everything the checkpoint refers to has been written.
    async fn write_pages(self: &Arc<Self>, own: &mut Checkpoints, mut frozen: Frozen) -> Result<Frozen> {
        let maps = std::mem::take(&mut frozen.maps);
        let keys: Vec<u64> = maps.iter().map(|(k, _)| *k).collect();
        let mut thawed = keys.clone();
        let content = |&k: &u64| Content::MapPage(VirtualBlock(k));
        let pages = maps.into_iter().map(|(_, p)| move || p.encode());
        let placed = self.write_layer(own, &mut frozen, pages, keys.iter().map(content)).await?;
        for (key, (frame, checksum)) in keys.into_iter().zip(placed) {
            self.place_map_page(&mut frozen, VirtualBlock(key), &frame, checksum).await?;
        }
        self.state.write().maps.pages.thaw(thawed.drain(..));

        if planted::active(Bug::CheckpointNotFrozen) {
            // Time for changes.
            self.env.sleep(std::time::Duration::from_millis(1)).await;
        }
        let table: Vec<(u64, Arc<TablePage>)> = frozen.table.iter().map(|(k, p)| (*k, p.clone())).collect();
        let keys: Vec<u64> = table.iter().map(|(k, _)| *k).collect();
        let engine = self.clone();
        let pages = table.into_iter().map(|(key, page)| {
            let live = planted::active(Bug::CheckpointNotFrozen)
                .then(|| engine.state.read().table.pages.get(key).map(TablePage::encode))
                .flatten();
            move || live.unwrap_or_else(|| page.encode())
        });
        let placed = self.write_layer(own, &mut frozen, pages, keys.iter().map(|&k| Content::TablePage(k))).await?;
        {
            let mut state = self.state.write();
            for (&key, (frame, checksum)) in keys.iter().zip(placed) {
                place_table_page(&mut state, &mut frozen, key, &frame, checksum)?;
            }
            state.table.pages.thaw(keys.into_iter());
        }

        let directory: Vec<(u64, Arc<DirectoryPage>)> = frozen.directory.iter().map(|(k, p)| (*k, p.clone())).collect();
        let keys: Vec<u64> = directory.iter().map(|(k, _)| *k).collect();
        let pages = directory.into_iter().map(|(_, p)| move || p.encode());
        let placed = self.write_layer(own, &mut frozen, pages, keys.iter().map(|&k| Content::DirectoryPage(k))).await?;
        {
            let mut state = self.state.write();
            for (&key, (frame, checksum)) in keys.iter().zip(placed) {
                let old = frozen.roots[key as usize];
                let new = PagePtr { at: frame.at, codec: frame.codec, checksum, used: old.used };
                frozen.roots[key as usize] = new;
                let live = &mut state.table.roots[key as usize];
                *live = PagePtr { used: live.used, ..new };
                move_live(&mut state.segments, &mut frozen.segments, &old.at, &frame.at);
            }
            state.table.directory.thaw(keys.into_iter());
        }

        if let Some(open) = own.open.clone() {
            let mut draft = Draft::default();
            if own.close_segments || self.is_hurt(&open) {
                self.seal(&open, &mut draft);
                own.open = None;
            } else {
                let mut ready = Vec::new();
                self.close_part(&open, &mut ready, &mut draft);
                open.pad(&mut ready);
                draft.ready.extend(ready.into_iter().map(|r| (open.clone(), r)));
            }
            self.note_layout(&mut frozen, draft).await?;
            if !frozen.open.iter().any(|a| Arc::ptr_eq(a, &open)) {
                frozen.open.push(open);
            }
        }
        for appender in &frozen.open {
            // Metadata segments are written only here: all of what they hold belongs to this checkpoint.
            let segment = frozen.segments.get(appender.extent.segment);
            if segment.is_some_and(|s| s.record.stream == Stream::Meta) {
                appender.freeze();
            }
            appender.wait_completed(appender.frozen(), || self.is_dead()).await;
        }
        match self.failure() {
            Some(e) => Err(e),
            None => Ok(frozen),
        }
    }

    /// Encodes, compresses and appends pages; returns where each lies and its checksum.
    async fn write_layer<F: FnOnce() -> Vec<u8> + Send + 'static>(
        self: &Arc<Self>,
        own: &mut Checkpoints,
        frozen: &mut Frozen,
        mut pages: impl Iterator<Item = F>,
        mut contents: impl Iterator<Item = Content>,
    ) -> Result<Vec<(Frame, u64)>> {
        let mut out = Vec::new();
        loop {
            let job: Vec<F> = pages.by_ref().take(PAGES_PER_JOB).collect();
            if job.is_empty() {
                return Ok(out);
            }
            let stopped = || Error::new(ErrorKind::Unavailable, format!("pool {} is stopped", self.name));
            let packed = compute(&self.env, move || pack(job)).await.ok_or_else(stopped)?;
            let mut draft = Draft::default();
            for (frame, checksum) in packed {
                let content = contents.next().ok_or_else(|| Error::io("more pages than contents"))?;
                let at = self.append(&mut own.open, Stream::Meta, &frame.stored, content, 1, &mut draft)?;
                out.push((Frame { at, codec: frame.codec, blocks: 1, raw_len: frame.raw_len }, checksum));
            }
            self.note_layout(frozen, draft).await?;
        }
    }

    /// Changes of the metadata stream's segments are not logged: they take effect in the state and in the checkpoint itself.
    async fn note_layout(self: &Arc<Self>, frozen: &mut Frozen, draft: Draft) -> Result<()> {
        {
            let mut state = self.state.write();
            for op in draft.layout {
                for segments in [&mut state.segments, &mut frozen.segments] {
                    match &op {
                        Op::OpenSegment(record)
                            if segments.get(record.id).is_none_or(|s| s.record.incarnation != record.incarnation) =>
                        {
                            segments.insert(record.clone());
                        }
                        Op::ClosePart { at } => {
                            if let Some(s) = segments.get_mut(at.segment) {
                                s.record.last_part = *at;
                            }
                        }
                        Op::SealSegment(id) => segments.seal(*id),
                        _ => {}
                    }
                }
                // A segment that an earlier checkpoint opened and this one fills: all of it must be on disk before the root.
                if let Op::SealSegment(id) = &op
                    && let Some(full) = frozen.open.iter().find(|a| a.extent.segment == *id)
                {
                    full.freeze();
                }
                if let Op::OpenSegment(record) = &op
                    && let Some(appender) = self.appenders.read().get(&record.id)
                {
                    frozen.open.push(appender.clone());
                    // The frozen table marks stale columns where the appender does.
                    if let Some(s) = frozen.segments.get_mut(record.id) {
                        s.extent = appender.extent.clone();
                    }
                }
            }
        }
        for (appender, stripe) in draft.ready {
            self.send_stripe(appender, stripe).await?;
        }
        Ok(())
    }

    async fn place_map_page(
        &self,
        frozen: &mut Frozen,
        block: VirtualBlock,
        frame: &Frame,
        checksum: u64,
    ) -> Result<()> {
        self.with_state_mut(|s| Ok(s.place_map_page(block, frame, checksum)?)).await?;
        let page = frozen
            .table
            .get_mut(&page_of(block))
            .ok_or_else(|| Error::io(format!("map page {block} is dirty but its table page is not")))?;
        let entry = &mut Arc::make_mut(page).0[slot_of(block)];
        frozen.segments.sub_live(&entry.frame, entry.share());
        *entry = map_page_entry(entry, frame, checksum);
        frozen.segments.add_live(&entry.frame, entry.share());
        Ok(())
    }

    /// Stops when a newer writer has taken the pool over.
    async fn check_fence(&self) -> Result<()> {
        let reads = self.array.online().into_iter().map(|m| async move {
            let data = self.array.read_disk(m.id, 0, LABEL_SIZE).await.ok()?;
            Label::decode(&data).ok()
        });
        for label in join_all(reads).await.into_iter().flatten() {
            if label.pool == self.uuid && label.epoch > self.epoch {
                return Err(Error::new(
                    ErrorKind::Fenced,
                    format!("pool {}: another writer of epoch {} has taken over", self.name, label.epoch),
                ));
            }
        }
        Ok(())
    }
}

fn move_live(live: &mut SegmentTable, frozen: &mut SegmentTable, from: &Location, to: &Location) {
    for segments in [live, frozen] {
        segments.sub_live(from, from.len.into());
        segments.add_live(to, to.len.into());
    }
}

fn place_table_page(
    state: &mut super::state::State,
    frozen: &mut Frozen,
    key: u64,
    frame: &Frame,
    checksum: u64,
) -> Result<()> {
    let (directory, slot) = (key / DIRECTORY_FANOUT as u64, (key % DIRECTORY_FANOUT as u64) as usize);
    let missing = || Error::io(format!("table page {key} is dirty but its directory page is not"));
    let page = Arc::make_mut(frozen.directory.get_mut(&directory).ok_or_else(missing)?);
    let old = page.0[slot];
    let new = PagePtr { at: frame.at, codec: frame.codec, checksum, used: old.used };
    page.0[slot] = new;
    let live = &mut state.table.directory.patch(directory).ok_or_else(missing)?.0[slot];
    *live = PagePtr { used: live.used, ..new };
    move_live(&mut state.segments, &mut frozen.segments, &old.at, &frame.at);
    Ok(())
}

fn pack<F: FnOnce() -> Vec<u8>>(pages: Vec<F>) -> Vec<(ReducedFrame, u64)> {
    let mut compressor = Compressor::new();
    let one = |page: F| {
        let raw = page();
        let mut stored = Vec::with_capacity(raw.len());
        let mut codec = compressor.compress(Compression::Lz4, &raw, &mut stored);
        // Half of what a checkpoint costs is spent here: what is harder to compress is the exception.
        if stored.len() as u64 > PAGE_BYTES {
            stored.clear();
            codec = compressor.compress(Compression::Zstd, &raw, &mut stored);
        }
        let checksum = crate::format::checksum(&raw);
        (ReducedFrame { stored: Bytes::from(stored), raw_len: raw.len() as u16, raw: None, codec, blocks: 1 }, checksum)
    };
    pages.into_iter().map(one).collect()
}

/// The disks as the next catalogue records them, with the newest checkpoint that each surely has. `unused` tells on which no column lies.
pub fn disk_records(array: &DiskArray, unused: &dyn Fn(DiskId) -> bool) -> Vec<DiskRecord> {
    let record = |m: Arc<crate::redundancy::array::Member>| DiskRecord {
        id: m.id,
        uuid: m.uuid,
        size: m.size,
        last_checkpoint: m.last_checkpoint.load(Ordering::Relaxed),
        service: match m.service() {
            Service::GivenUp | Service::Leaving if m.online().is_none() && unused(m.id) => Service::Empty,
            service => service,
        },
        declared: m.is_declared_failed(),
        errors: m.errors(),
        traffic: m.traffic(),
        set: m.set(),
    };
    array.members().into_iter().map(record).collect()
}

/// The mark of a writer that goes on from checkpoint n lies where the superblock of checkpoint n + 2 will: that of n − 2 is no longer needed.
const MARK_SLOT: u64 = 2;

/// Writes catalogue and superblock to all disks: the commit point of a checkpoint.
pub async fn write_root(
    array: &DiskArray,
    pool: Uuid,
    epoch: Epoch,
    checkpoint: u64,
    log_start: u64,
    catalogue: &Catalogue,
) -> Result<()> {
    let encoded = catalogue.encode()?;
    if encoded.len() > array.geometry.catalogue_size as usize {
        return Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "the catalogue has grown to {} bytes, more than its region of {}",
                encoded.len(),
                array.geometry.catalogue_size
            ),
        ));
    }
    let superblock = Superblock {
        pool,
        epoch,
        checkpoint,
        log_start,
        catalogue_len: encoded.len() as u32,
        catalogue_checksum: crate::format::checksum(&encoded),
        log_epoch: epoch,
    };
    if planted::active(Bug::SuperblockBeforeCatalogue) {
        let block = AlignedBuf::padded(&superblock.encode()).freeze();
        write_everywhere(array, |_| array.geometry.superblock(checkpoint), &block).await;
    }
    let all: Vec<DiskId> = array.online().iter().map(|m| m.id).collect();
    put_catalogue(array, checkpoint, &encoded, &all).await?;
    let block = AlignedBuf::padded(&superblock.encode()).freeze();
    write_everywhere(array, |_| array.geometry.superblock(checkpoint), &block).await;
    write_everywhere(array, |size| array.geometry.tail(size) + array.geometry.superblock(checkpoint), &block).await;
    root_is_written(array, checkpoint)
}

/// Puts the mark of a new writer on a checkpoint that it goes on from: superblock and catalogue are on all disks afterwards.
///
/// Power may fail on all disks at once, time after time, so nothing intact is written over that could still be needed: not a catalogue that is there,
/// not the superblock that was found, nor that of the checkpoint before, nor the place of the next; and of the two copies of the mark, first the one
/// that an earlier attempt may have spoiled.
pub async fn mark_root(array: &DiskArray, superblock: &Superblock, encoded: &[u8]) -> Result<()> {
    let checkpoint = superblock.checkpoint;
    let (at, len) = (array.geometry.catalogue(checkpoint), encoded.len().next_multiple_of(IO_ALIGN));
    let lacks = array.online().into_iter().map(|m| async move {
        let intact = array.read_disk(m.id, at, len).await.is_ok_and(|data| data.get(..encoded.len()) == Some(encoded));
        (!intact).then_some(m.id)
    });
    let lacking: Vec<DiskId> = join_all(lacks).await.into_iter().flatten().collect();
    put_catalogue(array, checkpoint, encoded, &lacking).await?;

    let slot = array.geometry.superblock(checkpoint + MARK_SLOT);
    let block = AlignedBuf::padded(&superblock.encode()).freeze();
    let marks = array.online().into_iter().map(|m| {
        let block = block.clone();
        async move {
            let (front, tail) = (slot, array.geometry.tail(m.size) + slot);
            let intact = async |at| {
                let data = array.read_disk(m.id, at, block.len()).await;
                data.is_ok_and(|data| Superblock::decode(&data).is_ok())
            };
            let order = if !intact(tail).await && intact(front).await { [tail, front] } else { [front, tail] };
            for at in order {
                if array.write(m.id, at, vec![block.clone()], true).await.is_err() {
                    return;
                }
            }
        }
    });
    join_all(marks).await;
    root_is_written(array, checkpoint)
}

/// Writes a catalogue to the given disks; durable when this completes.
async fn put_catalogue(array: &DiskArray, checkpoint: u64, encoded: &[u8], disks: &[DiskId]) -> Result<()> {
    let data = AlignedBuf::padded(encoded).freeze();
    let at = array.geometry.catalogue(checkpoint);
    // A disk that fails is out; the quorum is looked at in the end.
    join_all(disks.iter().map(|&disk| array.write(disk, at, vec![data.clone()], false))).await;
    array.flush().await
}

/// All disks that are left have the checkpoint now. Only now: one that a crash cut short is on some disks only, even if it is opened next.
fn root_is_written(array: &DiskArray, checkpoint: u64) -> Result<()> {
    array.check_quorum()?;
    array.online().iter().for_each(|m| m.last_checkpoint.store(checkpoint, Ordering::Relaxed));
    Ok(())
}

async fn write_everywhere(array: &DiskArray, at: impl Fn(u64) -> u64, data: &Bytes) {
    let writes = array.online().into_iter().map(|m| {
        let (at, data) = (at(m.size), data.clone());
        async move { array.write(m.id, at, vec![data], true).await }
    });
    join_all(writes).await;
}
