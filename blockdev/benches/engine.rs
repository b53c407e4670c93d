//! The engine against physical limits taken in the same run.
//! `cargo bench -p ashlar-blockdev --bench engine -- DIR [MiB [PHASES]]`, phases out of `unique,prose,duplicates,hot,small,sync,scan,read`.
//!
//! Six files in a folder of its own in DIR are the disks (double tolerance). Every figure is a ratio: sequential writes to Zstandard alone on the same
//! threads, to the codec alone (which leaves to LZ4 what Zstandard would not make smaller), and to raw writes of as many bytes as the stripes have; small writes at random places (as by ublk: answered from memory that outlives the process) and random reads to raw O_DIRECT requests to the same files,
//! synchronous writes to raw writes and fdatasync of as many files.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use blockdev::carry::SharedMemory;
use blockdev::codec::Compressor;
use blockdev::disk::uring::attach_runtime;
use blockdev::disk::{AlignedBuf, Disk, FileDisk, OpenOptions};
use blockdev::env::{BoxFuture, Env, RealEnv, Rng};
use blockdev::error::Result;
use blockdev::frontend::BlockDevice;
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{Compression, Tolerance};
use bytes::Bytes;

/// As in the daemon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DISKS: usize = 6;
const BIG: usize = 128 << 10;
const SMALL: usize = 4096;
/// Bytes that are written again and again in the phase `hot`.
const HOT: usize = 32 << 20;
const SECONDS: u64 = 5;
const SMALL_WRITES: u64 = 128 << 10;
/// Of the vocabulary of [`prose`].
const WORDS: u64 = 1024;

/// Unique data of which every block compresses to half.
fn unique(seed: u64, len: usize) -> Bytes {
    let mut rng = Rng::new(seed);
    let mut out = vec![0; len];
    for block in out.chunks_mut(SMALL) {
        let half = block.len() / 2;
        rng.fill(&mut block[..half - 80]);
    }
    Bytes::from(out)
}

/// Unique data that halves the way files do: words of a vocabulary in irregular order, the frequent ones often, among them
/// a tenth that does not compress. Its entropy is spread over all of it, where [`unique`] has one half that is free.
fn prose(seed: u64, len: usize) -> Bytes {
    let mut words = Rng::new(0);
    let vocabulary: Vec<Vec<u8>> =
        (0..WORDS).map(|_| (0..3 + words.below(9)).map(|_| b'a' + words.below(26) as u8).collect()).collect();
    let mut rng = Rng::new(seed);
    let mut out = Vec::with_capacity(len + 64);
    while out.len() < len {
        if rng.below(12) == 0 {
            let mut noise = [0; 8];
            rng.fill(&mut noise);
            out.extend_from_slice(&noise);
        }
        // The product of two even choices prefers small numbers.
        let word = rng.below(WORDS) * rng.below(WORDS) / WORDS;
        out.extend_from_slice(&vocabulary[word as usize]);
        out.push(b' ');
    }
    out.truncate(len);
    Bytes::from(out)
}

fn mb_per_s(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

/// Compresses all in frames as the engine does, on `threads` threads, each with what `make` gives it.
fn compress_alone<F: FnMut(&[u8])>(data: &[Bytes], threads: usize, make: impl Fn() -> F + Sync) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for t in 0..threads {
            let make = &make;
            scope.spawn(move || {
                let mut compress = make();
                let frames = data.iter().skip(t).step_by(threads).flat_map(|buffer| buffer.chunks(16 << 10));
                frames.for_each(&mut compress);
            });
        }
    });
    mb_per_s(data.iter().map(Bytes::len).sum(), start.elapsed())
}

/// The least that finding a duplicate of what is not in memory takes, without reading it: uncompresses all, in frames as the engine stores them, and
/// compares it, on `threads` threads.
fn compare_alone(data: &[Bytes], threads: usize) -> f64 {
    let mut compressor = Compressor::new();
    let mut frames = Vec::new();
    for frame in data.iter().flat_map(|buffer| buffer.chunks(16 << 10)) {
        let mut stored = Vec::new();
        let codec = compressor.compress(Compression::Zstd, frame, &mut stored);
        frames.push((codec, stored, frame));
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        for t in 0..threads {
            let frames = &frames;
            scope.spawn(move || {
                let mut raw = vec![0; 16 << 10];
                for (codec, stored, frame) in frames.iter().skip(t).step_by(threads) {
                    blockdev::codec::decompress(*codec, stored, &mut raw[..frame.len()]).expect("uncompressed");
                    assert!(&raw[..frame.len()] == *frame, "another frame");
                }
            });
        }
    });
    mb_per_s(data.iter().map(Bytes::len).sum(), start.elapsed())
}

/// Zstandard at the level that is the default, as the library comes.
fn zstandard() -> impl FnMut(&[u8]) {
    let (mut zstd, mut out) = (zstd::bulk::Compressor::new(1).expect("a compressor"), vec![0; 32 << 10]);
    move |frame| {
        zstd.compress_to_buffer(frame, &mut out[..]).expect("compressed");
    }
}

/// What the engine does with a frame by default: Zstandard, LZ4, or nothing.
fn codec() -> impl FnMut(&[u8]) {
    let (mut compressor, mut out) = (Compressor::new(), Vec::new());
    move |frame| {
        out.clear();
        compressor.compress(Compression::Zstd, frame, &mut out);
    }
}

/// MB/s at which what `bytes` of data that halves become, with two of six columns parity, are written to files of their own, and flushed.
async fn raw_stripes(dir: &Path, bytes: usize) -> f64 {
    const PIECE: usize = 256 << 10;
    let paths: Vec<PathBuf> = (0..DISKS).map(|i| dir.join(format!("raw{i}.img"))).collect();
    // Whole mebibytes, as disks are made.
    let each = (bytes * 3 / 4 / DISKS / PIECE).next_multiple_of(4).max(4);
    futures::future::join_all(paths.iter().map(|p| make_disk(p, (each * PIECE) as u64))).await;
    let all = disks(&paths);
    let data = AlignedBuf::padded(&unique(1, PIECE)).freeze();
    let start = Instant::now();
    let writers = all.iter().flat_map(|disk| (0..4).map(move |lane| (disk.clone(), lane))).map(|(disk, lane)| {
        let data = data.clone();
        tokio::spawn(async move {
            for i in (lane..each).step_by(4) {
                disk.write((i * PIECE) as u64, vec![data.clone()], false).await.expect("written");
            }
        })
    });
    futures::future::join_all(writers.collect::<Vec<_>>()).await.into_iter().for_each(|t| t.expect("joined"));
    futures::future::join_all(all.iter().map(|disk| disk.flush())).await.into_iter().for_each(|r| r.expect("flushed"));
    let speed = mb_per_s(each * PIECE * DISKS * 4 / 3, start.elapsed());
    paths.iter().for_each(|p| std::fs::remove_file(p).expect("removed"));
    speed
}

/// Writes all buffers one behind the other, with 16 under way.
async fn write_all(device: &Arc<dyn BlockDevice>, data: &[Bytes], base: u64) -> f64 {
    let start = Instant::now();
    let (data, next) = (Arc::new(data.to_vec()), Arc::new(AtomicUsize::new(0)));
    let writers = (0..16).map(|_| {
        let (device, data, next) = (device.clone(), data.clone(), next.clone());
        tokio::spawn(async move {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(buffer) = data.get(i) else { return };
                device.write(base + (i * BIG) as u64, buffer.clone(), false).await.expect("written");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("joined");
    }
    device.flush().await.expect("flushed");
    mb_per_s(data.iter().map(Bytes::len).sum(), start.elapsed())
}

/// Reads the first `bytes` of a volume, one request behind the other, with 16 under way.
async fn read_all(device: &Arc<dyn BlockDevice>, bytes: usize) -> f64 {
    let start = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let readers = (0..16).map(|_| {
        let (device, next) = (device.clone(), next.clone());
        tokio::spawn(async move {
            loop {
                let at = next.fetch_add(BIG, Ordering::Relaxed);
                if at + BIG > bytes {
                    return;
                }
                drop(device.read(at as u64, BIG).await.expect("read"));
            }
        })
    });
    futures::future::join_all(readers.collect::<Vec<_>>()).await.into_iter().for_each(|t| t.expect("joined"));
    mb_per_s(bytes, start.elapsed())
}

/// MB/s at which the stripes of `bytes` of data that halves can be read, without parity, in pieces of 256 KiB.
async fn raw_scan(paths: &[PathBuf], bytes: usize) -> f64 {
    const PIECE: usize = 256 << 10;
    let all = disks(paths);
    let each = (bytes / 2 / DISKS / PIECE).max(1);
    let start = Instant::now();
    let readers = all.iter().flat_map(|disk| (0..4).map(move |lane| (disk.clone(), lane))).map(|(disk, lane)| {
        tokio::spawn(async move {
            for i in (lane..each).step_by(4) {
                drop(disk.read((64 << 20) + (i * PIECE) as u64, PIECE).await.expect("read"));
            }
        })
    });
    futures::future::join_all(readers.collect::<Vec<_>>()).await.into_iter().for_each(|t| t.expect("joined"));
    mb_per_s(each * PIECE * DISKS * 2, start.elapsed())
}

/// Rounds per second of one 4 KiB write and fdatasync to each of `files` files at the same time.
fn raw_sync(dir: &Path, files: usize) -> f64 {
    let barrier = Arc::new(std::sync::Barrier::new(files));
    let counts: Vec<(u64, Duration)> = std::thread::scope(|scope| {
        let run = |i: usize| {
            let barrier = barrier.clone();
            let path = dir.join(format!("raw{i}"));
            scope.spawn(move || {
                use std::os::unix::fs::FileExt;
                let file = std::fs::File::create(&path).expect("created");
                file.write_all_at(&vec![1; 16 << 20], 0).expect("filled");
                file.sync_all().expect("synced");
                let data = unique(i as u64, SMALL);
                let mut n = 0;
                barrier.wait();
                let start = Instant::now();
                // In lockstep, as a log that waits for all its mirrors.
                for round in 0..2000u64 {
                    file.write_all_at(&data, round % 4096 * SMALL as u64).expect("written");
                    file.sync_data().expect("synced");
                    n += 1;
                    barrier.wait();
                }
                let time = start.elapsed();
                std::fs::remove_file(&path).expect("removed");
                (n, time)
            })
        };
        let threads: Vec<_> = (0..files).map(run).collect();
        threads.into_iter().map(|t| t.join().expect("joined")).collect()
    });
    counts.iter().map(|(n, time)| *n as f64 / time.as_secs_f64()).sum::<f64>() / files as f64
}

async fn sync_writes(device: &Arc<dyn BlockDevice>, size: u64) -> f64 {
    let mut rng = Rng::new(7);
    let (start, mut n) = (Instant::now(), 0u64);
    while start.elapsed() < Duration::from_secs(SECONDS) {
        let at = rng.below(size / SMALL as u64) * SMALL as u64;
        device.write(at, unique(rng.u64(), SMALL), false).await.expect("written");
        device.flush().await.expect("flushed");
        n += 1;
    }
    n as f64 / start.elapsed().as_secs_f64()
}

/// Seconds of processor time of this process, all threads.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("read");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    // Clock ticks in user mode and in the kernel; 100 make a second.
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() / 100.0
}

/// Writes 4 KiB blocks at random, 32 under way, then has them made durable: blocks per second in all.
async fn small_writes<F>(write: F, flush: BoxFuture<Result<()>>) -> f64
where
    F: Fn(u64, Bytes) -> BoxFuture<Result<()>> + Send + Sync + Clone + 'static,
{
    let start = Instant::now();
    let tasks = (0..32u64).map(|t| {
        let write = write.clone();
        tokio::spawn(async move {
            let mut rng = Rng::new(t);
            for _ in 0..SMALL_WRITES / 32 {
                write(rng.u64(), unique(rng.u64(), SMALL)).await.expect("written");
            }
        })
    });
    futures::future::join_all(tasks.collect::<Vec<_>>()).await.into_iter().for_each(|t| t.expect("joined"));
    flush.await.expect("flushed");
    SMALL_WRITES as f64 / start.elapsed().as_secs_f64()
}

/// The same to files of their own.
async fn raw_small_writes(dir: &Path) -> f64 {
    const SPAN: u64 = 128 << 20;
    let paths: Vec<PathBuf> = (0..DISKS).map(|i| dir.join(format!("raw{i}.img"))).collect();
    futures::future::join_all(paths.iter().map(|p| make_disk(p, SPAN))).await;
    let all = disks(&paths);
    let flushed = all.clone();
    let write = move |r: u64, data: Bytes| -> BoxFuture<Result<()>> {
        let disk = all[(r % DISKS as u64) as usize].clone();
        let at = (r >> 8) % (SPAN / 4096) * 4096;
        Box::pin(async move {
            disk.write(at, vec![AlignedBuf::padded(&data).freeze()], false).await.expect("written");
            Ok(())
        })
    };
    let flush = async move {
        for disk in flushed {
            disk.flush().await.expect("flushed");
        }
        Ok(())
    };
    let speed = small_writes(write, Box::pin(flush)).await;
    paths.iter().for_each(|p| std::fs::remove_file(p).expect("removed"));
    speed
}

/// Random 4 KiB reads per second with 32 under way.
async fn random_reads<F, R>(read: F) -> f64
where
    F: Fn(u64) -> R + Send + Sync + Clone + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let start = Instant::now();
    let tasks = (0..32u64).map(|t| {
        let read = read.clone();
        tokio::spawn(async move {
            let (mut rng, mut n) = (Rng::new(t), 0u64);
            while start.elapsed() < Duration::from_secs(SECONDS) {
                read(rng.u64()).await;
                n += 1;
            }
            n
        })
    });
    let counts = futures::future::join_all(tasks.collect::<Vec<_>>()).await;
    counts.into_iter().map(|n| n.expect("joined")).sum::<u64>() as f64 / start.elapsed().as_secs_f64()
}

/// A file with space allocated, as a drive has: the file system's work to find it is not what is measured.
async fn make_disk(path: &Path, size: u64) {
    let options = OpenOptions { create_size: Some(size), ..OpenOptions::default() };
    let disk = FileDisk::open(path, options).expect("opened");
    let zeroes = AlignedBuf::zeroed(1 << 20).freeze();
    for at in (0..size).step_by(zeroes.len()) {
        disk.write(at, vec![zeroes.clone()], false).await.expect("filled");
    }
    disk.flush().await.expect("synced");
}

fn disks(paths: &[PathBuf]) -> Vec<Arc<dyn Disk>> {
    let open = |p: &PathBuf| FileDisk::open(p, OpenOptions::default());
    paths.iter().map(|p| open(p).expect("opened") as Arc<dyn Disk>).collect()
}

fn line(name: &str, ours: f64, limit: f64, unit: &str) {
    println!("{name:<44} {ours:>10.0} {limit:>10.0} {unit:<8} ratio {:.2}", ours / limit);
    let _ = std::io::stdout().flush();
}

/// Measures one kind of data beside Zstandard, our own choice of codec, and the disks; Zstandard's figure.
async fn sequential(name: &str, data: &[Bytes], threads: usize, write: impl Future<Output = f64>, stripes: f64) -> f64 {
    // Before and after: other work on the machine comes and goes.
    let alone = || [compress_alone(data, threads, zstandard), compress_alone(data, threads, codec)];
    let before = alone();
    let ours = write.await;
    let after = alone();
    let [zstandard, codec] = [0, 1].map(|i| f64::midpoint(before[i], after[i]));
    line(&format!("128K writes, {name}, vs Zstandard alone"), ours, zstandard, "MB/s");
    line(&format!("128K writes, {name}, vs our codec alone"), ours, codec, "MB/s");
    line(&format!("128K writes, {name}, vs raw stripes"), ours, stripes, "MB/s");
    zstandard
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let Some(dir) = args.next().map(PathBuf::from) else {
        println!("engine: give a folder on the file system to be measured (and MiB): cargo bench -- DIR [1024]");
        return;
    };
    let mib: usize = args.next().and_then(|m| m.parse().ok()).unwrap_or(512);
    let phases = args.next().unwrap_or_else(|| "unique,prose,duplicates,hot,small,sync,scan,read".into());
    let wanted = |phase: &str| phases.split(',').any(|p| p == phase);
    // Of its own: what else is there is nobody's to overwrite.
    let dir = dir.join(format!("engine-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the folder");
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        attach_runtime().expect("attached");
        let paths: Vec<PathBuf> = (0..DISKS).map(|i| dir.join(format!("disk{i}.img"))).collect();
        let size = ((mib as u64) << 20).max(512 << 20);
        futures::future::join_all(paths.iter().map(|p| make_disk(p, size))).await;
        let env: Arc<dyn Env> = RealEnv::new(tokio::runtime::Handle::current(), threads);
        let options = CreateOptions {
            name: "bench".into(),
            tolerance: Tolerance::Double,
            chunk_size: None,
            strip_size: None,
            force: true,
        };
        Pool::create(env.clone(), disks(&paths), options).await.expect("created");
        let carry = Some(Arc::new(SharedMemory::new("/dev/shm")) as Arc<dyn blockdev::carry::Store>);
        let config = PoolConfig { memory: 512 << 20, carry, ..PoolConfig::default() };
        let pool = Pool::open(env.clone(), disks(&paths), config.clone()).await.expect("opened");
        let total = (mib << 20) as u64;
        pool.create_volume("v", total * 4).await.expect("volume");
        let device = pool.open_volume("v").expect("device");

        println!("{:<44} {:>10} {:>10}", "", "ours", "limit");
        let data: Vec<Bytes> = (0..(mib << 20) / BIG).map(|i| unique(i as u64, BIG)).collect();
        // Once to warm up: neither side is to be charged for memory that the process touches for the first time.
        compress_alone(&data[..data.len() / 4], threads, codec);
        let warm: Vec<Bytes> = (0..data.len() / 4).map(|i| unique((1 << 32) + i as u64, BIG)).collect();
        write_all(&device, &warm, 3 * total).await;
        drop(warm);
        let stripes = raw_stripes(&dir, total as usize).await;
        // Always: the other phases work on what it leaves behind.
        let limit = sequential("unique 2:1", &data, threads, write_all(&device, &data, 0), stripes).await;
        if wanted("prose") {
            let data: Vec<Bytes> = (0..(mib << 20) / BIG).map(|i| prose(i as u64 + 1, BIG)).collect();
            let limit = sequential("prose 2:1", &data, threads, write_all(&device, &data, 3 * total), stripes).await;
            let again = write_all(&device, &data, 2 * total).await;
            line("128K writes, duplicates of that", again, limit, "MB/s");
            line("… vs uncompressing and comparing alone", again, compare_alone(&data, threads), "MB/s");
        }
        if wanted("duplicates") {
            let again = write_all(&device, &data, total).await;
            line("128K writes, duplicates, vs Zstandard alone", again, limit, "MB/s");
            line("… vs uncompressing and comparing alone", again, compare_alone(&data, threads), "MB/s");
        }
        if wanted("hot") {
            // A working set that fits the cache, again and again; the first rounds bring it there.
            let set: Vec<Bytes> = data.iter().take(HOT / BIG).cloned().collect();
            let rounds = |n: usize| set.iter().cycle().take(set.len() * n).cloned().collect::<Vec<_>>();
            write_all(&device, &rounds(3), 2 * total).await;
            let hot = write_all(&device, &rounds((total as usize / HOT).max(4)), 2 * total).await;
            line("128K writes, duplicates of what is in memory", hot, limit, "MB/s");
        }
        drop(data);

        if wanted("small") {
            let raw = raw_small_writes(&dir).await;
            // Answered when they are in memory that outlives the process, as by ublk.
            assert!(device.outlive(), "no memory that outlives the process");
            let (before, shared) = (processor_time(), device.clone());
            let write = move |r: u64, data: Bytes| shared.write(r % (total / 4096) * 4096, data, false);
            let ours = small_writes(write, device.flush()).await;
            let micros = (processor_time() - before) * 1e6 / SMALL_WRITES as f64;
            line(&format!("4K random writes QD32, raw O_DIRECT ({micros:.0} µs CPU)"), ours, raw, "per s");
        }
        if wanted("sync") {
            let raw = raw_sync(&dir, 3);
            let ours = sync_writes(&device, total).await;
            line("4K write + flush QD1, vs raw to 3 files", ours, raw, "per s");
        }
        println!("{}", serde_json::to_string(&pool.stats().await).unwrap_or_default());
        pool.close().await.expect("closed");
        if !wanted("read") && !wanted("scan") {
            std::fs::remove_dir_all(&dir).expect("removed");
            return;
        }
        drop((device, pool));
        tokio::time::sleep(Duration::from_millis(300)).await;

        if wanted("scan") {
            let raw = raw_scan(&paths, total as usize).await;
            let pool = Pool::open(env.clone(), disks(&paths), config.clone()).await.expect("opened");
            let device = pool.open_volume("v").expect("device");
            let before = processor_time();
            let ours = read_all(&device, total as usize).await;
            let per_gb = (processor_time() - before) * 1e9 / total as f64;
            line(&format!("128K reads, cold, vs raw stripes ({per_gb:.2} s CPU/GB)"), ours, raw, "MB/s");
            pool.close().await.expect("closed");
            drop((device, pool));
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        if !wanted("read") {
            std::fs::remove_dir_all(&dir).expect("removed");
            return;
        }
        // Cold: a new process would do the same; our caches are empty and O_DIRECT leaves none in the kernel.
        let raw_disks = disks(&paths);
        let span = total / 2 / DISKS as u64;
        let raw_disks = Arc::new(raw_disks);
        let raw = {
            let raw_disks = raw_disks.clone();
            random_reads(move |r| {
                let disk = raw_disks[(r % DISKS as u64) as usize].clone();
                async move {
                    let at = (64 << 20) + (r >> 8) % (span / 4096) * 4096;
                    drop(disk.read(at, SMALL).await.expect("read"));
                }
            })
            .await
        };
        drop(raw_disks);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let config = PoolConfig { memory: 64 << 20, ..config };
        let pool = Pool::open(env, disks(&paths), config).await.expect("opened");
        let device = pool.open_volume("v").expect("device");
        let ours = {
            let device = device.clone();
            random_reads(move |r| {
                let read = device.read(r % (total / 4096) * 4096, SMALL);
                async move { drop(read.await.expect("read")) }
            })
            .await
        };
        line("4K random reads QD32, vs raw O_DIRECT", ours, raw, "per s");
        println!("{}", serde_json::to_string(&pool.stats().await).unwrap_or_default());
        pool.close().await.expect("closed");
        std::fs::remove_dir_all(&dir).expect("removed");
    });
}
