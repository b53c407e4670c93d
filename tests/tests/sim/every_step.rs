//! A crash at every write, and the death of a disk at every few requests, of every change of a pool: of a rebuild, of catching up, of a disk that joins or leaves, of another tolerance, of a scrub, of a
//! balance. After each the pool is opened, comes to its end, and survives as many failures as it promises.
//!
//! `ASHLAR_SIM_POINTS` sets how many of the writes are tried, evenly spread; the default is few.

use std::time::Duration;

use blockdev::env::Rng;
use blockdev::report::Tolerance;

use super::harness::{Appliance, Change, Faults, Scenario};
use super::rebuild::scenario as rebuild_scenario;
use super::seeds::{number, outcome_of};

/// Writes of each change at which a crash is tried, unless told otherwise.
const POINTS: u64 = 300;

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
    a.heal_after(change, Some(point))?;
    // A disk that was about to join may be one already, or not.
    let again = if change == Change::Add { Change::None } else { change };
    a.heal_after(again, None)?;
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

/// Another disk dies after so many of its requests: what was going on comes to its end, and so does the rebuild.
fn death_at(what: What, tolerance: Tolerance, victim: usize, point: u64) -> Result<(), String> {
    let mut a = before(what, tolerance)?;
    let change = change_of(what);
    let joins = change == Change::Add;
    // It may die while it is labelled: then adding it fails, and says so.
    a.doomed = Some((victim, point));
    match a.heal_after(change, None) {
        Err(e) if joins && victim == a.disks.len() - 1 && e.contains("adding") => {}
        other => drop(other?),
    }
    a.heal(None)?;
    let after = match change {
        Change::Tolerance(t) => t,
        _ => tolerance,
    };
    let out = a.declared;
    let alive = (0..a.disks.len()).filter(|&i| !a.disks[i].is_failed() && Some(i) != out).collect::<Vec<_>>();
    alive.into_iter().skip(point as usize % 2).take(after.drives()).for_each(|i| a.disks[i].fail());
    a.finish()
}

/// Requests of a disk at which it dies, unless told otherwise.
const DEATHS: u64 = 12;

fn every_death(what: What, tolerance: Tolerance) {
    let deaths = number("ASHLAR_SIM_POINTS").map_or(DEATHS, |points| points.min(200));
    let disks = scenario(tolerance).disks;
    let mut failed = Vec::new();
    for victim in (0..disks).filter(|&v| v != 1) {
        for i in 0..deaths {
            let point = 1 + i * 400 / deaths;
            if let Err(e) = outcome_of(|| death_at(what, tolerance, victim, point)) {
                failed.push(format!("disk {victim}, request {point}: {e}"));
            }
        }
    }
    assert!(failed.is_empty(), "{what:?}: {}", failed.join("\n"));
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
    of_joining: What::Change(Change::Add), Single;
    of_leaving: What::Change(Change::Remove(2)), Single;
    of_leaving_with_double_tolerance: What::Change(Change::Remove(2)), Double;
    of_declaring_a_disk_failed: What::Change(Change::Fail(1)), Single;
    of_declaring_a_disk_failed_with_double_tolerance: What::Change(Change::Fail(1)), Double;
    of_keeping_a_disk_that_was_declared_failed: What::Keep, Single;
    of_raising_the_tolerance: What::Change(Change::Tolerance(Tolerance::Double)), Single;
    of_lowering_the_tolerance: What::Change(Change::Tolerance(Tolerance::Single)), Double;
    of_a_scrub: What::Scrub, Single;
    of_a_scrub_with_double_tolerance: What::Scrub, Double;
    of_rebalancing: What::Change(Change::Rebalance), Single;
}

macro_rules! every_death {
    ($($name:ident: $what:expr, $tolerance:ident;)*) => {
        $(#[test] fn $name() { every_death($what, Tolerance::$tolerance); })*
    };
}

every_death! {
    death_in_a_rebuild: What::Rebuild, Double;
    death_in_catching_up: What::CatchUp, Double;
    death_in_joining: What::Change(Change::Add), Single;
    death_in_leaving: What::Change(Change::Remove(2)), Single;
    death_in_declaring_a_disk_failed: What::Change(Change::Fail(1)), Double;
    death_in_keeping_a_disk: What::Keep, Double;
    death_in_raising_the_tolerance: What::Change(Change::Tolerance(Tolerance::Double)), Single;
    death_in_lowering_the_tolerance: What::Change(Change::Tolerance(Tolerance::Single)), Double;
    death_in_a_scrub: What::Scrub, Double;
    death_in_rebalancing: What::Change(Change::Rebalance), Single;
}
