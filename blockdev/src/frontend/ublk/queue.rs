//! One hardware queue: a thread that takes requests from the driver, does them or has them done on the runtime, and answers them.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use io_uring::{opcode, squeue, types};
use libublk::io::{BufDesc, BufDescList, UblkDev, UblkIOCtx, UblkQueue, with_task_io_ring_mut};
use libublk::{UblkError, UblkIORes, sys};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::request::Request;
use super::tasks::{Rouse, Tasks};
use super::transfer::Slot;
use super::{MAX_TRANSFER, Trouble, from_ublk};
use crate::env::lent::{self, LentRing};
use crate::error::{Error, Result};
use crate::frontend::BlockDevice;
use crate::frontend::errno::{errno, from_io};
use crate::units::BLOCK_BYTES;

/// Marks the poll of the event counter among the completions of a queue's ring; above it, requests have their tag.
const WAKE: u64 = 1 << 63 | 0xffff;

/// Light requests that wait here while the thread takes on another.
const LIGHT_HERE: usize = 64;

/// The same for others: more than one processor can hash and uncompress.
const OTHERS_HERE: usize = 4;

/// Longest wait for reads of a queue that ended.
const DRAIN: Duration = Duration::from_secs(10);

/// Requests of at most so many bytes cost less than giving them to another thread.
const LIGHT: u64 = 16 << 10;

/// What all queues of a device have in common.
pub(super) struct Common {
    pub(super) device: Arc<dyn BlockDevice>,
    /// Writes are answered only when they are durable: nothing else outlives this process, or the host sends no flushes.
    through: bool,
    pub(super) runtime: tokio::runtime::Handle,
    /// Blocks of memory for data of requests under way; shared by all devices.
    pub(super) memory: Arc<Semaphore>,
    /// Requests given to the device and not answered.
    under_way: AtomicUsize,
    /// Set when this process is about to give the device to the next one: no further request is begun.
    leaving: AtomicBool,
    /// Set when this process is about to stop the device.
    stopping: AtomicBool,
    /// Why a queue is served no longer, though nobody said so.
    trouble: Mutex<Option<Trouble>>,
    queues: Vec<Arc<Mail>>,
}

impl Common {
    pub(super) fn new(
        device: Arc<dyn BlockDevice>,
        through: bool,
        runtime: tokio::runtime::Handle,
        memory: Arc<Semaphore>,
        queues: u16,
    ) -> Result<Self> {
        let queues = (0..queues).map(|_| Mail::new().map(Arc::new)).collect::<Result<_>>()?;
        Ok(Self {
            device,
            through,
            runtime,
            memory,
            under_way: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            trouble: Mutex::default(),
            queues,
        })
    }

    /// Requests given to the device and not answered.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Acquire)
    }

    /// Why a queue is served no longer, though nobody said so.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().clone()
    }

    fn fail(&self, queue: u16, why: &str) {
        tracing::error!(queue, error = why, "a queue of a ublk device ended");
        self.trouble.lock().get_or_insert_with(|| Trouble::Ended(format!("queue {queue} ended: {why}")));
    }

    /// The device was stopped: by us, or by somebody who may. What that means goes over whatever was wrong before.
    fn stopped(&self) {
        if !self.stopping.load(Ordering::Acquire)
            && self.trouble.lock().replace(Trouble::Stopped) != Some(Trouble::Stopped)
        {
            tracing::error!("a ublk device was stopped, not by this process");
        }
    }

    /// Says that this process is about to stop the device.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Begins no further request; those that come stay with the driver, which sends them to the next process.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Ends the threads of the queues, which answer nothing more.
    pub(super) fn end(&self) {
        for queue in &self.queues {
            queue.ended.store(true, Ordering::Release);
            queue.wake();
        }
    }
}

/// What the thread of a queue is told.
enum News {
    /// The answer to a request that the runtime did: tag and result. Only the thread of the queue may send it.
    Done(u16, i32),
    /// The work of a tag can go on.
    Roused(u16),
}

thread_local! {
    /// The mail of the queue whose thread this is.
    static OWN: Cell<*const Mail> = const { Cell::new(std::ptr::null()) };
}

/// What there is for the thread of a queue, from others and from itself.
struct Mail {
    news: Mutex<Vec<News>>,
    /// Counts up when the thread is to look. It looks by itself before it waits, so its own news need not wake it.
    event: File,
    ended: AtomicBool,
}

impl Mail {
    fn new() -> Result<Self> {
        // SAFETY: no pointer is passed; the descriptor that comes back belongs to nobody else.
        let event = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(from_io(&std::io::Error::last_os_error(), "make an event counter"));
            }
            File::from_raw_fd(fd)
        };
        Ok(Self { news: Mutex::default(), event, ended: AtomicBool::new(false) })
    }

    fn push(&self, news: News) {
        let first = {
            let mut waiting = self.news.lock();
            waiting.push(news);
            waiting.len() == 1
        };
        if first && !std::ptr::eq(OWN.get(), self) {
            self.wake();
        }
    }

    fn is_empty(&self) -> bool {
        self.news.lock().is_empty()
    }

    fn wake(&self) {
        use std::io::Write;
        // It only fails when the counter is full, and then the thread is awake.
        let _ = (&self.event).write(&1_u64.to_ne_bytes());
    }

    fn calm(&self) {
        use std::io::Read;
        let _ = (&self.event).read(&mut [0; 8]);
    }
}

impl Rouse for Mail {
    fn rouse(&self, tag: u16) {
        self.push(News::Roused(tag));
    }
}

/// The promise to answer one request: dropped without an answer (its task panicked), the answer is an I/O error.
struct Promise {
    common: Arc<Common>,
    queue: u16,
    tag: u16,
    kept: bool,
}

impl Promise {
    fn keep(mut self, result: i32) {
        self.kept = true;
        self.answer(result);
    }

    fn answer(&self, result: i32) {
        self.common.queues[usize::from(self.queue)].push(News::Done(self.tag, result));
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if !self.kept {
            self.answer(-libc::EIO);
        }
    }
}

/// Serves a queue until the device is stopped or the threads are ended. `ready` is told once whether requests can come.
///
/// What it gives is to be dropped when the thread is gone, and not before: the ring. While the thread of a closed ring lives on, the driver (of Linux 6.12) may take back what
/// the thread has and then hand it a request that was on its way, which nobody would ever answer.
pub(super) fn serve(
    number: u16,
    driver: &UblkDev,
    data: &Arc<File>,
    common: &Arc<Common>,
    ready: impl FnOnce(Result<()>),
) -> Option<OwnedFd> {
    let mail = Arc::clone(&common.queues[usize::from(number)]);
    let driver_queue = UblkQueue::new(number, driver).and_then(|queue| {
        let queue = queue.submit_fetch_commands_unified(BufDescList::Slices(None))?;
        poll(&mail)?;
        // SAFETY: the ring is open during the call.
        let ring =
            with_task_io_ring_mut(|ring| unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }.try_clone_to_owned());
        Ok((queue, ring.map_err(UblkError::IOError)?))
    });
    let (driver_queue, kept) = match driver_queue {
        Ok(both) => both,
        Err(error) => {
            ready(Err(from_ublk(&error, format_args!("set up queue {number}"))));
            return None;
        }
    };
    ready(Ok(()));
    // What is done here may want the runtime's timers.
    let _entered = common.runtime.enter();
    OWN.set(Arc::as_ptr(&mail));
    let ring = LentRing::new(push);
    let tasks = Tasks::new(driver.dev_info.queue_depth, &mail);
    let mut queue = Queue { driver: driver_queue, data, common, mail: &mail, ring: &ring, tasks };
    let ended = catch_unwind(AssertUnwindSafe(|| queue.turn()));
    let Queue { driver, tasks, .. } = queue;
    // Work that goes no further may have asked for more than it waits for.
    drop(tasks);
    drain(&ring);
    match ended {
        Ok(Ok(End::Stopped)) => {
            common.stopped();
            return Some(kept);
        }
        Ok(Ok(End::Told)) => {}
        Ok(Err(error)) => common.fail(number, &error.to_string()),
        Err(_) => common.fail(number, "its thread panicked"),
    }
    // The driver still has our requests for work. Dropping the queue would wait in the kernel until it gives them back, which it does only
    // when the ring is closed. The map of the descriptors stays until the process ends.
    std::mem::forget(driver);
    Some(kept)
}

/// Why a queue ended.
enum End {
    /// The device was stopped, and the driver has given back all requests for work.
    Stopped,
    /// This process was told to serve it no longer.
    Told,
}

/// Asks to be woken when the event counter goes up.
fn poll(mail: &Mail) -> std::result::Result<(), UblkError> {
    let poll = opcode::PollAdd::new(types::Fd(mail.event.as_raw_fd()), libc::POLLIN as u32).build().user_data(WAKE);
    // SAFETY: the entry refers to no memory, and the descriptor is open as long as the thread of this ring.
    with_task_io_ring_mut(|ring| unsafe { ring.submission().push(&poll) })
        .map_err(|_| UblkError::OtherError(-libc::EAGAIN))
}

/// Puts an entry of a disk into this thread's ring.
fn push(entry: &squeue::Entry) -> bool {
    // SAFETY: who borrows the ring keeps what the entry refers to until its completion was handed in, which `drain` sees to.
    with_task_io_ring_mut(|ring| unsafe { ring.submission().push(entry) }.is_ok())
}

/// Waits until the disks have answered all that went through this thread's ring. Not longer than [`DRAIN`]: a dead
/// drive must not hold the next process up.
fn drain(ring: &LentRing) {
    let begun = Instant::now();
    let tick = types::Timespec::new().nsec(100_000_000);
    while lent::under_way() > 0 && begun.elapsed() < DRAIN {
        let completions = with_task_io_ring_mut(|ring| {
            let waited = ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&tick));
            if let Err(error) = waited
                && !matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR))
            {
                tracing::warn!(%error, "waiting for the reads of a queue that ended");
                std::thread::sleep(Duration::from_millis(1));
            }
            ring.completion().collect::<Vec<_>>()
        });
        completions.iter().for_each(|completion| ring.complete(completion));
    }
}

/// What the thread of a queue has.
struct Queue<'a> {
    driver: UblkQueue<'a>,
    data: &'a Arc<File>,
    common: &'a Arc<Common>,
    mail: &'a Mail,
    ring: &'a LentRing,
    tasks: Tasks<Mail>,
}

impl Queue<'_> {
    fn turn(&mut self) -> Result<End> {
        let mut begun = Vec::new();
        let mut news = Vec::new();
        while !self.mail.ended.load(Ordering::Acquire) {
            let mut woken = false;
            let ring = self.ring;
            let waited = self.driver.flush_and_wake_io_tasks(
                |user_data, completion, _| {
                    if user_data == WAKE {
                        woken = true;
                    } else if LentRing::concerns(completion) {
                        ring.complete(completion);
                    } else if completion.result() == sys::UBLK_IO_RES_OK as i32 {
                        begun.push(UblkIOCtx::user_data_to_tag(user_data) as u16);
                    } else if completion.result() != sys::UBLK_IO_RES_ABORT {
                        // Nothing will come for this tag any more.
                        let tag = UblkIOCtx::user_data_to_tag(user_data);
                        tracing::warn!(tag, result = completion.result(), "the driver refused a request for work");
                    }
                },
                usize::from(self.mail.is_empty()),
            );
            match waited {
                Ok(_) => {}
                // All requests were taken back: the device is stopped.
                Err(UblkError::QueueIsDown) => return Ok(End::Stopped),
                Err(UblkError::IOError(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(from_ublk(&error, "wait for requests")),
            }
            if woken {
                self.mail.calm();
                poll(self.mail).map_err(|e| from_ublk(&e, "wait for news"))?;
            }
            std::mem::swap(&mut *self.mail.news.lock(), &mut news);
            for told in news.drain(..) {
                match told {
                    News::Done(tag, result) => self.answer(tag, result)?,
                    News::Roused(tag) => {
                        if let Some(result) = self.tasks.go_on(tag) {
                            self.answer(tag, result)?;
                        }
                    }
                }
            }
            let last = begun.last().copied();
            for tag in begun.drain(..) {
                self.begin(tag, Some(tag) == last)?;
            }
        }
        Ok(End::Told)
    }

    /// Begins a request: here, or on the runtime when enough wait here, or it is not light and not the `last` of those that came together.
    fn begin(&mut self, tag: u16, last: bool) -> Result<()> {
        let common = self.common;
        // Counted before the look, so that who waits for none to be under way after `leave` misses none.
        common.under_way.fetch_add(1, Ordering::AcqRel);
        if common.leaving.load(Ordering::Acquire) {
            common.under_way.fetch_sub(1, Ordering::AcqRel);
            return Ok(());
        }
        let request = Request::decode(self.driver.get_iod(tag), &common.device.geometry(), MAX_TRANSFER);
        let light = request.as_ref().map_or(true, |r| r.cost() <= LIGHT);
        let slot = Slot { device: Arc::clone(self.data), queue: self.driver.get_qid(), tag };
        let work = done(Arc::clone(common), request, slot);
        let here = if light { LIGHT_HERE } else { OTHERS_HERE };
        if (light || last) && self.tasks.waiting() < here {
            return match self.tasks.begin(tag, Box::pin(work)) {
                Some(result) => self.answer(tag, result),
                None => Ok(()),
            };
        }
        let promise = Promise { common: Arc::clone(common), queue: self.driver.get_qid(), tag, kept: false };
        common.runtime.spawn(async move { promise.keep(work.await) });
        Ok(())
    }

    fn answer(&self, tag: u16, result: i32) -> Result<()> {
        // An error here is one of arguments, of which only the tag is not constant.
        let sent = self.driver.complete_io_cmd_unified(tag, BufDesc::Slice(&[]), Ok(UblkIORes::Result(result)));
        sent.map_err(|e| from_ublk(&e, "answer a request"))?;
        self.common.under_way.fetch_sub(1, Ordering::AcqRel);
        Ok(())
    }
}

/// Does a request: the result for the driver. The slot, and with it the descriptor, goes before the answer is sent: who waits for the last one may
/// close the device.
async fn done(common: Arc<Common>, request: Result<Request>, slot: Slot) -> i32 {
    let work = async {
        let request = request?;
        let blocks = request.cost().div_ceil(BLOCK_BYTES) as u32;
        let charge = common.memory.acquire_many(blocks).await;
        let _charge = charge.map_err(|_| Error::io("the ublk front end has stopped"))?;
        request.run(&common.device, common.through, &slot).await?;
        Ok(request.cost() as i32)
    };
    work.await.unwrap_or_else(|error: Error| {
        tracing::debug!(%error, queue = slot.queue, tag = slot.tag, "a request failed");
        -errno(error.kind())
    })
}
