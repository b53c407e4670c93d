//! How wide extents are, how drives form resiliency sets, and where a byte of a segment lies in its stripes.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

use crate::report::Tolerance;
use crate::units::DiskId;

/// Columns of a redundancy extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Width {
    /// Columns that hold data.
    pub data: usize,
    /// Columns that hold parity, which is also the number of drives that may be lost.
    pub parity: usize,
}

impl Width {
    /// All columns: drives a new extent needs.
    pub fn columns(self) -> usize {
        self.data + self.parity
    }

    /// Part of the raw space that holds data.
    pub fn efficiency(self) -> f64 {
        self.data as f64 / self.columns() as f64
    }
}

impl std::fmt::Display for Width {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

/// Fewest drives for each number of data columns, widest first. From four drives on (five with two parity columns) one is left over,
/// whose worth of space is the spare: what a failed drive held is rebuilt into it at the same width. Fewer are used whole.
const SINGLE: &[(usize, usize)] = &[(21, 16), (10, 8), (6, 4), (5, 3), (3, 2), (2, 1)];
/// As [`SINGLE`], for two parity columns.
const DOUBLE: &[(usize, usize)] = &[(22, 16), (12, 8), (7, 4), (6, 3), (4, 2), (3, 1)];
/// As [`SINGLE`], without parity.
const NONE: &[(usize, usize)] = &[(1, 1)];

/// Width of new extents on a resiliency set of `disks` drives; `None` when these are too few for the tolerance.
pub fn width(disks: usize, tolerance: Tolerance) -> Option<Width> {
    width_now(disks, disks, tolerance)
}

/// As [`width`], when only `available` of the drives can take data. Extents keep their width as long as there is a drive for each column,
/// then they become narrower; that never lowers the tolerance.
pub fn width_now(disks: usize, available: usize, tolerance: Tolerance) -> Option<Width> {
    let widths = match tolerance {
        Tolerance::None => NONE,
        Tolerance::Single => SINGLE,
        Tolerance::Double => DOUBLE,
    };
    let parity = tolerance.drives();
    let fits = |&&(fewest, data): &&(usize, usize)| disks >= fewest && available >= data + parity;
    let &(_, data) = widths.iter().find(fits)?;
    Some(Width { data, parity })
}

/// Whether a set of `disks` drives keeps one drive's worth of space as a spare: where extents leave a drive over.
pub fn has_spare(disks: usize, tolerance: Tolerance) -> bool {
    tolerance != Tolerance::None && width(disks, tolerance).is_some_and(|w| w.columns() < disks)
}

/// Most drives of one resiliency set; without redundancy there is nothing to divide.
pub fn set_limit(tolerance: Tolerance) -> usize {
    match tolerance {
        Tolerance::None => usize::MAX,
        Tolerance::Single => 25,
        Tolerance::Double => 50,
    }
}

/// A drive as [`regroup`] looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouped {
    /// The drive.
    pub id: DiskId,
    /// Its set; none when it joins.
    pub set: Option<u16>,
    /// Chunks in use on it: those with few change their set at least cost.
    pub used: u64,
}

/// Sets of drives after some joined or left: as few change their set as can be. Sets are as equal as that allows, at most [`set_limit`] large, and
/// sets that fit into one with some slack become one.
///
/// Without `divide` none is divided, and no new one is made beside others: they grow beyond the limit. For two small sets hold less than a large one:
/// their extents are narrower, and each keeps a spare.
pub fn regroup(drives: &[Grouped], tolerance: Tolerance, divide: bool) -> Vec<(DiskId, u16)> {
    let limit = set_limit(tolerance);
    let mut sets: BTreeMap<u16, Vec<Grouped>> = BTreeMap::new();
    let mut joining = Vec::new();
    for drive in drives {
        match drive.set {
            Some(set) => sets.entry(set).or_default().push(*drive),
            None => joining.push(*drive),
        }
    }
    let free_number = |sets: &BTreeMap<u16, Vec<Grouped>>| (0..).find(|n| !sets.contains_key(n)).unwrap_or(u16::MAX);
    // Too large: as when the tolerance became another one.
    while divide && let Some((&large, _)) = sets.iter().find(|(_, drives)| drives.len() > limit) {
        let number = free_number(&sets);
        let drives = sets.entry(large).or_default();
        drives.sort_by_key(|d| (Reverse(d.used), d.id));
        let moved = drives.split_off(drives.len().div_ceil(2));
        sets.insert(number, moved);
    }
    for drive in joining {
        let smallest = sets
            .iter()
            .filter(|(_, drives)| drives.len() < limit || !divide)
            .min_by_key(|(n, drives)| (drives.len(), **n));
        let number = match smallest.map(|(n, _)| *n) {
            Some(number) => number,
            None => {
                let number = free_number(&sets);
                let share = (sets.values().map(Vec::len).sum::<usize>() + 1) / (sets.len() + 1);
                let mut new = Vec::new();
                while new.len() + 1 < share {
                    let largest = sets.values_mut().max_by_key(|drives| drives.len());
                    let Some(largest) = largest else { break };
                    largest.sort_by_key(|d| (Reverse(d.used), d.id));
                    new.extend(largest.pop());
                }
                sets.insert(number, new);
                number
            }
        };
        sets.entry(number).or_default().push(drive);
    }
    loop {
        let smallest = sets.iter().min_by_key(|(n, drives)| (drives.len(), **n)).map(|(n, drives)| (*n, drives.len()));
        let Some((number, size)) = smallest.filter(|_| sets.len() > 1) else { break };
        // With some slack: one that joins next must not split it again.
        let fits = |drives: &Vec<Grouped>| drives.len().saturating_add(size) <= limit - limit / 10;
        let other = sets.iter().filter(|(n, drives)| **n != number && fits(drives));
        let Some(other) = other.min_by_key(|(n, drives)| (drives.len(), **n)).map(|(n, _)| *n) else { break };
        let moved = sets.remove(&number).unwrap_or_default();
        sets.entry(other).or_default().extend(moved);
    }
    let mut out: Vec<(DiskId, u16)> =
        sets.into_iter().flat_map(|(n, drives)| drives.into_iter().map(move |d| (d.id, n))).collect();
    out.sort_unstable();
    out
}

/// How a segment's data space lies over the columns of its extent.
///
/// Stripe `s` takes bytes `s * strip .. (s + 1) * strip` of every column's chunk. Data fills the data columns of a
/// stripe in order, then those of the next stripe.
///
/// ```text
///            column 0    column 1   column 2 (P)
/// stripe 0   0..strip    strip..2s  parity
/// stripe 1   2s..3s      3s..4s     parity
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeGeometry {
    /// Bytes of one column in one stripe; not zero.
    pub strip: u32,
    /// Data columns; not zero.
    pub data: usize,
    /// Parity columns.
    pub parity: usize,
}

/// Where a byte lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Stripe, from 0.
    pub stripe: u64,
    /// Data column, from 0.
    pub column: usize,
    /// Bytes from the start of the column's chunk.
    pub chunk_offset: u64,
}

/// A part of a range that lies together in one strip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where its first byte lies.
    pub location: Location,
    /// Bytes from the start of the range.
    pub range_offset: u64,
    /// Bytes; not zero and at most one strip.
    pub len: u32,
}

impl StripeGeometry {
    /// The geometry of extents of `width` with strips of `strip` bytes.
    ///
    /// # Panics
    /// When there is no data column or no byte in a strip.
    pub fn new(strip: u32, width: Width) -> Self {
        assert!(strip > 0 && width.data > 0, "no stripe of {width} columns of {strip} bytes");
        Self { strip, data: width.data, parity: width.parity }
    }

    /// All columns.
    pub fn columns(&self) -> usize {
        self.data + self.parity
    }

    /// Bytes of data in one stripe.
    pub fn stripe_data(&self) -> u64 {
        u64::from(self.strip) * self.data as u64
    }

    /// Whole stripes in chunks of `chunk` bytes.
    pub fn stripes(&self, chunk: u64) -> u64 {
        chunk / u64::from(self.strip)
    }

    /// Bytes of data in a segment with chunks of `chunk` bytes.
    pub fn segment_data(&self, chunk: u64) -> u64 {
        self.stripes(chunk) * self.stripe_data()
    }

    /// Where the byte at `segment_offset` of the data space lies.
    pub fn locate(&self, segment_offset: u64) -> Location {
        let strip = u64::from(self.strip);
        let (stripe, within) = (segment_offset / self.stripe_data(), segment_offset % self.stripe_data());
        Location { stripe, column: (within / strip) as usize, chunk_offset: stripe * strip + within % strip }
    }

    /// The byte of the data space at `chunk_offset` of data column `column`.
    pub fn segment_offset(&self, column: usize, chunk_offset: u64) -> u64 {
        let strip = u64::from(self.strip);
        chunk_offset / strip * self.stripe_data() + column as u64 * strip + chunk_offset % strip
    }

    /// Splits a range of the data space where it crosses from one strip to another, in order.
    pub fn pieces(&self, range: Range<u64>) -> Pieces {
        Pieces { geometry: *self, start: range.start, at: range.start, end: range.end }
    }
}

/// Iterator of [`StripeGeometry::pieces`].
#[derive(Clone, Debug)]
pub struct Pieces {
    geometry: StripeGeometry,
    start: u64,
    at: u64,
    end: u64,
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.at >= self.end {
            return None;
        }
        let location = self.geometry.locate(self.at);
        let strip = u64::from(self.geometry.strip);
        let len = (strip - self.at % strip).min(self.end - self.at);
        let piece = Piece { location, range_offset: self.at - self.start, len: len as u32 };
        self.at += len;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(disks: usize, tolerance: Tolerance) -> String {
        width(disks, tolerance).map_or_else(|| "-".into(), |w| w.to_string())
    }

    #[test]
    fn widths_by_drive_count() {
        let single =
            [(0, "-"), (1, "-"), (2, "1+1"), (3, "2+1"), (4, "2+1"), (5, "3+1"), (6, "4+1"), (9, "4+1"), (10, "8+1")];
        for (disks, expected) in single.into_iter().chain([(20, "8+1"), (21, "16+1"), (96, "16+1")]) {
            assert_eq!(name(disks, Tolerance::Single), expected, "{disks} drives");
        }
        let double = [(2, "-"), (3, "1+2"), (4, "2+2"), (5, "2+2"), (6, "3+2"), (7, "4+2"), (11, "4+2"), (12, "8+2")];
        for (disks, expected) in double.into_iter().chain([(21, "8+2"), (22, "16+2"), (50, "16+2")]) {
            assert_eq!(name(disks, Tolerance::Double), expected, "{disks} drives");
        }
        assert_eq!(name(0, Tolerance::None), "-");
        assert_eq!(name(1, Tolerance::None), "1+0");
        assert_eq!(name(7, Tolerance::None), "1+0");
    }

    #[test]
    fn a_width_always_fits_keeps_the_tolerance_and_never_narrows_with_more_drives() {
        for tolerance in [Tolerance::None, Tolerance::Single, Tolerance::Double] {
            let mut last = 0;
            for disks in 0..=96 {
                let Some(width) = width(disks, tolerance) else {
                    assert!(disks <= tolerance.drives(), "{disks} drives");
                    continue;
                };
                assert_eq!(width.parity, tolerance.drives());
                assert!(width.columns() <= disks && width.data >= last, "{width} on {disks} drives");
                // A wide extent leaves room for the loss of as many drives as are tolerated.
                assert!(width.data < 8 || width.columns() + tolerance.drives() <= disks, "{width} on {disks} drives");
                last = width.data;
            }
        }
    }

    #[test]
    fn missing_drives_narrow_extents_only_when_there_are_too_few_for_their_columns() {
        let name =
            |disks, here| width_now(disks, here, Tolerance::Double).map_or_else(|| "-".into(), |w| w.to_string());
        let expected = ["-", "-", "-", "1+2", "2+2", "3+2", "4+2", "4+2"];
        for (here, expected) in expected.into_iter().enumerate() {
            assert_eq!(name(7, here), expected, "{here} of 7 drives");
        }
        assert_eq!(width_now(6, 5, Tolerance::Single).unwrap().to_string(), "4+1");
        assert_eq!(width_now(6, 4, Tolerance::Single).unwrap().to_string(), "3+1");
    }

    #[test]
    fn a_set_has_a_spare_where_a_drive_is_left_over() {
        let first = |tolerance| (0..9).filter(|&n| has_spare(n, tolerance)).collect::<Vec<_>>();
        assert_eq!(first(Tolerance::Single), [4, 5, 6, 7, 8]);
        assert_eq!(first(Tolerance::Double), [5, 6, 7, 8]);
        assert_eq!(first(Tolerance::None), [0; 0]);
    }

    fn sizes(sets: &[(DiskId, u16)]) -> Vec<usize> {
        let numbers: std::collections::BTreeSet<u16> = sets.iter().map(|(_, n)| *n).collect();
        numbers.iter().map(|n| sets.iter().filter(|(_, m)| m == n).count()).collect()
    }

    fn grouped(sets: &[(DiskId, u16)]) -> Vec<Grouped> {
        sets.iter().map(|&(id, set)| Grouped { id, set: Some(set), used: u64::from(id.0) }).collect()
    }

    #[test]
    fn sets_split_at_their_limit() {
        let new = |disks: u16| -> Vec<Grouped> {
            (0..disks).map(|i| Grouped { id: DiskId(i), set: None, used: 0 }).collect()
        };
        for (disks, tolerance, expected) in [
            (0, Tolerance::Single, vec![]),
            (25, Tolerance::Single, vec![25]),
            (26, Tolerance::Single, vec![13, 13]),
            (51, Tolerance::Single, vec![17, 17, 17]),
            (96, Tolerance::Single, vec![24, 24, 24, 24]),
            (50, Tolerance::Double, vec![50]),
            (51, Tolerance::Double, vec![26, 25]),
            (96, Tolerance::None, vec![96]),
        ] {
            let mut found = sizes(&regroup(&new(disks), tolerance, true));
            found.sort_unstable_by(|a, b| b.cmp(a));
            assert_eq!(found, expected, "{disks} drives");
        }
    }

    #[test]
    fn drives_that_come_and_go_change_few_sets() {
        let mut rng = crate::env::Rng::new(5);
        for tolerance in [Tolerance::Single, Tolerance::Double] {
            let limit = set_limit(tolerance);
            let mut sets: Vec<(DiskId, u16)> = Vec::new();
            let mut next = 0;
            for _ in 0..2000 {
                let mut drives = grouped(&sets);
                let joins = sets.len() < 4 || sets.len() < 96 && rng.chance(11, 20);
                if joins {
                    drives.push(Grouped { id: DiskId(next), set: None, used: 0 });
                    next += 1;
                } else {
                    drives.remove(rng.index(drives.len()));
                }
                let after = regroup(&drives, tolerance, true);
                assert_eq!(after.len(), drives.len());
                assert!(sizes(&after).iter().all(|&n| n <= limit), "{after:?}");
                let changed = after.iter().filter(|(id, n)| sets.iter().any(|(old, m)| old == id && m != n)).count();
                let (before, now) = (sizes(&sets).len(), sizes(&after).len());
                // Only a set that comes or goes moves drives, and never more than fill it.
                let most = (limit / 2 + 1).max(after.len() / now);
                assert!(changed == 0 || before != now && changed <= most, "{changed} of {} changed", sets.len());
                assert!(now <= after.len().div_ceil(limit / 2).max(1) + 2, "{now} sets of {} drives", after.len());
                sets = after;
            }
        }
    }

    #[test]
    fn a_lower_tolerance_halves_sets_that_are_too_large() {
        let sets: Vec<(DiskId, u16)> = (0..50).map(|i| (DiskId(i), 0)).collect();
        assert_eq!(sizes(&regroup(&grouped(&sets), Tolerance::Single, true)), [25, 25]);
        assert_eq!(sizes(&regroup(&grouped(&sets), Tolerance::Double, true)), [50]);
    }

    #[test]
    fn sets_that_are_not_divided_grow() {
        let joining = Grouped { id: DiskId(90), set: None, used: 0 };
        for (before, expected) in
            [(vec![25], vec![26]), (vec![25, 25], vec![26, 25]), (vec![30], vec![31]), (vec![], vec![1])]
        {
            let mut drives = Vec::new();
            for (set, count) in before.iter().enumerate() {
                let first = drives.len() as u16;
                drives.extend((first..first + count).map(|i| Grouped {
                    id: DiskId(i),
                    set: Some(set as u16),
                    used: 1,
                }));
            }
            drives.push(joining);
            let after = regroup(&drives, Tolerance::Single, false);
            assert_eq!(sizes(&after), expected, "{before:?}");
            let moved = |d: &&Grouped| d.set.is_some_and(|set| !after.contains(&(d.id, set)));
            assert_eq!(drives.iter().find(moved), None);
            // Sets that fit into one become one all the same.
            let small: Vec<Grouped> = (0..8).map(|i| Grouped { id: DiskId(i), set: Some(i / 4), used: 1 }).collect();
            assert_eq!(sizes(&regroup(&small, Tolerance::Single, false)), [8]);
        }
    }

    #[test]
    fn every_byte_of_a_segment_has_one_place() {
        let geometry = StripeGeometry::new(12, Width { data: 3, parity: 2 });
        let chunk = 4 * 12 + 5;
        assert_eq!(geometry.columns(), 5);
        assert_eq!(geometry.stripes(chunk), 4);
        assert_eq!(geometry.segment_data(chunk), 4 * 3 * 12);
        assert_eq!(geometry.locate(0), Location { stripe: 0, column: 0, chunk_offset: 0 });
        assert_eq!(geometry.locate(12), Location { stripe: 0, column: 1, chunk_offset: 0 });
        assert_eq!(geometry.locate(36 + 13), Location { stripe: 1, column: 1, chunk_offset: 13 });
        let mut seen = std::collections::BTreeSet::new();
        for offset in 0..geometry.segment_data(chunk) {
            let location = geometry.locate(offset);
            assert!(location.column < 3 && location.chunk_offset < 48);
            assert_eq!(location.stripe, location.chunk_offset / 12);
            assert_eq!(geometry.segment_offset(location.column, location.chunk_offset), offset);
            assert!(seen.insert((location.column, location.chunk_offset)));
        }
    }

    #[test]
    fn pieces_cover_their_range_once_and_stay_in_a_strip() {
        let geometry = StripeGeometry::new(8, Width { data: 3, parity: 1 });
        for start in 0..60u64 {
            for end in 0..60u64 {
                let mut at = start;
                for piece in geometry.pieces(start..end) {
                    assert_eq!(piece.range_offset, at - start);
                    assert!(piece.len >= 1);
                    for i in 0..u64::from(piece.len) {
                        let byte = geometry.locate(at + i);
                        assert_eq!((byte.stripe, byte.column), (piece.location.stripe, piece.location.column));
                        assert_eq!(byte.chunk_offset, piece.location.chunk_offset + i);
                    }
                    at += u64::from(piece.len);
                    assert!(at == end || at % 8 == 0, "a piece ends at a strip's end or the range's");
                }
                assert_eq!(at, end.max(start));
            }
        }
    }

    #[test]
    fn offsets_beyond_four_gigabytes() {
        let geometry = StripeGeometry::new(64 << 10, Width { data: 8, parity: 2 });
        let offset = (5u64 << 40) + 12345;
        let location = geometry.locate(offset);
        assert_eq!(geometry.segment_offset(location.column, location.chunk_offset), offset);
    }
}
