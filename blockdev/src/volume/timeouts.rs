//! Disks that do not answer: which of them the pool can do without; see `docs/design/0023-disks-that-do-not-answer.md`.

use std::sync::Arc;
use std::time::Duration;

use super::{Engine, PoolConfig};
use crate::disk::timeout::unanswered_for;
use crate::disk::{Disk, TimeoutDisk};
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::LABEL_SIZE;
use crate::redundancy::array::DiskArray;
use crate::units::DiskId;

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
        let name = disk.name();
        let is_old = |d: &TimeoutDisk| d.name() == name && !handles.iter().any(|h| d.is(h)) && !std::ptr::eq(d, &*disk);
        let gone = self.take_candidates(is_old);
        // It may be the same disk below that is used now.
        gone.iter().filter(|d| !d.is_around_the_same_as(&disk)).for_each(|d| d.abandon("another one took its place"));
        drop(gone);
        let mut candidates = self.candidates.write();
        if !candidates.iter().any(|d| Arc::ptr_eq(d, &disk)) {
            candidates.push(disk);
        }
    }

    /// Lets go of disks, without waiting for what they may still be asked.
    pub(crate) fn let_go_of_candidates(&self, which: impl Fn(&TimeoutDisk) -> bool) {
        self.take_candidates(which).iter().for_each(|d| d.abandon("it is not used any more"));
    }

    /// Closing a disk may take time: not under the lock.
    fn take_candidates(&self, which: impl Fn(&TimeoutDisk) -> bool) -> Vec<Arc<TimeoutDisk>> {
        let mut candidates = self.candidates.write();
        let (gone, stay) = std::mem::take(&mut *candidates).into_iter().partition(|d| which(d));
        *candidates = stay;
        gone
    }

    /// Judges from now on what happens when a disk does not answer.
    pub(crate) fn watch(self: &Arc<Self>, disk: &Arc<TimeoutDisk>) {
        let (engine, watched) = (Arc::downgrade(self), Arc::downgrade(disk));
        disk.watch(move |since| {
            if let (Some(engine), Some(disk)) = (engine.upgrade(), watched.upgrade()) {
                engine.overdue(&disk, since);
            }
        });
    }

    /// A disk has left a request unanswered that was made at a time.
    fn overdue(&self, disk: &Arc<TimeoutDisk>, since: Duration) {
        // One after the other: whoever is next sees what was decided.
        let mut common_silence = self.judged.lock();
        let now = self.env.now();
        let why = unanswered_for(now.saturating_sub(since));
        let members = self.array.members();
        let member_of = |disk: &TimeoutDisk| members.iter().find(|m| m.handle().is_some_and(|handle| disk.is(&handle)));
        if let Some(member) = member_of(disk).filter(|m| m.online().is_some()) {
            // Where others are silent as well it is not the drives. Those that nobody has asked for anything are asked first.
            let others: Vec<Arc<TimeoutDisk>> = {
                let candidates = self.candidates.read();
                let silent = |d: &&Arc<TimeoutDisk>| {
                    let is_member = member_of(d).is_some_and(|m| m.id != member.id && m.online().is_some());
                    is_member && !d.has_answered_since(since)
                };
                candidates.iter().filter(silent).cloned().collect()
            };
            if !others.is_empty() && disk.is_first_question(since) {
                for other in others {
                    let probe = other.read(0, LABEL_SIZE);
                    self.env.spawn(Box::pin(async move { drop(probe.await) }));
                }
                return;
            }
            let bit = |id: DiskId| 1u128.checked_shl(id.0.into()).unwrap_or(0);
            let silent = others.iter().filter_map(|d| member_of(d)).fold(bit(member.id), |bits, m| bits | bit(m.id));
            let limit = disk.limit().unwrap_or_default();
            if !self.can_do_without(silent) {
                if !others.is_empty() {
                    *common_silence = Some(now);
                }
                if member.set_unresponsive(now + limit) {
                    tracing::error!(
                        disk = member.id.0,
                        name = disk.name(),
                        "{why}, and the pool cannot do without: requests wait"
                    );
                }
                return;
            }
            if common_silence.is_some_and(|then| now.saturating_sub(then) < limit / 2) {
                // The others have just begun to answer again: this one may be about to.
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
            && self.state.read().segments.iter().all(|s| {
                let lost = |absent| s.extent.lost_columns(absent).count_ones() as usize;
                let nothing_to_lose = s.record.sealed && s.record.live == 0 || lost(absent) > s.extent.parity;
                nothing_to_lose || lost(absent | disks) <= s.extent.parity
            })
    }
}
