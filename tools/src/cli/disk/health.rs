//! What drives tell about themselves, for people.

use blockdev::report::{DriveHealth, HealthSource, HealthState};

use crate::output::{size, timestamp};

/// One word for a drive's health; a dash when it does not tell.
pub fn word(health: &DriveHealth) -> &'static str {
    match health.state {
        HealthState::NotReported => "-",
        HealthState::Good => "good",
        HealthState::Warning => "warning",
        HealthState::Critical => "critical",
    }
}

/// Used endurance; a dash when the drive does not tell.
pub fn wear(health: &DriveHealth) -> String {
    health.wear_percent.map_or_else(|| "-".into(), |used| format!("{used} %"))
}

/// All there is, line by line.
pub fn lines(health: &DriveHealth) -> Vec<(&'static str, String)> {
    let mut lines = vec![("health", verdict(health))];
    for warning in &health.warnings {
        let severity = warning.severity.word();
        lines.push(("warning", format!("{severity} [{}] {}; {}", warning.code, warning.cause, warning.action)));
    }
    let mut text = |key, value: Option<String>| lines.extend(value.map(|value| (key, value)));
    text("model", health.model.clone());
    text("serial", health.serial.clone());
    text("firmware", health.firmware.clone());
    text("capacity", health.capacity.map(size));
    text("temperature", temperature(health));
    text("wear", health.wear_percent.map(|used| format!("{used} % of its endurance used")));
    text("spare blocks", spare(health));
    let count = |n: Option<u64>| n.map(|n| n.to_string());
    text("media errors", count(health.media_errors));
    text("reallocated", count(health.reallocated_sectors).map(|n| format!("{n} sectors")));
    text("pending", count(health.pending_sectors).map(|n| format!("{n} sectors")));
    text("power-on hours", count(health.power_on_hours));
    text("power cycles", count(health.power_cycles));
    text("unsafe shutdowns", count(health.unsafe_shutdowns));
    text("written to it", health.written.map(size));
    text("read from it", health.read.map(size));
    lines
}

fn verdict(health: &DriveHealth) -> String {
    let note = health.note.as_ref().map_or_else(String::new, |note| format!("; {note}"));
    let from = match health.source {
        None => return format!("not reported{note}"),
        Some(HealthSource::Nvme) => "NVMe health log",
        Some(HealthSource::Ata) => "SMART",
        Some(HealthSource::Scsi) => "SCSI log pages",
    };
    let when = health.checked_s.map_or_else(String::new, |s| format!(", {}", timestamp(s)));
    format!("{} ({from}{when}){note}", word(health))
}

fn temperature(health: &DriveHealth) -> Option<String> {
    let limits = [("warns at", health.temperature_warning_c), ("critical at", health.temperature_critical_c)];
    let limits: Vec<String> =
        limits.into_iter().filter_map(|(what, t)| t.filter(|t| *t > 0).map(|t| format!("{what} {t} °C"))).collect();
    let now = format!("{} °C", health.temperature_c?);
    Some(if limits.is_empty() { now } else { format!("{now} ({})", limits.join(", ")) })
}

fn spare(health: &DriveHealth) -> Option<String> {
    let left = health.spare_percent?;
    Some(match health.spare_threshold_percent {
        Some(least) => format!("{left} % left (not reliable below {least} %)"),
        None => format!("{left} % left"),
    })
}

#[cfg(test)]
mod tests {
    use blockdev::report::{HealthWarning, Severity};

    use super::*;
    use crate::output::pairs;

    #[test]
    fn all_that_a_drive_tells_is_shown_and_nothing_else() {
        let health = DriveHealth {
            state: HealthState::Critical,
            source: Some(HealthSource::Nvme),
            note: None,
            checked_s: Some(0),
            model: Some("Fast SSD".into()),
            serial: Some("S1".into()),
            firmware: Some("F2".into()),
            capacity: Some(1 << 40),
            temperature_c: Some(81),
            temperature_warning_c: Some(80),
            temperature_critical_c: Some(0),
            wear_percent: Some(104),
            spare_percent: Some(9),
            spare_threshold_percent: Some(10),
            media_errors: Some(3),
            reallocated_sectors: None,
            pending_sectors: None,
            power_on_hours: Some(8760),
            power_cycles: Some(44),
            unsafe_shutdowns: Some(5),
            written: Some(3 << 40),
            read: Some(2 << 40),
            warnings: vec![HealthWarning {
                severity: Severity::Critical,
                code: "disk.health.wear".into(),
                cause: "104 % used up".into(),
                action: "replace it".into(),
            }],
        };
        let text = pairs(&lines(&health), 0);
        for expected in [
            "health:            critical (NVMe health log, 1970-01-01 00:00:00Z)\n",
            "warning:           critical [disk.health.wear] 104 % used up; replace it\n",
            "model:             Fast SSD\n",
            "serial:            S1\n",
            "firmware:          F2\n",
            "capacity:          1 TiB\n",
            "temperature:       81 °C (warns at 80 °C)\n",
            "wear:              104 % of its endurance used\n",
            "spare blocks:      9 % left (not reliable below 10 %)\n",
            "media errors:      3\n",
            "power-on hours:    8760\n",
            "power cycles:      44\n",
            "unsafe shutdowns:  5\n",
            "written to it:     3 TiB\n",
            "read from it:      2 TiB\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        assert_eq!(text.lines().count(), 15, "{text}");
        assert_eq!((word(&health), wear(&health).as_str()), ("critical", "104 %"));
    }

    #[test]
    fn a_drive_that_tells_nothing_has_one_line() {
        let health = DriveHealth::not_reported("it is a file");
        assert_eq!(lines(&health), [("health", "not reported; it is a file".to_owned())]);
        assert_eq!((word(&health), wear(&health).as_str()), ("-", "-"));
    }
}
