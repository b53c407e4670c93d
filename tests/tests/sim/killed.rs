//! The process is killed, and the power stays: disks keep their caches, and the memory that outlives the process is there. Everything that was
//! answered must be found, whenever and however often the process was killed, in the middle of opening as well. Now and then the power is cut after all:
//! then what was flushed must be there, as ever.

use blockdev::env::Rng;

use super::concurrent::run_killed_clients;
use super::full::pressure;
use super::harness::{Appliance, Faults, Scenario};
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
