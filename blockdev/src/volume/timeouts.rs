//! Disks that do not answer: which of them the pool can do without; see `docs/design/0023-disks-that-do-not-answer.md`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Engine, PoolConfig};
use crate::disk::timeout::unanswered_for;
use crate::disk::{Disk, TimeoutDisk};
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result};
use crate::redundancy::array::DiskArray;

/// Disks with a time limit for their answers.
pub fn with_limit(env: &Arc<dyn Env>, disks: Vec<Arc<dyn Disk>>, limit: Option<Duration>) -> Vec<Arc<TimeoutDisk>> {
    disks.into_iter().map(|disk| TimeoutDisk::new(disk, env, limit)).collect()
}

/// The same disks, for those who need not know.
pub fn as_disks(disks: &[Arc<TimeoutDisk>]) -> Vec<Arc<dyn Disk>> {
    disks.iter().map(|disk| disk.clone() as Arc<dyn Disk>).collect()
}

/// Fails when somebody has a disk of the pool open that was not known to be absent: another writer, perhaps. One that was given up stays busy until the
/// kernel has ended its requests, whoever made them.
pub(super) fn refuse_busy(array: &DiskArray, config: &PoolConfig, absent: u128) -> Result<()> {
    for member in array.members().iter().filter(|m| m.handle().is_none()) {
        let known = config.known_disks.get(&member.uuid).filter(|known| known.busy);
        if let Some(known) = known.filter(|_| absent >> member.id.0 & 1 == 0 && !member.is_empty()) {
            let why = known.trouble.as_deref().unwrap_or_default();
            return Err(Error::new(ErrorKind::Busy, format!("disk {} ({}): {why}", member.id, known.path)));
        }
    }
    Ok(())
}

impl Engine {
    /// The disks the pool was given, members or not.
    pub(super) fn set_candidates(self: &Arc<Self>, disks: Vec<Arc<TimeoutDisk>>) {
        disks.iter().for_each(|disk| self.watch(disk));
        *self.candidates.write() = disks;
    }

    /// A disk that was given to the open pool, in place of what was known under its name and is no member.
    pub(crate) fn add_candidate(&self, disk: Arc<TimeoutDisk>) {
        let handles: Vec<Arc<dyn Disk>> = self.array.members().iter().filter_map(|m| m.handle()).collect();
        let mut candidates = self.candidates.write();
        candidates.retain(|d| d.name() != disk.name() || handles.iter().any(|h| d.is(h)));
        if !candidates.iter().any(|d| Arc::ptr_eq(d, &disk)) {
            candidates.push(disk);
        }
    }

    /// Judges from now on what happens when a disk does not answer.
    pub(crate) fn watch(self: &Arc<Self>, disk: &Arc<TimeoutDisk>) {
        let (engine, watched) = (Arc::downgrade(self), Arc::downgrade(disk));
        disk.watch(move |age| {
            if let (Some(engine), Some(disk)) = (engine.upgrade(), watched.upgrade()) {
                engine.overdue(&disk, age);
            }
        });
    }

    fn overdue(&self, disk: &Arc<TimeoutDisk>, age: Duration) {
        let why = unanswered_for(age);
        let members = self.array.members();
        let member_of = |disk: &TimeoutDisk| members.iter().find(|m| m.handle().is_some_and(|handle| disk.is(&handle)));
        if let Some(member) = member_of(disk) {
            // One after the other: whoever is next sees that this one is gone.
            let _alone = self.judged.lock();
            let limit = disk.limit().unwrap_or_default();
            // Where many are silent at the same time it is not the drives.
            let silent = |d: &&Arc<TimeoutDisk>| d.silent_for().is_some_and(|age| age >= limit / 2);
            let silent = self
                .candidates
                .read()
                .iter()
                .filter(silent)
                .filter_map(|d| Some(member_of(d)?.id))
                .fold(1u128.checked_shl(member.id.0.into()).unwrap_or(0), |bits, id| {
                    bits | 1u128.checked_shl(id.0.into()).unwrap_or(0)
                });
            if member.online().is_some() && !self.can_do_without(silent) {
                if member.set_unresponsive(self.env.now() + limit) {
                    tracing::error!(
                        disk = member.id.0,
                        name = disk.name(),
                        "{why}, and the pool cannot do without: requests wait"
                    );
                }
                return;
            }
            self.array.fail(member.id, &why);
        }
        disk.give_up(&why);
    }

    /// Whether everything can be read with these disks (a bit set) gone, and written in a way that survives what it should.
    fn can_do_without(&self, disks: u128) -> bool {
        let absent = self.array.absent();
        self.array.has_quorum_without(disks)
            && self.state.read().segments.iter().filter(|s| !s.extent.damaged.load(Ordering::Relaxed)).all(|s| {
                let lost = s.extent.lost_columns(absent | disks);
                lost.count_ones() as usize <= s.extent.parity || lost == s.extent.lost_columns(absent)
            })
    }
}
