//! Disks that stall for seconds, disks that fail to flush and say so only once, and disks that do not answer any more.

use std::sync::Arc;
use std::time::Duration;

use blockdev::disk::{Disk, FaultBudget, SimDisk};
use blockdev::env::{Env, Rng, SimScope};
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{DiskState, Tolerance};
use bytes::Bytes;

use super::harness::{Faults, Scenario};
use super::seeds::{run, run_to_end, sweep};
use super::stress::deaths;

fn scenario(seed: u64) -> Scenario {
    Scenario { faults: Faults::Slow, ..Scenario::random(seed) }
}

#[test]
fn random_seeds_0() {
    sweep(0, 2, 300, |seed| run(scenario(seed)));
}

#[test]
fn random_seeds_1() {
    sweep(1, 2, 300, |seed| run(scenario(seed)));
}

/// The time a disk has to answer.
const TIMEOUT: Duration = Duration::from_millis(100);

fn hanging(seed: u64) -> Scenario {
    let mut scenario = Scenario { faults: Faults::Hangs, ..deaths(seed) };
    scenario.config.disk_timeout = Some(Duration::from_millis(Rng::new(seed).between(10, 300)));
    scenario
}

#[test]
fn disks_that_do_not_answer() {
    let hangs = std::sync::atomic::AtomicU32::new(0);
    sweep(0, 1, 200, |seed| {
        let appliance = run_to_end(hanging(seed))?;
        let counted: u32 = appliance.disks.iter().map(|d| d.fault_counts().hangs).sum();
        hangs.fetch_add(counted, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    });
    assert!(hangs.into_inner() > 20, "hardly a disk stopped answering");
}

fn four_disks(seed: u64, size: u64) -> Vec<Arc<SimDisk>> {
    (0..4).map(|i| SimDisk::new(format!("d{i}"), size, seed * 97 + i, FaultBudget::none())).collect()
}

/// A pool of four disks of which one may fail, and what happens to it.
async fn with_pool(env: Arc<dyn Env>, disks: &[Arc<SimDisk>]) -> Pool {
    let all = || disks.iter().map(|d| d.clone() as Arc<dyn Disk>).collect::<Vec<_>>();
    let (tolerance, chunk_size, strip_size) = (Tolerance::Single, Some(64 << 10), Some(4 << 10));
    let options = CreateOptions { name: "tank".into(), tolerance, chunk_size, strip_size, force: false };
    Pool::create(env.clone(), all(), options).await.expect("created");
    let config = PoolConfig {
        memory: 1 << 20,
        disk_timeout: Some(TIMEOUT),
        failed_grace: Duration::from_secs(3600),
        ..PoolConfig::default()
    };
    let pool = Pool::open(env, all(), config).await.expect("opened");
    pool.create_volume("v", 4 << 20).await.expect("a volume");
    pool
}

/// Writes, and has all disks take part: a checkpoint is on each.
async fn write(pool: &Pool, at: u64) {
    let device = pool.open_volume("v").expect("the device");
    device.write(at, Bytes::from(vec![at as u8 | 1; 64 << 10]), true).await.expect("written");
    pool.engine().checkpoint().await.expect("a checkpoint");
}

fn states(pool: &Pool) -> Vec<DiskState> {
    pool.disks().iter().map(|d| d.state).collect()
}

/// The first disk that hangs is declared failed, the second is waited for: the pool cannot do without it. Two that hang at the same time are both waited for.
#[test]
fn a_pool_waits_for_what_it_cannot_do_without() {
    for seed in 0..20 {
        let disks = four_disks(seed, 8 << 20);
        let scope = SimScope::new(seed);
        disks.iter().for_each(|d| d.attach(&scope));
        let env: Arc<dyn Env> = scope.env();
        let mut rng = Rng::new(seed);
        let (first, second) = (rng.index(4), rng.index(3));
        let second = (first + 1 + second) % 4;
        let together = rng.chance(1, 2);
        let course = async {
            let pool = with_pool(env.clone(), &disks).await;
            write(&pool, 0).await;
            let begun = env.now();
            disks[first].set_stalled(true);
            if together {
                disks[second].set_stalled(true);
            } else {
                write(&pool, 64 << 10).await;
                assert!(env.now() - begun >= TIMEOUT, "it was not waited for");
                assert!(env.now() - begun < TIMEOUT * 3, "waited for {:?}", env.now() - begun);
                assert_eq!(states(&pool)[first], DiskState::Failed);
                disks[second].set_stalled(true);
            }
            let waiting = {
                let pool = pool.clone();
                async move { write(&pool, 128 << 10).await }
            };
            let mut waiting = Box::pin(waiting);
            let patience = env.sleep(TIMEOUT * 20);
            match futures::future::select(&mut waiting, patience).await {
                futures::future::Either::Left(_) => panic!("seed {seed}: written without two of four disks"),
                futures::future::Either::Right(_) => {}
            }
            let status = pool.status().await;
            let count = |wanted| status.disks.iter().filter(|d| d.state == wanted).count();
            let silent = status.alerts.iter().filter(|a| a.code == "disk.unresponsive").count();
            let expected = if together { (0, 2) } else { (1, 1) };
            assert_eq!((count(DiskState::Failed), silent), expected, "seed {seed}: {:?}", status.alerts);
            assert_eq!(status.health, "critical");
            if together {
                // One answers again: now the pool can do without the other.
                disks[second].set_stalled(false);
            } else {
                // The one that is waited for answers again, with all it was asked.
                disks.iter().for_each(|d| d.set_stalled(false));
            }
            waiting.await;
            env.sleep(TIMEOUT * 3).await;
            let status = pool.status().await;
            assert!(status.alerts.iter().all(|a| a.code != "disk.unresponsive"), "seed {seed}: {:?}", status.alerts);
            // The other comes back by command, and lacks what it missed.
            assert_eq!(states(&pool)[first], DiskState::Failed, "seed {seed}");
            disks[first].restore();
            pool.rescan_disks().await.expect("looked");
            for _ in 0..1000 {
                if states(&pool).iter().all(|s| *s == DiskState::Online) {
                    break;
                }
                env.sleep(Duration::from_millis(20)).await;
            }
            assert!(states(&pool).iter().all(|s| *s == DiskState::Online), "seed {seed}: {:?}", states(&pool));
            super::harness::check(&pool, false).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            pool.close().await.expect("closed");
        };
        scope.run_until(course, 20_000_000).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// A controller hangs: nothing answers, though only one disk was asked for anything. None of them is to blame, and all goes on where it was.
#[test]
fn where_nothing_answers_no_disk_is_blamed() {
    for seed in 0..20 {
        let disks = four_disks(seed, 8 << 20);
        let scope = SimScope::new(seed);
        disks.iter().for_each(|d| d.attach(&scope));
        let env: Arc<dyn Env> = scope.env();
        let course = async {
            let pool = with_pool(env.clone(), &disks).await;
            write(&pool, 0).await;
            env.sleep(TIMEOUT * 10).await;
            disks.iter().for_each(|d| d.set_stalled(true));
            let array = pool.engine().array.clone();
            let read = array.read_disk(blockdev::units::DiskId((seed % 4) as u16), 0, 4096);
            let mut read = Box::pin(read);
            match futures::future::select(&mut read, env.sleep(TIMEOUT * 10)).await {
                futures::future::Either::Left(_) => panic!("seed {seed}: answered"),
                futures::future::Either::Right(_) => {}
            }
            assert!(states(&pool).iter().all(|s| *s == DiskState::Online), "seed {seed}: {:?}", states(&pool));
            disks.iter().for_each(|d| d.set_stalled(false));
            read.await.expect("read in the end");
            write(&pool, 64 << 10).await;
            // The same with one that is alone.
            disks[1].set_stalled(true);
            write(&pool, 128 << 10).await;
            assert_eq!(states(&pool)[1], DiskState::Failed, "seed {seed}");
            pool.close().await.expect("closed");
        };
        scope.run_until(course, 20_000_000).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// A disk came back and caught up. As soon as the pool says so another one may go, also when the power fails at that moment.
#[test]
fn caught_up_is_on_record_when_it_is_said() {
    for seed in 0..10 {
        let disks = four_disks(seed, 16 << 20);
        let all = || disks.iter().map(|d| d.clone() as Arc<dyn Disk>).collect::<Vec<_>>();
        let never = Duration::from_secs(3600);
        let config = PoolConfig {
            memory: 1 << 20,
            failed_grace: never,
            log_interval: never,
            checkpoint_interval: never,
            ..PoolConfig::default()
        };
        let content = |i: u64| -> Bytes {
            let mut data = vec![0; 256 << 10];
            Rng::new(seed << 8 | i).fill(&mut data);
            data.into()
        };
        let scope = SimScope::new(seed);
        disks.iter().for_each(|d| d.attach(&scope));
        let env: Arc<dyn Env> = scope.env();
        let course = async {
            drop(with_pool(env.clone(), &disks).await);
            let pool = Pool::open(env.clone(), all(), config.clone()).await.expect("opened");
            let device = pool.open_volume("v").expect("the device");
            for i in 0..12 {
                match i {
                    4 => disks[1].fail(),
                    8 => {
                        disks[1].restore();
                        pool.rescan_disks().await.expect("looked");
                    }
                    _ => {}
                }
                device.write(i * (256 << 10), content(i), true).await.expect("written");
            }
            for _ in 0..5000 {
                if pool.status().await.health == "healthy" {
                    return;
                }
                env.sleep(Duration::from_millis(1)).await;
            }
            panic!("seed {seed}: {:?}", pool.status().await);
        };
        scope.run_until(course, 20_000_000).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        scope.kill_all_tasks();
        let mut rng = Rng::new(seed);
        disks.iter().for_each(|d| d.crash(&mut rng));
        disks[[0, 2, 3][seed as usize % 3]].fail();
        let scope = SimScope::new(seed + 1000);
        disks.iter().for_each(|d| d.attach(&scope));
        let env: Arc<dyn Env> = scope.env();
        let course = async {
            let pool = Pool::open(env.clone(), all(), config.clone()).await.expect("opened");
            let device = pool.open_volume("v").expect("the device");
            for i in 0..12 {
                let read = device.read(i * (256 << 10), 256 << 10).await;
                assert!(read.unwrap_or_else(|e| panic!("seed {seed}: {e}")) == content(i), "seed {seed}: piece {i}");
            }
        };
        scope.run_until(course, 20_000_000).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        scope.kill_all_tasks();
    }
}

/// Requests that take longer than usual, but not too long, do no harm; nor does a pool whose disks have all the time they want.
#[test]
fn who_answers_in_time_stays() {
    for (seed, timeout) in [(1, Some(TIMEOUT)), (2, None)] {
        let stall_max = if timeout.is_some() { TIMEOUT * 9 / 10 } else { TIMEOUT * 50 };
        let stalls = blockdev::disk::FaultRate::new(200_000, 200);
        let mut scenario = Scenario { faults: Faults::None, ..deaths(seed) };
        scenario.config.disk_timeout = timeout;
        let mut appliance = super::harness::Appliance::new(scenario).expect("made");
        let budget = FaultBudget { stalls, stall_max, ..FaultBudget::none() };
        appliance.disks.iter().for_each(|d| d.set_budget(budget));
        appliance.live(None).expect("a life");
        let stalled: u32 = appliance.disks.iter().map(|d| d.fault_counts().stalls).sum();
        assert!(stalled > 20, "{stalled} requests stalled");
        appliance.finish().expect("all is there");
        assert!(appliance.disks.iter().all(|d| !d.is_failed()), "a disk was given up");
    }
}
