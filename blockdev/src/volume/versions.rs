//! Volumes and snapshots as a tree of versions: what is whose, how versions come into being and go. See `docs/design/0015-snapshots.md`.

use super::state::{Blocked, State, bad, expiry};
use crate::format::page::MAP_FANOUT;
use crate::format::volume::VolumeRecord;
use crate::map::Need;
use crate::map::tree::{Floor, page_index};
use crate::map::versions::{Event, Leaving};
use crate::planted::{self, Bug};
use crate::units::{Lba, VirtualBlock, VolumeId};

type Applied = std::result::Result<(), Blocked>;

impl State {
    /// The volume, or snapshot (`VOLUME@SNAPSHOT`), of a name, unless it is being deleted.
    pub fn volume_named(&self, name: &str) -> Option<&VolumeRecord> {
        let (volume, snapshot) = match name.split_once('@') {
            Some((volume, snapshot)) => (volume, Some(snapshot)),
            None => (name, None),
        };
        let found = |of: VolumeId, name: &str| self.names.get(&(of, name.to_owned())).copied();
        let mut id = found(VolumeId(0), volume)?;
        if let Some(name) = snapshot {
            id = found(id, name)?;
        }
        self.live(id)
    }

    /// A version that is not being deleted: the map of one that is leads nowhere.
    pub fn live(&self, version: VolumeId) -> Option<&VolumeRecord> {
        self.volumes.get(&version).filter(|v| !v.deleting)
    }

    /// The snapshots of a volume that are not being deleted, by name.
    pub fn snapshots_of(&self, volume: VolumeId) -> impl Iterator<Item = &VolumeRecord> {
        let below = self.names.range((volume, String::new())..).take_while(move |((of, _), _)| *of == volume);
        below.filter_map(|(_, id)| self.live(*id))
    }

    /// What a version is called: snapshots with their volume in front.
    pub fn name_of(&self, version: &VolumeRecord) -> String {
        if !version.is_snapshot() {
            return version.name.clone();
        }
        let volume = self.volumes.get(&version.snapshot_of).map_or("", |v| &v.name);
        format!("{volume}@{}", version.name)
    }

    /// Which references of a version are its own.
    pub fn floor(&self, version: &VolumeRecord) -> Floor {
        let Some(parent) = self.volumes.get(&version.parent) else { return Floor::default() };
        if planted::active(Bug::CursorIgnored) {
            return Floor { parent: parent.generation, ..Floor::default() };
        }
        let grandparent = match parent.handed {
            0 => 0,
            _ => self.volumes.get(&parent.parent).map_or(0, |g| g.generation),
        };
        Floor { parent: parent.generation, handed: parent.handed, grandparent }
    }

    /// The newest generation that snapshots hold which a version goes on from, and which are not being deleted.
    pub(super) fn listed_from(&self, version: &VolumeRecord) -> u32 {
        let mut at = self.volumes.get(&version.parent);
        while let Some(parent) = at.filter(|p| p.deleting) {
            at = self.volumes.get(&parent.parent);
        }
        at.map_or(0, |parent| parent.generation)
    }

    pub(super) fn floor_of(&self, version: VolumeId) -> Floor {
        let known = self.volumes.get(&version).filter(|_| !planted::active(Bug::SnapshotNotKept));
        known.map_or(Floor::default(), |v| self.floor(v))
    }

    /// The versions that go on from one.
    pub fn children(&self, version: VolumeId) -> impl Iterator<Item = &VolumeRecord> {
        let range = (version, VolumeId(0))..=(version, VolumeId(u32::MAX));
        self.children.range(range).filter_map(|(_, child)| self.volumes.get(child))
    }

    pub(super) fn add_version(&mut self, version: VolumeRecord) {
        self.next_volume = self.next_volume.max(version.id.0 + 1);
        self.children.insert((version.parent, version.id));
        if !version.deleting {
            self.names.insert((version.snapshot_of, version.name.clone()), version.id);
            self.expiring.extend(expiry(&version));
        }
        let id = version.id;
        self.volumes.insert(id, version);
        self.note_reservation(id);
    }

    fn note_reservation(&mut self, id: VolumeId) {
        if self.live(id).is_some_and(|v| v.reserved > 0) {
            self.reserving.insert(id);
        } else {
            self.reserving.remove(&id);
        }
    }

    /// A version maps so many blocks anew, and lets go of so many that were its own.
    pub(super) fn count_owned(&mut self, version: VolumeId, mapped: u64, replaced: u64) {
        let Some(v) = self.volumes.get_mut(&version) else { return };
        let (owned, parent) = (v.owned + mapped, v.parent);
        v.owned = owned.saturating_sub(replaced);
        // What was handed over to it by a parent that goes counts there until that has gone.
        if replaced > owned
            && let Some(parent) = self.volumes.get_mut(&parent)
        {
            parent.owned = parent.owned.saturating_sub(replaced - owned);
        }
    }

    /// A version has this name and is kept like this from now on, or is being deleted.
    pub(super) fn describe_version(&mut self, new: &VolumeRecord) {
        let Some(old) = self.volumes.get_mut(&new.id) else { return };
        if let Some(expiry) = expiry(old) {
            self.expiring.remove(&expiry);
        }
        old.protection = new.protection;
        let key = (old.snapshot_of, std::mem::replace(&mut old.name, new.name.clone()));
        old.deleting = new.deleting;
        let (of, id) = (old.snapshot_of, old.id);
        // A version that is being deleted may have had the name of one that was made since.
        if self.names.get(&key) == Some(&id) {
            self.names.remove(&key);
        }
        if !new.deleting {
            self.names.insert((of, new.name.clone()), id);
            self.expiring.extend(expiry(new));
        }
        self.note_reservation(id);
    }

    fn set_parent(&mut self, version: VolumeId, parent: VolumeId) {
        if let Some(v) = self.volumes.get_mut(&version) {
            self.children.remove(&(v.parent, version));
            v.parent = parent;
            self.children.insert((parent, version));
        }
    }

    /// Applies a snapshot.
    pub(super) fn take_snapshot(&mut self, snapshot: &VolumeRecord) -> Applied {
        let of = snapshot.snapshot_of;
        let volume = self.volumes.get_mut(&of).ok_or_else(|| bad(format!("no volume {of}")))?;
        let next = volume.generation.checked_add(1);
        let next = next.ok_or_else(|| bad(format!("volume {}: no further generation", volume.name)))?;
        let snapshot = VolumeRecord {
            id: snapshot.id,
            name: snapshot.name.clone(),
            deleting: snapshot.deleting,
            created_s: snapshot.created_s,
            attachment: String::new(),
            snapshot_of: of,
            handed: 0,
            reserved: 0,
            protection: snapshot.protection,
            ..volume.clone()
        };
        (volume.generation, volume.owned) = (next, 0);
        let id = snapshot.id;
        self.add_version(snapshot);
        self.set_parent(of, id);
        Ok(())
    }

    /// Applies a clone: a new volume, or one whose content a snapshot keeps.
    pub(super) fn clone_snapshot(&mut self, clone: &VolumeRecord) -> Applied {
        let from = self.volumes.get(&clone.parent).filter(|s| s.is_snapshot());
        let from = from.ok_or_else(|| bad(format!("no snapshot {}", clone.parent)))?.clone();
        let next = from.generation.checked_add(1);
        let generation = next.ok_or_else(|| bad(format!("volume {}: no further generation", clone.name)))?;
        let description = match self.volumes.get(&clone.id) {
            Some(old) => {
                self.children.remove(&(old.parent, old.id));
                old.clone()
            }
            None => clone.clone(),
        };
        let version = VolumeRecord {
            blocks: from.blocks,
            root: from.root,
            levels: from.levels,
            mapped: from.mapped,
            owned: 0,
            family: from.family,
            root_birth: from.root_birth,
            generation,
            snapshot_of: VolumeId(0),
            parent: from.id,
            handed: 0,
            ..description
        };
        self.add_version(version);
        Ok(())
    }

    /// Applies the end of a version.
    pub(super) fn drop_version(&mut self, id: VolumeId) -> Applied {
        let Some(parent) = self.volumes.get(&id).map(|v| v.parent) else { return Ok(()) };
        let children: Vec<VolumeId> = self.children(id).map(|c| c.id).collect();
        if children.len() > 1 {
            return Err(bad(format!("volume {id} goes, but {} versions go on from it", children.len())));
        }
        let owned = self.volumes.get(&id).map_or(0, |v| v.owned);
        for child in children {
            self.set_parent(child, parent);
            // What is left of it is the child's.
            if let Some(child) = self.volumes.get_mut(&child) {
                child.owned = (child.owned + owned).min(child.mapped);
            }
        }
        self.children.remove(&(parent, id));
        self.reserving.remove(&id);
        if let Some(gone) = self.volumes.remove(&id) {
            if let Some(expiry) = expiry(&gone) {
                self.expiring.remove(&expiry);
            }
            let key = (gone.snapshot_of, gone.name);
            if self.names.get(&key) == Some(&id) {
                self.names.remove(&key);
            }
        }
        Ok(())
    }

    /// Applies what a version that is being deleted lets go of.
    pub(super) fn hand_over(&mut self, id: VolumeId, to: Lba, blocks: &[VirtualBlock]) -> Applied {
        let version = self.volumes.get_mut(&id).ok_or_else(|| bad(format!("no volume {id}")))?;
        version.handed = version.handed.max(to.0);
        let is_data = |b: &&VirtualBlock| {
            self.table.entry(**b).is_ok_and(|e| e.refcount > 0 && e.kind == crate::format::page::BlockKind::Data)
        };
        let data = blocks.iter().filter(is_data).count() as u64;
        version.owned = version.owned.saturating_sub(data);
        for block in blocks {
            self.release(*block)?;
            self.maps.pages.remove(block.0);
        }
        Ok(())
    }

    pub(super) fn prepare_clear(&mut self, id: VolumeId, lba: Lba, slots: &[u16]) -> Applied {
        let version = self.volumes.get(&id).ok_or_else(|| bad(format!("no volume {id}")))?;
        let mut path = Vec::new();
        self.maps.path(version, lba, &mut path)?;
        let first = page_index(lba.0, 0) * MAP_FANOUT as u64;
        let mut blocks = Vec::with_capacity(slots.len());
        for slot in slots {
            blocks.push(self.maps.lookup(version, Lba(first + u64::from(*slot)))?);
        }
        let mut last = u64::MAX;
        if let Some(leaf) = path.last() {
            self.table.ensure_another(*leaf, &mut last)?;
        }
        for block in blocks.iter().filter(|b| !b.is_none()) {
            self.table.ensure_released(*block, &mut last)?;
        }
        Ok(())
    }

    /// Applies that entries of a leaf go.
    pub(super) fn clear(&mut self, id: VolumeId, lba: Lba, slots: &[u16]) -> Applied {
        let version = self.volumes.get_mut(&id).ok_or_else(|| bad(format!("no volume {id}")))?;
        let mut path = Vec::new();
        self.maps.path(version, lba, &mut path)?;
        let Some(leaf) = path.last().copied().filter(|_| path.len() == usize::from(version.levels)) else {
            return Ok(());
        };
        let page = self.maps.pages.get_mut(leaf.0).ok_or(crate::map::Miss::Map(leaf))?;
        let cleared = slots.iter().map(|slot| page.set(usize::from(*slot), VirtualBlock::NONE, 0));
        let cleared: Vec<VirtualBlock> = cleared.filter(|old| !old.is_none()).collect();
        version.mapped = version.mapped.saturating_sub(cleared.len() as u64);
        version.owned = version.owned.saturating_sub(cleared.len() as u64);
        self.table.touch(leaf)?;
        for block in cleared {
            self.release(block)?;
        }
        Ok(())
    }

    /// What is next of a version that is being deleted, behind `from`.
    pub(super) fn next_event(
        &self,
        id: VolumeId,
        from: u64,
        unreadable: &dyn Fn(VirtualBlock) -> bool,
    ) -> Need<Option<Event>> {
        let Some(version) = self.volumes.get(&id) else { return Ok(None) };
        let children = self.children(id).filter(|_| !planted::active(Bug::ReaperBlind)).collect();
        self.maps.next_event(&Leaving { version, floor: self.floor(version), children, unreadable }, from)
    }
}
