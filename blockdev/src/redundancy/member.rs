//! One disk of a pool: whether it serves, what is expected of it, what it has cost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::disk::Disk;
use crate::format::catalogue::{DiskErrors, DiskTraffic, Service};
use crate::report::{DiskInfo, DiskState};
use crate::units::{DiskId, Uuid};

/// Why a disk is not used that was condemned.
pub const CONDEMNED: &str = "it made too many errors; what it held was moved to the others";

/// Why a disk is not used that an administrator declared failed.
pub const DECLARED: &str = "declared failed by an administrator";

/// Errors count half after this time.
const ERRORS_HALVE: Duration = Duration::from_secs(3600);

/// Bad places of a disk that are remembered.
const PLACES_MAX: usize = 4096;

/// What a count of errors as of a time has become.
fn decayed((then, count): (Duration, f64), now: Duration) -> f64 {
    count * (-(now.saturating_sub(then).as_secs_f64() / ERRORS_HALVE.as_secs_f64())).exp2()
}

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
    /// It makes too many errors: columns on it are moved away, then it is declared failed.
    pub(super) failing: AtomicBool,
    /// It made too many errors, nothing lies on it, and it is not used again.
    condemned: AtomicBool,
    /// An administrator declared it failed: it stays out until that is taken back.
    pub(super) declared: AtomicBool,
    /// It was added, and no checkpoint names it yet.
    pub(super) joining: AtomicBool,
    /// Its resiliency set.
    pub(super) set: AtomicU16,
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
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    /// Errors before the pool was opened, or before it was taken back.
    earlier: Mutex<DiskErrors>,
    /// Bytes before the pool was opened.
    earlier_traffic: Mutex<DiskTraffic>,
    /// Errors of late, as of a time: the count halves with every [`ERRORS_HALVE`].
    errors_of_late: Mutex<(Duration, f64)>,
    /// Places that were counted, since a time: a place counts once.
    places: Mutex<(Duration, BTreeSet<u64>)>,
    /// Until when it counts as one that does not answer, and cannot be done without.
    unresponsive: Mutex<Duration>,
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
            failing: AtomicBool::new(false),
            condemned: AtomicBool::new(false),
            declared: AtomicBool::new(false),
            joining: AtomicBool::new(false),
            set: AtomicU16::new(0),
            returns: AtomicU64::new(0),
            trouble: RwLock::default(),
            writes: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            read_errors: AtomicU64::new(0),
            write_errors: AtomicU64::new(0),
            checksum_errors: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            earlier: Mutex::default(),
            earlier_traffic: Mutex::default(),
            errors_of_late: Mutex::default(),
            places: Mutex::default(),
            unresponsive: Mutex::default(),
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

    /// Its resiliency set.
    pub fn set(&self) -> u16 {
        self.set.load(Ordering::Acquire)
    }

    /// Puts it into a set, before it is a member.
    pub fn set_set(&self, set: u16) {
        self.set.store(set, Ordering::Release);
    }

    /// Whether what it holds is rebuilt elsewhere.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// Whether nothing lies on it, and nothing is expected of it.
    pub fn is_empty(&self) -> bool {
        self.empty.load(Ordering::Acquire)
    }

    /// Whether columns on it are moved away, because it is to be removed or makes too many errors.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire) || self.is_failing()
    }

    /// Whether it is to be declared failed once nothing lies on it.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// Whether it is not used again because of its errors.
    pub fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::Acquire)
    }

    /// Whether an administrator declared it failed.
    pub fn is_declared_failed(&self) -> bool {
        self.declared.load(Ordering::Acquire)
    }

    /// It was declared failed in an earlier life of the pool, and stays out. The service on record is set afterwards.
    pub fn stay_out(&self) {
        self.declared.store(true, Ordering::Release);
        self.failed.store(true, Ordering::Release);
        self.set_trouble(DECLARED);
    }

    /// The pool cannot be served without a disk that was declared failed: what lies on it is read, and moves to the others. Nothing new is put on
    /// it, and in the end it is out again. Says whether it is there.
    pub fn serve_at_need(&self) -> bool {
        if !self.is_declared_failed() || self.is_empty() || self.disk.read().is_none() {
            return false;
        }
        self.failed.store(false, Ordering::Release);
        if !self.leaving.load(Ordering::Acquire) {
            self.set_service(Service::Failing);
        }
        true
    }

    /// Takes note of an error when reading at a place. Halving makes the count one of late. Says whether the place was not known to be bad.
    pub(super) fn note_error(&self, now: Duration, place: u64) -> bool {
        {
            let mut places = self.places.lock();
            if now.saturating_sub(places.0) > ERRORS_HALVE || places.1.len() >= PLACES_MAX {
                *places = (now, BTreeSet::new());
            }
            if !places.1.insert(place) {
                return false;
            }
        }
        let mut known = self.errors_of_late.lock();
        *known = (now, decayed(*known, now) + 1.0);
        true
    }

    /// Errors of late.
    pub fn errors_of_late(&self, now: Duration) -> f64 {
        decayed(*self.errors_of_late.lock(), now)
    }

    /// Errors since it joined the pool.
    pub fn errors(&self) -> DiskErrors {
        let before = *self.earlier.lock();
        DiskErrors {
            read: before.read + self.read_errors.load(Ordering::Relaxed),
            write: before.write + self.write_errors.load(Ordering::Relaxed),
            checksum: before.checksum + self.checksum_errors.load(Ordering::Relaxed),
        }
    }

    /// Errors until now as the catalogue has them.
    pub fn set_errors(&self, errors: DiskErrors) {
        *self.earlier.lock() = errors;
    }

    /// Bytes that went to and came from it since it joined the pool.
    pub fn traffic(&self) -> DiskTraffic {
        let before = *self.earlier_traffic.lock();
        DiskTraffic {
            read: before.read + self.bytes_read.load(Ordering::Relaxed),
            written: before.written + self.bytes_written.load(Ordering::Relaxed),
        }
    }

    /// Bytes until now as the catalogue has them.
    pub fn set_traffic(&self, traffic: DiskTraffic) {
        *self.earlier_traffic.lock() = traffic;
    }

    /// Its errors of late do not count.
    pub fn forgive(&self) {
        *self.errors_of_late.lock() = Default::default();
        *self.places.lock() = Default::default();
    }

    /// It was taken back: what it did wrong before says nothing about what comes.
    pub(super) fn start_anew(&self) {
        let all = self.errors();
        for counter in [&self.read_errors, &self.write_errors, &self.checksum_errors] {
            counter.store(0, Ordering::Relaxed);
        }
        self.set_errors(all);
        self.forgive();
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

    /// Gives the handle of a disk that does not serve away: the system lets go of what was unplugged only once nobody has it open.
    pub fn let_go(&self) -> Option<Arc<dyn Disk>> {
        let mut disk = self.disk.write();
        if self.failed.load(Ordering::Acquire) { disk.take() } else { None }
    }

    /// How often it was taken back so far: what was begun before a return says nothing about afterwards.
    pub fn returns(&self) -> u64 {
        self.returns.load(Ordering::Acquire)
    }

    /// As the catalogue says when the pool is opened, and as it is to say from the next checkpoint on.
    pub fn set_service(&self, service: Service) {
        let given_up = !matches!(service, Service::Serving | Service::Away);
        self.given_up.store(given_up, Ordering::Release);
        self.leaving.store(service == Service::Leaving, Ordering::Release);
        self.failing.store(service == Service::Failing && self.online().is_some(), Ordering::Release);
        if matches!(service, Service::Leaving | Service::Failing) {
            // Whether anything lies on it is another matter.
            return;
        }
        let condemned = service == Service::Condemned;
        self.condemned.store(condemned, Ordering::Release);
        self.failed.fetch_or(condemned, Ordering::AcqRel);
        self.empty.store(condemned || service == Service::Empty, Ordering::Release);
    }

    /// What the next catalogue says of it.
    pub fn service(&self) -> Service {
        if self.is_condemned() {
            return Service::Condemned;
        }
        if self.is_failing() {
            return Service::Failing;
        }
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
            DiskState::Online | DiskState::Stale | DiskState::Removing | DiskState::Failing => None,
            state => {
                let why = match (state, trouble.is_empty()) {
                    (_, false) => trouble.clone(),
                    (DiskState::Missing, true) => "not found".into(),
                    _ => "failed".into(),
                };
                Some(match (self.is_given_up(), self.is_empty()) {
                    _ if self.is_condemned() => CONDEMNED.into(),
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
            (false, true) if self.is_failing() => DiskState::Failing,
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

    /// It does not answer, and cannot be done without: that is known until a time. Says whether it is news.
    pub fn set_unresponsive(&self, until: Duration) -> bool {
        let mut known = self.unresponsive.lock();
        let is_news = *known == Duration::ZERO;
        *known = until;
        is_news
    }

    /// Whether it does not answer, and cannot be done without.
    pub fn is_unresponsive(&self, now: Duration) -> bool {
        let mut until = self.unresponsive.lock();
        if *until < now {
            *until = Duration::ZERO;
        }
        now < *until
    }

    /// Record for people; what concerns segments is filled in by their owner.
    pub fn info(&self) -> DiskInfo {
        let (errors, traffic) = (self.errors(), self.traffic());
        DiskInfo {
            id: self.id.0,
            uuid: self.uuid,
            path: self.path.read().clone(),
            state: self.state(),
            set: self.set(),
            reason: self.reason(),
            size: self.size,
            allocated: 0,
            behind: 0,
            read_errors: errors.read,
            write_errors: errors.write,
            checksum_errors: errors.checksum,
            bytes_read: traffic.read,
            bytes_written: traffic.written,
        }
    }
}
