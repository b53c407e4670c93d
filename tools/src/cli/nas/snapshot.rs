//! `ashlar nas snapshot`.

use hyper::Method;

use super::fs::snapshot_path;
use crate::cli::snapshot::{KeptArguments, QuiesceArguments, expiry};
use crate::cli::volume::done;
use crate::cli::{Global, talk};
use crate::client::segment;
use crate::exit::{CommandResult, Exit};
use crate::output::{Align, Table, show, timestamp};
use crate::wire::nas::SnapshotMount;
use crate::wire::protection::{GroupSnapshot, GroupSnapshotCreate};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Take a snapshot of a file system, at once, with everything that was done before
    ///
    /// Rules take them too: give the file system a policy (`ashlar policy assign POLICY --group FILESYSTEM`).
    #[command(after_help = "Example:\n  ashlar nas snapshot create home@monday --for 7d")]
    Create {
        /// FILESYSTEM@SNAPSHOT
        #[arg(value_name = "FILESYSTEM@SNAPSHOT")]
        name: String,
        #[command(flatten)]
        kept: KeptArguments,
        #[command(flatten)]
        quiesce: QuiesceArguments,
    },
    /// Snapshots of a file system, oldest first
    #[command(visible_alias = "ls")]
    List {
        /// The file system
        name: String,
    },
    /// Mount a snapshot, for files of it to be read or copied, until it is unmounted or the daemon ends
    #[command(
        after_help = "Example:\n  cp \"$(ashlar nas snapshot mount home@monday -o json | jq -r .path)/report.txt\" ."
    )]
    Mount {
        /// FILESYSTEM@SNAPSHOT
        #[arg(value_name = "FILESYSTEM@SNAPSHOT")]
        name: String,
    },
    /// Unmount a snapshot
    #[command(visible_alias = "umount")]
    Unmount {
        /// FILESYSTEM@SNAPSHOT
        #[arg(value_name = "FILESYSTEM@SNAPSHOT")]
        name: String,
    },
    /// Delete a snapshot; clones stay, and space comes back in the background
    #[command(visible_alias = "rm")]
    Delete {
        /// FILESYSTEM@SNAPSHOT
        #[arg(value_name = "FILESYSTEM@SNAPSHOT")]
        name: String,
    },
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let (client, format) = (global.client(), global.output);
    match command {
        Command::Create { name, kept, quiesce } => {
            // The name decides the path as well as the body.
            snapshot_path(&name)?;
            let (fs, snapshot) = name.split_once('@').unwrap_or((&name, ""));
            let request = GroupSnapshotCreate {
                name: snapshot.to_owned(),
                expires_in_s: kept.keep_for,
                secure: kept.secure,
                quiesce: quiesce.wanted(),
            };
            let to = format!("/v1/nas/filesystems/{}/snapshots", segment(fs));
            let taken: GroupSnapshot = talk(client.call(Method::POST, &to, Some(&request)))?;
            show(format, &taken, |s| format!("snapshot {} taken", s.name))?;
        }
        Command::List { name } => {
            let to = format!("/v1/nas/filesystems/{}/snapshots", segment(&name));
            let all: Vec<GroupSnapshot> = talk(client.get(&to))?;
            show(format, &all, |all| list(all))?;
        }
        Command::Mount { name } => {
            let mounted: SnapshotMount = talk(client.send(Method::POST, &format!("{}/mount", snapshot_path(&name)?)))?;
            show(format, &mounted, |m| m.path.clone())?;
        }
        Command::Unmount { name } => {
            talk(client.send::<()>(Method::DELETE, &format!("{}/mount", snapshot_path(&name)?)))?;
            done(format, "snapshot", &name, "unmounted")?;
        }
        Command::Delete { name } => {
            snapshot_path(&name)?;
            let (fs, snapshot) = name.split_once('@').unwrap_or((&name, ""));
            let to = format!("/v1/groups/{}/snapshots/{}", segment(fs), segment(snapshot));
            talk(client.send::<()>(Method::DELETE, &to))?;
            done(format, "snapshot", &name, "deleted")?;
        }
    }
    Ok(Exit::Ok)
}

fn list(all: &[GroupSnapshot]) -> String {
    if all.is_empty() {
        return "no snapshots; take one with `ashlar nas snapshot create FILESYSTEM@SNAPSHOT`".into();
    }
    let mut table = Table::new(&[("NAME", Align::Left), ("CREATED", Align::Left), ("EXPIRES", Align::Left)]);
    for s in all {
        table.row([s.name.clone(), timestamp(s.created_s), expiry(s.expires_s, s.secure)]);
    }
    table.render(0)
}
