//! The engine of one pool: how a write travels from a host to disk and a read back.
//!
//! `intake` (acknowledge, overlay) → `destage` (find duplicates, compress, in parallel) → `commit` (one after another: places, records,
//! state) → `group_commit` (log, flush) and, in the background, `checkpoint` and `cleaner`. `recovery` is the way back after a crash.

mod answer;
mod backpressure;
pub mod balance;
mod carry;
pub mod checkpoint;
pub mod cleaner;
mod clock;
pub mod commit;
pub mod damage;
pub mod destage;
pub mod device;
mod diff;
pub mod frame;
pub mod frame_cache;
pub mod gate;
pub mod group_commit;
pub mod intake;
pub mod load;
pub mod members;
pub mod pace;
pub mod read_path;
mod reap;
pub mod rebuild;
mod recompress;
pub mod recovery;
pub mod reserve;
pub mod scrub;
pub mod shares;
pub mod space;
pub mod state;
pub mod timeouts;
pub mod usage;
mod verify;
mod versions;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, Semaphore, watch};

use crate::codec::FRAME_BLOCKS;
use crate::dedupe::DedupeIndex;
use crate::disk::TimeoutDisk;
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalogue::ScrubRecord;
use crate::format::label::Label;
use crate::lock::{Mutex, RwLock};
use crate::log::Log;
use crate::redundancy::array::DiskArray;
use crate::report::{Compression, Priority};
use crate::segment::appender::Appender;
use crate::units::{Epoch, SegmentId, Uuid, VolumeId};

use checkpoint::Checkpoints;
use clock::PoolClock;
use commit::Committer;
use frame_cache::FrameCache;
use gate::Gate;
use group_commit::LogQueue;
use intake::Intake;
use pace::Pace;
use state::State;

/// Settings of an open pool.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Bytes for write buffer, metadata pages, frame cache and dedupe index together.
    pub memory: u64,
    /// How frames are compressed.
    pub compression: Compression,
    /// Blocks compressed together, 1 to [`FRAME_BLOCKS`].
    pub frame_blocks: usize,
    /// Batches of writes that are being compared and compressed at the same time; none: as many as the write buffer is good for.
    pub batches: Option<usize>,
    /// Longest time that buffered writes wait for company before they are reduced.
    pub linger: Duration,
    /// Longest time that committed operations wait for the log when no host asks for a flush.
    pub log_interval: Duration,
    /// Longest time between checkpoints while there are changes.
    pub checkpoint_interval: Duration,
    /// What a disk that failed held is rebuilt elsewhere after this time.
    pub failed_grace: Duration,
    /// The same for a disk that is missing.
    pub missing_grace: Duration,
    /// A scrub begins when the last one began longer ago; never when zero.
    pub scrub_interval: Duration,
    /// A disk with so many errors of late is emptied and declared failed; never when zero.
    pub error_limit: u32,
    /// A disk that leaves a request unanswered for so long is declared failed, if the pool can do without it; none: never.
    pub disk_timeout: Option<Duration>,
    /// Nothing is written: for pools that lack more disks than they tolerate, whatever can be read of them.
    pub read_only: bool,
    /// How much background work may slow hosts down.
    pub priority: Priority,
    /// Data that nobody has changed for so long is compressed harder, if it is compressed by Zstandard; none: never.
    pub recompress_after: Option<Duration>,
    /// Places of a version that is being deleted that one record deals with.
    pub reap_places: usize,
    /// Fingerprints are cut to this many bits: for tests that force collisions.
    pub fingerprint_bits: Option<u32>,
    /// What is known of disks from earlier, to name those that are missing now.
    pub known_disks: BTreeMap<Uuid, KnownDisk>,
    /// Where memory is had that outlives the process.
    pub carry: Option<Arc<dyn crate::carry::Store>>,
}

/// A disk as it was seen before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownDisk {
    /// Where it was.
    pub path: String,
    /// Why it could not be opened this time.
    pub trouble: Option<String>,
    /// That is so because somebody has it open.
    pub busy: bool,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            memory: 512 << 20,
            compression: Compression::Zstd,
            frame_blocks: FRAME_BLOCKS,
            batches: None,
            linger: Duration::from_millis(20),
            log_interval: Duration::from_millis(500),
            checkpoint_interval: Duration::from_secs(30),
            failed_grace: Duration::from_secs(30),
            missing_grace: Duration::from_secs(300),
            scrub_interval: Duration::from_secs(28 * 24 * 3600),
            error_limit: 64,
            disk_timeout: Some(Duration::from_secs(30)),
            read_only: false,
            priority: Priority::Normal,
            recompress_after: None,
            reap_places: 64,
            fingerprint_bits: None,
            known_disks: BTreeMap::new(),
            carry: None,
        }
    }
}

impl PoolConfig {
    /// Bytes of host writes that may wait to be committed.
    pub fn write_buffer(&self) -> u64 {
        (self.memory / 8).clamp(1 << 20, 128 << 20)
    }

    /// Bytes of writes that wait for the log and outlive the process.
    pub fn carry_bytes(&self) -> usize {
        (self.memory / 16).clamp(1 << 20, 64 << 20) as usize
    }

    /// Bytes of the dedupe index for a pool of `raw` bytes: 128 MiB for a TiB, which is 100 MiB and less for what it can hold, but
    /// enough for a small pool to know all of its recent blocks.
    pub fn dedupe_index(&self, raw: u64) -> usize {
        (raw / 8192).max(16 << 20).min(self.memory / 8).max(1 << 16) as usize
    }
}

/// What happened since the pool was opened.
#[derive(Default)]
pub struct Counters {
    /// Requests and bytes of hosts.
    pub host_reads: AtomicU64,
    /// See `host_reads`.
    pub host_read_bytes: AtomicU64,
    /// See `host_reads`.
    pub host_writes: AtomicU64,
    /// See `host_reads`.
    pub host_write_bytes: AtomicU64,
    /// See `host_reads`.
    pub host_flushes: AtomicU64,
    /// Bytes of zero blocks written.
    pub zero_bytes: AtomicU64,
    /// Log entries replayed when the pool was opened.
    pub log_replayed: AtomicU64,
    /// Microseconds that took, with all that opening writes.
    pub recovery_us: AtomicU64,
    /// Blocks shared.
    pub dedupe_hits: AtomicU64,
    /// Candidates that differed.
    pub dedupe_misses: AtomicU64,
    /// Checkpoints completed.
    pub checkpoints: AtomicU64,
    /// Bytes moved by the cleaner.
    pub cleaner_moved: AtomicU64,
    /// Segments emptied by the cleaner.
    pub cleaner_segments: AtomicU64,
    /// Bytes these have room for.
    pub cleaner_cleaned: AtomicU64,
    /// Microseconds the cleaner was at work.
    pub cleaner_us: AtomicU64,
    /// Stored bytes that were compressed harder.
    pub recompressed: AtomicU64,
    /// Bytes of columns written anew.
    pub rebuilt: AtomicU64,
    /// Blocks whose checksum did not match and that redundancy gave back.
    pub repaired: AtomicU64,
}

/// How far operations are durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// Host operations up to this number.
    pub seqno: u64,
    /// Records up to this number.
    pub record: u64,
}

/// The engine of one open pool.
pub struct Engine {
    /// Clock, randomness, tasks.
    pub env: Arc<dyn Env>,
    /// Disks.
    pub array: Arc<DiskArray>,
    /// All disks the pool was opened with, also those that could not be used then.
    pub candidates: RwLock<Vec<Arc<TimeoutDisk>>>,
    /// When several disks were last silent at the same time, more than can be done without. What becomes of disks that do not answer is decided one after
    /// the other.
    judged: parking_lot::Mutex<Option<Duration>>,
    /// Identity.
    pub uuid: Uuid,
    /// Name.
    pub name: String,
    /// Writer epoch.
    pub epoch: Epoch,
    /// Settings.
    pub config: PoolConfig,
    /// Committed state. Held only for short, never across I/O.
    pub state: RwLock<State>,
    /// Whoever holds this commits.
    pub committer: tokio::sync::Mutex<Committer>,
    /// Room for stripes on their way to disk.
    pub stripes: Arc<Semaphore>,
    /// Open ends of segments, and sealed ones whose last stripes are on their way.
    pub appenders: RwLock<FxHashMap<SegmentId, Arc<Appender>>>,
    /// The log.
    pub log: Log,
    /// Records that wait for the log.
    pub log_queue: Mutex<LogQueue>,
    /// Wakes the log writer.
    pub log_wake: Notify,
    /// How far operations are durable.
    pub durable: watch::Sender<Durable>,
    /// Host operations that wait to be committed.
    pub intake: Intake,
    /// Those that outlive the process; none before somebody asks for it.
    pub(crate) carry: Mutex<Option<Arc<crate::carry::Ring>>>,
    /// Fingerprint index.
    pub index: Mutex<DedupeIndex>,
    /// Tells that a fingerprint list was loaded.
    pub(crate) list_loaded: Notify,
    /// Uncompressed frames.
    pub frames: FrameCache,
    /// How much memory each cache may have.
    pub(crate) shares: parking_lot::Mutex<shares::Shares>,
    /// Grace periods of freed space.
    pub gate: Arc<Gate>,
    /// What all labels have in common.
    pub(crate) label: Label,
    /// State of [`DiskArray::changes`] that the labels tell of.
    pub(crate) labelled_changes: tokio::sync::Mutex<u64>,
    /// Disk failures that the newest checkpoint records.
    pub(crate) noted_failures: AtomicU64,
    /// Encoded bytes of the newest catalogue.
    pub(crate) catalogue_bytes: AtomicU64,
    /// Segments in all and free, as of the versions of segment table and array in front.
    pub(crate) segment_counts: Mutex<((u64, u64), space::Space)>,
    /// Counters.
    pub counters: Counters,
    /// Asks for a checkpoint.
    pub checkpoint_wanted: Notify,
    /// Number of the newest durable checkpoint.
    pub checkpointed: watch::Sender<u64>,
    /// One checkpoint at a time.
    pub checkpoints: tokio::sync::Mutex<Checkpoints>,
    /// Readers of a checkpoint on disk: while there are any, no segment is given back.
    pub pins: AtomicUsize,
    /// Asks for cleaning.
    pub cleaner_wanted: Notify,
    /// Segments whose redundancy cannot be restored, because something in them cannot be read.
    pub(crate) set_aside: AtomicUsize,
    /// The newest scrub.
    pub(crate) scrub: Mutex<ScrubRecord>,
    /// Scrubs begun since the pool was opened.
    pub(crate) scrub_runs: AtomicU64,
    /// Sets or tolerance are about to change: the pool stays mixed, and its guarantee where it is.
    pub(crate) in_transition: AtomicUsize,
    /// Whoever holds this changes sets or tolerance.
    pub(crate) regroups: tokio::sync::Mutex<()>,
    /// Whether data is being spread.
    pub(crate) balance: Mutex<balance::Balance>,
    /// Wakes who scrubs: one was asked for, or is to stop.
    pub(crate) scrub_wanted: Notify,
    /// Volumes that take no writes, and why: a page of their map cannot be read.
    pub(crate) broken: Mutex<BTreeMap<VolumeId, damage::Broken>>,
    /// Pages that could not be read may be there again: volumes are to be looked at that take no writes.
    pub(crate) mending_wanted: AtomicBool,
    /// Wakes who compresses cold data harder: the pool stops.
    pub(crate) recompress_wanted: Notify,
    /// Whether the cleaner is at work: it asks for the checkpoints that give segments back.
    pub(crate) is_cleaning: AtomicBool,
    /// Bytes that reservations are about to set aside.
    pub(crate) promised: AtomicU64,
    /// Holds hosts back when space is short.
    pub(crate) back_pressure: backpressure::BackPressure,
    /// Who works in the background, and how much.
    pub(crate) pace: Pace,
    /// Whether versions are being deleted.
    pub(crate) reaper: Mutex<reap::Reaper>,
    /// Redundancy being restored.
    pub(crate) rebuild: Mutex<Option<rebuild::Progress>>,
    /// Set by `stop`.
    stopping: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Time of opening.
    pub opened: Duration,
    /// Set when it is first read.
    clock: OnceLock<PoolClock>,
    /// Who is about to make something that expires.
    clock_bound: AtomicUsize,
}

impl Engine {
    /// Why the pool no longer takes writes, if it does not.
    pub fn failure(&self) -> Option<Error> {
        self.failure.lock().clone()
    }

    /// Fails with the reason when the pool no longer takes writes.
    pub fn check_alive(&self) -> Result<()> {
        match self.failure() {
            Some(e) => Err(e),
            None if self.is_stopping() => {
                Err(Error::new(ErrorKind::Unavailable, format!("pool {} is stopped", self.name)))
            }
            None => Ok(()),
        }
    }

    /// Fails with the reason when nothing may be changed.
    pub fn check_writable(&self) -> Result<()> {
        if self.config.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, format!("pool {} is open for reading only", self.name)));
        }
        self.check_alive()
    }

    /// Whether the pool is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Whether nothing more will be written: stopped or failed.
    pub fn is_dead(&self) -> bool {
        self.is_stopping() || self.failure.lock().is_some()
    }

    /// Stops taking writes for good: everything that waits is answered with the error. What was acknowledged as durable stays so.
    pub fn fail(&self, error: Error) {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            tracing::error!(pool = self.name, %error, "pool stopped taking writes");
            *failure = Some(error);
        }
        drop(failure);
        self.wake_all();
    }

    /// Ends all tasks of the engine.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake_all();
    }

    fn wake_all(&self) {
        self.intake.interrupt();
        self.array.stop();
        self.pace.interrupt();
        self.stripes.close();
        self.log_wake.notify_one();
        self.list_loaded.notify_waiters();
        self.log.interrupt();
        self.checkpoint_wanted.notify_one();
        self.cleaner_wanted.notify_one();
        self.recompress_wanted.notify_one();
        self.array.changed.notify_one();
        self.array.suspected.notify_one();
        self.appenders.read().values().for_each(|a| a.interrupt());
        self.durable.send_modify(|_| {});
        self.checkpointed.send_modify(|_| {});
    }

    /// Runs a task of the engine. One that panics stops the pool: what it was about to do may be half done.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let engine = self.clone();
        self.env.spawn(Box::pin(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                engine.fail(Error::io("a task of the engine ended unexpectedly; open the pool again"));
            }
        }));
    }

    /// Starts the tasks that take writes to disk.
    pub fn start(self: &Arc<Self>) {
        let (batches, reduced) = tokio::sync::mpsc::channel(destage::batches_in_flight(&self.config));
        self.spawn(self.clone().destage(batches));
        self.spawn(self.clone().commit_batches(reduced));
        self.spawn(self.clone().write_log());
    }

    /// Starts what makes room; only once a recovery has made its checkpoint.
    pub fn start_making_room(self: &Arc<Self>) {
        self.spawn(self.clone().checkpoint_loop());
        self.spawn(self.clone().clean_loop());
    }

    /// Starts what else works by itself.
    pub fn start_background(self: &Arc<Self>) {
        self.spawn(self.clone().recompress_loop());
        self.spawn(self.clone().rebuild_loop());
        self.spawn(self.clone().scrub_loop());
        self.spawn(self.clone().rebuild_index());
    }
}
