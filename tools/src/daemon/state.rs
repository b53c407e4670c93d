//! What the daemon's request handlers share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use blockdev::error::{Error, ErrorKind, Result};
use blockdev::report::{Alert, DiskInfo, PoolStatus, VolumeInfo};
use tokio::sync::watch;

use super::attach::Attachments;
use super::engine::Engine;
use super::events::Events;
use super::events::observer::Observer;
use super::faults::Faults;
use super::health::Watch;
use super::jobs::Jobs;
use super::nas::{FileSystems, Servers};
use super::protection::Objects;
use super::protection::runner::Runs;
use super::quiesce::Quiescing;
use super::upgrade::Upgrades;
use crate::wire::events::{ActiveAlert, Event};
use crate::wire::{ConfigRow, Disk, Volume};

/// A running appliance.
pub struct Appliance {
    /// The pool.
    pub engine: Arc<dyn Engine>,
    /// Presented volumes.
    pub attachments: Attachments,
    /// Mounted file systems.
    pub nas: FileSystems,
    /// NAS servers.
    pub servers: Servers,
    /// Long work.
    pub jobs: Arc<Jobs>,
    /// What happened.
    pub events: Arc<Events>,
    /// What the events so far tell of the appliance.
    pub observer: parking_lot::Mutex<Observer>,
    /// What drives tell about their health.
    pub health: Watch,
    /// Fault injection; only in a laboratory.
    pub faults: Option<Faults>,
    /// Where the daemon keeps what it must know.
    pub state_dir: PathBuf,
    /// Drives that the configuration names.
    pub disks: Vec<PathBuf>,
    /// Held while drives are looked for.
    pub rescans: tokio::sync::Mutex<()>,
    /// The configuration in effect.
    pub config: Vec<ConfigRow>,
    /// Set once the daemon is to stop.
    pub stopping: watch::Sender<bool>,
    /// The program that may take over.
    pub upgrades: Arc<Upgrades>,
    /// What rules did.
    pub runs: Runs,
    /// Held while rules, policies and groups are changed, or done.
    pub protection: tokio::sync::Mutex<()>,
    /// How applications are made ready for snapshots.
    pub quiescing: Quiescing,
    /// Held while a program is checked.
    pub upgrading: tokio::sync::Mutex<()>,
}

impl Appliance {
    /// The pool's status, with alerts about what only the daemon knows.
    pub async fn status(&self) -> PoolStatus {
        let mut status = self.engine.status().await;
        for (name, attachment) in self.attachments.all().await {
            if let Some(error) = attachment.error {
                let message = format!(
                    "volume '{name}' should be attached via {via} and is not: {error}. Attach it again \
                     (ashlar volume attach {name} --via {via}) or give it up (ashlar volume detach {name})",
                    via = attachment.via
                );
                let (severity, code) = ("warning".into(), "volume.attachment".into());
                status.alerts.push(Alert { severity, code, object: format!("volume/{name}"), message });
            }
        }
        for (attachment, why) in self.attachments.troubles().await {
            let (name, via) = (&attachment.volume, attachment.via);
            let message = format!("volume '{name}' is attached via {via} and {why}");
            let (severity, code) = ("critical".into(), "volume.unserved".into());
            status.alerts.push(Alert { severity, code, object: format!("volume/{name}"), message });
        }
        status.alerts.extend(self.nas.alerts());
        status.alerts.extend(self.servers.alerts());
        status.alerts.extend(self.health.alerts(&status.disks));
        status.alerts.extend(self.events.alert());
        status.alerts.extend(self.runs.alerts(&*self.engine));
        status.alerts.sort_by_key(|alert| severity_rank(&alert.severity));
        status
    }

    /// Records an event, and remembers what it tells of the appliance.
    pub fn record(&self, event: Event) {
        let mut observer = self.observer.lock();
        self.note(&mut observer, event);
    }

    fn note(&self, observer: &mut Observer, event: Event) {
        observer.learn(&self.events.record(event));
    }

    /// Records what changed since the last look.
    pub fn observe(&self, status: &PoolStatus) {
        let mut observer = self.observer.lock();
        for event in observer.look(status, now_s()) {
            self.note(&mut observer, event);
        }
    }

    /// What is wrong now, most severe first, and since when.
    pub async fn active_alerts(&self) -> Vec<ActiveAlert> {
        let alerts = self.status().await.alerts;
        self.observer.lock().active(alerts)
    }

    /// A drive with what it tells about its health.
    pub fn disk(&self, info: DiskInfo) -> Disk {
        Disk { health: self.health.of(&info), info }
    }

    /// All volumes and where they are presented, by name.
    pub async fn volumes(&self) -> Vec<Volume> {
        let mut attachments = self.attachments.all().await;
        let infos = self.engine.volumes().await.into_iter();
        // One that is being deleted may have the name of one that was made since.
        let mut attachment = |info: &VolumeInfo| match info.state.as_str() {
            "deleting" => None,
            _ => attachments.remove(&info.name),
        };
        let objects = self.objects();
        let mut all: Vec<Volume> = infos.map(|info| objects.volume(attachment(&info), info)).collect();
        all.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        all
    }

    /// One volume.
    pub async fn volume(&self, name: &str) -> Result<Volume> {
        let info = self.engine.volume_info(name).await?;
        Ok(self.objects().volume(self.attachments.get(name).await, info))
    }

    /// Rules, policies and groups.
    pub fn objects(&self) -> Objects {
        Objects::load(&*self.engine)
    }

    /// Fault injection, or why there is none.
    pub fn faults(&self) -> Result<&Faults> {
        self.faults.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "faults can be injected in a laboratory only (`ashlar lab up`)")
        })
    }
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Most severe first.
pub fn severity_rank(severity: &str) -> u8 {
    match severity {
        "critical" => 0,
        "warning" => 1,
        _ => 2,
    }
}
