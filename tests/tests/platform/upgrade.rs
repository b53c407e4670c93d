//! Another program takes the daemon's place under ublk devices: hosts wait, nothing fails, nothing is lost.

use std::path::PathBuf;
use std::time::Duration;

use ashlar_tests::ashlar;
use ashlar_tests::process::wait_until;
use serde_json::Value;

use crate::appliance::{Appliance, LIMIT, here, ordinary, shell, tree};

/// A copy of the program in the appliance's directory.
fn copy(appliance: &Appliance, name: &str) -> PathBuf {
    let path = appliance.dir().join(name);
    std::fs::copy(ashlar(), &path).expect("a copy of the program");
    path
}

/// Hands over to `binary`; what came of it, which is also printed.
#[track_caller]
fn upgrade(appliance: &Appliance, binary: &std::path::Path) -> Value {
    let answer = appliance.json(&["upgrade", "--binary", &binary.display().to_string()]);
    println!("hosts waited {} ms: {}", answer["waited_ms"], answer["volumes"]);
    assert_eq!(answer["state"], "done", "{answer}");
    answer
}

#[test]
fn an_upgrade_under_load_fails_nothing() {
    if !here("an_upgrade_under_load_fails_nothing", &["fio", "mkfs.ext4"]) {
        return;
    }
    let appliance = Appliance::on(&ordinary());
    let raw = appliance.volume_on_ublk("raw", "192M");
    let files = appliance.volume_on_ublk("files", "256M");
    let mount = appliance.mountpoint();
    shell("mkfs.ext4 -q \"$1\"; mount \"$1\" \"$2\"; cp -a \"$3/.\" \"$2/before\"", &[&files, &mount, &tree()])
        .expect_ok();
    let programs = [copy(&appliance, "ashlar-1"), copy(&appliance, "ashlar-2")];
    let fio = "fio --minimal --name=v --filename=\"$1\" --direct=1 --ioengine=libaio --iodepth=16 --size=96M --rw=randwrite --bs=16k \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --time_based --runtime=40";
    let pid = std::fs::read_to_string(appliance.dir().join("run/pid")).expect("the lock file");
    std::thread::scope(|scope| {
        let load = scope.spawn(|| shell(fio, &[&raw]));
        let writes = "awk '{ exit !($5 > 100) }' \"/sys/block/${1#/dev/}/stat\"";
        assert!(wait_until(LIMIT, || shell(writes, &[&raw]).ok()), "fio does not write");
        for round in 0..3 {
            std::thread::sleep(Duration::from_secs(1));
            assert!(!load.is_finished(), "too late: {}", load.join().expect("fio"));
            let answer = upgrade(&appliance, &programs[round % 2]);
            let volumes = answer["volumes"].as_array().expect("volumes");
            assert!(volumes.len() == 2 && volumes.iter().all(|v| v["error"].is_null()), "{answer}");
            shell(
                "cp -a \"$2/.\" \"$1/round$3\"; diff -r \"$2\" \"$1/round$3\"",
                &[&mount, &tree(), &round.to_string()],
            )
            .expect_ok();
        }
        load.join().expect("fio").expect_ok();
    });
    assert_eq!(std::fs::read_to_string(appliance.dir().join("run/pid")).expect("the lock file"), pid);
    let last = format!("{mount}/round2");
    shell("diff -r \"$1\" \"$2\"; umount \"$3\"; fsck.ext4 -f -n \"$4\"", &[&tree(), &last, &mount, &files])
        .expect_ok();
    shell(
        "mount \"$1\" \"$2\"; diff -r \"$3\" \"$2/before\"; diff -r \"$3\" \"$4\"; umount \"$2\"",
        &[&files, &mount, &tree(), &last],
    )
    .expect_ok();

    // Not for what would be lost: a file system on a loop device over FUSE.
    appliance.ashlar(&["volume", "detach", "files"]);
    let device = appliance.ashlar(&["volume", "attach", "files", "--via", "fuse", "--loop"]).stdout.trim().to_owned();
    shell("mount \"$1\" \"$2\"", &[&device, &mount]).expect_ok();
    let refused = appliance.try_ashlar(&["upgrade"]);
    assert!(!refused.ok() && refused.stderr.contains("is mounted at"), "{refused}");
    shell("diff -r \"$3\" \"$2/before\"; umount \"$2\"", &[&device, &mount, &tree()]).expect_ok();
    upgrade(&appliance, &programs[1]);
    for name in ["raw", "files"] {
        appliance.ashlar(&["volume", "detach", name]);
    }
    appliance.expect_sound();
}
