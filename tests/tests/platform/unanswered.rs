//! Drives that do not answer any more, and do again: the kernel has their requests all the time.

use std::path::PathBuf;
use std::time::Duration;

use ashlar_tests::process::wait_until;

use crate::appliance::{Appliance, here, shell};

/// What a test leaves behind is removed at its end.
struct Mapped;

impl Mapped {
    /// Device mapper on top of the ordinary drives: it can be told to answer nothing.
    fn new() -> (Self, Vec<PathBuf>) {
        let make = "for n in 0 1 2 3 4 5; do
            dmsetup create hang$n --table \"0 $((1<<21)) linear /dev/disk/by-id/virtio-pool$n 0\"; done";
        let this = Self;
        shell(make, &[""; 0]).expect_ok();
        (this, (0..6).map(|n| PathBuf::from(format!("/dev/mapper/hang{n}"))).collect())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let remove = "for n in 0 1 2 3 4 5; do dmsetup resume hang$n; dmsetup remove --retry hang$n || dmsetup remove -f hang$n; done";
        drop(shell(remove, &[""; 0]));
    }
}

fn suspend(drive: u64) {
    shell("dmsetup suspend --nolockfs --noflush \"hang$1\"", &[drive.to_string()]).expect_ok();
}

fn resume(drive: u64) {
    shell("dmsetup resume \"hang$1\"", &[drive.to_string()]).expect_ok();
}

fn reason(appliance: &Appliance, drive: u64) -> String {
    let disks = appliance.json(&["disk", "list"]);
    let disk = disks.as_array().expect("disks").iter().find(|d| d["id"].as_u64() == Some(drive)).cloned();
    disk.expect("the disk")["reason"].as_str().unwrap_or_default().to_owned()
}

/// Looks for the drive until it is taken back and lacks nothing.
#[track_caller]
fn expect_back(appliance: &Appliance, drive: u64) {
    let back = wait_until(Duration::from_secs(60), || {
        appliance.ashlar(&["disk", "rescan"]);
        matches!(appliance.drive(drive).0.as_str(), "online" | "stale")
    });
    assert!(back, "disk {drive} answers again, and is {:?}: {}", appliance.drive(drive), reason(appliance, drive));
    let whole = wait_until(Duration::from_secs(90), || appliance.json(&["pool", "status"])["health"] == "healthy");
    assert!(whole, "{}", appliance.json(&["pool", "status"]));
}

/// One drive hangs in the middle of work: hosts go on without it, it is not touched again before the kernel has ended its requests, whoever asks, and then
/// it catches up.
#[test]
fn a_drive_that_hangs_is_done_without() {
    if !here("a_drive_that_hangs_is_done_without", &["dmsetup", "fio"]) {
        return;
    }
    let (_mapped, drives) = Mapped::new();
    let mut appliance = Appliance::with(&drives, "disk_timeout = 6\n");
    let device = appliance.volume_on_ublk("data", "128M");
    let fio = "fio --name=f --filename=\"$1\" --size=16m --ioengine=libaio --direct=1 --iodepth=8 --fsync=16 --verify=crc32c --randseed=7 \
        --output-format=terse";
    let write = format!("{fio} --rw=randwrite --bs=16k --do_verify=0 --time_based --runtime=10");
    let verify = format!("{fio} --rw=randwrite --bs=16k --verify_only");
    // All of it is there, so that what follows may end anywhere.
    shell(&format!("{fio} --rw=randwrite --bs=16k --do_verify=0"), &[device.as_str()]).expect_ok();
    std::thread::scope(|scope| {
        let work = scope.spawn(|| shell(&write, &[device.as_str()]));
        std::thread::sleep(Duration::from_secs(3));
        suspend(2);
        let noticed = wait_until(Duration::from_secs(40), || appliance.drive(2).0 == "failed");
        assert!(noticed, "disk 2 does not answer, and is {:?}", appliance.drive(2));
        assert!(reason(&appliance, 2).contains("has not answered for"), "{}", reason(&appliance, 2));
        assert_eq!(appliance.json(&["pool", "status"])["health"], "degraded");
        work.join().expect("fio").expect_ok();
    });
    shell(&verify, &[device.as_str()]).expect_ok();
    // The kernel still has its requests, and with them the claim: it stays out, also for the next daemon, and an orderly stop does not wait for it.
    appliance.ashlar(&["disk", "rescan"]);
    assert_eq!(appliance.drive(2).0, "failed");
    appliance.stop();
    appliance.start();
    assert!(matches!(appliance.drive(2).0.as_str(), "missing" | "failed"), "{:?}", appliance.drive(2));
    let device =
        appliance.json(&["volume", "show", "data"])["attachment"]["device"].as_str().expect("a device").to_owned();
    shell(&verify, &[device.as_str()]).expect_ok();
    resume(2);
    expect_back(&appliance, 2);
    shell(&verify, &[device.as_str()]).expect_ok();

    // One that is silent from the beginning is left out.
    appliance.stop();
    suspend(3);
    appliance.start();
    assert_eq!(appliance.drive(3).0, "missing");
    resume(3);
    expect_back(&appliance, 3);

    // A daemon that is killed while one hangs.
    let device =
        appliance.json(&["volume", "show", "data"])["attachment"]["device"].as_str().expect("a device").to_owned();
    suspend(4);
    shell("dd if=/dev/urandom of=\"$1\" bs=64k count=64 seek=1024 oflag=direct conv=fsync status=none", &[&device])
        .expect_ok();
    appliance.kill();
    appliance.start();
    assert!(matches!(appliance.drive(4).0.as_str(), "missing" | "failed"), "{:?}", appliance.drive(4));
    shell(&verify, &[device.as_str()]).expect_ok();
    resume(4);
    expect_back(&appliance, 4);
    appliance.ashlar(&["volume", "detach", "data"]);
    appliance.expect_sound();
    appliance.stop();
}
