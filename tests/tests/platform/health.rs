//! What drives tell about their own health, against what the machine's emulator gives them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ashlar_tests::process::wait_until;
use serde_json::{Value, json};

use crate::appliance::{Appliance, by_id, here, settle, shell};

const GIB: u64 = 1 << 30;

/// Makes a partition table by hand, with one partition from 1 MiB on, of 1 GiB less 2 MiB. Gives the partition.
fn partition(drive: &Path) -> PathBuf {
    // Type 83h (Linux), 2048 sectors from the start, 2,093,056 sectors.
    let script = "printf '\\0\\0\\0\\0\\203\\0\\0\\0\\0\\010\\0\\0\\0\\360\\037\\0' | dd of=\"$1\" bs=1 seek=446 conv=notrunc status=none
        printf '\\125\\252' | dd of=\"$1\" bs=1 seek=510 conv=notrunc,fsync status=none
        # udev looks at the drive as soon as it is closed.
        n=0; until udevadm settle --timeout=30 && blockdev --rereadpt \"$1\"; do n=$((n+1)); [ $n -lt 50 ]; sleep 0.2; done";
    shell(script, &[drive]).expect_ok();
    settle();
    let path = PathBuf::from(format!("{}-part1", drive.display()));
    assert!(wait_until(Duration::from_secs(30), || path.exists()), "there is no {}", path.display());
    path
}

#[test]
fn drives_tell_their_health() {
    if !here("drives_tell_their_health", &["blockdev"]) {
        return;
    }
    // Whatever another test left there.
    let worn = by_id("nvme-QEMU_NVMe_Ctrl_nvme-worn");
    shell("dd if=/dev/zero of=\"$1\" bs=1M count=4 conv=fsync status=none; # udev looks at the drive as soon as it is closed.
        n=0; until udevadm settle --timeout=30 && blockdev --rereadpt \"$1\"; do n=$((n+1)); [ $n -lt 50 ]; sleep 0.2; done", &[&worn])
        .expect_ok();
    let drives = [
        by_id("nvme-QEMU_NVMe_Ctrl_nvme-good"),
        partition(&worn),
        by_id("ata-QEMU_HARDDISK_ata0"),
        by_id("scsi-0QEMU_QEMU_HARDDISK_scsi0"),
        by_id("virtio-pool0"),
        by_id("virtio-pool1"),
    ];
    let mut appliance = Appliance::on(&drives);
    let shown = |drive: &Path| appliance.json(&["disk", "show", &drive.display().to_string()])["health"].clone();
    for drive in &drives {
        // Each tells something once it was asked; those that have nothing to tell say why.
        let told = wait_until(Duration::from_secs(60), || shown(drive)["note"] != "it was not asked yet");
        assert!(told, "{}: {}", drive.display(), shown(drive));
    }
    let [good, worn, ata, scsi, virtio, _] = drives.each_ref().map(|drive| shown(drive));

    // 323 K, and limits of 343 K and 373 K; a new drive that a pool was made on.
    for (health, serial) in [(&good, "nvme-good"), (&worn, "nvme-worn")] {
        for (field, expected) in [
            ("source", json!("nvme")),
            ("model", json!("QEMU NVMe Ctrl")),
            ("serial", json!(serial)),
            // Of the whole drive, also where the pool has a partition.
            ("capacity", json!(GIB)),
            ("temperature_c", json!(50)),
            ("temperature_warning_c", json!(70)),
            ("temperature_critical_c", json!(100)),
            ("wear_percent", json!(0)),
            ("media_errors", json!(0)),
            ("unsafe_shutdowns", json!(0)),
            ("power_on_hours", json!(0)),
            ("note", Value::Null),
        ] {
            assert_eq!(health[field], expected, "{field} of {health}");
        }
        assert!(health["firmware"].as_str().is_some_and(|f| !f.is_empty()), "{health}");
        // In units of 512,000 bytes: labels and the log's region were written.
        let written = health["written"].as_u64().expect("a number");
        assert!((512_000..GIB).contains(&written) && written.is_multiple_of(512_000), "{health}");
        assert!(health["read"].as_u64() >= Some(512_000), "{health}");
        assert!(health["checked_s"].as_u64() > Some(1_600_000_000), "{health}");
    }
    assert_eq!((&good["state"], &good["warnings"]), (&json!("good"), &json!([])), "{good}");
    // The emulator is told to warn of this.
    assert_eq!(worn["state"], "critical", "{worn}");
    let warnings = worn["warnings"].as_array().expect("a list");
    assert_eq!(warnings.len(), 1, "{worn}");
    assert_eq!(
        (&warnings[0]["code"], &warnings[0]["severity"]),
        (&json!("disk.health.reliability"), &json!("critical"))
    );

    // SMART attributes: 190 has 31 °C, its table of thresholds lets all pass.
    for (field, expected) in [
        ("source", json!("ata")),
        ("state", json!("good")),
        ("model", json!("QEMU HARDDISK")),
        ("serial", json!("ata0")),
        ("capacity", json!(GIB)),
        ("temperature_c", json!(31)),
        ("reallocated_sectors", json!(0)),
        ("wear_percent", Value::Null),
        ("warnings", json!([])),
        ("note", Value::Null),
    ] {
        assert_eq!(ata[field], expected, "{field} of {ata}");
    }
    assert!(ata["power_on_hours"].is_u64() && ata["power_cycles"].is_u64(), "{ata}");

    // These have none, and say so.
    assert_eq!((&scsi["state"], &scsi["source"]), (&json!("not_reported"), &Value::Null), "{scsi}");
    assert_eq!((&scsi["model"], &scsi["serial"]), (&json!("QEMU QEMU HARDDISK"), &json!("scsi0")), "{scsi}");
    assert!(scsi["note"].as_str().expect("why").contains("no log pages"), "{scsi}");
    assert_eq!((&virtio["state"], &virtio["serial"]), (&json!("not_reported"), &json!("pool0")), "{virtio}");
    assert!(virtio["note"].as_str().expect("why").contains("virtio"), "{virtio}");

    let status = appliance.json(&["pool", "status"]);
    let alerts = status["alerts"].as_array().expect("alerts");
    let of_health: Vec<&Value> =
        alerts.iter().filter(|a| a["code"].as_str().is_some_and(|code| code.starts_with("disk.health"))).collect();
    assert!(of_health.len() == 1 && of_health[0]["code"] == "disk.health.reliability", "{status}");
    let message = of_health[0]["message"].as_str().expect("a message");
    assert!(message.contains("QEMU NVMe Ctrl serial nvme-worn") && message.contains("replace it"), "{message}");
    let list = appliance.ashlar(&["disk", "list"]).stdout;
    assert!(list.contains("HEALTH") && list.contains("critical") && list.contains("good"), "{list}");
    let text = appliance.ashlar(&["disk", "show", &drives[1].display().to_string()]).stdout;
    assert!(text.contains("critical (NVMe health log") && text.contains("50 °C (warns at 70 °C"), "{text}");
    appliance.expect_sound();
    appliance.stop();
    shell(
        "dd if=/dev/zero of=\"$1\" bs=1M count=4 conv=fsync status=none; # udev looks at the drive as soon as it is closed.
        n=0; until udevadm settle --timeout=30 && blockdev --rereadpt \"$1\"; do n=$((n+1)); [ $n -lt 50 ]; sleep 0.2; done",
        &[by_id("nvme-QEMU_NVMe_Ctrl_nvme-worn")],
    )
    .expect_ok();
}
