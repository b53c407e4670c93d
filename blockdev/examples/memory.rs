//! Where memory goes as hosts change what they read: bytes read from drives for each byte that hosts read, and what each cache has.
//!
//! `memory [MIB [GIB]]`: a pool with MIB (64) for its caches, in it a volume of GIB (2) that is written once and does not compress; drives in memory. 4 KiB are
//! read at random, first from a region that is half as large as all caches, then from the whole volume, then from another such region.

use std::sync::Arc;

use blockdev::disk::{Disk, MemoryDisk};
use blockdev::env::{RealEnv, Rng};
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{Compression, Tolerance};
use bytes::Bytes;

const BLOCK: u64 = 4096;
/// Reads of one line.
const READS: u64 = 50_000;
/// Lines of one phase.
const LINES: u64 = 5;

async fn run(mib: u64, gib: u64) {
    let env = RealEnv::new(tokio::runtime::Handle::current(), 2);
    let disks: Vec<Arc<dyn Disk>> =
        (0..6).map(|i| Arc::new(MemoryDisk::new(format!("d{i}"), gib << 29)) as Arc<dyn Disk>).collect();
    let (name, tolerance) = ("memory".into(), Tolerance::Single);
    let options = CreateOptions { name, tolerance, chunk_size: None, strip_size: None, force: true };
    Pool::create(env.clone(), disks.clone(), options).await.expect("created");
    let config = PoolConfig { compression: Compression::Off, memory: mib << 20, ..PoolConfig::default() };
    let pool = Pool::open(env, disks, config).await.expect("opened");
    let size = gib << 30;
    pool.create_volume("v", size).await.expect("a volume");
    let device = pool.open_volume("v").expect("a device");
    let mut rng = Rng::new(7);
    for at in (0..size).step_by(1 << 20) {
        let mut data = vec![0; 1 << 20];
        rng.fill(&mut data);
        device.write(at, Bytes::from(data), false).await.expect("written");
    }
    device.flush().await.expect("flushed");
    println!("phase        read a byte  map pages MiB  table pages MiB  frames MiB  all caches MiB");
    let region = mib << 19;
    for (phase, from, len) in [("region", 0, region), ("everything", 0, size), ("other region", size / 2, region)] {
        for _ in 0..LINES {
            let before = pool.stats().await.disk_read;
            for _ in 0..READS {
                let at = from + rng.below(len / BLOCK) * BLOCK;
                device.read(at, BLOCK as usize).await.expect("read");
            }
            let stats = pool.stats().await;
            let read = (stats.disk_read - before) as f64 / (READS * BLOCK) as f64;
            let mib = |owner: &str| stats.memory.get(owner).copied().unwrap_or_default() as f64 / f64::from(1 << 20);
            let (maps, table, frames) = (mib("map pages"), mib("block table pages"), mib("frame cache"));
            let all = maps + table + frames;
            println!("{phase:12} {read:11.2} {maps:14.1} {table:16.1} {frames:11.1} {all:15.1}");
        }
    }
    pool.close().await.expect("closed");
}

fn main() {
    let given: Vec<u64> = std::env::args().skip(1).map(|a| a.parse().expect("a number")).collect();
    let of = |i: usize, default| given.get(i).copied().unwrap_or(default);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(of(0, 64), of(1, 2)));
}
