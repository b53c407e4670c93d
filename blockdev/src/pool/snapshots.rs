//! Snapshots, thin clones, restoring and refreshing: names and rules. What is whose is in `volume::versions`.

use std::collections::BTreeSet;

use super::{Kept, Managed, Pool, check_name};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::record::Op;
use crate::format::volume::{Protection, VolumeRecord};
use crate::frontend::Extent;
use crate::report::{ChangedRange, Changes, SnapshotInfo, VolumeInfo};
use crate::units::{BLOCK_BYTES, VolumeId};
use crate::volume::reserve::{Changed, Promise};

/// Versions that one record changes at most.
pub(super) const AT_ONCE: usize = 256;

impl Pool {
    /// Takes a snapshot of each of several volumes, given as `VOLUME@SNAPSHOT`, all of the same instant: after every write that was answered
    /// before, and in the order of all writes.
    pub async fn create_snapshots(&self, names: &[String], kept: &Kept) -> Result<Vec<SnapshotInfo>> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let _bound = engine.bind_clock();
        let protection = kept.protection(engine)?;
        let (records, _promise) = self.new_snapshots(names).await?;
        for record in &records {
            self.check_catalogue(record)?;
        }
        let ops = records.into_iter().map(|record| Op::Snapshot(VolumeRecord { protection, ..record })).collect();
        let taken = match protection.expires_s {
            0 => engine.commit_ops(ops).await,
            _ => self.commit_kept(ops).await,
        };
        taken.context(format!("taking snapshot {}", names.join(", ")))?;
        names.iter().map(|name| Ok(self.describe(&self.record(name)?))).collect()
    }

    /// Fails when such snapshots could not be taken now.
    pub async fn check_snapshots(&self, names: &[String]) -> Result<()> {
        self.0.engine.check_writable()?;
        self.new_snapshots(names).await.map(drop)
    }

    /// The records of snapshots to be taken, and the room that reservations need with them.
    async fn new_snapshots(&self, names: &[String]) -> Result<(Vec<VolumeRecord>, Promise<'_>)> {
        let engine = &self.0.engine;
        check_several("snapshots are taken", names)?;
        self.check_room().await?;
        let first = engine.state.read().next_volume;
        let mut records = Vec::with_capacity(names.len());
        for (id, name) in (first..).zip(names) {
            let (volume, snapshot) = split(name)?;
            let record = self.new_snapshot(VolumeId(id), volume, snapshot)?;
            engine.check_volume(record.snapshot_of)?;
            records.push(record);
        }
        // What volumes hold now the snapshots will: overwriting it takes room.
        let kept = |v: &VolumeRecord| {
            let taken = v.reserved > 0 && records.iter().any(|s| s.snapshot_of == v.id);
            taken.then(|| VolumeRecord { owned: 0, ..v.clone() })
        };
        let what = format!("the reservation of {}, with a snapshot of it,", names.join(", "));
        let promise = engine.check_reservations(&Changed { new: 0, of: &kept }, &what)?;
        Ok((records, promise))
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
        engine.check_space(None).await?;
        let space = engine.space();
        if space.available().saturating_sub(space.set_aside) >= space.segment {
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
        let mut made = self.clone_snapshots(&[(snapshot.into(), name.into())], 0, Vec::new()).await?;
        made.pop().ok_or_else(|| Error::io(format!("cloning '{snapshot}'")))
    }

    /// Makes several such volumes at once, all of one group, given as snapshot and name; and `changes` with them.
    pub async fn clone_snapshots(
        &self,
        clones: &[(String, String)],
        group: u32,
        changes: Vec<Managed>,
    ) -> Result<Vec<VolumeInfo>> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let names: Vec<String> = clones.iter().map(|(_, name)| name.clone()).collect();
        check_several("clones are made", &names)?;
        let mut ops = self.managed(changes)?;
        let first = engine.state.read().next_volume;
        for (id, (snapshot, name)) in (first..).zip(clones) {
            check_name("volume", name)?;
            split(snapshot)?;
            let from = self.record(snapshot)?;
            if engine.state.read().volume_named(name).is_some() {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("volume '{name}' exists already")));
            }
            let protection = Protection { group, ..Protection::default() };
            let described = self.description(VolumeId(id), name, VolumeId(0));
            ops.push(Op::Clone(VolumeRecord { parent: from.id, protection, ..described }));
        }
        self.check_room().await?;
        for op in &ops {
            if let Op::Clone(record) = op {
                self.check_catalogue(record)?;
            }
        }
        engine.commit_ops(ops).await.context(format!("cloning to {}", names.join(", ")))?;
        let mut made = Vec::with_capacity(names.len());
        for name in &names {
            made.push(self.volume_info(name).await?);
        }
        Ok(made)
    }

    /// Gives a volume the content, and the size, that a snapshot holds: one of its own, or of a volume that it has an ancestor in common with. What
    /// it was before is kept as a snapshot of the name `keep`, or given back.
    pub async fn restore_volume(&self, volume: &str, snapshot: &str, keep: Option<&str>) -> Result<VolumeInfo> {
        self.restore_volumes(&[(volume.into(), snapshot.into())], keep, 0).await?;
        self.volume_info(volume).await
    }

    /// The same for several volumes at once, given as volume and snapshot: all of them, or none. What they were is kept as snapshots of a group.
    pub async fn restore_volumes(&self, restored: &[(String, String)], keep: Option<&str>, group: u32) -> Result<()> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let names: Vec<String> = restored.iter().map(|(volume, _)| volume.clone()).collect();
        check_several("volumes are restored", &names)?;
        let mut exchanges = Vec::with_capacity(restored.len());
        for (volume, snapshot) in restored {
            split(snapshot)?;
            let (to, from) = (self.volume_record(volume)?, self.record(snapshot)?);
            exchanges.push(Exchange { volume, other: snapshot, to, from });
        }
        self.exchange(exchanges, Vec::new(), keep, group).await
    }

    /// Gives a volume the content that another one, which it has an ancestor in common with, holds now: a clone that of its parent, or the other way round.
    pub async fn refresh_volume(&self, volume: &str, from: &str, keep: Option<&str>) -> Result<VolumeInfo> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let (to, other) = (self.volume_record(volume)?, self.record(from)?);
        let (mut ops, mut taken) = (Vec::new(), other.clone());
        if !other.is_snapshot() {
            if other.id == to.id {
                return Err(Error::invalid(format!("volume '{volume}' cannot be refreshed from itself")));
            }
            engine.check_volume(other.id)?;
            // Nobody asked for the snapshot in between: it goes when only one of the two goes on from it.
            let id = VolumeId(engine.state.read().next_volume);
            ops.push(Op::Snapshot(VolumeRecord { deleting: true, ..self.description(id, "", other.id) }));
            taken.id = id;
        }
        self.exchange(vec![Exchange { volume, other: from, to, from: taken }], ops, keep, 0).await?;
        self.volume_info(volume).await
    }

    /// Makes volumes go on from snapshots, after `ops`.
    async fn exchange(
        &self,
        exchanges: Vec<Exchange<'_>>,
        mut ops: Vec<Op>,
        keep: Option<&str>,
        group: u32,
    ) -> Result<()> {
        let engine = &self.0.engine;
        if keep.is_some() {
            self.check_room().await?;
        }
        let first = engine.state.read().next_volume + ops.len() as u32;
        let mut handles = Vec::with_capacity(exchanges.len());
        for (id, Exchange { volume, other, to, from }) in (first..).zip(&exchanges) {
            related(to, from, volume, other)?;
            if !to.attachment.is_empty() {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "volume '{volume}' is attached via {}: unmount it on its hosts and detach it first",
                        to.attachment
                    ),
                ));
            }
            let before = match keep {
                Some(name) => {
                    let before = self.new_snapshot(VolumeId(id), volume, name)?;
                    self.check_catalogue(&before)?;
                    VolumeRecord { protection: Protection { group, ..before.protection }, ..before }
                }
                None => VolumeRecord { deleting: true, ..self.description(VolumeId(id), "", to.id) },
            };
            ops.extend([Op::Snapshot(before), Op::Clone(VolumeRecord { parent: from.id, ..to.clone() })]);
            handles.push(self.handle(to.id, volume)?);
        }
        let exchanged = |v: &VolumeRecord| {
            if let Some(Exchange { from, .. }) = exchanges.iter().find(|e| e.to.id == v.id) {
                return Some(VolumeRecord { owned: 0, blocks: from.blocks, ..v.clone() });
            }
            let held = ops.iter().any(|op| matches!(op, Op::Snapshot(s) if s.snapshot_of == v.id));
            held.then(|| VolumeRecord { owned: 0, ..v.clone() })
        };
        let what = format!(
            "the reservation of {} after that",
            exchanges.iter().map(|e| e.volume).collect::<Vec<_>>().join(", ")
        );
        let _promise = engine.check_reservations(&Changed { new: 0, of: &exchanged }, &what)?;
        let mut quiet = Vec::with_capacity(handles.len());
        for handle in &handles {
            quiet.push(handle.exclude_writes().await);
        }
        let names: Vec<&str> = exchanges.iter().map(|e| e.volume).collect();
        engine.commit_ops(ops).await.context(format!("restoring {}", names.join(", ")))?;
        for (handle, Exchange { to, from, .. }) in handles.iter().zip(&exchanges) {
            handle.set_blocks(from.blocks);
            // What could not be read of its map is not its any more.
            engine.broken.lock().remove(&to.id);
        }
        engine.reap();
        Ok(())
    }

    /// Deletes a snapshot. Its space comes back in the background.
    pub async fn delete_snapshot(&self, name: &str) -> Result<()> {
        self.delete_snapshots(&[name.to_owned()]).await
    }

    /// Deletes several snapshots: all of them, or none.
    pub async fn delete_snapshots(&self, names: &[String]) -> Result<()> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        check_several("snapshots are deleted", names)?;
        let mut records = Vec::with_capacity(names.len());
        for name in names {
            split(name)?;
            let record = self.record(name)?;
            detached(&record, name)?;
            self.check_not_secure(&record)?;
            records.push(record);
        }
        self.delete_records(records).await
    }

    /// Deletes snapshots that may be.
    pub(super) async fn delete_records(&self, records: Vec<VolumeRecord>) -> Result<()> {
        let engine = &self.0.engine;
        let ids: Vec<VolumeId> = records.iter().map(|s| s.id).collect();
        let gone = |s| Op::PutVolume(VolumeRecord { deleting: true, ..s });
        engine.commit_ops(records.into_iter().map(gone).collect()).await?;
        for id in ids {
            if let Some(handle) = self.0.volumes.lock().remove(&id) {
                handle.retire();
            }
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

    pub(super) fn describe(&self, s: &VolumeRecord) -> SnapshotInfo {
        let protection = s.protection;
        let (clock_s, wall_s) = (self.0.engine.clock_s(), self.0.engine.env.wall_clock_s());
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
            expires_s: (protection.expires_s > 0).then(|| wall_s + protection.expires_s.saturating_sub(clock_s)),
            secure: protection.secure,
            quiesced: protection.quiesced,
            rule_id: protection.rule,
            group_id: protection.group,
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

/// A volume that is to go on from another version.
struct Exchange<'a> {
    volume: &'a str,
    other: &'a str,
    to: VolumeRecord,
    from: VolumeRecord,
}

/// Fails unless these are as many as may be done at once, each once.
pub(super) fn check_several(what: &str, names: &[String]) -> Result<()> {
    if names.is_empty() || names.len() > AT_ONCE {
        return Err(Error::invalid(format!("1 to {AT_ONCE} {what} at once, not {}", names.len())));
    }
    match (0..names.len()).find(|&i| names[..i].contains(&names[i])) {
        Some(twice) => Err(Error::invalid(format!("'{}' is named twice", names[twice]))),
        None => Ok(()),
    }
}

/// Volume and snapshot of a name.
pub(super) fn split(name: &str) -> Result<(&str, &str)> {
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
