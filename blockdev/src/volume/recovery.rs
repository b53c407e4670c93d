//! Opening: find the newest checkpoint, replay the log behind it, finish open segments, make a checkpoint of one's own.
//!
//! Every step may be interrupted and done again: until the new checkpoint's superblock is written, recovery writes only to places
//! that neither the old checkpoint nor the log refers to, or the very bytes that the log says belong there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::future::join_all;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, Semaphore, watch};

use super::carry;
use super::checkpoint::{Checkpoints, mark_root};
use super::commit::{Committer, STRIPES_IN_FLIGHT};
use super::frame_cache::FrameCache;
use super::group_commit::LogQueue;
use super::intake::Intake;
use super::pace::Pace;
use super::shares::{Cache, PAGE_MEMORY, Shares};
use super::space::taken_max;
use super::state::State;
use super::timeouts;
use super::{Counters, Durable, Engine, PoolConfig};
use crate::dedupe::{DedupeIndex, ListId};
use crate::disk::{AlignedBuf, Disk};
use crate::env::Env;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::catalogue::{Catalogue, Service};
use crate::format::label::Label;
use crate::format::layout::{EDGE, LABEL_SIZE, SUPERBLOCK_SLOTS};
use crate::format::page::Location;
use crate::format::part::{Content, Item, PART_OVERHEAD, item_bytes_max};
use crate::format::record::{Inline, Op, SegmentRecord};
use crate::format::superblock::Superblock;
use crate::lock::{Mutex, Rank, RwLock};
use crate::log::{Log, replay};
use crate::planted::{self, Bug};
use crate::redundancy::array::{DiskArray, Extent, Member};
use crate::report::Tolerance;
use crate::segment::appender::Appender;
use crate::segment::table::SegmentTable;
use crate::units::{Epoch, SegmentId};

/// A disk with its label.
pub struct Labelled {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Its label.
    pub label: Label,
    /// Newest superblock of each intact slot.
    pub superblocks: Vec<Superblock>,
}

/// A disk that was given but cannot be used.
pub struct Unusable {
    /// Its name.
    pub name: String,
    /// Its label, when it has a good one.
    pub label: Option<Label>,
    /// What is wrong with it; names the disk.
    pub why: Error,
}

/// The disks given, all of one pool.
#[derive(Default)]
pub struct Found {
    /// Disks that can be used.
    pub disks: Vec<Labelled>,
    /// Disks that count as missing.
    pub unusable: Vec<Unusable>,
}

impl Found {
    fn labels(&self) -> impl Iterator<Item = (String, &Label)> {
        let usable = self.disks.iter().map(|d| (d.disk.name(), &d.label));
        usable.chain(self.unusable.iter().filter_map(|u| Some((u.name.clone(), u.label.as_ref()?))))
    }

    fn leave_out(&mut self, disk: &Arc<dyn Disk>, label: Option<Label>, why: Error) {
        tracing::warn!(disk = disk.name(), error = %why, "disk left out");
        self.unusable.push(Unusable { name: disk.name(), label, why });
    }

    fn reasons(&self) -> String {
        self.unusable.iter().map(|u| u.why.to_string()).collect::<Vec<_>>().join("; ")
    }
}

/// Reads a disk's label, from its start or from its end; `NotFound` when it has none.
///
/// One copy of an unknown format version is enough to refuse the disk, whatever the other copy says: the newer release that wrote it
/// may have changed the rest of the disk already.
pub async fn read_label(disk: &Arc<dyn Disk>) -> Result<Label> {
    let size = disk.geometry().size;
    let front = label_at(disk, 0).await;
    // The other copy lies where the disk ended when it was labelled. Whether it still reaches that far is for the caller to judge.
    let end = front.as_ref().map_or(size, |label| label.size);
    let mut copies = vec![front];
    if end <= size {
        copies.push(label_at(disk, (end / 4096 * 4096).saturating_sub(EDGE)).await);
    }
    let unknown = |e: &&Error| e.kind() == ErrorKind::Unsupported;
    if let Some(e) = copies.iter().filter_map(|copy| copy.as_ref().err()).find(unknown) {
        return Err(e.clone());
    }
    let mut worst = Error::new(ErrorKind::NotFound, format!("{} has no Ashlar label", disk.name()));
    for copy in copies {
        match copy {
            Ok(label) => return Ok(label),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => worst = e,
        }
    }
    Err(worst)
}

async fn label_at(disk: &Arc<dyn Disk>, at: u64) -> Result<Label> {
    match disk.read(at, LABEL_SIZE).await {
        Ok(data) => Label::decode(&data).map_err(|e| e.context(disk.name())),
        Err(e) => Err(Error::io(format!("{}: {e}", disk.name()))),
    }
}

/// All intact superblocks of a disk.
pub async fn superblocks(disk: &Arc<dyn Disk>, label: &Label) -> Vec<Superblock> {
    let g = label.geometry;
    let mut out = Vec::new();
    for slot in 0..SUPERBLOCK_SLOTS {
        for at in [g.superblock(slot), g.tail(label.size) + g.superblock(slot)] {
            if let Ok(data) = disk.read(at, LABEL_SIZE).await
                && let Ok(sb) = Superblock::decode(&data)
                && sb.pool == label.pool
            {
                out.push(sb);
            }
        }
    }
    out
}

/// Fails for a disk that is shorter than its label says: nothing may be written to it, for its last regions are gone.
pub fn check_size(disk: &Arc<dyn Disk>, label: &Label) -> Result<()> {
    let size = disk.geometry().size;
    if size >= label.size {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "{} was truncated: it has {size} bytes, {} when it was labelled; it is not used",
        disk.name(),
        label.size
    )))
}

/// Reads the labels of all disks; all must belong to one pool. Disks that cannot be read, or are too short, count as missing.
pub async fn identify(disks: Vec<Arc<dyn Disk>>) -> Result<Found> {
    let mut out = Found::default();
    for disk in disks {
        let label = match read_label(&disk).await {
            Ok(label) => label,
            Err(e) if e.kind() == ErrorKind::Unsupported => return Err(e),
            Err(e) => {
                out.leave_out(&disk, None, e);
                continue;
            }
        };
        if let Some((name, other)) = out.labels().find(|(_, other)| other.pool != label.pool) {
            return Err(Error::invalid(format!(
                "{name} belongs to pool {} ({}), {} to pool {} ({}): name the disks of one pool only",
                other.pool_name,
                other.pool,
                disk.name(),
                label.pool_name,
                label.pool
            )));
        }
        if let Some((name, _)) = out.labels().find(|(_, other)| other.disk == label.disk) {
            return Err(Error::invalid(format!(
                "{name} and {} carry the same disk identity {}: one is a copy; leave it out",
                disk.name(),
                label.disk
            )));
        }
        if let Err(e) = check_size(&disk, &label) {
            out.leave_out(&disk, Some(label), e);
            continue;
        }
        let superblocks = superblocks(&disk, &label).await;
        out.disks.push(Labelled { disk, label, superblocks });
    }
    if out.disks.is_empty() {
        let reasons = if out.unusable.is_empty() { "no disks given".into() } else { out.reasons() };
        return Err(Error::new(ErrorKind::NotFound, format!("no disk of a pool was found ({reasons})")));
    }
    Ok(out)
}

/// Why a disk is not used that was rolled back. It cannot be taken back as it is.
pub(crate) const OLDER_STATE: &str = "shows an older state than it had: it was restored from a copy";

/// A checkpoint as it was found.
pub struct Root {
    /// The superblock that names it.
    pub superblock: Superblock,
    /// Its catalogue.
    pub catalogue: Catalogue,
    /// The catalogue as it is on disk.
    encoded: Bytes,
}

/// The newest checkpoint, with its catalogue from whichever disk has it.
pub async fn newest_checkpoint(disks: &[Labelled]) -> Result<Root> {
    let all = disks.iter().flat_map(|d| d.superblocks.iter());
    let Some(best) = all.max_by_key(|s| s.rank()) else {
        return Err(Error::corrupt("no intact superblock was found on any disk"));
    };
    for d in disks {
        let at = d.label.geometry.catalogue(best.checkpoint);
        let len = (best.catalogue_len as usize).next_multiple_of(4096);
        if let Ok(data) = d.disk.read(at, len).await
            && let Some(data) = data.get(..best.catalogue_len as usize)
            && crate::format::checksum(data) == best.catalogue_checksum
        {
            let catalogue = Catalogue::decode(data)?;
            return Ok(Root { encoded: Bytes::copy_from_slice(data), superblock: best.clone(), catalogue });
        }
    }
    Err(Error::corrupt(format!("the catalogue of checkpoint {} cannot be read from any disk", best.checkpoint)))
}

/// The disks as the catalogue knows them, with those that were found.
pub fn assemble(env: &Arc<dyn Env>, found: &Found, catalogue: &Catalogue, config: &PoolConfig) -> Result<DiskArray> {
    let disks = &found.disks;
    let label = &disks.first().ok_or_else(|| Error::invalid("no disks"))?.label;
    let mut members = Vec::new();
    for record in &catalogue.disks {
        let here = disks.iter().find(|d| d.label.disk == record.uuid);
        let seen = here.map_or(0, |d| d.superblocks.iter().map(|s| s.checkpoint).max().unwrap_or(0));
        let rolled_back = here.is_some() && seen < record.last_checkpoint;
        if rolled_back {
            tracing::error!(
                disk = record.id.0,
                seen,
                expected = record.last_checkpoint,
                "disk shows an older state than it had: it was restored from a copy, and is not used"
            );
        }
        let member = Member::new(record.id, record.uuid, record.size, here.map(|d| d.disk.clone()), rolled_back);
        if rolled_back {
            member.set_trouble(OLDER_STATE);
        } else if let Some(unusable) =
            found.unusable.iter().find(|u| u.label.as_ref().is_some_and(|l| l.disk == record.uuid))
        {
            member.set_trouble(unusable.why.to_string());
        }
        if let (None, Some(known)) = (here, config.known_disks.get(&record.uuid)) {
            member.set_path(known.path.clone());
            if let Some(trouble) = &known.trouble {
                member.set_trouble(trouble.clone());
            }
        }
        // The newest it shows may have been cut short by a crash; the one before was complete.
        let sure = record.last_checkpoint.max(seen.saturating_sub(1));
        member.last_checkpoint.store(sure, Ordering::Relaxed);
        member.set_errors(record.errors);
        member.set_traffic(record.traffic);
        member.set_set(record.set);
        if record.declared {
            member.stay_out();
        }
        if member.online().is_none()
            || matches!(record.service, Service::Leaving | Service::Failing | Service::Condemned)
        {
            member.set_service(record.service);
        }
        members.push(member);
    }
    for (name, _) in found.labels().filter(|(_, l)| !catalogue.disks.iter().any(|r| r.uuid == l.disk)) {
        tracing::warn!(
            disk = name,
            pool = label.pool_name,
            "disk left out: it was removed from the pool, or never wholly added"
        );
    }
    let array = DiskArray::new(env.clone(), label.geometry, catalogue.tolerance, members);
    array.set_guaranteed(catalogue.guaranteed);
    array.set_mixed(catalogue.mixed);
    if array.check_quorum().is_err() {
        // What was declared failed stays out, but not at the price of the data.
        for member in array.members().iter().filter(|m| m.serve_at_need()) {
            tracing::warn!(
                disk = member.id.0,
                "the disk was declared failed, and too many are gone to do without it: it serves until the others have what it holds"
            );
        }
    }
    if config.read_only {
        return Ok(array);
    }
    array.check_quorum().map_err(|e| {
        // One of these may be among those that are gone, but which one it is cannot be told.
        let nameless: Vec<String> =
            found.unusable.iter().filter(|u| u.label.is_none()).map(|u| u.why.to_string()).collect();
        let given = if nameless.is_empty() {
            String::new()
        } else {
            format!(" (given without a good label: {})", nameless.join("; "))
        };
        Error::new(e.kind(), format!("pool {}: {e}{given}", label.pool_name))
    })?;
    Ok(array)
}

impl Engine {
    /// An engine in the state of a checkpoint, without tasks: enough to read and to replay.
    pub fn at_checkpoint(
        env: Arc<dyn Env>,
        array: Arc<DiskArray>,
        label: &Label,
        epoch: Epoch,
        (superblock, catalogue): (&Superblock, &Catalogue),
        found: replay::Replay,
        config: PoolConfig,
    ) -> Self {
        let segments = SegmentTable::new(
            array.geometry,
            catalogue.disks.iter().map(|d| (d.id, d.size)),
            catalogue.segments.clone(),
            catalogue.next_incarnation,
        );
        let mut state = State::of(catalogue, segments, superblock.checkpoint);
        let shares = Shares::new(config.cache_bytes());
        let remembered = config.remembered_bytes() / PAGE_MEMORY;
        state.maps.pages.remember(remembered);
        state.table.pages.remember(remembered);
        let mut index = DedupeIndex::new(config.dedupe_index(catalogue.disks.iter().map(|d| d.size).sum()));
        index.set_truncation(config.fingerprint_bits);
        let opened = env.now();
        Self {
            opened,
            candidates: RwLock::new(Rank::Candidates, Vec::new()),
            judged: Default::default(),
            uuid: label.pool,
            name: label.pool_name.clone(),
            epoch,
            intake: Intake::new(config.write_buffer().min(taken_max(&state, &array)), state.seqno),
            carry: Mutex::new(Rank::Carry, None),
            log: Log::new(array.clone(), label.pool, epoch, found.extents, found.next_extent),
            log_queue: Mutex::new(Rank::LogQueue, LogQueue::default()),
            log_wake: Notify::new(),
            durable: watch::channel(Durable { seqno: state.seqno.0, record: state.record }).0,
            state: RwLock::new(Rank::State, state),
            committer: tokio::sync::Mutex::new(Committer::default()),
            stripes: Arc::new(Semaphore::new(STRIPES_IN_FLIGHT)),
            appenders: RwLock::new(Rank::Appenders, FxHashMap::default()),
            index: Mutex::new(Rank::Index, index),
            list_loaded: Notify::new(),
            frames: FrameCache::new(shares.of(Cache::Frames), config.remembered_bytes()),
            shares: parking_lot::Mutex::new(shares),
            gate: Arc::default(),
            counters: Counters::default(),
            label: label.clone(),
            labelled_changes: tokio::sync::Mutex::new(u64::MAX),
            noted_failures: AtomicU64::new(0),
            catalogue_bytes: AtomicU64::new(superblock.catalogue_len.into()),
            segment_counts: Mutex::new(Rank::SegmentCounts, ((u64::MAX, 0), super::space::Space::default())),
            checkpoint_wanted: Notify::new(),
            checkpointed: watch::channel(superblock.checkpoint).0,
            checkpoints: tokio::sync::Mutex::new(Checkpoints {
                number: superblock.checkpoint,
                record: catalogue.record,
                clock_s: catalogue.clock_s,
                forced: true,
                close_segments: false,
                open: None,
                failures: 0,
                unflushed: (Vec::new(), 0),
            }),
            pins: AtomicUsize::new(0),
            cleaner_wanted: Notify::new(),
            set_aside: AtomicUsize::new(0),
            scrub: Mutex::new(Rank::Progress, catalogue.scrub),
            scrub_runs: AtomicU64::new(0),
            in_transition: AtomicUsize::new(0),
            regroups: tokio::sync::Mutex::new(()),
            balance: Mutex::new(Rank::Balance, Default::default()),
            scrub_wanted: Notify::new(),
            broken: Mutex::new(Rank::Broken, BTreeMap::new()),
            mending_wanted: false.into(),
            recompress_wanted: Notify::new(),
            is_cleaning: false.into(),
            promised: AtomicU64::new(0),
            back_pressure: Default::default(),
            pace: Pace::new(config.priority),
            reaper: Mutex::new(Rank::Progress, Default::default()),
            rebuild: Mutex::new(Rank::Progress, None),
            stopping: false.into(),
            failure: Mutex::new(Rank::Failure, None),
            clock: OnceLock::new(),
            clock_bound: AtomicUsize::new(0),
            env,
            array,
            config,
        }
    }

    /// Opens a pool without writing anything to it, whatever it lacks: in the state of the newest checkpoint and of as much of the log as is there.
    /// With more disks gone than the pool tolerates that may be less than was flushed.
    async fn open_to_read(env: Arc<dyn Env>, disks: Vec<Arc<dyn Disk>>, config: PoolConfig) -> Result<Arc<Self>> {
        let candidates = timeouts::with_limit(&env, disks, config.disk_timeout);
        let found = identify(timeouts::as_disks(&candidates)).await?;
        let Root { superblock, catalogue, .. } = newest_checkpoint(&found.disks).await?;
        let array = Arc::new(assemble(&env, &found, &catalogue, &config)?);
        let label = found.disks[0].label.clone();
        let seen = found.disks.iter().map(|d| d.label.epoch).max().unwrap_or_default();
        let newest: Vec<&Label> =
            found.disks.iter().map(|d| &d.label).filter(|l| l.epoch.0 >> 32 == seen.0 >> 32).collect();
        let absent = absent_by_labels(&newest, &catalogue);
        timeouts::refuse_busy(&array, &config, absent)?;
        let absent = absent | array.absent();
        let writer = (label.pool, superblock.log_epoch);
        let mut replayed = replay::read(&array, writer, superblock.log_start, catalogue.record + 1, absent).await?;
        let entries = std::mem::take(&mut replayed.entries);
        let (epoch, at) = (superblock.epoch, (&superblock, &catalogue));
        let engine = Arc::new(Self::at_checkpoint(env, array, &label, epoch, at, replayed, config));
        engine.set_candidates(candidates);
        tracing::warn!(pool = engine.name, entries = entries.len(), "opening for reading only");
        let open = engine.replay(entries).await.context(format!("pool {}: replaying the log", label.pool_name))?;
        engine.mark_stale(&open, absent);
        for (id, end) in open {
            let Ok(extent) = engine.extent(id) else { continue };
            if extent.incarnation != end.incarnation {
                continue;
            }
            let Ok((written, tail)) = engine.resume_at(&extent, &end).await else { continue };
            let appender = Arc::new(Appender::new(extent, &engine.array.geometry, written, Location::default()));
            appender.restore(written, &tail);
            end.inline.iter().for_each(|inline| appender.restore(inline.offset, &inline.data));
            engine.appenders.write().insert(id, appender);
        }
        Ok(engine)
    }

    /// Opens a pool for writing, unless it is to be read only.
    pub async fn open(env: Arc<dyn Env>, disks: Vec<Arc<dyn Disk>>, config: PoolConfig) -> Result<Arc<Self>> {
        if config.read_only {
            return Self::open_to_read(env, disks, config).await;
        }
        let candidates = timeouts::with_limit(&env, disks, config.disk_timeout);
        let found = identify(timeouts::as_disks(&candidates)).await?;
        let disks = &found.disks;
        let Root { superblock, catalogue, encoded } = newest_checkpoint(disks).await?;
        let array = Arc::new(assemble(&env, &found, &catalogue, &config)?);
        let label = disks[0].label.clone();
        let seen = disks.iter().map(|d| d.label.epoch).max().unwrap_or_default().max(superblock.epoch);
        // The low half is random: of two writers that each saw only some of the disks, neither takes the other's log for its own.
        let epoch = next_epoch(&env, seen);
        // Before the labels tell of this writer.
        let left = carry::find(&config, label.pool, seen, epoch)?;
        // Disks that came back since the newest label was written lack what was logged meanwhile.
        let newest: Vec<&Label> = disks.iter().map(|d| &d.label).filter(|l| l.epoch.0 >> 32 == seen.0 >> 32).collect();
        let absent = absent_by_labels(&newest, &catalogue);
        timeouts::refuse_busy(&array, &config, absent)?;
        write_labels(&array, &label, epoch, absent).await?;
        // Whoever opens the pool next must go on from here, or from what comes of it. Disks that did not show their superblocks this time may
        // hold that of another checkpoint, which a crash cut short and whose space is about to be written to; and this checkpoint itself may
        // be on a few disks only. So it gets the new epoch, on all disks, before anything else is written.
        let superblock = Superblock { epoch, ..superblock };
        mark_root(&array, &superblock, &encoded).await?;
        if let Some(left) = &left {
            left.settle(epoch);
        }

        let found = {
            let writer = (label.pool, superblock.log_epoch);
            let found = replay::read(&array, writer, superblock.log_start, catalogue.record + 1, absent).await?;
            if array.failures() > 0 || found.unread != 0 {
                // A disk went since the labels were written, or did not give all of its log. Entries that it alone holds were perhaps not found:
                // later they must not be taken for what this writer, who is about to write where they refer to, went on from.
                write_labels(&array, &label, epoch, absent | found.unread).await?;
            }
            found
        };
        let entries = found.entries;
        let found = replay::Replay { entries: Vec::new(), ..found };
        let at = (&superblock, &catalogue);
        let engine = Self::at_checkpoint(env, array, &label, epoch, at, found, config);
        let engine = Arc::new(engine);
        engine.set_candidates(candidates);
        tracing::info!(
            pool = engine.name,
            epoch = epoch.0,
            checkpoint = superblock.checkpoint,
            entries = entries.len(),
            "opening"
        );
        engine.counters.log_replayed.store(entries.len() as u64, Ordering::Relaxed);
        let open = engine.replay(entries).await.context(format!("pool {}: replaying the log", label.pool_name))?;
        let reached = {
            let state = engine.state.read();
            Durable { seqno: state.seqno.0, record: state.record }
        };
        engine.durable.send_replace(reached);
        *engine.log_queue.lock() = LogQueue::new(reached);
        engine.intake.resume(reached.seqno);
        engine.start();
        engine.mark_stale(&open, absent);
        if let Err(e) = engine.go_on(open, left).await {
            // Its tasks hold the disks.
            engine.stop();
            return Err(e);
        }
        let took = engine.env.now().saturating_sub(engine.opened);
        engine.counters.recovery_us.store(took.as_micros() as u64, Ordering::Relaxed);
        engine.start_background();
        Ok(engine)
    }

    /// Makes what was found a checkpoint, and goes on from there with what hosts were told is done.
    async fn go_on(self: &Arc<Self>, open: BTreeMap<SegmentId, OpenEnd>, left: Option<carry::Left>) -> Result<()> {
        self.finish_segments(open).await?;
        self.checkpoint().await?;
        self.label_absent().await?;
        // What hosts were told may need room to be made first.
        self.start_making_room();
        self.enter_again(left).await
    }

    /// Applies all entries; returns what is known of segments that were open.
    async fn replay(&self, entries: Vec<crate::format::record::Entry>) -> Result<BTreeMap<SegmentId, OpenEnd>> {
        let mut open: BTreeMap<SegmentId, OpenEnd> = BTreeMap::new();
        for s in self.state.read().segments.iter().filter(|s| !s.record.sealed) {
            open.insert(s.record.id, OpenEnd::new(&s.record));
        }
        let count = entries.len();
        for (n, entry) in entries.into_iter().enumerate() {
            let mut records = entry.records;
            if planted::active(Bug::ReplayShort) && n + 1 == count {
                records.pop();
            }
            if planted::active(Bug::ReplayReordered) {
                records.reverse();
            }
            for record in records {
                // Only what is new counts: a segment that the checkpoint itself took into use may be opened here again.
                for op in &record.ops {
                    if let Op::OpenSegment(s) = op
                        && open.get(&s.id).is_none_or(|o| o.incarnation < s.incarnation)
                    {
                        open.insert(s.id, OpenEnd::new(s));
                    }
                }
                self.with_state_mut(|s| s.apply(&record)).await.context(format!("record {}", record.number))?;
                for (at, item, blocks) in self.state.read().describe(&record)? {
                    if let Some(end) = open.get_mut(&at.segment) {
                        end.end = end.end.max(at.offset + u32::from(at.len));
                        end.items.push((item, blocks));
                    }
                }
                for op in &record.ops {
                    if let Op::ClosePart { at } = op
                        && let Some(end) = open.get_mut(&at.segment)
                    {
                        end.items.retain(|(i, _)| i.offset > at.offset);
                        end.end = end.end.max(at.offset + u32::from(at.len));
                    }
                }
            }
            for (segment, durable) in entry.durable {
                if let Some(end) = open.get_mut(&segment) {
                    end.durable = end.durable.max(durable);
                }
            }
            for inline in entry.inline {
                if let Some(end) = open.get_mut(&inline.segment) {
                    end.inline.push(inline);
                }
            }
        }
        Ok(open)
    }

    /// Columns on disks that were absent may lack anything that was written since the checkpoint.
    fn mark_stale(&self, open: &BTreeMap<SegmentId, OpenEnd>, absent: u128) {
        let state = self.state.read();
        for extent in open.keys().filter_map(|id| state.segments.get(*id)).map(|s| &s.extent) {
            for (column, (disk, _)) in extent.columns.iter().enumerate() {
                if absent.checked_shr(disk.0.into()).unwrap_or(0) & 1 == 1 {
                    extent.stale.fetch_or(1 << column, Ordering::AcqRel);
                }
            }
        }
    }

    /// Writes to all labels which disks are not there, unless they say so already.
    pub(super) async fn label_absent(&self) -> Result<()> {
        // One at a time: the two copies of a label must never be under way together.
        let mut labelled = self.labelled_changes.lock().await;
        let changes = self.array.changes();
        if *labelled != changes {
            write_labels(&self.array, &self.label, self.epoch, 0).await?;
            *labelled = changes;
        }
        Ok(())
    }

    /// Writes what open segments still lack, describes it, and seals them.
    async fn finish_segments(self: &Arc<Self>, open: BTreeMap<SegmentId, OpenEnd>) -> Result<()> {
        let mut appenders = Vec::new();
        for (id, end) in open {
            let Some((extent, last_part)) = ({
                let mut state = self.state.write();
                let same = state.segments.get(id).filter(|s| s.record.incarnation == end.incarnation);
                let found = same.map(|s| (s.extent.clone(), s.record.last_part));
                found.inspect(|_| state.segments.seal(id))
            }) else {
                continue;
            };
            let (written, tail) = self.resume_at(&extent, &end).await?;
            let appender = Arc::new(Appender::new(extent, &self.array.geometry, written, last_part));
            appender.restore(written, &tail);
            for inline in &end.inline {
                appender.restore(inline.offset, &inline.data);
            }
            if appender.filled() < end.end {
                return Err(Error::corrupt(format!(
                    "segment {id}: the log refers to {} bytes but holds only {}",
                    end.end,
                    appender.filled()
                )));
            }
            let mut ready = Vec::new();
            for (item, blocks) in end.items {
                appender.describe(item, blocks);
            }
            if !appender.has_room_for_summary() {
                return Err(Error::corrupt(format!(
                    "segment {id}: no room is left for the summary of what the log refers to"
                )));
            }
            if let Some((at, _)) = appender.close_part(&mut ready)
                && let Some(s) = self.state.write().segments.get_mut(id)
            {
                s.record.last_part = at;
            }
            appender.seal(&mut ready);
            self.appenders.write().insert(id, appender.clone());
            for stripe in ready {
                self.send_stripe(appender.clone(), stripe).await?;
            }
            appenders.push(appender);
        }
        for appender in &appenders {
            appender.wait_completed(appender.filled(), || self.is_dead()).await;
        }
        match self.failure() {
            Some(e) => return Err(e),
            None => self.flush_disks(appenders.iter()).await?,
        }
        self.retire_appenders();
        Ok(())
    }

    /// From where on a segment is finished: how many bytes of it, whole stripes, stay as they are on disk, and what follows them.
    ///
    /// More may be durable than the records that were found refer to: stripes of records that were lost. They are dropped, so that
    /// there is room for the summary. Where only the stripe in which the last frame ends has that room, it is written again with the
    /// same bytes up to that end.
    async fn resume_at(&self, extent: &Extent, end: &OpenEnd) -> Result<(u32, Bytes)> {
        let (stripe, used) = (extent.stripe_size(&self.array.geometry), end.end.max(end.checkpointed));
        let whole = used.next_multiple_of(stripe).min(end.durable);
        let summary = PART_OVERHEAD + end.items.iter().map(|(_, blocks)| item_bytes_max(*blocks)).sum::<usize>();
        if end.items.is_empty()
            || whole < used
            || (whole as usize + summary) <= extent.capacity(&self.array.geometry) as usize
        {
            return Ok((whole, Bytes::new()));
        }
        let from = used / stripe * stripe;
        Ok((from, self.array.read_segment(extent, from, (used - from) as usize).await?))
    }

    /// Fills the dedupe index from part summaries, newest segments first. Advice only: nothing waits for it.
    pub(super) async fn rebuild_index(self: Arc<Self>) {
        let mut segments: Vec<(u64, SegmentId, Location)> = {
            let state = self.state.read();
            let of = |s: &crate::segment::table::Segment| (s.record.incarnation, s.record.id, s.record.last_part);
            state.segments.iter().map(of).collect()
        };
        segments.sort_unstable_by_key(|s| std::cmp::Reverse(s.0));
        for (_, id, mut at) in segments {
            while at.len > 0 && !self.is_dead() {
                let pass = self.gate.enter();
                let Some(part) = self.read_part(id, at.offset).await else { break };
                drop(pass);
                let fingerprints = part.items.iter().flat_map(|i| match &i.content {
                    Content::Data(blocks) => blocks.iter().map(|(_, fp)| *fp).collect::<Vec<_>>(),
                    _ => Vec::new(),
                });
                self.index.lock().add_list(ListId::new(id, at.offset), fingerprints);
                at = part.previous;
            }
        }
    }
}

/// What replay knows of a segment that was open at the crash.
struct OpenEnd {
    incarnation: u64,
    durable: u32,
    /// Bytes on disk at the checkpoint.
    checkpointed: u32,
    end: u32,
    inline: Vec<Inline>,
    items: Vec<(Item, usize)>,
}

impl OpenEnd {
    fn new(record: &SegmentRecord) -> Self {
        Self {
            incarnation: record.incarnation,
            durable: record.written,
            checkpointed: record.written,
            end: 0,
            inline: Vec::new(),
            items: Vec::new(),
        }
    }
}

/// The epoch after `seen`: one more in the upper half, chance in the lower.
pub fn next_epoch(env: &Arc<dyn Env>, seen: Epoch) -> Epoch {
    Epoch(((seen.0 >> 32) + 1) << 32 | env.random_u64() >> 32)
}

/// Disks whose copies of the log cannot be relied on, as the newest labels say: a bit per disk.
///
/// A disk that went itself kept an older label, which knows nothing of disks that came back since: it does not count when a disk that nobody calls absent
/// says that it was away, or when it was condemned or declared failed, for then nobody labels it. Where disks call each other absent all of them count.
fn absent_by_labels(labels: &[&Label], catalogue: &Catalogue) -> u128 {
    let bit = |l: &Label| 1u128.checked_shl(l.id.0.into()).unwrap_or(0);
    let here = |l: &&&Label| {
        let record = catalogue.disks.iter().find(|r| r.uuid == l.disk);
        record.is_some_and(|r| r.service != Service::Condemned && !r.declared)
    };
    let labels: Vec<&&Label> = labels.iter().filter(here).collect();
    let called = labels.iter().fold(0, |bits, l| bits | l.absent);
    let trusted = labels.iter().filter(|l| called & bit(l) == 0).fold(0, |bits, l| bits | l.absent);
    labels.iter().filter(|l| trusted & bit(l) == 0).fold(0, |bits, l| bits | l.absent)
}

/// Writes every disk's label with a new epoch, one copy after the other.
///
/// `absent` adds to the disks that are not there now.
pub async fn write_labels(array: &DiskArray, pool: &Label, epoch: Epoch, absent: u128) -> Result<()> {
    let absent = absent | array.unreliable();
    let writes = array.online().into_iter().map(|m| async move {
        let data = label_of(&m, pool, epoch, absent, array.tolerance());
        let tail = array.geometry.tail(m.size);
        // A crash may have torn the copy at the end: then it is written first, so that one copy is intact at any time.
        let intact = array.read_disk(m.id, tail, LABEL_SIZE).await.is_ok_and(|old| Label::decode(&old).is_ok());
        for at in if intact { [0, tail] } else { [tail, 0] } {
            array.write(m.id, at, vec![data.clone()], true).await?;
        }
        Ok::<(), Error>(())
    });
    join_all(writes).await;
    array.check_quorum()
}

fn label_of(m: &Member, pool: &Label, epoch: Epoch, absent: u128, tolerance: Tolerance) -> Bytes {
    let label = Label { disk: m.uuid, id: m.id, size: m.size, epoch, absent, tolerance, ..pool.clone() };
    AlignedBuf::padded(&label.encode()).freeze()
}

/// Labels a disk that is not a member yet.
pub(super) async fn write_label(
    array: &DiskArray,
    pool: &Label,
    epoch: Epoch,
    absent: u128,
    member: &Member,
    disk: &Arc<dyn Disk>,
) -> Result<()> {
    let data = label_of(member, pool, epoch, absent, array.tolerance());
    for at in [0, array.geometry.tail(member.size)] {
        let written = disk.write(at, vec![data.clone()], true).await;
        written.map_err(|e| Error::io(format!("{}: {e}", disk.name())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
