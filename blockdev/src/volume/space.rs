//! How much room there is, who may use it, and what hosts are told when there is none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Engine;
use super::state::State;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{CATALOGUE_FULL, PoolGeometry};
use crate::redundancy::array::DiskArray;
use crate::redundancy::layout::Width;
use crate::report::Alert;
use crate::segment::appender::recovery_room;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, VolumeId};

/// Share of segments kept for the cleaner and for metadata.
const RESERVE: f64 = 0.08;
/// Free segments that the cleaner leaves to checkpoints, besides room for all dirty pages.
const CLEANER_MIN: u64 = 3;
/// Free segments that host data leaves to the cleaner on top of that.
const HOST_MIN: u64 = 4;
/// The same in an overfull pool.
const LAST_MIN: u64 = 2;
/// Segments that are open at a time, of two streams and the metadata: a drive that fails makes each be closed and takes another.
const OPEN_SEGMENTS: u64 = 3;
/// The cleaner begins when fewer segments are free above what hosts must leave, and ends when so many are, however small the pool.
const CLEAN_MIN: (u64, u64) = (8, 12);
/// Share of all segments, and least number of them, within which hosts are slowed down; but no more than the cleaner can make free in a pool that is
/// full.
const WINDOW_SHARE: u64 = 24;
/// See [`WINDOW_SHARE`].
const WINDOW_MIN: u64 = 8;
/// The cleaner begins when less of the window is left, gives way to nobody below the second, and ends with the third.
const CLEAN_BELOW: f64 = 1.25;
/// See [`CLEAN_BELOW`].
const CLEAN_FULLY: f64 = 0.75;
/// See [`CLEAN_BELOW`].
const CLEAN_UPTO: f64 = 1.5;
/// Free segments, and share of all, that what is not about hosts or space leaves on top of what the cleaner leaves to checkpoints: for two more drives that
/// fail, room to begin, and for the metadata of discards until it has begun. A checkpoint that finds none stops the pool.
const OTHERS_MIN: u64 = 2 * OPEN_SEGMENTS + 2;
/// See [`OTHERS_MIN`].
const OTHERS_SHARE: u64 = 50;
/// Bytes a dirty metadata page takes in a checkpoint, about.
pub const PAGE_BYTES: u64 = 3 << 10;
/// Segments that one piece of a write may fill, and one batch before its last write.
const BATCH_SEGMENTS: u64 = 2;
/// Share of a segment that summaries and padding take.
const OVERHEAD: f64 = 0.03;
/// Commits wait for a checkpoint when the log is this full.
const LOG_FULL: f64 = 0.7;
/// A person is told when the catalogue fills this share of its region.
const CATALOGUE_ALERT: f64 = 0.6;
/// Who waits asks for a checkpoint after so many looks though it gives nothing back that is known of.
const LOOKS_WITHOUT: u32 = 20;
/// Pause between looks at the free space.
const PAUSE: Duration = Duration::from_millis(10);

/// Who may count on what is left free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftTo {
    /// Checkpoints alone: what is moved makes room.
    Checkpoints,
    /// The cleaner as well, and hosts with what was taken from them.
    Others,
}

/// Capacity in bytes, unless it says segments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    /// Segments the pool has room for, without the spare.
    pub total_segments: u64,
    /// Segments that could be opened now, without the spare.
    pub free_segments: u64,
    /// Segments that the next checkpoint gives back.
    pub emptied: u64,
    /// Segments kept free for the rebuild of a disk.
    pub spare_segments: u64,
    /// Data bytes of a segment.
    pub segment: u64,
    /// What live data and metadata may take.
    pub usable: u64,
    /// What they take.
    pub used: u64,
    /// Segments that a checkpoint of all dirty pages would take.
    pub checkpoint: u64,
    /// Dirty pages, as a checkpoint writes them.
    pub dirty: u64,
    /// What was taken from hosts and has no place on disk yet.
    pub taken: u64,
    /// What only volumes with reservations may write to.
    pub set_aside: u64,
    /// Whether segments in use are worth something else than new ones; see [`crate::segment::table::SegmentTable::is_uneven`].
    uneven: bool,
}

impl Space {
    /// Bytes left for live data.
    pub fn available(&self) -> u64 {
        self.usable.saturating_sub(self.used)
    }

    /// Most blocks of a piece of a write, or of a batch without its last write: what the reserve has room for in a small pool.
    pub fn batch_blocks(&self, most: usize) -> usize {
        most.min((BATCH_SEGMENTS * self.segment / BLOCK_SIZE as u64).max(1) as usize)
    }

    /// Segments kept back from host data.
    pub fn reserve(&self) -> u64 {
        ((self.total_segments as f64 * RESERVE) as u64).max(self.host_min() + CLEANER_MIN + 2 * BATCH_SEGMENTS)
    }

    /// The cleaner opens no segment when fewer are free.
    pub fn cleaner_min(&self) -> u64 {
        CLEANER_MIN + self.checkpoint
    }

    /// Segments to be left free by whoever moves data.
    pub fn left_to(&self, whom: LeftTo) -> u64 {
        if whom == LeftTo::Checkpoints {
            return self.cleaner_min();
        }
        // Elsewhere the cleaner makes room for hosts.
        let waiting = self.taken > 0 && self.is_overfull();
        let hosts = if waiting { HOST_MIN + self.taken.div_ceil(self.segment.max(1)) } else { 0 };
        self.cleaner_min() + hosts + OTHERS_MIN.max(self.total_segments / OTHERS_SHARE)
    }

    /// Host data opens no segment when fewer are free.
    pub fn host_min(&self) -> u64 {
        self.cleaner_min() + HOST_MIN
    }

    /// Free segments above those hosts must leave within which they are slowed down.
    fn window(&self) -> u64 {
        let most = self.reserve().saturating_sub(self.host_min()) as f64 / CLEAN_UPTO;
        (self.total_segments / WINDOW_SHARE).max(WINDOW_MIN).min(most as u64).max(1)
    }

    /// Segments that are free or will be with the next checkpoint.
    pub fn soon_free(&self) -> u64 {
        self.free_segments + self.emptied
    }

    /// How much of the window is left: 0 where hosts can do nothing but wait, 1 and more where nothing holds them back.
    pub fn left(&self) -> f64 {
        self.soon_free().saturating_sub(self.host_min()) as f64 / self.window() as f64
    }

    /// Whether the cleaner is to begin.
    pub fn is_low(&self) -> bool {
        self.left() < CLEAN_BELOW || self.soon_free() < self.host_min() + CLEAN_MIN.0
    }

    /// Whether the cleaner has made enough room.
    pub fn is_enough(&self) -> bool {
        self.left() >= CLEAN_UPTO && self.soon_free() >= self.host_min() + CLEAN_MIN.1
    }

    /// Whether hosts will soon need what the next checkpoint gives back.
    pub fn is_urgent(&self) -> bool {
        self.free_segments < self.host_min() + self.window() / 4
    }

    /// From 0 (there is enough) to 1 (hosts are held back): what cleaning is worth.
    pub fn need(&self) -> f64 {
        ((CLEAN_UPTO - self.left()) / (CLEAN_UPTO - CLEAN_FULLY)).clamp(0.0, 1.0)
    }

    /// Whether more is stored than there is room for, as when drives went.
    fn is_overfull(&self) -> bool {
        self.used > self.usable
    }

    /// As [`Self::host_min`], for what was taken before: in an overfull pool nothing new is, and what the cleaner cannot make room for takes what is left.
    fn taken_min(&self) -> u64 {
        if self.is_overfull() { self.cleaner_min() + LAST_MIN } else { self.host_min() }
    }
}

/// Data bytes of a segment of a width.
fn segment_bytes(geometry: &PoolGeometry, width: Width) -> u64 {
    let capacity = width.data as u32 * geometry.chunk_size;
    u64::from(capacity - recovery_room(capacity, width.data as u32 * geometry.strip_size))
}

/// Most bytes to take from hosts before they have a place on disk: what the reserve has room for when a drive goes in a full pool whose spare is used up,
/// and new segments are narrower by a column. Only in pools of a few hundred segments it is less than memory would allow.
pub fn taken_max(state: &State, array: &DiskArray) -> u64 {
    let Some(width) = state.segments.width(array) else { return u64::MAX };
    let (total, spare) = state.segments.total(array);
    let segment = segment_bytes(&array.geometry, Width { data: (width.data - 1).max(1), ..width });
    let space = Space { total_segments: total.saturating_sub(spare), segment, ..Space::default() };
    space.reserve().saturating_sub(space.cleaner_min() + OPEN_SEGMENTS + LAST_MIN) * segment
}

impl Engine {
    /// Bytes of a segment that data can take for certain: at its end there may be no room for one more frame.
    pub(super) fn certain(&self, segment: u64) -> u64 {
        segment.saturating_sub((self.config.frame_blocks.clamp(1, 4) * BLOCK_SIZE) as u64)
    }

    /// What live data and metadata could take if the pool had so many segments of this width, all even.
    pub(super) fn usable_of(&self, segments: u64, width: Width) -> u64 {
        let segment = segment_bytes(&self.array.geometry, width);
        let out = Space { total_segments: segments, segment, checkpoint: self.space().checkpoint, ..Space::default() };
        (segments.saturating_sub(out.reserve()) as f64 * self.certain(segment) as f64 * (1.0 - OVERHEAD)) as u64
    }

    /// The space now.
    pub fn space(&self) -> Space {
        let state = self.state.read();
        let pages = (&state.maps.pages, &state.table.pages, &state.table.directory);
        let dirty = pages.0.dirty_len() + pages.1.dirty_len() + pages.2.dirty_len();
        // Those a checkpoint is about to write need room as well, until it has written them.
        let dirty = dirty + pages.0.frozen_len() + pages.1.frozen_len() + pages.2.frozen_len();
        let mut out = self.segment_counts(&state);
        if self.pins.load(Ordering::Acquire) == 0 {
            out.emptied = state.segments.emptied();
        }
        // Those of the directory are twice as large.
        out.dirty = (dirty + pages.2.dirty_len() + pages.2.frozen_len()) as u64 * PAGE_BYTES;
        out.used = state.segments.live() + out.dirty;
        out.checkpoint = out.dirty.div_ceil(out.segment.max(1));
        out.taken = self.intake.memory() as u64;
        let usable = self.certain(out.segment);
        out.usable = out.total_segments.saturating_sub(out.reserve()) * usable;
        if out.uneven {
            // What there is, and what emptying the rest would give: the cleaner has to fit into it. Never more than if all were even: columns
            // that were lost need room as well.
            let room = state.segments.room(&self.array, usable) + out.free_segments * usable;
            out.usable = out.usable.min(room.saturating_sub(out.reserve() * usable));
        }
        out.usable = (out.usable as f64 * (1.0 - OVERHEAD)) as u64;
        out.set_aside = self.set_aside(&state, &out);
        out
    }

    /// One disk's worth of space, and how much of it is free.
    pub fn spare(&self) -> crate::report::Spare {
        let space = self.space();
        let wanted = self.state.read().segments.spare_wanted(&self.array) * space.segment;
        // What hosts may still take comes last: it counts as long as they have not.
        let free = space.spare_segments * space.segment + space.available();
        crate::report::Spare { wanted, free: free.min(wanted) }
    }

    /// Segments in all and free: computed anew only when segments or disks came or went.
    fn segment_counts(&self, state: &State) -> Space {
        let version = (state.segments.version, self.array.changes());
        let mut known = self.segment_counts.lock();
        if known.0 != version {
            let width = state.segments.width(&self.array);
            let (total, spare) = state.segments.total(&self.array);
            known.1 = Space {
                total_segments: total - spare,
                free_segments: state.segments.free(&self.array).saturating_sub(spare),
                spare_segments: spare,
                uneven: state.segments.is_uneven(&self.array),
                segment: width.map_or(0, |w| segment_bytes(&self.array.geometry, w)),
                ..Space::default()
            };
            known.0 = version;
        }
        known.1
    }

    /// Fails with `NoSpace` when what has room in the write buffer may not fit on disk, counted as incompressible; or, unless it is for a volume that
    /// writes into its reservation, not into what is left beside reservations.
    ///
    /// What is on its way may turn out smaller: it is waited for before the answer is no.
    pub async fn check_space(self: &Arc<Self>, volume: Option<VolumeId>) -> Result<()> {
        let left = |space: &Space| match volume {
            Some(volume) if space.set_aside > 0 && self.is_reserved(volume) => space.available(),
            _ => space.available().saturating_sub(space.set_aside),
        };
        let taken = || self.intake.memory() as u64;
        let fits = || left(&self.space()) >= taken() && !self.catalogue_is_full();
        if fits() {
            return Ok(());
        }
        self.flush().await?;
        if fits() {
            return Ok(());
        }
        // Pages that changed count twice until they are written.
        let space = self.space();
        if left(&space) + space.dirty >= taken() && space.dirty > 0 && !self.catalogue_is_full() {
            self.checkpoint().await?;
            if fits() {
                return Ok(());
            }
        }
        let beside = space.available() >= taken();
        let why = match self.catalogue_is_full() {
            true => format!("the catalogue of pool {} is full: delete volumes or discard data", self.name),
            false if beside => {
                format!(
                    "pool {} is full, but for what is reserved for other volumes: discard data or add drives",
                    self.name
                )
            }
            false => format!("pool {} is full: delete volumes, discard data or add drives", self.name),
        };
        Err(Error::new(ErrorKind::NoSpace, why))
    }

    /// Whether the catalogue has nearly outgrown its region.
    fn catalogue_is_full(&self) -> bool {
        self.catalogue_share() > CATALOGUE_FULL
    }

    /// How much of its region the catalogue fills.
    fn catalogue_share(&self) -> f64 {
        let used = self.catalogue_bytes.load(Ordering::Relaxed);
        used as f64 / f64::from(self.array.geometry.catalogue_size)
    }

    /// Whether commits must wait for a checkpoint: the log is nearly full, or too many pages are dirty.
    fn needs_checkpoint(&self) -> bool {
        // What waits for the log counts: a checkpoint, which alone makes room, gets its turn behind it.
        if self.log.fullness() + self.log.share(self.log_queue.lock().memory()) > LOG_FULL {
            return true;
        }
        let state = self.state.read();
        state.maps.pages.dirty_len() > self.map_pages()
            || state.table.pages.dirty_len() > self.table_pages()
            || state.table.directory.dirty_len() > self.directory_pages()
    }

    /// Waits until there is room in the log and for dirty pages.
    pub(super) async fn wait_for_log(&self) -> Result<()> {
        while self.needs_checkpoint() {
            self.check_alive()?;
            self.checkpoint_wanted.notify_one();
            self.env.sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Waits until there are segments for `bytes` of host data and room in the log. The cleaner and checkpoints make both.
    pub(super) async fn wait_for_space(&self, bytes: usize) -> Result<()> {
        let (mut warned, mut waited) = (false, 0u32);
        loop {
            if let Some(e) = self.failure() {
                return Err(e);
            }
            let space = self.space();
            let needed = bytes as u64 / space.segment.max(1) + 1;
            if space.is_low() {
                self.cleaner_wanted.notify_one();
            }
            let log_full = self.needs_checkpoint();
            // Who cleans asks himself. One that gives nothing back only takes room.
            let unasked = !self.is_cleaning.load(Ordering::Acquire);
            if unasked && space.is_urgent() && space.emptied > space.checkpoint {
                self.ask_for_segments();
            }
            if space.free_segments >= space.taken_min() + needed && !log_full {
                return Ok(());
            }
            self.array.check_quorum()?;
            if self.is_stopping() {
                return self.check_alive();
            }
            if !warned && !log_full {
                tracing::warn!(pool = self.name, free = space.free_segments, "writes wait for the cleaner");
                warned = true;
            }
            // What would give something back is not always known.
            if log_full || waited.is_multiple_of(LOOKS_WITHOUT) {
                self.checkpoint_wanted.notify_one();
            } else if space.emptied > 0 {
                self.ask_for_segments();
            }
            waited += 1;
            self.env.sleep(PAUSE).await;
        }
    }

    /// What a person should know about space.
    pub fn space_alerts(&self) -> Vec<Alert> {
        let space = self.space();
        let percent = (space.used * 100).checked_div(space.usable).unwrap_or(100);
        let level = [(95, "critical"), (90, "warning"), (80, "info")].into_iter().find(|(limit, _)| percent >= *limit);
        let alert = level.map(|(limit, severity)| Alert {
            severity: severity.into(),
            code: format!("pool.space.{limit}"),
            object: "pool".into(),
            message: format!(
                "pool {} is {percent}% full; at 100% writes fail. Delete volumes, discard data or add drives",
                self.name
            ),
        });
        let reserved = (space.set_aside > space.available()).then(|| Alert {
            severity: "warning".into(),
            code: "pool.reservations".into(),
            object: "pool".into(),
            message: format!(
                "pool {} has less room than is reserved for volumes: {} MiB of {}. Add drives, discard data, or reserve less",
                self.name,
                space.available() >> 20,
                space.set_aside >> 20
            ),
        });
        let provisioned = self.provisioned();
        // From half on: a thin pool that is new promises more than it has, as it is meant to.
        let overcommitted = (provisioned > space.usable && percent >= 50).then(|| Alert {
            severity: "info".into(),
            code: "pool.overcommitted".into(),
            object: "pool".into(),
            message: format!(
                "volumes of pool {} have {} MiB in all, {:.1} times what it can hold, and {percent}% is used: hosts may write more than there is room \
                 for. Add drives in time, discard data, or reserve space for what must not wait (ashlar volume reserve)",
                self.name,
                provisioned >> 20,
                provisioned as f64 / space.usable.max(1) as f64
            ),
        });
        let share = self.catalogue_share();
        let catalogue = (share > CATALOGUE_ALERT).then(|| Alert {
            severity: "warning".into(),
            code: "pool.catalogue".into(),
            object: "pool".into(),
            message: format!(
                "the catalogue of pool {} fills {:.0} % of its region; at {:.0} % writes fail, whatever space there is. Delete volumes or discard \
                 data; a pool that is made anew with all its drives has a larger one",
                self.name,
                share * 100.0,
                CATALOGUE_FULL * 100.0
            ),
        });
        alert.into_iter().chain(reserved).chain(overcommitted).chain(catalogue).collect()
    }

    /// Bytes that all volumes have in all, written or not.
    pub fn provisioned(&self) -> u64 {
        let state = self.state.read();
        state.volumes.values().filter(|v| !v.deleting && !v.is_snapshot()).map(|v| v.blocks * BLOCK_BYTES).sum()
    }
}
