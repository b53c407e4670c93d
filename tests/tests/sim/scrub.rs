//! Disks rot, lose sectors and labels: a scrub makes all of it whole, which further failures prove; what is beyond redundancy is listed exactly, and
//! everything else goes on.

use std::collections::BTreeSet;
use std::sync::Arc;

use blockdev::disk::{AlignedBuf, Disk};
use blockdev::env::Rng;
use blockdev::error::ErrorKind;
use blockdev::pool::{Kept, Pool};
use blockdev::report::{DiskState, Tolerance};
use blockdev::units::{BLOCK_BYTES, BLOCK_SIZE};
use bytes::Bytes;

use super::harness::{Appliance, Change, Faults, Scenario, name};
use super::model::{content, tag_of};
use super::rebuild::scenario as rebuild_scenario;
use super::seeds::{sweep, verbose};
use super::work::Mix;

const STEPS: u64 = 30_000_000;
/// Data of a disk of this size lies behind this offset.
const DATA: u64 = 1 << 20;

fn scenario(seed: u64) -> Scenario {
    Scenario { faults: Faults::Any, ..rebuild_scenario(seed) }
}

/// Spoils places of a disk: some come back wrong, some not at all.
fn spoil(a: &Appliance, disk: usize, places: u64, rng: &mut Rng) {
    for _ in 0..places {
        let at = DATA + rng.below(a.scenario.disk_size - 2 * DATA) / 4096 * 4096;
        match rng.below(3) {
            0 => a.disks[disk].damage(at, 4096),
            _ => a.disks[disk].corrupt(at, 512 << rng.below(6)),
        }
    }
}

/// As many disks as the pool tolerates rot all over; a scrub, interrupted by crashes, heals them; then as many others fail.
pub fn run(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0x5C12);
    let mut scenario = scenario(seed);
    // Errors alone must not decide here which disks are used.
    scenario.config.error_limit = if rng.chance(1, 2) { 0 } else { 64 };
    let tolerance = scenario.tolerance.drives();
    let mut a = Appliance::new(scenario)?;
    a.set_frail(Vec::new());
    a.live(rng.chance(1, 2).then(|| 200 + rng.below(400)))?;
    // So that all is where it is found again: replay needs what it reads.
    a.heal(None)?;
    let mut order: Vec<usize> = (0..a.disks.len()).collect();
    rng.shuffle(&mut order);
    let rotten = order[..1 + rng.index(tolerance)].to_vec();
    for &disk in &rotten {
        let places = rng.between(1, 300);
        spoil(&a, disk, places, &mut rng);
        if rng.chance(1, 3) {
            let end = a.scenario.disk_size - (64 << 10);
            a.disks[disk].corrupt(if rng.chance(1, 2) { 0 } else { end }, 512);
        }
    }
    for _ in 0..rng.below(4) {
        let reach = 1 << rng.between(2, 10);
        a.heal_after(Change::Scrub, Some(1 + rng.below(reach)))?;
    }
    a.heal_after(Change::Scrub, None)?;
    let mut others: Vec<usize> = order.into_iter().filter(|d| !rotten.contains(d)).collect();
    others.truncate(tolerance);
    others.iter().for_each(|&d| a.disks[d].fail());
    a.finish()
}

#[test]
fn scrub_heals_rot_0() {
    sweep(0, 2, 300, run);
}

#[test]
fn scrub_heals_rot_1() {
    sweep(1, 2, 300, run);
}

/// As many disks go as the pool tolerates, and of what is left one rots: not all can be rebuilt. When the disks that went are back, everything is there:
/// nothing that was computed from rot took the place of what they hold.
pub fn run_with_return(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0x2E70);
    let mut scenario = scenario(seed);
    scenario.config.error_limit = 0;
    let tolerance = scenario.tolerance.drives();
    let mut a = Appliance::new(scenario)?;
    a.set_frail(Vec::new());
    a.live(None)?;
    a.heal(None)?;
    let mut order: Vec<usize> = (0..a.disks.len()).collect();
    rng.shuffle(&mut order);
    let places = rng.between(1, 200);
    spoil(&a, order[0], places, &mut rng);
    let gone = order[1..=tolerance].to_vec();
    gone.iter().for_each(|&d| a.disks[d].fail());
    let scope = a.next_life();
    let env = scope.env();
    let without = async {
        let opened = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await;
        // What opening needs may be among what rotted.
        let Ok(pool) = opened else { return Ok(()) };
        env.sleep(std::time::Duration::from_secs(rng.between(1, 20))).await;
        pool.close().await.map_err(|e| e.to_string())
    };
    scope.run_until(without, STEPS).map_err(|e| format!("without: {e:?}"))?.map_err(|e| format!("without: {e}"))?;
    scope.kill_all_tasks();
    gone.iter().for_each(|&d| a.disks[d].restore());
    a.heal_after(Change::Scrub, None)?;
    a.finish()
}

#[test]
fn what_is_back_is_not_replaced_by_rot() {
    sweep(0, 1, 300, run_with_return);
}

/// What one block of a volume gives.
#[derive(Clone, Debug, PartialEq)]
enum Block {
    Tag(u64),
    Lost,
}

async fn read_each(pool: &Pool, volumes: usize) -> Result<Vec<Vec<Block>>, String> {
    let mut out = Vec::new();
    for v in 0..volumes {
        let device = pool.open_volume(&name(v)).map_err(|e| e.to_string())?;
        let mut blocks = Vec::new();
        for i in 0..device.geometry().size / BLOCK_BYTES {
            blocks.push(match device.read(i * BLOCK_BYTES, BLOCK_SIZE).await {
                Ok(data) => Block::Tag(tag_of(&data).ok_or(format!("volume {v}, block {i}: never written"))?),
                Err(e) if matches!(e.kind(), ErrorKind::Io | ErrorKind::Corrupt) => Block::Lost,
                Err(e) => return Err(format!("volume {v}, block {i}: {e}")),
            });
        }
        out.push(blocks);
    }
    Ok(out)
}

/// What is not lost is what is expected.
fn expect_all_but_lost(found: &[Vec<Block>], expected: &[Vec<Block>]) -> Result<(), String> {
    for (v, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            if found != expected && *found != Block::Lost {
                return Err(format!("volume {v}, block {i}: {found:?}, not {expected:?}"));
            }
        }
    }
    Ok(())
}

async fn listed(pool: &Pool) -> Result<(BTreeSet<(String, u64)>, BTreeSet<String>), String> {
    let damage = pool.damage(Arc::new(|_, _| {})).await.map_err(|e| format!("damage: {e}"))?;
    let each = damage.ranges.iter().flat_map(|r| {
        (r.offset / BLOCK_BYTES..(r.offset + r.len) / BLOCK_BYTES).map(|block| (r.volume.clone(), block))
    });
    let blocks: BTreeSet<(String, u64)> = each.collect();
    if blocks.len() as u64 * BLOCK_BYTES != damage.bytes {
        return Err(format!("{} bytes are said to be lost, {} blocks are listed", damage.bytes, blocks.len()));
    }
    Ok((blocks, damage.read_only.into_keys().collect()))
}

fn lost(found: &[Vec<Block>]) -> BTreeSet<(String, u64)> {
    let of = |(v, blocks): (usize, &Vec<Block>)| -> Vec<(String, u64)> {
        let lost = blocks.iter().enumerate().filter(|(_, b)| **b == Block::Lost);
        lost.map(|(i, _)| (name(v), i as u64)).collect()
    };
    found.iter().enumerate().flat_map(of).collect()
}

/// More rots than redundancy gives back. What is lost is listed exactly, the rest is there, and what is written again is whole, all but volumes
/// whose map is lost; the pool works on, and so it does when it is opened again.
pub fn run_beyond(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0xBE70);
    let mut scenario = scenario(seed);
    if rng.chance(1, 2) {
        scenario.tolerance = Tolerance::None;
        scenario.disks = 1 + rng.index(3);
    }
    scenario.faults = Faults::None;
    scenario.volumes = 1 + rng.index(4);
    scenario.config.error_limit = 0;
    let (volumes, tolerance) = (scenario.volumes, scenario.tolerance.drives());
    let mut a = Appliance::new(scenario)?;
    a.live(None)?;
    a.heal(None)?;
    let mut order: Vec<usize> = (0..a.disks.len()).collect();
    rng.shuffle(&mut order);
    let victims = order[..(tolerance + 1).min(order.len())].to_vec();

    let scope = a.next_life();
    let env = scope.env();
    let whole = async {
        let pool =
            Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.map_err(|e| e.to_string())?;
        let all = read_each(&pool, volumes).await?;
        pool.close().await.map_err(|e| format!("closing: {e}"))?;
        Ok::<_, String>(all)
    };
    let whole = scope.run_until(whole, STEPS).map_err(|e| format!("before: {e:?}"))??;
    scope.kill_all_tasks();
    if !lost(&whole).is_empty() {
        return Err("something is lost before anything rotted".into());
    }
    let mut expected = whole;
    for life in 0..3 {
        if life < 2 {
            for &disk in &victims {
                let places = 1 << rng.between(3, 11);
                spoil(&a, disk, places, &mut rng);
            }
        }
        let scope = a.next_life();
        let env = scope.env();
        let work = async {
            let opened = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await;
            let pool = opened.map_err(|e| format!("open: {e}"))?;
            if rng.chance(1, 2) {
                pool.start_scrub().await.map_err(|e| format!("scrub: {e}"))?;
                while pool.status().await.scrub.running {
                    env.sleep(std::time::Duration::from_millis(20)).await;
                }
            }
            let found = read_each(&pool, volumes).await?;
            expect_all_but_lost(&found, &expected)?;
            let (list, _) = listed(&pool).await?;
            if list != lost(&found) {
                return Err(format!("listed as lost: {list:?}, lost: {:?}", lost(&found)));
            }
            if verbose() {
                eprintln!("life {life}: {} blocks of {volumes} volumes are lost", list.len());
            }
            // Writing all of it again.
            let mut read_only = BTreeSet::new();
            for (v, block) in list {
                let index: usize = v[1..].parse().map_err(|_| format!("volume {v}?"))?;
                let tag = rng.u64() | 1 << 63;
                let device = pool.open_volume(&v).map_err(|e| e.to_string())?;
                let written = device.write(block * BLOCK_BYTES, Bytes::from(content(tag)), true).await;
                match written {
                    Ok(()) => expected[index][block as usize] = Block::Tag(tag),
                    Err(e) if e.kind() == ErrorKind::Io => drop(read_only.insert(v)),
                    Err(e) => return Err(format!("writing {v}, block {block}: {e}")),
                }
            }
            let after = read_each(&pool, volumes).await?;
            let (list, told) = listed(&pool).await?;
            if list != lost(&after) {
                return Err(format!("after writing, listed as lost: {list:?}, lost: {:?}", lost(&after)));
            }
            if let Some((v, block)) = list.iter().find(|(v, _)| !read_only.contains(v)) {
                return Err(format!("volume {v}, block {block} was written again, and is lost still"));
            }
            if verbose() && !told.is_empty() {
                eprintln!("life {life}: {told:?} take no writes");
            }
            if read_only != told {
                return Err(format!("volumes {read_only:?} take no writes, {told:?} are said not to"));
            }
            for (v, blocks) in after.iter().enumerate() {
                for (i, block) in blocks.iter().enumerate() {
                    if *block != Block::Lost && *block != expected[v][i] {
                        return Err(format!(
                            "after writing: volume {v}, block {i}: {block:?}, not {:?}",
                            expected[v][i]
                        ));
                    }
                }
            }
            // Volumes that are whole take writes wherever.
            for v in (0..volumes).filter(|v| !read_only.contains(&name(*v))) {
                let device = pool.open_volume(&name(v)).map_err(|e| e.to_string())?;
                for _ in 0..8 {
                    let block = rng.below(device.geometry().size / BLOCK_BYTES);
                    let tag = rng.u64() | 1 << 63;
                    let written = device.write(block * BLOCK_BYTES, Bytes::from(content(tag)), true).await;
                    written.map_err(|e| format!("volume {v}, block {block}: {e}"))?;
                    expected[v][block as usize] = Block::Tag(tag);
                }
            }
            pool.close().await.map_err(|e| format!("closing: {e}"))
        };
        scope
            .run_until(work, STEPS)
            .map_err(|e| format!("life {life}: {e:?}"))?
            .map_err(|e| format!("life {life}: {e}"))?;
        scope.kill_all_tasks();
    }
    Ok(())
}

#[test]
fn what_is_beyond_redundancy_is_listed_and_the_rest_goes_on_0() {
    sweep(0, 2, 300, run_beyond);
}

#[test]
fn what_is_beyond_redundancy_is_listed_and_the_rest_goes_on_1() {
    sweep(1, 2, 300, run_beyond);
}

/// A disk rots all over: it is emptied while it still serves, declared failed, and needed for nothing.
#[test]
fn a_disk_with_many_errors_is_emptied_and_fails() {
    sweep(0, 1, 60, |seed| {
        let mut scenario = scenario(seed);
        scenario.disks = scenario.tolerance.drives() + 4;
        scenario.config.error_limit = 3;
        (scenario.blocks, scenario.ops, scenario.mix) = (600, 150, Mix::Usual);
        let tolerance = scenario.tolerance.drives();
        let mut a = Appliance::new(scenario)?;
        a.set_frail(Vec::new());
        a.live(None)?;
        a.heal(None)?;
        let mut rng = Rng::new(seed);
        a.disks[0].corrupt(DATA, a.scenario.disk_size - 2 * DATA);
        spoil(&a, 0, 10, &mut rng);
        a.heal_after(Change::Scrub, None)?;
        let scope = a.next_life();
        let env = scope.env();
        let look = async {
            let pool =
                Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.map_err(|e| e.to_string())?;
            let disk = pool.disks().into_iter().find(|d| d.path == "disk0").ok_or("no disk 0")?;
            pool.close().await.map_err(|e| e.to_string())?;
            Ok::<_, String>((disk.state, disk.checksum_errors, disk.allocated))
        };
        let (state, errors, allocated) = scope.run_until(look, STEPS).map_err(|e| format!("{e:?}"))??;
        scope.kill_all_tasks();
        if verbose() {
            eprintln!("{errors} errors, {state:?}");
        }
        // Little of a small pool may have lain on it.
        if errors >= 40 && (state == DiskState::Online || allocated > 0) {
            return Err(format!("disk 0 is {state:?} after {errors} errors, with {allocated} bytes on it"));
        }
        (0..=tolerance).for_each(|d| a.disks[d].fail());
        if errors >= 40 { a.finish() } else { Ok(()) }
    });
}

/// Two sectors of one frame are bad, on two disks of a pool that tolerates one failure, in different places: all of it is there, piece by piece, also
/// when it is asked for as a whole, and a scrub makes it whole.
#[test]
fn bad_sectors_in_different_places_are_put_together() {
    for medium in [false, true] {
        let mut scenario = scenario(3);
        (scenario.tolerance, scenario.disks, scenario.volumes, scenario.blocks) = (Tolerance::Single, 3, 1, 64);
        scenario.faults = Faults::None;
        (scenario.config.frame_blocks, scenario.config.memory) = (4, 16 << 20);
        let mut a = Appliance::new(scenario).expect("a pool");
        let content: Vec<u8> = (0..4).flat_map(|i| content(5 * ((1 << 40) + i))).collect();
        let whole = Bytes::from(content);
        let scope = a.next_life();
        let env = scope.env();
        let places = scope.run_until(
            async {
                let pool = Pool::open(env, a.all_disks(), a.scenario.config.clone()).await.expect("opened");
                let device = pool.open_volume(&name(0)).expect("a volume");
                device.write(0, whole.clone(), true).await.expect("written");
                let engine = pool.engine();
                let stored = engine.state.read().table.entry(blockdev::units::VirtualBlock(1));
                let mut frame = stored.ok().filter(|e| e.refcount > 0).map(|e| e.frame);
                for block in 2..600 {
                    let entry = engine.state.read().table.entry(blockdev::units::VirtualBlock(block));
                    frame = frame.or(entry.ok().filter(|e| e.refcount > 0 && e.frame_blocks == 4).map(|e| e.frame));
                }
                let frame = frame.expect("a stored frame");
                pool.close().await.expect("closed");
                // Each strip of 4 KiB is a piece: the first on its own disk, the fourth on the disk of its parity.
                let extent = engine.extent(frame.segment).expect("in use");
                let geometry = engine.array.geometry;
                let strip = geometry.strip_size;
                assert!(u32::from(frame.len) > 3 * strip, "it compresses too well: {frame:?}");
                let place = |offset: u32, parity: bool| {
                    let (column, row) = (offset / strip % extent.data as u32, offset / strip / extent.data as u32);
                    let column = if parity { extent.data } else { column as usize };
                    let (disk, chunk) = extent.columns[column];
                    (usize::from(disk.0), geometry.chunk(chunk.0) + u64::from(row * strip))
                };
                [place(frame.offset, false), place(frame.offset + 2 * strip, true)]
            },
            STEPS,
        );
        let places = places.expect("in time");
        scope.kill_all_tasks();
        assert_ne!(places[0].0, places[1].0);
        for (disk, at) in places {
            if medium { a.disks[disk].damage(at, 4096) } else { a.disks[disk].corrupt(at, 4096) }
        }
        let scope = a.next_life();
        let env = scope.env();
        let work = async {
            let pool = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.expect("opened");
            let device = pool.open_volume(&name(0)).expect("a volume");
            assert_eq!(device.read(0, 4 * BLOCK_SIZE).await.expect("all of it"), whole);
            pool.start_scrub().await.expect("a scrub");
            while pool.status().await.scrub.running {
                env.sleep(std::time::Duration::from_millis(20)).await;
            }
            assert_eq!(pool.status().await.scrub.damaged, 0);
            super::harness::check(&pool, false).await.expect("sound");
            pool.close().await.expect("closed");
        };
        scope.run_until(work, STEPS).expect("in time");
        scope.kill_all_tasks();
    }
}

/// One disk, on which each of two volumes has 64 blocks; `spoil` makes a place of it bad, given where the map page and the first block of the first
/// volume lie.
pub fn one_disk(seed: u64, spoil: impl Fn(&Appliance, u64, u64)) -> Appliance {
    one_disk_with(seed, false, spoil)
}

/// The same; with a snapshot of the first volume, after which its block 1 was written, if that is wanted.
fn one_disk_with(seed: u64, snapshot: bool, spoil: impl Fn(&Appliance, u64, u64)) -> Appliance {
    let mut scenario = scenario(seed);
    (scenario.tolerance, scenario.disks, scenario.volumes, scenario.blocks) = (Tolerance::None, 1, 2, 64);
    (scenario.faults, scenario.config.memory) = (Faults::None, 16 << 20);
    let mut a = Appliance::new(scenario).expect("a pool");
    let scope = a.next_life();
    let env = scope.env();
    let places = scope.run_until(
        async {
            let pool = Pool::open(env, a.all_disks(), a.scenario.config.clone()).await.expect("opened");
            for volume in 0..2 {
                let device = pool.open_volume(&name(volume)).expect("a volume");
                let data: Vec<u8> = (0..64).flat_map(|i| content(5 * ((1 << 40) + i + 100 * volume as u64))).collect();
                device.write(0, data.into(), true).await.expect("written");
            }
            if snapshot {
                pool.create_snapshots(&["v0@good".into()], &Kept::default()).await.expect("taken");
                let device = pool.open_volume("v0").expect("a volume");
                device.write(BLOCK_BYTES, Bytes::from(vec![1; BLOCK_SIZE]), true).await.expect("written");
            }
            pool.close().await.expect("closed");
            let engine = pool.engine();
            let state = engine.state.read();
            let volume = state.volume_named("v0").expect("there").clone();
            let block = state.maps.lookup(&volume, blockdev::units::Lba(0)).expect("in memory");
            let place = |block| {
                let frame = state.table.entry(block).expect("in memory").frame;
                let s = state.segments.get(frame.segment).expect("in use");
                engine.array.geometry.chunk(s.record.columns[0].1.0) + u64::from(frame.offset)
            };
            (place(volume.root), place(block))
        },
        STEPS,
    );
    let (map, block) = places.expect("in time");
    scope.kill_all_tasks();
    spoil(&a, map, block);
    a
}

/// A page of a map is lost: what is written to its volume is refused from the flush on that comes too late, and stays refused whatever disks do; other
/// volumes go on, and the volume can be deleted and made anew.
#[test]
fn a_lost_map_page_stops_its_volume_only() {
    let mut a = one_disk(5, |a, map, _| a.disks[0].corrupt(map, 8));
    let scope = a.next_life();
    let env = scope.env();
    let work = async {
        let pool = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.expect("opened");
        let (lost, whole) = (pool.open_volume("v0").expect("there"), pool.open_volume("v1").expect("there"));
        lost.write(0, Bytes::from(vec![9; BLOCK_SIZE]), false).await.expect("buffered");
        let refused = lost.flush().await.expect_err("the write was dropped");
        assert!(refused.kind() == ErrorKind::Io && refused.to_string().contains("takes no writes"), "{refused}");
        // As when a disk goes or comes.
        pool.engine().array.set_sets(&[]);
        env.sleep(std::time::Duration::from_secs(120)).await;
        assert_eq!(lost.flush().await.expect_err("for good").kind(), ErrorKind::Io);
        assert_eq!(lost.discard(0, 4096).await.expect_err("no change").kind(), ErrorKind::Io);
        whole.write(0, Bytes::from(vec![9; BLOCK_SIZE]), true).await.expect("goes on");
        let (list, read_only) = listed(&pool).await.expect("a list");
        assert_eq!((list.len(), read_only.into_iter().collect::<Vec<_>>()), (64, vec!["v0".to_owned()]));
        drop(lost);
        pool.delete_volume("v0", false).await.expect("deleted");
        while pool.create_volume("v0", 64 * BLOCK_BYTES).await.is_err() {
            env.sleep(std::time::Duration::from_millis(100)).await;
        }
        let again = pool.open_volume("v0").expect("there");
        again.write(0, Bytes::from(vec![3; BLOCK_SIZE]), true).await.expect("written");
        assert_eq!(again.read(0, BLOCK_SIZE).await.expect("read"), vec![3; BLOCK_SIZE]);
        pool.close().await.expect("closed");
    };
    scope.run_until(work, STEPS).expect("in time");
    scope.kill_all_tasks();
}

/// A page of a map is lost after a snapshot: the volume can be restored from that, with and without keeping what is left of it, and takes writes again
/// at once, also after another opening; nothing of the snapshot is lost.
#[test]
fn a_volume_with_a_lost_map_page_is_restored_from_its_snapshot() {
    for keep in [None, Some("broken")] {
        let mut a = one_disk_with(8, true, |a, map, _| a.disks[0].corrupt(map, 8));
        let expected: Vec<u8> = (0..64).flat_map(|i| content(5 * ((1 << 40) + i))).collect();
        let scope = a.next_life();
        let env = scope.env();
        let work = async {
            let pool = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.expect("opened");
            let device = pool.open_volume("v0").expect("there");
            device.write(0, Bytes::from(vec![9; BLOCK_SIZE]), false).await.expect("buffered");
            assert_eq!(device.flush().await.expect_err("the write was dropped").kind(), ErrorKind::Io);
            let refused =
                pool.create_snapshots(&["v0@late".into()], &Kept::default()).await.expect_err("of what cannot be read");
            assert!(refused.to_string().contains("takes no writes"), "{refused}");
            pool.restore_volume("v0", "v0@good", keep).await.expect("restored");
            assert_eq!(device.read(0, 64 * BLOCK_SIZE).await.expect("read"), expected);
            device.write(0, Bytes::from(vec![3; BLOCK_SIZE]), true).await.expect("written");
            while pool.engine().is_reaping() {
                env.sleep(std::time::Duration::from_millis(5)).await;
            }
            assert_eq!(pool.snapshots(Some("v0")).expect("listed").len(), 1 + usize::from(keep.is_some()));
            pool.close().await.expect("closed");
            let pool = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.expect("opened");
            let snapshot = pool.open_volume("v0@good").expect("there");
            assert_eq!(snapshot.read(0, 64 * BLOCK_SIZE).await.expect("read"), expected);
            pool.delete_snapshot("v0@good").await.expect("deleted");
            while pool.engine().is_reaping() {
                env.sleep(std::time::Duration::from_millis(5)).await;
            }
            let device = pool.open_volume("v0").expect("there");
            let found = device.read(0, 64 * BLOCK_SIZE).await.expect("read");
            assert!(found[..BLOCK_SIZE] == vec![3; BLOCK_SIZE] && found[BLOCK_SIZE..] == expected[BLOCK_SIZE..]);
            pool.close().await.expect("closed");
        };
        scope.run_until(work, STEPS).expect("in time");
        scope.kill_all_tasks();
    }
}

/// A page of a map is lost and there again: its volume takes writes once more, but only after a flush said that some were dropped.
#[test]
fn a_map_page_that_is_back_lets_its_volume_go_on() {
    let kept = std::sync::Mutex::new((0, Vec::new()));
    let mut a = one_disk(6, |a, map, _| {
        let page = map / 4096 * 4096;
        *kept.lock().expect("a page") = (page, a.disks[0].peek(page, 8192));
        a.disks[0].corrupt(map, 8);
    });
    let scope = a.next_life();
    let env = scope.env();
    let (page, content) = kept.into_inner().expect("a page");
    let work = async {
        let pool = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.expect("opened");
        let device = pool.open_volume("v0").expect("there");
        let change = || pool.engine().array.set_sets(&[]);
        device.write(0, Bytes::from(vec![9; BLOCK_SIZE]), false).await.expect("buffered");
        // It is dropped, and nobody knows yet.
        pool.open_volume("v1").expect("there").flush().await.expect("another volume");
        let mut back = AlignedBuf::zeroed(content.len());
        back.copy_from_slice(&content);
        a.disks[0].write(page, vec![back.freeze()], true).await.expect("as it was");
        change();
        env.sleep(std::time::Duration::from_secs(10)).await;
        let refused = device.write(0, Bytes::from(vec![8; BLOCK_SIZE]), false).await.expect_err("not yet");
        assert!(refused.to_string().contains("takes no writes"), "{refused}");
        device.flush().await.expect_err("the write was dropped");
        env.sleep(std::time::Duration::from_secs(10)).await;
        // Both are told now, and the page is there.
        device.flush().await.expect("nothing is lost from here on");
        device.write(4096, Bytes::from(vec![7; BLOCK_SIZE]), true).await.expect("written");
        let alerts = pool.status().await.alerts;
        assert!(!alerts.iter().any(|a| a.code == "volume.read_only"), "{alerts:?}");
        pool.close().await.expect("closed");
        drop(device);
        let pool = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.expect("opened again");
        let device = pool.open_volume("v0").expect("there");
        assert_eq!(device.read(0, BLOCK_SIZE).await.expect("read"), super::model::content(5 << 40));
        assert_eq!(device.read(4096, BLOCK_SIZE).await.expect("read"), vec![7; BLOCK_SIZE]);
        super::harness::check(&pool, false).await.expect("sound");
        pool.close().await.expect("closed");
    };
    scope.run_until(work, STEPS).expect("in time");
    scope.kill_all_tasks();
}

/// A sector with live data answers with errors and nothing gives it back: the pool says so once, and then is quiet.
#[test]
fn damage_is_looked_at_once() {
    let mut a = one_disk(6, |a, _, block| a.disks[0].damage(block, 4096));
    let scope = a.next_life();
    let env = scope.env();
    let work = async {
        let pool = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.expect("opened");
        let device = pool.open_volume("v0").expect("there");
        for _ in 0..50 {
            assert_eq!(device.read(0, BLOCK_SIZE).await.expect_err("lost").kind(), ErrorKind::Io);
            env.sleep(std::time::Duration::from_secs(1)).await;
        }
        let stats = pool.stats().await;
        env.sleep(std::time::Duration::from_secs(600)).await;
        for _ in 0..50 {
            assert_eq!(device.read(0, BLOCK_SIZE).await.expect_err("lost").kind(), ErrorKind::Io);
        }
        let after = pool.stats().await;
        assert!(after.checkpoints - stats.checkpoints <= 3, "{} checkpoints", after.checkpoints - stats.checkpoints);
        let status = pool.status().await;
        assert_eq!((status.health.as_str(), status.damaged_segments), ("critical", 1));
        // One place is one error, however often it is met.
        let late = pool.engine().array.members()[0].errors_of_late(env.now());
        assert!(late > 0.5 && late < 4.5, "{late} errors");
        pool.close().await.expect("closed");
    };
    scope.run_until(work, 10 * STEPS).expect("in time");
    scope.kill_all_tasks();
}

/// More disks are gone than the pool tolerates. It is not served, but can be opened to read: what is there is what was written, the rest is listed, and
/// not a byte changes; when the disks are back nothing is missing.
pub fn run_to_read(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ 0x5A1F);
    let mut scenario = scenario(seed);
    scenario.faults = Faults::None;
    scenario.disks += 2;
    let (volumes, tolerance) = (scenario.volumes, scenario.tolerance.drives());
    let mut a = Appliance::new(scenario)?;
    a.live(None)?;
    a.heal(None)?;
    let scope = a.next_life();
    let env = scope.env();
    let whole = async {
        let pool =
            Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.map_err(|e| e.to_string())?;
        let all = read_each(&pool, volumes).await?;
        if rng.chance(1, 2) {
            pool.close().await.map_err(|e| format!("closing: {e}"))?;
        }
        Ok::<_, String>(all)
    };
    let whole = scope.run_until(whole, STEPS).map_err(|e| format!("before: {e:?}"))??;
    scope.kill_all_tasks();
    let mut order: Vec<usize> = (0..a.disks.len()).collect();
    rng.shuffle(&mut order);
    let gone = order[..(tolerance + 1 + rng.index(2)).min(order.len() - 1)].to_vec();
    gone.iter().for_each(|&d| a.disks[d].fail());
    let written: Vec<u64> = a.disks.iter().map(|d| d.counters().writes).collect();
    let scope = a.next_life();
    let env = scope.env();
    let look = async {
        let refused = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.err();
        if refused.as_ref().map(|e| e.kind()) != Some(ErrorKind::Unavailable) {
            return Err(format!("opened with too few disks: {refused:?}"));
        }
        let config = blockdev::pool::PoolConfig { read_only: true, ..a.scenario.config.clone() };
        let opened = Pool::open(env.clone(), a.all_disks(), config).await;
        let pool = match opened {
            Ok(pool) => pool,
            // The log may need a page of the maps that is lost.
            Err(e) if matches!(e.kind(), ErrorKind::Io | ErrorKind::Corrupt) => return Ok(0),
            Err(e) => return Err(format!("to read: {e}")),
        };
        let found = read_each(&pool, volumes).await?;
        expect_all_but_lost(&found, &whole)?;
        let (list, _) = listed(&pool).await?;
        if list != lost(&found) {
            return Err(format!("listed as lost: {list:?}, lost: {:?}", lost(&found)));
        }
        let device = pool.open_volume(&name(0)).map_err(|e| e.to_string())?;
        let refused = device.write(0, Bytes::from(vec![1; BLOCK_SIZE]), true).await.err();
        if refused.as_ref().map(|e| e.kind()) != Some(ErrorKind::ReadOnly) || !device.geometry().read_only {
            return Err(format!("a write was answered with {refused:?}"));
        }
        if pool.create_volume("more", 4096).await.err().map(|e| e.kind()) != Some(ErrorKind::ReadOnly) {
            return Err("a volume was made".into());
        }
        device.flush().await.map_err(|e| format!("flush: {e}"))?;
        pool.close().await.map_err(|e| e.to_string())?;
        Ok(found.iter().flatten().filter(|b| **b != Block::Lost).count())
    };
    let readable = scope.run_until(look, STEPS).map_err(|e| format!("reading: {e:?}"))??;
    scope.kill_all_tasks();
    if verbose() {
        eprintln!("{readable} blocks can be read");
    }
    let now: Vec<u64> = a.disks.iter().map(|d| d.counters().writes).collect();
    if now != written {
        return Err("something was written".into());
    }
    gone.iter().for_each(|&d| a.disks[d].restore());
    a.heal(None)?;
    a.finish()
}

#[test]
fn a_pool_with_too_few_disks_can_be_read() {
    sweep(0, 1, 200, run_to_read);
}

/// Parity alone is wrong, of one column or of both, and nobody has read it: a scrub writes it anew at a fresh place, which failures of data columns prove.
#[test]
fn a_scrub_writes_wrong_parity_anew() {
    for (seed, parities) in [(1, vec![0]), (2, vec![1]), (3, vec![0, 1])] {
        let mut scenario = scenario(50 + seed);
        (scenario.tolerance, scenario.disks, scenario.volumes, scenario.blocks) = (Tolerance::Double, 7, 1, 400);
        (scenario.disk_size, scenario.faults, scenario.config.memory) = (8 << 20, Faults::None, 16 << 20);
        scenario.config.error_limit = 0;
        let mut a = Appliance::new(scenario).expect("a pool");
        let scope = a.next_life();
        let env = scope.env();
        let data: Vec<u8> = (0..400).flat_map(|i| content(5 * ((1 << 40) + i))).collect();
        let work = async {
            let pool = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.expect("opened");
            let device = pool.open_volume(&name(0)).expect("a volume");
            device.write(0, data.clone().into(), true).await.expect("written");
            pool.close().await.expect("closed");
            drop((device, pool));
            // All segments are sealed and on record now.
            let pool = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.expect("opened again");
            let engine = pool.engine();
            let columns: Vec<(u16, u32)> = {
                let state = engine.state.read();
                let live = state.segments.iter().filter(|s| s.record.live > 0 && s.record.sealed);
                let wrong = |s: &blockdev::segment::table::Segment| -> Vec<(u16, u32)> {
                    let parity = |p: &usize| s.record.columns[usize::from(s.record.data) + p];
                    parities.iter().map(parity).map(|(disk, chunk)| (disk.0, chunk.0)).collect()
                };
                live.flat_map(wrong).collect()
            };
            assert!(!columns.is_empty());
            for (disk, chunk) in &columns {
                let index: usize = pool.disks()[usize::from(*disk)].path[4..].parse().expect("a number");
                a.disks[index].corrupt(engine.array.geometry.chunk(*chunk), 2048);
            }
            let report = pool.check(Arc::new(|_, _| {})).await.expect("checked");
            assert!(report.findings.iter().any(|f| f.code == "stripe.parity"), "{:?}", report.findings);
            pool.start_scrub().await.expect("a scrub");
            while pool.status().await.scrub.running {
                env.sleep(std::time::Duration::from_millis(20)).await;
            }
            let scrub = pool.status().await.scrub;
            assert!(scrub.repaired > 0 && scrub.damaged == 0, "{scrub:?}");
            super::harness::check(&pool, false).await.expect("sound");
            let moved = {
                let state = engine.state.read();
                let at = |(disk, chunk): &(u16, u32)| {
                    state.segments.iter().any(|s| s.record.columns.iter().any(|(d, c)| (d.0, c.0) == (*disk, *chunk)))
                };
                !columns.iter().any(at)
            };
            assert!(moved, "wrong parity was written over in place");
            pool.close().await.expect("closed");
        };
        scope.run_until(work, STEPS).expect("in time");
        scope.kill_all_tasks();
        // Parity is needed for everything now.
        for pair in [(0, 1), (2, 5), (4, 6)] {
            [pair.0, pair.1].into_iter().for_each(|i| a.disks[i].fail());
            let scope = a.next_life();
            let env = scope.env();
            let work = async {
                let pool = Pool::open(env, a.all_disks(), a.scenario.config.clone()).await.expect("opened without two");
                let device = pool.open_volume(&name(0)).expect("a volume");
                assert!(device.read(0, data.len()).await.expect("read") == data, "content differs");
            };
            scope.run_until(work, STEPS).expect("in time");
            scope.kill_all_tasks();
            [pair.0, pair.1].into_iter().for_each(|i| a.disks[i].restore());
            let scope = a.next_life();
            let env = scope.env();
            let work = async {
                let pool = Pool::open(env.clone(), a.all_disks(), a.scenario.config.clone()).await.expect("opened");
                while pool.status().await.redundancy.reduced + pool.status().await.redundancy.none > 0 {
                    env.sleep(std::time::Duration::from_millis(20)).await;
                }
                pool.close().await.expect("closed");
            };
            scope.run_until(work, STEPS).expect("in time");
            scope.kill_all_tasks();
        }
    }
}
