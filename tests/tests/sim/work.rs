//! What a host does during one life.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use blockdev::disk::SimDisk;
use blockdev::env::{Env, Rng};
use blockdev::error::{Error, ErrorKind};
use blockdev::frontend::BlockDevice;
use blockdev::pool::Pool;
use blockdev::units::{BLOCK_BYTES, BLOCK_SIZE};
use bytes::Bytes;

use super::harness::{Faults, Scenario, name};
use super::model::{Model, PIECE_BLOCKS, Step, content, tag_of};

/// Which operations, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Everything, with pauses in which the engine comes to rest.
    Usual,
    /// Mostly overwrites with content that does not compress, and flushes, without pauses: much is under way at any time.
    Storm,
    /// The usual, and snapshots, clones, volumes that are restored, refreshed, deleted.
    Snapshots,
    /// Overwrites and discards in a pool that is too small: writes may be refused, then nothing of them was taken.
    Pressure,
}

/// A host with one request at a time.
pub struct Worker<'a> {
    pub env: &'a Arc<dyn Env>,
    pub pool: &'a Pool,
    pub scenario: &'a Scenario,
    pub model: &'a Mutex<Model>,
    pub disks: &'a [Arc<SimDisk>],
}

/// A range of a volume.
struct Target {
    volume: usize,
    device: Arc<dyn BlockDevice>,
    /// Size of the volume in blocks.
    blocks: u64,
    lba: u64,
    count: u64,
}

impl Target {
    fn bytes(&self) -> (u64, u64) {
        (self.lba * BLOCK_BYTES, self.count * BLOCK_BYTES)
    }
}

/// A random key.
pub fn pick<'a, K: Ord, V>(rng: &mut Rng, of: &'a BTreeMap<K, V>) -> Option<&'a K> {
    of.keys().nth(rng.index(of.len().max(1)))
}

pub fn failed(what: &str, e: Error) -> String {
    format!("{what}: {e}")
}

impl Worker<'_> {
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whether what is answered outlives the process.
    fn outlives(&self) -> bool {
        self.scenario.config.carry.is_some()
    }

    /// All steps so far were answered.
    fn answered(&self) {
        if self.outlives() {
            let mut model = self.model();
            let steps = model.len();
            model.answered(steps);
        }
    }

    /// A random number of random operations, one after another.
    pub async fn run(&self, seed: u64) -> Result<(), String> {
        let mut rng = Rng::new(seed);
        for _ in 0..rng.between(1, self.scenario.ops as u64) {
            let done = match self.scenario.mix {
                Mix::Usual => self.usual(&mut rng).await?,
                Mix::Snapshots => self.snapshots(&mut rng).await?,
                Mix::Storm => self.storm(&mut rng).await?,
                Mix::Pressure => self.pressure(&mut rng).await?,
            };
            if !done {
                break;
            }
        }
        Ok(())
    }

    fn target(&self, rng: &mut Rng, longest: u64) -> Result<Target, String> {
        let volume = match self.scenario.mix {
            Mix::Snapshots => *pick(rng, &self.model().now().volumes).ok_or("there are no volumes")?,
            _ => rng.index(self.scenario.volumes),
        };
        let device = self.pool.open_volume(&name(volume)).map_err(|e| e.to_string())?;
        if device.outlive() != self.outlives() {
            return Err("there is no memory that outlives the process".into());
        }
        let blocks = device.geometry().size / BLOCK_BYTES;
        let lba = rng.below(blocks);
        let longest = 1 << rng.below(longest);
        let count = (1 + rng.below(longest)).min(blocks - lba);
        Ok(Target { volume, device, blocks, lba, count })
    }

    /// False when the pool is full: nothing more is done in this life.
    pub async fn usual(&self, rng: &mut Rng) -> Result<bool, String> {
        let target = self.target(rng, 7)?;
        match rng.below(20) {
            0..=10 => {
                let style = rng.below(4);
                let tag = |rng: &mut Rng| match style {
                    0 => 1 + rng.below(20),
                    1 if rng.chance(1, 3) => 0,
                    _ => rng.u64() | 1 << 63,
                };
                let tags: Vec<u64> = (0..target.count).map(|_| tag(rng)).collect();
                return self.write(&target, tags, rng.chance(1, 8)).await;
            }
            11..=12 => self.discard(&target).await?,
            13 => self.write_zeroes(&target).await?,
            14..=15 => self.flush(&target).await?,
            16 => self.read(&target).await?,
            17 => self.env.sleep(Duration::from_millis(rng.below(200))).await,
            18 => {
                let to = rng.between(10, self.scenario.blocks * 2);
                self.resize(&target, to).await?;
            }
            _ => self.checkpoint().await?,
        }
        Ok(true)
    }

    async fn storm(&self, rng: &mut Rng) -> Result<bool, String> {
        let target = self.target(rng, 6)?;
        match rng.below(32) {
            0..=17 => {
                let tag =
                    |rng: &mut Rng| if rng.chance(1, 5) { 1 + rng.below(8) } else { (rng.u64() / 5 * 5) | 5 << 56 };
                let tags: Vec<u64> = (0..target.count).map(|_| tag(rng)).collect();
                self.write(&target, tags, rng.chance(1, 3)).await?;
            }
            18..=19 => self.discard(&target).await?,
            20..=27 => self.flush(&target).await?,
            28..=29 => self.read(&target).await?,
            30 => self.env.sleep(Duration::from_micros(rng.below(5000))).await,
            _ => self.checkpoint().await?,
        }
        if self.scenario.faults == (Faults::Returns { strict: false }) && rng.chance(1, 20) {
            self.reinstate().await?;
        }
        Ok(true)
    }

    async fn pressure(&self, rng: &mut Rng) -> Result<bool, String> {
        let target = self.target(rng, 6)?;
        match rng.below(40) {
            0..=27 => {
                let tags: Vec<u64> = (0..target.count).map(|_| rng.u64() / 5 * 5).collect();
                self.write(&target, tags, rng.chance(1, 20)).await?;
            }
            28..=32 => self.discard(&target).await?,
            33 => self.write_zeroes(&target).await?,
            34 => self.flush(&target).await?,
            35..=36 => self.read(&target).await?,
            37..=38 => self.env.sleep(Duration::from_millis(rng.below(30))).await,
            _ => {
                let to = rng.between(self.scenario.blocks / 2, self.scenario.blocks);
                self.resize(&target, to).await?;
            }
        }
        Ok(true)
    }

    /// False when the pool has no room for all of it; then nothing of it was taken if it is short.
    async fn write(&self, t: &Target, tags: Vec<u64>, fua: bool) -> Result<bool, String> {
        let data: Vec<u8> = tags.iter().flat_map(|&t| content(t)).collect();
        let written = tags.clone();
        self.model().issue(Step::Write { volume: t.volume, lba: t.lba, tags });
        let steps = self.model().len();
        match t.device.write(t.bytes().0, Bytes::from(data), fua).await {
            Ok(()) if fua => self.model().flushed(steps),
            Ok(()) => self.answered(),
            Err(e) if e.kind() == ErrorKind::NoSpace => {
                if t.count <= PIECE_BLOCKS as u64 {
                    self.model().withdraw();
                    return Ok(false);
                }
                // A long write may have been taken in part.
                let found = t.device.read(t.bytes().0, t.bytes().1 as usize).await.map_err(|e| failed("read", e))?;
                let same = found.chunks_exact(BLOCK_SIZE).zip(&written).take_while(|(b, tag)| tag_of(b) == Some(**tag));
                let taken = same.count();
                self.model().cut(taken);
                return Ok(false);
            }
            Err(e) => return Err(failed("write", e)),
        }
        Ok(true)
    }

    async fn discard(&self, t: &Target) -> Result<(), String> {
        self.model().issue(Step::Write { volume: t.volume, lba: t.lba, tags: vec![0; t.count as usize] });
        t.device.discard(t.bytes().0, t.bytes().1).await.map_err(|e| failed("discard", e))?;
        self.answered();
        Ok(())
    }

    async fn write_zeroes(&self, t: &Target) -> Result<(), String> {
        self.model().issue(Step::Write { volume: t.volume, lba: t.lba, tags: vec![0; t.count as usize] });
        t.device.write_zeroes(t.bytes().0, t.bytes().1, false).await.map_err(|e| failed("write zeroes", e))?;
        self.answered();
        Ok(())
    }

    async fn flush(&self, t: &Target) -> Result<(), String> {
        let steps = self.model().len();
        t.device.flush().await.map_err(|e| failed("flush", e))?;
        self.model().flushed(steps);
        Ok(())
    }

    async fn read(&self, t: &Target) -> Result<(), String> {
        let data = t.device.read(t.bytes().0, t.bytes().1 as usize).await.map_err(|e| failed("read", e))?;
        let now = self.model().now();
        for (i, block) in data.chunks_exact(BLOCK_SIZE).enumerate() {
            let (lba, found) = (t.lba + i as u64, tag_of(block));
            let expected = now.volumes[&t.volume][lba as usize];
            if found != Some(expected) {
                return Err(format!("volume {}, block {lba}: read {found:x?}, expected {expected:x}", t.volume));
            }
        }
        Ok(())
    }

    async fn resize(&self, t: &Target, to: u64) -> Result<(), String> {
        if to < t.blocks {
            self.model().issue(Step::Write { volume: t.volume, lba: to, tags: vec![0; (t.blocks - to) as usize] });
        }
        self.model().issue(Step::Resize { volume: t.volume, blocks: to });
        let steps = self.model().len();
        self.pool.resize_volume(&name(t.volume), to * BLOCK_BYTES).await.map_err(|e| failed("resize", e))?;
        self.model().flushed(steps);
        Ok(())
    }

    /// Disks that died come back.
    async fn reinstate(&self) -> Result<(), String> {
        for disk in self.disks.iter().filter(|d| d.is_failed()) {
            disk.restore();
            let returned = self.pool.reinstate_disk(disk.clone()).await;
            if let Err(e) = returned
                && !disk.is_failed()
            {
                return Err(failed("reinstate", e));
            }
        }
        Ok(())
    }

    async fn checkpoint(&self) -> Result<(), String> {
        let engine = self.pool.engine().clone();
        engine.checkpoint().await.map_err(|e| failed("checkpoint", e))
    }
}
