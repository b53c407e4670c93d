//! Disks of a pool that is open: taken back, added, removed, given up.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{DISKS_MAX, Pool, check_large_enough, refuse_foreign};
use crate::disk::{Disk, TimeoutDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::LABEL_SIZE;
use crate::redundancy::array::{CONDEMNED, DECLARED, Member};
use crate::report::{DiskInfo, Tolerance};
use crate::segment::table::disks_min;
use crate::units::{DiskId, Uuid};
use crate::volume::recovery::{OLDER_STATE, check_size, read_label, superblocks};

impl Pool {
    /// Takes a failed or missing disk back after checking that it is the one it claims to be.
    pub async fn reinstate_disk(&self, disk: Arc<dyn Disk>) -> Result<DiskInfo> {
        let engine = &self.0.engine;
        let known = engine.candidates.read().iter().find(|d| d.is_around(&disk)).map(TimeoutDisk::renewed);
        self.reinstate(known.unwrap_or_else(|| TimeoutDisk::new(disk, &engine.env, engine.config.disk_timeout))).await
    }

    async fn reinstate(&self, timed: Arc<TimeoutDisk>) -> Result<DiskInfo> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let disk: Arc<dyn Disk> = timed.clone();
        let label = read_label(&disk).await?;
        let member = engine.array.members().into_iter().find(|m| m.uuid == label.disk && label.pool == engine.uuid);
        let Some(member) = member else {
            return Err(Error::invalid(format!("{} is not a disk of pool {}", disk.name(), engine.name)));
        };
        if member.is_condemned() {
            return Err(Error::invalid(format!(
                "{} is not taken back: {CONDEMNED}. To use it all the same remove it (`ashlar disk remove {}`) and add it again",
                disk.name(),
                member.id
            )));
        }
        if member.is_declared_failed() && member.online().is_none() {
            return Err(Error::invalid(format!(
                "{} stays out: disk {id} was {DECLARED}. To use it again call that off (`ashlar disk keep {id}`)",
                disk.name(),
                id = member.id
            )));
        }
        if member.online().is_none() {
            check_size(&disk, &label)?;
            let newest = superblocks(&disk, &label).await.iter().map(|s| s.checkpoint).max().unwrap_or(0);
            if newest < member.last_checkpoint.load(Ordering::Relaxed) {
                return Err(Error::invalid(format!("{} {OLDER_STATE}, and cannot be taken back", disk.name())));
            }
            if label.epoch > engine.epoch {
                return Err(Error::new(
                    ErrorKind::Fenced,
                    format!("{} was written to by another writer since", disk.name()),
                ));
            }
            engine.watch(&timed);
            engine.reinstate(member.id, disk).await?;
            engine.add_candidate(timed);
        }
        Ok(self.disk_info(&member, &engine.state.read().segments))
    }

    /// Looks again at all disks the pool was opened with and takes those back that failed or were missing and now answer.
    pub async fn rescan_disks(&self) -> Result<()> {
        let engine = &self.0.engine;
        let now = engine.env.now();
        for member in engine.array.online().into_iter().filter(|m| !m.is_unresponsive(now)) {
            // One that was pulled is noticed now instead of at its next write.
            let _ = engine.array.read_disk(member.id, 0, LABEL_SIZE).await;
        }
        let candidates = engine.candidates.read().clone();
        for disk in &candidates {
            if let Err(e) = self.reinstate(disk.renewed()).await {
                tracing::warn!(disk = disk.name(), error = %e, "disk stays out");
                engine.check_alive()?;
            }
        }
        Ok(())
    }

    /// Closes a disk that failed, so that it can be opened anew, perhaps elsewhere, and given to [`Self::reinstate_disk`]. Nothing when it serves.
    pub fn let_go_of_disk(&self, disk: Uuid) {
        let engine = &self.0.engine;
        let Some(member) = engine.array.members().into_iter().find(|m| m.uuid == disk) else { return };
        if let Some(handle) = member.let_go() {
            // Nobody waits for what may still be under way.
            handle.abandon("it failed");
            engine.let_go_of_candidates(|d| d.is(&handle));
        }
    }

    /// Changes how many failures in each set the pool survives.
    pub async fn set_tolerance(&self, tolerance: Tolerance) -> Result<()> {
        self.0.engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        self.0.engine.set_tolerance(tolerance).await
    }

    /// Spreads data evenly over the disks, in the background.
    pub async fn rebalance(&self) -> Result<()> {
        self.0.engine.rebalance().await
    }

    fn member(&self, id: u16) -> Result<Arc<Member>> {
        let engine = &self.0.engine;
        engine
            .array
            .member(DiskId(id))
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no disk {id} in pool {}", engine.name)))
    }

    /// Takes a new disk in, of any size that has room for some chunks. Without `force` a disk that holds anything is refused.
    /// `replaces` names the disk that will be removed for it.
    pub async fn add_disk(&self, disk: Arc<dyn Disk>, force: bool, replaces: Option<u16>) -> Result<DiskInfo> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let timed = TimeoutDisk::new(disk, &engine.env, engine.config.disk_timeout);
        let disk: Arc<dyn Disk> = timed.clone();
        let members = engine.array.members();
        if members.len() >= DISKS_MAX {
            return Err(Error::invalid(format!("pool {} has {DISKS_MAX} disks, the most there can be", engine.name)));
        }
        let label = read_label(&disk).await.ok();
        if let Some(member) = label.as_ref().and_then(|l| members.iter().find(|m| m.uuid == l.disk)) {
            let way_back = match member.is_declared_failed() {
                true => format!(", and was {DECLARED}: `ashlar disk keep {}` takes it back", member.id),
                false => String::new(),
            };
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("{} is disk {} of pool {} already{way_back}", disk.name(), member.id, engine.name),
            ));
        }
        // One that was removed, or whose adding was cut short, holds nothing of value.
        if !force && label.is_none_or(|l| l.pool != engine.uuid) {
            refuse_foreign(&disk).await?;
        }
        check_large_enough(&disk, &engine.array.geometry)?;
        let stays = |m: &&Arc<Member>| !m.is_leaving() && Some(m.id.0) != replaces;
        let total = members.iter().filter(stays).map(|m| m.size).sum::<u64>() + disk.geometry().size;
        engine.array.geometry.check_catalogue(total).map_err(|e| {
            Error::invalid(format!(
                "with {} pool {} would be too large for the catalogue it was made with: {e}. Add a smaller disk, or make a new pool",
                disk.name(),
                engine.name
            ))
        })?;
        // From the moment on in which it is a member the pool decides.
        engine.watch(&timed);
        let member = engine.add_disk(disk, replaces.map(DiskId)).await?;
        engine.add_candidate(timed);
        Ok(self.disk_info(&member, &engine.state.read().segments))
    }

    /// Lets go of a disk of this name that is not of the pool, though the pool was opened with it. Says whether one of the pool has the name.
    pub fn release_disk(&self, name: &str) -> bool {
        let members = self.0.engine.array.members();
        let is_member = |d: &TimeoutDisk| members.iter().filter_map(|m| m.handle()).any(|h| d.is(&h));
        let engine = &self.0.engine;
        engine.let_go_of_candidates(|d| d.name() == name && !is_member(d));
        engine.candidates.read().iter().any(|d| d.name() == name)
    }

    /// Begins to remove a disk: what lies on it moves to the others, then it is let go. One that is gone is removed once what it held was rebuilt.
    pub async fn remove_disk(&self, id: u16) -> Result<DiskInfo> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let member = self.member(id)?;
        if member.is_empty() && member.online().is_none() {
            let info = self.disk_info(&member, &engine.state.read().segments);
            engine.drop_disk(&member).await?;
            return Ok(info);
        }
        if !member.is_leaving() || member.is_failing() {
            let (left, least) = (engine.most_in_a_set_without(member.id), disks_min(engine.array.tolerance()));
            if left < least {
                return Err(Error::invalid(format!(
                    "pool {} needs {least} working disks for its tolerance, and without disk {id} {left} would be left: add one first",
                    engine.name
                )));
            }
            engine.remove_disk(member.id).await?;
        }
        Ok(self.disk_info(&member, &engine.state.read().segments))
    }

    /// Calls the removal of a disk off, as long as it is not gone: it takes data again. One that was declared failed is taken back if it is there, and
    /// else when it is found.
    pub async fn keep_disk(&self, id: u16) -> Result<DiskInfo> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let member = self.member(id)?;
        if member.is_declared_failed() && member.online().is_none() {
            return self.keep_declared(&member).await;
        }
        if !member.is_leaving() {
            return Err(Error::invalid(format!("disk {id} of pool {} is not being removed", engine.name)));
        }
        if member.online().is_none() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("disk {id} of pool {} does not answer: what it held is rebuilt on the others", engine.name),
            ));
        }
        if !engine.keep_disk(&member).await? {
            return Err(Error::new(ErrorKind::NotFound, format!("disk {id} was removed already")));
        }
        Ok(self.disk_info(&member, &engine.state.read().segments))
    }

    /// Takes a disk back that was declared failed.
    async fn keep_declared(&self, member: &Arc<Member>) -> Result<DiskInfo> {
        let engine = &self.0.engine;
        if !engine.take_back_declaration(member).await? {
            return Err(Error::new(ErrorKind::NotFound, format!("disk {} was removed already", member.id)));
        }
        let candidates = engine.candidates.read().clone();
        for timed in candidates.iter().map(TimeoutDisk::renewed) {
            let disk: Arc<dyn Disk> = timed.clone();
            if read_label(&disk).await.is_ok_and(|label| label.disk == member.uuid) {
                return self.reinstate(timed).await;
            }
        }
        Ok(self.disk_info(member, &engine.state.read().segments))
    }

    /// Declares a disk failed, and gives it up: what it held is rebuilt on the others at once. It stays out, also after a restart, until that is called
    /// off ([`Self::keep_disk`]). Refused when data would be lost.
    pub async fn fail_disk(&self, id: u16) -> Result<DiskInfo> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let member = self.member(id)?;
        if member.online().is_some() {
            let mixed = engine.array.is_mixed();
            let counts =
                |m: &&Arc<Member>| m.online().is_none() && m.is_counted() && (mixed || m.set() == member.set());
            let gone = engine.array.members().iter().filter(counts).count();
            let absent = engine.array.absent() | 1u128.checked_shl(id.into()).unwrap_or(0);
            let loses =
                engine.state.read().segments.iter().any(|s| {
                    s.record.live > 0 && s.extent.lost_columns(absent).count_ones() as usize > s.extent.parity
                });
            if loses || gone + 1 > engine.array.guaranteed().drives() {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "without disk {id} data of pool {} could not be read: wait until redundancy is restored (`ashlar pool status`), or \
                         remove the disk instead (`ashlar disk remove {id}`)",
                        engine.name
                    ),
                ));
            }
        }
        engine.declare_failed(member.id).await?;
        Ok(self.disk_info(&member, &engine.state.read().segments))
    }
}
