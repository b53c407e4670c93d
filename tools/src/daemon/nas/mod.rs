//! File systems of the appliance: each lies on two volumes, which form a group of its name, and is mounted while the daemon runs.
//! See `docs/design/0024-file-system.md`.
//!
//! A setting for each says what it is to be. *Making* and *deleting* are written before the first step and taken back after the last: what a
//! crash cut short is undone or finished at the next start.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::error::{Context, Error, ErrorKind, Result};
use blockdev::format::volume::Setting;
use blockdev::pool::{Managed, Reserve};
use blockdev::report::{Alert, SnapshotInfo};
use nas::Pair;
use nas::fs::Options;
use nas::fuse::{Mount, MountOptions};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::fronts::blocking;
use super::protection::Objects;
use super::state::{Appliance, now_s};
use crate::values::check_name;
use crate::wire::nas::{FileSystem, FileSystemCreate, FileSystemState};
use crate::wire::protection::GroupCreate;

mod exports;
mod presenter;
mod servers;
mod snapshots;

pub use presenter::{OfFileSystem, owned};
pub use servers::{LIBRARY, Servers, clear_left_over};

/// What settings of file systems are called, before the name.
const PREFIX: &str = "nas-fs/";

/// Longest name: those of its volumes are a little longer.
const NAME_LEN_MAX: usize = 50;

/// Smallest file system, in bytes.
const SIZE_MIN: u64 = 64 << 20;

/// The volume of metadata is an eighth of that of data, within these bounds, in bytes. It is thin.
const META_MIN: u64 = 256 << 20;
const META_MAX: u64 = 1 << 40;

/// Memory for the metadata of one, at least, in bytes.
const CACHE_MIN: u64 = 4 << 20;

/// Step in which room is reserved for metadata, in bytes.
const RESERVE_STEP: u64 = 32 << 20;

/// What the pool remembers of a file system.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    state: StoredState,
    created_s: u64,
    /// The NAS server it belongs to.
    #[serde(default)]
    server: Option<String>,
    /// It holds the state of its server.
    #[serde(default)]
    internal: bool,
}

/// A file system to be made.
struct NewFileSystem {
    name: String,
    size: u64,
    policy: Option<String>,
    server: Option<String>,
    internal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredState {
    Making,
    Ready,
    Deleting,
}

/// The names of the two volumes.
fn volumes_of(name: &str) -> [String; 2] {
    [format!("{name}.fs-meta"), format!("{name}.fs-data")]
}

/// What is reserved for metadata of so many bytes, in steps, so that it rarely changes.
fn reserved(metadata: u64) -> u64 {
    (2 * metadata).next_multiple_of(RESERVE_STEP) + RESERVE_STEP
}

fn meta_size(size: u64) -> u64 {
    (size / 8).clamp(META_MIN, META_MAX).next_multiple_of(1 << 20)
}

/// What settings with a common beginning of their names say, by the rest of their names.
fn settings<T: serde::de::DeserializeOwned>(engine: &dyn Engine, prefix: &str) -> BTreeMap<String, T> {
    let settings = engine.settings(prefix).into_iter();
    settings
        .filter_map(|Setting { name, value }| match serde_json::from_slice(&value) {
            Ok(stored) => Some((name.strip_prefix(prefix)?.to_owned(), stored)),
            Err(error) => {
                tracing::error!(name, %error, "a setting cannot be read");
                None
            }
        })
        .collect()
}

fn setting(name: &str, value: &impl Serialize) -> Result<Managed> {
    let value = serde_json::to_vec(value).map_err(|e| Error::invalid(format!("'{name}': {e}")))?;
    Ok(Managed::Setting(Setting { name: name.to_owned(), value }))
}

/// All that is remembered, by name.
fn stored(engine: &dyn Engine) -> BTreeMap<String, Stored> {
    settings(engine, PREFIX)
}

/// The file systems of a NAS server, but for the one that holds its state.
fn of_server(engine: &dyn Engine, server: &str) -> Vec<String> {
    let all = stored(engine).into_iter();
    all.filter(|(_, fs)| !fs.internal && fs.server.as_deref() == Some(server)).map(|(name, _)| name).collect()
}

/// Whether a group is that of a file system.
pub fn owns_group(engine: &dyn Engine, group: &str) -> bool {
    stored(engine).contains_key(group)
}

fn put(name: &str, stored: &Stored) -> Result<Managed> {
    setting(&format!("{PREFIX}{name}"), stored)
}

fn take(name: &str) -> Managed {
    Managed::Setting(Setting { name: format!("{PREFIX}{name}"), value: Vec::new() })
}

fn missing(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no file system '{name}' (ashlar nas fs list)"))
}

/// A file system that should be mounted.
#[derive(Clone)]
enum Entry {
    Mounted(Arc<Mount>),
    /// Why it is not.
    Unmounted(String),
}

/// What is said of a mount that somebody took away.
const TAKEN_AWAY: &str = "somebody unmounted it";

impl Entry {
    /// What it is now: the kernel may have let go of it.
    fn now(self) -> Self {
        match self {
            Self::Mounted(mount) if mount.is_ended() => Self::Unmounted(TAKEN_AWAY.into()),
            other => other,
        }
    }
}

/// The file systems of an appliance.
pub struct FileSystems {
    /// They are mounted below it.
    root: PathBuf,
    /// Memory for metadata of all of them, in bytes.
    memory: u64,
    /// Held over whole changes.
    turn: tokio::sync::Mutex<()>,
    table: Mutex<BTreeMap<String, Entry>>,
    /// The daemon is stopping: nothing is mounted any more.
    stopped: AtomicBool,
    /// One check at a time: each takes memory.
    checking: tokio::sync::Mutex<()>,
    /// Snapshots that are mounted, by `FILESYSTEM@SNAPSHOT`. A restart does not keep them.
    views: Mutex<BTreeMap<String, Arc<Mount>>>,
}

impl FileSystems {
    /// None yet; see [`FileSystems::start`].
    pub fn new(root: PathBuf, memory: u64) -> Self {
        let (stopped, checking) = (AtomicBool::new(false), tokio::sync::Mutex::default());
        Self {
            root,
            memory,
            stopped,
            checking,
            turn: tokio::sync::Mutex::default(),
            table: Mutex::default(),
            views: Mutex::default(),
        }
    }

    /// Mounts what is to be mounted; undoes and finishes what was cut short.
    pub async fn start(&self, app: &Appliance) {
        let _turn = self.turn.lock().await;
        for volume in app.attachments.of_file_systems().await {
            if volume.contains('@')
                && let Err(error) = app.attachments.release(&volume).await
            {
                tracing::error!(volume, %error, "a snapshot that was mounted stays reserved for that");
            }
        }
        for (name, stored) in stored(&*app.engine) {
            let done = match stored.state {
                StoredState::Ready => {
                    let entry = self.mounted(app, &name).await;
                    self.table.lock().insert(name.clone(), entry);
                    Ok(())
                }
                StoredState::Making | StoredState::Deleting => self.erase(app, &name).await,
            };
            if let Err(error) = done {
                tracing::error!(name, %error, "a file system that was half made or half deleted stays so");
            }
        }
    }

    /// Unmounts everything; what is open is cut off.
    pub async fn stop(&self) {
        let _turn = self.turn.lock().await;
        self.stopped.store(true, Ordering::Relaxed);
        let views = std::mem::take(&mut *self.views.lock());
        let views = views.into_iter().map(|(name, view)| (name, Entry::Mounted(view)));
        let all: Vec<(String, Entry)> = views.chain(std::mem::take(&mut *self.table.lock())).collect();
        for (name, entry) in all {
            let Entry::Mounted(mount) = entry else { continue };
            if let Err(error) = blocking(move || unmount(&mount)).await {
                tracing::error!(name, %error, "unmounting a file system");
            }
        }
    }

    /// Opens and mounts one whose volumes are there.
    async fn mounted(&self, app: &Appliance, name: &str) -> Entry {
        match self.mount(app, name).await {
            Ok(mount) => {
                tracing::info!(name, path = %mount.path().display(), "a file system is mounted");
                Entry::Mounted(mount)
            }
            Err(error) => {
                tracing::error!(name, %error, "cannot mount a file system");
                Entry::Unmounted(error.to_string())
            }
        }
    }

    async fn mount(&self, app: &Appliance, name: &str) -> Result<Arc<Mount>> {
        self.mount_volumes(app, volumes_of(name), self.root.join(name)).await
    }

    async fn mount_volumes(&self, app: &Appliance, volumes: [String; 2], path: PathBuf) -> Result<Arc<Mount>> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "the daemon is stopping"));
        }
        for volume in &volumes {
            app.attachments.claim(volume, &path).await?;
        }
        let [meta, data] = volumes;
        let (meta, data) = (app.engine.open_volume(&meta)?, app.engine.open_volume(&data)?);
        // Each has the same, however many there are: four share what is set aside, more take more.
        let options = Options { cache_bytes: (self.memory / 4).max(CACHE_MIN) as usize, ..Options::default() };
        blocking(move || {
            let fs = nas::fs::FileSystem::open(Pair::open(meta, data)?, options)?;
            let allow_other = rustix::process::geteuid().is_root();
            let mounted = Mount::new(fs.clone(), &path, MountOptions { allow_other, ..MountOptions::default() });
            if mounted.is_err() {
                let _ = fs.close();
            }
            mounted.map(Arc::new)
        })
        .await
    }

    /// Where a file system is mounted; none when it is not.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        match self.table.lock().get(name).cloned().map(Entry::now) {
            Some(Entry::Mounted(mount)) => Some(mount.path().to_owned()),
            _ => None,
        }
    }

    /// Makes a file system and mounts it.
    pub async fn create(&self, app: &Appliance, wanted: &FileSystemCreate) -> Result<()> {
        let _servers = app.servers.hold().await;
        if let Some(server) = &wanted.server {
            app.servers.ready(app, server)?;
        }
        let FileSystemCreate { name, size, policy, server } = wanted.clone();
        self.make_new(app, &NewFileSystem { name, size, policy, server, internal: false }).await
    }

    async fn make_new(&self, app: &Appliance, wanted: &NewFileSystem) -> Result<()> {
        let name = &wanted.name;
        check_name("file system", name)?;
        if name.len() > NAME_LEN_MAX {
            return Err(Error::invalid(format!("the name of a file system has at most {NAME_LEN_MAX} characters")));
        }
        if wanted.size < SIZE_MIN {
            let least = crate::output::size(SIZE_MIN);
            return Err(Error::invalid(format!("a file system has at least {least}")));
        }
        crate::values::check_volume_size(wanted.size)?;
        let _turn = app.protection.lock().await;
        let _held = self.turn.lock().await;
        if stored(&*app.engine).contains_key(name) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("file system '{name}' exists already")));
        }
        app.objects().check_new_group(name, wanted.policy.as_deref())?;
        self.check_volumes(app, name).await?;
        self.check_mountpoint(name)?;
        let NewFileSystem { server, internal, .. } = wanted;
        let new =
            Stored { state: StoredState::Making, created_s: now_s(), server: server.clone(), internal: *internal };
        app.engine.manage(vec![put(name, &new)?]).await?;
        let made = self.make(app, wanted, new).await;
        match made {
            Ok(entry) => {
                self.table.lock().insert(name.clone(), entry);
                Ok(())
            }
            Err(error) => {
                if let Err(error) = self.erase(app, name).await {
                    tracing::error!(name, %error, "undoing a file system that could not be made");
                }
                Err(error.context(format!("making file system '{name}'")))
            }
        }
    }

    /// Fails when volumes of the names that a file system's have are there: they are somebody else's.
    async fn check_volumes(&self, app: &Appliance, name: &str) -> Result<()> {
        for volume in volumes_of(name) {
            if app.engine.volume_info(&volume).await.is_ok() {
                let text = format!("volume '{volume}' exists already: file system '{name}' would need that name");
                return Err(Error::new(ErrorKind::AlreadyExists, text));
            }
        }
        Ok(())
    }

    /// Fails when something is mounted where a file system is to be, or lies there.
    fn check_mountpoint(&self, name: &str) -> Result<()> {
        let path = self.root.join(name);
        let empty = std::fs::read_dir(&path).map_or(true, |mut entries| entries.next().is_none());
        if empty { Ok(()) } else { Err(Error::new(ErrorKind::Busy, format!("{} is not empty", path.display()))) }
    }

    async fn make(&self, app: &Appliance, wanted: &NewFileSystem, new: Stored) -> Result<Entry> {
        let name = &wanted.name;
        let [meta, data] = volumes_of(name);
        let path = self.root.join(name);
        app.engine.create_volume(&meta, meta_size(wanted.size), Some(Reserve::Bytes(reserved(0)))).await?;
        app.attachments.claim(&meta, &path).await?;
        app.engine.create_volume(&data, wanted.size, None).await?;
        app.attachments.claim(&data, &path).await?;
        let (m, d) = (app.engine.open_volume(&meta)?, app.engine.open_volume(&data)?);
        blocking(move || nas::format(m, d, identity()?).map(drop)).await?;
        let group = GroupCreate { name: name.clone(), volumes: vec![meta, data], policy: wanted.policy.clone() };
        app.objects().create_group(&*app.engine, &group).await?;
        let mount = self.mount(app, name).await?;
        let ready = app.engine.manage(vec![put(name, &Stored { state: StoredState::Ready, ..new })?]).await;
        if let Err(error) = ready {
            let _ = blocking(move || unmount(&mount)).await;
            return Err(error);
        }
        Ok(Entry::Mounted(mount))
    }

    /// Takes away everything there is of a file system that is not mounted. A volume is its own if it is claimed, in its group, or was never written.
    async fn erase(&self, app: &Appliance, name: &str) -> Result<()> {
        let objects = app.objects();
        let group = objects.group(name, &[]).ok();
        if group.is_some() {
            objects.delete_group(&*app.engine, name).await?;
        }
        let members = group.map_or_else(Vec::new, |group| group.volumes);
        for volume in volumes_of(name) {
            let info = match app.engine.volume_info(&volume).await {
                Ok(info) => info,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let claimed = info.attached.as_deref() == Some("fs");
            if !claimed && !members.contains(&volume) && info.mapped > 0 {
                tracing::warn!(volume, "a volume has the name of one of a file system's, and is none: it stays");
                continue;
            }
            app.attachments.release(&volume).await?;
            app.engine.delete_volume(&volume, true).await?;
        }
        app.engine.manage(vec![take(name)]).await
    }

    /// Deletes a file system.
    pub async fn delete(&self, app: &Appliance, name: &str, with_snapshots: bool, force: bool) -> Result<()> {
        let _servers = app.servers.hold().await;
        let known = stored(&*app.engine).remove(name).ok_or_else(|| missing(name))?;
        self.check_unexported(app, name, &known)?;
        self.delete_known(app, name, known, with_snapshots, force).await
    }

    /// Fails when a NAS server cannot do without a file system.
    fn check_unexported(&self, app: &Appliance, name: &str, known: &Stored) -> Result<()> {
        if let Some(server) = known.server.as_ref().filter(|_| known.internal) {
            let text = format!("file system '{name}' holds the state of NAS server '{server}'");
            return Err(Error::new(ErrorKind::Busy, text));
        }
        if let Some(export) = exports::of_file_system(&*app.engine, name) {
            let text = format!("file system '{name}' is exported: ashlar nas export delete {export}");
            return Err(Error::new(ErrorKind::Busy, text));
        }
        Ok(())
    }

    /// Deletes the one that holds the state of a NAS server, if it is there; never one of that name that somebody else made.
    async fn delete_state(&self, app: &Appliance, server: &str) -> Result<()> {
        let name = servers::state_of(server);
        let known = stored(&*app.engine).remove(&name).filter(|fs| fs.internal && fs.server.as_deref() == Some(server));
        match known {
            Some(known) => self.delete_known(app, &name, known, true, true).await,
            None => Ok(()),
        }
    }

    /// Gives a file system to a NAS server, or takes it from one.
    pub async fn assign(&self, app: &Appliance, name: &str, server: Option<String>) -> Result<()> {
        let _servers = app.servers.hold().await;
        if let Some(server) = &server {
            app.servers.ready(app, server)?;
        }
        let _held = self.turn.lock().await;
        let known = stored(&*app.engine).remove(name).ok_or_else(|| missing(name))?;
        if known.server == server {
            return Ok(());
        }
        self.check_unexported(app, name, &known)?;
        app.engine.manage(vec![put(name, &Stored { server, ..known })?]).await
    }

    async fn delete_known(
        &self,
        app: &Appliance,
        name: &str,
        known: Stored,
        with_snapshots: bool,
        force: bool,
    ) -> Result<()> {
        let _turn = app.protection.lock().await;
        let _held = self.turn.lock().await;
        let mut snapshots = 0;
        for volume in volumes_of(name) {
            let of_volume = match app.engine.snapshots(Some(&volume)).await {
                Ok(all) => all,
                // It is half deleted already.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if let Some(secure) = of_volume.iter().find(|s| s.secure) {
                let text = format!("'{}' is secure and cannot be deleted before it expires", secure.name);
                return Err(Error::new(ErrorKind::Busy, text));
            }
            snapshots += of_volume.len();
        }
        if snapshots > 0 && !with_snapshots {
            let text = format!("file system '{name}' has snapshots: delete them first, or with it (--snapshots)");
            return Err(Error::new(ErrorKind::Busy, text));
        }
        self.let_go(name, force).await?;
        self.unmount_views(app, |view| view.split_once('@').is_some_and(|(fs, _)| fs == name)).await?;
        let gone = async {
            app.engine.manage(vec![put(name, &Stored { state: StoredState::Deleting, ..known })?]).await?;
            self.table.lock().remove(name);
            self.erase(app, name).await
        };
        gone.await.context(format!("deleting file system '{name}'; it is finished at the next start at the latest"))
    }

    /// Unmounts a file system, unless files are open.
    async fn let_go(&self, name: &str, force: bool) -> Result<()> {
        let entry = self.table.lock().get(name).cloned();
        let Some(Entry::Mounted(mount)) = entry else { return Ok(()) };
        let open = mount.fs().open_files();
        if open > 0 && !force {
            let text =
                format!("file system '{name}' is in use: {open} open files and directories (--force cuts them off)");
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let why = "it was unmounted for a change that did not end";
        self.table.lock().insert(name.to_owned(), Entry::Unmounted(why.into()));
        // Even when the kernel does not let go: nothing comes from it any more.
        blocking(move || unmount(&mount)).await
    }

    /// Makes a file system larger, while it is used.
    pub async fn resize(&self, app: &Appliance, name: &str, size: u64) -> Result<()> {
        crate::values::check_volume_size(size)?;
        let _held = self.turn.lock().await;
        let mount = self.of(app, name)?;
        let [meta, data] = volumes_of(name);
        let now = app.engine.volume_info(&data).await?.size;
        if size < now {
            let text = format!("file system '{name}' has {now} bytes and cannot be made smaller ({size})");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if meta_size(size) > app.engine.volume_info(&meta).await?.size {
            app.engine.resize_volume(&meta, meta_size(size)).await?;
        }
        app.engine.resize_volume(&data, size).await?;
        blocking(move || mount.fs().grow().map_err(|errno| Error::io(format!("growing the file system: {errno}"))))
            .await
    }

    /// Checks a file system while it is used.
    pub async fn check(&self, app: &Appliance, name: &str) -> Result<nas::check::Report> {
        let _alone = self.checking.lock().await;
        let mount = self.of(app, name)?;
        blocking(move || {
            // What is in memory only is part of it.
            let _ = mount.fs().sync();
            mount.fs().check()
        })
        .await
    }

    /// The mount of a file system.
    fn of(&self, app: &Appliance, name: &str) -> Result<Arc<Mount>> {
        let entry = self.table.lock().get(name).cloned();
        match entry.map(Entry::now) {
            Some(Entry::Mounted(mount)) => Ok(mount),
            Some(Entry::Unmounted(why)) => {
                Err(Error::new(ErrorKind::Unavailable, format!("file system '{name}' is not mounted: {why}")))
            }
            None if stored(&*app.engine).contains_key(name) => {
                Err(Error::new(ErrorKind::Unavailable, format!("file system '{name}' is half made or half deleted")))
            }
            None => Err(missing(name)),
        }
    }

    /// Tries again to mount what is not mounted.
    pub async fn remount(&self, app: &Appliance, name: &str) -> Result<()> {
        let _servers = app.servers.hold().await;
        let server = stored(&*app.engine).remove(name).and_then(|known| known.server);
        let mounted = self.remount_held(app, name).await;
        // It has handles of what was mounted before, or could not do without it.
        if let (Some(server), Ok(true)) = (server, &mounted) {
            app.servers.again(app, &server).await;
        }
        mounted.map(drop)
    }

    /// Gives whether it was mounted.
    async fn remount_held(&self, app: &Appliance, name: &str) -> Result<bool> {
        let _held = self.turn.lock().await;
        let entry = self.table.lock().get(name).cloned();
        match entry {
            Some(Entry::Mounted(mount)) if !mount.fs().is_failed() && !mount.is_ended() => return Ok(false),
            Some(_) => {}
            None => return self.of(app, name).map(|_| false),
        }
        self.let_go(name, true).await?;
        let mount = self.mount(app, name).await;
        let entry = match &mount {
            Ok(mount) => Entry::Mounted(mount.clone()),
            Err(error) => Entry::Unmounted(error.to_string()),
        };
        self.table.lock().insert(name.to_owned(), entry);
        mount.map(|_| true)
    }

    /// All file systems, by name.
    pub async fn all(&self, app: &Appliance) -> Result<Vec<FileSystem>> {
        let entries = self.table.lock().clone();
        let entries: BTreeMap<String, Entry> = entries.into_iter().map(|(name, entry)| (name, entry.now())).collect();
        let (objects, snapshots) = (app.objects(), app.engine.snapshots(None).await?);
        let mut all = Vec::new();
        for (name, stored) in stored(&*app.engine) {
            all.push(self.describe(app, &name, &stored, entries.get(&name), (&objects, &snapshots)).await);
        }
        Ok(all)
    }

    /// One file system.
    pub async fn one(&self, app: &Appliance, name: &str) -> Result<FileSystem> {
        self.all(app).await?.into_iter().find(|fs| fs.name == name).ok_or_else(|| missing(name))
    }

    async fn describe(
        &self,
        app: &Appliance,
        name: &str,
        stored: &Stored,
        entry: Option<&Entry>,
        (objects, snapshots): (&Objects, &[SnapshotInfo]),
    ) -> FileSystem {
        let volumes = volumes_of(name);
        let size = app.engine.volume_info(&volumes[1]).await.map_or(0, |info| info.size);
        let group = objects.group(name, snapshots).ok();
        let mut fs = FileSystem {
            name: name.to_owned(),
            state: match stored.state {
                StoredState::Making => FileSystemState::Making,
                StoredState::Ready => FileSystemState::Unmounted,
                StoredState::Deleting => FileSystemState::Deleting,
            },
            size,
            used: None,
            inodes: None,
            path: self.root.join(name).display().to_string(),
            volumes: volumes.into(),
            server: stored.server.clone(),
            internal: stored.internal,
            policy: group.as_ref().and_then(|group| group.policy.clone()),
            snapshots: group.map_or(0, |group| group.snapshots),
            created_s: stored.created_s,
            error: None,
        };
        match entry {
            Some(Entry::Mounted(mount)) => {
                let space = mount.fs().space();
                fs.state = if space.failed { FileSystemState::Failed } else { FileSystemState::Mounted };
                fs.error = space.failed.then(|| "its metadata could not be written; see the log".into());
                fs.used = Some((space.blocks - space.free) * nas::BLOCK);
                fs.inodes = Some(space.inodes);
            }
            Some(Entry::Unmounted(why)) => fs.error = Some(why.clone()),
            None => {}
        }
        fs
    }

    /// Keeps room in the pool for the metadata of file systems, for twice what there is: deleting files, which makes room, writes metadata.
    pub async fn keep_room(&self, app: &Appliance) {
        let all = self.table.lock().clone();
        for (name, entry) in all {
            let Entry::Mounted(mount) = entry else { continue };
            let [meta, _] = volumes_of(&name);
            let Ok(info) = app.engine.volume_info(&meta).await else { continue };
            let wanted = reserved(mount.fs().metadata_bytes()).min(info.size);
            if wanted > info.reserved
                && let Err(error) = app.engine.reserve_volume(&meta, Reserve::Bytes(wanted)).await
            {
                tracing::debug!(name, %error, "no more room can be kept for the metadata of a file system");
            }
        }
    }

    /// What is wrong with file systems.
    pub fn alerts(&self) -> Vec<Alert> {
        let mut alerts = Vec::new();
        let all = self.table.lock().clone();
        for (name, entry) in all {
            let (code, message) = match entry.now() {
                Entry::Mounted(mount) if mount.fs().is_failed() => {
                    let text = "has failed: its metadata could not be written. When the cause is gone (see the other alerts and the log)";
                    ("nas.failed", format!("file system '{name}' {text}, mount it again: ashlar nas fs mount {name}"))
                }
                Entry::Mounted(_) => continue,
                Entry::Unmounted(why) => {
                    let how = format!("Try again with ashlar nas fs mount {name}");
                    ("nas.unmounted", format!("file system '{name}' should be mounted and is not: {why}. {how}"))
                }
            };
            let (severity, code) = ("critical".into(), code.into());
            alerts.push(Alert { severity, code, object: format!("fs/{name}"), message });
        }
        alerts
    }
}

fn unmount(mount: &Mount) -> Result<()> {
    let unmounted = mount.unmount();
    // One that a killed daemon made stays otherwise; with anything in it, it is somebody's.
    let _ = std::fs::remove_dir(mount.path());
    let closed = mount.fs().close().map_err(|errno| Error::io(format!("closing the file system: {errno}")));
    unmounted.map(drop).and(closed)
}

/// Chance, to tell file systems apart.
fn identity() -> Result<[u8; 16]> {
    let mut identity = [0; 16];
    rustix::rand::getrandom(&mut identity, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::io(format!("asking for random bytes: {errno}")))?;
    Ok(identity)
}
