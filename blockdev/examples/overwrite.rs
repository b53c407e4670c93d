//! Random overwrites of a pool that is nearly full, for long: throughput over time, bytes written for each byte, what writers wait, and memory.
//!
//! `overwrite [PERCENT [ROUNDS [MIB [RATE]]]]`: a volume fills PERCENT (80) of what a pool of six drives of MIB (512) can hold; then ROUNDS (10) times as much as that
//! is written at random, 4 KiB each, 32 under way. A round is divided in five, and each part has a line. Drives in memory, single tolerance; data does not compress and
//! nothing occurs twice. With RATE a drive does so many MiB a second, and takes 0.1 ms longer for each request. A write that fails ends it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blockdev::disk::{Disk, MemoryDisk, Throttle, ThrottledDisk};
use blockdev::env::{RealEnv, Rng};
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{Compression, Tolerance};
use bytes::Bytes;

const BLOCK: u64 = 4096;
/// Writes under way.
const DEPTH: usize = 32;
/// Parts of a round.
const PARTS: u64 = 5;

/// Bytes this process has in memory.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("read");
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
}

/// The smallest of the largest so many thousandths.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q) as usize]
}

async fn run(percent: u64, rounds: u64, mib: u64, rate: u64) {
    let env = RealEnv::new(tokio::runtime::Handle::current(), 2);
    let disk = |i| -> Arc<dyn Disk> {
        let disk = Arc::new(MemoryDisk::new(format!("d{i}"), mib << 20));
        if rate == 0 {
            return disk;
        }
        let latency = Duration::from_micros(100);
        ThrottledDisk::new(disk, env.clone(), Throttle { bytes_per_s: Some(rate << 20), requests_per_s: None, latency })
    };
    let disks: Vec<Arc<dyn Disk>> = (0..6).map(disk).collect();
    let (name, tolerance) = ("overwrite".into(), Tolerance::Single);
    let options = CreateOptions { name, tolerance, chunk_size: None, strip_size: None, force: true };
    Pool::create(env.clone(), disks.clone(), options).await.expect("created");
    let config = PoolConfig { compression: Compression::Off, memory: 256 << 20, ..PoolConfig::default() };
    let pool = Pool::open(env, disks, config).await.expect("opened");
    let size = (pool.engine().space().available() * percent / 100) >> 20 << 20;
    pool.create_volume("v", size).await.expect("a volume");
    let device = pool.open_volume("v").expect("a device");
    let mut rng = Rng::new(percent);
    for at in (0..size).step_by(1 << 20) {
        let mut data = vec![0; 1 << 20];
        rng.fill(&mut data);
        device.write(at, Bytes::from(data), false).await.expect("written");
    }
    device.flush().await.expect("flushed");
    let space = pool.engine().space();
    let (total, free) = (space.total_segments, space.free_segments);
    println!("a volume of {} MiB in a pool that is {percent} % full by it", size >> 20);
    println!("{total} segments of {} KiB, {free} free, {} kept back from hosts", space.segment >> 10, space.reserve());
    println!(
        "part  MiB/s  written a byte  cleaned a byte  checkpoints    p50 ms    p99 ms  p99.9 ms    max ms  RSS MiB  used %"
    );
    let writes = size / BLOCK / PARTS;
    for part in 0..rounds * PARTS {
        let before = pool.stats().await;
        let start = Instant::now();
        let mut waits = Vec::with_capacity(writes as usize);
        let mut under_way = futures::stream::FuturesUnordered::new();
        for _ in 0..writes {
            if under_way.len() >= DEPTH {
                waits.extend(futures::StreamExt::next(&mut under_way).await);
            }
            let mut data = vec![0; BLOCK as usize];
            rng.fill(&mut data);
            let (device, at) = (device.clone(), rng.below(size / BLOCK) * BLOCK);
            under_way.push(async move {
                let begun = Instant::now();
                device.write(at, Bytes::from(data), false).await.expect("there is room");
                begun.elapsed().as_secs_f64() * 1e3
            });
        }
        while let Some(wait) = futures::StreamExt::next(&mut under_way).await {
            waits.push(wait);
        }
        let seconds = start.elapsed().as_secs_f64();
        let after = pool.stats().await;
        waits.sort_by(f64::total_cmp);
        let amplified =
            (after.disk_written - before.disk_written) as f64 / (after.host_written - before.host_written) as f64;
        let cleaned =
            (after.cleaner_moved - before.cleaner_moved) as f64 / (after.host_written - before.host_written) as f64;
        let space = pool.engine().space();
        println!(
            "{part:4} {:6.1} {amplified:15.2} {cleaned:15.2} {:12} {:9.2} {:9.2} {:9.2} {:9.2} {:8} {:6}",
            (writes * BLOCK) as f64 / seconds / f64::from(1 << 20),
            after.checkpoints - before.checkpoints,
            quantile(&waits, 0.5),
            quantile(&waits, 0.99),
            quantile(&waits, 0.999),
            quantile(&waits, 1.0),
            resident() >> 20,
            space.used * 100 / space.usable.max(1),
        );
    }
    pool.close().await.expect("closed");
}

fn main() {
    let given: Vec<u64> = std::env::args().skip(1).map(|a| a.parse().expect("a number")).collect();
    let of = |i: usize, default| given.get(i).copied().unwrap_or(default);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(of(0, 80), of(1, 10), of(2, 512), of(3, 0)));
}
