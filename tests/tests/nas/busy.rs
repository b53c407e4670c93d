//! Many at once: what several threads do at the same time leaves a sound file system, and each its own files as it wrote them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::env::Rng;
use bytes::Bytes;
use nas::fs::{Fallocate, FileSystem, New, Options, ROOT, RenameFlags, SetAttr};
use nas::{Errno, Kind};

use super::device::Pool;

fn open(pool: &Pool) -> Arc<FileSystem> {
    let [meta, data] = pool.volumes();
    let pair = nas::Pair::open(meta, data).expect("volumes");
    // Little memory: nodes are dropped and read again all the time.
    FileSystem::open(pair, Options { cache_bytes: 1 << 20, background: true, ..Options::default() }).expect("opened")
}

fn made() -> (Pool, Arc<FileSystem>) {
    let pool = Pool::new([128 << 20, 256 << 20]);
    let [meta, data] = pool.volumes();
    nas::format(meta, data, [9; 16]).expect("made");
    let fs = open(&pool);
    (pool, fs)
}

fn expect_sound(fs: &FileSystem) {
    fs.tick().expect("a tick");
    fs.tick().expect("another");
    fs.sync().expect("synced");
    let report = fs.check().expect("checked");
    assert!(report.is_clean() && report.orphans == 0, "{report:?}");
}

/// Any error but those that come of others who do the same.
fn expected(result: nas::Result<()>) {
    match result {
        Ok(())
        | Err(Errno::NOENT | Errno::EXIST | Errno::NOTEMPTY | Errno::INVAL | Errno::ISDIR | Errno::NOTDIR)
        | Err(Errno::STALE | Errno::PERM | Errno::NOSPC | Errno::NODATA) => {}
        Err(errno) => panic!("{errno}"),
    }
}

/// Everybody on the same few names and files.
#[test]
fn on_the_same_names() {
    let (pool, fs) = made();
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let fs = &fs;
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                let mut dirs = vec![ROOT];
                for _ in 0..3000 {
                    let dir = dirs[rng.index(dirs.len())];
                    let name = format!("n{}", rng.below(8)).into_bytes();
                    let ino = fs.lookup(dir, &name).map(|attr| attr.ino);
                    match rng.below(12) {
                        0 | 1 => expected(fs.create(dir, &name, &New::file(0o644)).map(drop)),
                        2 => match fs.create(dir, &name, &New::directory(0o755)) {
                            Ok(attr) => dirs.push(attr.ino),
                            Err(errno) => expected(Err(errno)),
                        },
                        3 => expected(fs.unlink(dir, &name)),
                        4 => expected(fs.rmdir(dir, &name)),
                        5 | 6 => {
                            let (to, new) = (dirs[rng.index(dirs.len())], format!("n{}", rng.below(8)));
                            let flags = [RenameFlags::Replace, RenameFlags::Exchange, RenameFlags::NoReplace];
                            expected(fs.rename(dir, &name, to, new.as_bytes(), flags[rng.index(3)]));
                        }
                        _ => {
                            let Ok(ino) = ino else { continue };
                            let (offset, len) = (rng.below(200_000), 1 + rng.below(60_000));
                            expected(match rng.below(7) {
                                0 => fs.setattr(ino, &SetAttr { size: Some(offset), ..SetAttr::default() }).map(drop),
                                1 => fs.fallocate(ino, Fallocate::PunchHole, offset, len),
                                2 => fs.fallocate(ino, Fallocate::Allocate { keep_size: true }, offset, len),
                                3 => fs.read(ino, offset, len as usize).map(drop),
                                4 => fs.link(ino, dir, b"linked").map(drop),
                                5 => fs.opened(ino).map(|()| fs.release(ino)),
                                _ => fs.write(ino, offset, &Bytes::from(vec![thread as u8; len as usize])).map(drop),
                            });
                        }
                    }
                }
            });
        }
    });
    expect_sound(&fs);
    fs.close().expect("closed");
    drop(fs);
    expect_sound(&open(&pool));
}

/// Each on files of his own, while others make the file system commit, free and run out of room.
#[test]
fn each_on_his_own_files() {
    let (pool, fs) = made();
    let ended = AtomicBool::new(false);
    let written: Vec<(u64, Vec<u8>)> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u64)
            .map(|thread| {
                let fs = &fs;
                scope.spawn(move || {
                    let mut rng = Rng::new(100 + thread);
                    let ino = fs.create(ROOT, format!("own-{thread}").as_bytes(), &New::file(0o600)).expect("made").ino;
                    fs.opened(ino).expect("opened");
                    let mut content = Vec::new();
                    for _ in 0..1500 {
                        let (offset, len) = (rng.index(1_000_000), 1 + rng.index(20_000));
                        let mut data = vec![0; len];
                        rng.fill(&mut data);
                        match fs.write(ino, offset as u64, &Bytes::from(data.clone())) {
                            Ok(written) if written == len => {
                                content.resize(content.len().max(offset + len), 0);
                                content[offset..offset + len].copy_from_slice(&data);
                            }
                            Ok(_) | Err(Errno::NOSPC) => {
                                // Part of it may have been written.
                                content = fs.read(ino, 0, 2_000_000).expect("read").to_vec();
                            }
                            Err(errno) => panic!("{errno}"),
                        }
                        if rng.chance(1, 20) {
                            fs.fsync(ino, rng.chance(1, 2)).expect("synced");
                        }
                        let at = rng.index(content.len());
                        let read = fs.read(ino, at as u64, 5000).expect("read");
                        assert_eq!(read, content[at..content.len().min(at + 5000)]);
                    }
                    fs.release(ino);
                    (ino, content)
                })
            })
            .collect();
        scope.spawn(|| {
            let mut n = 0u64;
            while !ended.load(Ordering::Relaxed) {
                let name = format!("passing-{}", n % 7).into_bytes();
                match fs.create(ROOT, &name, &New::file(0o600)) {
                    Ok(attr) => {
                        for i in 0..40 {
                            if fs.write(attr.ino, i << 20, &Bytes::from(vec![7; 1 << 20])).is_err() {
                                break;
                            }
                        }
                    }
                    Err(_) => fs.unlink(ROOT, &name).expect("it was there"),
                }
                n += 1;
            }
        });
        let written = writers.into_iter().map(|writer| writer.join().expect("a writer")).collect();
        ended.store(true, Ordering::Relaxed);
        written
    });
    expect_sound(&fs);
    fs.close().expect("closed");
    drop(fs);
    let fs = open(&pool);
    for (ino, content) in written {
        assert_eq!(fs.read(ino, 0, 2_000_000).expect("read"), content);
        assert_eq!(fs.getattr(ino).map(|attr| attr.kind), Ok(Kind::File));
    }
    expect_sound(&fs);
}
