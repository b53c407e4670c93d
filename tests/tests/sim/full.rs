//! Pools that are too small for what is written to them: the cleaner works, writes are refused, nothing hangs and nothing is lost.

use std::time::Duration;

use blockdev::env::Rng;
use blockdev::pool::PoolConfig;
use blockdev::report::Tolerance;

use super::harness::{Faults, Scenario};
use super::seeds::{run_to_end, sweep};
use super::work::Mix;

/// Volumes larger than the pool.
pub fn pressure(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed ^ 0xF0F0);
    let mut scenario = Scenario::random(seed);
    scenario.faults = Faults::None;
    scenario.mix = Mix::Pressure;
    scenario.volumes = 1 + rng.index(2);
    scenario.ops = 300;
    scenario.lives = 2;
    scenario.reach = (8, 13);
    // About 1.5 times what the data disks hold.
    let data = scenario.disks.saturating_sub(scenario.tolerance.drives()).max(1) as u64;
    scenario.blocks = data * scenario.disk_size / 4096 * 3 / 2 / scenario.volumes as u64;
    scenario.config = PoolConfig {
        checkpoint_interval: Duration::from_millis(rng.between(20, 500)),
        fingerprint_bits: None,
        ..scenario.config
    };
    scenario
}

fn full_pools(share: u64) {
    let mut cleaned = 0;
    let all = sweep(share, 2, 40, |seed| {
        cleaned += run_to_end(pressure(seed))?.cleaned();
        Ok(())
    });
    eprintln!("{all} pools, {cleaned} segments cleaned");
    assert!(all < 10 || cleaned > 0, "the cleaner never ran");
}

#[test]
fn full_pools_0() {
    full_pools(0);
}

#[test]
fn full_pools_1() {
    full_pools(1);
}

/// As [`full_pools`], while up to as many disks die as may.
fn full_degraded_pools(share: u64) {
    sweep(share, 2, 60, |seed| {
        let scenario = Scenario { faults: Faults::Deaths, ..pressure(seed) };
        if scenario.tolerance == Tolerance::None { Ok(()) } else { run_to_end(scenario).map(drop) }
    });
}

#[test]
fn full_degraded_pools_0() {
    full_degraded_pools(0);
}

#[test]
fn full_degraded_pools_1() {
    full_degraded_pools(1);
}
