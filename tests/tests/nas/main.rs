//! The file system against a model, on volumes that show the state of one instant after a crash, as a pool's do.
//!
//! After each crash: the check is clean; names and attributes are those of one commit, not older than what was made durable; each byte is what it was
//! then or what was written later. `ASHLAR_SIM_SEEDS` sets how many seeds run, `ASHLAR_SIM_TIMES` how many times as many as usual, `ASHLAR_SIM_SEED`
//! one of them, `ASHLAR_SIM_VERBOSE` tells what it does.

mod busy;
mod device;
mod limits;
mod oracle;
mod planted;
mod run;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One seed; a panic is a failure of it.
fn one(seed: u64, verbose: bool) -> Result<(), String> {
    let work = || run::Run::new(seed, verbose)?.lives(4);
    std::panic::catch_unwind(work).unwrap_or_else(|_| Err("it panicked".into()))
}

fn seeds(first: u64, usual: u64) {
    let verbose = std::env::var_os("ASHLAR_SIM_VERBOSE").is_some();
    let seeds = match number("ASHLAR_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let count = number("ASHLAR_SIM_SEEDS").unwrap_or(usual * number("ASHLAR_SIM_TIMES").unwrap_or(1));
            first..first + count
        }
    };
    let mut failed = Vec::new();
    for seed in seeds {
        if let Err(error) = one(seed, verbose) {
            println!("seed {seed}: {error}");
            failed.push(seed);
        }
        if failed.len() >= 5 {
            break;
        }
    }
    assert!(failed.is_empty(), "seeds that failed: {failed:?}");
}

#[test]
fn random_seeds_0() {
    seeds(1, 500);
}

#[test]
fn random_seeds_1() {
    seeds(1_000_000, 500);
}
