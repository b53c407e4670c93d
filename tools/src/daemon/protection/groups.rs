//! Groups of volumes: making, changing, their snapshots.

use std::collections::BTreeMap;

use blockdev::error::{Error, ErrorKind, Result};
use blockdev::pool::{Kept, Managed};
use blockdev::report::SnapshotInfo;

use super::{Objects, StoredGroup, put, take};
use crate::daemon::engine::Engine;
use crate::daemon::state::now_s;
use crate::values::check_name;
use crate::wire::protection::{Group, GroupChange, GroupClone, GroupCreate, GroupSnapshot};

/// Most volumes of a group: snapshots of all are taken by one record of the log.
const MEMBERS_MAX: usize = 100;

impl Objects {
    /// All groups, by name.
    pub fn groups(&self, snapshots: &[SnapshotInfo]) -> Vec<Group> {
        let mut out: Vec<Group> = self.groups.all.iter().map(|(n, g)| self.describe_group(*n, g, snapshots)).collect();
        out.sort_by(|a, b| a.name.cmp(&b.name));
        out
    }

    /// One group.
    pub fn group(&self, name: &str, snapshots: &[SnapshotInfo]) -> Result<Group> {
        let (number, group) = self.groups.get(name)?;
        Ok(self.describe_group(number, group, snapshots))
    }

    fn describe_group(&self, number: u32, group: &StoredGroup, snapshots: &[SnapshotInfo]) -> Group {
        let mut volumes = self.members_of(number);
        volumes.sort();
        Group {
            name: group.name.clone(),
            policy: self.policy_name(group.policy),
            created_s: group.created_s,
            snapshots: of_group(number, snapshots).len() as u64,
            volumes,
        }
    }

    /// Changes that put volumes into a group.
    fn join(&self, number: u32, group: &str, volumes: &[String]) -> Result<Vec<Managed>> {
        if self.members_of(number).len() + volumes.len() > MEMBERS_MAX {
            return Err(Error::invalid(format!("a group has at most {MEMBERS_MAX} volumes")));
        }
        let mut out = Vec::with_capacity(volumes.len());
        for (i, name) in volumes.iter().enumerate() {
            let missing = || Error::new(ErrorKind::NotFound, format!("there is no volume '{name}'"));
            let member = self.members.iter().find(|m| m.volume == *name).ok_or_else(missing)?;
            let busy = |message: String| Error::new(ErrorKind::Busy, message);
            if volumes[..i].contains(name) {
                return Err(Error::invalid(format!("volume '{name}' is named twice")));
            }
            if member.group == number {
                return Err(busy(format!("volume '{name}' is in group '{group}' already")));
            }
            if let Some(other) = self.group_name(member.group) {
                return Err(busy(format!(
                    "volume '{name}' is in group '{other}': take it out first (ashlar group remove)"
                )));
            }
            if let Some(policy) = self.policy_name(member.policy) {
                let how = format!("ashlar policy unassign --volume {name}");
                return Err(busy(format!(
                    "volume '{name}' has policy '{policy}', and in a group the group's counts: take it away first ({how})"
                )));
            }
            out.push(Managed::Group(name.clone(), number));
        }
        Ok(out)
    }

    /// A number for a new group.
    async fn group_number(&self, engine: &dyn Engine) -> Result<u32> {
        let used = engine.snapshots(None).await?;
        let used = used.iter().map(|s| s.group_id).chain(self.members.iter().map(|m| m.group));
        self.next(&self.groups, used)
    }

    /// Fails when a group of this name and policy could not be made.
    pub fn check_new_group(&self, name: &str, policy: Option<&str>) -> Result<()> {
        self.groups.check_free(name, None)?;
        self.policy_number(policy).map(drop)
    }

    /// Makes a group.
    pub async fn create_group(&self, engine: &dyn Engine, wanted: &GroupCreate) -> Result<()> {
        self.groups.check_free(&wanted.name, None)?;
        let policy = self.policy_number(wanted.policy.as_deref())?;
        let number = self.group_number(engine).await?;
        let now_s = now_s();
        let group = StoredGroup { name: wanted.name.clone(), policy, since_s: now_s, created_s: now_s };
        let mut changes = vec![put(number, &group)?];
        changes.extend(self.join(number, &wanted.name, &wanted.volumes)?);
        engine.manage(changes).await
    }

    /// Changes a group.
    pub async fn change_group(&self, engine: &dyn Engine, name: &str, change: &GroupChange) -> Result<()> {
        let (number, group) = self.groups.get(name)?;
        let mut changes = self.join(number, name, &change.add)?;
        for volume in &change.remove {
            if !self.members.iter().any(|m| m.volume == *volume && m.group == number) {
                let message = format!("volume '{volume}' is not in group '{name}'");
                return Err(Error::new(ErrorKind::NotFound, message));
            }
            changes.push(Managed::Group(volume.clone(), 0));
        }
        if let Some(choice) = &change.policy {
            let policy = self.policy_number(choice.policy.as_deref())?;
            changes.push(put(number, &StoredGroup { policy, since_s: now_s(), ..group.clone() })?);
        }
        engine.manage(changes).await
    }

    /// Deletes a group. Its volumes stay, and their snapshots.
    pub async fn delete_group(&self, engine: &dyn Engine, name: &str) -> Result<()> {
        let (number, _) = self.groups.get(name)?;
        let mut changes = vec![take::<StoredGroup>(number)];
        changes.extend(self.members_of(number).into_iter().map(|volume| Managed::Group(volume, 0)));
        engine.manage(changes).await
    }

    /// Snapshots of a group, oldest first.
    pub fn group_snapshots(&self, name: &str, snapshots: &[SnapshotInfo]) -> Result<Vec<GroupSnapshot>> {
        let (number, _) = self.groups.get(name)?;
        let members = self.members_of(number);
        let mut out: Vec<GroupSnapshot> = of_group(number, snapshots)
            .into_iter()
            .map(|(snapshot, all)| GroupSnapshot {
                name: format!("{name}@{snapshot}"),
                missing: members.iter().filter(|m| !all.iter().any(|s| s.volume == **m)).cloned().collect(),
                created_s: all.iter().map(|s| s.created_s).min().unwrap_or(0),
                expires_s: all.iter().filter_map(|s| s.expires_s).min(),
                secure: all.iter().any(|s| s.secure),
                snapshots: all.iter().map(|s| s.name.clone()).collect(),
            })
            .collect();
        out.sort_by(|a, b| (a.created_s, &a.name).cmp(&(b.created_s, &b.name)));
        Ok(out)
    }

    /// One snapshot of a group.
    pub fn group_snapshot(&self, group: &str, snapshot: &str, all: &[SnapshotInfo]) -> Result<GroupSnapshot> {
        let name = format!("{group}@{snapshot}");
        let found = self.group_snapshots(group, all)?.into_iter().find(|s| s.name == name);
        found
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no snapshot '{name}' of group '{group}'")))
    }

    /// The snapshots (`VOLUME@SNAPSHOT`) that make one of a group, and how they are kept. Fails when there is one of this name already, be it of
    /// volumes that have left: two instants would be taken for one.
    pub fn group_names(
        &self,
        group: &str,
        snapshot: &str,
        kept: Kept,
        all: &[SnapshotInfo],
    ) -> Result<(Vec<String>, Kept)> {
        let (number, _) = self.groups.get(group)?;
        check_name("snapshot", snapshot)?;
        if of_group(number, all).contains_key(snapshot) {
            let message = format!("snapshot '{snapshot}' of group '{group}' exists already");
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        let members = self.members_of(number);
        if members.is_empty() {
            return Err(Error::invalid(format!("group '{group}' has no volumes")));
        }
        let names = members.iter().map(|volume| format!("{volume}@{snapshot}")).collect();
        Ok((names, Kept { group: number, ..kept }))
    }

    /// Gives all volumes of a group the content of one of its snapshots, or none of them.
    pub async fn restore_group(
        &self,
        engine: &dyn Engine,
        group: &str,
        snapshot: &str,
        keep: Option<&str>,
    ) -> Result<()> {
        let (number, _) = self.groups.get(group)?;
        let found = self.group_snapshot(group, snapshot, &engine.snapshots(None).await?)?;
        if !found.missing.is_empty() {
            return Err(Error::invalid(format!(
                "'{}' has no snapshot of {}: take them out of the group, or restore volumes one by one",
                found.name,
                found.missing.join(", ")
            )));
        }
        let members = self.members_of(number);
        let restored = members.into_iter().map(|volume| (volume.clone(), format!("{volume}@{snapshot}")));
        engine.restore_volumes(&restored.collect::<Vec<_>>(), keep, number).await
    }

    /// Makes a group of clones from a snapshot of a group.
    pub async fn clone_group(
        &self,
        engine: &dyn Engine,
        group: &str,
        snapshot: &str,
        wanted: &GroupClone,
    ) -> Result<()> {
        let named = |volume: &str| wanted.pattern.replace("{volume}", volume).replace("{group}", &wanted.name);
        self.clone_group_as(engine, (group, snapshot), &wanted.name, named, Vec::new()).await
    }

    /// The same, with names that `named` gives to its volumes, and changes that are made with it.
    pub async fn clone_group_as(
        &self,
        engine: &dyn Engine,
        (group, snapshot): (&str, &str),
        new: &str,
        named: impl Fn(&str) -> String,
        mut changes: Vec<Managed>,
    ) -> Result<()> {
        let found = self.group_snapshot(group, snapshot, &engine.snapshots(None).await?)?;
        self.groups.check_free(new, None)?;
        let number = self.group_number(engine).await?;
        changes.push(put(number, &StoredGroup { name: new.to_owned(), policy: 0, since_s: 0, created_s: now_s() })?);
        let mut clones = Vec::with_capacity(found.snapshots.len());
        for from in &found.snapshots {
            let name = named(from.split_once('@').map_or(from.as_str(), |(volume, _)| volume));
            check_name("volume", &name)?;
            clones.push((from.clone(), name));
        }
        engine.clone_snapshots(&clones, number, changes).await.map(drop)
    }
}

/// Snapshots that were taken of a group, by name.
fn of_group(number: u32, snapshots: &[SnapshotInfo]) -> BTreeMap<String, Vec<&SnapshotInfo>> {
    let mut out: BTreeMap<String, Vec<&SnapshotInfo>> = BTreeMap::new();
    for s in snapshots.iter().filter(|s| s.group_id == number) {
        let name = s.name.split_once('@').map_or("", |(_, name)| name);
        out.entry(name.to_owned()).or_default().push(s);
    }
    out
}
