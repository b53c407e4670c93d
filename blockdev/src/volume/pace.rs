//! The pace of background work: rebuild, scrub and cleaner take turns, and hosts come first. `docs/design/0007-pace.md` has the rules.

pub(super) mod control;
mod grain;
mod histogram;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Engine;
use crate::redundancy::requests::Requests;
use crate::report::{HostLatency, Priority};
use control::{Class, Control, Hosts, Kind, Verdict};
use grain::GRAIN_MAX;

/// The controller of one engine.
pub struct Pace {
    control: Mutex<Control>,
    /// Host requests under way.
    asked: AtomicU32,
    /// Wakes what waits for its turn.
    ended: Notify,
}

impl Pace {
    /// A controller with the limits of a priority.
    pub fn new(priority: Priority) -> Self {
        Self { control: Mutex::new(Control::new(priority)), asked: AtomicU32::new(0), ended: Notify::new() }
    }

    /// Wakes everything that waits.
    pub(super) fn interrupt(&self) {
        self.ended.notify_waiters();
    }
}

/// A host request under way.
pub(super) struct Asked<'a> {
    engine: &'a Engine,
    begun: Duration,
}

impl Asked<'_> {
    /// It was answered.
    pub(super) fn answered(self, kind: Kind) {
        let now = self.engine.env.now();
        // A sample more or less makes no difference; hosts never wait for the lock.
        if let Some(mut control) = self.engine.pace.control.try_lock() {
            control.observe(kind, self.begun, now);
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.engine.pace.asked.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A piece of background work under way: it ends when this is dropped.
pub(super) struct Turn<'a> {
    engine: &'a Engine,
    class: Class,
    hindered: bool,
    /// How it is to read and write.
    pub(super) requests: Requests,
}

impl Turn<'_> {
    /// How many bytes of each column to work on, where `usual` is best without hosts. A multiple of `strip`.
    pub(super) fn column_bytes(&self, usual: u64, strip: u64) -> u64 {
        if self.hindered { usual.min((GRAIN_MAX as u64 / strip).max(1) * strip) } else { usual }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let now = self.engine.env.now();
        let mut control = self.engine.pace.control.lock();
        control.requested(now, self.requests.most(), self.requests.ended());
        control.end(now, self.class, self.hindered);
        drop(control);
        self.engine.pace.ended.notify_waiters();
    }
}

impl Engine {
    /// A host asks for something it will wait for.
    pub(super) fn asked(&self) -> Asked<'_> {
        self.pace.asked.fetch_add(1, Ordering::Relaxed);
        Asked { engine: self, begun: self.env.now() }
    }

    fn hosts(&self) -> Hosts {
        let c = &self.counters;
        let requests = [&c.host_reads, &c.host_writes, &c.host_flushes];
        let requests = requests.iter().fold(0, |sum, n| n.load(Ordering::Relaxed).wrapping_add(sum));
        Hosts { requests, under_way: self.pace.asked.load(Ordering::Relaxed) }
    }

    /// Waits until a piece of background work may begin. Not inside a pass of the gate: checkpoints would wait as well. Ends at once when the
    /// pool is stopped.
    pub(super) async fn turn(&self, class: Class) -> Turn<'_> {
        loop {
            let ended = self.pace.ended.notified();
            let now = self.env.now();
            let (verdict, most) = {
                let mut control = self.pace.control.lock();
                (control.ask(now, class, self.segments_at_once(), self.hosts()), control.grain())
            };
            match verdict {
                Verdict::Go { hindered } => {
                    let requests = if hindered { Requests::new(most) } else { Requests::whole() };
                    return Turn { engine: self, class, hindered, requests };
                }
                Verdict::Wait(_) if self.is_dead() => {
                    // What it does next will find the pool stopped.
                    self.pace.control.lock().begin(now, class, false);
                    return Turn { engine: self, class, hindered: false, requests: Requests::whole() };
                }
                Verdict::Wait(wait) => {
                    let timer = self.env.sleep(wait);
                    tokio::pin!(ended);
                    futures::future::select(ended, timer).await;
                }
            }
        }
    }

    /// What the cleaner's work is worth now: nothing but what is free, or all there is when hosts wait for it.
    pub(super) fn cleaning(&self) -> Class {
        Class::Cleaning { need: self.space().need() }
    }

    /// What hosts wait of late.
    pub fn host_latency(&self) -> HostLatency {
        let under_way = self.pace.asked.load(Ordering::Relaxed);
        self.pace.control.lock().host_latency(self.env.now(), under_way)
    }

    /// The share of its full speed that background work may take now; none when there is none.
    pub fn background_share(&self) -> Option<f64> {
        self.pace.control.lock().share(self.env.now())
    }
}

#[cfg(test)]
mod tests;
