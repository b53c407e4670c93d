//! File systems on volumes, through the kernel's NBD client and through FUSE with a loop device.

use crate::appliance::{Appliance, disconnect, here, ordinary, shell, tree};

const NBD: &str = "/dev/nbd0";
/// Bytes of the file that is deleted again.
const LARGE: u64 = 48 << 20;

/// Makes a file system, uses it, gives space back, and checks it.
fn used(appliance: &Appliance, volume: &str, device: &str, mkfs: &str, check: &str) {
    let mount = appliance.mountpoint();
    shell(&format!("{mkfs} \"$1\"; mount \"$1\" \"$2\""), &[device, &mount]).expect_ok();
    let fill =
        "mkdir \"$2/tree\"; cp -a \"$1/.\" \"$2/tree/\"; head -c \"$3\" /dev/urandom >\"$2/large\"; sync -f \"$2\"";
    shell(fill, &[&tree(), &mount, &LARGE.to_string()]).expect_ok();
    let full = appliance.mapped(volume);
    assert!(full > LARGE, "{full} bytes are mapped");
    shell("rm \"$1/large\"; sync -f \"$1\"; fstrim \"$1\"", &[&mount]).expect_ok();
    let trimmed = appliance.mapped(volume);
    assert!(trimmed + LARGE * 9 / 10 < full, "{full} bytes were mapped, {trimmed} after fstrim");
    // Read from the volume and not from the page cache.
    shell("umount \"$2\"; mount \"$1\" \"$2\"", &[device, &mount]).expect_ok();
    shell("diff -r \"$1\" \"$2/tree\"; umount \"$2\"", &[&tree(), &mount]).expect_ok();
    shell(&format!("{check} \"$1\""), &[device]).expect_ok();
}

fn over_nbd(kind: &str, mkfs: &'static str, options: &str, check: &str) {
    let checker = check.split(' ').next().unwrap_or_default().to_owned().leak();
    if !here(&format!("{kind}_over_nbd"), &["nbd-client", "fstrim", mkfs, checker]) {
        return;
    }
    let mut appliance = Appliance::on(&ordinary());
    appliance.volume_on_nbd("data", "600M", NBD);
    used(&appliance, "data", NBD, &format!("{mkfs} {options}"), check);
    disconnect(NBD);
    appliance.expect_sound();
    appliance.stop();
}

#[test]
fn ext4_over_nbd() {
    over_nbd("ext4", "mkfs.ext4", "-q", "fsck.ext4 -f -n");
}

#[test]
fn xfs_over_nbd() {
    over_nbd("xfs", "mkfs.xfs", "-q -f", "xfs_repair -n");
}

#[test]
fn btrfs_over_nbd() {
    over_nbd("btrfs", "mkfs.btrfs", "-q -f", "btrfs check --readonly");
}

#[test]
fn xfs_over_fuse_and_a_loop_device() {
    if !here("xfs_over_fuse_and_a_loop_device", &["losetup", "mkfs.xfs", "xfs_repair"]) {
        return;
    }
    let mut appliance = Appliance::on(&ordinary());
    appliance.ashlar(&["volume", "create", "data", "--size", "600M"]);
    let output = appliance.ashlar(&["volume", "attach", "data", "--via", "fuse", "--loop"]);
    used(&appliance, "data", output.stdout.trim(), "mkfs.xfs -q -f", "xfs_repair -n");
    appliance.ashlar(&["volume", "detach", "data"]);
    appliance.expect_sound();
    appliance.stop();
}
