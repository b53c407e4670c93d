//! Bad moments that random seeds rarely meet: callers that go away, disks that were copied back, catalogues and caches that are too small.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blockdev::disk::{Disk, FaultDisk, MemoryDisk};
use blockdev::env::{Env, Rng, SimScope};
use blockdev::error::ErrorKind;
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{DiskState, Tolerance};
use bytes::Bytes;
use futures::future::{Either, select};

const STEPS: u64 = 400_000_000;
const MIB: u64 = 1 << 20;
/// Bytes that a map leaf covers.
const LEAF: u64 = 2 * MIB;

pub fn noise(seed: u64, len: usize) -> Bytes {
    let mut data = vec![0; len];
    Rng::new(seed).fill(&mut data);
    Bytes::from(data)
}

/// Three disks that are slowed down at will, labelled as a pool.
async fn make(env: &Arc<dyn Env>, size: u64) -> (Vec<Arc<FaultDisk>>, Vec<Arc<dyn Disk>>) {
    make_of(env, 3, size).await
}

pub async fn make_of(env: &Arc<dyn Env>, count: usize, size: u64) -> (Vec<Arc<FaultDisk>>, Vec<Arc<dyn Disk>>) {
    let memory = |i| Arc::new(MemoryDisk::new(format!("d{i}"), size));
    let faults: Vec<Arc<FaultDisk>> = (0..count).map(|i| FaultDisk::new(memory(i), env.clone())).collect();
    let disks: Vec<Arc<dyn Disk>> = faults.iter().map(|f| f.clone() as Arc<dyn Disk>).collect();
    let options = CreateOptions {
        name: "tank".into(),
        tolerance: Tolerance::Single,
        chunk_size: None,
        strip_size: Some(16 << 10),
        force: false,
    };
    Pool::create(env.clone(), disks.clone(), options).await.expect("created");
    (faults, disks)
}

pub fn run<F: Future<Output = ()>>(seed: u64, work: impl FnOnce(Arc<dyn Env>) -> F) {
    let scope = SimScope::new(seed);
    scope.run_until(work(scope.env()), STEPS).unwrap_or_else(|stall| panic!("seed {seed}: {stall}"));
}

/// A checkpoint whose caller went away in the middle left pages behind that counted as clean and were never written: the next
/// one made flushed data unreadable.
#[test]
fn a_checkpoint_outlives_its_caller() {
    for cut in [0, 1, 2, 4, 8, 12, 20, 40, 80] {
        run(cut, |env| async move {
            let (faults, disks) = make(&env, 64 * MIB).await;
            let config = PoolConfig { checkpoint_interval: Duration::from_secs(3600), ..PoolConfig::default() };
            let pool = Pool::open(env.clone(), disks.clone(), config.clone()).await.expect("opened");
            pool.create_volume("wide", 64 << 30).await.expect("a volume");
            let wide = pool.open_volume("wide").expect("a device");
            for i in 0..600 {
                wide.write(i * LEAF, noise(i, 4096), false).await.expect("written");
            }
            wide.flush().await.expect("flushed");
            faults.iter().for_each(|f| f.set_delay(Duration::from_millis(30)));
            let engine = pool.engine().clone();
            let checkpoint = Box::pin(async move { engine.checkpoint().await });
            drop(match select(checkpoint, env.sleep(Duration::from_millis(cut))).await {
                Either::Left((done, _)) => panic!("not cut short: {done:?}"),
                Either::Right((_, checkpoint)) => checkpoint,
            });
            faults.iter().for_each(|f| f.set_delay(Duration::ZERO));
            wide.write(1000 * LEAF, noise(1000, 4096), false).await.expect("written");
            wide.flush().await.expect("flushed");
            pool.close().await.expect("closed");
            drop((wide, pool));
            let pool = Pool::open(env.clone(), disks, config).await.expect("opened again");
            let wide = pool.open_volume("wide").expect("a device");
            for i in (0..600).chain([1000]) {
                let found = wide.read(i * LEAF, 4096).await;
                assert!(found.as_ref().is_ok_and(|d| *d == noise(i, 4096)), "cut after {cut} ms, block {i}: {found:?}");
            }
            let report = pool.check(Arc::new(|_, _| {})).await.expect("checked");
            assert!(report.is_clean(), "{:?}", report.findings);
            pool.close().await.expect("closed");
        });
    }
}

/// A pool with more volumes than its catalogue has room for could never be opened again.
#[test]
fn volumes_are_refused_before_the_catalogue_is_full() {
    run(1, |env| async move {
        let (_, disks) = make(&env, 64 * MIB).await;
        let pool = Pool::open(env.clone(), disks.clone(), PoolConfig::default()).await.expect("opened");
        let mut rng = Rng::new(1);
        let mut made = 0;
        let refused = loop {
            // Names that do not compress.
            let name = format!("v{:016x}{:016x}{:016x}", rng.u64(), rng.u64(), rng.u64());
            match pool.create_volume(&name, 1 << 30).await {
                Ok(_) => made += 1,
                Err(e) => break e,
            }
            assert!(made < 20_000, "no end to it");
        };
        assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
        assert!(made > 300, "only {made} volumes");
        // What is there can be used, and there is room for its data.
        let first = pool.volumes().await.swap_remove(0).name;
        let device = pool.open_volume(&first).expect("a device");
        device.write(0, noise(1, 4 << 20), true).await.expect("written");
        pool.close().await.expect("closed");
        drop((device, pool));
        let pool = Pool::open(env.clone(), disks, PoolConfig::default()).await.expect("opened again");
        assert_eq!(pool.volumes().await.len(), made);
        pool.delete_volume(&first, false).await.expect("deleted");
        pool.close().await.expect("closed");
    });
}

/// A disk that opening refused because it had been copied back was taken in by looking for disks again.
#[test]
fn a_disk_that_was_copied_back_stays_out() {
    run(2, |env| async move {
        let (_, disks) = make(&env, 64 * MIB).await;
        let open = |disks| Pool::open(env.clone(), disks, PoolConfig::default());
        let pool = open(disks.clone()).await.expect("opened");
        pool.create_volume("a", 32 * MIB).await.expect("a volume");
        pool.close().await.expect("closed");
        drop(pool);
        let copy: Arc<dyn Disk> = Arc::new(MemoryDisk::new("copy", 64 * MIB));
        for at in (0..64).map(|i| i * MIB) {
            let data = disks[0].read(at, MIB as usize).await.expect("read");
            copy.write(at, vec![data], true).await.expect("copied");
        }
        for round in 0..6 {
            let pool = open(disks.clone()).await.expect("opened");
            let device = pool.open_volume("a").expect("a device");
            device.write(0, noise(round, 8 << 20), true).await.expect("written");
            pool.close().await.expect("closed");
        }
        let pool = open(vec![copy, disks[1].clone(), disks[2].clone()]).await.expect("opened without it");
        let states = |pool: &Pool| pool.disks().iter().map(|d| d.state).collect::<Vec<_>>();
        let out = [DiskState::Failed, DiskState::Online, DiskState::Online];
        assert_eq!(states(&pool), out);
        pool.rescan_disks().await.expect("looked again");
        assert_eq!(states(&pool), out);
        let status = pool.status().await;
        assert_eq!(status.health, "degraded");
        assert!(status.alerts.iter().any(|a| a.message.contains("restored from a copy")), "{:?}", status.alerts);
        let device = pool.open_volume("a").expect("a device");
        assert_eq!(device.read(0, 8 << 20).await.expect("read"), noise(5, 8 << 20));
        pool.close().await.expect("closed");
    });
}

/// Asking for what is mapped loaded one page of the map after another and evicted the first for the last, for ever.
#[test]
fn a_map_larger_than_memory_is_walked() {
    run(3, |env| async move {
        let (_, disks) = make(&env, 64 * MIB).await;
        let config = PoolConfig { memory: 4 << 20, ..PoolConfig::default() };
        let pool = Pool::open(env.clone(), disks.clone(), config.clone()).await.expect("opened");
        let leaves = 3500;
        pool.create_volume("full", leaves * LEAF).await.expect("a volume");
        let full = pool.open_volume("full").expect("a device");
        let piece: Bytes = noise(7, 4096).repeat(512).into();
        for i in 0..leaves {
            full.write(i * LEAF, piece.clone(), false).await.expect("written");
        }
        full.discard(leaves * LEAF - 8192, 4096).await.expect("discarded");
        full.flush().await.expect("flushed");
        pool.close().await.expect("closed");
        drop((full, pool));
        let pool = Pool::open(env.clone(), disks, config).await.expect("opened again");
        let full = pool.open_volume("full").expect("a device");
        let found = full.block_status(0, leaves * LEAF, 64).await.expect("an answer");
        let found: Vec<(u64, u64, bool)> = found.iter().map(|e| (e.offset, e.len, e.mapped)).collect();
        let hole = leaves * LEAF - 8192;
        assert_eq!(found, [(0, hole, true), (hole, 4096, false), (hole + 4096, 4096, true)]);
        let usage = pool.volume_info("full").await.expect("usage");
        assert_eq!((usage.unique, usage.estimated), (Some(0), true));
        pool.close().await.expect("closed");
    });
}

/// With nothing of the map in memory a read takes a page of directory and table for each page of the map and for the block, and those pages
/// themselves; each may lie across two strips. What else is stored makes no difference.
#[test]
fn a_cold_read_costs_a_bounded_number_of_reads() {
    run(5, |env| async move {
        const LEVELS: u64 = 4;
        let (drives, disks) = make(&env, 64 * MIB).await;
        let config = PoolConfig { memory: 4 << 20, ..PoolConfig::default() };
        let pool = Pool::open(env.clone(), disks.clone(), config.clone()).await.expect("opened");
        pool.create_volume("sparse", 200 << 40).await.expect("a volume");
        let sparse = pool.open_volume("sparse").expect("a device");
        let at = |i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (200 << 40) / 4096 * 4096;
        let count = 1500;
        for i in 0..count {
            sparse.write(at(i), noise(i, 4096), false).await.expect("written");
        }
        sparse.flush().await.expect("flushed");
        pool.close().await.expect("closed");
        drop((sparse, pool));
        let reads = || drives.iter().map(|d| d.counters().reads).sum::<u64>();
        let mut most = 0;
        for i in (0..count).step_by(100) {
            let pool = Pool::open(env.clone(), disks.clone(), config.clone()).await.expect("opened again");
            let sparse = pool.open_volume("sparse").expect("a device");
            // What is done after opening has been done.
            env.sleep(Duration::from_secs(5)).await;
            let before = reads();
            assert_eq!(sparse.read(at(i), 4096).await.expect("read"), noise(i, 4096));
            most = most.max(reads() - before);
            pool.close().await.expect("closed");
        }
        assert!(most > LEVELS && most <= 2 * 3 * (LEVELS + 1), "{most} reads");
    });
}

/// What is flushed after a disk came back is on that disk as well: the log had no copy there until the next checkpoint.
#[test]
fn a_disk_that_came_back_has_the_log() {
    let (memory, data) = (Arc::new(std::sync::Mutex::new(Vec::new())), noise(9, 64 << 10));
    let (kept, expected) = (memory.clone(), data.clone());
    run(4, |env| async move {
        let (faults, disks) = make_of(&env, 2, 64 * MIB).await;
        let config = PoolConfig { checkpoint_interval: Duration::from_secs(3600), ..PoolConfig::default() };
        let pool = Pool::open(env.clone(), disks.clone(), config).await.expect("opened");
        pool.create_volume("a", 32 * MIB).await.expect("a volume");
        let device = pool.open_volume("a").expect("a device");
        pool.engine().checkpoint().await.expect("a checkpoint");
        faults[1].fail();
        pool.rescan_disks().await.expect("noticed");
        faults[1].restore();
        pool.rescan_disks().await.expect("taken back");
        assert!(pool.disks().iter().all(|d| d.state == DiskState::Online), "{:?}", pool.disks());
        device.write(0, expected, false).await.expect("written");
        device.flush().await.expect("flushed");
        // The machine ends here, and the other disk with it.
        kept.lock().expect("a list").push(disks[1].clone());
    });
    run(5, |env| async move {
        let disk = memory.lock().expect("a list").remove(0);
        let pool = Pool::open(env.clone(), vec![disk], PoolConfig::default()).await.expect("opened with one disk");
        let device = pool.open_volume("a").expect("a device");
        assert_eq!(device.read(0, 64 << 10).await.expect("read"), data);
        pool.close().await.expect("closed");
    });
}

/// A disk that was given up and emptied is removed while another one is away: the one that is not needed must not count again.
#[test]
fn an_emptied_disk_is_removed_while_another_is_away() {
    run(6, |env| async move {
        let (faults, disks) = make_of(&env, 6, 64 * MIB).await;
        let config = PoolConfig { failed_grace: Duration::ZERO, ..PoolConfig::default() };
        let pool = Pool::open(env.clone(), disks.clone(), config).await.expect("opened");
        pool.create_volume("a", 32 * MIB).await.expect("a volume");
        let device = pool.open_volume("a").expect("a device");
        let data = noise(12, 1 << 20);
        device.write(0, data.clone(), true).await.expect("written");
        faults[1].fail();
        pool.rescan_disks().await.expect("noticed");
        let empty = || pool.engine().array.members().iter().any(|m| m.is_empty());
        for _ in 0..1000 {
            if !empty() {
                env.sleep(Duration::from_millis(20)).await;
            }
        }
        assert!(empty(), "{:?}", pool.disks());
        faults[2].fail();
        pool.rescan_disks().await.expect("noticed");
        pool.remove_disk(1).await.expect("removed");
        assert_eq!(pool.disks().len(), 5, "{:?}", pool.disks());
        device.write(1 << 20, data.clone(), true).await.expect("written without both");
        assert_eq!(device.read(0, 1 << 20).await.expect("read"), data);
        pool.close().await.expect("closed");
    });
}

/// The removal of a disk is called off in its middle, at any moment: the disk takes data again, stays, and does so after a restart.
#[test]
fn a_removal_is_called_off() {
    let (mut kept, mut gone) = (0, 0);
    // It takes about 50 ms, and the last of them are those in which the disk is let go.
    for cut in [0, 3, 8, 15, 25, 35].into_iter().chain(38..60).chain([200]) {
        let was_kept = Arc::new(AtomicBool::new(false));
        let note = was_kept.clone();
        run(cut, |env| async move {
            let (faults, disks) = make_of(&env, 5, 64 * MIB).await;
            let pool = Pool::open(env.clone(), disks.clone(), PoolConfig::default()).await.expect("opened");
            pool.create_volume("a", 64 * MIB).await.expect("a volume");
            let device = pool.open_volume("a").expect("a device");
            let data = noise(cut, 24 << 20);
            device.write(0, data.clone(), true).await.expect("written");
            let refused = pool.keep_disk(1).await.expect_err("it is not being removed");
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
            // Nothing gives way to hosts when it begins.
            env.sleep(Duration::from_secs(2)).await;
            faults.iter().for_each(|f| f.set_delay(Duration::from_millis(1)));
            pool.remove_disk(1).await.expect("its removal began");
            env.sleep(Duration::from_millis(cut)).await;
            let answer = pool.keep_disk(1).await;
            faults.iter().for_each(|f| f.set_delay(Duration::ZERO));
            let disk = |pool: &Pool| pool.disks().into_iter().find(|d| d.id == 1);
            match answer {
                Ok(info) => {
                    assert_eq!(info.state, DiskState::Online, "after {cut} ms: {info:?}");
                    // It takes its share of what is written now, and nothing lets it go.
                    let before = info.allocated;
                    device.write(24 << 20, noise(77, 24 << 20), true).await.expect("written");
                    env.sleep(Duration::from_secs(20)).await;
                    let now = disk(&pool).unwrap_or_else(|| panic!("kept after {cut} ms, and gone"));
                    assert!(now.state == DiskState::Online && now.allocated > before, "after {cut} ms: {now:?}");
                    note.store(true, Ordering::Relaxed);
                }
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::NotFound, "after {cut} ms: {e}");
                    assert!(disk(&pool).is_none(), "after {cut} ms: {e}, and it is there");
                }
            }
            let expected = pool.disks().len();
            pool.close().await.expect("closed");
            drop((device, pool));
            let pool = Pool::open(env.clone(), disks, PoolConfig::default()).await.expect("opened again");
            env.sleep(Duration::from_secs(20)).await;
            assert_eq!(pool.disks().len(), expected, "{:?}", pool.disks());
            assert!(pool.disks().iter().all(|d| d.state == DiskState::Online), "{:?}", pool.disks());
            let device = pool.open_volume("a").expect("a device");
            assert!(device.read(0, 24 << 20).await.expect("read") == data, "after {cut} ms: content differs");
            let report = pool.check(Arc::new(|_, _| {})).await.expect("checked");
            assert!(report.is_clean(), "after {cut} ms: {:?}", report.findings);
            // Its log counts: it is read when the others of a copy are gone.
            faults[0].fail();
            assert!(device.read(0, 24 << 20).await.expect("read") == data, "after {cut} ms: content differs");
            pool.close().await.expect("closed");
        });
        let was_kept = was_kept.load(Ordering::Relaxed);
        (kept, gone) = (kept + usize::from(was_kept), gone + usize::from(!was_kept));
    }
    assert!(kept > 3 && gone > 0, "{kept} removals were called off, {gone} had ended");
}

/// A disk that does not answer cannot be kept, and its removal ends.
#[test]
fn a_dead_disk_is_not_kept() {
    run(7, |env| async move {
        let (faults, disks) = make_of(&env, 6, 64 * MIB).await;
        let pool = Pool::open(env.clone(), disks, PoolConfig::default()).await.expect("opened");
        pool.create_volume("a", 32 * MIB).await.expect("a volume");
        let device = pool.open_volume("a").expect("a device");
        let data = noise(13, 8 << 20);
        device.write(0, data.clone(), true).await.expect("written");
        faults[1].fail();
        pool.rescan_disks().await.expect("noticed");
        pool.remove_disk(1).await.expect("its removal began");
        let refused = pool.keep_disk(1).await.expect_err("it is dead");
        assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
        for _ in 0..1000 {
            if pool.disks().len() == 6 {
                env.sleep(Duration::from_millis(20)).await;
            }
        }
        assert_eq!(pool.disks().len(), 5, "{:?}", pool.disks());
        assert_eq!(device.read(0, 8 << 20).await.expect("read"), data);
        pool.close().await.expect("closed");
    });
}

/// The answer that a disk stays is true after a crash, too.
#[test]
fn a_removal_that_was_called_off_is_so_after_a_crash() {
    let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (out, data) = (kept.clone(), noise(14, 16 << 20));
    let written = data.clone();
    run(8, |env| async move {
        let (faults, disks) = make_of(&env, 5, 64 * MIB).await;
        let config = PoolConfig { checkpoint_interval: Duration::from_secs(3600), ..PoolConfig::default() };
        let pool = Pool::open(env.clone(), disks.clone(), config).await.expect("opened");
        pool.create_volume("a", 32 * MIB).await.expect("a volume");
        let device = pool.open_volume("a").expect("a device");
        device.write(0, written, true).await.expect("written");
        faults.iter().for_each(|f| f.set_delay(Duration::from_millis(1)));
        pool.remove_disk(1).await.expect("its removal began");
        pool.keep_disk(1).await.expect("it was called off");
        faults.iter().for_each(|f| f.set_delay(Duration::ZERO));
        // The machine ends here.
        *out.lock().expect("a list") = disks;
    });
    run(9, |env| async move {
        let disks = std::mem::take(&mut *kept.lock().expect("a list"));
        let pool = Pool::open(env.clone(), disks, PoolConfig::default()).await.expect("opened again");
        env.sleep(Duration::from_secs(20)).await;
        let states: Vec<(u16, DiskState)> = pool.disks().iter().map(|d| (d.id, d.state)).collect();
        assert_eq!(states, [0, 1, 2, 3, 4].map(|id| (id, DiskState::Online)));
        let device = pool.open_volume("a").expect("a device");
        assert!(device.read(0, 16 << 20).await.expect("read") == data, "content differs");
        pool.close().await.expect("closed");
    });
}
