//! `ashlar snapshot`.

use blockdev::report::SnapshotInfo;
use hyper::Method;

use super::Global;
use super::volume::done;
use crate::client::segment;
use crate::exit::{CommandResult, Exit};
use crate::output::{Align, Table, pairs, show, size, timestamp};
use crate::values::parse_span;
use crate::wire::snapshots::{Quiesce, Snapshot, SnapshotCreate, SnapshotKeep};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Take snapshots, at once: all that was answered before is in them
    ///
    /// A snapshot takes no time and no space; what it alone holds is kept when its volume changes. Several are of one instant, in the order of all
    /// writes. Attach one to read it (`ashlar volume attach VOLUME@SNAPSHOT --via nbd`), clone it to write to it.
    #[command(
        after_help = "Examples:\n  ashlar snapshot create data@monday\n  ashlar snapshot create db@before-upgrade logs@before-upgrade   # the same instant\n  ashlar snapshot create files@clean --freeze     # of the file system that is mounted on it"
    )]
    Create {
        /// VOLUME@SNAPSHOT, one or more
        #[arg(required = true, value_name = "VOLUME@SNAPSHOT")]
        names: Vec<String>,
        #[command(flatten)]
        kept: KeptArguments,
        #[command(flatten)]
        quiesce: QuiesceArguments,
    },
    /// Change how long snapshots are kept
    ///
    /// From then on their rule does not count them. Secure ones can be kept for longer, never for less. Time is counted while the pool is open, whatever
    /// the machine's clock shows.
    #[command(
        after_help = "Examples:\n  ashlar snapshot keep data@monday --for 30d\n  ashlar snapshot keep data@monday --for 30d --secure\n  ashlar snapshot keep data@monday --forever"
    )]
    Keep {
        /// VOLUME@SNAPSHOT, one or more
        #[arg(required = true, value_name = "VOLUME@SNAPSHOT")]
        names: Vec<String>,
        #[command(flatten)]
        kept: KeptArguments,
        /// Until somebody deletes them
        #[arg(long, conflicts_with_all = ["keep_for", "secure"], required_unless_present = "keep_for")]
        forever: bool,
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

/// How long snapshots are kept.
#[derive(Debug, clap::Args)]
pub struct KeptArguments {
    /// They expire after so long, such as 12h, 7d, 4w; without it they stay until somebody deletes them
    #[arg(long = "for", value_name = "TIME", value_parser = parse_span)]
    pub keep_for: Option<u64>,
    /// Nobody can delete them before that: no user, no command, no rule
    #[arg(long, requires = "keep_for")]
    pub secure: bool,
}

/// How applications are made ready.
#[derive(Debug, clap::Args)]
pub struct QuiesceArguments {
    /// Freeze file systems that are mounted on the volumes' devices on this machine, so that they need no repair
    #[arg(long)]
    pub freeze: bool,
    /// Run this program of the daemon's `hooks_dir` before (`pre`) and after (`post`, or `failed`)
    #[arg(long, value_name = "NAME")]
    pub hook: Option<String>,
}

impl QuiesceArguments {
    /// As the API wants it.
    pub fn wanted(self) -> Quiesce {
        Quiesce { freeze: self.freeze, hook: self.hook }
    }
}

fn path(name: &str) -> String {
    format!("/v1/snapshots/{}", segment(name))
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let client = global.client();
    let format = global.output;
    match command {
        Command::Create { names, kept, quiesce } => {
            let KeptArguments { keep_for, secure } = kept;
            let freeze = quiesce.freeze;
            let request = SnapshotCreate { names, expires_in_s: keep_for, secure, quiesce: quiesce.wanted() };
            let taken: Vec<Snapshot> = super::talk(client.call(Method::POST, "/v1/snapshots", Some(&request)))?;
            let open = freeze && taken.iter().any(|s| !s.info.quiesced);
            show(format, &taken, |all| {
                let lines: Vec<String> = all.iter().map(|s| format!("snapshot {} taken", s.info.name)).collect();
                let note = if open { "\nnothing was frozen: no file system is mounted on it here" } else { "" };
                format!("{}{note}", lines.join("\n"))
            })?;
        }
        Command::Keep { names, kept, forever: _ } => {
            for name in names {
                let request = SnapshotKeep { expires_in_s: kept.keep_for, secure: kept.secure };
                let kept: Snapshot = super::talk(client.call(Method::PATCH, &path(&name), Some(&request)))?;
                show(format, &kept, |s| {
                    format!("snapshot {name} expires: {}", expiry(s.info.expires_s, s.info.secure))
                })?;
            }
        }
        Command::List { volume } => {
            let query = volume.map_or(String::new(), |name| format!("?volume={}", segment(&name)));
            let all: Vec<Snapshot> = super::talk(client.get(&format!("/v1/snapshots{query}")))?;
            show(format, &all, |all| list(all))?;
        }
        Command::Show { name } => {
            let snapshot: Snapshot = super::talk(client.get(&path(&name)))?;
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

fn list(snapshots: &[Snapshot]) -> String {
    if snapshots.is_empty() {
        return "no snapshots; take one with `ashlar snapshot create VOLUME@NAME`".into();
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("MAPPED", Align::Right),
        ("CREATED", Align::Left),
        ("EXPIRES", Align::Left),
        ("RULE", Align::Left),
        ("ATTACHED", Align::Left),
        ("CLONES", Align::Left),
    ]);
    for Snapshot { info: s, rule, .. } in snapshots {
        table.row([
            s.name.clone(),
            size(s.size),
            size(s.mapped),
            timestamp(s.created_s),
            expiry(s.expires_s, s.secure),
            rule.clone().unwrap_or_else(|| "-".into()),
            s.attached.clone().unwrap_or_else(|| "-".into()),
            clones(s),
        ]);
    }
    table.render(0)
}

fn clones(s: &SnapshotInfo) -> String {
    if s.clones.is_empty() { "-".into() } else { s.clones.join(" ") }
}

/// When a snapshot expires.
pub fn expiry(expires_s: Option<u64>, secure: bool) -> String {
    let when = expires_s.map_or_else(|| "-".into(), timestamp);
    if secure { format!("{when} (secure)") } else { when }
}

fn describe(snapshot: &Snapshot) -> String {
    let s = &snapshot.info;
    let or_none = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".into());
    pairs(
        &[
            ("name", s.name.clone()),
            ("id", s.id.to_string()),
            ("size", format!("{} ({} bytes)", size(s.size), s.size)),
            ("mapped", size(s.mapped)),
            ("held", s.held.map_or_else(|| "-".into(), |held| format!("{} come back when it is deleted", size(held)))),
            ("created", timestamp(s.created_s)),
            ("expires", expiry(s.expires_s, s.secure)),
            ("quiesced", if s.quiesced { "yes" } else { "no: as a power cut would leave it" }.into()),
            ("rule", or_none(&snapshot.rule)),
            ("group", or_none(&snapshot.group)),
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
        let info = SnapshotInfo {
            name: "data@monday".into(),
            volume: "data".into(),
            id: 7,
            size: 10 << 30,
            mapped: 1 << 30,
            attached: None,
            created_s: 0,
            clones: vec!["a".into(), "b".into()],
            held: Some(5 << 20),
            expires_s: Some(3600),
            secure: true,
            quiesced: true,
            rule_id: 3,
            group_id: 0,
        };
        let snapshot = Snapshot { info, rule: Some("hourly".into()), group: None };
        let text = list(std::slice::from_ref(&snapshot));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NAME           SIZE  MAPPED  CREATED"), "{text}");
        assert!(lines[1].starts_with("data@monday  10 GiB   1 GiB  1970-01-01"), "{text}");
        assert!(lines[1].ends_with("1970-01-01 01:00:00Z (secure)  hourly  -         a b"), "{text}");
        assert!(list(&[]).contains("snapshot create"));
        assert!(describe(&snapshot).contains("clones:    a b"), "{}", describe(&snapshot));
        assert!(describe(&snapshot).contains("held:      5 MiB come back"), "{}", describe(&snapshot));
    }
}
