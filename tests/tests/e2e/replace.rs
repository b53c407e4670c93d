//! Drives that take the place of others, while a host writes.

use std::path::Path;
use std::time::Duration;

use ashlar_tests::Lab;
use ashlar_tests::lab::EndOnFailure;
use ashlar_tests::process::wait_until;
use serde_json::Value;

use crate::crash::{BLOCKS, Device, write_until_it_breaks};
use crate::history::{History, Random, bytes_of};
use crate::nbd::{Client, Request};
use crate::tools::{attach, create, expect_refused, expect_sound, nbd_socket};

const FOUR: &[&str] = &["--disks", "4", "--disk-size", "512M", "--tolerance", "single", "--memory", "256M"];

fn connect(lab: &Lab) -> Client {
    Client::connect(&nbd_socket(lab), "data").expect("the export")
}

/// A new, empty drive.
fn blank(path: &Path, size: u64) -> String {
    std::fs::File::create(path).and_then(|f| f.set_len(size)).expect("a file");
    path.display().to_string()
}

fn disks(lab: &Lab) -> Vec<Value> {
    lab.json(&["disk", "list"]).as_array().expect("disks").clone()
}

/// Numbers and states.
fn states(lab: &Lab) -> Vec<(u64, String)> {
    let row = |d: &Value| (d["id"].as_u64().expect("a number"), d["state"].as_str().unwrap_or_default().to_owned());
    disks(lab).iter().map(row).collect()
}

#[track_caller]
fn expect_healthy(lab: &Lab) {
    let healthy = || lab.json(&["pool", "status"])["health"] == "healthy";
    assert!(wait_until(Duration::from_secs(60), healthy), "{}", lab.json(&["pool", "status"]));
}

#[test]
fn drives_are_replaced_under_load() {
    let lab = Lab::up(FOUR);
    create(&lab, "data", "32M");
    attach(&lab, "data", &["nbd"]);
    let more: Vec<String> =
        (0..3).map(|n| blank(&lab.dir().join(format!("more{n}.img")), (512 + 64 * n) << 20)).collect();
    let mut history = History::new(BLOCKS);
    let end = std::thread::scope(|scope| {
        let (lab, history) = (&lab, &mut history);
        let writer = scope.spawn(move || {
            let mut client = connect(lab);
            write_until_it_breaks(&mut client, history, &mut Random::new(21))
        });
        let _end = EndOnFailure(lab);
        std::thread::sleep(Duration::from_millis(500));
        // One that works.
        let replaced = lab.json(&["disk", "replace", "disk1", &more[0]]);
        assert_eq!(
            (&replaced["old"]["id"], &replaced["new"]["id"], &replaced["done"]),
            (&1.into(), &4.into(), &true.into())
        );
        assert!(states(lab).iter().all(|(id, _)| *id != 1), "{:?}", states(lab));
        // One that is dead, and is not given up yet.
        lab.lab("disk-pull", &["2"]).expect_ok();
        let told = lab.ashlar(&["disk", "replace", "2", &more[1]]).expect_ok();
        assert!(told.stdout.contains("disk2.img) was replaced by disk 1"), "{told}");
        assert!(!writer.is_finished(), "writes ended before the daemon was killed");
        lab.lab("kill", &[]).expect_ok();
        writer.join().expect("the writer")
    });
    assert!(history.flushed > 0, "nothing was flushed: {end}");
    lab.lab("start", &[]).expect_ok();
    expect_healthy(&lab);
    assert_eq!(states(&lab), [0, 1, 3, 4].map(|id| (id, "online".to_owned())));
    let image = connect(&lab).read_all().expect("reading everything");
    history.check(&image).unwrap_or_else(|e| panic!("{} of {} flushed: {e}", history.flushed, history.step));
    expect_sound(&lab);

    // The same once more: it was done. And what cannot be meant.
    let before = disks(&lab);
    for (arguments, code, message) in [
        (["disk2.img", more[1].as_str()], 3, "replaced already"),
        (["4", more[0].as_str()], 2, "itself"),
        (["9", more[2].as_str()], 3, "there is no disk '9'"),
        (["0", "/nonexistent/disk"], 3, "nothing was changed"),
        (["0", "/etc/hostname"], 2, "nothing was changed"),
    ] {
        let refused = lab.ashlar(&[&["disk", "replace"], &arguments[..]].concat());
        expect_refused(refused, code, message);
    }
    let keys = |all: &[Value]| all.iter().map(|d| (d["id"].clone(), d["state"].clone())).collect::<Vec<_>>();
    assert_eq!(keys(&disks(&lab)), keys(&before));

    // A new drive in the very place of one that is gone.
    lab.lab("stop", &[]).expect_ok();
    let place = lab.dir().join("disks/disk3.img");
    std::fs::remove_file(&place).expect("the disk's file");
    let place = blank(&place, 600 << 20);
    lab.lab("start", &[]).expect_ok();
    assert_eq!(lab.json(&["disk", "show", "3"])["state"], "missing");
    lab.ashlar(&["disk", "replace", "3", &place]).expect_ok();
    expect_healthy(&lab);
    assert_eq!(disks(&lab).len(), 4);
    assert!(connect(&lab).read_all().expect("reading everything") == image, "content differs");
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    expect_healthy(&lab);
    assert!(connect(&lab).read_all().expect("reading everything") == image, "content differs");
    expect_sound(&lab);
}

/// Begun, called off, and gone on with.
#[test]
fn a_replacement_is_called_off_and_gone_on_with() {
    let lab = Lab::up(FOUR);
    create(&lab, "data", "64M");
    attach(&lab, "data", &["nbd"]);
    let mut client = connect(&lab);
    for n in 0..64u64 {
        let data = (n * 256..(n + 1) * 256).flat_map(|block| bytes_of(block + 1)).collect();
        client.one(Request::Write { offset: n << 20, data, fua: n % 8 == 7 }).expect("a write");
    }
    let image = client.read_all().expect("reading everything");
    let new = blank(&lab.dir().join("new.img"), 512 << 20);
    let slow = |delay: &str| {
        for disk in ["0", "1", "2", "3"] {
            lab.lab("disk-slow", &[disk, "--delay", delay]).expect_ok();
        }
    };
    // Slow enough that it is in the middle when it is called off.
    slow("250ms");
    let begun = lab.json(&["disk", "replace", "0", &new, "--no-wait"]);
    assert_eq!((&begun["new"]["id"], &begun["done"]), (&4.into(), &false.into()), "{begun}");
    let of = |id: u64| states(&lab).into_iter().find(|(other, _)| *other == id).map(|(_, state)| state);
    assert_eq!(of(0).as_deref(), Some("removing"));
    lab.ashlar(&["disk", "keep", "disk0"]).expect_ok();
    assert_eq!(of(0).as_deref(), Some("online"));
    expect_refused(lab.ashlar(&["disk", "keep", "0"]), 2, "not being removed");
    slow("0");
    // It stays, also after a restart, and takes what is written.
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    expect_healthy(&lab);
    assert_eq!(states(&lab), [0, 1, 2, 3, 4].map(|id| (id, "online".to_owned())));
    // Nothing is added twice.
    let done = lab.json(&["disk", "replace", "0", &new]);
    assert_eq!((&done["new"]["id"], &done["done"]), (&4.into(), &true.into()), "{done}");
    assert_eq!(states(&lab), [1, 2, 3, 4].map(|id| (id, "online".to_owned())));
    assert!(connect(&lab).read_all().expect("reading everything") == image, "content differs");
    expect_sound(&lab);
}

/// A drive that is too small for what lies on the old one: what was done, and what was not, is told.
#[test]
fn a_replacement_without_room_says_what_was_done() {
    let lab = Lab::up(&["--disks", "3", "--disk-size", "128M", "--tolerance", "single"]);
    create(&lab, "data", "1G");
    attach(&lab, "data", &["nbd"]);
    let mut client = connect(&lab);
    let refused = (0..512u64).find(|n| {
        let data = (n * 256..(n + 1) * 256).flat_map(|block| bytes_of(block + 1)).collect();
        client.one(Request::Write { offset: n << 20, data, fua: n % 8 == 7 }).is_err()
    });
    assert!(refused > Some(32), "filled at {refused:?} MiB");
    let small = blank(&lab.dir().join("small.img"), 48 << 20);
    let refused = lab.ashlar(&["disk", "replace", "0", &small]);
    expect_refused(refused, 5, "is disk 3 of the pool now, but disk 0 could not be removed");
    assert_eq!(states(&lab), [0, 1, 2, 3].map(|id| (id, "online".to_owned())));
    // As the message says, the new one goes again.
    lab.ashlar(&["disk", "remove", "3"]).expect_ok();
    assert_eq!(disks(&lab).len(), 3);
    // With enough room the same command goes through.
    let large = blank(&lab.dir().join("large.img"), 256 << 20);
    lab.ashlar(&["disk", "replace", "0", &large]).expect_ok();
    assert_eq!(disks(&lab).len(), 3);
    expect_sound(&lab);
}

/// What is known of a rebuild while it goes on: why, how far it is, how long it takes; as a job, too.
#[test]
fn a_rebuild_is_a_job_with_a_cause_and_progress() {
    let lab = Lab::up(FOUR);
    create(&lab, "data", "64M");
    attach(&lab, "data", &["nbd"]);
    let mut client = connect(&lab);
    for n in 0..64u64 {
        let data: Vec<u8> = (n * 256..(n + 1) * 256).flat_map(bytes_of).collect();
        client.one(Request::Write { offset: n << 20, data, fua: n == 63 }).expect("a write");
    }
    drop(client);
    let status = || lab.json(&["pool", "status"]);
    let rebuilds = || -> Vec<Value> {
        let jobs = lab.json(&["job", "list"]);
        jobs.as_array().expect("jobs").iter().filter(|j| j["kind"] == "pool.rebuild").cloned().collect()
    };
    assert!(rebuilds().is_empty());
    let slow = |delay: &str| ["0", "1", "2"].map(|disk| lab.lab("disk-slow", &[disk, "--delay", delay]).expect_ok());
    slow("100ms");
    lab.ashlar(&["disk", "fail", "3"]).expect_ok();
    let running = || {
        let (now, jobs) = (status(), rebuilds());
        let rebuild = now["rebuild"].clone();
        let both = rebuild["done"].as_u64() > Some(0) && jobs.last().is_some_and(|j| j["done"].as_u64() > Some(0));
        both.then_some((rebuild, jobs))
    };
    let mut seen = None;
    let looked = wait_until(Duration::from_secs(60), || {
        seen = running();
        seen.is_some()
    });
    assert!(looked, "{}", status());
    let (rebuild, jobs) = seen.expect("a rebuild");
    assert!(rebuild["cause"].as_str().unwrap_or_default().contains("disk 3"), "{rebuild}");
    assert!(rebuild["total"].as_u64() >= rebuild["done"].as_u64() && rebuild["eta_s"].is_u64(), "{rebuild}");
    assert!(rebuild["bytes_per_second"].as_u64() > Some(0), "{rebuild}");
    let [job] = &jobs[..] else { panic!("{jobs:?}") };
    assert!(job["state"] == "running" && job["finished_s"].is_null(), "{job}");
    assert!(job["total"].as_u64() >= job["done"].as_u64(), "{job}");
    let table = lab.ashlar(&["pool", "status"]).expect_ok().stdout;
    assert!(table.contains("left") && table.contains("disk 3"), "{table}");
    // Waiting for it is what a script does.
    let id = job["id"].to_string();
    slow("0");
    let ended = lab.json(&["job", "wait", &id]);
    assert_eq!((&ended["state"], &ended["error"]), (&"succeeded".into(), &Value::Null), "{ended}");
    assert!(ended["done"] == ended["total"] && ended["finished_s"].as_u64() >= ended["started_s"].as_u64(), "{ended}");
    assert!(status()["rebuild"].is_null() && status()["redundancy"]["none"] == 0, "{}", status());
    expect_sound(&lab);
}
