//! More drives fail in a full pool than its spare makes up for, while hosts write: nothing hangs, nothing that was answered is lost.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blockdev::disk::{Disk, FaultDisk, MemoryDisk};
use blockdev::env::{Env, Rng};
use blockdev::error::ErrorKind;
use blockdev::frontend::BlockDevice;
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::Tolerance;
use futures::future::{Either, join_all, select};

use super::cut_short::{noise, run};
use super::seeds::{sweep, verbose};

const MIB: u64 = 1 << 20;
const PIECE: u64 = 64 << 10;
/// Of eight times as much this is kept when space is given back.
const KEPT: u64 = 4 << 10;
/// Longest that anything may take, in simulated time.
const PATIENCE: Duration = Duration::from_secs(120);

/// What each piece may hold: seeds of what was written last, or of what was under way.
type Pieces = Rc<RefCell<BTreeMap<u64, Vec<u64>>>>;

async fn within<T>(env: &Arc<dyn Env>, what: &str, work: impl Future<Output = T>) -> Result<T, String> {
    let work = std::pin::pin!(work);
    match select(work, env.sleep(PATIENCE)).await {
        Either::Left((done, _)) => Ok(done),
        Either::Right(_) => Err(format!("{what} takes longer than {PATIENCE:?}")),
    }
}

/// Writes pieces until one is refused for want of space.
async fn fill(device: &Arc<dyn BlockDevice>, pieces: &Pieces, rng: &mut Rng) -> Result<(), String> {
    loop {
        let (at, seed) = (pieces.borrow().len() as u64, rng.u64());
        match device.write(at * PIECE, noise(seed, PIECE as usize), false).await {
            Ok(()) => drop(pieces.borrow_mut().insert(at, vec![seed])),
            Err(e) if e.kind() == ErrorKind::NoSpace => return Ok(()),
            Err(e) => return Err(e.to_string()),
        }
    }
}

/// Overwrites until `stop`, where there is space.
async fn overwrite(
    env: Arc<dyn Env>,
    device: Arc<dyn BlockDevice>,
    pieces: Pieces,
    busy: Rc<RefCell<BTreeSet<u64>>>,
    mut rng: Rng,
    stop: Rc<RefCell<bool>>,
) -> Result<(), String> {
    while !*stop.borrow() {
        let (at, seed) = (rng.below(pieces.borrow().len() as u64), rng.u64());
        // One at a time: which of two came last nobody knows.
        if !busy.borrow_mut().insert(at) {
            env.sleep(Duration::from_micros(100)).await;
            continue;
        }
        let written = device.write(at * PIECE, noise(seed, PIECE as usize), rng.chance(1, 20)).await;
        busy.borrow_mut().remove(&at);
        match written {
            Ok(()) => drop(pieces.borrow_mut().insert(at, vec![seed])),
            Err(e) if e.kind() == ErrorKind::NoSpace => {
                pieces.borrow_mut().entry(at).or_default().push(seed);
                env.sleep(Duration::from_millis(5)).await;
            }
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(())
}

async fn rebuilt(env: &Arc<dyn Env>, pool: &Pool) -> bool {
    for _ in 0..3000 {
        if pool.status().await.rebuild.is_none() {
            return true;
        }
        env.sleep(Duration::from_millis(20)).await;
    }
    false
}

/// Looks at all pieces; of those before `thinned` only at what was kept of them.
async fn all_there(device: &Arc<dyn BlockDevice>, pieces: &Pieces, thinned: u64) -> Result<(), String> {
    let all = pieces.borrow().clone();
    for (at, may) in all {
        let found = device.read(at * PIECE, PIECE as usize).await.map_err(|e| format!("piece {at}: {e}"))?;
        let step = if at < thinned { 8 * KEPT } else { KEPT };
        let same = |seed: u64| {
            let expected = noise(seed, PIECE as usize);
            (0..PIECE)
                .step_by(step as usize)
                .map(|i| i as usize..(i + KEPT) as usize)
                .all(|r| found[r.clone()] == expected[r])
        };
        if !may.iter().any(|&seed| same(seed)) {
            return Err(format!("piece {at} is none of {} that it may be", may.len()));
        }
    }
    Ok(())
}

async fn story(env: Arc<dyn Env>, seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0x0F11);
    let tolerance = if rng.chance(1, 2) { Tolerance::Single } else { Tolerance::Double };
    // One drive more than an extent is wide, at least: there is a spare.
    let count = 2 * tolerance.drives() + 2 + rng.index(5);
    let size = rng.between(6, 15) * MIB;
    let memory = |i| Arc::new(MemoryDisk::new(format!("d{i}"), size));
    let faults: Vec<Arc<FaultDisk>> = (0..count).map(|i| FaultDisk::new(memory(i), env.clone())).collect();
    let disks: Vec<Arc<dyn Disk>> = faults.iter().map(|f| f.clone() as Arc<dyn Disk>).collect();
    let options = CreateOptions {
        name: "tank".into(),
        tolerance,
        chunk_size: Some(64 << 10 << rng.below(3)),
        strip_size: Some(4 << 10),
        force: false,
    };
    Pool::create(env.clone(), disks.clone(), options).await.map_err(|e| e.to_string())?;
    let config = PoolConfig {
        memory: 16 << 20,
        failed_grace: Duration::from_millis(rng.below(50)),
        checkpoint_interval: Duration::from_millis(rng.between(20, 500)),
        ..PoolConfig::default()
    };
    let pool = Pool::open(env.clone(), disks, config).await.map_err(|e| e.to_string())?;
    pool.create_volume("a", 512 * MIB).await.map_err(|e| e.to_string())?;
    let device = pool.open_volume("a").map_err(|e| e.to_string())?;
    let pieces = Pieces::default();
    within(&env, "filling", fill(&device, &pieces, &mut rng)).await??;
    // A little room, or none.
    let full = pieces.borrow().len() as u64;
    let room = rng.below(full / 8);
    device.discard((full - room) * PIECE, room * PIECE).await.map_err(|e| e.to_string())?;
    pieces.borrow_mut().retain(|at, _| *at < full - room);
    let mut order: Vec<usize> = (0..count).collect();
    rng.shuffle(&mut order);
    let log = |what: &str| {
        if verbose() {
            eprintln!("{:?}: {what}", env.now());
        }
    };
    let tell = async || {
        if !verbose() {
            return;
        }
        let (s, t) = (pool.stats().await, pool.status().await);
        log(&format!(
            "{} of {} segments free, {} cleaned, {} moved, {} dead, {} of {}, {:?}",
            s.segments_free,
            s.segments_free + s.segments_used,
            s.cleaner_segments,
            s.cleaner_moved,
            s.dead,
            t.used,
            t.usable,
            t.rebuild
        ));
    };
    log(&format!("{count} drives, {tolerance:?}, {} pieces", pieces.borrow().len()));
    for (n, &victim) in order[..1 + tolerance.drives()].iter().enumerate() {
        let (stop, busy) = (Rc::new(RefCell::new(false)), Rc::<RefCell<BTreeSet<u64>>>::default());
        let writers: Vec<_> = (0..1 + rng.index(24))
            .map(|_| {
                overwrite(env.clone(), device.clone(), pieces.clone(), busy.clone(), Rng::new(rng.u64()), stop.clone())
            })
            .collect();
        let (before, after) = (Duration::from_micros(rng.below(30_000)), Duration::from_millis(rng.below(400)));
        let fail = async {
            env.sleep(before).await;
            faults[victim].fail();
            env.sleep(after).await;
            *stop.borrow_mut() = true;
        };
        let what = format!("writing while drive {} fails", n + 1);
        let (ended, ()) = within(&env, &what, futures::future::join(join_all(writers), fail)).await?;
        ended.into_iter().collect::<Result<Vec<()>, String>>()?;
        log("written");
        let flushed = within(&env, &format!("the flush after failure {}", n + 1), device.flush()).await?;
        flushed.map_err(|e| format!("the flush after failure {}: {e}", n + 1))?;
        if n == 0 && !rebuilt(&env, &pool).await {
            return Err("the first failure is not made up for by the spare".into());
        }
        log("flushed, rebuilt if first");
        // As far as there is room.
        for _ in 0..30 {
            env.sleep(Duration::from_secs(1)).await;
            tell().await;
        }
        all_there(&device, &pieces, 0).await?;
        log("read");
    }
    let report = pool.check(Arc::new(|_, _| {})).await.map_err(|e| e.to_string())?;
    if !report.is_clean() {
        return Err(format!("{:?}", report.findings));
    }
    // Whoever frees something can write again, also where no segment becomes free as a whole.
    let count = pieces.borrow().len() as u64;
    for from in (0..count * PIECE).step_by(8 * KEPT as usize) {
        let discarded = within(&env, "a discard", device.discard(from + KEPT, 7 * KEPT)).await?;
        discarded.map_err(|e| format!("a discard: {e}"))?;
    }
    within(&env, "the flush after discards", device.flush())
        .await?
        .map_err(|e| format!("the flush after discards: {e}"))?;
    for _ in 0..count / 8 {
        // New space takes a while.
        let mut tries = 0;
        let seed = rng.u64();
        let at = pieces.borrow().len() as u64;
        loop {
            match within(&env, "a write after discards", device.write(at * PIECE, noise(seed, PIECE as usize), false))
                .await?
            {
                Err(e) if e.kind() == ErrorKind::NoSpace && tries < 100 => {
                    tries += 1;
                    env.sleep(Duration::from_millis(100)).await;
                }
                other => break other.map_err(|e| format!("a write after discards: {e}"))?,
            }
        }
        pieces.borrow_mut().insert(at, vec![seed]);
        if at.is_multiple_of(8) {
            tell().await;
        }
    }
    within(&env, "the last flush", device.flush()).await?.map_err(|e| format!("the last flush: {e}"))?;
    all_there(&device, &pieces, count).await?;
    within(&env, "closing", pool.close()).await?.map_err(|e| e.to_string())
}

fn run_story(seed: u64) -> Result<(), String> {
    let outcome = Rc::new(RefCell::new(Ok(())));
    let kept = outcome.clone();
    run(seed, |env| async move { *kept.borrow_mut() = story(env, seed).await });
    outcome.replace(Ok(()))
}

#[test]
fn a_full_pool_loses_more_than_its_spare_0() {
    sweep(0, 2, 24, run_story);
}

#[test]
fn a_full_pool_loses_more_than_its_spare_1() {
    sweep(1, 2, 24, run_story);
}
