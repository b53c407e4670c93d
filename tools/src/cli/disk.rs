//! `ashlar disk`.

use std::path::{Path, PathBuf};

use blockdev::report::DiskInfo;
use hyper::Method;

use super::Global;
use crate::client::Client;
use crate::drives;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{Align, Table, pairs, percent, show, size, state_word};
use crate::wire::drives::Drive;
use crate::wire::{Disk, DiskAdd};

mod health;
mod replace;
mod wait;

use wait::until_gone;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// The pool's drives: state, health, wear, size, errors, path
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  ashlar disk list -o json | jq '.[] | select(.state != \"online\")'\n  ashlar disk list -o json | jq '.[] | select(.health.wear_percent >= 80) | .path'"
    )]
    List,
    /// Drives of this machine that a pool could be given, and what the others hold
    ///
    /// Free ones have nothing on them that is known. Foreign ones hold something: another pool, a file system, a partition table; only --force gives
    /// them to a pool. Needs no daemon, but the right to read drives. Nothing is written to them.
    #[command(
        visible_alias = "scan",
        after_help = "Examples:\n  ashlar disk available\n  ashlar disk available -o json | jq -r '.[] | select(.state == \"free\") | .stable_path // .path'"
    )]
    Available,
    /// All there is about one drive, with what it tells about itself: model, wear, temperature, errors, warnings
    ///
    /// The daemon asks drives every `health_interval` seconds (NVMe health log, SMART, SCSI log pages). Files, loop devices and virtio drives
    /// have nothing to tell.
    #[command(after_help = "Examples:\n  ashlar disk show 3\n  ashlar disk show sdc -o json | jq .checksum_errors")]
    Show {
        /// Number, path or file name, as `disk list` shows them
        disk: String,
    },
    /// Add a drive of any size to the pool, while it is in use
    ///
    /// All it holds is lost. A drive with a partition table, a file system or another pool on it is refused without --force. New data
    /// goes to it at once; what is on the others is spread over all of them in the background. `pool rebalance` also writes it anew as wide as new data.
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
    /// Call the removal of a drive off, as long as it is not gone, or take back one that was declared failed
    ///
    /// It takes data again. What a drive that was declared failed missed is written to it.
    #[command(
        after_help = "Examples:\n  ashlar disk remove 3 --no-wait && ashlar disk keep 3\n  ashlar disk fail 3 && ashlar disk keep 3"
    )]
    Keep {
        /// Number, path or file name, as `disk list` shows them
        disk: String,
    },
    /// Look for drives that failed or are missing, and take back those that are there again
    ///
    /// They are known by their labels, whatever they are called now. What a drive missed is written to it. One that is plugged in while the
    /// daemon runs is found without this. Drives that were declared failed (`disk fail`) stay out.
    #[command(after_help = "Example:\n  ashlar disk rescan && ashlar pool status")]
    Rescan,
    /// Put a new drive in the place of another, while the pool is in use
    ///
    /// Adds NEW, as `disk add`, then moves everything off OLD and lets it go, as `disk remove`. Of an OLD that failed or is missing, what it
    /// held is rebuilt on the others at once. If it was interrupted, the same command goes on where it was.
    #[command(
        after_help = "Examples:\n  ashlar disk replace 3 /dev/sdg\n  ashlar disk replace /dev/sdc /dev/sdg --force --no-wait"
    )]
    Replace {
        /// Drive to be replaced: number, path or file name, as `disk list` shows them
        old: String,
        /// Drive to replace it: block device, partition, loop device or plain file
        new: PathBuf,
        /// Overwrite what is on NEW
        #[arg(long)]
        force: bool,
        /// Only begin; `ashlar pool status` tells how far it is
        #[arg(long)]
        no_wait: bool,
    },
    /// Declare a drive failed: what it held is rebuilt on the others at once
    ///
    /// Refused when data could not be read without it. It stays out, also after a restart and although it answers. The ways back: `disk keep`
    /// takes it back with what it has; `disk replace` puts another in its place; `disk remove` strikes it off, then `disk add` takes it as a
    /// new one. A drive whose label was wiped is a new one, too.
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
            let disks: Vec<Disk> = super::talk(client.get("/v1/disks"))?;
            show(global.output, &disks, |disks| table_with_health(disks))?;
        }
        Command::Available => show(global.output, &drives::all(&drives::System::default(), &|_| false), available)?,
        Command::Show { disk } => {
            let disk: Disk = super::talk(async {
                let id = find(&client, &disk).await?.id;
                client.get(&format!("/v1/disks/{id}")).await
            })?;
            show(global.output, &disk, describe)?;
        }
        Command::Add { path, force } => {
            let disk = super::talk(add(&client, &absolute(&path)?, force, None))?;
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
        Command::Keep { disk } => {
            let disk: DiskInfo = super::talk(async {
                let id = find(&client, &disk).await?.id;
                client.send(Method::POST, &format!("/v1/disks/{id}/keep")).await
            })?;
            show(global.output, &disk, |d| match d.state.is_absent() {
                true => format!("disk {} ({}) is not there: it is taken back when it is found", d.id, d.path),
                false => format!("disk {} ({}) stays, and takes data again", d.id, d.path),
            })?;
        }
        Command::Rescan => {
            let disks: Vec<DiskInfo> = super::talk(client.send(Method::POST, "/v1/disks/rescan"))?;
            show(global.output, &disks, |disks| table(disks, 0))?;
        }
        Command::Replace { old, new, force, no_wait } => {
            let replaced = super::talk(replace::replace(&client, &old, &absolute(&new)?, force, no_wait))?;
            show(global.output, &replaced, replace::describe)?;
        }
        Command::Fail { disk } => {
            let disk: DiskInfo = super::talk(async {
                let id = find(&client, &disk).await?.id;
                client.send(Method::POST, &format!("/v1/disks/{id}/fail")).await
            })?;
            show(global.output, &disk, |d| {
                format!("disk {} ({}) stays out: what it held is rebuilt on the others", d.id, d.path)
            })?;
        }
    }
    Ok(Exit::Ok)
}

fn absolute(path: &Path) -> CommandResult<PathBuf> {
    std::path::absolute(path).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}

async fn add(client: &Client, path: &Path, force: bool, replaces: Option<u16>) -> CommandResult<DiskInfo> {
    let request = DiskAdd { path: path.display().to_string(), force, replaces };
    client.call(Method::POST, "/v1/disks", Some(&request)).await
}

/// The disk of a number, a path or a file name.
async fn find(client: &Client, wanted: &str) -> CommandResult<DiskInfo> {
    pick(&client.get::<Vec<DiskInfo>>("/v1/disks").await?, wanted).cloned()
}

/// The one of these that a number, a path or a file name names.
fn pick<'a>(disks: &'a [DiskInfo], wanted: &str) -> CommandResult<&'a DiskInfo> {
    let exact = |d: &&DiskInfo| d.id.to_string() == wanted || d.path == wanted;
    let named = |d: &&DiskInfo| {
        let path = Path::new(&d.path);
        path.file_name().is_some_and(|n| n == wanted) || path.file_stem().is_some_and(|n| n == wanted)
    };
    let mut found: Vec<&DiskInfo> = disks.iter().filter(exact).collect();
    if found.is_empty() {
        found = disks.iter().filter(named).collect();
    }
    match found[..] {
        [disk] => Ok(disk),
        [] => Err(Failure::not_found(format!(
            "there is no disk '{wanted}'; `ashlar disk list` shows their number and path"
        ))),
        _ => {
            Err(Failure::usage(format!("'{wanted}' fits several disks: use the number that `ashlar disk list` shows")))
        }
    }
}

/// Bytes written to a drive, and how often that is all of it: its wear as far as the pool has caused it.
fn worn(disk: &DiskInfo) -> String {
    let times = disk.bytes_written as f64 / disk.size.max(1) as f64;
    format!("{} ({times:.2} times its size) since it joined", size(disk.bytes_written))
}

/// All there is about one drive.
fn describe(Disk { info: disk, health }: &Disk) -> String {
    let mut lines = vec![
        ("disk", disk.id.to_string()),
        ("identity", disk.uuid.to_string()),
        ("path", if disk.path.is_empty() { "not known".into() } else { disk.path.clone() }),
        ("state", state_word(disk.state).into()),
        ("resiliency set", disk.set.to_string()),
    ];
    lines.extend(disk.reason.clone().map(|why| ("reason", why)));
    let share = percent(disk.allocated, disk.size);
    lines.extend([
        ("size", size(disk.size)),
        ("allocated", format!("{} ({share} %)", size(disk.allocated))),
        ("written", worn(disk)),
        ("read", size(disk.bytes_read)),
        ("behind", if disk.behind == 0 { "nothing".into() } else { format!("about {}", size(disk.behind)) }),
        ("read errors", disk.read_errors.to_string()),
        ("write errors", disk.write_errors.to_string()),
        ("checksum errors", disk.checksum_errors.to_string()),
    ]);
    lines.extend(health::lines(health));
    pairs(&lines, 0)
}

/// Columns of a table of drives before and after those about their health.
const BEFORE: &[(&str, Align)] = &[("ID", Align::Right), ("SET", Align::Right), ("STATE", Align::Left)];
const HEALTH: &[(&str, Align)] = &[("HEALTH", Align::Left), ("WEAR", Align::Right)];
const AFTER: &[(&str, Align)] = &[
    ("SIZE", Align::Right),
    ("ALLOCATED", Align::Right),
    ("READ ERR", Align::Right),
    ("WRITE ERR", Align::Right),
    ("CKSUM ERR", Align::Right),
    ("PATH", Align::Left),
];

fn cells_before(disk: &DiskInfo) -> [String; 3] {
    [disk.id.to_string(), disk.set.to_string(), state_word(disk.state).into()]
}

fn cells_after(disk: &DiskInfo) -> [String; 6] {
    [
        size(disk.size),
        size(disk.allocated),
        disk.read_errors.to_string(),
        disk.write_errors.to_string(),
        disk.checksum_errors.to_string(),
        if disk.path.is_empty() { "-".into() } else { disk.path.clone() },
    ]
}

/// The drives, one a line.
pub fn table(disks: &[DiskInfo], indent: usize) -> String {
    let mut table = Table::new(&[BEFORE, AFTER].concat());
    for disk in disks {
        table.row(cells_before(disk).into_iter().chain(cells_after(disk)));
    }
    table.render(indent)
}

/// The drives, one a line, with what they tell about their health.
fn table_with_health(disks: &[Disk]) -> String {
    let mut table = Table::new(&[BEFORE, HEALTH, AFTER].concat());
    for Disk { info, health } in disks {
        let told = [health::word(health).to_owned(), health::wear(health)];
        table.row(cells_before(info).into_iter().chain(told).chain(cells_after(info)));
    }
    table.render(0)
}

/// Drives of the machine, one a line.
fn available(drives: &Vec<Drive>) -> String {
    let mut table = Table::new(&[
        ("PATH", Align::Left),
        ("SIZE", Align::Right),
        ("STATE", Align::Left),
        ("MODEL", Align::Left),
        ("HOLDS", Align::Left),
        ("STABLE PATH", Align::Left),
    ]);
    for d in drives {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        table.row([
            d.path.clone(),
            size(d.size),
            d.state.word().into(),
            or_dash(&d.model),
            or_dash(&d.holds),
            or_dash(&d.stable_path),
        ]);
    }
    table.render(0)
}

#[cfg(test)]
mod tests {
    use blockdev::report::{DiskState, DriveHealth};

    use super::*;
    use crate::exit::Exit;

    fn disk(id: u16, path: &str) -> DiskInfo {
        DiskInfo { id, path: path.into(), ..DiskInfo::default() }
    }

    #[test]
    fn disks_are_named_by_number_path_and_file_name() {
        let all = [disk(0, "/a/disk0.img"), disk(1, "/b/disk0.img"), disk(7, "/b/3"), disk(3, "/dev/sdc"), disk(4, "")];
        for (wanted, id) in
            [("0", 0), ("/b/disk0.img", 1), ("3", 3), ("/b/3", 7), ("sdc", 3), ("/dev/sdc", 3), ("4", 4)]
        {
            assert_eq!(pick(&all, wanted).unwrap().id, id, "{wanted}");
        }
        for (wanted, exit) in
            [("disk0", Exit::Usage), ("disk0.img", Exit::Usage), ("9", Exit::NotFound), ("sd", Exit::NotFound)]
        {
            assert_eq!(pick(&all, wanted).unwrap_err().exit, exit, "{wanted}");
        }
    }

    #[test]
    fn one_drive_is_described_in_full() {
        let disk = DiskInfo {
            state: DiskState::Failed,
            reason: Some("it burnt".into()),
            size: 2 << 30,
            allocated: 1 << 29,
            behind: 3 << 20,
            read_errors: 11,
            write_errors: 22,
            checksum_errors: 33,
            ..disk(5, "/dev/sdx")
        };
        let health = DriveHealth { wear_percent: Some(12), ..DriveHealth::not_reported("it is a file") };
        let disk = Disk { info: disk, health };
        let text = describe(&disk);
        for part in
            ["5\n", "/dev/sdx", "failed", "it burnt", "2 GiB", "512 MiB (25 %)", "about 3 MiB", "11", "22", "33"]
        {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(text.contains("12 % of its endurance used") && text.contains("not reported; it is a file"), "{text}");
        assert!(describe(&Disk::default()).contains("not known"));
        let list = table_with_health(&[disk]);
        assert!(list.starts_with("ID  SET  STATE   HEALTH  WEAR   SIZE"), "{list}");
        assert!(list.contains(" 5    0  failed  -       12 %  2 GiB"), "{list}");
    }
}
