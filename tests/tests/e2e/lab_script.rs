//! What `make lab` and `make lab-down` call, as a new user would.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ashlar_tests::ashlar;
use ashlar_tests::binary::workspace;
use ashlar_tests::process::{Output, run};
use ashlar_tests::require::{Need, met};

use crate::tools::shell;

/// Longest time the script may take: it writes and reads twice what it is told to.
const LIMIT: Duration = Duration::from_secs(300);

/// A directory for the laboratory, which is taken down also when the test fails.
struct Place(tempfile::TempDir);

impl Place {
    fn dir(&self) -> PathBuf {
        self.0.path().join("lab place")
    }

    fn script(&self, command: &str, more: &[&str]) -> Output {
        let mut script = Command::new(workspace().join("scripts/lab.sh"));
        script.env("ASHLAR", ashlar()).arg(command).arg("--dir").arg(self.dir()).args(more);
        run(&mut script, LIMIT)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.script("down", &[]);
    }
}

/// Mounts, loop devices and processes that have to do with a directory.
fn traces(dir: &Path) -> String {
    let script = "grep -F -- \"${1// /\\\\040}\" /proc/self/mountinfo || true; grep -lF -- \"$1\" /sys/block/loop*/loop/backing_file 2>/dev/null || true
        for p in /proc/[0-9]*; do [ \"$(basename \"$(readlink $p/exe)\")\" != ashlar ] || tr '\\0' ' ' <$p/cmdline | grep -F -- \"$1\" || true; done";
    shell(script, &[dir.display().to_string()]).expect_ok().stdout
}

#[test]
fn the_laboratory_comes_up_with_a_mounted_volume_and_leaves_no_trace() {
    let needs = [Need::Root, Need::Fuse, Need::Loop, Need::Tool("jq"), Need::Tool("mkfs.ext4"), Need::Tool("fio")];
    if !met("the_laboratory_comes_up_with_a_mounted_volume_and_leaves_no_trace", &needs) {
        return;
    }
    let place = Place(tempfile::tempdir().expect("a directory"));
    let nothing = place.script("down", &[]).expect_ok();
    assert!(nothing.stdout.contains("nothing is there"), "{nothing}");
    let small = ["--disk-size", "512M", "--tolerance", "single", "--data-mib", "48"];
    let up = place.script("up", &small).expect_ok();
    for expected in ["both copies are equal", "What to try next", "ashlar pool status", "make lab-down LAB="] {
        assert!(up.stdout.contains(expected), "{expected} is missing: {up}");
    }
    // What it says can be done can be done.
    let app = place.dir().join("appliance");
    let json = |arguments: &[&str]| {
        run(Command::new(ashlar()).arg("--dir").arg(&app).args(["-o", "json"]).args(arguments), LIMIT)
            .expect_ok()
            .json()
    };
    let volumes = json(&["volume", "list"]);
    let dedupe = json(&["pool", "status"])["reduction"]["dedupe_ratio"].as_f64().expect("a ratio");
    assert!(dedupe > 1.8, "two copies, and deduplication of {dedupe}: {volumes}");
    let mnt = place.dir().join("mnt");
    let copies = "diff -rq \"$1/first\" \"$1/second\"; ls \"$1/first\" | wc -l; findmnt -no FSTYPE \"$1\"";
    let seen = shell(copies, &[mnt.display().to_string()]).expect_ok();
    assert!(seen.stdout.ends_with("ext4\n"), "{seen}");
    assert_eq!(json(&["disk", "list"]).as_array().map(Vec::len), Some(6));

    // Twice is once.
    let again = place.script("up", &small).expect_ok();
    assert!(again.stdout.contains("it is up already"), "{again}");
    // Down, though the file system is mounted and the disks are in use.
    let down = place.script("down", &[]).expect_ok();
    assert!(down.stdout.contains("every trace of"), "{down}");
    assert!(!place.dir().exists());
    assert_eq!(traces(&place.dir()), "");

    // A directory that holds something else is left alone, by either.
    std::fs::create_dir(place.dir()).expect("a directory");
    std::fs::write(place.dir().join("mine"), "x").expect("a file");
    for command in ["up", "down"] {
        let refused = place.script(command, if command == "up" { &small } else { &[] });
        assert!(!refused.ok() && refused.stderr.contains("not a laboratory"), "{command}: {refused}");
    }
    assert!(place.dir().join("mine").exists());
    // Wrong options change nothing.
    for wrong in [&["--data-mib", "0"][..], &["--disks"], &["--no-such"]] {
        assert!(!place.script("up", wrong).ok(), "{wrong:?}");
    }
}

/// Stopped half way it can be removed all the same: the daemon is dead, the mount is still there.
#[test]
fn what_is_left_of_a_laboratory_is_removed() {
    let needs = [Need::Root, Need::Fuse, Need::Loop, Need::Tool("jq"), Need::Tool("mkfs.ext4"), Need::Tool("fio")];
    if !met("what_is_left_of_a_laboratory_is_removed", &needs) {
        return;
    }
    let place = Place(tempfile::tempdir().expect("a directory"));
    place.script("up", &["--disk-size", "512M", "--tolerance", "none", "--data-mib", "8", "--disks", "2"]).expect_ok();
    let app = place.dir().join("appliance");
    run(Command::new(ashlar()).args(["lab", "kill", "--dir"]).arg(&app), LIMIT).expect_ok();
    std::fs::remove_file(app.join("ashlar.toml")).expect("the configuration");
    let down = place.script("down", &[]).expect_ok();
    assert!(down.stdout.contains("every trace of"), "{down}");
    assert!(!place.dir().exists());
    assert_eq!(traces(&place.dir()), "");
}
