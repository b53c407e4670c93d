//! What it costs to move the data of ublk requests: memory as a device, until it is interrupted, where the driver copies into buffers that were set
//! aside (`plain`) or copies when it is asked to (`copy`, `UBLK_F_USER_COPY`, as the front end has it). Everything else is the same.
//!
//! ```text
//! ublk_buffers plain 67108864 /tmp/device &
//! ```

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::sync::{Arc, RwLock};

use libublk::ctrl::UblkCtrlBuilder;
use libublk::helpers::IoBuf;
use libublk::io::{BufDesc, BufDescList, UblkDev, UblkIOCtx, UblkQueue};
use libublk::{UblkError, UblkFlags, UblkIORes, sys};
use tokio::signal::unix::{SignalKind, signal};

/// Bytes of the longest request, as the front end has it.
const LONGEST: u32 = 1 << 20;

type Memory = Arc<RwLock<Vec<u8>>>;

/// Does a request: its length, or a negative error number.
fn perform(memory: &Memory, queue: &UblkQueue<'_>, tag: u16, mut buffer: Option<&mut IoBuf<u8>>, data: &File) -> i32 {
    let request = queue.get_iod(tag);
    let (start, len) = ((request.start_sector as usize) << 9, (request.nr_sectors as usize) << 9);
    let at = UblkIOCtx::ublk_user_copy_pos(queue.get_qid(), tag, 0);
    let done = match request.op_flags & 0xff {
        sys::UBLK_IO_OP_READ => memory.read().ok().and_then(|memory| {
            let from = memory.get(start..start + len)?;
            match &mut buffer {
                Some(buffer) => buffer.as_mut_slice().get_mut(..len)?.copy_from_slice(from),
                None => data.write_all_at(from, at).ok()?,
            }
            Some(())
        }),
        sys::UBLK_IO_OP_WRITE => memory.write().ok().and_then(|mut memory| {
            let to = memory.get_mut(start..start + len)?;
            match &buffer {
                Some(buffer) => to.copy_from_slice(buffer.as_slice().get(..len)?),
                None => data.read_exact_at(to, at).ok()?,
            }
            Some(())
        }),
        _ => Some(()),
    };
    done.map_or(-libc::EIO, |()| len as i32)
}

fn serve(number: u16, driver: &UblkDev, memory: &Memory, plain: bool, ready: impl FnOnce()) -> Result<(), UblkError> {
    let mut buffers = plain.then(|| driver.alloc_queue_io_bufs());
    let queue = UblkQueue::new(number, driver)?;
    let queue = queue.regiser_io_bufs(buffers.as_ref());
    let queue = queue.submit_fetch_commands_unified(BufDescList::Slices(buffers.as_ref()))?;
    ready();
    // SAFETY: the descriptor belongs to `driver`, which outlives the call.
    let data = unsafe { BorrowedFd::borrow_raw(driver.tgt.fds[0]) }.try_clone_to_owned().map_err(UblkError::IOError)?;
    let data = File::from(data);
    let mut begun = Vec::new();
    loop {
        let waited = queue.flush_and_wake_io_tasks(
            |user_data, completion, _| {
                if completion.result() == sys::UBLK_IO_RES_OK as i32 {
                    begun.push(UblkIOCtx::user_data_to_tag(user_data) as u16);
                }
            },
            1,
        );
        match waited {
            Err(UblkError::QueueIsDown) => return Ok(()),
            other => other?,
        };
        for tag in begun.drain(..) {
            let buffer = buffers.as_mut().map(|buffers| &mut buffers[usize::from(tag)]);
            let result = perform(memory, &queue, tag, buffer, &data);
            let buffer = buffers.as_ref().map_or(&[][..], |buffers| buffers[usize::from(tag)].as_slice());
            queue.complete_io_cmd_unified(tag, BufDesc::Slice(buffer), Ok(UblkIORes::Result(result)))?;
        }
    }
}

fn present(plain: bool, size: usize, file: &str, wait: impl FnOnce()) -> Result<(), UblkError> {
    let memory: Memory = Arc::new(RwLock::new(vec![1; size]));
    let processors = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, 4) as u16;
    let builder = UblkCtrlBuilder::default().name("buffers").nr_queues(processors).depth(128).io_buf_bytes(LONGEST);
    let features = if plain { 0 } else { u64::from(sys::UBLK_F_USER_COPY) };
    let control = builder.ctrl_flags(features).dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV).build()?;
    let shape = |driver: &mut UblkDev| {
        driver.set_default_params(size as u64);
        Ok(())
    };
    let driver = Arc::new(UblkDev::new("buffers".into(), shape, &control)?);
    let (ready, readiness) = channel();
    let start = |queue| {
        let (driver, memory, ready) = (Arc::clone(&driver), Arc::clone(&memory), ready.clone());
        let ready = move || {
            let _ = ready.send(());
        };
        std::thread::spawn(move || serve(queue, &driver, &memory, plain, ready))
    };
    let threads: Vec<_> = (0..processors).map(start).collect();
    for _ in &threads {
        readiness.recv().map_err(|_| UblkError::OtherError(-libc::EIO))?;
    }
    control.start_dev(&driver)?;
    let path = format!("/dev/ublkb{}", control.dev_info().dev_id);
    println!("{path}");
    std::fs::write(file, path).map_err(UblkError::IOError)?;
    wait();
    control.stop_dev()?;
    for thread in threads {
        thread.join().map_err(|_| UblkError::OtherError(-libc::EIO))??;
    }
    drop(driver);
    control.del_dev().map(drop)
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, size, file] = &arguments[..] else {
        eprintln!("usage: ublk_buffers plain|copy <size in bytes> <file that gets the device's path>");
        return ExitCode::from(2);
    };
    let (Ok(size), Ok(mut ended)) = (size.parse(), signal(SignalKind::terminate())) else { return ExitCode::from(2) };
    let (plain, file) = (mode == "plain", file.clone());
    let (end, waits) = channel();
    let wait = move || {
        let _ = waits.recv();
    };
    let served = tokio::task::spawn_blocking(move || present(plain, size, &file, wait));
    ended.recv().await;
    let _ = end.send(());
    match served.await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        failed => {
            eprintln!("ublk_buffers: {failed:?}");
            ExitCode::FAILURE
        }
    }
}
