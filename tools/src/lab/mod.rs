//! The laboratory: a whole appliance on one machine, with plain files as drives, and faults on demand.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use blockdev::disk::IO_ALIGN;
use blockdev::report::Tolerance;
use serde::Serialize;

pub mod host;
mod layout;
mod process;

pub use layout::{Lab, is_lab};

use crate::daemon::config::{self, Config, Flags, Machine, Sources, check_socket_path};
use crate::daemon::engine::{self, NewPool};
use crate::daemon::faults;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::size;
use crate::values::parse_size;
use crate::wire::lab::DiskFault;
use layout::Manifest;

/// Most drives of a laboratory: what a pool can have.
pub const DISKS_MAX: usize = 96;

/// What is asked of `lab up`; what is left out has a default, or is as the laboratory was made.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Name of the pool.
    pub name: Option<String>,
    /// Number of drives.
    pub disks: Option<usize>,
    /// Bytes of each.
    pub disk_size: Option<u64>,
    /// Drives that may fail.
    pub tolerance: Option<Tolerance>,
    /// For the configuration file: memory budget, as written there.
    pub memory: Option<String>,
    /// For the configuration file.
    pub compression: Option<blockdev::report::Compression>,
}

/// A laboratory as `lab status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Directory.
    pub dir: PathBuf,
    /// Whether the daemon runs.
    pub running: bool,
    /// Its process id.
    pub pid: Option<u32>,
    /// Name of the pool.
    pub name: String,
    /// Number of drives.
    pub disks: usize,
    /// Bytes of each.
    pub disk_size: u64,
    /// Drives that may fail.
    pub tolerance: Tolerance,
    /// Socket of the API.
    pub socket: PathBuf,
    /// The daemon's log.
    pub log: PathBuf,
    /// Faults of drives that are on.
    pub faults: Vec<DiskFault>,
}

/// What is known of a laboratory without asking its daemon.
pub fn report(lab: &Lab) -> CommandResult<Report> {
    let pid = process::running(lab)?;
    let m = &lab.manifest;
    Ok(Report {
        dir: lab.dir.clone(),
        running: pid.is_some(),
        pid,
        name: m.name.clone(),
        disks: m.disks,
        disk_size: m.disk_size,
        tolerance: m.tolerance,
        socket: crate::client::socket_in(&lab.dir),
        log: lab.log(),
        // Who wants to stop a daemon need not hear that they cannot be read: `lab status` and the start of a daemon say it.
        faults: faults::load(&lab.dir).unwrap_or_default(),
    })
}

/// What `lab status` shows. Fails when the faults on file are not understood.
pub fn status(dir: &Path) -> CommandResult<Report> {
    let lab = Lab::open(dir)?;
    faults::load(&lab.dir)?;
    report(&lab)
}

/// Makes a laboratory and starts it; one that is there and fits what is wanted is only started.
pub fn up(dir: &Path, wanted: &Wanted) -> CommandResult<Report> {
    check_socket_path(&dir.join("run/api.sock"))?;
    let lab = match Lab::find(dir)? {
        Some(lab) if lab.manifest.complete => {
            fits(&lab, wanted)?;
            lab
        }
        Some(unfinished) => {
            // A daemon never ran on it, and it holds no pool yet.
            let made_dir = unfinished.manifest.made_dir;
            unfinished.remove()?;
            make(dir, wanted, made_dir)?
        }
        None => make(dir, wanted, false)?,
    };
    process::start(&lab, false)?;
    report(&lab)
}

fn fits(lab: &Lab, wanted: &Wanted) -> CommandResult {
    let m = &lab.manifest;
    let mut differences = Vec::new();
    let mut differ = |what: &str, is: String, wish: Option<String>| {
        if let Some(wish) = wish.filter(|wish| *wish != is) {
            differences.push(format!("{what} {is}, not {wish}"));
        }
    };
    differ("name", m.name.clone(), wanted.name.clone());
    differ("disks", m.disks.to_string(), wanted.disks.map(|d| d.to_string()));
    differ("disk size", size(m.disk_size), wanted.disk_size.map(size));
    differ(
        "tolerance",
        format!("{:?}", m.tolerance).to_lowercase(),
        wanted.tolerance.map(|t| format!("{t:?}").to_lowercase()),
    );
    let file = config::read_file(&lab.dir.join(config::FILE_NAME))?;
    if let Some(wish) = &wanted.memory {
        let bytes = |text: &String| parse_size(text).ok();
        if file.memory.as_ref().and_then(bytes) != bytes(wish) {
            let is = file.memory.as_deref().unwrap_or("by the machine's size");
            differences.push(format!("memory {is}, not {wish}"));
        }
    }
    if let Some(wish) = wanted.compression.filter(|wish| file.compression.unwrap_or_default() != *wish) {
        differences
            .push(format!("compression {:?}, not {wish:?}", file.compression.unwrap_or_default()).to_lowercase());
    }
    if differences.is_empty() {
        return Ok(());
    }
    let dir = lab.dir.display();
    Err(Failure {
        kind: "already_exists".into(),
        ..Failure::conflict(format!(
            "the laboratory in {dir} is another one: {}; use another directory, or remove it with `ashlar lab down --dir {dir}`",
            differences.join(", ")
        ))
    })
}

fn make(dir: &Path, wanted: &Wanted, made_dir: bool) -> CommandResult<Lab> {
    let disks = wanted.disks.unwrap_or(6);
    if !(1..=DISKS_MAX).contains(&disks) {
        return Err(Failure::usage(format!("a laboratory has 1 to {DISKS_MAX} disks, not {disks}")));
    }
    let disk_size = wanted.disk_size.unwrap_or(2 << 30);
    if disk_size == 0 {
        return Err(Failure::usage("a disk cannot have a size of 0"));
    }
    if !disk_size.is_multiple_of(IO_ALIGN as u64) {
        return Err(Failure::usage(format!("the disk size {disk_size} is not a multiple of {IO_ALIGN} bytes")));
    }
    let tolerance = wanted.tolerance.unwrap_or(if disks > 1 { Tolerance::Single } else { Tolerance::None });
    let name = wanted.name.clone().unwrap_or_else(|| "lab".into());
    let mut lab = Lab::begin(dir, Manifest::new(name, disks, disk_size, tolerance))?;
    lab.manifest.made_dir |= made_dir;
    match fill(&lab, wanted).and_then(|()| lab.complete()) {
        Ok(()) => Ok(lab),
        Err(failure) => {
            // Nothing half made is left; the failure is what counts.
            let _ = lab.remove();
            Err(failure)
        }
    }
}

fn fill(lab: &Lab, wanted: &Wanted) -> CommandResult {
    lab.make_dirs()?;
    let m = &lab.manifest;
    for path in lab.disks() {
        // What is on them is nobody else's business.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let made = made.and_then(|f| f.set_len(m.disk_size));
        made.map_err(|e| {
            let size = size(m.disk_size);
            Failure::other(format!("making the disk {} of {size}: {e}", path.display()))
        })?;
    }
    let file = config::File {
        name: Some(m.name.clone()),
        disks: Some(lab.disk_names()),
        memory: wanted.memory.clone(),
        compression: wanted.compression,
        lab: Some(true),
        ..config::File::default()
    };
    let text = toml::to_string(&file).map_err(|e| Failure::other(format!("writing the configuration: {e}")))?;
    let path = lab.dir.join(config::FILE_NAME);
    let text = format!("# Made by `ashlar lab up`; removed by `ashlar lab down`.\n{text}");
    std::fs::write(&path, text).map_err(|e| Failure::other(format!("writing {}: {e}", path.display())))?;
    // What its daemon would refuse is refused now.
    let sources =
        Sources { dir: Some(&lab.dir), file: None, flags: &Flags::default(), env: &|_| None, machine: Machine::here() };
    Config::load(&sources)?;
    let pool =
        NewPool { name: m.name.clone(), disks: lab.disks(), tolerance: m.tolerance, chunk_size: None, force: false };
    Ok(engine::create(&pool)?)
}

/// Starts the daemon; whether it had to be started.
pub fn start(dir: &Path, read_only: bool) -> CommandResult<(Report, bool)> {
    let lab = Lab::open(dir)?;
    let (_, started) = process::start(&lab, read_only)?;
    Ok((report(&lab)?, started))
}

/// Stops the daemon in order. Refused while file systems on its volumes are mounted, unless `force`.
pub fn stop(dir: &Path, force: bool) -> CommandResult<(Report, bool)> {
    let lab = Lab::open(dir)?;
    if !force && process::running(&lab)?.is_some() {
        refuse_if_mounted(&lab)?;
    }
    let stopped = process::end(&lab, false)?;
    Ok((report(&lab)?, stopped))
}

fn refuse_if_mounted(lab: &Lab) -> CommandResult {
    let mounted = host::mounts_of(&host::loops_below(&lab.mountpoint())?)?;
    let Some(mount) = mounted.first() else { return Ok(()) };
    Err(Failure::conflict(format!(
        "a volume is mounted at {} (by {}); unmount it first, or use --force and lose what it has not written yet",
        mount.mountpoint.display(),
        mount.source.display()
    )))
}

/// Kills the daemon, as a power cut would.
pub fn kill(dir: &Path) -> CommandResult<(Report, bool)> {
    let lab = Lab::open(dir)?;
    let killed = process::end(&lab, true)?;
    Ok((report(&lab)?, killed))
}

/// Takes the laboratory away: mounts, loop devices, daemon, files. Gives what was left because it is not ours.
pub fn down(dir: &Path) -> CommandResult<Vec<PathBuf>> {
    let lab = Lab::open(dir)?;
    let mountpoint = lab.mountpoint();
    let mountpoint = mountpoint.canonicalize().unwrap_or(mountpoint);
    // Loop devices are found by the name of their file, which is lost with the FUSE mount: so they come first.
    let loops = host::loops_below(&mountpoint)?;
    for mount in host::mounts_of(&loops)? {
        host::unmount_in_order(&mount.mountpoint)?;
    }
    for device in &loops {
        host::detach(device)?;
    }
    if process::end(&lab, false).is_err() {
        process::end(&lab, true)?;
    }
    host::clear_dead_mount(&mountpoint)?;
    crate::daemon::nas::clear_left_over(&lab.nas_servers())?;
    for mount in host::mounts_below(&lab.file_systems())? {
        host::clear_dead_mount(&mount)?;
    }
    lab.remove()
}

/// The exit code of `lab status`: that of a command that needs the daemon.
pub fn status_exit(report: &Report) -> Exit {
    if report.running { Exit::Ok } else { Exit::Unreachable }
}
