//! Volumes as block devices of the ublk driver, and the names under `/dev/ashlar` that stay the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind as IoErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use blockdev::error::{Error, ErrorKind, Result};
use blockdev::frontend::BlockDevice;
use blockdev::frontend::ublk::{self, Owner, Shape, State, Trouble, UblkDevice};
use blockdev::report::VolumeInfo;
use blockdev::units::Uuid;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::attach::{Presenter, Target};
use super::config::Config;
use super::fronts::blocking;

/// Where devices have the names of their volumes.
const NAMES: &str = "/dev/ashlar";

/// Holds when the last daemon left its devices to the next one, so that this one can say how long hosts waited.
const LEFT: &str = "ublk-left";

/// The ublk front end.
pub struct Ublk {
    pool: Uuid,
    shape: Shape,
    memory: Arc<Semaphore>,
    left: PathBuf,
    devices: Mutex<BTreeMap<String, Presented>>,
}

#[derive(Clone)]
struct Presented {
    volume: u32,
    device: Arc<UblkDevice>,
}

impl Ublk {
    /// Nothing is presented yet.
    pub fn new(config: &Config, pool: Uuid) -> Self {
        Self {
            pool,
            shape: config.ublk_shape(),
            memory: ublk::memory(config.ublk_memory()),
            left: config.state_dir.value.join(LEFT),
            devices: Mutex::default(),
        }
    }

    fn find(&self, name: &str) -> Result<Presented> {
        let found = self.devices.lock().get(name).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no volume '{name}' is attached via ublk")))
    }
}

#[async_trait]
impl Presenter for Ublk {
    async fn present(&self, volume: &VolumeInfo, device: Arc<dyn BlockDevice>) -> Result<Target> {
        let owner = Owner::new(self.pool, volume.id);
        let (shape, memory, runtime) = (self.shape, self.memory.clone(), Handle::current());
        let name = volume.name.clone();
        let (device, link) = blocking(move || {
            let device = UblkDevice::present(runtime, device, owner, shape, memory)?;
            let link = link(Path::new(NAMES), &name, &device.path());
            announce(&device.path());
            Ok((device, link))
        })
        .await?;
        let path = link.unwrap_or_else(|error| {
            tracing::warn!(volume = volume.name, %error, "the device has no name that stays");
            None
        });
        let target = Target { path, device: Some(device.path()), ..Target::default() };
        let presented = Presented { volume: volume.id, device: Arc::new(device) };
        self.devices.lock().insert(volume.name.clone(), presented);
        Ok(target)
    }

    async fn withdraw(&self, name: &str) -> Result<()> {
        let presented = self.find(name)?;
        let link = Path::new(NAMES).join(name);
        blocking(move || {
            presented.device.remove()?;
            unlink(&link, &presented.device.path());
            Ok(())
        })
        .await?;
        self.devices.lock().remove(name);
        Ok(())
    }

    async fn stop(&self) {
        let devices = std::mem::take(&mut *self.devices.lock());
        let left = self.left.clone();
        let stopped = blocking(move || {
            let mut waiting = 0;
            let since = SystemTime::now();
            for (name, presented) in devices {
                let path = presented.device.path();
                match presented.device.leave() {
                    Ok(true) => waiting += 1,
                    Ok(false) => unlink(&Path::new(NAMES).join(&name), &path),
                    Err(error) => tracing::warn!(volume = name, %error, "ending the service of a ublk device"),
                }
            }
            if waiting > 0 {
                tracing::info!(devices = waiting, "devices in use wait for the next daemon");
                remember(&left, since);
            }
            Ok(())
        });
        if let Err(error) = stopped.await {
            tracing::error!(%error, "stopping the ublk front end");
        }
    }

    fn trouble(&self, name: &str) -> Option<String> {
        Some(match self.devices.lock().get(name)?.device.trouble()? {
            Trouble::Ended(why) => format!(
                "its hosts wait: {why}. Restart the daemon (systemctl restart ashlar): it takes the device over with what waits, \
                 nothing is lost"
            ),
            Trouble::Stopped => format!(
                "its device was stopped by somebody else: its hosts have had errors. Unmount what was on it, and attach the volume again \
                 (ashlar volume detach {name}, ashlar volume attach {name} --via ublk)"
            ),
        })
    }

    async fn check_resize(&self) -> Result<()> {
        blocking(ublk::check_resize).await
    }

    async fn resized(&self, name: &str, size: u64) -> Result<()> {
        let presented = self.find(name)?;
        blocking(move || presented.device.resize(size)).await
    }

    async fn abandon(&self, volume: &VolumeInfo) -> Result<()> {
        let owner = Owner::new(self.pool, volume.id);
        blocking(move || {
            for found in ublk::existing()?.into_iter().filter(|found| found.owner == owner) {
                ublk::delete(found.number)?;
            }
            Ok(())
        })
        .await
    }

    async fn restored(&self) {
        let presented: BTreeSet<u32> = self.devices.lock().values().map(|p| p.volume).collect();
        let taken_over = self.devices.lock().values().filter(|p| p.device.taken_over()).count();
        let (pool, left) = (self.pool, self.left.clone());
        let cleared = blocking(move || {
            let waited = waited(&left);
            if taken_over > 0 {
                let waited = waited.map_or_else(|| "unknown".into(), |d| format!("{:.1} s", d.as_secs_f64()));
                tracing::info!(
                    devices = taken_over,
                    waited,
                    "devices in use were taken over, with the I/O that waited"
                );
            }
            clear(pool, &presented)
        });
        if let Err(error) = cleared.await {
            tracing::warn!(%error, "looking for ublk devices that earlier daemons left");
        }
    }
}

/// Deletes devices of this pool's volumes that are not presented: left by a daemon that ended while it attached or detached.
fn clear(pool: Uuid, presented: &BTreeSet<u32>) -> Result<()> {
    for found in ublk::existing()? {
        let Some(volume) = found.owner.volume_of(pool).filter(|volume| !presented.contains(volume)) else { continue };
        if found.state == State::Live {
            continue;
        }
        match ublk::delete(found.number) {
            Ok(()) => tracing::info!(device = found.number, volume, "deleted a ublk device that was left behind"),
            Err(error) => tracing::warn!(device = found.number, volume, %error, "a ublk device was left behind"),
        }
    }
    Ok(())
}

/// Gives `device` the name `name` in `names`. None when something else has it: another appliance on this machine, say.
fn link(names: &Path, name: &str, device: &Path) -> Result<Option<PathBuf>> {
    let link = names.join(name);
    let failed = |what: &str, e: std::io::Error| Error::io(format!("{what} {}: {e}", link.display()));
    std::fs::create_dir_all(names).map_err(|e| failed("making the directory of", e))?;
    match target_of(&link) {
        Ok(target) if target == device => return Ok(Some(link)),
        // It leads to a device that is there, and is not ours.
        Ok(target) if target.exists() => return Ok(None),
        Ok(_) => std::fs::remove_file(&link).map_err(|e| failed("replacing", e))?,
        Err(e) if e.kind() == IoErrorKind::NotFound => {}
        Err(_) => return Ok(None),
    }
    std::os::unix::fs::symlink(device, &link).map_err(|e| failed("linking", e))?;
    Ok(Some(link))
}

/// Where a link leads. One that udev made is relative: `../ublkb0`.
fn target_of(link: &Path) -> std::io::Result<PathBuf> {
    let target = std::fs::read_link(link)?;
    let Ok(above) = target.strip_prefix("..") else { return Ok(target) };
    Ok(link.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join(above))
}

/// Lets udev know that the device has a name now, for units that wait for it. Without udev nobody has to know.
fn announce(device: &Path) {
    let Some(name) = device.file_name() else { return };
    if let Err(error) = std::fs::write(Path::new("/sys/class/block").join(name).join("uevent"), "change") {
        tracing::debug!(device = %device.display(), %error, "udev is not told of a name");
    }
}

/// Takes the name away if it leads to `device`.
fn unlink(link: &Path, device: &Path) {
    if target_of(link).is_ok_and(|target| target == device)
        && let Err(error) = std::fs::remove_file(link)
        // udev was first.
        && error.kind() != IoErrorKind::NotFound
    {
        tracing::warn!(link = %link.display(), %error, "a name of a device that is gone stays");
    }
}

fn remember(file: &Path, since: SystemTime) {
    let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if let Err(error) = std::fs::write(file, since.as_millis().to_string()) {
        tracing::debug!(%error, "how long hosts will have waited cannot be told");
    }
}

/// How long ago the last daemon left its devices; asked once.
fn waited(file: &Path) -> Option<Duration> {
    let text = std::fs::read_to_string(file).ok()?;
    let _ = std::fs::remove_file(file);
    let since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(text.trim().parse().ok()?))?;
    SystemTime::now().duration_since(since).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_one_device_each() {
        let dir = tempfile::tempdir().unwrap();
        let names = dir.path().join("ashlar");
        let (one, two) = (dir.path().join("ublkb0"), dir.path().join("ublkb1"));
        std::fs::write(&one, "").unwrap();
        std::fs::write(&two, "").unwrap();
        let made = link(&names, "data", &one).unwrap();
        assert_eq!(made, Some(names.join("data")));
        assert_eq!(link(&names, "data", &one).unwrap(), made);
        // Another appliance's device keeps its name; that of one that is gone is free.
        assert_eq!(link(&names, "data", &two).unwrap(), None);
        unlink(&names.join("data"), &two);
        assert_eq!(std::fs::read_link(names.join("data")).unwrap(), one);
        std::fs::remove_file(&one).unwrap();
        assert_eq!(link(&names, "data", &two).unwrap(), made);
        assert_eq!(std::fs::read_link(names.join("data")).unwrap(), two);
        unlink(&names.join("data"), &two);
        assert!(!names.join("data").is_symlink());
        // udev's way to write it.
        std::os::unix::fs::symlink("../ublkb1", names.join("data")).unwrap();
        assert_eq!(link(&names, "data", &two).unwrap(), made);
        assert_eq!(std::fs::read_link(names.join("data")).unwrap(), Path::new("../ublkb1"));
        unlink(&names.join("data"), &two);
        assert!(!names.join("data").is_symlink());
        // A file of somebody's is not touched.
        std::fs::write(names.join("data"), "mine").unwrap();
        assert_eq!(link(&names, "data", &two).unwrap(), None);
        assert_eq!(std::fs::read_to_string(names.join("data")).unwrap(), "mine");
    }

    #[test]
    fn how_long_hosts_waited_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(LEFT);
        assert_eq!(waited(&file), None);
        remember(&file, SystemTime::now().checked_sub(Duration::from_secs(60)).unwrap());
        let told = waited(&file).unwrap();
        assert!((60..600).contains(&told.as_secs()), "{told:?}");
        assert_eq!(waited(&file), None);
        std::fs::write(&file, "nonsense").unwrap();
        assert_eq!(waited(&file), None);
    }
}
