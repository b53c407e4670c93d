//! Logical volumes of the kernel's device mapper on a volume.

use crate::appliance::{Appliance, disconnect, here, ordinary, shell, tree};

#[test]
fn lvm_on_a_volume() {
    if !here("lvm_on_a_volume", &["nbd-client", "lvm", "mkfs.ext4"]) {
        return;
    }
    let nbd = "/dev/nbd1";
    let mut appliance = Appliance::on(&ordinary());
    appliance.volume_on_nbd("data", "600M", nbd);
    let mount = appliance.mountpoint();
    let make = "pvcreate -q \"$1\"; vgcreate -q ashlar_test \"$1\"; lvcreate -q -n one -L 200M ashlar_test
        mkfs.ext4 -q /dev/ashlar_test/one; mount /dev/ashlar_test/one \"$2\"
        cp -a \"$3/.\" \"$2/\"; sync -f \"$2\"";
    shell(make, &[nbd, &mount, &tree()]).expect_ok();
    // A snapshot is written through the volume in other sizes than files are.
    let snapshot = "lvcreate -q -s -n before -L 100M ashlar_test/one
        head -c 20M /dev/urandom >\"$1/more\"; sync -f \"$1\"
        lvremove -q -y ashlar_test/before; lvextend -q -r -L 300M ashlar_test/one";
    shell(snapshot, &[&mount]).expect_ok();
    let compare = "umount \"$1\"; fsck.ext4 -f -n /dev/ashlar_test/one; mount /dev/ashlar_test/one \"$1\"
        rm \"$1/more\"; rmdir \"$1/lost+found\"; diff -r \"$2\" \"$1\"; umount \"$1\"";
    shell(compare, &[&mount, &tree()]).expect_ok();
    let before = appliance.mapped("data");
    shell("lvremove -q -y --config devices/issue_discards=1 ashlar_test/one", &[""; 0]).expect_ok();
    let after = appliance.mapped("data");
    assert!(after < before / 4, "{before} bytes were mapped, {after} without the logical volume");
    shell("vgremove -q ashlar_test; pvremove -q \"$1\"", &[nbd]).expect_ok();
    disconnect(nbd);
    appliance.expect_sound();
    appliance.stop();
}
