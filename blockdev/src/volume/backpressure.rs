//! How fast hosts may write while space is short: as fast as room is made, and slower the less there is. `docs/design/0019-back-pressure.md` has the rules.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Engine;
use super::space::Space;
use crate::error::Result;
use crate::format::record::{SegmentRecord, Stream};
use crate::units::SegmentId;

/// Least time between two looks at what was gained, and how long one may be to say something.
const LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How long what was gained is remembered, about.
const MEMORY_S: f64 = 2.0;
/// Bytes a second that hosts may write at least: where less is gained they come to the edge, and wait there for what there is.
const RATE_MIN: f64 = (1 << 20) as f64;
/// Share of what hosts wrote before that they are slowed down to until it is known what is gained.
const FIRST: f64 = 0.25;
/// Share of what hosts write that is taken to be stored at least.
const STORED_MIN: f64 = 0.02;
/// Longest wait of a write of a MiB or less; of a larger one so much for each MiB, up to eight times as long.
const WAIT_MAX: Duration = Duration::from_millis(250);
/// See [`WAIT_MAX`].
const PIECE: f64 = (1 << 20) as f64;
/// See [`WAIT_MAX`].
const PIECES_MAX: f64 = 8.0;
/// What was measured longer ago says nothing any more.
const OLD: Duration = Duration::from_secs(60);

/// Shorter waits are not worth it: timers are no finer. They add up to one that is.
const GRAIN: Duration = Duration::from_millis(1);
/// What a timer that came late took is given back, up to this.
const CREDIT: Duration = Duration::from_millis(5);

/// What is known at one time.
#[derive(Clone, Copy)]
struct Look {
    at: Duration,
    /// Bytes that could be written to segments: free ones, those that the next checkpoint gives back, what is left of the open ones, and of those that
    /// are being emptied as much as has been moved of what was live.
    room: u64,
    /// Bytes that hosts were let write.
    taken: u64,
    /// Bytes that were stored of these.
    stored: u64,
}

/// The controller.
#[derive(Default)]
struct Curve {
    last: Option<Look>,
    /// Bytes a second that hosts could write and leave the room as it is.
    gain: Option<f64>,
    /// When that was last measured.
    measured: Option<Duration>,
    /// Bytes a second that hosts wrote while nothing held them back.
    free: Option<f64>,
    /// Bytes written and stored of late.
    sums: (f64, f64),
    /// When what was let in so far will have been written at the rates of then.
    next: Duration,
}

impl Curve {
    /// Takes a look. `short` tells whether hosts are held back, and room is made as fast as can be.
    fn look(&mut self, now: Look, short: bool) {
        let Some(last) = self.last else {
            self.last = Some(now);
            return;
        };
        let passed = now.at.saturating_sub(last.at);
        if passed < LOOK.0 {
            return;
        }
        self.last = Some(now);
        if passed > LOOK.1 {
            return;
        }
        let seconds = passed.as_secs_f64();
        let weight = 1.0 - (-seconds / MEMORY_S).exp();
        let (taken, stored) =
            (now.taken.saturating_sub(last.taken) as f64, now.stored.saturating_sub(last.stored) as f64);
        let kept = 1.0 - weight;
        self.sums = (self.sums.0 * kept + taken, self.sums.1 * kept + stored);
        if !short {
            // What is gained is not known; what was taken without being held back says where to begin.
            let free = self.free.get_or_insert(taken / seconds);
            *free += weight * (taken / seconds - *free);
            if self.measured.is_none_or(|at| now.at.saturating_sub(at) > OLD) {
                self.gain = Some(*free * FIRST);
            }
            return;
        }
        let ratio = if self.sums.0 > 0.0 { (self.sums.1 / self.sums.0).clamp(STORED_MIN, 1.0) } else { 1.0 };
        let change = now.room as f64 - last.room as f64;
        let sample = ((stored + change) / ratio / seconds).max(0.0);
        let gain = self.gain.get_or_insert(sample);
        *gain += weight * (sample - *gain);
        self.measured = Some(now.at);
    }

    /// Bytes a second that may be written with a share of the room left, from 0 (the edge) to 1 (hosts are not slowed down).
    fn rate(&self, left: f64) -> Option<f64> {
        if left >= 1.0 {
            return None;
        }
        let gain = self.gain?;
        Some((gain * left / (1.0 - left)).max(RATE_MIN))
    }

    /// How long so many bytes wait.
    fn wait(&mut self, now: Duration, bytes: usize, rate: f64) -> Duration {
        let most = WAIT_MAX.mul_f64((bytes as f64 / PIECE).clamp(1.0, PIECES_MAX));
        let begin = self.next.clamp(now.saturating_sub(CREDIT), now + most);
        self.next = begin + Duration::from_secs_f64(bytes as f64 / rate);
        Some(begin.saturating_sub(now)).filter(|wait| *wait >= GRAIN).unwrap_or_default()
    }
}

/// Slows hosts down.
#[derive(Default)]
pub struct BackPressure {
    curve: Mutex<Curve>,
    /// Bytes that hosts were let write.
    taken: AtomicU64,
    /// Bytes that were stored of what hosts wrote.
    pub stored: AtomicU64,
    /// Segments that are being emptied, as they were at first.
    victims: Mutex<Vec<Victim>>,
}

struct Victim {
    id: SegmentId,
    incarnation: u64,
    live: u64,
}

impl BackPressure {
    /// A segment is being emptied; false when it is already.
    pub fn begin(&self, s: &SegmentRecord) -> bool {
        let mut victims = self.victims.lock();
        let fresh = victims.iter().all(|v| v.incarnation != s.incarnation);
        if fresh {
            victims.push(Victim { id: s.id, incarnation: s.incarnation, live: s.live });
        }
        fresh
    }

    /// It no longer is: what was emptied counts by itself.
    pub fn end(&self, s: &SegmentRecord) {
        self.victims.lock().retain(|v| v.incarnation != s.incarnation);
    }
}

impl Engine {
    /// Waits as long as a write of so many bytes is to be held back because space is short. Not with a lock held: others would wait as well.
    pub(super) async fn hold_back(&self, bytes: usize) -> Result<()> {
        let space = self.space();
        let now = self.env.now();
        self.back_pressure.taken.fetch_add(bytes as u64, Ordering::Relaxed);
        let wait = {
            let mut curve = self.back_pressure.curve.lock();
            let held = self.holds_back(&space);
            if curve.last.is_none_or(|last| now.saturating_sub(last.at) >= LOOK.0) {
                curve.look(self.look(now, &space), held);
            }
            let rate = curve.rate(space.left()).filter(|_| held);
            rate.map(|rate| curve.wait(now, bytes, rate))
        };
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            self.env.sleep(wait).await;
        }
        self.check_alive()
    }

    /// Whether space is short and waiting helps: room is being made.
    fn holds_back(&self, space: &Space) -> bool {
        space.left() < 1.0 && self.gives_back() && (space.emptied > 0 || self.is_cleaning.load(Ordering::Acquire))
    }

    /// Bytes a second that hosts may write now; none when they are not held back.
    pub fn held_back_to(&self, space: &Space) -> Option<u64> {
        self.back_pressure.curve.lock().rate(space.left()).filter(|_| self.holds_back(space)).map(|rate| rate as u64)
    }

    fn look(&self, at: Duration, space: &Space) -> Look {
        let open = self.open_room(Stream::Data) + self.open_room(Stream::Cold) + self.open_room(Stream::Meta);
        let victims = self.back_pressure.victims.lock();
        let state = self.state.read();
        let moved = |v: &Victim| {
            let now =
                state.segments.get(v.id).filter(|s| s.record.incarnation == v.incarnation && s.record.live > 0)?;
            let share = 1.0 - now.record.live as f64 / v.live.max(1) as f64;
            Some((share.max(0.0) * space.segment as f64) as u64)
        };
        let begun: u64 = victims.iter().filter_map(moved).sum();
        Look {
            at,
            room: space.soon_free() * space.segment + open + begun,
            taken: self.back_pressure.taken.load(Ordering::Relaxed),
            stored: self.back_pressure.stored.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn hosts_get_what_is_gained_where_half_of_the_window_is_left() {
        let curve = Curve { gain: Some(50e6), ..Curve::default() };
        assert_eq!(curve.rate(1.0), None);
        assert_eq!(curve.rate(7.0), None);
        assert_eq!(curve.rate(0.5), Some(50e6));
        assert!(curve.rate(0.9).unwrap() > 400e6);
        assert!(curve.rate(0.1).unwrap() < 6e6);
        assert_eq!(curve.rate(0.0), Some(RATE_MIN));
        assert_eq!(Curve::default().rate(0.5), None, "nothing is known");
    }

    #[test]
    fn writes_take_their_turns_at_the_rate_and_none_waits_for_long() {
        let mut curve = Curve::default();
        let now = ms(1000);
        let waits: Vec<Duration> = (0..8).map(|_| curve.wait(now, MIB as usize, (10 * MIB) as f64)).collect();
        assert_eq!(waits, [0, 95, 195, 250, 250, 250, 250, 250].map(ms));
        // Larger ones may wait longer, as what is in front of them does.
        assert_eq!(curve.wait(now, 4 * MIB as usize, (10 * MIB) as f64), ms(350));
        // Time that nobody used is not saved up, but for the little that a timer may be late.
        assert_eq!(curve.wait(ms(9000), MIB as usize, (10 * MIB) as f64), ms(0));
        assert_eq!(curve.wait(ms(9050), MIB as usize, (10 * MIB) as f64), ms(50) - CREDIT);
    }

    /// One write of 4 KiB after the other, 20 microseconds each, with timers of whole milliseconds that are late by half of one.
    #[test]
    fn one_writer_gets_the_rate_whatever_timers_do() {
        for rate in [4 * MIB, 20 * MIB, 100 * MIB] {
            let mut curve = Curve::default();
            let (mut now, mut taken) = (ms(5000), 0);
            while now < ms(7000) {
                let wait = curve.wait(now, 4096, rate as f64);
                if !wait.is_zero() {
                    now += ms(wait.as_millis() as u64 + 1) + Duration::from_micros(500);
                }
                now += Duration::from_micros(20);
                taken += 4096;
            }
            let share = taken as f64 / (2 * rate) as f64;
            assert!((0.95..1.05).contains(&share), "{rate}: {share}");
        }
    }

    #[test]
    fn what_is_gained_counts_as_hosts_see_it() {
        let mut curve = Curve::default();
        let look =
            |at, room, taken, stored| Look { at: ms(at), room: room * MIB, taken: taken * MIB, stored: stored * MIB };
        curve.look(look(0, 1000, 0, 0), false);
        curve.look(look(1000, 900, 200, 100), false);
        assert_eq!(curve.gain, Some((200 * MIB) as f64 * FIRST), "a first guess");
        // A quarter of a second at least makes a look.
        curve.look(look(1100, 0, 1000, 1000), true);
        assert_eq!(curve.last.unwrap().at, ms(1000));
        // 40 MiB a second are stored and the room grows by 10: 50, or 100 as hosts see it.
        for second in 1..30 {
            curve.look(look(1000 + 1000 * second, 900 + 10 * second, 200 + 80 * second, 100 + 40 * second), true);
        }
        assert!((curve.gain.unwrap() / (100 * MIB) as f64 - 1.0).abs() < 0.01, "{:?}", curve.gain);
        // Nobody was there for long: that says nothing.
        let gain = curve.gain;
        curve.look(look(100_000, 9000, 3000, 2000), true);
        assert_eq!(curve.gain, gain);
    }

    /// A cleaner that gains so much a second, and gives it back every so many milliseconds; hosts that write as fast as they may, up to a limit. Returns
    /// what they wrote a second in the last of 30 seconds, and the least share of the window that was left from the third on.
    fn play(gain: u64, every_ms: u64, limit: u64) -> (u64, f64) {
        const WINDOW: f64 = (64 * MIB) as f64;
        const PIECE: u64 = 64 << 10;
        let mut curve = Curve::default();
        let (mut free, mut emptied, mut taken) = (2.0 * WINDOW, 0.0, 0);
        let (mut next, mut before, mut least) = (Duration::ZERO, 0, f64::MAX);
        for step in 0..30_000 {
            let now = ms(step);
            let left = (free + emptied) / WINDOW;
            if left < 1.25 {
                emptied += gain as f64 / 1e3;
            }
            if step % every_ms == 0 {
                (free, emptied) = (free + emptied, 0.0);
            }
            while next <= now && free > 0.0 {
                let left = (free + emptied) / WINDOW;
                curve.look(Look { at: now, room: (free + emptied) as u64, taken, stored: taken }, left < 1.0);
                let wait = curve.rate(left).map_or(Duration::ZERO, |rate| curve.wait(now, PIECE as usize, rate));
                free -= PIECE as f64;
                taken += PIECE;
                next = (now + wait).max(next + Duration::from_secs_f64(PIECE as f64 / limit as f64));
            }
            if step == 29_000 {
                before = taken;
            }
            if step > 3000 {
                least = least.min((free + emptied) / WINDOW);
            }
        }
        (taken - before, least)
    }

    #[test]
    fn the_room_settles_within_the_window() {
        for (gain, every_ms) in [(100 * MIB, 10), (100 * MIB, 100), (50 * MIB, 200), (20 * MIB, 500), (8 * MIB, 1000)] {
            let (rate, least) = play(gain, every_ms, 1000 * MIB);
            let share = rate as f64 / gain as f64;
            assert!((0.85..1.15).contains(&share), "{gain} every {every_ms}: {share}");
            assert!(least > 0.1, "{gain} every {every_ms}: {least} left");
        }
        // Who wants less than is gained gets it.
        let (rate, least) = play(100 * MIB, 100, 30 * MIB);
        assert!(rate >= 29 * MIB && least >= 1.0, "{rate} {least}");
    }
}
