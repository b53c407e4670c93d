//! The command line: what can be said, and who does it. One file per noun.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::client::{Client, socket_in};
use crate::exit::{CommandResult, Exit, Failure, HELP};
use crate::output::Format;

mod alert;
mod config;
mod disk;
mod doctor;
mod estimate;
mod event;
mod group;
pub mod hold_frozen;
mod job;
mod lab;
mod nas;
mod nas_enter;
mod policy;
mod pool;
mod rule;
mod serve;
mod snapshot;
mod upgrade;
mod volume;

const EXAMPLES: &str = "\
Examples:
  A laboratory with six files as disks, a volume, and a file system on it:
    ashlar lab up --dir /tmp/lab
    export ASHLAR_DIR=/tmp/lab
    ashlar volume create data --size 10G
    ashlar volume attach data --via nbd          # prints the URI for qemu, fio, nbdcopy
    ashlar pool status
    ashlar lab down

  A real appliance:
    ashlar pool create store --disk /dev/sdb /dev/sdc /dev/sdd --config /etc/ashlar.toml
    ashlar serve --config /etc/ashlar.toml";

/// A storage appliance: thin volumes that are deduplicated, compressed and protected against drive failure.
///
/// `ashlar serve` is the daemon. Every other command talks to it over a unix socket; `lab`, `pool create`, `estimate`, `doctor`, `completions` and
/// `config show --config` work without it.
#[derive(Debug, Parser)]
#[command(name = "ashlar", version, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{HELP}"))]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options every command takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Global {
    /// Directory of the appliance [env: ASHLAR_DIR]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub dir: Option<PathBuf>,
    /// Socket of the daemon's API, instead of the one in DIR
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    pub socket: Option<PathBuf>,
    /// How to answer: for people, or exact and stable for scripts
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value = "table",
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub output: Format,
}

impl Global {
    /// The daemon these options choose.
    pub fn client(&self) -> Client {
        match (&self.socket, &self.dir) {
            (Some(socket), _) => Client::new(socket.clone(), None),
            (None, Some(dir)) => Client::new(socket_in(dir), Some(dir.clone())),
            (None, None) => Client::new("/run/ashlar/api.sock".into(), None),
        }
    }

    /// The directory, which laboratory commands need.
    pub fn need_dir(&self) -> CommandResult<PathBuf> {
        let Some(dir) = &self.dir else {
            return Err(Failure::usage("name the laboratory's directory: --dir DIR (or set ASHLAR_DIR)"));
        };
        std::path::absolute(dir).map_err(|e| Failure::usage(format!("the directory {}: {e}", dir.display())))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Status, statistics and check of the pool; making one
    #[command(subcommand)]
    Pool(pool::Command),
    /// Volumes: create, list, resize, delete, attach, clone, restore
    #[command(subcommand)]
    Volume(volume::Command),
    /// Snapshots of volumes: take, list, delete
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Groups of volumes whose snapshots are of one instant
    #[command(subcommand)]
    Group(group::Command),
    /// Rules: when snapshots are taken, and for how long they are kept
    #[command(subcommand)]
    Rule(rule::Command),
    /// Protection policies: rules for volumes and groups
    #[command(subcommand)]
    Policy(policy::Command),
    /// NAS servers, file systems, and what is exported to whom
    #[command(subcommand)]
    Nas(nas::Command),
    /// Drives of the pool
    #[command(subcommand)]
    Disk(disk::Command),
    /// What is wrong now
    #[command(subcommand)]
    Alert(alert::Command),
    /// What happened to the appliance
    #[command(subcommand)]
    Event(event::Command),
    /// Long work of the daemon
    #[command(subcommand)]
    Job(job::Command),
    /// A whole appliance from files, for trying and testing
    #[command(subcommand)]
    Lab(lab::Command),
    /// Run the daemon
    Serve(serve::Command),
    /// Go on with another program, without a restart: hosts wait for a moment
    Upgrade(upgrade::Arguments),
    /// The configuration and where each value comes from
    #[command(subcommand)]
    Config(config::Command),
    Estimate(estimate::Arguments),
    /// What daemons that ended badly left on this machine, and what to do about it
    Doctor(doctor::Arguments),
    /// What the daemon starts to freeze file systems
    #[command(hide = true)]
    HoldFrozen(hold_frozen::Arguments),
    /// What the daemon starts to become a protocol server
    #[command(hide = true)]
    NasEnter(nas_enter::Arguments),
    /// Completions for a shell
    #[command(after_help = "Example:\n  ashlar completions bash > /etc/bash_completion.d/ashlar")]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Parses the command line, does it, and gives the exit code.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let mut cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        // Asking for help is no mistake.
        Err(mistake) if mistake.use_stderr() && asks_for_json(&arguments) => {
            let failure = Failure::usage(message_of(&mistake));
            failure.report(Format::Json);
            return ExitCode::from(failure.exit as u8);
        }
        Err(other) => other.exit(),
    };
    // One that is set to nothing is as one that is not set.
    let environment = || std::env::var_os("ASHLAR_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    cli.global.dir = cli.global.dir.take().or_else(environment);
    match run(cli.command, &cli.global) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            failure.report(cli.global.output);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Whether a command line that cannot be parsed asks for JSON: scripts read the answer, whatever it says.
fn asks_for_json(arguments: &[OsString]) -> bool {
    let before_values = arguments.split(|a| a == "--").next().unwrap_or_default();
    let together = |a: &OsString| ["-ojson", "-o=json", "--output=json"].iter().any(|form| a == form);
    let apart = |pair: &[OsString]| (pair[0] == "-o" || pair[0] == "--output") && pair[1] == "json";
    before_values.iter().any(together) || before_values.windows(2).any(apart)
}

/// What is wrong with a command line, without the word that begins it for people.
fn message_of(mistake: &clap::Error) -> String {
    let text = mistake.render().to_string();
    text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned()
}

fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    match command {
        Command::Pool(command) => pool::run(command, global),
        Command::Volume(command) => volume::run(command, global),
        Command::Snapshot(command) => snapshot::run(command, global),
        Command::Group(command) => group::run(command, global),
        Command::Rule(command) => rule::run(command, global),
        Command::Policy(command) => policy::run(command, global),
        Command::Nas(command) => nas::run(command, global),
        Command::Disk(command) => disk::run(command, global),
        Command::Alert(command) => alert::run(command, global),
        Command::Event(command) => event::run(command, global),
        Command::Job(command) => job::run(command, global),
        Command::Lab(command) => lab::run(command, global),
        Command::Serve(command) => serve::run(command, global),
        Command::Upgrade(arguments) => upgrade::run(&arguments, global),
        Command::Config(command) => config::run(command, global),
        Command::Estimate(arguments) => estimate::run(&arguments, global),
        Command::Doctor(arguments) => doctor::run(&arguments, global),
        Command::NasEnter(arguments) => nas_enter::run(arguments),
        Command::HoldFrozen(arguments) => hold_frozen::run(&arguments),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ashlar", &mut text);
            crate::output::say(String::from_utf8_lossy(&text))?;
            Ok(Exit::Ok)
        }
    }
}

/// Runs a conversation with the daemon on this thread.
pub fn talk<T>(conversation: impl Future<Output = CommandResult<T>>) -> CommandResult<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::other(format!("starting the runtime: {e}")))?.block_on(conversation)
}

#[cfg(test)]
mod tests;
