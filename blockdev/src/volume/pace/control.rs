//! How much background work may do now: decided by what hosts wait, against what they waited when there was none.
//!
//! Pure: the time is given to it. `docs/design/0007-pace.md` has the rules.

use std::time::Duration;

use super::grain::Grain;
use super::histogram::{Histogram, bucket};
use crate::report::{HostLatency, Priority};

/// Share of requests that may take longer than the bound: what is held down is the 99th percentile.
const LATE_SHARE: f64 = 0.01;
/// Below this many requests over the bound nothing is made of it.
const LATE_MIN: u64 = 3;
/// Least time between two decisions that slow down.
const SLOWER_AFTER: Duration = Duration::from_millis(100);
/// Least time between two decisions, and requests that one to go faster needs.
const FASTER_AFTER: Duration = Duration::from_millis(500);
/// See `FASTER_AFTER`.
const FASTER_SAMPLES: u64 = 100;
/// With fewer requests a decision waits for this long.
const FASTER_AT_LEAST: Duration = Duration::from_secs(2);
/// What is left of the share when hosts wait too long; while it was still rising for the first time.
const SLOWER: f64 = 0.7;
/// See `SLOWER`.
const SLOWER_FIRST: f64 = 0.5;
/// By how much the share grows with each decision to go faster since it was last too much, of which only so many count.
const FASTER: f64 = 0.05;
/// See `FASTER`.
const CALM_MAX: u32 = 6;
/// What is left of the factor of the policy, so that hosts stay below it.
const MARGIN: f64 = 0.8;
/// So much longer than without background work is never too long: on fast disks chance alone makes that difference.
const SLACK: Duration = Duration::from_micros(100);
/// Share while nothing survives the next failure; a quarter of the pieces at once is about half of the speed.
const FLOOR_GONE: f64 = 0.25;
/// Hosts count as idle when they asked for nothing for this long.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// Effects of background work are over so long after it ended.
const QUIET_AFTER: Duration = Duration::from_millis(200);
/// Samples that began earlier after a change say nothing about it.
const SETTLE: Duration = Duration::from_millis(100);
/// When there was none for this long, background work begins carefully again.
const RESTART_AFTER: Duration = Duration::from_secs(10);
/// Pauses for a look at what hosts get without background work: how often, while something is known and while it is not (or is old).
const PROBE_EVERY: Duration = Duration::from_secs(4);
/// See `PROBE_EVERY`.
const PROBE_FIRST: Duration = Duration::from_secs(1);
/// See `PROBE_FIRST`.
const BASELINE_OLD: Duration = Duration::from_secs(60);
/// Least and longest length of a pause, and the requests that end it earlier.
const PROBE_LEAST: Duration = Duration::from_millis(100);
/// See `PROBE_LEAST`.
const PROBE_MOST: Duration = Duration::from_millis(400);
/// See `PROBE_LEAST`.
const PROBE_SAMPLES: u64 = 100;
/// A pause ends so long after it began though something that cannot wait goes on.
const PROBE_GIVE_UP: Duration = Duration::from_millis(800);
/// Looks without background work that make up the baseline.
const LOOKS: usize = 4;
/// A look has at least so many requests, unless it is older than `LOOK_OLD`.
const LOOK_SAMPLES: u64 = 32;
/// How long a look takes while there is no background work.
const LOOK_LENGTH: Duration = Duration::from_secs(5);
/// See `LOOK_SAMPLES`.
const LOOK_OLD: Duration = Duration::from_secs(60);
/// Least number of requests that a baseline is made of.
const BASELINE_SAMPLES: u64 = 20;
/// Latencies that are shown lose half of their weight in this time.
const RECENT_HALF: Duration = Duration::from_secs(5);
/// Most seconds of a piece that are held against those to come, when a disk made it wait.
const AHEAD_MAX: f64 = 0.5;
/// Longest time until what waits for its turn asks again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What hosts wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data that was read.
    Read,
    /// That what was written is durable.
    Flush,
}

/// Who works in the background.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Class {
    /// Restores redundancy of what survives so many more failures.
    Redundancy { left: usize },
    /// What can wait: nothing is safer or larger before it has been done.
    Upkeep,
    /// Makes room; from 0 (there is enough) to 1 (hosts wait for it).
    Cleaning { need: f64 },
}

impl Class {
    fn index(self) -> usize {
        match self {
            Self::Redundancy { .. } => 0,
            Self::Upkeep => 1,
            Self::Cleaning { .. } => 2,
        }
    }
}

/// What hosts asked for so far, and how many requests are under way now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    /// Requests of all kinds since the pool was opened.
    pub requests: u64,
    /// Reads and flushes that wait for their answer.
    pub under_way: u32,
}

/// What is said to a piece of work that wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Begin; hindered: small pieces, please.
    Go { hindered: bool },
    /// Ask again after this time, or when another piece has ended.
    Wait(Duration),
}

/// Limits that follow from the priority of background work.
#[derive(Clone, Copy, Debug)]
struct Policy {
    /// The 99th percentile of what hosts wait may be so many times as long as without background work.
    factor: f64,
    /// Least share.
    floor: f64,
    /// The share to begin with while hosts are there.
    start: f64,
    /// The share while nothing is known of what hosts get without background work.
    unknown: f64,
}

impl Policy {
    fn of(priority: Priority) -> Self {
        match priority {
            Priority::Low => Self { factor: 1.5, floor: 0.02, start: 0.06, unknown: 0.12 },
            Priority::Normal => Self { factor: 2.0, floor: 0.04, start: 0.12, unknown: 0.25 },
            Priority::High => Self { factor: 4.0, floor: 0.25, start: 0.5, unknown: 1.0 },
        }
    }
}

/// What is known of one kind of requests.
#[derive(Default)]
struct Latency {
    /// Of late, for people.
    recent: Histogram,
    /// Without background work: the looks before, and the one under way.
    looks: [Histogram; LOOKS],
    at: usize,
    look_began: Duration,
    /// Slower ones are late, by bucket.
    bound: Option<usize>,
    /// The 99th percentile without background work.
    slow: Option<Duration>,
    /// Requests since the last decision, and how many of them were late.
    asked: u64,
    late: u64,
}

impl Latency {
    fn look(&self) -> &Histogram {
        &self.looks[self.at]
    }

    /// Ends a look that tells enough, and forgets the oldest one.
    fn end_look(&mut self, now: Duration) {
        let n = self.look().count();
        if n < LOOK_SAMPLES && (n == 0 || now.saturating_sub(self.look_began) < LOOK_OLD) {
            return;
        }
        self.at = (self.at + 1) % LOOKS;
        self.looks[self.at] = Histogram::default();
        self.look_began = now;
    }

    fn set_bound(&mut self, policy: Policy) {
        let mut all = Histogram::default();
        self.looks.iter().for_each(|look| all.merge(look));
        if all.count() < BASELINE_SAMPLES {
            (self.bound, self.slow) = (None, None);
            return;
        }
        // As high as chance would have it: of two humps next to the percentile the lower one must not become the bound.
        let beyond = all.count() as f64 * LATE_SHARE;
        let share = (beyond - beyond.sqrt()).max(0.0) / all.count() as f64;
        let base = all.quantile(1.0 - share).unwrap_or_default();
        self.slow = Some(base);
        self.bound = Some(bucket(base.mul_f64((policy.factor * MARGIN).max(1.0)).max(base + SLACK)));
    }

    fn is_late(&self) -> bool {
        self.late >= LATE_MIN && self.late as f64 > self.asked as f64 * LATE_SHARE * 1.5
    }
}

/// A pause of all background work.
#[derive(Clone, Copy)]
struct Probe {
    wanted: Duration,
    /// When the last piece that was under way ended.
    since: Option<Duration>,
}

/// Work of one class.
#[derive(Clone, Copy, Default)]
struct Account {
    under_way: usize,
    /// Of those, pieces that were told to be small.
    hindered: usize,
    /// Pieces that may be under way at the same time, on average.
    level: f64,
    /// How far ahead of that it is, in seconds of a piece.
    ahead: f64,
    settled: Duration,
}

impl Account {
    fn settle(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.settled).as_secs_f64();
        // What was not used is not saved up.
        self.ahead = (self.ahead + passed * (self.hindered as f64 - self.level)).clamp(0.0, AHEAD_MAX);
        self.settled = now;
    }
}

/// The controller.
pub struct Control {
    policy: Policy,
    /// Pieces that may be under way at the same time, as a share of what keeps all disks busy.
    share: f64,
    /// What was given last.
    given: f64,
    /// Whether nothing was too much yet since it began.
    rising: bool,
    /// Decisions to go faster since it was last too much.
    calm: u32,
    kinds: [Latency; 2],
    grain: Grain,
    accounts: [Account; 3],
    /// When a piece was last under way; none before the first.
    busy: Option<Duration>,
    /// When redundancy was last worked on.
    restoring: Option<Duration>,
    decided: Duration,
    /// Samples that began earlier are not judged.
    valid: Duration,
    probe: Option<Probe>,
    probe_due: Duration,
    requests: u64,
    /// When a piece of work last asked for its turn.
    asked: Option<Duration>,
    /// When a host last got an answer.
    answered: Option<Duration>,
    /// When hosts were last seen at work.
    active: Option<Duration>,
    /// When hosts were last seen without background work.
    quiet: Option<Duration>,
    halved: Duration,
}

impl Control {
    /// A controller that knows nothing yet.
    pub fn new(priority: Priority) -> Self {
        let policy = Policy::of(priority);
        Self {
            policy,
            share: policy.start,
            given: policy.start,
            rising: true,
            calm: 0,
            kinds: Default::default(),
            grain: Grain::default(),
            accounts: Default::default(),
            busy: None,
            restoring: None,
            decided: Duration::ZERO,
            valid: Duration::ZERO,
            probe: None,
            probe_due: Duration::ZERO,
            requests: 0,
            asked: None,
            answered: None,
            active: None,
            quiet: None,
            halved: Duration::ZERO,
        }
    }

    fn under_way(&self) -> usize {
        self.accounts.iter().map(|a| a.under_way).sum()
    }

    /// Whether a request that began then, and ended now, met no background work.
    fn is_quiet(&self, begun: Duration) -> bool {
        let after = match self.probe.map(|p| p.since) {
            Some(since) => since,
            None => Some(self.busy.map_or(Duration::ZERO, |busy| busy + QUIET_AFTER)),
        };
        self.under_way() == 0 && after.is_some_and(|after| begun >= after)
    }

    fn hosts_are_active(&self, now: Duration) -> bool {
        self.active.is_some_and(|at| now.saturating_sub(at) < IDLE_AFTER)
    }

    /// A host got its answer.
    pub fn observe(&mut self, kind: Kind, begun: Duration, now: Duration) {
        let took = now.saturating_sub(begun);
        let halvings = now.saturating_sub(self.halved).as_secs() / RECENT_HALF.as_secs();
        if halvings > 0 {
            self.kinds.iter_mut().for_each(|k| k.recent.halve(halvings.min(64) as u32));
            self.halved = now;
        }
        self.answered = Some(now);
        let quiet = self.is_quiet(begun);
        let (probing, policy) = (self.probe.is_some(), self.policy);
        let k = &mut self.kinds[kind as usize];
        k.recent.add(took);
        if quiet {
            if k.look().count() == 0 {
                k.look_began = now;
            }
            let at = k.at;
            k.looks[at].add(took);
            self.quiet = Some(now);
            if !probing && now.saturating_sub(k.look_began) >= LOOK_LENGTH {
                k.end_look(now);
                k.set_bound(policy);
            }
        } else if let Some(bound) = k.bound.filter(|_| begun >= self.valid) {
            k.asked += 1;
            k.late += u64::from(bucket(took) > bound);
            self.decide(now);
        }
    }

    /// A little more as long as nothing is too much, much less as soon as something is.
    fn decide(&mut self, now: Duration) {
        let since = now.saturating_sub(self.decided);
        if since < SLOWER_AFTER {
            return;
        }
        if self.kinds.iter().any(Latency::is_late) {
            let left = if self.rising { SLOWER_FIRST } else { SLOWER };
            self.share = (self.share * left).max(self.policy.floor);
            (self.rising, self.calm) = (false, 0);
            self.valid = now + SETTLE;
            self.count_anew(now);
            return;
        }
        let asked: u64 = self.kinds.iter().map(|k| k.asked).sum();
        if since < FASTER_AFTER || asked < FASTER_SAMPLES && since < FASTER_AT_LEAST {
            return;
        }
        let fine = self.kinds.iter().all(|k| k.late as f64 <= k.asked as f64 * LATE_SHARE);
        if fine {
            self.share = match self.rising {
                true => self.share * 2.0,
                false => self.share * (1.0 + FASTER * f64::from(self.calm)) + 0.005,
            }
            .min(1.0);
        }
        self.calm = if fine { (self.calm + 1).min(CALM_MAX) } else { 0 };
        self.count_anew(now);
    }

    fn count_anew(&mut self, now: Duration) {
        self.decided = now;
        self.kinds.iter_mut().for_each(|k| (k.asked, k.late) = (0, 0));
    }

    fn set_bounds(&mut self) {
        let policy = self.policy;
        self.kinds.iter_mut().for_each(|k| k.set_bound(policy));
    }

    /// Whether a piece of work may begin. `most`: as many at the same time keep all disks busy.
    pub fn ask(&mut self, now: Duration, class: Class, most: usize, hosts: Hosts) -> Verdict {
        self.note_hosts(now, hosts);
        if self.under_way() == 0 && self.busy.is_none_or(|busy| now.saturating_sub(busy) > RESTART_AFTER) {
            self.restart(now);
        }
        if matches!(class, Class::Redundancy { .. }) {
            self.restoring = Some(now);
        }
        let behind = class == Class::Upkeep && self.restoring.is_some_and(|at| now.saturating_sub(at) < IDLE_AFTER);
        let urgent = matches!(class, Class::Cleaning { need } if need >= 1.0);
        if urgent {
            return self.begin(now, class, false);
        }
        if !self.hosts_are_active(now) {
            self.probe = None;
            if !behind {
                self.given = 1.0;
                return self.begin(now, class, false);
            }
        } else if let Some(wait) = self.look_aside(now) {
            return Verdict::Wait(wait.clamp(Duration::from_millis(1), ASK_AGAIN));
        }
        let share = self.share_of(class, behind);
        if !behind {
            self.given = share;
        }
        if share >= 1.0 {
            return self.begin(now, class, false);
        }
        let account = &mut self.accounts[class.index()];
        account.settle(now);
        account.level = share * most.max(1) as f64;
        if account.under_way as f64 >= account.level.ceil() {
            return Verdict::Wait(ASK_AGAIN);
        }
        if account.ahead > 0.0 {
            let wait = Duration::from_secs_f64((account.ahead / account.level).min(ASK_AGAIN.as_secs_f64()));
            return Verdict::Wait(wait.max(Duration::from_micros(50)));
        }
        self.begin(now, class, true)
    }

    fn note_hosts(&mut self, now: Duration, hosts: Hosts) {
        // What was asked for since the last look, when that was long ago, need not be of now.
        let looked = self.asked.replace(now).is_some_and(|at| now.saturating_sub(at) < IDLE_AFTER);
        let more = std::mem::replace(&mut self.requests, hosts.requests) != hosts.requests;
        let answered = self.answered.filter(|at| now.saturating_sub(*at) < IDLE_AFTER);
        let at = if hosts.under_way > 0 || looked && more { Some(now) } else { answered };
        let Some(at) = at else { return };
        if !self.hosts_are_active(now) {
            // Their first requests meet what was begun without regard to them.
            self.valid = now + SETTLE;
            self.count_anew(now);
            self.probe_due = self.probe_due.max(now + PROBE_FIRST);
        }
        self.active = self.active.max(Some(at));
    }

    fn restart(&mut self, now: Duration) {
        self.share = self.share.min(self.policy.start);
        self.rising = true;
        self.grain = Grain::default();
        self.count_anew(now);
        self.set_bounds();
        let known = self.kinds.iter().any(|k| k.bound.is_some());
        let fresh = known && self.quiet.is_some_and(|at| now.saturating_sub(at) < BASELINE_OLD);
        self.probe_due = now + if fresh { PROBE_EVERY } else { PROBE_FIRST };
    }

    fn share_of(&self, class: Class, behind: bool) -> f64 {
        let floor = self.policy.floor;
        if behind {
            return floor;
        }
        let floor = match class {
            Class::Redundancy { left: 0 } => floor.max(FLOOR_GONE),
            Class::Cleaning { need } => floor.max(need),
            _ => floor,
        };
        let known = self.kinds.iter().any(|k| k.bound.is_some());
        let share = if known { self.share } else { self.policy.unknown };
        share.max(floor)
    }

    /// Counts a piece as begun.
    pub fn begin(&mut self, now: Duration, class: Class, hindered: bool) -> Verdict {
        let account = &mut self.accounts[class.index()];
        account.settle(now);
        account.under_way += 1;
        account.hindered += usize::from(hindered);
        self.busy = Some(now);
        Verdict::Go { hindered }
    }

    /// A piece of work has ended.
    pub fn end(&mut self, now: Duration, class: Class, hindered: bool) {
        let account = &mut self.accounts[class.index()];
        account.settle(now);
        account.under_way = account.under_way.saturating_sub(1);
        account.hindered = account.hindered.saturating_sub(usize::from(hindered));
        self.busy = Some(now);
        if let Some(probe) = self.probe.as_mut().filter(|p| p.since.is_none())
            && self.accounts.iter().all(|a| a.under_way == 0)
        {
            probe.since = Some(now);
        }
    }

    /// Most bytes of a request to a disk while hosts are there.
    pub fn grain(&self) -> usize {
        self.grain.bytes()
    }

    /// A piece made requests of at most `most` bytes: so many have ended, and took so long all together.
    pub fn requested(&mut self, now: Duration, most: usize, ended: (u64, Duration)) {
        let slow = self.kinds[Kind::Read as usize].slow;
        if self.grain.observe(most, ended, slow) {
            // How much was too much was found with longer ones.
            self.share = self.share.max(self.policy.start);
            self.rising = true;
            self.valid = now + SETTLE;
            self.count_anew(now);
        }
    }

    /// The pause in which hosts are alone: for how much longer, when it is time for it.
    fn look_aside(&mut self, now: Duration) -> Option<Duration> {
        let idle = self.under_way() == 0;
        let Some(probe) = &mut self.probe else {
            if now < self.probe_due {
                return None;
            }
            self.probe = Some(Probe { wanted: now, since: idle.then_some(now) });
            return Some(PROBE_LEAST);
        };
        let over = match probe.since {
            None => now >= probe.wanted + PROBE_GIVE_UP,
            Some(since) => {
                let counts = self.kinds.iter().map(|k| k.look().count()).filter(|n| *n > 0);
                let enough = counts.min().is_some_and(|n| n >= PROBE_SAMPLES);
                now >= since + PROBE_MOST || enough && now >= since + PROBE_LEAST
            }
        };
        if !over {
            let until = probe.since.map_or(now + ASK_AGAIN, |since| since + PROBE_LEAST);
            return Some(until.saturating_sub(now).max(PROBE_LEAST / 4));
        }
        self.probe = None;
        self.kinds.iter_mut().for_each(|k| k.end_look(now));
        self.set_bounds();
        self.grain.paused();
        self.count_anew(now);
        let known = self.kinds.iter().any(|k| k.bound.is_some());
        self.probe_due = now + if known { PROBE_EVERY } else { PROBE_FIRST };
        None
    }

    /// What hosts wait of late.
    pub fn host_latency(&self, now: Duration, under_way: u32) -> HostLatency {
        let halvings = (now.saturating_sub(self.halved).as_secs() / RECENT_HALF.as_secs()).min(64) as u32;
        let of = |kind: Kind| {
            let mut recent = self.kinds[kind as usize].recent.clone();
            recent.halve(halvings);
            let at = |q| recent.quantile(q).map(|d| d.as_micros() as u64);
            (at(0.5), at(0.99))
        };
        let (reads, flushes) = (of(Kind::Read), of(Kind::Flush));
        HostLatency {
            read_p50_us: reads.0,
            read_p99_us: reads.1,
            flush_p50_us: flushes.0,
            flush_p99_us: flushes.1,
            under_way,
        }
    }

    /// The share background work may take now; none when there is none.
    pub fn share(&self, now: Duration) -> Option<f64> {
        let works = self.under_way() > 0 || self.busy.is_some_and(|at| now.saturating_sub(at) < IDLE_AFTER);
        works.then_some(self.given)
    }
}

#[cfg(test)]
mod tests;
