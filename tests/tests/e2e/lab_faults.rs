//! Faults on purpose: drives that are pulled and pushed back, that are slow, that rot.

use std::time::{Duration, Instant};

use ashlar_tests::Lab;
use ashlar_tests::process::wait_until;
use serde_json::{Value, json};

use crate::crash::Device;
use crate::history::bytes_of;
use crate::nbd::{Client, Request};
use crate::tools::{SMALL, attach, create, expect_refused, expect_sound, nbd_socket};

/// Four small disks that tolerate one failure.
const SINGLE: &[&str] = &["--disks", "4", "--disk-size", "512M", "--tolerance", "single", "--memory", "256M"];

fn connect(lab: &Lab) -> Client {
    Client::connect(&nbd_socket(lab), "data").expect("the export")
}

/// Writes `count` MiB from MiB `from` on, with content of their own, and gives that.
fn write(lab: &Lab, from: u64, count: u64) -> Vec<u8> {
    let mut client = connect(lab);
    let mut all = Vec::new();
    for n in from..from + count {
        let data: Vec<u8> = (n * 256..(n + 1) * 256).flat_map(|block| bytes_of(block + 1)).collect();
        all.extend_from_slice(&data);
        client.one(Request::Write { offset: n << 20, data, fua: n % 4 == 3 }).expect("a write");
    }
    client.one(Request::Flush).expect("a flush");
    all
}

#[track_caller]
fn expect_content(lab: &Lab, expected: &[u8]) {
    let image = connect(lab).read_all().expect("reading everything");
    let differs = image.chunks(4096).zip(expected.chunks(4096)).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first block that differs");
}

fn restart(lab: &Lab, how: &str) {
    lab.lab(how, &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
}

/// Faults as `lab status` shows them: file name of the disk, pulled, microseconds.
fn faults(lab: &Lab) -> Vec<(String, bool, u64)> {
    let status = lab.lab("status", &["-o", "json"]).expect_ok().json();
    let row = |f: &Value| {
        let path = f["disk"].as_str().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        (name, f["pulled"].as_bool().expect("a flag"), f["slow_us"].as_u64().expect("microseconds"))
    };
    status["faults"].as_array().expect("faults").iter().map(row).collect()
}

fn disk(lab: &Lab, name: &str) -> Value {
    lab.json(&["disk", "show", name])
}

#[test]
fn a_disk_is_pulled_and_pushed_back() {
    let lab = Lab::up(SMALL);
    create(&lab, "data", "48M");
    attach(&lab, "data", &["nbd"]);
    let mut expected = write(&lab, 0, 16);
    let health = || lab.json(&["pool", "status"])["health"].clone();
    assert_eq!(health(), "healthy");
    let pulled = lab.lab("disk-pull", &["disk1", "-o", "json"]).expect_ok().json();
    assert_eq!(pulled[1]["state"], "failed", "{pulled}");
    assert_eq!(health(), "degraded");
    let shown = disk(&lab, "1");
    assert_eq!((&shown["state"], &shown["path"]), (&json!("failed"), &pulled[1]["path"]), "{shown}");
    assert!(shown["reason"].as_str().expect("a reason").contains("injected failure"), "{shown}");
    expected.extend(write(&lab, 16, 16));
    // It stays out, and is forgotten by nobody.
    restart(&lab, "kill");
    assert_eq!(faults(&lab), [("disk1.img".to_owned(), true, 0)]);
    assert!(lab.lab("status", &[]).expect_ok().stdout.contains("disk1.img: pulled"));
    assert_eq!(disk(&lab, "disk1.img")["state"], "missing");
    expected.extend(write(&lab, 32, 16));
    lab.lab("disk-push", &["1"]).expect_ok();
    assert!(wait_until(Duration::from_secs(60), || health() == "healthy"), "{}", lab.json(&["pool", "status"]));
    let caught_up = disk(&lab, "1");
    assert_eq!(
        (&caught_up["state"], &caught_up["behind"], &caught_up["reason"]),
        (&json!("online"), &json!(0), &Value::Null)
    );
    assert!(lab.json(&["pool", "stats"])["rebuilt"].as_u64() > Some(1 << 20));
    assert!(faults(&lab).is_empty());
    // What it caught up with is right: it is needed now.
    lab.lab("disk-pull", &["0"]).expect_ok();
    lab.lab("disk-pull", &["5"]).expect_ok();
    expect_content(&lab, &expected);
    for back in ["0", "5"] {
        lab.lab("disk-push", &[back]).expect_ok();
    }
    assert!(wait_until(Duration::from_secs(60), || health() == "healthy"), "{}", lab.json(&["pool", "status"]));
    expect_sound(&lab);
}

#[test]
fn a_disk_that_rots_is_noticed_and_read_around() {
    let lab = Lab::up(SINGLE);
    let corrupt = |arguments: &[&str]| lab.lab("disk-corrupt", &[arguments, &["-o", "json"]].concat());
    // Nothing lies on the disk yet that could rot.
    expect_refused(corrupt(&["2", "--bytes", "1M", "--count", "3"]), 2, "nothing to corrupt");
    create(&lab, "data", "32M");
    attach(&lab, "data", &["nbd"]);
    let expected = write(&lab, 0, 32);
    let done = corrupt(&["2", "--count", "2000", "--seed", "7"]).expect_ok().json();
    assert_eq!(
        (&done["places"], &done["bytes"], &done["seed"]),
        (&json!(2000), &json!(2000 * 512), &json!(7)),
        "{done}"
    );
    assert!(done["disk"].as_str().expect("a path").ends_with("disk2.img"), "{done}");
    let held = done["held"].as_u64().expect("bytes");
    assert!(held > 4 << 20, "{done}");
    // What is in memory is not read from the disks.
    restart(&lab, "kill");
    expect_content(&lab, &expected);
    let errors = |name: &str| disk(&lab, name)["checksum_errors"].as_u64().expect("a number");
    let found = [0, 1, 2, 3].map(|n| errors(&n.to_string()));
    assert!(found[2] > 10 && found[0] + found[1] + found[3] == 0, "{found:?}");

    // The seed is drawn and told; everything else of the disk can be hit, too, when that is asked for.
    let drawn = [0, 1].map(|_| corrupt(&["2", "--count", "1"]).expect_ok().json()["seed"].as_u64().expect("a seed"));
    assert_ne!(drawn[0], drawn[1]);
    let anywhere = corrupt(&["2", "--count", "1", "--anywhere", "--seed", "1"]).expect_ok().json();
    assert!(anywhere["held"].as_u64() >= Some(held + (4 << 20)), "{anywhere}: the log is not among it");
    // A drive rots also while it is out.
    lab.lab("disk-pull", &["2"]).expect_ok();
    corrupt(&["2", "--count", "10"]).expect_ok();
    expect_content(&lab, &expected);
}

/// The same seed overwrites the same bytes, and nothing outside the chunks.
#[test]
fn rot_can_be_repeated() {
    let lab = Lab::up(SINGLE);
    create(&lab, "data", "32M");
    attach(&lab, "data", &["nbd"]);
    write(&lab, 0, 16);
    lab.ashlar(&["volume", "detach", "data"]).expect_ok();
    lab.lab("stop", &[]).expect_ok();
    let (path, config) = (lab.dir().join("disks/disk3.img"), lab.dir().join("ashlar.toml"));
    let before = std::fs::read(&path).expect("the disk");
    // What the daemon itself writes to the other disks does not matter: this one is pulled, so that only the fault touches it.
    let pulled = json!({ "version": 1, "disks": { path.to_str().expect("a path"): { "pulled": true } } });
    std::fs::write(lab.dir().join("disk-faults.json"), pulled.to_string()).expect("the list of faults");
    let text = std::fs::read_to_string(&config).expect("the configuration");
    std::fs::write(&config, format!("failed_grace = 3600\n{text}")).expect("the configuration");
    lab.lab("start", &[]).expect_ok();
    let mut seen = Vec::new();
    for seed in ["5", "6", "5"] {
        lab.lab("disk-corrupt", &["3", "--count", "50", "--seed", seed]).expect_ok();
        let after = std::fs::read(&path).expect("the disk");
        let changed: Vec<usize> = (0..before.len() / 512)
            .filter(|s| after[s * 512..(s + 1) * 512] != before[s * 512..(s + 1) * 512])
            .collect();
        seen.push((changed, after));
    }
    assert_eq!((seen[0].0.len(), seen[2].1 == seen[1].1), (50, true), "the same again changed something else");
    assert!(seen[1].0.len() > 90 && seen[1].0.len() <= 100, "{} sectors after two seeds", seen[1].0.len());
    // Labels, superblocks, catalogue and log come first, and make up more than 16 MiB of this disk.
    let first = seen[1].0.first().expect("a sector") * 512;
    assert!(first > 16 << 20, "byte {first} is no chunk's");
}

#[test]
fn a_slow_disk_is_waited_for() {
    let lab = Lab::up(SINGLE);
    create(&lab, "data", "32M");
    attach(&lab, "data", &["nbd"]);
    let slow = |disk: &str, delay: &str| lab.lab("disk-slow", &[disk, "--delay", delay]).expect_ok();
    assert!(slow("0", "1500us").stdout.contains("disk0.img: slow by 1500 us"));
    for disk in ["0", "1", "2", "3"] {
        slow(disk, "100ms");
    }
    let expected: Vec<(String, bool, u64)> = (0..4).map(|n| (format!("disk{n}.img"), false, 100_000)).collect();
    assert_eq!(faults(&lab), expected);
    // Late by at least so much: a write that is to be durable waits for the disks.
    let took = |lab: &Lab| {
        let mut client = connect(lab);
        let begun = Instant::now();
        for n in 0..5 {
            let write = Request::Write { offset: n << 20, data: bytes_of(n + 1), fua: true };
            client.one(write).expect("a write");
        }
        begun.elapsed()
    };
    assert!(took(&lab) >= Duration::from_millis(500), "{:?}", took(&lab));
    restart(&lab, "kill");
    assert_eq!(faults(&lab), expected);
    assert!(took(&lab) >= Duration::from_millis(500), "{:?} after a restart", took(&lab));
    for disk in ["0", "1", "2"] {
        slow(disk, "0");
    }
    assert_eq!(faults(&lab), expected[3..]);
    // One that is slow and is pulled stays slow when it is back.
    lab.lab("disk-pull", &["3"]).expect_ok();
    assert_eq!(faults(&lab), [("disk3.img".to_owned(), true, 100_000)]);
    lab.lab("disk-push", &["3"]).expect_ok();
    assert_eq!(faults(&lab), expected[3..]);
    slow("3", "0s");
    assert!(faults(&lab).is_empty());
    assert!(lab.lab("status", &[]).expect_ok().stdout.contains("none"));
    let written = write(&lab, 0, 32);
    expect_content(&lab, &written);
    expect_sound(&lab);
}

#[test]
fn a_disk_that_does_not_answer_is_done_without() {
    let lab = Lab::up(SINGLE);
    lab.lab("stop", &[]).expect_ok();
    let config = lab.dir().join("ashlar.toml");
    let text = std::fs::read_to_string(&config).expect("the configuration");
    std::fs::write(&config, format!("disk_timeout = 6\nfailed_grace = 600\n{text}")).expect("the configuration");
    lab.lab("start", &[]).expect_ok();
    create(&lab, "data", "32M");
    attach(&lab, "data", &["nbd"]);
    let mut expected = write(&lab, 0, 12);
    let slow = |disk: &str, delay: &str| lab.lab("disk-slow", &[disk, "--delay", delay]).expect_ok();
    // Slow, but not too slow.
    slow("1", "100ms");
    expected.extend(write(&lab, 12, 1));
    assert_eq!(disk(&lab, "1")["state"], "online");
    slow("1", "60s");
    expected.extend(write(&lab, 13, 3));
    lab.ashlar(&["volume", "create", "more", "--size", "1M"]).expect_ok();
    let failed = || disk(&lab, "1")["state"] == "failed";
    assert!(wait_until(Duration::from_secs(60), failed), "{}", disk(&lab, "1"));
    let shown = disk(&lab, "1");
    assert!(shown["reason"].as_str().expect("a reason").contains("has not answered for"), "{shown}");
    expect_content(&lab, &expected);
    slow("1", "0");
    lab.ashlar(&["disk", "rescan"]).expect_ok();
    let health = || lab.json(&["pool", "status"])["health"].clone();
    assert!(wait_until(Duration::from_secs(60), || health() == "healthy"), "{}", lab.json(&["pool", "status"]));
    // What it missed it has now.
    lab.lab("disk-pull", &["0"]).expect_ok();
    restart(&lab, "kill");
    expect_content(&lab, &expected);
    expect_sound(&lab);
}

#[test]
fn faults_are_for_laboratories_and_their_file_must_be_understood() {
    let lab = Lab::up(SINGLE);
    let file = lab.dir().join("disk-faults.json");
    lab.lab("stop", &[]).expect_ok();
    for text in ["", "disks/disk1.img\n", "{\"version\": 9, \"disks\": {}}"] {
        std::fs::write(&file, text).expect("the list of faults");
        expect_refused(lab.lab("start", &[]), 2, "disk-faults.json");
        expect_refused(lab.lab("status", &[]), 2, "remove it");
        assert_eq!(std::fs::read_to_string(&file).expect("the list of faults"), text);
    }
    std::fs::remove_file(&file).expect("the list of faults");

    // The daemon of a pool that is no laboratory's refuses, and changes nothing.
    let config = lab.dir().join("ashlar.toml");
    let text = std::fs::read_to_string(&config).expect("the configuration");
    assert!(text.contains("lab = true"), "{text}");
    std::fs::write(&config, text.replace("lab = true", "lab = false")).expect("the configuration");
    lab.lab("start", &[]).expect_ok();
    for (verb, arguments) in [
        ("disk-pull", &["1"][..]),
        ("disk-push", &["1"]),
        ("disk-slow", &["1", "--delay", "1ms"]),
        ("disk-corrupt", &["1", "--anywhere"]),
    ] {
        expect_refused(lab.lab(verb, arguments), 8, "in a laboratory only");
    }
    assert!(!file.exists());
    assert_eq!(lab.json(&["pool", "status"])["health"], "healthy");
    expect_sound(&lab);
}
