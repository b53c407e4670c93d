//! The pool's clock, by which snapshots expire. See `docs/design/0016-protection.md`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Engine;
use crate::lock::{Mutex, Rank};

/// Seconds after which what it shows is written down again.
const KEPT_AFTER_S: u64 = 600;

/// Goes with real time while the pool is open and something expires, whatever the machine's clock shows.
pub struct PoolClock(Mutex<Reading>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Since 1970.
    time: Duration,
    /// The monotonic clock then.
    taken: Duration,
}

impl PoolClock {
    /// A clock that shows `at_s` seconds since 1970 when the monotonic clock shows `now`.
    pub fn new(at_s: u64, now: Duration) -> Self {
        Self(Mutex::new(Rank::Progress, Reading { time: Duration::from_secs(at_s), taken: now }))
    }

    /// Seconds since 1970. `machine_s` is what the machine's clock shows; while nothing expires (`bound` is false) the pool's shows the same.
    pub fn read(&self, machine_s: u64, now: Duration, bound: bool) -> u64 {
        let mut reading = self.0.lock();
        // Whoever waited for the lock has an older moment: time is counted once.
        let now = now.max(reading.taken);
        let time = match bound {
            false => Duration::from_secs(machine_s),
            true => reading.time + (now - reading.taken),
        };
        *reading = Reading { time, taken: now };
        time.as_secs()
    }
}

/// While one of these lives the pool's clock does not follow the machine's: something is about to expire by it.
pub struct Bound<'a>(&'a Engine);

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        self.0.clock_bound.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Engine {
    /// What the pool's clock shows, in seconds since 1970.
    pub fn clock_s(&self) -> u64 {
        let (expires, at_s) = {
            let state = self.state.read();
            (!state.expiring.is_empty(), state.clock_s)
        };
        let now = self.env.now();
        let clock = self.clock.get_or_init(|| PoolClock::new(at_s, now));
        clock.read(self.env.wall_clock_s(), now, expires || self.clock_bound.load(Ordering::Acquire) > 0)
    }

    /// Keeps the machine's clock from mattering until what expires by the pool's is in the state.
    pub fn bind_clock(&self) -> Bound<'_> {
        // What it shows now it goes on from.
        self.clock_s();
        self.clock_bound.fetch_add(1, Ordering::AcqRel);
        Bound(self)
    }

    /// Whether it is time for a checkpoint to write down what the pool's clock shows, which the last one did at `kept_s`.
    pub(super) fn clock_is_to_be_kept(&self, kept_s: u64) -> bool {
        !self.state.read().expiring.is_empty() && self.clock_s() > kept_s + KEPT_AFTER_S
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_goes_with_real_time_whatever_the_machine_shows() {
        let clock = PoolClock::new(1000, s(0));
        for (now, machine) in [(1, 1001), (DAY, 1 << 40), (2 * DAY, 0), (3 * DAY, 1000)] {
            assert_eq!(clock.read(machine, s(now), true), 1000 + now);
        }
        // Fractions add up.
        let mut read = 0;
        for ms in 0..=10_000 {
            read = clock.read(0, s(3 * DAY) + Duration::from_millis(ms), true);
        }
        assert_eq!(read, 1000 + 3 * DAY + 10);
    }

    #[test]
    fn time_is_counted_once_however_many_look() {
        let clock = PoolClock::new(0, s(0));
        let begun = std::time::Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        clock.read(0, begun.elapsed() * 1000, true);
                    }
                });
            }
        });
        let passed = (begun.elapsed() * 1000).as_secs();
        assert!(clock.read(0, begun.elapsed() * 1000, true) <= passed + 1);
        // A look from before the newest one takes nothing back.
        let newest = clock.read(0, s(1_000_000), true);
        assert_eq!(clock.read(0, s(999_000), true), newest);
        assert_eq!(clock.read(0, s(1_000_000), true), newest);
    }

    #[test]
    fn while_nothing_expires_it_is_the_machines() {
        let clock = PoolClock::new(1000, s(0));
        assert_eq!(clock.read(77, s(5), false), 77);
        assert_eq!(clock.read(1 << 33, s(6), false), 1 << 33);
        assert_eq!(clock.read(77, s(10), true), (1 << 33) + 4);
    }
}
