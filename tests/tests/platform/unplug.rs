//! Drives that are unplugged while they are written to, and come back, perhaps under another name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ashlar_tests::process::{run, wait_until};

use crate::appliance::{Appliance, by_id, disconnect, here, settle, shell};

const NBD: &str = "/dev/nbd3";

/// A drive that can be unplugged.
struct Drive {
    id: u64,
    by_id: &'static str,
    /// Unplugs `$1`, a name in `/sys/block`, and prints what brings it back.
    unplug: &'static str,
}

/// Tells its bus to look again.
const SCSI: &str = "echo \"for h in /sys/class/scsi_host/*/scan; do echo '- - -' >\\$h; done\"; echo 1 >\"/sys/block/$1/device/delete\"";
/// Of a PCI device, whatever lies between it and its disk.
const PCI: &str = "at=$(readlink -f \"/sys/block/$1\"); while [ ! -e \"$at/remove\" ]; do at=${at%/*}; done
    echo \"echo 1 >/sys/bus/pci/rescan\"; echo 1 >\"$at/remove\"";

/// Writes what it verifies afterwards, slowly enough to take until all drives were out.
fn load(seconds: u32) -> Command {
    let mut fio = Command::new("fio");
    fio.args([
        "--name=load",
        "--ioengine=libaio",
        "--direct=1",
        "--rw=randwrite",
        "--bs=16k",
        "--size=64M",
        "--iodepth=8",
        "--fsync=32",
    ]);
    fio.args(["--rate=,1m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--output-format=terse"]);
    fio.args([&format!("--runtime={seconds}"), &format!("--filename={NBD}")]);
    fio
}

fn back(appliance: &Appliance, id: u64) -> bool {
    matches!(appliance.drive(id).0.as_str(), "online" | "stale")
}

/// Takes a drive out in the middle of writes and puts it back.
fn out_and_in(appliance: &Appliance, drive: &Drive, by_hand: bool) {
    let name = || std::fs::canonicalize(by_id(drive.by_id)).expect("the device");
    let before = name();
    let kernel = before.file_name().and_then(|n| n.to_str()).expect("a name").to_owned();
    let bring_back = shell(drive.unplug, &[&kernel]).expect_ok().stdout;
    assert!(!Path::new("/sys/block").join(&kernel).exists(), "{kernel} was not unplugged");
    let noticed = wait_until(Duration::from_secs(60), || appliance.drive(drive.id).0 == "failed");
    assert!(noticed, "disk {} ({kernel}) is out and {:?}", drive.id, appliance.drive(drive.id));
    assert_eq!(appliance.json(&["pool", "status"])["health"], "degraded");
    // It misses some writes.
    std::thread::sleep(Duration::from_secs(3));
    shell(&bring_back, &[""; 0]).expect_ok();
    settle();
    let plugged = wait_until(Duration::from_secs(20), || Path::new("/dev/disk/by-id").join(drive.by_id).exists());
    assert!(plugged, "{kernel} did not come back");
    let now = name();
    if by_hand {
        appliance.ashlar(&["disk", "rescan"]);
        assert!(back(appliance, drive.id), "{:?}", appliance.drive(drive.id));
    }
    let taken = wait_until(Duration::from_secs(60), || back(appliance, drive.id));
    assert!(taken, "disk {} is {} and not taken back: {:?}", drive.id, now.display(), appliance.drive(drive.id));
    eprintln!("disk {}: {} came back as {}", drive.id, before.display(), now.display());
    let whole = wait_until(Duration::from_secs(90), || appliance.json(&["pool", "status"])["health"] == "healthy");
    assert!(whole, "{}", appliance.json(&["pool", "status"]));
}

/// Pool and volume on drives of three kinds, by the names the kernel gives them, which change.
fn unplugged(test: &str, drives: &[Drive], by_hand: bool) {
    if !here(test, &["nbd-client", "fio"]) {
        return;
    }
    let names: Vec<PathBuf> = [
        "scsi-0QEMU_QEMU_HARDDISK_scsi0",
        "nvme-QEMU_NVMe_Ctrl_nvme-good",
        "virtio-pool0",
        "virtio-pool1",
        "virtio-pool2",
        "virtio-pool3",
    ]
    .map(|name| std::fs::canonicalize(by_id(name)).expect("the device"))
    .into();
    let mut appliance = Appliance::on(&names);
    appliance.volume_on_nbd("data", "600M", NBD);
    std::thread::scope(|scope| {
        let mut fio = load(150);
        fio.current_dir(appliance.dir());
        let writer = scope.spawn(move || run(&mut fio, Duration::from_secs(170)));
        std::thread::sleep(Duration::from_secs(3));
        for drive in drives {
            out_and_in(&appliance, drive, by_hand);
        }
        assert!(!writer.is_finished(), "the writer ended before the last drive was back");
        writer.join().expect("fio's thread").expect_ok();
    });
    disconnect(NBD);
    appliance.expect_sound();
    // The next start finds all drives under the names they have now.
    appliance.stop();
    appliance.start();
    assert_eq!(appliance.json(&["pool", "status"])["health"], "healthy", "{}", appliance.said());
    appliance.stop();
}

#[test]
fn drives_unplugged_while_written_to_are_taken_back() {
    let scsi = Drive { id: 0, by_id: "scsi-0QEMU_QEMU_HARDDISK_scsi0", unplug: SCSI };
    let nvme = Drive { id: 1, by_id: "nvme-QEMU_NVMe_Ctrl_nvme-good", unplug: PCI };
    unplugged("drives_unplugged_while_written_to_are_taken_back", &[scsi, nvme], false);
}

#[test]
fn a_drive_that_is_back_is_found_by_a_rescan() {
    let virtio = Drive { id: 2, by_id: "virtio-pool0", unplug: PCI };
    unplugged("a_drive_that_is_back_is_found_by_a_rescan", &[virtio], true);
}
