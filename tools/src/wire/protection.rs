//! What the REST API speaks about rules, policies and groups.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::snapshots::Quiesce;

/// When snapshots are taken: either `every_min` or `at`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Every so many minutes, counted from midnight; divides a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_min: Option<u32>,
    /// At these times of day, `HH:MM`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub at: Vec<String>,
    /// Only on these days: `mon` to `sun`; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// When snapshots are taken, how they are called, and for how long they are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
    pub name: String,
    /// When.
    pub schedule: Schedule,
    /// How many are kept of each volume; older ones are deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// After so many seconds they expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_for_s: Option<u64>,
    /// Nobody can delete them before that.
    #[serde(default)]
    pub secure: bool,
    /// How they are called: `{rule}` and `{time}` stand for the rule's name and the local time; `{rule}-{time}` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// How applications are made ready.
    #[serde(default)]
    pub quiesce: Quiesce,
}

/// A rule.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Rule {
    /// What it says.
    #[serde(flatten)]
    pub spec: RuleSpec,
    /// Policies it is part of.
    pub policies: Vec<String>,
    /// When it is due next, if it is part of a policy that something has.
    pub next_s: Option<u64>,
}

/// Rules that go together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
    pub name: String,
    /// Names of rules.
    pub rules: Vec<String>,
}

/// A policy.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// What it says.
    #[serde(flatten)]
    pub spec: PolicySpec,
    /// Volumes that have it.
    pub volumes: Vec<String>,
    /// Groups that have it.
    pub groups: Vec<String>,
}

/// Which policy a volume has.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyChoice {
    /// Name; none when null.
    #[serde(deserialize_with = "super::required")]
    pub policy: Option<String>,
}

/// A group to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupCreate {
    /// `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
    pub name: String,
    /// Volumes.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Name of its policy.
    #[serde(default)]
    pub policy: Option<String>,
}

/// Changes of a group, made at once.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupChange {
    /// Volumes to put in.
    #[serde(default)]
    pub add: Vec<String>,
    /// Volumes to take out.
    #[serde(default)]
    pub remove: Vec<String>,
    /// The policy it is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyChoice>,
}

/// Volumes that share one instant in snapshots.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Its volumes.
    pub volumes: Vec<String>,
    /// Name of its policy.
    pub policy: Option<String>,
    /// Seconds since 1970.
    pub created_s: u64,
    /// Snapshots there are of it.
    pub snapshots: u64,
}

/// A snapshot of a group to take.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupSnapshotCreate {
    /// Name, the same for all members.
    pub name: String,
    /// Seconds until it expires; never when null.
    #[serde(default)]
    pub expires_in_s: Option<u64>,
    /// Nobody can delete it before that.
    #[serde(default)]
    pub secure: bool,
    /// How applications are made ready.
    #[serde(default)]
    pub quiesce: Quiesce,
}

/// Snapshots of one name and one instant of a group's members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupSnapshot {
    /// `GROUP@SNAPSHOT`.
    pub name: String,
    /// `VOLUME@SNAPSHOT` each.
    pub snapshots: Vec<String>,
    /// Present members that have none.
    pub missing: Vec<String>,
    /// Seconds since 1970.
    pub created_s: u64,
    /// When the first of them expires.
    pub expires_s: Option<u64>,
    /// Whether one cannot be deleted before it expires.
    pub secure: bool,
}

/// A group to be restored from one of its snapshots.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupRestore {
    /// What becomes of what its volumes are now.
    #[serde(default)]
    pub keep: super::snapshots::Keep,
}

/// A group to be cloned from a snapshot of another one.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupClone {
    /// Name of the new group.
    pub name: String,
    /// How its volumes are called: `{volume}` and `{group}` stand for the volume's name and that of the new group.
    #[serde(default = "clone_pattern")]
    pub pattern: String,
}

/// `{volume}-{group}`.
pub fn clone_pattern() -> String {
    "{volume}-{group}".into()
}
