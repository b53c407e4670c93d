//! From what the appliance looks like, again and again, to events about what changed.
//!
//! What was known when the daemon ended is read from its own events, so that a restart tells nothing twice and forgets nothing: an alert that was
//! raised is not raised again, a drive that went meanwhile is told of.

use std::collections::BTreeMap;

use blockdev::report::{Alert, DiskInfo, DiskState, PoolStatus, Rebuild, Scrub, Severity, Tolerance};

use crate::output::{duration, size, state_word, tolerance_word};
use crate::wire::events::{ActiveAlert, Event};

/// Looks without a rebuild after which it is over, and after which one that a restart interrupted is.
const QUIET: u32 = 2;
const QUIET_AFTER_START: u32 = 5;
/// Seconds between two events about errors of the same drive.
const ERRORS_EVERY_S: u64 = 60;

/// Kinds of events that tell what was known.
mod kind {
    pub const DISK_STATE: &str = "disk.state";
    pub const DISK_ADDED: &str = "disk.added";
    pub const DISK_REMOVED: &str = "disk.removed";
    pub const DISK_ERRORS: &str = "disk.errors";
    pub const ALERT_RAISED: &str = "alert.raised";
    pub const ALERT_CLEARED: &str = "alert.cleared";
    pub const REBUILD_STARTED: &str = "rebuild.started";
    pub const REBUILD_FINISHED: &str = "rebuild.finished";
    pub const BALANCE_STARTED: &str = "balance.started";
    pub const BALANCE_FINISHED: &str = "balance.finished";
    pub const SCRUB_STARTED: &str = "scrub.started";
    pub const SCRUB_FINISHED: &str = "scrub.finished";
    pub const TOLERANCE: &str = "pool.tolerance";
    pub const HEALTH: &str = "pool.health";
    pub const DAMAGE_FOUND: &str = "damage.found";
    pub const DAMAGE_HEALED: &str = "damage.healed";
}

/// An alert that was raised.
#[derive(Clone, Debug)]
struct Raised {
    severity: String,
    message: String,
    since_s: u64,
    event: u64,
}

/// Work that was seen to go on.
#[derive(Clone, Debug)]
struct Work {
    balance: bool,
    cause: String,
    since_s: u64,
    bytes: u64,
    /// Looks at which it was not there.
    quiet: u32,
    quiet_max: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Errors {
    read: u64,
    write: u64,
    checksum: u64,
    /// When they were told of last.
    told_s: u64,
}

/// What is known of the appliance.
#[derive(Debug, Default)]
pub struct Observer {
    disks: BTreeMap<u16, (DiskState, String)>,
    errors: BTreeMap<u16, Errors>,
    alerts: BTreeMap<(String, String), Raised>,
    rebuild: Option<Work>,
    /// When the scrub began that was told of last, and whether its end was.
    scrub: Option<(u64, bool)>,
    tolerance: Option<Tolerance>,
    health: Option<String>,
    damaged: bool,
    /// The appliance was looked at before.
    looked: bool,
}

/// A state by its word in an event.
fn state_of(word: &str) -> Option<DiskState> {
    DiskState::ALL.into_iter().find(|state| state_word(*state) == word)
}

fn disk_of(object: &str) -> Option<u16> {
    object.strip_prefix("disk/")?.parse().ok()
}

impl Observer {
    /// What was known at the end of these events.
    pub fn after(events: &[Event]) -> Self {
        let mut known = Self::default();
        events.iter().for_each(|event| known.learn(event));
        if let Some(work) = &mut known.rebuild {
            work.quiet_max = QUIET_AFTER_START;
        }
        known
    }

    /// Takes in what an event says, which may be one of a former life.
    pub fn learn(&mut self, event: &Event) {
        let detail = |name: &str| event.details.get(name).map(String::as_str);
        let number = |name: &str| detail(name).and_then(|text| text.parse::<u64>().ok());
        match (event.kind.as_str(), disk_of(&event.object)) {
            (kind::DISK_STATE, Some(id)) => {
                if let Some(state) = detail("to").and_then(state_of) {
                    self.disks.insert(id, (state, detail("path").unwrap_or_default().to_owned()));
                }
            }
            (kind::DISK_ADDED, Some(id)) => {
                self.disks.insert(id, (DiskState::Online, detail("path").unwrap_or_default().to_owned()));
            }
            (kind::DISK_REMOVED, Some(id)) => drop(self.disks.remove(&id)),
            (kind::ALERT_RAISED, _) => {
                let Some(code) = detail("code") else { return };
                let severity = detail("severity").unwrap_or("warning").to_owned();
                let (message, since_s, event_seq) = (event.message.clone(), event.time_s, event.seq);
                let raised = Raised { severity, message, since_s, event: event_seq };
                self.alerts.insert((event.object.clone(), code.to_owned()), raised);
            }
            (kind::ALERT_CLEARED, _) => {
                let Some(code) = detail("code") else { return };
                self.alerts.remove(&(event.object.clone(), code.to_owned()));
            }
            (began @ (kind::REBUILD_STARTED | kind::BALANCE_STARTED), _) => {
                let (cause, since_s) = (event.cause.clone().unwrap_or_default(), event.time_s);
                let (balance, bytes) = (began == kind::BALANCE_STARTED, number("bytes").unwrap_or(0));
                self.rebuild = Some(Work { balance, cause, since_s, bytes, quiet: 0, quiet_max: QUIET });
            }
            (kind::REBUILD_FINISHED | kind::BALANCE_FINISHED, _) => self.rebuild = None,
            (kind::SCRUB_STARTED, _) => self.scrub = number("begun_s").map(|begun| (begun, false)).or(self.scrub),
            (kind::SCRUB_FINISHED, _) => self.scrub = number("begun_s").map(|begun| (begun, true)).or(self.scrub),
            (kind::TOLERANCE, _) => {
                let all = [Tolerance::None, Tolerance::Single, Tolerance::Double];
                let to = all.into_iter().find(|t| detail("to") == Some(tolerance_word(*t)));
                self.tolerance = to.or(self.tolerance);
            }
            (kind::HEALTH, _) => self.health = detail("to").map(str::to_owned),
            (kind::DAMAGE_FOUND, _) => self.damaged = true,
            (kind::DAMAGE_HEALED, _) => self.damaged = false,
            _ => {}
        }
    }

    /// Events about what changed until now. The caller records them and lets each be learnt.
    pub fn look(&mut self, status: &PoolStatus, now_s: u64) -> Vec<Event> {
        let mut events = Vec::new();
        self.look_at_disks(status, now_s, &mut events);
        self.look_at_damage(status, &mut events);
        self.look_at_health(status, &mut events);
        self.look_at_alerts(&status.alerts, &mut events);
        self.look_at_rebuild(status.rebuild.as_ref(), now_s, &mut events);
        self.look_at_scrub(&status.scrub, &mut events);
        self.look_at_tolerance(status, &mut events);
        self.looked = true;
        events
    }

    fn look_at_disks(&mut self, status: &PoolStatus, now_s: u64, events: &mut Vec<Event>) {
        for disk in &status.disks {
            let before = self.disks.get(&disk.id).map(|(state, _)| *state);
            if before.unwrap_or_default() == disk.state {
                // Nothing is told of one that serves and was not heard of before.
                self.disks.insert(disk.id, (disk.state, disk.path.clone()));
            } else {
                events.push(state_changed(disk, before.unwrap_or_default()));
            }
            self.look_at_errors(disk, now_s, events);
        }
        let gone: Vec<u16> =
            self.disks.keys().filter(|id| !status.disks.iter().any(|d| d.id == **id)).copied().collect();
        for id in gone {
            let path = self.disks.get(&id).map(|(_, path)| path.clone()).unwrap_or_default();
            self.errors.remove(&id);
            let message = format!("disk {id} ({path}) is not of the pool any more");
            events.push(
                Event::new(Severity::Info, kind::DISK_REMOVED, format!("disk/{id}"), message).detail("path", path),
            );
        }
    }

    fn look_at_errors(&mut self, disk: &DiskInfo, now_s: u64, events: &mut Vec<Event>) {
        let (read, write, checksum) = (disk.read_errors, disk.write_errors, disk.checksum_errors);
        let Some(before) = self.errors.get_mut(&disk.id) else {
            self.errors.insert(disk.id, Errors { read, write, checksum, told_s: 0 });
            return;
        };
        let more = [
            (read.saturating_sub(before.read), "read errors"),
            (write.saturating_sub(before.write), "write errors"),
            (checksum.saturating_sub(before.checksum), "frames with wrong checksums"),
        ];
        let told: Vec<String> =
            more.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} more {what}")).collect();
        if told.is_empty() || now_s < before.told_s.saturating_add(ERRORS_EVERY_S) {
            return;
        }
        *before = Errors { read, write, checksum, told_s: now_s };
        let message = format!("disk {} ({}) made errors: {}", disk.id, disk.path, told.join(", "));
        let event = Event::new(Severity::Warning, kind::DISK_ERRORS, format!("disk/{}", disk.id), message)
            .cause("the drive did not do what it was asked for, or gave back something else than was written")
            .action(format!(
                "what the other drives give back is used instead and written anew; `ashlar disk show {}` has all counts",
                disk.id
            ));
        let counts = [("read_errors", read), ("write_errors", write), ("checksum_errors", checksum)];
        events.push(counts.into_iter().fold(event, |event, (name, count)| event.detail(name, count)));
    }

    fn look_at_damage(&mut self, status: &PoolStatus, events: &mut Vec<Event>) {
        let damaged = status.damaged_segments > 0;
        if damaged && !self.damaged {
            let message = format!("some data cannot be read: {} segments are damaged", status.damaged_segments);
            events.push(
                Event::new(Severity::Critical, kind::DAMAGE_FOUND, "pool", message)
                    .cause("more copies of it are lost or wrong than redundancy makes up for")
                    .action("`ashlar pool damage` lists the ranges; write them again, from a backup say")
                    .detail("segments", status.damaged_segments),
            );
        } else if !damaged && self.damaged {
            events.push(Event::new(Severity::Info, kind::DAMAGE_HEALED, "pool", "all data can be read again"));
        }
    }

    fn look_at_health(&mut self, status: &PoolStatus, events: &mut Vec<Event>) {
        // Of a pool never heard of, that all is well is no news.
        let before = self.health.clone().unwrap_or_else(|| "healthy".into());
        if before == status.health {
            return;
        }
        let severity = match status.health.as_str() {
            "healthy" => Severity::Info,
            "degraded" => Severity::Warning,
            _ => Severity::Critical,
        };
        let action = if severity == Severity::Info { "" } else { "`ashlar alert list` tells why, and what to do" };
        events.push(
            Event::new(
                severity,
                kind::HEALTH,
                "pool",
                format!("pool {} is {} (was {before})", status.name, status.health),
            )
            .action(action)
            .detail("from", before)
            .detail("to", &status.health),
        );
    }

    fn look_at_alerts(&mut self, alerts: &[Alert], events: &mut Vec<Event>) {
        for alert in alerts {
            let known = self.alerts.get(&(alert.object.clone(), alert.code.clone()));
            if known.is_some_and(|known| known.severity == alert.severity) {
                continue;
            }
            let severity = match alert.severity.as_str() {
                "critical" => Severity::Critical,
                "warning" => Severity::Warning,
                _ => Severity::Info,
            };
            events.push(
                Event::new(severity, kind::ALERT_RAISED, &alert.object, &alert.message)
                    .detail("code", &alert.code)
                    .detail("severity", &alert.severity),
            );
        }
        for ((object, code), raised) in &self.alerts {
            if !alerts.iter().any(|a| a.object == *object && a.code == *code) {
                let message = format!("it is over: {}", raised.message);
                let event = Event::new(Severity::Info, kind::ALERT_CLEARED, object, message);
                events.push(event.detail("code", code).detail("raised_by_event", raised.event));
            }
        }
    }

    fn look_at_rebuild(&mut self, rebuild: Option<&Rebuild>, now_s: u64, events: &mut Vec<Event>) {
        match (&mut self.rebuild, rebuild) {
            (None, None) => {}
            (None, Some(now)) => events.push(work_began(now)),
            (Some(work), Some(now)) if work.balance != now.is_balance() => {
                events.extend([work_ended(work, now_s), work_began(now)]);
            }
            (Some(work), Some(now)) => {
                (work.quiet, work.quiet_max) = (0, QUIET);
                work.bytes = work.bytes.max(now.total);
            }
            (Some(work), None) if work.quiet + 1 < work.quiet_max => work.quiet += 1,
            (Some(work), None) => events.push(work_ended(work, now_s)),
        }
    }

    fn look_at_scrub(&mut self, scrub: &Scrub, events: &mut Vec<Event>) {
        let Some(begun) = scrub.begun_s else { return };
        if self.scrub.is_none() && !self.looked && !scrub.running {
            // Of a time before there were events.
            self.scrub = Some((begun, true));
        }
        if self.scrub.is_none_or(|(known, _)| known != begun) {
            let message = format!("a scrub of {} began", size(scrub.total));
            events.push(Event::new(Severity::Info, kind::SCRUB_STARTED, "pool", message).detail("begun_s", begun));
        }
        let Some(ended) = scrub.ended_s.filter(|_| !scrub.running && self.scrub != Some((begun, true))) else { return };
        let took = ended.saturating_sub(begun);
        let how = if scrub.complete { "is through" } else { "was stopped" };
        let severity = match (scrub.damaged, scrub.repaired) {
            (0, 0) => Severity::Info,
            (0, _) => Severity::Warning,
            _ => Severity::Critical,
        };
        let found = match severity {
            Severity::Info => "nothing was wrong".to_owned(),
            _ => format!("{} columns healed, {} segments damaged", scrub.repaired, scrub.damaged),
        };
        let action = if scrub.damaged > 0 { "`ashlar pool damage` lists what cannot be read" } else { "" };
        events.push(
            Event::new(
                severity,
                kind::SCRUB_FINISHED,
                "pool",
                format!("the scrub {how} after {}: {found}", duration(took as f64)),
            )
            .action(action)
            .detail("begun_s", begun)
            .detail("duration_s", took)
            .detail("repaired", scrub.repaired)
            .detail("damaged", scrub.damaged)
            .detail("complete", scrub.complete),
        );
    }

    fn look_at_tolerance(&mut self, status: &PoolStatus, events: &mut Vec<Event>) {
        match self.tolerance {
            Some(before) if before != status.tolerance => {
                let (from, to) = (tolerance_word(before), tolerance_word(status.tolerance));
                events.push(
                    Event::new(
                        Severity::Info,
                        kind::TOLERANCE,
                        "pool",
                        format!("the tolerance that holds for all data is {to} (was {from})"),
                    )
                    .detail("from", from)
                    .detail("to", to),
                );
            }
            Some(_) => {}
            None => self.tolerance = Some(status.tolerance),
        }
    }

    /// The alerts with the time since which they hold.
    pub fn active(&self, alerts: Vec<Alert>) -> Vec<ActiveAlert> {
        let of = |alert: Alert| {
            let raised = self.alerts.get(&(alert.object.clone(), alert.code.clone()));
            ActiveAlert { since_s: raised.map(|r| r.since_s), event: raised.map(|r| r.event), alert }
        };
        alerts.into_iter().map(of).collect()
    }
}

fn work_began(now: &Rebuild) -> Event {
    let (kind, message) = match (now.is_balance(), now.total) {
        (true, _) => (kind::BALANCE_STARTED, "data is being spread evenly over the drives".to_owned()),
        (false, 0) => (kind::REBUILD_STARTED, "data is to be written anew or moved".to_owned()),
        (false, bytes) => (kind::REBUILD_STARTED, format!("{} are to be written anew or moved", size(bytes))),
    };
    Event::new(Severity::Info, kind, "pool", message).cause(&now.cause).detail("bytes", now.total)
}

fn work_ended(work: &Work, now_s: u64) -> Event {
    let took = now_s.saturating_sub(work.since_s);
    let (bytes, time) = (size(work.bytes), duration(took as f64));
    let (kind, message) = match work.balance {
        true => (kind::BALANCE_FINISHED, format!("data was spread evenly over the drives: {bytes} in {time}")),
        false => (kind::REBUILD_FINISHED, format!("data was written anew or moved: {bytes} in {time}")),
    };
    let event = Event::new(Severity::Info, kind, "pool", message).cause(&work.cause);
    event.detail("bytes", work.bytes).detail("duration_s", took)
}

fn state_changed(disk: &DiskInfo, before: DiskState) -> Event {
    let id = disk.id;
    let (severity, action) = match disk.state {
        DiskState::Online => (Severity::Info, String::new()),
        DiskState::Removing => (Severity::Info, String::new()),
        DiskState::Stale => (Severity::Warning, "nothing: what it missed is written to it".into()),
        DiskState::Failing => (Severity::Error, format!("replace it (`ashlar disk replace {id} NEW`)")),
        DiskState::Degraded => (Severity::Warning, format!("plan to replace it (`ashlar disk replace {id} NEW`)")),
        DiskState::Rebuilding => (
            Severity::Warning,
            format!("nothing: what it held is rebuilt on the others; then replace it (`ashlar disk replace {id} NEW`)"),
        ),
        DiskState::Failed | DiskState::Missing => (
            Severity::Error,
            format!("bring it back (`ashlar disk rescan` looks for it) or replace it (`ashlar disk replace {id} NEW`)"),
        ),
    };
    let (from, to) = (state_word(before), state_word(disk.state));
    let message = format!("disk {id} ({}) is {to} (was {from})", disk.path);
    Event::new(severity, kind::DISK_STATE, format!("disk/{id}"), message)
        .cause(disk.reason.clone().unwrap_or_default())
        .action(action)
        .detail("from", from)
        .detail("to", to)
        .detail("path", &disk.path)
}

#[cfg(test)]
mod tests;
