//! Every sequence of up to three operations out of a small alphabet, with a crash at every disk write of each single operation
//! and at 12 points spread over the writes of longer sequences (at every write in the nightly run).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockdev::disk::{CrashPlan, CrashTrigger, Disk, FaultBudget, SimDisk};
use blockdev::env::{Rng, SimScope};
use blockdev::pool::{CreateOptions, Kept, Pool, PoolConfig};
use blockdev::report::Tolerance;
use blockdev::units::BLOCK_BYTES;
use bytes::Bytes;
use futures::future::{Either, select};

use super::harness::{check, read_all};
use super::model::{Model, Step, content};
use super::seeds::number;

const BLOCKS: u64 = 8;
const STEPS_MAX: u64 = 1_000_000;
/// Crash points tried for a sequence, spread evenly; `ASHLAR_SIM_POINTS` sets another number.
const POINTS: u64 = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Letter {
    Write,
    Duplicate,
    Overwrite,
    Discard,
    Zero,
    Flush,
    Fua,
    Checkpoint,
    Resize,
    Snapshot,
    Drop,
    Restore,
}

const ALPHABET: [Letter; 9] = [
    Letter::Write,
    Letter::Duplicate,
    Letter::Overwrite,
    Letter::Discard,
    Letter::Zero,
    Letter::Flush,
    Letter::Fua,
    Letter::Checkpoint,
    Letter::Resize,
];

/// Operations around snapshots; the volume has one to begin with.
const SNAPSHOTS: [Letter; 8] = [
    Letter::Write,
    Letter::Duplicate,
    Letter::Overwrite,
    Letter::Discard,
    Letter::Checkpoint,
    Letter::Snapshot,
    Letter::Drop,
    Letter::Restore,
];

fn config() -> PoolConfig {
    PoolConfig {
        memory: 1 << 20,
        linger: Duration::from_micros(50),
        log_interval: Duration::from_millis(1),
        checkpoint_interval: Duration::from_millis(5),
        reap_places: 1,
        frame_blocks: 2,
        ..PoolConfig::default()
    }
}

fn as_disks(disks: &[Arc<SimDisk>]) -> Vec<Arc<dyn Disk>> {
    disks.iter().map(|d| d.clone() as Arc<dyn Disk>).collect()
}

/// A pool of two mirrored disks with one volume that holds something, and perhaps a snapshot; and its model.
fn fresh(snapshot: bool) -> Result<(Vec<Arc<SimDisk>>, Model), String> {
    let disks: Vec<Arc<SimDisk>> =
        (0..2).map(|i| SimDisk::new(format!("disk{i}"), 4 << 20, 900 + i, FaultBudget::none())).collect();
    let scope = SimScope::new(77);
    disks.iter().for_each(|d| d.attach(&scope));
    let mut model = Model::default();
    let env = scope.env();
    let options = CreateOptions {
        name: "sim".into(),
        tolerance: Tolerance::Single,
        chunk_size: Some(64 << 10),
        strip_size: Some(4 << 10),
        force: false,
    };
    let made = async {
        Pool::create(env.clone(), as_disks(&disks), options).await?;
        let pool = Pool::open(env.clone(), as_disks(&disks), config()).await?;
        pool.create_volume("v0", BLOCKS * BLOCK_BYTES).await?;
        model.issue(Step::Resize { volume: 0, blocks: BLOCKS });
        write(&pool, &mut model, 0, &[7, 7]).await?;
        if snapshot {
            pool.create_snapshots(&["v0@0".into()], &Kept::default()).await?;
            model.issue(Step::Snapshot { of: vec![(0, "v0@0".into())] });
            write(&pool, &mut model, 1, &[8]).await?;
        }
        pool.close().await
    };
    let made = scope.run_until(made, STEPS_MAX).map_err(|e| format!("{e:?}"))?;
    made.map_err(|e| format!("set-up: {e}"))?;
    model.flushed(model.len());
    Ok((disks, model))
}

async fn write(pool: &Pool, model: &mut Model, lba: u64, tags: &[u64]) -> blockdev::error::Result<()> {
    model.issue(Step::Write { volume: 0, lba, tags: tags.to_vec() });
    let data: Vec<u8> = tags.iter().flat_map(|&t| content(t)).collect();
    pool.open_volume("v0")?.write(lba * BLOCK_BYTES, Bytes::from(data), false).await
}

async fn perform(pool: &Pool, model: &Mutex<Model>, letter: Letter, place: u64) -> blockdev::error::Result<()> {
    let model = || model.lock().unwrap_or_else(|e| e.into_inner());
    let device = pool.open_volume("v0")?;
    let put = |lba: u64, tags: &[u64]| {
        model().issue(Step::Write { volume: 0, lba, tags: tags.to_vec() });
        Bytes::from(tags.iter().flat_map(|&t| content(t)).collect::<Vec<u8>>())
    };
    let unique = 1000 + place * 10;
    match letter {
        Letter::Write => device.write(2 * BLOCK_BYTES, put(2, &[unique, unique + 1]), false).await,
        Letter::Duplicate => device.write(3 * BLOCK_BYTES, put(3, &[7, unique, 7]), false).await,
        Letter::Overwrite => device.write(0, put(0, &[unique + 2]), false).await,
        Letter::Discard => {
            put(0, &[0, 0, 0]);
            device.discard(0, 3 * BLOCK_BYTES).await
        }
        Letter::Zero => {
            put(1, &[0, 0]);
            device.write_zeroes(BLOCK_BYTES, 2 * BLOCK_BYTES, false).await
        }
        Letter::Flush => {
            let steps = model().len();
            device.flush().await?;
            model().flushed(steps);
            Ok(())
        }
        Letter::Fua => {
            let data = put(1, &[unique + 3]);
            let steps = model().len();
            device.write(BLOCK_BYTES, data, true).await?;
            model().flushed(steps);
            Ok(())
        }
        Letter::Checkpoint => pool.engine().clone().checkpoint().await,
        Letter::Resize => {
            let blocks = BLOCKS - 1 - place;
            let now = device.geometry().size / BLOCK_BYTES;
            put(blocks, &vec![0; (now - blocks) as usize]);
            model().issue(Step::Resize { volume: 0, blocks });
            let steps = model().len();
            pool.resize_volume("v0", blocks * BLOCK_BYTES).await?;
            model().flushed(steps);
            Ok(())
        }
        Letter::Snapshot => {
            let name = format!("v0@{}", place + 1);
            model().issue(Step::Snapshot { of: vec![(0, name.clone())] });
            let steps = model().len();
            pool.create_snapshots(&[name], &Kept::default()).await?;
            model().flushed(steps);
            Ok(())
        }
        Letter::Drop => {
            let oldest = model().now().snapshots.into_keys().next();
            let Some(name) = oldest else { return Ok(()) };
            model().issue(Step::DropSnapshot { name: name.clone() });
            let steps = model().len();
            pool.delete_snapshot(&name).await?;
            model().flushed(steps);
            Ok(())
        }
        Letter::Restore => {
            let newest = model().now().snapshots.into_keys().next_back();
            let Some(from) = newest else { return Ok(()) };
            model().issue(Step::Clone { from: from.clone(), volume: 0 });
            let steps = model().len();
            pool.restore_volume("v0", &from, None).await?;
            model().flushed(steps);
            Ok(())
        }
    }
}

/// Performs a sequence on copies of the disks and crashes at a write; returns the writes counted.
fn try_one(base: &(Vec<Arc<SimDisk>>, Model), sequence: &[Letter], crash: u64) -> Result<u64, String> {
    let seed = crash.wrapping_mul(31) ^ sequence.iter().fold(7, |h, &l| h * 11 + l as u64);
    let disks: Vec<Arc<SimDisk>> = base.0.iter().enumerate().map(|(i, d)| d.duplicate(seed ^ i as u64)).collect();
    let trigger = CrashTrigger::new(CrashPlan { after_writes: crash });
    let scope = SimScope::new(seed);
    disks.iter().for_each(|d| {
        d.attach(&scope);
        d.set_crash_trigger(Some(trigger.clone()));
    });
    let model = Mutex::new(base.1.clone());
    let env = scope.env();
    let life = async {
        let pool = Pool::open(env.clone(), as_disks(&disks), config()).await?;
        for (place, &letter) in sequence.iter().enumerate() {
            perform(&pool, &model, letter, place as u64).await?;
        }
        // What is under way in the background has its crash points too.
        env.sleep(Duration::from_millis(8)).await;
        Ok::<Pool, blockdev::error::Error>(pool)
    };
    let raced = async {
        let fired = trigger.fired();
        tokio::pin!(life, fired);
        match select(life, fired).await {
            Either::Left((result, _)) => result.map(Some),
            Either::Right(_) => Ok(None),
        }
    };
    let result = scope.run_until(raced, STEPS_MAX).map_err(|e| format!("{e:?}"))?;
    scope.kill_all_tasks();
    drop(result.map_err(|e| format!("working: {e}"))?);
    let mut rng = Rng::new(seed);
    disks.iter().for_each(|d| d.crash(&mut rng));
    drop(scope);

    let scope = SimScope::new(seed ^ 1);
    disks.iter().for_each(|d| d.attach(&scope));
    let env = scope.env();
    let last = async {
        let pool = Pool::open(env, as_disks(&disks), config()).await.map_err(|e| format!("open: {e}"))?;
        let found = read_all(&pool).await?;
        check(&pool, false).await?;
        Ok::<_, String>(found)
    };
    let found = scope.run_until(last, STEPS_MAX).map_err(|e| format!("afterwards: {e:?}"))??;
    scope.kill_all_tasks();
    let mut model = model.into_inner().map_err(|e| e.to_string())?;
    model.recover(&found)?;
    Ok(trigger.count())
}

/// All sequences of up to `longest` letters.
fn sequences(longest: usize, alphabet: &[Letter]) -> Vec<Vec<Letter>> {
    let mut all: Vec<Vec<Letter>> = vec![Vec::new()];
    let mut last = all.clone();
    for _ in 0..longest {
        last = last.iter().flat_map(|s| alphabet.iter().map(|&l| s.iter().copied().chain([l]).collect())).collect();
        all.extend(last.iter().cloned());
    }
    all
}

fn exhaust(alphabet: &[Letter], share: usize, shares: usize) {
    let base = fresh(alphabet == SNAPSHOTS).unwrap_or_else(|e| panic!("{e}"));
    let points = number("ASHLAR_SIM_POINTS").unwrap_or(POINTS);
    let (mut cases, mut failures) = (0, Vec::new());
    for sequence in sequences(3, alphabet).iter().skip(share).step_by(shares) {
        let writes = try_one(&base, sequence, u64::MAX).unwrap_or_else(|e| panic!("{sequence:?} without a crash: {e}"));
        // Short sequences are crashed everywhere.
        let step = if sequence.len() < 2 { 1 } else { writes.div_ceil(points).max(1) };
        let first = 1 + (sequence.iter().map(|&l| l as u64).sum::<u64>() % step);
        for crash in (first..=writes).step_by(step as usize) {
            cases += 1;
            if let Err(e) = super::seeds::outcome_of(|| try_one(&base, sequence, crash).map(drop)) {
                failures.push(format!("{sequence:?}, crash at write {crash}: {e}"));
            }
        }
        assert!(failures.len() < 5, "{failures:#?}");
    }
    eprintln!("{cases} cases");
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn short_sequences_0() {
    exhaust(&ALPHABET, 0, 2);
}

#[test]
fn short_sequences_1() {
    exhaust(&ALPHABET, 1, 2);
}

#[test]
fn short_sequences_around_snapshots_0() {
    exhaust(&SNAPSHOTS, 0, 2);
}

#[test]
fn short_sequences_around_snapshots_1() {
    exhaust(&SNAPSHOTS, 1, 2);
}
