//! When a rule is due: times of day, on days of the week, in a time zone.

use std::str::FromStr;

use blockdev::error::{Error, Result};
use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};

use crate::wire::protection::{Day, Schedule};

/// Minutes of a day.
const DAY: u32 = 24 * 60;
/// Most times of day.
const TIMES_MAX: usize = 96;
/// Shortest interval, in minutes.
const INTERVAL_MIN: u32 = 5;

impl Day {
    fn of(weekday: Weekday) -> Self {
        match weekday {
            Weekday::Monday => Self::Mon,
            Weekday::Tuesday => Self::Tue,
            Weekday::Wednesday => Self::Wed,
            Weekday::Thursday => Self::Thu,
            Weekday::Friday => Self::Fri,
            Weekday::Saturday => Self::Sat,
            Weekday::Sunday => Self::Sun,
        }
    }
}

/// A time of day of a schedule, in minutes from midnight.
fn minutes(text: &str) -> Result<u32> {
    let bad = || Error::invalid(format!("'{text}' is not a time of day: write HH:MM, for example 02:30"));
    let (hours, minutes) = text.split_once(':').ok_or_else(bad)?;
    let number = |text: &str| match text.len() {
        2 if text.bytes().all(|b| b.is_ascii_digit()) => u32::from_str(text).map_err(|_| bad()),
        _ => Err(bad()),
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    if hours < 24 && minutes < 60 { Ok(hours * 60 + minutes) } else { Err(bad()) }
}

impl Schedule {
    /// Fails when it says nothing, or something that cannot be.
    pub fn check(&self) -> Result<()> {
        self.times().map(drop)
    }

    /// Times of day, in minutes from midnight, in order.
    fn times(&self) -> Result<Vec<u32>> {
        match (self.every_min, self.at.is_empty()) {
            (Some(every), true) => {
                if !(INTERVAL_MIN..=DAY).contains(&every) || !DAY.is_multiple_of(every) {
                    return Err(Error::invalid(format!(
                        "an interval of {every} minutes does not divide a day: choose 5m, 10m, 15m, 20m, 30m, 1h, 2h, 3h, 4h, 6h, 8h, 12h or 24h"
                    )));
                }
                Ok(Vec::new())
            }
            (None, false) => {
                if self.at.len() > TIMES_MAX {
                    return Err(Error::invalid(format!("a rule has at most {TIMES_MAX} times of day")));
                }
                let mut times = self.at.iter().map(|t| minutes(t)).collect::<Result<Vec<_>>>()?;
                times.sort_unstable();
                times.dedup();
                Ok(times)
            }
            _ => Err(Error::invalid("a rule has either an interval (--every) or times of day (--at)")),
        }
    }

    fn on(&self, date: Date) -> bool {
        self.days.is_empty() || self.days.contains(&Day::of(date.weekday()))
    }

    /// The instants of a day, in order. A time of day that the day does not have, because clocks are set forward, is as much later; one that
    /// it has twice is the first. Intervals are counted in real time, so that none is longer on such a day.
    fn instants(&self, date: Date, zone: &TimeZone) -> Vec<Timestamp> {
        if !self.on(date) {
            return Vec::new();
        }
        let start = |date: Date| date.to_zoned(zone.clone()).ok().map(|z| z.timestamp());
        if let Some(every) = self.every_min {
            let bounds = start(date).zip(date.tomorrow().ok().and_then(start));
            let Some((start, end)) = bounds.filter(|_| every > 0) else { return Vec::new() };
            let instants = (0i64..).map_while(|i| start.checked_add((i * i64::from(every)).minutes()).ok());
            return instants.take_while(|t| *t < end).collect();
        }
        let time = |m: u32| Time::new((m / 60) as i8, (m % 60) as i8, 0, 0).ok();
        let instants = self.times().unwrap_or_default().into_iter().filter_map(time);
        let instants = instants.filter_map(|t| date.to_datetime(t).to_zoned(zone.clone()).ok());
        let mut out: Vec<Timestamp> = instants.map(|z| z.timestamp()).collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    /// The first instant after `after`; none when there is none within the next eight days.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let today = day_of(after, zone);
        let days = (0..=8).filter_map(|i| today.checked_add(i.days()).ok());
        days.flat_map(|date| self.instants(date, zone)).find(|t| *t > after)
    }

    /// In words.
    pub fn describe(&self) -> String {
        let when = match self.every_min {
            Some(m) if m.is_multiple_of(60) => format!("every {} h", m / 60),
            Some(m) => format!("every {m} min"),
            None => format!("at {}", self.at.join(", ")),
        };
        if self.days.is_empty() {
            return when;
        }
        let days: Vec<String> = self.days.iter().map(|d| format!("{d:?}").to_lowercase()).collect();
        format!("{when} on {}", days.join(", "))
    }
}

fn day_of(instant: Timestamp, zone: &TimeZone) -> Date {
    Zoned::new(instant, zone.clone()).date()
}

/// Whether a schedule wants a run at `now`, after the last one at `last`.
pub fn due(schedule: &Schedule, last: Timestamp, now: Timestamp, zone: &TimeZone) -> bool {
    // The machine's clock was set back: what lies ahead counts as now.
    let last = last.min(now);
    schedule.next(last, zone).is_some_and(|t| t <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(minutes: u32) -> Schedule {
        Schedule { every_min: Some(minutes), ..Schedule::default() }
    }

    fn at(times: &[&str], days: &[Day]) -> Schedule {
        Schedule { every_min: None, at: times.iter().map(|t| (*t).to_owned()).collect(), days: days.to_vec() }
    }

    fn berlin() -> TimeZone {
        // Not from the machine's database: tests run where there is none.
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn t(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for schedule in [
            Schedule::default(),
            every(0),
            every(7),
            every(1),
            every(2880),
            at(&["24:00"], &[]),
            at(&["2:30"], &[]),
            at(&["02:60"], &[]),
            at(&["02.30"], &[]),
            at(&["+2:30"], &[]),
            Schedule { every_min: Some(60), ..at(&["02:30"], &[]) },
        ] {
            assert!(schedule.check().is_err(), "{schedule:?}");
        }
        for minutes in [5, 15, 60, 360, 1440] {
            every(minutes).check().unwrap();
        }
    }

    #[test]
    fn intervals_are_counted_from_local_midnight() {
        let zone = berlin();
        assert_eq!(every(15).next(t("2026-01-05T10:00:00Z"), &zone), Some(t("2026-01-05T10:15:00Z")));
        assert_eq!(every(360).next(t("2026-01-05T10:00:00Z"), &zone), Some(t("2026-01-05T11:00:00Z")));
        assert_eq!(every(360).next(t("2026-01-05T17:00:00Z"), &zone), Some(t("2026-01-05T23:00:00Z")));
        assert_eq!(every(1440).next(t("2026-07-05T21:59:59Z"), &zone), Some(t("2026-07-05T22:00:00Z")));
    }

    #[test]
    fn days_are_kept() {
        let zone = berlin();
        let fridays = at(&["02:30", "23:00"], &[Day::Fri]);
        // Monday.
        assert_eq!(fridays.next(t("2026-11-30T00:00:00Z"), &zone), Some(t("2026-12-04T01:30:00Z")));
        assert_eq!(fridays.next(t("2026-12-04T01:30:00Z"), &zone), Some(t("2026-12-04T22:00:00Z")));
        assert_eq!(fridays.next(t("2026-12-04T22:00:00Z"), &zone), Some(t("2026-12-11T01:30:00Z")));
    }

    #[test]
    fn clocks_that_are_set_forward_and_back_lose_and_double_nothing() {
        let zone = berlin();
        let night = at(&["02:30"], &[]);
        // 29 March 2026 has no 02:30; it is 03:30 then.
        let mut runs = Vec::new();
        let mut now = t("2026-03-27T12:00:00Z");
        for _ in 0..4 {
            now = night.next(now, &zone).unwrap();
            runs.push(now.to_string());
        }
        let expected = ["2026-03-28T01:30:00Z", "2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z", "2026-03-31T00:30:00Z"];
        assert_eq!(runs, expected);
        // 25 October 2026 has it twice; it runs the first time.
        assert_eq!(night.next(t("2026-10-24T12:00:00Z"), &zone), Some(t("2026-10-25T00:30:00Z")));
        assert_eq!(night.next(t("2026-10-25T00:30:00Z"), &zone), Some(t("2026-10-26T01:30:00Z")));
        // An hourly one runs in each hour of a day of 23, or 25.
        let count = |from: &str, to: &str| {
            let (mut now, to, mut n) = (t(from), t(to), 0);
            while let Some(next) = every(60).next(now, &zone).filter(|n| *n <= to) {
                (now, n) = (next, n + 1);
            }
            n
        };
        assert_eq!(count("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"), 23);
        assert_eq!(count("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"), 25);
    }

    #[test]
    fn what_was_missed_is_due_once() {
        let zone = berlin();
        let hourly = every(60);
        let now = t("2026-01-09T10:20:00Z");
        assert!(due(&hourly, t("2026-01-02T10:00:00Z"), now, &zone));
        assert!(!due(&hourly, now, now, &zone));
        assert!(!due(&hourly, now, t("2026-01-09T10:59:59Z"), &zone));
        assert!(due(&hourly, now, t("2026-01-09T11:00:00Z"), &zone));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_stop_it() {
        let zone = berlin();
        let ahead = t("2027-01-01T00:00:00Z");
        assert!(!due(&every(60), ahead, t("2026-01-09T10:20:00Z"), &zone));
        // The last run counts as now when it is seen; from there on all is as ever.
        assert!(due(&every(60), t("2026-01-09T10:20:00Z"), t("2026-01-09T11:00:00Z"), &zone));
    }
}
