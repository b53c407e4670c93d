//! Several hosts at once: each writes blocks of its own, any of them flushes. After a crash each host finds a prefix of what it wrote,
//! what was complete before a completed flush was issued is there, and what follows in real time is not there without what went before.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockdev::disk::{CrashPlan, CrashTrigger};
use blockdev::env::{Env, Rng};
use blockdev::pool::Pool;
use blockdev::units::BLOCK_BYTES;
use bytes::Bytes;
use futures::future::{Either, join_all, select};

use super::harness::{Appliance, Faults, Scenario, check, name, read_all};
use super::model::{Image, content};
use super::seeds::sweep;

const STEPS_MAX: u64 = 5_000_000;
/// Blocks of each client.
const OWN_BLOCKS: u64 = 16;

/// One write of one client, in moments of a common clock that counts events.
#[derive(Clone, Debug)]
struct Operation {
    lba: u64,
    /// All 0 for a discard.
    tags: Vec<u64>,
    issued: u64,
    completed: Option<u64>,
    /// A write that is durable once it is complete.
    fua: bool,
}

#[derive(Default)]
struct History {
    clock: u64,
    /// By client, in order.
    operations: Vec<Vec<Operation>>,
    /// What completed before this moment must be there.
    durable: u64,
}

impl History {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// Volume and first block of a client.
fn place(client: usize, volumes: usize) -> (usize, u64) {
    (client % volumes, (client / volumes) as u64 * OWN_BLOCKS)
}

async fn client(
    env: Arc<dyn Env>,
    pool: Pool,
    history: &Mutex<History>,
    me: usize,
    volumes: usize,
    seed: u64,
) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let (volume, base) = place(me, volumes);
    let device = pool.open_volume(&name(volume)).map_err(|e| e.to_string())?;
    device.outlive();
    let history = || history.lock().unwrap_or_else(|e| e.into_inner());
    for _ in 0..rng.between(5, 60) {
        let lba = rng.below(OWN_BLOCKS);
        let count = rng.between(1, OWN_BLOCKS - lba);
        match rng.below(10) {
            kind @ 0..=6 => {
                let discard = kind == 6;
                let tags: Vec<u64> = (0..count).map(|_| if discard { 0 } else { rng.u64() | 1 << 63 }).collect();
                let data: Vec<u8> = tags.iter().flat_map(|&t| content(t)).collect();
                let fua = rng.chance(1, 6);
                {
                    let mut h = history();
                    let issued = h.tick();
                    h.operations[me].push(Operation { lba, tags, issued, completed: None, fua: fua && !discard });
                }
                let offset = (base + lba) * BLOCK_BYTES;
                let result = match discard {
                    true => device.discard(offset, count * BLOCK_BYTES).await,
                    false => device.write(offset, Bytes::from(data), fua).await,
                };
                result.map_err(|e| format!("client {me}: {e}"))?;
                let mut h = history();
                let now = h.tick();
                let issued = match h.operations[me].last_mut() {
                    Some(last) => {
                        last.completed = Some(now);
                        last.issued
                    }
                    None => 0,
                };
                if fua && !discard {
                    // It is durable itself, and so is what was complete when it was issued.
                    h.durable = h.durable.max(issued);
                }
            }
            7..=8 => {
                let issued = history().tick();
                device.flush().await.map_err(|e| format!("client {me}: flush: {e}"))?;
                let mut h = history();
                h.durable = h.durable.max(issued);
            }
            _ => env.sleep(Duration::from_micros(rng.below(3000))).await,
        }
    }
    Ok(())
}

/// How many operations of one client are there: every number for which its blocks look as found.
fn prefixes(operations: &[Operation], before: &[u64], found: &[u64]) -> Vec<usize> {
    let mut blocks = before.to_vec();
    let mut out = Vec::new();
    for n in 0..=operations.len() {
        if let Some(op) = n.checked_sub(1).and_then(|last| operations.get(last)) {
            blocks[op.lba as usize..op.lba as usize + op.tags.len()].copy_from_slice(&op.tags);
        }
        if blocks == found {
            out.push(n);
        }
    }
    out
}

/// Judges what was found after a crash.
///
/// `killed`: the power stayed, and all that was answered must be there.
fn judge(history: &History, killed: bool, before: &Image, found: &Image, volumes: usize) -> Result<(), String> {
    let own = |image: &Image, client: usize| {
        let (volume, base) = place(client, volumes);
        image.volumes[&volume][base as usize..(base + OWN_BLOCKS) as usize].to_vec()
    };
    // The longest prefix that fits is the kindest reading for what must be there, the shortest for what implies others.
    let mut longest = Vec::new();
    let mut newest_seen = 0;
    for (me, operations) in history.operations.iter().enumerate() {
        let fits = prefixes(operations, &own(before, me), &own(found, me));
        let (Some(&first), Some(&last)) = (fits.first(), fits.last()) else {
            return Err(format!("client {me}: no prefix of its {} operations gives what was found", operations.len()));
        };
        longest.push(last);
        newest_seen = operations[..first].iter().map(|o| o.issued).fold(newest_seen, u64::max);
    }
    for (me, operations) in history.operations.iter().enumerate() {
        for (n, op) in operations.iter().enumerate().skip(longest[me]) {
            let Some(completed) = op.completed else { continue };
            if killed || completed < history.durable || op.fua {
                return Err(format!(
                    "client {me}: operation {n} was durable by itself or complete before a flush that completed, and is lost"
                ));
            }
            if completed < newest_seen {
                return Err(format!("client {me}: operation {n} is lost, but one that was issued later is there"));
            }
        }
    }
    Ok(())
}

fn scenario(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed ^ 0xC0C0);
    let mut scenario = Scenario::random(seed);
    scenario.faults = Faults::None;
    scenario.blocks = 4 * OWN_BLOCKS;
    scenario.config.linger = Duration::from_micros(rng.below(2000));
    scenario.config.log_interval = Duration::from_micros(rng.between(300, 20_000));
    scenario.config.checkpoint_interval = Duration::from_micros(rng.between(500, 50_000));
    scenario
}

/// One seed: lives with several clients, each ended by a crash.
pub fn run_clients(seed: u64) -> Result<(), String> {
    run_appliance(Appliance::new(scenario(seed))?)
}

/// The same with hosts that go on when the process is killed, and mostly that is what happens.
pub fn run_killed_clients(seed: u64) -> Result<(), String> {
    run_appliance(Appliance::that_is_killed(scenario(seed))?)
}

fn run_appliance(mut appliance: Appliance) -> Result<(), String> {
    let scenario = appliance.scenario.clone();
    let mut rng = Rng::new(scenario.seed ^ 0xC11E);
    let volumes = scenario.volumes;
    let clients = volumes * rng.between(1, 4) as usize;
    let is_killed = scenario.config.carry.is_some();
    let lives = scenario.lives * if is_killed { 2 } else { 1 };
    let mut killed = true;
    let mut before = Image::default();
    let mut history = History::default();
    for life in 0..=lives {
        let scope = appliance.next_life();
        let reach = 1 << rng.between(4, 9);
        let after_writes = if life < lives { 1 + rng.below(reach) } else { u64::MAX };
        let trigger = CrashTrigger::new(CrashPlan { after_writes });
        appliance.disks.iter().for_each(|d| d.set_crash_trigger(Some(trigger.clone())));
        let (disks, config) = (appliance.all_disks(), appliance.scenario.config.clone());
        let seeds: Vec<u64> = (0..clients).map(|_| rng.u64()).collect();
        let shared = Mutex::new(std::mem::take(&mut history));
        let seen = Mutex::new(None);
        let env = scope.env();
        let work = async {
            let pool = Pool::open(env.clone(), disks, config).await.map_err(|e| format!("open: {e}"))?;
            let found = read_all(&pool).await?;
            {
                if life > 0 {
                    let h = shared.lock().map_err(|e| e.to_string())?;
                    judge(&h, killed && is_killed, &before, &found, volumes)?;
                }
                if is_killed {
                    // What was entered again is not durable before.
                    pool.engine().flush().await.map_err(|e| format!("flush: {e}"))?;
                }
                let mut h = shared.lock().map_err(|e| e.to_string())?;
                *h = History { operations: vec![Vec::new(); clients], ..History::default() };
                *seen.lock().map_err(|e| e.to_string())? = Some(found);
            }
            check(&pool, false).await?;
            let run = |(me, seed): (usize, u64)| client(env.clone(), pool.clone(), &shared, me, volumes, seed);
            join_all(seeds.into_iter().enumerate().map(run)).await.into_iter().collect::<Result<Vec<()>, String>>()?;
            check(&pool, false).await
        };
        let raced = async {
            let fired = trigger.fired();
            tokio::pin!(work, fired);
            match select(work, fired).await {
                Either::Left((result, _)) => result,
                Either::Right(_) => Ok(()),
            }
        };
        let result = scope.run_until(raced, STEPS_MAX).map_err(|e| format!("life {life}: {e:?}"))?;
        scope.kill_all_tasks();
        result.map_err(|e| format!("life {life}: {e}"))?;
        history = shared.into_inner().map_err(|e| e.to_string())?;
        if let Some(found) = seen.into_inner().map_err(|e| e.to_string())? {
            before = found;
            killed = true;
        }
        if is_killed && rng.chance(4, 5) {
            appliance.disks.iter().for_each(|d| d.set_crash_trigger(None));
            continue;
        }
        killed = false;
        appliance.memory.cut_power();
        let mut fork = rng.fork();
        appliance.disks.iter().for_each(|d| d.crash(&mut fork));
    }
    Ok(())
}

fn clients(share: u64) {
    sweep(share, 2, 400, run_clients);
}

#[test]
fn clients_0() {
    clients(0);
}

#[test]
fn clients_1() {
    clients(1);
}
