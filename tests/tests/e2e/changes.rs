//! Pools that change while a host writes: many drives in several resiliency sets, another tolerance, data spread over new drives.

use std::time::Duration;

use ashlar_tests::Lab;
use ashlar_tests::lab::EndOnFailure;
use ashlar_tests::process::wait_until;
use ashlar_tests::require::{Need, met};

use crate::crash::{BLOCKS, Device, write_until_it_breaks};
use crate::disks::{fio, job};
use crate::history::{History, Random};
use crate::nbd::Client;
use crate::tools::{attach, create, expect_refused, expect_sound, nbd_socket, shell};

/// Writes from the start to the kill at the end, while `change` happens.
fn under_load(lab: &Lab, seed: u64, change: impl FnOnce()) -> History {
    let mut history = History::new(BLOCKS);
    let end = std::thread::scope(|scope| {
        let history = &mut history;
        let writer = scope.spawn(move || {
            let mut client = Client::connect(&nbd_socket(lab), "data").expect("the export");
            write_until_it_breaks(&mut client, history, &mut Random::new(seed))
        });
        let _end = EndOnFailure(lab);
        std::thread::sleep(Duration::from_millis(400));
        change();
        assert!(!writer.is_finished(), "writes ended before the daemon was killed");
        lab.lab("kill", &[]).expect_ok();
        writer.join().expect("the writer")
    });
    assert!(history.flushed > 0, "nothing was flushed: {end}");
    history
}

fn expect_content(lab: &Lab, history: &mut History) {
    let mut client = Client::connect(&nbd_socket(lab), "data").expect("the export");
    let image = client.read_all().expect("reading everything");
    history.check(&image).unwrap_or_else(|e| panic!("{} of {} flushed: {e}", history.flushed, history.step));
}

/// So many drives of each resiliency set.
fn some_of_each_set(lab: &Lab, count: usize) -> Vec<String> {
    let disks = lab.json(&["disk", "list"]);
    let mut seen: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    for disk in disks.as_array().expect("disks") {
        seen.entry(disk["set"].to_string()).or_default().push(disk["id"].to_string());
    }
    seen.into_values().flat_map(|ids| ids.into_iter().take(count)).collect()
}

/// As many drives as there can be. Two of each set go in the middle of fio, one more is refused, and the daemon is killed.
#[test]
fn ninety_six_drives() {
    if !met("ninety_six_drives", &[Need::Tool("fio")]) {
        return;
    }
    let lab = Lab::up(&["--disks", "96", "--disk-size", "256M", "--tolerance", "double", "--memory", "512M"]);
    create(&lab, "data", "4G");
    let uri = attach(&lab, "data", &["nbd"]);
    let status = lab.json(&["pool", "status"]);
    assert_eq!((&status["sets"], &status["layout"]), (&2.into(), &"16+2".into()), "{status}");
    let victims = some_of_each_set(&lab, 2);
    assert_eq!(victims.len(), 4);
    let output = std::thread::scope(|scope| {
        let load = scope.spawn(|| fio(&lab, &uri, 9));
        for disk in &victims {
            lab.lab("disk-pull", &[disk]).expect_ok();
        }
        load.join().expect("fio's thread")
    });
    assert_eq!(job(&output.expect_ok())["error"].as_u64(), Some(0));
    assert_eq!(lab.json(&["pool", "status"])["health"], "degraded");
    let more = lab.dir().join("more.img").display().to_string();
    shell("truncate -s 256M \"$1\"", &[&more]).expect_ok();
    expect_refused(lab.ashlar(&["disk", "add", &more]), 2, "the most there can be");
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    expect_sound(&lab);
    for disk in &victims {
        lab.lab("disk-push", &[disk]).expect_ok();
    }
    let healthy = || lab.json(&["pool", "status"])["health"] == "healthy";
    assert!(wait_until(Duration::from_secs(300), healthy), "{}", lab.json(&["pool", "status"]));
    expect_sound(&lab);
}

#[test]
fn thirty_drives_form_two_sets_that_fail_by_themselves() {
    let lab = Lab::up(&["--disks", "30", "--disk-size", "128M", "--tolerance", "single", "--memory", "256M"]);
    create(&lab, "data", "32M");
    attach(&lab, "data", &["nbd"]);
    let status = lab.json(&["pool", "status"]);
    assert_eq!((&status["sets"], &status["mixed"]), (&2.into(), &false.into()), "{status}");
    let victims = some_of_each_set(&lab, 1);
    assert_eq!(victims.len(), 2);
    let mut history = under_load(&lab, 31, || {
        for disk in &victims {
            lab.lab("disk-pull", &[disk]).expect_ok();
        }
        std::thread::sleep(Duration::from_millis(800));
    });
    // Both are gone still, and the tolerance is single.
    lab.lab("start", &[]).expect_ok();
    expect_content(&lab, &mut history);
    expect_sound(&lab);
    // A second one of a set is too much, and that is said.
    let disks = lab.json(&["disk", "list"]);
    let all = disks.as_array().cloned().unwrap_or_default();
    let set = victims[0].parse::<usize>().ok().and_then(|id| all.iter().find(|d| d["id"] == id)).map(|d| &d["set"]);
    let third = all.iter().find(|d| d["state"] == "online" && Some(&d["set"]) == set);
    let third = third.expect("another one")["id"].to_string();
    expect_refused(lab.ashlar(&["disk", "fail", &third]), 4, "could not be read");
}

#[test]
fn the_tolerance_is_raised_and_lowered_under_load() {
    let lab = Lab::up(&["--disks", "5", "--disk-size", "512M", "--tolerance", "single", "--memory", "256M"]);
    create(&lab, "data", "32M");
    attach(&lab, "data", &["nbd"]);
    let mut history = under_load(&lab, 32, || {
        lab.ashlar(&["pool", "set-tolerance", "double", "--wait"]).expect_ok();
        let status = lab.json(&["pool", "status"]);
        assert_eq!((&status["tolerance"], &status["layout"]), (&"double".into(), &"2+2".into()), "{status}");
        for disk in ["0", "3"] {
            lab.lab("disk-pull", &[disk]).expect_ok();
        }
        std::thread::sleep(Duration::from_millis(500));
    });
    lab.lab("start", &[]).expect_ok();
    expect_content(&lab, &mut history);
    for disk in ["0", "3"] {
        lab.lab("disk-push", &[disk]).expect_ok();
    }
    let healthy = || lab.json(&["pool", "status"])["health"] == "healthy";
    assert!(wait_until(Duration::from_secs(60), healthy), "{}", lab.json(&["pool", "status"]));
    lab.ashlar(&["pool", "set-tolerance", "single", "--wait"]).expect_ok();
    let status = lab.json(&["pool", "status"]);
    assert_eq!((&status["tolerance"], &status["layout"]), (&"single".into(), &"3+1".into()), "{status}");
    expect_content(&lab, &mut history);
    expect_sound(&lab);
    expect_refused(lab.ashlar(&["pool", "set-tolerance", "triple"]), 2, "none, single or double");
}

#[test]
fn data_is_spread_over_a_new_drive() {
    let lab = Lab::up(&["--disks", "4", "--disk-size", "256M", "--tolerance", "single", "--memory", "256M"]);
    create(&lab, "data", "96M");
    attach(&lab, "data", &["nbd"]);
    let mut filler = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    let mut random = Random::new(33);
    for piece in 1..1024u64 {
        let data: Vec<u8> = (0..8192).flat_map(|_| random.next().to_le_bytes()).collect();
        // Behind what the history writes.
        let offset = (BLOCKS * 4096) as u64 + (piece - 1) * (64 << 10);
        filler.one(crate::nbd::Request::Write { offset, data, fua: false }).expect("written");
    }
    let new = lab.dir().join("more.img");
    std::fs::File::create(&new).and_then(|f| f.set_len(256 << 20)).expect("a file");
    let mut history = under_load(&lab, 34, || {
        lab.ashlar(&["disk", "add", &new.display().to_string()]).expect_ok();
        lab.ashlar(&["pool", "rebalance", "--wait"]).expect_ok();
    });
    lab.lab("start", &[]).expect_ok();
    let disks = lab.json(&["disk", "list"]);
    let allocated: Vec<u64> = disks.as_array().expect("disks").iter().filter_map(|d| d["allocated"].as_u64()).collect();
    let (least, most) = (allocated.iter().min(), allocated.iter().max());
    assert!(least.zip(most).is_some_and(|(a, b)| a * 10 > b * 7), "{disks}");
    expect_content(&lab, &mut history);
    expect_sound(&lab);
}

/// What happens to drives in years, in seconds: two are pulled, one is pushed back, one joins, one leaves, one rots. The host sees nothing of it.
#[test]
fn fio_sees_nothing_of_all_that() {
    if !met("fio_sees_nothing_of_all_that", &[Need::Tool("fio")]) {
        return;
    }
    let lab = Lab::up(&["--disks", "8", "--disk-size", "512M", "--tolerance", "double", "--memory", "256M"]);
    create(&lab, "data", "1G");
    let uri = attach(&lab, "data", &["nbd"]);
    let new = lab.dir().join("more.img");
    std::fs::File::create(&new).and_then(|f| f.set_len(512 << 20)).expect("a file");
    let output = std::thread::scope(|scope| {
        let load = scope.spawn(|| fio(&lab, &uri, 41));
        let written = || lab.json(&["pool", "stats"])["host_written"].as_u64().unwrap_or(0);
        assert!(wait_until(Duration::from_secs(60), || written() > 8 << 20));
        lab.lab("disk-pull", &["1"]).expect_ok();
        lab.lab("disk-pull", &["4"]).expect_ok();
        assert!(wait_until(Duration::from_secs(60), || written() > 16 << 20));
        lab.lab("disk-push", &["1"]).expect_ok();
        lab.ashlar(&["disk", "add", &new.display().to_string()]).expect_ok();
        lab.ashlar(&["disk", "remove", "6", "--no-wait"]).expect_ok();
        lab.lab("disk-corrupt", &["2", "--count", "40", "--seed", "7"]).expect_ok();
        assert!(!load.is_finished(), "fio was through before all had happened");
        load.join().expect("fio's thread")
    });
    let output = output.expect_ok();
    let job = job(&output);
    assert_eq!(job["error"].as_u64(), Some(0), "{output}");
    assert_eq!(job["read"]["io_bytes"].as_u64(), Some(96 << 20), "not everything was verified: {output}");
    lab.lab("disk-push", &["4"]).expect_ok();
    lab.ashlar(&["pool", "scrub", "--wait"]).expect_ok();
    let whole = || {
        let status = lab.json(&["pool", "status"]);
        let disks = status["disks"].as_array().cloned().unwrap_or_default();
        let gone = !disks.iter().any(|d| d["id"] == 6);
        gone && status["rebuild"].is_null() && status["redundancy"]["reduced"] == 0 && status["redundancy"]["none"] == 0
    };
    assert!(wait_until(Duration::from_secs(120), whole), "{}", lab.json(&["pool", "status"]));
    expect_sound(&lab);
}
