//! Drives of the machine, whether of the pool or not.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether a drive could be given to a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriveState {
    /// Nothing is known to be on it.
    Free,
    /// It holds something, another pool say: only `--force` gives it to a pool, and all it holds is lost then.
    Foreign,
    /// Something else uses it.
    InUse,
    /// It cannot be read.
    Unreadable,
}

impl DriveState {
    /// The state in words.
    pub fn word(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Foreign => "foreign",
            Self::InUse => "in use",
            Self::Unreadable => "unreadable",
        }
    }
}

/// A drive of the machine.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Drive {
    /// Its device.
    pub path: String,
    /// A name of it that does not change when drives are plugged elsewhere; null when it has none.
    pub stable_path: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Whether it could be given to a pool.
    pub state: DriveState,
    /// What it holds, who uses it, or why it cannot be read.
    pub holds: Option<String>,
    /// What it calls itself.
    pub model: Option<String>,
    /// Whether it is a hard disk; null when it does not say.
    pub rotational: Option<bool>,
}
