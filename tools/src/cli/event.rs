//! `ashlar event`.

use std::time::{Duration, Instant, SystemTime};

use blockdev::report::Severity;

use super::Global;
use crate::client::{Client, segment};
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{Align, Format, Table, pairs, say_on, show, timestamp};
use crate::values::parse_age;
use crate::wire::events::{Event, EventPage, EventQuery, LIMIT, LIMIT_MAX};

/// Seconds the daemon may wait for an event before it answers that there is none.
const WAIT_S: u64 = 30;
/// Time without a daemon after which a follower gives up, and its pause between tries.
const ABSENT_MAX: Duration = Duration::from_secs(60);
const ABSENT_POLL: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// What happened: drives, rebuilds, scrubs, alerts, volumes, the daemon; oldest first
    ///
    /// The list is bounded: of old events the oldest go. It outlives the daemon, however that ends.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  ashlar event list --since 2h --severity warning\n  ashlar event list --object disk/3 -o json\n  ashlar event list --follow"
    )]
    List(Selection),
    /// All there is about one event: cause, what to do, who asked for it
    #[command(after_help = "Example:\n  ashlar event show 17")]
    Show {
        /// Number of the event
        seq: u64,
    },
}

#[derive(Debug, clap::Args)]
pub struct Selection {
    /// Only events of so long ago or less, such as 90s, 30m, 2h or 7d
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    since: Option<Duration>,
    /// Only events that matter at least so much
    #[arg(long, value_name = "info|warning|error|critical", value_parser = parse_severity)]
    severity: Option<Severity>,
    /// Only events of this object (disk/3, volume/db, pool, daemon) or kind of object (disk, volume)
    #[arg(long, value_name = "OBJECT")]
    object: Option<String>,
    /// Only events of this kind, such as disk.state, or of kinds that begin with it, such as disk
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// At most so many, the newest ones
    #[arg(long, value_name = "N", default_value_t = LIMIT as u64, value_parser = clap::value_parser!(u64).range(1..=LIMIT_MAX as u64))]
    limit: u64,
    /// Go on showing events as they come, also across a restart of the daemon; with -o json one object a line
    #[arg(short, long)]
    follow: bool,
}

/// For clap: a severity by its word.
pub fn parse_severity(text: &str) -> Result<Severity, String> {
    let all = [Severity::Info, Severity::Warning, Severity::Error, Severity::Critical];
    all.into_iter().find(|s| s.word() == text).ok_or_else(|| "use info, warning, error or critical".into())
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let client = global.client();
    match command {
        Command::List(selection) => {
            let query = query(&selection);
            if selection.follow {
                super::talk(follow(&client, query, global.output))?;
            } else {
                let page: EventPage = super::talk(client.get(&path(&query)))?;
                show(global.output, &page.events, |events| table(events))?;
            }
        }
        Command::Show { seq } => {
            let query = EventQuery { after: Some(seq.saturating_sub(1)), limit: Some(1), ..EventQuery::default() };
            let page: EventPage = super::talk(client.get(&path(&query)))?;
            let event = page.events.into_iter().find(|event| event.seq == seq).ok_or_else(|| {
                Failure::not_found(format!("there is no event {seq}, or not any more; `ashlar event list` shows them"))
            })?;
            show(global.output, &event, describe)?;
        }
    }
    Ok(Exit::Ok)
}

fn query(selection: &Selection) -> EventQuery {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    EventQuery {
        since_s: selection.since.map(|age| now.saturating_sub(age).as_secs()),
        severity: selection.severity,
        object: selection.object.clone(),
        kind: selection.kind.clone(),
        limit: Some(selection.limit as usize),
        ..EventQuery::default()
    }
}

/// The resource that answers a query.
fn path(query: &EventQuery) -> String {
    let number = |n: Option<u64>| n.map(|n| n.to_string());
    let fields = [
        ("after", number(query.after)),
        ("since_s", number(query.since_s)),
        ("severity", query.severity.map(|s| s.word().to_owned())),
        ("object", query.object.clone()),
        ("kind", query.kind.clone()),
        ("limit", number(query.limit.map(|n| n as u64))),
        ("wait_s", number(query.wait_s)),
    ];
    let given = fields.into_iter().filter_map(|(name, value)| value.map(|value| format!("{name}={}", segment(&value))));
    format!("/v1/events?{}", given.collect::<Vec<_>>().join("&"))
}

/// Shows events as they come until it is interrupted, nobody reads them any more, or there is no daemon for a minute.
async fn follow(client: &Client, mut query: EventQuery, format: Format) -> CommandResult {
    let mut last: Option<u64> = None;
    let mut absent: Option<Instant> = None;
    loop {
        let page: EventPage = match client.get(&path(&query)).await {
            Ok(page) => page,
            // One that is being restarted.
            Err(e) if e.exit == Exit::Unreachable && last.is_some() => {
                if absent.get_or_insert_with(Instant::now).elapsed() > ABSENT_MAX {
                    return Err(e);
                }
                tokio::time::sleep(ABSENT_POLL).await;
                continue;
            }
            Err(e) => return Err(e),
        };
        absent = None;
        for event in &page.events {
            let text = match format {
                Format::Json => serde_json::to_string(event).unwrap_or_default(),
                Format::Table => line(event),
            };
            if !say_on(text)? {
                return Ok(());
            }
        }
        if last.is_none() {
            // What was in the list is shown; all that follows is wanted.
            (query.limit, query.since_s, query.wait_s) = (Some(LIMIT_MAX), None, Some(WAIT_S));
        }
        last = Some(page.next);
        query.after = last;
    }
}

/// One event on a line of its own, in columns as far as they are known beforehand.
fn line(event: &Event) -> String {
    let Event { seq, severity, kind, object, message, .. } = event;
    let text =
        format!("{seq:>6}  {}  {:<8}  {kind:<16}  {object:<10}  {message}", timestamp(event.time_s), severity.word());
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn table(events: &[Event]) -> String {
    let mut table = Table::new(&[
        ("SEQ", Align::Right),
        ("TIME", Align::Left),
        ("SEVERITY", Align::Left),
        ("KIND", Align::Left),
        ("OBJECT", Align::Left),
        ("MESSAGE", Align::Left),
    ]);
    for event in events {
        table.row([
            event.seq.to_string(),
            timestamp(event.time_s),
            event.severity.word().into(),
            event.kind.clone(),
            event.object.clone(),
            event.message.clone(),
        ]);
    }
    table.render(0)
}

fn describe(event: &Event) -> String {
    let mut lines = vec![
        ("event", event.seq.to_string()),
        ("time", timestamp(event.time_s)),
        ("severity", event.severity.word().into()),
        ("kind", event.kind.clone()),
        ("object", event.object.clone()),
        ("message", event.message.clone()),
    ];
    for (key, value) in
        [("cause", &event.cause), ("what to do", &event.action), ("user", &event.user), ("command", &event.command)]
    {
        lines.extend(value.clone().map(|value| (key, value)));
    }
    lines.extend(event.details.iter().map(|(name, value)| (name.as_str(), value.clone())));
    pairs(&lines, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event { seq: 17, ..Event::new(Severity::Error, "disk.state", "disk/3", "it is failed\x1b") }
    }

    #[test]
    fn a_query_is_written_into_the_path() {
        assert_eq!(path(&EventQuery::default()), "/v1/events?");
        let query = EventQuery {
            after: Some(4),
            severity: Some(Severity::Warning),
            object: Some("disk/3&x".into()),
            limit: Some(7),
            ..EventQuery::default()
        };
        assert_eq!(path(&query), "/v1/events?after=4&severity=warning&object=disk%2F3%26x&limit=7");
    }

    #[test]
    fn events_are_shown_on_a_line_in_a_table_and_in_full() {
        let full = event().cause("it burnt").action("replace it").detail("from", "online");
        let text = describe(&full);
        for part in
            ["event:       17\n", "cause:       it burnt\n", "what to do:  replace it\n", "from:        online\n"]
        {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(!text.contains("user"));
        assert_eq!(
            line(&event()),
            "    17  1970-01-01 00:00:00Z  error     disk.state        disk/3      it is failed?"
        );
        assert!(table(&[event()]).ends_with("17  1970-01-01 00:00:00Z  error     disk.state  disk/3  it is failed?\n"));
    }
}
