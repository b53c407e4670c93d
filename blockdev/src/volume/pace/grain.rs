//! How long requests of background work to disks are while hosts use the same disks: about as short as those of hosts, so that one of theirs that meets one
//! of ours waits no longer than for another host's. On disks for which the number of requests counts and not their length, they stay long.
//!
//! Pure, as the controller.

use std::time::Duration;

/// Most bytes of a request: a disk is kept from hosts no longer than for a long request of theirs.
pub const GRAIN_MAX: usize = 128 << 10;
/// Least bytes of a request.
const GRAIN_MIN: usize = 16 << 10;
/// So much longer than hosts' slowest reads is never too long.
const SLACK: Duration = Duration::from_micros(100);
/// Requests that a decision needs.
const SAMPLES: u64 = 48;
/// Longer ones are tried again after so many pauses.
const TRY_AFTER: u32 = 8;

/// The length of requests.
pub struct Grain {
    bytes: usize,
    /// The least it was.
    least: usize,
    ended: u64,
    took: Duration,
    pauses: u32,
}

impl Default for Grain {
    fn default() -> Self {
        Self { bytes: GRAIN_MAX, least: GRAIN_MAX, ended: 0, took: Duration::ZERO, pauses: 0 }
    }
}

impl Grain {
    /// Most bytes of a request.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Requests of at most `most` bytes have ended, which took so long all together. `slow`: what the slowest hundredth of hosts' reads takes without background work:
    /// not what is usual, since most may be answered from memory.
    /// Whether they are to be shorter from now on than ever before.
    pub fn observe(&mut self, most: usize, (ended, took): (u64, Duration), slow: Option<Duration>) -> bool {
        // Others began before the last decision.
        if most != self.bytes {
            return false;
        }
        self.ended += ended;
        self.took += took;
        if self.ended < SAMPLES {
            return false;
        }
        let each = self.took.div_f64(self.ended as f64);
        if slow.is_some_and(|slow| each > slow + SLACK) {
            self.bytes = (self.bytes / 2).max(GRAIN_MIN);
        }
        (self.ended, self.took) = (0, Duration::ZERO);
        let shorter = self.bytes < self.least;
        self.least = self.least.min(self.bytes);
        shorter
    }

    /// Hosts were alone for a while: from time to time longer ones are tried again.
    pub fn paused(&mut self) {
        self.pauses += 1;
        if self.pauses.is_multiple_of(TRY_AFTER) {
            self.bytes = (self.bytes * 2).min(GRAIN_MAX);
        }
        (self.ended, self.took) = (0, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of the length on a disk of so many bytes a second that takes so long for each request besides.
    fn settle(bytes_per_s: f64, each: Duration) -> Vec<usize> {
        let time = |bytes: usize| each + Duration::from_secs_f64(bytes as f64 / bytes_per_s);
        let mut grain = Grain::default();
        let mut seen = vec![];
        for round in 0..400 {
            let ended = (10, time(grain.bytes()) * 10);
            grain.observe(grain.bytes(), ended, Some(time(4096) * 3 / 2));
            if round % 100 == 99 {
                seen.push(grain.bytes());
                (0..TRY_AFTER).for_each(|_| grain.paused());
            }
        }
        seen
    }

    #[test]
    fn requests_are_as_short_as_hosts_on_flash_and_long_on_hard_disks() {
        let (ms, us) = (Duration::from_millis, Duration::from_micros);
        assert_eq!(settle(100e6, ms(6)), [GRAIN_MAX; 4], "a hard disk");
        assert_eq!(settle(500e6, us(120)), [64 << 10; 4], "flash behind SATA");
        assert_eq!(settle(60e6, us(300)), [16 << 10; 4], "slow flash");
        assert_eq!(settle(5e9, us(80)), [GRAIN_MAX; 4], "fast flash");
    }

    #[test]
    fn nothing_is_decided_without_knowing_hosts_or_from_what_began_before() {
        let mut grain = Grain::default();
        grain.observe(GRAIN_MAX, (1000, Duration::from_secs(10)), None);
        assert_eq!(grain.bytes(), GRAIN_MAX);
        grain.observe(GRAIN_MAX, (1000, Duration::from_secs(10)), Some(Duration::from_micros(100)));
        assert_eq!(grain.bytes(), GRAIN_MAX / 2);
        grain.observe(GRAIN_MAX, (1000, Duration::from_secs(10)), Some(Duration::from_micros(100)));
        assert_eq!(grain.bytes(), GRAIN_MAX / 2);
        grain.observe(GRAIN_MAX / 2, (SAMPLES - 1, Duration::from_secs(10)), Some(Duration::from_micros(100)));
        assert_eq!(grain.bytes(), GRAIN_MAX / 2);
        let slow = |grain: &mut Grain| {
            let took = (SAMPLES, Duration::from_secs(10));
            (0..5).filter(|_| grain.observe(grain.bytes(), took, Some(Duration::from_micros(100)))).count()
        };
        assert_eq!((slow(&mut grain), grain.bytes()), (2, GRAIN_MIN));
        (1..TRY_AFTER).for_each(|_| grain.paused());
        assert_eq!(grain.bytes(), GRAIN_MIN);
        grain.paused();
        assert_eq!(grain.bytes(), 2 * GRAIN_MIN);
        assert_eq!((slow(&mut grain), grain.bytes()), (0, GRAIN_MIN), "nothing new was learned");
    }
}
