//! `ashlar disk`.

use blockdev::report::{DiskInfo, DiskState};

use super::Global;
use crate::exit::{CommandResult, Exit};
use crate::output::{Align, Table, show, size};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// The pool's drives: state, size, errors, path
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  ashlar disk list -o json | jq '.[] | select(.state != \"online\")'"
    )]
    List,
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let Command::List = command;
    let disks: Vec<DiskInfo> = super::talk(global.client().get("/v1/disks"))?;
    show(global.output, &disks, |disks| table(disks, 0))?;
    Ok(Exit::Ok)
}

/// One word for a drive's state.
pub fn state_word(state: DiskState) -> &'static str {
    match state {
        DiskState::Online => "online",
        DiskState::Stale => "stale",
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
