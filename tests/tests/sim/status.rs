//! Questions that people and programs ask of a pool all the time: they wait for nobody, and nobody waits for them.
//!
//! Locks have an order (`blockdev::lock`), and builds for tests refuse every other; so whatever question is asked in here while it holds a lock that
//! comes later fails, though the simulator has one thread only and would never hang.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blockdev::disk::{Disk, FaultDisk, MemoryDisk};
use blockdev::env::{Env, Rng, SimScope};
use blockdev::error::ErrorKind;
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{Priority, Tolerance};
use futures::future::join_all;

use super::cut_short::noise;
use super::seeds::sweep;

const MIB: u64 = 1 << 20;
/// Steps of the simulator in which everything must have ended.
const STEPS: u64 = 30_000_000;
/// Bytes of each of two volumes: together more than the pool has room for.
const VOLUME: u64 = 40 * MIB;
/// Bytes of one write.
const PIECE: u64 = 128 << 10;

/// Asks for everything there is to know, until the others have ended.
async fn ask(env: &Arc<dyn Env>, pool: &Pool, done: &AtomicBool, seed: u64) -> u64 {
    let mut rng = Rng::new(seed);
    let mut asked = 0;
    while !done.load(Ordering::Relaxed) {
        let status = pool.status().await;
        assert_eq!(status.volumes, 2);
        assert!(status.used <= status.raw && status.disks.len() >= 5, "{status:?}");
        let stats = pool.stats().await;
        assert!(!stats.memory.is_empty());
        // A volume may be there, or be asked for while its pages come and go.
        assert_eq!(pool.volumes().await.len(), 2);
        let _ = (pool.disks(), pool.engine().space(), pool.engine().spare(), pool.engine().rebuild_progress());
        if rng.chance(1, 8) {
            pool.volume_info("a").await.expect("a volume");
            let _ = pool.engine().scrub_progress();
        }
        asked += 1;
        env.sleep(Duration::from_micros(rng.between(300, 6_000))).await;
    }
    asked
}

/// Writes, flushes, discards; a full pool is answered with a discard. Says how often there was no space.
async fn write(pool: &Pool, name: &str, pieces: u64, seed: u64) -> u64 {
    let mut rng = Rng::new(seed);
    let device = pool.open_volume(name).expect("a device");
    let mut full = 0;
    for i in 0..pieces {
        let at = rng.below(VOLUME / PIECE) * PIECE;
        // Rewriting comes after the first pass: the cleaner has work, and writes wait for it.
        let at = if i < VOLUME / PIECE { i * PIECE } else { at };
        match device.write(at, noise(seed ^ i, PIECE as usize), rng.chance(1, 16)).await {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NoSpace => {
                full += 1;
                device.discard(rng.below(VOLUME / PIECE / 2) * PIECE, PIECE * 8).await.expect("discarded");
            }
            Err(e) => panic!("{name}: {e}"),
        }
        if rng.chance(1, 20) {
            device.flush().await.expect("flushed");
        }
    }
    full
}

/// Disks go, come back, are added and removed, the pool is scrubbed and checked.
async fn change(env: &Arc<dyn Env>, pool: &Pool, faults: &[Arc<FaultDisk>], more: Arc<dyn Disk>) {
    env.sleep(Duration::from_millis(30)).await;
    faults[1].fail();
    pool.rescan_disks().await.expect("noticed");
    env.sleep(Duration::from_millis(100)).await;
    faults[1].restore();
    pool.rescan_disks().await.expect("taken back");
    env.sleep(Duration::from_millis(50)).await;
    pool.start_scrub().await.expect("a scrub");
    let added = pool.add_disk(more, false, None).await.expect("added").id;
    pool.rebalance().await.expect("spread");
    // Refused when the pool is too full for it; then as well it must not hang.
    let _ = pool.remove_disk(added).await;
    let report = pool.check(Arc::new(|_, _| {})).await.expect("checked");
    assert!(report.is_clean(), "{:?}", report.findings);
    let _ = pool.damage(Arc::new(|_, _| {})).await.expect("listed");
}

fn run_questions(seed: u64, fulls: &AtomicU64) -> Result<(), String> {
    let scope = SimScope::new(seed);
    let env = scope.env();
    let work = async {
        let memory = |i: usize| Arc::new(MemoryDisk::new(format!("d{i}"), 16 * MIB));
        let faults: Vec<Arc<FaultDisk>> = (0..6).map(|i| FaultDisk::new(memory(i), env.clone())).collect();
        let mut disks: Vec<Arc<dyn Disk>> = faults.iter().map(|f| f.clone() as Arc<dyn Disk>).collect();
        let more = disks.remove(5);
        let options = CreateOptions {
            name: "tank".into(),
            tolerance: Tolerance::Single,
            chunk_size: Some(64 << 10),
            strip_size: Some(4 << 10),
            force: false,
        };
        Pool::create(env.clone(), disks.clone(), options).await.expect("created");
        let config = PoolConfig {
            memory: 8 << 20,
            checkpoint_interval: Duration::from_millis(20),
            failed_grace: Duration::from_millis(20),
            priority: if seed.is_multiple_of(2) { Priority::High } else { Priority::Normal },
            ..PoolConfig::default()
        };
        let pool = Pool::open(env.clone(), disks, config).await.expect("opened");
        for name in ["a", "b"] {
            pool.create_volume(name, VOLUME).await.expect("a volume");
        }
        faults.iter().for_each(|f| f.set_delay(Duration::from_micros(50)));
        let done = AtomicBool::new(false);
        let others = async {
            let writes = join_all([write(&pool, "a", 340, seed), write(&pool, "b", 340, seed ^ 77)]);
            let (full, ()) = futures::future::join(writes, change(&env, &pool, &faults, more)).await;
            done.store(true, Ordering::Relaxed);
            full.into_iter().sum::<u64>()
        };
        let questions = join_all((0..3).map(|i| ask(&env, &pool, &done, seed ^ i)));
        let (full, asked) = futures::future::join(others, questions).await;
        fulls.fetch_add(full, Ordering::Relaxed);
        pool.close().await.expect("closed");
        asked.into_iter().min().unwrap_or(0)
    };
    let asked = scope.run_until(work, STEPS).map_err(|stall| format!("{stall}"))?;
    if asked < 40 { Err(format!("only {asked} questions were answered")) } else { Ok(()) }
}

#[test]
fn questions_wait_for_nobody() {
    let fulls = AtomicU64::new(0);
    sweep(0, 1, 6, |seed| run_questions(seed, &fulls));
    assert!(fulls.load(Ordering::Relaxed) > 0, "the pool was never full");
}
