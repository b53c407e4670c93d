//! `ashlar pool`.

use std::path::PathBuf;

use blockdev::report::{CheckReport, Damage, PoolStats, PoolStatus, Rebuild, Scrub, Tolerance};
use hyper::Method;

use super::Global;
use crate::client::Client;
use crate::daemon::config;
use crate::daemon::engine::{self, NewPool};
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{Align, Table, bar, duration, pairs, percent, ratio, show, size, timestamp, tolerance_word};
use crate::values::{parse_pool_name, parse_size};
use crate::wire::{Job, PoolChange};

/// Findings of a check that people are shown.
const FINDINGS_SHOWN: usize = 30;
/// Pause between looks at a scrub.
const SCRUB_POLL: std::time::Duration = std::time::Duration::from_millis(300);

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Health, space, data reduction, drives, alerts
    #[command(after_help = "Examples:\n  ashlar pool status\n  ashlar pool status -o json | jq .health")]
    Status,
    /// Counters since the pool was opened
    Stats,
    /// Walk everything read-only: maps, reference counts, space, checksums, parity
    ///
    /// Exit code 7 when something is wrong. Volumes stay in use meanwhile.
    Check {
        /// Only start it; `ashlar job show ID` tells how far it is
        #[arg(long)]
        no_wait: bool,
    },
    /// Read and verify everything in the background, and heal what is not as it should be
    ///
    /// Data, metadata, parity and labels are compared with their checksums. What a drive gives back wrong, or not at all, is written anew
    /// from redundancy. It begins by itself every `scrub_days` days, gives way to hosts, and goes on after a restart; `ashlar pool status`
    /// tells how far it is.
    #[command(
        after_help = "Examples:\n  ashlar pool scrub\n  ashlar pool scrub --wait && echo all is well\n  ashlar pool scrub --stop"
    )]
    Scrub {
        /// Wait until it is through; exit code 7 when something could not be given back
        #[arg(long, conflicts_with = "stop")]
        wait: bool,
        /// End the one that is running
        #[arg(long)]
        stop: bool,
    },
    /// Change how many drive failures the pool survives, while it is in use
    ///
    /// New data follows at once, what is stored in the background. Refused when there are too few drives or too little room. Until all is
    /// done `pool status` shows the tolerance that holds for all data.
    #[command(after_help = "Examples:\n  ashlar pool set-tolerance double\n  ashlar pool set-tolerance single --wait")]
    SetTolerance {
        /// Drives of each resiliency set that may fail at once without loss
        #[arg(value_parser = parse_tolerance, value_name = "none|single|double")]
        tolerance: Tolerance,
        /// Wait until it holds for all data
        #[arg(long)]
        wait: bool,
    },
    /// Spread data evenly over all drives, and write old data again as wide as new data is
    ///
    /// It begins by itself, without the second part, when drives that came or went leave the others unevenly filled.
    #[command(after_help = "Examples:\n  ashlar disk add /dev/sdh && ashlar pool rebalance --wait")]
    Rebalance {
        /// Wait until it is done
        #[arg(long)]
        wait: bool,
    },
    /// List what cannot be read and redundancy does not give back, by volume and range
    ///
    /// Reads of these ranges fail; everything else works. Writing a range again, from a backup say, heals it, and so does discarding it. Exit
    /// code 7 when there is any.
    #[command(after_help = "Examples:\n  ashlar pool damage\n  ashlar pool damage -o json | jq '.ranges[]'")]
    Damage,
    /// Make a pool of disks, on this machine and without a daemon
    ///
    /// Writes labels to the disks; all they hold is lost. A disk with a partition table, a file system or another pool
    /// on it is refused without --force.
    #[command(
        after_help = "Examples:\n  ashlar pool create store --disk /dev/sdb /dev/sdc /dev/sdd --config /etc/ashlar.toml\n  ashlar pool create test --disk a.img --disk b.img --tolerance none"
    )]
    Create {
        /// Letters, digits, `.`, `_`, `-`; at most 63
        #[arg(value_parser = parse_pool_name)]
        name: String,
        /// Block devices, partitions, loop devices or plain files
        #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
        disk: Vec<PathBuf>,
        /// Drives that may fail without loss; without it, single, or none for one disk
        #[arg(long, value_parser = parse_tolerance, value_name = "none|single|double")]
        tolerance: Option<Tolerance>,
        /// Bytes of a chunk, the unit of space on a disk; chosen by the disks' size when left out
        #[arg(long, value_parser = parse_size, value_name = "SIZE")]
        chunk_size: Option<u64>,
        /// Overwrite what is on the disks
        #[arg(long)]
        force: bool,
        /// Also write a configuration file for `ashlar serve`; an existing one is left alone and is an error
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// For clap: `none`, `single`, `double`.
pub fn parse_tolerance(text: &str) -> Result<Tolerance, String> {
    match text {
        "none" => Ok(Tolerance::None),
        "single" => Ok(Tolerance::Single),
        "double" => Ok(Tolerance::Double),
        _ => Err("use none, single or double".into()),
    }
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let client = global.client();
    match command {
        Command::Status => {
            let status: PoolStatus = super::talk(client.get("/v1/pool"))?;
            show(global.output, &status, describe)?;
        }
        Command::Stats => {
            let stats: PoolStats = super::talk(client.get("/v1/pool/stats"))?;
            show(global.output, &stats, describe_stats)?;
        }
        Command::Check { no_wait } => {
            let job: Job = super::talk(async {
                let job: Job = client.send(Method::POST, "/v1/pool/check").await?;
                if no_wait { Ok(job) } else { super::job::wait(&client, job.id).await }
            })?;
            if no_wait {
                show(global.output, &job, |job| {
                    format!("job {} runs; `ashlar job wait {}` waits for it", job.id, job.id)
                })?;
                return Ok(Exit::Ok);
            }
            let report = job.report.ok_or_else(|| Failure::other("the daemon gave no report of the check"))?;
            show(global.output, &report, describe_check)?;
            return Ok(if report.is_clean() { Exit::Ok } else { Exit::Corrupt });
        }
        Command::Scrub { wait, stop } => {
            let method = if stop { Method::DELETE } else { Method::POST };
            let scrub: Scrub = super::talk(async {
                let scrub = client.send(method, "/v1/pool/scrub").await?;
                if wait { until_scrubbed(&client).await } else { Ok(scrub) }
            })?;
            show(global.output, &scrub, describe_scrub)?;
            return Ok(if wait && scrub.damaged > 0 { Exit::Corrupt } else { Exit::Ok });
        }
        Command::SetTolerance { tolerance, wait } => {
            let status: PoolStatus = super::talk(async {
                let change = PoolChange { tolerance };
                let status = client.call(Method::PATCH, "/v1/pool", Some(&change)).await?;
                if wait { until_moved(&client).await } else { Ok(status) }
            })?;
            show(global.output, &status, |s| match s.tolerance == s.tolerance_wanted {
                true => format!("the tolerance is {}", tolerance_word(s.tolerance)),
                false => format!(
                    "the tolerance becomes {}; {} until all data has followed: `ashlar pool status` tells how far it is",
                    tolerance_word(s.tolerance_wanted),
                    tolerance_word(s.tolerance)
                ),
            })?;
        }
        Command::Rebalance { wait } => {
            let status: PoolStatus = super::talk(async {
                let status = client.send(Method::POST, "/v1/pool/rebalance").await?;
                if wait { until_moved(&client).await } else { Ok(status) }
            })?;
            show(global.output, &status, |_| {
                if wait {
                    "data is spread evenly".into()
                } else {
                    "data is being spread; `ashlar pool status` tells how far it is".into()
                }
            })?;
        }
        Command::Damage => {
            let job: Job = super::talk(async {
                let job: Job = client.send(Method::POST, "/v1/pool/damage").await?;
                super::job::wait(&client, job.id).await
            })?;
            let damage = job.damage.ok_or_else(|| Failure::other("the daemon gave no list of what is damaged"))?;
            show(global.output, &damage, describe_damage)?;
            return Ok(if damage.ranges.is_empty() && damage.read_only.is_empty() { Exit::Ok } else { Exit::Corrupt });
        }
        Command::Create { name, disk, tolerance, chunk_size, force, config } => {
            let tolerance = tolerance.unwrap_or(default_tolerance(disk.len()));
            let before = config.as_deref().map(config_to_complete).transpose()?.unwrap_or_default();
            engine::create(&NewPool { name: name.clone(), disks: disk.clone(), tolerance, chunk_size, force })?;
            if let Some(file) = &config {
                write_config(file, &name, &disk, &before)?;
            }
            let result = serde_json::json!({ "pool": name, "disks": disk, "tolerance": tolerance, "config": config });
            let next = config.map_or("FILE".into(), |f| f.display().to_string());
            show(global.output, &result, |_| {
                let word = tolerance_word(tolerance);
                format!(
                    "pool {name} made of {} disks, tolerance {word}; serve it with `ashlar serve --config {next}`",
                    disk.len()
                )
            })?;
        }
    }
    Ok(Exit::Ok)
}

/// What a pool of so many disks tolerates unless told otherwise.
pub fn default_tolerance(disks: usize) -> Tolerance {
    if disks > 1 { Tolerance::Single } else { Tolerance::None }
}

/// What a configuration file says that names no disks yet, as a package brings it: the pool is put in front of it. One with disks is somebody's.
fn config_to_complete(path: &std::path::Path) -> CommandResult<String> {
    if !path.exists() {
        return Ok(String::new());
    }
    let file = config::read_file(path)?;
    if file.disks.is_some() || file.name.is_some() {
        return Err(Failure::conflict(format!("the configuration file {} names a pool already", path.display())));
    }
    std::fs::read_to_string(path).map_err(|e| Failure::other(format!("reading {}: {e}", path.display())))
}

fn write_config(path: &std::path::Path, name: &str, disks: &[PathBuf], before: &str) -> CommandResult {
    let absolute = |p: &PathBuf| std::path::absolute(p).unwrap_or_else(|_| p.clone());
    let disks = Some(disks.iter().map(absolute).collect());
    let file = config::File { name: Some(name.into()), disks, ..config::File::default() };
    let mut text = toml::to_string(&file).map_err(|e| Failure::other(format!("writing the configuration: {e}")))?;
    if !before.is_empty() {
        text.push('\n');
        text.push_str(before);
    }
    std::fs::write(path, text).map_err(|e| {
        Failure::other(format!(
            "the pool is made, but its configuration file {} cannot be written: {e}",
            path.display()
        ))
    })
}

fn describe_provisioned(status: &PoolStatus) -> String {
    let snapshots = match status.snapshots {
        0 => String::new(),
        n => format!(", {}", plural(n, "snapshot")),
    };
    let deleting = match status.deleting {
        0 => String::new(),
        n => {
            let to_come = status.deleting_to_come.map(|bytes| format!(", about {} to come", size(bytes)));
            let (done, to_come) = (status.deleting_done * 100.0, to_come.unwrap_or_default());
            format!("; space of {n} deleted comes back ({done:.0} % of the one at hand{to_come})")
        }
    };
    let times = if status.provisioned > status.usable && status.usable > 0 {
        format!(", {:.1} times what is usable", status.provisioned as f64 / status.usable as f64)
    } else {
        String::new()
    };
    format!("{} in {}{times}{snapshots}{deleting}", size(status.provisioned), plural(status.volumes, "volume"))
}

fn describe(status: &PoolStatus) -> String {
    let reduction = &status.reduction;
    let mut text = pairs(
        &[
            ("pool", format!("{} ({})", status.name, status.uuid)),
            ("health", status.health.clone()),
            ("tolerance", describe_tolerance(status)),
            (
                "capacity",
                format!(
                    "{} {} % of {} used, {} available ({} raw)",
                    bar(status.used, status.usable, 30),
                    percent(status.used, status.usable),
                    size(status.usable),
                    size(status.available),
                    size(status.raw)
                ),
            ),
            ("provisioned", describe_provisioned(status)),
            ("reserved", describe_reserved(status)),
            (
                "reduction",
                format!(
                    "{} (dedupe {}, compression {})",
                    ratio(reduction.total_ratio),
                    ratio(reduction.dedupe_ratio),
                    ratio(reduction.compression_ratio)
                ),
            ),
            (
                "data",
                format!(
                    "{} written and kept by hosts, {} distinct, {} stored",
                    size(reduction.logical),
                    size(reduction.unique),
                    size(reduction.stored)
                ),
            ),
            ("redundancy", describe_redundancy(status)),
            ("spare", describe_spare(status)),
            ("scrub", describe_scrub(&status.scrub)),
            ("rebuild", status.rebuild.as_ref().map_or_else(|| idle_rebuild(status).into(), describe_rebuild)),
        ],
        0,
    );
    text.push_str("\ndisks:\n");
    text.push_str(&super::disk::table(&status.disks, 2));
    if status.alerts.is_empty() {
        text.push_str("\nalerts: none\n");
    } else {
        text.push_str("\nalerts:\n");
        for alert in &status.alerts {
            text.push_str(&format!("  {} [{}] {}\n", alert.severity, alert.code, alert.message));
        }
    }
    text
}

/// How well the data is protected, in words.
fn describe_redundancy(status: &PoolStatus) -> String {
    let r = &status.redundancy;
    let survives = match status.tolerance.drives() {
        0 => "survives no failure of a disk".into(),
        n => format!("survives {}", plural(n, "more failure")),
    };
    let parts = [(r.full, survives.as_str()), (r.reduced, "fewer"), (r.none, "none"), (r.lost, "cannot all be read")];
    let told: Vec<String> = parts
        .into_iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, what)| format!("{} {what}", size(bytes)))
        .collect();
    if told.is_empty() { "no data yet".into() } else { told.join(", ") }
}

fn describe_tolerance(status: &PoolStatus) -> String {
    let mut text = tolerance_word(status.tolerance).to_owned();
    if status.tolerance_wanted != status.tolerance {
        text.push_str(&format!(" (becomes {})", tolerance_word(status.tolerance_wanted)));
    }
    text.push_str(&format!(", layout {}", status.layout));
    if status.sets > 1 {
        let together = if status.mixed { ", failures count together until data has moved" } else { "" };
        text.push_str(&format!(", {} resiliency sets{together}", status.sets));
    }
    text
}

fn describe_spare(status: &PoolStatus) -> String {
    let spare = &status.spare;
    match spare.wanted {
        0 if status.tolerance.drives() == 0 => "none without redundancy".into(),
        0 => "none: too few disks for one".into(),
        wanted => format!("{} free of one disk's worth, {}", size(spare.free), size(wanted)),
    }
}

/// Waits until the running scrub has ended, with a bar when somebody watches.
async fn until_scrubbed(client: &Client) -> CommandResult<Scrub> {
    let bar = super::job::bar();
    bar.set_message("scrub");
    loop {
        let status: PoolStatus = client.get("/v1/pool").await?;
        let scrub = status.scrub;
        bar.set_length(scrub.total);
        bar.set_position(scrub.done);
        if !scrub.running || status.health == "failed" {
            bar.finish_and_clear();
            return if scrub.running {
                Err(Failure::other("the pool stopped before the scrub was through"))
            } else {
                Ok(scrub)
            };
        }
        tokio::time::sleep(SCRUB_POLL).await;
    }
}

/// Waits until nothing moves any more, with a bar when somebody watches.
async fn until_moved(client: &Client) -> CommandResult<PoolStatus> {
    let bar = super::job::bar();
    let mut quiet = 0;
    loop {
        let status: PoolStatus = client.get("/v1/pool").await?;
        if let Some(rebuild) = &status.rebuild {
            bar.set_message(rebuild.cause.clone());
            bar.set_length(rebuild.total);
            bar.set_position(rebuild.done);
        }
        let stuck =
            status.rebuild.as_ref().is_some_and(|r| r.waiting > 0 && r.waiting >= r.total - r.done.min(r.total));
        if status.health == "failed" || stuck {
            bar.finish_and_clear();
            let why: Vec<String> = status.alerts.into_iter().map(|a| a.message).collect();
            return Err(Failure::other(format!("it cannot be done now: {}", why.join("; "))));
        }
        // What was asked for may not have begun yet.
        let settled = status.rebuild.is_none() && status.tolerance == status.tolerance_wanted && !status.mixed;
        quiet = if settled { quiet + 1 } else { 0 };
        if quiet > 3 {
            bar.finish_and_clear();
            return Ok(status);
        }
        tokio::time::sleep(SCRUB_POLL).await;
    }
}

/// The newest scrub in one line.
fn describe_scrub(scrub: &Scrub) -> String {
    let healed = match (scrub.repaired, scrub.damaged) {
        (0, 0) => "nothing wrong".into(),
        (n, 0) => format!("{} healed", plural(n as usize, "column")),
        (n, bad) => format!(
            "{} healed, {} damaged: see `ashlar pool damage`",
            plural(n as usize, "column"),
            plural(bad as usize, "segment")
        ),
    };
    match (scrub.running, scrub.ended_s) {
        (true, _) => format!(
            "{} {} % of {}, {healed} so far",
            bar(scrub.done, scrub.total, 30),
            percent(scrub.done, scrub.total),
            size(scrub.total)
        ),
        (false, Some(ended)) if scrub.complete => format!("ended {}, {healed}", timestamp(ended)),
        (false, Some(ended)) => format!("stopped {}, {healed}", timestamp(ended)),
        (false, None) => "never".into(),
    }
}

/// What cannot be read, for people.
fn describe_damage(damage: &Damage) -> String {
    let mut text = String::new();
    if damage.ranges.is_empty() {
        text.push_str("all data can be read\n");
    } else {
        let mut table = Table::new(&[
            ("VOLUME", Align::Left),
            ("OFFSET", Align::Right),
            ("BYTES", Align::Right),
            ("REASON", Align::Left),
        ]);
        for r in &damage.ranges {
            table.row([r.volume.clone(), r.offset.to_string(), r.len.to_string(), r.reason.clone()]);
        }
        text.push_str(&table.render(0));
        let more = if damage.more { "; there are more ranges than listed" } else { "" };
        text.push_str(&format!("{} cannot be read{more}; write it again, from a backup say\n", size(damage.bytes)));
    }
    for (volume, why) in &damage.read_only {
        text.push_str(&format!("volume {volume} takes no writes: {why}\n"));
    }
    text
}

/// Why nothing is being rebuilt.
fn idle_rebuild(status: &PoolStatus) -> &'static str {
    match status.redundancy.reduced + status.redundancy.none + status.redundancy.lost {
        0 => "nothing to do",
        _ => "waits for disks to come back; after the grace time what they hold is rebuilt on the others",
    }
}

fn describe_rebuild(rebuild: &Rebuild) -> String {
    let eta = rebuild.eta_s.map_or_else(String::new, |s| format!(", about {} left", duration(s as f64)));
    let waiting = match rebuild.waiting {
        0 => String::new(),
        bytes => format!("; {} find no room", size(bytes)),
    };
    format!(
        "{} {} % of {} at {}/s{eta}{waiting} ({})",
        bar(rebuild.done, rebuild.total, 30),
        percent(rebuild.done, rebuild.total),
        size(rebuild.total),
        size(rebuild.bytes_per_second),
        rebuild.cause
    )
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// What is reserved for volumes, and what that keeps from others.
fn describe_reserved(status: &PoolStatus) -> String {
    match status.reserved {
        0 => "nothing".into(),
        reserved => format!(
            "{} for volumes; {} of what is available only they can take",
            size(reserved),
            size(status.set_aside.min(status.available))
        ),
    }
}

fn describe_stats(stats: &PoolStats) -> String {
    let mut text = pairs(
        &[
            ("open for", duration(stats.uptime_s)),
            ("host reads", format!("{} requests, {}", stats.host_reads, size(stats.host_read))),
            ("host writes", format!("{} requests, {}", stats.host_writes, size(stats.host_written))),
            ("host flushes", stats.host_flushes.to_string()),
            ("host reads wait", waits(stats.host_latency.read_p50_us, stats.host_latency.read_p99_us)),
            ("host flushes wait", waits(stats.host_latency.flush_p50_us, stats.host_latency.flush_p99_us)),
            (
                "background work",
                stats
                    .background_share
                    .map_or_else(|| "none".into(), |s| format!("{:.0} % of full speed at most", s * 100.0)),
            ),
            ("disks read", size(stats.disk_read)),
            ("disks written", size(stats.disk_written)),
            ("write amplification", stats.write_amplification.map_or_else(|| "-".into(), |w| format!("{w:.2}"))),
            ("dedupe", format!("{} blocks shared, {} candidates differed", stats.dedupe_hits, stats.dedupe_misses)),
            ("log records", stats.log_records.to_string()),
            ("replayed at opening", format!("{} in {}", stats.log_replayed, duration(stats.recovery_s))),
            ("checkpoints", stats.checkpoints.to_string()),
            ("segments", format!("{} in use, {} free", stats.segments_used, stats.segments_free)),
            (
                "waiting for the cleaner",
                format!("{}, {:.0} % of what is in use", size(stats.dead), stats.fragmentation * 100.0),
            ),
            ("rebuilt", size(stats.rebuilt)),
            ("cleaner", cleaner(stats)),
            (
                "hosts are held back",
                stats
                    .held_back_to
                    .map_or_else(|| "no".into(), |rate| format!("to {} a second: space is short", size(rate))),
            ),
            ("compressed harder", size(stats.recompressed)),
        ],
        0,
    );
    let total: u64 = stats.memory.values().sum();
    text.push_str(&format!("\nmemory: {} of {}\n", size(total), size(stats.memory_budget)));
    if !stats.memory.is_empty() {
        let mut table = Table::new(&[("OWNER", Align::Left), ("BYTES", Align::Right)]);
        for (owner, bytes) in &stats.memory {
            table.row([owner.clone(), size(*bytes)]);
        }
        text.push_str(&table.render(2));
    }
    text
}

/// The 50th and 99th percentile, from microseconds.
fn waits(p50: Option<u64>, p99: Option<u64>) -> String {
    match (p50, p99) {
        (Some(p50), Some(p99)) => {
            format!("{:.1} ms, the slowest hundredth {:.1} ms or more", p50 as f64 / 1e3, p99 as f64 / 1e3)
        }
        _ => "-".into(),
    }
}

fn cleaner(stats: &PoolStats) -> String {
    let rate = if stats.cleaner_s > 0.0 {
        format!(", {} a second while at work", size((stats.cleaner_cleaned as f64 / stats.cleaner_s) as u64))
    } else {
        String::new()
    };
    format!("{} moved, {} segments emptied{rate}", size(stats.cleaner_moved), stats.cleaner_segments)
}

/// The result of a check for people.
pub fn describe_check(report: &CheckReport) -> String {
    let mut text = pairs(
        &[
            ("volumes", report.volumes.to_string()),
            ("mapped blocks", report.mapped_blocks.to_string()),
            ("stored blocks", report.stored_blocks.to_string()),
            ("verified", size(report.verified)),
            (
                "stripes",
                match report.stripes_incomplete {
                    0 => format!("{}, parity right", report.stripes),
                    n => format!("{}, and {n} whose parity cannot be checked: a disk is or was away", report.stripes),
                },
            ),
        ],
        0,
    );
    match report.findings.len() {
        0 if report.stripes_incomplete > 0 => {
            text.push_str("\nthe pool is sound, but not fully protected: see `ashlar pool status`\n")
        }
        0 => text.push_str("\nthe pool is sound\n"),
        n => {
            text.push_str(&format!("\n{}:\n", plural(n, "finding")));
            for finding in report.findings.iter().take(FINDINGS_SHOWN) {
                text.push_str(&format!("  [{}] {}\n", finding.code, finding.message));
            }
            if n > FINDINGS_SHOWN {
                text.push_str(&format!("  and {} more; -o json shows all\n", n - FINDINGS_SHOWN));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use blockdev::report::{Alert, DamagedRange, Finding, Reduction, Redundancy};
    use blockdev::units::Uuid;

    use super::*;

    #[test]
    fn status_tells_what_matters() {
        let status = PoolStatus {
            rebuild: None,
            scrub: Scrub { begun_s: Some(1), ended_s: Some(2), complete: true, repaired: 1, ..Scrub::default() },
            damaged_segments: 0,
            tolerance_wanted: Tolerance::Double,
            sets: 1,
            mixed: false,
            spare: Default::default(),
            name: "store".into(),
            uuid: Uuid([1; 16]),
            health: "degraded".into(),
            tolerance: Tolerance::Double,
            layout: "4+2".into(),
            epoch: 7,
            raw: 12 << 30,
            usable: 8 << 30,
            used: 2 << 30,
            available: 6 << 30,
            reserved: 0,
            set_aside: 0,
            provisioned: 10 << 30,
            reduction: Reduction { total_ratio: Some(2.5), ..Reduction::default() },
            redundancy: Redundancy { full: 1 << 30, none: 3 << 20, ..Redundancy::default() },
            disks: vec![],
            volumes: 1,
            snapshots: 2,
            deleting: 0,
            deleting_done: 0.0,
            deleting_to_come: None,
            alerts: vec![Alert {
                severity: "warning".into(),
                code: "pool.degraded".into(),
                object: "pool".into(),
                message: "replace it".into(),
            }],
        };
        let text = describe(&status);
        for expected in [
            "health:       degraded\n",
            "tolerance:    double, layout 4+2\n",
            "25 % of 8 GiB used, 6 GiB available (12 GiB raw)",
            "provisioned:  10 GiB in 1 volume, 1.2 times what is usable, 2 snapshots\n",
            "redundancy:   1 GiB survives 2 more failures, 3 MiB none\n",
            "2.50:1 (dedupe -, compression -)",
            "warning [pool.degraded] replace it",
            ", 1 column healed\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }

    #[test]
    fn damage_and_scrub_are_told() {
        let mut damage = Damage::default();
        assert_eq!(describe_damage(&damage), "all data can be read\n");
        let range = |offset| DamagedRange { volume: "db".into(), offset, len: 8192, reason: "bad".into() };
        (damage.bytes, damage.ranges) = (16384, vec![range(0), range(1 << 20)]);
        damage.read_only.insert("old".into(), "its map".into());
        let text = describe_damage(&damage);
        for line in [
            "db      1048576   8192  bad\n",
            "16 KiB cannot be read; write it again",
            "volume old takes no writes: its map\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert_eq!(describe_scrub(&Scrub::default()), "never");
        let running =
            Scrub { running: true, begun_s: Some(1), total: 1 << 30, done: 1 << 29, damaged: 2, ..Scrub::default() };
        let text = describe_scrub(&running);
        assert!(
            text.ends_with("50 % of 1 GiB, 0 columns healed, 2 segments damaged: see `ashlar pool damage` so far"),
            "{text}"
        );
    }

    #[test]
    fn a_check_tells_its_findings() {
        let mut report = CheckReport::default();
        assert!(describe_check(&report).contains("the pool is sound"));
        let finding = Finding { code: "refcount.low".into(), message: "block 7".into() };
        report.findings.push(finding.clone());
        let text = describe_check(&report);
        assert!(text.contains("1 finding:\n  [refcount.low] block 7"), "{text}");
        assert!(!text.contains("sound"));
        report.findings.resize(FINDINGS_SHOWN + 5, finding);
        assert!(describe_check(&report).contains("and 5 more"));
    }

    #[test]
    fn stats_are_shown_with_memory() {
        let stats = PoolStats { memory: [("index".to_owned(), 5 << 20)].into(), ..PoolStats::default() };
        let text = describe_stats(&stats);
        assert!(text.contains("memory: 5 MiB of 0 B\n  OWNER  BYTES\n  index  5 MiB\n"), "{text}");
        assert!(text.contains("none") && text.contains("0 segments emptied\n"), "{text}");
        let host_latency =
            blockdev::report::HostLatency { read_p50_us: Some(1500), read_p99_us: Some(9260), ..Default::default() };
        let cleaner = PoolStats { cleaner_segments: 3, cleaner_cleaned: 6 << 20, cleaner_s: 1.5, ..stats };
        let text = describe_stats(&PoolStats { host_latency, background_share: Some(0.25), ..cleaner });
        assert!(text.contains("3 segments emptied, 4 MiB a second while at work"), "{text}");
        assert!(text.contains("1.5 ms, the slowest hundredth 9.3 ms or more"), "{text}");
        assert!(text.contains("25 % of full speed at most"), "{text}");
    }
}
