//! The oracle bites: every planted bug is caught by some seed, and the same seed passes without it.

use blockdev::planted::{Bug, plant};

use super::full::pressure;
use super::harness::Scenario;
use super::seeds::outcome;
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
fn caught_within(bug: Bug, seeds: u64, scenario: fn(u64) -> Scenario) {
    for seed in 1..=seeds {
        let found = {
            let _planted = Planted::new(bug);
            outcome(scenario(seed))
        };
        if let Err(why) = found {
            eprintln!("{bug:?}: seed {seed}: {why}");
            if let Err(why) = outcome(scenario(seed)) {
                panic!("seed {seed} fails without {bug:?} too: {why}");
            }
            return;
        }
    }
    panic!("{bug:?} was not caught by {seeds} seeds");
}

macro_rules! catches {
    ($($name:ident: $bug:ident, $seeds:expr, $scenario:expr;)*) => {
        $(#[test] fn $name() { caught_within(Bug::$bug, $seeds, $scenario); })*
    };
}

catches! {
    log_not_durable: LogNotDurable, 200, Scenario::random;
    data_not_flushed: DataNotFlushed, 200, Scenario::random;
    flush_answers_early: FlushAnswersEarly, 200, Scenario::random;
    log_trimmed_early: LogTrimmedEarly, 400, storm;
    segment_reused_early: SegmentReusedEarly, 200, pressure;
    tail_not_logged: TailNotLogged, 200, Scenario::random;
    superblock_before_catalogue: SuperblockBeforeCatalogue, 1000, Scenario::random;
    checkpoint_not_frozen: CheckpointNotFrozen, 400, storm;
    no_verify: NoVerify, 200, Scenario::random;
    replay_short: ReplayShort, 200, Scenario::random;
    replay_reordered: ReplayReordered, 200, Scenario::random;
    parity_missing: ParityMissing, 200, Scenario::random;
    stale_column_read: StaleColumnRead, 400, strict_returns;
    move_unconditional: MoveUnconditional, 60, pressure;
    reference_leaked: ReferenceLeaked, 200, Scenario::random;
}
