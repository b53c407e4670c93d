//! What drives tell about themselves.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How much something matters, least first when compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It went as it should.
    #[default]
    Info,
    /// It should be looked at.
    Warning,
    /// Something did not work.
    Error,
    /// Data, or service, is or may soon be at risk.
    Critical,
}

impl Severity {
    /// The word for it, as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// A drive's health in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// It does not tell, or was not asked yet: see [`DriveHealth::note`].
    #[default]
    NotReported,
    /// It warns of nothing.
    Good,
    /// It should be looked at: see [`DriveHealth::warnings`].
    Warning,
    /// It fails, or is about to, or wears out: see [`DriveHealth::warnings`].
    Critical,
}

/// The language a drive told its health in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthSource {
    /// The health log of an NVMe drive.
    Nvme,
    /// SMART and device statistics of an ATA drive.
    Ata,
    /// Log pages of a SCSI drive.
    Scsi,
}

/// Something a drive warns of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthWarning {
    /// How much it matters.
    pub severity: Severity,
    /// Stable short code, such as `disk.health.wear`.
    pub code: String,
    /// What the drive tells.
    pub cause: String,
    /// What to do.
    pub action: String,
}

/// What a drive tells about itself. What it does not tell is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct DriveHealth {
    /// In one word.
    pub state: HealthState,
    /// Where the figures come from; not there when there are none.
    pub source: Option<HealthSource>,
    /// Why there are none, or why they are old.
    pub note: Option<String>,
    /// When the drive was asked and answered, in seconds since 1970.
    pub checked_s: Option<u64>,
    /// Model, as the maker calls it.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Firmware revision.
    pub firmware: Option<String>,
    /// Bytes of the whole drive, of which the pool may have a partition only.
    pub capacity: Option<u64>,
    /// Degrees Celsius now.
    pub temperature_c: Option<i32>,
    /// Degrees Celsius from which on the drive warns.
    pub temperature_warning_c: Option<i32>,
    /// Degrees Celsius that may harm the drive.
    pub temperature_critical_c: Option<i32>,
    /// Per cent used of the writes the drive is made for. It may exceed 100.
    pub wear_percent: Option<u16>,
    /// Per cent of the spare blocks that are left.
    pub spare_percent: Option<u8>,
    /// Per cent of spare blocks below which the drive is not reliable.
    pub spare_threshold_percent: Option<u8>,
    /// Times data could not be read or written without error.
    pub media_errors: Option<u64>,
    /// Sectors that were replaced by spare ones.
    pub reallocated_sectors: Option<u64>,
    /// Sectors that cannot be read and wait to be written again or replaced.
    pub pending_sectors: Option<u64>,
    /// Hours under power.
    pub power_on_hours: Option<u64>,
    /// Times it was switched on.
    pub power_cycles: Option<u64>,
    /// Times power went away without notice.
    pub unsafe_shutdowns: Option<u64>,
    /// Bytes hosts wrote to it in its life.
    pub written: Option<u64>,
    /// Bytes hosts read from it in its life.
    pub read: Option<u64>,
    /// What it warns of, most severe first.
    pub warnings: Vec<HealthWarning>,
}

impl DriveHealth {
    /// Of a drive that tells nothing, and why.
    pub fn not_reported(why: impl Into<String>) -> Self {
        Self { note: Some(why.into()), ..Self::default() }
    }
}
