//! A ublk device with sectors of 4096 bytes: logical volumes on it, and a pool that gets full below it.

use std::path::PathBuf;

use crate::appliance::{Appliance, here, shell, tree};

/// Drives that are small enough to be filled: files in memory.
fn small(dir: &tempfile::TempDir) -> Vec<PathBuf> {
    let drives: Vec<PathBuf> = (0..5).map(|n| dir.path().join(format!("drive{n}"))).collect();
    for drive in &drives {
        let file = std::fs::File::create(drive).and_then(|file| file.set_len(160 << 20));
        file.unwrap_or_else(|e| panic!("{}: {e}", drive.display()));
    }
    drives
}

#[test]
fn logical_volumes_and_a_full_pool_on_sectors_of_4096() {
    if !here("logical_volumes_and_a_full_pool_on_sectors_of_4096", &["lvm", "mkfs.ext4", "fsck.ext4", "blkdiscard"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut appliance = Appliance::with(&small(&dir), "[ublk]\nlogical_block = 4096\n");
    let device = appliance.volume_on_ublk("data", "1G");
    let sectors = "cd \"/sys/block/${1#/dev/}/queue\"; cat logical_block_size physical_block_size minimum_io_size optimal_io_size";
    let said = shell(sectors, &[&device]).expect_ok().stdout;
    let said: Vec<u64> = said.lines().map(|n| n.parse().expect("a number")).collect();
    assert_eq!(said[..3], [4096, 4096, 4096]);
    assert!(said[3] >= 4096 && said[3].is_multiple_of(4096), "optimal_io_size is {}", said[3]);

    let mount = appliance.mountpoint();
    let make = "pvcreate -q \"$1\"; vgcreate -q ashlar_ublk \"$1\"; lvcreate -q -n one -L 100M ashlar_ublk
        mkfs.ext4 -q /dev/ashlar_ublk/one; mount /dev/ashlar_ublk/one \"$2\"; cp -a \"$3/.\" \"$2/\"; sync -f \"$2\"
        lvextend -q -r -L 160M ashlar_ublk/one";
    shell(make, &[&device, &mount, &tree()]).expect_ok();

    // Full: who writes is told so, and told what it is; what is there stays.
    let fill =
        "lvcreate -q -n rest -l 100%FREE ashlar_ublk; dd if=/dev/urandom of=/dev/ashlar_ublk/rest bs=1M oflag=direct";
    let full = shell(fill, &[""; 0]).expect_failure();
    assert!(full.stderr.contains("No space left on device"), "{full}");
    shell("diff -r \"$2\" \"$1\" -x lost+found", &[&mount, &tree()]).expect_ok();
    shell("blkdiscard /dev/ashlar_ublk/rest; head -c 8M /dev/urandom >\"$1/more\"; sync -f \"$1\"", &[&mount])
        .expect_ok();
    let end = "umount \"$1\"; fsck.ext4 -f -n /dev/ashlar_ublk/one; vgchange -q -a n ashlar_ublk; vgremove -q -y ashlar_ublk; pvremove -q \"$2\"";
    shell(end, &[&mount, &device]).expect_ok();
    appliance.ashlar(&["volume", "detach", "data"]);
    appliance.expect_sound();
    appliance.stop();
}
