//! Seeds that once failed, and what it was.

use super::harness::{Faults, Scenario};
use super::seeds::run;

fn ends_well(result: Result<(), String>) {
    if let Err(why) = result {
        panic!("{why}");
    }
}

fn passes(seed: u64) {
    ends_well(run(Scenario::random(seed)));
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

/// A lookup waited for a fingerprint list that it was to load itself afterwards.
#[test]
fn seed_735_lists_are_loaded_before_they_are_waited_for() {
    passes(735);
}

/// A checkpoint was cut short with its superblock on one disk. The pool went on from it, overwrote the catalogue of the one before,
/// crashed, and lost that disk.
#[test]
fn seed_202261_a_checkpoint_that_was_cut_short_is_completed_first() {
    passes(202_261);
}

/// A crash came between the pieces of a long write: the model had taken it for a hole in the order.
#[test]
fn seed_216820_long_writes_may_be_cut() {
    passes(216_820);
}

/// A map page came into being, was emptied and came into being again within one record.
#[test]
fn seed_229366_map_pages_that_come_and_go_within_a_record() {
    passes(229_366);
}

/// A checkpoint was cut short with its superblock on one disk; that disk was away when the pool was opened next, and back after another
/// crash, when what its checkpoint referred to had been overwritten.
#[test]
fn seed_200746_a_checkpoint_that_never_was_comes_back() {
    passes(200_746);
}

/// Two openings in a row were cut short while they marked the checkpoint in its place: the first tore one copy, the second the other.
#[test]
fn seed_282120_marks_have_a_place_of_their_own() {
    passes(282_120);
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

/// A checkpoint filled a metadata segment that an earlier one had opened, and did not wait for all of it.
#[test]
fn storm_162_checkpoint_waits_for_its_metadata() {
    ends_well(run(super::stress::storm(162)));
}

/// Stripes of lost records were durable up to the end of a segment: recovery had no room for its summary.
#[test]
fn clients_34_segment_is_finished_where_its_records_end() {
    ends_well(super::concurrent::run_clients(34));
}

/// Two crashes in a row left disks that seemed to be restored from old copies.
#[test]
fn clients_267_cut_short_checkpoint_is_not_on_all_disks() {
    ends_well(super::concurrent::run_clients(267));
}

/// A batch needed more free segments than the cleaner makes.
#[test]
fn full_pool_14_batches_fit_the_reserve() {
    ends_well(run(super::full::pressure(14)));
}

/// Batches that waited for space held passes; the checkpoint that was to make space waited for them: writes hung for ever.
#[test]
fn full_pool_4_waits_without_a_pass() {
    ends_well(run(super::full::pressure(4)));
}

/// (Of the model.) Long writes are cut at what two segments hold, which need not be a round number of blocks.
#[test]
fn seed_308219_long_writes_are_cut_anywhere() {
    passes(308_219);
}

/// A disk died between the labels of an opening and its look at the log, so that a log entry that it alone held was not found; after a crash it came
/// back, the labels did not say that it had been away, and the entry was replayed, over whose data the opening had written.
#[test]
fn seed_18722_a_disk_that_dies_while_the_log_is_read() {
    ends_well(super::rebuild::run(18_722));
}

/// More goes wrong at once than the pool tolerates: a disk rots, with pages of the block table, while another is away. Columns of what cannot be looked up
/// were computed from rot and took the place of what the other brought back.
#[test]
fn seed_700265_what_is_back_is_not_replaced_by_rot() {
    ends_well(super::scrub::run_with_return(700_265));
}

/// Segments were empty that a checkpoint had not given back, as somebody read the one before; nothing changed any more, so that no other was made, and
/// writes waited for their space for ever.
#[test]
fn killed_full_pool_143_what_is_empty_is_given_back() {
    let scenario = Scenario { faults: Faults::None, ..super::full::pressure(143) };
    ends_well(super::killed::run(scenario));
}

/// Summaries were read together with what lies behind them, which was never written and could not be read: the segment was looked at, found sound, and
/// was suspect again, for ever.
#[test]
fn snapshots_1652_what_was_never_written_is_not_read() {
    ends_well(super::snapshots::run(super::snapshots::scenario(1652)));
}
