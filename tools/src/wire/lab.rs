//! What the REST API speaks of faults in a laboratory.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Places that are corrupted when nothing else is said.
pub const CORRUPT_COUNT: u64 = 100;
/// Bytes of each when nothing else is said: a sector.
pub const CORRUPT_BYTES: u64 = 512;

/// Faults of a drive that are on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskFault {
    /// Path of the drive.
    pub disk: String,
    /// It answers every request with an error.
    pub pulled: bool,
    /// Microseconds by which every request is late; 0 when none is.
    pub slow_us: u64,
}

/// A drive to be made slow.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSlow {
    /// Microseconds by which every request is late; 0 makes the drive as fast as it is.
    pub delay_us: u64,
}

/// A drive to be corrupted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskCorrupt {
    /// Places to overwrite; 100 when left out.
    #[serde(default = "default_count")]
    pub count: u64,
    /// Bytes of each; 512 when left out.
    #[serde(default = "default_bytes")]
    pub bytes: u64,
    /// What places and bytes are drawn from; drawn itself when left out.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Also labels, superblocks, catalogue and log, not only what holds data.
    #[serde(default)]
    pub anywhere: bool,
}

fn default_count() -> u64 {
    CORRUPT_COUNT
}

fn default_bytes() -> u64 {
    CORRUPT_BYTES
}

/// What was done to a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskCorrupted {
    /// Path of the drive.
    pub disk: String,
    /// Places that were overwritten.
    pub places: u64,
    /// Bytes that were overwritten, each counted once.
    pub bytes: u64,
    /// The same seed does the same again to a drive that holds the same.
    pub seed: u64,
    /// Bytes, of those asked for, that the drive holds: the places are among them.
    pub held: u64,
    /// Whether labels, superblocks, catalogue and log were among them.
    pub anywhere: bool,
}
