use std::collections::BTreeMap;

use super::*;
use crate::env::Rng;

const MIB: u64 = 1 << 20;

/// What stands for the content of number `n`; no two have the same.
fn print(n: u64) -> u128 {
    codec::fingerprint(&n.to_le_bytes())
}

/// Bytes that content number `n` is said to take.
fn taken(n: u64) -> u16 {
    500 + (n % 7) as u16 * 500
}

/// Data as numbers of contents, 0 for a zero block.
type Data = Vec<u64>;

/// What is true of the data: blocks that are not zero, distinct ones, bytes these take.
fn truth(data: &Data) -> (u64, u64, u64) {
    let distinct: std::collections::BTreeSet<u64> = data.iter().copied().filter(|n| *n > 0).collect();
    let filled = data.iter().filter(|n| **n > 0).count() as u64;
    (filled, distinct.len() as u64, distinct.iter().map(|n| u64::from(taken(*n))).sum())
}

/// The estimate for data of which `wanted` regions are read, with shares as [`taken`] says.
fn estimate(data: &Data, memory: u64, wanted: u64, seed: u64) -> Estimate {
    let regions = data.len().div_ceil(REGION_BLOCKS) as u64;
    let mut selection = if wanted >= regions { Selection::all() } else { Selection::new(seed, wanted, regions) };
    let mut estimator = Estimator::new(memory, data.len() as u64);
    for region in data.chunks(REGION_BLOCKS) {
        let Some(group) = selection.next() else {
            estimator.pass_over(region.len() as u64);
            continue;
        };
        let cut = Cut(region.iter().map(|n| (*n > 0).then(|| print(*n))).collect());
        let frames = estimator.admit(&cut, group);
        let fresh = frames.iter().flat_map(|Frame(blocks)| blocks).filter(|(_, wanted)| wanted.is_some());
        let shares: Vec<Share> = fresh.map(|(at, _)| (print(region[*at]), taken(region[*at]))).collect();
        estimator.record(&shares);
    }
    estimator.estimate()
}

/// Random data: contents of skewed popularity, alone and in runs, with zeroes between them.
fn random_data(rng: &mut Rng, blocks: usize) -> Data {
    let mut data = Vec::with_capacity(blocks);
    let (mut new, zero_in, repeat_in) = (1u64, rng.between(2, 20), rng.between(2, 6));
    while data.len() < blocks {
        let run = rng.between(1, 64);
        if rng.chance(1, zero_in) {
            data.extend((0..run).map(|_| 0));
        } else if rng.chance(1, repeat_in) {
            let from = rng.below(new).min(rng.below(new));
            data.extend((0..run).map(|i| (from + i).clamp(1, new)));
            new = new.max(from + run);
        } else {
            data.extend(new..new + run);
            new += run;
        }
    }
    data.truncate(blocks);
    data
}

fn is_counted<T: PartialEq + Copy>(figure: Figure<T>, value: T) -> bool {
    figure.value == value && figure.low == value && figure.high == value
}

#[test]
fn what_fits_is_counted_exactly() {
    for seed in 0..20 {
        let data = random_data(&mut Rng::new(seed), 20_000);
        let (filled, distinct, stored) = truth(&data);
        let found = estimate(&data, 64 * MIB, u64::MAX, seed);
        assert!(found.complete && found.distinct_known_one_in == 1);
        assert_eq!(found.size, 20_000 * BLOCK_BYTES);
        assert!(is_counted(found.logical, filled * BLOCK_BYTES), "{found:?}");
        assert!(is_counted(found.unique, distinct * BLOCK_BYTES), "{found:?}");
        assert!(is_counted(found.duplicate, (filled - distinct) * BLOCK_BYTES), "{found:?}");
        assert!(is_counted(found.zeroes, (20_000 - filled) * BLOCK_BYTES), "{found:?}");
        assert!(is_counted(found.stored, stored), "{found:?}");
        let ratio = found.total_ratio.unwrap().value;
        assert!((ratio - (filled * BLOCK_BYTES) as f64 / stored as f64).abs() < 1e-9, "{found:?}");
    }
}

/// Errors of the estimates in standard errors, as their ranges say, have the spread of a normal distribution.
#[test]
fn little_memory_is_unbiased_and_its_errors_are_what_it_says() {
    let mut errors = BTreeMap::<&str, Vec<f64>>::new();
    for seed in 0..60 {
        let data = random_data(&mut Rng::new(1000 + seed), 30_000);
        // Another seed must give other fingerprints.
        let data: Data = data.into_iter().map(|n| if n == 0 { 0 } else { n + (seed << 32) }).collect();
        let (filled, distinct, stored) = truth(&data);
        let found = estimate(&data, 20_000, u64::MAX, seed);
        assert!(found.distinct_known_one_in >= 8, "{found:?}");
        assert!(is_counted(found.logical, filled * BLOCK_BYTES), "{found:?}");
        for (what, figure, truth) in
            [("unique", found.unique, distinct * BLOCK_BYTES), ("stored", found.stored, stored)]
        {
            let standard = (figure.high - figure.low) as f64 / 4.0;
            errors.entry(what).or_default().push((figure.value as f64 - truth as f64) / standard);
        }
    }
    for (what, errors) in errors {
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        let spread = (errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64).sqrt();
        let worst = errors.iter().fold(0.0f64, |worst, e| worst.max(e.abs()));
        assert!(mean.abs() < 0.5, "{what} is biased: {mean:.2} standard errors");
        assert!((0.7..1.35).contains(&spread) && worst < 4.5, "{what}: spread {spread:.2}, worst {worst:.2}");
    }
}

#[test]
fn memory_is_bounded() {
    let data: Data = (1..=200_000).collect();
    for memory in [0, 5_000, 100_000] {
        let mut sample = DistinctSample::new(memory, data.len() as u64);
        data.iter().for_each(|n| {
            sample.see(print(*n), 0);
        });
        let kept = sample.entries().count() as u64;
        assert!(kept * 25 <= memory.max(16 * 25), "{kept} entries in {memory} bytes");
        let estimate = kept * sample.one_in();
        assert!(kept < 100 || (150_000..250_000).contains(&estimate), "{estimate}");
    }
}

/// How often the truth lies in the range of a sample of 64 of 400 regions, for all kinds of data; and that the ranges say something.
#[test]
fn ranges_of_samples_hold_the_truth() {
    const BLOCKS: u64 = 400 * REGION_BLOCKS as u64;
    type Make = fn(u64, &mut Rng) -> u64;
    // What stands at block `i`.
    let kinds: [(&str, Make); 8] = [
        ("all distinct", |i, _| i + 1),
        ("each twice, side by side", |i, _| i / 2 + 1),
        ("each twice, far apart", |i, _| i % (BLOCKS / 2) + 1),
        ("each five times, far apart", |i, _| i % (BLOCKS / 5) + 1),
        ("each fifty times", |i, _| i % (BLOCKS / 50) + 1),
        ("half once, half from few", |i, rng| if i % 2 == 0 { i + 10_000 } else { rng.below(5_000) + 1 }),
        ("a third zeroes, in runs", |i, _| if i / 700 % 3 == 0 { 0 } else { i + 1 }),
        ("skewed", |i, rng| {
            let bits = rng.between(4, 17);
            if rng.chance(1, 2) { i + 1_000_000 } else { rng.below(1 << bits) + 1 }
        }),
    ];
    for (what, make) in kinds {
        let (mut held, mut runs) = ([0; 3], 0);
        for seed in 0..40 {
            let mut rng = Rng::new(seed);
            let data: Data = (0..BLOCKS).map(|i| make(i, &mut rng)).collect();
            let (filled, distinct, stored) = truth(&data);
            let found = estimate(&data, 64 * MIB, 64, seed);
            assert_eq!(found.read, 64 * REGION_SIZE as u64);
            let holds = |figure: Figure<u64>, truth: u64| figure.low <= truth && truth <= figure.high;
            held[0] += u32::from(holds(found.logical, filled * BLOCK_BYTES));
            held[1] += u32::from(holds(found.unique, distinct * BLOCK_BYTES));
            held[2] += u32::from(holds(found.stored, stored));
            runs += 1;
            let Figure { value, low, high } = found.unique;
            assert!(found.dedupe_ratio.unwrap().low >= 1.0, "{found:?}");
            assert!(low <= value && value <= high && high <= found.logical.high, "{what}: {found:?}");
            assert!(found.unique.low > distinct * BLOCK_BYTES / 4, "{what} says nothing: {found:?}");
            assert!(found.unique.high < distinct * BLOCK_BYTES * 8, "{what} says nothing: {found:?}");
        }
        eprintln!("{what}: the truth was in {held:?} of {runs} ranges");
        assert!(held.iter().all(|n| n * 8 >= runs * 7), "{what}: the truth was in {held:?} of {runs} ranges");
    }
}

#[test]
fn samples_of_data_in_which_all_is_there_equally_often_are_right() {
    for copies in [1, 2, 4] {
        const SEEDS: u64 = 20;
        let distinct = 400_000 / copies;
        let data: Data = (0..400_000).map(|i| i % distinct + 1).collect();
        let found = |seed| estimate(&data, 64 * MIB, 400, seed).unique.value as f64;
        let mean = (0..SEEDS).map(found).sum::<f64>() / SEEDS as f64;
        let error = mean / (distinct * BLOCK_BYTES) as f64 - 1.0;
        assert!(error.abs() < 0.06, "{copies} copies: {error:+.3}");
    }
}

#[test]
fn samples_in_little_memory_hold_the_truth_too() {
    let data: Data = (0..200_000).map(|i| i % 60_000 + 1).collect();
    let mut held = 0;
    for seed in 0..20 {
        let found = estimate(&data, 40_000, 200, seed);
        assert!(found.distinct_known_one_in > 1 && !found.complete);
        held += usize::from(found.unique.low <= 60_000 * BLOCK_BYTES && 60_000 * BLOCK_BYTES <= found.unique.high);
    }
    assert!(held >= 17, "{held} of 20");
}

#[test]
fn zeroes_and_holes_take_no_space() {
    let mut estimator = Estimator::new(MIB, 100);
    estimator.hole(1000);
    let only_holes = estimator.estimate();
    assert!(is_counted(only_holes.zeroes, 1000 * BLOCK_BYTES) && only_holes.total_ratio.is_none(), "{only_holes:?}");
    let frames = estimator.admit(&cut(&[0; 10 * BLOCK_SIZE]), 0);
    assert!(frames.is_empty());
    let zeroes = estimator.estimate();
    assert!(is_counted(zeroes.zeroes, 1010 * BLOCK_BYTES) && is_counted(zeroes.stored, 0), "{zeroes:?}");
    assert_eq!((zeroes.holes, zeroes.read), (1000 * BLOCK_BYTES, 10 * BLOCK_BYTES));
    assert!(zeroes.dedupe_ratio.is_none() && zeroes.zero_ratio.is_none(), "{zeroes:?}");
    let nothing = Estimator::new(MIB, 0).estimate();
    assert_eq!((nothing.size, nothing.stored.high, nothing.total_ratio), (0, 0, None));
}

#[test]
fn what_a_sample_did_not_meet_may_still_be_there() {
    let blocks = 400 * REGION_BLOCKS as u64;
    let filled = estimate(&(1..=blocks).collect(), 64 * MIB, 100, 1);
    assert_eq!((filled.zeroes.value, filled.zeroes.low, filled.duplicate.low), (0, 0, 0), "{filled:?}");
    let one_region = REGION_SIZE as u64;
    // Three of a hundred of the 300 regions that were not read.
    assert_eq!(filled.zeroes.high, 9 * one_region, "{filled:?}");
    assert_eq!(filled.logical.low, 391 * one_region, "{filled:?}");
    assert!((one_region..200 * one_region).contains(&filled.duplicate.high), "{filled:?}");
    let empty = estimate(&vec![0; blocks as usize], 64 * MIB, 100, 1);
    assert_eq!((empty.stored.value, empty.stored.low, empty.stored.high), (0, 0, 9 * one_region), "{empty:?}");
    assert_eq!((empty.zeroes.low, empty.zeroes.high), (391 * one_region, 400 * one_region), "{empty:?}");
}

#[test]
fn new_blocks_in_sequence_are_compressed_together_by_the_engines_compressor() {
    let block = |n: u8| -> Vec<u8> { (0..BLOCK_SIZE).map(|i| (i / 9 % 40) as u8 ^ n).collect() };
    let noise = |seed: u64| {
        let mut noise = vec![0; BLOCK_SIZE];
        Rng::new(seed).fill(&mut noise);
        noise
    };
    // New, new, zero, again, new, noise, again, noise, noise: six are new.
    let order = [block(1), block(2), vec![0; BLOCK_SIZE], block(1), block(3), noise(1), noise(1), noise(2), noise(3)];
    let data = order.concat();
    for compression in [Compression::Zstd, Compression::Lz4, Compression::Off] {
        let mut estimator = Estimator::new(MIB, 100);
        let frames = estimator.admit(&cut(&data), 0);
        let packed: Vec<Vec<usize>> = frames.iter().map(|Frame(f)| f.iter().map(|(at, _)| *at).collect()).collect();
        assert_eq!(packed, [vec![0, 1, 4, 5], vec![7, 8]]);
        let mut compressor = Compressor::new();
        let shares = compress(&data, &frames, &mut compressor, compression);
        estimator.record(&shares);
        let mut expected = Vec::new();
        compressor.compress(compression, &[block(1), block(2), block(3), noise(1)].concat(), &mut expected);
        // Noise is stored as it is.
        let expected = (expected.len() + 2 * BLOCK_SIZE) as u64;
        let found = estimator.estimate();
        assert!(is_counted(found.stored, expected), "{compression:?}: {found:?}");
        assert!(is_counted(found.unique, 6 * BLOCK_BYTES), "{compression:?}: {found:?}");
        assert_eq!(estimator.so_far(), (8 * BLOCK_BYTES, expected));
        assert!(estimator.admit(&cut(&data), 0).is_empty(), "all of it is known now");
        assert!(is_counted(estimator.estimate().stored, expected));
    }
}

#[test]
fn as_many_regions_are_chosen_as_wanted_each_as_often_as_any() {
    let mut often = [0u32; 50];
    for seed in 0..2000 {
        let mut selection = Selection::new(seed, 10, 50);
        let chosen: Vec<bool> = (0..50).map(|_| selection.next().is_some()).collect();
        assert_eq!(chosen.iter().filter(|c| **c).count(), 10);
        assert_eq!(selection.next(), None, "there were more than announced");
        chosen.iter().zip(&mut often).for_each(|(chosen, often)| *often += u32::from(*chosen));
    }
    assert!(often.iter().all(|n| (310..490).contains(n)), "{often:?}");
    let mut all = Selection::all();
    assert!((0..1000).all(|_| all.next().is_some_and(|group| usize::from(group) < GROUPS)));
    let mut more_than_there_are = Selection::new(1, 9, 3);
    assert!((0..3).all(|_| more_than_there_are.next().is_some()) && more_than_there_are.next().is_none());
    let same = |seed| {
        let mut selection = Selection::new(seed, 10, 50);
        (0..50).map(|_| selection.next()).collect::<Vec<_>>()
    };
    assert_eq!(same(7), same(7));
    assert_ne!(same(7), same(8));
}

#[test]
fn regions_are_what_the_write_path_reduces_together() {
    assert_eq!(REGION_BLOCKS, crate::volume::intake::BATCH_BLOCKS);
}
