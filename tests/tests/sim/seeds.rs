//! Many seeds.

use blockdev::env::Rng;

use super::harness::{Appliance, Scenario};

/// Runs one seed: several lives, each ended by a crash at a random write.
pub fn run(scenario: Scenario) -> Result<(), String> {
    run_to_end(scenario).map(drop)
}

/// As [`run`]; returns what is left.
pub fn run_to_end(scenario: Scenario) -> Result<Appliance, String> {
    let mut rng = Rng::new(scenario.seed ^ 0x5EED);
    let (lives, (short, long)) = (scenario.lives, scenario.reach);
    let mut appliance = Appliance::new(scenario)?;
    for _ in 0..lives {
        let crash = {
            let reach = 1 << rng.between(short, long);
            rng.chance(7, 8).then(|| 1 + rng.below(reach))
        };
        appliance.live(crash)?;
    }
    appliance.finish()?;
    Ok(appliance)
}

/// The same seed takes the same steps: a failure can be replayed.
#[test]
fn a_seed_decides_everything() {
    for seed in 1..=40 {
        let traces: Vec<Option<u64>> =
            (0..2).map(|_| run_to_end(Scenario::random(seed)).ok().map(|a| a.trace())).collect();
        assert!(traces[0].is_some(), "seed {seed} fails");
        assert_eq!(traces[0], traces[1], "seed {seed} took two ways");
    }
}

/// Turns a panic into an error.
pub fn outcome_of(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    outcome_of_value(work)
}

/// The same of work with a result.
pub fn outcome_of_value<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().cloned();
        let literal = || panic.downcast_ref::<&str>().map(|s| s.to_string());
        Err(format!("panic: {}", message.or_else(literal).unwrap_or_default()))
    })
}

/// Whether to tell what seeds do.
pub fn verbose() -> bool {
    std::env::var_os("ASHLAR_SIM_VERBOSE").is_some()
}

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs the seeds that fall to this of `shares` tests, and reports up to ten that fail. Returns how many it ran.
///
/// `ASHLAR_SIM_SEED` runs one seed only, `ASHLAR_SIM_FIRST` and `ASHLAR_SIM_SEEDS` set the first one and their number in all shares,
/// `ASHLAR_SIM_TIMES` that it is so many times the usual number.
pub fn sweep(share: u64, shares: u64, count: u64, mut run: impl FnMut(u64) -> Result<(), String>) -> usize {
    let (first, count) = match number("ASHLAR_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => {
            let times = number("ASHLAR_SIM_TIMES").unwrap_or(1);
            (number("ASHLAR_SIM_FIRST").unwrap_or(1), number("ASHLAR_SIM_SEEDS").unwrap_or(count * times))
        }
    };
    let (mut failures, mut done) = (Vec::new(), 0);
    for seed in (first..first + count).filter(|seed| seed % shares == share) {
        if verbose() {
            eprintln!("seed {seed}");
        }
        done += 1;
        if let Err(why) = outcome_of(|| run(seed)) {
            eprintln!("seed {seed}: {why}");
            failures.push(seed);
        }
        if failures.len() >= 10 {
            break;
        }
    }
    assert!(failures.is_empty(), "failing seeds: {failures:?}; run one with ASHLAR_SIM_SEED=N");
    done
}

/// Seeds of all shares together.
const SEEDS: u64 = 2000;
const SHARES: u64 = 4;

/// As [`sweep`], of scenarios, which are shown when that is asked for.
pub fn sweep_scenarios(
    share: u64,
    (shares, count): (u64, u64),
    scenario: impl Fn(u64) -> Scenario,
    run: impl Fn(Scenario) -> Result<(), String>,
) {
    sweep(share, shares, count, |seed| {
        let scenario = scenario(seed);
        if verbose() {
            eprintln!("{scenario:?}");
        }
        run(scenario)
    });
}

fn random_seeds(share: u64) {
    sweep_scenarios(share, (SHARES, SEEDS), Scenario::random, run);
}

#[test]
fn random_seeds_0() {
    random_seeds(0);
}

#[test]
fn random_seeds_1() {
    random_seeds(1);
}

#[test]
fn random_seeds_2() {
    random_seeds(2);
}

#[test]
fn random_seeds_3() {
    random_seeds(3);
}
