//! Snapshots of file systems: those of the group of its volumes.

use std::path::PathBuf;
use std::sync::Arc;

use blockdev::error::{Error, ErrorKind, Result};
use blockdev::pool::Kept;

use nas::fuse::Mount;

use super::{Entry, FileSystems, Stored, StoredState, exports, identity, missing, put, stored, unmount, volumes_of};
use crate::daemon::fronts::blocking;
use crate::daemon::quiesce::Take;
use crate::daemon::state::{Appliance, now_s};
use crate::values::check_name;
use crate::wire::protection::{GroupSnapshot, GroupSnapshotCreate};

impl FileSystems {
    /// Snapshots of a file system, oldest first.
    pub async fn snapshots(&self, app: &Appliance, name: &str) -> Result<Vec<GroupSnapshot>> {
        if !stored(&*app.engine).contains_key(name) {
            return Err(missing(name));
        }
        app.objects().group_snapshots(name, &app.engine.snapshots(None).await?)
    }

    /// Takes a snapshot, with all that was done before.
    pub async fn take_snapshot(
        &self,
        app: &Appliance,
        name: &str,
        wanted: GroupSnapshotCreate,
    ) -> Result<GroupSnapshot> {
        let mount = self.of(app, name)?;
        let GroupSnapshotCreate { name: snapshot, expires_in_s, secure, quiesce } = wanted;
        let kept = Kept { expires_in_s, secure, ..Kept::default() };
        let all = app.engine.snapshots(None).await?;
        let (names, kept) = app.objects().group_names(name, &snapshot, kept, &all)?;
        blocking(move || mount.fs().sync().map_err(|errno| Error::io(format!("syncing the file system: {errno}"))))
            .await?;
        app.take(&names, &kept, &quiesce, "").await?;
        app.objects().group_snapshot(name, &snapshot, &app.engine.snapshots(None).await?)
    }

    /// Gives a file system the content of one of its snapshots. Handles of files stay what they are.
    pub async fn restore(
        &self,
        app: &Appliance,
        name: &str,
        snapshot: &str,
        keep: Option<&str>,
        force: bool,
    ) -> Result<()> {
        let _servers = app.servers.hold().await;
        let known = stored(&*app.engine).remove(name).ok_or_else(|| missing(name))?;
        if let Some(server) = known.server.as_ref().filter(|_| known.internal) {
            let text = format!("file system '{name}' holds the state of NAS server '{server}', which is of now only");
            return Err(Error::new(ErrorKind::Busy, text));
        }
        app.objects().group_snapshot(name, snapshot, &app.engine.snapshots(None).await?)?;
        // What it exports is cut off; clients wait, and their handles are good again afterwards.
        let server = known.server.filter(|_| exports::of_file_system(&*app.engine, name).is_some());
        if let Some(server) = &server {
            app.servers.bring_down(server).await?;
        }
        let restored = self.restore_held(app, name, snapshot, keep, force).await;
        if let Some(server) = &server {
            app.servers.bring_up(app, server).await;
        }
        restored
    }

    async fn restore_held(
        &self,
        app: &Appliance,
        name: &str,
        snapshot: &str,
        keep: Option<&str>,
        force: bool,
    ) -> Result<()> {
        let _turn = app.protection.lock().await;
        let _held = self.turn.lock().await;
        self.let_go(name, force).await?;
        let restored = async {
            for volume in volumes_of(name) {
                app.attachments.release(&volume).await?;
            }
            app.objects().restore_group(&*app.engine, name, snapshot, keep).await
        };
        let restored = restored.await;
        // Whatever came of it, it is mounted again.
        let entry = self.mounted(app, name).await;
        let mounted = match &entry {
            Entry::Mounted(_) => Ok(()),
            Entry::Unmounted(why) => Err(Error::new(ErrorKind::Unavailable, format!("mounting it again: {why}"))),
        };
        self.table.lock().insert(name.to_owned(), entry);
        restored.and(mounted)
    }

    /// Mounts a snapshot for reading, until the daemon ends; gives where.
    pub async fn mount_snapshot(&self, app: &Appliance, name: &str, snapshot: &str) -> Result<PathBuf> {
        let _held = self.turn.lock().await;
        if !stored(&*app.engine).contains_key(name) {
            return Err(missing(name));
        }
        let found = app.objects().group_snapshot(name, snapshot, &app.engine.snapshots(None).await?)?;
        if let Some(view) = self.views.lock().get(&found.name) {
            return Ok(view.path().to_owned());
        }
        let volumes = volumes_of(name).map(|volume| format!("{volume}@{snapshot}"));
        let mounted = self.mount_volumes(app, volumes.clone(), self.root.join(&found.name)).await;
        match mounted {
            Ok(view) => {
                let path = view.path().to_owned();
                self.views.lock().insert(found.name, view);
                Ok(path)
            }
            Err(error) => {
                for volume in &volumes {
                    let _ = app.attachments.release(volume).await;
                }
                Err(error.context(format!("mounting '{}'", found.name)))
            }
        }
    }

    /// Unmounts a snapshot; what is open is cut off.
    pub async fn unmount_snapshot(&self, app: &Appliance, name: &str, snapshot: &str) -> Result<()> {
        let _held = self.turn.lock().await;
        let wanted = format!("{name}@{snapshot}");
        if !self.views.lock().contains_key(&wanted) {
            return Err(Error::new(ErrorKind::NotFound, format!("'{wanted}' is not mounted")));
        }
        self.unmount_views(app, |view| view == wanted).await
    }

    /// Unmounts the snapshots whose names `wanted` wants.
    pub(super) async fn unmount_views(&self, app: &Appliance, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let gone: Vec<(String, Arc<Mount>)> = {
            let mut views = self.views.lock();
            let names: Vec<String> = views.keys().filter(|name| wanted(name)).cloned().collect();
            names.into_iter().filter_map(|name| views.remove_entry(&name)).collect()
        };
        let mut ended = Ok(());
        for (name, view) in gone {
            ended = ended.and(blocking(move || unmount(&view)).await);
            let Some((fs, snapshot)) = name.split_once('@') else { continue };
            for volume in volumes_of(fs) {
                ended = ended.and(app.attachments.release(&format!("{volume}@{snapshot}")).await);
            }
        }
        ended
    }

    /// Makes a file system that begins with what a snapshot holds.
    pub async fn clone_from(&self, app: &Appliance, name: &str, snapshot: &str, new: &str) -> Result<()> {
        check_name("file system", new)?;
        if new.len() > super::NAME_LEN_MAX {
            let most = super::NAME_LEN_MAX;
            return Err(Error::invalid(format!("the name of a file system has at most {most} characters")));
        }
        let _turn = app.protection.lock().await;
        let _held = self.turn.lock().await;
        let all = stored(&*app.engine);
        if !all.contains_key(name) {
            return Err(missing(name));
        }
        if all.contains_key(new) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("file system '{new}' exists already")));
        }
        self.check_mountpoint(new)?;
        self.check_volumes(app, new).await?;
        let making = Stored { state: StoredState::Making, created_s: now_s(), server: None, internal: false };
        let (from, to) = (volumes_of(name), volumes_of(new));
        let named = |volume: &str| {
            let at = from.iter().position(|v| v == volume);
            at.map_or_else(|| format!("{volume}-{new}"), |at| to[at].clone())
        };
        app.objects().clone_group_as(&*app.engine, (name, snapshot), new, named, vec![put(new, &making)?]).await?;
        let made = async {
            let [meta, data] = volumes_of(new);
            let (meta, data) = (app.engine.open_volume(&meta)?, app.engine.open_volume(&data)?);
            blocking(move || nas::reidentify(meta, data, identity()?)).await?;
            let mount = self.mount(app, new).await?;
            let ready = app.engine.manage(vec![put(new, &Stored { state: StoredState::Ready, ..making })?]).await;
            if let Err(error) = ready {
                let _ = blocking(move || unmount(&mount)).await;
                return Err(error);
            }
            Ok(Entry::Mounted(mount))
        };
        match made.await {
            Ok(entry) => {
                self.table.lock().insert(new.to_owned(), entry);
                Ok(())
            }
            Err(error) => {
                if let Err(error) = self.erase(app, new).await {
                    tracing::error!(new, %error, "undoing a file system that could not be cloned");
                }
                Err(Error::context(error, format!("cloning '{name}@{snapshot}' as file system '{new}'")))
            }
        }
    }
}
