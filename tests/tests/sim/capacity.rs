//! How much of raw disks a whole pool gives to data, against the bound that is proven for raw chunks; `docs/performance.md` has the table.
//!
//! The bound: extents of the width that new data has, each on distinct disks of one set, that disks of these sizes have chunks for if they held nothing
//! else. What is policy is taken off: the spare (the largest disk of each set that has one) and the reserve of 8 %.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockdev::disk::Disk;
use blockdev::env::SimScope;
use blockdev::error::ErrorKind;
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::redundancy::layout::{has_spare, width};
use blockdev::redundancy::placement::max_extents;
use blockdev::report::{PoolStatus, Priority, Tolerance};

use super::cut_short::noise;
use super::sparse::SparseDisk;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const STEPS: u64 = 400_000_000;
/// Share of segments that the engine keeps for the cleaner and for metadata.
const RESERVE: f64 = 0.08;

/// Twenty sets of drives, in units of a smallest size.
fn sets() -> Vec<Vec<u64>> {
    let same = |count: usize, size: u64| vec![size; count];
    let of = |parts: &[(usize, u64)]| parts.iter().flat_map(|&(count, size)| vec![size; count]).collect::<Vec<u64>>();
    vec![
        same(3, 1),
        same(4, 1),
        same(5, 2),
        same(6, 1),
        same(8, 3),
        same(12, 1),
        same(24, 1),
        vec![1, 1, 1, 2],
        vec![1, 2, 3, 4],
        vec![1, 1, 4, 4, 4],
        vec![1, 2, 2, 3, 5, 8],
        of(&[(5, 1), (1, 8)]),
        of(&[(4, 1), (4, 2)]),
        of(&[(6, 2), (2, 3)]),
        of(&[(3, 1), (3, 4), (3, 16)]),
        of(&[(10, 1), (2, 10)]),
        of(&[(8, 4), (4, 8), (4, 16)]),
        of(&[(20, 1), (4, 2)]),
        of(&[(26, 1)]),
        of(&[(30, 1), (22, 2)]),
    ]
}

struct Outcome {
    status: PoolStatus,
    /// Bytes that the bound leaves to data, policy taken off.
    bound: f64,
    /// Bytes that could be written, when that was tried.
    written: u64,
}

/// Makes a pool of disks of so many units, and fills it if that is asked for.
fn measure(sizes: &[u64], unit: u64, tolerance: Tolerance, chunk: Option<u64>, fill: bool) -> Outcome {
    let scope = SimScope::new(7);
    let env = scope.env();
    let work = async {
        let disks: Vec<Arc<dyn Disk>> = sizes
            .iter()
            .enumerate()
            .map(|(i, size)| SparseDisk::new(format!("d{i}"), size * unit) as Arc<dyn Disk>)
            .collect();
        let strip_size = chunk.map(|_| 16 << 10);
        let options = CreateOptions { name: "tank".into(), tolerance, chunk_size: chunk, strip_size, force: false };
        Pool::create(env.clone(), disks.clone(), options).await.expect("created");
        let config = PoolConfig { memory: 32 << 20, priority: Priority::High, ..PoolConfig::default() };
        let pool = Pool::open(env.clone(), disks, config).await.expect("opened");
        let status = pool.status().await;
        let chunk = u64::from(pool.engine().array.geometry.chunk_size);
        let mut sets: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
        for d in &status.disks {
            sets.entry(d.set).or_default().push((d.size / chunk) as u32);
        }
        let narrowest = sets.values().filter_map(|own| width(own.len(), tolerance)).min_by_key(|w| w.data);
        let narrowest = narrowest.expect("enough disks");
        assert_eq!(status.layout, narrowest.to_string(), "{sizes:?}");
        let extents: u64 = sets
            .into_values()
            .map(|mut own| {
                own.sort_unstable();
                if has_spare(own.len(), tolerance) {
                    own.pop();
                }
                max_extents(&own, narrowest.columns())
            })
            .sum();
        let bound = (extents * narrowest.data as u64 * chunk) as f64 * (1.0 - RESERVE);
        let mut written = 0;
        if fill {
            pool.create_volume("a", 64 << 30).await.expect("a volume");
            let device = pool.open_volume("a").expect("a device");
            const PIECE: u64 = 256 << 10;
            loop {
                match device.write(written, noise(written, PIECE as usize), false).await {
                    Ok(()) => written += PIECE,
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                        break;
                    }
                }
            }
            device.flush().await.expect("flushed");
        }
        pool.close().await.expect("closed");
        Outcome { status, bound, written }
    };
    scope.run_until(work, STEPS).unwrap_or_else(|stall| panic!("{sizes:?}: {stall}"))
}

/// Sizes as `3 × 1 + 2 × 4`.
fn describe(sizes: &[u64]) -> String {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    sizes.iter().for_each(|size| *counts.entry(*size).or_default() += 1);
    counts.iter().map(|(size, count)| format!("{count} × {size}")).collect::<Vec<_>>().join(" + ")
}

/// Drives of 64 GiB and multiples of it: at least 0.95 of the bound, for each of the twenty sets and both tolerances.
#[test]
fn drives_of_realistic_size_reach_the_bound() {
    let mut low = Vec::new();
    eprintln!("| drives × 64 GiB | single | of the bound | double | of the bound |\n|---|---|---|---|---|");
    for sizes in sets() {
        let mut line = format!("| {} |", describe(&sizes));
        for tolerance in [Tolerance::Single, Tolerance::Double] {
            let Outcome { status, bound, .. } = measure(&sizes, 64 * GIB, tolerance, None, false);
            let share = status.usable as f64 / bound;
            let sets = if status.sets > 1 { format!(", {} sets", status.sets) } else { String::new() };
            line += &format!(" {}{sets}, {} GiB | {share:.3} |", status.layout, status.usable / GIB);
            // Not more either: then the bound would be none.
            if !(0.95..=1.0).contains(&share) {
                low.push(format!("{sizes:?}, {tolerance:?}: {} of {bound}", status.usable));
            }
        }
        eprintln!("{line}");
    }
    assert!(low.is_empty(), "{low:#?}");
}

/// Small disks of a laboratory: regions of fixed size and whole segments kept back take more of them. What is reported can be written.
#[test]
fn small_disks_can_be_filled_to_what_is_reported() {
    eprintln!("| drives × 32 MiB | usable MiB | of the bound | written until full, MiB |\n|---|---|---|---|");
    for (sizes, tolerance) in [
        (vec![1; 4], Tolerance::Single),
        (vec![1, 1, 2, 2], Tolerance::Single),
        (vec![1, 2, 2, 3, 5, 8], Tolerance::Single),
        (vec![1; 6], Tolerance::Double),
        (vec![1, 1, 2, 2, 4, 4, 4], Tolerance::Double),
    ] {
        let Outcome { status, bound, written } = measure(&sizes, 32 * MIB, tolerance, Some(128 << 10), true);
        let (usable, share) = (status.usable, status.usable as f64 / bound);
        let layout = &status.layout;
        eprintln!("| {}, {layout} | {} | {share:.3} | {} |", describe(&sizes), usable / MIB, written / MIB);
        // The rest is metadata, which is written as the data is.
        assert!(written as f64 >= usable as f64 * 0.95, "{sizes:?}: {written} of {usable}");
        assert!(written as f64 <= bound, "{sizes:?}: {written} of at most {bound}");
        assert!(share > 0.6, "{sizes:?}: {share}");
    }
}

/// Pools of the largest size are made, and what would outgrow a catalogue is refused before anything is written.
#[test]
fn the_catalogue_bounds_no_pool_silently() {
    const TB: u64 = 1_000_000_000_000;
    let scope = SimScope::new(8);
    let env = scope.env();
    let work = async {
        let disks = |count: usize, size: u64| -> Vec<Arc<dyn Disk>> {
            (0..count).map(|i| SparseDisk::new(format!("d{i}"), size) as Arc<dyn Disk>).collect()
        };
        let make = |tolerance| CreateOptions {
            name: "tank".into(),
            tolerance,
            chunk_size: None,
            strip_size: None,
            force: false,
        };
        let large = disks(96, 20 * TB);
        Pool::create(env.clone(), large.clone(), make(Tolerance::Double)).await.expect("created");
        let pool = Pool::open(env.clone(), large, PoolConfig::default()).await.expect("opened");
        let status = pool.status().await;
        assert!(status.usable > 1400 * TB, "{}", status.usable);
        pool.create_volume("a", GIB).await.expect("a volume");
        let device = pool.open_volume("a").expect("a device");
        device.write(0, noise(1, 4 << 20), true).await.expect("written");
        pool.close().await.expect("closed");
        drop((device, pool));

        let small = disks(3, GIB);
        Pool::create(env.clone(), small.clone(), make(Tolerance::Single)).await.expect("created");
        let pool = Pool::open(env.clone(), small, PoolConfig::default()).await.expect("opened");
        let huge = SparseDisk::new("huge".into(), 20 * TB);
        let refused = pool.add_disk(huge.clone(), false, None).await.expect_err("too large").to_string();
        assert!(refused.contains("huge") && refused.contains("catalogue it was made with"), "{refused}");
        assert!(huge.is_blank(), "something was written to it");
        pool.add_disk(SparseDisk::new("more".into(), 8 * GIB), false, None).await.expect("added");
        pool.close().await.expect("closed");

        let mixed = [disks(2, GIB), disks(60, 20 * TB)].concat();
        let refused =
            Pool::create(env.clone(), mixed, make(Tolerance::Single)).await.expect_err("too large").to_string();
        assert!(refused.contains("chunks follow the smallest disk"), "{refused}");
    };
    scope.run_until(work, STEPS).unwrap_or_else(|stall| panic!("{stall}"));
}
