//! What drives tell about their own health: asked for at the start, when a drive joins, and every few minutes.
//!
//! Each drive is asked on a thread of its own, one question at a time. One that does not answer keeps that thread and nothing else: what it told
//! last stays, marked as old, until it answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockdev::report::{Alert, DiskInfo, DriveHealth, HealthState, HealthWarning, Severity};
use blockdev::units::Uuid;
use parking_lot::Mutex;

/// Time a drive has to answer before that is a warning of its own.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Asks the drive at a path, and waits for it.
pub type Ask = Arc<dyn Fn(&Path) -> DriveHealth + Send + Sync>;

/// The health of all drives of the pool.
pub struct Watch {
    ask: Ask,
    /// Time between two questions; they are not asked at all when it is zero.
    interval: Duration,
    table: Arc<Mutex<BTreeMap<Uuid, Entry>>>,
}

#[derive(Default)]
struct Entry {
    /// Where the drive was when it was asked last.
    path: String,
    health: DriveHealth,
    asked: Option<Instant>,
    /// A thread waits for its answer.
    waiting: bool,
}

impl Watch {
    /// Drives are asked by `ask`, which may take as long as it likes.
    pub fn new(ask: Ask, interval: Duration) -> Self {
        Self { ask, interval, table: Arc::default() }
    }

    /// Asks those drives whose time has come, without waiting for their answers. To be called again and again.
    pub fn ask(&self, disks: &[DiskInfo]) {
        if self.interval.is_zero() {
            return;
        }
        let mut due = Vec::new();
        {
            let mut table = self.table.lock();
            table.retain(|uuid, _| disks.iter().any(|d| d.uuid == *uuid));
            // The path of one that is not used may be that of another by now.
            let used = |d: &&DiskInfo| !d.state.is_absent() && !d.path.is_empty();
            for disk in disks.iter().filter(used) {
                let entry = table.entry(disk.uuid).or_default();
                let fresh = entry.asked.is_some_and(|asked| asked.elapsed() < self.interval);
                if entry.path != disk.path {
                    // Whoever waits for an answer from there waits for nobody.
                    *entry = Entry { path: disk.path.clone(), ..Entry::default() };
                } else if entry.waiting || fresh {
                    continue;
                }
                (entry.asked, entry.waiting) = (Some(Instant::now()), true);
                due.push((disk.uuid, PathBuf::from(&disk.path)));
            }
        }
        for (uuid, path) in due {
            let (ask, table) = (self.ask.clone(), self.table.clone());
            tokio::task::spawn_blocking(move || {
                let health = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ask(&path)));
                let health = health.unwrap_or_else(|_| DriveHealth::not_reported("its answer was not understood"));
                let mut table = table.lock();
                // It may have left the pool meanwhile.
                if let Some(entry) = table.get_mut(&uuid).filter(|entry| Path::new(&entry.path) == path) {
                    if entry.health.state != health.state {
                        tell(&path, &health);
                    }
                    (entry.health, entry.waiting) = (health, false);
                }
            });
        }
    }

    /// What a drive told last.
    pub fn of(&self, disk: &DiskInfo) -> DriveHealth {
        if self.interval.is_zero() {
            return DriveHealth::not_reported("drives are not asked: health_interval is 0");
        }
        let table = self.table.lock();
        let Some(entry) = table.get(&disk.uuid) else {
            return DriveHealth::not_reported("it is not there to be asked");
        };
        let mut health = entry.health.clone();
        let silent =
            entry.asked.filter(|_| entry.waiting).map(|asked| asked.elapsed()).filter(|time| *time > ANSWER_MAX);
        if let Some(silent) = silent {
            let cause = format!("it has not answered a question about its health for {} s", silent.as_secs());
            health.note = Some(cause.clone());
            health.state = match health.state {
                HealthState::Critical => HealthState::Critical,
                _ => HealthState::Warning,
            };
            health.warnings.push(HealthWarning {
                severity: Severity::Warning,
                code: "disk.health.silent".into(),
                cause,
                action: "look at its cables and its controller, and at the kernel's messages".into(),
            });
        } else if disk.state.is_absent() && health.source.is_some() {
            health.note = Some("it is not used, and was not asked since".into());
        } else if health.note.is_none() && health.source.is_none() {
            health.note = Some("it was not asked yet".into());
        }
        health
    }

    /// What drives warn of.
    pub fn alerts(&self, disks: &[DiskInfo]) -> Vec<Alert> {
        let mut all = Vec::new();
        for disk in disks.iter().filter(|d| !d.state.is_absent()) {
            let health = self.of(disk);
            let drive: Vec<&str> = [&health.model, &health.serial].into_iter().filter_map(|t| t.as_deref()).collect();
            let drive = if drive.is_empty() { String::new() } else { format!(", {}", drive.join(" serial ")) };
            all.extend(health.warnings.into_iter().map(|w| Alert {
                severity: if w.severity >= Severity::Error { "critical" } else { w.severity.word() }.into(),
                code: w.code,
                object: format!("disk/{}", disk.id),
                message: format!("disk {} ({}{drive}) reports: {}; {}", disk.id, disk.path, w.cause, w.action),
            }));
        }
        all
    }
}

fn tell(path: &Path, health: &DriveHealth) {
    let disk = path.display();
    let causes: Vec<&str> = health.warnings.iter().map(|w| w.cause.as_str()).collect();
    match health.state {
        HealthState::Critical => {
            tracing::error!(%disk, causes = causes.join("; "), "a drive reports that it is not healthy")
        }
        HealthState::Warning => tracing::warn!(%disk, causes = causes.join("; "), "a drive warns of its health"),
        HealthState::Good => {
            tracing::info!(%disk, model = health.model, serial = health.serial, "a drive is in good health")
        }
        HealthState::NotReported => tracing::debug!(%disk, note = health.note, "a drive does not report its health"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use blockdev::report::{DiskState, HealthSource};

    use super::*;

    fn disk(n: u8, path: &str) -> DiskInfo {
        DiskInfo { id: n.into(), uuid: Uuid([n; 16]), path: path.into(), ..DiskInfo::default() }
    }

    fn told(serial: &str) -> DriveHealth {
        let (state, source) = (HealthState::Good, Some(HealthSource::Nvme));
        DriveHealth { state, source, serial: Some(serial.into()), ..DriveHealth::default() }
    }

    async fn until(what: impl Fn() -> bool) {
        let patience = Instant::now();
        while !what() {
            assert!(patience.elapsed() < Duration::from_secs(20), "it did not come to be");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Answers with the path as serial number, and counts questions.
    fn counting(interval: Duration) -> (Watch, Arc<AtomicU32>) {
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        let ask: Ask = Arc::new(move |path| {
            counted.fetch_add(1, Ordering::SeqCst);
            told(&path.display().to_string())
        });
        (Watch::new(ask, interval), count)
    }

    #[tokio::test]
    async fn drives_are_asked_at_once_and_then_at_their_time() {
        let (watch, count) = counting(Duration::from_secs(3600));
        let disks = [disk(1, "/dev/a"), disk(2, "/dev/b")];
        assert_eq!(watch.of(&disks[0]).state, HealthState::NotReported);
        watch.ask(&disks);
        until(|| disks.iter().all(|d| watch.of(d).serial.as_deref() == Some(d.path.as_str()))).await;
        watch.ask(&disks);
        assert_eq!(count.load(Ordering::SeqCst), 2, "their time has not come");
        // One that comes back under another name is asked there.
        let moved = [disk(1, "/dev/c"), disks[1].clone()];
        watch.ask(&moved);
        until(|| watch.of(&moved[0]).serial.as_deref() == Some("/dev/c")).await;
        assert_eq!(count.load(Ordering::SeqCst), 3);
        // One that left is forgotten.
        watch.ask(&moved[..1]);
        assert!(watch.of(&moved[1]).serial.is_none());

        let (watch, count) = counting(Duration::from_millis(1));
        for n in 1..5 {
            watch.ask(&disks[..1]);
            until(|| count.load(Ordering::SeqCst) >= n && watch.of(&disks[0]).source.is_some()).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (watch, count) = counting(Duration::ZERO);
        watch.ask(&disks);
        assert!(watch.of(&disks[0]).note.unwrap().contains("health_interval"));
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn drives_that_are_not_used_are_not_asked() {
        let (watch, count) = counting(Duration::from_secs(3600));
        let mut all = vec![disk(1, "/dev/a")];
        watch.ask(&all);
        until(|| watch.of(&all[0]).source.is_some()).await;
        all[0].state = DiskState::Failed;
        all.push(DiskInfo { state: DiskState::Missing, ..disk(2, "/dev/b") });
        all.push(disk(3, ""));
        watch.ask(&all);
        let last = watch.of(&all[0]);
        assert!(last.serial.is_some() && last.note.unwrap().contains("not used"), "what it told last is kept");
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert!(watch.alerts(&all).is_empty());
    }

    #[tokio::test]
    async fn a_drive_that_hangs_holds_nothing_up_and_is_asked_once() {
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let (hang, count) = (Mutex::new(hang), Arc::new(AtomicU32::new(0)));
        let counted = count.clone();
        let ask: Ask = Arc::new(move |path| {
            if path == Path::new("/dev/hangs") {
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = hang.lock().recv();
            }
            told("x")
        });
        let watch = Watch::new(ask, Duration::from_millis(1));
        let disks = [disk(1, "/dev/hangs"), disk(2, "/dev/b")];
        for _ in 0..3 {
            watch.ask(&disks);
            until(|| watch.of(&disks[1]).source.is_some()).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        assert_eq!(watch.of(&disks[0]).state, HealthState::NotReported);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        // Time passes.
        watch.table.lock().get_mut(&disks[0].uuid).unwrap().asked = Instant::now().checked_sub(ANSWER_MAX * 2);
        watch.ask(&disks);
        let silent = watch.of(&disks[0]);
        assert_eq!((silent.state, silent.warnings[0].code.as_str()), (HealthState::Warning, "disk.health.silent"));
        let alert = watch.alerts(&disks).pop().unwrap();
        assert_eq!((alert.object.as_str(), alert.severity.as_str()), ("disk/1", "warning"));
        assert!(alert.message.starts_with("disk 1 (/dev/hangs) reports: it has not answered"), "{}", alert.message);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        drop(release);
        until(|| watch.of(&disks[0]).state == HealthState::Good).await;
    }

    #[tokio::test]
    async fn warnings_become_alerts_with_object_cause_and_action() {
        let ask: Ask = Arc::new(|_| {
            let warning = HealthWarning {
                severity: Severity::Critical,
                code: "disk.health.wear".into(),
                cause: "103 % used".into(),
                action: "replace it".into(),
            };
            DriveHealth { state: HealthState::Critical, model: Some("M".into()), warnings: vec![warning], ..told("S1") }
        });
        let watch = Watch::new(ask, Duration::from_secs(60));
        let disks = [disk(4, "/dev/sdx")];
        watch.ask(&disks);
        until(|| watch.of(&disks[0]).source.is_some()).await;
        let expected = Alert {
            severity: "critical".into(),
            code: "disk.health.wear".into(),
            object: "disk/4".into(),
            message: "disk 4 (/dev/sdx, M serial S1) reports: 103 % used; replace it".into(),
        };
        assert_eq!(watch.alerts(&disks), [expected]);
    }
}
