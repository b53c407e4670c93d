//! Devices that others stop, and drives that answer nothing.

use std::time::Duration;

use ashlar_tests::process::wait_until;

use crate::appliance::{Appliance, LIMIT, here, ordinary, shell};

/// Somebody who may stops and deletes the device behind the daemon's back, while it is written to: an alert says so, and the volume can be attached again.
#[test]
fn a_device_that_somebody_else_stopped_is_told_and_attached_again() {
    if !here("a_device_that_somebody_else_stopped_is_told_and_attached_again", &["dd"]) {
        return;
    }
    let mut appliance = Appliance::on(&ordinary());
    let device = appliance.volume_on_ublk("data", "64M");
    let other = appliance.volume_on_ublk("other", "64M");
    let file = appliance.dir().join("written").display().to_string();
    let write = "dd if=\"$1\" of=\"$2\" bs=64k oflag=direct conv=fsync status=none";
    let same = "dd if=\"$2\" bs=64k count=128 iflag=direct status=none | cmp - \"$1\"";
    shell("dd if=/dev/urandom of=\"$1\" bs=1M count=8 status=none", &[&file]).expect_ok();
    shell(write, &[&file, &device]).expect_ok();
    let number = device.trim_start_matches("/dev/ublkb").parse().expect("the number of a device");
    std::thread::scope(|scope| {
        let load =
            scope.spawn(|| shell("dd if=/dev/zero of=\"$1\" bs=64k seek=256 oflag=direct status=none", &[&device]));
        std::thread::sleep(Duration::from_secs(1));
        blockdev::frontend::ublk::delete_in_use(number).expect("the device stops");
        assert!(!load.join().expect("dd").ok(), "a device that was stopped takes writes");
    });
    let alerts = || appliance.json(&["alert", "list"]);
    let told = |alert: &serde_json::Value| alert["code"] == "volume.unserved" && alert["object"] == "volume/data";
    let is_told = || alerts().as_array().is_some_and(|all| all.iter().any(told));
    assert!(wait_until(LIMIT, is_told), "{}\n{}", alerts(), appliance.said());
    assert!(alerts().to_string().contains("stopped by somebody else"), "{}", alerts());
    // The other device is served as before.
    shell(write, &[&file, &other]).expect_ok();
    shell(same, &[&file, &other]).expect_ok();
    appliance.ashlar(&["volume", "detach", "data"]);
    assert!(!is_told(), "{}", alerts());
    let again = appliance.json(&["volume", "attach", "data", "--via", "ublk"]);
    let again = again["device"].as_str().expect("a device").to_owned();
    shell(same, &[&file, &again]).expect_ok();
    // The same, and the daemon is restarted instead.
    let number = again.trim_start_matches("/dev/ublkb").parse().expect("the number of a device");
    blockdev::frontend::ublk::delete_in_use(number).expect("the device stops");
    assert!(wait_until(LIMIT, is_told), "{}\n{}", alerts(), appliance.said());
    appliance.stop();
    appliance.start();
    let shown = appliance.json(&["volume", "show", "data"]);
    let third = shown["attachment"]["device"].as_str().unwrap_or_else(|| panic!("{shown}")).to_owned();
    shell(same, &[&file, &third]).expect_ok();
    for name in ["data", "other"] {
        appliance.ashlar(&["volume", "detach", name]);
    }
    appliance.expect_sound();
}

/// Drives that answer nothing any more: what is under way when the daemon is told to stop is left to the next one after half a minute, and done by that; whether
/// the daemon is killed then, or drives come back and it ends by itself.
#[test]
fn requests_that_drives_do_not_answer_are_left_to_the_next_daemon() {
    if !here("requests_that_drives_do_not_answer_are_left_to_the_next_daemon", &["dd", "dmsetup"]) {
        return;
    }
    let drives: Vec<_> = (0..6).map(|n| std::path::PathBuf::from(format!("/dev/mapper/slow{n}"))).collect();
    let on_all = |command: &str| shell(&format!("for n in 0 1 2 3 4 5; do {command}; done"), &[""; 0]);
    let make = "dmsetup create slow$n --table \"0 $((1<<21)) linear /dev/disk/by-id/virtio-pool$n 0\"";
    let _gone =
        Undone(|| drop(on_all("dmsetup resume slow$n; dmsetup remove --retry slow$n || dmsetup remove -f slow$n")));
    on_all(make).expect_ok();
    let mut appliance = Appliance::on(&drives);
    let device = appliance.volume_on_ublk("data", "64M");
    let file = appliance.dir().join("written").display().to_string();
    shell("dd if=/dev/urandom of=\"$1\" bs=1M count=8 status=none; dd if=\"$1\" of=\"$2\" bs=64k oflag=direct conv=fsync status=none", &[&file, &device])
        .expect_ok();
    for (comes_back, place) in [(false, "256"), (true, "512")] {
        // What is read next comes from the drives.
        appliance.stop();
        appliance.start();
        let shown = appliance.json(&["volume", "show", "data"]);
        let device = shown["attachment"]["device"].as_str().expect("a device").to_owned();
        let write = "dd if=\"$1\" of=\"$2\" bs=64k seek=\"$3\" oflag=direct conv=fsync status=none";
        let same = "dd if=\"$2\" bs=64k skip=\"$3\" count=128 iflag=direct status=none | cmp - \"$1\"";
        std::thread::scope(|scope| {
            on_all("dmsetup suspend --nolockfs --noflush slow$n").expect_ok();
            // Also when something below is not as it should be: nobody waits for them for ever.
            let _resumed = Undone(|| drop(on_all("dmsetup resume slow$n")));
            let read = scope.spawn(|| shell(same, &[file.as_str(), &device, "0"]));
            let written = scope.spawn(|| shell(write, &[file.as_str(), &device, place]));
            std::thread::sleep(Duration::from_secs(2));
            let said = appliance.said().len();
            appliance.signal("TERM");
            let left = || appliance.said()[said..].contains("are left to the next process");
            assert!(wait_until(Duration::from_secs(60), left), "{}", appliance.said());
            assert!(!read.is_finished() && !written.is_finished(), "drives that answer nothing were read and written");
            if comes_back {
                on_all("dmsetup resume slow$n").expect_ok();
                appliance.outlast();
            } else {
                // As a supervisor does with what does not end in its time.
                appliance.kill();
                on_all("dmsetup resume slow$n").expect_ok();
            }
            appliance.start();
            read.join().expect("dd").expect_ok();
            written.join().expect("dd").expect_ok();
        });
        shell(same, &[file.as_str(), &device, place]).expect_ok();
    }
    appliance.ashlar(&["volume", "detach", "data"]);
    appliance.expect_sound();
    appliance.stop();
}

/// Does something at the end, also of a test that fails.
struct Undone<F: FnMut()>(F);

impl<F: FnMut()> Drop for Undone<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
