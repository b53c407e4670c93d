//! Attachments: which volume is presented by which front end, one protocol at a time, kept across restarts by the pool.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use blockdev::error::{Context, Error, ErrorKind, Result};
use blockdev::frontend::BlockDevice;
use blockdev::report::VolumeInfo;
use tokio::sync::Mutex;

use super::engine::Engine;
use super::nas::{OfFileSystem, owned};
use crate::wire::{AttachRequest, Attachment, Via};

/// Where a front end shows a volume.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// URIs, the one to prefer first.
    pub uris: Vec<String>,
    /// Path of a file, or the name of a device that stays the same.
    pub path: Option<PathBuf>,
    /// Path of a block device.
    pub device: Option<PathBuf>,
}

/// A front end that presents volumes under their names.
#[async_trait]
pub trait Presenter: Send + Sync {
    /// Shows `volume`, which is `device`.
    async fn present(&self, volume: &VolumeInfo, device: Arc<dyn BlockDevice>) -> Result<Target>;
    /// Shows it no longer. [`ErrorKind::Busy`] when a host uses it in a way that cannot be ended safely.
    async fn withdraw(&self, name: &str) -> Result<()>;
    /// Lets requests under way end and stops serving.
    async fn stop(&self);
    /// What is wrong with a volume that is presented and whose hosts get no answers, and what to do.
    fn trouble(&self, _name: &str) -> Option<String> {
        None
    }
    /// Whether hosts can be told that a volume's size changes.
    async fn check_resize(&self) -> Result<()> {
        Ok(())
    }
    /// Tells hosts the new size of a volume, in bytes, where they do not see it by themselves.
    async fn resized(&self, _name: &str, _size: u64) -> Result<()> {
        Ok(())
    }
    /// Makes sure that hosts have nothing more of a volume that should be presented and could not be. [`ErrorKind::Busy`] when they do: they would
    /// go on later with what they remember of it, whatever became of the volume meanwhile.
    async fn abandon(&self, _volume: &VolumeInfo) -> Result<()> {
        Ok(())
    }
    /// All that the pool wants presented is, as far as it can be: clears away what earlier daemons left of other volumes.
    async fn restored(&self) {}
}

/// Loop devices on top of the files of the FUSE front end.
#[async_trait]
pub trait Loops: Send + Sync {
    /// A loop device with direct I/O on `file`.
    async fn set_up(&self, file: &Path) -> Result<PathBuf>;
    /// Makes it take its file's present size.
    async fn refresh(&self, device: &Path) -> Result<()>;
    /// Takes it down, unless it is over another file by now; [`ErrorKind::Busy`] when it is mounted or open.
    async fn take_down(&self, device: &Path, file: &Path) -> Result<()>;
}

/// The front ends of an appliance.
pub struct FrontEnds {
    /// NBD.
    pub nbd: Arc<dyn Presenter>,
    /// FUSE.
    pub fuse: Arc<dyn Presenter>,
    /// ublk.
    pub ublk: Arc<dyn Presenter>,
    /// Loop devices.
    pub loops: Arc<dyn Loops>,
}

/// How a volume is to be presented: what the pool remembers, as `nbd`, `fuse`, `fuse+loop` or `ublk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spec {
    via: Via,
    loop_device: bool,
}

impl Spec {
    fn text(self) -> String {
        if self.loop_device { format!("{}+loop", self.via) } else { self.via.to_string() }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "nbd" => Some(Self { via: Via::Nbd, loop_device: false }),
            "ublk" => Some(Self { via: Via::Ublk, loop_device: false }),
            "fs" => Some(Self { via: Via::Fs, loop_device: false }),
            "fuse" => Some(Self { via: Via::Fuse, loop_device: false }),
            "fuse+loop" => Some(Self { via: Via::Fuse, loop_device: true }),
            _ => None,
        }
    }
}

/// A volume that was presented again, or should have been.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Its name.
    pub volume: String,
    /// By which protocol.
    pub via: Via,
    /// When hosts could go on.
    pub at: SystemTime,
    /// Why it could not be.
    pub error: Option<String>,
}

/// The attachments of an appliance.
pub struct Attachments {
    engine: Arc<dyn Engine>,
    fronts: FrontEnds,
    /// Keeps the volumes of file systems from being presented otherwise.
    file_systems: Arc<dyn Presenter>,
    // Held over whole changes, so that attach, detach and delete of a volume never run into each other.
    table: Mutex<BTreeMap<String, Attachment>>,
}

impl Attachments {
    /// No attachments yet; see [`Attachments::restore`].
    pub fn new(engine: Arc<dyn Engine>, fronts: FrontEnds) -> Self {
        Self { engine, fronts, file_systems: Arc::new(OfFileSystem), table: Mutex::default() }
    }

    /// Presents again what was presented when the daemon last ran. What cannot be presented is kept, with the reason.
    pub async fn restore(&self) -> Vec<Restored> {
        let mut table = self.table.lock().await;
        let mut restored = Vec::new();
        for volume in self.engine.attached().await {
            let Some(text) = volume.attached else { continue };
            let name = volume.name;
            let attachment = match Spec::parse(&text) {
                // Which protocol to name here does not matter: there is no other way out than to detach.
                None => unpresented(&name, Via::Nbd, format!("this version cannot present a volume via '{text}'")),
                Some(spec) => match self.present(&name, spec).await {
                    Ok(attachment) => {
                        tracing::info!(volume = name, via = %spec.via, target = attachment.target(), "attached again");
                        attachment
                    }
                    Err(e) => {
                        tracing::error!(volume = name, via = %spec.via, error = %e, "cannot attach again");
                        unpresented(&name, spec.via, e.to_string())
                    }
                },
            };
            let (via, error) = (attachment.via, attachment.error.clone());
            restored.push(Restored { volume: name.clone(), via, at: SystemTime::now(), error });
            table.insert(name, attachment);
        }
        self.fronts.ublk.restored().await;
        restored
    }

    /// Presents a volume. The same again changes nothing; another protocol is [`ErrorKind::Busy`].
    pub async fn attach(&self, name: &str, request: &AttachRequest) -> Result<Attachment> {
        let spec = Spec { via: request.via, loop_device: request.loop_device };
        if spec.loop_device && spec.via != Via::Fuse {
            return Err(Error::invalid("a loop device goes on top of a file: use it with --via fuse"));
        }
        let mut table = self.table.lock().await;
        self.engine.volume_info(name).await?;
        refuse_owned(&table, name)?;
        if spec.via == Via::Fs {
            return Err(Error::invalid("a file system takes its volumes by itself: ashlar nas fs create"));
        }
        if let Some(present) = table.get(name) {
            if present.via != spec.via {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "volume '{name}' is attached via {}, and a volume is presented by one protocol at a time; \
                         detach it first: ashlar volume detach {name}",
                        present.via
                    ),
                ));
            }
            if present.error.is_none() && (present.device.is_some() || !spec.loop_device) {
                return Ok(present.clone());
            }
        }
        let attachment = match table.get(name) {
            // Attached as a plain file so far: only the loop device is missing.
            Some(present) if present.error.is_none() => self.add_loop(present.clone()).await?,
            _ => self.present(name, spec).await?,
        };
        if let Err(e) = self.engine.set_attachment(name, Some(spec.text())).await {
            if let Err(e) = self.withdraw(&attachment).await {
                tracing::warn!(volume = name, error = %e, "undoing an attachment");
            }
            table.remove(name);
            return Err(e.context(format!("remembering the attachment of volume '{name}'")));
        }
        table.insert(name.to_owned(), attachment.clone());
        Ok(attachment)
    }

    /// Ends the presentation of a volume.
    pub async fn detach(&self, name: &str) -> Result<()> {
        let mut table = self.table.lock().await;
        let volume = self.engine.volume_info(name).await?;
        refuse_owned(&table, name)?;
        let Some(attachment) = table.get_mut(name) else {
            return Err(Error::new(ErrorKind::NotFound, format!("volume '{name}' is not attached")));
        };
        if attachment.error.is_some() {
            self.front(attachment.via).abandon(&volume).await.context(format!("detaching volume '{name}'"))?;
        } else {
            self.withdraw(attachment).await.map_err(|e| {
                let used = e.kind() == ErrorKind::Busy;
                let at = attachment.target();
                let hint = if used { format!("{at} is in use, unmount or close it first; ") } else { String::new() };
                e.context(format!("detaching volume '{name}': {hint}the system says"))
            })?;
            attachment.error = Some("being detached".into());
        }
        self.engine.set_attachment(name, None).await?;
        table.remove(name);
        Ok(())
    }

    /// Deletes a volume, which must not be attached, and its snapshots if they are to go.
    pub async fn delete(&self, name: &str, with_snapshots: bool) -> Result<()> {
        let table = self.table.lock().await;
        refuse_owned(&table, name)?;
        if let Some(attachment) = table.get(name) {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "volume '{name}' is attached via {}; detach it first: ashlar volume detach {name}",
                    attachment.via
                ),
            ));
        }
        self.engine.delete_volume(name, with_snapshots).await
    }

    /// Keeps attachments as they are until what is returned is dropped: nothing begins to be presented, or ends, while content is exchanged or deleted.
    pub async fn hold(&self) -> impl Drop + Send + '_ {
        self.table.lock().await
    }

    /// Changes a volume's size, in bytes, wherever it is presented.
    pub async fn resize(&self, name: &str, size: u64) -> Result<()> {
        let table = self.table.lock().await;
        refuse_owned(&table, name)?;
        let Some(attachment) = table.get(name) else {
            return self.engine.resize_volume(name, size).await.map(drop);
        };
        if attachment.error.is_some() {
            let volume = self.engine.volume_info(name).await?;
            self.front(attachment.via).abandon(&volume).await.context(format!("resizing volume '{name}'"))?;
            return self.engine.resize_volume(name, size).await.map(drop);
        }
        let front = self.front(attachment.via);
        front.check_resize().await.context(format!("resizing volume '{name}'"))?;
        self.engine.resize_volume(name, size).await?;
        let told = match (attachment.via, &attachment.device) {
            (Via::Fuse, Some(device)) => self.fronts.loops.refresh(Path::new(device)).await,
            _ => front.resized(name, size).await,
        };
        told.context(format!("the volume is resized; telling {}", attachment.target()))
    }

    /// A file system that is mounted at `path` lies on the volume: it is presented in no other way, nor changed.
    pub async fn claim(&self, name: &str, path: &Path) -> Result<()> {
        let mut table = self.table.lock().await;
        if let Some(present) = table.get(name).filter(|present| present.via != Via::Fs) {
            let text = format!("volume '{name}' is attached via {}; detach it first", present.via);
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let spec = Spec { via: Via::Fs, loop_device: false };
        self.engine.set_attachment(name, Some(spec.text())).await?;
        let mut attachment = unpresented(name, Via::Fs, String::new());
        (attachment.error, attachment.path) = (None, Some(path.display().to_string()));
        table.insert(name.to_owned(), attachment);
        Ok(())
    }

    /// Volumes and snapshots that are claimed.
    pub async fn of_file_systems(&self) -> Vec<String> {
        let table = self.table.lock().await;
        table.values().filter(|present| present.via == Via::Fs).map(|present| present.volume.clone()).collect()
    }

    /// Takes back [`Attachments::claim`].
    pub async fn release(&self, name: &str) -> Result<()> {
        let mut table = self.table.lock().await;
        if table.get(name).is_some_and(|present| present.via == Via::Fs) {
            self.engine.set_attachment(name, None).await?;
            table.remove(name);
        }
        Ok(())
    }

    /// Where a volume is presented.
    pub async fn get(&self, name: &str) -> Option<Attachment> {
        self.table.lock().await.get(name).cloned()
    }

    /// Everything that is presented, or should be.
    pub async fn all(&self) -> BTreeMap<String, Attachment> {
        self.table.lock().await.clone()
    }

    /// Volumes that are presented while their hosts get no answers, why, and what to do.
    pub async fn troubles(&self) -> Vec<(Attachment, String)> {
        let presented = self.all().await.into_values().filter(|a| a.error.is_none());
        presented.filter_map(|a| self.front(a.via).trouble(&a.volume).map(|why| (a, why))).collect()
    }

    /// Takes loop devices down and stops the front ends; the pool still remembers what to present next time.
    pub async fn stop(&self) {
        let table = self.table.lock().await;
        for attachment in table.values() {
            if let Err(e) = self.take_loop_down(attachment).await {
                let device = attachment.device.as_deref();
                tracing::warn!(volume = attachment.volume, device, error = %e, "leaving a loop device behind");
            }
        }
        tokio::join!(self.fronts.nbd.stop(), self.fronts.fuse.stop(), self.fronts.ublk.stop());
    }

    fn front(&self, via: Via) -> &Arc<dyn Presenter> {
        match via {
            Via::Nbd => &self.fronts.nbd,
            Via::Fuse => &self.fronts.fuse,
            Via::Ublk => &self.fronts.ublk,
            Via::Fs => &self.file_systems,
        }
    }

    async fn present(&self, name: &str, spec: Spec) -> Result<Attachment> {
        let front = self.front(spec.via);
        let volume = self.engine.volume_info(name).await?;
        let device = self.engine.open_volume(name)?;
        let what = || format!("attaching volume '{name}' via {}", spec.via);
        let target = front.present(&volume, device).await.context(what())?;
        let attachment = Attachment {
            volume: name.to_owned(),
            via: spec.via,
            uri: target.uris.first().cloned(),
            uris: target.uris,
            path: target.path.map(|p| p.display().to_string()),
            device: target.device.map(|p| p.display().to_string()),
            error: None,
        };
        if !spec.loop_device {
            return Ok(attachment);
        }
        match self.add_loop(attachment).await {
            Ok(attachment) => Ok(attachment),
            Err(e) => {
                if let Err(e) = front.withdraw(name).await {
                    tracing::warn!(volume = name, error = %e, "undoing an attachment");
                }
                Err(e)
            }
        }
    }

    async fn add_loop(&self, mut attachment: Attachment) -> Result<Attachment> {
        let name = &attachment.volume;
        let Some(path) = &attachment.path else {
            return Err(Error::invalid(format!("volume '{name}' has no file to set a loop device up on")));
        };
        let device = self.fronts.loops.set_up(Path::new(path)).await;
        let device = device.context(format!("setting a loop device up for volume '{name}'"))?;
        attachment.device = Some(device.display().to_string());
        Ok(attachment)
    }

    async fn withdraw(&self, attachment: &Attachment) -> Result<()> {
        self.take_loop_down(attachment).await?;
        self.front(attachment.via).withdraw(&attachment.volume).await
    }

    async fn take_loop_down(&self, attachment: &Attachment) -> Result<()> {
        match (&attachment.device, &attachment.path) {
            (Some(device), Some(path)) if attachment.via == Via::Fuse => {
                self.fronts.loops.take_down(Path::new(device), Path::new(path)).await
            }
            _ => Ok(()),
        }
    }
}

/// Fails for a volume that a file system lies on.
fn refuse_owned(table: &BTreeMap<String, Attachment>, name: &str) -> Result<()> {
    match table.get(name) {
        Some(present) if present.via == Via::Fs => Err(owned(name)),
        _ => Ok(()),
    }
}

/// An attachment that should be there and is not.
fn unpresented(volume: &str, via: Via, error: String) -> Attachment {
    Attachment { volume: volume.to_owned(), via, uri: None, uris: vec![], path: None, device: None, error: Some(error) }
}
