//! Tests that need root: loop devices, file systems without space or without O_DIRECT. Each one skips itself elsewhere.

#[path = "../../../../tests/src/skip.rs"]
mod skip;

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::tests::{against_model, engines, new_file};
use super::*;
use crate::disk::test_support::{block_on, filled};
use crate::error::ErrorKind;

fn run(command: &str, args: &[&str]) -> Option<String> {
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    match Command::new(command).args(args).env("PATH", search).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            skip::skip(&format!("uring: a test was skipped, {command} {args:?}: {said}"));
            None
        }
        Err(e) => {
            skip::skip(&format!("uring: a test was skipped, {command}: {e}"));
            None
        }
    }
}

fn is_root() -> bool {
    // SAFETY: no memory is involved.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        skip::skip("uring: a test was skipped, it needs root");
    }
    root
}

/// A loop device over a file of its own, detached on drop.
struct Loop {
    dir: TempDir,
    device: PathBuf,
}

impl Loop {
    fn new(size: u64, sector: &str) -> Option<Self> {
        Self::with(size, &["--sector-size", sector])
    }

    fn with(size: u64, options: &[&str]) -> Option<Self> {
        if !is_root() || !Path::new("/dev/loop-control").exists() {
            return None;
        }
        let dir = TempDir::new().unwrap();
        let backing = dir.path().join("backing");
        std::fs::File::create(&backing).unwrap().set_len(size).unwrap();
        let device = run("losetup", &[&["--find", "--show"], options, &[backing.to_str().unwrap()]].concat())?;
        Some(Self { dir, device: device.into() })
    }

    fn backing(&self) -> PathBuf {
        self.dir.path().join("backing")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.device.to_str().unwrap()]);
    }
}

/// A mounted file system, unmounted on drop.
struct Mount(TempDir);

impl Mount {
    fn new(args: &[&str]) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let dir = TempDir::new().unwrap();
        run("mount", &[args, &[dir.path().to_str().unwrap()]].concat())?;
        Some(Self(dir))
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("disk")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, since a process that is just being started may have a file of it open for a moment.
        run("umount", &["--lazy", self.0.path().to_str().unwrap()]);
    }
}

#[test]
fn loop_devices_of_both_sector_sizes() {
    for (sector, engine) in ["512", "4096"].into_iter().zip(engines().into_iter().rev().cycle()) {
        // Not a multiple of the grain, as real devices need not be.
        let odd = if sector == "512" { 1536 } else { 0 };
        let Some(device) = Loop::new((16 << 20) + odd, sector) else { return };
        let disk = FileDisk::open_with(&device.device, OpenOptions::default(), engine).unwrap();
        let geometry = disk.geometry();
        assert_eq!(geometry, DiskGeometry { size: 16 << 20, sector_size: sector.parse().unwrap() });
        assert!(disk.is_device() && disk.is_direct());
        block_on(against_model(&disk, 11, 4));
        let error = FileDisk::open(&device.device, OpenOptions::default()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert!(error.to_string().contains(device.device.to_str().unwrap()), "{error}");
        drop(disk);
        drop(FileDisk::open(&device.device, OpenOptions::default()).unwrap());
    }
}

#[test]
fn discards_reach_the_file_under_a_loop_device() {
    use std::os::unix::fs::MetadataExt;
    let Some(device) = Loop::new(16 << 20, "512") else { return };
    let disk = FileDisk::open(&device.device, OpenOptions::default()).unwrap();
    block_on(disk.write(0, vec![filled(16 << 20, 1)], false)).unwrap();
    block_on(disk.flush()).unwrap();
    let before = std::fs::metadata(device.backing()).unwrap().blocks();
    block_on(disk.discard(0, 12 << 20)).unwrap();
    block_on(disk.flush()).unwrap();
    let after = std::fs::metadata(device.backing()).unwrap().blocks();
    assert!(after <= before / 2, "{before} to {after} sectors");
    assert!(block_on(disk.read(12 << 20, 4 << 20)).unwrap().iter().all(|b| *b == 1));
}

#[test]
fn unreadable_sectors_are_medium_errors() {
    for engine in engines() {
        let Some(device) = Loop::new(4 << 20, "512") else { return };
        let disk = FileDisk::open_with(&device.device, OpenOptions::default(), engine).unwrap();
        block_on(disk.write(0, vec![filled(4 << 20, 1)], true)).unwrap();
        // The loop driver answers EIO where its file has ended.
        std::fs::OpenOptions::new().write(true).open(device.backing()).unwrap().set_len(1 << 20).unwrap();
        match block_on(disk.read(2 << 20, 65536)) {
            Err(DiskError::Medium(m)) => assert!(m.contains(device.device.to_str().unwrap()), "{m}"),
            other => panic!("{other:?}"),
        }
        assert!(block_on(disk.read(0, 65536)).unwrap().iter().all(|b| *b == 1));
    }
}

#[test]
fn a_mounted_device_is_busy() {
    let Some(device) = Loop::new(16 << 20, "512") else { return };
    let path = device.device.to_str().unwrap();
    let Some(_) = run("mkfs.ext4", &["-q", "-F", path]) else { return };
    let Some(mount) = Mount::new(&[path]) else { return };
    let error = FileDisk::open(&device.device, OpenOptions::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    drop(mount);
    drop(FileDisk::open(&device.device, OpenOptions::default()).unwrap());
}

fn fill_up(disk: &FileDisk) {
    const STEP: usize = 256 << 10;
    let mut refused = 0;
    for at in (0..disk.geometry().size).step_by(STEP) {
        match block_on(disk.write(at, vec![filled(STEP, 5)], at % 3 == 0)) {
            Ok(()) => {}
            Err(DiskError::NoSpace(m)) => {
                assert!(m.contains(&disk.name()), "{m}");
                refused += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(refused > 0, "the file system was never full");
    // The disk is not failed by it: what was written stays, and space that is given back can be used.
    assert!(block_on(disk.read(0, STEP)).unwrap().iter().all(|b| *b == 5));
    block_on(disk.discard(0, 1 << 20)).unwrap();
    block_on(disk.flush()).unwrap();
    block_on(disk.write(0, vec![filled(STEP, 6)], true)).unwrap();
    assert!(block_on(disk.read(0, STEP)).unwrap().iter().all(|b| *b == 6));
}

#[test]
fn a_full_file_system_is_no_space_and_recovers() {
    for engine in engines() {
        let Some(mount) = Mount::new(&["-t", "tmpfs", "-o", "size=4m", "tmpfs"]) else { return };
        fill_up(&FileDisk::open_with(&mount.file(), new_file(16 << 20), engine).unwrap());
    }
    let Some(device) = Loop::new(16 << 20, "512") else { return };
    let path = device.device.to_str().unwrap();
    let Some(_) = run("mkfs.ext4", &["-q", "-F", path]) else { return };
    let Some(mount) = Mount::new(&[path]) else { return };
    fill_up(&FileDisk::open(&mount.file(), new_file(64 << 20)).unwrap());
}

#[test]
fn a_file_system_without_direct_io_works_and_is_told() {
    for engine in engines() {
        let Some(mount) = Mount::new(&["-t", "ramfs", "ramfs"]) else { return };
        let disk = FileDisk::open_with(&mount.file(), new_file(4 << 20), engine).unwrap();
        assert!(!disk.is_direct());
        block_on(against_model(&disk, 5, 2));
    }
}

#[test]
fn a_read_only_device_is_refused() {
    let Some(device) = Loop::with(4 << 20, &["--read-only"]) else { return };
    let error = FileDisk::open(&device.device, OpenOptions::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
}
