//! Random overwrites of pools that are nearly full: hosts are slowed down to what the cleaner gains, and nobody waits for long. All times are simulated.

use std::sync::Arc;
use std::time::Duration;

use blockdev::disk::{Disk, MemoryDisk, Throttle, ThrottledDisk};
use blockdev::env::{Rng, SimScope};
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{Compression, Tolerance};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::cut_short::noise;

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
/// Writes under way.
const DEPTH: usize = 32;
const STEPS: u64 = 400_000_000;
/// A drive: 100 MiB a second.
const DRIVE: Throttle =
    Throttle { bytes_per_s: Some(100 << 20), requests_per_s: None, latency: Duration::from_micros(100) };
const DRIVES: u64 = 6;

struct Outcome {
    /// Bytes a second, of each quarter of what was written.
    rates: Vec<f64>,
    /// What writes waited, in order.
    waits: Vec<Duration>,
    /// Bytes written to drives for each byte, without filling the pool.
    amplification: f64,
}

impl Outcome {
    fn quantile(&self, q: f64) -> Duration {
        self.waits[((self.waits.len() - 1) as f64 * q) as usize]
    }
}

/// Overwrites a pool that is filled to so many percent, `times` times.
fn overwrite(percent: u64, times: u64) -> Outcome {
    let scope = SimScope::new(percent);
    let env = scope.env();
    let work = async {
        let disk = |i| {
            let disk = Arc::new(MemoryDisk::new(format!("d{i}"), 96 << 20));
            ThrottledDisk::new(disk, env.clone(), DRIVE) as Arc<dyn Disk>
        };
        let disks: Vec<Arc<dyn Disk>> = (0..DRIVES).map(disk).collect();
        let (tolerance, chunk_size, strip_size) = (Tolerance::Single, Some(64 << 10), Some(16 << 10));
        let options = CreateOptions { name: "tank".into(), tolerance, chunk_size, strip_size, force: false };
        Pool::create(env.clone(), disks.clone(), options).await.expect("created");
        let config = PoolConfig { compression: Compression::Off, memory: 32 << 20, ..PoolConfig::default() };
        let pool = Pool::open(env.clone(), disks, config).await.expect("opened");
        let size = (pool.engine().space().available() * percent / 100) / MIB * MIB;
        pool.create_volume("a", size).await.expect("a volume");
        let device = pool.open_volume("a").expect("a device");
        for at in (0..size).step_by(MIB as usize) {
            device.write(at, noise(at, MIB as usize), false).await.expect("written");
        }
        device.flush().await.expect("flushed");
        let before = pool.stats().await;
        let mut rng = Rng::new(percent);
        let (mut rates, mut waits) = (Vec::new(), Vec::new());
        let part = times * size / BLOCK / 4;
        for quarter in 0..4 {
            let begun = env.now();
            let mut under_way = FuturesUnordered::new();
            for i in 0..part {
                if under_way.len() >= DEPTH {
                    waits.extend(under_way.next().await);
                }
                let (device, env, at) = (device.clone(), env.clone(), rng.below(size / BLOCK) * BLOCK);
                let data = noise(size + quarter * part + i, BLOCK as usize);
                under_way.push(async move {
                    let asked = env.now();
                    device.write(at, data, false).await.expect("there is room");
                    env.now() - asked
                });
            }
            while let Some(wait) = under_way.next().await {
                waits.push(wait);
            }
            rates.push((part * BLOCK) as f64 / (env.now() - begun).as_secs_f64());
        }
        let after = pool.stats().await;
        let written = (after.disk_written - before.disk_written) as f64;
        let amplification = written / (after.host_written - before.host_written) as f64;
        pool.close().await.expect("closed");
        waits.sort_unstable();
        Outcome { rates, waits, amplification }
    };
    scope.run_until(work, STEPS).unwrap_or_else(|stall| panic!("{stall}"))
}

fn assert_smooth(percent: u64, share: f64) {
    let out = overwrite(percent, 3);
    let rates: Vec<u64> = out.rates.iter().map(|r| *r as u64 / MIB).collect();
    let waits = [0.5, 0.99, 0.999, 1.0].map(|q| out.quantile(q));
    let amplification = out.amplification;
    let said = format!("MiB/s {rates:?}, waits {waits:?}, {amplification:.2} bytes written for each");
    println!("{percent} % full: {said}");
    assert!(waits[2] <= Duration::from_millis(100), "{said}");
    assert!(waits[3] <= Duration::from_millis(500), "{said}");
    // What drives can write is not spent on waiting: they are busy with what is written, and reading what is moved.
    let drives = (DRIVES * DRIVE.bytes_per_s.expect("a rate")) as f64;
    let last = out.rates[3];
    assert!(last * amplification >= share * drives, "{said}");
    // Nor does it get worse and worse.
    assert!(last >= 0.8 * out.rates[2], "{said}");
}

#[test]
fn a_pool_four_fifths_full_is_overwritten_without_stalls() {
    assert_smooth(80, 0.25);
}

#[test]
fn a_pool_nearly_full_is_overwritten_without_stalls() {
    assert_smooth(95, 0.25);
}
