use std::collections::BTreeSet;

use super::*;
use crate::env::{Env, SimScope, SimStall};

const MIB: u64 = 1 << 20;
const STEPS: u64 = 10_000_000;

/// `pages` pages filled with `fill`.
fn filled(pages: usize, fill: u8) -> Bytes {
    let mut out = AlignedBuf::zeroed(pages * PAGE);
    out.fill(fill);
    out.freeze()
}

fn new_disk(seed: u64, budget: FaultBudget) -> (SimScope, Arc<SimDisk>) {
    let sim = SimScope::new(seed);
    let disk = SimDisk::new("d0", MIB, seed, budget);
    disk.attach(&sim);
    (sim, disk)
}

fn write_now(sim: &SimScope, disk: &SimDisk, page: u64, pages: usize, fill: u8) {
    sim.block_on(disk.write(page * PAGE as u64, vec![filled(pages, fill)], false)).unwrap();
}

fn read_now(sim: &SimScope, disk: &SimDisk, page: u64) -> DiskResult<Bytes> {
    sim.block_on(disk.read(page * PAGE as u64, PAGE))
}

/// The fill of each sector of a page; panics when a sector is not of one fill.
fn fills(disk: &SimDisk, page: u64) -> Vec<u8> {
    let data = disk.peek(page * PAGE as u64, PAGE);
    data.chunks(SECTOR)
        .map(|sector| {
            assert!(sector.iter().all(|b| *b == sector[0]), "torn within a sector");
            sector[0]
        })
        .collect()
}

#[test]
fn reads_see_writes_and_zeroes_elsewhere() {
    let (sim, disk) = new_disk(1, FaultBudget::none());
    assert_eq!(read_now(&sim, &disk, 3).unwrap(), [0; PAGE][..]);
    write_now(&sim, &disk, 2, 2, 7);
    sim.block_on(async {
        disk.write(0, vec![filled(1, 1), filled(2, 2)], false).await.unwrap();
        let all = disk.read(0, 5 * PAGE).await.unwrap();
        let seen: Vec<u8> = all.chunks(PAGE).map(|p| p[0]).collect();
        assert_eq!(seen, [1, 2, 2, 7, 0]);
        assert!(all.as_ptr().addr().is_multiple_of(IO_ALIGN));
        disk.flush().await.unwrap();
        assert_eq!(disk.read(0, 5 * PAGE).await.unwrap(), all);
    });
    assert_eq!(disk.geometry(), DiskGeometry { size: MIB, sector_size: 512 });
    assert_eq!(disk.ops_count(), 6);
    let counters = disk.counters();
    assert_eq!((counters.reads, counters.writes, counters.flushes), (3, 2, 1));
    assert_eq!((counters.bytes_read, counters.bytes_written), (11 * PAGE as u64, 5 * PAGE as u64));
}

/// A random workload; gives what it saw, and the digests of the run and of the disk's content.
fn workload(seed: u64, budget: FaultBudget) -> (Vec<(usize, u8)>, u64, Vec<u8>) {
    let (sim, disk) = new_disk(seed, budget);
    let mut rng = Rng::new(seed);
    let seen = sim.block_on(async {
        let mut seen = Vec::new();
        for round in 0..20u8 {
            let mut requests = futures::stream::FuturesUnordered::new();
            for request in 0..8 {
                let (offset, disk) = (rng.below(200) * PAGE as u64, &disk);
                let kind = rng.below(4);
                requests.push(async move {
                    let result = match kind {
                        0 => disk.read(offset, 2 * PAGE).await.map(|d| d[0]),
                        1 => disk.flush().await.map(|()| 0),
                        _ => disk.write(offset, vec![filled(2, round)], kind == 2).await.map(|()| 1),
                    };
                    (request, result.unwrap_or(255))
                });
            }
            while let Some(done) = futures::StreamExt::next(&mut requests).await {
                seen.push(done);
            }
        }
        seen
    });
    disk.crash(&mut rng);
    (seen, sim.trace(), disk.peek(0, MIB as usize))
}

fn everything_may_fail() -> FaultBudget {
    let often = FaultRate::new(50_000, 5);
    FaultBudget {
        medium_errors: often,
        bit_rot: often,
        misdirected_writes: often,
        lost_writes: often,
        flush_failures: often,
        stalls: often,
        ..FaultBudget::none()
    }
}

#[test]
fn the_seed_decides_everything() {
    for budget in [FaultBudget::none(), everything_may_fail()] {
        for seed in 0..5 {
            assert_eq!(workload(seed, budget), workload(seed, budget));
        }
    }
    let orders: BTreeSet<_> = (0..10).map(|seed| workload(seed, FaultBudget::none()).0).collect();
    assert_eq!(orders.len(), 10);
}

#[test]
fn completions_reorder() {
    let (sim, disk) = new_disk(3, FaultBudget::none());
    let order = sim.block_on(async {
        let mut order = Vec::new();
        let mut requests: futures::stream::FuturesUnordered<_> = (0..16u64)
            .map(|page| {
                let write = disk.write(page * PAGE as u64, vec![filled(1, 1)], false);
                async move {
                    write.await.unwrap();
                    page
                }
            })
            .collect();
        while let Some(page) = futures::StreamExt::next(&mut requests).await {
            order.push(page);
        }
        order
    });
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 16);
    assert!(!order.is_sorted());
    assert!(sim.now() < Duration::from_millis(5));
}

#[test]
fn dropping_the_future_does_not_cancel() {
    let (sim, disk) = new_disk(4, FaultBudget::none());
    drop(disk.write(0, vec![filled(1, 9)], false));
    let env = sim.env();
    sim.block_on(async { env.sleep(Duration::from_millis(10)).await });
    assert_eq!(fills(&disk, 0), [9; 8]);
}

/// What the sectors of one page of an unflushed write hold after crashes, over many seeds.
#[test]
fn a_crash_keeps_any_part_of_what_was_not_flushed() {
    let (mut whole, mut none, mut torn, mut split) = (0, 0, 0, 0);
    let mut masks = BTreeSet::new();
    for seed in 0..2000 {
        let (sim, disk) = new_disk(seed, FaultBudget::none());
        write_now(&sim, &disk, 0, 2, 1);
        sim.block_on(disk.flush()).unwrap();
        write_now(&sim, &disk, 0, 2, 2);
        assert_eq!(fills(&disk, 1), [2; 8]);
        disk.crash(&mut Rng::new(seed));
        let (first, second) = (fills(&disk, 0), fills(&disk, 1));
        assert!(first.iter().chain(&second).all(|f| *f == 1 || *f == 2), "flushed data was lost");
        match (&first[..], &second[..]) {
            ([2, 2, 2, 2, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2, 2, 2]) => whole += 1,
            ([1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]) => none += 1,
            _ if first.windows(2).chain(second.windows(2)).all(|w| w[0] == w[1]) => split += 1,
            _ => torn += 1,
        }
        masks.insert(first);
    }
    assert!(whole > 400 && none > 400 && torn > 400 && split > 50, "{whole} {none} {torn} {split}");
    assert!(masks.len() > 60, "{} of 256 ways to tear", masks.len());
}

#[test]
fn flush_covers_what_completed_before_it_and_durable_writes_only_themselves() {
    let (mut later_lost, mut durable_neighbour_lost) = (0, 0);
    for seed in 0..300 {
        let (sim, disk) = new_disk(seed, FaultBudget::none());
        let page = |n: u64| n * PAGE as u64;
        sim.block_on(async {
            disk.write(page(0), vec![filled(1, 1)], false).await.unwrap();
            // A flush that takes long, so that the next write completes before it.
            disk.set_budget(FaultBudget { stalls: FaultRate::always(1), ..FaultBudget::none() });
            let flush = disk.flush();
            disk.write(page(1), vec![filled(1, 1)], false).await.unwrap();
            flush.await.unwrap();
            disk.write(page(2), vec![filled(1, 1)], false).await.unwrap();
            disk.write(page(3), vec![filled(1, 1)], true).await.unwrap();
            // An older cached write of the same page must not come back over a durable one.
            disk.write(page(4), vec![filled(1, 1)], false).await.unwrap();
            disk.write(page(4), vec![filled(1, 2)], true).await.unwrap();
            assert_eq!(disk.read(page(4), PAGE).await.unwrap()[0], 2);
        });
        if seed % 2 == 0 {
            sim.block_on(disk.flush()).unwrap();
            assert_eq!(fills(&disk, 4), [2; 8], "nor at a flush");
        }
        disk.crash(&mut Rng::new(seed));
        assert_eq!(fills(&disk, 0), [1; 8]);
        assert_eq!(fills(&disk, 3), [1; 8]);
        assert_eq!(fills(&disk, 4), [2; 8]);
        if seed % 2 == 0 {
            assert_eq!(fills(&disk, 1), [1; 8]);
            assert_eq!(fills(&disk, 2), [1; 8]);
        } else {
            later_lost += u32::from(fills(&disk, 1) != [1; 8]);
            durable_neighbour_lost += u32::from(fills(&disk, 2) != [1; 8]);
        }
    }
    // Of 150 crashes, 3 in 8 keep a write of one page as a whole.
    assert!(later_lost > 70 && durable_neighbour_lost > 70, "{later_lost} {durable_neighbour_lost}");
}

/// Over any workload and crash, each page holds what the last flush covered, or something submitted after that.
#[test]
fn flushed_data_survives_any_crash() {
    for seed in 0..150 {
        let mut rng = Rng::new(seed ^ 0xabcd);
        let disk = SimDisk::new("d", 32 * PAGE as u64, seed, FaultBudget::none());
        // For each page: the fills its sectors may have.
        let mut allowed = vec![BTreeSet::from([0u8]); 32];
        let mut fill = 0;
        for life in 0..4 {
            let sim = SimScope::new(seed * 10 + life);
            disk.attach(&sim);
            sim.block_on(async {
                for _ in 0..rng.between(1, 6) {
                    let mut writes = Vec::new();
                    let mut latest = std::collections::BTreeMap::new();
                    for _ in 0..rng.between(1, 10) {
                        fill += 1;
                        let (page, count, durable) = (rng.below(28), 1 + rng.index(4), rng.chance(1, 4));
                        // Overlapping writes in flight have no order, so each page is written once a round.
                        if (page..page + count as u64).any(|p| latest.contains_key(&p)) {
                            continue;
                        }
                        writes.push(disk.write(page * PAGE as u64, vec![filled(count, fill)], durable));
                        for page in page..page + count as u64 {
                            latest.insert(page, (fill, durable));
                            allowed[page as usize].insert(fill);
                        }
                    }
                    if rng.chance(1, 5) {
                        return;
                    }
                    for done in futures::future::join_all(writes).await {
                        done.unwrap();
                    }
                    let flushed = rng.chance(1, 2);
                    if flushed {
                        disk.flush().await.unwrap();
                    }
                    for (page, set) in allowed.iter_mut().enumerate() {
                        let seen = disk.read((page * PAGE) as u64, PAGE).await.unwrap();
                        let seen: BTreeSet<u8> = seen.chunks(SECTOR).map(|sector| sector[0]).collect();
                        assert!(seen.is_subset(set));
                        match latest.get(&(page as u64)) {
                            Some((fill, durable)) => {
                                assert_eq!(seen, BTreeSet::from([*fill]), "a completed write is visible");
                                if flushed || *durable {
                                    *set = seen;
                                }
                            }
                            None if flushed => *set = seen,
                            None => {}
                        }
                    }
                }
            });
            sim.kill_all_tasks();
            let power_cut = rng.chance(3, 4);
            if power_cut {
                disk.crash(&mut rng);
            } else {
                // Only the process dies; what is in flight lands or not.
                disk.attach(&SimEnv::new(0));
            }
            for (page, set) in allowed.iter_mut().enumerate() {
                let now = BTreeSet::from_iter(fills(&disk, page as u64));
                assert!(now.is_subset(set), "seed {seed} page {page}: {now:?} not among {set:?}");
                if power_cut {
                    *set = now;
                }
            }
        }
    }
}

#[test]
fn a_process_death_keeps_what_completed() {
    let (mut landed, mut missed) = (0, 0);
    for seed in 0..200 {
        let (sim, disk) = new_disk(seed, FaultBudget::none());
        write_now(&sim, &disk, 0, 1, 1);
        let forgotten = disk.write(PAGE as u64, vec![filled(1, 2)], true);
        sim.kill_all_tasks();
        let next = SimScope::new(seed + 1);
        disk.attach(&next);
        assert_eq!(fills(&disk, 0), [1; 8]);
        landed += u32::from(fills(&disk, 1) == [2; 8]);
        missed += u32::from(fills(&disk, 1) == [0; 8]);
        assert!(matches!(next.run_until(forgotten, STEPS), Err(SimStall::Deadlock { .. })));
        assert_eq!(next.block_on(disk.read(0, PAGE)).unwrap()[0], 1);
        // Power is still on, so it takes a flush to keep it.
        next.block_on(disk.flush()).unwrap();
        disk.crash(&mut Rng::new(seed));
        assert_eq!(fills(&disk, 0), [1; 8]);
    }
    assert!(landed > 20 && missed > 20, "{landed} {missed}");
}

#[test]
fn killed_requests_never_complete() {
    let (sim, disk) = new_disk(12, FaultBudget::none());
    let write = disk.write(0, vec![filled(1, 1)], false);
    sim.kill_all_tasks();
    assert!(matches!(sim.run_until(write, STEPS), Err(SimStall::Deadlock { .. })));
    assert_eq!(fills(&disk, 0), [0; 8]);
    assert_eq!(Arc::strong_count(&disk.shared), 1);
}

#[test]
fn a_read_takes_its_bytes_at_any_moment_of_its_flight() {
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        let (sim, disk) = new_disk(seed, FaultBudget { stalls: FaultRate::always(1), ..FaultBudget::none() });
        let read = disk.read(0, PAGE);
        write_now(&sim, &disk, 0, 1, 1);
        seen.insert(sim.block_on(read).unwrap()[0]);
        assert_eq!(read_now(&sim, &disk, 0).unwrap()[0], 1);
    }
    assert_eq!(seen, BTreeSet::from([0, 1]));
}

#[test]
fn overlapping_requests_in_flight_have_no_order() {
    let (mut orders, mut reads) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..100 {
        let (sim, disk) = new_disk(seed, FaultBudget::none());
        let seen = sim.block_on(async {
            let first = disk.write(0, vec![filled(1, 1)], false);
            let second = disk.write(0, vec![filled(1, 2)], false);
            let read = disk.read(0, PAGE);
            let (first, second, read) = futures::future::join3(first, second, read).await;
            first.and(second).unwrap();
            read.unwrap()
        });
        reads.extend(seen.chunks(SECTOR).map(|sector| sector[0]));
        orders.insert(fills(&disk, 0));
    }
    assert_eq!(orders, BTreeSet::from([vec![1; 8], vec![2; 8]]));
    assert_eq!(reads, BTreeSet::from([0, 1, 2]));
}

#[test]
fn discarded_content_is_undefined_and_the_rest_untouched() {
    let mut seen = BTreeSet::new();
    for seed in 0..20 {
        let (sim, disk) = new_disk(seed, FaultBudget::none());
        write_now(&sim, &disk, 0, 10, 3);
        if seed % 2 == 0 {
            sim.block_on(disk.flush()).unwrap();
        }
        sim.block_on(disk.discard(PAGE as u64, 8 * PAGE as u64)).unwrap();
        assert_eq!((fills(&disk, 0), fills(&disk, 9)), (vec![3; 8], vec![3; 8]));
        seen.extend((1..9).map(|page| match fills(&disk, page)[0] {
            0 => "zeroes",
            3 => "kept",
            _ => "junk",
        }));
        write_now(&sim, &disk, 1, 8, 4);
        sim.block_on(disk.flush()).unwrap();
        assert!((1..9).all(|page| fills(&disk, page) == [4; 8]));
    }
    assert_eq!(seen.len(), 3);
    let (sim, _) = new_disk(1, FaultBudget::none());
    let huge = SimDisk::new("huge", 1 << 46, 1, FaultBudget::none());
    huge.attach(&sim);
    write_now(&sim, &huge, 5, 1, 1);
    sim.block_on(huge.discard(0, 1 << 46)).unwrap();
}

mod faults;
