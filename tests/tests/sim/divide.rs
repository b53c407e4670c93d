//! Resiliency sets are divided only when what is stored has room afterwards: two small sets hold less than a large one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use blockdev::disk::{Disk, FaultDisk, MemoryDisk};
use blockdev::env::{Env, Rng};
use blockdev::error::ErrorKind;
use blockdev::frontend::BlockDevice;
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{PoolStatus, Priority, Tolerance};

use super::cut_short::{noise, run};

const MIB: u64 = 1 << 20;
const PIECE: u64 = 256 << 10;

fn disk(env: &Arc<dyn Env>, i: usize) -> Arc<FaultDisk> {
    FaultDisk::new(Arc::new(MemoryDisk::new(format!("d{i}"), 4 * MIB)), env.clone())
}

fn config() -> PoolConfig {
    let checkpoint_interval = Duration::from_millis(200);
    PoolConfig { memory: 16 << 20, checkpoint_interval, priority: Priority::High, ..PoolConfig::default() }
}

fn as_disks(faults: &[Arc<FaultDisk>]) -> Vec<Arc<dyn Disk>> {
    faults.iter().map(|f| f.clone() as Arc<dyn Disk>).collect()
}

/// As many disks as fit one set, full of what does not compress. Gives the pieces that were written.
async fn full_pool(env: &Arc<dyn Env>, seed: u64) -> (Vec<Arc<FaultDisk>>, Pool, Arc<dyn BlockDevice>, u64) {
    let faults: Vec<Arc<FaultDisk>> = (0..25).map(|i| disk(env, i)).collect();
    let options = CreateOptions {
        name: "tank".into(),
        tolerance: Tolerance::Single,
        chunk_size: Some(64 << 10),
        strip_size: Some(4 << 10),
        force: false,
    };
    Pool::create(env.clone(), as_disks(&faults), options).await.expect("created");
    let pool = Pool::open(env.clone(), as_disks(&faults), config()).await.expect("opened");
    pool.create_volume("a", 256 * MIB).await.expect("a volume");
    let device = pool.open_volume("a").expect("a device");
    let mut pieces = 0;
    loop {
        match device.write(pieces * PIECE, noise(seed ^ pieces, PIECE as usize), false).await {
            Ok(()) => pieces += 1,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                break;
            }
        }
    }
    device.flush().await.expect("flushed");
    (faults, pool, device, pieces)
}

async fn settled(env: &Arc<dyn Env>, pool: &Pool) -> PoolStatus {
    for _ in 0..5000 {
        let status = pool.status().await;
        if !status.mixed && status.rebuild.is_none() {
            return status;
        }
        env.sleep(Duration::from_millis(20)).await;
    }
    panic!("never settled: {:?}", pool.status().await);
}

fn is_large(status: &PoolStatus) -> bool {
    status.alerts.iter().any(|a| a.code == "pool.set.large")
}

/// All that was written is there, nothing is wrong, and one disk of each set may fail.
async fn sound(pool: &Pool, faults: &[Arc<FaultDisk>], device: &Arc<dyn BlockDevice>, pieces: u64, seed: u64) {
    let report = pool.check(Arc::new(|_, _| {})).await.expect("checked");
    assert!(report.is_clean(), "{:?}", report.findings);
    let mut victims: BTreeMap<u16, usize> = BTreeMap::new();
    for d in pool.disks() {
        victims.entry(d.set).or_insert(d.path[1..].parse().expect("a number"));
    }
    victims.values().for_each(|&v| faults[v].fail());
    for i in 0..pieces {
        assert!(device.read(i * PIECE, PIECE as usize).await.expect("read") == noise(seed ^ i, PIECE as usize), "{i}");
    }
    device.flush().await.expect("served");
}

/// A full pool of 25 disks that grows by one keeps its set, and hosts their room; with some more it is divided.
#[test]
fn a_full_set_is_divided_when_its_data_fits() {
    run(40, |env| async move {
        let seed = 400;
        let (mut faults, pool, device, mut pieces) = full_pool(&env, seed).await;
        let before = pool.status().await;
        assert_eq!((before.sets, before.layout.as_str(), is_large(&before)), (1, "16+1", false));
        let mut pool = pool;
        let mut device = device;
        let mut now = before.clone();
        let mut at_last = 0;
        for n in 26..40 {
            faults.push(disk(&env, n - 1));
            pool.add_disk(faults[n - 1].clone(), false, None).await.expect("added");
            now = settled(&env, &pool).await;
            if now.sets == 2 {
                at_last = n;
                break;
            }
            assert!(is_large(&now), "{n} disks: {:?}", now.alerts);
            assert!(now.usable > before.usable, "{n} disks: {} after {}", now.usable, before.usable);
            // Hosts have more room than before, not less.
            device.write(pieces * PIECE, noise(seed ^ pieces, PIECE as usize), true).await.expect("written");
            pieces += 1;
            if n == 27 {
                pool.close().await.expect("closed");
                drop((pool, device));
                pool = Pool::open(env.clone(), as_disks(&faults), config()).await.expect("opened again");
                device = pool.open_volume("a").expect("a device");
                assert_eq!(pool.status().await.sets, 1);
            }
        }
        // 2 * (n / 2 - 1) disks of 8+1 have to hold, with a tenth to spare, what 24 of 16+1 did.
        assert!((27..34).contains(&at_last), "divided with {at_last} disks");
        assert!(now.layout == "8+1" && !is_large(&now), "{}: {:?}", now.layout, now.alerts);
        assert!(now.used as f64 <= now.usable as f64 * 0.97, "{} of {}", now.used, now.usable);
        sound(&pool, &faults, &device, pieces, seed).await;
    });
}

/// A set that could not be divided is when data was discarded and somebody asks for it; one with little on it is at once.
#[test]
fn a_set_is_divided_when_there_is_room_by_now() {
    for empty in [false, true] {
        run(41, |env| async move {
            let seed = 500;
            let (mut faults, pool, device, mut pieces) = full_pool(&env, seed).await;
            let discard = async |from: u64, to: u64| {
                device.discard(from * PIECE, (to - from) * PIECE).await.expect("discarded");
                device.flush().await.expect("flushed");
                pool.engine().checkpoint().await.expect("a checkpoint");
            };
            let rest = Rng::new(seed).between(pieces / 3, pieces / 2);
            if empty {
                discard(rest, pieces).await;
                pieces = rest;
            }
            faults.push(disk(&env, 25));
            pool.add_disk(faults[25].clone(), false, None).await.expect("added");
            let mut now = settled(&env, &pool).await;
            if !empty {
                assert!(now.sets == 1 && is_large(&now), "{} sets", now.sets);
                pool.rebalance().await.expect("asked for");
                now = settled(&env, &pool).await;
                assert_eq!(now.sets, 1, "still no room");
                discard(rest, pieces).await;
                pieces = rest;
                assert_eq!(settled(&env, &pool).await.sets, 1);
                pool.rebalance().await.expect("asked for");
                now = settled(&env, &pool).await;
            }
            assert_eq!((now.sets, is_large(&now)), (2, false));
            sound(&pool, &faults, &device, pieces, seed).await;
        });
    }
}
