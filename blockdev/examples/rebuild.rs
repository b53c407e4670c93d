//! How long the rebuild of one of N drives takes, against what the drives that are left could do at best.
//!
//! `rebuild [MIB [MB_PER_S]]`: MIB of data that does not compress on pools of 6, 12 and 24 drives in memory, each slowed down to so many MB/s
//! (reads and writes together). The limit: every column of the drive is computed from as many others as the extent has data columns, and
//! written once, by all drives that are left, at full speed. Then the same on 12 drives with twice the data, and on a mostly empty pool.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blockdev::disk::{Disk, MemoryDisk, Throttle, ThrottledDisk};
use blockdev::env::{Env, RealEnv, Rng};
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{Compression, Tolerance};
use bytes::Bytes;

/// Seconds from the failure of one drive until nothing lies on it any more, seconds at best, and bytes of its columns.
async fn run(env: Arc<dyn Env>, drives: usize, mib: u64, rate: u64, size: u64) -> (f64, f64, u64) {
    let throttled =
        |i| ThrottledDisk::new(Arc::new(MemoryDisk::new(format!("d{i}"), size)), env.clone(), Throttle::default());
    let drives: Vec<Arc<ThrottledDisk>> = (0..drives).map(throttled).collect();
    let disks: Vec<Arc<dyn Disk>> = drives.iter().map(|d| d.clone() as Arc<dyn Disk>).collect();
    let options = CreateOptions {
        name: "rebuild".into(),
        tolerance: Tolerance::Single,
        chunk_size: None,
        strip_size: None,
        force: true,
    };
    Pool::create(env.clone(), disks.clone(), options).await.expect("created");
    let config = PoolConfig { compression: Compression::Off, failed_grace: Duration::ZERO, ..PoolConfig::default() };
    let pool = Pool::open(env.clone(), disks, config).await.expect("opened");
    pool.create_volume("v", mib << 20).await.expect("a volume");
    let device = pool.open_volume("v").expect("a device");
    let mut rng = Rng::new(1);
    for at in (0..mib << 20).step_by(1 << 20) {
        let mut data = vec![0; 1 << 20];
        rng.fill(&mut data);
        device.write(at, Bytes::from(data), false).await.expect("written");
    }
    device.flush().await.expect("flushed");
    pool.engine().checkpoint().await.expect("a checkpoint");
    drives.iter().for_each(|d| d.set(Throttle { bytes_per_s: Some(rate), ..Throttle::default() }));
    let status = pool.status().await;
    let data: u64 = status.layout.split('+').next().and_then(|d| d.parse().ok()).expect("a layout");
    // Nobody has asked for anything of late.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let start = Instant::now();
    pool.fail_disk(1).await.expect("given up");
    while !pool.engine().array.members().iter().any(|m| m.is_empty()) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let took = start.elapsed().as_secs_f64();
    let lost = pool.stats().await.rebuilt;
    let best = (lost * (data + 1)) as f64 / ((drives.len() as u64 - 1) * rate) as f64;
    pool.close().await.expect("closed");
    (took, best, lost)
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let (mib, rate) = (args.next().unwrap_or(384), args.next().unwrap_or(16) * 1_000_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let env: Arc<dyn Env> = RealEnv::new(tokio::runtime::Handle::current(), 2);
        println!("{:<34} {:>8} {:>8} {:>8} {:>6}", "one drive of", "MiB", "s", "best s", "ratio");
        let line = |what: String, (took, best, lost): (f64, f64, u64)| {
            println!("{what:<34} {:>8} {took:>8.2} {best:>8.2} {:>6.2}", lost >> 20, best / took);
        };
        for drives in [6, 12, 24] {
            let size = (mib << 20) / drives as u64 * 2 + (192 << 20);
            line(format!("{drives}"), run(env.clone(), drives, mib, rate, size).await);
        }
        line("12, twice the data".into(), run(env.clone(), 12, mib * 2, rate, (mib << 20) / 3 + (192 << 20)).await);
        line(
            "12, a quarter, drives four times".into(),
            run(env.clone(), 12, mib / 4, rate, (mib << 20) + (192 << 20)).await,
        );
    });
}
