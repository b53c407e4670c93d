//! Snapshots, clones, restored, refreshed and deleted volumes among everything else, with crashes and failing disks. What they hold is compared
//! with the model after each recovery, references are recounted, and when all is deleted no space is taken any more.

use std::collections::BTreeMap;
use std::time::Duration;

use blockdev::env::Rng;
use blockdev::error::{Error, ErrorKind};
use blockdev::format::volume::Setting;
use blockdev::pool::{Kept, Managed, Pool};
use blockdev::units::BLOCK_BYTES;
use bytes::Bytes;

use super::full::pressure;
use super::harness::{Appliance, Faults, Scenario, check, name, read_all, scenario_is_silent};
use super::killed;
use super::model::{Image, Step, content};
use super::seeds::{run_to_end, sweep, sweep_scenarios};
use super::stress::{deaths, storm};
use super::work::{Mix, Worker, failed, pick};

/// Volumes there are at most.
const VOLUMES_MAX: usize = 6;
/// Seconds after which snapshots expire that do, at most.
const EXPIRE_S: u64 = 60;
/// Looks at the reaper until it must be done.
const ROUNDS: u32 = 3000;

impl Worker<'_> {
    /// False when the pool is full.
    pub async fn snapshots(&self, rng: &mut Rng) -> Result<bool, String> {
        let now = self.model().now();
        let some_volume = |rng: &mut Rng| pick(rng, &now.volumes).copied().unwrap_or(0);
        match rng.below(32) {
            0..=3 => {
                let tag = rng.below(1 << 40);
                let all = rng.chance(1, 3);
                let one = some_volume(rng);
                let of = now.volumes.keys().filter(|v| all || **v == one);
                let of: Vec<(usize, String)> = of.map(|v| (*v, format!("{}@s{tag:x}", name(*v)))).collect();
                let names: Vec<String> = of.iter().map(|(_, name)| name.clone()).collect();
                let kept = kept(rng);
                let keep = Step::Keep { names: names.clone(), secure: kept.secure, rule: kept.rule };
                let step = Step::Both(Box::new([Step::Snapshot { of }, keep]));
                self.change(step, self.pool.create_snapshots(&names, &kept)).await
            }
            4..=6 => {
                let Some(name) = pick(rng, &now.snapshots) else { return Ok(true) };
                let until = held_until(self.pool, name);
                let step = Step::DropSnapshot { name: name.clone() };
                self.change(step, self.pool.delete_snapshot(name)).await?;
                let gone = self.pool.snapshot_info(name).await.is_err();
                match gone && self.pool.engine().clock_s() < until {
                    true => Err(format!("{name} is secure, and could be deleted")),
                    false => Ok(true),
                }
            }
            7..=8 => {
                let Some(from) = pick(rng, &now.snapshots) else { return Ok(true) };
                let Some(volume) = (0..VOLUMES_MAX).find(|v| !now.volumes.contains_key(v)) else { return Ok(true) };
                let step = Step::Clone { from: from.clone(), volume };
                self.change(step, self.pool.clone_snapshot(from, &name(volume))).await
            }
            9..=10 => {
                let Some(from) = pick(rng, &now.snapshots) else { return Ok(true) };
                let volume = some_volume(rng);
                let keep = rng.chance(1, 2).then(|| format!("k{:x}", rng.below(1 << 40)));
                let step = Step::Clone { from: from.clone(), volume };
                let step = keeping(step, volume, keep.as_deref());
                self.change(step, self.pool.restore_volume(&name(volume), from, keep.as_deref())).await
            }
            11 => {
                let (from, volume) = (some_volume(rng), some_volume(rng));
                let keep = rng.chance(1, 2).then(|| format!("k{:x}", rng.below(1 << 40)));
                let step = keeping(Step::Refresh { from, volume }, volume, keep.as_deref());
                self.change(step, self.pool.refresh_volume(&name(volume), &name(from), keep.as_deref())).await
            }
            12 if now.volumes.len() > 1 => {
                let volume = some_volume(rng);
                let own = format!("{}@", name(volume));
                let own = now.snapshots.keys().filter(|s| s.starts_with(&own));
                let until = own.map(|s| held_until(self.pool, s)).max().unwrap_or(0);
                self.change(Step::DropVolume { volume }, self.pool.delete_volume(&name(volume), true)).await?;
                let gone = self.pool.volume_info(&name(volume)).await.is_err();
                match gone && self.pool.engine().clock_s() < until {
                    true => Err(format!("volume {volume} was deleted with what is secure")),
                    false => Ok(true),
                }
            }
            16 => {
                let (volume, group, setting) = (some_volume(rng), rng.below(3) as u32, format!("s{}", rng.below(4)));
                let value = vec![rng.below(256) as u8; rng.below(40) as usize];
                let new = Setting { name: setting.clone(), value: value.clone() };
                let changes = vec![Managed::Group(name(volume), group), Managed::Setting(new)];
                self.change(Step::Manage { volume, group, setting, value }, self.pool.manage(changes)).await
            }
            17 => {
                let Some(name) = pick(rng, &now.snapshots) else { return Ok(true) };
                let kept = kept(rng);
                // What is secure stays so for as long as it is kept; not while that ends.
                let (until, now_s) = (held_until(self.pool, name), self.pool.engine().clock_s());
                if (now_s..now_s + EXPIRE_S / 4).contains(&until) {
                    return Ok(true);
                }
                let secure = kept.secure || until > now_s;
                let step = Step::Keep { names: vec![name.clone()], secure, rule: 0 };
                self.change(step, self.pool.keep_snapshot(name, kept.expires_in_s, kept.secure)).await
            }
            18 if now.snapshots.len() > 1 && now.volumes.len() > 1 => {
                // Several at once.
                let (one, other) = (some_volume(rng), some_volume(rng));
                let (Some(a), Some(b)) = (pick(rng, &now.snapshots), pick(rng, &now.snapshots)) else {
                    return Ok(true);
                };
                let steps = [(one, a), (other, b)].map(|(volume, from)| Step::Clone { from: from.clone(), volume });
                let restored = [(name(one), a.clone()), (name(other), b.clone())];
                self.change(Step::Both(Box::new(steps)), self.pool.restore_volumes(&restored, None, 0)).await
            }
            // Not in all: seeds that catch planted bugs go on as they did.
            19 if self.scenario.seed % 4 == 1 => {
                // A group as a whole: several clones at once, in a group of their own, and what is noted of it.
                let free: Vec<usize> = (0..VOLUMES_MAX).filter(|v| !now.volumes.contains_key(v)).collect();
                let (Some(a), Some(b)) = (pick(rng, &now.snapshots), pick(rng, &now.snapshots)) else {
                    return Ok(true);
                };
                let [one, other, ..] = free[..] else { return Ok(true) };
                let (group, setting) = (1 + rng.below(3) as u32, format!("s{}", rng.below(4)));
                let value = vec![rng.below(256) as u8; 1 + rng.below(40) as usize];
                let new = Managed::Setting(Setting { name: setting.clone(), value: value.clone() });
                let clones = [(one, a), (other, b)].map(|(volume, from)| Step::Clone { from: from.clone(), volume });
                let managed = [one, other].map(|volume| {
                    let (setting, value) = (setting.clone(), value.clone());
                    Step::Manage { volume, group, setting, value }
                });
                let step = Step::Both(Box::new([Step::Both(Box::new(clones)), Step::Both(Box::new(managed))]));
                let names = [(a.clone(), name(one)), (b.clone(), name(other))];
                self.change(step, self.pool.clone_snapshots(&names, group, vec![new])).await
            }
            13 => {
                let steps = self.model().len();
                self.pool.engine().flush().await.map_err(|e| failed("flush", e))?;
                self.model().flushed(steps);
                same(self.pool, &now).await.map(|()| true)
            }
            14..=15 => {
                let all: BTreeMap<String, &Vec<u64>> = {
                    let volumes = now.volumes.iter().map(|(v, tags)| (name(*v), tags));
                    volumes.chain(now.snapshots.iter().map(|(name, tags)| (name.clone(), tags))).collect()
                };
                let (Some(a), Some(b)) = (pick(rng, &all), pick(rng, &all)) else { return Ok(true) };
                differences(self.pool, (a, all[a]), (b, all[b])).await.map(|()| true)
            }
            _ => self.usual(rng).await,
        }
    }

    /// Makes a change that is durable when it is answered. What cannot be asked for changes nothing.
    async fn change<T>(&self, step: Step, work: impl Future<Output = Result<T, Error>>) -> Result<bool, String> {
        self.model().issue(step.clone());
        let steps = self.model().len();
        match work.await {
            Ok(_) => self.model().flushed(steps),
            Err(e) if matches!(e.kind(), ErrorKind::InvalidArgument | ErrorKind::NoSpace | ErrorKind::Busy) => {
                self.model().withdraw();
            }
            Err(e) => return Err(failed(&format!("{step:?}"), e)),
        }
        Ok(true)
    }
}

/// How snapshots are kept, at random.
fn kept(rng: &mut Rng) -> Kept {
    let expires_in_s = rng.chance(1, 3).then(|| rng.between(1, EXPIRE_S));
    let secure = expires_in_s.is_some() && rng.chance(1, 2);
    Kept { expires_in_s, secure, rule: rng.below(3) as u32, group: rng.below(3) as u32, ..Kept::default() }
}

/// Until when nobody can delete a snapshot; 0 when anybody can.
fn held_until(pool: &Pool, name: &str) -> u64 {
    let state = pool.engine().state.read();
    state.volume_named(name).filter(|s| s.protection.secure).map_or(0, |s| s.protection.expires_s)
}

fn keeping(step: Step, volume: usize, keep: Option<&str>) -> Step {
    match keep {
        Some(keep) => {
            let of = vec![(volume, format!("{}@{keep}", name(volume)))];
            Step::Both(Box::new([Step::Snapshot { of }, step]))
        }
        None => step,
    }
}

/// Whether all that differs between two versions is said to, and what is said of it is right.
async fn differences(pool: &Pool, (since, before): (&str, &[u64]), (name, now): (&str, &[u64])) -> Result<(), String> {
    let (mut offset, mut told) = (0, BTreeMap::new());
    loop {
        let changes = match pool.changes(name, since, offset, 3).await {
            Err(e) if e.kind() == ErrorKind::InvalidArgument => return Ok(()),
            other => other.map_err(|e| failed("diff", e))?,
        };
        for r in &changes.ranges {
            told.extend((r.offset / BLOCK_BYTES..(r.offset + r.len) / BLOCK_BYTES).map(|lba| (lba as usize, r.mapped)));
        }
        match changes.next {
            Some(next) if next > offset || changes.ranges.is_empty() => offset = next,
            Some(next) => return Err(format!("diff goes on at {next} from {offset}")),
            None => break,
        }
    }
    let tag = |tags: &[u64], lba: usize| tags.get(lba).copied().unwrap_or(0);
    for lba in 0..before.len().max(now.len()) {
        let differs = tag(before, lba) != tag(now, lba);
        match told.get(&lba) {
            None if differs => return Err(format!("block {lba} of {name} is not what it was in {since}: not told")),
            Some(mapped) if *mapped != (tag(now, lba) != 0) => {
                return Err(format!("block {lba} of {name}, changed since {since}, is mapped: {mapped}"));
            }
            _ => {}
        }
    }
    if since == name && !told.is_empty() { Err(format!("{name} differs from itself")) } else { Ok(()) }
}

/// Whether a pool holds what the model says, and knows how much that is.
async fn same(pool: &Pool, expected: &Image) -> Result<(), String> {
    let found = read_all(pool).await?;
    if found != *expected {
        return Err(format!("live: {}", expected.difference(&found)));
    }
    let state = pool.engine().state.read();
    for v in state.volumes.values().filter(|v| !v.deleting) {
        let name = state.name_of(v);
        let number = name.strip_prefix('v').and_then(|n| n.parse::<usize>().ok());
        let tags = number.map_or_else(|| &found.snapshots[&name], |n| &found.volumes[&n]);
        let mapped = tags.iter().filter(|tag| **tag != 0).count() as u64;
        if v.mapped != mapped || v.blocks != tags.len() as u64 {
            return Err(format!("{name}: {} of {} blocks mapped, expected {mapped}", v.mapped, v.blocks));
        }
    }
    Ok(())
}

/// A random scenario: the usual ones, and those in which checkpoints and disks that die overlap with everything.
pub fn scenario(seed: u64) -> Scenario {
    let mut scenario = match seed % 5 {
        0 => storm(seed),
        1 => deaths(seed),
        _ => Scenario::random(seed),
    };
    // Maps of one level and of two, and short records of the reaper as well as long ones.
    if seed % 5 > 2 {
        (scenario.blocks, scenario.disk_size) = (400 + scenario.blocks * 4, 8 << 20);
    }
    scenario.config.reap_places = [1, 1, 64][(seed / 5 % 3) as usize];
    scenario.mix = Mix::Snapshots;
    scenario.ops = scenario.ops.max(60);
    scenario
}

/// Runs one seed, then deletes all there is: nothing is left.
pub fn run(scenario: Scenario) -> Result<(), String> {
    let mut appliance = run_to_end(scenario)?;
    let silent = scenario_is_silent(&appliance.scenario);
    nothing_is_left(&mut appliance, silent)
}

fn nothing_is_left(appliance: &mut Appliance, silent: bool) -> Result<(), String> {
    let scope = appliance.next_life();
    let env = scope.env();
    let (disks, config) = (appliance.all_disks(), appliance.scenario.config.clone());
    let order = appliance.rng.u64();
    let last = async {
        let mut rng = Rng::new(order);
        let pool = Pool::open(env.clone(), disks, config).await.map_err(|e| failed("open", e))?;
        let mut names: Vec<String> = {
            let state = pool.engine().state.read();
            state.volumes.values().filter(|v| !v.deleting).map(|v| state.name_of(v)).collect()
        };
        rng.shuffle(&mut names);
        // Until everything has expired that does.
        env.sleep(Duration::from_secs(EXPIRE_S * 2)).await;
        let changes = names.iter().filter(|name| !name.contains('@')).map(|name| Managed::Group(name.clone(), 0));
        pool.manage(changes.collect()).await.map_err(|e| failed("leaving groups", e))?;
        for name in &names {
            match name.contains('@') {
                true => pool.delete_snapshot(name).await.or_else(absent).map_err(|e| failed(name, e))?,
                false => pool.delete_volume(name, true).await.map_err(|e| failed(name, e))?,
            }
            if rng.chance(1, 2) {
                env.sleep(Duration::from_millis(rng.below(20))).await;
            }
        }
        let mut rounds = 0;
        while pool.engine().is_reaping() {
            rounds += 1;
            if rounds > ROUNDS {
                return Err("the reaper does not come to an end".into());
            }
            env.sleep(Duration::from_millis(5)).await;
        }
        check(&pool, silent).await?;
        let state = pool.engine().state.read();
        let left: Vec<String> = state.volumes.values().map(|v| format!("{v:?}")).collect();
        match (left.is_empty(), state.unique_bytes, state.referenced_bytes, state.table.used()) {
            (true, 0, 0, 0) => Ok(()),
            other => Err(format!("left when all is deleted: {other:?}, {}", left.join("; "))),
        }
    };
    let result = scope.run_until(last, 3_000_000).map_err(|e| format!("deleting everything: {e:?}"))?;
    scope.kill_all_tasks();
    result
}

fn absent(e: Error) -> Result<(), Error> {
    if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) }
}

/// Seeds of all shares together.
const SEEDS: u64 = 5000;
const SHARES: u64 = 4;

fn random_seeds(share: u64) {
    sweep_scenarios(share, (SHARES, SEEDS), scenario, run);
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

/// Processes are killed, and what they were told is done must be there.
#[test]
fn killed_processes() {
    sweep(0, 1, 200, |seed| {
        let scenario = scenario(seed);
        let faults = if seed.is_multiple_of(2) { Faults::Deaths } else { Faults::None };
        killed::run(Scenario { faults, ..scenario })
    });
}

/// Pools that are full, also of what only snapshots hold.
#[test]
fn full_pools() {
    sweep(0, 1, 40, |seed| {
        let scenario = pressure(seed);
        let blocks = scenario.blocks * 2 / 3;
        run(Scenario { mix: Mix::Snapshots, blocks, ops: 150, ..scenario })
    });
}

/// A pool that is full of what a snapshot holds has room again when that is deleted.
#[test]
fn a_full_pool_gets_room_from_a_snapshot() {
    let scenario = Scenario { volumes: 1, blocks: 500, disk_size: 24 << 20, ..pressure(3) };
    let mut appliance = Appliance::new(scenario).expect("made");
    let scope = appliance.next_life();
    let (disks, config) = (appliance.all_disks(), appliance.scenario.config.clone());
    let env = scope.env();
    let life = async {
        let pool = Pool::open(env.clone(), disks, config).await.expect("opened");
        let device = pool.open_volume("v0").expect("there");
        let write = |lba: u64, tag: u64| device.write(lba * BLOCK_BYTES, Bytes::from(content(5 * tag)), false);
        let mut tag = 1;
        let mut round = 0;
        let full = loop {
            let mut full = pool.create_snapshots(&[format!("v0@s{round}")], &Kept::default()).await.err();
            round += 1;
            for lba in (0..500).take_while(|_| full.is_none()) {
                tag += 1;
                if let Err(e) = write(lba, tag).await {
                    full = Some(e);
                    break;
                }
            }
            if let Some(e) = full {
                break e;
            }
        };
        assert_eq!(full.kind(), ErrorKind::NoSpace);
        assert!(round > 2, "{round} snapshots only");
        // Everything else works, and is needed.
        let before = read_all(&pool).await.expect("read");
        let refused = pool.clone_snapshot("v0@s1", "v1").await.expect_err("no room");
        assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
        device.discard(0, 20 * BLOCK_BYTES).await.expect("discarded");
        pool.delete_snapshot("v0@s0").await.expect("deleted");
        pool.delete_snapshot("v0@s2").await.expect("deleted");
        let mut rounds = 0;
        while pool.engine().is_reaping() || write(30, tag).await.is_err() {
            rounds += 1;
            assert!(rounds < 10_000, "there is no room again");
            env.sleep(Duration::from_millis(10)).await;
        }
        for lba in 100..300 {
            tag += 1;
            write(lba, tag).await.expect("there is room");
        }
        pool.clone_snapshot("v0@s1", "v1").await.expect("cloned");
        let after = read_all(&pool).await.expect("read");
        assert_eq!(after.snapshots["v0@s1"], before.snapshots["v0@s1"]);
        assert_eq!(after.volumes[&1], before.snapshots["v0@s1"]);
        check(&pool, false).await.expect("sound");
    };
    scope.run_until(life, 30_000_000).expect("done");
    scope.kill_all_tasks();
}

/// Who asks for changes since a snapshot is told when another one has its name by now: what changed before that would be left out.
#[test]
fn changes_are_told_since_the_snapshot_that_was_meant() {
    let scenario = Scenario { volumes: 1, faults: Faults::None, ..Scenario::random(12) };
    let mut appliance = Appliance::new(scenario).expect("made");
    let scope = appliance.next_life();
    let (disks, config) = (appliance.all_disks(), appliance.scenario.config.clone());
    let env = scope.env();
    let life = async {
        let pool = Pool::open(env, disks, config).await.expect("opened");
        let device = pool.open_volume("v0").expect("there");
        let names = ["v0@daily".to_owned()];
        let first = pool.create_snapshots(&names, &Kept::default()).await.expect("taken")[0].id;
        device.write(3 * BLOCK_BYTES, Bytes::from(content(77)), false).await.expect("written");
        let told = |id: u32| pool.changed_extents("v0", ("v0@daily", id), 0, 8 * BLOCK_BYTES, 10);
        let extents = told(first).await.expect("told");
        let changed: Vec<(u64, u64)> = extents.iter().filter(|e| e.mapped).map(|e| (e.offset, e.len)).collect();
        assert_eq!((changed, extents.len()), (vec![(3 * BLOCK_BYTES, BLOCK_BYTES)], 3));
        pool.delete_snapshot("v0@daily").await.expect("deleted");
        let second = pool.create_snapshots(&names, &Kept::default()).await.expect("taken")[0].id;
        let refused = told(first).await.expect_err("it is another one");
        assert!(refused.kind() == ErrorKind::NotFound && refused.to_string().contains("later one"), "{refused}");
        assert!(told(second).await.expect("told").iter().all(|e| !e.mapped));
    };
    scope.run_until(life, 3_000_000).expect("done");
    scope.kill_all_tasks();
}

/// What is said to come back when a snapshot is deleted comes back.
#[test]
fn what_a_snapshot_holds_comes_back() {
    let mut scenario =
        Scenario { volumes: 1, blocks: 900, disk_size: 24 << 20, faults: Faults::None, ..Scenario::random(11) };
    // Checkpoints write pages of the block table anew, which take more or less than before.
    scenario.config.checkpoint_interval = Duration::from_secs(3600);
    let mut appliance = Appliance::new(scenario).expect("made");
    let scope = appliance.next_life();
    let (disks, config) = (appliance.all_disks(), appliance.scenario.config.clone());
    let env = scope.env();
    let life = async {
        let pool = Pool::open(env.clone(), disks, config).await.expect("opened");
        let device = pool.open_volume("v0").expect("there");
        let mut rng = Rng::new(5);
        let mut tag = 1u64 << 40;
        for round in 0..6 {
            for _ in 0..60 {
                // Some occur twice: they are shared, and do not come back.
                tag += 1;
                let tag = if rng.chance(1, 5) { rng.below(30) + 1 } else { tag };
                device.write(rng.below(900) * BLOCK_BYTES, Bytes::from(content(tag)), false).await.expect("written");
            }
            pool.create_snapshots(&[format!("v0@s{round}")], &Kept::default()).await.expect("taken");
        }
        pool.clone_snapshot("v0@s2", "v1").await.expect("cloned");
        pool.engine().checkpoint().await.expect("all pages have their places");
        for round in [3, 1, 4, 0] {
            let live = || pool.engine().state.read().segments.iter().map(|s| s.record.live).sum::<u64>();
            let stored = || pool.engine().state.read().stored_bytes;
            let name = format!("v0@s{round}");
            let (held, before, data) = (pool.snapshot_info(&name).await.expect("there").held, live(), stored());
            pool.delete_snapshot(&name).await.expect("deleted");
            while pool.engine().is_reaping() {
                env.sleep(Duration::from_millis(5)).await;
            }
            let (held, given) = (held.expect("counted"), before - live());
            assert!(data - stored() <= held, "{name}: {} bytes of data came back, {held} in all", data - stored());
            assert_eq!(held, given, "{name}");
            assert!(held > 0, "{name} held nothing");
        }
        assert_eq!(pool.status().await.deleting, 0);
        check(&pool, false).await.expect("sound");
    };
    scope.run_until(life, 30_000_000).expect("done");
    scope.kill_all_tasks();
}

/// How much is still to come back of a volume that is being deleted is told, and less and less.
#[test]
fn what_is_still_to_come_back_is_told() {
    let mut scenario =
        Scenario { volumes: 1, blocks: 4000, disk_size: 24 << 20, faults: Faults::None, ..Scenario::random(11) };
    scenario.config.reap_places = 1;
    let mut appliance = Appliance::new(scenario).expect("made");
    let scope = appliance.next_life();
    let (disks, config) = (appliance.all_disks(), appliance.scenario.config.clone());
    let env = scope.env();
    let life = async {
        let pool = Pool::open(env.clone(), disks, config).await.expect("opened");
        let device = pool.open_volume("v0").expect("there");
        for i in 0..4000 {
            device.write(i * BLOCK_BYTES, Bytes::from(content(1 << 40 | i)), false).await.expect("written");
        }
        pool.engine().checkpoint().await.expect("all is stored");
        drop(device);
        let stored = || pool.engine().state.read().stored_bytes;
        let before = stored();
        pool.delete_volume("v0", false).await.expect("deleted");
        let mut told = Vec::new();
        while pool.engine().is_reaping() {
            let status = pool.status().await;
            if let Some(to_come) = status.deleting_to_come {
                assert!(status.deleting == 1 && status.deleting_done > 0.0);
                told.push(to_come);
                // Blocks of one size all over the volume.
                let left = stored();
                assert!(to_come <= left * 5 / 4 && to_come >= left * 3 / 4, "{to_come} of {left} bytes");
            }
            env.sleep(Duration::from_nanos(100)).await;
        }
        assert!(told.len() > 5 && told.first() > told.last(), "{before} bytes: {told:?}");
        let status = pool.status().await;
        assert_eq!((status.deleting, status.deleting_to_come, stored()), (0, None, 0));
    };
    scope.run_until(life, 30_000_000).expect("done");
    scope.kill_all_tasks();
}

/// A map that has grown by a level since a snapshot was taken, and a clone of that snapshot.
#[test]
fn a_map_that_grew_and_its_snapshot() {
    let mut scenario =
        Scenario { mix: Mix::Snapshots, faults: Faults::None, volumes: 1, blocks: 100, ..Scenario::random(7) };
    scenario.disk_size = 8 << 20;
    let mut appliance = Appliance::new(scenario).expect("made");
    let scope = appliance.next_life();
    let (disks, config) = (appliance.all_disks(), appliance.scenario.config.clone());
    let env = scope.env();
    let life = async {
        let pool = Pool::open(env, disks, config).await.expect("opened");
        let block = |tag: u64| Bytes::from(content(tag));
        let device = pool.open_volume("v0").expect("there");
        device.write(5 * BLOCK_BYTES, block(55), false).await.expect("written");
        pool.create_snapshots(&["v0@small".into()], &Kept::default()).await.expect("taken");
        pool.resize_volume("v0", 1000 * BLOCK_BYTES).await.expect("grown");
        device.write(900 * BLOCK_BYTES, block(77), false).await.expect("written");
        device.write(6 * BLOCK_BYTES, block(66), false).await.expect("written");
        pool.clone_snapshot("v0@small", "v1").await.expect("cloned");
        check(&pool, false).await.expect("sound");
        pool.delete_snapshot("v0@small").await.expect("deleted");
        pool.restore_volume("v1", "v0@small", None).await.expect_err("it is gone");
        check(&pool, false).await.expect("sound");
        pool.delete_volume("v1", false).await.expect("deleted");
        while pool.engine().is_reaping() {
            tokio::task::yield_now().await;
        }
        check(&pool, false).await.expect("sound");
        let found = read_all(&pool).await.expect("read");
        let blocks = &found.volumes[&0];
        assert_eq!((blocks[5], blocks[6], blocks[900], blocks.len()), (55, 66, 77, 1000));
        let one = pool.engine().state.read().volumes.values().all(|v| v.parent.0 == 0);
        assert!(one, "the volume goes on from nothing");
    };
    scope.run_until(life, 3_000_000).expect("done");
    scope.kill_all_tasks();
}
