//! What happened to an appliance, as `ashlar event` and `ashlar alert` tell it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use ashlar_tests::process::{signal, wait, wait_until};
use ashlar_tests::require::{Need, met};
use ashlar_tests::{Lab, ashlar};
use serde_json::Value;

use crate::tools::{SMALL, alerts, attach, create, shell};

const PATIENCE: Duration = Duration::from_secs(60);

/// Events, oldest first, which have numbers without a gap.
#[track_caller]
fn events(lab: &Lab, selection: &[&str]) -> Vec<Value> {
    let all = lab.json(&[&["event", "list", "--limit", "1000"], selection].concat());
    all.as_array().expect("a list").clone()
}

/// `kind object` of each, and for changes of state and alerts what it is about.
fn story(events: &[Value]) -> Vec<String> {
    let short = |event: &Value| {
        let details = &event["details"];
        let more = [&details["to"], &details["code"]].into_iter().find_map(Value::as_str).unwrap_or_default();
        let text = |name: &str| event[name].as_str().expect("a text").to_owned();
        format!("{} {} {more}", text("kind"), text("object")).trim_end().to_owned()
    };
    events.iter().map(short).collect()
}

/// These are among the events, in this order.
#[track_caller]
fn expect_in_order(events: &[Value], expected: &[&str]) {
    let story = story(events);
    let mut rest = story.iter();
    for wanted in expected {
        assert!(rest.any(|event| event == wanted), "{wanted:?} is not there, or not in its place: {story:#?}");
    }
    let seqs: Vec<u64> = events.iter().map(|e| e["seq"].as_u64().expect("a number")).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "numbers without a gap");
}

#[track_caller]
fn until_told(lab: &Lab, wanted: &str) {
    let told = wait_until(PATIENCE, || story(&events(lab, &[])).iter().any(|event| event == wanted));
    assert!(told, "{wanted:?} is not told: {:#?}", story(&events(lab, &[])));
}

#[test]
fn events_tell_the_story_of_a_pulled_disk_over_a_kill() {
    let lab = Lab::up(SMALL);
    let followed = lab.dir().join("log/followed");
    let mut follower = Command::new(ashlar())
        .args(["-o", "json", "--dir"])
        .arg(lab.dir())
        .args(["event", "list", "--follow"])
        .stdout(std::fs::File::create(&followed).expect("a file"))
        .stdin(Stdio::null())
        .spawn()
        .expect("a follower");
    create(&lab, "data", "64M");
    attach(&lab, "data", &["nbd"]);
    lab.lab("disk-pull", &["1"]).expect_ok();
    until_told(&lab, "disk.state disk/1 failed");
    until_told(&lab, "alert.raised disk/1 disk.failed");
    create(&lab, "late", "4M");
    lab.lab("kill", &[]).expect_ok();
    // It was cut off in the middle of a line.
    let mut file = std::fs::OpenOptions::new().append(true).open(lab.dir().join("events.jsonl")).expect("the file");
    file.write_all(b"{\"seq\":9999,\"time_s\":17").expect("a torn line");
    drop(file);
    lab.lab("start", &[]).expect_ok();
    until_told(&lab, "disk.state disk/1 missing");
    lab.lab("disk-push", &["1"]).expect_ok();
    until_told(&lab, "disk.state disk/1 online");
    until_told(&lab, "pool.health pool healthy");
    until_told(&lab, "alert.cleared disk/1 disk.missing");
    assert_eq!(lab.json(&["alert", "list"]), Value::Array(vec![]));
    lab.ashlar(&["volume", "detach", "data"]).expect_ok();
    lab.lab("stop", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    let all = events(&lab, &[]);
    expect_in_order(
        &all,
        &[
            "daemon.started daemon",
            "pool.opened pool",
            "volume.created volume/data",
            "volume.attached volume/data",
            "disk.state disk/1 failed",
            "daemon.killed daemon",
            "daemon.started daemon",
            "pool.recovered pool",
            "disk.state disk/1 missing",
            "disk.state disk/1 online",
            "volume.detached volume/data",
            "daemon.stopped daemon",
            "daemon.started daemon",
            "pool.opened pool",
        ],
    );
    expect_in_order(
        &all,
        &[
            "alert.raised disk/1 disk.failed",
            "daemon.killed daemon",
            "alert.raised disk/1 disk.missing",
            "alert.cleared disk/1 disk.missing",
        ],
    );
    let told = |kind: &str| all.iter().find(|e| e["kind"] == kind).expect("an event").clone();
    let created = told("volume.created");
    let command = created["command"].as_str().expect("a command");
    assert!(command.contains("volume create data --size 64M"), "{created}");
    let me = shell("id -un", &[""; 0]).expect_ok().stdout;
    assert_eq!(created["user"].as_str(), Some(me.trim()), "{created}");
    let failed = all.iter().find(|e| e["details"]["to"] == "failed").expect("an event");
    assert!(failed["cause"].as_str().is_some_and(|c| c.contains("injected failure")), "{failed}");
    assert!(failed["action"].as_str().is_some_and(|a| a.contains("ashlar disk replace 1")), "{failed}");
    assert_eq!(failed["severity"], "error");
    let recovered = told("pool.recovered");
    let replayed: u64 = recovered["details"]["replayed"].as_str().and_then(|n| n.parse().ok()).expect("a number");
    assert!(replayed > 0, "a volume made right before the kill is in the log: {recovered}");
    let killed = told("daemon.killed");
    assert!(killed["cause"].as_str().is_some_and(|c| c.contains("it was killed")), "{killed}");
    // A restart in which nothing changes tells of nothing but itself.
    let last = all.iter().rposition(|e| e["kind"] == "daemon.started").expect("an event");
    assert_eq!(story(&all[last..]), ["daemon.started daemon", "pool.opened pool"]);

    // Selections, and one in full.
    let of_disk = events(&lab, &["--object", "disk/1", "--severity", "error", "--since", "1h"]);
    assert!(of_disk.len() >= 2 && of_disk.iter().all(|e| e["object"] == "disk/1" && e["severity"] != "info"));
    assert_eq!(events(&lab, &["--kind", "volume.created", "--object", "volume/data"]).len(), 1);
    let table = lab.ashlar(&["event", "list", "--limit", "2"]).expect_ok().stdout;
    assert!(table.lines().count() == 3 && table.contains("pool.opened"), "{table}");
    let shown = lab.ashlar(&["event", "show", &failed["seq"].to_string()]).expect_ok().stdout;
    assert!(shown.contains("cause:") && shown.contains("what to do:"), "{shown}");
    assert_eq!(lab.ashlar(&["event", "show", "100000"]).status.code(), Some(3));

    // The follower saw all of it, over a kill and a stop.
    let seen = || std::fs::read_to_string(&followed).unwrap_or_default();
    let through = wait_until(PATIENCE, || seen().lines().count() >= all.len());
    signal(&follower.id().to_string(), "KILL");
    assert!(wait(&mut follower, PATIENCE).is_some());
    let seen: Vec<Value> = seen().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(through && seen == all, "{:#?}", story(&seen));
    std::fs::remove_file(&followed).expect("removing the file");
}

/// A mount that goes away with the test.
struct Small(tempfile::TempDir);

impl Drop for Small {
    fn drop(&mut self) {
        shell("umount -l \"$1\" || true", &[self.0.path()]);
    }
}

/// The file of events lies on a file system that is full: the service goes on, and the events are written when there is room.
#[test]
fn a_full_file_system_costs_no_event_and_no_service() {
    if !met("a_full_file_system_costs_no_event_and_no_service", &[Need::Root, Need::Tool("mount")]) {
        return;
    }
    let small = Small(tempfile::tempdir().expect("a directory"));
    let lab = Lab::up(SMALL);
    lab.lab("stop", &[]).expect_ok();
    let script = "mount -t tmpfs -o size=16k tmpfs \"$1\"; mv \"$2/events.jsonl\" \"$1/\"; ln -s \"$1/events.jsonl\" \"$2/events.jsonl\"";
    shell(script, &[small.0.path(), lab.dir()]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    let full = || alerts(&lab).contains(&"events.not_kept".to_owned());
    let mut made = 0;
    while !full() {
        create(&lab, &format!("v{made}"), "4M");
        made += 1;
        assert!(made < 200, "16 KiB hold more than 200 events");
    }
    create(&lab, "more", "4M");
    attach(&lab, "more", &["nbd"]);
    until_told(&lab, "alert.raised daemon events.not_kept");
    let before = events(&lab, &[]);
    shell("mount -o remount,size=4M \"$1\"", &[small.0.path()]).expect_ok();
    until_told(&lab, "alert.cleared daemon events.not_kept");
    assert!(!full());
    // All of it is in the file: it outlives a kill.
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    let after = events(&lab, &[]);
    assert_eq!(after[..before.len()], before);
    expect_in_order(&after, &["volume.created volume/more", "volume.attached volume/more", "daemon.killed daemon"]);
}
