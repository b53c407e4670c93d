//! The fault budget of a simulated disk: what may go wrong, how often, and how many times at most.

use std::time::Duration;

use crate::env::Rng;

/// How often a kind of fault occurs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRate {
    /// Probability at each occasion, in millionths. What an occasion is, each field of [`FaultBudget`] says.
    pub per_million: u32,
    /// How many faults of the kind the disk may have in its life.
    pub max: u32,
}

impl FaultRate {
    /// Never.
    pub const NEVER: Self = Self { per_million: 0, max: 0 };

    /// With probability `per_million` / 1 000 000, at most `max` times.
    pub const fn new(per_million: u32, max: u32) -> Self {
        Self { per_million, max }
    }

    /// At the first `max` occasions.
    pub const fn always(max: u32) -> Self {
        Self { per_million: 1_000_000, max }
    }
}

/// What one disk may do wrong. The default is a disk without faults, whose requests still complete out of order.
///
/// Faults of different disks are independent. A test that expects data to survive gives silent faults (`medium_errors`,
/// `bit_rot`, `misdirected_writes`, `lost_writes`, `flush_failures`) and deaths to no more disks than the pool
/// tolerates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultBudget {
    /// Shortest time a request takes.
    pub latency_min: Duration,
    /// Longest time a request takes unless it stalls; one in eight takes more than an eighth of it.
    pub latency_max: Duration,
    /// Latent sector errors. Occasion: a write request becomes persistent. One of its pages of 4 KiB can then not be
    /// read ([`crate::disk::DiskError::Medium`]) until it is written again.
    pub medium_errors: FaultRate,
    /// Silent corruption. Occasion: a write request becomes persistent. One to eight bits of one of its pages flip.
    pub bit_rot: FaultRate,
    /// Silently misdirected writes. Occasion: a write request. It is acknowledged, and lands at another aligned offset
    /// of the same disk, not at its own.
    pub misdirected_writes: FaultRate,
    /// Silently lost writes. Occasion: a write request. It is acknowledged and never becomes persistent; half of them
    /// are visible to reads until the next flush, the others are not visible at all.
    pub lost_writes: FaultRate,
    /// Failed flushes. Occasion: a flush. It answers [`crate::disk::DiskError::Failed`], and the writes it should have
    /// made persistent leave the cache in the state a power cut would leave them in. Later flushes succeed and say
    /// nothing of it.
    pub flush_failures: FaultRate,
    /// Stalled requests. Occasion: any request. It takes up to `stall_max`.
    pub stalls: FaultRate,
    /// Longest time a stalled request takes.
    pub stall_max: Duration,
    /// Sudden death: this many requests are accepted, and all later ones, and those in flight, fail. A coin decides
    /// whether the disk has lost its link, as by [`super::SimDisk::fail`], or its power, as by
    /// [`super::SimDisk::fail_power`].
    pub death_after_ops: Option<u64>,
    /// This many requests are accepted and answered; those in flight then, and all later ones, are accepted and not answered, as while the disk
    /// is stalled ([`super::SimDisk::set_stalled`]).
    pub hang_after_ops: Option<u64>,
}

impl FaultBudget {
    /// No faults.
    pub const fn none() -> Self {
        Self {
            latency_min: Duration::from_micros(2),
            latency_max: Duration::from_micros(800),
            medium_errors: FaultRate::NEVER,
            bit_rot: FaultRate::NEVER,
            misdirected_writes: FaultRate::NEVER,
            lost_writes: FaultRate::NEVER,
            flush_failures: FaultRate::NEVER,
            stalls: FaultRate::NEVER,
            stall_max: Duration::from_secs(20),
            death_after_ops: None,
            hang_after_ops: None,
        }
    }
}

impl Default for FaultBudget {
    fn default() -> Self {
        Self::none()
    }
}

/// Faults a disk has had, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Pages made unreadable.
    pub medium_errors: u32,
    /// Pages with flipped bits.
    pub bit_rot: u32,
    /// Writes that landed elsewhere.
    pub misdirected_writes: u32,
    /// Writes that never became persistent.
    pub lost_writes: u32,
    /// Flushes that failed.
    pub flush_failures: u32,
    /// Requests that stalled.
    pub stalls: u32,
    /// Sudden deaths.
    pub deaths: u32,
    /// Beginnings of not answering.
    pub hangs: u32,
}

impl FaultCounts {
    /// Faults of all kinds.
    pub fn total(&self) -> u32 {
        self.medium_errors
            + self.bit_rot
            + self.misdirected_writes
            + self.lost_writes
            + self.flush_failures
            + self.stalls
            + self.deaths
            + self.hangs
    }
}

/// Draws faults within the budget.
#[derive(Clone)]
pub(super) struct Dice {
    pub budget: FaultBudget,
    pub counts: FaultCounts,
    pub rng: Rng,
}

/// What becomes of a write request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Normal,
    /// Never visible.
    Lost,
    /// Visible until the next flush.
    LostAtFlush,
}

impl Dice {
    pub fn new(budget: FaultBudget, rng: Rng) -> Self {
        Self { budget, counts: FaultCounts::default(), rng }
    }

    fn draw(rng: &mut Rng, rate: FaultRate, count: &mut u32) -> bool {
        let hit = *count < rate.max && rate.per_million > 0 && rng.chance(rate.per_million.into(), 1_000_000);
        *count += u32::from(hit);
        hit
    }

    pub fn write_fate(&mut self) -> Fate {
        if !Self::draw(&mut self.rng, self.budget.lost_writes, &mut self.counts.lost_writes) {
            Fate::Normal
        } else if self.rng.chance(1, 2) {
            Fate::Lost
        } else {
            Fate::LostAtFlush
        }
    }

    /// Where a write of `len` bytes at `offset` lands on a disk of `size` bytes, both multiples of `grain`.
    pub fn landing(&mut self, offset: u64, len: u64, size: u64, grain: u64) -> u64 {
        let places = (size - len) / grain + 1;
        if places < 2 || !Self::draw(&mut self.rng, self.budget.misdirected_writes, &mut self.counts.misdirected_writes)
        {
            return offset;
        }
        let place = self.rng.below(places - 1);
        (place + u64::from(place >= offset / grain)) * grain
    }

    pub fn medium_error(&mut self) -> bool {
        Self::draw(&mut self.rng, self.budget.medium_errors, &mut self.counts.medium_errors)
    }

    pub fn bit_rot(&mut self) -> bool {
        Self::draw(&mut self.rng, self.budget.bit_rot, &mut self.counts.bit_rot)
    }

    pub fn flush_failure(&mut self) -> bool {
        Self::draw(&mut self.rng, self.budget.flush_failures, &mut self.counts.flush_failures)
    }

    /// Extra time of a request that stalls.
    pub fn stall(&mut self) -> Option<Duration> {
        if !Self::draw(&mut self.rng, self.budget.stalls, &mut self.counts.stalls) {
            return None;
        }
        let max_ns = self.budget.stall_max.as_nanos() as u64;
        Some(Duration::from_nanos(self.rng.between(max_ns / 8, max_ns)))
    }

    /// Whether the disk dies at its request number `ops`, counted from 1.
    pub fn death(&mut self, ops: u64) -> bool {
        let hit = self.budget.death_after_ops.is_some_and(|after| ops > after);
        if hit {
            self.budget.death_after_ops = None;
            self.counts.deaths += 1;
        }
        hit
    }

    /// Whether the disk answers nothing from its request number `ops` on, counted from 1.
    pub fn hang(&mut self, ops: u64) -> bool {
        let hit = self.budget.hang_after_ops.is_some_and(|after| ops > after);
        if hit {
            self.budget.hang_after_ops = None;
            self.counts.hangs += 1;
        }
        hit
    }
}
