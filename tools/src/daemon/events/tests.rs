use blockdev::report::Severity;

use super::*;

const SOON: Duration = Duration::from_millis(20);

fn open(dir: &Path) -> Events {
    Events::with_file(dir, EventFile::new(dir, FILE_MAX), SOON).unwrap()
}

fn event(text: &str) -> Event {
    Event::new(Severity::Info, "test.kind", "pool", text)
}

fn texts(events: &[Event]) -> Vec<&str> {
    events.iter().map(|e| e.message.as_str()).collect()
}

fn until(what: impl Fn() -> bool) {
    let patience = Instant::now();
    while !what() {
        assert!(patience.elapsed() < Duration::from_secs(20), "it did not come to be");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn events_are_numbered_across_lives() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path());
    assert_eq!([events.record(event("a")).seq, events.record(event("b")).seq], [1, 2]);
    events.flush(Duration::from_secs(20));
    // Killed: nothing is dropped in order.
    std::mem::forget(events);
    let events = open(dir.path());
    assert_eq!(events.record(event("c")).seq, 3);
    let all = events.all();
    assert_eq!((texts(&all), all[2].seq), (vec!["a", "b", "c"], 3));
    assert!(all.iter().all(|e| e.time_s > 1_600_000_000));
    events.flush(Duration::from_secs(20));
    assert_eq!(file::load(dir.path()).0, all);
}

#[test]
fn many_at_once_are_all_kept_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path());
    std::thread::scope(|scope| {
        for n in 0..4 {
            let events = &events;
            scope.spawn(move || (0..500).for_each(|m| drop(events.record(event(&format!("{n} {m}"))))));
        }
    });
    events.flush(Duration::from_secs(20));
    let kept: Vec<u64> = file::load(dir.path()).0.iter().map(|e| e.seq).collect();
    assert_eq!(kept, (1..=2000).collect::<Vec<_>>());
    assert_eq!(*events.subscribe().borrow(), 2000);
}

#[test]
fn pages_go_by_number_or_show_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path());
    for n in 1..=10 {
        let severity = if n % 5 == 0 { Severity::Error } else { Severity::Info };
        events.record(Event { severity, ..event(&n.to_string()) });
    }
    let page = |query: EventQuery| {
        let page = events.page(&query);
        (texts(&page.events).join(" "), page.next)
    };
    assert_eq!(page(EventQuery { limit: Some(3), ..EventQuery::default() }), ("8 9 10".into(), 10));
    assert_eq!(page(EventQuery { after: Some(0), limit: Some(3), ..EventQuery::default() }), ("1 2 3".into(), 3));
    assert_eq!(page(EventQuery { after: Some(8), ..EventQuery::default() }), ("9 10".into(), 10));
    assert_eq!(page(EventQuery { after: Some(99), ..EventQuery::default() }), (String::new(), 10));
    let errors = EventQuery { severity: Some(Severity::Error), ..EventQuery::default() };
    assert_eq!(page(errors.clone()), ("5 10".into(), 10));
    // A follower passes what it does not ask for, and does not pass what it did not get.
    assert_eq!(page(EventQuery { after: Some(0), limit: Some(1), ..errors.clone() }), ("5".into(), 5));
    assert_eq!(page(EventQuery { after: Some(5), limit: Some(1), ..errors }), ("10".into(), 10));
    assert_eq!(page(EventQuery { after: Some(3), limit: Some(0), ..EventQuery::default() }), (String::new(), 3));
}

#[test]
fn a_full_file_system_harms_nothing_and_events_are_written_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = files(dir.path())[0].clone();
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let events = open(dir.path());
    events.record(event("a"));
    until(|| events.alert().is_some());
    events.record(event("b"));
    assert_eq!(texts(&events.all()), ["a", "b"]);
    let alert = events.alert().unwrap();
    assert_eq!((alert.code.as_str(), alert.object.as_str()), ("events.not_kept", "daemon"));
    assert!(alert.message.contains("events.jsonl") && alert.message.contains("No space"), "{}", alert.message);
    // Whoever stops the daemon does not wait for ever.
    events.flush(Duration::from_secs(20));
    std::fs::remove_file(&path).unwrap();
    until(|| events.alert().is_none());
    events.flush(Duration::from_secs(20));
    assert_eq!(file::load(dir.path()).0, events.all());
}

#[test]
fn memory_is_bounded_and_texts_are_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = files(dir.path())[0].clone();
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let events = open(dir.path());
    let long = "ü".repeat(100_000);
    for _ in 0..5_000 {
        events.record(event(&long).cause(&long).detail("x", &long));
    }
    let list = events.shared.list.lock();
    assert!(list.bytes <= MEMORY_MAX && list.bytes == list.events.iter().map(weight).sum::<usize>());
    assert!(list.events.len() > 100 && list.last == 5_000);
    assert!(list.events.iter().all(|e| e.message.len() <= TEXT_MAX + 4 && e.message.ends_with('…')));
}

#[tokio::test]
async fn subscribers_hear_of_new_events() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path());
    let mut newest = events.subscribe();
    events.record(event("a"));
    let seen = tokio::time::timeout(Duration::from_secs(20), newest.wait_for(|seq| *seq >= 1)).await;
    assert_eq!(*seen.unwrap().unwrap(), 1);
}
