//! `ashlar group`.

use hyper::Method;

use super::snapshot::{KeptArguments, QuiesceArguments};
use super::volume::{KeepArguments, done};
use super::{Global, snapshot};
use crate::client::segment;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{Align, Table, pairs, show, timestamp};
use crate::wire::protection::{
    Group, GroupChange, GroupClone, GroupCreate, GroupRestore, GroupSnapshot, GroupSnapshotCreate,
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a group of volumes: their snapshots are of one instant, in the order of all writes
    ///
    /// For an application that writes to several volumes. A volume is in one group at most, and has no policy of its own there.
    #[command(
        after_help = "Examples:\n  ashlar group create db --volumes data logs\n  ashlar policy assign gold --group db"
    )]
    Create {
        /// Letters, digits, `.`, `_`, `-`; at most 63
        name: String,
        /// Volumes to put in
        #[arg(long, num_args = 1.., value_name = "VOLUME")]
        volumes: Vec<String>,
        /// The policy it has
        #[arg(long)]
        policy: Option<String>,
    },
    /// All groups
    #[command(visible_alias = "ls")]
    List,
    /// One group and its snapshots
    Show {
        /// The group
        name: String,
    },
    /// Put volumes into a group
    Add {
        /// The group
        name: String,
        /// Volumes
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// Take volumes out of a group; they stay, and their snapshots
    Remove {
        /// The group
        name: String,
        /// Volumes
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// Delete a group; its volumes stay, and their snapshots
    #[command(visible_alias = "rm")]
    Delete {
        /// The group
        name: String,
    },
    /// Take a snapshot of all volumes of a group, of one instant
    #[command(after_help = "Example:\n  ashlar group snapshot db@before-upgrade --for 30d")]
    Snapshot {
        /// Group and name; each volume's snapshot has this name
        #[arg(value_name = "GROUP@SNAPSHOT")]
        name: String,
        #[command(flatten)]
        kept: KeptArguments,
        #[command(flatten)]
        quiesce: QuiesceArguments,
    },
    /// Delete the snapshots of this name of all volumes of a group
    DeleteSnapshot {
        /// Group and name
        #[arg(value_name = "GROUP@SNAPSHOT")]
        name: String,
    },
    /// Give all volumes of a group what a snapshot of the group holds: all of them, or none
    ///
    /// They must be unmounted on their hosts and detached. What they are now becomes a snapshot of the group itself, unless it is to go.
    #[command(after_help = "Example:\n  ashlar group restore db@before-upgrade")]
    Restore {
        /// Group and name
        #[arg(value_name = "GROUP@SNAPSHOT")]
        name: String,
        #[command(flatten)]
        keep: KeepArguments,
    },
    /// Make clones of all volumes of a group from one snapshot, and a group of them
    #[command(
        after_help = "Examples:\n  ashlar group clone db@monday test                       # data-test, logs-test\n  ashlar group clone db@monday test --names 'copy-{volume}'"
    )]
    Clone {
        /// Group and name
        #[arg(value_name = "GROUP@SNAPSHOT")]
        snapshot: String,
        /// Name of the new group
        name: String,
        /// How the clones are called: {volume} is the volume's name, {group} that of the new group
        #[arg(long, value_name = "PATTERN", default_value_t = crate::wire::protection::clone_pattern())]
        names: String,
    },
}

fn path(name: &str) -> String {
    format!("/v1/groups/{}", segment(name))
}

/// Group and snapshot of a name.
fn split(name: &str) -> CommandResult<(&str, &str)> {
    name.split_once('@')
        .ok_or_else(|| Failure::usage(format!("'{name}' names no snapshot of a group: write GROUP@SNAPSHOT")))
}

fn snapshot_path(name: &str) -> CommandResult<String> {
    let (group, snapshot) = split(name)?;
    Ok(format!("{}/snapshots/{}", path(group), segment(snapshot)))
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let client = global.client();
    let format = global.output;
    let change = |name: &str, change: GroupChange| -> CommandResult<Group> {
        super::talk(client.call(Method::PATCH, &path(name), Some(&change)))
    };
    match command {
        Command::Create { name, volumes, policy } => {
            let request = GroupCreate { name, volumes, policy };
            let group: Group = super::talk(client.call(Method::POST, "/v1/groups", Some(&request)))?;
            show(format, &group, |g| format!("group {} created: {}", g.name, words(&g.volumes)))?;
        }
        Command::List => {
            let groups: Vec<Group> = super::talk(client.get("/v1/groups"))?;
            show(format, &groups, |all| list(all))?;
        }
        Command::Show { name } => {
            let (group, snapshots) = super::talk(async {
                let group: Group = client.get(&path(&name)).await?;
                let snapshots: Vec<GroupSnapshot> = client.get(&format!("{}/snapshots", path(&name))).await?;
                Ok((group, snapshots))
            })?;
            let both = serde_json::json!({ "group": group, "snapshots": snapshots });
            show(format, &both, |_| describe(&group, &snapshots))?;
        }
        Command::Add { name, volumes } => {
            let group = change(&name, GroupChange { add: volumes, ..GroupChange::default() })?;
            show(format, &group, |g| format!("group {} is {} now", g.name, words(&g.volumes)))?;
        }
        Command::Remove { name, volumes } => {
            let group = change(&name, GroupChange { remove: volumes, ..GroupChange::default() })?;
            show(format, &group, |g| format!("group {} is {} now", g.name, words(&g.volumes)))?;
        }
        Command::Delete { name } => {
            super::talk(client.send::<()>(Method::DELETE, &path(&name)))?;
            done(format, "group", &name, "deleted")?;
        }
        Command::Snapshot { name, kept, quiesce } => {
            let (group, snapshot) = split(&name)?;
            let KeptArguments { keep_for, secure } = kept;
            let quiesce = quiesce.wanted();
            let request = GroupSnapshotCreate { name: snapshot.into(), expires_in_s: keep_for, secure, quiesce };
            let to = format!("{}/snapshots", path(group));
            let taken: GroupSnapshot = super::talk(client.call(Method::POST, &to, Some(&request)))?;
            show(format, &taken, |s| format!("snapshot {} taken: {}", s.name, words(&s.snapshots)))?;
        }
        Command::DeleteSnapshot { name } => {
            super::talk(client.send::<()>(Method::DELETE, &snapshot_path(&name)?))?;
            done(format, "snapshot", &name, "deleted")?;
        }
        Command::Restore { name, keep } => {
            let request = GroupRestore { keep: keep.wanted() };
            let to = format!("{}/restore", snapshot_path(&name)?);
            let group: Group = super::talk(client.call(Method::POST, &to, Some(&request)))?;
            show(format, &group, |g| format!("group {} is what {name} holds: {}", g.name, words(&g.volumes)))?;
        }
        Command::Clone { snapshot, name, names } => {
            let request = GroupClone { name, pattern: names };
            let to = format!("{}/clones", snapshot_path(&snapshot)?);
            let group: Group = super::talk(client.call(Method::POST, &to, Some(&request)))?;
            show(format, &group, |g| format!("group {} cloned from {snapshot}: {}", g.name, words(&g.volumes)))?;
        }
    }
    Ok(Exit::Ok)
}

fn words(names: &[String]) -> String {
    if names.is_empty() { "-".into() } else { names.join(" ") }
}

fn list(groups: &[Group]) -> String {
    if groups.is_empty() {
        return "no groups; make one with `ashlar group create NAME --volumes VOLUME…`".into();
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("POLICY", Align::Left),
        ("SNAPSHOTS", Align::Right),
        ("VOLUMES", Align::Left),
    ]);
    for g in groups {
        let policy = g.policy.clone().unwrap_or_else(|| "-".into());
        table.row([g.name.clone(), policy, g.snapshots.to_string(), words(&g.volumes)]);
    }
    table.render(0)
}

fn describe(group: &Group, snapshots: &[GroupSnapshot]) -> String {
    let head = pairs(
        &[
            ("name", group.name.clone()),
            ("volumes", words(&group.volumes)),
            ("policy", group.policy.clone().unwrap_or_else(|| "-".into())),
            ("created", timestamp(group.created_s)),
        ],
        0,
    );
    if snapshots.is_empty() {
        return head;
    }
    let mut table = Table::new(&[
        ("SNAPSHOT", Align::Left),
        ("CREATED", Align::Left),
        ("EXPIRES", Align::Left),
        ("VOLUMES", Align::Right),
        ("MISSING", Align::Left),
    ]);
    for s in snapshots {
        table.row([
            s.name.clone(),
            timestamp(s.created_s),
            snapshot::expiry(s.expires_s, s.secure),
            s.snapshots.len().to_string(),
            words(&s.missing),
        ]);
    }
    format!("{head}\n{}", table.render(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_shown() {
        let group = Group {
            name: "db".into(),
            volumes: vec!["data".into(), "logs".into()],
            policy: Some("gold".into()),
            created_s: 0,
            snapshots: 1,
        };
        let text = list(std::slice::from_ref(&group));
        assert!(text.lines().nth(1).is_some_and(|l| l == "db    gold            1  data logs"), "{text}");
        assert!(list(&[]).contains("group create"));
        let snapshot = GroupSnapshot {
            name: "db@monday".into(),
            snapshots: vec!["data@monday".into()],
            missing: vec!["logs".into()],
            created_s: 0,
            expires_s: Some(86_400),
            secure: true,
        };
        let text = describe(&group, &[snapshot]);
        assert!(text.contains("policy:   gold\n"), "{text}");
        assert!(text.contains("1970-01-02 00:00:00Z (secure)        1  logs"), "{text}");
        assert!(split("db").is_err() && split("db@x").is_ok());
    }
}
