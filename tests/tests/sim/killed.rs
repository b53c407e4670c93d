//! The process is killed, and the power stays: disks keep their caches, and the memory that outlives the process is there. Everything that was
//! answered must be found, whenever and however often the process was killed, in the middle of opening as well. Now and then the power is cut after all:
//! then what was flushed must be there, as ever.

use std::sync::Mutex;
use std::time::Duration;

use blockdev::env::Rng;
use blockdev::pool::Pool;
use blockdev::units::{BLOCK_BYTES, BLOCK_SIZE};
use bytes::Bytes;

use super::concurrent::run_killed_clients;
use super::full::pressure;
use super::harness::{Appliance, Faults, Scenario};
use super::scrub::one_disk;
use super::seeds::sweep;
use super::stress::storm;

/// Lives that end by a kill, mostly.
pub fn run(scenario: Scenario) -> Result<(), String> {
    let mut rng = Rng::new(scenario.seed ^ 0x4111);
    let (lives, (short, long)) = (2 * scenario.lives, scenario.reach);
    let mut appliance = Appliance::that_is_killed(scenario)?;
    for _ in 0..lives {
        let crash = {
            let reach = 1 << rng.between(short, long);
            rng.chance(7, 8).then(|| 1 + rng.below(reach))
        };
        appliance.live(crash)?;
    }
    appliance.finish()
}

/// Much of everything, with disks that die for good in half of the seeds.
pub fn scenario(seed: u64) -> Scenario {
    let mut scenario = if seed.is_multiple_of(3) { storm(seed) } else { Scenario::random(seed) };
    scenario.faults = if seed.is_multiple_of(2) { Faults::Deaths } else { Faults::None };
    scenario
}

#[test]
fn what_was_answered_outlives_the_process_0() {
    sweep(0, 2, 400, |seed| run(scenario(seed)));
}

#[test]
fn what_was_answered_outlives_the_process_1() {
    sweep(1, 2, 400, |seed| run(scenario(seed)));
}

#[test]
fn what_many_hosts_were_answered_outlives_the_process() {
    sweep(0, 1, 200, run_killed_clients);
}

/// In a pool that is full.
#[test]
fn a_full_pool_opens_again_with_what_was_answered() {
    sweep(0, 1, 40, |seed| run(Scenario { faults: Faults::None, ..pressure(seed) }));
}

/// A page of a map is lost while what needs it waits: the pool opens, the other volume has what was answered, and the next flush of the volume tells that
/// something is lost.
#[test]
fn a_lost_map_page_does_not_keep_the_pool_from_opening() {
    for discards in [false, true] {
        let page = Mutex::new(0);
        let mut a = one_disk(9, |_, map, _| *page.lock().expect("a page") = map);
        a.scenario.config.carry = Some(a.memory.clone());
        a.scenario.config.log_interval = Duration::from_secs(60);
        let scope = a.next_life();
        let env = scope.env();
        let work = async {
            let pool = Pool::open(env, a.all_disks(), a.scenario.config.clone()).await.expect("opened");
            let open = |name| pool.open_volume(name).expect("a volume");
            let (hurt, whole) = (open("v0"), open("v1"));
            assert!(hurt.outlive() && whole.outlive());
            match discards {
                true => hurt.discard(0, BLOCK_BYTES).await.expect("answered"),
                false => hurt.write(0, Bytes::from(vec![3; BLOCK_SIZE]), false).await.expect("answered"),
            }
            whole.write(0, Bytes::from(vec![7; BLOCK_SIZE]), false).await.expect("answered");
        };
        scope.run_until(work, 1_000_000).expect("in time");
        scope.kill_all_tasks();
        a.disks[0].corrupt(*page.lock().expect("a page"), 8);
        let scope = a.next_life();
        let env = scope.env();
        let work = async {
            let pool = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.expect("opened again");
            let open = |name| pool.open_volume(name).expect("a volume");
            assert_eq!(open("v1").read(0, BLOCK_SIZE).await.expect("read"), vec![7; BLOCK_SIZE]);
            let told = open("v0").flush().await.expect_err("something that was answered is lost");
            assert!(told.to_string().contains("takes no writes"), "{told}");
            open("v1").flush().await.expect("whole");
            pool.close().await.expect("closed");
        };
        scope.run_until(work, 10_000_000).expect("in time");
        scope.kill_all_tasks();
    }
}
