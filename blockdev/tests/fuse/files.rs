//! Volumes as files: reads, writes, holes, sizes, errors.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, SystemTime};

use blockdev::disk::AlignedBuf;
use blockdev::error::ErrorKind;
use blockdev::frontend::errno::errno;
use blockdev::frontend::memory::MemoryDevice;

use crate::need;
use crate::probe::{Mood, Probe};
use crate::support::{Fixture, Random, errno_of, eventually, open, run, try_run, user, while_open};

const MIB: u64 = 1 << 20;

#[test]
fn random_reads_and_writes_agree_with_a_model() {
    need!();
    let fixture = Fixture::new();
    for (name, mood) in [("prompt", Mood::Prompt), ("deferred", Mood::Deferred)] {
        let size = 3 * MIB + 12_288;
        let probe = Probe::new(size);
        probe.set_mood(mood);
        let path = fixture.add(name, probe);
        user(move || {
            let buffered = open(&path, 0).unwrap();
            let direct = open(&path, libc::O_DIRECT).unwrap();
            let mut model = vec![0; size as usize];
            let mut random = Random(7);
            for _ in 0..300 {
                let aligned = random.below(2) == 0;
                let (grain, file) = if aligned { (4096, &direct) } else { (1, &buffered) };
                let offset = random.below(size / grain) * grain;
                // Now and then more than one request of the kernel's.
                let longest = if random.below(8) == 0 { 2 * MIB } else { 40_000 };
                let len = (1 + random.below(longest / grain)) * grain;
                let len = len.min(size - offset) as usize;
                if random.below(2) == 0 {
                    let data = AlignedBuf::padded(&random.bytes(len));
                    file.write_all_at(&data[..len], offset).unwrap();
                    model[offset as usize..][..len].copy_from_slice(&data[..len]);
                } else {
                    let mut data = AlignedBuf::zeroed(len);
                    file.read_exact_at(&mut data, offset).unwrap();
                    assert!(data[..] == model[offset as usize..][..len], "{len} bytes at {offset}");
                }
            }
            let mut all = vec![0; size as usize + 1];
            assert_eq!(buffered.read_at(&mut all[..1], size).unwrap(), 0, "end of file");
            buffered.read_exact_at(&mut all[..size as usize], 0).unwrap();
            assert!(all[..size as usize] == model[..]);
        });
    }
}

#[test]
fn several_threads_share_one_file() {
    need!();
    let fixture = Fixture::new();
    let probe = Probe::new(16 * MIB);
    probe.set_mood(Mood::Deferred);
    let path = fixture.add("shared", probe);
    let threads: Vec<_> = (0..4)
        .map(|stripe: u64| {
            let path = path.clone();
            std::thread::spawn(move || {
                user(move || {
                    let file = open(&path, libc::O_DIRECT).unwrap();
                    let mut random = Random(stripe);
                    for round in 0..60 {
                        let block = random.below(1024) * 4 + stripe;
                        let data = AlignedBuf::padded(&[(stripe * 60 + round) as u8; 4096]);
                        file.write_all_at(&data, block * 4096).unwrap();
                        let mut back = AlignedBuf::zeroed(4096);
                        file.read_exact_at(&mut back, block * 4096).unwrap();
                        assert!(back[..] == data[..], "block {block}");
                    }
                })
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn fsync_and_synchronous_writes_reach_the_device() {
    need!();
    let fixture = Fixture::new();
    let probe = Probe::new(MIB);
    let path = fixture.add("durable", probe.clone());
    let (file, synchronous) = (path.clone(), path);
    user(move || {
        let file = open(&file, 0).unwrap();
        file.write_all_at(b"x", 0).unwrap();
    });
    assert_eq!((probe.flushes(), probe.fua_writes()), (0, 0), "neither write nor close flushes");
    user(move || {
        let file = open(&synchronous, 0).unwrap();
        file.sync_all().unwrap();
        file.sync_data().unwrap();
        open(&synchronous, libc::O_DSYNC).unwrap().write_all_at(b"y", 1).unwrap();
        open(&synchronous, libc::O_SYNC).unwrap().write_all_at(b"z", 2).unwrap();
    });
    assert!(probe.flushes() >= 2, "{}", probe.flushes());
    assert_eq!(probe.fua_writes(), 2);
    fixture.runtime.block_on(async {
        use blockdev::frontend::BlockDevice;
        assert_eq!(probe.memory.read(0, 4).await.unwrap()[..], *b"xyz\0");
    });
}

#[test]
fn holes_give_space_back_and_read_as_zeroes_to_the_byte() {
    need!("fallocate", "xfs_io");
    let fixture = Fixture::new();
    let probe = Probe::new(4 * MIB);
    let path = fixture.add("holes", probe.clone());
    let full = path.clone();
    let fill = move || user(move || open(&full, 0).unwrap().write_all_at(&vec![0xAA; 4 << 20], 0).unwrap());
    for punch in [true, false] {
        fill.clone()();
        assert_eq!(probe.memory.mapped_bytes(), 4 * MIB);
        let mode: &[&str] = if punch { &["-p"] } else { &["-z", "-n"] };
        let (start, len) = (100_001, 2_000_000);
        run(Command::new("fallocate").args(mode).args(["-o", "100001", "-l", "2000000"]).arg(&path));
        assert!(probe.memory.mapped_bytes() <= 4 * MIB - 2_000_000 + 2 * 4096, "{}", probe.memory.mapped_bytes());
        assert_eq!(probe.discards(), 1, "zeroing a range is no discard");
        let file = path.clone();
        user(move || {
            let content = std::fs::read(file).unwrap();
            for (at, byte) in content.into_iter().enumerate() {
                assert_eq!(byte == 0, (start..start + len).contains(&at), "byte {at}");
            }
        });
        // The hole proper starts and ends at blocks.
        let seek = |what: &str, from: &str| {
            run(Command::new("xfs_io").args(["-r", "-c", &format!("seek {what} {from}")]).arg(&path))
        };
        assert!(seek("-h", "0").contains("HOLE\t102400"), "{}", seek("-h", "0"));
        assert!(seek("-h", "102500").contains("HOLE\t102500"));
        assert!(seek("-d", "102400").contains("DATA\t2097152"), "{}", seek("-d", "102400"));
        assert!(seek("-d", "0").contains("DATA\t0"));
        assert!(seek("-h", "2097152").contains("HOLE\t4194304"), "the end is a hole");
        assert!(seek("-d", "4194304").contains("EOF"));
    }
    run(Command::new("fallocate").args(["-p", "-o", "0", "-l", "1T"]).arg(&path));
    assert_eq!(probe.memory.mapped_bytes(), 0);
    let seek = run(Command::new("xfs_io").args(["-r", "-c", "seek -d 0"]).arg(&path));
    assert!(seek.contains("EOF"), "no data anywhere: {seek}");
}

#[test]
fn the_size_is_fixed_for_users_of_the_file() {
    need!("fallocate", "truncate");
    let fixture = Fixture::new();
    let path = fixture.add("fixed", MemoryDevice::new(MIB));
    run(Command::new("fallocate").args(["-l", "1M"]).arg(&path));
    run(Command::new("fallocate").args(["-n", "-o", "4096", "-l", "8192"]).arg(&path));
    let (success, said) = try_run(Command::new("fallocate").args(["-l", "2M"]).arg(&path));
    assert!(!success && said.contains("File too large"), "{said}");
    run(Command::new("truncate").args(["-s", "1M"]).arg(&path));
    let (success, said) = try_run(Command::new("truncate").args(["-s", "2M"]).arg(&path));
    assert!(!success && said.contains("not permitted"), "{said}");
    user(move || {
        let file = open(&path, 0).unwrap();
        assert_eq!(errno_of(file.set_len(0)), Some(libc::EPERM));
        assert_eq!(errno_of(File::create(&path)), Some(libc::EPERM), "O_TRUNC");
        assert_eq!(errno_of(file.write_at(b"x", MIB)), Some(libc::EFBIG));
        assert_eq!(file.write_at(b"xy", MIB - 1).unwrap(), 1, "a write over the end is cut short");
        let append = OpenOptions::new().append(true).open(&path).unwrap();
        assert_eq!(errno_of(std::io::Write::write(&mut &append, b"x")), Some(libc::EFBIG));
    });
}

#[test]
fn resizing_the_volume_shows_at_once() {
    need!();
    let fixture = Fixture::new();
    let probe = Probe::new(MIB);
    let path = fixture.add("elastic", probe.clone());
    let size = {
        let path = path.clone();
        move || {
            let path = path.clone();
            user(move || std::fs::metadata(path).unwrap().len())
        }
    };
    assert_eq!(size(), MIB);
    for new in [3 * MIB, 2 * MIB] {
        probe.memory.resize(new);
        eventually("the new size", || size() == new);
    }
    user(move || {
        let file = open(&path, libc::O_DIRECT).unwrap();
        file.write_all_at(&AlignedBuf::padded(&[1; 4096]), 2 * MIB - 4096).unwrap();
        let mut buf = AlignedBuf::zeroed(8192);
        assert_eq!(file.read_at(&mut buf, 2 * MIB - 4096).unwrap(), 4096);
    });
}

#[test]
fn errors_of_the_device_become_the_right_errno_and_leave_the_mount_alive() {
    need!();
    let fixture = Fixture::new();
    let probe = Probe::new(MIB);
    let path = fixture.add("moody", probe.clone());
    let attempt = |flags: i32| {
        let path = path.clone();
        user(move || {
            let file = open(&path, flags).unwrap();
            let mut buf = AlignedBuf::zeroed(4096);
            let read = errno_of(file.read_at(&mut buf, 0));
            let write = errno_of(file.write_at(&buf, 4096));
            (read, write, errno_of(file.sync_all()))
        })
    };
    for flags in [0, libc::O_DIRECT] {
        for kind in [
            ErrorKind::NoSpace,
            ErrorKind::Io,
            ErrorKind::Corrupt,
            ErrorKind::InvalidArgument,
            ErrorKind::ReadOnly,
            ErrorKind::Unavailable,
            ErrorKind::Fenced,
        ] {
            probe.set_mood(Mood::Failing(kind));
            let expected = Some(errno(kind));
            assert_eq!(attempt(flags), (expected, expected, expected), "{kind:?}");
        }
        probe.set_mood(Mood::Panicking);
        assert_eq!(attempt(flags), (Some(libc::EIO), Some(libc::EIO), Some(libc::EIO)));
        probe.set_mood(Mood::Prompt);
        assert_eq!(attempt(flags), (None, None, None), "all is well again");
    }
}

#[test]
fn read_only_volumes_refuse_writers() {
    need!("fallocate");
    let fixture = Fixture::new();
    let device = MemoryDevice::new(MIB);
    device.set_read_only(true);
    let path = fixture.add("snapshot", device);
    let file = path.clone();
    user(move || {
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o400);
        assert_eq!(errno_of(open(&file, 0)), Some(libc::EROFS));
        assert_eq!(std::fs::read(&file).unwrap().len(), MIB as usize);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o444, "no write bit ever");
    });
}

#[test]
fn a_volume_turned_read_only_refuses_those_that_have_it_open() {
    need!();
    let fixture = Fixture::new();
    let probe = Probe::new(MIB);
    let path = fixture.add("turned", probe.clone());
    let turn = || probe.memory.set_read_only(true);
    while_open(&path, turn, |file| assert_eq!(errno_of(file.write_at(b"x", 0)), Some(libc::EROFS)));
}

#[test]
fn attributes_people_set_are_remembered() {
    need!();
    let fixture = Fixture::new();
    let path = fixture.add("volume", MemoryDevice::new(MIB));
    user(move || {
        let before = std::fs::metadata(&path).unwrap();
        assert_eq!((before.mode() & 0o7777, before.uid(), before.gid(), before.nlink()), (0o600, 0, 0, 1));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        File::open(&path).unwrap().set_modified(then).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 12, 34));
        assert_eq!(meta.modified().unwrap(), then);
        open(&path, 0).unwrap().write_all_at(b"x", 0).unwrap();
        assert!(std::fs::metadata(&path).unwrap().modified().unwrap() > then, "a write shows");
    });
}

#[test]
fn the_directory_lists_volumes_and_takes_no_others() {
    need!();
    let fixture = Fixture::new();
    let mut names: Vec<String> = (0..300).map(|n| format!("volume with quite a long name, number {n}")).collect();
    for name in &names {
        fixture.add(name, MemoryDevice::new(MIB));
    }
    let dir = fixture.server.mountpoint().to_owned();
    fixture.server.remove(&names.remove(17), false).unwrap();
    user(move || {
        let mut listed: Vec<String> =
            std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        listed.sort();
        names.sort();
        assert_eq!(listed, names);
        let file = dir.join(&names[0]);
        let denied = Some(libc::EPERM);
        assert_eq!(errno_of(File::create_new(dir.join("new"))), denied);
        assert_eq!(errno_of(std::fs::create_dir(dir.join("new"))), denied);
        assert_eq!(errno_of(std::fs::remove_file(&file)), denied);
        assert_eq!(errno_of(std::fs::rename(&file, dir.join("new"))), denied);
        assert_eq!(errno_of(std::fs::hard_link(&file, dir.join("new"))), denied);
        assert_eq!(errno_of(std::os::unix::fs::symlink("x", dir.join("new"))), denied);
        assert_eq!(errno_of(File::open(dir.join("none"))), Some(libc::ENOENT));
        File::open(&dir).unwrap().sync_all().unwrap();
    });
}

#[test]
fn sparse_copies_find_the_holes() {
    need!("cp");
    let fixture = Fixture::new();
    let path = fixture.add("thin", MemoryDevice::new(64 * MIB));
    let file = path.clone();
    user(move || open(&file, 0).unwrap().write_all_at(&[7; 10_000], 32 * MIB).unwrap());
    let copy = fixture.scratch("copy");
    run(Command::new("cp").arg(&path).arg(&copy));
    let meta = std::fs::metadata(&copy).unwrap();
    assert_eq!(meta.len(), 64 * MIB);
    assert!(meta.blocks() * 512 < MIB, "{} blocks", meta.blocks());
}
