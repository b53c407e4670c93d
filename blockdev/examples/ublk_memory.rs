//! Presents a memory device by ublk until it is interrupted, for comparison with other devices:
//!
//! ```text
//! ublk_memory 1073741824 /tmp/device &
//! fio --name=r --ioengine=io_uring --direct=1 --filename=$(cat /tmp/device) --rw=randread --bs=4k --iodepth=32
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use blockdev::error::{Error, Result};
use blockdev::frontend::memory::MemoryDevice;
use blockdev::frontend::ublk::{self, Owner, Shape, UblkDevice};
use blockdev::units::Uuid;
use tokio::signal::unix::{SignalKind, signal};

async fn run(size: u64, file: PathBuf) -> Result<()> {
    let runtime = tokio::runtime::Handle::current();
    let mut ended = signal(SignalKind::terminate()).map_err(|e| Error::io(format!("cannot wait for a signal: {e}")))?;
    let work = move || {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let device = Arc::new(MemoryDevice::new(size));
        let owner = Owner::new(Uuid([0xbe; 16]), std::process::id());
        UblkDevice::present(runtime, device, owner, Shape::for_processors(processors), ublk::memory(64 << 20))
    };
    let blocking = |e| Error::io(format!("a thread ended: {e}"));
    let device = tokio::task::spawn_blocking(work).await.map_err(blocking)??;
    println!("{}", device.path().display());
    std::fs::write(&file, device.path().display().to_string())
        .map_err(|e| Error::io(format!("writing {}: {e}", file.display())))?;
    tokio::select! {
        _ = ended.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tokio::task::spawn_blocking(move || device.remove()).await.map_err(blocking)?
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(Ok(size)), Some(file)) = (arguments.next().map(|size| size.parse()), arguments.next()) else {
        eprintln!("usage: ublk_memory <size in bytes> <file that gets the device's path>");
        return ExitCode::from(2);
    };
    match run(size, file.into()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ublk_memory: {error}");
            ExitCode::FAILURE
        }
    }
}
