//! Durations counted on a logarithmic scale.

use std::time::Duration;

/// Buckets of one power of two.
const STEPS: usize = 8;
/// Nanoseconds are counted from this power of two on.
const UNIT_BITS: u32 = 10;
/// The highest power of two of units that is told apart: longer than two minutes is all one.
const TOP: u32 = 27;
/// Number of buckets.
pub const BUCKETS: usize = (TOP as usize - 1) * STEPS;

/// How many durations fell into which bucket. A bucket is about an eighth wide, from a microsecond to two minutes.
#[derive(Clone)]
pub struct Histogram {
    buckets: [u32; BUCKETS],
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], count: 0 }
    }
}

/// The bucket of a duration.
pub fn bucket(duration: Duration) -> usize {
    let units = u64::try_from(duration.as_nanos() >> UNIT_BITS).unwrap_or(u64::MAX);
    if units < STEPS as u64 {
        return units as usize;
    }
    let power = units.ilog2();
    if power > TOP {
        return BUCKETS - 1;
    }
    let step = (units >> (power - STEPS.ilog2())) as usize % STEPS;
    (power as usize - 2) * STEPS + step
}

/// The end of a bucket.
pub fn end(bucket: usize) -> Duration {
    let bucket = bucket.min(BUCKETS - 1);
    let units =
        if bucket < STEPS { bucket as u64 + 1 } else { ((STEPS + bucket % STEPS) as u64 + 1) << (bucket / STEPS - 1) };
    Duration::from_nanos(units << UNIT_BITS)
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, duration: Duration) {
        let n = &mut self.buckets[bucket(duration)];
        if *n < u32::MAX {
            *n += 1;
            self.count += 1;
        }
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.saturating_add(*theirs);
        }
        self.count = self.buckets.iter().map(|n| u64::from(*n)).sum();
    }

    /// Forgets half, `times` times.
    pub fn halve(&mut self, times: u32) {
        self.buckets.iter_mut().for_each(|n| *n = n.checked_shr(times).unwrap_or(0));
        self.count = self.buckets.iter().map(|n| u64::from(*n)).sum();
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What this share of them did not exceed, as far as buckets tell; the longest one when they are few. None when there are none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        let found = self.buckets.iter().position(|n| {
            seen += u64::from(*n);
            seen >= rank
        })?;
        Some(end(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_hold_what_they_say() {
        for b in 0..BUCKETS - 1 {
            assert_eq!(bucket(end(b) - Duration::from_nanos(1)), b);
            assert_eq!(bucket(end(b)), b + 1);
            assert!(end(b + 1) > end(b));
            assert!(b < STEPS || end(b + 1).as_nanos() * 100 <= end(b).as_nanos() * 114, "bucket {b} is too wide");
        }
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert!(end(BUCKETS - 1) > Duration::from_secs(120));
    }

    #[test]
    fn quantiles_are_those_of_what_was_counted() {
        let mut h = Histogram::default();
        assert_eq!(h.quantile(0.99), None);
        for ms in 1..=1000 {
            h.add(Duration::from_millis(ms));
        }
        let about = |q: f64, ms: u64| {
            let found = h.quantile(q).unwrap();
            let wanted = Duration::from_millis(ms);
            assert!(found >= wanted && found <= wanted * 115 / 100, "{q}: {found:?} instead of {wanted:?}");
        };
        about(0.5, 500);
        about(0.99, 990);
        about(1.0, 1000);
        about(0.0, 1);
        let mut twice = h.clone();
        twice.merge(&h);
        assert_eq!((twice.count(), twice.quantile(0.5)), (2000, h.quantile(0.5)));
        twice.halve(1);
        assert_eq!((twice.count(), twice.quantile(0.9)), (1000, h.quantile(0.9)));
        twice.halve(200);
        assert_eq!((twice.count(), twice.quantile(0.9)), (0, None));
    }
}
