//! `ashlar estimate`: what data would take in a pool, before it is moved there. Works without a daemon and writes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blockdev::estimate::{Estimate, Figure};
use blockdev::redundancy::layout;
use blockdev::report::{Compression, Tolerance};
use blockdev::units::BLOCK_BYTES;
use serde::Serialize;
use tokio::signal::unix::SignalKind;

use super::Global;
use crate::daemon::config::parse_compression;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{ratio, show};
use crate::values::parse_size;

mod describe;
mod scan;
mod source;
mod walk;

use describe::{describe, left_out};
use scan::{Options, Problems, Progress, Scanned, Survey};

/// Bytes up to which everything is read unless told otherwise.
const FULL_MAX: u64 = 16 << 30;
/// Share that is read of more, in per cent.
const SAMPLE_DEFAULT: f64 = 5.0;
/// Fewest regions of a sample: fewer tell nothing about their errors.
const SAMPLED_MIN: u64 = 64;
/// Least memory for fingerprints.
const MEMORY_MIN: u64 = 1 << 20;
/// Pause between two looks at the progress.
const WATCH: Duration = Duration::from_millis(200);

/// What a pool would make of data, before it is moved in: devices, files, directories
///
/// Zero blocks take no space, duplicates are stored once, the rest is compressed: all of that is done here as a pool would, by the same code,
/// without a daemon, and nothing is written. Duplicates are found across all that is named. Data in use may change while it is read; a
/// snapshot of it gives figures of one instant.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar estimate /dev/sdb
  ashlar estimate disk1.raw disk2.raw -o json | jq .total_ratio.value
  ashlar estimate /srv/images --precision full
  ashlar estimate /dev/mapper/vg-* --sample 2

Precision:
  full    reads everything. Exact, if the fingerprints of all distinct blocks fit into --memory (17 bytes for each 4 KiB; about 28 GiB of
          distinct data with the default). Beyond that it knows one in 2, 4, 8… of them, and says how far that may be off: some tenths of
          a per cent.
  sample  reads regions of 1 MiB chosen at random, at least 64. Zeroes and compression have an error bar. Duplicates of what was not read
          cannot be known: their range goes from what the sample shows for certain to what it suggests, and is wide for small samples.
  auto    full up to 16 GiB of data, sample beyond.

Files of a file system are counted as if each began at a block of its own, without the file system's metadata. What a pool takes for its
own metadata (about 3 %) and keeps as reserve and spare is not counted. Exit code 1 when something could not be read, or when it was
interrupted (Ctrl-C: the figures of what was read until then are shown).")]
pub struct Arguments {
    /// Block devices, files, directories
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Read everything, or a part that is chosen at random
    #[arg(long, value_enum, default_value = "auto")]
    precision: Precision,
    /// Share of the data that is read, in per cent; implies --precision sample [default: 5]
    #[arg(long, value_parser = parse_percent, value_name = "PERCENT", allow_negative_numbers = true)]
    sample: Option<f64>,
    /// Chooses what a sample reads; the same number reads the same again [default: another one each time]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u32>,
    /// Memory for fingerprints
    #[arg(long, value_parser = parse_memory, default_value = "256M", value_name = "SIZE")]
    memory: u64,
    /// How the pool would compress: zstd, lz4 or off
    #[arg(long, value_parser = parse_compression, default_value = "zstd", value_name = "METHOD")]
    compression: Compression,
    /// Drives of the pool, for what parity takes
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=96), default_value = "6", value_name = "N")]
    drives: u16,
    /// Walk directories into other file systems that are mounted below
    #[arg(long)]
    cross_file_systems: bool,
}

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Precision {
    /// Full up to 16 GiB of data, sample beyond
    Auto,
    /// Everything
    Full,
    /// A part, chosen at random
    Sample,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    match text.trim().trim_end_matches('%').trim_end().parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        Ok(_) => Err("a share is more than 0 and at most 100 per cent".into()),
        Err(_) => Err("write a share in per cent, such as 5 or 0.5".into()),
    }
}

fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(bytes) if bytes >= MEMORY_MIN => Ok(bytes),
        Ok(_) => Err("1 MiB is the least that tells something".into()),
        Err(e) => Err(e.to_string()),
    }
}

/// What was chosen at random.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    /// Regions of 1 MiB that were to be read.
    regions: u64,
    /// Regions there were.
    of: u64,
    /// Reads the same again.
    seed: u32,
}

/// What could not be read and is not counted.
#[derive(Debug, Serialize)]
struct Unreadable {
    /// Files and directories.
    files: u64,
    /// Bytes of files that could be opened.
    bytes: u64,
    /// About the first of them.
    messages: Vec<String>,
}

/// What the data would take on the drives of a pool.
#[derive(Debug, Serialize)]
struct Raw {
    tolerance: Tolerance,
    drives: usize,
    /// Data and parity columns, such as `4+1`.
    layout: String,
    /// Bytes with parity; metadata, spare and reserve not counted.
    bytes: Figure<u64>,
}

/// The answer. Sizes are bytes; a figure has a value and the range it lies in, and was counted when these are the same.
#[derive(Debug, Serialize)]
struct Report {
    paths: Vec<String>,
    /// Files and devices.
    files: u64,
    /// How it was read: `full` or `sample`.
    precision: &'static str,
    /// How it was chosen, if not everything was read.
    sample: Option<Sample>,
    compression: Compression,
    #[serde(flatten)]
    estimate: Estimate,
    /// For the tolerances that so many drives allow; without one it is what is stored.
    raw: Vec<Raw>,
    unreadable: Unreadable,
    /// Whether it was stopped: then the figures are those of what came before.
    interrupted: bool,
}

pub fn run(arguments: &Arguments, global: &Global) -> CommandResult<Exit> {
    if arguments.sample.is_some() && arguments.precision == Precision::Full {
        return Err(Failure::usage("full precision reads everything: leave --sample or --precision full out"));
    }
    let roots = walk::Roots::new(&arguments.paths, arguments.cross_file_systems)?;
    let progress = Arc::new(Progress::default());
    let plan = Plan {
        precision: if arguments.sample.is_some() { Precision::Sample } else { arguments.precision },
        percent: arguments.sample.unwrap_or(SAMPLE_DEFAULT),
        seed: arguments.seed.unwrap_or_else(any_seed),
        memory: arguments.memory,
        compression: arguments.compression,
    };
    let (sample, scanned) = watch(&progress, {
        let progress = progress.clone();
        move || plan.run(&roots, &progress)
    })?;
    let report = Report::new(arguments, sample, scanned);
    report.unreadable.messages.iter().for_each(|message| eprintln!("not counted: {message}"));
    let nothing = report.estimate.size == 0 && report.unreadable.files > 0;
    if !nothing {
        show(global.output, &report, describe)?;
    }
    match (report.interrupted, report.unreadable.files) {
        (true, _) => Err(Failure::other("interrupted: the figures are those of what was read until then")),
        (false, 0) => Ok(Exit::Ok),
        (false, n) => Err(Failure::other(left_out(n))),
    }
}

/// What to do, once it is known how much data there is.
struct Plan {
    precision: Precision,
    percent: f64,
    seed: u32,
    memory: u64,
    compression: Compression,
}

impl Plan {
    fn run(&self, roots: &walk::Roots, progress: &Progress) -> (Option<Sample>, Scanned) {
        let survey = Survey::of(roots, progress);
        let sample = self.sample(survey);
        let wanted = sample.map(|s| (s.regions, s.seed.into()));
        let options = Options { wanted, memory: self.memory, compression: self.compression };
        (sample, scan::scan(roots, survey, &options, progress))
    }

    /// What is read; none for everything.
    fn sample(&self, survey: Survey) -> Option<Sample> {
        let full = match self.precision {
            Precision::Auto => survey.blocks * BLOCK_BYTES <= FULL_MAX,
            Precision::Full => true,
            Precision::Sample => false,
        };
        let of = survey.regions();
        let regions = ((of as f64 * self.percent / 100.0).ceil() as u64).max(SAMPLED_MIN);
        (!full && regions < of).then_some(Sample { regions, of, seed: self.seed })
    }
}

/// A number that differs from time to time.
fn any_seed() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() as u32
}

/// Does `work` on a thread of its own, with a bar when somebody watches. Ctrl-C stops it; a second one ends the process.
fn watch<T: Send + 'static>(progress: &Progress, work: impl FnOnce() -> T + Send + 'static) -> CommandResult<T> {
    super::talk(async {
        let bar = super::job::bar();
        // Until it is known how much there is.
        bar.set_length(1);
        bar.set_message("looking for files");
        let mut interrupts = tokio::signal::unix::signal(SignalKind::interrupt())
            .map_err(|e| Failure::other(format!("listening for signals: {e}")))?;
        let mut work = tokio::task::spawn_blocking(work);
        loop {
            tokio::select! {
                done = &mut work => {
                    bar.finish_and_clear();
                    return done.map_err(|e| Failure::other(format!("estimating: {e}")));
                }
                Some(()) = interrupts.recv() => {
                    if progress.stop.swap(true, Ordering::Relaxed) {
                        std::process::exit(Exit::Failure as i32);
                    }
                }
                () = tokio::time::sleep(WATCH) => {
                    let total = progress.total.load(Ordering::Relaxed);
                    if total > 0 {
                        bar.set_length(total);
                        bar.set_position(progress.done.load(Ordering::Relaxed));
                        let (filled, stored) = *progress.so_far.lock();
                        let reduction = (stored > 0).then(|| filled as f64 / stored as f64);
                        bar.set_message(format!("reduction of what was read {}", ratio(reduction)));
                    }
                }
            }
        }
    })
}

impl Report {
    fn new(arguments: &Arguments, sample: Option<Sample>, scanned: Scanned) -> Self {
        let Scanned { estimate, files, problems, interrupted } = scanned;
        let Problems { count, blocks, told } = problems;
        let drives = usize::from(arguments.drives);
        let raw = [Tolerance::Single, Tolerance::Double].into_iter().filter_map(|tolerance| {
            let width = layout::width(drives, tolerance)?;
            let with_parity = |bytes: u64| (bytes as f64 / width.efficiency()).round() as u64;
            let Figure { value, low, high } = estimate.stored;
            Some(Raw {
                tolerance,
                drives,
                layout: format!("{}+{}", width.data, width.parity),
                bytes: Figure { value: with_parity(value), low: with_parity(low), high: with_parity(high) },
            })
        });
        Self {
            paths: arguments.paths.iter().map(|path| path.display().to_string()).collect(),
            files,
            precision: if sample.is_some() { "sample" } else { "full" },
            sample,
            compression: arguments.compression,
            raw: raw.collect(),
            estimate,
            unreadable: Unreadable { files: count, bytes: blocks * BLOCK_BYTES, messages: told },
            interrupted,
        }
    }
}

#[cfg(test)]
mod tests;
