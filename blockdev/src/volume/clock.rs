//! The pool's clock, by which snapshots expire. See `docs/design/0016-protection.md`.

use std::time::Duration;

use super::Engine;
use crate::lock::{Mutex, Rank};

/// Of the time that passes, the clock is at most this part faster or slower.
const SLEW: u32 = 4;
/// Seconds after which what it shows is written down again.
const KEPT_AFTER_S: u64 = 600;

/// Goes with real time while the pool is open and something expires, and follows the machine's clock, which anybody may set, only slowly.
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
        let machine = Duration::from_secs(machine_s);
        let mut reading = self.0.lock();
        let passed = now.saturating_sub(reading.taken);
        let time = match bound {
            false => machine,
            true => machine.clamp(reading.time + passed - passed / SLEW, reading.time + passed + passed / SLEW),
        };
        *reading = Reading { time, taken: now };
        time.as_secs()
    }
}

impl Engine {
    /// What the pool's clock shows, in seconds since 1970.
    pub fn clock_s(&self) -> u64 {
        let (bound, at_s) = self.clock_kept();
        let now = self.env.now();
        let clock = self.clock.get_or_init(|| PoolClock::new(at_s, now));
        clock.read(self.env.wall_clock_s(), now, bound)
    }

    /// Whether something goes by the pool's clock, and what it showed when that was last written down.
    fn clock_kept(&self) -> (bool, u64) {
        let state = self.state.read();
        (!state.expiring.is_empty(), state.clock_s)
    }

    /// Whether it is time to write down what the pool's clock shows.
    pub(super) fn clock_is_to_be_kept(&self) -> bool {
        let (bound, kept_s) = self.clock_kept();
        bound && self.clock_s() > kept_s + KEPT_AFTER_S
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
    fn a_right_clock_is_followed() {
        let clock = PoolClock::new(1000, s(0));
        let mut last = 1000;
        for now in 1..100 * DAY / 997 {
            let read = clock.read(1000 + now * 997, s(now * 997), true);
            assert_eq!(read, 1000 + now * 997);
            assert!(read >= last);
            last = read;
        }
    }

    #[test]
    fn a_clock_that_was_set_is_followed_slowly_and_never_backwards() {
        let clock = PoolClock::new(1000, s(0));
        // Set a year ahead: a day is a day and a quarter.
        for now in 1..=24 {
            clock.read(1000 + 365 * DAY, s(now * 3600), true);
        }
        assert_eq!(clock.read(1000 + 365 * DAY, s(DAY), true), 1000 + DAY + DAY / 4);
        // Set to long ago: it goes on, slower.
        let after = clock.read(0, s(2 * DAY), true);
        assert_eq!(after, 1000 + DAY + DAY / 4 + DAY * 3 / 4);
        // In the end it is what the machine's clock is.
        assert_eq!(clock.read(1000 + 3 * DAY, s(3 * DAY), true), 1000 + 3 * DAY);
    }

    #[test]
    fn many_short_looks_give_no_more_than_one() {
        let clock = PoolClock::new(0, s(0));
        let mut read = 0;
        for ms in 0..40_000 {
            read = clock.read(1 << 40, Duration::from_millis(ms), true);
        }
        assert!((49..=50).contains(&read), "{read}");
    }

    #[test]
    fn while_nothing_expires_it_is_the_machines() {
        let clock = PoolClock::new(1000, s(0));
        assert_eq!(clock.read(77, s(5), false), 77);
        assert_eq!(clock.read(1 << 33, s(6), false), 1 << 33);
        assert_eq!(clock.read(77, s(10), true), (1 << 33) + 3);
    }
}
