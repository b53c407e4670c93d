//! The controller against a model of disks whose hosts wait longer the more is done in the background.

use super::*;
use crate::env::Rng;

const MOST: usize = 8;
const REBUILD: Class = Class::Redundancy { left: 1 };

/// Hosts and background work in steps of a millisecond.
struct World {
    control: Control,
    rng: Rng,
    now: Duration,
    requests: u64,
    /// Requests of hosts per second.
    rate: u64,
    /// What they wait without background work, at least and in the slowest hundredth.
    base: Duration,
    /// How much longer for each piece under way, in shares of the slowest.
    cost: f64,
    /// How long a piece of work takes.
    piece: Duration,
    /// Pieces under way: class, begun, hindered.
    pieces: Vec<(Class, Duration, bool)>,
    /// What wants to work.
    classes: Vec<Class>,
    /// Milliseconds of pieces done.
    done: Vec<u64>,
    waited: Histogram,
}

impl World {
    fn new(rate: u64, cost: f64) -> Self {
        Self {
            control: Control::new(Priority::Normal),
            rng: Rng::new(7),
            now: Duration::from_secs(100),
            requests: 0,
            rate,
            base: Duration::from_millis(5),
            cost,
            piece: Duration::from_millis(20),
            pieces: Vec::new(),
            classes: Vec::new(),
            done: vec![0; 3],
            waited: Histogram::default(),
        }
    }

    /// What one request waits now: one in sixty-four waits thrice as long.
    fn latency(&mut self) -> Duration {
        let tail = if self.rng.chance(1, 64) { 3.0 } else { 1.0 + self.rng.below(100) as f64 / 200.0 };
        let load = self.cost * self.pieces.len() as f64 * self.rng.below(100) as f64 / 100.0;
        self.base.mul_f64(tail + 3.0 * load)
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(1);
        let now = self.now;
        let (ended, going): (Vec<_>, Vec<_>) = self.pieces.iter().partition(|p| now >= p.1 + self.piece);
        self.pieces = going;
        for (class, _, hindered) in ended {
            self.done[class.index()] += self.piece.as_millis() as u64;
            self.control.end(now, class, hindered);
        }
        for class in self.classes.clone() {
            while self.pieces.iter().filter(|p| p.0.index() == class.index()).count() < MOST {
                let hosts = Hosts { requests: self.requests, under_way: 0 };
                match self.control.ask(now, class, MOST, hosts) {
                    Verdict::Go { hindered } => self.pieces.push((class, now, hindered)),
                    Verdict::Wait(wait) => {
                        assert!(!wait.is_zero() && wait <= ASK_AGAIN, "{wait:?}");
                        break;
                    }
                }
            }
        }
        let requests = self.rate / 1000 + u64::from(self.rng.below(1000) < self.rate % 1000);
        for _ in 0..requests {
            self.requests += 1;
            let took = self.latency();
            self.waited.add(took);
            self.control.observe(Kind::Read, self.now.saturating_sub(took), self.now);
        }
    }

    /// So many seconds; gives the 99th percentile of what hosts waited in milliseconds, and the share of the time of all pieces that each class got.
    fn run(&mut self, seconds: u64) -> (f64, Vec<f64>) {
        (self.waited, self.done) = (Histogram::default(), vec![0; 3]);
        for _ in 0..seconds * 1000 {
            self.step();
        }
        let p99 = self.waited.quantile(0.99).map_or(0.0, |d| d.as_secs_f64() * 1e3);
        (p99, self.done.iter().map(|ms| *ms as f64 / (seconds * 1000 * MOST as u64) as f64).collect())
    }
}

#[test]
fn hosts_stay_below_the_bound_and_what_is_free_is_used() {
    for (rate, cost) in [(200, 0.3), (1000, 0.3), (5000, 0.3), (1000, 1.0), (1000, 0.15)] {
        let mut world = World::new(rate, cost);
        let (alone, _) = world.run(20);
        world.classes = vec![REBUILD];
        let (first, _) = world.run(30);
        let (later, shares) = world.run(120);
        assert!(first <= alone * 2.1, "{rate}/s at {cost}: {alone} ms alone, {first} ms in the beginning");
        assert!(later <= alone * 2.0, "{rate}/s at {cost}: {alone} ms alone, {later} ms");
        // The bound would allow about 1 / cost pieces at the same time.
        let free = (1.0 / cost / MOST as f64).min(1.0);
        assert!(shares[0] > free / 4.0, "{rate}/s at {cost}: {shares:?} of {free}");
    }
}

#[test]
fn work_that_costs_hosts_nothing_gets_everything() {
    let mut world = World::new(500, 0.0);
    world.run(10);
    world.classes = vec![REBUILD];
    world.run(10);
    let (_, shares) = world.run(30);
    // But for the pauses.
    assert!(shares[0] > 0.85, "{shares:?}");
}

#[test]
fn without_hosts_all_is_used_and_after_them_again() {
    let mut world = World::new(0, 5.0);
    world.classes = vec![REBUILD];
    let (_, shares) = world.run(5);
    assert!(shares[0] > 0.9, "{shares:?}");
    world.rate = 500;
    let (_, shares) = world.run(20);
    assert!(shares[0] < 0.4, "{shares:?}");
    world.rate = 0;
    world.run(2);
    let (_, shares) = world.run(5);
    assert!(shares[0] > 0.9, "{shares:?}");
}

#[test]
fn what_hosts_asked_for_long_ago_does_not_count() {
    let hosts = Hosts { requests: 1000, under_way: 0 };
    let now = Duration::from_secs(100);
    let mut control = Control::new(Priority::Normal);
    control.observe(Kind::Flush, now - Duration::from_secs(3), now - Duration::from_secs(2));
    assert_eq!(control.ask(now, REBUILD, MOST, hosts), Verdict::Go { hindered: false });
    let mut control = Control::new(Priority::Normal);
    control.observe(Kind::Flush, now - Duration::from_secs(1), now - Duration::from_millis(900));
    assert_eq!(control.ask(now, REBUILD, MOST, hosts), Verdict::Go { hindered: true });
}

#[test]
fn nobody_gets_less_than_the_floor() {
    // Each piece makes everything far too slow.
    let shares_of = |class: Class, priority: Priority| {
        let mut world = World::new(1000, 50.0);
        world.control = Control::new(priority);
        world.run(10);
        world.classes = vec![class];
        world.run(30);
        world.run(60).1[class.index()]
    };
    let normal = shares_of(REBUILD, Priority::Normal);
    // But for the pauses, and for what a step of a millisecond rounds away.
    assert!((0.025..0.06).contains(&normal), "{normal}");
    let low = shares_of(REBUILD, Priority::Low);
    assert!((0.012..0.03).contains(&low), "{low}");
    let high = shares_of(REBUILD, Priority::High);
    assert!((0.2..0.3).contains(&high), "{high}");
    let gone = shares_of(Class::Redundancy { left: 0 }, Priority::Normal);
    assert!((0.2..0.3).contains(&gone), "{gone}");
    let little = shares_of(Class::Cleaning { need: 0.1 }, Priority::Normal);
    assert!((0.07..0.12).contains(&little), "{little}");
    // Hosts wait for it: no limit at all, not even for a pause.
    let urgent = shares_of(Class::Cleaning { need: 1.0 }, Priority::Low);
    assert!(urgent > 0.9, "{urgent}");
}

#[test]
fn upkeep_comes_behind_redundancy() {
    let mut world = World::new(0, 0.1);
    world.classes = vec![REBUILD, Class::Upkeep];
    let (_, shares) = world.run(20);
    assert!(shares[0] > 0.9, "{shares:?}");
    assert!((0.02..0.06).contains(&shares[1]), "{shares:?}");
    world.classes = vec![Class::Upkeep];
    world.run(2);
    let (_, shares) = world.run(5);
    assert!(shares[1] > 0.9, "{shares:?}");
}

#[test]
fn it_recovers_after_a_bad_time() {
    let mut world = World::new(1000, 0.1);
    world.run(10);
    world.classes = vec![REBUILD];
    world.run(40);
    world.cost = 50.0;
    let (_, bad) = world.run(30);
    assert!(bad[0] < 0.1, "{bad:?}");
    world.cost = 0.0;
    world.run(60);
    let (_, good) = world.run(20);
    assert!(good[0] > 0.8, "{good:?}");
}

#[test]
fn hosts_that_work_harder_are_compared_with_themselves() {
    let mut world = World::new(200, 0.1);
    world.run(10);
    world.classes = vec![REBUILD];
    world.run(30);
    // A deeper queue: everything takes four times as long, with and without background work.
    (world.base, world.rate) = (Duration::from_millis(20), 1000);
    world.run(30);
    let (_, shares) = world.run(30);
    assert!(shares[0] > 0.3, "{shares:?}");
    // And back: what is allowed now follows.
    (world.base, world.rate, world.cost) = (Duration::from_millis(5), 200, 1.0);
    world.run(30);
    let mut alone = World::new(200, 1.0);
    let (alone, _) = alone.run(20);
    let (now, _) = world.run(60);
    assert!(now <= alone * 2.1, "{alone} ms alone, {now} ms");
}

#[test]
fn without_a_baseline_there_is_soon_one() {
    let mut world = World::new(1000, 0.3);
    world.classes = vec![REBUILD];
    world.run(1);
    assert!(world.control.kinds[0].bound.is_none());
    world.run(2);
    assert!(world.control.kinds[0].bound.is_some());
}

#[test]
fn a_pause_ends_though_something_goes_on() {
    let mut control = Control::new(Priority::Normal);
    let hosts = Hosts { requests: 1, under_way: 1 };
    let start = Duration::from_secs(50);
    let urgent = Class::Cleaning { need: 1.0 };
    assert_eq!(control.ask(start, urgent, 4, hosts), Verdict::Go { hindered: false });
    let mut waited = 0;
    for ms in 0..3000 {
        let now = start + Duration::from_millis(ms);
        if let Verdict::Go { hindered } = control.ask(now, REBUILD, 4, hosts) {
            control.end(now, REBUILD, hindered);
        } else {
            waited += 1;
        }
    }
    assert!((500..1700).contains(&waited), "{waited}");
}

/// Clocks that stand still or go back, nothing to share, absurd durations: no panic, and never a wait without end.
#[test]
fn extremes_do_no_harm() {
    let mut rng = Rng::new(3);
    let times = [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(1), Duration::from_secs(1 << 40)];
    for priority in [Priority::Low, Priority::Normal, Priority::High] {
        let mut control = Control::new(priority);
        for _ in 0..20_000 {
            let mut time = || times[rng.index(4)] + Duration::from_nanos(rng.below(1 << 33));
            let (a, b) = (time(), time());
            let need = [-1.0, 0.0, 0.5, 2.0, f64::NAN][rng.index(5)];
            let class =
                [Class::Redundancy { left: rng.index(3) }, Class::Upkeep, Class::Cleaning { need }][rng.index(3)];
            match rng.below(4) {
                0 => control.observe([Kind::Read, Kind::Flush][rng.index(2)], a, b),
                1 => control.end(a, class, rng.chance(1, 2)),
                _ => {
                    let hosts = Hosts { requests: rng.u64(), under_way: rng.below(3) as u32 };
                    if let Verdict::Wait(wait) = control.ask(a, class, rng.index(3) * 1000, hosts) {
                        assert!(!wait.is_zero() && wait <= ASK_AGAIN, "{wait:?}");
                    }
                }
            }
            assert!((0.0..=1.0).contains(&control.share) && control.share > 0.0, "{}", control.share);
            control.host_latency(a, 0);
            control.share(b);
        }
    }
}
