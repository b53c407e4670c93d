//! Reads of many blocks at once give what reads of each of them would: frames that are wanted whole or in part, once or several times, from disk or
//! from the cache, with writes that are not yet on disk among them, and with places that rot or cannot be read.

use blockdev::env::Rng;
use blockdev::frontend::BlockDevice;
use blockdev::pool::Pool;
use blockdev::report::Tolerance;
use blockdev::units::{BLOCK_BYTES, BLOCK_SIZE};

use super::harness::{Appliance, Faults, Scenario, name};
use super::model::{content, tag_of};
use super::rebuild::scenario as rebuild_scenario;
use super::seeds::{sweep, verbose};

const STEPS: u64 = 30_000_000;
/// Data of a disk of this size lies behind this offset.
const DATA: u64 = 1 << 20;
const BLOCKS: u64 = 700;
/// Blocks of the longest read: some runs of frames are longer than what one thread uncompresses.
const LONGEST: u64 = 160;

/// What the volume holds, block by block, and what to write next.
struct Model {
    rng: Rng,
    tags: Vec<u64>,
    next: u64,
}

impl Model {
    /// Writes some blocks one behind the other, new ones or such as there are already.
    async fn change(&mut self, device: &dyn BlockDevice) -> Result<(), String> {
        let rng = &mut self.rng;
        let most = 1 << rng.between(1, 6);
        let len = 1 + rng.below(most);
        let at = rng.below(BLOCKS - len);
        let from = rng.below(BLOCKS - len);
        let tags: Vec<u64> = match rng.below(8) {
            0 => vec![0; len as usize],
            1 | 2 => self.tags[from as usize..(from + len) as usize].to_vec(),
            // The same frame again and again.
            3 => (0..len).map(|i| self.next + i % 4).collect(),
            _ => (self.next..self.next + len).collect(),
        };
        self.next += len;
        self.tags[at as usize..at as usize + tags.len()].copy_from_slice(&tags);
        let data: Vec<u8> = tags.iter().flat_map(|&tag| content(tag)).collect();
        device.write(at * BLOCK_BYTES, data.into(), false).await.map_err(|e| e.to_string())
    }

    fn range(&mut self) -> (u64, u64) {
        let len = 1 + self.rng.below(LONGEST);
        (self.rng.below(BLOCKS - len), len)
    }
}

fn run(seed: u64) -> Result<(), String> {
    let mut scenario = Scenario { faults: Faults::None, volumes: 1, blocks: BLOCKS, ..rebuild_scenario(seed) };
    let mut model = Model { rng: Rng::new(seed ^ 0x1A46), tags: vec![0; BLOCKS as usize], next: 1 };
    (scenario.config.frame_blocks, scenario.config.memory) = (1 << model.rng.below(4), 16 << 20);
    scenario.disk_size = 24 << 20;
    scenario.config.error_limit = 0;
    if scenario.tolerance == Tolerance::None {
        scenario.tolerance = Tolerance::Single;
    }
    let mut a = Appliance::new(scenario)?;
    let scope = a.next_life();
    let env = scope.env();
    let fill = async {
        let pool =
            Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.map_err(|e| e.to_string())?;
        let device = pool.open_volume(&name(0)).map_err(|e| e.to_string())?;
        for _ in 0..120 {
            model.change(&*device).await?;
        }
        pool.close().await.map_err(|e| e.to_string())
    };
    scope.run_until(fill, STEPS).map_err(|e| format!("filling: {e:?}"))??;
    scope.kill_all_tasks();
    for _ in 0..model.rng.below(2) * model.rng.below(300) {
        let at = DATA + model.rng.below(a.scenario.disk_size - 2 * DATA) / 4096 * 4096;
        match model.rng.below(3) {
            0 => a.disks[0].damage(at, 4096),
            _ => a.disks[0].corrupt(at, 512 << model.rng.below(6)),
        }
    }
    let scope = a.next_life();
    let env = scope.env();
    let look = async {
        let pool =
            Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.map_err(|e| e.to_string())?;
        let device = pool.open_volume(&name(0)).map_err(|e| e.to_string())?;
        for round in 0..60 {
            if model.rng.chance(1, 4) {
                model.change(&*device).await?;
            }
            let (at, len) = model.range();
            for time in 0..1 + model.rng.below(4) {
                let read = device.read(at * BLOCK_BYTES, len as usize * BLOCK_SIZE).await;
                let read = read.map_err(|e| format!("read {round}.{time} of {len} at {at}: {e}"))?;
                for (i, block) in read.chunks(BLOCK_SIZE).enumerate() {
                    let (found, expected) = (tag_of(block), model.tags[at as usize + i]);
                    if found != Some(expected) {
                        return Err(format!("read {round}.{time} of {len} at {at}: {found:?} not {expected} at {i}"));
                    }
                }
            }
        }
        let repaired = pool.engine().counters.repaired.load(std::sync::atomic::Ordering::Relaxed);
        pool.close().await.map_err(|e| e.to_string())?;
        Ok(repaired)
    };
    let repaired = scope.run_until(look, STEPS).map_err(|e| format!("reading: {e:?}"))??;
    scope.kill_all_tasks();
    if verbose() {
        eprintln!("{repaired} frames repaired");
    }
    Ok(())
}

#[test]
fn many_blocks_at_once() {
    sweep(0, 1, 80, run);
}
