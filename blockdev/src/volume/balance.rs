//! Balance: columns move from full disks to emptier ones of the same set, and segments of another width are written again.
//! `docs/design/0008-sets-balance-tolerance.md` has the rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::Engine;
use super::rebuild::{Degraded, Kind};
use crate::error::Result;
use crate::redundancy::placement::{DiskSpace, max_extents};
use crate::segment::table::Segment;
use crate::units::DiskId;

/// Difference of the shares of chunks in use, of two disks of a set, at which balancing begins by itself.
const BEGIN: f64 = 0.10;
/// Below this difference it ends.
const END: f64 = 0.04;
/// Moves planned at once.
const PLAN: usize = 256;

/// Whether data is being spread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Balance {
    /// Columns are moved until disks are even.
    on: bool,
    /// Segments of another width or parity than new ones are written again.
    restripe: bool,
}

/// Disks of one set as they are while moves are planned.
struct Shares(BTreeMap<DiskId, (u32, u32)>);

impl Shares {
    fn of(&self, disk: DiskId) -> f64 {
        self.0.get(&disk).map_or(0.0, |(used, total)| f64::from(*used) / f64::from((*total).max(1)))
    }

    fn least(&self) -> f64 {
        self.0.keys().map(|d| self.of(*d)).fold(1.0, f64::min)
    }

    fn spread(&self) -> f64 {
        let shares = || self.0.keys().map(|d| self.of(*d));
        shares().fold(0.0, f64::max) - shares().fold(1.0, f64::min)
    }

    /// Extents that free chunks are enough for.
    fn room(&self, width: usize) -> u64 {
        max_extents(&self.0.values().map(|(used, total)| total - used).collect::<Vec<_>>(), width)
    }

    /// Makes a move if it helps.
    fn shift(&mut self, from: DiskId, to: DiskId, width: usize) -> bool {
        if self.of(from) - self.of(to) <= END {
            return false;
        }
        let (before, room) = (self.0.clone(), self.room(width));
        if let Some(f) = self.0.get_mut(&from) {
            f.0 = f.0.saturating_sub(1);
        }
        if let Some(t) = self.0.get_mut(&to) {
            t.0 = (t.0 + 1).min(t.1);
        }
        let better = self.of(from) >= self.of(to) && self.room(width) >= room;
        if !better {
            self.0 = before;
        }
        better
    }
}

impl Engine {
    /// Spreads data evenly over the disks; segments of another width or parity than new ones are written again.
    pub async fn rebalance(self: &Arc<Self>) -> Result<()> {
        self.check_writable()?;
        self.divide_sets().await;
        self.check_alive()?;
        *self.balance.lock() = Balance { on: true, restripe: true };
        self.array.changed.notify_one();
        Ok(())
    }

    /// What is to be moved next; nothing when disks are even.
    pub(super) fn unbalanced(&self, aside: &FxHashSet<u64>) -> Vec<Degraded> {
        let mut balance = self.balance.lock();
        let state = self.state.read();
        let Some(width) = state.segments.width(&self.array) else { return Vec::new() };
        let (closed, absent) = (self.array.closed(), self.array.absent());
        let takes = |id: DiskId| closed.checked_shr(id.0.into()).unwrap_or(0) & 1 == 0;
        let spaces: Vec<DiskSpace> = state.segments.spaces(&self.array).into_iter().filter(|s| takes(s.id)).collect();
        let mut sets: BTreeMap<u16, Shares> = BTreeMap::new();
        for s in &spaces {
            let used = s.total_chunks - s.free_chunks;
            sets.entry(s.set).or_insert_with(|| Shares(BTreeMap::new())).0.insert(s.id, (used, s.total_chunks));
        }
        balance.on |= sets.values().any(|shares| shares.spread() > BEGIN);
        if !balance.on && !balance.restripe {
            return Vec::new();
        }
        let appenders = self.appenders.read();
        let whole = |s: &&Segment| {
            let r = &s.record;
            let idle = r.sealed && r.live > 0 && !aside.contains(&r.incarnation) && !appenders.contains_key(&r.id);
            idle && s.extent.lost_columns(absent) == 0
        };
        let plan = |s: &Segment, wanted, kind| Degraded {
            record: s.record.clone(),
            extent: s.extent.clone(),
            lost: 0,
            wanted,
            bad: 0,
            moving: wanted,
            kind,
        };
        let mut out = Vec::new();
        for shares in sets.values_mut() {
            let mut taken: FxHashSet<u64> = FxHashSet::default();
            let mut full: Vec<DiskId> = shares.0.keys().copied().collect();
            full.sort_by(|a, b| shares.of(*b).total_cmp(&shares.of(*a)));
            for from in full {
                for s in state.segments.iter().filter(whole) {
                    if out.len() >= PLAN {
                        break;
                    }
                    let Some(column) = s.record.columns.iter().position(|(disk, _)| *disk == from) else { continue };
                    if taken.contains(&s.record.incarnation) || shares.of(from) - shares.least() <= END {
                        continue;
                    }
                    let holds = |d: &&DiskId| s.record.columns.iter().any(|(disk, _)| disk == *d);
                    let emptiest = shares.0.keys().filter(|d| !holds(d));
                    let to = emptiest.min_by(|a, b| shares.of(**a).total_cmp(&shares.of(**b))).copied();
                    let Some(to) = to else { continue };
                    if shares.shift(from, to, width.columns()) {
                        taken.insert(s.record.incarnation);
                        out.push(plan(s, 1 << column, Kind::Balance));
                    }
                }
            }
        }
        balance.on = !out.is_empty();
        if out.is_empty() && balance.restripe {
            let other =
                |s: &&Segment| (usize::from(s.record.data), usize::from(s.record.parity)) != (width.data, width.parity);
            out.extend(state.segments.iter().filter(whole).filter(other).map(|s| plan(s, 0, Kind::Restripe)));
            balance.restripe = !out.is_empty();
        }
        out
    }

    /// Whether data is being spread, or is about to be.
    pub(super) fn is_balancing(&self) -> bool {
        let balance = self.balance.lock();
        balance.on || balance.restripe
    }

    /// Nothing more can be moved.
    pub(super) fn stop_balancing(&self) {
        *self.balance.lock() = Balance::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_made_while_they_help() {
        let mut shares = Shares((0..4).map(|i| (DiskId(i), (if i < 3 { 60 } else { 0 }, 100))).collect());
        let fullest = |s: &Shares| s.0.keys().copied().max_by(|a, b| s.of(*a).total_cmp(&s.of(*b)));
        let mut moves = 0;
        while fullest(&shares).is_some_and(|from| shares.shift(from, DiskId(3), 3)) {
            moves += 1;
        }
        assert!(shares.spread() <= END + 0.01, "{}", shares.spread());
        assert!((40..=46).contains(&moves), "{moves}");
        // Disks of different sizes: what makes room for fewer extents is not done.
        let mut shares = Shares([(DiskId(0), (90, 100)), (DiskId(1), (90, 100)), (DiskId(2), (0, 20))].into());
        let before = shares.room(2);
        while shares.shift(DiskId(0), DiskId(2), 2) || shares.shift(DiskId(1), DiskId(2), 2) {}
        assert!(shares.room(2) >= before);
    }
}
