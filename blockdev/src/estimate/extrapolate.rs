//! From what was read to all of it, and how far that may be off.
//!
//! *Zeroes*, and whatever else is a share of blocks: the share of the regions that were read.
//!
//! *Distinct blocks* of a whole cannot be told from a part of it without a range: content that was seen once may be there twice or only once. Each content is
//! counted by the regions it was in (its incidence), since regions were drawn at random and blocks were not. With `n` regions of `N`, `q = n / N`, and `Q1`, `Q2` the
//! number of contents in exactly one and two of them:
//!
//! * at least, in expectation: seen + Q1² / (2 Q2 n/(n-1) + Q1 q/(1-q)). Chao and Lin, Nonparametric lower bounds for species richness and shared species
//!   richness under sampling without replacement, Biometrics 68, 2012. This is the estimate: exact when all contents are there equally often.
//! * at most, in expectation: seen more often + Q1 / q, the upper end of Charikar, Chaudhuri, Motwani and Narasayya, Towards estimation error guarantees for
//!   distinct values, PODS 2000. A content in m regions adds 1 + (m-1) (1-q)^m to its expectation.
//!
//! Both are the count itself when everything was read. Contents that were not seen take as much, each, as those seen once do.
//!
//! *Errors* of drawing regions are those of the delete-a-group jackknife (Kott, Journal of Official Statistics 17, 2001) over [`GROUPS`] random groups of regions,
//! for each figure by itself; those of sampling fingerprints are known in closed form. A range goes two standard errors beyond either end, on a scale of
//! logarithms (no figure is negative), but not beyond what is certain: what was seen is there.
//!
//! What did not happen in n regions may still happen in 3 of n (the rule of three: Hanley and Lippman-Hand, JAMA 249, 1983). So ranges reach to where three
//! more regions would have been copies of others, and to so many zeroes, or data, where none was seen.

use serde::Serialize;

use super::distinct::{DistinctSample, Entry};
use crate::units::BLOCK_BYTES;

/// Random groups of regions: enough for an error that is known to an eighth, and of two regions each in the smallest samples.
pub const GROUPS: usize = 32;
/// Standard errors that a range goes beyond its ends: some 95 % of all samples.
const RANGE: f64 = 2.0;
/// Regions in which something may happen that was not seen, with a chance of 95 % for no more.
const UNSEEN: f64 = 3.0;

/// A figure and the range it lies in; all three are the same when it was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figure<T> {
    /// The estimate.
    pub value: T,
    /// Hardly less.
    pub low: T,
    /// Hardly more.
    pub high: T,
}

/// What the data would take in a pool, before parity. The words are those of [`crate::report::Reduction`].
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// Bytes of the data, holes included, in whole blocks.
    pub size: u64,
    /// Bytes of it known to be zeroes without reading.
    pub holes: u64,
    /// Bytes of it that were read.
    pub read: u64,
    /// Whether everything was read, holes aside.
    pub complete: bool,
    /// One in so many distinct blocks is known; 1: every one is.
    pub distinct_known_one_in: u64,
    /// Bytes of zero blocks, holes included: they take no space.
    pub zeroes: Figure<u64>,
    /// Bytes of other blocks.
    pub logical: Figure<u64>,
    /// Bytes of blocks that equal another one.
    pub duplicate: Figure<u64>,
    /// Bytes of distinct blocks, before compression.
    pub unique: Figure<u64>,
    /// Bytes of distinct blocks, after compression.
    pub stored: Figure<u64>,
    /// `size / logical`.
    pub zero_ratio: Option<Figure<f64>>,
    /// `logical / unique`.
    pub dedupe_ratio: Option<Figure<f64>>,
    /// `unique / stored`.
    pub compression_ratio: Option<Figure<f64>>,
    /// `logical / stored`.
    pub total_ratio: Option<Figure<f64>>,
}

/// What was counted in the regions of a group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Regions.
    pub regions: u64,
    /// Blocks.
    pub blocks: u64,
    /// Zero blocks.
    pub zeroes: u64,
}

/// What was counted in some of the regions.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    regions: f64,
    blocks: f64,
    zeroes: f64,
    /// Contents, and bytes they take, by the number of regions they were in: one, two, more.
    contents: [f64; 3],
    shares: [f64; 3],
}

impl Tally {
    fn add_counts(&mut self, counts: &Counts, sign: f64) {
        self.regions += sign * counts.regions as f64;
        self.blocks += sign * counts.blocks as f64;
        self.zeroes += sign * counts.zeroes as f64;
    }

    /// `weight` contents that take as much as this one and were in so many regions.
    fn add_content(&mut self, share: u16, regions: usize, weight: f64) {
        if let Some(class) = regions.min(3).checked_sub(1) {
            self.contents[class] += weight;
            self.shares[class] += weight * f64::from(share);
        }
    }
}

/// Figures in the order of [`figures`]: blocks, bytes, ratios.
const FIGURES: usize = 9;
type Figures = [f64; FIGURES];

/// Which end of the range of distinct blocks.
#[derive(Clone, Copy)]
enum End {
    Fewest,
    Most,
    /// As the first, had so many more regions than were seen been copies of another one.
    FewestWith(f64),
}

/// All figures of `blocks` blocks, `holes` of which are not among those that were tallied, from the tally of some.
fn figures(tally: &Tally, blocks: f64, holes: f64, end: End) -> Figures {
    let q = tally.blocks / blocks;
    let logical = blocks * (1.0 - tally.zeroes / tally.blocks);
    let [once, twice, _] = tally.contents;
    let seen: f64 = tally.contents.iter().sum();
    let unseen = match end {
        _ if q >= 1.0 || once == 0.0 => 0.0,
        End::Most => once / q - once,
        End::Fewest | End::FewestWith(_) => {
            let (n, odds) = (tally.regions, q / (1.0 - q));
            let more = if let End::FewestWith(regions) = end { regions * once / n } else { 0.0 };
            once * once / (2.0 * (twice + more) * n / (n - 1.0).max(1.0) + once * odds)
        }
    };
    let unseen = unseen.min((logical - seen).max(0.0));
    let unique = seen + unseen;
    let shares: f64 = tally.shares.iter().sum();
    let stored = shares + if once > 0.0 { unseen * tally.shares[0] / once } else { 0.0 };
    let block = BLOCK_BYTES as f64;
    let (logical, unique) = (logical * block, unique * block);
    let size = (blocks + holes) * block;
    [
        size - logical,
        logical,
        logical - unique,
        unique,
        stored,
        size / logical,
        logical / unique,
        unique / stored,
        logical / stored,
    ]
}

/// Relative variances of unique, stored and their ratio that come from knowing one in so many distinct blocks: drawing each with chance `1 / one_in`.
fn sampling_variances(sample: &DistinctSample) -> [f64; 3] {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for entry in sample.entries() {
        let share = f64::from(entry.share);
        count += 1.0;
        sum += share;
        squares += share * share;
    }
    if count == 0.0 || sum == 0.0 {
        return [0.0; 3];
    }
    let missing = 1.0 - 1.0 / sample.one_in() as f64;
    let (unique, stored) = (missing / count, missing * squares / (sum * sum));
    [unique, stored, stored - unique]
}

/// The tally of all groups, and those of all but one group each.
fn tallies(read: &[Counts; GROUPS], sample: &DistinctSample) -> (Tally, [Tally; GROUPS]) {
    let mut all = Tally::default();
    read.iter().for_each(|counts| all.add_counts(counts, 1.0));
    // Of each group, what leaving it out changes.
    let mut without = [Tally::default(); GROUPS];
    let weight = sample.one_in() as f64;
    let in_group = |entry: &Entry, group: u8| entry.groups().iter().filter(|g| **g == group).count();
    for entry in sample.entries() {
        let regions = entry.regions();
        all.add_content(entry.share, regions, weight);
        // Content of more regions than are told apart stays in several, whichever group goes.
        if regions > entry.groups().len() {
            continue;
        }
        for (i, &group) in entry.groups().iter().enumerate() {
            if !entry.groups()[..i].contains(&group) {
                let change = &mut without[usize::from(group)];
                change.add_content(entry.share, regions, -weight);
                change.add_content(entry.share, regions - in_group(entry, group), weight);
            }
        }
    }
    for (change, counts) in without.iter_mut().zip(read) {
        change.add_counts(counts, -1.0);
        change.regions += all.regions;
        change.blocks += all.blocks;
        change.zeroes += all.zeroes;
        for class in 0..3 {
            change.contents[class] += all.contents[class];
            change.shares[class] += all.shares[class];
        }
    }
    (all, without)
}

/// Variances of the figures that come from the choice of regions.
fn jackknife(without: &[Tally; GROUPS], read: &[Counts; GROUPS], blocks: f64, holes: f64, end: End) -> Figures {
    let left: Vec<Figures> = without
        .iter()
        .zip(read)
        .filter(|(tally, counts)| counts.regions > 0 && tally.blocks > 0.0)
        .map(|(tally, _)| figures(tally, blocks, holes, end))
        .collect();
    let count = left.len() as f64;
    std::array::from_fn(|i| {
        let mean = left.iter().map(|f| f[i]).sum::<f64>() / count;
        let squares: f64 = left.iter().map(|f| (f[i] - mean).powi(2)).sum();
        if count < 2.0 { 0.0 } else { squares * (count - 1.0) / count }
    })
}

/// The estimate for regions that were read and `passed` blocks of others, with `holes` zero blocks besides.
pub(super) fn estimate(read: &[Counts; GROUPS], sample: &DistinctSample, passed: u64, holes: u64) -> Estimate {
    let (all, without) = tallies(read, sample);
    let read_blocks: u64 = read.iter().map(|c| c.blocks).sum();
    let total = read_blocks + passed;
    let (blocks, gaps) = (total as f64, holes as f64);
    let [by_unique, by_stored, by_both] = sampling_variances(sample);
    let sampled = [0.0, 0.0, by_unique, by_unique, by_stored, 0.0, by_unique, by_both, by_stored];
    // Drawing all regions leaves no error.
    let drawn = passed as f64 / blocks.max(1.0);
    let ends = [End::Fewest, End::Most, End::FewestWith(UNSEEN)].map(|end| {
        let values = figures(&all, blocks, gaps, end);
        if let End::FewestWith(_) = end {
            return (values, [0.0; FIGURES]);
        }
        let errors = jackknife(&without, read, blocks, gaps, end);
        let error = |i: usize| {
            let base = if i == 2 { values[3] } else { values[i] };
            (errors[i] * drawn + sampled[i] * base * base).sqrt()
        };
        (values, std::array::from_fn::<f64, FIGURES, _>(error))
    });
    // What no error leads below. Of what memory dropped nothing is certain.
    let certain = |i: usize| match i {
        3 if sample.one_in() == 1 => all.contents.iter().sum::<f64>() * BLOCK_BYTES as f64,
        5.. => 1.0,
        _ => 0.0,
    };
    let figure = |i: usize| {
        let value = ends[0].0[i];
        let beyond = |(v, e): &(Figures, Figures), errors: f64| match v[i] {
            v if v > 0.0 => v * (errors * e[i] / v).exp(),
            v => v,
        };
        let low = ends.iter().map(|end| beyond(end, -RANGE)).fold(value, f64::min);
        let high = ends.iter().map(|end| beyond(end, RANGE)).fold(value, f64::max);
        Figure { value, low: low.max(certain(i)).min(value), high }
    };
    let unseen = (UNSEEN / all.regions).min(1.0) * drawn * blocks * BLOCK_BYTES as f64;
    let (no_zeroes, only_zeroes) = (all.zeroes == 0.0, all.zeroes == all.blocks);
    let size = (total + holes) * BLOCK_BYTES;
    let bytes = |i: usize| match read_blocks {
        // Without data there are zeroes only.
        0 if i == 0 => Figure { value: size, low: size, high: size },
        0 => Figure::default(),
        _ => {
            let Figure { value, mut low, mut high } = figure(i);
            match i {
                0 if no_zeroes => high += unseen,
                1 if no_zeroes => low -= unseen,
                0 if only_zeroes => low -= unseen,
                1 | 3 | 4 if only_zeroes => high += unseen,
                _ => {}
            }
            let whole = |x: f64| (x.round() as u64).min(size);
            Figure { value: whole(value), low: whole(low), high: whole(high) }
        }
    };
    let ratio = |i: usize| Some(figure(i)).filter(|f| f.value.is_finite() && read_blocks > 0);
    Estimate {
        size,
        holes: holes * BLOCK_BYTES,
        read: read_blocks * BLOCK_BYTES,
        complete: passed == 0,
        distinct_known_one_in: sample.one_in(),
        zeroes: bytes(0),
        logical: bytes(1),
        duplicate: bytes(2),
        unique: bytes(3),
        stored: bytes(4),
        zero_ratio: ratio(5),
        dedupe_ratio: ratio(6),
        compression_ratio: ratio(7),
        total_ratio: ratio(8),
    }
}
