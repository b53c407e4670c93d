//! More drives fail in a full pool than its spare makes up for, while hosts write; now and then the process is killed as well. Nothing hangs, nothing
//! that was answered is lost, and whoever frees something can write again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blockdev::disk::{Disk, FaultDisk, MemoryDisk};
use blockdev::env::{Env, Rng};
use blockdev::error::{Error, ErrorKind, Result as PoolResult};
use blockdev::frontend::BlockDevice;
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::Tolerance;
use futures::future::{Either, join, join_all, select};

use super::cut_short::{noise, run};
use super::harness::Memory;
use super::seeds::{sweep, verbose};

const MIB: u64 = 1 << 20;
const PIECE: u64 = 64 << 10;
const BLOCK: u64 = 4 << 10;
/// Of so many blocks one is kept when space is given back.
const THINNING: u64 = 8;
/// Longest that anything may take, in simulated time.
const PATIENCE: Duration = Duration::from_secs(120);

/// What each piece may hold, block by block: seeds of what was written last, or of what was under way.
type Pieces = Rc<RefCell<BTreeMap<u64, Vec<u64>>>>;

async fn within<T>(env: &Arc<dyn Env>, what: &str, work: impl Future<Output = PoolResult<T>>) -> Result<T, String> {
    match select(std::pin::pin!(work), env.sleep(PATIENCE)).await {
        Either::Left((done, _)) => done.map_err(|e| format!("{what}: {e}")),
        Either::Right(_) => Err(format!("{what} takes longer than {PATIENCE:?}")),
    }
}

fn data_of(seed: u64) -> bytes::Bytes {
    noise(seed, PIECE as usize)
}

/// One pool over several lives of the process.
struct Story {
    rng: Rng,
    tolerance: Tolerance,
    disks: Vec<Arc<MemoryDisk>>,
    failed: BTreeSet<usize>,
    pieces: Pieces,
    /// Pieces before this one were thinned.
    thinned: u64,
    config: PoolConfig,
}

/// One life of it.
struct Life {
    env: Arc<dyn Env>,
    faults: Vec<Arc<FaultDisk>>,
    pool: Pool,
    device: Arc<dyn BlockDevice>,
}

impl Life {
    async fn tell(&self, what: &str) {
        if verbose() {
            let (s, t) = (self.pool.stats().await, self.pool.status().await);
            let segments = s.segments_free + s.segments_used;
            eprintln!(
                "{:?} {what}: {} of {segments} segments free, {} cleaned, {} moved, {} dead, {} of {}, {:?}",
                self.env.now(),
                s.segments_free,
                s.cleaner_segments,
                s.cleaner_moved,
                s.dead,
                t.used,
                t.usable,
                t.rebuild
            );
        }
    }

    /// Writes; waits a while where there is no space.
    async fn write_patiently(&self, at: u64, seed: u64) -> PoolResult<()> {
        for _ in 0..100 {
            match self.device.write(at * PIECE, data_of(seed), false).await {
                Err(e) if e.kind() == ErrorKind::NoSpace => self.env.sleep(Duration::from_millis(100)).await,
                other => return other,
            }
        }
        Err(Error::new(ErrorKind::NoSpace, "still no space"))
    }
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0F11);
        let tolerance = if rng.chance(1, 2) { Tolerance::Single } else { Tolerance::Double };
        // One drive more than an extent is wide, at least: there is a spare.
        let count = 2 * tolerance.drives() + 2 + rng.index(5);
        let size = rng.between(6, 15) * MIB;
        let disks = (0..count).map(|i| Arc::new(MemoryDisk::new(format!("d{i}"), size))).collect();
        let config = PoolConfig {
            memory: 16 << 20,
            failed_grace: Duration::from_millis(rng.below(50)),
            missing_grace: Duration::from_millis(rng.below(50)),
            checkpoint_interval: Duration::from_millis(rng.between(20, 500)),
            // In half of the stories the process is killed: what was answered is to outlive it.
            carry: rng.chance(1, 2).then(|| Arc::new(Memory::default()) as _),
            ..PoolConfig::default()
        };
        Self { rng, tolerance, disks, failed: BTreeSet::new(), pieces: Pieces::default(), thinned: 0, config }
    }

    /// Pulls what failed, as those who start again do not find it.
    fn plugged_in(&self, env: &Arc<dyn Env>) -> Vec<Arc<FaultDisk>> {
        let here = (0..self.disks.len()).filter(|i| !self.failed.contains(i));
        here.map(|i| FaultDisk::new(self.disks[i].clone(), env.clone())).collect()
    }

    async fn open(&self, env: Arc<dyn Env>) -> Result<Life, String> {
        let faults = self.plugged_in(&env);
        let disks = faults.iter().map(|f| f.clone() as Arc<dyn Disk>).collect();
        let pool = within(&env, "opening", Pool::open(env.clone(), disks, self.config.clone())).await?;
        let device = pool.open_volume("a").map_err(|e| e.to_string())?;
        if self.config.carry.is_some() && !device.outlive() {
            return Err("no memory that outlives the process".into());
        }
        Ok(Life { env, faults, pool, device })
    }

    /// A pool that is full, or nearly.
    async fn fill(&mut self, env: Arc<dyn Env>) -> Result<(), String> {
        let options = CreateOptions {
            name: "tank".into(),
            tolerance: self.tolerance,
            chunk_size: Some(64 << 10 << self.rng.below(3)),
            strip_size: Some(4 << 10),
            force: false,
        };
        let faults = self.plugged_in(&env);
        let disks: Vec<Arc<dyn Disk>> = faults.iter().map(|f| f.clone() as Arc<dyn Disk>).collect();
        within(&env, "creating", Pool::create(env.clone(), disks.clone(), options)).await?;
        {
            let pool = within(&env, "opening", Pool::open(env.clone(), disks, self.config.clone())).await?;
            within(&env, "the volume", pool.create_volume("a", 512 * MIB)).await?;
            within(&env, "closing", pool.close()).await?;
        }
        let life = self.open(env.clone()).await?;
        loop {
            let (at, seed) = (self.pieces.borrow().len() as u64, self.rng.u64());
            match life.device.write(at * PIECE, data_of(seed), false).await {
                Ok(()) => drop(self.pieces.borrow_mut().insert(at, vec![seed])),
                Err(e) if e.kind() == ErrorKind::NoSpace => break,
                Err(e) => return Err(format!("filling: {e}")),
            }
        }
        let full = self.pieces.borrow().len() as u64;
        let room = self.rng.below(full / 8);
        within(&env, "a discard", life.device.discard((full - room) * PIECE, room * PIECE)).await?;
        self.pieces.borrow_mut().retain(|at, _| *at < full - room);
        life.tell("full").await;
        within(&env, "closing", life.pool.close()).await
    }

    /// Overwrites until `stop`, where there is space.
    async fn overwrite(
        pieces: Pieces,
        life: &Life,
        busy: &RefCell<BTreeSet<u64>>,
        mut rng: Rng,
        stop: &Cell<bool>,
    ) -> PoolResult<()> {
        while !stop.get() {
            let (at, seed) = (rng.below(pieces.borrow().len() as u64), rng.u64());
            // One at a time: which of two came last nobody knows.
            if !busy.borrow_mut().insert(at) {
                life.env.sleep(Duration::from_micros(100)).await;
                continue;
            }
            pieces.borrow_mut().entry(at).or_default().push(seed);
            let written = life.device.write(at * PIECE, data_of(seed), rng.chance(1, 20)).await;
            busy.borrow_mut().remove(&at);
            match written {
                Ok(()) => drop(pieces.borrow_mut().insert(at, vec![seed])),
                Err(e) if e.kind() == ErrorKind::NoSpace => life.env.sleep(Duration::from_millis(5)).await,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// A drive fails while hosts write. What it held is made up for as far as there is room, unless the process is killed before.
    async fn lose(&mut self, env: Arc<dyn Env>) -> Result<(), String> {
        let killed = self.config.carry.is_some() && self.rng.chance(2, 3);
        let life = self.open(env.clone()).await?;
        if !self.failed.is_empty() {
            // The life before may have ended too early for that.
            self.settle(&life).await?;
        }
        let (stop, busy) = (Cell::new(false), RefCell::default());
        let writers: Vec<_> = (0..1 + self.rng.index(24))
            .map(|_| Self::overwrite(self.pieces.clone(), &life, &busy, Rng::new(self.rng.u64()), &stop))
            .collect();
        let victim = self.rng.index(life.faults.len());
        let (before, after) = (Duration::from_micros(self.rng.below(30_000)), self.rng.below(400_000));
        let after = Duration::from_micros(if killed { after >> self.rng.below(16) } else { after });
        let fail = async {
            env.sleep(before).await;
            life.faults[victim].fail();
            env.sleep(after).await;
            stop.set(true);
        };
        let number: usize = life.faults[victim].name()[1..].parse().map_err(|_| "the name of a drive")?;
        self.failed.insert(number);
        if killed {
            // Whatever is under way stays so.
            select(std::pin::pin!(join_all(writers)), std::pin::pin!(fail)).await;
            return Ok(());
        }
        let written = async { Ok(join(join_all(writers), fail).await.0.into_iter().collect::<PoolResult<Vec<()>>>()) };
        within(&env, "writing while a drive fails", written).await?.map_err(|e| format!("a write: {e}"))?;
        within(&env, "the flush after that", life.device.flush()).await?;
        self.settle(&life).await?;
        within(&env, "closing", life.pool.close()).await
    }

    /// Redundancy comes back as far as there is room, for the first drive in all cases. All is there.
    async fn settle(&self, life: &Life) -> Result<(), String> {
        let raw: u64 = self.disks.iter().map(|d| d.geometry().size).sum();
        let before = life.pool.stats().await.cleaner_moved;
        for _ in 0..30 {
            life.env.sleep(Duration::from_secs(1)).await;
            life.tell("settling").await;
        }
        let moved = life.pool.stats().await.cleaner_moved - before;
        if moved > 8 * raw {
            return Err(format!("{moved} bytes were moved about in a pool of {raw}"));
        }
        if self.failed.len() == 1 && life.pool.status().await.rebuild.is_some() {
            return Err("the first failure is not made up for by the spare".into());
        }
        self.all_there(life).await
    }

    /// Looks at all pieces; at what was kept of those that were thinned.
    async fn all_there(&self, life: &Life) -> Result<(), String> {
        let all = self.pieces.borrow().clone();
        for (at, may) in all {
            let found = within(&life.env, &format!("piece {at}"), life.device.read(at * PIECE, PIECE as usize)).await?;
            let all_that_may: Vec<bytes::Bytes> = may.iter().map(|&seed| data_of(seed)).collect();
            for from in (0..PIECE).step_by((if at < self.thinned { THINNING } else { 1 } * BLOCK) as usize) {
                let block = from as usize..(from + BLOCK) as usize;
                if !all_that_may.iter().any(|one| one[block.clone()] == found[block.clone()]) {
                    return Err(format!("piece {at}, byte {from}: none of {} that it may be", may.len()));
                }
            }
        }
        Ok(())
    }

    /// Whoever frees something can write again, also where no segment becomes free as a whole.
    async fn thin_out(&mut self, env: Arc<dyn Env>) -> Result<(), String> {
        let life = self.open(env.clone()).await?;
        self.settle(&life).await?;
        let report = within(&env, "the check", life.pool.check(Arc::new(|_, _| {}))).await?;
        if !report.is_clean() {
            return Err(format!("{:?}", report.findings));
        }
        self.thinned = self.pieces.borrow().len() as u64;
        for from in (0..self.thinned * PIECE).step_by((THINNING * BLOCK) as usize) {
            within(&env, "a discard", life.device.discard(from + BLOCK, (THINNING - 1) * BLOCK)).await?;
        }
        within(&env, "the flush after discards", life.device.flush()).await?;
        for at in self.thinned..self.thinned + self.thinned / THINNING {
            let seed = self.rng.u64();
            within(&env, "a write after discards", life.write_patiently(at, seed)).await?;
            self.pieces.borrow_mut().insert(at, vec![seed]);
            life.tell("writing again").await;
        }
        within(&env, "the last flush", life.device.flush()).await?;
        self.all_there(&life).await?;
        within(&env, "closing", life.pool.close()).await
    }
}

/// What happens in one life.
#[derive(Clone, Copy, Debug)]
enum Step {
    Fill,
    Lose,
    ThinOut,
}

fn run_story(seed: u64) -> Result<(), String> {
    let mut story = Story::new(seed);
    let steps = [Step::Fill].into_iter().chain(vec![Step::Lose; 1 + story.tolerance.drives()]).chain([Step::ThinOut]);
    for (n, step) in (0..).zip(steps) {
        let mut outcome = Ok(());
        let story = &mut story;
        run(seed + (n << 32), |env| async {
            outcome = match step {
                Step::Fill => story.fill(env).await,
                Step::Lose => story.lose(env).await,
                Step::ThinOut => story.thin_out(env).await,
            }
        });
        outcome.map_err(|e| format!("life {n}, {step:?}: {e}"))?;
    }
    Ok(())
}

#[test]
fn a_full_pool_loses_more_than_its_spare_0() {
    sweep(0, 2, 24, run_story);
}

#[test]
fn a_full_pool_loses_more_than_its_spare_1() {
    sweep(1, 2, 24, run_story);
}
