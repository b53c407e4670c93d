//! What the REST API speaks about snapshots.

use blockdev::report::SnapshotInfo;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Snapshots to take.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// `VOLUME@SNAPSHOT` each; all of one instant.
    pub names: Vec<String>,
    /// Seconds until they expire; never when null.
    #[serde(default)]
    pub expires_in_s: Option<u64>,
    /// Nobody can delete them before that.
    #[serde(default)]
    pub secure: bool,
    /// How applications are made ready.
    #[serde(default)]
    pub quiesce: Quiesce,
}

/// How applications are made ready for a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Quiesce {
    /// File systems that are mounted on the volumes' devices are frozen meanwhile.
    #[serde(default)]
    pub freeze: bool,
    /// Name of a program in the daemon's `hooks_dir` that is run before, with `pre`, and after, with `post` or `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
}

/// How long a snapshot is kept.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotKeep {
    /// Seconds from now until it expires; never when null.
    #[serde(deserialize_with = "super::required")]
    pub expires_in_s: Option<u64>,
    /// Nobody can delete it before that; what is secure stays so.
    #[serde(default)]
    pub secure: bool,
}

/// A snapshot.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// The engine's record.
    #[serde(flatten)]
    pub info: SnapshotInfo,
    /// Name of the rule that took it.
    #[serde(default)]
    pub rule: Option<String>,
    /// Name of the group it was taken of.
    #[serde(default)]
    pub group: Option<String>,
}

/// Which snapshots to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SnapshotQuery {
    /// Those of this volume only.
    pub volume: Option<String>,
}

/// Most ranges of one answer.
pub const CHANGES_MAX: usize = 10_000;

/// Which changes to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ChangesQuery {
    /// The older volume or snapshot.
    pub since: String,
    /// From here on, in bytes: `next` of the last answer.
    pub offset: Option<u64>,
    /// At most so many ranges; 10,000 at most.
    pub limit: Option<usize>,
}

/// A clone to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneCreate {
    /// Name of the new volume.
    pub name: String,
}

/// What becomes of the present content of a volume that takes another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// It becomes a snapshot whose name tells why and when.
    #[default]
    Named,
    /// It becomes a snapshot of this name.
    As(String),
    /// It is given back.
    Nothing,
}

/// A volume to be restored.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeRestore {
    /// `VOLUME@SNAPSHOT`.
    pub snapshot: String,
    /// What becomes of what it is now.
    #[serde(default)]
    pub keep: Keep,
}

/// A volume to be refreshed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeRefresh {
    /// The volume, or snapshot, whose content it takes.
    pub from: String,
    /// What becomes of what it is now.
    #[serde(default)]
    pub keep: Keep,
}
