//! Block devices: loop devices in direct I/O mode over the files.

use std::path::{Path, PathBuf};
use std::process::Command;

use blockdev::error::ErrorKind;
use blockdev::frontend::loopdev::{self, LoopOptions};
use blockdev::frontend::memory::MemoryDevice;

use crate::need;
use crate::probe::{Mood, Probe};
use crate::support::{Fixture, eventually, run, try_run};

const MIB: u64 = 1 << 20;

/// Programs of this machine to fill a file system with: about `limit` bytes.
fn programs(limit: u64) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir("/usr/bin")
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    let mut total = 0;
    found.retain(|path| {
        let size = path.metadata().map_or(u64::MAX, |meta| meta.len());
        let fits = size < 4 * MIB && total + size <= limit;
        total += if fits { size } else { 0 };
        fits
    });
    assert!(found.len() > 10, "/usr/bin has too little in it");
    found
}

fn copy_in(target: &Path, programs: &[PathBuf]) {
    run(Command::new("cp").arg("-a").args(programs).arg(target));
}

fn compare(target: &Path, programs: &[PathBuf]) {
    for program in programs {
        let copy = target.join(program.file_name().unwrap());
        assert!(std::fs::read(program).unwrap() == std::fs::read(&copy).unwrap(), "{}", copy.display());
    }
}

/// Makes a file system on a loop device over a volume that answers in the given way, uses it, checks it, uses it again.
fn file_system_survives(mood: Mood, make: &mut Command, check: &mut Command) {
    let mut fixture = Fixture::new();
    let probe = Probe::new(512 * MIB);
    probe.set_mood(mood);
    let path = fixture.add("disk", probe.clone());
    let device = fixture.attach(&path);
    run(make.arg(&device));
    let target = fixture.mount(&device);
    let programs = programs(40 * MIB);
    copy_in(&target, &programs);
    fixture.unmount(&target);
    assert!(probe.flushes() > 0, "unmounting flushes");
    run(check.arg(&device));
    let target = fixture.mount(&device);
    compare(&target, &programs);

    let full = probe.memory.mapped_bytes();
    for program in &programs {
        std::fs::remove_file(target.join(program.file_name().unwrap())).unwrap();
    }
    // XFS frees deleted files in the background.
    eventually("the space is given back", || {
        run(Command::new("sync").arg("-f").arg(&target));
        run(Command::new("fstrim").arg(&target));
        probe.memory.mapped_bytes() + 30 * MIB < full
    });
    fixture.unmount(&target);
    loopdev::detach(&device).unwrap();
}

#[test]
fn ext4_over_a_loop_device() {
    need!("mkfs.ext4", "e2fsck", "fstrim");
    file_system_survives(
        Mood::Prompt,
        Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0"]),
        Command::new("e2fsck").arg("-fn"),
    );
}

#[test]
fn xfs_over_a_loop_device() {
    need!("mkfs.xfs", "xfs_repair", "fstrim");
    file_system_survives(Mood::Deferred, Command::new("mkfs.xfs").arg("-q"), Command::new("xfs_repair").arg("-n"));
}

#[test]
fn fio_verifies_the_file_and_the_block_device() {
    need!("fio");
    let fixture = Fixture::new();
    let probe = Probe::new(48 * MIB);
    probe.set_mood(Mood::Deferred);
    let path = fixture.add("disk", probe);
    let device = fixture.attach(&path);
    for (target, engine, direct) in [(&path, "psync", "0"), (&path, "libaio", "1"), (&device, "libaio", "1")] {
        run(Command::new("fio")
            .args(["--name=verify", "--rw=randwrite", "--bsrange=4k-128k", "--size=48m", "--io_size=24m"])
            .args(["--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randrepeat=1"])
            .args(["--bs_unaligned=0", "--blockalign=4k"])
            .args([format!("--ioengine={engine}"), format!("--direct={direct}")])
            .arg(format!("--filename={}", target.display()))
            .current_dir(fixture.scratch("")));
    }
}

#[test]
fn growing_the_volume_grows_the_block_device() {
    need!("losetup");
    let fixture = Fixture::new();
    let probe = Probe::new(8 * MIB);
    let path = fixture.add("disk", probe.clone());
    let device = fixture.attach(&path);
    let size = || run(Command::new("blockdev").arg("--getsize64").arg(&device)).trim().parse::<u64>().unwrap();
    assert_eq!(size(), 8 * MIB);
    probe.memory.resize(16 * MIB);
    assert_eq!(loopdev::set_capacity(&device).unwrap(), 16 * MIB);
    assert_eq!(size(), 16 * MIB);
    probe.memory.resize(24 * MIB);
    // Others see it as soon as the kernel was told.
    eventually("losetup -c takes the new size", || {
        run(Command::new("losetup").arg("-c").arg(&device));
        size() == 24 * MIB
    });
}

#[test]
fn attaching_and_detaching_tell_what_is_wrong() {
    need!("mkfs.ext4");
    let mut fixture = Fixture::new();
    let kind = |result: blockdev::error::Result<()>| result.err().map(|error| error.kind());
    let none = fixture.server.mountpoint().join("none");
    assert_eq!(kind(loopdev::attach(&none, LoopOptions::default()).map(drop)), Some(ErrorKind::NotFound));
    assert_eq!(kind(loopdev::detach(Path::new("/dev/null"))), Some(ErrorKind::InvalidArgument));
    assert_eq!(kind(loopdev::detach(Path::new("/dev/loop4294967295"))), Some(ErrorKind::NotFound));

    let path = fixture.add("disk", MemoryDevice::new(16 * MIB));
    let device = fixture.attach(&path);
    let found = loopdev::find(&path).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].device, &found[0].backing_file, found[0].deleted), (&device, &path, false));
    assert_eq!(loopdev::find(fixture.server.mountpoint()).unwrap(), found);
    assert_eq!(
        loopdev::find(&fixture.server.mountpoint().join("dis")).unwrap(),
        [],
        "a prefix of a name is another file"
    );

    run(Command::new("mkfs.ext4").arg("-q").arg(&device));
    let target = fixture.mount(&device);
    assert_eq!(kind(loopdev::detach(&device)), Some(ErrorKind::Busy));
    std::fs::write(target.join("still"), "there").unwrap();
    fixture.unmount(&target);
    loopdev::detach(&device).unwrap();
    assert_eq!(loopdev::find(&path).unwrap(), []);
}

#[test]
fn a_loop_device_over_another_file_is_left_alone() {
    need!();
    let fixture = Fixture::new();
    let (ours, other) = (fixture.add("ours", MemoryDevice::new(MIB)), fixture.add("other", MemoryDevice::new(MIB)));
    let device = fixture.attach(&other);
    // The number was ours once, and the kernel gave it to somebody else.
    loopdev::detach_from(&device, &ours).unwrap();
    assert_eq!(loopdev::find(&other).unwrap().len(), 1);
    loopdev::detach_from(&device, &other).unwrap();
    assert!(loopdev::find(&other).unwrap().is_empty());
    loopdev::detach_from(&device, &other).unwrap();
}

#[test]
fn a_read_only_volume_makes_a_read_only_block_device() {
    need!("blockdev");
    let fixture = Fixture::new();
    let memory = MemoryDevice::new(MIB + 512);
    memory.set_read_only(true);
    let path = fixture.add("snapshot", memory);
    let refused = loopdev::attach(&path, LoopOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly, "{refused}");
    let options = LoopOptions { read_only: true, ..LoopOptions::default() };
    let attached = loopdev::attach(&path, options).unwrap();
    assert_eq!(attached.block_size, 512, "the size is no multiple of 4096");
    let device = attached.device.to_str().unwrap();
    assert_eq!(run(Command::new("blockdev").args(["--getro", "--getsize64", device])).trim(), "1\n1049088");
    loopdev::detach(&attached.device).unwrap();
}

#[test]
fn a_full_pool_is_an_error_to_the_block_device_and_passes() {
    need!("dd");
    let fixture = Fixture::new();
    let probe = Probe::new(8 * MIB);
    let path = fixture.add("disk", probe.clone());
    let device = fixture.attach(&path);
    let of = format!("of={}", device.display());
    let mut write = Command::new("dd");
    write.args(["if=/dev/zero", &of, "bs=64k", "count=4", "oflag=direct", "conv=fsync"]);
    run(&mut write);
    probe.set_mood(Mood::Failing(ErrorKind::NoSpace));
    let (success, said) = try_run(&mut write);
    assert!(!success && (said.contains("Input/output error") || said.contains("No space left")), "{said}");
    probe.set_mood(Mood::Prompt);
    run(&mut write);
    loopdev::detach(&device).unwrap();
}
