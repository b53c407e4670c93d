//! Linux block devices by the ublk driver: the kernel's own block device in front, this process behind it.
//!
//! A device outlives the process that serves it (`UBLK_F_USER_RECOVERY`): while none does, its I/O waits in the kernel, and the next
//! process that presents the same volume takes the device over, with what was under way. The kernel keeps 64 bits of ours with the
//! device ([`Owner`]), by which it is found again. Hosts go on meanwhile, so everything answered must outlive the process
//! ([`BlockDevice::outlive`]): then the device has a volatile cache, which is lost with the machine only. Where that cannot be had a write is
//! answered when it is durable.
//!
//! libublk stays within this module. `docs/design/0011-ublk.md` has the states and what can fail in each.

mod control;
mod queue;
mod request;
mod tasks;
mod transfer;

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libublk::ctrl::UblkCtrl;
use libublk::{UblkError, sys};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags};
use tokio::sync::Semaphore;

use self::control::{Command, Start, apart};
use self::queue::Common;
use super::errno::from_io;
use super::{BlockDevice, loopdev};
use crate::error::{Error, ErrorKind, Result};
use crate::units::BLOCK_BYTES;

/// Longest transfer of one request, in bytes.
const MAX_TRANSFER: u32 = 1 << 20;

/// Where the driver takes commands.
const CONTROL: &str = "/dev/ublk-control";

/// Where the kernel lists devices.
const DEVICES: &str = "/sys/class/ublk-char";

/// How long a device may take to be closed before removal counts it as in use: udev looks into devices of its own accord.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// The same when a device is left: hosts wait meanwhile, and one that is left without need does no harm.
const LEAVE_GRACE: Duration = Duration::from_millis(100);

/// How long requests under way may take to come back before a device is left without them; the next process gets them again.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// Marks owners that are Ashlar's: their upper eight bits.
const MARK: u32 = 0xa5;

/// Whose device it is: a mark and 24 bits for the pool in the upper half, the volume in the lower. Kept by the driver as long as the
/// device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(u64);

impl Owner {
    /// The volume with this identity in the pool with this one.
    pub fn new(pool: crate::units::Uuid, volume: u32) -> Self {
        Self(u64::from(Self::pool_part(pool)) << 32 | u64::from(volume))
    }

    /// Whether it is a volume of this pool; the volume's identity if it is.
    pub fn volume_of(self, pool: crate::units::Uuid) -> Option<u32> {
        ((self.0 >> 32) as u32 == Self::pool_part(pool)).then_some(self.0 as u32)
    }

    /// Whether it is a volume of any pool. What others keep with their devices is mostly 0.
    pub fn is_ashlar(self) -> bool {
        (self.0 >> 56) as u32 == MARK
    }

    fn pool_part(pool: crate::units::Uuid) -> u32 {
        MARK << 24 | (xxhash_rust::xxh3::xxh3_64(&pool.0) >> 40) as u32
    }
}

/// How devices are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Hardware queues, each with a thread: 1 to 64.
    pub queues: u16,
    /// Requests a queue holds: 1 to 1024.
    pub depth: u16,
    /// Bytes of a logical block: 512 or 4096.
    pub logical_block: u32,
    /// Whether writes may be answered before they are durable, where they outlive this process: the device has a volatile cache.
    pub write_cache: bool,
}

impl Shape {
    /// A queue a processor, up to four. The driver never makes more queues than there are processors.
    pub fn for_processors(processors: usize) -> Self {
        Self { queues: processors.clamp(1, 4) as u16, depth: 128, logical_block: 512, write_cache: true }
    }

    /// Whether the driver takes it.
    pub fn check(self) -> Result<()> {
        if !(1..=64).contains(&self.queues) {
            return Err(Error::invalid(format!("a ublk device has 1 to 64 queues, not {}", self.queues)));
        }
        if !(1..=1024).contains(&self.depth) {
            return Err(Error::invalid(format!(
                "a queue of a ublk device holds 1 to 1024 requests, not {}",
                self.depth
            )));
        }
        if ![512, 4096].contains(&self.logical_block) {
            let bytes = self.logical_block;
            return Err(Error::invalid(format!("a logical block has 512 or 4096 bytes, not {bytes}")));
        }
        Ok(())
    }
}

/// What becomes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, never started, or stopped.
    Dead,
    /// A process serves it.
    Live,
    /// Its I/O waits for a process to take it over.
    Waiting,
}

/// A device the driver knows, whoever made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Existing {
    /// As in `/dev/ublkb0`.
    pub number: u32,
    /// Whose it is, if it is one of Ashlar's.
    pub owner: Owner,
    /// What becomes of it.
    pub state: State,
    /// The process that serves it, or served it last.
    pub process: i32,
    /// Its queues and their depth.
    shape: (u16, u16),
    /// Whether its host sends flushes.
    cache: bool,
}

/// All devices the driver knows. Blocks briefly. An error when one of them cannot be looked at: it may be anybody's.
pub fn existing() -> Result<Vec<Existing>> {
    let mut numbers = Vec::new();
    let entries = match std::fs::read_dir(DEVICES) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(from_io(&e, format_args!("read {DEVICES}"))),
    };
    for entry in entries {
        let name = entry.map_err(|e| from_io(&e, format_args!("read {DEVICES}")))?.file_name();
        numbers.extend(name.to_str().and_then(|n| n.strip_prefix("ublkc")).and_then(|n| n.parse::<u32>().ok()));
    }
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let look = |number| match look_at(number) {
        Err(_) if !Path::new(DEVICES).join(format!("ublkc{number}")).exists() => None,
        looked => Some(looked),
    };
    apart(move || numbers.into_iter().filter_map(look).collect())
}

/// One device; for a thread of its own.
fn look_at(number: u32) -> Result<Existing> {
    let control = UblkCtrl::new_simple(number as i32);
    let control = control.map_err(|e| from_ublk(&e, format_args!("ask about /dev/ublkb{number}")))?;
    let info = control.dev_info();
    let mut told = sys::ublk_params { types: sys::UBLK_PARAM_TYPE_BASIC, ..Default::default() };
    // One that was never started has none.
    let cache = control.get_params(&mut told).is_ok() && told.basic.attrs & sys::UBLK_ATTR_VOLATILE_CACHE != 0;
    let state = match u32::from(info.state) {
        sys::UBLK_S_DEV_LIVE => State::Live,
        sys::UBLK_S_DEV_QUIESCED | sys::UBLK_S_DEV_FAIL_IO => State::Waiting,
        _ => State::Dead,
    };
    Ok(Existing {
        number,
        owner: Owner(info.ublksrv_flags),
        state,
        process: info.ublksrv_pid,
        shape: (info.nr_hw_queues, info.queue_depth),
        cache,
    })
}

/// Stops and deletes a device that no process serves. I/O that waits on it fails. [`ErrorKind::Busy`] while something has it open.
pub fn delete(number: u32) -> Result<()> {
    let _claim = claim(&block_path(number), CLOSE_GRACE)?;
    delete_in_use(number)
}

/// The same, also while something uses it: its I/O fails, as on a drive that is torn out.
pub fn delete_in_use(number: u32) -> Result<()> {
    apart(move || {
        let what = |does: &str| format!("{does} /dev/ublkb{number}");
        let control = UblkCtrl::new_simple(number as i32).map_err(|e| from_ublk(&e, what("find")))?;
        control.kill_dev().map_err(|e| from_ublk(&e, what("stop")))?;
        control.del_dev_async().map(drop).map_err(|e| from_ublk(&e, what("delete")))
    })
}

fn block_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{number}"))
}

/// Why a device is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A queue ended, and why: its I/O waits until another process takes the device over.
    Ended(String),
    /// Somebody else stopped the device: its hosts have had I/O errors, and it is gone.
    Stopped,
}

/// A volume presented as a block device. Dropped, it leaves the device to the next process.
pub struct UblkDevice {
    number: u32,
    taken_over: bool,
    common: Arc<Common>,
    running: Mutex<Option<Running>>,
}

struct Running {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

impl UblkDevice {
    /// Presents `device`: takes over the device that waits for `owner`, or makes one. `memory` counts blocks of data under way, for
    /// all devices. Blocks until the device is there.
    pub fn present(
        runtime: tokio::runtime::Handle,
        device: Arc<dyn BlockDevice>,
        owner: Owner,
        mut shape: Shape,
        memory: Arc<Semaphore>,
    ) -> Result<Self> {
        shape.check()?;
        ready()?;
        let geometry = device.geometry();
        if !geometry.size.is_multiple_of(u64::from(shape.logical_block)) {
            let (size, block) = (geometry.size, shape.logical_block);
            return Err(Error::invalid(format!(
                "a size of {size} bytes is no multiple of the logical block of {block}"
            )));
        }
        let waiting = waiting_for(owner)?;
        if let Some(found) = waiting {
            (shape.queues, shape.depth) = found.shape;
        }
        let outlives = shape.write_cache && !geometry.read_only && device.outlive();
        let cache = waiting.map_or(outlives, |found| found.cache);
        let common = Arc::new(Common::new(device, !(outlives && cache), runtime, memory, shape.queues)?);
        let start = Start { owner, shape, geometry, cache, waiting, common: Arc::clone(&common) };
        let control::Started { number, commands, thread } = control::start(start)?;
        let running = Mutex::new(Some(Running { commands, thread }));
        let presented = Self { number, taken_over: waiting.is_some(), common, running };
        // The node is made by the kernel, and named by udev where there is udev.
        let until = Instant::now() + CLOSE_GRACE;
        while !presented.path().exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(presented)
    }

    /// The block device.
    pub fn path(&self) -> PathBuf {
        block_path(self.number)
    }

    /// Whether it was there before, served by another process.
    pub fn taken_over(&self) -> bool {
        self.taken_over
    }

    /// Why the device, or part of it, is served no longer, though nobody asked for that.
    pub fn trouble(&self) -> Option<Trouble> {
        self.common.trouble()
    }

    /// Tells the kernel a new size in bytes. [`ErrorKind::Unsupported`] before Linux 6.16.
    pub fn resize(&self, size: u64) -> Result<()> {
        self.tell(|answer| Command::Resize(size, answer))
    }

    /// Takes the device away. [`ErrorKind::Busy`], changing nothing, while it is mounted or open. Blocks.
    pub fn remove(&self) -> Result<()> {
        self.remove_within(CLOSE_GRACE)
    }

    fn remove_within(&self, grace: Duration) -> Result<()> {
        // Nobody can use what was stopped, and another device may have its number by now.
        let stopped = self.trouble() == Some(Trouble::Stopped);
        let claim = if stopped { None } else { Some(claim(&self.path(), grace)?) };
        self.finish(|answer| Command::Remove(claim, answer))
    }

    /// Ends serving: a device that nobody uses is taken away, another one waits for the next process, with its I/O. True when it waits.
    /// Blocks until what was under way is answered.
    pub fn leave(&self) -> Result<bool> {
        match self.remove_within(LEAVE_GRACE) {
            Err(error) if error.kind() == ErrorKind::Busy => {}
            ended => return ended.map(|()| false),
        }
        self.common.leave();
        let until = Instant::now() + DRAIN_LIMIT;
        while self.common.under_way() > 0 {
            if Instant::now() >= until {
                let left = self.common.under_way();
                tracing::warn!(device = %self.path().display(), left, "requests under way are left to the next process");
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.finish(Command::Leave).map(|()| true)
    }

    fn tell(&self, command: impl FnOnce(Sender<Result<()>>) -> Command) -> Result<()> {
        let (answer, answered) = channel();
        let running = self.running.lock();
        let sent = running.as_ref().is_some_and(|running| running.commands.send(command(answer)).is_ok());
        drop(running);
        let ended = || Error::new(ErrorKind::Unavailable, format!("{} is no longer served", self.path().display()));
        if !sent {
            return Err(ended());
        }
        answered.recv().map_err(|_| ended())?
    }

    fn finish(&self, command: impl FnOnce(Sender<Result<()>>) -> Command) -> Result<()> {
        let outcome = self.tell(command);
        if let Some(running) = self.running.lock().take() {
            drop(running.commands);
            let _ = running.thread.join();
        }
        outcome
    }
}

impl Drop for UblkDevice {
    fn drop(&mut self) {
        if let Some(running) = self.running.lock().take() {
            drop(running.commands);
            let _ = running.thread.join();
        }
    }
}

impl fmt::Debug for UblkDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UblkDevice").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Blocks of memory for [`UblkDevice::present`] within so many bytes; at least what the longest request takes.
pub fn memory(bytes: u64) -> Arc<Semaphore> {
    let blocks = bytes.max(u64::from(MAX_TRANSFER)) / BLOCK_BYTES;
    Arc::new(Semaphore::new((blocks as usize).min(Semaphore::MAX_PERMITS)))
}

/// Whether the driver of this machine can change the size of a device in use. Blocks briefly.
pub fn check_resize() -> Result<()> {
    if apart(|| Ok(control::able_to_resize()))? { Ok(()) } else { Err(control::no_resize()) }
}

/// Whether the driver is there and lets us in.
fn ready() -> Result<()> {
    match OpenOptions::new().read(true).write(true).open(CONTROL) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "there is no {CONTROL}: load the driver with 'modprobe ublk_drv' (Linux 6.0 or later has it), \
                 or use --via nbd, or --via fuse --loop"
            ),
        )),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{CONTROL} may not be opened: the daemon has to run as root to present volumes by ublk"),
        )),
        Err(e) => Err(from_io(&e, format_args!("open {CONTROL}"))),
    }
}

/// The device of `owner` that waits to be taken over. Remains of one that was never started, or has stopped, are deleted.
fn waiting_for(owner: Owner) -> Result<Option<Existing>> {
    let mut waiting = None;
    for found in existing()?.into_iter().filter(|found| found.owner == owner) {
        match found.state {
            State::Dead => delete_in_use(found.number)?,
            // The driver has not yet noticed that its process is gone, or that process is about to go.
            State::Live | State::Waiting => waiting = Some(found),
        }
    }
    Ok(waiting)
}

/// Opens a block device so that nobody else can claim it; [`ErrorKind::Busy`] when it is mounted, claimed, or open in another process.
fn claim(path: &Path, grace: Duration) -> Result<std::fs::File> {
    let until = Instant::now() + grace;
    loop {
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path);
        let why = match opened {
            Ok(file) => match opened_by(&file) {
                None => return Ok(file),
                Some(process) => format!("{} is open in process {process}", path.display()),
            },
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => format!("{} is mounted or claimed", path.display()),
            Err(e) => return Err(from_io(&e, format_args!("claim {}", path.display()))),
        };
        if Instant::now() >= until {
            return Err(Error::new(ErrorKind::Busy, why));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Another process that has `file` open, by whatever path, as number and name.
fn opened_by(file: &std::fs::File) -> Option<String> {
    let wanted = identity(statx(file, "", AtFlags::EMPTY_PATH))?;
    let me = std::process::id();
    let processes = std::fs::read_dir("/proc").ok()?;
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(number) = name.to_str().and_then(|n| n.parse::<u32>().ok()).filter(|number| *number != me) else {
            continue;
        };
        let Ok(mut files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        // Follows the link to the open file itself, wherever that lies; a server that is to be asked about a file may never answer.
        let is_wanted = |file: std::io::Result<std::fs::DirEntry>| {
            file.is_ok_and(|f| identity(statx(CWD, f.path(), AtFlags::STATX_DONT_SYNC)) == Some(wanted))
        };
        if files.any(is_wanted) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{number} ({})", name.trim()));
        }
    }
    None
}

fn statx(at: impl AsFd, path: impl rustix::path::Arg, flags: AtFlags) -> rustix::io::Result<Statx> {
    rustix::fs::statx(at, path, flags, StatxFlags::TYPE | StatxFlags::INO)
}

/// The device behind a block device's node, whatever node; of anything else, the file.
fn identity(of: rustix::io::Result<Statx>) -> Option<(u32, u32, u64)> {
    let of = of.ok()?;
    let file = (of.stx_dev_major, of.stx_dev_minor, of.stx_ino);
    // No file has the number 0.
    let device = (of.stx_rdev_major, of.stx_rdev_minor, 0);
    Some(if FileType::from_raw_mode(of.stx_mode.into()).is_block_device() { device } else { file })
}

/// An error of libublk in ours; `what` says what was tried.
fn from_ublk(error: &UblkError, what: impl fmt::Display) -> Error {
    match error {
        UblkError::OtherError(code) | UblkError::UringIOError(code) => {
            from_io(&io::Error::from_raw_os_error(-code), what)
        }
        UblkError::IOError(error) => from_io(error, what),
        other => Error::io(format!("{what}: {other}")),
    }
}

#[cfg(test)]
mod tests;
