//! `ashlar nas`.

use super::Global;
use crate::exit::{CommandResult, Exit};

mod fs;
mod snapshot;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// File systems: create, list, resize, check, clone, restore, delete
    #[command(subcommand)]
    Fs(fs::Command),
    /// Snapshots of file systems
    #[command(subcommand)]
    Snapshot(snapshot::Command),
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    match command {
        Command::Fs(command) => fs::run(command, global),
        Command::Snapshot(command) => snapshot::run(command, global),
    }
}
