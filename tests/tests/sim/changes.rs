//! A pool that changes while it is in use: its tolerance, its resiliency sets, how evenly its disks are filled. Crashes come in the middle of each, and
//! failures afterwards prove what was promised.

use std::collections::BTreeMap;
use std::time::Duration;

use blockdev::env::Rng;
use blockdev::error::ErrorKind;
use blockdev::pool::Pool;
use blockdev::report::{PoolStatus, Tolerance};
use blockdev::units::BLOCK_BYTES;

use super::harness::{Appliance, Change, Faults, Scenario, name, read_all};
use super::model::{Step, content};
use super::rebuild::scenario as rebuild_scenario;
use super::seeds::sweep;

const STEPS: u64 = 30_000_000;

fn pick(rng: &mut Rng) -> Tolerance {
    [Tolerance::None, Tolerance::Single, Tolerance::Double][rng.index(3)]
}

/// What the pool says of itself.
fn status(a: &mut Appliance) -> Result<PoolStatus, String> {
    let scope = a.next_life();
    let (env, disks, config) = (scope.env(), a.all_disks(), a.scenario.config.clone());
    let look = async {
        let pool = Pool::open(env, disks, config).await.map_err(|e| e.to_string())?;
        let status = pool.status().await;
        pool.close().await.map_err(|e| e.to_string())?;
        Ok(status)
    };
    let status = scope.run_until(look, STEPS).map_err(|e| format!("{e:?}"))?;
    scope.kill_all_tasks();
    status
}

/// Either all data is there, or the pool says that it cannot be served.
fn serves_all_or_nothing(a: &mut Appliance) -> Result<(), String> {
    let scope = a.next_life();
    let (env, disks, config) = (scope.env(), a.all_disks(), a.scenario.config.clone());
    let look = async {
        match Pool::open(env, disks, config).await {
            Err(e) if e.kind() == ErrorKind::Unavailable => Ok(None),
            Err(e) => Err(e.to_string()),
            Ok(pool) => read_all(&pool).await.map(Some),
        }
    };
    let found = scope.run_until(look, STEPS).map_err(|e| format!("{e:?}"))?;
    scope.kill_all_tasks();
    let mut rng = Rng::new(a.scenario.seed);
    a.disks.iter().for_each(|d| d.crash(&mut rng));
    match found? {
        Some(found) => a.model.recover(&found).map(drop),
        None => Ok(()),
    }
}

/// Fills all volumes with what does not compress.
fn fill(a: &mut Appliance, seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let scope = a.next_life();
    let (env, disks, config) = (scope.env(), a.all_disks(), a.scenario.config.clone());
    let model = std::mem::take(&mut a.model);
    let model = std::sync::Mutex::new(model);
    let (volumes, blocks) = (a.scenario.volumes, a.scenario.blocks);
    let work = async {
        let pool = Pool::open(env, disks, config).await.map_err(|e| e.to_string())?;
        let found = read_all(&pool).await?;
        model.lock().map_err(|e| e.to_string())?.recover(&found)?;
        for volume in 0..volumes {
            let device = pool.open_volume(&name(volume)).map_err(|e| e.to_string())?;
            let blocks = blocks.min(device.geometry().size / BLOCK_BYTES);
            for lba in (0..blocks).step_by(16) {
                let tags: Vec<u64> = (lba..blocks.min(lba + 16)).map(|_| rng.u64() / 5 * 5).collect();
                let data: Vec<u8> = tags.iter().flat_map(|tag| content(*tag)).collect();
                model.lock().map_err(|e| e.to_string())?.issue(Step::Write { volume, lba, tags });
                device.write(lba * BLOCK_BYTES, data.into(), false).await.map_err(|e| format!("filling: {e}"))?;
            }
        }
        pool.close().await.map_err(|e| e.to_string())?;
        let mut model = model.lock().map_err(|e| e.to_string())?;
        let all = model.len();
        model.flushed(all);
        Ok::<(), String>(())
    };
    let done = scope.run_until(work, STEPS).map_err(|e| format!("{e:?}"))?;
    scope.kill_all_tasks();
    a.model = model.into_inner().map_err(|e| e.to_string())?;
    done
}

/// The tolerance changes, again and again, in the middle of crashes; when it has changed, as many disks fail as it promises.
pub fn run_tolerance(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0x701E);
    let mut scenario = rebuild_scenario(seed);
    scenario.tolerance = pick(&mut rng);
    scenario.disks = 4 + rng.index(5);
    let mut a = Appliance::new(scenario)?;
    a.set_frail(Vec::new());
    a.live(rng.chance(1, 2).then(|| 200 + rng.below(400)))?;
    for _ in 0..rng.between(1, 4) {
        let wanted = pick(&mut rng);
        for _ in 0..rng.below(4) {
            let reach = 1 << rng.between(1, 9);
            a.heal_after(Change::Tolerance(wanted), Some(1 + rng.below(reach)))?;
        }
        if rng.chance(1, 2) {
            let reach = 1 << rng.between(3, 9);
            a.live(Some(1 + rng.below(reach)))?;
        }
        if rng.chance(1, 3) {
            // In the middle of it more may fail than all data survives yet.
            let mut victims: Vec<usize> = (0..a.disks.len()).collect();
            rng.shuffle(&mut victims);
            victims.truncate(wanted.drives());
            victims.iter().for_each(|&v| a.disks[v].fail());
            serves_all_or_nothing(&mut a)?;
            victims.iter().for_each(|&v| a.disks[v].restore());
        }
        a.heal_after(Change::Tolerance(wanted), None)?;
        if rng.chance(1, 2) {
            let reach = 1 << rng.between(3, 9);
            a.live(Some(1 + rng.below(reach)))?;
        }
        let mut victims: Vec<usize> = (0..a.disks.len()).collect();
        rng.shuffle(&mut victims);
        victims.truncate(wanted.drives());
        victims.iter().for_each(|&v| a.disks[v].fail());
        let reach = 1 << rng.between(3, 9);
        a.live(Some(1 + rng.below(reach)))?;
        victims.iter().for_each(|&v| a.disks[v].restore());
        a.heal(None)?;
    }
    a.finish()
}

#[test]
fn the_tolerance_changes_0() {
    sweep(0, 2, 300, run_tolerance);
}

#[test]
fn the_tolerance_changes_1() {
    sweep(1, 2, 300, run_tolerance);
}

/// A pool grows beyond one resiliency set, and survives as many failures in each as it tolerates; then it shrinks again.
pub fn run_sets(seed: u64) -> Result<(), String> {
    run_sets_of(seed, Tolerance::Single, 25)
}

/// The same, with at most so many disks in a set.
fn run_sets_of(seed: u64, tolerance: Tolerance, most: usize) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0x5E75);
    let mut scenario = rebuild_scenario(seed);
    (scenario.tolerance, scenario.disks, scenario.disk_size) = (tolerance, most - 2 + rng.index(3), 4 << 20);
    scenario.blocks = rng.between(60, 200);
    scenario.config.missing_grace = Duration::from_secs(3600);
    scenario.config.failed_grace = Duration::from_secs(3600);
    let mut a = Appliance::new(scenario)?;
    a.set_frail(Vec::new());
    a.live(None)?;
    while a.disks.len() < most + 1 + rng.index(3) {
        a.heal_after(Change::Add, rng.chance(1, 3).then(|| 1 + rng.below(200)))?;
        for _ in 0..rng.below(3) {
            let reach = 1 << rng.between(2, 9);
            a.heal(Some(1 + rng.below(reach)))?;
        }
        if rng.chance(1, 3) {
            a.live(Some(1 + rng.below(300)))?;
        }
    }
    a.heal(None)?;
    let now = status(&mut a)?;
    let members = now.disks.len();
    let mut sets: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for disk in &now.disks {
        let index: usize = disk.path[4..].parse().map_err(|_| format!("{}?", disk.path))?;
        sets.entry(disk.set).or_default().push(index);
    }
    // A crash may have left a disk out that was about to join.
    let expected = members.div_ceil(most);
    if sets.len() < expected || now.mixed || sets.values().any(|disks| disks.len() > most) {
        return Err(format!("{members} disks form {} sets, mixed {}", sets.len(), now.mixed));
    }
    // As many failures in each set as may be, at once.
    for disks in sets.values_mut() {
        rng.shuffle(disks);
    }
    let victims: Vec<usize> = sets.values().flat_map(|disks| disks.iter().copied().take(tolerance.drives())).collect();
    victims.iter().for_each(|&v| a.disks[v].fail());
    a.live(Some(1 + rng.below(400)))?;
    a.live(None)?;
    victims.iter().for_each(|&v| a.disks[v].restore());
    a.heal(None)?;
    // And back to one set.
    let small = sets.values().min_by_key(|disks| disks.len()).cloned().unwrap_or_default();
    if rng.chance(1, 3) && sets.len() > 1 {
        for &disk in small.iter().take(small.len().saturating_sub(2 + tolerance.drives())) {
            a.heal_after(Change::Remove(disk), rng.chance(1, 4).then(|| 1 + rng.below(200)))?;
            a.heal_after(Change::Remove(disk), None)?;
        }
        let now = status(&mut a)?;
        if now.sets != 1 || now.mixed {
            return Err(format!("{} disks form {} sets, mixed {}", now.disks.len(), now.sets, now.mixed));
        }
    }
    a.finish()
}

#[test]
fn sets_split_and_fail_by_themselves() {
    sweep(0, 1, 40, run_sets);
}

#[test]
fn sets_with_double_tolerance_split_and_fail_by_themselves() {
    sweep(0, 1, 10, |seed| run_sets_of(seed, Tolerance::Double, 50));
}

/// Disks are added to a pool that is half full, and data is spread: afterwards all are as full, and segments as wide as new ones.
pub fn run_balance(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0xBA1A);
    let mut scenario: Scenario = rebuild_scenario(seed);
    scenario.disks = scenario.tolerance.drives() + 2 + rng.index(3);
    scenario.faults = Faults::Deaths;
    (scenario.volumes, scenario.blocks) = (2, 700);
    let mut a = Appliance::new(scenario)?;
    a.set_frail(Vec::new());
    fill(&mut a, seed)?;
    for _ in 0..rng.between(1, 4) {
        a.heal_after(Change::Add, rng.chance(1, 3).then(|| 1 + rng.below(300)))?;
    }
    for _ in 0..rng.below(4) {
        let reach = 1 << rng.between(2, 9);
        a.heal_after(Change::Rebalance, Some(1 + rng.below(reach)))?;
    }
    a.heal_after(Change::Rebalance, None)?;
    let now = status(&mut a)?;
    let share = |allocated: u64, size: u64| allocated as f64 / size as f64;
    let shares: Vec<f64> = now.disks.iter().map(|d| share(d.allocated, d.size)).collect();
    let (least, most) = shares.iter().fold((1.0f64, 0.0f64), |(a, b), s| (a.min(*s), b.max(*s)));
    // A few segments are opened and given back after the balance was struck.
    if most - least > 0.12 {
        return Err(format!("shares {shares:?}"));
    }
    a.finish()
}

#[test]
fn data_is_spread_over_new_disks() {
    sweep(0, 1, 60, run_balance);
}
