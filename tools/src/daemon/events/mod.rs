//! What happened to the appliance: a numbered, bounded list that outlives the daemon.
//!
//! Recording an event never waits: it enters the list in memory, and a thread of its own brings it to the file. When that cannot be written the
//! list goes on in memory, an alert says so, and what is still in the list is written once it works again.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockdev::report::Alert;
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::state::now_s;
use crate::wire::events::{Event, EventPage, EventQuery, LIMIT, LIMIT_MAX};

mod file;
pub mod lifetime;
pub mod observer;
pub mod origin;

pub use file::files;
use file::{EventFile, FILE_MAX};

/// Bytes of events in memory, about.
const MEMORY_MAX: usize = 4 << 20;
/// Longest text of an event, in bytes.
const TEXT_MAX: usize = 2048;
/// Events that are written at once.
const BATCH: usize = 128;
/// Pause before what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The list of events.
pub struct Events {
    shared: Arc<Shared>,
    newest: watch::Sender<u64>,
}

struct Shared {
    list: Mutex<List>,
    /// Told when there is something to write, and when it was written.
    changed: Condvar,
}

struct List {
    events: VecDeque<Event>,
    bytes: usize,
    /// Number of the newest event.
    last: u64,
    /// Number of the newest event that is in the file.
    written: u64,
    /// Why the file cannot be written.
    trouble: Option<String>,
    closing: bool,
}

/// Bytes of an event in memory, about.
fn weight(event: &Event) -> usize {
    let texts = [&event.cause, &event.action, &event.user, &event.command];
    let optional: usize = texts.into_iter().flatten().map(String::len).sum();
    let details: usize = event.details.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
    size_of::<Event>() + event.kind.len() + event.object.len() + event.message.len() + optional + details
}

fn shorten(text: &mut String) {
    if text.len() > TEXT_MAX {
        let mut end = TEXT_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
}

impl List {
    fn push(&mut self, event: Event) {
        self.bytes += weight(&event);
        self.events.push_back(event);
        while self.bytes > MEMORY_MAX
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= weight(&oldest);
        }
    }

    /// Position of the first event after number `seq`.
    fn after(&self, seq: u64) -> usize {
        self.events.partition_point(|event| event.seq <= seq)
    }
}

impl Events {
    /// The events kept in a state directory, which new ones are added to.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        Self::with_file(state_dir, EventFile::new(state_dir, FILE_MAX), RETRY)
    }

    fn with_file(state_dir: &Path, file: EventFile, retry: Duration) -> io::Result<Self> {
        let (events, bad) = file::load(state_dir);
        if bad > 0 {
            tracing::warn!(lines = bad, file = %file.path().display(), "lines that are no events are left out");
        }
        let last = events.last().map_or(0, |event| event.seq);
        let (written, trouble, closing) = (last, None, false);
        let mut list = List { events: VecDeque::new(), bytes: 0, last, written, trouble, closing };
        events.into_iter().for_each(|event| list.push(event));
        let shared = Arc::new(Shared { list: Mutex::new(list), changed: Condvar::new() });
        let writer = shared.clone();
        std::thread::Builder::new().name("events".into()).spawn(move || write(&writer, file, retry))?;
        Ok(Self { shared, newest: watch::Sender::new(last) })
    }

    /// Adds an event; gives it back with its number and time.
    pub fn record(&self, mut event: Event) -> Event {
        let texts = [&mut event.cause, &mut event.action, &mut event.user, &mut event.command];
        texts.into_iter().flatten().chain([&mut event.message]).chain(event.details.values_mut()).for_each(shorten);
        event.time_s = now_s();
        {
            let mut list = self.shared.list.lock();
            list.last += 1;
            event.seq = list.last;
            list.push(event.clone());
        }
        let seq = event.seq;
        self.shared.changed.notify_all();
        // Two at once may arrive here in any order.
        self.newest.send_if_modified(|newest| std::mem::replace(newest, seq.max(*newest)) < seq);
        event
    }

    /// All events there are, oldest first.
    pub fn all(&self) -> Vec<Event> {
        self.shared.list.lock().events.iter().cloned().collect()
    }

    /// The events that are asked for now.
    pub fn page(&self, query: &EventQuery) -> EventPage {
        let limit = query.limit.unwrap_or(LIMIT).min(LIMIT_MAX);
        let list = self.shared.list.lock();
        let first = query.after.map_or(0, |seq| list.after(seq));
        let wanted = list.events.range(first..).filter(|event| query.takes(event));
        if query.after.is_none() {
            let mut events: Vec<Event> = wanted.rev().take(limit).cloned().collect();
            events.reverse();
            return EventPage { events, next: list.last };
        }
        let mut events: Vec<Event> = wanted.take(limit + 1).cloned().collect();
        let more = events.len() > limit;
        events.truncate(limit);
        let next = if more { events.last().map_or(query.after.unwrap_or(0), |event| event.seq) } else { list.last };
        EventPage { events, next }
    }

    /// Tells of every new event by its number.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Why events cannot be kept, when they cannot.
    pub fn alert(&self) -> Option<Alert> {
        let trouble = self.shared.list.lock().trouble.clone()?;
        Some(Alert {
            severity: "warning".into(),
            code: "events.not_kept".into(),
            object: "daemon".into(),
            message: format!(
                "events cannot be written down and are kept in memory only: {trouble}; see to that file system"
            ),
        })
    }

    /// Waits until all events are in the file, for as long as `patience` at most.
    pub fn flush(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut list = self.shared.list.lock();
        while list.written < list.last && list.trouble.is_none() {
            if self.shared.changed.wait_until(&mut list, end).timed_out() {
                return;
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.shared.list.lock().closing = true;
        self.shared.changed.notify_all();
    }
}

/// Brings events to the file until the list is dropped and empty, or cannot be written.
fn write(shared: &Shared, mut file: EventFile, retry: Duration) {
    let mut not_before: Option<Instant> = None;
    loop {
        let batch: Vec<Event> = {
            let mut list = shared.list.lock();
            loop {
                let waiting = list.written < list.last;
                if list.closing && (!waiting || list.trouble.is_some()) {
                    return;
                }
                match not_before.filter(|time| Instant::now() < *time) {
                    Some(time) => drop(shared.changed.wait_until(&mut list, time)),
                    None if waiting => break,
                    None => shared.changed.wait(&mut list),
                }
            }
            let first = list.after(list.written);
            list.events.range(first..).take(BATCH).cloned().collect()
        };
        let mut lines = Vec::new();
        for event in &batch {
            if serde_json::to_writer(&mut lines, event).is_ok() {
                lines.push(b'\n');
            }
        }
        let written = file.append(&lines);
        let mut list = shared.list.lock();
        match written {
            Ok(()) => {
                if list.trouble.take().is_some() {
                    tracing::info!(file = %file.path().display(), "events are written down again");
                }
                list.written = batch.last().map_or(list.last, |event| event.seq);
            }
            Err(e) => {
                let trouble = format!("{}: {e}", file.path().display());
                if list.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!("events cannot be written down: {trouble}");
                }
                list.trouble = Some(trouble);
                not_before = Some(Instant::now() + retry);
            }
        }
        drop(list);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
