//! One simulated appliance: disks that live through crashes, an engine that is opened again and again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockdev::disk::{CrashPlan, CrashTrigger, Disk, FaultBudget, FaultRate, SimDisk};
use blockdev::env::{Env, Rng, SimScope};
use blockdev::error::{Error, ErrorKind};
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::Tolerance;
use blockdev::units::{BLOCK_BYTES, BLOCK_SIZE};
use bytes::Bytes;

use super::model::{Image, Model, Step, content, tag_of};

/// Most steps of the executor in one life.
const STEPS_MAX: u64 = 30_000_000;

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
    /// Faults of up to `tolerance` disks: they die, lose and misdirect writes, rot.
    pub faults: bool,
    pub config: PoolConfig,
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
            faults: rng.chance(1, 2),
            config,
        }
    }
}

/// The appliance.
pub struct Appliance {
    pub scenario: Scenario,
    pub disks: Vec<Arc<SimDisk>>,
    pub rng: Rng,
    pub model: Model,
    lives: u64,
    /// Disks that may fail.
    frail: Vec<usize>,
}

fn name(volume: usize) -> String {
    format!("v{volume}")
}

impl Appliance {
    /// Labels new disks and makes the volumes.
    pub fn new(scenario: Scenario) -> Result<Self, String> {
        let mut rng = Rng::new(scenario.seed);
        let disk = |i: usize| SimDisk::new(&format!("disk{i}"), scenario.disk_size, scenario.seed * 97 + i as u64, FaultBudget::none());
        let disks: Vec<Arc<SimDisk>> = (0..scenario.disks).map(disk).collect();
        let mut order: Vec<usize> = (0..scenario.disks).collect();
        rng.shuffle(&mut order);
        let frail = order.into_iter().take(if scenario.faults { scenario.tolerance.drives() } else { 0 }).collect();
        let mut out = Self { scenario, disks, rng, model: Model::default(), lives: 0, frail };
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
        for &i in &self.frail.clone() {
            let mut budget = FaultBudget::none();
            match self.rng.below(4) {
                0 => budget.death_after_ops = Some(self.rng.between(1, 400)),
                1 => budget.lost_writes = FaultRate::new(20_000, 20),
                2 => budget.bit_rot = FaultRate::new(20_000, 20),
                _ => {
                    budget.misdirected_writes = FaultRate::new(5_000, 3);
                    budget.medium_errors = FaultRate::new(20_000, 20);
                }
            }
            self.disks[i].set_budget(budget);
        }
    }

    fn all_disks(&self) -> Vec<Arc<dyn Disk>> {
        self.disks.iter().map(|d| d.clone() as Arc<dyn Disk>).collect()
    }

    fn next_life(&mut self) -> SimScope {
        self.lives += 1;
        let scope = SimScope::new(self.scenario.seed.wrapping_mul(1_000_003) ^ self.lives);
        self.disks.iter().for_each(|d| d.attach(&scope));
        scope
    }

    /// One life: open, compare with the model, work, crash at the `crash`-th disk write (or at the end).
    pub fn live(&mut self, crash: Option<u64>) -> Result<u64, String> {
        let scope = self.next_life();
        let trigger = CrashTrigger::new(crash.map_or(CrashPlan::NEVER, |after_writes| CrashPlan { after_writes }));
        self.disks.iter().for_each(|d| d.set_crash_trigger(Some(trigger.clone())));
        let env = scope.env();
        let (disks, config) = (self.all_disks(), self.scenario.config.clone());
        let silent = !self.frail.is_empty();
        let work_seed = self.rng.u64();
        let model = Mutex::new(std::mem::take(&mut self.model));
        let scenario = self.scenario.clone();
        let life = async {
            let pool = Pool::open(env.clone(), disks, config).await.map_err(|e| format!("open: {e}"))?;
            let found = read_all(&pool, scenario.volumes).await?;
            model.lock().map_err(|e| e.to_string())?.recover(&found)?;
            check(&pool, silent).await.map_err(|e| format!("after recovery: {e}"))?;
            work(&env, &pool, &scenario, &model, work_seed).await?;
            check(&pool, silent).await.map_err(|e| format!("after the work: {e}"))?;
            Ok::<Pool, String>(pool)
        };
        let raced = async {
            let fired = trigger.fired();
            tokio::pin!(life, fired);
            match futures::future::select(life, fired).await {
                futures::future::Either::Left((result, _)) => result.map(Some),
                futures::future::Either::Right(_) => Ok(None),
            }
        };
        let result: Result<Option<Pool>, String> = scope.run_until(raced, STEPS_MAX).map_err(|e| format!("life {}: {e:?}", self.lives))?;
        scope.kill_all_tasks();
        self.model = model.into_inner().map_err(|e| e.to_string())?;
        let pool = result.map_err(|e| format!("life {}: {e}", self.lives))?;
        drop(pool);
        let mut rng = self.rng.fork();
        self.disks.iter().for_each(|d| d.crash(&mut rng));
        drop(scope);
        // A dead disk may come back.
        for &i in &self.frail.clone() {
            if self.disks[i].is_failed() && self.rng.chance(1, 2) {
                self.disks[i].restore();
            }
        }
        self.set_faults();
        Ok(trigger.count())
    }

    /// The last look: everything must be there, and stay there without the frail disks.
    pub fn finish(&mut self) -> Result<(), String> {
        for &i in &self.frail.clone() {
            self.disks[i].set_budget(FaultBudget::none());
        }
        let scope = self.next_life();
        let env = scope.env();
        let (disks, config) = (self.all_disks(), self.scenario.config.clone());
        let last = async {
            let pool = Pool::open(env, disks, config).await.map_err(|e| format!("last open: {e}"))?;
            read_all(&pool, self.scenario.volumes).await
        };
        let found = scope.run_until(last, STEPS_MAX).map_err(|e| format!("last life: {e:?}"))??;
        scope.kill_all_tasks();
        self.model.recover(&found).map_err(|e| format!("last life: {e}"))?;
        Ok(())
    }
}

async fn check(pool: &Pool, silent: bool) -> Result<(), String> {
    let report = pool.check(Arc::new(|_, _| {})).await.map_err(|e| format!("check: {e}"))?;
    let findings: Vec<String> = report
        .findings
        .iter()
        .filter(|f| !(silent && f.code == "stripe.parity"))
        .map(|f| format!("{}: {}", f.code, f.message))
        .collect();
    if findings.is_empty() { Ok(()) } else { Err(format!("check found {}", findings.join("; "))) }
}

/// Reads every block of every volume.
pub async fn read_all(pool: &Pool, volumes: usize) -> Result<Image, String> {
    let mut image = Image::default();
    for v in 0..volumes {
        let device = pool.open_volume(&name(v)).map_err(|e| e.to_string())?;
        let blocks = device.geometry().size / BLOCK_BYTES;
        let data = device.read(0, (blocks * BLOCK_BYTES) as usize).await.map_err(|e| format!("reading volume {v}: {e}"))?;
        let mut tags = Vec::new();
        for (i, block) in data.chunks_exact(BLOCK_SIZE).enumerate() {
            tags.push(tag_of(block).ok_or_else(|| format!("volume {v}, block {i}: content that was never written"))?);
        }
        image.volumes.insert(v, tags);
    }
    Ok(image)
}

fn lock<'a>(model: &'a Mutex<Model>) -> std::sync::MutexGuard<'a, Model> {
    model.lock().unwrap_or_else(|e| e.into_inner())
}

/// Random operations, one after another.
async fn work(env: &Arc<dyn Env>, pool: &Pool, scenario: &Scenario, model: &Mutex<Model>, seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let failed = |what: &str, e: Error| format!("{what}: {e}");
    for _ in 0..rng.between(1, scenario.ops as u64) {
        let volume = rng.index(scenario.volumes);
        let device = pool.open_volume(&name(volume)).map_err(|e| e.to_string())?;
        let blocks = device.geometry().size / BLOCK_BYTES;
        let lba = rng.below(blocks);
        let longest = 1 << rng.below(7);
        let count = (1 + rng.below(longest)).min(blocks - lba);
        let bytes = (lba * BLOCK_BYTES, count * BLOCK_BYTES);
        match rng.below(20) {
            0..=10 => {
                let style = rng.below(4);
                let tag = |rng: &mut Rng| match style {
                    0 => 1 + rng.below(20),
                    1 if rng.chance(1, 3) => 0,
                    _ => rng.u64() | 1 << 63,
                };
                let tags: Vec<u64> = (0..count).map(|_| tag(&mut rng)).collect();
                let data: Vec<u8> = tags.iter().flat_map(|&t| content(t)).collect();
                lock(model).issue(Step::Write { volume, lba, tags });
                let fua = rng.chance(1, 8);
                let steps = lock(model).len();
                match device.write(bytes.0, Bytes::from(data), fua).await {
                    Ok(()) if fua => lock(model).flushed(steps),
                    Ok(()) => {}
                    // A full pool may have taken a first part of it, but then nothing of a write this small.
                    Err(e) if e.kind() == ErrorKind::NoSpace => return Ok(()),
                    Err(e) => return Err(failed("write", e)),
                }
            }
            11..=12 => {
                lock(model).issue(Step::Write { volume, lba, tags: vec![0; count as usize] });
                device.discard(bytes.0, bytes.1).await.map_err(|e| failed("discard", e))?;
            }
            13 => {
                lock(model).issue(Step::Write { volume, lba, tags: vec![0; count as usize] });
                device.write_zeroes(bytes.0, bytes.1, false).await.map_err(|e| failed("write zeroes", e))?;
            }
            14..=15 => {
                let steps = lock(model).len();
                device.flush().await.map_err(|e| failed("flush", e))?;
                lock(model).flushed(steps);
            }
            16 => {
                let data = device.read(bytes.0, bytes.1 as usize).await.map_err(|e| failed("read", e))?;
                let now = lock(model).now();
                for (i, block) in data.chunks_exact(BLOCK_SIZE).enumerate() {
                    let expected = now.volumes[&volume][lba as usize + i];
                    if tag_of(block) != Some(expected) {
                        return Err(format!("volume {volume}, block {}: read {:x?}, expected {expected:x}", lba + i as u64, tag_of(block)));
                    }
                }
            }
            17 => env.sleep(Duration::from_millis(rng.below(200))).await,
            18 => {
                let to = rng.between(10, scenario.blocks * 2);
                if to < blocks {
                    lock(model).issue(Step::Write { volume, lba: to, tags: vec![0; (blocks - to) as usize] });
                }
                lock(model).issue(Step::Resize { volume, blocks: to });
                let steps = lock(model).len();
                pool.resize_volume(&name(volume), to * BLOCK_BYTES).await.map_err(|e| failed("resize", e))?;
                lock(model).flushed(steps);
            }
            _ => {
                let engine = pool.engine().clone();
                engine.checkpoint().await.map_err(|e| failed("checkpoint", e))?;
            }
        }
    }
    Ok(())
}
