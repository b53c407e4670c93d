//! Disks that an administrator declares failed: they stay out although they answer, until that is taken back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockdev::disk::{AlignedBuf, Disk};
use blockdev::env::{Env, Rng};
use blockdev::error::ErrorKind;
use blockdev::pool::{Pool, PoolConfig};
use blockdev::report::{DiskState, Tolerance};

use super::cut_short::{make_of, noise, run};
use super::harness::{Appliance, Change};
use super::rebuild::scenario as rebuild_scenario;
use super::seeds::sweep;

const MIB: u64 = 1 << 20;

fn state(pool: &Pool, id: u16) -> Option<DiskState> {
    pool.disks().into_iter().find(|d| d.id == id).map(|d| d.state)
}

/// Waits until nothing is being moved and the disk of this number counts for nothing.
async fn emptied(env: &Arc<dyn Env>, pool: &Pool, id: u16) {
    for _ in 0..2000 {
        let empty = pool.engine().array.members().iter().any(|m| m.id.0 == id && m.is_empty());
        if empty && pool.status().await.rebuild.is_none() {
            return;
        }
        env.sleep(Duration::from_millis(20)).await;
    }
    panic!("not emptied: {:?}", pool.disks());
}

async fn wait_for(env: &Arc<dyn Env>, pool: &Pool, id: u16, wanted: DiskState) {
    for _ in 0..2000 {
        if state(pool, id) == Some(wanted) {
            return;
        }
        env.sleep(Duration::from_millis(20)).await;
    }
    panic!("disk {id} does not become {wanted:?}: {:?}", pool.disks());
}

async fn check(pool: &Pool) {
    let report = pool.check(Arc::new(|_, _| {})).await.expect("checked");
    assert!(report.is_clean(), "{:?}", report.findings);
}

/// It stays out after a restart and when disks are looked for, cannot be added as if it were new, and is taken back by `keep`.
#[test]
fn a_disk_that_was_declared_failed_stays_out() {
    // At once, and when what it held has long been rebuilt.
    for settled in [false, true] {
        run(20, |env| async move {
            let (faults, disks) = make_of(&env, 6, 64 * MIB).await;
            let open = || Pool::open(env.clone(), disks.clone(), PoolConfig::default());
            let pool = open().await.expect("opened");
            pool.create_volume("a", 32 * MIB).await.expect("a volume");
            let device = pool.open_volume("a").expect("a device");
            device.write(0, noise(1, 8 << 20), true).await.expect("written");
            let info = pool.fail_disk(1).await.expect("declared failed");
            assert_eq!(info.state, DiskState::Rebuilding, "something lay on it");
            assert!(info.reason.is_some_and(|why| why.contains("by an administrator")));
            if settled {
                emptied(&env, &pool, 1).await;
                assert_eq!(state(&pool, 1), Some(DiskState::Failed), "nothing lies on it");
            }
            let is_out = |pool: &Pool| state(pool, 1).is_some_and(DiskState::is_absent);
            for _ in 0..3 {
                pool.rescan_disks().await.expect("looked again");
                assert!(is_out(&pool), "after a look");
                let refused = pool.reinstate_disk(disks[1].clone()).await.expect_err("it stays out");
                assert!(refused.to_string().contains("ashlar disk keep 1"), "{refused}");
                let refused = pool.add_disk(disks[1].clone(), true, None).await.expect_err("it is one already");
                assert_eq!(refused.kind(), ErrorKind::AlreadyExists, "{refused}");
            }
            device.write(8 << 20, noise(2, 4 << 20), true).await.expect("written without it");
            pool.close().await.expect("closed");
            drop((device, pool));
            let pool = open().await.expect("opened again");
            assert!(is_out(&pool), "after a restart");
            emptied(&env, &pool, 1).await;
            pool.close().await.expect("closed");
            drop(pool);
            let pool = open().await.expect("opened once more");
            assert_eq!(state(&pool, 1), Some(DiskState::Failed), "after another restart");
            let written = faults[1].counters().writes;
            let device = pool.open_volume("a").expect("a device");
            device.write(12 << 20, noise(3, 4 << 20), true).await.expect("written without it");
            assert_eq!(faults[1].counters().writes, written, "nothing is written to it");
            let info = pool.keep_disk(1).await.expect("taken back");
            assert_eq!(info.state, DiskState::Online, "{info:?}");
            pool.close().await.expect("closed");
            drop((device, pool));
            let pool = open().await.expect("opened with it");
            assert_eq!(state(&pool, 1), Some(DiskState::Online), "after a restart");
            env.sleep(Duration::from_secs(20)).await;
            check(&pool).await;
            // It counts again: another one may go.
            faults[0].fail();
            let device = pool.open_volume("a").expect("a device");
            for (seed, at, len) in [(1, 0, 8 << 20), (2, 8 << 20, 4 << 20), (3, 12 << 20, 4 << 20)] {
                assert!(device.read(at, len).await.expect("read") == noise(seed, len), "content {seed} differs");
            }
            pool.close().await.expect("closed");
        });
    }
}

/// A disk without its label is a new one; the old number is struck off.
#[test]
fn a_wiped_disk_is_a_new_one() {
    run(21, |env| async move {
        let (_, disks) = make_of(&env, 6, 64 * MIB).await;
        let pool = Pool::open(env.clone(), disks.clone(), PoolConfig::default()).await.expect("opened");
        pool.create_volume("a", 32 * MIB).await.expect("a volume");
        let device = pool.open_volume("a").expect("a device");
        device.write(0, noise(4, 8 << 20), true).await.expect("written");
        pool.fail_disk(1).await.expect("declared failed");
        emptied(&env, &pool, 1).await;
        let zeroes = AlignedBuf::zeroed(64 << 10).freeze();
        for at in [0, 64 * MIB - (64 << 10)] {
            disks[1].write(at, vec![zeroes.clone()], true).await.expect("wiped");
        }
        let new = pool.add_disk(disks[1].clone(), false, None).await.expect("added").id;
        assert_ne!(new, 1);
        pool.remove_disk(1).await.expect("struck off");
        let numbers = |pool: &Pool| pool.disks().iter().map(|d| (d.id, d.state)).collect::<Vec<_>>();
        let expected: Vec<(u16, DiskState)> = [0, 2, 3, 4, 5, 6].map(|id| (id, DiskState::Online)).to_vec();
        assert_eq!(numbers(&pool), expected);
        pool.close().await.expect("closed");
        drop((device, pool));
        let pool = Pool::open(env.clone(), disks, PoolConfig::default()).await.expect("opened again");
        assert_eq!(numbers(&pool), expected);
        let device = pool.open_volume("a").expect("a device");
        assert!(device.read(0, 8 << 20).await.expect("read") == noise(4, 8 << 20), "content differs");
        check(&pool).await;
        pool.close().await.expect("closed");
    });
}

/// When another disk goes before what the first held was rebuilt, data is not given up for a declaration: at the next opening the disk serves
/// until the others have what it holds, and is out again then.
#[test]
fn a_declaration_does_not_cost_data() {
    let kept: Arc<Mutex<Vec<Arc<dyn Disk>>>> = Arc::default();
    let out = kept.clone();
    run(22, |env| async move {
        let (faults, disks) = make_of(&env, 6, 64 * MIB).await;
        let pool = Pool::open(env.clone(), disks.clone(), PoolConfig::default()).await.expect("opened");
        pool.create_volume("a", 32 * MIB).await.expect("a volume");
        let device = pool.open_volume("a").expect("a device");
        device.write(0, noise(5, 16 << 20), true).await.expect("written");
        // What was written since the newest checkpoint is not taken from a disk that failed.
        pool.close().await.expect("closed");
        drop((device, pool));
        let pool = Pool::open(env.clone(), disks.clone(), PoolConfig::default()).await.expect("opened again");
        pool.fail_disk(1).await.expect("declared failed");
        faults[2].fail();
        // The machine ends here.
        *out.lock().expect("a list") = disks.iter().zip(&faults).map(|(_, f)| f.beneath()).collect();
    });
    run(23, |env| async move {
        let all = std::mem::take(&mut *kept.lock().expect("a list"));
        let without: Vec<Arc<dyn Disk>> =
            all.iter().enumerate().filter(|(i, _)| *i != 2).map(|(_, d)| d.clone()).collect();
        let config = PoolConfig { missing_grace: Duration::from_secs(3600), ..PoolConfig::default() };
        {
            let reading = PoolConfig { read_only: true, ..config.clone() };
            let pool = Pool::open(env.clone(), without.clone(), reading).await.expect("opened to read");
            let device = pool.open_volume("a").expect("a device");
            assert!(device.read(0, 16 << 20).await.expect("read") == noise(5, 16 << 20), "content differs");
        }
        let pool = Pool::open(env.clone(), without.clone(), config.clone()).await.expect("opened at need");
        assert_eq!(state(&pool, 1), Some(DiskState::Failing));
        let device = pool.open_volume("a").expect("a device");
        assert!(device.read(0, 16 << 20).await.expect("read") == noise(5, 16 << 20), "content differs");
        let alerts = pool.status().await.alerts;
        assert!(alerts.iter().any(|a| a.message.contains("was declared failed, and serves")), "{alerts:?}");
        device.write(16 << 20, noise(6, 4 << 20), true).await.expect("written");
        wait_for(&env, &pool, 1, DiskState::Failed).await;
        assert!(device.read(0, 16 << 20).await.expect("read") == noise(5, 16 << 20), "content differs");
        pool.close().await.expect("closed");
        drop((device, pool));
        let pool = Pool::open(env.clone(), all, config).await.expect("opened with all");
        assert_eq!((state(&pool, 1), state(&pool, 2)), (Some(DiskState::Failed), Some(DiskState::Online)));
        env.sleep(Duration::from_secs(20)).await;
        let device = pool.open_volume("a").expect("a device");
        for (seed, at, len) in [(5, 0, 16 << 20), (6, 16 << 20, 4 << 20)] {
            assert!(device.read(at, len).await.expect("read") == noise(seed, len), "content {seed} differs");
        }
        check(&pool).await;
        pool.close().await.expect("closed");
    });
}

/// One that is missing when it is declared failed stays out when it comes back, and a declaration that was taken back meanwhile is forgotten.
#[test]
fn a_missing_disk_is_declared_failed() {
    for kept in [false, true] {
        run(24, |env| async move {
            let (_, disks) = make_of(&env, 6, 64 * MIB).await;
            let without: Vec<Arc<dyn Disk>> = disks.iter().skip(1).cloned().collect();
            let pool = Pool::open(env.clone(), without, PoolConfig::default()).await.expect("opened");
            pool.fail_disk(0).await.expect("declared failed");
            assert_eq!(state(&pool, 0), Some(DiskState::Failed));
            if kept {
                pool.keep_disk(0).await.expect("called off");
            }
            pool.close().await.expect("closed");
            drop(pool);
            let pool = Pool::open(env.clone(), disks, PoolConfig::default()).await.expect("opened with it");
            let expected = if kept { DiskState::Online } else { DiskState::Failed };
            assert_eq!(state(&pool, 0), Some(expected));
            if !kept {
                assert_eq!(pool.keep_disk(0).await.expect("taken back").state, DiskState::Online);
            }
            env.sleep(Duration::from_secs(5)).await;
            check(&pool).await;
            pool.close().await.expect("closed");
        });
    }
}

/// Disks are declared failed and taken back at any moment, with crashes in the middle of either; in between as many others die as may.
fn run_declarations(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0xDEC1);
    let mut scenario = rebuild_scenario(seed);
    scenario.disks = scenario.tolerance.drives() + 3 + rng.index(3);
    let tolerance = scenario.tolerance;
    let mut a = Appliance::new(scenario)?;
    a.set_frail(Vec::new());
    a.live(rng.chance(1, 2).then(|| 200 + rng.below(400)))?;
    for _ in 0..rng.between(1, 3) {
        let victim = rng.index(a.disks.len());
        let reach = |rng: &mut Rng| {
            let reach = 1 << rng.between(1, 9);
            1 + rng.below(reach)
        };
        for _ in 0..rng.below(3) {
            let point = reach(&mut rng);
            a.heal_after(Change::Fail(victim), Some(point))?;
        }
        if rng.chance(1, 2) {
            // Otherwise it is taken back, or is not, wherever the last crash left it.
            a.heal_after(Change::Fail(victim), None)?;
        }
        if rng.chance(1, 2) {
            a.live(Some(reach(&mut rng)))?;
        }
        if tolerance == Tolerance::Double && rng.chance(1, 3) {
            let other = (victim + 1) % a.disks.len();
            a.disks[other].fail();
            a.live(Some(reach(&mut rng)))?;
            a.disks[other].restore();
        }
        for _ in 0..rng.below(3) {
            let point = reach(&mut rng);
            a.heal_after(Change::Keep(victim), Some(point))?;
        }
        a.heal_after(Change::Keep(victim), None)?;
    }
    let mut victims: Vec<usize> = (0..a.disks.len()).collect();
    rng.shuffle(&mut victims);
    victims.iter().take(tolerance.drives()).for_each(|&v| a.disks[v].fail());
    a.finish()
}

#[test]
fn declarations_0() {
    sweep(0, 2, 120, run_declarations);
}

#[test]
fn declarations_1() {
    sweep(1, 2, 120, run_declarations);
}
