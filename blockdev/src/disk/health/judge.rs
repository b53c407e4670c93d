//! From a drive's figures to a verdict and to warnings in words.

use std::cmp::Reverse;

use crate::report::{DriveHealth, HealthState, HealthWarning, Severity};

/// Per cent of its endurance from which on a drive should be replaced soon, and at once.
const WORN_SOON: u16 = 90;
const WORN_OUT: u16 = 100;

/// Adds a warning, unless the same was given already. `code` lacks its beginning `disk.health.`.
pub fn warn(health: &mut DriveHealth, severity: Severity, code: &str, cause: &str, action: &str) {
    let code = format!("disk.health.{code}");
    match health.warnings.iter_mut().find(|w| w.code == code) {
        Some(known) if known.severity >= severity => {}
        Some(known) => (known.severity, known.cause, known.action) = (severity, cause.into(), action.into()),
        None => health.warnings.push(HealthWarning { severity, code, cause: cause.into(), action: action.into() }),
    }
}

/// Warns of what the figures say, orders all warnings, and sets the verdict.
pub fn judge(health: &mut DriveHealth) {
    const SOON: &str = "plan to replace it (`ashlar disk replace`)";
    const NOW: &str = "replace it (`ashlar disk replace`)";
    if let Some(worn) = health.wear_percent {
        let cause = format!("{worn} % of the writes it is made for are used up");
        match worn {
            WORN_OUT.. => warn(health, Severity::Critical, "wear", &cause, NOW),
            WORN_SOON.. => warn(health, Severity::Warning, "wear", &cause, SOON),
            _ => {}
        }
    }
    if let (Some(left), Some(least)) = (health.spare_percent, health.spare_threshold_percent)
        && left < least
    {
        let cause = format!("{left} % of its spare blocks are left, less than the {least} % it needs to be reliable");
        warn(health, Severity::Critical, "spare", &cause, NOW);
    }
    if let Some(now) = health.temperature_c {
        let at_least = |limit: Option<i32>| limit.filter(|limit| *limit > 0 && now >= *limit);
        if let Some(limit) = at_least(health.temperature_critical_c) {
            let cause = format!("it has {now} °C, and {limit} °C may harm it");
            warn(health, Severity::Critical, "temperature", &cause, "see to its cooling at once");
        } else if let Some(limit) = at_least(health.temperature_warning_c) {
            let cause = format!("it has {now} °C, and should have less than {limit} °C");
            warn(health, Severity::Warning, "temperature", &cause, "see to its cooling");
        }
    }
    if let Some(pending) = health.pending_sectors.filter(|n| *n > 0) {
        let cause = format!("it cannot read {pending} of its sectors");
        let action = "a scrub (`ashlar pool scrub`) writes what is in use anew; plan to replace it if they become more";
        warn(health, Severity::Warning, "pending", &cause, action);
    }
    health.warnings.sort_by_key(|w| Reverse(w.severity));
    health.state = match health.warnings.first().map(|w| w.severity) {
        _ if health.source.is_none() => HealthState::NotReported,
        None | Some(Severity::Info) => HealthState::Good,
        Some(Severity::Warning) => HealthState::Warning,
        Some(Severity::Error | Severity::Critical) => HealthState::Critical,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::HealthSource;

    fn judged(change: impl FnOnce(&mut DriveHealth)) -> (HealthState, Vec<(Severity, String)>) {
        let mut health = DriveHealth { source: Some(HealthSource::Nvme), ..DriveHealth::default() };
        change(&mut health);
        judge(&mut health);
        for warning in &health.warnings {
            assert!(!warning.cause.is_empty() && !warning.action.is_empty());
        }
        let short = |w: HealthWarning| (w.severity, w.code.trim_start_matches("disk.health.").to_owned());
        (health.state, health.warnings.into_iter().map(short).collect())
    }

    fn one(severity: Severity, code: &str) -> Vec<(Severity, String)> {
        vec![(severity, code.to_owned())]
    }

    #[test]
    fn a_drive_that_warns_of_nothing_is_good_and_one_that_tells_nothing_is_not() {
        assert_eq!(judged(|_| {}), (HealthState::Good, vec![]));
        assert_eq!(judged(|h| h.source = None).0, HealthState::NotReported);
    }

    #[test]
    fn wear_is_told_at_90_and_at_100_per_cent() {
        assert_eq!(judged(|h| h.wear_percent = Some(89)).0, HealthState::Good);
        let soon = (HealthState::Warning, one(Severity::Warning, "wear"));
        assert_eq!(judged(|h| h.wear_percent = Some(90)), soon);
        assert_eq!(judged(|h| h.wear_percent = Some(99)), soon);
        let out = (HealthState::Critical, one(Severity::Critical, "wear"));
        assert_eq!(judged(|h| h.wear_percent = Some(100)), out);
        assert_eq!(judged(|h| h.wear_percent = Some(255)), out);
    }

    #[test]
    fn spare_counts_below_its_threshold_only() {
        let spare =
            |left, least| judged(move |h| (h.spare_percent, h.spare_threshold_percent) = (Some(left), Some(least))).1;
        assert_eq!(spare(9, 10), one(Severity::Critical, "spare"));
        assert!(spare(10, 10).is_empty() && spare(0, 0).is_empty());
    }

    #[test]
    fn temperature_has_two_limits_and_a_drive_may_name_none() {
        let at = |now, warning, critical| {
            judged(move |h| {
                h.temperature_c = Some(now);
                (h.temperature_warning_c, h.temperature_critical_c) = (warning, critical);
            })
            .1
        };
        assert!(at(69, Some(70), Some(80)).is_empty() && at(200, None, None).is_empty());
        assert!(at(30, Some(-273), Some(0)).is_empty(), "limits of zero are none");
        assert_eq!(at(70, Some(70), Some(80)), one(Severity::Warning, "temperature"));
        assert_eq!(at(80, Some(70), Some(80)), one(Severity::Critical, "temperature"));
    }

    #[test]
    fn the_same_warning_is_given_once_and_the_worst_comes_first() {
        let (state, all) = judged(|h| {
            warn(h, Severity::Warning, "temperature", "hot", "cool it");
            warn(h, Severity::Warning, "pending", "told", "do");
            h.pending_sectors = Some(3);
            (h.temperature_c, h.temperature_critical_c) = (Some(90), Some(85));
        });
        assert_eq!(state, HealthState::Critical);
        let expected =
            [(Severity::Critical, "temperature"), (Severity::Warning, "pending")].map(|(s, c)| (s, c.to_owned()));
        assert_eq!(all, expected);
    }
}
