//! A volume with a reservation takes all it is given, in a pool that others have filled: whatever it held, shared or compressed, and after kills.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blockdev::disk::{Disk, MemoryDisk};
use blockdev::env::{Rng, SimScope};
use blockdev::error::ErrorKind;
use blockdev::frontend::BlockDevice;
use blockdev::pool::{CreateOptions, Kept, Pool, PoolConfig, Reserve};
use blockdev::report::Tolerance;
use bytes::Bytes;

use super::cut_short::noise;
use super::seeds::sweep;

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
const STEPS: u64 = 200_000_000;

/// What neither compresses nor occurs twice, what compresses, what occurs again and again, and nothing.
fn content(rng: &mut Rng, unique: &mut u64, blocks: u64) -> Bytes {
    *unique += 1;
    let len = (blocks * BLOCK) as usize;
    match rng.below(4) {
        0 => noise(*unique << 20, len),
        1 => (*unique..).flat_map(|n| [(n % 251) as u8; 64]).take(len).collect::<Vec<u8>>().into(),
        2 => noise(rng.below(5), BLOCK as usize).repeat(blocks as usize).into(),
        _ => vec![0; len].into(),
    }
}

async fn fill(device: &Arc<dyn BlockDevice>, from: u64, end: u64, unique: &mut u64) -> u64 {
    let mut at = from;
    while at < end {
        *unique += 1;
        match device.write(at, noise(*unique << 20, 64 << 10), false).await {
            Ok(()) => at += 64 << 10,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                break;
            }
        }
    }
    at
}

fn run(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0x7E5E);
    let tolerance = [Tolerance::None, Tolerance::Single][rng.index(2)];
    let disks: Vec<Arc<dyn Disk>> =
        (0..4).map(|i| Arc::new(MemoryDisk::new(format!("d{i}"), 24 * MIB)) as Arc<dyn Disk>).collect();
    let config = PoolConfig {
        memory: [1 << 20, 8 << 20][rng.index(2)],
        checkpoint_interval: Duration::from_millis(rng.between(20, 2000)),
        recompress_after: rng.chance(1, 3).then_some(Duration::from_millis(50)),
        ..PoolConfig::default()
    };
    let (size, mut unique) = (rng.between(2, 8) * MIB, seed << 8);
    // What the volume holds, by block.
    let mut held: Vec<Bytes> = vec![Bytes::from(vec![0; BLOCK as usize]); (size / BLOCK) as usize];
    let mut flushed = held.clone();
    for life in 0..3 {
        let scope = SimScope::new(seed * 3 + life);
        let env = scope.env();
        let work = async {
            if life == 0 {
                let (chunk_size, strip_size) = (Some(64 << 10), Some(16 << 10));
                let options = CreateOptions { name: "tank".into(), tolerance, chunk_size, strip_size, force: false };
                Pool::create(env.clone(), disks.clone(), options).await.expect("created");
            }
            let pool = Pool::open(env.clone(), disks.clone(), config.clone()).await.expect("opened");
            if life == 0 {
                pool.create_volume("others", 256 * MIB).await.expect("a volume");
                pool.create_reserving("own", size, Some(Reserve::All)).await.expect("a volume");
                let much = pool.create_reserving("more", 200 * MIB, Some(Reserve::All)).await;
                assert_eq!(much.expect_err("more than there is").kind(), ErrorKind::NoSpace);
            }
            let (own, others) = (pool.open_volume("own").expect("own"), pool.open_volume("others").expect("others"));
            for (at, was) in flushed.iter().enumerate() {
                assert_eq!(own.read(at as u64 * BLOCK, BLOCK as usize).await.expect("read"), was, "block {at}");
            }
            held.clone_from(&flushed);
            for round in 0..3 {
                // The others take all they can get, and are refused more.
                let from = rng.below(2) * 128 * MIB;
                let until = fill(&others, from, from + 128 * MIB, &mut unique).await;
                assert!(until < from + 128 * MIB, "the pool is never full");
                if round == 1 && rng.chance(1, 2) {
                    // It would hold what the volume has: refused, unless it holds nothing yet.
                    let refused = pool.create_snapshots(&["own@s".into()], &Kept::default()).await;
                    assert!(refused.is_err(), "a snapshot of a reserved volume in a full pool");
                }
                let dense = rng.chance(1, 2);
                for _ in 0..rng.between(20, 200) {
                    let blocks = rng.between(1, 32).min(size / BLOCK);
                    let at = rng.below(size / BLOCK - blocks + 1);
                    let data = match dense {
                        true => {
                            unique += 1;
                            noise(unique << 20, (blocks * BLOCK) as usize)
                        }
                        false => content(&mut rng, &mut unique, blocks),
                    };
                    own.write(at * BLOCK, data.clone(), false).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                    for i in 0..blocks as usize {
                        held[at as usize + i] = data.slice(i * BLOCK as usize..(i + 1) * BLOCK as usize);
                    }
                }
                // All of it, with what takes most.
                if rng.chance(1, 2) {
                    for at in 0..size / BLOCK {
                        unique += 1;
                        let data = noise(unique << 20, BLOCK as usize);
                        own.write(at * BLOCK, data.clone(), false).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                        held[at as usize] = data;
                    }
                }
                own.flush().await.expect("flushed");
                flushed.clone_from(&held);
            }
            let report = pool.check(Arc::new(|_, _| {})).await.expect("checked");
            assert!(report.findings.is_empty(), "seed {seed}: {:?}", report.findings);
            // With the others gone there is room for a snapshot, and again for all of the volume.
            if life == 2 {
                pool.delete_volume("others", false).await.expect("deleted");
                while pool.engine().is_reaping() {
                    env.sleep(Duration::from_millis(10)).await;
                }
                pool.engine().checkpoint().await.expect("a checkpoint");
                pool.create_snapshots(&["own@s".into()], &Kept::default()).await.expect("a snapshot");
                pool.create_volume("late", 256 * MIB).await.expect("a volume");
                let late = pool.open_volume("late").expect("late");
                assert!(fill(&late, 0, 256 * MIB, &mut unique).await < 256 * MIB);
                for at in 0..size / BLOCK {
                    unique += 1;
                    own.write(at * BLOCK, noise(unique << 20, BLOCK as usize), false)
                        .await
                        .unwrap_or_else(|e| panic!("seed {seed}, after a snapshot: {e}"));
                }
                pool.reserve("own", Reserve::Bytes(0)).await.expect("nothing is reserved");
                assert_eq!(pool.volume_info("own").await.expect("told").reserved, 0);
                let report = pool.check(Arc::new(|_, _| {})).await.expect("checked");
                assert!(report.findings.is_empty(), "seed {seed}: {:?}", report.findings);
            }
        };
        scope.run_until(work, STEPS).map_err(|stall| format!("life {life}: {stall}"))?;
        // Whatever is under way: nobody was told that it is done.
        scope.kill_all_tasks();
    }
    Ok(())
}

/// A reservation that was made while others wrote as fast as they can is as good: what it was promised they did not take in between.
fn run_beside_writers(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0xBE51);
    let disks: Vec<Arc<dyn Disk>> =
        (0..4).map(|i| Arc::new(MemoryDisk::new(format!("d{i}"), 24 * MIB)) as Arc<dyn Disk>).collect();
    let config = PoolConfig { memory: 1 << 20, ..PoolConfig::default() };
    let scope = SimScope::new(seed);
    let env = scope.env();
    let work = async {
        let (chunk_size, strip_size) = (Some(64 << 10), Some(16 << 10));
        let options =
            CreateOptions { name: "tank".into(), tolerance: Tolerance::Single, chunk_size, strip_size, force: false };
        Pool::create(env.clone(), disks.clone(), options).await.expect("created");
        let pool = Pool::open(env.clone(), disks.clone(), config).await.expect("opened");
        pool.create_volume("others", 256 * MIB).await.expect("a volume");
        pool.create_reserving("own", 2 * MIB, Some(Reserve::All)).await.expect("a volume");
        let (own, others) = (pool.open_volume("own").expect("own"), pool.open_volume("others").expect("others"));
        let writers = (0..8u64).map(|w| {
            let others = others.clone();
            async move {
                let mut unique = seed << 12 | w << 8;
                fill(&others, w * 32 * MIB, (w + 1) * 32 * MIB, &mut unique).await
            }
        });
        // Growing waits for what is written to the volume itself, and that for its turn among the others.
        let done = AtomicBool::new(false);
        let busy = (0..64u64).map(|w| {
            let (own, done) = (own.clone(), &done);
            async move {
                let mut unique = 1 << 50 | seed << 20 | w << 14;
                while !done.load(Ordering::Relaxed) {
                    unique += 1;
                    let at = w % 32 * (64 << 10);
                    own.write(at, noise(unique, 64 << 10), false).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                }
            }
        });
        // As much as there is, and less and less.
        let (first, step) = (rng.between(20, 44), rng.between(1, 4));
        let grow = async {
            let mut wanted = first * MIB;
            let grown = loop {
                match pool.resize_volume("own", wanted).await {
                    Ok(_) => break wanted,
                    Err(e) => assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}"),
                }
                wanted = wanted.saturating_sub(step * (64 << 10)).max(2 * MIB);
                env.sleep(Duration::from_micros(200)).await;
            };
            done.store(true, Ordering::Relaxed);
            grown
        };
        let all = (futures::future::join_all(writers), futures::future::join_all(busy), grow);
        let (_, _, reserved) = futures::join!(all.0, all.1, all.2);
        let mut unique = u64::from(u32::MAX) + seed;
        let written = fill(&own, 0, reserved / (64 << 10) * (64 << 10), &mut unique).await;
        own.flush().await.expect("flushed");
        assert!(written + (64 << 10) > reserved, "seed {seed}: {written} of {reserved} bytes that are reserved");
    };
    scope.run_until(work, STEPS).map_err(|stall| stall.to_string())?;
    scope.kill_all_tasks();
    Ok(())
}

#[test]
fn reservations_are_made_beside_writers() {
    sweep(0, 1, 60, run_beside_writers);
}

#[test]
fn what_is_reserved_can_be_written_0() {
    sweep(0, 2, 60, run);
}

#[test]
fn what_is_reserved_can_be_written_1() {
    sweep(1, 2, 60, run);
}
