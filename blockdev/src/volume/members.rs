//! Disks that join a pool, and disks that leave it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::recovery::write_label;
use crate::disk::{AlignedBuf, Disk};
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalogue::{DISK_IDS, Service};
use crate::format::layout::{EDGE, LABEL_SIZE};
use crate::redundancy::array::Member;
use crate::redundancy::layout::{Grouped, regroup, set_limit};
use crate::report::{Alert, Tolerance};
use crate::segment::table::disks_min;
use crate::units::{DiskId, Uuid};

/// Share of the room there would be that may be in use when sets are divided: hosts must not be out of space because a disk was added.
const FULL_WHEN_DIVIDED: f64 = 0.9;

impl Engine {
    /// Takes a new disk in, in the place of another one that will be removed, if `replaces` says so. Once this completes a durable checkpoint names it, and
    /// new data goes to it, too.
    pub async fn add_disk(self: &Arc<Self>, disk: Arc<dyn Disk>, replaces: Option<DiskId>) -> Result<Arc<Member>> {
        let geometry = self.array.geometry;
        let size = disk.geometry().size;
        let id = {
            let members = self.array.members();
            let taken = |id: &u16| members.iter().any(|m| m.id.0 == *id);
            let id = (0..DISK_IDS)
                .find(|id| !taken(id))
                .map(DiskId)
                .ok_or_else(|| Error::invalid("the pool is full of disks"))?;
            let uuid =
                Uuid((u128::from(self.env.random_u64()) << 64 | u128::from(self.env.random_u64())).to_le_bytes());
            let member = Member::new(id, uuid, size, Some(disk.clone()), false);
            let failed = |e| Error::io(format!("{}: {e}", disk.name()));
            // What an earlier life left in the log region, or in the superblocks, must not be found.
            let (start, end) = (geometry.log_extent(0), geometry.log_extent(geometry.log_extents));
            let zeroes = AlignedBuf::zeroed(1 << 20).freeze();
            for at in (start..end).step_by(zeroes.len()) {
                let len = (end - at).min(zeroes.len() as u64) as usize;
                disk.write(at, vec![zeroes.slice(..len)], false).await.map_err(failed)?;
            }
            wipe(&disk, geometry.tail(size)).await?;
            disk.flush().await.map_err(failed)?;
            write_label(&self.array, &self.label, self.epoch, self.array.unreliable(), &member, &disk).await?;
            let _alone = self.regroups.lock().await;
            let joining = Some((id, geometry.chunks(size)));
            member.set_set(self.regroup(joining, replaces, self.array.tolerance()).await?);
            let mut own = self.checkpoints.lock().await;
            self.array.add(member);
            self.state.write().segments.add_disk(id, geometry.chunks(size));
            own.forced = true;
            id
        };
        self.checkpoint().await?;
        let gone = || Error::io(format!("{} failed while it was added", disk.name()));
        let member = self.array.member(id).filter(|m| m.online().is_some()).ok_or_else(gone)?;
        self.array.open_to_data(id);
        self.label_absent().await?;
        // Log entries that went to it before the labels told of it have too few copies that count.
        self.checkpoints.lock().await.forced = true;
        self.checkpoint().await?;
        tracing::info!(pool = self.name, disk = id.0, name = disk.name(), "disk added");
        Ok(member)
    }

    /// Begins to move everything away from a disk; when nothing lies on it any more it is let go. Fails, and changes nothing, when the others
    /// have no room for that.
    pub async fn remove_disk(self: &Arc<Self>, id: DiskId) -> Result<()> {
        self.empty_disk(id, Service::Leaving).await
    }

    /// As [`Self::remove_disk`], for the reason that `why` says.
    pub(super) async fn empty_disk(self: &Arc<Self>, id: DiskId, why: Service) -> Result<()> {
        let before = self.space();
        let service = self.array.member(id).map(|m| m.service()).unwrap_or_default();
        self.array.set_service(id, why);
        let space = self.space();
        if space.used > space.usable {
            self.array.set_service(id, service);
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "without disk {id} pool {} has room for {} MiB, and {} MiB are in use ({} MiB of room now): delete volumes, discard data \
                     or add a drive first",
                    self.name,
                    space.usable >> 20,
                    space.used >> 20,
                    before.usable >> 20
                ),
            ));
        }
        self.checkpoints.lock().await.forced = true;
        self.checkpoint().await
    }

    /// Calls the removal of a disk off: it takes data again, and what was moved away from it stays where it is. Says whether it was still
    /// there to be kept.
    pub async fn keep_disk(self: &Arc<Self>, member: &Member) -> Result<bool> {
        {
            // A disk is let go under the same lock.
            let mut own = self.checkpoints.lock().await;
            let here = self.array.member(member.id).is_some_and(|m| m.uuid == member.uuid);
            if !here || !member.is_leaving() || member.online().is_none() {
                return Ok(false);
            }
            member.forgive();
            self.array.take_back_declaration(member.id);
            self.array.set_service(member.id, Service::Serving);
            own.forced = true;
        }
        self.checkpoint().await?;
        tracing::info!(pool = self.name, disk = member.id.0, "the removal of a disk was called off");
        Ok(true)
    }

    /// Declares a disk failed: it stays out, also after a restart, and what it held is rebuilt on the others. Once this completes a durable checkpoint
    /// says so.
    pub async fn declare_failed(self: &Arc<Self>, id: DiskId) -> Result<()> {
        // Before a checkpoint that may be waiting for this very disk.
        self.array.declare_failed(id);
        self.checkpoints.lock().await.forced = true;
        self.checkpoint().await?;
        self.label_absent().await?;
        tracing::info!(pool = self.name, disk = id.0, "declared failed by an administrator");
        Ok(())
    }

    /// Takes back that a disk which does not serve was declared failed. Says whether it was still a member.
    pub async fn take_back_declaration(self: &Arc<Self>, member: &Member) -> Result<bool> {
        {
            // A disk is let go under the same lock.
            let mut own = self.checkpoints.lock().await;
            if self.array.member(member.id).is_none_or(|m| m.uuid != member.uuid) {
                return Ok(false);
            }
            self.array.take_back_declaration(member.id);
            own.forced = true;
        }
        self.checkpoint().await?;
        Ok(true)
    }

    /// Lets a disk go on which nothing lies, unless it is to be kept after all.
    pub(crate) async fn drop_disk(self: &Arc<Self>, member: &Member) -> Result<()> {
        {
            let mut own = self.checkpoints.lock().await;
            let unneeded = member.online().is_none() && member.is_empty();
            if !member.is_leaving() && !unneeded {
                return Ok(());
            }
            let mut state = self.state.write();
            if state.segments.is_used(member.id) || self.log.uses(member.id) {
                return Ok(());
            }
            self.array.remove(member.id);
            state.segments.remove_disk(member.id);
            own.forced = true;
        }
        self.checkpoint().await?;
        self.label_absent().await?;
        {
            let _alone = self.regroups.lock().await;
            // Another time, if failures would count together now that need not.
            if let Err(e) = self.regroup(None, None, self.array.tolerance()).await {
                self.check_alive()?;
                tracing::warn!(pool = self.name, error = %e, "resiliency sets stay as they are");
            }
        }
        if let Some(disk) = member.handle() {
            self.let_go_of_candidates(|d| d.is(&disk));
        }
        if let Some(disk) = member.online() {
            // A label that stays behind does no harm: no catalogue names it.
            if let Err(e) = wipe(&disk, self.array.geometry.tail(member.size)).await {
                tracing::warn!(disk = member.id.0, error = %e, "the label of a removed disk could not be wiped");
            }
        }
        tracing::info!(pool = self.name, disk = member.id.0, "disk removed");
        Ok(())
    }
}

impl Engine {
    /// Working disks of the largest set, without one.
    pub(crate) fn most_in_a_set_without(&self, id: DiskId) -> usize {
        let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
        for m in self.array.members().iter().filter(|m| m.id != id && m.online().is_some() && !m.is_leaving()) {
            *counts.entry(m.set()).or_default() += 1;
        }
        counts.into_values().max().unwrap_or(0)
    }

    /// The sets of disks if a pool of this tolerance were divided anew, with one that is about to join (and its chunks), and without one that it
    /// replaces. Sets are not divided when what is stored would then not have room.
    fn grouped(&self, joining: Option<(DiskId, u32)>, replaces: Option<DiskId>, tolerance: Tolerance) -> Division {
        let mut drives: Vec<Grouped> = {
            let state = self.state.read();
            let members = self.array.members();
            let stays = |m: &&Arc<Member>| !m.is_leaving() && !m.is_given_up() && Some(m.id) != replaces;
            let of = |m: &Arc<Member>| Grouped { id: m.id, set: Some(m.set()), used: state.segments.allocated(m.id) };
            members.iter().filter(stays).map(of).collect()
        };
        drives.extend(joining.map(|(id, _)| Grouped { id, set: None, used: 0 }));
        let divide = |divide| -> BTreeMap<DiskId, u16> { regroup(&drives, tolerance, divide).into_iter().collect() };
        let usable = |sets: &BTreeMap<DiskId, u16>| {
            let capacity = self.state.read().segments.capacity_with(tolerance, sets, joining);
            capacity.map_or(0, |(segments, width)| self.usable_of(segments, width))
        };
        let (divided, whole) = (divide(true), divide(false));
        let (used, room) = (self.space().used, usable(&divided));
        if divided == whole || used as f64 <= room as f64 * FULL_WHEN_DIVIDED {
            return Division { sets: divided, usable: room, divided: room };
        }
        Division { usable: usable(&whole), sets: whole, divided: room }
    }

    /// What a person should know about sets that are larger than they should be.
    pub fn set_alerts(&self) -> Vec<Alert> {
        let limit = set_limit(self.array.tolerance());
        let mut sizes: BTreeMap<u16, usize> = BTreeMap::new();
        for m in self.array.members().iter().filter(|m| !m.is_leaving() && !m.is_given_up()) {
            *sizes.entry(m.set()).or_default() += 1;
        }
        sizes.retain(|_, drives| *drives > limit);
        if sizes.is_empty() {
            return Vec::new();
        }
        let Division { divided, .. } = self.grouped(None, None, self.array.tolerance());
        let mib = |bytes: u64| bytes >> 20;
        let alert = |(set, drives): (u16, usize)| Alert {
            severity: "warning".into(),
            code: "pool.set.large".into(),
            object: "pool".into(),
            message: format!(
                "resiliency set {set} has {drives} drives, more than {limit}, and is not divided: the pool would have room for {} MiB then, and {} \
                 MiB are in use. Until it is, the failures in all of these drives count together. Add drives, delete volumes or discard data, \
                 then call `ashlar pool rebalance`",
                mib(divided),
                mib(self.space().used)
            ),
        };
        sizes.into_iter().map(alert).collect()
    }

    /// Divides sets that are too large, if there is room by now.
    pub(super) async fn divide_sets(self: &Arc<Self>) {
        let _alone = self.regroups.lock().await;
        if let Err(e) = self.regroup(None, None, self.array.tolerance()).await {
            tracing::warn!(pool = self.name, error = %e, "resiliency sets stay as they are");
        }
    }

    /// Puts disks into sets anew, with one that is about to join, or after one has left; gives the set of the new one. The caller holds
    /// [`Engine::regroups`].
    async fn regroup(
        self: &Arc<Self>,
        joining: Option<(DiskId, u32)>,
        replaces: Option<DiskId>,
        tolerance: Tolerance,
    ) -> Result<u16> {
        let before = self.array.sets();
        let after = self.grouped(joining, replaces, tolerance).sets;
        let own = joining.and_then(|(id, _)| after.get(&id)).copied().unwrap_or_default();
        if after.iter().any(|(id, set)| before.get(id).is_some_and(|old| old != set)) {
            let _transition = self.begin_transition().await?;
            // Those that do not count go where most of their set went, or they would lie alone.
            let mut sets: Vec<(DiskId, u16)> = after.iter().map(|(id, set)| (*id, *set)).collect();
            for (id, old) in before.iter().filter(|(id, _)| !after.contains_key(id)) {
                let heirs = after.iter().filter(|(other, _)| before.get(other) == Some(old));
                sets.push((*id, heirs.map(|(_, set)| *set).min().unwrap_or(*old)));
            }
            self.array.set_sets(&sets);
        }
        Ok(own)
    }

    /// Until the end of what it returns the pool counts failures in all sets together, and a durable checkpoint says so. What is being filled is
    /// closed by the next one.
    async fn begin_transition(self: &Arc<Self>) -> Result<Transition> {
        let transition = {
            // Not while a checkpoint decides about it, and not when it could not be served then.
            let mut own = self.checkpoints.lock().await;
            self.array.check_quorum_with(self.array.guaranteed(), true).map_err(busy)?;
            own.forced = true;
            self.array.set_mixed(true);
            Transition::of(self)
        };
        self.checkpoint().await?;
        let mut own = self.checkpoints.lock().await;
        (own.forced, own.close_segments) = (true, true);
        Ok(transition)
    }

    /// Changes how many failures new data survives. What is there follows in the background when it survives fewer. Fails, and changes nothing,
    /// when there are too few disks or too little room.
    pub async fn set_tolerance(self: &Arc<Self>, wanted: Tolerance) -> Result<()> {
        let before = self.array.tolerance();
        if wanted == before {
            return Ok(());
        }
        let disks = self.array.members().iter().filter(|m| m.takes_data()).count();
        if disks < disks_min(wanted) {
            return Err(Error::invalid(format!(
                "a tolerance of {} needs at least {} working disks, pool {} has {disks}: add some first",
                wanted.drives(),
                disks_min(wanted),
                self.name
            )));
        }
        let _alone = self.regroups.lock().await;
        let (usable, used) = (self.grouped(None, None, wanted).usable, self.space().used);
        if used > usable {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "with a tolerance of {} pool {} has room for about {} MiB, and {} MiB are in use: delete volumes, discard data or add a drive first",
                    wanted.drives(),
                    self.name,
                    usable >> 20,
                    used >> 20
                ),
            ));
        }
        let transition = {
            let mut own = self.checkpoints.lock().await;
            if wanted.drives() < self.array.guaranteed().drives() {
                self.array.check_quorum_with(wanted, self.array.is_mixed()).map_err(busy)?;
                own.forced = true;
                self.array.set_guaranteed(wanted);
                Some(Transition::of(self))
            } else {
                self.array.set_tolerance(wanted);
                None
            }
        };
        if transition.is_some() {
            // The guarantee is lower for good before anything is written that has less.
            self.checkpoint().await?;
            let _own = self.checkpoints.lock().await;
            self.array.set_tolerance(wanted);
        }
        drop(transition);
        // The largest size of a set is another one.
        if let Err(e) = self.regroup(None, None, wanted).await {
            self.check_alive()?;
            tracing::warn!(pool = self.name, error = %e, "resiliency sets stay as they are");
        }
        {
            let mut own = self.checkpoints.lock().await;
            (own.forced, own.close_segments) = (true, true);
        }
        self.checkpoint().await?;
        *self.labelled_changes.lock().await = u64::MAX;
        self.label_absent().await?;
        tracing::info!(pool = self.name, from = before.drives(), to = wanted.drives(), "tolerance of new data changed");
        self.array.changed.notify_one();
        Ok(())
    }
}

/// How disks are put into sets.
struct Division {
    sets: BTreeMap<DiskId, u16>,
    /// Bytes that data and metadata may take then.
    usable: u64,
    /// The same if sets that are too large were divided.
    divided: u64,
}

/// What would be refused service is not begun.
fn busy(e: Error) -> Error {
    Error::new(ErrorKind::Busy, format!("not while drives are gone: {e}"))
}

/// Sets or tolerance change, for as long as it lives.
struct Transition(Arc<Engine>);

impl Transition {
    fn of(engine: &Arc<Engine>) -> Self {
        engine.in_transition.fetch_add(1, Ordering::AcqRel);
        Self(engine.clone())
    }
}

impl Drop for Transition {
    fn drop(&mut self) {
        self.0.in_transition.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Clears labels and superblocks.
async fn wipe(disk: &Arc<dyn Disk>, tail: u64) -> Result<()> {
    let zeroes = AlignedBuf::zeroed(5 * LABEL_SIZE).freeze();
    debug_assert!(zeroes.len() as u64 <= EDGE);
    for at in [tail, 0] {
        disk.write(at, vec![zeroes.clone()], true).await.map_err(|e| Error::io(format!("{}: {e}", disk.name())))?;
    }
    Ok(())
}
