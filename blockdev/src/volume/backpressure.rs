//! How fast hosts may write while space is short: as fast as room is made, and slower the less there is. `docs/design/0019-back-pressure.md` has the rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Engine;
use super::space::Space;
use crate::error::Result;
use crate::format::record::Stream;
use crate::units::BLOCK_SIZE;

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
/// Longest wait for one piece of a write. Longer ones are due to the size of what is written at once, and the write buffer bounds that.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// What is known at one time.
#[derive(Clone, Copy)]
struct Look {
    at: Duration,
    /// Bytes that could be written to segments: free ones, those that the next checkpoint gives back, and what is left of the open ones.
    room: u64,
    /// Bytes hosts have written.
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
    /// Bytes stored for each byte written.
    ratio: Option<f64>,
    /// When what was let in so far will have been written at the rates of then.
    next: Duration,
}

impl Curve {
    /// Takes a look. `short` tells whether room is being made as fast as can be.
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
        let taken = now.taken.saturating_sub(last.taken) as f64;
        let stored = now.stored.saturating_sub(last.stored) as f64;
        if taken > 0.0 {
            let sample = (stored / taken).clamp(STORED_MIN, 1.0);
            let ratio = self.ratio.get_or_insert(sample);
            *ratio += weight * (sample - *ratio);
        }
        if !short {
            // What is gained is not known; what was taken without being slowed down says where to begin.
            self.gain.get_or_insert(taken / seconds * FIRST);
            return;
        }
        let change = now.room as f64 - last.room as f64;
        let sample = ((stored + change) / self.ratio.unwrap_or(1.0) / seconds).max(0.0);
        let gain = self.gain.get_or_insert(sample);
        *gain += weight * (sample - *gain);
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
        let begin = self.next.clamp(now, now + WAIT_MAX);
        self.next = begin + Duration::from_secs_f64(bytes as f64 / rate);
        begin - now
    }
}

/// Slows hosts down.
#[derive(Default)]
pub struct BackPressure {
    curve: Mutex<Curve>,
    /// Bytes that were stored of what hosts wrote.
    pub stored: AtomicU64,
}

impl Engine {
    /// Waits as long as a write of so many blocks is to be held back because space is short.
    pub(super) async fn hold_back(self: &Arc<Self>, space: &Space, blocks: usize) -> Result<()> {
        let left = space.left();
        let now = self.env.now();
        let wait = {
            let mut curve = self.back_pressure.curve.lock();
            if curve.last.is_none_or(|last| now.saturating_sub(last.at) >= LOOK.0) {
                curve.look(self.look(now, space), left < 1.0);
            }
            curve.rate(left).map(|rate| curve.wait(now, blocks * BLOCK_SIZE, rate))
        };
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            self.env.sleep(wait).await;
        }
        self.check_alive()
    }

    fn look(&self, at: Duration, space: &Space) -> Look {
        let open = self.open_room(Stream::Data) + self.open_room(Stream::Cold) + self.open_room(Stream::Meta);
        Look {
            at,
            room: space.soon_free() * space.segment + open,
            taken: self.counters.host_write_bytes.load(Ordering::Relaxed),
            stored: self.back_pressure.stored.load(Ordering::Relaxed),
        }
    }
}
