//! File systems on a pool that gets full, and a drive that makes room.

use ashlar_tests::Lab;
use ashlar_tests::lab::LIMIT;
use ashlar_tests::process::wait_until;
use ashlar_tests::require::{Need, met};

use crate::tools::{alerts, attach, create, expect_sound, shell};

/// Files are written and synced, each noted with its checksum, until one fails. A drive is added: the file system, mounted anew, has all of them, and takes more.
fn filled_and_given_a_drive(kind: &str, mkfs: &'static str, checker: &'static str, check: &[&str]) {
    let needs = [Need::Root, Need::Fuse, Need::Loop, Need::Tool("losetup"), Need::Tool(mkfs), Need::Tool(checker)];
    if !met(&format!("{kind}_on_a_pool_that_gets_full"), &needs) {
        return;
    }
    let lab = Lab::up(&["--disks", "4", "--disk-size", "256M", "--tolerance", "single", "--memory", "256M"]);
    create(&lab, "data", "4G");
    let device = attach(&lab, "data", &["fuse", "--loop"]);
    let (mount, sums) = (lab.dir().join("fs").display().to_string(), lab.dir().join("sums").display().to_string());
    shell("mkdir \"$2\"; \"$3\" -q \"$1\"; mount \"$1\" \"$2\"", &[&device, &mount, mkfs]).expect_ok();
    let fill = "cd \"$1\"
        for i in $(seq \"$3\" \"$4\"); do
            dd if=/dev/urandom of=\"$i\" bs=1M count=1 conv=fsync status=none || exit 28
            sha256sum \"$i\" >>\"$2\"
        done";
    let filled = shell(fill, &[&mount, &sums, "1", "4000"]).expect_failure();
    assert_eq!(filled.status.code(), Some(28), "{filled}");
    let written = std::fs::read_to_string(&sums).expect("the checksums").lines().count();
    assert!(written > 200, "full after {written} files");
    assert!(alerts(&lab).contains(&"pool.space.95".to_owned()), "{:?}", alerts(&lab));
    expect_sound(&lab);
    let before = lab.json(&["pool", "status"])["usable"].as_u64();
    let new = lab.dir().join("disks/new.img").display().to_string();
    shell("truncate -s 256M \"$1\"", &[&new]).expect_ok();
    lab.ashlar(&["disk", "add", &new]).expect_ok();
    let has_room = || !alerts(&lab).contains(&"pool.space.95".to_owned());
    assert!(wait_until(LIMIT, has_room), "a drive made no room: {}", lab.json(&["pool", "status"]));
    assert!(lab.json(&["pool", "status"])["usable"].as_u64() > before);
    // It may have stopped taking writes when it was refused one of its own. Mounting replays its log.
    shell("umount \"$2\"; mount \"$1\" \"$2\"", &[&device, &mount]).expect_ok();
    shell("cd \"$1\"; sha256sum --quiet -c \"$2\"", &[&mount, &sums]).expect_ok();
    shell(fill, &[&mount, &sums, "5001", "5040"]).expect_ok();
    shell("cd \"$1\"; sha256sum --quiet -c \"$2\"", &[&mount, &sums]).expect_ok();
    shell("umount \"$1\"", &[&mount]).expect_ok();
    let mut arguments = vec![checker];
    arguments.extend(check);
    arguments.push(&device);
    shell("\"$@\"", &arguments).expect_ok();
    lab.ashlar(&["volume", "detach", "data"]).expect_ok();
    expect_sound(&lab);
}

#[test]
fn ext4_on_a_pool_that_gets_full() {
    filled_and_given_a_drive("ext4", "mkfs.ext4", "fsck.ext4", &["-f", "-n"]);
}

#[test]
fn xfs_on_a_pool_that_gets_full() {
    filled_and_given_a_drive("xfs", "mkfs.xfs", "xfs_repair", &["-n"]);
}
