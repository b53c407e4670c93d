//! Seeds that once failed, and what it was.

use super::harness::Scenario;
use super::seeds::run;

fn passes(seed: u64) {
    if let Err(why) = run(Scenario::random(seed)) {
        panic!("seed {seed}: {why}");
    }
}

/// A resize overtook writes that were still buffered.
#[test]
fn seed_4_resize_waits_for_buffered_writes() {
    passes(4);
}

/// A block lost its last reference and got a new one within one record.
#[test]
fn seed_13_block_freed_and_shared_in_one_record() {
    passes(13);
}

/// An identity was handed out twice within one record.
#[test]
fn seed_189_identities_are_handed_out_once() {
    passes(189);
}

/// Host data left no segments to the cleaner and to checkpoints.
#[test]
fn seed_251_space_is_kept_for_checkpoints() {
    passes(251);
}

/// As seed 251.
#[test]
fn seed_768_space_is_kept_for_checkpoints() {
    passes(768);
}

/// As seed 251.
#[test]
fn seed_1185_space_is_kept_for_checkpoints() {
    passes(1185);
}

/// Batches that waited for space held passes; the checkpoint that was to make space waited for them: writes hung for ever.
#[test]
fn full_pool_4_waits_without_a_pass() {
    if let Err(why) = run(super::full::pressure(4)) {
        panic!("{why}");
    }
}
