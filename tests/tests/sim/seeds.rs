//! Many seeds.

use blockdev::env::Rng;

use super::harness::{Appliance, Scenario};

/// Runs one seed: several lives, each ended by a crash at a random write.
pub fn run(scenario: Scenario) -> Result<(), String> {
    let mut rng = Rng::new(scenario.seed ^ 0x5EED);
    let lives = scenario.lives;
    let mut appliance = Appliance::new(scenario)?;
    for _ in 0..lives {
        let crash = {
            let reach = 1 << rng.between(2, 10);
            rng.chance(7, 8).then(|| 1 + rng.below(reach))
        };
        appliance.live(crash)?;
    }
    appliance.finish()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn random_seeds() {
    let (first, count) = match number("ASHLAR_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (1, number("ASHLAR_SIM_SEEDS").unwrap_or(2000)),
    };
    let mut failures = Vec::new();
    for seed in first..first + count {
        let result = std::panic::catch_unwind(|| run(Scenario::random(seed)));
        let why = match result {
            Ok(Ok(())) => continue,
            Ok(Err(e)) => e,
            Err(panic) => format!("panic: {}", panic.downcast_ref::<String>().cloned().unwrap_or_default()),
        };
        eprintln!("seed {seed}: {why}");
        failures.push(seed);
        if failures.len() >= 10 {
            break;
        }
    }
    assert!(failures.is_empty(), "failing seeds: {failures:?}; run one with ASHLAR_SIM_SEED=N");
}
