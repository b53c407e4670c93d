use super::*;

fn disks(sizes: &[u32]) -> Vec<DiskSpace> {
    let disk = |(i, &size): (usize, &u32)| DiskSpace {
        id: DiskId(i as u16),
        set: 0,
        total_chunks: size,
        free_chunks: size,
        wear: 0,
    };
    sizes.iter().enumerate().map(disk).collect()
}

/// Takes the chunks of one extent, checking that the choice is a legal one.
fn take(disks: &mut [DiskSpace], chosen: &[DiskId], width: usize) {
    assert_eq!(chosen.len(), width);
    let mut sets = std::collections::BTreeSet::new();
    for id in chosen {
        let disk = disks.iter_mut().find(|d| d.id == *id).expect("a drive of the list");
        assert!(disk.free_chunks > 0, "a full drive was chosen");
        disk.free_chunks -= 1;
        sets.insert(disk.set);
    }
    assert_eq!(sets.len(), 1, "one resiliency set");
    let distinct: std::collections::BTreeSet<_> = chosen.iter().collect();
    assert_eq!(distinct.len(), width, "no drive twice");
}

fn fill(disks: &mut [DiskSpace], width: usize, salt: u64) -> u64 {
    let mut extents = 0;
    while let Some(chosen) = place(disks, width, salt + extents) {
        take(disks, &chosen, width);
        extents += 1;
    }
    extents
}

/// Small deterministic random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0) % n
    }
}

/// The bound by brute force: extents made by always taking the drives with most free chunks.
fn greedy(sizes: &[u32], width: usize) -> u64 {
    let mut free = sizes.to_vec();
    let mut extents = 0;
    while free.len() >= width {
        free.sort_unstable_by_key(|&c| Reverse(c));
        if free[width - 1] == 0 {
            break;
        }
        free[..width].iter_mut().for_each(|c| *c -= 1);
        extents += 1;
    }
    extents
}

#[test]
fn planner_on_known_shapes() {
    assert_eq!(max_extents(&[10; 6], 6), 10);
    assert_eq!(max_extents(&[10; 6], 3), 20);
    assert_eq!(max_extents(&[100, 10, 10], 2), 20);
    assert_eq!(max_extents(&[7, 7, 7], 2), 10);
    assert_eq!(max_extents(&[5, 5], 3), 0);
    assert_eq!(max_extents(&[5, 5, 0], 3), 0);
    assert_eq!(max_extents(&[], 1), 0);
    assert_eq!(max_extents(&[5], 0), 0);
    assert_eq!(max_extents(&[9, 4], 1), 13);
    assert_eq!(max_extents(&[u32::MAX; 96], 1), 96 * u64::from(u32::MAX));
}

#[test]
fn planner_agrees_with_the_greedy_rule() {
    let mut random = Random(1);
    for _ in 0..300 {
        let count = 1 + random.below(9) as usize;
        let sizes: Vec<u32> = (0..count).map(|_| random.below(60) as u32).collect();
        for width in 1..=count + 1 {
            assert_eq!(max_extents(&sizes, width), greedy(&sizes, width), "{sizes:?} by {width}");
        }
    }
}

#[test]
fn filling_mixed_sizes_reaches_the_bound() {
    let mut random = Random(2);
    for round in 0..150 {
        let count = 2 + random.below(11) as usize;
        // Some alike, some very different, some partly full already.
        let mut size = || {
            let scale = random.below(8);
            1 + random.below(1 << scale) as u32
        };
        let mut mixed = disks(&(0..count).map(|_| size()).collect::<Vec<_>>());
        for disk in &mut mixed {
            if random.below(3) == 0 {
                disk.free_chunks = random.below(u64::from(disk.total_chunks) + 1) as u32;
            }
            disk.wear = random.below(3);
        }
        let width = 1 + random.below(count as u64) as usize;
        let bound = max_extents(&mixed.iter().map(|d| d.free_chunks).collect::<Vec<_>>(), width);
        let before = mixed.clone();
        assert_eq!(fill(&mut mixed, width, round), bound, "{before:?} by {width}");
    }
}

#[test]
fn one_large_drive_is_in_every_extent_from_the_first() {
    let mut disks = disks(&[100, 10, 10]);
    for salt in 0..20 {
        let chosen = place(&disks, 2, salt).unwrap();
        assert!(chosen.contains(&DiskId(0)));
        take(&mut disks, &chosen, 2);
        assert!(disks[1].free_chunks.abs_diff(disks[2].free_chunks) <= 1);
    }
    assert_eq!(place(&disks, 2, 99), None);
}

#[test]
fn equal_drives_differ_by_one_chunk_at_most() {
    let mut disks = disks(&[50; 9]);
    let mut salt = 0;
    while let Some(chosen) = place(&disks, 4, salt) {
        take(&mut disks, &chosen, 4);
        let free = disks.iter().map(|d| d.free_chunks);
        assert!(free.clone().max().unwrap() - free.min().unwrap() <= 1);
        salt += 1;
    }
    assert_eq!(salt, 9 * 50 / 4);
}

#[test]
fn drives_of_different_size_fill_in_proportion() {
    let mut disks = disks(&[100, 100, 200, 200, 400, 400, 100, 200]);
    // No drive is so large that it must be in every extent of three, so shares can stay equal throughout.
    for salt in 0..500 {
        let chosen = place(&disks, 3, salt).unwrap();
        take(&mut disks, &chosen, 3);
        let used = disks.iter().map(|d| f64::from(d.total_chunks - d.free_chunks) / f64::from(d.total_chunks));
        let (low, high) = used.fold((1.0f64, 0.0f64), |(low, high), u| (low.min(u), high.max(u)));
        assert!(high - low <= 0.02, "from {low} to {high} after {salt}");
    }
}

#[test]
fn a_new_empty_drive_is_preferred_until_it_has_caught_up() {
    let mut disks = disks(&[100; 5]);
    disks.iter_mut().take(4).for_each(|d| d.free_chunks = 40);
    for salt in 0..20 {
        let chosen = place(&disks, 3, salt).unwrap();
        assert!(chosen.contains(&DiskId(4)));
        take(&mut disks, &chosen, 3);
    }
}

#[test]
fn the_less_worn_of_equals_is_taken() {
    let mut disks = disks(&[10; 4]);
    disks[1].wear = 5;
    disks[2].wear = 7;
    for salt in 0..50 {
        let mut chosen = place(&disks, 2, salt).unwrap();
        chosen.sort();
        assert_eq!(chosen, [DiskId(0), DiskId(3)]);
    }
}

#[test]
fn every_drive_takes_every_column_about_equally_often() {
    let disks = disks(&[1000; 6]);
    let mut counts = [[0u32; 6]; 6];
    for salt in 0..6000 {
        for (column, disk) in place(&disks, 6, salt).unwrap().into_iter().enumerate() {
            counts[usize::from(disk.0)][column] += 1;
        }
    }
    assert!(counts.iter().flatten().all(|&n| (850..1150).contains(&n)), "{counts:?}");
}

#[test]
fn extents_stay_in_one_set_and_sets_fill_evenly() {
    let mut disks = disks(&[30; 10]);
    disks.iter_mut().skip(4).for_each(|d| d.set = 1);
    let share = |disks: &[DiskSpace]| {
        let free: u32 = disks.iter().map(|d| d.free_chunks).sum();
        f64::from(free) / (30 * disks.len()) as f64
    };
    let mut extents = 0;
    while let Some(chosen) = place(&disks, 3, extents) {
        take(&mut disks, &chosen, 3);
        extents += 1;
        assert!((share(&disks[..4]) - share(&disks[4..])).abs() < 0.05);
    }
    assert_eq!(extents, max_extents(&[30; 4], 3) + max_extents(&[30; 6], 3));
}

#[test]
fn the_answer_depends_on_the_input_and_not_on_its_order() {
    let mut listed = disks(&[10, 20, 30, 40, 50, 60]);
    let first: Vec<_> = (0..50).map(|salt| place(&listed, 3, salt)).collect();
    listed.reverse();
    let again: Vec<_> = (0..50).map(|salt| place(&listed, 3, salt)).collect();
    assert_eq!(first, again);
    listed.extend(listed.clone());
    assert_eq!(place(&listed, 7, 0), None, "a drive listed twice is one drive");
}

#[test]
fn too_few_drives_with_space() {
    let mut disks = disks(&[10; 3]);
    assert_eq!(place(&disks, 4, 0), None);
    assert_eq!(place(&disks, 0, 0), None);
    assert_eq!(place(&[], 1, 0), None);
    disks[0].free_chunks = 0;
    assert_eq!(place(&disks, 3, 0), None);
    assert!(place(&disks, 2, 0).is_some());
}
