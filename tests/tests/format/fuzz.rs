//! Damaged structures, for as long as `ASHLAR_FUZZ_SECS` says (3 seconds unless it is set). A failure names the seed that
//! repeats it: `ASHLAR_FUZZ_SEED`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::generate::{KINDS, Kind, mutate};
use crate::imports::*;
use crate::property::holds;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// One structure, damaged in some way; returns whether the decoder took it.
fn one(kind: &Kind, seed: u64) -> bool {
    let mut rng = Rng::new(seed);
    let mut bytes = (kind.make)(&mut rng);
    if rng.chance(1, 4) {
        // Parts of two of a kind.
        let other = (kind.make)(&mut rng);
        let cut = rng.index(bytes.len().min(other.len()));
        bytes.truncate(cut);
        bytes.extend_from_slice(&other[cut..]);
    }
    for _ in 0..rng.below(6) {
        mutate(&mut rng, &mut bytes);
    }
    if rng.chance(7, 8) {
        (kind.seal)(&mut bytes);
    }
    holds(kind, &bytes)
}

#[test]
fn decoders_survive_anything() {
    let start = Instant::now();
    let limit = Duration::from_secs(variable("ASHLAR_FUZZ_SECS").unwrap_or(3));
    let given = variable("ASHLAR_FUZZ_SEED");
    let first = given.unwrap_or_else(|| std::process::id().into());
    let (mut rounds, mut accepted) = (0u64, [0u64; KINDS.len()]);
    while rounds == 0 || given.is_none() && start.elapsed() < limit {
        let seed = first.wrapping_mul(1 << 32).wrapping_add(rounds);
        for (kind, accepted) in KINDS.iter().zip(&mut accepted) {
            let seed = if given.is_some() { first } else { seed };
            match catch_unwind(AssertUnwindSafe(|| one(kind, seed))) {
                Ok(taken) => *accepted += u64::from(taken),
                Err(_) => panic!("{}: ASHLAR_FUZZ_SEED={seed} repeats it", kind.name),
            }
        }
        rounds += 1;
    }
    println!("{rounds} rounds over {} decoders, accepted {accepted:?}", KINDS.len());
    // Otherwise all that is tried ends at the checksum, and nothing behind it is.
    assert!(rounds < 1000 || accepted.iter().all(|n| *n > 0), "{accepted:?}");
}
