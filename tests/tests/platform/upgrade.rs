//! Another program takes the daemon's place under ublk devices: hosts wait, nothing fails, nothing is lost.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ashlar_tests::ashlar;
use ashlar_tests::process::{run, wait_until};
use serde_json::Value;

use crate::appliance::{Appliance, LIMIT, here, ordinary, shell};

/// Writes and verifies again and again until `stop` appears. The device is open all the time, so that it is never one that nobody uses.
const LOAD: &str = "exec 9<\"$1\"
    while [ ! -e \"$2\" ]; do
        fio --minimal --name=v --filename=\"$1\" --direct=1 --ioengine=libaio --iodepth=16 --size=8M --rw=randwrite --bs=16k \
            --verify=crc32c --verify_fatal=1 --do_verify=1
    done";

/// Real files: some sources of this tree.
fn tree() -> String {
    format!("{}/frontend", crate::appliance::tree())
}

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
    let stop = appliance.dir().join("stop").display().to_string();
    let pid = std::fs::read_to_string(appliance.dir().join("run/pid")).expect("the lock file");
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut load = Command::new("bash");
            load.args(["-euo", "pipefail", "-c", LOAD, "load"]).args([&raw, &stop]);
            run(&mut load, Duration::from_secs(300))
        });
        let writes = "awk '{ exit !($5 > 100) }' \"/sys/block/${1#/dev/}/stat\"";
        assert!(wait_until(LIMIT, || shell(writes, &[&raw]).ok()), "fio does not write");
        for (round, program) in programs.iter().enumerate() {
            std::thread::sleep(Duration::from_secs(1));
            assert!(!load.is_finished(), "too late: {}", load.join().expect("fio"));
            let answer = upgrade(&appliance, program);
            let volumes = answer["volumes"].as_array().expect("volumes");
            assert!(volumes.len() == 2 && volumes.iter().all(|v| v["error"].is_null()), "{answer}");
            shell(
                "cp -a \"$2/.\" \"$1/round$3\"; diff -r \"$2\" \"$1/round$3\"",
                &[&mount, &tree(), &round.to_string()],
            )
            .expect_ok();
        }
        std::fs::write(&stop, "").expect("a file");
        load.join().expect("fio").expect_ok();
    });
    assert_eq!(std::fs::read_to_string(appliance.dir().join("run/pid")).expect("the lock file"), pid);
    let last = format!("{mount}/round1");
    shell("diff -r \"$1\" \"$2\"; umount \"$3\"; fsck.ext4 -f -n \"$4\"", &[&tree(), &last, &mount, &files])
        .expect_ok();
    shell(
        "mount \"$1\" \"$2\"; diff -r \"$3\" \"$2/before\"; diff -r \"$3\" \"$4\"; umount \"$2\"",
        &[&files, &mount, &tree(), &last],
    )
    .expect_ok();
    for name in ["raw", "files"] {
        appliance.ashlar(&["volume", "detach", name]);
    }
    appliance.expect_sound();
}

#[test]
fn what_would_be_lost_keeps_the_program() {
    if !here("what_would_be_lost_keeps_the_program", &["mkfs.ext4"]) {
        return;
    }
    let appliance = Appliance::on(&ordinary());
    appliance.ashlar(&["volume", "create", "files", "--size", "64M"]);
    let device = appliance.ashlar(&["volume", "attach", "files", "--via", "fuse", "--loop"]).stdout.trim().to_owned();
    let mount = appliance.mountpoint();
    shell("mkfs.ext4 -q \"$1\"; mount \"$1\" \"$2\"; echo kept >\"$2/file\"", &[&device, &mount]).expect_ok();
    let refused = appliance.try_ashlar(&["upgrade"]);
    assert!(!refused.ok() && refused.stderr.contains("is mounted at"), "{refused}");
    shell("grep kept \"$1/file\"; umount \"$1\"", &[&mount]).expect_ok();
    let program = copy(&appliance, "ashlar-1");
    upgrade(&appliance, &program);
    appliance.ashlar(&["volume", "detach", "files"]);
    appliance.expect_sound();
}
