//! `ashlar lab`.

use blockdev::report::{Compression, DiskInfo, Tolerance};
use hyper::Method;

use super::Global;
use super::pool::{parse_tolerance, tolerance_word};
use crate::client::segment;
use crate::exit::{CommandResult, Exit};
use crate::lab::{self, Report, Wanted};
use crate::output::{Format, pairs, say, show, size};
use crate::values::{parse_pool_name, parse_size};

const EXAMPLES: &str = "\
Examples:
  ashlar lab up --dir /tmp/lab --disks 6 --disk-size 2G --tolerance double
  ashlar --dir /tmp/lab volume create data --size 10G
  ashlar lab disk-fail --dir /tmp/lab 2          # pull a drive
  ashlar lab kill --dir /tmp/lab                 # a power cut
  ashlar lab start --dir /tmp/lab                # attached volumes are attached again
  ashlar lab disk-restore --dir /tmp/lab 2
  ashlar lab down --dir /tmp/lab                 # nothing is left";

#[derive(Debug, clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum Command {
    /// Make files as disks, a pool on them, and start the daemon in the background
    ///
    /// A laboratory that is there already is only started, if it has the size asked for.
    #[command(after_help = EXAMPLES)]
    Up {
        /// Number of disks [default: 6]
        #[arg(long, value_name = "N")]
        disks: Option<usize>,
        /// Size of each disk; the files are sparse [default: 2G]
        #[arg(long, value_parser = parse_size, value_name = "SIZE")]
        disk_size: Option<u64>,
        /// Drives that may fail without loss [default: single, or none with one disk]
        #[arg(long, value_parser = parse_tolerance, value_name = "none|single|double")]
        tolerance: Option<Tolerance>,
        /// Name of the pool [default: lab]
        #[arg(long, value_parser = parse_pool_name)]
        name: Option<String>,
        /// Memory budget of the daemon, such as 512M; by the machine's size when left out
        #[arg(long, value_name = "SIZE", value_parser = checked_size)]
        memory: Option<String>,
        /// How data is compressed [default: zstd]
        #[arg(long, value_parser = parse_compression, value_name = "zstd|lz4|off")]
        compression: Option<Compression>,
    },
    /// Start the daemon
    Start,
    /// Stop the daemon in order
    Stop {
        /// Also while file systems on its volumes are mounted
        #[arg(long)]
        force: bool,
    },
    /// Kill the daemon (SIGKILL), as a power cut would
    Kill,
    /// Whether the daemon runs, and what the laboratory is made of; exit code 6 when it does not run
    Status,
    /// Take everything away: daemon, mounts, loop devices, files
    Down,
    /// Let a disk answer every request with an error, until it is restored
    DiskFail {
        /// Index or name as in `disk list`
        disk: String,
    },
    /// Let a failed disk work again
    DiskRestore {
        /// Index or name as in `disk list`
        disk: String,
    },
}

fn checked_size(text: &str) -> Result<String, blockdev::error::Error> {
    parse_size(text).map(|_| text.to_owned())
}

fn parse_compression(text: &str) -> Result<Compression, String> {
    match text {
        "zstd" => Ok(Compression::Zstd),
        "lz4" => Ok(Compression::Lz4),
        "off" => Ok(Compression::Off),
        _ => Err("use zstd, lz4 or off".into()),
    }
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let dir = global.need_dir()?;
    let format = global.output;
    match command {
        Command::Up { disks, disk_size, tolerance, name, memory, compression } => {
            let report = lab::up(&dir, &Wanted { name, disks, disk_size, tolerance, memory, compression })?;
            show(format, &report, |r| format!("{}\n{}", describe(r), next_commands(r)))?;
        }
        Command::Start => {
            let (report, started) = lab::start(&dir)?;
            told(format, &report, if started { "started" } else { "was running already" })?;
        }
        Command::Stop { force } => {
            let (report, stopped) = lab::stop(&dir, force)?;
            told(format, &report, if stopped { "stopped" } else { "was not running" })?;
        }
        Command::Kill => {
            let (report, killed) = lab::kill(&dir)?;
            told(format, &report, if killed { "killed" } else { "was not running" })?;
        }
        Command::Status => {
            let report = lab::report(&lab::Lab::open(&dir)?)?;
            show(format, &report, describe)?;
            return Ok(lab::status_exit(&report));
        }
        Command::Down => {
            let left = lab::down(&dir)?;
            show(format, &serde_json::json!({ "dir": dir, "left": left }), |_| {
                let mut text = format!("the laboratory in {} is gone\n", dir.display());
                for path in &left {
                    text.push_str(&format!("left alone, not made by it: {}\n", path.display()));
                }
                text
            })?;
        }
        Command::DiskFail { disk } => set_fault(global, &disk, "fail")?,
        Command::DiskRestore { disk } => set_fault(global, &disk, "restore")?,
    }
    Ok(Exit::Ok)
}

fn set_fault(global: &Global, disk: &str, what: &str) -> CommandResult {
    let path = format!("/v1/lab/disks/{}/{what}", segment(disk));
    let disks: Vec<DiskInfo> = super::talk(global.client().send(Method::POST, &path))?;
    show(global.output, &disks, |disks| super::disk::table(disks, 0))
}

fn told(format: Format, report: &Report, what: &str) -> CommandResult {
    match format {
        Format::Json => show(format, report, describe),
        Format::Table => say(format!("the daemon of {} {what}", report.dir.display())),
    }
}

fn describe(report: &Report) -> String {
    let daemon = report.pid.map_or("not running".into(), |pid| format!("running, process {pid}"));
    pairs(
        &[
            ("laboratory", report.dir.display().to_string()),
            ("daemon", daemon),
            ("pool", report.name.clone()),
            ("disks", format!("{} of {}", report.disks, size(report.disk_size))),
            ("tolerance", tolerance_word(report.tolerance).into()),
            ("socket", report.socket.display().to_string()),
            ("log", report.log.display().to_string()),
        ],
        0,
    )
}

fn next_commands(report: &Report) -> String {
    let dir = report.dir.display();
    format!(
        "Next:\n  export ASHLAR_DIR='{dir}'\n  ashlar pool status\n  ashlar volume create data --size 10G\n  \
         ashlar volume attach data --via nbd\n  ashlar lab down\n"
    )
}
