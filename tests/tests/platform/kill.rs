//! The daemon is killed while the kernel's NBD client is attached.

use crate::appliance::{Appliance, disconnect, here, ordinary, shell, tree};

#[test]
fn what_was_synced_survives_a_kill_under_nbd() {
    if !here("what_was_synced_survives_a_kill_under_nbd", &["nbd-client", "mkfs.ext4", "fsck.ext4"]) {
        return;
    }
    let nbd = "/dev/nbd2";
    let mut appliance = Appliance::on(&ordinary());
    appliance.volume_on_nbd("data", "600M", nbd);
    let mount = appliance.mountpoint();
    shell("mkfs.ext4 -q \"$1\"; mount \"$1\" \"$2\"", &[nbd, &mount]).expect_ok();
    for round in 1..=2 {
        let synced = format!("{mount}/synced{round}");
        shell("mkdir \"$2\"; cp -a \"$1/.\" \"$2/\"; sync -f \"$2\"", &[&tree(), &synced]).expect_ok();
        std::thread::scope(|scope| {
            // Its writes fail once the daemon is gone: how it ends does not matter.
            let more = "for i in $(seq 500); do head -c 1M /dev/urandom >\"$1/more$i\"; sync \"$1/more$i\"; done";
            let writer = scope.spawn(|| shell(more, &[&mount]));
            std::thread::sleep(std::time::Duration::from_secs(3));
            assert!(!writer.is_finished(), "the daemon would be killed too late");
            appliance.kill();
            drop(writer.join());
        });
        // The dead device answers with errors; nothing hangs.
        shell("umount \"$1\"", &[&mount]).expect_ok();
        shell("nbd-client -d \"$1\" || true; udevadm settle --timeout=30", &[nbd]).expect_ok();
        appliance.start();
        appliance.connect("data", nbd);
        // Mounting replays the journal.
        shell("mount \"$1\" \"$2\"", &[nbd, &mount]).expect_ok();
        shell("diff -r \"$1\" \"$2\"", &[&tree(), &synced]).expect_ok();
    }
    shell("umount \"$2\"; fsck.ext4 -f -n \"$1\"", &[nbd, &mount]).expect_ok();
    disconnect(nbd);
    appliance.expect_sound();
    appliance.stop();
}
