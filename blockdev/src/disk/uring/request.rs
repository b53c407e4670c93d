//! One request on its way through the kernel: what it needs to stay alive, how it is expressed, what its result means.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;
use io_uring::{opcode, squeue, types};
use tokio::sync::oneshot;

use super::gate::Pass;
use super::open::OpenFile;
use super::ring::{Ring, answer};
use super::threads::Threads;
use crate::disk::{AlignedBuf, DiskError, DiskResult, IO_ALIGN};
use crate::env::lent::{self, Waiting};

/// Most buffers one system call takes (UIO_MAXIOV); longer lists are written in several steps.
const IOV_MAX: usize = 1024;
/// Most bytes in one system call: below the kernel's MAX_RW_COUNT, and a multiple of every alignment.
const RW_MAX: usize = 1 << 30;
/// How often a request the kernel sent back without progress is issued again before it counts as an error.
const RETRIES_MAX: u32 = 200;
/// Why nothing works on a device that was unplugged.
const GONE: &str = "the device is gone";
/// `BLKDISCARD`, `_IO(0x12, 119)` of linux/fs.h.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// What is asked of the kernel.
pub(super) enum Operation {
    /// Fill the buffer.
    Read(ReadBuf),
    /// Write the buffers one after the other.
    Write {
        /// The buffers, each aligned in address and length.
        data: Vec<Bytes>,
        /// Whether completion implies stable storage.
        durable: bool,
    },
    /// Make completed writes durable.
    Flush,
    /// Give the range back.
    Discard,
}

/// A request. Owns everything the kernel may touch, so nothing depends on the future that waits for it.
pub(super) struct Request {
    operation: Operation,
    /// Byte position on the disk.
    offset: u64,
    /// Bytes in all.
    len: u64,
    /// Bytes done so far.
    done: u64,
    /// Scatter list of the current step; the kernel reads it while the step runs.
    vectors: Vec<libc::iovec>,
    retries: u32,
    file: Arc<OpenFile>,
    pass: Pass,
    reply: oneshot::Sender<DiskResult<Bytes>>,
}

// SAFETY: the raw pointers in `vectors` point into `operation`'s buffers, which the request owns and which do not move.
unsafe impl Send for Request {}

/// What to do with a request after the kernel answered.
pub(super) enum Verdict {
    /// Issue it again: part of it remains, or it was interrupted.
    Again,
    /// It is over.
    Done(DiskResult<()>),
}

impl Request {
    pub(super) fn new(
        operation: Operation,
        offset: u64,
        len: u64,
        file: Arc<OpenFile>,
        pass: Pass,
        reply: oneshot::Sender<DiskResult<Bytes>>,
    ) -> Self {
        Self { operation, offset, len, done: 0, vectors: Vec::new(), retries: 0, file, pass, reply }
    }

    /// Gives a read to the kernel by the ring that the calling thread lends; anything else, and where that cannot be, is given back. Writes and
    /// flushes are waited for by many, who should not wait for what this thread does meanwhile.
    pub(super) fn borrow_ring(self: Box<Self>) -> Result<(), Box<Self>> {
        if !matches!(self.operation, Operation::Read(_)) {
            return Err(self);
        }
        lent::borrow(self, |request| request.entry(&(0..0)))
    }

    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn position(&self) -> u64 {
        self.offset + self.done
    }

    /// Points `vectors` at the part of the write that remains.
    fn gather(&mut self) {
        let Operation::Write { data, .. } = &self.operation else { return };
        let mut skip = self.done as usize;
        let mut room = RW_MAX;
        self.vectors.clear();
        for piece in data {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            if self.vectors.len() == IOV_MAX || room == 0 {
                break;
            }
            let rest = &piece[skip..];
            let len = rest.len().min(room);
            self.vectors.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: len });
            room -= len;
            skip = 0;
        }
    }

    /// The submission entry for what remains. Valid as long as the request lives and is not changed.
    /// `mapped`: addresses of the ring's buffer 0.
    pub(super) fn entry(&mut self, mapped: &Range<usize>) -> squeue::Entry {
        let is_mapped =
            |start: *const u8, len: usize| mapped.contains(&start.addr()) && start.addr() + len <= mapped.end;
        self.gather();
        let fd = types::Fd(self.fd());
        let offset = self.position();
        let entry = match &mut self.operation {
            Operation::Read(buf) => {
                let (start, len) = buf.tail(self.done as usize);
                if is_mapped(start, len) {
                    opcode::ReadFixed::new(fd, start, len as u32, 0).offset(offset).build()
                } else {
                    opcode::Read::new(fd, start, len as u32).offset(offset).build()
                }
            }
            Operation::Write { durable, .. } => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                if let [one] = &self.vectors[..] {
                    let (base, len) = (one.iov_base.cast_const().cast(), one.iov_len as u32);
                    if is_mapped(base, one.iov_len) {
                        opcode::WriteFixed::new(fd, base, len, 0).offset(offset).rw_flags(flags).build()
                    } else {
                        opcode::Write::new(fd, base, len).offset(offset).rw_flags(flags).build()
                    }
                } else {
                    let (list, count) = (self.vectors.as_ptr(), self.vectors.len() as u32);
                    opcode::Writev::new(fd, list, count).offset(offset).rw_flags(flags).build()
                }
            }
            Operation::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Operation::Discard => opcode::Fallocate::new(fd, self.len)
                .offset(offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
        };
        // A request that was sent back once goes to a kernel worker, which may sleep for what it lacks.
        if self.retries > 0 { entry.flags(squeue::Flags::ASYNC) } else { entry }
    }

    /// Does what remains by a blocking system call. Returns the result as io_uring would: negative errno on failure.
    pub(super) fn perform(&mut self) -> i32 {
        self.gather();
        let fd = self.fd();
        let offset = self.position();
        let result = match &mut self.operation {
            Operation::Read(buf) => {
                let (start, len) = buf.tail(self.done as usize);
                // SAFETY: the buffer is owned by the request and as long as told.
                unsafe { libc::pread64(fd, start.cast(), len, offset as i64) }
            }
            Operation::Write { durable, .. } => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                // SAFETY: `gather` pointed the vectors at buffers the request owns.
                unsafe { libc::pwritev2(fd, self.vectors.as_ptr(), self.vectors.len() as i32, offset as i64, flags) }
            }
            // SAFETY: no memory is involved.
            Operation::Flush => (unsafe { libc::fdatasync(fd) }) as isize,
            Operation::Discard if self.file.is_device() => {
                let range = [offset, self.len];
                // SAFETY: BLKDISCARD reads two u64 from its argument.
                (unsafe { libc::ioctl(fd, BLKDISCARD as _, range.as_ptr()) }) as isize
            }
            Operation::Discard => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                // SAFETY: no memory is involved.
                (unsafe { libc::fallocate64(fd, mode, offset as i64, self.len as i64) }) as isize
            }
        };
        if result < 0 { -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { result as i32 }
    }

    /// Takes the kernel's answer in.
    pub(super) fn settle(&mut self, result: i32) -> Verdict {
        if result < 0 {
            let errno = -result;
            // ECANCELED: the thread that submitted the request ended before a kernel worker had taken it up.
            let passing = matches!(errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED | libc::ENOMEM);
            if passing && self.retries < RETRIES_MAX {
                self.retries += 1;
                return Verdict::Again;
            }
            return Verdict::Done(self.failure(errno));
        }
        match self.operation {
            Operation::Flush | Operation::Discard => Verdict::Done(Ok(())),
            Operation::Read(_) | Operation::Write { .. } => self.advance(result as u64),
        }
    }

    fn advance(&mut self, count: u64) -> Verdict {
        // A step can end off the grain where the file ends or the space does; the next one must start on it.
        let progress = count - count % IO_ALIGN as u64;
        self.done += progress;
        if self.done >= self.len {
            return Verdict::Done(Ok(()));
        }
        if progress > 0 {
            self.retries = 0;
            return Verdict::Again;
        }
        if let Operation::Read(_) = self.operation {
            let end = self.position() + count;
            return Verdict::Done(Err(match self.file.is_gone() {
                true => DiskError::Failed(self.describe(&GONE)),
                false => {
                    DiskError::Medium(self.describe(&format!("the content ends at byte {end}; was it truncated?")))
                }
            }));
        }
        if self.retries < RETRIES_MAX {
            self.retries += 1;
            return Verdict::Again;
        }
        Verdict::Done(Err(DiskError::Failed(self.describe(&"the device accepts no more bytes"))))
    }

    /// What an errno means for this operation.
    fn failure(&self, errno: i32) -> DiskResult<()> {
        let message = self.describe(&io::Error::from_raw_os_error(errno));
        // What was unplugged has no size any more. The kernel calls a write to it "no space", and a read that was under way a bad place.
        if self.file.is_gone() {
            return Err(DiskError::Failed(format!("{message}: {GONE}")));
        }
        match &self.operation {
            Operation::Discard => match errno {
                libc::ENODEV | libc::ENXIO => Err(DiskError::Failed(message)),
                // Advice the disk cannot follow, or not now, changes nothing for the caller.
                _ => Ok(()),
            },
            Operation::Read(_) => match errno {
                libc::ENODEV | libc::ENXIO | libc::ESHUTDOWN | libc::ENOLINK | libc::ETIMEDOUT | libc::EBADF => {
                    Err(DiskError::Failed(message))
                }
                _ => Err(DiskError::Medium(message)),
            },
            Operation::Write { .. } => match errno {
                libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Err(DiskError::NoSpace(message)),
                _ => Err(DiskError::Failed(message)),
            },
            Operation::Flush => Err(DiskError::Failed(message)),
        }
    }

    fn describe(&self, why: &dyn std::fmt::Display) -> String {
        let path = self.file.path().display();
        let (offset, len) = (self.offset, self.len);
        match &self.operation {
            Operation::Read(_) => format!("{path}: read of {len} bytes at {offset}: {why}"),
            Operation::Write { .. } => format!("{path}: write of {len} bytes at {offset}: {why}"),
            Operation::Flush => format!("{path}: flush: {why}"),
            Operation::Discard => format!("{path}: discard of {len} bytes at {offset}: {why}"),
        }
    }

    /// Answers whoever waits. Lets go of the file before, and of the place in the queue after it: closing the disk waits for
    /// the places, and so for the answers and for the file to be closed.
    pub(super) fn finish(self, result: DiskResult<()>) {
        let Self { operation, file, pass, reply, .. } = self;
        if let Err(DiskError::Failed(message)) = &result {
            file.mark_failed(message);
        }
        drop(file);
        let answer = result.map(|()| match operation {
            Operation::Read(buf) => buf.filled(),
            _ => Bytes::new(),
        });
        // The waiting future may be gone, which is allowed.
        let _ = reply.send(answer);
        drop(pass);
    }
}

impl Waiting for Request {
    fn complete(mut self: Box<Self>, result: i32) {
        match self.settle(result) {
            Verdict::Done(result) => answer(self, result),
            // The thread may be about to end, and takes no more into its ring then.
            Verdict::Again => match Ring::shared() {
                Ok(ring) => ring.issue(self),
                Err(_) => Threads::shared().issue(self),
            },
        }
    }

    /// The kernel may still fill the buffer, which stays for that. The disk can be closed; that it is bad is not said.
    fn abandon(mut self: Box<Self>) {
        let why = DiskError::Medium(self.describe(&"nobody waits for the answer any longer"));
        std::mem::forget(std::mem::replace(&mut self.operation, Operation::Flush));
        answer(self, Err(why));
    }
}

/// Reads of so many bytes get memory that was in use before: the system would have to clear new pages.
const RECYCLED_MIN: usize = 64 << 10;

/// Memory for a read, aligned to [`IO_ALIGN`] and not initialised: the kernel fills it before anyone may look.
pub(super) struct ReadBuf {
    start: NonNull<u8>,
    len: usize,
    /// Owns the memory of a large one, which was in use before.
    recycled: Option<AlignedBuf>,
}

// SAFETY: a plain owned allocation.
unsafe impl Send for ReadBuf {}
// SAFETY: shared only after `filled`, and then only for reading.
unsafe impl Sync for ReadBuf {}

impl ReadBuf {
    /// A buffer of `len` bytes, which is not 0.
    pub(super) fn new(len: usize) -> Self {
        if len >= RECYCLED_MIN {
            let mut recycled = AlignedBuf::recycled(len);
            return Self { start: NonNull::from(&mut recycled[..]).cast(), len, recycled: Some(recycled) };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a size above 0.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len, recycled: None }
    }

    fn layout(len: usize) -> Layout {
        assert!(len > 0, "a read buffer is never empty");
        Layout::from_size_align(len, IO_ALIGN).expect("the length of a read is far below isize::MAX")
    }

    /// The part from `from` on, as much of it as one system call takes, for the kernel to fill.
    fn tail(&mut self, from: usize) -> (*mut u8, usize) {
        assert!(from < self.len, "nothing is left to read");
        // SAFETY: `from` is inside the allocation.
        (unsafe { self.start.as_ptr().add(from) }, (self.len - from).min(RW_MAX))
    }

    /// The content. Only [`Request::finish`] calls this, after the kernel reported every byte as read.
    fn filled(self) -> Bytes {
        struct Filled(ReadBuf);
        impl AsRef<[u8]> for Filled {
            fn as_ref(&self) -> &[u8] {
                // SAFETY: `len` bytes were allocated and have all been written by the kernel.
                unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.len) }
            }
        }
        Bytes::from_owner(Filled(self))
    }
}

impl Drop for ReadBuf {
    fn drop(&mut self) {
        if self.recycled.is_none() {
            // SAFETY: allocated in `new` with this very layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) }
        }
    }
}
