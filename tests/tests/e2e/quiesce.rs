//! Snapshots that applications find consistent: frozen file systems, hooks, and what hangs or dies in between.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use ashlar_tests::process::{processes_of, signal, wait_until};
use ashlar_tests::require::{Need, met};
use ashlar_tests::{Lab, Output};

use crate::tools::{SMALL, attach, create, detach, expect_sound, shell};

/// Puts settings in front of a laboratory's configuration, and lets its daemon read them.
fn configure(lab: &Lab, settings: &str) {
    let path = lab.dir().join("ashlar.toml");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    std::fs::write(&path, format!("{settings}\n{text}")).expect("written");
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
}

/// Whether the file system in a snapshot was left in the middle of something.
fn needs_repair(lab: &Lab, snapshot: &str) -> bool {
    let file = attach(lab, snapshot, &["fuse"]);
    let features = shell("dumpe2fs -h \"$1\" 2>/dev/null", &[&file]).expect_ok().stdout;
    let dirty = features.contains("needs_recovery");
    if !dirty {
        shell("e2fsck -fn \"$1\"", &[&file]).expect_ok();
    }
    detach(lab, snapshot);
    dirty
}

/// Children of the daemon that hold writers.
fn holders(lab: &Lab) -> Vec<u32> {
    processes_of(ashlar_tests::ashlar(), &lab.dir().join("fs"))
}

/// Asks for a snapshot of a frozen file system, and does something while writers are held.
fn asked_and(lab: &Lab, meanwhile: impl FnOnce()) -> Output {
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| lab.ashlar(&["snapshot", "create", "data@never", "--freeze"]));
        assert!(wait_until(Duration::from_secs(20), || !holders(lab).is_empty()), "nothing was frozen");
        meanwhile();
        asking.join().expect("ended")
    })
}

#[test]
fn a_frozen_file_system_needs_no_repair() {
    let tools = ["mkfs.ext4", "dumpe2fs", "e2fsck", "losetup"].map(Need::Tool);
    let needs: Vec<Need> = [Need::Root, Need::Fuse, Need::Loop].into_iter().chain(tools).collect();
    if !met("a_frozen_file_system_needs_no_repair", &needs) {
        return;
    }
    let lab = Lab::up(SMALL);
    create(&lab, "data", "64M");
    let device = attach(&lab, "data", &["fuse", "--loop"]);
    let mount = lab.dir().join("fs").display().to_string();
    shell("mkdir \"$2\"; mkfs.ext4 -q \"$1\"; mount \"$1\" \"$2\"", &[&device, &mount]).expect_ok();
    let stop = lab.dir().join("stop").display().to_string();
    let writer = {
        let (mount, stop) = (mount.clone(), stop.clone());
        let script = "i=0; while [ ! -e \"$2\" ]; do i=$((i + 1)); echo $i > \"$1/$((i % 200))\" || exit 1; [ $((i % 50)) = 0 ] && sync -f \"$1\"; done; echo $i";
        std::thread::spawn(move || shell(script, &[&mount, &stop]))
    };
    std::thread::sleep(Duration::from_millis(300));
    lab.ashlar(&["snapshot", "create", "data@plain"]).expect_ok();
    lab.ashlar(&["snapshot", "create", "data@clean", "--freeze", "--for", "1d", "--secure"]).expect_ok();
    let shown = lab.json(&["snapshot", "show", "data@clean"]);
    assert!(shown["quiesced"] == true && shown["secure"] == true, "{shown}");
    assert_eq!(lab.json(&["snapshot", "show", "data@plain"])["quiesced"], false);
    assert!(needs_repair(&lab, "data@plain"), "nothing was going on");
    assert!(!needs_repair(&lab, "data@clean"));
    let events = lab.ashlar(&["event", "list"]).expect_ok().stdout;
    assert!(events.contains("were held for"), "{events}");

    // By a rule, too; and a second freeze finds nothing frozen.
    lab.ashlar(&["rule", "create", "r", "--every", "24h", "--keep", "3", "--freeze"]).expect_ok();
    lab.ashlar(&["policy", "create", "p", "--rules", "r"]).expect_ok();
    lab.ashlar(&["policy", "assign", "p", "--volume", "data"]).expect_ok();
    let taken = lab.json(&["policy", "run", "p"]);
    assert!(!needs_repair(&lab, taken[0]["name"].as_str().expect("a name")));

    // Drives that are slow: writers go on after the limit, and there is no snapshot that is not what it should be.
    let disks = ["0", "1", "2", "3", "4", "5"];
    configure(&lab, "freeze_limit = 1");
    shell("umount -l \"$1\"", &[&mount]).expect_ok();
    drop(writer.join());
    let device = attach(&lab, "data", &["fuse", "--loop"]);
    shell("mount \"$1\" \"$2\"", &[&device, &mount]).expect_ok();
    for disk in disks {
        lab.lab("disk-slow", &[disk, "--delay", "1500ms"]).expect_ok();
    }
    shell("echo new > \"$1/new\"", &[&mount]).expect_ok();
    let late = lab.ashlar(&["snapshot", "create", "data@late", "--freeze"]).expect_failure();
    assert!(late.stderr.contains("freeze_limit"), "{late}");
    lab.ashlar(&["snapshot", "show", "data@late"]).expect_failure();
    shell("echo more > \"$1/more\"", &[&mount]).expect_ok();
    assert!(holders(&lab).is_empty());

    // What holds writers is killed: the daemon lets them go, and there is no snapshot.
    for disk in disks {
        lab.lab("disk-slow", &[disk, "--delay", "300ms"]).expect_ok();
    }
    let asked = asked_and(&lab, || signal(&holders(&lab)[0].to_string(), "KILL"));
    asked.expect_failure();
    lab.ashlar(&["snapshot", "show", "data@never"]).expect_failure();
    shell("echo after > \"$1/after\"; sync -f \"$1\"", &[&mount]).expect_ok();
    let notes = || shell("ls \"$1\" | grep -c '^frozen-' || true", &[&lab.dir().display().to_string()]).stdout;
    assert!(wait_until(Duration::from_secs(20), || notes().trim() == "0"), "{}", notes());

    // It is stopped while it holds them, and cannot let them go: the daemon does that.
    let asked = asked_and(&lab, || {
        let pid = holders(&lab)[0];
        let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, |tasks| tasks.count());
        assert!(wait_until(Duration::from_secs(20), || threads() > 1), "it does not begin");
        signal(&pid.to_string(), "STOP");
    });
    asked.expect_failure();
    lab.ashlar(&["snapshot", "show", "data@never"]).expect_failure();
    assert!(wait_until(Duration::from_secs(60), || holders(&lab).is_empty()), "it is stopped still");
    shell("echo then > \"$1/then\"; sync -f \"$1\"", &[&mount]).expect_ok();
    assert!(wait_until(Duration::from_secs(20), || notes().trim() == "0"), "{}", notes());

    // The daemon is killed: nobody holds writers any more.
    asked_and(&lab, || {
        lab.lab("kill", &[]).expect_ok();
    })
    .expect_failure();
    assert!(wait_until(Duration::from_secs(60), || holders(&lab).is_empty()), "somebody holds writers still");
    shell("umount -l \"$1\"", &[&mount]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    for disk in disks {
        lab.lab("disk-slow", &[disk, "--delay", "0"]).expect_ok();
    }
    assert!(wait_until(Duration::from_secs(20), || notes().trim() == "0"), "{}", notes());
    // If there is a snapshot it does not claim what nobody knows, and goes by itself.
    let left = lab.ashlar(&["snapshot", "show", "data@never", "-o", "json"]);
    if left.ok() {
        let left = left.json();
        assert!(left["quiesced"] == false && left["expires_s"].as_u64().is_some(), "{left}");
    }
    detach(&lab, "data");
    expect_sound(&lab);
}

#[test]
fn hooks_are_run_and_what_hangs_is_killed() {
    let lab = Lab::up(SMALL);
    create(&lab, "a", "16M");
    create(&lab, "b", "16M");
    lab.ashlar(&["group", "create", "g", "--volumes", "a", "b"]).expect_ok();
    configure(&lab, "hook_limit = 2");
    let hooks = lab.dir().join("hooks");
    let log = lab.dir().join("hooks.log");
    std::fs::create_dir(&hooks).expect("made");
    let hook = |name: &str, script: &str| {
        let path = hooks.join(name);
        let line = format!("echo \"{name} $1 $ASHLAR_SNAPSHOTS\" >> {}", log.display());
        std::fs::write(&path, format!("#!/bin/sh\n{line}\n{script}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("changed");
    };
    hook("good", "");
    hook("bad", "[ $1 = pre ] && { echo no room for that >&2; exit 7; }");
    hook("slow", "[ $1 = pre ] && sleep 600");
    lab.ashlar(&["group", "snapshot", "g@one", "--hook", "good"]).expect_ok();
    assert_eq!(lab.json(&["snapshot", "show", "a@one"])["quiesced"], true);
    let bad = lab.ashlar(&["group", "snapshot", "g@two", "--hook", "bad"]).expect_failure();
    assert!(bad.stderr.contains("no room for that"), "{bad}");
    let begun = Instant::now();
    let slow = lab.ashlar(&["snapshot", "create", "a@three", "--hook", "slow"]).expect_failure();
    assert!(slow.stderr.contains("took longer than 2 s"), "{slow}");
    assert!(begun.elapsed() < Duration::from_secs(60), "it was waited for");
    for name in ["../../bin/true", "none", "/bin/true"] {
        lab.ashlar(&["snapshot", "create", "a@four", "--hook", name]).expect_failure();
    }
    let told = std::fs::read_to_string(&log).expect("a log");
    let expected = "good pre a@one b@one\ngood post a@one b@one\nbad pre a@two b@two\nbad failed a@two b@two\nslow pre a@three\nslow failed a@three\n";
    assert_eq!(told, expected);
    assert_eq!(lab.json(&["snapshot", "list"]).as_array().map(Vec::len), Some(2));
    // A daemon that is killed in the middle: the hook is told when there is another one.
    hook("long", "[ $1 = pre ] && { sleep 600 & sleep 1; }");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| lab.ashlar(&["snapshot", "create", "a@six", "--hook", "long"]));
        let begun = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("long pre"));
        assert!(wait_until(Duration::from_secs(20), begun), "the hook was not run");
        lab.lab("kill", &[]).expect_ok();
        asking.join().expect("ended").expect_failure();
    });
    lab.lab("start", &[]).expect_ok();
    let told = || std::fs::read_to_string(&log).is_ok_and(|text| text.ends_with("long failed a@six\n"));
    assert!(wait_until(Duration::from_secs(20), told), "{:?}", std::fs::read_to_string(&log));
    // What is mounted elsewhere cannot be frozen here.
    attach(&lab, "a", &["nbd"]);
    let elsewhere = lab.ashlar(&["snapshot", "create", "a@five", "--freeze"]).expect_failure();
    assert!(elsewhere.stderr.contains("use a hook"), "{elsewhere}");
    expect_sound(&lab);
}
