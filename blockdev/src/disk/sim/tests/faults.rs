//! Faults: the budgeted kinds, the explicit controls, and crash points.

use super::*;

fn medium(result: DiskResult<Bytes>) -> bool {
    match result {
        Ok(_) => false,
        Err(DiskError::Medium(_)) => true,
        Err(other) => panic!("{other:?}"),
    }
}

fn failed<T: std::fmt::Debug>(result: DiskResult<T>) {
    assert!(matches!(result, Err(DiskError::Failed(_))), "{result:?}");
}

/// Writes pages 0..n each with its number plus one, and flushes.
fn fill_disk(sim: &SimScope, disk: &SimDisk, n: u64) {
    for page in 0..n {
        write_now(sim, disk, page, 1, page as u8 + 1);
    }
    sim.block_on(disk.flush()).unwrap();
}

#[test]
fn medium_errors_occur_within_the_budget_and_heal_by_writing() {
    let (sim, disk) = new_disk(1, FaultBudget { medium_errors: FaultRate::new(300_000, 7), ..FaultBudget::none() });
    fill_disk(&sim, &disk, 100);
    let bad: Vec<u64> = (0..100).filter(|&page| medium(read_now(&sim, &disk, page))).collect();
    assert_eq!((bad.len(), disk.fault_counts().medium_errors, disk.fault_counts().total()), (7, 7, 7));
    assert!(medium(sim.block_on(disk.read(0, 100 * PAGE))));
    for page in &bad {
        write_now(&sim, &disk, *page, 1, 200);
    }
    sim.block_on(disk.flush()).unwrap();
    assert!((0..100).all(|page| !medium(read_now(&sim, &disk, page))));
}

#[test]
fn bit_rot_changes_persisted_pages_within_the_budget() {
    let (sim, disk) = new_disk(2, FaultBudget { bit_rot: FaultRate::new(200_000, 9), ..FaultBudget::none() });
    for page in 0..100 {
        write_now(&sim, &disk, page, 1, 5);
    }
    assert!((0..100).all(|page| fills(&disk, page) == [5; 8]), "only what is persisted rots");
    sim.block_on(disk.flush()).unwrap();
    let rotten = (0..100).filter(|page| {
        let data = read_now(&sim, &disk, *page).unwrap();
        let flipped: u32 = data.iter().map(|b| (b ^ 5).count_ones()).sum();
        assert!(flipped <= 8);
        flipped > 0
    });
    assert_eq!((rotten.count(), disk.fault_counts().bit_rot), (9, 9));
}

#[test]
fn misdirected_writes_land_elsewhere_within_the_budget() {
    let (sim, disk) = new_disk(3, FaultBudget { misdirected_writes: FaultRate::always(1), ..FaultBudget::none() });
    let size = (MIB / PAGE as u64) - 1;
    write_now(&sim, &disk, 5, 2, 1);
    assert_eq!((fills(&disk, 5), fills(&disk, 6)), (vec![0; 8], vec![0; 8]));
    let landed: Vec<u64> = (0..=size).filter(|page| fills(&disk, *page) == [1; 8]).collect();
    assert!(landed.len() == 2 && landed[1] == landed[0] + 1, "{landed:?}");
    write_now(&sim, &disk, 5, 2, 2);
    assert_eq!(fills(&disk, 6), [2; 8]);
    assert_eq!(disk.fault_counts().misdirected_writes, 1);
    // There is no other place for a write of the whole disk.
    disk.set_budget(FaultBudget { misdirected_writes: FaultRate::always(5), ..FaultBudget::none() });
    write_now(&sim, &disk, 0, (MIB as usize) / PAGE, 3);
    assert_eq!(disk.fault_counts().misdirected_writes, 1);
    for _ in 0..200 {
        disk.set_budget(FaultBudget { misdirected_writes: FaultRate::always(u32::MAX), ..FaultBudget::none() });
        write_now(&sim, &disk, size, 1, 4);
        assert_eq!(fills(&disk, size), [3; 8], "a misdirected write never lands at its own place");
    }
}

#[test]
fn lost_writes_are_acknowledged_and_never_persist() {
    let (mut seen_before_flush, mut never_seen) = (0, 0);
    for seed in 0..100 {
        let (sim, disk) = new_disk(seed, FaultBudget::none());
        write_now(&sim, &disk, 0, 1, 1);
        sim.block_on(disk.flush()).unwrap();
        disk.set_budget(FaultBudget { lost_writes: FaultRate::always(1), ..FaultBudget::none() });
        sim.block_on(disk.write(0, vec![filled(1, 2)], seed % 2 == 0)).unwrap();
        match fills(&disk, 0)[0] {
            1 => never_seen += 1,
            _ => seen_before_flush += 1,
        }
        if seed % 3 == 0 {
            disk.crash(&mut Rng::new(seed));
        } else {
            sim.block_on(disk.flush()).unwrap();
        }
        assert_eq!(fills(&disk, 0), [1; 8]);
        assert_eq!(disk.fault_counts(), FaultCounts { lost_writes: 1, ..FaultCounts::default() });
    }
    assert!(seen_before_flush > 20 && never_seen > 20);
}

#[test]
fn failed_flushes_lose_what_they_covered_and_the_next_says_nothing() {
    let mut lost = 0;
    for seed in 0..100 {
        let (sim, disk) = new_disk(seed, FaultBudget { flush_failures: FaultRate::always(1), ..FaultBudget::none() });
        write_now(&sim, &disk, 0, 4, 1);
        failed(sim.block_on(disk.flush()));
        sim.block_on(disk.flush()).unwrap();
        let kept = (0..4).all(|page| fills(&disk, page) == [1; 8]);
        lost += u32::from(!kept);
    }
    assert!((40..95).contains(&lost), "{lost}");
}

#[test]
fn stalls_take_long_within_the_budget() {
    let (sim, disk) = new_disk(5, FaultBudget { stalls: FaultRate::new(100_000, 3), ..FaultBudget::none() });
    let mut slow = 0;
    for _ in 0..200 {
        let before = sim.now();
        read_now(&sim, &disk, 0).unwrap();
        let took = sim.now() - before;
        assert!(took < Duration::from_secs(21));
        slow += u32::from(took > Duration::from_secs(2));
    }
    assert_eq!((slow, disk.fault_counts().stalls), (3, 3));
}

#[test]
fn sudden_death_comes_at_its_request_and_takes_those_in_flight_along() {
    let mut cache_survived = 0;
    for seed in 0..40 {
        let (sim, disk) = new_disk(seed, FaultBudget { death_after_ops: Some(21), ..FaultBudget::none() });
        for page in 0..20 {
            write_now(&sim, &disk, page, 1, 1);
        }
        let in_flight = disk.write(0, vec![filled(1, 2)], true);
        assert!(!disk.is_failed());
        failed(sim.block_on(disk.read(0, PAGE)));
        failed(sim.block_on(in_flight));
        failed(sim.block_on(disk.flush()));
        failed(sim.block_on(disk.discard(0, PAGE as u64)));
        assert!(disk.is_failed() && disk.fault_counts().deaths == 1);
        disk.restore();
        cache_survived += u32::from((1..20).all(|page| fills(&disk, page) == [1; 8]));
        write_now(&sim, &disk, 0, 1, 3);
        assert_eq!(read_now(&sim, &disk, 0).unwrap()[0], 3);
    }
    assert!((10..35).contains(&cache_survived), "{cache_survived}");
}

#[test]
fn a_failed_disk_comes_back_with_what_it_had() {
    let (sim, disk) = new_disk(7, FaultBudget::none());
    fill_disk(&sim, &disk, 10);
    write_now(&sim, &disk, 10, 1, 99);
    disk.fail();
    disk.fail();
    failed(sim.block_on(disk.write(0, vec![filled(1, 50)], true)));
    let late = disk.read(0, PAGE);
    disk.restore();
    failed(sim.block_on(late));
    assert!((0..10).all(|page| read_now(&sim, &disk, page).unwrap()[0] == page as u8 + 1));
    assert_eq!(read_now(&sim, &disk, 10).unwrap()[0], 99);
    disk.fail_power();
    disk.restore();
    assert!((0..10).all(|page| read_now(&sim, &disk, page).unwrap()[0] == page as u8 + 1));
    disk.fail();
    disk.crash(&mut Rng::new(1));
    disk.attach(&sim);
    assert!(disk.is_failed());
}

#[test]
fn a_stalled_disk_holds_requests_until_it_goes_on() {
    let (sim, disk) = new_disk(8, FaultBudget::none());
    disk.set_stalled(true);
    let write = disk.write(0, vec![filled(1, 1)], false);
    let env = sim.env();
    let Err(still_waiting) = sim.block_on(async {
        let patience = env.sleep(Duration::from_secs(100));
        match futures::future::select(write, patience).await {
            futures::future::Either::Left(_) => Ok(()),
            futures::future::Either::Right((_, write)) => Err(write),
        }
    }) else {
        panic!("a stalled disk completed a request")
    };
    disk.set_stalled(false);
    sim.block_on(still_waiting).unwrap();
    assert_eq!(fills(&disk, 0), [1; 8]);
    disk.set_stalled(true);
    let read = disk.read(0, PAGE);
    sim.block_on(async { env.sleep(Duration::from_secs(1)).await });
    disk.fail();
    failed(sim.block_on(read));
}

#[test]
fn corruption_reaches_every_copy_and_only_its_range() {
    let (sim, disk) = new_disk(9, FaultBudget::none());
    fill_disk(&sim, &disk, 3);
    write_now(&sim, &disk, 1, 1, 77);
    let before = disk.peek(0, 5 * PAGE);
    disk.corrupt(PAGE as u64 - 3, PAGE as u64 + 10);
    disk.corrupt(4 * PAGE as u64 + 1, 2);
    let changed = |after: &[u8]| -> Vec<usize> { (0..before.len()).filter(|&i| before[i] != after[i]).collect() };
    let expected: Vec<usize> = (PAGE - 3..2 * PAGE + 7).chain(4 * PAGE + 1..4 * PAGE + 3).collect();
    let after = disk.peek(0, 5 * PAGE);
    assert_eq!(changed(&after), expected);
    sim.block_on(disk.flush()).unwrap();
    assert_eq!(disk.peek(0, 5 * PAGE), after, "a flush does not undo it");
    assert_eq!(sim.block_on(disk.read(0, 5 * PAGE)).unwrap(), after);
    disk.damage(PAGE as u64 + 5, 1);
    assert!(medium(read_now(&sim, &disk, 1)) && !medium(read_now(&sim, &disk, 2)));
}

#[test]
fn a_crash_trigger_stops_all_disks_at_the_chosen_write() {
    for after_writes in 0..12 {
        let sim = SimScope::new(after_writes);
        let trigger = CrashTrigger::new(CrashPlan { after_writes });
        let disks: Vec<_> = (0..3).map(|n| SimDisk::new(format!("d{n}"), MIB, n, FaultBudget::none())).collect();
        for disk in &disks {
            disk.attach(&sim);
            disk.set_crash_trigger(Some(trigger.clone()));
        }
        let done = Arc::new(Mutex::new(0u64));
        let (workers, count) = (disks.clone(), done.clone());
        sim.spawn(Box::pin(async move {
            for round in 0.. {
                let disk = &workers[round % 3];
                match round % 2 {
                    0 => disk.write(0, vec![filled(1, 1)], false).await.unwrap(),
                    _ => disk.flush().await.unwrap(),
                }
                *count.lock() += 1;
                drop(disk.read(0, PAGE).await.unwrap());
            }
        }));
        sim.run_until(trigger.fired(), STEPS).unwrap();
        let env = sim.env();
        sim.block_on(async { env.sleep(Duration::from_secs(1)).await });
        assert_eq!(*done.lock(), after_writes.saturating_sub(1));
        assert_eq!(trigger.count(), after_writes);
        assert!(trigger.has_fired());
        // What comes too late does not reach the disk.
        let late = disks[0].write(9 * PAGE as u64, vec![filled(1, 9)], true);
        assert!(matches!(sim.run_until(late, STEPS), Err(SimStall::Deadlock { .. })));
        sim.kill_all_tasks();
        let next = SimScope::new(1);
        for disk in &disks {
            disk.crash(&mut Rng::new(after_writes));
            assert_eq!(fills(disk, 9), [0; 8]);
            disk.attach(&next);
            write_now(&next, disk, 0, 1, 5);
        }
    }
}

#[test]
fn a_trigger_that_never_fires_counts() {
    let (sim, disk) = new_disk(10, FaultBudget::none());
    let trigger = CrashTrigger::new(CrashPlan::NEVER);
    disk.set_crash_trigger(Some(trigger.clone()));
    fill_disk(&sim, &disk, 4);
    read_now(&sim, &disk, 0).unwrap();
    assert_eq!((trigger.count(), trigger.has_fired()), (5, false));
    trigger.fire();
    assert!(sim.run_until(disk.read(0, PAGE), STEPS).is_err());
}

#[test]
fn a_duplicate_lives_on_its_own() {
    let (sim, disk) = new_disk(11, FaultBudget::none());
    fill_disk(&sim, &disk, 2);
    write_now(&sim, &disk, 0, 1, 50);
    let _in_flight = disk.write(PAGE as u64, vec![filled(1, 60)], false);
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let copy = disk.duplicate(seed);
        assert_eq!((fills(&copy, 0), fills(&copy, 1)), (vec![50; 8], vec![2; 8]));
        copy.crash(&mut Rng::new(seed));
        outcomes.insert((fills(&copy, 0), fills(&copy, 1)));
        let next = SimScope::new(seed);
        copy.attach(&next);
        write_now(&next, &copy, 0, 1, 9);
    }
    assert!(outcomes.len() > 30);
    assert_eq!(fills(&disk, 0), [50; 8]);
}

#[test]
fn without_an_environment_requests_fail_and_say_so() {
    let disk = SimDisk::new("lonely", MIB, 1, FaultBudget::none());
    let sim = SimScope::new(1);
    let error = sim.block_on(disk.flush()).unwrap_err();
    assert_eq!(error.to_string(), "sim disk lonely is not attached to an environment");
}

#[test]
#[should_panic(expected = "use AlignedBuf")]
fn unaligned_memory_is_refused() {
    let (_sim, disk) = new_disk(1, FaultBudget::none());
    let bytes = filled(2, 0);
    drop(disk.write(0, vec![bytes.slice(512..512 + PAGE)], false));
}

#[test]
#[should_panic(expected = "beyond its end")]
fn ranges_beyond_the_end_are_refused() {
    let (_sim, disk) = new_disk(1, FaultBudget::none());
    drop(disk.read(MIB, PAGE));
}
