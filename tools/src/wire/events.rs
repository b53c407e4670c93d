//! What the REST API speaks of events and alerts.

use std::collections::BTreeMap;

use blockdev::report::{Alert, Severity};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Events in an answer when nothing else is said, and at most.
pub const LIMIT: usize = 100;
/// See [`LIMIT`].
pub const LIMIT_MAX: usize = 1000;
/// Longest time, in seconds, that an answer waits for an event.
pub const WAIT_MAX_S: u64 = 60;

/// Something that happened to the appliance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Events are numbered in their order, whatever the clock says.
    pub seq: u64,
    /// When it was noticed, in seconds since 1970.
    pub time_s: u64,
    /// How much it matters.
    pub severity: Severity,
    /// Stable short word, such as `disk.state` or `alert.raised`.
    pub kind: String,
    /// What it happened to: `pool`, `daemon`, `disk/3`, `volume/db`.
    pub object: String,
    /// What happened.
    pub message: String,
    /// Why, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to do about it, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Who asked for it: a user of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The command that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// More, by name; figures with their unit in the name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

impl Event {
    /// An event that gets its number and time when it is recorded.
    pub fn new(severity: Severity, kind: &str, object: impl Into<String>, message: impl Into<String>) -> Self {
        let (kind, object, message) = (kind.to_owned(), object.into(), message.into());
        Self { severity, kind, object, message, ..Self::default() }
    }

    /// Adds why; an empty text is none.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into()).filter(|text| !text.is_empty());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.action = Some(action.into()).filter(|text| !text.is_empty());
        self
    }

    /// Adds a detail.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl ToString) -> Self {
        self.details.insert(name.to_owned(), value.to_string());
        self
    }
}

/// Which events are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Only events after the one of this number, oldest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Only events since this time, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_s: Option<u64>,
    /// Only events that matter at least so much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// Only events of this object (`disk/3`), or of objects of this kind (`disk`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Only events of this kind (`disk.state`), or of kinds that begin with it (`disk`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// At most so many: the newest ones, or, with `after`, the oldest. 100 unless given, at most 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// When there are none, the answer waits for one up to so many seconds, at most 60.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_s: Option<u64>,
}

/// Whether `text` is `wanted`, or begins with it and a `mark`.
fn falls_under(text: &str, wanted: &str, mark: char) -> bool {
    text.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with(mark))
}

impl EventQuery {
    /// Whether an event is asked for, numbers and limits aside.
    pub fn takes(&self, event: &Event) -> bool {
        self.since_s.is_none_or(|since| event.time_s >= since)
            && self.severity.is_none_or(|least| event.severity >= least)
            && self.object.as_ref().is_none_or(|wanted| falls_under(&event.object, wanted, '/'))
            && self.kind.as_ref().is_none_or(|wanted| falls_under(&event.kind, wanted, '.'))
    }
}

/// Events that were asked for, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    /// The events.
    pub events: Vec<Event>,
    /// What to give as `after` to get those that follow.
    pub next: u64,
}

/// An alert, and since when it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActiveAlert {
    /// The alert.
    #[serde(flatten)]
    pub alert: Alert,
    /// When it was raised, in seconds since 1970; not there in the moment before that is noted.
    pub since_s: Option<u64>,
    /// Number of the event that says so.
    pub event: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_takes_what_falls_under_it() {
        let event = Event { time_s: 50, ..Event::new(Severity::Warning, "disk.state", "disk/3", "x") };
        let takes = |text: &str| serde_json::from_str::<EventQuery>(text).unwrap().takes(&event);
        for text in [
            "{}",
            r#"{"since_s":50}"#,
            r#"{"severity":"info"}"#,
            r#"{"severity":"warning","object":"disk","kind":"disk"}"#,
            r#"{"object":"disk/3","kind":"disk.state"}"#,
        ] {
            assert!(takes(text), "{text}");
        }
        for text in [
            r#"{"since_s":51}"#,
            r#"{"severity":"error"}"#,
            r#"{"object":"disk/31"}"#,
            r#"{"object":"dis"}"#,
            r#"{"kind":"disk.st"}"#,
            r#"{"kind":"alert"}"#,
        ] {
            assert!(!takes(text), "{text}");
        }
    }
}
