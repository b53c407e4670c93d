//! Volumes as block devices of the kernel's ublk driver.

use std::path::Path;

use ashlar_tests::process::wait_until;

use crate::appliance::{Appliance, LIMIT, here, ordinary, settle, shell, tree};

const MIB: u64 = 1 << 20;

/// Numbers of the ublk devices there are.
fn devices() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/class/ublk-char") else { return Vec::new() };
    entries.flatten().map(|e| e.file_name().display().to_string()).collect()
}

/// What the block layer says of a device: a file below `/sys/block/NAME/queue`.
#[track_caller]
fn limit(device: &str, name: &str) -> u64 {
    let file = Path::new("/sys/block").join(device.trim_start_matches("/dev/")).join("queue").join(name);
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.trim().parse().unwrap_or_else(|_| panic!("{}: {text}", file.display()))
}

#[test]
fn a_ublk_device_does_what_a_disk_does() {
    if !here("a_ublk_device_does_what_a_disk_does", &["fio", "mkfs.xfs", "blkdiscard", "fstrim"]) {
        return;
    }
    let appliance = Appliance::with(&ordinary(), "[ublk]\nqueues = 4\ndepth = 32\n");
    let device = appliance.volume_on_ublk("data", "512M");
    let name = "/dev/ashlar/data";
    assert_eq!(std::fs::canonicalize(name).expect("the name"), Path::new(&device));
    let shown = appliance.json(&["volume", "show", "data"]);
    assert_eq!((&shown["attachment"]["path"], &shown["attachment"]["via"]), (&name.into(), &"ublk".into()));
    assert_eq!(shell("blockdev --getsize64 \"$1\"", &[&device]).stdout.trim(), (512 * MIB).to_string());
    assert_eq!(shell("ls \"/sys/block/${1#/dev/}/mq\" | wc -l", &[&device]).stdout.trim(), "4");
    for (limits, expected) in
        [("logical_block_size", 512), ("physical_block_size", 4096), ("discard_granularity", 4096)]
    {
        assert_eq!(limit(&device, limits), expected, "{limits}");
    }
    assert!(limit(&device, "discard_max_bytes") >= 1 << 30);

    // Every size and alignment, on all queues at once.
    let fio = "fio --minimal --name=v --filename=\"$1\" --direct=1 --ioengine=libaio --iodepth=8 --numjobs=4 --size=16M --offset_increment=64M \
        --rw=randrw --bsrange=512-128k --bs_unaligned=0 --verify=crc32c --verify_fatal=1 --verify_backlog=256 --do_verify=1";
    shell(fio, &[&device]).expect_ok();
    let full = appliance.mapped("data");
    // Half of the 64 MiB are written, more or less: a quarter of them in the space that goes next.
    assert!(full > 24 * MIB, "{full}");

    // Space comes back, and what is gone reads as zeroes.
    let zero = "cmp -n $((64<<20)) \"$1\" /dev/zero";
    shell(&format!("fallocate -z -l 64M \"$1\"; {zero}"), &[&device]).expect_ok();
    let less = appliance.mapped("data");
    assert!(less + 5 * MIB < full, "{full} {less}");
    shell(&format!("blkdiscard \"$1\"; {zero}"), &[&device]).expect_ok();
    assert_eq!(appliance.mapped("data"), 0);

    let mount = appliance.mountpoint();
    shell("mkfs.xfs -q \"$1\"; mount \"$1\" \"$2\"; cp -a \"$3/.\" \"$2/tree\"; head -c 64M /dev/urandom >\"$2/random\"; sync -f \"$2\"", &[
        &device, &mount, &tree(),
    ])
    .expect_ok();
    let before = appliance.mapped("data");
    let refused = appliance.try_ashlar(&["volume", "detach", "data"]);
    assert!(!refused.ok() && refused.stderr.contains("in use"), "{refused}");
    let refused = appliance.try_ashlar(&["volume", "delete", "data"]);
    assert!(!refused.ok() && refused.stderr.contains("detach it first"), "{refused}");
    shell("diff -r \"$2\" \"$1/tree\"; rm \"$1/random\"; sync -f \"$1\"; fstrim \"$1\"", &[&mount, &tree()])
        .expect_ok();
    assert!(
        wait_until(LIMIT, || appliance.mapped("data") + 50 * MIB < before),
        "{before} {}",
        appliance.mapped("data")
    );
    shell("umount \"$1\"", &[&mount]).expect_ok();

    // A device that a program has open is in use too, though nothing is mounted.
    // By another node as well, as in a container.
    let other = appliance.dir().join("other").display().to_string();
    shell("mknod \"$2\" b $(stat -c '%Hr %Lr' \"$1\")", &[&device, &other]).expect_ok();
    for node in [&device, &other] {
        let open = shell(
            "exec 9<\"$1\"; \"$2\" --dir \"$3\" volume detach data 2>&1",
            &[node, &ashlar_tests::ashlar().display().to_string(), &appliance.dir().display().to_string()],
        );
        assert!(!open.ok() && open.stdout.contains("bash"), "{node}: {open}");
    }

    appliance.ashlar(&["volume", "detach", "data"]);
    assert!(!Path::new(name).is_symlink() && !Path::new(&device).exists());
    assert_eq!(devices(), Vec::<String>::new());
    appliance.expect_sound();
}

#[test]
fn sizes_change_as_far_as_the_kernel_can() {
    if !here("sizes_change_as_far_as_the_kernel_can", &["blockdev", "mkfs.xfs"]) {
        return;
    }
    let mut appliance = Appliance::on(&ordinary());
    let device = appliance.volume_on_ublk("data", "320M");
    let mount = appliance.mountpoint();
    shell("mkfs.xfs -q \"$1\"; mount \"$1\" \"$2\"; cp -a \"$3/.\" \"$2/tree\"", &[&device, &mount, &tree()])
        .expect_ok();
    let size =
        |device: &str| shell("blockdev --getsize64 \"$1\"", &[device]).stdout.trim().parse::<u64>().expect("bytes");
    let resized = appliance.try_ashlar(&["volume", "resize", "data", "--size", "640M"]);
    let grown = "xfs_growfs \"$1\" >&2; diff -r \"$2\" \"$1/tree\"; head -c 400M /dev/zero >\"$1/more\"";
    let kernel = shell("uname -r", &[""; 0]).stdout;
    let mut numbers = kernel.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let able = (numbers.next(), numbers.next()) >= (Some(6), Some(16));
    assert_eq!(resized.ok(), able, "Linux {kernel}: {resized}");
    if able {
        // Seen by the host, with a file system mounted, which grows into it.
        assert_eq!(size(&device), 640 * MIB);
        shell(grown, &[&mount, &tree()]).expect_ok();
        shell("umount \"$1\"", &[&mount]).expect_ok();
    } else {
        // Nothing changed, and the message says what to do.
        assert!(resized.stderr.contains("6.16") && resized.stderr.contains("detach"), "{resized}");
        assert_eq!(
            (size(&device), appliance.json(&["volume", "show", "data"])["size"].as_u64()),
            (320 * MIB, Some(320 * MIB))
        );
        shell("umount \"$1\"", &[&mount]).expect_ok();
        appliance.ashlar(&["volume", "detach", "data"]);
        appliance.ashlar(&["volume", "resize", "data", "--size", "640M"]);
        let device = appliance.ashlar(&["volume", "attach", "data", "--via", "ublk"]).stdout;
        assert_eq!(size(device.trim()), 640 * MIB);
    }
    // A device nobody uses goes with the daemon, and is there again with the next one.
    appliance.stop();
    assert_eq!(devices(), Vec::<String>::new());
    appliance.start();
    let device =
        appliance.json(&["volume", "show", "data"])["attachment"]["device"].as_str().expect("a device").to_owned();
    assert_eq!(size(&device), 640 * MIB);

    // Killed while nothing uses the device: it is taken over all the same.
    appliance.kill();
    appliance.start();
    shell("dd if=/dev/urandom of=\"$1\" bs=1M count=8 oflag=direct status=none", &[&device]).expect_ok();
    assert_eq!(devices().len(), 1);
    appliance.ashlar(&["volume", "detach", "data"]);
    assert_eq!(devices(), Vec::<String>::new());
}

/// A snapshot of a mounted file system is a device that cannot be written to, by ublk and by a loop device, and holds what was there; a clone goes its own way.
#[test]
fn a_snapshot_is_mounted_while_its_volume_goes_on() {
    let test = "a_snapshot_is_mounted_while_its_volume_goes_on";
    if !here(test, &["mkfs.ext4", "mount", "umount", "diff", "e2fsck"]) {
        return;
    }
    let appliance = Appliance::on(&ordinary());
    let device = appliance.volume_on_ublk("data", "256M");
    let (mount, other) = (appliance.mountpoint(), appliance.dir().join("snapshot").display().to_string());
    let script = "mkfs.ext4 -q -b 4096 \"$1\"; mount \"$1\" \"$2\"; cp -r \"$3\" \"$2/tree\"; sync; mkdir \"$4\"";
    shell(script, &[&device, &mount, &tree(), &other]).expect_ok();
    // Of a frozen file system: it is mounted from a device that cannot be written to, where nothing could be repaired.
    appliance.ashlar(&["snapshot", "create", "data@then", "--freeze"]);
    assert_eq!(appliance.json(&["snapshot", "show", "data@then"])["quiesced"], true);
    shell("rm -r \"$1/tree\"; dd if=/dev/urandom of=\"$1/more\" bs=1M count=20 status=none; sync", &[&mount])
        .expect_ok();
    for how in [&["ublk"][..], &["fuse", "--loop"]] {
        let attach = [&["volume", "attach", "data@then", "--via"], how].concat();
        let snapshot = appliance.ashlar(&attach).stdout.trim().to_owned();
        settle();
        let script =
            "[ $(blockdev --getro \"$1\") = 1 ]; mount -o ro \"$1\" \"$2\"; diff -r \"$2/tree\" \"$3\"; umount \"$2\"";
        shell(script, &[&snapshot, &other, &tree()]).expect_ok();
        appliance.ashlar(&["volume", "detach", "data@then"]);
    }
    appliance.ashlar(&["volume", "clone", "data@then", "copy"]);
    let clone = appliance.ashlar(&["volume", "attach", "copy", "--via", "ublk"]).stdout.trim().to_owned();
    settle();
    let script = "e2fsck -fp \"$1\" || [ $? = 1 ]; mount \"$1\" \"$2\"; diff -r \"$2/tree\" \"$3\"; touch \"$2/own\"; umount \"$2\"; e2fsck -fn \"$1\"";
    shell(script, &[&clone, &other, &tree()]).expect_ok();
    shell("[ -e \"$1/more\" ]; [ ! -e \"$1/own\" ]; umount \"$1\"; e2fsck -fn \"$2\"", &[&mount, &device]).expect_ok();
    for name in ["data", "copy"] {
        appliance.ashlar(&["volume", "detach", name]);
    }
    appliance.ashlar(&["volume", "delete", "data", "--with-snapshots"]);
    appliance.expect_sound();
}
