//! Another program takes the daemon's place, or cannot.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ashlar_tests::process::{Output, wait_until};
use ashlar_tests::{Lab, ashlar};

use crate::nbd::{Client, Request};
use crate::tools::{SMALL, attach, create, nbd_socket};

/// Another copy of the program under test.
fn copy(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::copy(ashlar(), &path).expect("a copy of the program");
    path
}

/// A program that answers as the one under test when it is asked what it is, and otherwise does `instead`.
fn pretender(dir: &Path, name: &str, instead: &str) -> PathBuf {
    let path = dir.join(name);
    let real = ashlar().display();
    let text = format!(
        "#!/bin/sh\nreal='{real}'\ncase \"$*\" in *--version*|*--check*) ;; *) {instead} ;; esac\nexec \"$real\" \"$@\"\n"
    );
    std::fs::write(&path, text).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    path
}

fn upgrade_to(lab: &Lab, binary: &Path) -> Output {
    lab.ashlar(&["-o", "json", "upgrade", "--binary", &binary.display().to_string()])
}

fn pid(lab: &Lab) -> u32 {
    std::fs::read_to_string(lab.dir().join("run/pid")).expect("the lock file").trim().parse().expect("a process id")
}

fn program(pid: u32) -> String {
    std::fs::read_link(format!("/proc/{pid}/exe")).expect("the daemon's program").display().to_string()
}

/// Kinds of files a process has open, sockets and event queues by kind only.
fn open_files(pid: u32) -> Vec<String> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").flatten();
    let mut all: Vec<String> =
        files.filter_map(|f| Some(std::fs::read_link(f.path()).ok()?.display().to_string())).collect();
    all.iter_mut().for_each(|file| file.truncate(file.find(":[").unwrap_or(file.len())));
    all.sort();
    all
}

/// An NBD client that has written, and what it must read again.
fn written(lab: &Lab, byte: u8) -> Client {
    let mut client = Client::connect(&nbd_socket(lab), "data").expect("the NBD export");
    client.one(Request::Write { offset: 5000, data: vec![byte; 9000], fua: false }).expect("a write");
    client
}

#[track_caller]
fn expect_read(lab: &Lab, byte: u8) {
    let mut client = Client::connect(&nbd_socket(lab), "data").expect("the NBD export");
    let read = client.one(Request::Read { offset: 4999, len: 9002 }).expect("a read");
    assert!(
        read[0] == 0 && read[9001] == 0 && read[1..9001].iter().all(|b| *b == byte),
        "what was written is not there"
    );
}

#[test]
fn another_program_takes_over_in_the_same_process() {
    let lab = Lab::up(SMALL);
    create(&lab, "data", "64M");
    attach(&lab, "data", &["nbd"]);
    let other = copy(lab.dir(), "ashlar-next");
    let before = pid(&lab);
    let files = open_files(before);
    let mut client = written(&lab, 3);
    let answer = upgrade_to(&lab, &other).expect_ok().json();
    assert_eq!((&answer["state"], &answer["from"]), (&"done".into(), &answer["to"]), "{answer}");
    assert_eq!(answer["volumes"][0]["volume"], "data");
    assert!(answer["waited_ms"].as_u64().is_some_and(|ms| ms > 0 && ms < 60_000), "{answer}");
    assert_eq!((pid(&lab), program(before)), (before, other.display().to_string()));
    // Its connection ended in order, and it finds everything when it comes again.
    assert!(client.one(Request::Flush).is_err(), "a connection outlived the program that had it");
    drop(client);
    expect_read(&lab, 3);
    let same = || open_files(before) == files;
    assert!(wait_until(ashlar_tests::lab::LIMIT, same), "open before {files:#?} and after {:#?}", open_files(before));

    // Again, from the file it was started from this time, which was replaced meanwhile.
    drop(written(&lab, 4));
    std::fs::remove_file(&other).expect("the old file");
    copy(lab.dir(), "ashlar-next");
    lab.ashlar(&["upgrade"]).expect_ok();
    assert_eq!((pid(&lab), program(before)), (before, other.display().to_string()));
    expect_read(&lab, 4);

    let events = lab.json(&["event", "list", "--kind", "daemon"]);
    let kinds: Vec<&str> = events.as_array().expect("events").iter().filter_map(|e| e["kind"].as_str()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "daemon.upgraded").count(), 2, "{kinds:?}");
    assert!(!kinds.contains(&"daemon.killed"), "{kinds:?}");
    assert!(!lab.dir().join("ashlar.kept").exists());
    lab.ashlar(&["pool", "check"]).expect_ok();
}

#[test]
fn a_program_that_cannot_take_over_changes_nothing() {
    let lab = Lab::up(SMALL);
    create(&lab, "data", "64M");
    attach(&lab, "data", &["nbd"]);
    let before = (pid(&lab), program(pid(&lab)));
    let mut client = written(&lab, 5);
    let plain = lab.dir().join("text");
    std::fs::write(&plain, "no program").expect("a file");
    for (binary, expected) in [
        (Path::new("/bin/true"), "says 'true"),
        (&lab.dir().join("nowhere"), "No such file"),
        (&plain, "Permission denied"),
        (lab.dir(), "Permission denied"),
    ] {
        let refused = upgrade_to(&lab, binary).expect_failure();
        assert!(refused.stderr.contains(expected) && refused.stderr.contains("nothing has changed"), "{refused}");
    }
    assert_eq!((pid(&lab), program(pid(&lab))), before);
    client.one(Request::Flush).expect("the connection is the same");
}

#[test]
fn a_program_that_does_not_come_up_gives_way_to_the_one_before() {
    let lab = Lab::up(SMALL);
    create(&lab, "data", "64M");
    attach(&lab, "data", &["nbd"]);
    let process = pid(&lab);
    let started_by = program(process);
    // One that cannot serve once it is asked to, and one that is gone when it is to be started.
    let unable = pretender(lab.dir(), "unable", "exec \"$real\" \"$@\" --memory 1M");
    let gone = pretender(lab.dir(), "gone", ":");
    let text = std::fs::read_to_string(&gone).expect("the script");
    std::fs::write(&gone, text.replace("*--version*|*--check*) ;;", "*--check*) rm \"$0\" ;;")).expect("the script");
    for (byte, binary, expected) in [(6, &unable, "memory"), (7, &gone, "No such file")] {
        drop(written(&lab, byte));
        let answer = upgrade_to(&lab, binary).expect_failure();
        let answer: serde_json::Value =
            serde_json::from_str(&answer.stdout).unwrap_or_else(|e| panic!("{e}: {answer}"));
        assert_eq!(answer["state"], "fell_back", "{answer}");
        assert!(answer["error"].as_str().is_some_and(|e| e.contains(expected)), "{answer}");
        assert_eq!(pid(&lab), process);
        expect_read(&lab, byte);
        let events = lab.json(&["event", "list", "--kind", "daemon.upgrade_failed"]);
        let last = events.as_array().expect("events").last().expect("an event").clone();
        assert!(last["cause"].as_str().is_some_and(|cause| cause.contains(expected)), "{last}");
    }
    // What runs is a copy by now, and the way leads back to the file all the same.
    assert!(program(process) != started_by, "{}", program(process));
    lab.ashlar(&["upgrade"]).expect_ok();
    assert_eq!(program(process), started_by);
    expect_read(&lab, 7);
    lab.ashlar(&["pool", "check"]).expect_ok();
}
