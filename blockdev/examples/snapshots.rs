//! What snapshots cost: taking one when there are 1 and 1,000, random overwrites of 4 KiB with none and with 1,000, the first change after
//! one, and what deleting every second one gives back.
//!
//! `snapshots [COUNT [MIB [WRITES]]]`: so many snapshots of a volume of MIB, with WRITES random overwrites between two. Six drives in memory, single
//! tolerance; data does not compress and nothing occurs twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blockdev::disk::{Disk, MemoryDisk};
use blockdev::env::{Env, RealEnv, Rng};
use blockdev::frontend::BlockDevice;
use blockdev::pool::{CreateOptions, Kept, Pool, PoolConfig};
use blockdev::report::{Compression, Tolerance};
use bytes::Bytes;

const BLOCK: u64 = 4096;
/// Writes under way.
const DEPTH: usize = 32;
/// Writes of one measurement.
const MEASURED: u64 = 60_000;

/// Random overwrites, then a flush; writes a second.
async fn overwrite(device: &Arc<dyn BlockDevice>, rng: &mut Rng, blocks: u64, writes: u64) -> f64 {
    let start = Instant::now();
    let mut under_way = futures::stream::FuturesUnordered::new();
    for _ in 0..writes {
        if under_way.len() >= DEPTH {
            futures::StreamExt::next(&mut under_way).await;
        }
        let mut data = vec![0; BLOCK as usize];
        rng.fill(&mut data);
        let (device, at) = (device.clone(), rng.below(blocks) * BLOCK);
        under_way.push(async move { device.write(at, Bytes::from(data), false).await.expect("written") });
    }
    while futures::StreamExt::next(&mut under_way).await.is_some() {}
    device.flush().await.expect("flushed");
    writes as f64 / start.elapsed().as_secs_f64()
}

/// Milliseconds to take a snapshot.
async fn take(pool: &Pool, name: String) -> f64 {
    let start = Instant::now();
    pool.create_snapshots(&[name], &Kept::default()).await.expect("taken");
    start.elapsed().as_secs_f64() * 1e3
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

async fn used(pool: &Pool) -> (u64, u64) {
    let state = pool.engine().state.read();
    (state.referenced_bytes >> 20, state.table.used())
}

async fn run(env: Arc<dyn Env>, count: usize, mib: u64, writes: u64, snapshots: bool) -> (f64, f64) {
    // What the volume and all its snapshots hold, twice.
    let held = (mib << 20) + (count as u64 * writes + 4 * MEASURED) * BLOCK;
    let size = (held * 2 / 5).next_multiple_of(64 << 20) + (256 << 20);
    let disk = |i| Arc::new(MemoryDisk::new(format!("d{i}"), size)) as Arc<dyn Disk>;
    let disks: Vec<Arc<dyn Disk>> = (0..6).map(disk).collect();
    let (name, tolerance) = ("snapshots".into(), Tolerance::Single);
    let options = CreateOptions { name, tolerance, chunk_size: None, strip_size: None, force: true };
    Pool::create(env.clone(), disks.clone(), options).await.expect("created");
    let config = PoolConfig { compression: Compression::Off, ..PoolConfig::default() };
    let pool = Pool::open(env, disks, config).await.expect("opened");
    pool.create_volume("v", mib << 20).await.expect("a volume");
    let device = pool.open_volume("v").expect("a device");
    let (mut rng, blocks) = (Rng::new(1), (mib << 20) / BLOCK);
    for at in (0..mib << 20).step_by(1 << 20) {
        let mut data = vec![0; 1 << 20];
        rng.fill(&mut data);
        device.write(at, Bytes::from(data), false).await.expect("written");
    }
    device.flush().await.expect("flushed");

    overwrite(&device, &mut rng, blocks, MEASURED).await;
    let amplification = |stats: &blockdev::report::PoolStats| (stats.disk_written, stats.host_written);
    let before = amplification(&pool.stats().await);
    let none = overwrite(&device, &mut rng, blocks, MEASURED).await;
    let after = amplification(&pool.stats().await);
    let amplified = |a: (u64, u64), b: (u64, u64)| (b.0 - a.0) as f64 / (b.1 - a.1) as f64;
    println!("no snapshot: {none:.0} writes/s, {:.2} bytes written a byte", amplified(before, after));

    let mut last = Vec::new();
    for i in 0..count {
        if !snapshots {
            overwrite(&device, &mut rng, blocks, writes).await;
            continue;
        }
        let took = take(&pool, format!("v@s{i}")).await;
        if i + 20 >= count {
            last.push(took);
        }
        overwrite(&device, &mut rng, blocks, writes).await;
    }
    if !snapshots {
        let before = amplification(&pool.stats().await);
        let same = overwrite(&device, &mut rng, blocks, MEASURED).await;
        let after = amplification(&pool.stats().await);
        println!(
            "no snapshot, as much written: {same:.0} writes/s, {:.2} bytes written a byte",
            amplified(before, after)
        );
        let mut took = Vec::new();
        for i in 0..20 {
            overwrite(&device, &mut rng, blocks, writes).await;
            took.push(take(&pool, format!("v@s{i}")).await);
        }
        let took = median(took);
        println!("taking one of the first: {took:.2} ms");
        pool.close().await.expect("closed");
        return (same, took);
    }
    let last = median(last);
    println!("taking one of the last: {last:.2} ms");
    let before = amplification(&pool.stats().await);
    let many = overwrite(&device, &mut rng, blocks, MEASURED).await;
    let after = amplification(&pool.stats().await);
    println!("{count} snapshots: {many:.0} writes/s, {:.2} bytes written a byte", amplified(before, after));
    let mut each = Vec::new();
    for i in 0..8 {
        take(&pool, format!("v@m{i}")).await;
        each.push(overwrite(&device, &mut rng, blocks, MEASURED / 8).await);
    }
    println!("a snapshot every {} writes: {:.0} writes/s", MEASURED / 8, median(each));

    let (referenced, entries) = used(&pool).await;
    let start = Instant::now();
    for i in (0..count).step_by(2) {
        pool.delete_snapshot(&format!("v@s{i}")).await.expect("deleted");
    }
    let answered = start.elapsed();
    while pool.engine().is_reaping() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (left, entries_left) = used(&pool).await;
    println!(
        "every second one deleted: answered in {:.2} s, done after {:.2} s; {} of {referenced} MiB given back, {} entries",
        answered.as_secs_f64(),
        start.elapsed().as_secs_f64(),
        referenced - left,
        entries - entries_left
    );
    pool.close().await.expect("closed");
    (many, last)
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let (count, mib, writes) = (args.next().unwrap_or(1000), args.next().unwrap_or(512), args.next().unwrap_or(500));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let env: Arc<dyn Env> = RealEnv::new(tokio::runtime::Handle::current(), 2);
        let none = run(env.clone(), count as usize, mib, writes, false).await;
        let many = run(env, count as usize, mib, writes, true).await;
        println!(
            "with {count} snapshots: {:.2} of the writes, {:.2} of the time to take one",
            many.0 / none.0,
            many.1 / none.1
        );
    });
}
