//! One simulated appliance: disks that live through crashes, an engine that is opened again and again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockdev::carry::{Region, Store};
use blockdev::disk::{CrashPlan, CrashTrigger, Disk, FaultBudget, FaultRate, MemoryDisk, SimDisk};
use blockdev::env::{Env, Rng, SimScope};
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{DiskInfo, DiskState, Priority, Tolerance};
use blockdev::units::{BLOCK_BYTES, BLOCK_SIZE, Uuid};

use super::model::{Image, Model, Step, tag_of};
use super::seeds::verbose;
use super::work::{Mix, Worker};

/// Most steps of the executor in one life.
const STEPS_MAX: u64 = 3_000_000;

/// What happens to the set of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    None,
    /// A new one is added.
    Add,
    /// This one is to be removed.
    Remove(usize),
    /// A new one is added in the place of this one, which is removed.
    Replace(usize),
    /// This one is declared failed.
    Fail(usize),
    /// This one is taken back that was declared failed.
    Keep(usize),
    /// All is scrubbed.
    Scrub,
    /// Another tolerance.
    Tolerance(Tolerance),
    /// Data is spread evenly.
    Rebalance,
}

impl Change {
    /// Whether a new disk comes.
    pub fn joins(self) -> bool {
        matches!(self, Self::Add | Self::Replace(_))
    }

    /// The same, once the new disk may be there.
    pub fn again(self) -> Self {
        match self {
            Self::Add => Self::None,
            Self::Replace(old) => Self::Remove(old),
            same => same,
        }
    }
}

/// How often redundancy is looked at before it must be restored.
const HEAL_ROUNDS: u32 = 3000;

/// What a seed does.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub disks: usize,
    pub disk_size: u64,
    pub tolerance: Tolerance,
    pub volumes: usize,
    pub blocks: u64,
    pub lives: usize,
    pub ops: usize,
    /// What up to `tolerance` disks do wrong.
    pub faults: Faults,
    /// A crash comes at the latest at the disk write 2^n of a life; n is drawn from this range.
    pub reach: (u64, u64),
    pub mix: Mix,
    /// Whether hosts work while the set of disks is changed.
    pub busy: bool,
    /// Whether the power fails as soon as the pool says that redundancy is restored.
    pub hasty: bool,
    pub config: PoolConfig,
}

/// What disks do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    None,
    /// They die, lose and misdirect writes, rot.
    Any,
    /// They die and stay dead.
    Deaths,
    /// They do not answer any more, or die, and may come back in the next life.
    Hangs,
    /// All of them stall, and some do not keep what they were told to flush, and say so once.
    Slow,
    /// They die and may come back, in the same life or the next. Strict: what they missed must be known without a checksum.
    Returns {
        strict: bool,
    },
}

impl Scenario {
    /// A random scenario.
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0xA5A5);
        let tolerance = [Tolerance::None, Tolerance::Single, Tolerance::Double][rng.index(3)];
        let disks = match tolerance {
            Tolerance::None => 1 + rng.index(2),
            Tolerance::Single => 2 + rng.index(5),
            Tolerance::Double => 3 + rng.index(5),
        };
        let config = PoolConfig {
            memory: [1 << 20, 4 << 20, 16 << 20][rng.index(3)],
            linger: Duration::from_micros(rng.between(0, 5000)),
            log_interval: Duration::from_millis(rng.between(2, 100)),
            checkpoint_interval: Duration::from_millis(rng.between(5, 500)),
            frame_blocks: 1 + rng.index(4),
            fingerprint_bits: rng.chance(1, 4).then_some(8),
            // Not drawn: seeds that once failed go on as they did.
            batches: [None, Some(24), None, Some(2)][(seed / 4 % 4) as usize],
            recompress_after: [3, 5].contains(&(seed % 13)).then_some(Duration::from_millis(20)),
            priority: [Priority::High, Priority::Normal, Priority::High, Priority::Low][(seed % 4) as usize],
            ..PoolConfig::default()
        };
        Self {
            seed,
            disks,
            disk_size: 4 << 20,
            tolerance,
            volumes: 1 + rng.index(3),
            blocks: rng.between(40, 250),
            lives: 2 + rng.index(3),
            ops: rng.between(10, 80) as usize,
            faults: if rng.chance(1, 2) { Faults::Any } else { Faults::None },
            reach: (2, 10),
            mix: Mix::Usual,
            busy: false,
            hasty: false,
            config,
        }
    }
}

/// A pool with little memory on small disks without faults, where one may fail.
pub async fn memory_pool(env: &Arc<dyn Env>, disks: usize, config: PoolConfig) -> Pool {
    let disk = |i| Arc::new(MemoryDisk::new(format!("d{i}"), 48 << 20)) as Arc<dyn Disk>;
    let disks: Vec<Arc<dyn Disk>> = (0..disks).map(disk).collect();
    let (tolerance, chunk_size, strip_size) = (Tolerance::Single, Some(256 << 10), Some(16 << 10));
    let options = CreateOptions { name: "tank".into(), tolerance, chunk_size, strip_size, force: false };
    Pool::create(env.clone(), disks.clone(), options).await.expect("created");
    Pool::open(env.clone(), disks, PoolConfig { memory: 16 << 20, ..config }).await.expect("opened")
}

/// The appliance.
pub struct Appliance {
    pub scenario: Scenario,
    pub disks: Vec<Arc<SimDisk>>,
    pub rng: Rng,
    pub model: Model,
    lives: u64,
    trace: u64,
    cleaned: u64,
    /// Disks that may fail.
    frail: Vec<usize>,
    /// A disk that was declared failed for good: it stays out.
    pub declared: Option<usize>,
    /// Disks that die after so many requests of the next life in which redundancy is restored.
    pub doomed: Vec<(usize, u64)>,
    /// What outlives the process, where the scenario has that.
    pub memory: Arc<Memory>,
}

/// Memory that is there until the power is cut.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Option<Arc<Region>>>);

impl Memory {
    fn region(&self) -> std::sync::MutexGuard<'_, Option<Arc<Region>>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The power is cut.
    pub fn cut_power(&self) {
        *self.region() = None;
    }
}

impl Store for Memory {
    fn find(&self, _: Uuid) -> blockdev::error::Result<Option<Arc<Region>>> {
        Ok(self.region().clone())
    }

    fn create(&self, _: Uuid, len: usize) -> blockdev::error::Result<Arc<Region>> {
        Ok(self.region().insert(Arc::new(Region::private(len))).clone())
    }

    fn remove(&self, _: Uuid) {
        *self.region() = None;
    }

    fn describe(&self, _: Uuid) -> String {
        "memory".into()
    }
}

/// Name of a volume.
pub fn name(volume: usize) -> String {
    format!("v{volume}")
}

impl Appliance {
    /// Labels new disks and makes the volumes.
    pub fn new(scenario: Scenario) -> Result<Self, String> {
        Self::with_memory(scenario, Arc::default())
    }

    /// The same; writes outlive the process.
    pub fn that_is_killed(mut scenario: Scenario) -> Result<Self, String> {
        let memory: Arc<Memory> = Arc::default();
        scenario.config.carry = Some(memory.clone());
        Self::with_memory(scenario, memory)
    }

    fn with_memory(scenario: Scenario, memory: Arc<Memory>) -> Result<Self, String> {
        let mut rng = Rng::new(scenario.seed);
        let disk = |i: usize| {
            SimDisk::new(format!("disk{i}"), scenario.disk_size, scenario.seed * 97 + i as u64, FaultBudget::none())
        };
        let disks: Vec<Arc<SimDisk>> = (0..scenario.disks).map(disk).collect();
        let mut order: Vec<usize> = (0..scenario.disks).collect();
        rng.shuffle(&mut order);
        let frail = order
            .into_iter()
            .take(if scenario.faults != Faults::None { scenario.tolerance.drives() } else { 0 })
            .collect();
        let mut out = Self {
            scenario,
            disks,
            rng,
            model: Model::default(),
            lives: 0,
            trace: 0,
            cleaned: 0,
            frail,
            declared: None,
            doomed: Vec::new(),
            memory,
        };
        let scope = out.next_life();
        let env = scope.env();
        let options = CreateOptions {
            name: "sim".into(),
            tolerance: out.scenario.tolerance,
            chunk_size: Some(64 << 10),
            strip_size: Some(4 << 10),
            force: false,
        };
        let created = scope.run_until(Pool::create(env.clone(), out.all_disks(), options), STEPS_MAX);
        created.map_err(|e| format!("create: {e:?}"))?.map_err(|e| format!("create: {e}"))?;
        let (disks, config) = (out.all_disks(), out.scenario.config.clone());
        let volumes: Vec<usize> = (0..out.scenario.volumes).collect();
        let blocks = out.scenario.blocks;
        let made = async {
            let pool = Pool::open(env, disks, config).await?;
            for &v in &volumes {
                pool.create_volume(&name(v), blocks * BLOCK_BYTES).await?;
            }
            pool.close().await
        };
        let made = scope.run_until(made, STEPS_MAX).map_err(|e| format!("set-up: {e:?}"))?;
        made.map_err(|e| format!("set-up: {e}"))?;
        for &volume in &volumes {
            out.model.issue(Step::Resize { volume, blocks });
        }
        out.model.flushed(out.model.len());
        drop(scope);
        out.set_faults();
        Ok(out)
    }

    /// Faults for the disks that may have them.
    fn set_faults(&mut self) {
        if self.scenario.faults == Faults::Slow {
            return self.set_slow();
        }
        for &i in &self.frail.clone() {
            let mut budget = FaultBudget::none();
            if matches!(self.scenario.faults, Faults::Deaths | Faults::Returns { .. } | Faults::Hangs) {
                budget.death_after_ops =
                    self.rng.chance(2, 3).then(|| self.disks[i].ops_count() + self.rng.between(1, 300));
                if self.scenario.faults == Faults::Hangs && self.rng.chance(3, 4) {
                    budget.hang_after_ops = budget.death_after_ops.take();
                }
                self.disks[i].set_budget(budget);
                continue;
            }
            match self.rng.below(4) {
                0 => budget.death_after_ops = Some(self.rng.between(1, 400)),
                1 => budget.lost_writes = FaultRate::new(20_000, 20),
                2 => budget.bit_rot = FaultRate::new(20_000, 20),
                _ => {
                    budget.misdirected_writes = FaultRate::new(5_000, 3);
                    budget.medium_errors = FaultRate::new(20_000, 20);
                }
            }
            if verbose() {
                eprintln!("after life {}: disk {i} {budget:?}", self.lives);
            }
            self.disks[i].set_budget(budget);
        }
    }

    /// Any disk stalls now and then, and flushes of those that may fail do.
    fn set_slow(&mut self) {
        let stall_max = Duration::from_millis(self.rng.between(5, 20_000));
        for (i, disk) in self.disks.iter().enumerate() {
            let stalls = FaultRate::new(self.rng.between(200, 20_000) as u32, 20);
            let mut budget = FaultBudget { stalls, stall_max, ..FaultBudget::none() };
            if self.frail.contains(&i) {
                budget.flush_failures = FaultRate::new(self.rng.between(5_000, 200_000) as u32, 3);
            }
            disk.set_budget(budget);
        }
    }

    /// The disks that may fail from now on.
    pub fn set_frail(&mut self, frail: Vec<usize>) {
        self.disks.iter().for_each(|d| d.set_budget(FaultBudget::none()));
        self.frail = frail;
        self.set_faults();
    }

    /// As [`Self::heal_after`] nothing in particular.
    pub fn heal(&mut self, crash: Option<u64>) -> Result<u64, String> {
        self.heal_after(Change::None, crash)
    }

    /// A life without work and without faults, in which the set of disks is changed, until all redundancy is restored and disks that are to be
    /// removed are gone (or until a crash at the `crash`-th disk write).
    /// Returns how many writes the disks were asked for.
    pub fn heal_after(&mut self, change: Change, crash: Option<u64>) -> Result<u64, String> {
        if change.joins() {
            let (name, seed) = (format!("disk{}", self.disks.len()), self.scenario.seed * 97 + self.disks.len() as u64);
            self.disks.push(SimDisk::new(name, self.scenario.disk_size, seed, FaultBudget::none()));
        }
        self.disks.iter().for_each(|d| d.set_budget(FaultBudget::none()));
        for (disk, requests) in std::mem::take(&mut self.doomed) {
            let death_after_ops = Some(self.disks[disk].ops_count() + requests);
            self.disks[disk].set_budget(FaultBudget { death_after_ops, ..FaultBudget::none() });
        }
        let scope = self.next_life();
        let trigger = CrashTrigger::new(crash.map_or(CrashPlan::NEVER, |after_writes| CrashPlan { after_writes }));
        self.disks.iter().for_each(|d| d.set_crash_trigger(Some(trigger.clone())));
        let env = scope.env();
        let (mut disks, config) = (self.all_disks(), self.scenario.config.clone());
        let new = if change.joins() { disks.pop() } else { None };
        let silent = scenario_is_silent(&self.scenario);
        let model = Mutex::new(std::mem::take(&mut self.model));
        let declared = Mutex::new(self.declared);
        let (own, scenario) = (self.disks.clone(), self.scenario.clone());
        let work_seed = if scenario.busy { self.rng.u64() } else { 0 };
        let life = async {
            let pool = Pool::open(env.clone(), disks, config).await.map_err(|e| format!("open: {e}"))?;
            let found = read_all(&pool).await?;
            model.lock().map_err(|e| e.to_string())?.recover(&found)?;
            let stays_out = *declared.lock().map_err(|e| e.to_string())?;
            if let Some(info) = stays_out.and_then(|disk| disk_of(&pool, disk))
                && !info.state.is_absent()
            {
                return Err(format!("disk {} was declared failed, and is {:?}", info.id, info.state));
            }
            match (change, new) {
                (Change::Remove(disk), _) => {
                    if let Some(info) = disk_of(&pool, disk) {
                        pool.remove_disk(info.id).await.map_err(|e| format!("removing: {e}"))?;
                    }
                }
                (Change::Fail(disk), _) => {
                    if let Some(info) = disk_of(&pool, disk) {
                        pool.fail_disk(info.id).await.map_err(|e| format!("declaring failed: {e}"))?;
                        *declared.lock().map_err(|e| e.to_string())? = Some(disk);
                    }
                }
                (Change::Keep(disk), _) => {
                    // As soon as it was asked for, either may be.
                    *declared.lock().map_err(|e| e.to_string())? = None;
                    if let Some(info) =
                        disk_of(&pool, disk).filter(|d| matches!(d.state, DiskState::Failed | DiskState::Rebuilding))
                    {
                        let info = pool.keep_disk(info.id).await.map_err(|e| format!("keeping: {e}"))?;
                        if !matches!(info.state, DiskState::Online | DiskState::Stale) {
                            return Err(format!("a disk that was kept is {:?}", info.state));
                        }
                    }
                }
                (Change::Scrub, _) => {
                    pool.start_scrub().await.map_err(|e| format!("scrub: {e}"))?;
                }
                (Change::Tolerance(t), _) => pool.set_tolerance(t).await.map_err(|e| format!("tolerance: {e}"))?,
                (Change::Rebalance, _) => pool.rebalance().await.map_err(|e| format!("rebalance: {e}"))?,
                (Change::Replace(old), Some(disk)) => {
                    let old = disk_of(&pool, old).map(|d| d.id);
                    pool.add_disk(disk, false, old).await.map_err(|e| format!("adding: {e}"))?;
                    if let Some(old) = old {
                        pool.remove_disk(old).await.map_err(|e| format!("removing: {e}"))?;
                    }
                }
                (_, Some(disk)) => drop(pool.add_disk(disk, false, None).await.map_err(|e| format!("adding: {e}"))?),
                _ => {}
            }
            if scenario.busy {
                let worker = Worker { env: &env, pool: &pool, scenario: &scenario, model: &model, disks: &own };
                worker.run(work_seed).await?;
            }
            let mut rounds = 0;
            while let Some(why) = lacking(&pool).await {
                rounds += 1;
                if rounds > HEAL_ROUNDS {
                    return Err(format!("redundancy is not restored: {why}"));
                }
                env.sleep(Duration::from_millis(20)).await;
            }
            if scenario.hasty {
                return Ok(());
            }
            // What rotted is as it was.
            check(&pool, silent && change != Change::Scrub).await?;
            no_mismatch(&pool, silent)?;
            let again = read_all(&pool).await?;
            if scenario.busy {
                // All that was answered is there, whether it is durable or not.
                let mut now = model.lock().map_err(|e| e.to_string())?.clone();
                now.flushed(now.len());
                return now.recover(&again).map(drop);
            }
            if again != found { Err("content changed while redundancy was restored".into()) } else { Ok(()) }
        };
        let raced = async {
            let fired = trigger.fired();
            tokio::pin!(life, fired);
            match futures::future::select(life, fired).await {
                futures::future::Either::Left((result, _)) => result,
                futures::future::Either::Right(_) => Ok(()),
            }
        };
        let result = scope.run_until(raced, STEPS_MAX).map_err(|e| format!("healing, life {}: {e:?}", self.lives))?;
        self.trace = self.trace.rotate_left(7) ^ scope.trace();
        scope.kill_all_tasks();
        self.model = model.into_inner().map_err(|e| e.to_string())?;
        self.declared = declared.into_inner().map_err(|e| e.to_string())?;
        result.map_err(|e| format!("healing, life {}: {e}", self.lives))?;
        self.cut_power();
        Ok(trigger.count())
    }

    /// Cuts the power of everything.
    pub fn cut_power(&mut self) {
        let mut rng = self.rng.fork();
        self.disks.iter().for_each(|d| d.crash(&mut rng));
        self.memory.cut_power();
        self.model.power_cut();
    }

    /// A digest of the steps of all lives so far.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// Segments that the cleaner emptied in lives that did not crash.
    pub fn cleaned(&self) -> u64 {
        self.cleaned
    }

    /// All disks as an engine takes them.
    pub fn all_disks(&self) -> Vec<Arc<dyn Disk>> {
        self.disks.iter().map(|d| d.clone() as Arc<dyn Disk>).collect()
    }

    /// A new environment for all disks.
    pub fn next_life(&mut self) -> SimScope {
        self.lives += 1;
        let scope = SimScope::new(self.scenario.seed.wrapping_mul(1_000_003) ^ self.lives);
        self.attach(&scope);
        scope
    }

    /// All disks are in this environment from now on.
    pub fn attach(&self, scope: &SimScope) {
        self.disks.iter().for_each(|d| d.attach(scope));
    }

    /// One life: open, compare with the model, work, crash at the `crash`-th disk write (or at the end).
    pub fn live(&mut self, crash: Option<u64>) -> Result<u64, String> {
        let scope = self.next_life();
        let trigger = CrashTrigger::new(crash.map_or(CrashPlan::NEVER, |after_writes| CrashPlan { after_writes }));
        self.disks.iter().for_each(|d| d.set_crash_trigger(Some(trigger.clone())));
        let env = scope.env();
        let own = self.disks.clone();
        let (disks, config) = (self.all_disks(), self.scenario.config.clone());
        let silent = scenario_is_silent(&self.scenario);
        let work_seed = self.rng.u64();
        // A process may be killed at any time, not only when disks are written to.
        let killed = (self.scenario.config.carry.is_some() && self.rng.chance(1, 2))
            .then(|| Duration::from_micros(self.rng.between(1, 200_000)));
        let model = Mutex::new(std::mem::take(&mut self.model));
        let scenario = self.scenario.clone();
        let life = async {
            let pool = Pool::open(env.clone(), disks, config).await.map_err(|e| format!("open: {e}"))?;
            let found = read_all(&pool).await?;
            model.lock().map_err(|e| e.to_string())?.clone().recover(&found)?;
            if scenario.config.carry.is_some() {
                // What was entered again is not durable before.
                pool.engine().flush().await.map_err(|e| format!("flush: {e}"))?;
            }
            model.lock().map_err(|e| e.to_string())?.recover(&found)?;
            no_mismatch(&pool, silent)?;
            check(&pool, silent).await.map_err(|e| format!("after recovery: {e}"))?;
            let worker = Worker { env: &env, pool: &pool, scenario: &scenario, model: &model, disks: &own };
            worker.run(work_seed).await?;
            check(&pool, silent).await.map_err(|e| format!("after the work: {e}"))?;
            no_mismatch(&pool, silent)?;
            Ok::<Pool, String>(pool)
        };
        let raced = async {
            let fired = async {
                match killed {
                    Some(after) => drop(futures::future::select(Box::pin(trigger.fired()), env.sleep(after)).await),
                    None => trigger.fired().await,
                }
            };
            tokio::pin!(life, fired);
            match futures::future::select(life, fired).await {
                futures::future::Either::Left((result, _)) => result.map(Some),
                futures::future::Either::Right(_) => Ok(None),
            }
        };
        let result: Result<Option<Pool>, String> =
            scope.run_until(raced, STEPS_MAX).map_err(|e| format!("life {}: {e:?}", self.lives))?;
        self.trace = self.trace.rotate_left(7) ^ scope.trace();
        scope.kill_all_tasks();
        self.model = model.into_inner().map_err(|e| e.to_string())?;
        let pool = result.map_err(|e| format!("life {}: {e}", self.lives))?;
        self.cleaned += pool.map_or(0, |p| p.engine().counters.cleaner_segments.load(Ordering::Relaxed));
        if self.scenario.config.carry.is_some() && self.rng.chance(5, 6) {
            // The process alone was killed.
            self.disks.iter().for_each(|d| d.set_crash_trigger(None));
        } else {
            self.cut_power();
        }
        drop(scope);
        // A dead disk may come back.
        for &i in &self.frail.clone() {
            if self.scenario.faults != Faults::Deaths && self.disks[i].is_failed() && self.rng.chance(1, 2) {
                self.disks[i].restore();
            }
        }
        self.set_faults();
        Ok(trigger.count())
    }

    /// The last look: everything must be there, and the pool must be sound.
    pub fn finish(&mut self) -> Result<(), String> {
        for &i in &self.frail.clone() {
            self.disks[i].set_budget(FaultBudget::none());
        }
        let scope = self.next_life();
        let env = scope.env();
        let (disks, config) = (self.all_disks(), self.scenario.config.clone());
        let silent = scenario_is_silent(&self.scenario);
        let last = async {
            let pool = Pool::open(env, disks, config).await.map_err(|e| format!("last open: {e}"))?;
            check(&pool, silent).await?;
            read_all(&pool).await
        };
        let found = scope.run_until(last, STEPS_MAX).map_err(|e| format!("last life: {e:?}"))??;
        scope.kill_all_tasks();
        self.model.recover(&found).map_err(|e| format!("last life: {e}"))?;
        Ok(())
    }
}

/// What a pool says of a disk.
fn disk_of(pool: &Pool, disk: usize) -> Option<DiskInfo> {
    let name = format!("disk{disk}");
    pool.disks().into_iter().find(|d| d.path == name)
}

/// What a pool still lacks in redundancy; none when it would survive as many failures as it promises.
async fn lacking(pool: &Pool) -> Option<String> {
    let status = pool.status().await;
    let r = status.redundancy;
    let settled = !status.mixed && status.tolerance == status.tolerance_wanted;
    let idle = settled && status.rebuild.is_none() && !status.scrub.running && r.reduced + r.none + r.lost == 0;
    let members = pool.engine().array.members();
    let counted = members.iter().any(|m| m.online().is_none() && !m.is_empty() || m.is_leaving());
    (!idle || counted).then(|| format!("{:?}, {r:?}, {:?}, {:?}", status.rebuild, status.disks, status.alerts))
}

/// Whether disks may corrupt what they hold.
pub fn scenario_is_silent(scenario: &Scenario) -> bool {
    matches!(scenario.faults, Faults::Any | Faults::Returns { strict: false }) && scenario.tolerance.drives() > 0
}

/// Without disks that corrupt what they hold, no checksum may ever mismatch: a reader would have looked in the wrong place.
fn no_mismatch(pool: &Pool, silent: bool) -> Result<(), String> {
    match pool.engine().counters.repaired.load(Ordering::Relaxed) {
        n if n > 0 && !silent => {
            Err(format!("{n} frames did not match their checksums though no disk corrupts anything"))
        }
        _ => Ok(()),
    }
}

/// What `pool check` finds; parity that does not match is what disks that corrupt their content leave behind.
pub async fn check(pool: &Pool, silent: bool) -> Result<(), String> {
    let report = pool.check(Arc::new(|_, _| {})).await.map_err(|e| format!("check: {e}"))?;
    let findings: Vec<String> = report
        .findings
        .iter()
        .filter(|f| !(silent && f.code == "stripe.parity"))
        .map(|f| format!("{}: {}", f.code, f.message))
        .collect();
    if findings.is_empty() { Ok(()) } else { Err(format!("check found {}", findings.join("; "))) }
}

/// Reads every block of every volume and snapshot.
pub async fn read_all(pool: &Pool) -> Result<Image, String> {
    let mut image = Image::default();
    let names: Vec<String> = {
        let state = pool.engine().state.read();
        for v in state.volumes.values().filter(|v| !v.deleting) {
            let (name, p) = (state.name_of(v), v.protection);
            match name.strip_prefix('v').and_then(|number| number.parse().ok()) {
                Some(number) if p.group != 0 => drop(image.groups.insert(number, p.group)),
                None if p.secure || p.rule != 0 => drop(image.kept.insert(name, (p.secure, p.rule))),
                _ => {}
            }
        }
        state.volumes.values().filter(|v| !v.deleting).map(|v| state.name_of(v)).collect()
    };
    image.settings = pool.settings("").into_iter().map(|s| (s.name, s.value)).collect();
    for name in names {
        let device = pool.open_volume(&name).map_err(|e| e.to_string())?;
        let blocks = device.geometry().size / BLOCK_BYTES;
        let data =
            device.read(0, (blocks * BLOCK_BYTES) as usize).await.map_err(|e| format!("reading volume {name}: {e}"))?;
        let mut tags = Vec::new();
        for (i, block) in data.chunks_exact(BLOCK_SIZE).enumerate() {
            let never = || format!("volume {name}, block {i}: content that was never written");
            tags.push(tag_of(block).ok_or_else(never)?);
        }
        match name.strip_prefix('v').and_then(|number| number.parse().ok()) {
            Some(number) => drop(image.volumes.insert(number, tags)),
            None => drop(image.snapshots.insert(name, tags)),
        }
    }
    Ok(image)
}
