//! What the machine's drives are: other tests rely on it.

use crate::appliance::{by_id, here, shell};

#[test]
fn drives_are_what_the_tests_expect() {
    if !here("drives_are_what_the_tests_expect", &["udevadm"]) {
        return;
    }
    let names = (0..6).map(|n| format!("virtio-pool{n}"));
    let others = ["scsi-0QEMU_QEMU_HARDDISK_scsi0", "nvme-QEMU_NVMe_Ctrl_nvme-good", "nvme-QEMU_NVMe_Ctrl_nvme-worn"];
    let names = names.chain(others.map(str::to_owned)).chain(["ata-QEMU_HARDDISK_ata0".to_owned()]);
    for name in names {
        let path = by_id(&name);
        // They take direct I/O in units of 4 KiB.
        let script = "blockdev --getsize64 \"$1\"; dd if=\"$1\" of=/dev/null iflag=direct bs=4k count=1 status=none";
        let output = shell(script, &[&path]).expect_ok();
        assert_eq!(output.stdout.trim(), (1u64 << 30).to_string(), "{name}");
    }
}

/// The modules the front ends and their tests need.
#[test]
fn modules_load() {
    if !here("modules_load", &["modprobe"]) {
        return;
    }
    shell("modprobe -a nbd ublk_drv dm-mod xfs btrfs ext4 loop; test -c /dev/ublk-control", &[""; 0]).expect_ok();
}
