//! The oracle bites: every planted bug is caught by some seed, and the same seed passes without it.

use std::time::Duration;

use blockdev::planted::{Bug, plant};

use super::concurrent::{run_clients, run_killed_clients};
use super::full::pressure;
use super::harness::Scenario;
use super::killed;
use super::rebuild;
use super::scrub;
use super::seeds::{outcome_of, run};
use super::snapshots;
use super::stress::{storm, strict_returns};

/// Plants the bug for as long as it lives.
struct Planted;

impl Planted {
    fn new(bug: Bug) -> Self {
        plant(Some(bug));
        Self
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        plant(None);
    }
}

/// Runs seeds with the bug until one fails, then that seed without the bug.
fn caught_within(bug: Bug, seeds: u64, run: impl Fn(u64) -> Result<(), String>) {
    caught_from(bug, 1, seeds, run);
}

/// The same, and `first` first: few seeds catch it, and that one did when it was tried last.
fn caught_from(bug: Bug, first: u64, seeds: u64, run: impl Fn(u64) -> Result<(), String>) {
    for seed in (first..=seeds).chain(1..first) {
        let found = {
            let _planted = Planted::new(bug);
            outcome_of(|| run(seed))
        };
        if let Err(why) = found {
            eprintln!("{bug:?}: seed {seed}: {why}");
            if let Err(why) = outcome_of(|| run(seed)) {
                panic!("seed {seed} fails without {bug:?} too: {why}");
            }
            return;
        }
    }
    panic!("{bug:?} was not caught by {seeds} seeds");
}

/// Full pools that write what they are given at once, and checkpoints all the time.
fn hurried(seed: u64) -> Scenario {
    let mut scenario = Scenario { lives: 6, ..pressure(seed) };
    scenario.config.checkpoint_interval = Duration::from_millis(5);
    scenario.config.linger = Duration::ZERO;
    scenario
}

macro_rules! catches {
    ($($name:ident: $bug:ident, $seeds:expr, $run:expr;)*) => {
        $(#[test] fn $name() { caught_within(Bug::$bug, $seeds, $run); })*
    };
}

catches! {
    log_not_durable: LogNotDurable, 200, |seed| run(Scenario::random(seed));
    data_not_flushed: DataNotFlushed, 200, |seed| run(Scenario::random(seed));
    flush_answers_early: FlushAnswersEarly, 200, |seed| run(Scenario::random(seed));
    log_trimmed_early: LogTrimmedEarly, 400, |seed| run(storm(seed));
    tail_not_logged: TailNotLogged, 200, |seed| run(Scenario::random(seed));
    superblock_before_catalogue: SuperblockBeforeCatalogue, 1000, |seed| run(Scenario::random(seed));
    checkpoint_not_frozen: CheckpointNotFrozen, 400, run_clients;
    no_verify: NoVerify, 200, |seed| run(Scenario::random(seed));
    torn_record_accepted: TornRecordAccepted, 400, |seed| run(Scenario::random(seed));
    replay_short: ReplayShort, 200, |seed| run(Scenario::random(seed));
    replay_reordered: ReplayReordered, 200, |seed| run(Scenario::random(seed));
    parity_missing: ParityMissing, 200, |seed| run(Scenario::random(seed));
    stale_column_read: StaleColumnRead, 400, |seed| run(strict_returns(seed));
    move_unconditional: MoveUnconditional, 60, |seed| run(pressure(seed));
    rebuild_not_flushed: RebuildNotFlushed, 400, rebuild::run;
    rebuild_unverified: RebuildUnverified, 200, scrub::run_with_return;
    scrub_no_parity: ScrubNoParity, 100, scrub::run;
    carried_let_go_early: CarriedLetGoEarly, 100, |seed| killed::run(killed::scenario(seed));
    carried_numbers_kept: CarriedNumbersKept, 400, run_killed_clients;
    snapshot_not_kept: SnapshotNotKept, 100, |seed| snapshots::run(snapshots::scenario(seed));
    reaper_blind: ReaperBlind, 100, |seed| snapshots::run(snapshots::scenario(seed));
    reference_leaked: ReferenceLeaked, 200, |seed| run(Scenario::random(seed));
}

#[test]
fn segment_reused_early() {
    caught_from(Bug::SegmentReusedEarly, 195, 400, |seed| run(hurried(seed)));
}

#[test]
fn cursor_ignored() {
    caught_from(Bug::CursorIgnored, 392, 800, |seed| snapshots::run(snapshots::scenario(seed)));
}
