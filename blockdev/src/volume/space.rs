//! How much room there is, who may use it, and what hosts are told when there is none.

use std::time::Duration;

use super::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::report::Alert;
use crate::units::BLOCK_SIZE;

/// Share of segments kept for the cleaner and for metadata.
const RESERVE: f64 = 0.08;
/// Free segments that the cleaner leaves to checkpoints, besides room for all dirty pages.
const CLEANER_MIN: u64 = 3;
/// Free segments that host data leaves to the cleaner on top of that.
const HOST_MIN: u64 = 4;
/// Bytes a dirty metadata page takes in a checkpoint, about.
const PAGE_BYTES: u64 = 3 << 10;
/// Segments that one piece of a write may fill, and one batch before its last write.
const BATCH_SEGMENTS: u64 = 2;
/// Share of a segment that summaries and padding take.
const OVERHEAD: f64 = 0.03;
/// Commits wait for a checkpoint when the log is this full.
const LOG_FULL: f64 = 0.7;
/// Pause between looks at the free space.
const PAUSE: Duration = Duration::from_millis(10);

/// Capacity in bytes, unless it says segments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    /// Segments the pool has room for.
    pub total_segments: u64,
    /// Segments that could be opened now.
    pub free_segments: u64,
    /// Data bytes of a segment.
    pub segment: u64,
    /// What live data and metadata may take.
    pub usable: u64,
    /// What they take.
    pub used: u64,
    /// Segments that a checkpoint of all dirty pages would take.
    pub checkpoint: u64,
}

impl Space {
    /// Bytes left for live data.
    pub fn available(&self) -> u64 {
        self.usable.saturating_sub(self.used)
    }

    /// Segments kept back from host data.
    pub fn reserve(&self) -> u64 {
        ((self.total_segments as f64 * RESERVE) as u64).max(self.host_min() + CLEANER_MIN + 2 * BATCH_SEGMENTS)
    }

    /// The cleaner opens no segment when fewer are free.
    pub fn cleaner_min(&self) -> u64 {
        CLEANER_MIN + self.checkpoint
    }

    /// Host data opens no segment when fewer are free.
    pub fn host_min(&self) -> u64 {
        self.cleaner_min() + HOST_MIN
    }
}

impl Engine {
    /// The space now.
    pub fn space(&self) -> Space {
        let state = self.state.read();
        let width = state.segments.width(&self.array);
        let segment = width.map_or(0, |w| w.data as u64 * u64::from(self.array.geometry.chunk_size));
        let total_segments = state.segments.total(&self.array);
        let dirty = state.maps.pages.dirty_len() + state.table.pages.dirty_len() + state.table.directory.dirty_len();
        let mut out = Space {
            total_segments,
            free_segments: state.segments.free(&self.array),
            segment,
            usable: 0,
            used: state.segments.live() + dirty as u64 * PAGE_BYTES,
            checkpoint: (dirty as u64 * PAGE_BYTES).div_ceil(segment.max(1)),
        };
        let data_segments = total_segments.saturating_sub(out.reserve());
        // At the end of a segment there may be no room for one more frame.
        let tail = (self.config.frame_blocks.clamp(1, 4) * BLOCK_SIZE) as u64;
        out.usable = ((data_segments * segment.saturating_sub(tail)) as f64 * (1.0 - OVERHEAD)) as u64;
        out
    }

    /// Most blocks of a piece of a write, or of a batch without its last write: what the reserve has room for in a small pool.
    pub fn batch_blocks(&self, most: usize) -> usize {
        let width = self.state.read().segments.width(&self.array);
        let segment = width.map_or(0, |w| w.data as u64 * u64::from(self.array.geometry.chunk_size));
        most.min((BATCH_SEGMENTS * segment / BLOCK_SIZE as u64).max(1) as usize)
    }

    /// Fails with `NoSpace` when `blocks` more may not fit, counting what is on its way as incompressible.
    ///
    /// What is on its way may turn out smaller: it is waited for before the answer is no.
    pub async fn check_space(&self, blocks: usize) -> Result<()> {
        let wanted = |engine: &Self| (blocks * BLOCK_SIZE + engine.intake.memory()) as u64;
        if self.space().available() >= wanted(self) {
            return Ok(());
        }
        self.flush().await?;
        if self.space().available() >= wanted(self) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NoSpace,
            format!("pool {} is full: delete volumes, discard data or add drives", self.name),
        ))
    }

    /// Waits until there are segments for `bytes` of host data and room in the log. The cleaner and checkpoints make both.
    pub(super) async fn wait_for_space(&self, bytes: usize) -> Result<()> {
        let mut warned = false;
        loop {
            if let Some(e) = self.failure() {
                return Err(e);
            }
            let space = self.space();
            let needed = bytes as u64 / space.segment.max(1) + 1;
            if space.free_segments < self.low_water(&space) {
                self.cleaner_wanted.notify_one();
            }
            let log_full = self.log.fullness() > LOG_FULL;
            if space.free_segments >= space.host_min() + needed && !log_full {
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
            self.checkpoint_wanted.notify_one();
            self.env.sleep(PAUSE).await;
        }
    }

    /// Below this many free segments the cleaner works.
    pub(super) fn low_water(&self, space: &Space) -> u64 {
        (space.total_segments / 10).max(space.host_min() + 2 * BATCH_SEGMENTS + 4)
    }

    /// What a person should know about space.
    pub fn space_alerts(&self) -> Vec<Alert> {
        let space = self.space();
        let percent = if space.usable == 0 { 100 } else { space.used * 100 / space.usable };
        let level = [(95, "critical"), (90, "warning"), (80, "info")].into_iter().find(|(limit, _)| percent >= *limit);
        let alert = level.map(|(limit, severity)| Alert {
            severity: severity.into(),
            code: format!("pool.space.{limit}"),
            message: format!(
                "pool {} is {percent}% full; at 100% writes fail. Delete volumes, discard data or add drives",
                self.name
            ),
        });
        alert.into_iter().collect()
    }
}
