//! A pool as the daemon sees it: create, open, volumes, status, check.

pub mod check;
mod disks;
mod protection;
mod snapshots;
mod status;
#[cfg(test)]
mod test_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

pub use crate::volume::{KnownDisk, PoolConfig};

use crate::disk::signature;
use crate::disk::{AlignedBuf, Disk};
use crate::env::Env;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::catalogue::{Catalogue, ScrubRecord};
use crate::format::label::Label;
use crate::format::layout::{EDGE, PoolGeometry};
use crate::format::record::Op;
use crate::format::volume::VolumeRecord;
use crate::frontend::BlockDevice;
use crate::map::tree::{VOLUME_BLOCKS_MAX, levels_for};
use crate::redundancy::array::{DiskArray, Member};
use crate::redundancy::layout::{Grouped, regroup, width};
use crate::report::{CheckReport, Damage, Scrub, Tolerance, VolumeInfo};
use crate::segment::table::disks_min;
use crate::units::{BLOCK_BYTES, DiskId, Epoch, Lba, Seqno, Uuid, VolumeId};
use crate::volume::Engine;
use crate::volume::checkpoint::{disk_records, write_root};
use crate::volume::device::{Volume, VolumeDevice};
use crate::volume::recovery::{next_epoch, read_label, write_labels};
use crate::volume::reserve::Changed;
pub use crate::volume::reserve::Reserve;
use crate::volume::timeouts::{as_disks, with_limit};

pub use protection::{KEPT_MAX_S, Kept, Managed};
use snapshots::{AT_ONCE, detached};

/// Most disks of a pool.
pub const DISKS_MAX: usize = 96;
/// Chunks a disk must have at least.
const CHUNKS_MIN: u32 = 16;
/// Bytes of a volume record beside its name and attachment, at most.
const VOLUME_RECORD_BYTES: usize = 136;

/// How to create a pool.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Name.
    pub name: String,
    /// Drive failures to tolerate.
    pub tolerance: Tolerance,
    /// Bytes of a chunk; chosen by the size of the disks when None.
    pub chunk_size: Option<u64>,
    /// Bytes of a strip; 64 KiB when None.
    pub strip_size: Option<u32>,
    /// Overwrite disks that hold something else.
    pub force: bool,
}

/// An open pool. Clones share it.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    engine: Arc<Engine>,
    volumes: Mutex<FxHashMap<VolumeId, Arc<Volume>>>,
    /// Changes of volumes come one after another.
    administration: tokio::sync::Mutex<()>,
}

fn uuid(env: &Arc<dyn Env>) -> Uuid {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&env.random_u64().to_le_bytes());
    out[8..].copy_from_slice(&env.random_u64().to_le_bytes());
    Uuid(out)
}

fn check_name(kind: &str, name: &str) -> Result<()> {
    let ok = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && name.len() <= 63 && name.chars().all(ok) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "'{name}' is not a valid {kind} name: use 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit"
    )))
}

/// Fills the log region of every disk with zeroes. Where a disk is a sparse file or is thinly provisioned, its space is taken now:
/// the small synchronous writes of the log would otherwise each wait for the layer below to find room and to record it.
async fn clear_log(array: &DiskArray) -> Result<()> {
    const PIECE: u64 = 1 << 20;
    let (start, end) = (array.geometry.log_extent(0), array.geometry.log_extent(array.geometry.log_extents));
    let zeroes = AlignedBuf::zeroed(PIECE as usize).freeze();
    let clear = |disk: DiskId| {
        let zeroes = &zeroes;
        async move {
            let mut at = start;
            while at < end {
                let len = PIECE.min(end - at);
                array.write(disk, at, vec![zeroes.slice(..len as usize)], false).await?;
                at += len;
            }
            Ok(())
        }
    };
    futures::future::try_join_all(array.members().iter().map(|m| clear(m.id))).await.map(drop)
}

/// Fails for a disk that has fewer than [`CHUNKS_MIN`] chunks.
fn check_large_enough(disk: &Arc<dyn Disk>, geometry: &PoolGeometry) -> Result<()> {
    let size = disk.geometry().size;
    if geometry.chunks(size) >= CHUNKS_MIN {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{} is too small for this pool: it has {} MiB, and {} MiB is the least",
        disk.name(),
        size >> 20,
        (geometry.chunk(CHUNKS_MIN) + EDGE).div_ceil(1 << 20)
    )))
}

fn blocks_of(name: &str, size: u64) -> Result<u64> {
    if size == 0 || !size.is_multiple_of(BLOCK_BYTES) || size / BLOCK_BYTES > VOLUME_BLOCKS_MAX {
        return Err(Error::invalid(format!(
            "volume {name}: size {size} must be a multiple of 4096 bytes, above 0 and at most 256 TiB"
        )));
    }
    Ok(size / BLOCK_BYTES)
}

impl Pool {
    /// Labels disks as a new pool. Refuses disks that hold something else unless forced.
    pub async fn create(env: Arc<dyn Env>, disks: Vec<Arc<dyn Disk>>, options: CreateOptions) -> Result<()> {
        check_name("pool", &options.name)?;
        let CreateOptions { name, tolerance, .. } = options;
        if disks.len() < disks_min(tolerance) || width(disks.len(), tolerance).is_none() {
            return Err(Error::invalid(format!(
                "tolerance of {} drive failures needs at least {} disks, {} given",
                tolerance.drives(),
                disks_min(tolerance),
                disks.len()
            )));
        }
        if disks.len() > DISKS_MAX {
            return Err(Error::invalid(format!("a pool has at most {DISKS_MAX} disks, {} given", disks.len())));
        }
        let disks = as_disks(&with_limit(&env, disks, PoolConfig::default().disk_timeout));
        if !options.force {
            for disk in &disks {
                refuse_foreign(disk).await?;
            }
        }
        let sizes: Vec<u64> = disks.iter().map(|d| d.geometry().size).collect();
        let smallest = sizes.iter().copied().min().unwrap_or(0);
        let geometry = PoolGeometry::choose(smallest, sizes.iter().sum(), options.chunk_size, options.strip_size)?;
        for disk in &disks {
            check_large_enough(disk, &geometry)?;
        }
        let larger = |e: Error| {
            Error::invalid(format!(
                "{e}: chunks follow the smallest disk, of {} GiB; leave it out, or give larger ones",
                smallest >> 30
            ))
        };
        geometry.check_catalogue(sizes.iter().sum()).map_err(larger)?;
        let pool = uuid(&env);
        let joining = |i: usize| Grouped { id: DiskId(i as u16), set: None, used: 0 };
        let sets = regroup(&(0..disks.len()).map(joining).collect::<Vec<_>>(), tolerance, true);
        let members = disks.into_iter().zip(sets).map(|(disk, (id, set))| {
            let size = disk.geometry().size;
            let member = Member::new(id, uuid(&env), size, Some(disk), false);
            member.set_set(set);
            member
        });
        let array = DiskArray::new(env.clone(), geometry, tolerance, members.collect());
        let epoch = next_epoch(&env, Epoch(0));
        let catalogue = Catalogue {
            next_incarnation: 1,
            next_volume: 1,
            disks: disk_records(&array, &|_| false),
            tolerance,
            guaranteed: tolerance,
            // There is nothing to look at: the calendar begins.
            scrub: ScrubRecord { begun_s: env.wall_clock_s(), ended_s: env.wall_clock_s(), ..ScrubRecord::default() },
            ..Catalogue::default()
        };
        let label = Label {
            pool,
            pool_name: name,
            disk: Uuid::default(),
            id: DiskId(0),
            epoch,
            tolerance,
            geometry,
            size: 0,
            absent: 0,
        };
        clear_log(&array).await?;
        // The root first: a disk with a label always has a root.
        write_root(&array, pool, epoch, 1, 1, &catalogue).await?;
        write_labels(&array, &label, epoch, 0).await?;
        if array.online().len() < array.members().len() {
            return Err(Error::io(format!("pool {}: a disk failed while it was labelled", label.pool_name)));
        }
        Ok(())
    }

    /// Opens a pool for writing; see [`Engine::open`].
    pub async fn open(env: Arc<dyn Env>, disks: Vec<Arc<dyn Disk>>, config: PoolConfig) -> Result<Self> {
        let engine = Engine::open(env, disks, config).await?;
        let deleting = engine.state.read().volumes.values().any(|v| v.deleting);
        if deleting && !engine.config.read_only {
            engine.reap();
        }
        let (volumes, administration) = (Mutex::default(), tokio::sync::Mutex::new(()));
        Ok(Self(Arc::new(Inner { engine, volumes, administration })))
    }

    /// The engine, for tests and benchmarks.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.0.engine
    }

    /// Makes everything durable, makes a checkpoint, and stops.
    pub async fn close(&self) -> Result<()> {
        let engine = &self.0.engine;
        if engine.config.read_only {
            engine.stop();
            return Ok(());
        }
        let result = async {
            engine.flush().await?;
            engine.checkpoint().await
        }
        .await;
        engine.stop();
        if result.is_ok() {
            engine.end_carrying();
        }
        result
    }

    fn record(&self, name: &str) -> Result<VolumeRecord> {
        let state = self.0.engine.state.read();
        let found = state.volume_named(name).cloned();
        found.ok_or_else(|| {
            let kind = if name.contains('@') { "snapshot" } else { "volume" };
            Error::new(ErrorKind::NotFound, format!("there is no {kind} '{name}' in pool {}", self.0.engine.name))
        })
    }

    /// Creates a thin volume of `size` bytes.
    pub async fn create_volume(&self, name: &str, size: u64) -> Result<VolumeInfo> {
        self.create_reserving(name, size, None).await
    }

    /// The same, with space reserved for it; see [`Self::reserve`].
    pub async fn create_reserving(&self, name: &str, size: u64, reserve: Option<Reserve>) -> Result<VolumeInfo> {
        check_name("volume", name)?;
        let blocks = blocks_of(name, size)?;
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let id = {
            let state = engine.state.read();
            if state.volume_named(name).is_some() {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("volume '{name}' exists already")));
            }
            VolumeId(state.next_volume)
        };
        let created_s = engine.env.wall_clock_s();
        let reserved = reserve.map_or(Ok(0), |r| r.blocks(name, blocks))?;
        let record = VolumeRecord { created_s, reserved, ..VolumeRecord::empty(id, name, blocks, levels_for(blocks)) };
        let changed = Changed { new: record.reserved_blocks(), of: &|_| None };
        let _promise = engine.check_reservations(&changed, &format!("volume '{name}'"))?;
        self.check_catalogue(&record)?;
        engine.commit_ops(vec![Op::PutVolume(record)]).await.context(format!("creating volume '{name}'"))?;
        self.volume_info(name).await
    }

    /// Changes a volume's size. What lies beyond a smaller size is given back.
    pub async fn resize_volume(&self, name: &str, size: u64) -> Result<VolumeInfo> {
        let blocks = blocks_of(name, size)?;
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let record = self.volume_record(name)?;
        let resized = |v: &VolumeRecord| (v.id == record.id).then(|| VolumeRecord { blocks, ..v.clone() });
        let what = format!("volume '{name}' of that size");
        let _promise = engine.check_reservations(&Changed { new: 0, of: &resized }, &what)?;
        let handle = self.handle(record.id, name)?;
        let _quiet = handle.exclude_writes().await;
        if blocks < record.blocks {
            // First no new requests beyond the end, then those under way, then the space.
            handle.set_blocks(blocks);
            engine.flush().await?;
            engine.commit_unmap(record.id, Lba(blocks), record.blocks - blocks, Seqno(0)).await?;
        }
        engine.commit_ops(vec![Op::PutVolume(VolumeRecord { blocks, ..record })]).await?;
        handle.set_blocks(blocks);
        self.volume_info(name).await
    }

    /// Reserves space for a volume: whatever others write, so much of it can be written, and overwritten, compressible or not. Fails with `NoSpace` when
    /// there is not enough beside other reservations.
    pub async fn reserve(&self, name: &str, reserve: Reserve) -> Result<VolumeInfo> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let record = self.volume_record(name)?;
        let reserved = reserve.blocks(name, record.blocks)?;
        let changed = |v: &VolumeRecord| (v.id == record.id).then(|| VolumeRecord { reserved, ..v.clone() });
        let what = format!("the reservation of volume '{name}'");
        let _promise = engine.check_reservations(&Changed { new: 0, of: &changed }, &what)?;
        engine.commit_ops(vec![Op::PutVolume(VolumeRecord { reserved, ..record })]).await?;
        self.volume_info(name).await
    }

    /// Deletes a volume, with its snapshots if they are to go, too. Clones stay. Space comes back in the background.
    pub async fn delete_volume(&self, name: &str, with_snapshots: bool) -> Result<()> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let record = self.volume_record(name)?;
        detached(&record, name)?;
        let snapshots: Vec<VolumeRecord> = engine.state.read().snapshots_of(record.id).cloned().collect();
        if !snapshots.is_empty() && !with_snapshots {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("volume '{name}' has {} snapshots: delete them first, or with it", snapshots.len()),
            ));
        }
        if record.protection.group != 0 {
            let message = format!("volume '{name}' is in a group: take it out first (ashlar group remove)");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        for s in &snapshots {
            detached(s, &format!("{name}@{}", s.name))?;
            self.check_not_secure(s)?;
        }
        let id = record.id;
        let handle = self.handle(id, name)?;
        let quiet = handle.exclude_writes().await;
        let going: Vec<VolumeRecord> = snapshots.into_iter().chain([record]).collect();
        for some in going.chunks(AT_ONCE) {
            let gone = |v: &VolumeRecord| Op::PutVolume(VolumeRecord { deleting: true, ..v.clone() });
            engine.commit_ops(some.iter().map(gone).collect()).await?;
            for v in some {
                if let Some(handle) = self.0.volumes.lock().remove(&v.id) {
                    handle.retire();
                }
            }
        }
        drop(quiet);
        engine.reap();
        Ok(())
    }

    /// What all users of a volume or snapshot share.
    fn handle(&self, id: VolumeId, name: &str) -> Result<Arc<Volume>> {
        let engine = &self.0.engine;
        // Whoever deletes it takes the handle away after it counts as deleted.
        let mut volumes = self.0.volumes.lock();
        let record = engine.state.read().live(id).cloned();
        let gone = || Error::new(ErrorKind::NotFound, format!("there is no volume '{name}'"));
        let record = record.ok_or_else(gone)?;
        let new = || Arc::new(Volume::new(engine.clone(), &record, name.into()));
        Ok(volumes.entry(id).or_insert_with(new).clone())
    }

    /// All volumes, by name.
    pub async fn volumes(&self) -> Vec<VolumeInfo> {
        let records: Vec<VolumeRecord> = {
            let state = self.0.engine.state.read();
            state.volumes.values().filter(|v| !v.is_snapshot()).cloned().collect()
        };
        let mut out = Vec::with_capacity(records.len());
        for record in &records {
            out.push(self.info(record).await);
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        out
    }

    /// Volumes and snapshots that are to be presented.
    pub async fn attached(&self) -> Vec<VolumeInfo> {
        let attached = |v: &&VolumeRecord| !v.deleting && !v.attachment.is_empty();
        let records: Vec<VolumeRecord> =
            self.0.engine.state.read().volumes.values().filter(attached).cloned().collect();
        let mut out = Vec::with_capacity(records.len());
        for record in &records {
            out.push(self.info(record).await);
        }
        out
    }

    /// One volume, or snapshot, as it is presented.
    pub async fn volume_info(&self, name: &str) -> Result<VolumeInfo> {
        Ok(self.info(&self.record(name)?).await)
    }

    /// Fails when the catalogue, which all volumes and segments share, has no room for one more volume record: the rest is for segments.
    fn check_catalogue(&self, record: &VolumeRecord) -> Result<()> {
        self.check_catalogue_bytes(VOLUME_RECORD_BYTES + record.name.len() + record.attachment.len())
    }

    /// Fails when the catalogue has no room for so many more bytes.
    fn check_catalogue_bytes(&self, added: usize) -> Result<()> {
        let engine = &self.0.engine;
        let added = added as u64;
        let region = u64::from(engine.array.geometry.catalogue_size);
        // Counted from the last checkpoint on, uncompressed; the checkpoint brings the true size.
        if engine.catalogue_bytes.fetch_add(added, Ordering::Relaxed) + added > region / 2 {
            engine.catalogue_bytes.fetch_sub(added, Ordering::Relaxed);
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "the catalogue of pool {} has no room for more volumes and snapshots: delete some",
                    engine.name
                ),
            ));
        }
        Ok(())
    }

    async fn info(&self, v: &VolumeRecord) -> VolumeInfo {
        let usage = self.0.engine.usage(v.id).await.ok();
        let (snapshots, origin) = {
            let state = self.0.engine.state.read();
            let mut origin = state.volumes.get(&v.parent).filter(|_| !v.is_snapshot());
            while let Some(own) = origin.filter(|s| s.snapshot_of == v.id) {
                origin = state.volumes.get(&own.parent);
            }
            let named = origin.filter(|s| !s.deleting).map(|s| state.name_of(s));
            (state.snapshots_of(v.id).count() as u64, named)
        };
        VolumeInfo {
            name: self.0.engine.state.read().name_of(v),
            id: v.id.0,
            size: v.blocks * BLOCK_BYTES,
            mapped: v.mapped * BLOCK_BYTES,
            reserved: v.reserved_blocks() * BLOCK_BYTES,
            unique: usage.map(|u| u.unique),
            savings: usage.map(|u| u.savings),
            estimated: usage.is_some_and(|u| u.estimated),
            attached: (!v.attachment.is_empty()).then(|| v.attachment.clone()),
            state: if v.deleting { "deleting" } else { "online" }.into(),
            created_s: v.created_s,
            snapshots,
            origin,
            group_id: v.protection.group,
            policy_id: v.protection.policy,
        }
    }

    /// The volume as a block device.
    pub fn open_volume(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        let record = self.record(name)?;
        Ok(Arc::new(VolumeDevice::new(self.handle(record.id, name)?)))
    }

    /// Keeps how a volume is presented.
    pub async fn set_attachment(&self, name: &str, attachment: Option<String>) -> Result<()> {
        let _turn = self.0.administration.lock().await;
        let record = self.record(name)?;
        let attachment = attachment.unwrap_or_default();
        if attachment.len() > 255 {
            return Err(Error::invalid("an attachment is described by at most 255 bytes"));
        }
        let record = VolumeRecord { attachment, ..record };
        if self.0.engine.config.read_only {
            // For as long as the pool is open.
            self.0.engine.state.write().volumes.insert(record.id, record);
            return Ok(());
        }
        if !record.attachment.is_empty() {
            self.check_catalogue(&record)?;
        }
        self.0.engine.commit_ops(vec![Op::PutVolume(record)]).await
    }

    /// Walks a checkpoint on disk and verifies everything: references, space, checksums, parity. I/O goes on.
    pub async fn check(&self, progress: Arc<dyn Fn(u64, u64) + Send + Sync>) -> Result<CheckReport> {
        let engine = &self.0.engine;
        let writable = !engine.config.read_only;
        // Before the pin, under which no space comes back that it may wait for.
        if writable {
            engine.flush().await?;
            engine.checkpoint().await?;
        }
        let _pin = Pin::on(engine);
        if writable {
            engine.checkpoint().await?;
        }
        check::check_array(&engine.env, &engine.array, engine.uuid, progress).await
    }
}

impl Pool {
    /// Begins a scrub, or lets the one that is running go on.
    pub async fn start_scrub(&self) -> Result<Scrub> {
        self.0.engine.start_scrub().await
    }

    /// Ends a scrub before it is through.
    pub async fn stop_scrub(&self) -> Result<Scrub> {
        self.0.engine.stop_scrub().await
    }

    /// Lists what cannot be read, by volume.
    pub async fn damage(&self, progress: Arc<dyn Fn(u64, u64) + Send + Sync>) -> Result<Damage> {
        self.0.engine.damage(progress).await
    }
}

/// A reader of a checkpoint on disk, for as long as it lives.
struct Pin<'a>(&'a Engine);

impl<'a> Pin<'a> {
    fn on(engine: &'a Engine) -> Self {
        engine.pins.fetch_add(1, Ordering::AcqRel);
        Self(engine)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn refuse_foreign(disk: &Arc<dyn Disk>) -> Result<()> {
    match read_label(disk).await {
        Ok(label) => {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "{} is a disk of pool {} ({}); --force overwrites it",
                    disk.name(),
                    label.pool_name,
                    label.pool
                ),
            ));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let found = signature::probe(&**disk).await.map_err(|e| Error::io(format!("{}: {e}", disk.name())))?;
    match found {
        Some(signature) => {
            Err(Error::new(ErrorKind::Busy, format!("{} holds {signature}; --force overwrites it", disk.name())))
        }
        None => Ok(()),
    }
}
