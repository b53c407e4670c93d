//! `ashlar disk`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use blockdev::error::ErrorKind;
use blockdev::report::{DiskInfo, DiskState, PoolStatus};
use hyper::Method;

use super::Global;
use crate::client::Client;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{Align, Table, show, size};
use crate::wire::{DiskAdd, ErrorBody};

/// Pause between looks at a removal.
const POLL: Duration = Duration::from_millis(300);

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// The pool's drives: state, size, errors, path
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  ashlar disk list -o json | jq '.[] | select(.state != \"online\")'"
    )]
    List,
    /// Add a drive of any size to the pool, while it is in use
    ///
    /// All it holds is lost. A drive with a partition table, a file system or another pool on it is refused without --force. New data
    /// goes to it at once; what is on the others stays there.
    #[command(
        after_help = "Examples:\n  ashlar disk add /dev/sdg\n  truncate -s 2G more.img && ashlar disk add more.img"
    )]
    Add {
        /// Block device, partition, loop device or plain file
        path: PathBuf,
        /// Overwrite what is on it
        #[arg(long)]
        force: bool,
    },
    /// Move everything off a drive and let it go, while the pool is in use
    ///
    /// Refused when the others have no room. Its label is wiped in the end. Take it out of `disks` in the configuration afterwards if it is
    /// listed there. A drive that is gone is struck off the list once what it held was rebuilt.
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  ashlar disk remove 3\n  ashlar disk remove /dev/sdc --no-wait"
    )]
    Remove {
        /// Number, path or file name, as `disk list` shows them
        disk: String,
        /// Only begin; `ashlar pool status` tells how far it is
        #[arg(long)]
        no_wait: bool,
    },
    /// Give a drive up: what it held is rebuilt on the others at once
    ///
    /// Refused when data could not be read without it.
    #[command(after_help = "Example:\n  ashlar disk fail 3 && ashlar pool status")]
    Fail {
        /// Number, path or file name, as `disk list` shows them
        disk: String,
    },
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let client = global.client();
    match command {
        Command::List => {
            let disks: Vec<DiskInfo> = super::talk(client.get("/v1/disks"))?;
            show(global.output, &disks, |disks| table(disks, 0))?;
        }
        Command::Add { path, force } => {
            let path = std::path::absolute(&path).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?;
            let request = DiskAdd { path: path.display().to_string(), force };
            let disk: DiskInfo = super::talk(client.call(Method::POST, "/v1/disks", Some(&request)))?;
            show(global.output, &disk, |d| format!("{} is disk {} now", d.path, d.id))?;
        }
        Command::Remove { disk, no_wait } => {
            let disk = super::talk(async {
                let id = find(&client, &disk).await?.id;
                let disk: DiskInfo = client.send(Method::DELETE, &format!("/v1/disks/{id}")).await?;
                if !no_wait {
                    until_gone(&client, &disk).await?;
                }
                Ok(disk)
            })?;
            let what = if no_wait { "is being removed" } else { "was removed" };
            show(global.output, &disk, |d| format!("disk {} ({}) {what}", d.id, d.path))?;
        }
        Command::Fail { disk } => {
            let disk: DiskInfo = super::talk(async {
                let id = find(&client, &disk).await?.id;
                client.send(Method::POST, &format!("/v1/disks/{id}/fail")).await
            })?;
            show(global.output, &disk, |d| {
                format!("disk {} ({}) was given up: what it held is rebuilt on the others", d.id, d.path)
            })?;
        }
    }
    Ok(Exit::Ok)
}

/// The disk of a number, a path or a file name.
async fn find(client: &Client, wanted: &str) -> CommandResult<DiskInfo> {
    let disks: Vec<DiskInfo> = client.get("/v1/disks").await?;
    let named = |d: &DiskInfo| {
        let path = Path::new(&d.path);
        d.id.to_string() == wanted
            || d.path == wanted
            || path.file_name().is_some_and(|n| n == wanted)
            || path.file_stem().is_some_and(|n| n == wanted)
    };
    let found: Vec<DiskInfo> = disks.into_iter().filter(named).collect();
    match <[DiskInfo; 1]>::try_from(found) {
        Ok([disk]) => Ok(disk),
        Err(all) if all.is_empty() => Err(Failure::from_body(ErrorBody {
            kind: ErrorKind::NotFound,
            message: format!("there is no disk '{wanted}'; `ashlar disk list` shows their number and path"),
        })),
        Err(_) => {
            Err(Failure::usage(format!("'{wanted}' fits several disks: use the number that `ashlar disk list` shows")))
        }
    }
}

/// Waits until a disk that is being removed is gone, with a bar when somebody watches.
async fn until_gone(client: &Client, disk: &DiskInfo) -> CommandResult {
    let bar = super::job::bar();
    loop {
        let status: PoolStatus = client.get("/v1/pool").await?;
        if !status.disks.iter().any(|d| d.uuid == disk.uuid) {
            bar.finish_and_clear();
            return Ok(());
        }
        if let Some(rebuild) = &status.rebuild {
            bar.set_message(format!("disk {}", disk.id));
            bar.set_length(rebuild.total);
            bar.set_position(rebuild.done);
        }
        if status.health == "failed"
            || status.alerts.iter().any(|a| ["pool.rebuild.no_room", "pool.damaged"].contains(&a.code.as_str()))
        {
            bar.finish_and_clear();
            let why: Vec<String> = status.alerts.into_iter().map(|a| a.message).collect();
            return Err(Failure::other(format!("disk {} cannot be emptied now: {}", disk.id, why.join("; "))));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// One word for a drive's state.
pub fn state_word(state: DiskState) -> &'static str {
    match state {
        DiskState::Online => "online",
        DiskState::Stale => "stale",
        DiskState::Removing => "removing",
        DiskState::Failing => "failing",
        DiskState::Failed => "failed",
        DiskState::Missing => "missing",
    }
}

/// The drives, one a line.
pub fn table(disks: &[DiskInfo], indent: usize) -> String {
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("STATE", Align::Left),
        ("SIZE", Align::Right),
        ("ALLOCATED", Align::Right),
        ("READ ERR", Align::Right),
        ("WRITE ERR", Align::Right),
        ("CKSUM ERR", Align::Right),
        ("PATH", Align::Left),
    ]);
    for disk in disks {
        table.row([
            disk.id.to_string(),
            state_word(disk.state).into(),
            size(disk.size),
            size(disk.allocated),
            disk.read_errors.to_string(),
            disk.write_errors.to_string(),
            disk.checksum_errors.to_string(),
            if disk.path.is_empty() { "-".into() } else { disk.path.clone() },
        ]);
    }
    table.render(indent)
}
