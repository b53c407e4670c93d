//! Which drives a new extent lies on.
//!
//! **Bound.** Extents of `w` columns on distinct drives with `c_i` free chunks: at most the largest `E` with
//! `sum min(c_i, E) >= w * E` can be made, for no drive gives more than `min(c_i, E)` chunks to `E` extents. Taking the
//! drives with the most free chunks each time reaches it.
//!
//! **Rule.** Let `E` be the bound now and `slack = sum min(c_i, E) - w * E`. The bound falls by exactly one with the
//! next extent if and only if, of the drives with `c_i >= E`, no more than `slack` are left out. So that many of them
//! (those with most free chunks) are *compulsory*, and the other columns go to whichever drives have the largest
//! *share* of their chunks free. Drives of different sizes thus fill evenly, and no capacity is lost.

use std::cmp::Reverse;

use crate::units::DiskId;

/// What placement knows of a drive that can take data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// The drive.
    pub id: DiskId,
    /// Its resiliency set.
    pub set: u16,
    /// Chunks of the drive that can hold data.
    pub total_chunks: u32,
    /// Those of them that are free.
    pub free_chunks: u32,
    /// Wear, in any unit, the same for all drives; of equally free drives the least worn is taken.
    pub wear: u64,
}

/// Most extents of `width` columns, each on distinct drives, that drives with so many free chunks can hold.
pub fn max_extents(chunks: &[u32], width: usize) -> u64 {
    if width == 0 || chunks.len() < width {
        return 0;
    }
    let fits = |extents: u64| chunks_within(chunks.iter().copied(), extents) >= u128::from(extents) * width as u128;
    // `fits` holds from 0 to the bound and not beyond: the chunks within reach grow ever more slowly with `extents`.
    let (mut good, mut bad) = (0, chunks.iter().map(|&c| u64::from(c)).sum::<u64>() / width as u64 + 1);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    good
}

/// Chunks that `extents` extents could use if all of each were on distinct drives.
fn chunks_within(chunks: impl Iterator<Item = u32>, extents: u64) -> u128 {
    chunks.map(|c| u128::from(u64::from(c).min(extents))).sum()
}

/// Chooses the drives of a new extent of `width` columns: distinct drives of one resiliency set, in column order.
/// `None` when no set has `width` drives with a free chunk.
///
/// The same input gives the same answer, in whatever order the drives are listed. `salt` (the number of the extent,
/// say) decides between equals and which drive takes which column, so that parity is spread.
pub fn place(disks: &[DiskSpace], width: usize, salt: u64) -> Option<Vec<DiskId>> {
    let mut disks: Vec<DiskSpace> = disks.to_vec();
    disks.sort_by_key(|d| (d.set, d.id));
    disks.dedup_by_key(|d| d.id);
    let set = disks
        .chunk_by(|a, b| a.set == b.set)
        .filter_map(|set| {
            let free = max_extents(&set.iter().map(|d| d.free_chunks).collect::<Vec<_>>(), width);
            let total = max_extents(&set.iter().map(|d| d.total_chunks.max(d.free_chunks)).collect::<Vec<_>>(), width);
            (free > 0).then(|| (Share { free, total }, Reverse(mix(salt ^ u64::from(set[0].set) << 32)), set))
        })
        .max_by_key(|&(share, tie, _)| (share, tie))?
        .2;
    Some(place_in_set(set, width, salt))
}

/// [`place`] within one set that can take the extent; `disks` are sorted by id.
fn place_in_set(disks: &[DiskSpace], width: usize, salt: u64) -> Vec<DiskId> {
    let free: Vec<u32> = disks.iter().map(|d| d.free_chunks).collect();
    let extents = max_extents(&free, width);
    let slack = chunks_within(free.iter().copied(), extents) - u128::from(extents) * width as u128;
    let tie = |d: &DiskSpace| (d.wear, mix(salt ^ u64::from(d.id.0) << 48));

    let mut large: Vec<&DiskSpace> = disks.iter().filter(|d| u64::from(d.free_chunks) >= extents).collect();
    large.sort_by_key(|d| (Reverse(d.free_chunks), tie(d)));
    // Never more than `width`: with n large drives the slack is at least (n - width) * extents.
    let compulsory = (large.len() as u128).saturating_sub(slack) as usize;
    let mut chosen: Vec<DiskId> = large[..compulsory].iter().map(|d| d.id).collect();

    let mut others: Vec<&DiskSpace> = disks.iter().filter(|d| d.free_chunks > 0 && !chosen.contains(&d.id)).collect();
    others.sort_by_key(|d| {
        (Reverse(Share { free: u64::from(d.free_chunks), total: u64::from(d.total_chunks.max(d.free_chunks)) }), tie(d))
    });
    chosen.extend(others.iter().take(width - compulsory).map(|d| d.id));

    chosen.sort_unstable();
    let turn = (mix(salt) % width as u64) as usize;
    chosen.rotate_left(turn);
    chosen
}

/// A fraction, compared without rounding.
#[derive(Clone, Copy)]
struct Share {
    free: u64,
    total: u64,
}

impl Ord for Share {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let cross = |a: &Self, b: &Self| u128::from(a.free) * u128::from(b.total);
        cross(self, other).cmp(&cross(other, self))
    }
}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Share {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Share {}

/// Spreads the bits of a number (the finaliser of MurmurHash3).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    x = (x ^ (x >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    x ^ (x >> 33)
}

#[cfg(test)]
#[path = "placement/tests.rs"]
mod tests;
