//! `ashlar snapshot`.

use blockdev::report::SnapshotInfo;
use hyper::Method;

use super::Global;
use super::volume::done;
use crate::client::segment;
use crate::exit::{CommandResult, Exit};
use crate::output::{Align, Table, pairs, show, size, timestamp};
use crate::wire::snapshots::SnapshotCreate;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Take snapshots, at once: all that was answered before is in them
    ///
    /// A snapshot takes no time and no space; what it alone holds is kept when its volume changes. Several are of one instant, in the order of all
    /// writes. Attach one to read it (`ashlar volume attach VOLUME@SNAPSHOT --via nbd`), clone it to write to it.
    #[command(
        after_help = "Examples:\n  ashlar snapshot create data@monday\n  ashlar snapshot create db@before-upgrade logs@before-upgrade   # the same instant"
    )]
    Create {
        /// VOLUME@SNAPSHOT, one or more
        #[arg(required = true, value_name = "VOLUME@SNAPSHOT")]
        names: Vec<String>,
    },
    /// Snapshots, oldest first
    #[command(visible_alias = "ls", after_help = "Example:\n  ashlar snapshot list data -o json | jq -r '.[].name'")]
    List {
        /// Those of this volume only
        volume: Option<String>,
    },
    /// One snapshot in full
    Show {
        /// The snapshot
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        name: String,
    },
    /// Delete snapshots; clones stay, and space comes back in the background
    #[command(visible_alias = "rm", after_help = "An attached snapshot must be detached first.")]
    Delete {
        /// VOLUME@SNAPSHOT, one or more
        #[arg(required = true, value_name = "VOLUME@SNAPSHOT")]
        names: Vec<String>,
    },
}

fn path(name: &str) -> String {
    format!("/v1/snapshots/{}", segment(name))
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let client = global.client();
    let format = global.output;
    match command {
        Command::Create { names } => {
            let request = SnapshotCreate { names };
            let taken: Vec<SnapshotInfo> = super::talk(client.call(Method::POST, "/v1/snapshots", Some(&request)))?;
            show(format, &taken, |all| {
                let lines: Vec<String> = all.iter().map(|s| format!("snapshot {} taken", s.name)).collect();
                lines.join("\n")
            })?;
        }
        Command::List { volume } => {
            let query = volume.map_or(String::new(), |name| format!("?volume={}", segment(&name)));
            let all: Vec<SnapshotInfo> = super::talk(client.get(&format!("/v1/snapshots{query}")))?;
            show(format, &all, |all| list(all))?;
        }
        Command::Show { name } => {
            let snapshot: SnapshotInfo = super::talk(client.get(&path(&name)))?;
            show(format, &snapshot, describe)?;
        }
        Command::Delete { names } => {
            for name in names {
                super::talk(client.send::<()>(Method::DELETE, &path(&name)))?;
                done(format, "snapshot", &name, "deleted")?;
            }
        }
    }
    Ok(Exit::Ok)
}

fn list(snapshots: &[SnapshotInfo]) -> String {
    if snapshots.is_empty() {
        return "no snapshots; take one with `ashlar snapshot create VOLUME@NAME`".into();
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("MAPPED", Align::Right),
        ("CREATED", Align::Left),
        ("ATTACHED", Align::Left),
        ("CLONES", Align::Left),
    ]);
    for s in snapshots {
        table.row([
            s.name.clone(),
            size(s.size),
            size(s.mapped),
            timestamp(s.created_s),
            s.attached.clone().unwrap_or_else(|| "-".into()),
            clones(s),
        ]);
    }
    table.render(0)
}

fn clones(s: &SnapshotInfo) -> String {
    if s.clones.is_empty() { "-".into() } else { s.clones.join(" ") }
}

fn describe(s: &SnapshotInfo) -> String {
    pairs(
        &[
            ("name", s.name.clone()),
            ("id", s.id.to_string()),
            ("size", format!("{} ({} bytes)", size(s.size), s.size)),
            ("mapped", size(s.mapped)),
            ("held", s.held.map_or_else(|| "-".into(), |held| format!("{} come back when it is deleted", size(held)))),
            ("created", timestamp(s.created_s)),
            ("attached", s.attached.clone().unwrap_or_else(|| "-".into())),
            ("clones", clones(s)),
        ],
        0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_listed() {
        let snapshot = SnapshotInfo {
            name: "data@monday".into(),
            volume: "data".into(),
            id: 7,
            size: 10 << 30,
            mapped: 1 << 30,
            attached: None,
            created_s: 0,
            clones: vec!["a".into(), "b".into()],
            held: Some(5 << 20),
        };
        let text = list(std::slice::from_ref(&snapshot));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NAME           SIZE  MAPPED  CREATED"), "{text}");
        assert!(lines[1].starts_with("data@monday  10 GiB   1 GiB  1970-01-01"), "{text}");
        assert!(lines[1].ends_with("-         a b"), "{text}");
        assert!(list(&[]).contains("snapshot create"));
        assert!(describe(&snapshot).contains("clones:    a b"), "{}", describe(&snapshot));
        assert!(describe(&snapshot).contains("held:      5 MiB come back"), "{}", describe(&snapshot));
    }
}
