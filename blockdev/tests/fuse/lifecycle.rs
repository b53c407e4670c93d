//! Mounting, removing, unmounting, and what is left when the server is killed.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use blockdev::error::ErrorKind;
use blockdev::frontend::fuse::{FuseOptions, FuseServer, Unmounted};
use blockdev::frontend::loopdev::{self, LoopOptions};
use blockdev::frontend::memory::MemoryDevice;

use crate::need;
use crate::probe::{Mood, Probe};
use crate::support::{Fixture, cut_off, detach_all, errno_of, eventually, open, run, user, wait, while_open};

const MIB: u64 = 1 << 20;

/// Where the child shall serve; set only for the child.
const CHILD: &str = "ASHLAR_TEST_FUSE_CHILD";

fn kind<T>(result: blockdev::error::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn unmounting_removes_only_a_directory_that_mounting_made() {
    need!();
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let existing = dir.path().join("existing");
    std::fs::create_dir(&existing).unwrap();
    std::fs::write(existing.join("underneath"), "x").unwrap();
    let new = dir.path().join("a/new one");
    for path in [&existing, &new] {
        for _ in 0..2 {
            let server = FuseServer::mount(runtime.handle().clone(), path, FuseOptions::default()).unwrap();
            server.add("v", Arc::new(MemoryDevice::new(MIB))).unwrap();
            assert_eq!(server.unmount().unwrap(), Unmounted::Clean);
            assert_eq!(server.unmount().unwrap(), Unmounted::Clean, "once more changes nothing");
            assert_eq!(kind(server.add("w", Arc::new(MemoryDevice::new(MIB)))), Some(ErrorKind::Unavailable));
        }
    }
    assert!(existing.join("underneath").exists() && !new.exists());
}

#[test]
fn impossible_mounts_are_refused() {
    need!();
    let fixture = Fixture::new();
    let mount = |path: &Path, threads| {
        kind(FuseServer::mount(
            fixture.runtime.handle().clone(),
            path,
            FuseOptions { threads, ..FuseOptions::default() },
        ))
    };
    assert_eq!(mount(fixture.server.mountpoint(), 1), Some(ErrorKind::Busy), "a living mount");
    assert_eq!(mount(&fixture.scratch("none"), 0), Some(ErrorKind::InvalidArgument));
    assert!(!fixture.scratch("none").exists());
    std::fs::write(fixture.scratch("file"), "").unwrap();
    assert_eq!(mount(&fixture.scratch("file"), 1), Some(ErrorKind::AlreadyExists));
    std::os::unix::fs::symlink("/", fixture.scratch("link")).unwrap();
    assert_eq!(mount(&fixture.scratch("link"), 1), Some(ErrorKind::InvalidArgument));
    assert_eq!(mount(Path::new("/"), 1), Some(ErrorKind::InvalidArgument));
}

#[test]
fn names_are_unique_and_valid() {
    need!();
    let fixture = Fixture::new();
    let add = |name: &str| kind(fixture.server.add(name, Arc::new(MemoryDevice::new(MIB))));
    assert_eq!(add("one"), None);
    assert_eq!(add("one"), Some(ErrorKind::AlreadyExists));
    assert_eq!(add("a/b"), Some(ErrorKind::InvalidArgument));
    assert_eq!(kind(fixture.server.remove("two", false)), Some(ErrorKind::NotFound));
    fixture.server.remove("one", false).unwrap();
    assert_eq!(add("one"), None, "the name is free again");
}

#[test]
fn removal_waits_for_users_unless_forced() {
    need!();
    let fixture = Fixture::new();
    let probe = Probe::new(MIB);
    let path = fixture.add("busy", probe.clone());
    let device = fixture.attach(&path);
    assert_eq!(fixture.server.open_files(), [("busy".to_owned(), 1)]);
    assert_eq!(kind(fixture.server.remove("busy", false)), Some(ErrorKind::Busy));
    loopdev::detach(&device).unwrap();
    fixture.server.remove("busy", false).unwrap();
    assert!(user(move || !path.exists()));

    let path = fixture.add("busy", probe.clone());
    let gone = path.clone();
    let remove = || fixture.server.remove("busy", true).unwrap();
    while_open(&path, remove, move |file| {
        assert_eq!(errno_of(file.write_at(b"y", 0)), Some(libc::ENODEV));
        assert_eq!(errno_of(file.sync_all()), Some(libc::ENODEV));
        assert_eq!(errno_of(open(&gone, 0)), Some(libc::ENOENT));
    });
    // Nothing of the server holds the device any more: the test's two handles are the last.
    eventually("the device is let go", || Arc::strong_count(&probe.memory) == 1);
}

#[test]
fn unmounting_a_mount_in_use_cuts_its_users_off_and_says_so() {
    need!();
    let fixture = Fixture::new();
    let probe = Probe::new(MIB);
    let path = fixture.add("busy", probe.clone());
    let device = fixture.attach(&path);
    let unmount = || assert_eq!(fixture.server.unmount().unwrap(), Unmounted::Forced);
    while_open(&path, unmount, |file| assert!(errno_of(file.write_at(b"y", 0)).is_some()));
    assert!(!fixture.server.mountpoint().exists());
    loopdev::detach(&device).unwrap();
    eventually("the device is let go", || Arc::strong_count(&probe.memory) == 1);
}

#[test]
fn a_mount_taken_away_by_others_is_noticed_and_what_lies_beneath_is_left_alone() {
    need!("umount", "mount");
    let dir = tempfile::tempdir().unwrap();
    let beneath = dir.path().canonicalize().unwrap().join("beneath");
    std::fs::create_dir(&beneath).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&beneath));
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            cut_off(&self.0);
        }
    }
    let _guard = Unmount(beneath.clone());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mount = || FuseServer::mount(runtime.handle().clone(), &beneath, FuseOptions::default());
    assert_eq!(kind(mount()), Some(ErrorKind::Busy), "what is mounted there lives");
    let inner = beneath.join("inner");
    let server = FuseServer::mount(runtime.handle().clone(), &inner, FuseOptions::default()).unwrap();
    run(Command::new("umount").arg(&inner));
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&inner));
    let _inner = Unmount(inner.clone());
    eventually("the end is noticed", || server.add("late", Arc::new(MemoryDevice::new(MIB))).is_err());
    assert_eq!(server.unmount().unwrap(), Unmounted::Clean);
    drop(server);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(mounts.contains(&format!("none {} tmpfs", inner.display())), "the newer mount is still there");
}

/// Not a test of its own: the process that others kill.
#[test]
#[ignore = "runs only as the child of other tests"]
fn child_that_serves() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = FuseServer::mount(runtime.handle().clone(), Path::new(&path), FuseOptions::default()).unwrap();
    server.add("prompt", Arc::new(MemoryDevice::new(8 * MIB))).unwrap();
    let probe = Probe::new(MIB);
    probe.set_mood(Mood::Hanging);
    let hanging = server.add("hanging", Arc::new(probe.clone())).unwrap();
    // Waits for this very process, for ever.
    let waits = move || open(&hanging, 0).unwrap().read_at(&mut [0; 512], 0).is_err();
    let waiter = std::thread::spawn(move || user(waits));
    eventually("the request is on its way", || probe.was_used());
    println!("ready");
    let _ = waiter.join();
}

struct Serving {
    child: Child,
    mountpoint: PathBuf,
}

impl Serving {
    fn start(mountpoint: PathBuf) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lifecycle::child_that_serves", "--ignored", "--nocapture"])
            .env(CHILD, &mountpoint)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut serving = Self { child, mountpoint };
        let lines = BufReader::new(serving.child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("ready")), "the child does not serve");
        serving
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        wait(&mut self.child, Duration::from_secs(10));
        detach_all(&self.mountpoint);
        cut_off(&self.mountpoint);
        let _ = self.child.wait();
    }
}

#[test]
fn a_killed_server_dies_and_the_next_one_clears_what_it_left() {
    need!("umount");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("volumes");
    let mut serving = Serving::start(path.clone());
    let device = loopdev::attach(&path.join("prompt"), LoopOptions::default()).unwrap().device;
    let open_file = open(&path.join("prompt"), 0).unwrap();
    open_file.write_all_at(b"before", 0).unwrap();

    serving.child.kill().unwrap();
    assert!(wait(&mut serving.child, Duration::from_secs(60)).is_some(), "it waits for itself and cannot die");
    assert_eq!(errno_of(std::fs::read_dir(&path)), Some(libc::ENOTCONN));
    assert!(errno_of(open_file.write_at(b"after", 0)).is_some());

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = FuseServer::mount(runtime.handle().clone(), &path, FuseOptions::default()).unwrap();
    assert_eq!(loopdev::find(&path).unwrap(), [], "{} is detached", device.display());
    let file = server.add("new", Arc::new(MemoryDevice::new(MIB))).unwrap();
    user(move || open(&file, 0).unwrap().write_all_at(b"x", 0).unwrap());
    drop(open_file);
    assert_eq!(server.unmount().unwrap(), Unmounted::Clean);
    assert!(std::fs::metadata(&path).unwrap().is_dir(), "the directory itself was there before");
}
