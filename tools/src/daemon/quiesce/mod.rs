//! Snapshots that applications find consistent. See `docs/design/0018-quiesce.md`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use blockdev::error::{Context, Error, ErrorKind, Result};
use blockdev::pool::Kept;
use blockdev::report::{Severity, SnapshotInfo};
use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::state::Appliance;
use crate::wire::Via;
use crate::wire::events::Event;
use crate::wire::snapshots::Quiesce;

pub mod freezer;
pub mod hook;
mod mounts;

use freezer::Frozen;
use hook::{Hook, Stage};
use mounts::Mount;

/// Longer than anything takes by itself.
const SPARE: Duration = Duration::from_secs(30);

/// Where hooks are, and how long anything may take.
pub struct Quiescing {
    /// Directory of the programs that may be run.
    pub hooks_dir: PathBuf,
    /// For how long a hook may run.
    pub hook_limit: Duration,
    /// For how long writers of a file system may be held.
    pub freeze_limit: Duration,
    /// Files and programs that the daemon needs while writers are held.
    pub own: Vec<PathBuf>,
    /// Held while something is quiesced.
    pub turn: tokio::sync::Mutex<()>,
}

/// Whoever takes snapshots.
#[async_trait]
pub trait Take: Sync {
    /// The pool.
    fn engine(&self) -> &dyn Engine;
    /// Takes snapshots (`VOLUME@SNAPSHOT`), all of one instant, by a rule if it has a name.
    async fn take(&self, names: &[String], kept: &Kept, quiesce: &Quiesce, rule: &str) -> Result<Vec<SnapshotInfo>>;
}

#[async_trait]
impl Take for Appliance {
    fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    async fn take(&self, names: &[String], kept: &Kept, quiesce: &Quiesce, rule: &str) -> Result<Vec<SnapshotInfo>> {
        if *quiesce == Quiesce::default() {
            return self.engine.create_snapshots(names, kept).await;
        }
        let _turn = self.quiescing.turn.lock().await;
        // What cannot be taken disturbs nobody.
        self.engine.check_snapshots(names).await?;
        let Some(name) = &quiesce.hook else { return self.take_frozen(names, kept, quiesce).await };
        let hook = Hook::find(&self.quiescing.hooks_dir, name, self.quiescing.hook_limit)?;
        let variables = [("ASHLAR_SNAPSHOTS", names.join(" ")), ("ASHLAR_RULE", rule.to_owned())];
        let pending = Pending {
            hook: name.clone(),
            mark: hook.mark().to_owned(),
            variables: variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        };
        pending.note(&self.state_dir)?;
        let taken = match hook.run(Stage::Pre, &variables).await {
            Ok(()) => self.take_frozen(names, kept, quiesce).await,
            Err(e) => Err(e),
        };
        let stage = if taken.is_ok() { Stage::Post } else { Stage::Failed };
        if let Err(e) = hook.run(stage, &variables).await {
            // What was asked for is there, or the error is another one.
            self.record(Event::new(Severity::Warning, "hook.failed", "pool", e.to_string()));
        }
        hook.finish();
        Pending::done(&self.state_dir);
        taken
    }
}

/// A hook whose last word is to come: it outlives the daemon.
#[derive(Serialize, Deserialize)]
struct Pending {
    hook: String,
    mark: String,
    variables: Vec<(String, String)>,
}

/// See [`Pending`].
const PENDING: &str = "hook-pending";

impl Pending {
    fn note(&self, state_dir: &Path) -> Result<()> {
        let path = state_dir.join(PENDING);
        let text = serde_json::to_vec(self).map_err(|e| Error::io(e.to_string()))?;
        std::fs::write(&path, text).map_err(|e| Error::io(format!("writing {}: {e}", path.display())))
    }

    fn done(state_dir: &Path) {
        let _ = std::fs::remove_file(state_dir.join(PENDING));
    }
}

/// Ends what a daemon that was killed had begun: file systems are thawed, and a hook is told that there was no snapshot.
pub fn end_left_over(appliance: &Arc<Appliance>) {
    freezer::thaw_left_over(&appliance.state_dir);
    let Ok(text) = std::fs::read(appliance.state_dir.join(PENDING)) else { return };
    let app = appliance.clone();
    tokio::spawn(async move {
        let _turn = app.quiescing.turn.lock().await;
        if let Ok(pending) = serde_json::from_slice::<Pending>(&text) {
            hook::kill_marked(&pending.mark);
            let variables: Vec<(&str, String)> =
                pending.variables.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
            let hook = Hook::find(&app.quiescing.hooks_dir, &pending.hook, app.quiescing.hook_limit);
            let told = match hook {
                Ok(hook) => hook.run(Stage::Failed, &variables).await,
                Err(e) => Err(e),
            };
            if let Err(e) = told {
                app.record(Event::new(Severity::Warning, "hook.failed", "pool", e.to_string()));
            }
        }
        Pending::done(&app.state_dir);
    });
}

impl Quiescing {
    /// Waits for what is under way, for as long as it may take.
    pub async fn wait(&self) {
        let limit = 2 * self.hook_limit + self.freeze_limit + SPARE;
        if tokio::time::timeout(limit, self.turn.lock()).await.is_err() {
            tracing::warn!("a hook, or a file system that is frozen, is left to itself");
        }
    }
}

/// Seconds after which a snapshot goes whose file systems may have been let go too early, if the daemon does not get to say so.
const UNCERTAIN_S: u64 = 3600;

impl Appliance {
    /// Takes snapshots while file systems are frozen, if that is wanted.
    async fn take_frozen(&self, names: &[String], kept: &Kept, quiesce: &Quiesce) -> Result<Vec<SnapshotInfo>> {
        let mounts = if quiesce.freeze { self.mounted_on(names).await? } else { Vec::new() };
        if mounts.is_empty() {
            return self.engine.create_snapshots(names, &Kept { quiesced: quiesce.hook.is_some(), ..*kept }).await;
        }
        // What it is to be it becomes when it is known that writers were held all the time.
        let uncertain = Kept { expires_in_s: Some(UNCERTAIN_S), group: kept.group, ..Kept::default() };
        let frozen = Frozen::hold(&mounts, self.quiescing.freeze_limit, &self.state_dir).await?;
        let taken = self.engine.create_snapshots(names, &uncertain).await;
        let held = match (taken, frozen.thaw().await) {
            (Ok(_), Ok(held)) => held,
            (Ok(_), Err(e)) => {
                self.engine.delete_snapshots(names).await.context(e.to_string())?;
                return Err(e);
            }
            (Err(e), _) => return Err(e),
        };
        let points: Vec<String> = mounts.iter().map(|m| m.point.display().to_string()).collect();
        let message = format!("writers of {} were held for {} ms for a snapshot", points.join(", "), held.as_millis());
        self.record(Event::new(Severity::Info, "filesystem.frozen", "pool", message));
        self.engine.confirm_snapshots(names, &Kept { quiesced: true, ..*kept }).await
    }

    /// File systems that lie on the volumes of these snapshots.
    async fn mounted_on(&self, names: &[String]) -> Result<Vec<Mount>> {
        let mut targets = BTreeSet::new();
        for name in names {
            let volume = name.split_once('@').map_or(name.as_str(), |(volume, _)| volume);
            let Some(attachment) = self.attachments.get(volume).await else { continue };
            match &attachment.device {
                Some(device) => drop(targets.insert(mounts::number_of(Path::new(device))?)),
                None => return Err(elsewhere(volume, attachment.via)),
            }
        }
        let mounts = mounts::on(&targets)?;
        for own in self.quiescing.own.iter().chain([&self.state_dir]) {
            let Ok(device) = mounts::device_of(own) else { continue };
            if let Some(mount) = mounts.iter().find(|m| m.device == device) {
                return Err(Error::invalid(format!(
                    "the daemon's own files ({}) lie on {}: to freeze it would stop the daemon",
                    own.display(),
                    mount.point.display()
                )));
            }
        }
        Ok(mounts)
    }
}

fn elsewhere(volume: &str, via: Via) -> Error {
    let message = format!(
        "volume '{volume}' is attached via {via}: its file systems are not mounted from a block device of this machine and cannot be frozen \
         here; use a hook (--hook)"
    );
    Error::new(ErrorKind::Unsupported, message)
}
