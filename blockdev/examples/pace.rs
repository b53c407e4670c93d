//! What a rebuild costs hosts, and hosts a rebuild.
//!
//! `pace [SECONDS [DRIVES [low|normal|high [KIND]]]]`: a pool on drives in memory that do so many requests and bytes a second as hard disks do, or as slow
//! flash does. Hosts read 4 KiB at random, with 1, 4 and 16 under way, and write and flush 4 KiB up to forty times a second: for so many seconds
//! alone, then while one drive is rebuilt, at most for four times as long. Before that, the same rebuild without any load. Prints the 50th and 99th percentile of what
//! hosts waited without and with it, and the speed of the rebuild against that without load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use blockdev::disk::{Disk, MemoryDisk, Throttle, ThrottledDisk};
use blockdev::env::{Env, RealEnv, Rng};
use blockdev::frontend::BlockDevice;
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{Compression, Priority, Tolerance};
use bytes::Bytes;
use parking_lot::Mutex;

const BLOCK: u64 = 4096;

/// One kind of drive, and how much data makes a rebuild of some ten seconds on it.
struct Kind {
    name: &'static str,
    throttle: Throttle,
    mib: u64,
    tolerance: Tolerance,
}

/// What hosts waited, in milliseconds.
#[derive(Default)]
struct Waits {
    reads: Vec<f64>,
    flushes: Vec<f64>,
}

impl Waits {
    fn percentile(all: &mut [f64], share: f64) -> f64 {
        all.sort_by(f64::total_cmp);
        let at = (all.len() as f64 * share).ceil() as usize;
        all.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// 50th and 99th percentile of reads, then of flushes.
    fn summary(mut self) -> [f64; 4] {
        let mut of = |share| (Self::percentile(&mut self.reads, share), Self::percentile(&mut self.flushes, share));
        let ((r50, f50), (r99, f99)) = (of(0.5), of(0.99));
        [r50, r99, f50, f99]
    }
}

/// Hosts at work.
struct Hosts {
    device: Arc<dyn BlockDevice>,
    blocks: u64,
    stop: AtomicBool,
    left: AtomicUsize,
    waits: Mutex<Waits>,
}

impl Hosts {
    /// `readers` that read one block after the other, and one that writes a block and flushes, forty times a second at most.
    fn start(device: Arc<dyn BlockDevice>, blocks: u64, readers: u64) -> Arc<Self> {
        let left = AtomicUsize::new(readers as usize + 1);
        let hosts = Arc::new(Self { device, blocks, stop: AtomicBool::new(false), left, waits: Mutex::default() });
        for seed in 0..readers {
            let hosts = hosts.clone();
            tokio::spawn(async move {
                let mut rng = Rng::new(seed + 100);
                while !hosts.stop.load(Ordering::Relaxed) {
                    let (at, begun) = (rng.below(hosts.blocks) * BLOCK, Instant::now());
                    hosts.device.read(at, BLOCK as usize).await.expect("read");
                    hosts.waits.lock().reads.push(begun.elapsed().as_secs_f64() * 1e3);
                }
                hosts.left.fetch_sub(1, Ordering::AcqRel);
            });
        }
        let writer = hosts.clone();
        tokio::spawn(async move {
            let hosts = writer;
            let mut rng = Rng::new(99);
            while !hosts.stop.load(Ordering::Relaxed) {
                let mut data = vec![0; BLOCK as usize];
                rng.fill(&mut data);
                let (at, begun) = (rng.below(hosts.blocks) * BLOCK, Instant::now());
                hosts.device.write(at, Bytes::from(data), true).await.expect("written");
                hosts.waits.lock().flushes.push(begun.elapsed().as_secs_f64() * 1e3);
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            hosts.left.fetch_sub(1, Ordering::AcqRel);
        });
        hosts
    }

    /// What they waited since the last call.
    fn take(&self) -> [f64; 4] {
        std::mem::take(&mut *self.waits.lock()).summary()
    }

    async fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.left.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Gives a drive up, and waits until nothing lies on it any more, but not longer than `at_most`: seconds, MiB written, and whether it was all.
async fn rebuild(pool: &Pool, at_most: Duration) -> (f64, u64, bool) {
    let (start, before) = (Instant::now(), pool.stats().await.rebuilt);
    pool.fail_disk(1).await.expect("given up");
    let is_empty = || pool.engine().array.members().iter().any(|m| m.is_empty());
    while !is_empty() && start.elapsed() < at_most {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (start.elapsed().as_secs_f64(), (pool.stats().await.rebuilt - before) >> 20, is_empty())
}

/// A pool full of data, and a volume of it, on drives that are as slow as their kind.
async fn pool(env: &Arc<dyn Env>, kind: &Kind, drives: usize, priority: Priority) -> (Pool, Arc<dyn BlockDevice>) {
    let size = (kind.mib << 20) / drives as u64 * 3 + (256 << 20);
    let throttled =
        |i| ThrottledDisk::new(Arc::new(MemoryDisk::new(format!("d{i}"), size)), env.clone(), Throttle::default());
    let drives: Vec<Arc<ThrottledDisk>> = (0..drives).map(throttled).collect();
    let disks: Vec<Arc<dyn Disk>> = drives.iter().map(|d| d.clone() as Arc<dyn Disk>).collect();
    let options = CreateOptions {
        name: "pace".into(),
        tolerance: kind.tolerance,
        chunk_size: None,
        strip_size: None,
        force: true,
    };
    Pool::create(env.clone(), disks.clone(), options).await.expect("created");
    let config = PoolConfig {
        compression: Compression::Off,
        failed_grace: Duration::ZERO,
        scrub_interval: Duration::ZERO,
        // Reads go to the drives.
        memory: 96 << 20,
        priority,
        ..PoolConfig::default()
    };
    let pool = Pool::open(env.clone(), disks, config).await.expect("opened");
    pool.create_volume("v", kind.mib << 20).await.expect("a volume");
    let device = pool.open_volume("v").expect("a device");
    let mut rng = Rng::new(1);
    for at in (0..kind.mib << 20).step_by(1 << 20) {
        let mut data = vec![0; 1 << 20];
        rng.fill(&mut data);
        device.write(at, Bytes::from(data), false).await.expect("written");
    }
    device.flush().await.expect("flushed");
    pool.engine().checkpoint().await.expect("a checkpoint");
    drives.iter().for_each(|d| d.set(kind.throttle));
    (pool, device)
}

async fn run(env: Arc<dyn Env>, kind: &Kind, drives: usize, seconds: u64, priority: Priority) {
    let (idle, _) = pool(&env, kind, drives, priority).await;
    // Nobody has asked for anything of late.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (alone, mib, _) = rebuild(&idle, Duration::MAX).await;
    println!("{}, {drives} drives, {}: {mib} MiB without load in {alone:.1} s", kind.name, idle.status().await.layout);
    idle.close().await.expect("closed");
    println!(
        "  {:>7} {:>28} {:>6} {:>28} {:>6} {:>18} {:>6}",
        "readers", "reads p50/p99 ms", "p99 x", "flushes p50/p99 ms", "p99 x", "rebuilt", "speed"
    );
    for readers in [1, 4, 16] {
        let (pool, device) = pool(&env, kind, drives, priority).await;
        let hosts = Hosts::start(device, (kind.mib << 20) / BLOCK, readers);
        tokio::time::sleep(Duration::from_secs(2)).await;
        hosts.take();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let before = hosts.take();
        let (took, done, _) = rebuild(&pool, Duration::from_secs(seconds * 4)).await;
        let during = hosts.take();
        hosts.end().await;
        let pair = |i: usize| format!("{:.1}/{:.1} -> {:.1}/{:.1}", before[i], before[i + 1], during[i], during[i + 1]);
        println!(
            "  {readers:>7} {:>28} {:>6.2} {:>28} {:>6.2} {:>18} {:>6.2}",
            pair(0),
            during[1] / before[1],
            pair(2),
            during[3] / before[3],
            format!("{done} MiB in {took:.1} s"),
            done as f64 / took / (mib as f64 / alone),
        );
        pool.engine().stop();
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default: u64| args.next().map_or(default, |a| a.parse().expect("a number"));
    let (seconds, drives) = (number(10), number(10) as usize);
    let priority = match args.next().as_deref() {
        None | Some("normal") => Priority::Normal,
        Some("low") => Priority::Low,
        Some("high") => Priority::High,
        Some(_) => panic!("low, normal or high"),
    };
    let hard =
        Throttle { bytes_per_s: Some(100_000_000), requests_per_s: Some(200), latency: Duration::from_millis(1) };
    let flash =
        Throttle { bytes_per_s: Some(60_000_000), requests_per_s: Some(10_000), latency: Duration::from_micros(200) };
    let kinds = [
        Kind { name: "hard disks, double", throttle: hard, mib: 1024, tolerance: Tolerance::Double },
        Kind { name: "hard disks, single", throttle: hard, mib: 1024, tolerance: Tolerance::Single },
        Kind { name: "flash, double", throttle: flash, mib: 1536, tolerance: Tolerance::Double },
    ];
    // A part of the name of the drives to be measured; all without.
    let kind = args.next().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let env: Arc<dyn Env> = RealEnv::new(tokio::runtime::Handle::current(), 2);
        for kind in kinds.iter().filter(|k| k.name.contains(&kind)) {
            run(env.clone(), kind, drives, seconds, priority).await;
        }
    });
}
