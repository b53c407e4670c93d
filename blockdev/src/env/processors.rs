//! What the machine's processors do.

use std::time::Duration;

/// Time of all processors together, counted since an arbitrary start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessorTimes {
    /// In which they had nothing to do, or waited for a disk.
    pub idle: Duration,
    /// Whatever they did, or another machine on the same hardware had them.
    pub all: Duration,
}

impl ProcessorTimes {
    /// The part of the time since `before` in which they were idle, 0 to 1; none when no time has passed.
    pub fn idle_since(&self, before: &Self) -> Option<f64> {
        let all = self.all.saturating_sub(before.all).as_secs_f64();
        (all > 0.0).then(|| (self.idle.saturating_sub(before.idle).as_secs_f64() / all).min(1.0))
    }

    /// From the text of `/proc/stat`, whose first line has user, nice, system, idle, iowait, irq, softirq, steal and guests' time, which is in the
    /// first two as well; in hundredths of a second.
    pub fn of_stat(text: &str) -> Option<Self> {
        let mut words = text.lines().next()?.split_ascii_whitespace();
        words.next().filter(|first| *first == "cpu")?;
        let ticks: Vec<u64> = words.take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let [_, _, _, idle, iowait, ..] = ticks[..] else { return None };
        let time = |ticks: u64| Duration::from_millis(ticks.saturating_mul(10));
        Some(Self {
            idle: time(idle.saturating_add(iowait)),
            all: time(ticks.iter().fold(0, |a, b| a.saturating_add(*b))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read() {
        let text = "cpu  100 1 20 300 50 3 4 2 90 0\ncpu0 1 2 3 4\n";
        let have = ProcessorTimes::of_stat(text).expect("times");
        assert_eq!(have, ProcessorTimes { idle: Duration::from_millis(3500), all: Duration::from_millis(4800) });
        // Kernels of long ago had fewer.
        assert!(ProcessorTimes::of_stat("cpu 1 2 3 4 5").is_some());
        for bad in ["", "cpu", "cpu 1 2 3 4", "cpu0 1 2 3 4 5 6 7 8", "cpu a b c d e", "cpu -1 2 3 4 5"] {
            assert_eq!(ProcessorTimes::of_stat(bad), None, "{bad:?}");
        }
        let most = ProcessorTimes::of_stat(&format!("cpu {0} {0} {0} {0} {0} {0} {0} {0}", u64::MAX)).expect("times");
        assert_eq!(most.idle_since(&have), Some(1.0));
    }

    #[test]
    fn a_share_needs_time() {
        let times = |idle, all| ProcessorTimes { idle: Duration::from_secs(idle), all: Duration::from_secs(all) };
        assert_eq!(times(5, 10).idle_since(&times(2, 4)), Some(0.5));
        assert_eq!(times(5, 10).idle_since(&times(5, 10)), None);
        // Counters that went back, as idle time may on some kernels.
        assert_eq!(times(4, 12).idle_since(&times(5, 10)), Some(0.0));
    }
}
