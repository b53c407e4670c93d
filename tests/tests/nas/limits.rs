//! What is refused, and changes nothing.

use std::sync::Arc;

use bytes::Bytes;
use nas::Errno;
use nas::fs::{Fallocate, FileSystem, New, Options, ROOT, RenameFlags, SetAttr, Whence};

use super::device::Pool;

fn made(pool: &Pool, hash_bits: u64) -> Arc<FileSystem> {
    let [meta, data] = pool.volumes();
    let pair = nas::format(meta, data, [1; 16]).expect("made");
    FileSystem::open(pair, Options { background: false, hash_bits, ..Options::default() }).expect("opened")
}

fn again(pool: &Pool) -> Arc<FileSystem> {
    let [meta, data] = pool.volumes();
    let pair = nas::Pair::open(meta, data).expect("volumes");
    FileSystem::open(pair, Options { background: false, ..Options::default() }).expect("opened")
}

/// Names of one hash are few; one more is refused, whatever asks for it, and the file system goes on.
#[test]
fn too_many_names_of_one_hash() {
    let pool = Pool::new([64 << 20, 64 << 20]);
    let fs = made(&pool, 0);
    let dir = fs.create(ROOT, b"dir", &New::directory(0o755)).expect("made").ino;
    for n in 0..256 {
        fs.create(dir, format!("{n}").as_bytes(), &New::file(0o644)).expect("made");
    }
    assert_eq!(fs.create(dir, b"more", &New::file(0o644)).map(drop), Err(Errno::NOSPC));
    let file = fs.create(ROOT, b"file", &New::file(0o644)).expect("made").ino;
    assert_eq!(fs.rename(ROOT, b"file", dir, b"more", RenameFlags::Replace), Err(Errno::NOSPC));
    assert_eq!(fs.link(file, dir, b"more").map(drop), Err(Errno::NOSPC));
    assert!(!fs.is_failed());
    // What takes the place of another needs none.
    fs.rename(ROOT, b"file", dir, b"17", RenameFlags::Exchange).expect("exchanged");
    fs.rename(ROOT, b"file", dir, b"18", RenameFlags::Replace).expect("replaced");
    assert_eq!(fs.lookup(dir, b"17").expect("there").ino, file);
    fs.tick().expect("a tick");
    fs.sync().expect("synced");
    assert!(fs.check().expect("checked").is_clean());
}

/// Nothing comes from a file system that is closed, whoever still has it; the volumes are the next one's.
#[test]
fn closed_is_closed() {
    let pool = Pool::new([64 << 20, 64 << 20]);
    let fs = made(&pool, 55);
    let file = fs.create(ROOT, b"file", &New::file(0o644)).expect("made").ino;
    fs.write(file, 0, &Bytes::from(vec![1; 50_000])).expect("written");
    fs.close().expect("closed");
    let next = again(&pool);
    let other = next.create(ROOT, b"other", &New::file(0o644)).expect("made").ino;
    next.write(other, 0, &Bytes::from(vec![2; 50_000])).expect("written");
    next.sync().expect("synced");
    assert_eq!(fs.write(file, 0, &Bytes::from(vec![3; 10])), Err(Errno::IO));
    assert_eq!(fs.unlink(ROOT, b"file"), Err(Errno::IO));
    assert_eq!(fs.fsync(file, false), Err(Errno::IO));
    assert!(fs.tick().is_err() && fs.check().is_err());
    // Also what it does when it goes.
    drop(fs);
    next.close().expect("closed");
    drop(next);
    let last = again(&pool);
    assert_eq!(last.read(file, 0, 50_000).expect("read"), vec![1; 50_000]);
    assert_eq!(last.read(other, 0, 50_000).expect("read"), vec![2; 50_000]);
    assert!(last.check().expect("checked").is_clean());
}

#[test]
fn no_room_for_what_cannot_be() {
    let pool = Pool::new([64 << 20, 64 << 20]);
    let fs = made(&pool, 55);
    let file = fs.create(ROOT, b"file", &New::file(0o644)).expect("made").ino;
    let free = fs.space().free;
    for what in [Fallocate::Allocate { keep_size: true }, Fallocate::ZeroRange { keep_size: false }] {
        assert_eq!(fs.fallocate(file, what, 0, 1 << 60), Err(Errno::NOSPC));
        assert_eq!(fs.fallocate(file, what, u64::MAX, 2), Err(Errno::FBIG));
    }
    assert_eq!(fs.space().free, free);
    let too_large = SetAttr { size: Some(u64::MAX), ..SetAttr::default() };
    assert_eq!(fs.setattr(file, &too_large).map(drop), Err(Errno::FBIG));
    assert_eq!(fs.write(file, u64::MAX - 3, &Bytes::from_static(b"beyond")), Err(Errno::FBIG));
    // All of it can be had, and comes back at once.
    let mut written = 0;
    while let Ok(more) = fs.write(file, written, &Bytes::from(vec![5; 1 << 20])) {
        written += more as u64;
    }
    assert!(written >= 60 << 20, "{written}");
    assert_eq!(fs.seek(file, 0, Whence::Hole), Ok(written));
    fs.unlink(ROOT, b"file").expect("removed");
    let next = fs.create(ROOT, b"next", &New::file(0o644)).expect("made").ino;
    for at in 0..50u64 {
        fs.write(next, at << 20, &Bytes::from(vec![6; 1 << 20])).expect("what was deleted makes room");
    }
    fs.tick().expect("a tick");
    assert!(fs.check().expect("checked").is_clean());
}

/// Blocks that are written one by one, in any order, are one extent in the end where they lie in a row.
#[test]
fn neighbours_are_joined() {
    let pool = Pool::new([64 << 20, 64 << 20]);
    let fs = made(&pool, 55);
    let file = fs.create(ROOT, b"file", &New::file(0o644)).expect("made").ino;
    fs.fallocate(file, Fallocate::Allocate { keep_size: false }, 0, 4 << 20).expect("allocated");
    assert_eq!(fs.seek(file, 0, Whence::Hole), Ok(4 << 20));
    for block in (0..1024u64).step_by(2) {
        fs.fallocate(file, Fallocate::PunchHole, block * 4096, 4096).expect("punched");
    }
    fs.sync().expect("synced");
    assert_eq!(fs.check().expect("checked").extents, 512);
    assert_eq!((fs.seek(file, 0, Whence::Data), fs.seek(file, 4096, Whence::Hole)), (Ok(4096), Ok(8192)));
    fs.tick().expect("a tick");
    for block in (0..1024u64).step_by(2) {
        fs.write(file, block * 4096, &Bytes::from(vec![block as u8; 4096])).expect("written");
    }
    fs.sync().expect("synced");
    let report = fs.check().expect("checked");
    assert!(report.is_clean() && report.extents < 1024, "{report:?}");
    assert_eq!(fs.seek(file, 0, Whence::Hole), Ok(4 << 20));
}
