//! Rules, policies and groups: what the daemon keeps of them in the pool. See `docs/design/0016-protection.md`.

use std::collections::BTreeMap;

use blockdev::error::{Error, ErrorKind, Result};
use blockdev::format::volume::Setting;
use blockdev::pool::Managed;
use blockdev::report::{Membership, SnapshotInfo, VolumeInfo};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::engine::Engine;
use crate::wire::protection::{RuleSpec, Schedule};
use crate::wire::snapshots::Snapshot;
use crate::wire::{Attachment, Volume};

mod groups;
mod policies;
pub mod retention;
pub mod runner;
pub mod schedule;

/// A policy as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPolicy {
    name: String,
    /// Numbers of its rules.
    rules: Vec<u32>,
    /// When it was made or changed, in seconds since 1970.
    #[serde(default)]
    changed_s: u64,
}

/// A group as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredGroup {
    name: String,
    /// Number of its policy; 0 without.
    #[serde(default)]
    policy: u32,
    /// Since when it has the policy, in seconds since 1970.
    #[serde(default)]
    since_s: u64,
    created_s: u64,
}

/// What is kept under a number of its own, and found by name.
trait Stored: Serialize + DeserializeOwned {
    /// What its settings are called, before the number.
    const PREFIX: &'static str;
    /// What it is called in messages.
    const KIND: &'static str;
    fn name(&self) -> &str;
}

impl Stored for RuleSpec {
    const PREFIX: &'static str = "rule/";
    const KIND: &'static str = "rule";
    fn name(&self) -> &str {
        &self.name
    }
}

impl Stored for StoredPolicy {
    const PREFIX: &'static str = "policy/";
    const KIND: &'static str = "policy";
    fn name(&self) -> &str {
        &self.name
    }
}

impl Stored for StoredGroup {
    const PREFIX: &'static str = "group/";
    const KIND: &'static str = "group";
    fn name(&self) -> &str {
        &self.name
    }
}

/// All of one kind, by number.
struct Shelf<T> {
    all: BTreeMap<u32, T>,
    /// Settings of this kind that cannot be read, and why.
    unreadable: Vec<(String, String)>,
    /// The largest number in use.
    last: u32,
}

impl<T: Stored> Shelf<T> {
    fn load(engine: &dyn Engine) -> Self {
        let mut out = Self { all: BTreeMap::new(), unreadable: Vec::new(), last: 0 };
        for Setting { name, value } in engine.settings(T::PREFIX) {
            let number = name.strip_prefix(T::PREFIX).and_then(|n| n.parse::<u32>().ok()).filter(|n| *n > 0);
            out.last = out.last.max(number.unwrap_or(0));
            match (number, serde_json::from_slice::<T>(&value)) {
                (Some(number), Ok(found)) => drop(out.all.insert(number, found)),
                (None, _) => out.unreadable.push((name, "its number is none".into())),
                (_, Err(e)) => out.unreadable.push((name, e.to_string())),
            }
        }
        out
    }

    fn find(&self, name: &str) -> Option<(u32, &T)> {
        self.all.iter().find(|(_, t)| t.name() == name).map(|(n, t)| (*n, t))
    }

    fn get(&self, name: &str) -> Result<(u32, &T)> {
        let kind = T::KIND;
        let missing = || Error::new(ErrorKind::NotFound, format!("there is no {kind} '{name}' (ashlar {kind} list)"));
        self.find(name).ok_or_else(missing)
    }

    /// Fails when the name is taken, by another one than `but`.
    fn check_free(&self, name: &str, but: Option<u32>) -> Result<()> {
        crate::values::check_name(T::KIND, name)?;
        match self.find(name) {
            Some((number, _)) if Some(number) != but => {
                let message = format!("{} '{name}' exists already", T::KIND);
                Err(Error::new(ErrorKind::AlreadyExists, message))
            }
            _ => Ok(()),
        }
    }

    fn name(&self, number: u32) -> Option<&str> {
        self.all.get(&number).map(|t| t.name())
    }
}

/// A change that puts something under its number.
fn put<T: Stored>(number: u32, what: &T) -> Result<Managed> {
    let value = serde_json::to_vec(what).map_err(|e| Error::invalid(format!("{} '{}': {e}", T::KIND, what.name())))?;
    Ok(Managed::Setting(Setting { name: format!("{}{number}", T::PREFIX), value }))
}

/// A change that takes something away.
fn take<T: Stored>(number: u32) -> Managed {
    Managed::Setting(Setting { name: format!("{}{number}", T::PREFIX), value: Vec::new() })
}

/// Everything there is, at one moment.
pub struct Objects {
    rules: Shelf<RuleSpec>,
    policies: Shelf<StoredPolicy>,
    groups: Shelf<StoredGroup>,
    members: Vec<Membership>,
}

impl Objects {
    /// Reads it.
    pub fn load(engine: &dyn Engine) -> Self {
        let (rules, policies, groups) = (Shelf::load(engine), Shelf::load(engine), Shelf::load(engine));
        Self { rules, policies, groups, members: engine.memberships() }
    }

    /// Name of a rule.
    pub fn rule_name(&self, number: u32) -> Option<String> {
        self.rules.name(number).map(str::to_owned)
    }

    /// Name of a policy.
    pub fn policy_name(&self, number: u32) -> Option<String> {
        self.policies.name(number).map(str::to_owned)
    }

    /// Name of a group.
    pub fn group_name(&self, number: u32) -> Option<String> {
        self.groups.name(number).map(str::to_owned)
    }

    /// A volume with the names of its group and policy.
    pub fn volume(&self, attachment: Option<Attachment>, info: VolumeInfo) -> Volume {
        let policy = self.groups.all.get(&info.group_id).map_or(info.policy_id, |g| g.policy);
        Volume { group: self.group_name(info.group_id), policy: self.policy_name(policy), attachment, info }
    }

    /// A snapshot with the names of its rule and group.
    pub fn snapshot(&self, info: SnapshotInfo) -> Snapshot {
        Snapshot { rule: self.rule_name(info.rule_id), group: self.group_name(info.group_id), info }
    }

    /// What cannot be read, and why.
    pub fn unreadable(&self) -> Vec<(String, String)> {
        [&self.rules.unreadable, &self.policies.unreadable, &self.groups.unreadable]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    fn members_of(&self, group: u32) -> Vec<String> {
        self.members.iter().filter(|m| m.group == group && group != 0).map(|m| m.volume.clone()).collect()
    }

    /// The first number that nothing has had which is still there: snapshots may outlive their rule.
    fn next<T: Stored>(&self, shelf: &Shelf<T>, used: impl Iterator<Item = u32>) -> Result<u32> {
        let last = used.fold(shelf.last, u32::max);
        last.checked_add(1).ok_or_else(|| Error::invalid(format!("there is no number left for another {}", T::KIND)))
    }
}

/// What somebody takes snapshots of by a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A volume that is in no group.
    Volume(String),
    /// A group, by number and name.
    Group(u32, String),
}

impl Target {
    /// As in events and alerts.
    pub fn object(&self) -> String {
        match self {
            Self::Volume(name) => format!("volume/{name}"),
            Self::Group(_, name) => format!("group/{name}"),
        }
    }

    /// Whether a snapshot was taken of it.
    fn has(&self, s: &SnapshotInfo) -> bool {
        match self {
            Self::Volume(name) => s.volume == *name && s.group_id == 0,
            Self::Group(number, _) => s.group_id == *number,
        }
    }
}

/// A rule that applies to something.
#[derive(Clone, Debug)]
pub struct Duty {
    /// To what.
    pub target: Target,
    /// Its volumes.
    pub volumes: Vec<String>,
    /// Number of the rule.
    pub rule: u32,
    /// The rule.
    pub spec: RuleSpec,
    /// Name of the policy it is part of.
    pub policy: String,
    /// Since when it is so, in seconds since 1970.
    pub since_s: u64,
}

impl Objects {
    /// All rules that apply to something, in order.
    pub fn duties(&self) -> Vec<Duty> {
        let volumes = self.members.iter().filter(|m| m.group == 0 && m.policy != 0);
        let volumes = volumes.map(|m| (Target::Volume(m.volume.clone()), vec![m.volume.clone()], m.policy, m.since_s));
        let groups = self.groups.all.iter().filter(|(_, g)| g.policy != 0);
        let groups = groups.map(|(n, g)| (Target::Group(*n, g.name.clone()), self.members_of(*n), g.policy, g.since_s));
        let mut out = Vec::new();
        for (target, volumes, policy, since_s) in volumes.chain(groups) {
            let Some(policy) = self.policies.all.get(&policy).filter(|_| !volumes.is_empty()) else { continue };
            for rule in &policy.rules {
                let Some(spec) = self.rules.all.get(rule).cloned() else { continue };
                let (target, volumes, since_s) = (target.clone(), volumes.clone(), since_s.max(policy.changed_s));
                out.push(Duty { target, volumes, rule: *rule, spec, policy: policy.name.clone(), since_s });
            }
        }
        out
    }
}

/// Most snapshots of one rule and volume.
const KEEP_MAX: u32 = 4096;

/// Fails for a rule that cannot be.
fn check_rule(spec: &RuleSpec) -> Result<()> {
    let RuleSpec { keep, keep_for_s, secure, pattern, schedule, .. } = spec;
    Schedule::check(schedule)?;
    if keep.is_some_and(|n| n == 0 || n > KEEP_MAX) {
        return Err(Error::invalid(format!("a rule keeps 1 to {KEEP_MAX} snapshots of each volume")));
    }
    if keep_for_s.is_some_and(|s| s == 0 || s > blockdev::pool::KEPT_MAX_S) {
        return Err(Error::invalid("a rule keeps snapshots for 1 second to 100 years"));
    }
    match (keep, keep_for_s) {
        (None, None) => {
            return Err(Error::invalid("say how many snapshots are kept (--keep), or for how long (--for)"));
        }
        (_, None) if *secure => {
            return Err(Error::invalid("secure snapshots are kept for a time: say for how long (--for)"));
        }
        _ => {}
    }
    // One more may be needed where there is one of this name.
    if let Some(hook) = &spec.quiesce.hook {
        crate::values::check_name("hook", hook)?;
    }
    let name = runner::snapshot_name(spec, "20261231-235959") + "-9";
    if !pattern.as_ref().is_none_or(|p| p.contains("{time}")) {
        return Err(Error::invalid("the pattern of snapshots' names needs {time}, so that each has its own"));
    }
    crate::values::check_name("snapshot", &name)
}

#[cfg(test)]
mod tests;
