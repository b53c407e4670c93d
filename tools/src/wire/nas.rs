//! File systems, as the API tells of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether a file system can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileSystemState {
    /// It is being made, or was when the daemon ended.
    Making,
    /// It is mounted.
    Mounted,
    /// It should be mounted and is not; `error` says why.
    Unmounted,
    /// It is mounted, and answers everything with an error since its metadata could not be written.
    Failed,
    /// It is being deleted.
    Deleting,
}

impl std::fmt::Display for FileSystemState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Making => "making",
            Self::Mounted => "mounted",
            Self::Unmounted => "unmounted",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        })
    }
}

/// A file system.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FileSystem {
    /// Name, also that of the group of its volumes.
    pub name: String,
    /// Whether it can be used.
    pub state: FileSystemState,
    /// Bytes that files can take, before deduplication and compression.
    pub size: u64,
    /// Bytes of `size` that files take; null while it is not mounted.
    pub used: Option<u64>,
    /// Files, directories and other inodes; null while it is not mounted.
    pub inodes: Option<u64>,
    /// Where it is mounted.
    pub path: String,
    /// Its volumes: metadata, data.
    pub volumes: Vec<String>,
    /// The NAS server it belongs to.
    pub server: Option<String>,
    /// It holds the state of that server.
    pub internal: bool,
    /// Name of its policy.
    pub policy: Option<String>,
    /// Snapshots there are of it.
    pub snapshots: u64,
    /// Seconds since 1970.
    pub created_s: u64,
    /// Why it cannot be used.
    pub error: Option<String>,
}

/// A file system to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSystemCreate {
    /// Name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Name of a protection policy it has.
    #[serde(default)]
    pub policy: Option<String>,
    /// The NAS server it belongs to.
    #[serde(default)]
    pub server: Option<String>,
}

/// A new size.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSystemResize {
    /// Bytes; not less than before.
    pub size: u64,
}

/// How a file system is to be deleted.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FileSystemDelete {
    /// With its snapshots.
    #[serde(default)]
    pub snapshots: bool,
    /// Also while files are open.
    #[serde(default)]
    pub force: bool,
}

/// A file system to be restored from one of its snapshots.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSystemRestore {
    /// What becomes of what it is now.
    #[serde(default)]
    pub keep: super::snapshots::Keep,
    /// Also while files are open.
    #[serde(default)]
    pub force: bool,
}

/// A file system to be cloned from a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSystemClone {
    /// Name of the new one.
    pub name: String,
}

/// A snapshot that is mounted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotMount {
    /// `FILESYSTEM@SNAPSHOT`.
    pub name: String,
    /// Where.
    pub path: String,
}

/// What a check found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FileSystemCheck {
    /// What is wrong, the first thousand.
    pub problems: Vec<String>,
    /// How much is.
    pub wrong: u64,
    /// Directories that exist.
    pub directories: u64,
    /// Other inodes.
    pub files: u64,
    /// Extents of files.
    pub extents: u64,
    /// Bytes that files take.
    pub used: u64,
    /// Inodes without a name that wait to be freed.
    pub orphans: u64,
}

impl From<nas::check::Report> for FileSystemCheck {
    fn from(report: nas::check::Report) -> Self {
        let nas::check::Report { problems, wrong, directories, files, extents, blocks, orphans } = report;
        Self { problems, wrong, directories, files, extents, used: blocks * nas::BLOCK, orphans }
    }
}
