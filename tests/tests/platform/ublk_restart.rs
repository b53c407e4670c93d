//! The daemon is killed, or restarted, under file systems on ublk devices: I/O waits, nothing is lost, nothing fails.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ashlar_tests::process::{Output, run, wait_until};

use crate::appliance::{Appliance, LIMIT, here, ordinary, shell, tree};

/// Copies trees, reads them back, removes some; ends at its first error, or when `stop` appears.
const WORK: &str = "tree=$1; fs=$2; stop=$3; n=0
    while [ ! -e \"$stop\" ]; do
        n=$((n+1))
        cp -a \"$tree/.\" \"$fs/tree$n\"; head -c 3M /dev/urandom >\"$fs/file$n\"
        cksum <\"$fs/file$n\" >\"$stop.sum$n\"
        sync -f \"$fs\"
        diff -r \"$tree\" \"$fs/tree$n\"
        [ $n -lt 4 ] || { m=$((n-3)); cksum <\"$fs/file$m\" | cmp - \"$stop.sum$m\"; rm -r \"$fs/tree$m\" \"$fs/file$m\"; }
    done
    echo $n";

/// fsx again and again, with every operation that changes a file or drops what the kernel has of it, until `stop` appears.
const EXERCISE: &str = "fs=$1; stop=$2; n=0
    printf '%s\n' 'flen = 4194304' '[opsize]' 'max = 262144' '[weights]' close_open=1 read=10 write=10 mapread=5 mapwrite=5 invalidate=2 truncate=2 \
        fsync=2 fdatasync=2 punch_hole=3 posix_fadvise=3 copy_file_range=2 >\"$stop.toml\"
    while [ ! -e \"$stop\" ]; do
        n=$((n+1))
        fsx -q -f \"$stop.toml\" -S $n -N 150 -P \"${stop%/*}\" \"$fs/exercised\" >&2
    done
    echo $n";

/// A file system on a ublk device, in use while the daemon is killed and started again so many times, or as often as `ASHLAR_VM_KILLS` says.
fn outlives_kills(test: &str, make: &str, check: &str, kills: usize) {
    let first = |line: &str| &*line.split(' ').next().expect("a command").to_owned().leak();
    if !here(test, &[first(make), first(check), "fsx"]) {
        return;
    }
    let kills = std::env::var("ASHLAR_VM_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(kills);
    let mut appliance = Appliance::on(&ordinary());
    let device = appliance.volume_on_ublk("data", "768M");
    let mount = appliance.mountpoint();
    shell(&format!("{make} \"$1\"; mount \"$1\" \"$2\""), &[&device, &mount]).expect_ok();
    let stop = appliance.dir().join("stop").display().to_string();
    let ended = AtomicBool::new(false);
    let work = |script: &str, arguments: &[&str]| {
        let mut work = Command::new("bash");
        work.args(["-euo", "pipefail", "-c", script, "work"]).args(arguments);
        let output = run(&mut work, Duration::from_secs(100 + 20 * kills as u64));
        ended.store(true, Ordering::Release);
        output
    };
    let (rounds, exercised) = std::thread::scope(|scope| {
        let copier = scope.spawn(|| work(WORK, &[&tree(), &mount, &stop]));
        let exerciser = scope.spawn(|| work(EXERCISE, &[&mount, &stop]));
        for kill in 0..kills {
            std::thread::sleep(Duration::from_millis(700 + 300 * (kill as u64 % 4)));
            if ended.load(Ordering::Acquire) {
                break;
            }
            appliance.kill();
            appliance.start();
        }
        std::fs::write(&stop, "").expect("a file");
        (copier.join().expect("the copies"), exerciser.join().expect("fsx"))
    });
    let number = |output: Output| output.expect_ok().stdout.trim().parse::<u32>().expect("a number");
    let (rounds, exercised) = (number(rounds), number(exercised));
    println!("{rounds} copies, {exercised} times fsx");
    assert!(rounds > 0 && exercised > 0);
    let last = format!("{mount}/tree{rounds}");
    shell("diff -r \"$1\" \"$2\"; umount \"$3\"", &[&tree(), &last, &mount]).expect_ok();
    shell(&format!("{check} \"$1\""), &[&device]).expect_ok();
    // Read from the device again, by a kernel that has cached nothing of it.
    shell("mount \"$1\" \"$2\"; diff -r \"$3\" \"$4\"; umount \"$2\"", &[&device, &mount, &tree(), &last]).expect_ok();
    appliance.ashlar(&["volume", "detach", "data"]);
    appliance.expect_sound();
    appliance.stop();
}

#[test]
fn ext4_outlives_kills_of_the_daemon() {
    outlives_kills("ext4_outlives_kills_of_the_daemon", "mkfs.ext4 -q", "fsck.ext4 -f -n", 7);
}

#[test]
fn xfs_outlives_kills_of_the_daemon() {
    outlives_kills("xfs_outlives_kills_of_the_daemon", "mkfs.xfs -q", "xfs_repair -n", 7);
}

#[test]
fn btrfs_outlives_kills_of_the_daemon() {
    outlives_kills("btrfs_outlives_kills_of_the_daemon", "mkfs.btrfs -q", "btrfs check", 6);
}

/// Written past the page cache, answered, never flushed: the daemon is killed at once, and the next one has it.
#[test]
fn what_was_answered_and_not_flushed_outlives_a_kill() {
    if !here("what_was_answered_and_not_flushed_outlives_a_kill", &["dd", "blkdiscard"]) {
        return;
    }
    let mut appliance = Appliance::on(&ordinary());
    let device = appliance.volume_on_ublk("data", "64M");
    let file = appliance.dir().join("written").display().to_string();
    let write = "dd if=/dev/urandom of=\"$2\" bs=64k count=8 status=none
        dd if=\"$2\" of=\"$1\" bs=64k seek=\"$3\" oflag=direct status=none
        blkdiscard --zeroout --offset $(($3 * 65536)) --length 65536 \"$1\"";
    let same = "dd if=\"$1\" bs=64k skip=\"$3\" count=8 iflag=direct status=none | tail -c +65537 | cmp - <(tail -c +65537 \"$2\")
        dd if=\"$1\" bs=64k skip=\"$3\" count=1 iflag=direct status=none | cmp -n 65536 - /dev/zero";
    for round in 0..5 {
        let at = (round * 16).to_string();
        shell(write, &[&device, &file, &at]).expect_ok();
        appliance.kill();
        appliance.start();
        shell(same, &[&device, &file, &at]).expect_ok();
    }
    let said = appliance.said();
    assert!(said.contains("are entered again"), "the log had everything before each kill:\n{said}");
    appliance.ashlar(&["volume", "detach", "data"]);
    appliance.expect_sound();
}

/// Whether `ashlar doctor` is content, and what it names.
#[track_caller]
fn doctor(appliance: &Appliance, more: &[&str]) -> (bool, Vec<String>) {
    let output = appliance.try_ashlar(&[&["-o", "json", "doctor"], more].concat());
    let found: Vec<serde_json::Value> =
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output}"));
    let mut objects: Vec<_> = found.iter().map(|f| f["object"].as_str().unwrap_or_default().to_owned()).collect();
    objects.sort();
    (output.ok(), objects)
}

#[test]
fn what_is_left_of_a_daemon_that_does_not_come_back_is_cleared() {
    if !here("what_is_left_of_a_daemon_that_does_not_come_back_is_cleared", &["mkfs.ext4"]) {
        return;
    }
    let mut appliance = Appliance::on(&ordinary());
    let idle = appliance.volume_on_ublk("idle", "64M");
    let used = appliance.volume_on_ublk("used", "64M");
    let mount = appliance.mountpoint();
    shell("mkfs.ext4 -q \"$1\"; mount \"$1\" \"$2\"", &[&used, &mount]).expect_ok();
    assert_eq!(doctor(&appliance, &[]), (true, vec![]), "nothing is wrong while the daemon serves");
    appliance.kill();
    let socket = appliance.dir().join("run/api.sock").display().to_string();
    let waits = wait_until(LIMIT, || doctor(&appliance, &[]).1.len() >= 4);
    assert!(waits, "{:?}", doctor(&appliance, &[]));
    let (content, mut found) = doctor(&appliance, &[]);
    let memory = found.remove(0);
    assert!(!content && memory.starts_with("/dev/shm/ashlar-"), "{memory}");
    assert_eq!(found, vec![idle.clone(), used.clone(), socket.clone()]);
    // What is in use stays unless it is asked for by force.
    assert!(!doctor(&appliance, &["--fix"]).0);
    let (ok, left) = doctor(&appliance, &[]);
    assert!(!ok && left.contains(&used) && left.contains(&memory) && !left.contains(&idle), "{left:?}");
    assert!(doctor(&appliance, &["--fix", "--force"]).0);
    shell("umount \"$1\" || umount -l \"$1\"", &[&mount]).expect_ok();
    assert!(doctor(&appliance, &["--fix"]).0);
    assert_eq!(doctor(&appliance, &[]), (true, vec![]));
    // The pool has lost nothing by it, and presents both again.
    appliance.start();
    for name in ["idle", "used"] {
        assert!(appliance.json(&["volume", "show", name])["attachment"]["error"].is_null());
        appliance.ashlar(&["volume", "detach", name]);
    }
    appliance.expect_sound();
}

/// A FUSE mount without a daemon, and a loop device on it.
#[test]
fn what_is_left_of_a_file_presented_by_fuse_is_cleared() {
    if !here("what_is_left_of_a_file_presented_by_fuse_is_cleared", &["losetup"]) {
        return;
    }
    shell("modprobe -a fuse loop", &[""; 0]).expect_ok();
    let mut appliance = Appliance::on(&ordinary());
    appliance.ashlar(&["volume", "create", "data", "--size", "64M"]);
    let device = appliance.ashlar(&["volume", "attach", "data", "--via", "fuse", "--loop"]).stdout.trim().to_owned();
    assert!(device.starts_with("/dev/loop"), "{device}");
    assert_eq!(doctor(&appliance, &[]), (true, vec![]), "nothing is wrong while the daemon serves");
    appliance.kill();
    let mount =
        shell("awk -v d=\"$1/\" 'index($5, d) == 1 { print $5 }' /proc/self/mountinfo", &[appliance.dir()]).expect_ok();
    let mount = mount.stdout.trim().to_owned();
    let found = || doctor(&appliance, &[]).1;
    let told = || found().contains(&device) && found().contains(&mount);
    assert!(wait_until(LIMIT, told), "{device} and {mount} are missing: {:?}", found());
    // All but what writes wait for.
    doctor(&appliance, &["--fix"]);
    assert!(!found().contains(&device) && !found().contains(&mount), "{:?}", found());
    shell("! losetup \"$1\" 2>/dev/null; ! findmnt \"$2\"", &[&device, &mount]).expect_ok();
    // The next daemon presents it again.
    appliance.start();
    let shown = appliance.json(&["volume", "show", "data"]);
    assert!(shown["attachment"]["error"].is_null(), "{shown}");
    assert_eq!(doctor(&appliance, &[]), (true, vec![]));
    appliance.ashlar(&["volume", "detach", "data"]);
    appliance.expect_sound();
}

/// The driver cannot be asked when the daemon starts: the device is not taken over, and waits. Until it can be, its volume is given to nobody else.
#[test]
fn a_device_that_cannot_be_taken_over_keeps_its_volume() {
    if !here("a_device_that_cannot_be_taken_over_keeps_its_volume", &["mkfs.ext4", "mknod"]) {
        return;
    }
    let mut appliance = Appliance::on(&ordinary());
    let device = appliance.volume_on_ublk("data", "64M");
    let mount = appliance.mountpoint();
    shell("mkfs.ext4 -q \"$1\"; mount \"$1\" \"$2\"; cp -a \"$3/.\" \"$2/tree\"", &[&device, &mount, &tree()])
        .expect_ok();
    appliance.kill();
    let control = "/dev/ublk-control";
    let numbers = shell("stat -c '%Hr %Lr' \"$1\"; rm \"$1\"", &[control]).expect_ok().stdout;
    let put_back = || shell("mknod \"$1\" c $2", &[control, numbers.trim()]);
    appliance.start();
    let shown = appliance.json(&["volume", "show", "data"]);
    let why = shown["attachment"]["error"].as_str().unwrap_or_default();
    assert!(why.contains(control), "{shown}");
    let refused = |arguments: &[&str], word: &str| {
        let output = appliance.try_ashlar(arguments);
        assert!(!output.ok() && output.stderr.contains(word), "{arguments:?}: {output}");
    };
    // Whose the device is cannot be told: nothing is risked.
    refused(&["volume", "detach", "data"], "ublkb");
    let (content, found) = doctor(&appliance, &["--fix"]);
    assert!(!content && found == ["/sys/class/ublk-char"], "{found:?}");
    put_back().expect_ok();
    refused(&["volume", "detach", "data"], "mounted");
    refused(&["volume", "resize", "data", "--size", "128M"], "data");
    refused(&["volume", "delete", "data"], "data");
    appliance.ashlar(&["volume", "attach", "data", "--via", "ublk"]);
    assert!(appliance.json(&["volume", "show", "data"])["attachment"]["error"].is_null());
    shell(
        "diff -r \"$1\" \"$2/tree\"; rm -r \"$2/tree\"; umount \"$2\"; fsck.ext4 -f -n \"$3\"",
        &[&tree(), &mount, &device],
    )
    .expect_ok();
    appliance.ashlar(&["volume", "detach", "data"]);
    appliance.expect_sound();
}

/// Longer than the block layer waits for a request (30 s): it goes on waiting.
#[test]
fn a_daemon_that_stands_still_fails_nothing() {
    if !here("a_daemon_that_stands_still_fails_nothing", &["dd"]) {
        return;
    }
    let appliance = Appliance::on(&ordinary());
    let device = appliance.volume_on_ublk("data", "64M");
    let file = appliance.dir().join("written").display().to_string();
    shell("dd if=/dev/urandom of=\"$1\" bs=1M count=8 status=none", &[&file]).expect_ok();
    appliance.signal("STOP");
    std::thread::scope(|scope| {
        let load = scope
            .spawn(|| shell("dd if=\"$1\" of=\"$2\" bs=64k oflag=direct conv=fsync status=none", &[&file, &device]));
        std::thread::sleep(Duration::from_secs(3));
        let told = appliance.try_ashlar(&["pool", "status"]);
        assert!(!told.ok() && told.stderr.contains("kill -CONT"), "{told}");
        std::thread::sleep(Duration::from_secs(32));
        let waits = !load.is_finished();
        appliance.signal("CONT");
        assert!(waits, "written by nobody: {}", load.join().expect("dd"));
        load.join().expect("dd").expect_ok();
    });
    shell("dd if=\"$2\" bs=64k count=128 iflag=direct status=none | cmp - \"$1\"", &[&file, &device]).expect_ok();
    appliance.ashlar(&["volume", "detach", "data"]);
    appliance.expect_sound();
}

#[test]
fn the_daemon_restarts_under_load() {
    if !here("the_daemon_restarts_under_load", &["fio"]) {
        return;
    }
    let mut appliance = Appliance::on(&ordinary());
    let device = appliance.volume_on_ublk("data", "256M");
    let fio = "fio --minimal --name=v --filename=\"$1\" --direct=1 --ioengine=libaio --iodepth=16 --size=128M --rw=randwrite --bs=16k \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --time_based --runtime=45";
    std::thread::scope(|scope| {
        let load = scope.spawn(|| shell(fio, &[&device]));
        // Until it has begun nobody uses the device, which would go with the daemon.
        let writes = "awk '{ exit !($5 > 100) }' \"/sys/block/${1#/dev/}/stat\"";
        assert!(wait_until(LIMIT, || shell(writes, &[&device]).ok()), "fio does not write");
        for _ in 0..3 {
            std::thread::sleep(Duration::from_secs(2));
            assert!(!load.is_finished(), "the daemon would be restarted too late: {}", load.join().expect("fio"));
            appliance.stop();
            appliance.start();
        }
        load.join().expect("fio").expect_ok();
    });
    let said = appliance.said();
    assert_eq!(said.matches("devices in use were taken over").count(), 3, "{said}");
    assert!(!said.contains("waited=\"unknown\""), "{said}");
    for line in said.lines().filter(|line| line.contains("taken over")) {
        println!("{line}");
    }
    appliance.ashlar(&["volume", "detach", "data"]);
    appliance.expect_sound();
}
