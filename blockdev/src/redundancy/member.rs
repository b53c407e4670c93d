//! One disk of a pool: whether it serves, what is expected of it, what it has cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::disk::Disk;
use crate::format::catalogue::Service;
use crate::report::{DiskInfo, DiskState};
use crate::units::{DiskId, Uuid};

/// One disk of the pool.
pub struct Member {
    /// Index.
    pub id: DiskId,
    /// Identity.
    pub uuid: Uuid,
    /// Bytes recorded for it.
    pub size: u64,
    /// Newest checkpoint that this disk surely has.
    pub last_checkpoint: AtomicU64,
    pub(super) disk: RwLock<Option<Arc<dyn Disk>>>,
    pub(super) failed: AtomicBool,
    /// It came back, and no checkpoint says yet what it lacks.
    pub(super) unsettled: AtomicBool,
    /// Since when it does not serve; none while it does.
    pub(super) gone_since: Mutex<Option<Duration>>,
    /// It was away for too long, or an administrator said so: what it holds is rebuilt elsewhere.
    pub(super) given_up: AtomicBool,
    /// Given up, and no column of any segment lies on it: it is not needed for anything.
    empty: AtomicBool,
    /// It is to be removed: columns on it are moved away.
    pub(super) leaving: AtomicBool,
    /// It was added, and no checkpoint names it yet.
    pub(super) joining: AtomicBool,
    /// How often it was taken back.
    pub(super) returns: AtomicU64,
    /// Why it does not serve, as far as that is known.
    pub(super) trouble: RwLock<String>,
    /// Where it was seen last.
    path: RwLock<String>,
    /// Writes completed; compared with `flushed` to know whether a flush is needed.
    pub(super) writes: AtomicU64,
    pub(super) flushed: AtomicU64,
    pub(super) read_errors: AtomicU64,
    pub(super) write_errors: AtomicU64,
    pub(super) checksum_errors: AtomicU64,
    /// Writes that wait because the file system below this file-backed disk is full.
    pub(super) stalled: AtomicU64,
}

/// A write that waits for space, for as long as it lives. The log gets a line when the first begins to wait and when the last has ended.
pub(super) struct Stalled<'a>(&'a Member);

impl<'a> Stalled<'a> {
    pub(super) fn on(member: &'a Member, why: &str) -> Self {
        if member.stalled.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!(disk = member.id.0, why, "no space under a file-backed disk: its writes wait");
        }
        Self(member)
    }
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        if self.0.stalled.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::info!(disk = self.0.id.0, "no write waits for space under the disk any more");
        }
    }
}

impl Member {
    /// A member; `disk` is None when it was not found.
    pub fn new(id: DiskId, uuid: Uuid, size: u64, disk: Option<Arc<dyn Disk>>, failed: bool) -> Self {
        Self {
            id,
            uuid,
            size,
            last_checkpoint: AtomicU64::new(0),
            path: RwLock::new(disk.as_ref().map(|d| d.name()).unwrap_or_default()),
            disk: RwLock::new(disk),
            failed: AtomicBool::new(failed),
            unsettled: AtomicBool::new(false),
            gone_since: Mutex::new(None),
            given_up: AtomicBool::new(false),
            empty: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            joining: AtomicBool::new(false),
            returns: AtomicU64::new(0),
            trouble: RwLock::default(),
            writes: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            read_errors: AtomicU64::new(0),
            write_errors: AtomicU64::new(0),
            checksum_errors: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
        }
    }

    /// The disk, when it is there and not failed.
    pub fn online(&self) -> Option<Arc<dyn Disk>> {
        if self.failed.load(Ordering::Acquire) { None } else { self.disk.read().clone() }
    }

    /// Whether it serves, and a checkpoint tells what it lacks.
    pub fn is_settled(&self) -> bool {
        self.online().is_some() && !self.unsettled.load(Ordering::Acquire)
    }

    /// Whether what it holds is rebuilt elsewhere.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// Whether nothing lies on it, and nothing is expected of it.
    pub fn is_empty(&self) -> bool {
        self.empty.load(Ordering::Acquire)
    }

    /// Whether columns on it are moved away, because it is to be removed.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// A durable checkpoint says that nothing lies on it.
    pub fn set_empty(&self) {
        self.empty.store(true, Ordering::Release);
    }

    /// Whether it counts when it is gone: something may lie on it.
    pub fn is_counted(&self) -> bool {
        !self.is_empty() && !self.joining.load(Ordering::Acquire)
    }

    /// Whether new data and log entries may be put on it.
    pub fn takes_data(&self) -> bool {
        self.is_settled() && !self.is_leaving() && !self.joining.load(Ordering::Acquire)
    }

    /// The disk, whether it serves or not.
    pub fn handle(&self) -> Option<Arc<dyn Disk>> {
        self.disk.read().clone()
    }

    /// How often it was taken back so far: what was begun before a return says nothing about afterwards.
    pub fn returns(&self) -> u64 {
        self.returns.load(Ordering::Acquire)
    }

    /// As the catalogue says when the pool is opened, and as it is to say from the next checkpoint on.
    pub fn set_service(&self, service: Service) {
        let given_up = matches!(service, Service::GivenUp | Service::Empty | Service::Leaving);
        self.given_up.store(given_up, Ordering::Release);
        self.leaving.store(service == Service::Leaving, Ordering::Release);
        if service == Service::Leaving {
            // Whether anything lies on it is another matter.
            return;
        }
        self.empty.store(service == Service::Empty, Ordering::Release);
    }

    /// What the next catalogue says of it.
    pub fn service(&self) -> Service {
        if self.is_leaving() {
            return Service::Leaving;
        }
        match (self.online().is_some(), self.is_given_up(), self.is_empty()) {
            (true, ..) => Service::Serving,
            (false, false, _) => Service::Away,
            (false, true, false) => Service::GivenUp,
            (false, true, true) => Service::Empty,
        }
    }

    /// Keeps why it does not serve, for messages.
    pub fn set_trouble(&self, why: impl Into<String>) {
        *self.trouble.write() = why.into();
    }

    /// Tells where it was seen last, when it is not here.
    pub fn set_path(&self, path: impl Into<String>) {
        *self.path.write() = path.into();
    }

    /// Which disk it is, where it was seen last, and why it does not serve.
    pub(super) fn describe_gone(&self) -> String {
        let path = self.path.read();
        let path = if path.is_empty() { String::new() } else { format!(", {path}") };
        let why = self.reason().unwrap_or_default();
        format!("disk {} ({}{path}): {why}", self.id, self.uuid)
    }

    /// Why it does not serve, when it does not.
    fn reason(&self) -> Option<String> {
        let trouble = self.trouble.read();
        match self.state() {
            DiskState::Online | DiskState::Stale | DiskState::Removing => None,
            state => {
                let why = match (state, trouble.is_empty()) {
                    (_, false) => trouble.clone(),
                    (DiskState::Missing, true) => "not found".into(),
                    _ => "failed".into(),
                };
                Some(match (self.is_given_up(), self.is_empty()) {
                    (_, true) => format!("{why}; what it held was rebuilt on the others"),
                    (true, _) => format!("{why}; what it held is being rebuilt on the others"),
                    _ => why,
                })
            }
        }
    }

    /// Whether it was declared failed.
    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// State for people. What it lacks is known to the owner of the segments.
    pub fn state(&self) -> DiskState {
        match (self.is_failed(), self.disk.read().is_some()) {
            (true, _) => DiskState::Failed,
            (false, false) => DiskState::Missing,
            (false, true) if self.is_leaving() => DiskState::Removing,
            (false, true) => DiskState::Online,
        }
    }

    /// Reads that failed since the pool was opened, or since it was taken back.
    pub fn read_errors(&self) -> u64 {
        self.read_errors.load(Ordering::Relaxed)
    }

    /// Whether writes wait for space in the file system below this disk.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed) > 0
    }

    /// Record for people; what concerns segments is filled in by their owner.
    pub fn info(&self) -> DiskInfo {
        DiskInfo {
            id: self.id.0,
            uuid: self.uuid,
            path: self.path.read().clone(),
            state: self.state(),
            reason: self.reason(),
            size: self.size,
            allocated: 0,
            behind: 0,
            read_errors: self.read_errors.load(Ordering::Relaxed),
            write_errors: self.write_errors.load(Ordering::Relaxed),
            checksum_errors: self.checksum_errors.load(Ordering::Relaxed),
        }
    }
}
