//! Serves memory devices at a mountpoint until it is told to stop: what the FUSE front end costs by itself.
//!
//! `fuse_memory MOUNTPOINT SIZE [NAME...] [--threads N] [--defer] [--loop]`: SIZE in bytes or with K, M or G; one
//! volume `volume` unless names are given. `--defer` answers every request from the runtime instead of in place,
//! `--loop` attaches a loop device to each. It prints the path of each file (or loop device), unmounts at SIGINT,
//! SIGTERM or the end of its input, and leaves a stale mount when killed.

use std::path::PathBuf;
use std::sync::Arc;

use blockdev::env::BoxFuture;
use blockdev::error::{Error, Result};
use blockdev::frontend::fuse::{FuseOptions, FuseServer};
use blockdev::frontend::loopdev::{self, LoopOptions};
use blockdev::frontend::memory::MemoryDevice;
use blockdev::frontend::{BlockDevice, Extent, Geometry};
use bytes::Bytes;

/// Yields once before each read and write, as a device does that has to wait.
struct Deferred(Arc<MemoryDevice>);

impl BlockDevice for Deferred {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<Result<Bytes>> {
        let device = Arc::clone(&self.0);
        Box::pin(async move {
            tokio::task::yield_now().await;
            device.read(offset, len).await
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<Result<()>> {
        let device = Arc::clone(&self.0);
        Box::pin(async move {
            tokio::task::yield_now().await;
            device.write(offset, data, fua).await
        })
    }

    fn flush(&self) -> BoxFuture<Result<()>> {
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<Result<()>> {
        self.0.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<Result<()>> {
        self.0.write_zeroes(offset, len, fua)
    }

    fn compare_and_write(&self, offset: u64, expected: Bytes, new: Bytes) -> BoxFuture<Result<bool>> {
        self.0.compare_and_write(offset, expected, new)
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> BoxFuture<Result<Vec<Extent>>> {
        self.0.block_status(offset, len, max)
    }

    fn watch_size(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.watch_size()
    }
}

struct Arguments {
    mountpoint: PathBuf,
    size: u64,
    names: Vec<String>,
    options: FuseOptions,
    defer: bool,
    attach: bool,
}

fn arguments() -> Result<Arguments> {
    let mut options = FuseOptions::default();
    let (mut defer, mut attach) = (false, false);
    let mut words = Vec::new();
    let mut given = std::env::args().skip(1);
    while let Some(word) = given.next() {
        match word.as_str() {
            "--defer" => defer = true,
            "--loop" => attach = true,
            "--threads" => {
                let count = given.next().and_then(|n| n.parse().ok());
                options.threads = count.ok_or_else(|| Error::invalid("--threads needs a number"))?;
            }
            _ => words.push(word),
        }
    }
    let mut words = words.into_iter();
    let (Some(mountpoint), Some(size)) = (words.next(), words.next()) else {
        return Err(Error::invalid("usage: fuse_memory MOUNTPOINT SIZE [NAME...] [--threads N] [--defer] [--loop]"));
    };
    let mut names: Vec<_> = words.collect();
    if names.is_empty() {
        names.push("volume".to_owned());
    }
    Ok(Arguments { mountpoint: mountpoint.into(), size: bytes_of(&size)?, names, options, defer, attach })
}

fn bytes_of(text: &str) -> Result<u64> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    number.ok_or_else(|| Error::invalid(format!("'{text}' is not a size")))
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(|| {
            loopdev::set_io_flusher();
        })
        .build()
        .map_err(|e| Error::io(format!("start the runtime: {e}")))?;
    let server = FuseServer::mount(runtime.handle().clone(), &arguments.mountpoint, arguments.options)?;
    let mut loops = Vec::new();
    for name in &arguments.names {
        let memory = Arc::new(MemoryDevice::new(arguments.size));
        let path =
            if arguments.defer { server.add(name, Arc::new(Deferred(memory)))? } else { server.add(name, memory)? };
        if arguments.attach {
            let attached = loopdev::attach(&path, LoopOptions::default())?;
            println!("{} direct_io={} block={}", attached.device.display(), attached.direct_io, attached.block_size);
            loops.push(attached.device);
        } else {
            println!("{}", path.display());
        }
    }
    println!("ready");

    runtime.block_on(async {
        let stop = "install a signal handler";
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect(stop);
        let (end, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = end.send(());
        });
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
            _ = ended => {}
        }
    });
    for device in loops {
        if let Err(error) = loopdev::detach(&device) {
            eprintln!("{error}");
        }
    }
    println!("{:?}", server.unmount()?);
    Ok(())
}
