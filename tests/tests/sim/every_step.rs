//! A crash at every write, and the death of a disk at every few requests, of every change of a pool: of a rebuild, of catching up, of a disk that joins or leaves, of another tolerance, of a scrub, of a
//! balance, with and without hosts at work. After each the pool is opened, comes to its end, and survives as many failures as it promises.
//!
//! `ASHLAR_SIM_POINTS` sets how many of the writes are tried, evenly spread; the default is few.

use std::time::Duration;

use blockdev::env::Rng;
use blockdev::report::Tolerance;

use super::harness::{Appliance, Change, Faults, Scenario};
use super::rebuild::scenario as rebuild_scenario;
use super::seeds::{number, outcome_of, outcome_of_value};

/// Writes of each change at which a crash is tried, unless told otherwise.
const POINTS: u64 = 200;

/// What happens, after a life of writes.
#[derive(Clone, Copy, Debug)]
enum What {
    Rebuild,
    CatchUp,
    Change(Change),
    Scrub,
    /// A disk that was declared failed is taken back.
    Keep,
}

fn scenario(tolerance: Tolerance) -> Scenario {
    let mut scenario = rebuild_scenario(77);
    (scenario.tolerance, scenario.disks, scenario.faults) = (tolerance, tolerance.drives() + 4, Faults::Deaths);
    (scenario.volumes, scenario.blocks, scenario.ops) = (2, 100, 40);
    scenario.config.failed_grace = Duration::from_millis(5);
    scenario.config.missing_grace = Duration::from_millis(5);
    scenario.config.checkpoint_interval = Duration::from_millis(20);
    scenario
}

/// The pool in front of what happens, the same each time.
fn before(what: What, tolerance: Tolerance) -> Result<Appliance, String> {
    let mut a = Appliance::new(scenario(tolerance))?;
    a.set_frail(Vec::new());
    a.live(None)?;
    match what {
        What::Rebuild => a.disks[1].fail(),
        What::CatchUp => {
            a.scenario.config.failed_grace = Duration::from_secs(3600);
            a.scenario.config.missing_grace = Duration::from_secs(3600);
            a.disks[1].fail();
            a.live(None)?;
            a.disks[1].restore();
            a.scenario.config = scenario(tolerance).config;
        }
        What::Scrub => {
            // Rot is no fault of the others.
            a.scenario.faults = Faults::Any;
            let mut rng = Rng::new(9);
            for _ in 0..100 {
                a.disks[1].corrupt((1 << 20) + rng.below(6 << 20) / 4096 * 4096, 2048);
            }
        }
        What::Keep => {
            a.heal_after(Change::Fail(1), None)?;
            a.live(None)?;
        }
        What::Change(_) => {}
    }
    Ok(a)
}

fn change_of(what: What) -> Change {
    match what {
        What::Rebuild | What::CatchUp => Change::None,
        What::Scrub => Change::Scrub,
        What::Keep => Change::Keep(1),
        What::Change(change) => change,
    }
}

/// Crashes at write number `point`, goes on, and fails as many disks as must not matter.
fn crash_at(what: What, tolerance: Tolerance, point: u64) -> Result<(), String> {
    let mut a = before(what, tolerance)?;
    let change = change_of(what);
    // Every other time hosts are at work.
    a.scenario.busy = point.is_multiple_of(2);
    a.heal_after(change, Some(point))?;
    a.scenario.busy = false;
    if point % 4 < 2 {
        // The power fails as soon as the pool says that all is well; nothing is on record for any other reason.
        a.scenario.hasty = true;
        a.scenario.config.checkpoint_interval = Duration::from_secs(3600);
        a.scenario.config.log_interval = Duration::from_secs(3600);
    }
    // A disk that was about to join may be one already, or not.
    a.heal_after(change.again(), None)?;
    let after = match change {
        Change::Tolerance(t) => t,
        _ => tolerance,
    };
    let out = a.declared;
    let alive = (0..a.disks.len()).filter(|&i| !a.disks[i].is_failed() && Some(i) != out).collect::<Vec<_>>();
    let next = alive.into_iter().skip(point as usize % 3).take(after.drives());
    next.for_each(|i| a.disks[i].fail());
    a.finish()
}

/// Disks die after so many of their requests, and after that the power fails where a write is given: what was going on comes to its end, and so does the rebuild. Returns whether all of them died.
fn death_at(what: What, tolerance: Tolerance, victims: &[(usize, u64)], crash: Option<u64>) -> Result<bool, String> {
    let mut a = before(what, tolerance)?;
    let change = change_of(what);
    let joins = change.joins();
    a.doomed = victims.to_vec();
    a.scenario.busy = victims[0].1.is_multiple_of(2);
    let changed = a.heal_after(change, crash);
    a.scenario.busy = false;
    match changed {
        // It may die while it is labelled: then adding it fails, and says so. So does taking one back.
        Err(e) if joins && victims.iter().any(|(v, _)| *v == a.disks.len() - 1) && e.contains("adding") => {}
        Err(e)
            if change == Change::Keep(1)
                && victims.iter().any(|(v, _)| *v == 1)
                && (e.contains("keeping: ") || e.contains("was kept")) => {}
        other => drop(other?),
    }
    let all_died = victims.iter().all(|(v, _)| a.disks[*v].is_failed());
    if crash.is_some() {
        a.heal_after(change.again(), None)?;
    }
    a.heal(None)?;
    let after = match change {
        Change::Tolerance(t) => t,
        _ => tolerance,
    };
    let out = a.declared;
    let alive = (0..a.disks.len()).filter(|&i| !a.disks[i].is_failed() && Some(i) != out).collect::<Vec<_>>();
    let skip = victims.iter().map(|(_, point)| *point as usize).sum::<usize>() % 2;
    alive.into_iter().skip(skip).take(after.drives()).for_each(|i| a.disks[i].fail());
    a.finish().map(|()| all_died)
}

/// Requests of a disk at which it dies, unless told otherwise.
const DEATHS: u64 = 8;

/// At a time so many disks die, of which none is dead before; every other time the power fails as well.
fn every_death(what: What, tolerance: Tolerance, at_once: usize) {
    let deaths = number("ASHLAR_SIM_POINTS").unwrap_or(DEATHS);
    // How many requests each disk has, where nothing fails.
    let mut undisturbed = before(what, tolerance).expect("before");
    let before_it: Vec<u64> = undisturbed.disks.iter().map(|d| d.ops_count()).collect();
    let writes = undisturbed.heal_after(change_of(what), None).expect("undisturbed");
    let requests = |i: usize| undisturbed.disks[i].ops_count() - before_it.get(i).copied().unwrap_or(0);
    let alive: Vec<usize> = (0..undisturbed.disks.len()).filter(|&i| !undisturbed.disks[i].is_failed()).collect();
    let (mut failed, mut died, mut tried) = (Vec::new(), 0, 0);
    for (n, &victim) in alive.iter().enumerate() {
        let count = requests(victim);
        assert!(count > 4, "{what:?}: disk {victim} has {count} requests");
        for i in 0..deaths.min(count) {
            let share = |all: u64| 1 + i * all / deaths.min(count);
            let others = (1..at_once).map(|k| alive[(n + k) % alive.len()]);
            // The others die earlier or later.
            let others = others.map(|v| (v, 1 + share(requests(v)) * 7 % requests(v)));
            let victims: Vec<(usize, u64)> = std::iter::once((victim, share(count))).chain(others).collect();
            // Reads of what was restored come last, so that requests run behind writes.
            let crash = (i % 2 == 1).then(|| writes / 2 + share(writes) / 2);
            match outcome_of_value(|| death_at(what, tolerance, &victims, crash)) {
                Ok(all) => died += u64::from(all && crash.is_none()),
                Err(e) => failed.push(format!("disks and requests {victims:?}, crash at {crash:?}: {e}")),
            }
            tried += u64::from(crash.is_none());
        }
    }
    assert!(failed.is_empty(), "{what:?}: {}", failed.join("\n"));
    // Some have fewer requests once others are gone.
    assert!(died * 4 >= tried * 3, "{what:?}: only in {died} of {tried} tries did they die");
}

fn every(what: What, tolerance: Tolerance) {
    let count = before(what, tolerance).and_then(|mut a| a.heal_after(change_of(what), None)).expect("without a crash");
    assert!(count > 20, "{what:?} writes {count} times");
    let points = number("ASHLAR_SIM_POINTS").unwrap_or(POINTS).clamp(1, count);
    let failed: Vec<String> = (0..points)
        .map(|i| 1 + i * count / points)
        .filter_map(|point| {
            outcome_of(|| crash_at(what, tolerance, point)).err().map(|e| format!("write {point}: {e}"))
        })
        .collect();
    assert!(failed.is_empty(), "{what:?} of {count} writes: {}", failed.join("\n"));
}

macro_rules! every_step {
    ($($name:ident: $what:expr, $tolerance:ident;)*) => {
        $(#[test] fn $name() { every($what, Tolerance::$tolerance); })*
    };
}

every_step! {
    of_a_rebuild: What::Rebuild, Single;
    of_a_rebuild_with_double_tolerance: What::Rebuild, Double;
    of_catching_up: What::CatchUp, Single;
    of_catching_up_with_double_tolerance: What::CatchUp, Double;
    of_joining: What::Change(Change::Add), Single;
    of_joining_with_double_tolerance: What::Change(Change::Add), Double;
    of_joining_without_tolerance: What::Change(Change::Add), None;
    of_leaving: What::Change(Change::Remove(2)), Single;
    of_leaving_with_double_tolerance: What::Change(Change::Remove(2)), Double;
    of_replacing: What::Change(Change::Replace(2)), Single;
    of_replacing_with_double_tolerance: What::Change(Change::Replace(2)), Double;
    of_declaring_a_disk_failed: What::Change(Change::Fail(1)), Single;
    of_declaring_a_disk_failed_with_double_tolerance: What::Change(Change::Fail(1)), Double;
    of_keeping_a_disk_that_was_declared_failed: What::Keep, Single;
    of_keeping_a_disk_with_double_tolerance: What::Keep, Double;
    of_taking_on_tolerance: What::Change(Change::Tolerance(Tolerance::Single)), None;
    of_giving_tolerance_up: What::Change(Change::Tolerance(Tolerance::None)), Single;
    of_raising_the_tolerance: What::Change(Change::Tolerance(Tolerance::Double)), Single;
    of_lowering_the_tolerance: What::Change(Change::Tolerance(Tolerance::Single)), Double;
    of_a_scrub: What::Scrub, Single;
    of_a_scrub_with_double_tolerance: What::Scrub, Double;
    of_rebalancing: What::Change(Change::Rebalance), Single;
    of_rebalancing_with_double_tolerance: What::Change(Change::Rebalance), Double;
}

macro_rules! every_death {
    ($($name:ident: $what:expr, $tolerance:ident, $at_once:literal;)*) => {
        $(#[test] fn $name() { every_death($what, Tolerance::$tolerance, $at_once); })*
    };
}

every_death! {
    death_in_a_rebuild: What::Rebuild, Double, 1;
    death_in_catching_up: What::CatchUp, Double, 1;
    death_in_joining: What::Change(Change::Add), Single, 1;
    deaths_in_joining: What::Change(Change::Add), Double, 2;
    death_in_leaving: What::Change(Change::Remove(2)), Single, 1;
    deaths_in_leaving: What::Change(Change::Remove(2)), Double, 2;
    death_in_replacing: What::Change(Change::Replace(2)), Single, 1;
    deaths_in_replacing: What::Change(Change::Replace(2)), Double, 2;
    death_in_declaring_a_disk_failed: What::Change(Change::Fail(1)), Double, 1;
    death_in_keeping_a_disk: What::Keep, Double, 1;
    death_in_raising_the_tolerance: What::Change(Change::Tolerance(Tolerance::Double)), Single, 1;
    death_in_lowering_the_tolerance: What::Change(Change::Tolerance(Tolerance::Single)), Double, 1;
    death_in_a_scrub: What::Scrub, Double, 1;
    death_in_rebalancing: What::Change(Change::Rebalance), Single, 1;
    deaths_in_rebalancing: What::Change(Change::Rebalance), Double, 2;
}
