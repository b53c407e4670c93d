//! The engine as the daemon sees it.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use blockdev::carry::SharedMemory;
use blockdev::disk::uring::attach_runtime;
use blockdev::disk::{Disk, FaultDisk, FileDisk, OpenOptions};
use blockdev::env::{Env, RealEnv};
use blockdev::error::{Error, ErrorKind, Result};
use blockdev::format::label::Label;
use blockdev::format::volume::Setting;
use blockdev::frontend::{BlockDevice, Extent};
use blockdev::pool::{CreateOptions, Kept, KnownDisk, Managed, Pool, PoolConfig, Reserve};
use blockdev::report::{
    Changes, CheckReport, Damage, DiskInfo, Membership, PoolStats, PoolStatus, Scrub, SnapshotInfo, Tolerance,
    VolumeInfo,
};
use blockdev::units::Uuid;
use blockdev::volume::recovery::read_label;
use tokio::runtime::Handle;

use super::config::Config;
use super::faults::{Drive, Faults, Faulty};
use super::{corrupt, known_disks};
use crate::wire::lab::{DiskCorrupt, DiskCorrupted};

/// Called with steps done and steps in all.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Where memory is had that a killed daemon leaves to the next one.
pub const CARRY: &str = "/dev/shm";

/// How often, and after which pause, a disk is asked for again that is still in use.
const RELEASE_TRIES: usize = 30;
const RELEASE_PAUSE: Duration = Duration::from_millis(100);

/// An open pool.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// The pool at a glance.
    async fn status(&self) -> PoolStatus;
    /// Counters.
    async fn stats(&self) -> PoolStats;
    /// Walks everything, read-only.
    async fn check(&self, progress: Progress) -> Result<CheckReport>;
    /// Begins a scrub, or lets the one that is running go on.
    async fn start_scrub(&self) -> Result<Scrub>;
    /// Ends a scrub before it is through.
    async fn stop_scrub(&self) -> Result<Scrub>;
    /// Changes how many failures the pool survives.
    async fn set_tolerance(&self, tolerance: Tolerance) -> Result<()>;
    /// Begins to spread data evenly over the disks.
    async fn rebalance(&self) -> Result<()>;
    /// Lists what cannot be read.
    async fn damage(&self, progress: Progress) -> Result<Damage>;
    /// Makes a volume of `size` bytes, and reserves space for it.
    async fn create_volume(&self, name: &str, size: u64, reserve: Option<Reserve>) -> Result<VolumeInfo>;
    /// Changes what is reserved for a volume.
    async fn reserve_volume(&self, name: &str, reserve: Reserve) -> Result<VolumeInfo>;
    /// Changes a volume's size, in bytes.
    async fn resize_volume(&self, name: &str, size: u64) -> Result<VolumeInfo>;
    /// Deletes a volume, with its snapshots if they are to go.
    async fn delete_volume(&self, name: &str, with_snapshots: bool) -> Result<()>;
    /// Takes snapshots (`VOLUME@SNAPSHOT`), all of one instant.
    async fn create_snapshots(&self, names: &[String], kept: &Kept) -> Result<Vec<SnapshotInfo>>;
    /// Changes how long a snapshot is kept, in seconds from now; for ever when None.
    async fn keep_snapshot(&self, name: &str, expires_in_s: Option<u64>, secure: bool) -> Result<SnapshotInfo>;
    /// All snapshots, or those of one volume.
    async fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>>;
    /// One snapshot.
    async fn snapshot(&self, name: &str) -> Result<SnapshotInfo>;
    /// Deletes snapshots, all or none.
    async fn delete_snapshots(&self, names: &[String]) -> Result<()>;
    /// Makes a volume that begins with what a snapshot holds.
    async fn clone_snapshot(&self, snapshot: &str, name: &str) -> Result<VolumeInfo>;
    /// Makes several, given as snapshot and name, of one group, and changes with them.
    async fn clone_snapshots(
        &self,
        clones: &[(String, String)],
        group: u32,
        changes: Vec<Managed>,
    ) -> Result<Vec<VolumeInfo>>;
    /// Gives a volume the content of a snapshot; `keep` names the snapshot of what it is now.
    async fn restore_volume(&self, volume: &str, snapshot: &str, keep: Option<&str>) -> Result<VolumeInfo>;
    /// The same for several, given as volume and snapshot; what they are now is kept as snapshots of a group.
    async fn restore_volumes(&self, restored: &[(String, String)], keep: Option<&str>, group: u32) -> Result<()>;
    /// What the daemon keeps in the pool, by name, where that begins with `prefix`. Does not block.
    fn settings(&self, prefix: &str) -> Vec<Setting>;
    /// Which group and policy volumes have. Does not block.
    fn memberships(&self) -> Vec<Membership>;
    /// Changes how volumes are managed, all at once.
    async fn manage(&self, changes: Vec<Managed>) -> Result<()>;
    /// Fails when such snapshots could not be taken now.
    async fn check_snapshots(&self, names: &[String]) -> Result<()>;
    /// Says how snapshots are kept that were just taken.
    async fn confirm_snapshots(&self, names: &[String], kept: &Kept) -> Result<Vec<SnapshotInfo>>;
    /// Deletes snapshots that have expired, at most `max`; gives their names.
    async fn delete_expired(&self, max: usize) -> Result<Vec<String>>;
    /// Deletes snapshots of these identities and rules, if they still are; gives their names.
    async fn delete_of_rule(&self, meant: &[(u32, u32)]) -> Result<Vec<String>>;
    /// Gives a volume the content that another one has now.
    async fn refresh_volume(&self, volume: &str, from: &str, keep: Option<&str>) -> Result<VolumeInfo>;
    /// Names and identities of the snapshots of a volume. Does not block.
    fn snapshot_names(&self, volume: &str) -> Vec<(String, u32)>;
    /// What differs between a volume or snapshot and another one.
    async fn changes(&self, name: &str, since: &str, offset: u64, max: usize) -> Result<Changes>;
    /// The same as extents of a range, since the snapshot of this name and identity.
    async fn changed_extents(
        &self,
        name: &str,
        since: (&str, u32),
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<Extent>>;
    /// Volumes and snapshots that are to be presented.
    async fn attached(&self) -> Vec<VolumeInfo>;
    /// All volumes.
    async fn volumes(&self) -> Vec<VolumeInfo>;
    /// One volume.
    async fn volume_info(&self, name: &str) -> Result<VolumeInfo>;
    /// The device of a volume.
    fn open_volume(&self, name: &str) -> Result<Arc<dyn BlockDevice>>;
    /// Keeps how the volume is presented across restarts.
    async fn set_attachment(&self, name: &str, attachment: Option<String>) -> Result<()>;
    /// Lets go of a disk that is not of the pool, though it is open. Says whether the one at this path is of the pool.
    fn release_disk(&self, path: &Path) -> bool;
    /// Takes a new disk in.
    async fn add_disk(&self, disk: Arc<dyn Disk>, force: bool, replaces: Option<u16>) -> Result<DiskInfo>;
    /// Begins to remove a disk.
    async fn remove_disk(&self, id: u16) -> Result<DiskInfo>;
    /// Calls the removal of a disk off.
    async fn keep_disk(&self, id: u16) -> Result<DiskInfo>;
    /// Declares a disk failed.
    async fn fail_disk(&self, id: u16) -> Result<DiskInfo>;
    /// Takes disks back that failed or were missing and now answer.
    async fn rescan_disks(&self) -> Result<()>;
    /// Closes a disk that failed, so that it can be opened anew.
    fn let_go_of_disk(&self, disk: Uuid);
    /// Takes back a disk that failed or was missing.
    async fn reinstate_disk(&self, disk: Arc<dyn Disk>) -> Result<DiskInfo>;
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

/// Labels drives as a new pool.
pub fn create(new: &NewPool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::io(format!("starting the runtime: {e}")))?;
    runtime.block_on(async {
        let env = RealEnv::new(Handle::current(), 1);
        let mut disks: Vec<Arc<dyn Disk>> = Vec::new();
        refuse_twice(&new.disks)?;
        for path in &new.disks {
            disks.push(FileDisk::open(path, OpenOptions::default())?);
        }
        let NewPool { name, tolerance, chunk_size, force, .. } = new.clone();
        Pool::create(env, disks, CreateOptions { name, tolerance, chunk_size, strip_size: None, force }).await
    })
}

/// Which file or device a path leads to.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some(if meta.rdev() != 0 { (u64::MAX, meta.rdev()) } else { (meta.dev(), meta.ino()) })
}

/// Refuses two names of one file or device.
fn refuse_twice(paths: &[PathBuf]) -> Result<()> {
    let mut seen: HashMap<(u64, u64), &PathBuf> = HashMap::new();
    for path in paths {
        // What cannot be examined is told of when it is opened.
        let Some(identity) = identity(path) else { continue };
        if let Some(first) = seen.insert(identity, path) {
            return Err(Error::invalid(match first == path {
                true => format!("the disk {} is named twice", path.display()),
                false => format!("{} and {} are the same disk: name it once", first.display(), path.display()),
            }));
        }
    }
    Ok(())
}

/// Opens a disk. A daemon that was just killed holds its disks until the kernel has ended its last requests: that is waited for.
pub async fn open_when_released(path: &Path) -> Result<Arc<FileDisk>> {
    for _ in 0..RELEASE_TRIES {
        match FileDisk::open(path, OpenOptions::default()) {
            Err(e) if e.kind() == ErrorKind::Busy => tokio::time::sleep(RELEASE_PAUSE).await,
            other => return other,
        }
    }
    FileDisk::open(path, OpenOptions::default())
}

/// Opens the configured pool, with fault injection in a laboratory.
///
/// A drive that cannot be opened is left out: the pool tells whether it can do without.
pub async fn open(config: &Config) -> Result<(Arc<dyn Engine>, Option<Faults>)> {
    attach_runtime()?;
    let env: Arc<dyn Env> = RealEnv::new(Handle::current(), config.threads.value);
    let mut disks: Vec<Arc<dyn Disk>> = Vec::new();
    let mut drives: Vec<Drive> = Vec::new();
    let mut refused: BTreeMap<PathBuf, Error> = BTreeMap::new();
    let paths = known_disks::load(&config.state_dir.value);
    let may_be_left_to_the_kernel = |path: &PathBuf| {
        let named = config.disks.value.iter().filter(|other| identity(other) == identity(path)).count();
        named == 1
            && paths.values().any(|known| Path::new(known) == path || identity(Path::new(known)) == identity(path))
    };
    for path in &config.disks.value {
        let disk = match open_when_released(path).await {
            Ok(disk) => disk,
            // Somebody else writes to it, or it is named twice: to go on without would be to let two pools drift apart. Unless it is known and was given up:
            // that is looked at once the others have told.
            Err(e) if e.kind() == ErrorKind::Busy && !may_be_left_to_the_kernel(path) => return Err(e),
            Err(e) => {
                tracing::error!(disk = %path.display(), error = %e, "cannot open a disk");
                refused.insert(path.clone(), e);
                continue;
            }
        };
        if config.lab.value {
            let (disk, drive) = faulty(path, disk);
            drives.push(drive);
            disks.push(disk);
        } else {
            disks.push(disk);
        }
    }
    // As long as it has to answer anything: drives that spin up take their time. All at once: a shelf that does not answer takes no longer than a drive.
    let limit = Some(config.disk_timeout.value).filter(|s| *s > 0).map(Duration::from_secs);
    let looks: Vec<_> = disks.iter().map(|disk| tokio::spawn(look(disk.clone(), limit))).collect();
    let mut labels = Vec::new();
    for found in looks {
        labels.extend(found.await.ok().flatten());
    }
    // Disks that were added since the configuration was written.
    for path in known_disks::added(&config.state_dir.value) {
        if config.disks.value.iter().any(|other| identity(other).is_some_and(|i| Some(i) == identity(&path))) {
            continue;
        }
        // Whatever is wrong with it, it is left out, and the pool says what it lacks.
        let disk: Arc<dyn Disk> = match open_when_released(&path).await {
            Ok(disk) => disk,
            Err(e) => {
                tracing::warn!(disk = %path.display(), error = %e, "a disk that was added to the pool cannot be opened");
                refused.insert(path, e);
                continue;
            }
        };
        let ours = |l: &Label| labels.iter().all(|other| other.pool == l.pool && other.disk != l.disk);
        if !look(disk.clone(), limit).await.is_some_and(|label| ours(&label)) {
            tracing::warn!(disk = %path.display(), "a disk that was added to the pool is not of the pool any more");
            continue;
        }
        if config.lab.value {
            let (disk, drive) = faulty(&path, disk);
            drives.push(drive);
            disks.push(disk);
        } else {
            disks.push(disk);
        }
    }
    if let (true, Some((_, e))) = (disks.is_empty(), refused.first_key_value()) {
        return Err(e.clone().context("no disk can be opened"));
    }
    let faults = if config.lab.value { Some(Faults::new(&config.state_dir.value, drives)?) } else { None };
    let known = paths.iter().map(|(uuid, path)| {
        let at = identity(Path::new(path));
        let same = |other: &PathBuf| other == Path::new(path) || at.is_some() && identity(other) == at;
        let refused = refused.iter().find(|(other, _)| same(other)).map(|(_, e)| e);
        let (trouble, busy) = (refused.map(ToString::to_string), refused.is_some_and(|e| e.kind() == ErrorKind::Busy));
        (*uuid, KnownDisk { path: path.clone(), trouble, busy })
    });
    let options = PoolConfig {
        memory: config.engine_memory(),
        compression: config.compression.value,
        recompress_after: Some(config.recompress_after.value).filter(|s| *s > 0).map(Duration::from_secs),
        scrub_interval: Duration::from_secs(config.scrub_days.value.saturating_mul(24 * 3600)),
        disk_timeout: limit,
        error_limit: config.error_limit.value.try_into().unwrap_or(u32::MAX),
        priority: config.rebuild_priority.value,
        failed_grace: Duration::from_secs(config.failed_grace.value),
        missing_grace: Duration::from_secs(config.missing_grace.value),
        read_only: config.read_only,
        known_disks: known.collect(),
        carry: Some(Arc::new(SharedMemory::new(CARRY))),
        ..PoolConfig::default()
    };
    let pool = Pool::open(env, disks, options).await?;
    known_disks::keep(&config.state_dir.value, paths, &pool.disks());
    known_disks::keep_added(&config.state_dir.value, &pool.disks(), None);
    let name = pool.status().await.name;
    if let Some(wanted) = config.name.value.as_ref().filter(|wanted| **wanted != name) {
        pool.close().await?;
        return Err(Error::invalid(format!(
            "the disks hold the pool '{name}', and the configuration wants '{wanted}'"
        )));
    }
    tracing::info!(pool = name, "the pool is open");
    Ok((Arc::new(pool), faults))
}

/// The label of a disk, if it shows one in time.
async fn look(disk: Arc<dyn Disk>, limit: Option<Duration>) -> Option<Label> {
    let Some(limit) = limit else { return read_label(&disk).await.ok() };
    match tokio::time::timeout(limit, read_label(&disk)).await {
        Ok(label) => label.ok(),
        Err(_) => {
            // Whoever lets go of it must not wait for what it does not answer.
            disk.abandon("it does not show its label");
            None
        }
    }
}

/// A disk that can be made to fail.
fn faulty(path: &Path, disk: Arc<dyn Disk>) -> (Arc<dyn Disk>, Drive) {
    let disk = FaultDisk::new(disk, RealEnv::new(Handle::current(), 1));
    (disk.clone(), (path.to_owned(), Arc::new(disk)))
}

/// Opens a disk that is to be added, with fault injection in a laboratory.
pub async fn open_new(path: &Path, lab: bool) -> Result<(Arc<dyn Disk>, Option<Drive>)> {
    let disk: Arc<dyn Disk> = open_when_released(path).await?;
    if !lab {
        return Ok((disk, None));
    }
    let (disk, drive) = faulty(path, disk);
    Ok((disk, Some(drive)))
}

#[async_trait]
impl Faulty for Arc<FaultDisk> {
    fn set_pulled(&self, pulled: bool) {
        match (pulled, self.is_failed()) {
            (true, false) => self.fail(),
            (false, true) => self.restore(),
            _ => {}
        }
    }

    fn set_delay(&self, delay: Duration) {
        FaultDisk::set_delay(self, delay);
    }

    async fn corrupt(&self, path: &Path, wanted: &DiskCorrupt) -> Result<DiskCorrupted> {
        corrupt::corrupt(self, path, wanted).await
    }
}

#[async_trait]
impl Engine for Pool {
    fn release_disk(&self, path: &Path) -> bool {
        self.release_disk(&path.display().to_string())
    }

    async fn add_disk(&self, disk: Arc<dyn Disk>, force: bool, replaces: Option<u16>) -> Result<DiskInfo> {
        self.add_disk(disk, force, replaces).await
    }

    async fn remove_disk(&self, id: u16) -> Result<DiskInfo> {
        self.remove_disk(id).await
    }

    async fn keep_disk(&self, id: u16) -> Result<DiskInfo> {
        self.keep_disk(id).await
    }

    async fn fail_disk(&self, id: u16) -> Result<DiskInfo> {
        self.fail_disk(id).await
    }

    async fn rescan_disks(&self) -> Result<()> {
        self.rescan_disks().await
    }

    fn let_go_of_disk(&self, disk: Uuid) {
        self.let_go_of_disk(disk);
    }

    async fn reinstate_disk(&self, disk: Arc<dyn Disk>) -> Result<DiskInfo> {
        self.reinstate_disk(disk).await
    }

    async fn status(&self) -> PoolStatus {
        self.status().await
    }

    async fn stats(&self) -> PoolStats {
        self.stats().await
    }

    async fn check(&self, progress: Progress) -> Result<CheckReport> {
        self.check(progress).await
    }

    async fn start_scrub(&self) -> Result<Scrub> {
        self.start_scrub().await
    }

    async fn stop_scrub(&self) -> Result<Scrub> {
        self.stop_scrub().await
    }

    async fn set_tolerance(&self, tolerance: Tolerance) -> Result<()> {
        self.set_tolerance(tolerance).await
    }

    async fn rebalance(&self) -> Result<()> {
        self.rebalance().await
    }

    async fn damage(&self, progress: Progress) -> Result<Damage> {
        self.damage(progress).await
    }

    async fn create_volume(&self, name: &str, size: u64, reserve: Option<Reserve>) -> Result<VolumeInfo> {
        self.create_reserving(name, size, reserve).await
    }

    async fn reserve_volume(&self, name: &str, reserve: Reserve) -> Result<VolumeInfo> {
        self.reserve(name, reserve).await
    }

    async fn resize_volume(&self, name: &str, size: u64) -> Result<VolumeInfo> {
        self.resize_volume(name, size).await
    }

    async fn delete_volume(&self, name: &str, with_snapshots: bool) -> Result<()> {
        self.delete_volume(name, with_snapshots).await
    }

    async fn create_snapshots(&self, names: &[String], kept: &Kept) -> Result<Vec<SnapshotInfo>> {
        self.create_snapshots(names, kept).await
    }

    async fn keep_snapshot(&self, name: &str, expires_in_s: Option<u64>, secure: bool) -> Result<SnapshotInfo> {
        self.keep_snapshot(name, expires_in_s, secure).await
    }

    async fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>> {
        self.snapshots(volume)
    }

    async fn snapshot(&self, name: &str) -> Result<SnapshotInfo> {
        self.snapshot_info(name).await
    }

    async fn delete_snapshots(&self, names: &[String]) -> Result<()> {
        self.delete_snapshots(names).await
    }

    async fn clone_snapshot(&self, snapshot: &str, name: &str) -> Result<VolumeInfo> {
        self.clone_snapshot(snapshot, name).await
    }

    async fn clone_snapshots(
        &self,
        clones: &[(String, String)],
        group: u32,
        changes: Vec<Managed>,
    ) -> Result<Vec<VolumeInfo>> {
        self.clone_snapshots(clones, group, changes).await
    }

    async fn restore_volumes(&self, restored: &[(String, String)], keep: Option<&str>, group: u32) -> Result<()> {
        self.restore_volumes(restored, keep, group).await
    }

    fn settings(&self, prefix: &str) -> Vec<Setting> {
        self.settings(prefix)
    }

    fn memberships(&self) -> Vec<Membership> {
        self.memberships()
    }

    async fn manage(&self, changes: Vec<Managed>) -> Result<()> {
        self.manage(changes).await
    }

    async fn check_snapshots(&self, names: &[String]) -> Result<()> {
        self.check_snapshots(names).await
    }

    async fn confirm_snapshots(&self, names: &[String], kept: &Kept) -> Result<Vec<SnapshotInfo>> {
        self.confirm_snapshots(names, kept).await
    }

    async fn delete_expired(&self, max: usize) -> Result<Vec<String>> {
        self.delete_expired(max).await
    }

    async fn delete_of_rule(&self, meant: &[(u32, u32)]) -> Result<Vec<String>> {
        self.delete_of_rule(meant).await
    }

    async fn restore_volume(&self, volume: &str, snapshot: &str, keep: Option<&str>) -> Result<VolumeInfo> {
        self.restore_volume(volume, snapshot, keep).await
    }

    async fn refresh_volume(&self, volume: &str, from: &str, keep: Option<&str>) -> Result<VolumeInfo> {
        self.refresh_volume(volume, from, keep).await
    }

    fn snapshot_names(&self, volume: &str) -> Vec<(String, u32)> {
        let all = self.snapshots(Some(volume)).unwrap_or_default();
        all.into_iter().map(|s| (s.name, s.id)).collect()
    }

    async fn changes(&self, name: &str, since: &str, offset: u64, max: usize) -> Result<Changes> {
        self.changes(name, since, offset, max).await
    }

    async fn changed_extents(
        &self,
        name: &str,
        since: (&str, u32),
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<Extent>> {
        self.changed_extents(name, since, offset, len, max).await
    }

    async fn attached(&self) -> Vec<VolumeInfo> {
        self.attached().await
    }

    async fn volumes(&self) -> Vec<VolumeInfo> {
        self.volumes().await
    }

    async fn volume_info(&self, name: &str) -> Result<VolumeInfo> {
        self.volume_info(name).await
    }

    fn open_volume(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        self.open_volume(name)
    }

    async fn set_attachment(&self, name: &str, attachment: Option<String>) -> Result<()> {
        self.set_attachment(name, attachment).await
    }

    async fn close(&self) -> Result<()> {
        self.close().await
    }
}
