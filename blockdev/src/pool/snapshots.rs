//! Snapshots, thin clones, restoring and refreshing: names and rules. What is whose is in `volume::versions`.

use std::collections::BTreeSet;

use super::{Pool, check_name};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::record::{Op, VolumeRecord};
use crate::frontend::Extent;
use crate::report::{ChangedRange, Changes, SnapshotInfo, VolumeInfo};
use crate::units::{BLOCK_BYTES, VolumeId};

/// Versions that one record changes at most.
pub(super) const AT_ONCE: usize = 256;

impl Pool {
    /// Takes a snapshot of each of several volumes, given as `VOLUME@SNAPSHOT`, all of the same instant: after every write that was answered
    /// before, and in the order of all writes.
    pub async fn create_snapshots(&self, names: &[String]) -> Result<Vec<SnapshotInfo>> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        if names.is_empty() || names.len() > AT_ONCE {
            return Err(Error::invalid(format!("1 to {AT_ONCE} snapshots are taken at once, not {}", names.len())));
        }
        self.check_room().await?;
        let mut records = Vec::with_capacity(names.len());
        for (i, name) in names.iter().enumerate() {
            let (volume, snapshot) = split(name)?;
            if names[..i].contains(name) {
                return Err(Error::invalid(format!("snapshot '{name}' is named twice")));
            }
            let id = VolumeId(engine.state.read().next_volume + i as u32);
            let record = self.new_snapshot(id, volume, snapshot)?;
            engine.check_volume(record.snapshot_of)?;
            records.push(record);
        }
        for record in &records {
            self.check_catalogue(record)?;
        }
        let ops = records.into_iter().map(Op::Snapshot).collect();
        engine.commit_ops(ops).await.context(format!("taking snapshot {}", names.join(", ")))?;
        names.iter().map(|name| Ok(self.describe(&self.record(name)?))).collect()
    }

    /// The record of a snapshot to be taken.
    fn new_snapshot(&self, id: VolumeId, volume: &str, snapshot: &str) -> Result<VolumeRecord> {
        check_name("snapshot", snapshot)?;
        let of = self.record(volume)?;
        if self.0.engine.state.read().volume_named(&format!("{volume}@{snapshot}")).is_some() {
            let message = format!("snapshot '{volume}@{snapshot}' exists already");
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        Ok(self.description(id, snapshot, of.id))
    }

    /// Fails when the pool is full: even what hosts discard takes some room after a snapshot, since the map is copied where it changes.
    async fn check_room(&self) -> Result<()> {
        let engine = &self.0.engine;
        engine.check_space().await?;
        let space = engine.space();
        if space.available() >= space.segment {
            return Ok(());
        }
        let message = format!("pool {} is full: delete snapshots or volumes, discard data or add drives", engine.name);
        Err(Error::new(ErrorKind::NoSpace, message))
    }

    /// A record of which identity, name and times count.
    fn description(&self, id: VolumeId, name: &str, snapshot_of: VolumeId) -> VolumeRecord {
        let created_s = self.0.engine.env.wall_clock_s();
        VolumeRecord { created_s, snapshot_of, ..VolumeRecord::empty(id, name, 0, 1) }
    }

    /// Makes a volume that begins with what a snapshot (`VOLUME@SNAPSHOT`) holds, and takes no space until it is written to.
    pub async fn clone_snapshot(&self, snapshot: &str, name: &str) -> Result<VolumeInfo> {
        check_name("volume", name)?;
        split(snapshot)?;
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let from = self.record(snapshot)?;
        let id = {
            let state = engine.state.read();
            if state.volume_named(name).is_some() {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("volume '{name}' exists already")));
            }
            VolumeId(state.next_volume)
        };
        self.check_room().await?;
        let record = VolumeRecord { parent: from.id, ..self.description(id, name, VolumeId(0)) };
        self.check_catalogue(&record)?;
        engine.commit_ops(vec![Op::Clone(record)]).await.context(format!("cloning '{snapshot}'"))?;
        self.volume_info(name).await
    }

    /// Gives a volume the content, and the size, that a snapshot holds: one of its own, or of a volume that it has an ancestor in common with. What
    /// it was before is kept as a snapshot of the name `keep`, or given back.
    pub async fn restore_volume(&self, volume: &str, snapshot: &str, keep: Option<&str>) -> Result<VolumeInfo> {
        split(snapshot)?;
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let (record, from) = (self.volume_record(volume)?, self.record(snapshot)?);
        self.restore_from(record, &from, Vec::new(), [volume, snapshot], keep).await
    }

    /// Gives a volume the content that another one, which it has an ancestor in common with, holds now: a clone that of its parent, or the other way round.
    pub async fn refresh_volume(&self, volume: &str, from: &str, keep: Option<&str>) -> Result<VolumeInfo> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let (record, other) = (self.volume_record(volume)?, self.record(from)?);
        if other.is_snapshot() {
            return self.restore_from(record, &other, Vec::new(), [volume, from], keep).await;
        }
        if other.id == record.id {
            return Err(Error::invalid(format!("volume '{volume}' cannot be refreshed from itself")));
        }
        engine.check_volume(other.id)?;
        // Nobody asked for the snapshot in between: it goes when only one of the two goes on from it.
        let id = VolumeId(engine.state.read().next_volume);
        let between = VolumeRecord { deleting: true, ..self.description(id, "", other.id) };
        let taken = VolumeRecord { id, ..other };
        self.restore_from(record, &taken, vec![Op::Snapshot(between)], [volume, from], keep).await
    }

    /// Makes a volume go on from a snapshot, after `ops`.
    async fn restore_from(
        &self,
        record: VolumeRecord,
        from: &VolumeRecord,
        mut ops: Vec<Op>,
        [volume, other]: [&str; 2],
        keep: Option<&str>,
    ) -> Result<VolumeInfo> {
        let engine = &self.0.engine;
        related(&record, from, volume, other)?;
        if !record.attachment.is_empty() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "volume '{volume}' is attached via {}: unmount it on its hosts and detach it first",
                    record.attachment
                ),
            ));
        }
        let id = VolumeId(engine.state.read().next_volume + ops.len() as u32);
        let before = match keep {
            Some(name) => {
                self.check_room().await?;
                let before = self.new_snapshot(id, volume, name)?;
                self.check_catalogue(&before)?;
                before
            }
            None => VolumeRecord { deleting: true, ..self.description(id, "", record.id) },
        };
        let handle = self.handle(record.id, volume)?;
        let _quiet = handle.exclude_writes().await;
        let restored = record.id;
        let to = VolumeRecord { parent: from.id, ..record };
        ops.extend([Op::Snapshot(before), Op::Clone(to)]);
        engine.commit_ops(ops).await.context(format!("restoring '{volume}'"))?;
        handle.set_blocks(from.blocks);
        // What could not be read of its map is not its any more.
        engine.broken.lock().remove(&restored);
        engine.reap();
        self.volume_info(volume).await
    }

    /// Deletes a snapshot. Its space comes back in the background.
    pub async fn delete_snapshot(&self, name: &str) -> Result<()> {
        split(name)?;
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let record = self.record(name)?;
        detached(&record, name)?;
        let id = record.id;
        engine.commit_ops(vec![Op::PutVolume(VolumeRecord { deleting: true, ..record })]).await?;
        if let Some(handle) = self.0.volumes.lock().remove(&id) {
            handle.retire();
        }
        engine.reap();
        Ok(())
    }

    /// What differs between a volume or snapshot and another one, which has an ancestor in common with it: at most `max` ranges from `offset` on.
    pub async fn changes(&self, name: &str, since: &str, offset: u64, max: usize) -> Result<Changes> {
        let (to, from) = (self.record(name)?, self.record(since)?);
        related(&to, &from, name, since)?;
        let size = to.blocks * BLOCK_BYTES;
        let end = size.max(from.blocks * BLOCK_BYTES);
        let (ranges, next) = self.0.engine.changes([from.id, to.id], (offset, end), max).await?;
        Ok(Changes { size, ranges, next })
    }

    /// As extents of `len` bytes from `offset` on, at most `max`, alternating: whether each differs. `since` also has the identity that the
    /// snapshot must have: another one of its name would leave changes out.
    pub async fn changed_extents(
        &self,
        name: &str,
        (since, id): (&str, u32),
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<Extent>> {
        let (to, from) = (self.record(name)?, self.record(since)?);
        if from.id.0 != id {
            let message =
                format!("snapshot '{since}' is not the one that was asked about, but a later one: connect again");
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        related(&to, &from, name, since)?;
        let end = offset.saturating_add(len);
        let (ranges, next) = self.0.engine.changes([from.id, to.id], (offset, end), max).await?;
        let mut out: Vec<Extent> = Vec::new();
        let mut at = offset;
        for ChangedRange { offset, len, .. } in ranges {
            if offset > at {
                out.push(Extent { offset: at, len: offset - at, mapped: false });
            }
            match out.last_mut().filter(|last| last.mapped) {
                Some(last) => last.len += len,
                None => out.push(Extent { offset, len, mapped: true }),
            }
            at = offset + len;
        }
        let known = next.unwrap_or(end);
        if known > at {
            out.push(Extent { offset: at, len: known - at, mapped: false });
        }
        out.truncate(max);
        Ok(out)
    }

    /// One snapshot, with what only it holds.
    pub async fn snapshot_info(&self, name: &str) -> Result<SnapshotInfo> {
        split(name)?;
        let record = self.record(name)?;
        // Where that cannot be counted, the rest is told all the same.
        let held = self.0.engine.held(record.id).await.ok();
        Ok(SnapshotInfo { held, ..self.describe(&record) })
    }

    /// All snapshots, or those of one volume, oldest first.
    pub fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>> {
        let of = volume.map(|name| self.volume_record(name)).transpose()?;
        let all: Vec<VolumeRecord> = {
            let state = self.0.engine.state.read();
            let wanted = |s: &&VolumeRecord| s.is_snapshot() && of.as_ref().is_none_or(|v| s.snapshot_of == v.id);
            state.volumes.values().filter(wanted).filter(|s| !s.deleting).cloned().collect()
        };
        let mut out: Vec<SnapshotInfo> = all.iter().map(|s| self.describe(s)).collect();
        out.sort_by(|a, b| (&a.volume, a.id).cmp(&(&b.volume, b.id)));
        Ok(out)
    }

    fn describe(&self, s: &VolumeRecord) -> SnapshotInfo {
        let state = self.0.engine.state.read();
        // A clone that has snapshots goes on from the newest of them, and the oldest from here.
        let volume = |v: &VolumeRecord| if v.is_snapshot() { v.snapshot_of } else { v.id };
        let ids: BTreeSet<VolumeId> = state.children(s.id).map(volume).filter(|id| *id != s.snapshot_of).collect();
        let clones = ids.iter().filter_map(|id| state.volumes.get(id)).filter(|v| !v.deleting);
        SnapshotInfo {
            name: state.name_of(s),
            volume: state.volumes.get(&s.snapshot_of).map_or(String::new(), |v| v.name.clone()),
            id: s.id.0,
            size: s.blocks * BLOCK_BYTES,
            mapped: s.mapped * BLOCK_BYTES,
            attached: (!s.attachment.is_empty()).then(|| s.attachment.clone()),
            created_s: s.created_s,
            clones: clones.map(|v| v.name.clone()).collect(),
            held: None,
        }
    }

    /// The record of a volume that is not a snapshot.
    pub(super) fn volume_record(&self, name: &str) -> Result<VolumeRecord> {
        if name.contains('@') {
            return Err(Error::invalid(format!("'{name}' is a snapshot: name a volume")));
        }
        self.record(name)
    }
}

/// Volume and snapshot of a name.
fn split(name: &str) -> Result<(&str, &str)> {
    name.split_once('@').ok_or_else(|| Error::invalid(format!("'{name}' names no snapshot: write VOLUME@SNAPSHOT")))
}

fn related(a: &VolumeRecord, b: &VolumeRecord, volume: &str, other: &str) -> Result<()> {
    if a.family == b.family {
        return Ok(());
    }
    Err(Error::invalid(format!("volume '{volume}' has nothing in common with '{other}': make a clone instead")))
}

/// Fails when a volume or snapshot is attached.
pub(super) fn detached(record: &VolumeRecord, name: &str) -> Result<()> {
    if record.attachment.is_empty() {
        return Ok(());
    }
    let (kind, how) = (if record.is_snapshot() { "snapshot" } else { "volume" }, &record.attachment);
    Err(Error::new(ErrorKind::Busy, format!("{kind} '{name}' is attached via {how}: detach it first")))
}
