//! Drives that are unplugged while they are written to, and come back, perhaps under another name.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ashlar_tests::process::wait_until;

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

/// Bytes of a write, and how many places there are.
const BLOCK: usize = 16 << 10;
const BLOCKS: usize = 2048;

/// What a place holds after so many writes to it: never twice the same, and nothing that compresses to little.
fn content(place: usize, version: u32) -> Vec<u8> {
    let mut state = (place as u64) << 32 | u64::from(version) | 1 << 63;
    let words = (0..BLOCK / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

/// Writes all over the device until it is told to stop, with a flush now and then. Gives how often each place was written.
fn write_until(stop: &AtomicBool) -> std::io::Result<Vec<u32>> {
    let device = OpenOptions::new().write(true).open(NBD)?;
    let mut versions = vec![0u32; BLOCKS];
    for step in 0usize.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let place = step.wrapping_mul(1_103_515_245) % BLOCKS;
        versions[place] += 1;
        device.write_all_at(&content(place, versions[place]), (place * BLOCK) as u64)?;
        if step % 32 == 31 {
            device.sync_data()?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    device.sync_all()?;
    Ok(versions)
}

/// Reads from the appliance, not from the page cache, what should be there.
#[track_caller]
fn expect_written(versions: &[u32]) {
    shell("blockdev --flushbufs \"$1\"", &[NBD]).expect_ok();
    let device = OpenOptions::new().read(true).open(NBD).expect("the device");
    let mut found = vec![0; BLOCK];
    for (place, version) in versions.iter().enumerate() {
        device.read_exact_at(&mut found, (place * BLOCK) as u64).expect("reading");
        let expected = if *version == 0 { vec![0; BLOCK] } else { content(place, *version) };
        assert!(found == expected, "place {place}, written {version} times, holds something else");
    }
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

/// Ends the writer when a test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Pool and volume on drives of three kinds, by the names the kernel gives them, which change.
fn unplugged(test: &str, drives: &[Drive], by_hand: bool) {
    if !here(test, &["nbd-client", "blockdev"]) {
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
    let stop = AtomicBool::new(false);
    let versions = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&stop));
        let _stop = StopOnDrop(&stop);
        std::thread::sleep(Duration::from_secs(3));
        for drive in drives {
            out_and_in(&appliance, drive, by_hand);
            assert!(!writer.is_finished(), "a write failed: {:?}", writer.join());
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer's thread").expect("every write goes through")
    });
    assert!(versions.iter().sum::<u32>() > 256, "hardly anything was written");
    expect_written(&versions);
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
