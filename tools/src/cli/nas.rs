//! `ashlar nas`.

use super::Global;
use crate::exit::{CommandResult, Exit};

mod export;
mod fs;
mod server;
mod snapshot;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// NAS servers: an address each, under which file systems are served
    #[command(subcommand)]
    Server(server::Command),
    /// What NAS servers export by NFS, and to whom
    #[command(subcommand)]
    Export(export::Command),
    /// File systems: create, list, resize, check, clone, restore, delete
    #[command(subcommand)]
    Fs(fs::Command),
    /// Snapshots of file systems
    #[command(subcommand)]
    Snapshot(snapshot::Command),
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    match command {
        Command::Server(command) => server::run(command, global),
        Command::Export(command) => export::run(command, global),
        Command::Fs(command) => fs::run(command, global),
        Command::Snapshot(command) => snapshot::run(command, global),
    }
}
