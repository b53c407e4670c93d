//! Scenarios that lean on one spot: checkpoints all the time, crashes during recovery, disks that die and come back.

use std::time::Duration;

use blockdev::env::Rng;
use blockdev::report::Tolerance;

use super::harness::{Appliance, Faults, Scenario};
use super::seeds::{run, sweep};
use super::work::Mix;

/// Checkpoints and log writes overlap with everything.
pub fn storm(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed ^ 0x5707);
    let mut scenario = Scenario::random(seed);
    scenario.faults = Faults::None;
    scenario.mix = Mix::Storm;
    scenario.ops = 150;
    scenario.lives = 3;
    scenario.reach = (5, 11);
    scenario.volumes = 2;
    scenario.blocks = rng.between(40, 120);
    scenario.config.linger = Duration::from_micros(rng.below(300));
    scenario.config.log_interval = Duration::from_micros(rng.between(300, 3000));
    scenario.config.checkpoint_interval = Duration::from_micros(rng.between(300, 8000));
    scenario
}

/// A disk or two die; nothing else goes wrong, so no checksum may ever mismatch.
pub fn deaths(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed ^ 0xDEAD);
    let mut scenario = storm(seed);
    scenario.faults = Faults::Deaths;
    scenario.tolerance = if rng.chance(1, 2) { Tolerance::Single } else { Tolerance::Double };
    scenario.disks = scenario.tolerance.drives() + 1 + rng.index(4);
    scenario.lives = 4;
    scenario
}

#[test]
fn storms() {
    sweep(0, 1, 200, |seed| run(storm(seed)));
}

/// As [`deaths`]; the disks come back. What they missed may be found by its checksum only, when no checkpoint noted their death.
pub fn returns(seed: u64) -> Scenario {
    Scenario { faults: Faults::Returns { strict: false }, ..deaths(seed) }
}

/// As [`returns`]; it counts when a checksum was needed.
pub fn strict_returns(seed: u64) -> Scenario {
    Scenario { faults: Faults::Returns { strict: true }, ..deaths(seed) }
}

#[test]
fn dying_disks() {
    sweep(0, 1, 200, |seed| run(deaths(seed)));
}

#[test]
fn returning_disks() {
    sweep(0, 1, 200, |seed| run(returns(seed)));
}

/// Crashes within the first disk writes after opening, again and again; then everything is there.
#[test]
fn crashes_during_recovery() {
    let crash_often = |seed: u64| {
        let mut rng = Rng::new(seed ^ 0x4EC0);
        let scenario = if seed.is_multiple_of(2) { storm(seed) } else { Scenario::random(seed) };
        let mut appliance = Appliance::new(scenario)?;
        for _ in 0..3 {
            appliance.live(Some(40 + rng.below(400)))?;
            for _ in 0..rng.between(2, 6) {
                appliance.live(Some(1 + rng.below(40)))?;
            }
        }
        appliance.finish()
    };
    sweep(0, 1, 150, crash_often);
}
