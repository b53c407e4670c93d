//! A device's own thread: makes or takes over the device, runs its queues, and ends it. The driver's control commands go through a ring
//! that belongs to the thread, hence one thread for all of them.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::{UblkFlags, sys};

use super::queue::{Common, serve};
use super::{Existing, MAX_TRANSFER, Owner, Shape, from_ublk, loopdev};
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::Geometry;
use crate::frontend::errno::from_io;

/// Name of the target, for tools that list devices.
const TARGET: &str = "ashlar";

/// Requests survive this process: the driver keeps them for the next one, also those it had already given to us. Data is copied when
/// we ask for it.
const FEATURES: u64 = (sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE | sys::UBLK_F_USER_COPY) as u64;

/// Longest discard or write of zeroes in sectors of 512 bytes: what the block layer can count in bytes, in whole blocks.
const LONGEST_RANGE: u32 = (u32::MAX >> 9) & !7;

/// What the thread is told, and where it answers.
pub(super) enum Command {
    /// Changes the size, in bytes.
    Resize(u64, Sender<Result<()>>),
    /// Takes the device away from the system. The claim on it keeps everybody else out until it is stopped; none where it was stopped already.
    Remove(Option<File>, Sender<Result<()>>),
    /// Ends the queues; the device stays and waits for the next process.
    Leave(Sender<Result<()>>),
}

/// What a new thread starts from.
pub(super) struct Start {
    pub(super) owner: Owner,
    pub(super) shape: Shape,
    pub(super) geometry: Geometry,
    /// Whether a new device has a volatile cache: its host sends flushes.
    pub(super) cache: bool,
    /// A device of this owner that waits to be taken over.
    pub(super) waiting: Option<Existing>,
    pub(super) common: Arc<Common>,
}

/// A device that is served.
pub(super) struct Started {
    pub(super) number: u32,
    pub(super) commands: Sender<Command>,
    pub(super) thread: JoinHandle<()>,
}

/// Starts the thread and waits until the device is there.
pub(super) fn start(start: Start) -> Result<Started> {
    let (tell, told) = channel();
    let (commands, received) = channel();
    let thread = std::thread::Builder::new().name("ublk-control".into()).spawn(move || {
        loopdev::set_io_flusher();
        run(&start, &tell, &received);
    });
    let thread = thread.map_err(|e| from_io(&e, "start the control thread of a ublk device"))?;
    match told.recv() {
        Ok(Ok(number)) => Ok(Started { number, commands, thread }),
        Ok(Err(error)) => {
            let _ = thread.join();
            Err(error)
        }
        Err(_) => Err(Error::io("the control thread of a ublk device panicked")),
    }
}

fn run(start: &Start, tell: &Sender<Result<u32>>, commands: &Receiver<Command>) {
    let (control, driver, queues) = match bring_up(start) {
        Ok(all) => all,
        Err(error) => {
            let _ = tell.send(Err(error));
            return;
        }
    };
    let number = control.dev_info().dev_id;
    let _ = tell.send(Ok(number));
    // The sender lives as long as the device's handle; without it nobody can end the device, and leaving is what loses nothing.
    let last = loop {
        match commands.recv() {
            Ok(Command::Resize(size, answer)) => {
                let _ = answer.send(resize(&control, size));
            }
            Ok(other) => break Some(other),
            Err(_) => break None,
        }
    };
    match last {
        Some(Command::Remove(None, answer)) => {
            wait(queues);
            // Who stopped it may have deleted it as well. While we have it open, nobody gets its number.
            if let Err(error) = control.del_dev_async() {
                tracing::debug!(%error, number, "a device that was stopped is there no more");
            }
            drop(driver);
            let _ = answer.send(Ok(()));
        }
        Some(Command::Remove(Some(claim), answer)) => {
            start.common.stop();
            let stopped = control.stop_dev().map_err(|e| from_ublk(&e, format_args!("stop /dev/ublkb{number}")));
            if let Err(error) = stopped {
                let _ = answer.send(Err(error));
                // Nobody can use a device that does not stop, and what it asks for must still be answered.
                wait(queues);
                return;
            }
            wait(queues);
            drop(driver);
            drop(claim);
            let gone = control.del_dev().map_err(|e| from_ublk(&e, format_args!("delete /dev/ublkb{number}")));
            let _ = answer.send(gone.map(drop));
        }
        left => {
            start.common.leave();
            start.common.end();
            wait(queues);
            drop(driver);
            if let Some(Command::Leave(answer)) = left {
                let _ = answer.send(Ok(()));
            }
        }
    }
}

/// Waits until the threads of the queues are gone, and closes their rings then.
fn wait(queues: Vec<Serving>) {
    for queue in queues {
        match queue.join() {
            Ok(ring) => drop(ring),
            Err(_) => tracing::error!("the thread of a ublk queue panicked"),
        }
    }
}

/// The thread of a queue. It gives its ring, which must outlive it.
type Serving = JoinHandle<Option<OwnedFd>>;

type Up = (UblkCtrl, Arc<UblkDev>, Vec<Serving>);

fn bring_up(start: &Start) -> Result<Up> {
    let takes_over = start.waiting.is_some();
    let Shape { queues, depth, .. } = start.shape;
    let builder = UblkCtrlBuilder::default().name(TARGET).nr_queues(queues).depth(depth).io_buf_bytes(MAX_TRANSFER);
    let builder = builder.ctrl_flags(FEATURES).ctrl_target_flags(start.owner.0);
    let control = match start.waiting {
        Some(found) => builder.id(found.number as i32).dev_flags(UblkFlags::UBLK_DEV_F_RECOVER_DEV).build(),
        None => builder.dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV).build(),
    };
    let control = control.map_err(|e| from_ublk(&e, "make a ublk device"))?;
    // It is deleted when we say so, never because this process ends.
    control.disown();
    note_empty(&control);
    let up = serve_on(&control, start, takes_over);
    match up {
        Ok((driver, queues)) => Ok((control, driver, queues)),
        Err(error) => {
            // What was made here goes; what was there before stays, and the next attempt finds it.
            if !takes_over && let Err(error) = control.del_dev() {
                tracing::warn!(%error, "deleting a ublk device that could not be started");
            }
            Err(error)
        }
    }
}

/// libublk complains on standard error about devices without a file of its own, which is of no use to us: an empty one keeps it quiet. It goes with the
/// device.
fn note_empty(control: &UblkCtrl) {
    let path = std::path::PathBuf::from(control.run_path());
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, "{}"));
    if let Err(error) = made {
        tracing::debug!(path = %path.display(), %error, "libublk will complain that its file is not there");
    }
}

fn serve_on(control: &UblkCtrl, start: &Start, takes_over: bool) -> Result<(Arc<UblkDev>, Vec<Serving>)> {
    let number = control.dev_info().dev_id;
    if takes_over {
        control.start_user_recover().map_err(|e| from_ublk(&e, format_args!("take over /dev/ublkb{number}")))?;
    }
    let driver = UblkDev::new(
        TARGET.into(),
        |driver| {
            driver.tgt.dev_size = start.geometry.size;
            driver.tgt.params = parameters(&start.geometry, start.shape.logical_block, start.cache);
            // Room for all requests, the poll of the event counter and a read for each request at once; more reads go elsewhere.
            driver.tgt.sq_depth *= 4;
            driver.tgt.cq_depth *= 4;
            Ok(())
        },
        control,
    );
    let driver = Arc::new(driver.map_err(|e| from_ublk(&e, format_args!("open /dev/ublkc{number}")))?);
    // SAFETY: the descriptor belongs to `driver`, which outlives the call.
    let data = unsafe { BorrowedFd::borrow_raw(driver.tgt.fds[0]) }.try_clone_to_owned();
    let data = Arc::new(File::from(data.map_err(|e| from_io(&e, "share the character device"))?));
    let (ready, readiness) = channel();
    let mut threads = Vec::new();
    let mut begin = || -> Result<()> {
        for queue in 0..control.dev_info().nr_hw_queues {
            let (driver, data, common) = (Arc::clone(&driver), Arc::clone(&data), Arc::clone(&start.common));
            let ready = ready.clone();
            let name = format!("ublk{number}-{queue}");
            let thread = std::thread::Builder::new().name(name).spawn(move || {
                loopdev::set_io_flusher();
                serve(queue, &driver, &data, &common, |outcome| drop(ready.send(outcome)))
            });
            threads.push(thread.map_err(|e| from_io(&e, "start the thread of a queue"))?);
        }
        for _ in 0..threads.len() {
            readiness.recv().map_err(|_| Error::io("the thread of a ublk queue panicked"))??;
        }
        control.start_dev(&driver).map_err(|e| from_ublk(&e, format_args!("start /dev/ublkb{number}")))?;
        Ok(())
    };
    match begin() {
        Ok(()) => Ok((driver, threads)),
        Err(error) => {
            // What was made here is stopped, which takes back what its queues wait for; what was there before goes on waiting.
            start.common.stop();
            if !takes_over && let Err(error) = control.stop_dev() {
                tracing::warn!(%error, "stopping a ublk device that could not be started");
            }
            start.common.end();
            wait(threads);
            Err(error)
        }
    }
}

/// What the block layer is told.
pub(super) fn parameters(geometry: &Geometry, logical_block: u32, cache: bool) -> sys::ublk_params {
    let grain = geometry.block_size.max(logical_block);
    let mut attributes = 0;
    if geometry.read_only {
        attributes |= sys::UBLK_ATTR_READ_ONLY;
    }
    if cache {
        attributes |= sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
    }
    sys::ublk_params {
        types: sys::UBLK_PARAM_TYPE_BASIC | sys::UBLK_PARAM_TYPE_DISCARD,
        basic: sys::ublk_param_basic {
            attrs: attributes,
            logical_bs_shift: logical_block.ilog2() as u8,
            physical_bs_shift: grain.ilog2() as u8,
            io_min_shift: grain.ilog2() as u8,
            io_opt_shift: geometry.optimal_io.max(grain).ilog2() as u8,
            max_sectors: MAX_TRANSFER >> 9,
            dev_sectors: geometry.size >> 9,
            ..Default::default()
        },
        discard: sys::ublk_param_discard {
            discard_granularity: grain,
            max_discard_sectors: LONGEST_RANGE,
            max_write_zeroes_sectors: LONGEST_RANGE,
            max_discard_segments: 1,
            ..Default::default()
        },
        ..Default::default()
    }
}

fn resize(control: &UblkCtrl, size: u64) -> Result<()> {
    if !able_to_resize() {
        return Err(no_resize());
    }
    control.update_size(size).map(drop).map_err(|e| from_ublk(&e, "change the size of a ublk device"))
}

/// What to do where the driver cannot change sizes.
pub(super) fn no_resize() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "this kernel's ublk driver cannot change the size of a device in use (Linux 6.16 can); \
         detach the volume, resize it, and attach it again",
    )
}

/// Whether the driver can change the size of a device in use. For a thread that has a control ring, or may get one.
pub(super) fn able_to_resize() -> bool {
    UblkCtrl::get_features().is_some_and(|features| features & u64::from(sys::UBLK_F_UPDATE_SIZE) != 0)
}

/// Runs control commands on a thread of their own, as the ring they go through belongs to the thread.
pub(super) fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let thread = std::thread::Builder::new().name("ublk-command".into()).spawn(work);
    let thread = thread.map_err(|e| from_io(&e, "start a thread"))?;
    thread.join().map_err(|_| Error::io("a thread for a ublk command panicked"))?
}
