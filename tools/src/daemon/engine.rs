//! The engine as the daemon sees it.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use blockdev::error::Result;
use blockdev::frontend::BlockDevice;
use blockdev::report::{CheckReport, PoolStats, PoolStatus, Tolerance, VolumeInfo};

/// Called with steps done and steps in all.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// An open pool.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// The pool at a glance.
    async fn status(&self) -> PoolStatus;
    /// Counters.
    async fn stats(&self) -> PoolStats;
    /// Walks everything, read-only.
    async fn check(&self, progress: Progress) -> Result<CheckReport>;
    /// Makes a volume of `size` bytes.
    async fn create_volume(&self, name: &str, size: u64) -> Result<VolumeInfo>;
    /// Changes a volume's size, in bytes.
    async fn resize_volume(&self, name: &str, size: u64) -> Result<VolumeInfo>;
    /// Deletes a volume.
    async fn delete_volume(&self, name: &str) -> Result<()>;
    /// All volumes.
    async fn volumes(&self) -> Vec<VolumeInfo>;
    /// One volume.
    async fn volume_info(&self, name: &str) -> Result<VolumeInfo>;
    /// The device of a volume.
    fn open_volume(&self, name: &str) -> Result<Arc<dyn BlockDevice>>;
    /// Keeps how the volume is presented across restarts.
    async fn set_attachment(&self, name: &str, attachment: Option<String>) -> Result<()>;
    /// Flushes, checkpoints and stops.
    async fn close(&self) -> Result<()>;
}

/// A pool to be made.
#[derive(Clone, Debug)]
pub struct NewPool {
    /// Its name.
    pub name: String,
    /// Its drives.
    pub disks: Vec<PathBuf>,
    /// Drives that may fail.
    pub tolerance: Tolerance,
    /// Bytes of a chunk; chosen by the drives' size when None.
    pub chunk_size: Option<u64>,
    /// Overwrite what is on the drives.
    pub force: bool,
}

pub fn create(_: &NewPool) -> Result<()> {
    Err(blockdev::error::Error::new(blockdev::error::ErrorKind::Unsupported, "no engine"))
}

pub async fn open(_: &super::config::Config) -> Result<(Arc<dyn Engine>, Option<super::faults::Faults>)> {
    Err(blockdev::error::Error::new(blockdev::error::ErrorKind::Unsupported, "no engine"))
}
