//! The daemon's configuration: read once from defaults, file, environment and flags (later ones win), resolved once.
//!
//! Relative paths in a file are relative to the directory of that file, so a laboratory can be moved as a whole.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blockdev::error::{Error, Result};
use blockdev::frontend::ublk::Shape;
use blockdev::report::{Compression, Priority};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::quiesce::Quiescing;
use crate::values::{check_name, parse_size};
use crate::wire::ConfigRow;

/// What is logged unless told otherwise: libublk tells about each queue.
const LOG_FILTER: &str = "info,libublk=warn";
/// Name of the configuration file in an appliance directory.
pub const FILE_NAME: &str = "ashlar.toml";
/// Least memory budget of the daemon, in bytes.
pub const MEMORY_MIN: u64 = 256 << 20;
/// Longest path of a unix socket, in bytes (`sun_path` without its terminator).
const SOCKET_PATH_MAX: usize = 107;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in, or found by the machine's size.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Env(&'static str),
    /// An option of the command.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A value and its origin.
#[derive(Clone, Debug)]
pub struct Setting<T> {
    /// In effect.
    pub value: T,
    /// From where.
    pub origin: Origin,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The configuration file, as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// See [`Config::name`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// See [`Config::state_dir`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// See [`Config::disks`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<PathBuf>>,
    /// See [`Config::socket`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// See [`Config::memory`]; a size such as `2G`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// See [`Config::compression`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// See [`Config::recompress_after`], in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompress_after: Option<u64>,
    /// See [`Config::threads`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// See [`Config::failed_grace`], in seconds.
    pub failed_grace: Option<u64>,
    /// See [`Config::missing_grace`], in seconds.
    pub missing_grace: Option<u64>,
    /// See [`Config::scrub_days`].
    pub scrub_days: Option<u64>,
    /// See [`Config::error_limit`].
    pub error_limit: Option<u64>,
    /// See [`Config::disk_timeout`], in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_timeout: Option<u64>,
    /// See [`Config::health_interval`], in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_interval: Option<u64>,
    /// See [`Config::zone`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// See [`Config::hooks_dir`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks_dir: Option<PathBuf>,
    /// See [`Config::hook_limit`], in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook_limit: Option<u64>,
    /// See [`Config::freeze_limit`], in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_limit: Option<u64>,
    /// See [`Config::rebuild_priority`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebuild_priority: Option<Priority>,
    /// See [`Config::lab`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lab: Option<bool>,
    /// NBD front end.
    #[serde(default, skip_serializing_if = "is_default")]
    pub nbd: NbdFile,
    /// FUSE front end.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fuse: FuseFile,
    /// FUSE front end.
    #[serde(default, skip_serializing_if = "is_default")]
    pub nas: NasFile,
    /// ublk front end.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ublk: UblkFile,
    /// Logging.
    #[serde(default, skip_serializing_if = "is_default")]
    pub log: LogFile,
}

/// Section `[nbd]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdFile {
    /// See [`Config::nbd_socket`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// See [`Config::nbd_listen`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// See [`Config::nbd_tls_cert`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// See [`Config::nbd_tls_key`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// See [`Config::nbd_tls_ca`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
}

/// Section `[fuse]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FuseFile {
    /// See [`Config::fuse_mountpoint`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<PathBuf>,
}

/// Section `[nas]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NasFile {
    /// See [`Config::nas_mounts`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<PathBuf>,
}

/// Section `[ublk]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UblkFile {
    /// See [`Config::ublk_queues`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// See [`Config::ublk_depth`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u16>,
    /// See [`Config::ublk_logical_block`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logical_block: Option<u32>,
    /// See [`Config::ublk_write_cache`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_cache: Option<bool>,
}

/// Section `[log]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogFile {
    /// See [`Config::log_filter`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// See [`Config::log_format`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<LogFormat>,
    /// See [`Config::log_file`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Options of `ashlar serve` that stand above file and environment.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Memory the daemon may take, such as 2G
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// How new data is compressed: zstd, lz4 or off
    #[arg(long, value_name = "METHOD")]
    pub compression: Option<String>,
    /// Threads for front ends and for compression, each
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Also serve NBD on this TCP address, such as 127.0.0.1:10809
    #[arg(long, value_name = "ADDRESS")]
    pub nbd_listen: Option<String>,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,blockdev::log=debug
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Change nothing: for a pool that lacks more drives than it tolerates, to copy off what can be read
    #[arg(long)]
    pub read_only: bool,
}

/// What the configuration is read from.
pub struct Sources<'a> {
    /// The appliance directory (`--dir`), if one is used.
    pub dir: Option<&'a Path>,
    /// The file (`--config`); without it, and with `dir`, the one in the directory.
    pub file: Option<&'a Path>,
    /// Options.
    pub flags: &'a Flags,
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Bytes of RAM and number of cores of this machine.
    pub machine: Machine,
}

/// Size of the machine, which the defaults follow.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Bytes of RAM.
    pub ram: u64,
    /// Cores this process may use.
    pub cores: usize,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let info = rustix::system::sysinfo();
        let ram = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit.max(1)));
        Self { ram, cores: std::thread::available_parallelism().map_or(1, |n| n.get()) }
    }

    /// A quarter of the RAM, at least 256 MiB, at most 8 GiB.
    fn memory(self) -> u64 {
        (self.ram / 4).clamp(256 << 20, 8 << 30) & !((1 << 20) - 1)
    }
}

/// The configuration in effect.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name the pool on the disks must have; any when unset.
    pub name: Setting<Option<String>>,
    /// Where the daemon keeps its lock file and the laboratory its faults.
    pub state_dir: Setting<PathBuf>,
    /// The file that is locked while a daemon serves, and holds its process id. Follows from the directories.
    pub pid_file: PathBuf,
    /// Where each NAS server has a directory for its processes. Follows from the directories.
    pub nas_servers: PathBuf,
    /// The disks: block devices or files, in any order; they are known by their labels.
    pub disks: Setting<Vec<PathBuf>>,
    /// Unix socket of the REST API.
    pub socket: Setting<PathBuf>,
    /// Bytes the daemon may take: write buffer, caches, dedupe index, requests under way, and everything else.
    pub memory: Setting<u64>,
    /// Bytes of RAM the machine has.
    ram: u64,
    /// How new data is compressed.
    pub compression: Setting<Compression>,
    /// Seconds after which data that nobody has changed is compressed harder, when there is time; 0 for never.
    pub recompress_after: Setting<u64>,
    /// Threads of the front ends, and as many again for compression.
    pub threads: Setting<usize>,
    /// What a drive that failed held is rebuilt on the others after so many seconds.
    pub failed_grace: Setting<u64>,
    /// The same for a drive that is missing.
    pub missing_grace: Setting<u64>,
    /// A scrub begins so many days after the last one began; never when 0.
    pub scrub_days: Setting<u64>,
    /// A drive with so many errors of late is emptied and declared failed; never when 0.
    pub error_limit: Setting<u64>,
    /// A drive that does not answer for so many seconds is declared failed, if the pool can do without it; never when 0.
    pub disk_timeout: Setting<u64>,
    /// Drives are asked for their health every so many seconds; never when 0.
    pub health_interval: Setting<u64>,
    /// Time zone of the times at which rules take snapshots.
    pub zone: Setting<Zone>,
    /// Directory of programs that make applications ready for snapshots.
    pub hooks_dir: Setting<PathBuf>,
    /// Seconds after which such a program is killed.
    pub hook_limit: Setting<u64>,
    /// Seconds for which writers of a file system are held for a snapshot, at most.
    pub freeze_limit: Setting<u64>,
    /// Whether nothing is to be changed.
    pub read_only: bool,
    /// How much rebuilds, scrubs and the cleaner may slow hosts down.
    pub rebuild_priority: Setting<Priority>,
    /// Whether faults can be injected.
    pub lab: Setting<bool>,
    /// Unix socket of the NBD server.
    pub nbd_socket: Setting<PathBuf>,
    /// TCP address of the NBD server.
    pub nbd_listen: Setting<Option<SocketAddr>>,
    /// Certificate chain (PEM) of the NBD server; with it TLS is required on TCP.
    pub nbd_tls_cert: Setting<Option<PathBuf>>,
    /// Key (PEM) of the certificate.
    pub nbd_tls_key: Setting<Option<PathBuf>>,
    /// Authorities (PEM) clients' certificates must come from; any client is let in when unset.
    pub nbd_tls_ca: Setting<Option<PathBuf>>,
    /// Directory volumes attached by FUSE appear in.
    pub fuse_mountpoint: Setting<PathBuf>,
    /// Directory below which file systems are mounted, each in one of its name.
    pub nas_mounts: Setting<PathBuf>,
    /// Hardware queues of a ublk device, each with a thread.
    pub ublk_queues: Setting<u16>,
    /// Requests a queue of a ublk device holds.
    pub ublk_depth: Setting<u16>,
    /// Bytes of a logical block of ublk devices: 512 or 4096.
    pub ublk_logical_block: Setting<u32>,
    /// Whether ublk devices have a volatile write cache: writes are answered from memory that a killed daemon leaves to the next one.
    pub ublk_write_cache: Setting<bool>,
    /// What is logged.
    pub log_filter: Setting<String>,
    /// Form of log lines.
    pub log_format: Setting<LogFormat>,
    /// File the log is appended to; standard error when unset.
    pub log_file: Setting<Option<PathBuf>>,
}

/// Picks the strongest source of one value.
struct Pick<'a> {
    file: PathBuf,
    base: PathBuf,
    env: &'a dyn Fn(&str) -> Option<String>,
}

impl Pick<'_> {
    fn value<T>(&self, file: Option<T>, default: T) -> Setting<T> {
        match file {
            Some(value) => Setting { value, origin: Origin::File(self.file.clone()) },
            None => Setting { value: default, origin: Origin::Default },
        }
    }

    fn optional<T>(&self, file: Option<T>) -> Setting<Option<T>> {
        self.value(file.map(Some), None)
    }

    fn path(&self, file: Option<PathBuf>, default: PathBuf) -> Setting<PathBuf> {
        self.value(file.map(|p| self.base.join(p)), default)
    }

    fn optional_path(&self, file: Option<PathBuf>) -> Setting<Option<PathBuf>> {
        self.optional(file.map(|p| self.base.join(p)))
    }

    /// A value that an environment variable and a flag can set too; both are parsed by `parse`.
    fn text<T>(
        &self,
        below: Setting<T>,
        (env, flag): (&'static str, &'static str),
        given: Option<&String>,
        parse: impl Fn(&str) -> Result<T>,
    ) -> Result<Setting<T>> {
        if let Some(text) = given {
            let value = parse(text).map_err(|e| e.context(flag))?;
            return Ok(Setting { value, origin: Origin::Flag(flag) });
        }
        if let Some(text) = (self.env)(env).filter(|t| !t.is_empty()) {
            let value = parse(&text).map_err(|e| e.context(env))?;
            return Ok(Setting { value, origin: Origin::Env(env) });
        }
        Ok(below)
    }
}

/// A compression method by its name.
pub fn parse_compression(text: &str) -> Result<Compression> {
    match text {
        "zstd" => Ok(Compression::Zstd),
        "lz4" => Ok(Compression::Lz4),
        "off" => Ok(Compression::Off),
        other => Err(Error::invalid(format!("'{other}' is not a compression method: use zstd, lz4 or off"))),
    }
}

fn parse_priority(text: &str) -> Result<Priority> {
    match text {
        "low" => Ok(Priority::Low),
        "normal" => Ok(Priority::Normal),
        "high" => Ok(Priority::High),
        other => Err(Error::invalid(format!("'{other}' is not a priority: use low, normal or high"))),
    }
}

fn parse_threads(text: &str) -> Result<usize> {
    text.parse().map_err(|_| Error::invalid(format!("'{text}' is not a number of threads")))
}

fn parse_seconds(text: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::invalid(format!("'{text}' is not a number of seconds")))
}

fn parse_count(text: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::invalid(format!("'{text}' is not a number")))
}

fn parse_address(text: &str) -> Result<Option<SocketAddr>> {
    let bad =
        |_| Error::invalid(format!("'{text}' is not an address and port, such as 127.0.0.1:10809 or [::1]:10809"));
    text.parse().map(Some).map_err(bad)
}

/// Reads a configuration file.
pub fn read_file(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::new(
            blockdev::error::ErrorKind::NotFound,
            format!("there is no configuration file {}", path.display()),
        ),
        _ => Error::invalid(format!("reading the configuration file {}: {e}", path.display())),
    })?;
    toml::from_str(&text).map_err(|e| Error::invalid(format!("the configuration file {}: {e}", path.display())))
}

impl Config {
    /// Bytes of [`Config::memory`] that NBD may have for requests under way: an eighth, and at least what its longest request takes.
    pub fn nbd_memory(&self) -> u64 {
        self.memory.value / 8
    }

    /// Bytes of [`Config::memory`] that FUSE may have for requests under way: a sixteenth.
    pub fn fuse_memory(&self) -> u64 {
        self.memory.value / 16
    }

    /// Bytes of [`Config::memory`] that ublk may have for data of requests under way: a sixteenth.
    pub fn ublk_memory(&self) -> u64 {
        self.memory.value / 16
    }

    /// Bytes of [`Config::memory`] that file systems may have for metadata: a thirty-second.
    pub fn nas_memory(&self) -> u64 {
        self.memory.value / 32
    }

    /// What ublk devices are made like.
    pub fn ublk_shape(&self) -> Shape {
        Shape {
            queues: self.ublk_queues.value,
            depth: self.ublk_depth.value,
            logical_block: self.ublk_logical_block.value,
            write_cache: self.ublk_write_cache.value,
        }
    }

    /// Bytes of [`Config::memory`] that the engine accounts for: five eighths. The rest is for what nobody accounts for: the program
    /// itself, work space of the compressor, buffers on their way to disk, and what the allocator holds back.
    pub fn engine_memory(&self) -> u64 {
        self.memory.value / 8 * 5
    }

    /// Reads and resolves everything; the first thing that is wrong is the error.
    pub fn load(sources: &Sources<'_>) -> Result<Self> {
        let absolute =
            |p: &Path| std::path::absolute(p).map_err(|e| Error::invalid(format!("the path {}: {e}", p.display())));
        let dir = sources.dir.map(absolute).transpose()?;
        let path = match (sources.file, &dir) {
            (Some(file), _) => absolute(file)?,
            (None, Some(dir)) => dir.join(FILE_NAME),
            (None, None) => {
                return Err(Error::invalid("name a configuration file (--config) or an appliance directory (--dir)"));
            }
        };
        let file = read_file(&path)?;
        let base = path.parent().unwrap_or(Path::new("/")).to_owned();
        let config = Self::resolve(file, Pick { file: path, base, env: sources.env }, dir, sources)?;
        config.check()?;
        Ok(config)
    }

    fn resolve(file: File, pick: Pick<'_>, dir: Option<PathBuf>, sources: &Sources<'_>) -> Result<Self> {
        let (flags, machine) = (sources.flags, sources.machine);
        let state_default = dir.clone().unwrap_or_else(|| "/var/lib/ashlar".into());
        let run = dir.as_ref().map_or_else(|| PathBuf::from("/run/ashlar"), |d| d.join("run"));
        let hooks = dir.as_ref().map_or_else(|| PathBuf::from("/etc/ashlar/hooks"), |d| d.join("hooks"));
        let mount = dir.as_ref().map_or_else(|| run.join("volumes"), |d| d.join("mnt"));
        let file_systems = dir.as_ref().map_or_else(|| run.join("nas"), |d| d.join("nas"));
        let disks = file.disks.map(|all| all.into_iter().map(|p| pick.base.join(p)).collect());
        let memory = file.memory.as_deref().map(parse_size).transpose().map_err(|e| e.context("memory"))?;
        let state_dir = pick.path(file.state_dir, state_default);
        let shape = Shape::for_processors(machine.cores);
        let pid_file = if dir.is_some() { run.join(PID_FILE) } else { state_dir.value.join(PID_FILE) };
        Ok(Self {
            name: pick.optional(file.name),
            state_dir,
            nas_servers: run.join("nas-servers"),
            pid_file,
            disks: pick.value(disks, Vec::new()),
            socket: pick.path(file.socket, run.join("api.sock")),
            memory: pick.text(
                pick.value(memory, machine.memory()),
                ("ASHLAR_MEMORY", "--memory"),
                flags.memory.as_ref(),
                parse_size,
            )?,
            ram: machine.ram,
            compression: pick.text(
                pick.value(file.compression, Compression::default()),
                ("ASHLAR_COMPRESSION", "--compression"),
                flags.compression.as_ref(),
                parse_compression,
            )?,
            recompress_after: pick.text(
                pick.value(file.recompress_after, 0),
                ("ASHLAR_RECOMPRESS_AFTER", ""),
                None,
                parse_seconds,
            )?,
            threads: pick.text(
                pick.value(file.threads, machine.cores),
                ("ASHLAR_THREADS", "--threads"),
                flags.threads.map(|n| n.to_string()).as_ref(),
                parse_threads,
            )?,
            failed_grace: pick.text(
                pick.value(file.failed_grace, 30),
                ("ASHLAR_FAILED_GRACE", ""),
                None,
                parse_seconds,
            )?,
            missing_grace: pick.text(
                pick.value(file.missing_grace, 300),
                ("ASHLAR_MISSING_GRACE", ""),
                None,
                parse_seconds,
            )?,
            scrub_days: pick.text(pick.value(file.scrub_days, 28), ("ASHLAR_SCRUB_DAYS", ""), None, parse_count)?,
            error_limit: pick.text(pick.value(file.error_limit, 64), ("ASHLAR_ERROR_LIMIT", ""), None, parse_count)?,
            disk_timeout: pick.text(
                pick.value(file.disk_timeout, 30),
                ("ASHLAR_DISK_TIMEOUT", ""),
                None,
                parse_seconds,
            )?,
            health_interval: pick.text(
                pick.value(file.health_interval, 300),
                ("ASHLAR_HEALTH_INTERVAL", ""),
                None,
                parse_seconds,
            )?,
            zone: pick.text(
                pick.value(file.timezone.as_deref().map(parse_zone).transpose()?, Zone(TimeZone::system())),
                ("ASHLAR_TIMEZONE", ""),
                None,
                parse_zone,
            )?,
            hooks_dir: pick.path(file.hooks_dir, hooks),
            hook_limit: pick.value(file.hook_limit, 30),
            freeze_limit: pick.value(file.freeze_limit, 10),
            read_only: flags.read_only,
            rebuild_priority: pick.text(
                pick.value(file.rebuild_priority, Priority::default()),
                ("ASHLAR_REBUILD_PRIORITY", ""),
                None,
                parse_priority,
            )?,
            lab: pick.value(file.lab, false),
            nbd_socket: pick.path(file.nbd.socket, run.join("nbd.sock")),
            nbd_listen: pick.text(
                pick.optional(file.nbd.listen),
                ("ASHLAR_NBD_LISTEN", "--nbd-listen"),
                flags.nbd_listen.as_ref(),
                parse_address,
            )?,
            nbd_tls_cert: pick.optional_path(file.nbd.tls_cert),
            nbd_tls_key: pick.optional_path(file.nbd.tls_key),
            nbd_tls_ca: pick.optional_path(file.nbd.tls_ca),
            fuse_mountpoint: pick.path(file.fuse.mountpoint, mount),
            nas_mounts: pick.path(file.nas.mounts, file_systems),
            ublk_queues: pick.value(file.ublk.queues, shape.queues),
            ublk_depth: pick.value(file.ublk.depth, shape.depth),
            ublk_logical_block: pick.value(file.ublk.logical_block, shape.logical_block),
            ublk_write_cache: pick.value(file.ublk.write_cache, shape.write_cache),
            log_filter: pick.text(
                pick.value(file.log.filter, LOG_FILTER.into()),
                ("ASHLAR_LOG", "--log"),
                flags.log.as_ref(),
                |text| Ok(text.to_owned()),
            )?,
            log_format: pick.value(file.log.format, LogFormat::default()),
            log_file: pick.optional_path(file.log.file),
        })
    }

    fn check(&self) -> Result<()> {
        if let Some(name) = &self.name.value {
            check_name("pool", name)?;
        }
        if self.disks.value.is_empty() {
            return Err(Error::invalid(
                "no disks are configured; list them in the configuration file as disks = [\"/dev/…\", …]",
            ));
        }
        if self.memory.value < MEMORY_MIN {
            let (least, origin) = (MEMORY_MIN >> 20, &self.memory.origin);
            return Err(Error::invalid(format!("memory ({origin}) is less than the {least} MiB the daemon needs")));
        }
        if self.memory.value > self.ram {
            let (has, origin) = (crate::output::size(self.ram), &self.memory.origin);
            let wanted = crate::output::size(self.memory.value);
            return Err(Error::invalid(format!("memory ({origin}) is {wanted}, more than the {has} of this machine")));
        }
        if !(1..=1024).contains(&self.threads.value) {
            return Err(Error::invalid(format!("threads ({}) must be 1 to 1024", self.threads.origin)));
        }
        for socket in [&self.socket.value, &self.nbd_socket.value] {
            check_socket_path(socket)?;
        }
        if self.nbd_tls_cert.value.is_some() != self.nbd_tls_key.value.is_some() {
            return Err(Error::invalid("nbd.tls_cert and nbd.tls_key go together: one of them is missing"));
        }
        if self.nbd_tls_ca.value.is_some() && self.nbd_tls_cert.value.is_none() {
            return Err(Error::invalid("nbd.tls_ca needs nbd.tls_cert and nbd.tls_key"));
        }
        for (key, seconds) in [("hook_limit", self.hook_limit.value), ("freeze_limit", self.freeze_limit.value)] {
            if seconds == 0 || seconds > LIMIT_MAX {
                return Err(Error::invalid(format!("{key} is {seconds}: write 1 to {LIMIT_MAX} seconds")));
            }
        }
        self.ublk_shape().check().map_err(|e| e.context("section [ublk]"))?;
        tracing_subscriber::EnvFilter::try_new(&self.log_filter.value)
            .map(drop)
            .map_err(|e| Error::invalid(format!("the log filter ({}): {e}", self.log_filter.origin)))
    }

    /// How applications are made ready for snapshots.
    pub fn quiescing(&self) -> Quiescing {
        Quiescing {
            hooks_dir: self.hooks_dir.value.clone(),
            hook_limit: Duration::from_secs(self.hook_limit.value),
            freeze_limit: Duration::from_secs(self.freeze_limit.value),
            own: self.log_file.value.iter().cloned().chain([PathBuf::from("/proc/self/exe")]).collect(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Every value and its origin.
    pub fn rows(&self) -> Vec<ConfigRow> {
        fn row<T>(key: &str, setting: &Setting<T>, show: impl Fn(&T) -> String) -> ConfigRow {
            ConfigRow { key: key.into(), value: show(&setting.value), origin: setting.origin.to_string() }
        }
        let path = |p: &PathBuf| p.display().to_string();
        let optional_path = |p: &Option<PathBuf>| p.as_ref().map_or_else(String::new, path);
        vec![
            row("name", &self.name, |n| n.clone().unwrap_or_default()),
            row("state_dir", &self.state_dir, path),
            row("disks", &self.disks, |all| all.iter().map(path).collect::<Vec<_>>().join(" ")),
            row("socket", &self.socket, path),
            row("memory", &self.memory, |m| crate::output::size(*m)),
            row("compression", &self.compression, |c| format!("{c:?}").to_lowercase()),
            row("recompress_after", &self.recompress_after, |s| format!("{s} s")),
            row("threads", &self.threads, ToString::to_string),
            row("failed_grace", &self.failed_grace, |s| format!("{s} s")),
            row("missing_grace", &self.missing_grace, |s| format!("{s} s")),
            row("scrub_days", &self.scrub_days, ToString::to_string),
            row("error_limit", &self.error_limit, ToString::to_string),
            row("disk_timeout", &self.disk_timeout, |s| format!("{s} s")),
            row("health_interval", &self.health_interval, |s| format!("{s} s")),
            row("timezone", &self.zone, |z| z.0.iana_name().unwrap_or("system").into()),
            row("hooks_dir", &self.hooks_dir, path),
            row("hook_limit", &self.hook_limit, |s| format!("{s} s")),
            row("freeze_limit", &self.freeze_limit, |s| format!("{s} s")),
            row("rebuild_priority", &self.rebuild_priority, |p| format!("{p:?}").to_lowercase()),
            row("lab", &self.lab, ToString::to_string),
            row("nbd.socket", &self.nbd_socket, path),
            row("nbd.listen", &self.nbd_listen, |a| a.map_or_else(String::new, |a| a.to_string())),
            row("nbd.tls_cert", &self.nbd_tls_cert, optional_path),
            row("nbd.tls_key", &self.nbd_tls_key, optional_path),
            row("nbd.tls_ca", &self.nbd_tls_ca, optional_path),
            row("fuse.mountpoint", &self.fuse_mountpoint, path),
            row("nas.mounts", &self.nas_mounts, path),
            row("ublk.queues", &self.ublk_queues, ToString::to_string),
            row("ublk.depth", &self.ublk_depth, ToString::to_string),
            row("ublk.logical_block", &self.ublk_logical_block, ToString::to_string),
            row("ublk.write_cache", &self.ublk_write_cache, ToString::to_string),
            row("log.filter", &self.log_filter, Clone::clone),
            row("log.format", &self.log_format, |f| format!("{f:?}").to_lowercase()),
            row("log.file", &self.log_file, optional_path),
        ]
    }
}

/// Longest limit for hooks and frozen file systems, in seconds.
const LIMIT_MAX: u64 = 3600;

/// A time zone.
#[derive(Clone, Debug)]
pub struct Zone(pub TimeZone);

fn parse_zone(text: &str) -> Result<Zone> {
    let zone = TimeZone::get(text);
    zone.map(Zone)
        .map_err(|e| Error::invalid(format!("the time zone '{text}': {e}; write for example Europe/Berlin or UTC")))
}

/// Name of the lock and pid file.
pub const PID_FILE: &str = "pid";

/// A unix socket's path has a hard limit in the kernel; says so before `bind` does in fewer words.
pub fn check_socket_path(path: &Path) -> Result<()> {
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_MAX {
        return Err(Error::invalid(format!(
            "the socket path {} has {len} bytes and the kernel allows {SOCKET_PATH_MAX}; use a shorter directory",
            path.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
