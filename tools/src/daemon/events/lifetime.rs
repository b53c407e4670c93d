//! Events about the daemon itself: that it starts, how the one before it ended, that it stops.

use std::time::Duration;

use blockdev::error::Result;
use blockdev::report::{PoolStats, Severity};

use super::Events;
use crate::output::{duration, timestamp};
use crate::wire::events::Event;

const STARTED: &str = "daemon.started";
const STOPPED: &str = "daemon.stopped";
const KILLED: &str = "daemon.killed";

/// Longest wait until the last events are written down.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// What tells one start of the machine from another.
fn boot() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Records that the daemon starts, and before that how the one before it ended, if that was not in order: whether it was not.
pub fn started(events: &Events) -> bool {
    started_in(events, boot())
}

fn started_in(events: &Events, boot: Option<String>) -> bool {
    let all = events.all();
    let before = all.iter().rev().find(|e| e.kind == STARTED || e.kind == STOPPED).filter(|e| e.kind == STARTED);
    if let Some(before) = before {
        let process = before.details.get("pid").map_or_else(String::new, |pid| format!(" (process {pid})"));
        let heard = all.last().map_or(before.time_s, |last| last.time_s);
        let message = format!("the daemon{process} did not stop in order; its last event was {}", timestamp(heard));
        let other_boot = before.details.get("boot").zip(boot.as_ref()).is_some_and(|(then, now)| then != now);
        let cause = match other_boot {
            true => "the machine was restarted, or lost power, while it served",
            false => "it was killed, or ended by a failure of its own",
        };
        events.record(
            Event::new(Severity::Warning, KILLED, "daemon", message)
                .cause(cause)
                .action("if nobody did it on purpose, look into its log and the kernel's messages of that time"),
        );
    }
    let message = format!("the daemon starts, version {}", env!("CARGO_PKG_VERSION"));
    let event = Event::new(Severity::Info, STARTED, "daemon", message).detail("pid", std::process::id());
    events.record(boot.into_iter().fold(event, |event, boot| event.detail("boot", boot)));
    before.is_some()
}

/// Records that the pool is open, after so much time. It was recovered when its log had to be replayed, whatever is known of the daemon before.
pub fn opened(events: &Events, pool: &str, took: Duration, stats: &PoolStats, after_crash: bool) {
    let (time, recovery) = (duration(took.as_secs_f64()), duration(stats.recovery_s));
    let entries = stats.log_replayed;
    let (kind, message) = if after_crash || entries > 0 {
        let replayed = format!("{entries} entries of its log were replayed in {recovery}");
        ("pool.recovered", format!("pool {pool} is open again after a crash: {replayed}; all of it took {time}"))
    } else {
        ("pool.opened", format!("pool {pool} is open; it took {time}"))
    };
    let event = Event::new(Severity::Info, kind, "pool", message).detail("open_ms", took.as_millis());
    events.record(event.detail("replayed", entries).detail("recovery_ms", (stats.recovery_s * 1e3) as u64));
}

/// Records how the daemon ends, and waits a little until all events are written down.
pub fn stopped<T>(events: &Events, ended: &Result<T>) {
    events.record(match ended {
        Ok(_) => Event::new(Severity::Info, STOPPED, "daemon", "the daemon stops in order"),
        Err(e) => Event::new(Severity::Error, STOPPED, "daemon", "the daemon ends: it cannot go on")
            .cause(e.to_string())
            .action("see to the cause, and start it again"),
    });
    events.flush(FLUSH_MAX);
}

#[cfg(test)]
mod tests {
    use blockdev::error::Error;

    use super::*;

    fn kinds(events: &Events) -> Vec<String> {
        events.all().into_iter().map(|e| e.kind).collect()
    }

    #[test]
    fn a_daemon_that_did_not_stop_in_order_is_told_of_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let life = |boot: &str| {
            let events = Events::open(dir.path()).unwrap();
            let killed = started_in(&events, Some(boot.into()));
            events.flush(FLUSH_MAX);
            (events, killed)
        };
        let (events, killed) = life("1");
        assert!(!killed && kinds(&events) == [STARTED]);
        stopped(&events, &Ok(()));
        let (events, killed) = life("1");
        assert!(!killed && kinds(&events) == [STARTED, STOPPED, STARTED]);
        opened(&events, "p", Duration::from_millis(1500), &PoolStats::default(), false);
        assert_eq!(events.all().last().unwrap().kind, "pool.opened");
        // The state directory may be new, the pool is not.
        let stats = PoolStats { log_replayed: 7, recovery_s: 0.5, ..PoolStats::default() };
        opened(&events, "p", Duration::from_millis(1500), &stats, false);
        let told = events.all().pop().unwrap();
        assert_eq!((told.kind.as_str(), told.details["recovery_ms"].as_str()), ("pool.recovered", "500"));
        assert!(told.message.contains("7 entries of its log were replayed in 0.5 s"), "{}", told.message);
        events.flush(FLUSH_MAX);
        let (events, killed) = life("1");
        assert!(killed && kinds(&events)[5..] == [KILLED, STARTED]);
        let told = &events.all()[5];
        assert!(told.cause.as_ref().unwrap().contains("it was killed"), "{told:?}");
        let (events, killed) = life("2");
        let told = &events.all()[7];
        assert!(killed && told.kind == KILLED && told.cause.as_ref().unwrap().contains("restarted"), "{told:?}");
        // One that cannot go on says why, and was not killed.
        stopped(&events, &Err::<(), _>(Error::io("no disks")));
        assert_eq!(events.all().last().unwrap().cause.as_deref(), Some("no disks"));
        assert!(!life("2").1);
    }
}
