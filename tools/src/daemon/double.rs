//! A stand-in for the engine and the front ends, for tests of what lies above them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use blockdev::disk::Disk;
use blockdev::error::{Error, ErrorKind, Result};
use blockdev::format::volume::Setting;
use blockdev::frontend::memory::MemoryDevice;
use blockdev::frontend::{BlockDevice, Extent};
use blockdev::pool::{Kept, Managed, Reserve};
use blockdev::report::{
    Changes, CheckReport, Damage, DiskInfo, Finding, Membership, PoolStats, PoolStatus, Reduction, Redundancy, Scrub,
    SnapshotInfo, Tolerance, VolumeInfo,
};
use blockdev::units::Uuid;
use parking_lot::Mutex;

use super::attach::{FrontEnds, Loops, Presenter, Target};
use super::engine::{Engine, Progress};

/// Volumes in memory.
#[derive(Default)]
pub struct MemoryEngine {
    volumes: Mutex<BTreeMap<String, (VolumeInfo, Arc<MemoryDevice>)>>,
    last_id: AtomicU32,
    /// What a check finds.
    pub findings: Mutex<Vec<Finding>>,
    /// Makes the next change of an attachment fail.
    pub fail_attachments: AtomicBool,
    /// Set by [`Engine::close`].
    pub closed: AtomicBool,
}

fn no_snapshots() -> Error {
    Error::new(ErrorKind::Unsupported, "there are no snapshots in memory")
}

fn missing(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no volume '{name}'"))
}

impl MemoryEngine {
    fn change<T>(&self, name: &str, change: impl FnOnce(&mut VolumeInfo, &MemoryDevice) -> T) -> Result<T> {
        let mut volumes = self.volumes.lock();
        let (info, device) = volumes.get_mut(name).ok_or_else(|| missing(name))?;
        Ok(change(info, device))
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    fn release_disk(&self, _path: &Path) -> bool {
        false
    }

    async fn add_disk(&self, disk: Arc<dyn Disk>, _force: bool, _: Option<u16>) -> Result<DiskInfo> {
        Ok(DiskInfo { id: 1, path: disk.name(), ..DiskInfo::default() })
    }

    async fn remove_disk(&self, id: u16) -> Result<DiskInfo> {
        Err(Error::new(ErrorKind::NotFound, format!("there is no disk {id}")))
    }

    async fn keep_disk(&self, id: u16) -> Result<DiskInfo> {
        Err(Error::new(ErrorKind::NotFound, format!("there is no disk {id}")))
    }

    async fn fail_disk(&self, id: u16) -> Result<DiskInfo> {
        Err(Error::new(ErrorKind::NotFound, format!("there is no disk {id}")))
    }

    async fn rescan_disks(&self) -> Result<()> {
        Ok(())
    }

    fn let_go_of_disk(&self, _disk: Uuid) {}

    async fn reinstate_disk(&self, disk: Arc<dyn Disk>) -> Result<DiskInfo> {
        Err(Error::invalid(format!("{} is not a disk of pool memory", disk.name())))
    }

    async fn status(&self) -> PoolStatus {
        let volumes = self.volumes.lock();
        let disk = DiskInfo {
            id: 0,
            uuid: Uuid([7; 16]),
            path: "/lab/disks/disk0.img".into(),
            size: 1 << 30,
            ..DiskInfo::default()
        };
        PoolStatus {
            rebuild: None,
            scrub: Scrub::default(),
            damaged_segments: 0,
            tolerance_wanted: Tolerance::None,
            sets: 1,
            mixed: false,
            spare: Default::default(),
            reserved: 0,
            set_aside: 0,
            name: "memory".into(),
            uuid: Uuid([1; 16]),
            health: "healthy".into(),
            tolerance: Tolerance::None,
            layout: "1+0".into(),
            epoch: 1,
            raw: 1 << 30,
            usable: 1 << 30,
            used: 0,
            available: 1 << 30,
            provisioned: volumes.values().map(|(info, _)| info.size).sum(),
            reduction: Reduction::default(),
            redundancy: Redundancy::default(),
            disks: vec![disk],
            volumes: volumes.len(),
            snapshots: 0,
            deleting: 0,
            deleting_done: 0.0,
            deleting_to_come: None,
            alerts: vec![],
        }
    }

    async fn stats(&self) -> PoolStats {
        PoolStats { host_writes: 5, ..PoolStats::default() }
    }

    async fn check(&self, progress: Progress) -> Result<CheckReport> {
        progress(1, 2);
        let volumes = self.volumes.lock().len() as u64;
        Ok(CheckReport { volumes, findings: self.findings.lock().clone(), ..CheckReport::default() })
    }

    async fn start_scrub(&self) -> Result<Scrub> {
        Ok(Scrub { running: true, ..Scrub::default() })
    }

    async fn stop_scrub(&self) -> Result<Scrub> {
        Ok(Scrub::default())
    }

    async fn set_tolerance(&self, _: Tolerance) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "not in memory"))
    }

    async fn rebalance(&self) -> Result<()> {
        Ok(())
    }

    async fn damage(&self, progress: Progress) -> Result<Damage> {
        progress(2, 2);
        Ok(Damage { bytes: 4096, ..Damage::default() })
    }

    async fn create_volume(&self, name: &str, size: u64, reserve: Option<Reserve>) -> Result<VolumeInfo> {
        let mut volumes = self.volumes.lock();
        if volumes.contains_key(name) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("there is a volume '{name}' already")));
        }
        let info = VolumeInfo {
            name: name.into(),
            id: self.last_id.fetch_add(1, Ordering::Relaxed) + 1,
            size,
            mapped: 0,
            reserved: if reserve == Some(Reserve::All) { size } else { 0 },
            unique: None,
            savings: None,
            estimated: false,
            attached: None,
            state: "online".into(),
            created_s: 1,
            snapshots: 0,
            origin: None,
            group_id: 0,
            policy_id: 0,
        };
        volumes.insert(name.into(), (info.clone(), Arc::new(MemoryDevice::new(size))));
        Ok(info)
    }

    async fn reserve_volume(&self, name: &str, reserve: Reserve) -> Result<VolumeInfo> {
        self.change(name, |info, _| {
            info.reserved = match reserve {
                Reserve::All => info.size,
                Reserve::Bytes(bytes) => bytes,
            };
            info.clone()
        })
    }

    async fn resize_volume(&self, name: &str, size: u64) -> Result<VolumeInfo> {
        self.change(name, |info, device| {
            device.resize(size);
            info.size = size;
            info.clone()
        })
    }

    async fn delete_volume(&self, name: &str, _: bool) -> Result<()> {
        self.volumes.lock().remove(name).map(drop).ok_or_else(|| missing(name))
    }

    async fn create_snapshots(&self, _: &[String], _: &Kept) -> Result<Vec<SnapshotInfo>> {
        Err(no_snapshots())
    }

    async fn keep_snapshot(&self, _: &str, _: Option<u64>, _: bool) -> Result<SnapshotInfo> {
        Err(no_snapshots())
    }

    async fn clone_snapshots(&self, _: &[(String, String)], _: u32, _: Vec<Managed>) -> Result<Vec<VolumeInfo>> {
        Err(no_snapshots())
    }

    async fn restore_volumes(&self, _: &[(String, String)], _: Option<&str>, _: u32) -> Result<()> {
        Err(no_snapshots())
    }

    fn settings(&self, _: &str) -> Vec<Setting> {
        Vec::new()
    }

    fn memberships(&self) -> Vec<Membership> {
        Vec::new()
    }

    async fn manage(&self, _: Vec<Managed>) -> Result<()> {
        Err(no_snapshots())
    }

    async fn check_snapshots(&self, _: &[String]) -> Result<()> {
        Err(no_snapshots())
    }

    async fn confirm_snapshots(&self, _: &[String], _: &Kept) -> Result<Vec<SnapshotInfo>> {
        Err(no_snapshots())
    }

    async fn delete_expired(&self, _: usize) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn delete_of_rule(&self, _: &[(u32, u32)]) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn snapshots(&self, _: Option<&str>) -> Result<Vec<SnapshotInfo>> {
        Ok(Vec::new())
    }

    async fn snapshot(&self, _: &str) -> Result<SnapshotInfo> {
        Err(no_snapshots())
    }

    async fn delete_snapshots(&self, _: &[String]) -> Result<()> {
        Err(no_snapshots())
    }

    async fn clone_snapshot(&self, _: &str, _: &str) -> Result<VolumeInfo> {
        Err(no_snapshots())
    }

    async fn restore_volume(&self, _: &str, _: &str, _: Option<&str>) -> Result<VolumeInfo> {
        Err(no_snapshots())
    }

    async fn refresh_volume(&self, _: &str, _: &str, _: Option<&str>) -> Result<VolumeInfo> {
        Err(no_snapshots())
    }

    fn snapshot_names(&self, _: &str) -> Vec<(String, u32)> {
        Vec::new()
    }

    async fn changes(&self, _: &str, _: &str, _: u64, _: usize) -> Result<Changes> {
        Err(no_snapshots())
    }

    async fn changed_extents(&self, _: &str, _: (&str, u32), _: u64, _: u64, _: usize) -> Result<Vec<Extent>> {
        Err(no_snapshots())
    }

    async fn attached(&self) -> Vec<VolumeInfo> {
        self.volumes().await
    }

    async fn volumes(&self) -> Vec<VolumeInfo> {
        self.volumes.lock().values().map(|(info, _)| info.clone()).collect()
    }

    async fn volume_info(&self, name: &str) -> Result<VolumeInfo> {
        self.change(name, |info, _| info.clone())
    }

    fn open_volume(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        let found = self.volumes.lock().get(name).map(|(_, device)| device.clone());
        found.map(|d| d as Arc<dyn BlockDevice>).ok_or_else(|| missing(name))
    }

    async fn set_attachment(&self, name: &str, attachment: Option<String>) -> Result<()> {
        if self.fail_attachments.swap(false, Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::NoSpace, "the pool is full"));
        }
        self.change(name, |info, _| info.attached = attachment)
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Front ends that only remember.
#[derive(Default)]
pub struct Memory {
    /// Names presented now.
    pub shown: Mutex<BTreeSet<String>>,
    /// Loop devices set up now.
    pub loops: Mutex<BTreeSet<PathBuf>>,
    /// Makes presenting fail.
    pub broken: AtomicBool,
    /// Makes taking down fail with Busy.
    pub mounted: AtomicBool,
    /// Block devices do not answer.
    pub unserved: AtomicBool,
    /// Calls of [`Loops::refresh`].
    pub refreshed: AtomicU32,
}

impl Memory {
    /// As front ends for everything.
    pub fn fronts(self: &Arc<Self>) -> FrontEnds {
        let files = Arc::new(Files(self.clone()));
        let devices = Arc::new(Devices(self.clone()));
        FrontEnds { nbd: self.clone(), fuse: files, ublk: devices, loops: self.clone() }
    }
}

#[async_trait]
impl Presenter for Memory {
    async fn present(&self, volume: &VolumeInfo, _: Arc<dyn BlockDevice>) -> Result<Target> {
        let name = &volume.name;
        if self.broken.load(Ordering::Relaxed) {
            return Err(Error::io("out of order"));
        }
        assert!(self.shown.lock().insert(name.to_owned()), "{name} is presented twice");
        let uris = vec![format!("nbd+unix:///{name}?socket=/s"), format!("nbd://h/{name}")];
        Ok(Target { uris, ..Target::default() })
    }

    async fn withdraw(&self, name: &str) -> Result<()> {
        assert!(self.shown.lock().remove(name), "{name} is not presented");
        Ok(())
    }

    async fn stop(&self) {
        self.shown.lock().clear();
    }
}

/// The same, showing paths.
struct Files(Arc<Memory>);

#[async_trait]
impl Presenter for Files {
    async fn present(&self, volume: &VolumeInfo, device: Arc<dyn BlockDevice>) -> Result<Target> {
        self.0.present(volume, device).await?;
        Ok(Target { path: Some(Path::new("/mnt").join(&volume.name)), ..Target::default() })
    }

    async fn withdraw(&self, name: &str) -> Result<()> {
        self.0.withdraw(name).await
    }

    async fn stop(&self) {
        self.0.stop().await;
    }
}

/// The same, showing block devices of which sizes can be changed unless [`Memory::mounted`].
struct Devices(Arc<Memory>);

#[async_trait]
impl Presenter for Devices {
    async fn present(&self, volume: &VolumeInfo, device: Arc<dyn BlockDevice>) -> Result<Target> {
        self.0.present(volume, device).await?;
        let device = Some(PathBuf::from(format!("/dev/ublkb{}", volume.id)));
        Ok(Target { path: Some(Path::new("/dev/ashlar").join(&volume.name)), device, ..Target::default() })
    }

    async fn withdraw(&self, name: &str) -> Result<()> {
        if self.0.mounted.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Busy, "it is mounted"));
        }
        self.0.withdraw(name).await
    }

    async fn stop(&self) {
        self.0.stop().await;
    }

    fn trouble(&self, _: &str) -> Option<String> {
        self.0.unserved.load(Ordering::Relaxed).then(|| "its hosts wait: queue 1 ended. Restart the daemon".into())
    }

    async fn abandon(&self, _: &VolumeInfo) -> Result<()> {
        let used = || Error::new(ErrorKind::Busy, "it is mounted");
        if self.0.mounted.load(Ordering::Relaxed) { Err(used()) } else { Ok(()) }
    }

    async fn check_resize(&self) -> Result<()> {
        let unable = || Error::new(ErrorKind::Unsupported, "this kernel cannot");
        if self.0.mounted.load(Ordering::Relaxed) { Err(unable()) } else { Ok(()) }
    }

    async fn resized(&self, _: &str, _: u64) -> Result<()> {
        self.0.refreshed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[async_trait]
impl Loops for Memory {
    async fn set_up(&self, file: &Path) -> Result<PathBuf> {
        if self.mounted.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unsupported, "no loop devices here"));
        }
        let device = PathBuf::from(format!("/dev/loop-{}", file.file_name().unwrap().display()));
        self.loops.lock().insert(device.clone());
        Ok(device)
    }

    async fn refresh(&self, _: &Path) -> Result<()> {
        self.refreshed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn take_down(&self, device: &Path, _file: &Path) -> Result<()> {
        if self.mounted.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Busy, "it is mounted"));
        }
        self.loops.lock().remove(device);
        Ok(())
    }
}
