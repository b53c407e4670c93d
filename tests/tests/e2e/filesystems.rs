//! File systems on volumes, by FUSE and a loop device, whose daemon is killed under them.

use ashlar_tests::Lab;
use ashlar_tests::require::{Need, met};

use crate::tools::{SMALL, attach, create, expect_sound, shell};

/// Puts a tree of files on a fresh file system, syncs it, goes on writing, and kills the daemon in the middle of that.
/// `check` is the checker that must find nothing once the file system's own log was replayed.
fn used_and_killed(kind: &str, mkfs: &'static str, checker: &'static str, check: &[&str], left_attached: bool) {
    let needs = [
        Need::Root,
        Need::Fuse,
        Need::Loop,
        Need::Tool("losetup"),
        Need::Tool(mkfs),
        Need::Tool(checker),
        Need::Tool("tar"),
    ];
    if !met(&format!("a_killed_daemon_under_{kind}"), &needs) {
        return;
    }
    let lab = Lab::up(SMALL);
    create(&lab, "data", "600M");
    let device = attach(&lab, "data", &["fuse", "--loop"]);
    let mount = lab.dir().join("fs").display().to_string();
    shell("mkdir \"$2\"; \"$3\" -q \"$1\"; mount \"$1\" \"$2\"", &[&device, &mount, mkfs]).expect_ok();
    let tree = ashlar_tests::binary::workspace().join("blockdev").display().to_string();
    let copy = "mkdir \"$2\"; tar -C \"$1\" -cf - . | tar -C \"$2\" -xf -; sync -f \"$2\"";
    shell(copy, &[&tree, &format!("{mount}/synced")]).expect_ok();
    std::thread::scope(|scope| {
        // Its writes fail once the daemon is gone: how it ends does not matter.
        let more = "for i in $(seq 500); do mkdir -p \"$2/$i\"; tar -C \"$1\" -cf - . | tar -C \"$2/$i\" -xf -; sync -f \"$2\"; done";
        let unsynced = format!("{mount}/unsynced");
        let tree = &tree;
        let writer = scope.spawn(move || shell(more, &[tree.as_str(), &unsynced]));
        std::thread::sleep(std::time::Duration::from_millis(900));
        assert!(!writer.is_finished(), "the daemon would be killed too late");
        lab.lab("kill", &[]).expect_ok();
        drop(writer.join());
    });
    shell("umount \"$1\"", &[&mount]).expect_ok();
    if !left_attached {
        shell("losetup -d \"$1\"", &[&device]).expect_ok();
    }
    lab.lab("start", &[]).expect_ok();
    let shown = lab.json(&["volume", "show", "data"]);
    let device = shown["attachment"]["device"].as_str().unwrap_or_else(|| panic!("no device: {shown}")).to_owned();
    // Mounting replays the log of the file system; afterwards it must be whole.
    shell("mount \"$1\" \"$2\"", &[&device, &mount]).expect_ok();
    shell("diff -r \"$1\" \"$2\"", &[&tree, &format!("{mount}/synced")]).expect_ok();
    shell("umount \"$1\"", &[&mount]).expect_ok();
    let mut arguments = vec![checker];
    arguments.extend(check);
    arguments.push(&device);
    shell("\"$@\"", &arguments).expect_ok();
    lab.ashlar(&["volume", "detach", "data"]).expect_ok();
    expect_sound(&lab);
}

#[test]
fn a_killed_daemon_under_ext4() {
    used_and_killed("ext4", "mkfs.ext4", "fsck.ext4", &["-f", "-n"], false);
}

/// Here the dead loop device is left where it was.
#[test]
fn a_killed_daemon_under_xfs() {
    used_and_killed("xfs", "mkfs.xfs", "xfs_repair", &["-n"], true);
}

/// Who works in a file system on a volume is named, not robbed.
#[test]
fn a_laboratory_in_use_is_not_taken_down() {
    let needs = [Need::Root, Need::Fuse, Need::Loop, Need::Tool("losetup"), Need::Tool("mkfs.ext4")];
    if !met("a_laboratory_in_use_is_not_taken_down", &needs) {
        return;
    }
    let lab = Lab::up(SMALL);
    create(&lab, "data", "100M");
    let device = attach(&lab, "data", &["fuse", "--loop"]);
    let mount = lab.dir().join("fs").display().to_string();
    shell("mkdir \"$2\"; mkfs.ext4 -q \"$1\"; mount \"$1\" \"$2\"; touch \"$2/kept\"", &[&device, &mount]).expect_ok();
    let mut user = std::process::Command::new("sleep").arg("600").current_dir(&mount).spawn().expect("sleep");
    let refused = lab.lab("down", &[]);
    let running = lab.daemons().len();
    let kept = std::path::Path::new(&mount).join("kept").exists();
    user.kill().expect("ended");
    let _ = user.wait();
    let refused = refused.expect_failure();
    assert_eq!((refused.status.code(), running, kept), (Some(4), 1, true), "{refused}");
    assert!(refused.stderr.contains(&format!("in use by sleep ({})", user.id())), "{refused}");
    lab.lab("down", &[]).expect_ok();
    assert!(lab.daemons().is_empty() && !lab.dir().join("disks").exists());
}
