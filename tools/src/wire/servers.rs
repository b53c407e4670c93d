//! NAS servers and what they export, as the API tells of them.

pub use nas::server::exports::{Access, Hosts};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether a NAS server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// It is being made, or was when the daemon ended.
    Making,
    /// Some of its services do not run yet, or were started again.
    Starting,
    /// All of its services run.
    Running,
    /// It cannot serve; `error` says why.
    Failed,
    /// It is being deleted.
    Deleting,
}

impl std::fmt::Display for ServerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Making => "making",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        })
    }
}

/// A protocol server of a NAS server.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServerService {
    /// `portmap`, `statd`, `nfs`, `notify`.
    pub name: String,
    /// `starting`, `running`, `done` (it has done what it was there for), `stopped`.
    pub state: String,
    /// Its process.
    pub pid: Option<u32>,
    /// How often it ended by itself and was started again.
    pub restarts: u64,
    /// When it last began to listen, in seconds since 1970.
    pub since_s: Option<u64>,
    /// What it says.
    pub log: String,
    /// Why it ended the last time.
    pub error: Option<String>,
}

/// A NAS server.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NasServer {
    /// Name.
    pub name: String,
    /// Whether it serves.
    pub state: ServerState,
    /// Its address, with the length of its network's prefix.
    pub address: String,
    /// Where everything beyond its network goes.
    pub gateway: Option<String>,
    /// Interface or bridge of this machine through which others reach it; null when only this machine does.
    pub interface: Option<String>,
    /// Name servers it asks for the names of hosts.
    pub dns: Vec<String>,
    /// Versions of NFS it serves: `3`, `4`.
    pub nfs: Vec<u8>,
    /// Its file systems.
    pub file_systems: Vec<String>,
    /// File system that holds what the server itself must remember.
    pub state_file_system: String,
    /// Exports there are.
    pub exports: usize,
    /// Network namespace it runs in (`ip netns`).
    pub namespace: String,
    /// Its protocol servers.
    pub services: Vec<ServerService>,
    /// Seconds since 1970.
    pub created_s: u64,
    /// Why it cannot serve.
    pub error: Option<String>,
}

/// A NAS server to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NasServerCreate {
    /// Name.
    pub name: String,
    /// Address with the length of its network's prefix, such as 192.168.1.20/24.
    pub address: String,
    /// Where everything beyond its network goes.
    #[serde(default)]
    pub gateway: Option<String>,
    /// Interface or bridge of this machine through which others reach it; without one only this machine does.
    #[serde(default)]
    pub interface: Option<String>,
    /// Name servers it asks for the names of hosts; none when left out.
    #[serde(default)]
    pub dns: Vec<String>,
    /// Versions of NFS it serves; 3 and 4 when left out.
    #[serde(default = "all_versions")]
    pub nfs: Vec<u8>,
}

/// Versions of NFS.
pub fn all_versions() -> Vec<u8> {
    vec![3, 4]
}

/// An NFS export.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NasExport {
    /// The NAS server.
    pub server: String,
    /// The path by which clients mount it.
    pub path: String,
    /// What clients give to mount: `ADDRESS:PATH`.
    pub source: String,
    /// Whether it is served: its file system is mounted.
    pub served: bool,
    /// What is exported.
    #[serde(flatten)]
    pub rules: ExportRules,
}

/// What is exported, and to whom.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ExportRules {
    /// The file system.
    pub file_system: String,
    /// The directory of it, below its root; empty for all of it.
    #[serde(default)]
    pub directory: String,
    /// What hosts may do that `hosts` does not name: `none`, `read_only`, `read_write`, `read_only_root`, `root`.
    #[serde(default)]
    #[schema(value_type = String)]
    pub default_access: Access,
    /// What those may do that it names; the first that fits counts.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub hosts: Vec<Hosts>,
    /// Who a host's root is, where it is not root.
    #[serde(default = "nobody")]
    pub anonymous_uid: u32,
    /// Its group.
    #[serde(default = "nobody")]
    pub anonymous_gid: u32,
}

/// Nobody's number, and that of their group.
pub fn nobody() -> u32 {
    65534
}

/// An export to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NasExportCreate {
    /// The path by which clients mount it, such as /home.
    pub path: String,
    /// What is exported.
    #[serde(flatten)]
    pub rules: ExportRules,
}

/// Which NAS server a file system belongs to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSystemServer {
    /// The NAS server; null for none.
    pub server: Option<String>,
}
