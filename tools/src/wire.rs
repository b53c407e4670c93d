//! What the REST API speaks besides the engine's own records. Sizes are bytes, times are seconds since 1970.

use blockdev::error::ErrorKind;
use blockdev::pool::Reserve;
use blockdev::report::{CheckReport, Damage, DiskInfo, DriveHealth, Tolerance, VolumeInfo};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

pub mod drives;
pub mod events;
pub mod lab;
pub mod nas;
pub mod protection;
pub mod servers;
pub mod snapshots;
pub mod upgrade;

/// A value that may be null but must be there: to leave it out is not to choose nothing.
fn required<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(from)
}

/// An error, in the body of every answer that is not 2xx.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Stable word, to decide by.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
}

/// Whether the daemon serves.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`, or `stopping` once a shutdown began.
    pub status: String,
    /// Version of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Name of the pool it serves.
    pub pool: String,
    /// Health of the pool: `healthy`, `degraded` or `failed`.
    pub pool_health: String,
}

/// A drive of the pool and what it tells about itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// The engine's record.
    #[serde(flatten)]
    pub info: DiskInfo,
    /// What the drive tells about its health.
    #[serde(default)]
    pub health: DriveHealth,
}

/// A disk to add.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskAdd {
    /// Where the daemon finds it: an absolute path.
    pub path: String,
    /// Take it although something is on it.
    #[serde(default)]
    pub force: bool,
    /// Number of the drive that will be removed for it: resiliency sets are not divided for the moment that both are there.
    #[serde(default)]
    pub replaces: Option<u16>,
}

/// A volume to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    /// `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
    pub name: String,
    /// Bytes, a multiple of 4096.
    pub size: u64,
    /// Space that is reserved for it; none if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<Reserved>,
}

/// Space that is reserved for a volume: `"all"`, whatever its size, or `{"bytes": 1073741824}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Reserved {
    /// All of it.
    All,
    /// So many bytes, a multiple of 4096; 0 for nothing.
    Bytes(u64),
}

impl From<Reserved> for Reserve {
    fn from(reserved: Reserved) -> Self {
        match reserved {
            Reserved::All => Self::All,
            Reserved::Bytes(bytes) => Self::Bytes(bytes),
        }
    }
}

/// What is to be reserved for a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeReserve {
    /// How much.
    pub reserved: Reserved,
}

/// A volume's new size.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeResize {
    /// Bytes, a multiple of 4096.
    pub size: u64,
    /// Makes the volume smaller although that drops the data beyond the new end.
    #[serde(default)]
    pub shrink: bool,
}

/// How a volume is to be deleted.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VolumeDelete {
    /// With its snapshots.
    #[serde(default)]
    pub snapshots: bool,
}

/// How a volume can be presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Network block device: a URI for qemu, nbdcopy, fio, nbd-client.
    Nbd,
    /// A file in a FUSE directory; with a loop device on top, a Linux block device.
    Fuse,
    /// A Linux block device by the ublk driver.
    Ublk,
    /// Part of a file system (`ashlar nas fs`); not to be asked for.
    #[value(skip)]
    Fs,
}

impl std::fmt::Display for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nbd => "nbd",
            Self::Fuse => "fuse",
            Self::Ublk => "ublk",
            Self::Fs => "fs",
        })
    }
}

/// A request to present a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// By which protocol.
    pub via: Via,
    /// With `fuse`: sets a loop device with direct I/O up on the file (needs root).
    #[serde(default, rename = "loop")]
    pub loop_device: bool,
}

/// Where a presented volume is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attachment {
    /// Name of the volume.
    pub volume: String,
    /// By which protocol.
    pub via: Via,
    /// NBD: the URI to prefer.
    pub uri: Option<String>,
    /// NBD: all URIs.
    pub uris: Vec<String>,
    /// FUSE: path of the file. ublk: the name of the device that stays the same.
    pub path: Option<String>,
    /// Path of the block device, where there is one.
    pub device: Option<String>,
    /// Set when the volume should be presented but cannot be at the moment: why.
    pub error: Option<String>,
}

impl Attachment {
    /// The one thing a script wants to know: device, path or URI.
    pub fn target(&self) -> &str {
        [&self.device, &self.path, &self.uri].into_iter().find_map(|t| t.as_deref()).unwrap_or("-")
    }
}

/// A volume and where it is presented.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// The engine's record.
    #[serde(flatten)]
    pub info: VolumeInfo,
    /// Where it is presented, if it is.
    pub attachment: Option<Attachment>,
    /// Name of its group.
    #[serde(default)]
    pub group: Option<String>,
    /// Name of its policy, or of its group's.
    #[serde(default)]
    pub policy: Option<String>,
}

impl Volume {
    /// One that was just made.
    pub fn new(info: VolumeInfo) -> Self {
        Self { info, attachment: None, group: None, policy: None }
    }
}

/// State of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Under way.
    Running,
    /// Done; the result is there.
    Succeeded,
    /// Ended with the error that is there.
    Failed,
}

/// Changes of the pool.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolChange {
    /// Drive failures to be tolerated in each resiliency set.
    pub tolerance: Tolerance,
}

/// Long work.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Identity while the daemon runs.
    pub id: u64,
    /// What is done, such as `pool.check`.
    pub kind: String,
    /// State.
    pub state: JobState,
    /// Steps done.
    pub done: u64,
    /// Steps in all; 0 while unknown.
    pub total: u64,
    /// When it began.
    pub started_s: u64,
    /// When it ended.
    pub finished_s: Option<u64>,
    /// Result of a check that succeeded.
    pub report: Option<CheckReport>,
    /// Result of a search for damage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<Damage>,
    /// Why it failed.
    pub error: Option<ErrorBody>,
}

/// One line of `config show`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigRow {
    /// Key as in the configuration file, sections by dots.
    pub key: String,
    /// Value in effect; empty when unset.
    pub value: String,
    /// Where it came from: `default`, `file …`, `env …`, `flag …`.
    pub origin: String,
}
