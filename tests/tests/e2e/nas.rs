//! File systems of an appliance, used as people use them, by the kernel.

use std::path::PathBuf;
use std::time::Duration;

use ashlar_tests::Lab;
use ashlar_tests::process::wait_until;
use ashlar_tests::require::{Need, met};

use crate::tools::{SMALL, alerts, expect_refused, expect_sound, shell, tool};

/// Makes a file system; gives where it is mounted.
#[track_caller]
fn make(lab: &Lab, name: &str, size: &str) -> String {
    lab.ashlar(&["nas", "fs", "create", name, "--size", size]).expect_ok();
    path_of(lab, name)
}

#[track_caller]
fn path_of(lab: &Lab, name: &str) -> String {
    let shown = lab.json(&["nas", "fs", "show", name]);
    assert_eq!(shown["state"], "mounted", "{shown}");
    shown["path"].as_str().unwrap_or_else(|| panic!("no path: {shown}")).to_owned()
}

/// The check of the file system finds nothing, and nothing waits to be freed.
#[track_caller]
fn expect_whole(lab: &Lab, name: &str) {
    let freed = || lab.json(&["nas", "fs", "check", name])["orphans"] == 0;
    assert!(wait_until(Duration::from_secs(20), freed), "files without a name are not freed");
    let found = lab.json(&["nas", "fs", "check", name]);
    assert_eq!(found["wrong"], 0, "{found}");
}

/// For scripts: what must not succeed. (`! command` alone ends none that stops at errors.)
const NO: &str = "no() { if \"$@\" >/dev/null 2>&1; then echo \"it could: $*\" >&2; exit 1; fi; };";

const MOUNTED: &[Need] = &[Need::Root, Need::Fuse];

fn tree() -> String {
    ashlar_tests::binary::workspace().join("tools").display().to_string()
}

#[test]
fn a_file_system_from_its_making_to_its_end() {
    if !met("a_file_system_from_its_making_to_its_end", MOUNTED) {
        return;
    }
    let lab = Lab::up(SMALL);
    let home = make(&lab, "home", "1G");
    shell("cp -a \"$1\" \"$2/tree\"; diff -r \"$1\" \"$2/tree\"", &[&tree(), &home]).expect_ok();
    lab.ashlar(&["nas", "snapshot", "create", "home@before"]).expect_ok();
    shell("rm -rf \"$1/tree\"; echo new >\"$1/new\"", &[&home]).expect_ok();

    // The snapshot can be read, not written, and stays while it is mounted.
    let view = lab.ashlar(&["nas", "snapshot", "mount", "home@before"]).expect_ok().stdout.trim().to_owned();
    let only_read = "diff -r \"$1\" \"$2/tree\"; no touch \"$2/tree/Cargo.toml\"; no rm \"$2/tree/Cargo.toml\"; [ ! -e \"$2/new\" ]";
    shell(&format!("{NO} {only_read}"), &[&tree(), &view]).expect_ok();
    expect_refused(lab.ashlar(&["nas", "snapshot", "delete", "home@before"]), 4, "attached via fs");
    lab.ashlar(&["nas", "snapshot", "unmount", "home@before"]).expect_ok();
    expect_refused(lab.ashlar(&["nas", "snapshot", "unmount", "home@before"]), 3, "is not mounted");
    lab.ashlar(&["nas", "snapshot", "mount", "home@before"]).expect_ok();

    // A clone has what the snapshot has, and is a file system of its own.
    lab.ashlar(&["nas", "fs", "clone", "home@before", "trial"]).expect_ok();
    let trial = path_of(&lab, "trial");
    shell("diff -r \"$1\" \"$2/tree\"; rm -rf \"$2/tree\"; [ ! -e \"$2/new\" ]", &[&tree(), &trial]).expect_ok();

    // Restored, what it was meanwhile is kept.
    lab.ashlar(&["nas", "fs", "restore", "home@before"]).expect_ok();
    shell("diff -r \"$1\" \"$2/tree\"; [ ! -e \"$2/new\" ]", &[&tree(), &home]).expect_ok();
    let snapshots = lab.json(&["nas", "snapshot", "list", "home"]);
    let names: Vec<&str> = snapshots.as_array().into_iter().flatten().filter_map(|s| s["name"].as_str()).collect();
    let kept = names.iter().find(|name| name.starts_with("home@before-restore")).expect("what it was is kept");
    lab.ashlar(&["nas", "fs", "clone", kept, "meanwhile"]).expect_ok();
    shell("[ \"$(cat \"$1/new\")\" = new ]", &[&path_of(&lab, "meanwhile")]).expect_ok();

    // Somebody unmounts it behind the daemon's back.
    shell("umount \"$1\"", &[&home]).expect_ok();
    let said = || lab.json(&["nas", "fs", "show", "home"])["state"] == "unmounted";
    assert!(wait_until(Duration::from_secs(10), said), "{}", lab.json(&["nas", "fs", "show", "home"]));
    assert_eq!(alerts(&lab), ["nas.unmounted"]);
    lab.ashlar(&["nas", "fs", "mount", "home"]).expect_ok();
    assert!(alerts(&lab).is_empty());

    // Larger while it is used, and still after a restart.
    lab.ashlar(&["nas", "fs", "resize", "home", "--size", "2G"]).expect_ok();
    shell("[ $(df --output=size -B1 \"$1\" | tail -1) = 2147483648 ]", &[&home]).expect_ok();
    lab.lab("stop", &[]).expect_ok();
    shell(&format!("{NO} no mountpoint -q \"$1\""), &[&home]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    shell("diff -r \"$1\" \"$2/tree\"; df \"$2\"", &[&tree(), &home]).expect_ok();
    for name in ["home", "trial", "meanwhile"] {
        expect_whole(&lab, name);
    }

    // One with open files, or snapshots, goes only when that was said.
    let open = "exec 3<\"$1/tree/Cargo.toml\"; \"$2\" --dir \"$3\" nas fs delete home --snapshots";
    let program = ashlar_tests::binary::ashlar().display().to_string();
    let dir = lab.dir().display().to_string();
    expect_refused(shell(open, &[&home, &program, &dir]), 4, "is in use: 1 open");
    expect_refused(lab.ashlar(&["nas", "fs", "delete", "home"]), 4, "has snapshots");
    lab.ashlar(&["nas", "fs", "delete", "home", "--snapshots"]).expect_ok();
    shell("diff -r \"$1\" \"$2/tree\" >&2 && exit 1; [ -z \"$(ls \"$2\")\" ]", &[&tree(), &trial]).expect_ok();
    for name in ["trial", "meanwhile"] {
        lab.ashlar(&["nas", "fs", "delete", name]).expect_ok();
    }
    assert_eq!(lab.json(&["nas", "fs", "list"]), serde_json::json!([]));
    assert_eq!(lab.json(&["group", "list"]), serde_json::json!([]));
    let gone = || lab.json(&["volume", "list"]) == serde_json::json!([]);
    assert!(wait_until(Duration::from_secs(30), gone), "volumes stay: {}", lab.json(&["volume", "list"]));
    assert!(alerts(&lab).is_empty(), "{:?}", alerts(&lab));
    expect_sound(&lab);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    if !met("what_cannot_be_is_refused_and_changes_nothing", MOUNTED) {
        return;
    }
    let lab = Lab::up(SMALL);
    lab.ashlar(&["volume", "create", "plain", "--size", "64M"]).expect_ok();
    lab.ashlar(&["volume", "create", "own.fs-data", "--size", "64M"]).expect_ok();
    lab.ashlar(&["group", "create", "taken", "--volumes", "plain"]).expect_ok();
    make(&lab, "home", "256M");
    let long = "x".repeat(51);
    let refused: &[(&[&str], i32, &str)] = &[
        (&["nas", "fs", "create", "home", "--size", "1G"], 4, "exists already"),
        (&["nas", "fs", "create", "own", "--size", "1G"], 4, "volume 'own.fs-data' exists already"),
        (&["nas", "fs", "create", "taken", "--size", "1G"], 4, "group 'taken' exists already"),
        (&["nas", "fs", "create", &long, "--size", "1G"], 2, "at most 50"),
        (&["nas", "fs", "create", "a/b", "--size", "1G"], 2, "a/b"),
        (&["nas", "fs", "create", "small", "--size", "1M"], 2, "at least 64 MiB"),
        (&["nas", "fs", "create", "huge", "--size", "9999P"], 2, ""),
        (&["nas", "fs", "create", "odd", "--size", "1G", "--policy", "none-such"], 3, "none-such"),
        (&["nas", "fs", "show", "nobody"], 3, "no file system 'nobody'"),
        (&["nas", "fs", "check", "nobody"], 3, "no file system 'nobody'"),
        (&["nas", "fs", "mount", "nobody"], 3, "no file system 'nobody'"),
        (&["nas", "fs", "delete", "nobody"], 3, "no file system 'nobody'"),
        (&["nas", "fs", "resize", "home", "--size", "64M"], 8, "cannot be made smaller"),
        (&["nas", "fs", "restore", "home"], 2, "FILESYSTEM@SNAPSHOT"),
        (&["nas", "fs", "restore", "home@none"], 3, "home@none"),
        (&["nas", "fs", "clone", "home@none", "other"], 3, "home@none"),
        (&["nas", "snapshot", "create", "nobody@a"], 3, "no file system 'nobody'"),
        (&["nas", "snapshot", "list", "nobody"], 3, "no file system 'nobody'"),
        (&["volume", "detach", "home.fs-data"], 4, "part of file system 'home'"),
        (&["volume", "delete", "home.fs-meta"], 4, "part of file system 'home'"),
        (&["volume", "resize", "home.fs-data", "--size", "1G"], 4, "part of file system 'home'"),
        (&["volume", "attach", "home.fs-data", "--via", "nbd"], 4, "part of file system 'home'"),
        (&["group", "remove", "home", "home.fs-data"], 4, "that of file system 'home'"),
        (&["group", "add", "home", "plain"], 4, "that of file system 'home'"),
        (&["group", "delete", "home"], 4, "that of file system 'home'"),
    ];
    for (arguments, code, message) in refused {
        expect_refused(lab.ashlar(arguments), *code, message);
    }
    let all = lab.json(&["nas", "fs", "list"]);
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
    assert_eq!(lab.json(&["volume", "list"]).as_array().map(Vec::len), Some(4));
    expect_whole(&lab, "home");
}

#[test]
fn the_posix_suite_passes() {
    if !met("the_posix_suite_passes", &[Need::Root, Need::Fuse, Need::Tool("pjdfstest")]) {
        return;
    }
    let lab = Lab::up(SMALL);
    let home = make(&lab, "home", "1G");
    let settings = lab.dir().join("pjdfstest.toml");
    let text = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutimensat = {}\nutime_now = {}\nstat_st_birthtime = {}\n\n\
                [settings]\nnaptime = 0.001\n\n\
                [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"], [\"bin\", \"bin\"]]\n";
    std::fs::write(&settings, text).expect("settings of the suite");
    let ran = tool("pjdfstest", &["-c", &settings.display().to_string(), "-p", &home]).expect_ok();
    std::fs::remove_file(&settings).expect("removed");
    let summary = ran.stdout.lines().find(|line| line.starts_with("Summary:")).expect("a summary").to_owned();
    let count = |what: &str| {
        let before = summary.split(what).next().and_then(|text| text.split_whitespace().last());
        before.and_then(|n| n.parse::<u32>().ok()).unwrap_or_else(|| panic!("{what}: {summary}"))
    };
    // What needs a second file system, or one mounted for reading only, is left out: 16 of 398.
    assert!(count(" failed") == 0 && count(" passed") >= 370, "{summary}");
    expect_whole(&lab, "home");
}

/// The kernel checks lists; what chmod, and being made below a default list, means for them is the file system's.
#[test]
fn access_control_lists() {
    if !met("access_control_lists", &[Need::Root, Need::Fuse, Need::Tool("setfacl"), Need::Tool("setpriv")]) {
        return;
    }
    let lab = Lab::up(SMALL);
    let home = make(&lab, "home", "256M");
    let script = "NO chmod 755 \"$2\" \"$2/nas\"; cd \"$1\"; umask 022
        as() { setpriv --reuid \"$1\" --regid 65534 --clear-groups -- \"${@:2}\"; }
        echo text >f; chmod 600 f; no as 1 cat f
        setfacl -m u:1:r f; [ \"$(as 1 cat f)\" = text ]; no as 1 tee f </dev/null; no as 2 cat f
        [ $(stat -c %a f) = 640 ]; chmod 600 f; no as 1 cat f
        chmod 640 f; [ \"$(as 1 cat f)\" = text ]; setfacl -b f; [ $(stat -c %a f) = 600 ]; no as 1 cat f
        mkdir d; setfacl -d -m u:1:rwx,g::rx,o::- d; touch d/made; mkdir -p d/below; touch d/below/made
        [ $(stat -c %a d/made) = 660 ]; as 1 cat d/made; no as 2 cat d/made
        getfacl -cpn d/below/made | grep -q 'user:1:rwx'; getfacl -cpn d/below | grep -q 'default:user:1:rwx'
        no setfacl -d -m u:1:r f; setfacl -k d; touch d/plain; [ $(stat -c %a d/plain) = 644 ]";
    shell(&script.replace("NO", NO), &[&home, &lab.dir().display().to_string()]).expect_ok();
    expect_whole(&lab, "home");
}

#[test]
fn names_attributes_and_trees_of_all_kinds() {
    if !met("names_attributes_and_trees_of_all_kinds", MOUNTED) {
        return;
    }
    let lab = Lab::up(SMALL);
    let home = make(&lab, "home", "512M");
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/nas/hostile.py");
    let ran = tool("python3", &["-B", &script.display().to_string(), &home]).expect_ok();
    assert!(ran.stdout.contains("all as it should be"), "{ran}");
    expect_whole(&lab, "home");
    // All of it outlives a kill.
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    tool("python3", &["-B", &script.display().to_string(), &home, "again"]).expect_ok();
    expect_whole(&lab, "home");
}

/// Exercised by four fsx at once and copies of a tree, killed in the middle, again and again.
#[test]
fn kills_under_load() {
    if !met("kills_under_load", &[Need::Root, Need::Fuse, Need::Tool("fsx")]) {
        return;
    }
    let rounds: u64 = std::env::var("ASHLAR_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(25);
    let lab = Lab::up(SMALL);
    let home = make(&lab, "home", "1G");
    for round in 0..rounds.div_ceil(5) {
        let exercise = "for i in 1 2 3 4; do fsx -q -N 100000 -S $(($2 * 4 + i)) -P /tmp \"$1/fsx-$i\" >/dev/null 2>&1 & done
            for i in $(seq 1000); do mkdir -p \"$1/unsynced\"; cp -r \"$3\" \"$1/unsynced/$i\"; done >/dev/null 2>&1 || true; wait || true";
        let synced = format!("{home}/synced-{}", round % 3);
        shell("rm -rf \"$2\"; cp -r \"$1\" \"$2\"; sync \"$2\"", &[&tree(), &synced]).expect_ok();
        std::thread::scope(|scope| {
            let load = scope.spawn(|| shell(exercise, &[&home, &round.to_string(), &tree()]));
            std::thread::sleep(Duration::from_millis(700 + 130 * (round % 5)));
            assert!(!load.is_finished(), "nothing is going on");
            lab.lab("kill", &[]).expect_ok();
            drop(load.join());
        });
        lab.lab("start", &[]).expect_ok();
        shell("diff -r \"$1\" \"$2\"", &[&tree(), &synced]).expect_ok();
        expect_whole(&lab, "home");
        shell("rm -rf \"$1/unsynced\" \"$1\"/fsx*", &[&home]).expect_ok();
    }
    // Then to their ends.
    let exercise =
        "for i in 1 2 3 4; do fsx -q -N 5000 -S $i -P /tmp \"$1/fsx-$i\" & done; for i in 1 2 3 4; do wait -n; done";
    shell(exercise, &[&home]).expect_ok();
    expect_whole(&lab, "home");
    expect_sound(&lab);
}

#[test]
fn full_is_not_fatal() {
    if !met("full_is_not_fatal", &[Need::Root, Need::Fuse, Need::Tool("fio")]) {
        return;
    }
    let lab = Lab::up(SMALL);
    // The file system is full before the pool is, then the pool before the file system.
    for (name, size) in [("small", "100M"), ("large", "4G")] {
        let home = make(&lab, name, size);
        let fill = "mkdir \"$1/d\"; fio --name=fill --directory=\"$1/d\" --rw=write --bs=256k --size=3G --fallocate=none --refill_buffers >&2 && exit 1
            [ $(stat -c %b \"$1\"/d/fill*) -gt 100000 ]; echo kept >\"$1/kept\" || true; mkdir \"$1/still\"; touch \"$1/still/made\"";
        shell(fill, &[&home]).expect_ok();
        lab.ashlar(&["nas", "fs", "check", name]).expect_ok();
        shell("rm -r \"$1/d\"; sync \"$1\"", &[&home]).expect_ok();
        let works = || shell("dd if=/dev/urandom of=\"$1/more\" bs=1M count=60 conv=fsync status=none", &[&home]).ok();
        assert!(wait_until(Duration::from_secs(30), works), "no room after a deletion");
        expect_whole(&lab, name);
        lab.ashlar(&["nas", "fs", "delete", name]).expect_ok();
    }
    expect_sound(&lab);
}

/// Files that are deleted while they are open stay until they are closed, or the daemon is killed.
#[test]
fn open_files_outlive_their_names() {
    if !met("open_files_outlive_their_names", MOUNTED) {
        return;
    }
    let lab = Lab::up(SMALL);
    let home = make(&lab, "home", "512M");
    let used = |lab: &Lab| lab.json(&["nas", "fs", "show", "home"])["used"].as_u64().unwrap_or(u64::MAX);
    let held = "exec 3<>\"$1/f\"; dd if=/dev/urandom bs=1M count=50 status=none >&3; sum=$(md5sum <\"$1/f\"); rm \"$1/f\"; sleep 3
        [ \"$sum\" = \"$(md5sum </dev/fd/3)\" ]; [ $(stat -Lc %h /dev/fd/3) = 0 ]";
    shell(&format!("touch \"$1/f\"; {held}"), &[&home]).expect_ok();
    assert!(wait_until(Duration::from_secs(20), || used(&lab) < 1 << 20), "{} bytes stay", used(&lab));
    expect_whole(&lab, "home");
    std::thread::scope(|scope| {
        let held = "exec 3>\"$1/f\"; dd if=/dev/urandom bs=1M count=50 status=none >&3; rm \"$1/f\"; sync \"$1\"; touch \"$1/ready\"; sleep 5";
        let holder = scope.spawn(|| shell(held, &[&home]));
        let ready = PathBuf::from(&home).join("ready");
        assert!(wait_until(Duration::from_secs(20), || ready.exists()));
        assert!(used(&lab) > 50 << 20);
        lab.lab("kill", &[]).expect_ok();
        drop(holder.join());
    });
    lab.lab("start", &[]).expect_ok();
    assert!(wait_until(Duration::from_secs(20), || used(&lab) < 1 << 20), "{} bytes stay", used(&lab));
    expect_whole(&lab, "home");
}

/// What a file server gave its clients leads to the same file after a kill, wherever that was moved, and to none once it was deleted.
#[test]
fn handles_outlive_the_daemon() {
    if !met("handles_outlive_the_daemon", MOUNTED) {
        return;
    }
    let lab = Lab::up(SMALL);
    let home = make(&lab, "home", "256M");
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/nas/handles.py").display().to_string();
    let handles = |verb: &str, what: &str| {
        tool("python3", &["-B", &script, verb, &home, what]).expect_ok().stdout.trim().to_owned()
    };
    shell("mkdir -p \"$1/a/b\"; echo here >\"$1/a/b/stays\"; echo not >\"$1/goes\"", &[&home]).expect_ok();
    let (stays, goes) = (handles("get", "a/b/stays"), handles("get", "goes"));
    assert_eq!(handles("open", &goes), "not");
    shell("rm \"$1/goes\"; sync \"$1\"", &[&home]).expect_ok();
    for moved in ["a/moved", "moved"] {
        lab.lab("kill", &[]).expect_ok();
        lab.lab("start", &[]).expect_ok();
        assert_eq!(handles("open", &stays), "here");
        handles("stale", &goes);
        shell(
            "mv \"$1\"/a/b/stays \"$1/$2\" || mv \"$1\"/a/moved \"$1/$2\"; echo other >\"$1/goes\"; sync \"$1\"",
            &[&home, moved],
        )
        .expect_ok();
    }
    assert_eq!(handles("open", &stays), "here");
    handles("stale", &goes);
    expect_whole(&lab, "home");
}

/// The daemon is killed while file systems are made and deleted: what is half made or half deleted is gone afterwards.
#[test]
fn half_made_is_not_made() {
    if !met("half_made_is_not_made", MOUNTED) {
        return;
    }
    let lab = Lab::up(SMALL);
    make(&lab, "stays", "128M");
    for round in 0..5 {
        let program = ashlar_tests::binary::ashlar().display().to_string();
        let dir = lab.dir().display().to_string();
        let many = "for i in $(seq 100); do \"$1\" --dir \"$2\" nas fs create \"t$i\" --size 128M && \"$1\" --dir \"$2\" nas fs delete \"t$i\"; done >/dev/null 2>&1 || true";
        std::thread::scope(|scope| {
            let maker = scope.spawn(|| shell(many, &[&program, &dir]));
            std::thread::sleep(Duration::from_millis(150 + 37 * round));
            lab.lab("kill", &[]).expect_ok();
            drop(maker.join());
        });
        lab.lab("start", &[]).expect_ok();
        let all = lab.json(&["nas", "fs", "list"]);
        for fs in all.as_array().into_iter().flatten() {
            assert_eq!(fs["state"], "mounted", "{all}");
            let name = fs["name"].as_str().expect("a name");
            if name != "stays" {
                lab.ashlar(&["nas", "fs", "delete", name]).expect_ok();
            }
        }
        let left = || lab.json(&["volume", "list"]).as_array().map(Vec::len) == Some(2);
        assert!(wait_until(Duration::from_secs(20), left), "{}", lab.json(&["volume", "list"]));
        assert_eq!(lab.json(&["group", "list"]).as_array().map(Vec::len), Some(1));
    }
    expect_whole(&lab, "stays");
    expect_sound(&lab);
}
