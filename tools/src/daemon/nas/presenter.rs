//! What keeps other hands off the volumes of a file system: they count as presented, by it.

use std::sync::Arc;

use async_trait::async_trait;
use blockdev::error::{Error, ErrorKind, Result};
use blockdev::frontend::BlockDevice;
use blockdev::report::VolumeInfo;

use crate::daemon::attach::{Presenter, Target};

/// The presenter of volumes that a file system lies on.
pub struct OfFileSystem;

/// What whoever wants to do something else with them is told.
pub fn owned(volume: &str) -> Error {
    let fs = volume.rsplit_once(".fs-").map_or(volume, |(fs, _)| fs);
    let text = format!(
        "volume '{volume}' is part of file system '{fs}': see ashlar nas fs --help for what can be done with it"
    );
    Error::new(ErrorKind::Busy, text)
}

#[async_trait]
impl Presenter for OfFileSystem {
    async fn present(&self, _volume: &VolumeInfo, _device: Arc<dyn BlockDevice>) -> Result<Target> {
        Ok(Target::default())
    }

    async fn withdraw(&self, name: &str) -> Result<()> {
        Err(owned(name))
    }

    async fn stop(&self) {}
}
