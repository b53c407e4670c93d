//! `ashlar lab`.

use std::time::Duration;

use blockdev::report::{Compression, DiskInfo, Tolerance};
use hyper::Method;
use serde::de::DeserializeOwned;

use super::Global;
use super::pool::parse_tolerance;
use crate::client::segment;
use crate::daemon::config::parse_compression;
use crate::exit::{CommandResult, Exit};
use crate::lab::{self, Report, Wanted};
use crate::output::tolerance_word;
use crate::output::{Format, micros, pairs, say, show, size};
use crate::values::{parse_delay, parse_pool_name, parse_size};
use crate::wire::lab::{CORRUPT_BYTES, CORRUPT_COUNT, DiskCorrupt, DiskCorrupted, DiskFault, DiskSlow};

const EXAMPLES: &str = "\
Examples:
  ashlar lab up --dir /tmp/lab --disks 6 --disk-size 2G --tolerance double
  ashlar --dir /tmp/lab volume create data --size 10G
  ashlar lab disk-pull --dir /tmp/lab 2          # data stays readable and writable
  ashlar lab disk-push --dir /tmp/lab 2          # it is back, and what it missed is written to it
  ashlar lab disk-slow --dir /tmp/lab 3 --delay 20ms
  ashlar lab disk-corrupt --dir /tmp/lab 4       # rot: the pool notices, and reads what is right
  ashlar lab kill --dir /tmp/lab                 # a power cut
  ashlar lab start --dir /tmp/lab                # attached volumes are attached again
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
    Start {
        /// Change nothing: to copy off what can be read when too many drives are gone
        #[arg(long)]
        read_only: bool,
    },
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
    /// Pull a disk: it answers every request with an error until it is pushed back
    ///
    /// It stays out across a restart. When it is out for longer than `failed_grace` (30 s), what it held is rebuilt on the others.
    #[command(
        visible_alias = "disk-fail",
        after_help = "Example:\n  ashlar lab disk-pull --dir /tmp/lab 2 && ashlar --dir /tmp/lab pool status"
    )]
    DiskPull {
        /// Index or name as in `disk list`
        disk: String,
    },
    /// Push a disk back that was pulled: it works again, with what it held, and the pool takes it in
    #[command(
        visible_alias = "disk-restore",
        after_help = "Example:\n  ashlar lab disk-push --dir /tmp/lab 2 && ashlar --dir /tmp/lab disk show 2"
    )]
    DiskPush {
        /// Index or name as in `disk list`
        disk: String,
    },
    /// Overwrite random places of a disk with random bytes, behind the pool's back
    ///
    /// Only where the disk's file holds something, and only where data lies. Not all of that is in use, and what is in memory is not read
    /// again: `pool check` finds what matters. A block that is written at the same moment may be lost, as on a drive that rots.
    #[command(after_help = "Examples:\n  ashlar lab disk-corrupt --dir /tmp/lab 4\n  \
        ashlar lab disk-corrupt --dir /tmp/lab 4 --count 5000 --bytes 4K\n  \
        ashlar lab disk-corrupt --dir /tmp/lab 4 --seed 7        # the same places again\n  \
        ashlar lab disk-corrupt --dir /tmp/lab 4 --anywhere      # labels and log, too")]
    DiskCorrupt {
        /// Index or name as in `disk list`
        disk: String,
        /// Places to overwrite
        #[arg(long, value_name = "N", default_value_t = CORRUPT_COUNT)]
        count: u64,
        /// Size of each place
        #[arg(long, value_name = "SIZE", default_value_t = CORRUPT_BYTES.to_string(), value_parser = checked_size)]
        bytes: String,
        /// Draws the same places and bytes again [default: drawn]
        #[arg(long, value_name = "NUMBER")]
        seed: Option<u64>,
        /// Also labels, superblocks, catalogue and log
        #[arg(long)]
        anywhere: bool,
    },
    /// Let a disk answer every request late
    ///
    /// It stays slow across a restart. With a delay of `disk_timeout` or more it is a disk that does not answer: the pool does without it.
    #[command(after_help = "Examples:\n  ashlar lab disk-slow --dir /tmp/lab 3 --delay 20ms\n  \
        ashlar lab disk-slow --dir /tmp/lab 3 --delay 0          # as fast as it is")]
    DiskSlow {
        /// Index or name as in `disk list`
        disk: String,
        /// By how much, such as 20ms, 500us, 2s; 0 turns it off
        #[arg(long, value_name = "TIME", value_parser = parse_delay)]
        delay: Duration,
    },
}

fn checked_size(text: &str) -> Result<String, blockdev::error::Error> {
    parse_size(text).map(|_| text.to_owned())
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let dir = global.need_dir()?;
    let format = global.output;
    match command {
        Command::Up { disks, disk_size, tolerance, name, memory, compression } => {
            let report = lab::up(&dir, &Wanted { name, disks, disk_size, tolerance, memory, compression })?;
            show(format, &report, |r| format!("{}\n{}", describe(r), next_commands(r)))?;
        }
        Command::Start { read_only } => {
            let (report, started) = lab::start(&dir, read_only)?;
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
            let report = lab::status(&dir)?;
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
        Command::DiskPull { disk } => set_pulled(global, &disk, "pull")?,
        Command::DiskPush { disk } => set_pulled(global, &disk, "push")?,
        Command::DiskSlow { disk, delay } => {
            let delay_us = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
            let fault: DiskFault = inject(global, &disk, "slow", &DiskSlow { delay_us })?;
            show(format, &fault, describe_fault)?;
        }
        Command::DiskCorrupt { disk, count, bytes, seed, anywhere } => {
            let request = DiskCorrupt { count, bytes: parse_size(&bytes)?, seed, anywhere };
            let done: DiskCorrupted = inject(global, &disk, "corrupt", &request)?;
            show(format, &done, describe_corrupted)?;
        }
    }
    Ok(Exit::Ok)
}

fn set_pulled(global: &Global, disk: &str, what: &str) -> CommandResult {
    let path = format!("/v1/lab/disks/{}/{what}", segment(disk));
    let disks: Vec<DiskInfo> = super::talk(global.client().send(Method::POST, &path))?;
    show(global.output, &disks, |disks| super::disk::table(disks, 0))
}

fn inject<T: DeserializeOwned>(
    global: &Global,
    disk: &str,
    what: &str,
    request: &impl serde::Serialize,
) -> CommandResult<T> {
    let path = format!("/v1/lab/disks/{}/{what}", segment(disk));
    super::talk(global.client().call(Method::POST, &path, Some(request)))
}

/// One drive and what is wrong with it, on purpose.
fn describe_fault(fault: &DiskFault) -> String {
    let slow = (fault.slow_us > 0).then(|| format!("slow by {}", micros(fault.slow_us)));
    let all: Vec<String> = fault.pulled.then(|| "pulled".to_owned()).into_iter().chain(slow).collect();
    let what = if all.is_empty() { "without faults".into() } else { all.join(", ") };
    format!("{}: {what}", fault.disk)
}

fn describe_corrupted(done: &DiskCorrupted) -> String {
    let what = if done.anywhere { "that it holds" } else { "that it holds of data" };
    format!(
        "{}: {} bytes at {} places, of {} {what}, were overwritten with random ones; --seed {} repeats it",
        done.disk,
        done.bytes,
        done.places,
        size(done.held),
        done.seed
    )
}

fn told(format: Format, report: &Report, what: &str) -> CommandResult {
    match format {
        Format::Json => show(format, report, describe),
        Format::Table => say(format!("the daemon of {} {what}", report.dir.display())),
    }
}

fn describe(report: &Report) -> String {
    let faults: Vec<String> = report.faults.iter().map(describe_fault).collect();
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
            ("faults", if faults.is_empty() { "none".into() } else { faults.join("; ") }),
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
