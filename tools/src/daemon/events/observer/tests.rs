use super::*;

fn status() -> PoolStatus {
    let status = serde_json::json!({
        "name": "p", "uuid": "01010101010101010101010101010101", "health": "healthy", "tolerance": "single", "layout": "4+1",
        "epoch": 1, "raw": 0, "usable": 0, "used": 0, "available": 0, "provisioned": 0,
        "reduction": blockdev::report::Reduction::default(), "redundancy": blockdev::report::Redundancy::default(),
        "disks": [], "volumes": 0, "alerts": [],
    });
    PoolStatus { disks: vec![disk(0), disk(1)], ..serde_json::from_value(status).unwrap() }
}

fn disk(id: u16) -> DiskInfo {
    DiskInfo { id, path: format!("/dev/d{id}"), ..DiskInfo::default() }
}

/// An observer and all it told.
#[derive(Default)]
struct Told {
    observer: Observer,
    events: Vec<Event>,
    now_s: u64,
}

impl Told {
    /// Looks, and gives the kinds and objects of what it tells.
    fn look(&mut self, status: &PoolStatus) -> Vec<String> {
        self.now_s += 2;
        let events = self.observer.look(status, self.now_s);
        let short = events.iter().map(|e| format!("{} {} {}", e.severity.word(), e.kind, e.object)).collect();
        for event in events {
            let event = Event { seq: self.events.len() as u64 + 1, time_s: self.now_s, ..event };
            self.observer.learn(&event);
            self.events.push(event);
        }
        short
    }

    fn restart(&mut self) {
        self.observer = Observer::after(&self.events);
    }

    fn last(&self) -> &Event {
        self.events.last().expect("an event")
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_pool_in_which_nothing_happens_has_no_events() {
    let mut told = Told::default();
    for _ in 0..3 {
        assert_eq!(told.look(&status()), NOTHING);
        told.restart();
    }
}

#[test]
fn every_state_is_told_once() {
    let mut told = Told::default();
    let mut now = status();
    told.look(&now);
    for state in DiskState::ALL.into_iter().chain(DiskState::ALL.into_iter().rev()) {
        let changes = now.disks[1].state != state;
        now.disks[1].state = state;
        assert_eq!(told.look(&now).len(), usize::from(changes), "{state:?}");
        assert_eq!(told.look(&now), NOTHING, "{state:?}");
        told.restart();
        assert_eq!(told.look(&now), NOTHING, "{state:?} after a restart");
    }
}

#[test]
fn states_of_drives_are_told_once_also_across_restarts() {
    let mut told = Told::default();
    let mut now = status();
    told.look(&now);
    (now.disks[1].state, now.disks[1].reason) = (DiskState::Failed, Some("it burnt".into()));
    assert_eq!(told.look(&now), ["error disk.state disk/1"]);
    let event = told.last().clone();
    assert_eq!(
        (event.message.as_str(), event.cause.as_deref()),
        ("disk 1 (/dev/d1) is failed (was online)", Some("it burnt"))
    );
    assert!(event.action.unwrap().contains("ashlar disk replace 1"));
    assert_eq!(told.look(&now), NOTHING);
    told.restart();
    assert_eq!(told.look(&now), NOTHING);
    // What changed while nobody looked is told at the next look.
    now.disks[1].state = DiskState::Stale;
    told.restart();
    assert_eq!(told.look(&now), ["warning disk.state disk/1"]);
    assert_eq!(told.last().details["from"], "failed");
    now.disks[1].state = DiskState::Online;
    assert_eq!(told.look(&now), ["info disk.state disk/1"]);
    let gone = now.disks.remove(0);
    assert_eq!(told.look(&now), ["info disk.removed disk/0"]);
    assert!(told.last().message.contains("/dev/d0"));
    assert_eq!(told.look(&now), NOTHING);
    now.disks.push(gone);
    assert_eq!(told.look(&now), NOTHING, "whoever added it said so");
}

#[test]
fn errors_of_drives_are_told_at_most_once_a_minute() {
    let mut told = Told { now_s: 1000, ..Told::default() };
    let mut now = status();
    now.disks[0].read_errors = 5;
    assert_eq!(told.look(&now), NOTHING, "those of before are not new");
    now.disks[0].read_errors = 6;
    now.disks[0].checksum_errors = 2;
    assert_eq!(told.look(&now), ["warning disk.errors disk/0"]);
    assert!(told.last().message.ends_with("1 more read errors, 2 more frames with wrong checksums"));
    now.disks[0].write_errors = 1;
    assert_eq!(told.look(&now), NOTHING);
    told.now_s += ERRORS_EVERY_S;
    assert_eq!(told.look(&now), ["warning disk.errors disk/0"]);
    assert!(told.last().message.ends_with("1 more write errors"));
}

#[test]
fn alerts_are_raised_and_cleared_once_also_across_restarts() {
    let mut told = Told::default();
    let mut now = status();
    let alert = |severity: &str, object: &str, message: &str| Alert {
        severity: severity.into(),
        code: "c".into(),
        object: object.into(),
        message: message.into(),
    };
    now.alerts = vec![alert("warning", "disk/1", "A 1"), alert("critical", "pool", "B")];
    assert_eq!(told.look(&now), ["warning alert.raised disk/1", "critical alert.raised pool"]);
    // Its figures change all the time.
    now.alerts[0].message = "A 2".into();
    assert_eq!(told.look(&now), NOTHING);
    told.restart();
    assert_eq!(told.look(&now), NOTHING);
    let active = told.observer.active(now.alerts.clone());
    assert_eq!((active[0].event, active[0].since_s, active[0].alert.message.as_str()), (Some(1), Some(2), "A 2"));
    now.alerts[0].severity = "critical".into();
    assert_eq!(told.look(&now), ["critical alert.raised disk/1"], "it got worse");
    now.alerts.remove(0);
    told.restart();
    assert_eq!(told.look(&now), ["info alert.cleared disk/1"]);
    assert_eq!(told.last().details["raised_by_event"], "3");
    told.restart();
    assert_eq!(told.look(&now), NOTHING);
}

#[test]
fn rebuilds_have_a_start_an_end_and_a_duration() {
    let mut told = Told::default();
    let mut now = status();
    let rebuild = |total| Rebuild {
        cause: "disk 1 is gone".into(),
        total,
        done: 0,
        waiting: 0,
        bytes_per_second: 0,
        eta_s: None,
    };
    told.look(&now);
    now.rebuild = Some(rebuild(10 << 20));
    assert_eq!(told.look(&now), ["info rebuild.started pool"]);
    assert_eq!(told.last().cause.as_deref(), Some("disk 1 is gone"));
    now.rebuild = Some(rebuild(30 << 20));
    assert_eq!(told.look(&now), NOTHING);
    now.rebuild = None;
    assert_eq!(told.look(&now), NOTHING, "it may go on");
    assert_eq!(told.look(&now), ["info rebuild.finished pool"]);
    let event = told.last();
    assert_eq!((event.details["bytes"].as_str(), event.details["duration_s"].as_str()), ("31457280", "6"));
    assert_eq!(told.look(&now), NOTHING);
    // What follows at once is work of its own.
    now.rebuild = Some(rebuild(1));
    assert_eq!(told.look(&now), ["info rebuild.started pool"]);
    now.rebuild = Some(Rebuild { cause: Rebuild::SPREADING.into(), ..rebuild(5) });
    assert_eq!(told.look(&now), ["info rebuild.finished pool", "info balance.started pool"]);
    told.restart();
    assert_eq!(told.look(&now), NOTHING);
    now.rebuild = None;
    assert_eq!(told.look(&now), NOTHING);
    assert_eq!(told.look(&now), ["info balance.finished pool"]);
    // One that a restart interrupts goes on some seconds later.
    now.rebuild = Some(rebuild(1));
    told.look(&now);
    told.restart();
    now.rebuild = None;
    for _ in 1..QUIET_AFTER_START {
        assert_eq!(told.look(&now), NOTHING);
    }
    now.rebuild = Some(rebuild(1));
    assert_eq!(told.look(&now), NOTHING);
    now.rebuild = None;
    let end: Vec<String> = (0..QUIET_AFTER_START).flat_map(|_| told.look(&now)).collect();
    assert_eq!(end, ["info rebuild.finished pool"]);
}

#[test]
fn scrubs_are_told_with_what_they_found() {
    let mut told = Told::default();
    let mut now = status();
    now.scrub = Scrub { begun_s: Some(5), ended_s: Some(9), complete: true, ..Scrub::default() };
    assert_eq!(told.look(&now), NOTHING, "it was before there were events");
    now.scrub = Scrub { running: true, begun_s: Some(50), ..Scrub::default() };
    assert_eq!(told.look(&now), ["info scrub.started pool"]);
    told.restart();
    assert_eq!(told.look(&now), NOTHING);
    now.scrub = Scrub { running: false, ended_s: Some(60), complete: true, repaired: 3, ..now.scrub };
    assert_eq!(told.look(&now), ["warning scrub.finished pool"]);
    assert_eq!(told.last().message, "the scrub is through after 10.0 s: 3 columns healed, 0 segments damaged");
    told.restart();
    assert_eq!(told.look(&now), NOTHING);
    // One that came and went between two looks.
    now.scrub = Scrub { begun_s: Some(70), ended_s: Some(71), complete: false, damaged: 1, ..Scrub::default() };
    assert_eq!(told.look(&now), ["info scrub.started pool", "critical scrub.finished pool"]);
    assert!(told.last().message.contains("was stopped") && told.last().action.is_some());
}

#[test]
fn health_damage_and_tolerance_are_told() {
    let mut told = Told::default();
    let mut now = status();
    told.look(&now);
    (now.health, now.damaged_segments, now.tolerance) = ("critical".into(), 2, Tolerance::Double);
    let expected = ["critical damage.found pool", "critical pool.health pool", "info pool.tolerance pool"];
    assert_eq!(told.look(&now), expected);
    told.restart();
    assert_eq!(told.look(&now), NOTHING);
    (now.health, now.damaged_segments) = ("healthy".into(), 0);
    assert_eq!(told.look(&now), ["info damage.healed pool", "info pool.health pool"]);
    told.restart();
    assert_eq!(told.look(&now), NOTHING);
}

#[test]
fn events_that_are_not_understood_teach_nothing() {
    let kinds = [
        "disk.state",
        "disk.added",
        "disk.removed",
        "alert.raised",
        "alert.cleared",
        "rebuild.started",
        "scrub.started",
        "scrub.finished",
        "pool.tolerance",
        "pool.health",
        "of.the.future",
    ];
    for object in ["pool", "disk/x", "disk/70000", "disk/1", ""] {
        let events: Vec<Event> = kinds.iter().map(|kind| Event::new(Severity::Info, kind, object, "x")).collect();
        let mut observer = Observer::after(&events);
        observer.look(&status(), 1);
    }
}
