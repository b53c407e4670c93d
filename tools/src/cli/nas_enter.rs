//! `ashlar nas-enter`: what the daemon starts to become a protocol server in the namespaces of a NAS server.

use std::ffi::OsString;
use std::path::PathBuf;

use nas::server::enter::Enter;

use crate::exit::{CommandResult, Exit};

/// What to enter, and what to become.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the host
    #[arg(long)]
    name: String,
    /// Network namespace
    #[arg(long)]
    namespace: String,
    /// What becomes /run
    #[arg(long)]
    run: PathBuf,
    /// What becomes /var/lib/nfs
    #[arg(long)]
    state: PathBuf,
    /// Where file systems are mounted
    #[arg(long)]
    file_systems: PathBuf,
    /// Library to be loaded
    #[arg(long)]
    preload: Option<PathBuf>,
    /// The process that starts this one
    #[arg(long)]
    parent: u32,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

pub fn run(arguments: Arguments) -> CommandResult<Exit> {
    let Arguments { name, namespace, run, state, file_systems, preload, parent, program } = arguments;
    let enter = Enter { name, namespace, run, state, file_systems, preload, parent };
    // At least the program, clap says.
    Err(enter.exec(&program[0], &program[1..]).into())
}
