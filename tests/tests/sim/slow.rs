//! Disks that stall for seconds, and disks that fail to flush and say so only once.

use super::harness::{Faults, Scenario};
use super::seeds::{run, sweep};

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
