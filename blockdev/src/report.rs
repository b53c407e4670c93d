//! What the engine tells about itself: plain serialisable records, shared by the REST API and the command line.
//!
//! Sizes are bytes; ratios are dimensionless (2.0 = "2:1") and absent while nothing has been written.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::units::Uuid;

mod drive;

pub use drive::{DriveHealth, HealthSource, HealthState, HealthWarning, Severity};

/// How many drives may fail at once without loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tolerance {
    /// No redundancy.
    #[default]
    None,
    /// One drive (P).
    Single,
    /// Two drives (P and Q).
    Double,
}

impl Tolerance {
    /// The tolerance of so many drives.
    pub fn of(drives: u8) -> Option<Self> {
        [Self::None, Self::Single, Self::Double].into_iter().find(|t| t.drives() == usize::from(drives))
    }

    /// Parity columns per redundancy extent, which is also the number of drives that may be lost.
    pub fn drives(self) -> usize {
        match self {
            Self::None => 0,
            Self::Single => 1,
            Self::Double => 2,
        }
    }
}

/// How frames are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Stored as it is.
    Off,
    /// LZ4: faster, larger.
    Lz4,
    /// Zstandard level 1.
    #[default]
    Zstd,
}

/// How much background work, such as a rebuild, may slow hosts down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Hosts hardly notice it; it takes longest.
    Low,
    /// The slowest hundredth of host requests takes up to twice as long as without.
    #[default]
    Normal,
    /// Done soon; hosts wait.
    High,
}

/// Health of a pool or drive, worst first when compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// Serving.
    #[default]
    Online,
    /// It serves, and made many errors of late.
    Degraded,
    /// It serves, but lacks what was written while it was away: see [`DiskInfo::behind`].
    Stale,
    /// What lies on it is being moved to the others, so that it can be removed.
    Removing,
    /// It makes too many errors: what lies on it is being moved to the others; then it is declared failed.
    Failing,
    /// Declared failed: not used.
    Failed,
    /// Not found when the pool was opened.
    Missing,
    /// Failed or missing, and what it held is being rebuilt on the others.
    Rebuilding,
}

impl DiskState {
    /// All there are.
    pub const ALL: [Self; 8] = [
        Self::Online,
        Self::Degraded,
        Self::Stale,
        Self::Removing,
        Self::Failing,
        Self::Failed,
        Self::Missing,
        Self::Rebuilding,
    ];

    /// Whether it is not used.
    pub fn is_absent(self) -> bool {
        matches!(self, Self::Failed | Self::Missing | Self::Rebuilding)
    }
}

/// One drive.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct DiskInfo {
    /// Index in the pool.
    pub id: u16,
    /// Identity from the label.
    #[schema(value_type = String)]
    pub uuid: Uuid,
    /// Where it is, or, while it is missing, where it was seen last; empty when that is not known.
    pub path: String,
    /// State.
    pub state: DiskState,
    /// Resiliency set: failures in different sets do not add up.
    #[serde(default)]
    pub set: u16,
    /// Why it does not serve, when it does not.
    pub reason: Option<String>,
    /// Bytes of the device.
    pub size: u64,
    /// Bytes in chunks given to segments.
    pub allocated: u64,
    /// Bytes of live data that belong on this drive and were written while it was away, about.
    pub behind: u64,
    /// Requests to read that failed since it joined the pool.
    pub read_errors: u64,
    /// Write and flush failures since it joined the pool.
    pub write_errors: u64,
    /// Frames whose checksum did not match because of what this drive gave back, since it joined the pool.
    pub checksum_errors: u64,
    /// Bytes read from it since it joined the pool.
    #[serde(default)]
    pub bytes_read: u64,
    /// Bytes written to it since it joined the pool.
    #[serde(default)]
    pub bytes_written: u64,
}

/// Data reduction.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Reduction {
    /// Bytes mapped by volumes: what hosts wrote and have not given back, zero blocks not included.
    pub logical: u64,
    /// Bytes of distinct blocks, before compression.
    pub unique: u64,
    /// Bytes of distinct blocks, after compression.
    pub stored: u64,
    /// Bytes hosts wrote as zero blocks since the pool was opened, which take no space.
    pub zeroes_written: u64,
    /// `logical / unique`.
    pub dedupe_ratio: Option<f64>,
    /// `unique / stored`.
    pub compression_ratio: Option<f64>,
    /// `logical / stored`.
    pub total_ratio: Option<f64>,
}

/// How well stored data is protected, in bytes of live data and metadata, parity not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Redundancy {
    /// Survives as many more failures as the pool tolerates.
    pub full: u64,
    /// Survives at least one more failure, but not as many as the pool tolerates.
    pub reduced: u64,
    /// Can be read, but survives no further failure. Nothing is counted here in a pool without redundancy.
    pub none: u64,
    /// Lies in segments that have lost more drives than they can do without: some of it cannot be read now.
    pub lost: u64,
}

/// Something a person should know of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Alert {
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// Stable short code, such as `pool.space.90`.
    pub code: String,
    /// What it is about: `pool`, `disk/3`, `volume/db`.
    #[serde(default)]
    pub object: String,
    /// What, of which object, and what to do.
    pub message: String,
}

/// Redundancy being restored.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Rebuild {
    /// Why.
    pub cause: String,
    /// Bytes to be written since it began.
    pub total: u64,
    /// Bytes that were written.
    pub done: u64,
    /// Bytes that cannot be written because no disk has room for them.
    pub waiting: u64,
    /// Average so far.
    pub bytes_per_second: u64,
    /// Seconds left at that rate; not there before anything was done.
    pub eta_s: Option<u64>,
}

impl Rebuild {
    /// The cause of a balance.
    pub const SPREADING: &str = "data is spread over all disks";

    /// Whether nothing is restored, but data spread evenly.
    pub fn is_balance(&self) -> bool {
        self.cause == Self::SPREADING
    }
}

/// The newest scrub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Scrub {
    /// Whether it goes on.
    pub running: bool,
    /// When it began, in seconds since 1970; not there before the first one.
    pub begun_s: Option<u64>,
    /// When it ended, in seconds since 1970.
    pub ended_s: Option<u64>,
    /// Whether it ended because all was looked at, not because it was stopped.
    pub complete: bool,
    /// Bytes of live data to look at.
    pub total: u64,
    /// Bytes that were looked at.
    pub done: u64,
    /// Columns of segments that were not what they should be, and were written anew.
    pub repaired: u64,
    /// Segments in which something could not be given back.
    pub damaged: u64,
}

/// A range of a volume that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DamagedRange {
    /// Name of the volume.
    pub volume: String,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What reading it says.
    pub reason: String,
}

/// What cannot be read.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Damage {
    /// Bytes in all.
    pub bytes: u64,
    /// Ranges, by volume and offset; of many the first ones.
    pub ranges: Vec<DamagedRange>,
    /// Whether there are more than listed.
    pub more: bool,
    /// Volumes that take no writes because a page of their map cannot be read, and why.
    pub read_only: std::collections::BTreeMap<String, String>,
}

/// Space kept free for the rebuild of a disk.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Spare {
    /// Bytes of data space that one disk's worth is, over all resiliency sets; 0 when there are too few disks for a spare.
    pub wanted: u64,
    /// Bytes of it that are free.
    pub free: u64,
}

/// The pool at a glance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// Name given at creation.
    pub name: String,
    /// Identity.
    #[schema(value_type = String)]
    pub uuid: Uuid,
    /// `healthy`; `degraded`: everything works, but not all data is fully protected; `critical`: some data cannot be read or
    /// writes wait; `failed`: the pool takes no writes.
    pub health: String,
    /// Drive failures tolerated in each resiliency set.
    pub tolerance: Tolerance,
    /// Drive failures that new data survives; another value than `tolerance` while that is being raised.
    #[serde(default)]
    pub tolerance_wanted: Tolerance,
    /// Number of resiliency sets.
    #[serde(default)]
    pub sets: usize,
    /// Data may lie across sets: until it was moved failures in all of them count together.
    #[serde(default)]
    pub mixed: bool,
    /// Redundancy being restored; not there when there is nothing to restore.
    #[serde(default)]
    pub rebuild: Option<Rebuild>,
    /// The newest scrub.
    #[serde(default)]
    pub scrub: Scrub,
    /// Segments in which something could not be read in any way.
    #[serde(default)]
    pub damaged_segments: u64,
    /// Space kept free for the rebuild of a disk.
    #[serde(default)]
    pub spare: Spare,
    /// Data and parity columns of new segments, such as `4+2`.
    pub layout: String,
    /// Writer epoch.
    pub epoch: u64,
    /// Bytes of all drives.
    pub raw: u64,
    /// Bytes that can hold data after parity, reserve and metadata regions.
    pub usable: u64,
    /// Bytes of `usable` taken by live data and metadata.
    pub used: u64,
    /// Bytes left for writes.
    pub available: u64,
    /// Bytes that are reserved for volumes.
    #[serde(default)]
    pub reserved: u64,
    /// Of `available`, what only volumes with reservations may write to.
    #[serde(default)]
    pub set_aside: u64,
    /// Sum of the sizes of all volumes.
    pub provisioned: u64,
    /// Data reduction.
    pub reduction: Reduction,
    /// How well the data is protected.
    pub redundancy: Redundancy,
    /// Drives.
    pub disks: Vec<DiskInfo>,
    /// Number of volumes.
    pub volumes: usize,
    /// Number of snapshots.
    #[serde(default)]
    pub snapshots: usize,
    /// Volumes and snapshots whose space is coming back.
    #[serde(default)]
    pub deleting: usize,
    /// How much of the one of them at hand is done, 0 to 1.
    #[serde(default)]
    pub deleting_done: f64,
    /// Stored bytes of that one that are still to come back, about; null before anything has.
    #[serde(default)]
    pub deleting_to_come: Option<u64>,
    /// Alerts, most severe first.
    pub alerts: Vec<Alert>,
}

/// What hosts waited in the last seconds, in microseconds; not there when they asked for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostLatency {
    /// Half of all reads took no longer.
    pub read_p50_us: Option<u64>,
    /// 99 of 100 reads took no longer.
    pub read_p99_us: Option<u64>,
    /// Half of all flushes (writes that must be durable among them) took no longer.
    pub flush_p50_us: Option<u64>,
    /// 99 of 100 flushes took no longer.
    pub flush_p99_us: Option<u64>,
    /// Reads and flushes under way.
    pub under_way: u32,
}

/// Counters since the pool was opened, for `pool stats` and metrics.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct PoolStats {
    /// Seconds since the pool was opened.
    pub uptime_s: f64,
    /// Bytes hosts read.
    pub host_read: u64,
    /// Bytes hosts wrote.
    pub host_written: u64,
    /// Host read requests.
    pub host_reads: u64,
    /// Host write requests.
    pub host_writes: u64,
    /// Host flushes.
    pub host_flushes: u64,
    /// What hosts waited in the last seconds.
    #[serde(default)]
    pub host_latency: HostLatency,
    /// Share of its full speed that background work (rebuild, scrub, cleaner) may take now; not there when there is none.
    #[serde(default)]
    pub background_share: Option<f64>,
    /// Bytes written to drives, all kinds, parity and mirrors included.
    pub disk_written: u64,
    /// Bytes read from drives.
    pub disk_read: u64,
    /// `disk_written / host_written`.
    pub write_amplification: Option<f64>,
    /// Blocks found to be duplicates and shared.
    pub dedupe_hits: u64,
    /// Candidates from the index whose bytes turned out to differ.
    pub dedupe_misses: u64,
    /// Log records written.
    pub log_records: u64,
    /// Log entries that were replayed when the pool was opened: there are none when it was closed in order.
    #[serde(default)]
    pub log_replayed: u64,
    /// Seconds that took, together with finishing what a crash had cut short.
    #[serde(default)]
    pub recovery_s: f64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Bytes the cleaner moved.
    pub cleaner_moved: u64,
    /// Bytes of columns written anew: rebuilt elsewhere, or caught up by disks that came back.
    #[serde(default)]
    pub rebuilt: u64,
    /// Segments the cleaner emptied.
    pub cleaner_segments: u64,
    /// Bytes these have room for.
    #[serde(default)]
    pub cleaner_cleaned: u64,
    /// Seconds the cleaner was at work, checkpoints it waited for included.
    #[serde(default)]
    pub cleaner_s: f64,
    /// Stored bytes that were compressed harder since nobody had changed them for long.
    #[serde(default)]
    pub recompressed: u64,
    /// Bytes a second that hosts are slowed down to, since room is made no faster; not there when they are not.
    #[serde(default)]
    pub held_back_to: Option<u64>,
    /// Segments free / allocated in all.
    pub segments_free: u64,
    /// Segments in use.
    pub segments_used: u64,
    /// Bytes of segments in use that are dead and wait for the cleaner.
    pub dead: u64,
    /// The same as a share of the segments in use.
    #[serde(default)]
    pub fragmentation: f64,
    /// Where memory goes, by owner, in bytes.
    pub memory: std::collections::BTreeMap<String, u64>,
    /// The configured budget in bytes.
    pub memory_budget: u64,
}

/// One volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeInfo {
    /// Name.
    pub name: String,
    /// Identity in the pool.
    pub id: u32,
    /// Bytes hosts see.
    pub size: u64,
    /// Bytes mapped.
    pub mapped: u64,
    /// Bytes that are reserved for it: they can be written and overwritten whatever others write.
    #[serde(default)]
    pub reserved: u64,
    /// Bytes of mapped blocks that nothing but the volume and its snapshots refers to, before compression; blocks that occur twice in it are not among them.
    pub unique: Option<u64>,
    /// Bytes saved by sharing and compression: mapped bytes less the volume's share of what is stored.
    pub savings: Option<u64>,
    /// Whether `unique` and `savings` were inferred from a sample, as they are for a volume with more than about 512 MiB mapped.
    #[serde(default)]
    pub estimated: bool,
    /// How it is presented, if it is: `nbd`, `fuse`, `ublk`.
    pub attached: Option<String>,
    /// `online` or `deleting`.
    pub state: String,
    /// Seconds since 1970.
    pub created_s: u64,
    /// Snapshots there are of it.
    #[serde(default)]
    pub snapshots: u64,
    /// The snapshot it was cloned from, if that is there.
    #[serde(default)]
    pub origin: Option<String>,
    /// Number of the group it is in; 0 when in none.
    #[serde(default)]
    pub group_id: u32,
    /// Number of its policy; 0 without.
    #[serde(default)]
    pub policy_id: u32,
}

/// Which group and policy a volume has, by number; 0 is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The volume.
    pub volume: String,
    /// Its group.
    pub group: u32,
    /// Its policy.
    pub policy: u32,
    /// Since when it has the policy, in seconds since 1970.
    pub since_s: u64,
}

/// One snapshot of a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotInfo {
    /// `VOLUME@SNAPSHOT`.
    pub name: String,
    /// The volume.
    pub volume: String,
    /// Identity in the pool.
    pub id: u32,
    /// Bytes hosts saw.
    pub size: u64,
    /// Bytes that were mapped.
    pub mapped: u64,
    /// How it is presented, if it is.
    pub attached: Option<String>,
    /// Seconds since 1970.
    pub created_s: u64,
    /// Volumes that were cloned from it.
    pub clones: Vec<String>,
    /// Stored bytes that only it holds, which come back when it is deleted; not in lists.
    #[serde(default)]
    pub held: Option<u64>,
    /// When it expires if the pool stays open until then; else later by the time for which it does not.
    #[serde(default)]
    pub expires_s: Option<u64>,
    /// Whether nobody can delete it before that.
    #[serde(default)]
    pub secure: bool,
    /// Whether applications were made ready for it: a hook ran, or mounted file systems were frozen.
    #[serde(default)]
    pub quiesced: bool,
    /// Number of the rule that took it; 0 when somebody did.
    #[serde(default)]
    pub rule_id: u32,
    /// Number of the group it was taken of; 0 when of none.
    #[serde(default)]
    pub group_id: u32,
}

/// A range in which two versions of a volume differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangedRange {
    /// Bytes from the start of the volume.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Whether the newer one has data there; else it reads as zeroes.
    pub mapped: bool,
}

/// What differs between two versions of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Changes {
    /// Bytes of the newer one.
    pub size: u64,
    /// Ranges, ascending. A block that was written again with what it held may be among them.
    pub ranges: Vec<ChangedRange>,
    /// Where to go on, when there may be more.
    pub next: Option<u64>,
}

/// One inconsistency found by `pool check`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// Stable short code, such as `refcount.low`.
    pub code: String,
    /// What, where.
    pub message: String,
}

/// Result of `pool check`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CheckReport {
    /// Volumes walked.
    pub volumes: u64,
    /// Mapped blocks met in volume maps.
    pub mapped_blocks: u64,
    /// Entries of the block table in use.
    pub stored_blocks: u64,
    /// Bytes of frames read and verified against their checksums.
    pub verified: u64,
    /// Stripes whose parity was recomputed.
    pub stripes: u64,
    /// Stripes whose parity could not be: a drive is gone, or was away when they were written.
    pub stripes_incomplete: u64,
    /// What is wrong; empty when the pool is sound.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}
