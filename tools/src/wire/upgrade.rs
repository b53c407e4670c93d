//! What the REST API speaks about a new program taking the daemon's place.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Via;

/// A request to go on with another program.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeRequest {
    /// Absolute path of the program; the one the daemon was started from when left out.
    #[serde(default)]
    pub binary: Option<String>,
    /// Also when volumes are in use in a way that does not outlive the daemon (loop devices and files of FUSE).
    #[serde(default)]
    pub force: bool,
}

/// How far an upgrade is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpgradeState {
    /// The daemon drains, or its successor has not opened the pool yet.
    Running,
    /// The new program serves.
    Done,
    /// The new program could not serve; the old one does again.
    FellBack,
}

/// An upgrade and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Upgrade {
    /// Tells upgrades apart: milliseconds since 1970 when it was asked for.
    pub id: u64,
    /// How far it is.
    pub state: UpgradeState,
    /// Version of the program that served.
    pub from: String,
    /// Version of the new program.
    pub to: String,
    /// Path of the new program.
    pub binary: String,
    /// Jobs that ended with the old program, by kind; they can be started again.
    pub ended_jobs: Vec<String>,
    /// Milliseconds from the last I/O of the old program until all volumes were presented again.
    pub waited_ms: Option<u64>,
    /// The volumes that are presented.
    pub volumes: Vec<UpgradedVolume>,
    /// Why the new program could not serve.
    pub error: Option<String>,
}

/// How a volume came through an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpgradedVolume {
    /// Its name.
    pub volume: String,
    /// How it is presented.
    pub via: Via,
    /// Milliseconds hosts waited for it at most.
    pub waited_ms: u64,
    /// Why it could not be presented again.
    pub error: Option<String>,
}

/// What a program says of itself when it is asked whether it could serve (`ashlar serve --check`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Able {
    /// Its version.
    pub version: String,
    /// Versions of the on-disk format it reads.
    pub formats: Vec<u32>,
}
