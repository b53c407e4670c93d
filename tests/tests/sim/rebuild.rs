//! Disks fail one after another, more of them than the tolerance allows at once: between two failures redundancy is restored, and neither crashes
//! nor further failures in the middle of that lose anything.

use std::time::Duration;

use blockdev::env::Rng;
use blockdev::report::Tolerance;

use super::harness::{Appliance, Change, Faults, Scenario};
use super::seeds::sweep;
use super::stress::storm;

/// A pool with room for rebuilds, whose disks are given up soon.
pub fn scenario(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed ^ 0x4EB1);
    let mut scenario = storm(seed);
    scenario.faults = Faults::Deaths;
    scenario.tolerance = if rng.chance(1, 2) { Tolerance::Single } else { Tolerance::Double };
    scenario.disks = scenario.tolerance.drives() + 2 + rng.index(5);
    scenario.disk_size = 8 << 20;
    scenario.blocks = rng.between(40, 100);
    scenario.ops = 80;
    scenario.config.failed_grace = Duration::from_micros(rng.below(20_000));
    scenario.config.missing_grace = Duration::from_micros(rng.below(20_000));
    scenario.config.checkpoint_interval = Duration::from_micros(rng.between(1000, 40_000));
    scenario.hasty = seed.is_multiple_of(2);
    if seed.is_multiple_of(4) {
        // Nothing is on record for any other reason.
        scenario.config.checkpoint_interval = Duration::from_secs(3600);
        scenario.config.log_interval = Duration::from_secs(3600);
    }
    scenario
}

/// Fails disks, interrupts what follows, lets it end, fails the next.
pub fn run(seed: u64) -> Result<(), String> {
    let scenario = scenario(seed);
    let tolerance = scenario.tolerance.drives();
    let mut rng = Rng::new(seed ^ 0xFA11);
    let mut a = Appliance::new(scenario)?;
    a.set_frail(Vec::new());
    a.live(rng.chance(1, 2).then(|| 200 + rng.below(400)))?;
    for _ in 0..rng.between(1, 4) {
        let mut alive: Vec<usize> = (0..a.disks.len()).filter(|&i| !a.disks[i].is_failed()).collect();
        rng.shuffle(&mut alive);
        // So many must be left that data can lie on them with all its redundancy.
        let most = tolerance.min(alive.len().saturating_sub(tolerance + 1));
        if most == 0 {
            break;
        }
        let victims = alive[..1 + rng.index(most)].to_vec();
        a.set_frail(victims.clone());
        for _ in 0..rng.between(1, 4) {
            let reach = 1 << rng.between(3, 10);
            a.live(Some(1 + rng.below(reach)))?;
        }
        for &v in &victims {
            match rng.below(3) {
                0 => a.disks[v].fail(),
                1 if a.disks[v].is_failed() => a.disks[v].restore(),
                _ => {}
            }
        }
        for _ in 0..rng.below(4) {
            let reach = 1 << rng.between(2, 9);
            a.heal(Some(1 + rng.below(reach)))?;
        }
        a.heal(None)?;
        for &v in &victims {
            if a.disks[v].is_failed() && rng.chance(1, 4) {
                // It comes back long after: nothing lies on it any more.
                a.disks[v].restore();
            }
        }
    }
    a.finish()
}

/// Disks join, leave and fail in turn, with crashes in the middle of each.
pub fn run_with_changes(seed: u64) -> Result<(), String> {
    let scenario = scenario(seed);
    let tolerance = scenario.tolerance.drives();
    let mut rng = Rng::new(seed ^ 0xADD5);
    let mut a = Appliance::new(scenario)?;
    a.set_frail(Vec::new());
    a.live(rng.chance(1, 2).then(|| 200 + rng.below(400)))?;
    let mut here: Vec<usize> = (0..a.disks.len()).collect();
    for _ in 0..rng.between(2, 6) {
        rng.shuffle(&mut here);
        let reach = 1 << rng.between(3, 10);
        let crash = rng.chance(1, 2).then(|| 1 + rng.below(reach));
        let enough = here.len() > tolerance + 2;
        match rng.below(3) {
            0 if enough => {
                a.heal_after(Change::Remove(here[0]), crash)?;
                // A crash may have come before the wish was on record.
                a.heal_after(Change::Remove(here[0]), None)?;
                here.remove(0);
            }
            1 if enough => {
                a.disks[here[0]].fail();
                a.heal(crash)?;
                a.heal(None)?;
                a.heal_after(Change::Remove(here[0]), None)?;
                here.remove(0);
            }
            _ => {
                let new = a.disks.len();
                a.heal_after(Change::Add, None)?;
                here.push(new);
            }
        }
        for _ in 0..rng.below(3) {
            let reach = 1 << rng.between(3, 10);
            a.live(Some(1 + rng.below(reach)))?;
        }
        a.heal(None)?;
    }
    a.finish()
}

#[test]
fn disks_join_leave_and_fail() {
    sweep(0, 1, 300, run_with_changes);
}

/// A disk rots, another fails, and once redundancy is restored a third one fails: what rotted must not have found its way into what was rebuilt.
pub fn run_with_rot(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0x0707);
    let mut scenario =
        Scenario { tolerance: Tolerance::Double, disks: 5 + rng.index(3), faults: Faults::Any, ..scenario(seed) };
    // What reads find is healed: the rebuild must come first.
    (scenario.config.failed_grace, scenario.config.missing_grace) = (Duration::ZERO, Duration::ZERO);
    let mut a = Appliance::new(scenario)?;
    a.set_frail(Vec::new());
    a.live(None)?;
    let mut order: Vec<usize> = (0..a.disks.len()).collect();
    rng.shuffle(&mut order);
    for _ in 0..rng.between(1, 400) {
        a.disks[order[0]].corrupt((1 << 20) + rng.below(5 << 20) / 4096 * 4096, 512 << rng.below(6));
    }
    a.disks[order[1]].fail();
    a.heal(None)?;
    a.disks[order[2]].fail();
    a.finish()
}

#[test]
fn rot_is_not_rebuilt() {
    sweep(0, 1, 200, run_with_rot);
}

#[test]
fn disks_fail_one_after_another_0() {
    sweep(0, 2, 400, run);
}

#[test]
fn disks_fail_one_after_another_1() {
    sweep(1, 2, 400, run);
}
