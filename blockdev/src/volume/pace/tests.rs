//! A rebuild on slow disks beside hosts, in simulated time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::disk::{Disk, MemoryDisk, Throttle, ThrottledDisk};
use crate::env::sim::SimScope;
use crate::env::{Env, Rng};
use crate::frontend::BlockDevice;
use crate::pool::{CreateOptions, Pool, PoolConfig};
use crate::report::{Compression, Tolerance};

const MIB: u64 = 1 << 20;
const DATA: u64 = 96 * MIB;
/// About a hard disk.
const SLOW: Throttle =
    Throttle { bytes_per_s: Some(100_000_000), requests_per_s: Some(200), latency: Duration::from_millis(1) };

/// Flash that gets few bytes through: what hosts wait for is as short as on flash, what pieces take is not.
const FLASH: Throttle =
    Throttle { bytes_per_s: Some(40_000_000), requests_per_s: Some(10_000), latency: Duration::from_micros(200) };

struct Hosts {
    stop: AtomicBool,
    left: AtomicUsize,
    waits: Mutex<Vec<Duration>>,
}

impl Hosts {
    fn start(env: &Arc<dyn Env>, device: &Arc<dyn BlockDevice>, readers: usize) -> Arc<Self> {
        let left = AtomicUsize::new(readers + 1);
        let hosts = Arc::new(Self { stop: AtomicBool::new(false), left, waits: Mutex::default() });
        for n in 0..=readers {
            let (hosts, device, at) = (hosts.clone(), device.clone(), env.clone());
            env.spawn(Box::pin(async move {
                let mut rng = Rng::new(n as u64 + 1);
                while !hosts.stop.load(Ordering::Relaxed) {
                    let (offset, begun) = (rng.below(DATA / 4096) * 4096, at.now());
                    if n > 0 {
                        device.read(offset, 4096).await.unwrap();
                        hosts.waits.lock().push(at.now() - begun);
                    } else {
                        device.write(offset, noise(&mut rng, 4096), true).await.unwrap();
                        at.sleep(Duration::from_millis(50)).await;
                    }
                }
                hosts.left.fetch_sub(1, Ordering::AcqRel);
            }));
        }
        hosts
    }

    /// The 99th percentile of reads since the last call.
    fn p99(&self) -> Duration {
        let mut waits = std::mem::take(&mut *self.waits.lock());
        waits.sort_unstable();
        assert!(waits.len() > 200, "{} reads are too few", waits.len());
        waits[waits.len() * 99 / 100]
    }
}

fn noise(rng: &mut Rng, len: usize) -> Bytes {
    let mut data = vec![0; len];
    rng.fill(&mut data);
    Bytes::from(data)
}

/// How long hosts' reads took (99th percentile) alone and beside a rebuild, and how long that took; with no readers only the last.
fn rebuild(throttle: Throttle, readers: usize) -> (Option<(Duration, Duration)>, Duration) {
    let scope = SimScope::new(5);
    let env = scope.env();
    let work = async {
        let throttled = |i: u64| {
            let disk = Arc::new(MemoryDisk::new(format!("d{i}"), 96 * MIB));
            ThrottledDisk::new(disk, env.clone(), Throttle::default())
        };
        let drives: Vec<Arc<ThrottledDisk>> = (0..8).map(throttled).collect();
        let disks: Vec<Arc<dyn Disk>> = drives.iter().map(|d| d.clone() as Arc<dyn Disk>).collect();
        let options = CreateOptions {
            name: "pace".into(),
            tolerance: Tolerance::Double,
            chunk_size: Some(MIB),
            strip_size: None,
            force: true,
        };
        Pool::create(env.clone(), disks.clone(), options).await.unwrap();
        let config = PoolConfig {
            memory: 32 * MIB,
            compression: Compression::Off,
            failed_grace: Duration::ZERO,
            scrub_interval: Duration::ZERO,
            ..PoolConfig::default()
        };
        let pool = Pool::open(env.clone(), disks, config).await.unwrap();
        pool.create_volume("v", DATA).await.unwrap();
        let device = pool.open_volume("v").unwrap();
        let mut rng = Rng::new(1);
        for at in (0..DATA).step_by(MIB as usize) {
            device.write(at, noise(&mut rng, MIB as usize), false).await.unwrap();
        }
        device.flush().await.unwrap();
        pool.engine().checkpoint().await.unwrap();
        env.sleep(Duration::from_secs(2)).await;
        drives.iter().for_each(|d| d.set(throttle));
        let hosts = (readers > 0).then(|| Hosts::start(&env, &device, readers));
        env.sleep(Duration::from_secs(10)).await;
        let alone = hosts.as_ref().map(|h| h.p99());
        let begun = env.now();
        pool.fail_disk(1).await.unwrap();
        while !pool.engine().array.members().iter().any(|m| m.is_empty()) {
            env.sleep(Duration::from_millis(5)).await;
            assert!(env.now() - begun < Duration::from_secs(300), "the rebuild does not end");
        }
        let took = env.now() - begun;
        let beside = hosts.as_ref().map(|h| h.p99());
        if let Some(hosts) = hosts {
            let stats = pool.stats().await;
            assert!(stats.background_share.is_some_and(|s| (0.04..=1.0).contains(&s)), "{stats:?}");
            assert!(stats.host_latency.read_p99_us.is_some() && stats.host_latency.flush_p99_us.is_some(), "{stats:?}");
            hosts.stop.store(true, Ordering::Relaxed);
            while hosts.left.load(Ordering::Acquire) > 0 {
                env.sleep(Duration::from_millis(5)).await;
            }
        }
        drives.iter().for_each(|d| d.set(Throttle::default()));
        // What was rebuilt in short requests lies where it belongs.
        let report = pool.check(Arc::new(|_, _| {})).await.unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
        pool.close().await.unwrap();
        (alone.zip(beside), took)
    };
    scope.block_on(work)
}

/// The clock is simulated: the same figures each time.
#[test]
fn hosts_wait_no_more_than_twice_as_long_beside_a_rebuild() {
    for (name, throttle) in [("slow drives", SLOW), ("flash", FLASH)] {
        let (_, idle) = rebuild(throttle, 0);
        for readers in [1, 4] {
            let (waits, took) = rebuild(throttle, readers);
            let (alone, beside) = waits.unwrap();
            eprintln!("{name}, {readers} readers: {alone:?} alone, {beside:?} beside {took:?}; {idle:?} without load");
            assert!(beside <= alone * 2, "{name}, {readers} readers: {alone:?} alone, {beside:?} beside the rebuild");
            assert!(took < idle * 12, "{name}, {readers} readers: the rebuild took {took:?}, {idle:?} without them");
        }
    }
}
