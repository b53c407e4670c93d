//! What a [`FileDisk`] costs over raw system calls: 4 KiB durable writes one at a time, and 4 KiB random reads at depth 32.
//!
//! `diskbench <file or device> [size MiB] [seconds per run]`. Overwrites a file it makes; a device must be given with care:
//! its content is overwritten. The two sides alternate, so that both meet the same conditions; ratios of medians are printed.
//! With ATTACH in the environment the runtime harvests completions itself, else the completion thread does.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blockdev::disk::{AlignedBuf, Disk, FileDisk, IO_ALIGN, OpenOptions};

const ROUNDS: usize = 5;
const DEPTH: usize = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let path = args.next().ok_or("usage: diskbench <file or device> [size MiB] [seconds per run]")?;
    let path = Path::new(&path);
    let number = |arg: Option<std::ffi::OsString>, default: f64| {
        arg.map_or(Ok(default), |a| a.to_string_lossy().parse::<f64>().map_err(|e| format!("{a:?}: {e}")))
    };
    let size = (number(args.next(), 64.0)? * 1048576.0) as u64;
    let slice = Duration::from_secs_f64(number(args.next(), 1.0)?);

    let options = OpenOptions { create_size: Some(size), exclusive: false };
    let disk = FileDisk::open(path, options)?;
    let blocks = disk.geometry().size.min(size) / IO_ALIGN as u64;
    println!("{}: engine {}, direct {}, {:?}", disk.name(), disk.engine(), disk.is_direct(), disk.geometry());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if std::env::var_os("ATTACH").is_some() {
        runtime.block_on(async { blockdev::disk::uring::attach_runtime() })?;
    }
    // No holes: every later write is an overwrite.
    for at in (0..blocks * IO_ALIGN as u64).step_by(1 << 20) {
        let len = (blocks * IO_ALIGN as u64 - at).min(1 << 20) as usize;
        runtime.block_on(disk.write(at, vec![AlignedBuf::zeroed(len).freeze()], false))?;
    }
    runtime.block_on(disk.flush())?;
    let flags = if disk.is_direct() { libc::O_DIRECT } else { 0 };
    let raw = File::options().read(true).write(true).custom_flags(flags).open(path)?;

    let mut write_ratios = Vec::new();
    let mut read_ratios = Vec::new();
    for round in 0..ROUNDS {
        let (d, r) = (disk.clone(), raw.try_clone()?);
        // As a task of the runtime, which is where the engine's requests come from.
        let (theirs, ours) = runtime
            .block_on(async { tokio::spawn(async move { durable_writes(&d, &r, blocks, slice).await }).await })??;
        write_ratios.push(ours / theirs);
        println!(
            "round {round}: durable 4 KiB write at depth 1, median: raw {theirs:.1} us, disk {ours:.1} us, ratio {:.2}",
            ours / theirs
        );
        let theirs = raw_reads(&raw, blocks, slice)?;
        let d = disk.clone();
        let ours = runtime.block_on(async move {
            let tasks: Vec<_> =
                (0..DEPTH as u64).map(|seed| tokio::spawn(reads(d.clone(), blocks, slice, seed))).collect();
            let mut total = 0;
            for task in tasks {
                total += task.await??;
            }
            Ok::<_, Box<dyn std::error::Error>>(total as f64 / slice.as_secs_f64())
        })?;
        read_ratios.push(ours / theirs);
        println!(
            "round {round}: random 4 KiB reads at depth {DEPTH}: threads {theirs:.0}/s, disk {ours:.0}/s, ratio {:.2}",
            ours / theirs
        );
    }
    println!("median ratio: durable write latency {:.2}, read rate {:.2}", median(write_ratios), median(read_ratios));
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A scattered sequence of blocks.
fn scatter(state: &mut u64, blocks: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % blocks * IO_ALIGN as u64
}

/// Median microseconds of a raw write and of one through the disk, taken alternately.
async fn durable_writes(disk: &FileDisk, raw: &File, blocks: u64, slice: Duration) -> io::Result<(f64, f64)> {
    let data = AlignedBuf::zeroed(IO_ALIGN).freeze();
    let (mut state, mut theirs, mut ours, start) = (1, Vec::new(), Vec::new(), Instant::now());
    while start.elapsed() < slice {
        let before = Instant::now();
        raw_durable_write(raw, &data, scatter(&mut state, blocks))?;
        theirs.push(before.elapsed().as_secs_f64() * 1e6);
        let before = Instant::now();
        disk.write(scatter(&mut state, blocks), vec![data.clone()], true).await.map_err(io::Error::other)?;
        ours.push(before.elapsed().as_secs_f64() * 1e6);
    }
    Ok((median(theirs), median(ours)))
}

fn raw_durable_write(file: &File, data: &[u8], at: u64) -> io::Result<()> {
    let part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: the one vector describes `data`, which is only read.
    let count = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, at as i64, libc::RWF_DSYNC) };
    if count == data.len() as isize { Ok(()) } else { Err(io::Error::last_os_error()) }
}

async fn reads(
    disk: std::sync::Arc<FileDisk>,
    blocks: u64,
    slice: Duration,
    seed: u64,
) -> Result<u64, blockdev::disk::DiskError> {
    let (mut state, mut count, start) = (seed, 0, Instant::now());
    while start.elapsed() < slice {
        disk.read(scatter(&mut state, blocks), IO_ALIGN).await?;
        count += 1;
    }
    Ok(count)
}

fn raw_reads(file: &File, blocks: u64, slice: Duration) -> io::Result<f64> {
    let total = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let total = &total;
        let run = move |seed: u64| {
            let mut buf = AlignedBuf::zeroed(IO_ALIGN);
            let (mut state, mut count) = (seed, 0);
            while start.elapsed() < slice {
                let at = scatter(&mut state, blocks) as i64;
                // SAFETY: `buf` has IO_ALIGN bytes.
                if unsafe { libc::pread(file.as_raw_fd(), buf.as_mut_ptr().cast(), IO_ALIGN, at) } != IO_ALIGN as isize
                {
                    return Err(io::Error::last_os_error());
                }
                count += 1;
            }
            total.fetch_add(count, Ordering::Relaxed);
            Ok(())
        };
        let threads: Vec<_> = (0..DEPTH as u64).map(|seed| scope.spawn(move || run(seed))).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err(io::Error::other("a reader panicked"))))
    })?;
    Ok(total.load(Ordering::Relaxed) as f64 / slice.as_secs_f64())
}
