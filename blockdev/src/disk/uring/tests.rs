use std::path::PathBuf;
use std::time::Duration;

use futures::future::join_all;
use tempfile::TempDir;

use super::request::Verdict;
use super::*;
use crate::disk::AlignedBuf;
use crate::disk::test_support::{Random, block_on, filled};
use crate::error::ErrorKind;

pub(super) const GRAIN: u64 = IO_ALIGN as u64;

pub(super) fn engines() -> Vec<Engine> {
    let mut engines = vec![Engine::Threads(Threads::shared())];
    match Ring::shared() {
        Ok(ring) => engines.push(Engine::Ring(ring)),
        Err(why) => eprintln!("io_uring is not tested: {why}"),
    }
    engines
}

pub(super) fn new_file(size: u64) -> OpenOptions {
    OpenOptions { create_size: Some(size), exclusive: true }
}

pub(super) fn temp() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk");
    (dir, path)
}

/// Rounds of concurrent, disjoint, scattered writes, discards and reads, compared with a model in memory.
pub(super) async fn against_model(disk: &Arc<FileDisk>, seed: u64, rounds: usize) {
    let blocks = disk.geometry().size / GRAIN;
    let mut model = vec![None; blocks as usize];
    let mut random = Random(seed);
    for round in 0..rounds {
        // Disjoint extents, so the order of completion does not matter.
        let mut next = random.below(8);
        let mut writes = Vec::new();
        while next < blocks {
            let count = (1 + random.below(24)).min(blocks - next);
            let range = next as usize..(next + count) as usize;
            if random.below(10) == 0 {
                writes.push(disk.discard(next * GRAIN, count * GRAIN));
                model[range].fill(None);
            } else {
                let mut pieces = Vec::new();
                let mut left = count;
                while left > 0 {
                    let piece = 1 + random.below(left);
                    let mut buf = AlignedBuf::zeroed((piece * GRAIN) as usize);
                    for (i, block) in buf.chunks_mut(IO_ALIGN).enumerate() {
                        let lba = next + count - left + i as u64;
                        let mark = lba << 32 | round as u64;
                        block.chunks_mut(8).for_each(|c| c.copy_from_slice(&mark.to_le_bytes()));
                        model[lba as usize] = Some(mark);
                    }
                    pieces.push(buf.freeze());
                    left -= piece;
                }
                writes.push(disk.write(next * GRAIN, pieces, random.below(4) == 0));
            }
            next += count + random.below(64);
        }
        for result in join_all(writes).await {
            result.unwrap();
        }
        disk.flush().await.unwrap();
        let ranges: Vec<_> = (0..300)
            .map(|_| {
                let start = random.below(blocks);
                (start, (1 + random.below(16)).min(blocks - start))
            })
            .collect();
        let reads = ranges.iter().map(|(start, count)| disk.read(start * GRAIN, (count * GRAIN) as usize));
        for ((start, count), result) in ranges.iter().zip(join_all(reads).await) {
            let bytes = result.unwrap();
            assert_eq!(bytes.len() as u64, count * GRAIN);
            assert_eq!(bytes.as_ptr().addr() % IO_ALIGN, 0);
            for (i, block) in bytes.chunks(IO_ALIGN).enumerate() {
                // A block never written or discarded has undefined content.
                if let Some(mark) = model[*start as usize + i] {
                    assert!(block.chunks(8).all(|c| c == u64::to_le_bytes(mark)), "block {}", *start as usize + i);
                }
            }
        }
    }
}

#[test]
fn scattered_requests_agree_with_a_model() {
    for engine in engines() {
        let (_dir, path) = temp();
        let disk = FileDisk::open_with(&path, new_file(16 << 20), engine).unwrap();
        block_on(against_model(&disk, 7, 6));
    }
}

#[test]
fn several_threads_share_a_disk() {
    for engine in engines() {
        let (_dir, path) = temp();
        let disk = FileDisk::open_with(&path, new_file(8 << 20), engine).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let disk = &disk;
                scope.spawn(move || {
                    for i in 0..64u64 {
                        let at = (i * 4 + thread) * GRAIN;
                        let value = (i * 4 + thread) as u8;
                        block_on(disk.write(at, vec![filled(IO_ALIGN, value)], false)).unwrap();
                        assert!(block_on(disk.read(at, IO_ALIGN)).unwrap().iter().all(|b| *b == value));
                    }
                });
            }
        });
    }
}

#[test]
fn more_requests_than_places_all_complete() {
    for engine in engines() {
        let (_dir, path) = temp();
        let disk = FileDisk::open_with(&path, new_file(16 << 20), engine).unwrap();
        let count = 5 * QUEUE_DEPTH as u64;
        let writes = (0..count).map(|i| disk.write(i * GRAIN, vec![filled(IO_ALIGN, i as u8)], false));
        assert!(block_on(join_all(writes)).iter().all(|r| r.is_ok()));
        let reads = (0..count).map(|i| disk.read(i * GRAIN, IO_ALIGN));
        for (i, read) in block_on(join_all(reads)).into_iter().enumerate() {
            assert!(read.unwrap().iter().all(|b| *b == i as u8));
        }
    }
}

#[test]
fn dropped_futures_leave_whole_requests() {
    for engine in engines() {
        let (_dir, path) = temp();
        let disk = FileDisk::open_with(&path, new_file(16 << 20), engine).unwrap();
        for i in 0..QUEUE_DEPTH as u64 {
            drop(disk.write(i * GRAIN, vec![filled(IO_ALIGN, i as u8 | 1)], false));
            drop(disk.read(i * GRAIN, 16 * IO_ALIGN));
        }
        // Waits for what is in flight; the lock is free afterwards.
        drop(disk);
        let disk = FileDisk::open_with(&path, OpenOptions::default(), engine).unwrap();
        // The first write found a place for certain, so it must have happened.
        assert!(block_on(disk.read(0, IO_ALIGN)).unwrap().iter().all(|b| *b == 1));
        for i in 0..QUEUE_DEPTH as u64 {
            let block = block_on(disk.read(i * GRAIN, IO_ALIGN)).unwrap();
            assert!(block.iter().all(|b| *b == block[0]) && [0, i as u8 | 1].contains(&block[0]));
        }
    }
}

#[test]
fn requests_survive_the_thread_that_made_them() {
    for engine in engines() {
        let (_dir, path) = temp();
        let disk = FileDisk::open_with(&path, new_file(16 << 20), engine).unwrap();
        for round in 0..20u8 {
            let futures = std::thread::scope(|scope| {
                let make = || {
                    let writes = (0..32).map(|i| disk.write(i * GRAIN, vec![filled(IO_ALIGN, round)], i % 2 == 0));
                    writes.chain([disk.flush(), disk.discard(8 << 20, 1 << 20)]).collect::<Vec<_>>()
                };
                scope.spawn(make).join().unwrap()
            });
            for result in block_on(join_all(futures)) {
                result.unwrap();
            }
        }
    }
}

#[test]
fn a_waiting_request_does_not_keep_a_dropped_disk() {
    for engine in engines() {
        let (_dir, path) = temp();
        let disk = FileDisk::open_with(&path, new_file(1 << 20), engine).unwrap();
        let passes: Vec<_> = (0..QUEUE_DEPTH).map(|_| disk.gate.try_enter().unwrap()).collect();
        let waiting = disk.read(0, IO_ALIGN);
        drop(passes);
        drop(disk);
        let again = FileDisk::open_with(&path, OpenOptions::default(), engine).unwrap();
        assert!(matches!(block_on(waiting), Err(DiskError::Failed(_))));
        block_on(again.read(0, IO_ALIGN)).unwrap();
    }
}

#[test]
fn closing_waits_for_what_is_in_flight() {
    let gate = Gate::new(2);
    let pass = gate.try_enter().unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            gate.close();
            while !gate.wait_idle(Duration::from_secs(60)) {}
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiter.is_finished());
        drop(pass);
        waiter.join().unwrap();
    });
    assert!(gate.try_enter().is_none());
    assert!(block_on(gate.enter()).is_none());
}

#[test]
fn wrong_requests_are_refused_and_harm_nothing() {
    let (_dir, path) = temp();
    let disk = FileDisk::open(&path, new_file(1 << 20)).unwrap();
    let size = disk.geometry().size;
    let refused = |result: DiskResult<()>, word: &str| match result {
        Err(DiskError::Medium(m)) => assert!(m.contains(word) && m.contains(&*path.to_string_lossy()), "{m}"),
        other => panic!("{other:?}"),
    };
    refused(block_on(disk.read(1, IO_ALIGN)).map(drop), "aligned");
    refused(block_on(disk.read(512, IO_ALIGN)).map(drop), "aligned");
    refused(block_on(disk.read(0, 100)).map(drop), "aligned");
    refused(block_on(disk.read(size, IO_ALIGN)).map(drop), "beyond");
    refused(block_on(disk.read(0, (size + GRAIN) as usize)).map(drop), "beyond");
    refused(block_on(disk.read(u64::MAX - GRAIN + 1, IO_ALIGN)).map(drop), "beyond");
    refused(block_on(disk.discard(0, size + GRAIN)), "beyond");
    refused(block_on(disk.write(size - GRAIN, vec![filled(2 * IO_ALIGN, 1)], false)), "beyond");
    refused(block_on(disk.write(0, vec![filled(IO_ALIGN + 512, 1)], false)), "aligned");
    let skewed = filled(3 * IO_ALIGN, 1).slice(512..512 + IO_ALIGN);
    refused(block_on(disk.write(0, vec![skewed.clone()], false)), "memory");
    let (head, tail) = (skewed.slice(..512), filled(2 * IO_ALIGN, 1).slice(..2 * IO_ALIGN - 512));
    refused(block_on(disk.write(0, vec![head, tail], false)), "memory");
    block_on(disk.write(0, vec![], true)).unwrap();
    block_on(disk.write(0, vec![Bytes::new(), filled(IO_ALIGN, 9)], true)).unwrap();
    assert!(block_on(disk.read(0, 0)).unwrap().is_empty());
    assert!(block_on(disk.read(0, IO_ALIGN)).unwrap().iter().all(|b| *b == 9));
}

#[test]
fn long_scatter_lists_are_split() {
    for engine in engines() {
        let (_dir, path) = temp();
        let disk = FileDisk::open_with(&path, new_file(16 << 20), engine).unwrap();
        let pieces = (0..3000).map(|i| filled(IO_ALIGN, i as u8)).collect();
        block_on(disk.write(GRAIN, pieces, true)).unwrap();
        let back = block_on(disk.read(GRAIN, 3000 * IO_ALIGN)).unwrap();
        assert!(back.chunks(IO_ALIGN).enumerate().all(|(i, block)| block.iter().all(|b| *b == i as u8)));
    }
}

#[test]
fn a_file_cut_short_answers_medium_and_names_itself() {
    for engine in engines() {
        let (_dir, path) = temp();
        let disk = FileDisk::open_with(&path, new_file(1 << 20), engine).unwrap();
        block_on(disk.write(0, vec![filled(1 << 20, 3)], true)).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10_000).unwrap();
        for (offset, len) in [(0, 16384), (8192, 4096), (65536, 4096), (0, 1 << 20)] {
            match block_on(disk.read(offset, len)) {
                Err(DiskError::Medium(m)) => {
                    assert!(m.contains(&*path.to_string_lossy()) && m.contains("truncated"), "{m}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(block_on(disk.read(0, 8192)).unwrap().iter().all(|b| *b == 3));
        // Writing brings the content back.
        block_on(disk.write(8192, vec![filled(4096, 4)], false)).unwrap();
        assert!(block_on(disk.read(8192, 4096)).unwrap().iter().all(|b| *b == 4));
    }
}

#[test]
fn a_disk_is_used_by_one_at_a_time() {
    let (_dir, path) = temp();
    let first = FileDisk::open(&path, new_file(1 << 20)).unwrap();
    let error = FileDisk::open(&path, OpenOptions::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains(&*path.to_string_lossy()) && error.to_string().contains("in use"), "{error}");
    assert_eq!(FileDisk::open(&path, new_file(1 << 20)).err().unwrap().kind(), ErrorKind::Busy);
    drop(FileDisk::open(&path, OpenOptions { create_size: None, exclusive: false }).unwrap());
    // The second opening's end must not have taken the first one's lock along.
    assert_eq!(FileDisk::open(&path, OpenOptions::default()).err().unwrap().kind(), ErrorKind::Busy);
    drop(first);
    drop(FileDisk::open(&path, OpenOptions::default()).unwrap());
}

#[test]
fn opening_checks_what_is_there() {
    let (dir, path) = temp();
    let open = |path: &Path, options| FileDisk::open(path, options).map(|d| d.geometry());
    assert_eq!(open(&path, OpenOptions::default()).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(open(dir.path(), OpenOptions::default()).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(open(Path::new("/dev/null"), OpenOptions::default()).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let error = open(&path, new_file(100)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(!path.exists(), "a file that could not become a disk stays behind");
    assert_eq!(open(&path.join("below"), new_file(1 << 20)).unwrap_err().kind(), ErrorKind::NotFound);
    // Rounded down, and kept at the next opening whatever that one asks for.
    assert_eq!(open(&path, new_file((1 << 20) + 5000)).unwrap().size, (1 << 20) + 4096);
    assert_eq!(open(&path, new_file(1 << 30)).unwrap().size, (1 << 20) + 4096);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10_000).unwrap();
    let geometry = open(&path, OpenOptions::default()).unwrap();
    assert_eq!(geometry.size, 8192);
    assert!([512, 4096].contains(&geometry.sector_size));
}

#[test]
fn a_failed_disk_stays_failed_until_it_is_opened_again() {
    let (_dir, path) = temp();
    let disk = FileDisk::open(&path, new_file(1 << 20)).unwrap();
    let pass = disk.gate.try_enter().unwrap();
    let (reply, mut answer) = oneshot::channel();
    let mut request = Box::new(Request::new(Operation::Flush, 0, 0, disk.file().clone(), pass, reply));
    match request.settle(-libc::EIO) {
        Verdict::Done(result) => request.finish(result),
        Verdict::Again => panic!("a failed flush is never repeated"),
    }
    assert!(matches!(answer.try_recv().unwrap(), Err(DiskError::Failed(_))));
    let failed = |result: DiskResult<()>| assert!(matches!(result, Err(DiskError::Failed(_))), "{result:?}");
    failed(block_on(disk.flush()));
    failed(block_on(disk.read(0, IO_ALIGN)).map(drop));
    failed(block_on(disk.write(0, vec![filled(IO_ALIGN, 1)], false)));
    failed(block_on(disk.discard(0, GRAIN)));
    drop(disk);
    let disk = FileDisk::open(&path, OpenOptions::default()).unwrap();
    block_on(disk.flush()).unwrap();
    block_on(disk.read(0, IO_ALIGN)).unwrap();
}

fn attached_runtime(builder: &mut tokio::runtime::Builder) -> tokio::runtime::Runtime {
    let runtime = builder.enable_io().build().unwrap();
    runtime.block_on(async { attach_runtime() }).unwrap();
    runtime
}

#[test]
fn an_attached_runtime_harvests_and_may_go_away() {
    let (_dir, path) = temp();
    let disk = FileDisk::open(&path, new_file(8 << 20)).unwrap();
    for seed in 1..4 {
        let runtime = attached_runtime(tokio::runtime::Builder::new_multi_thread().worker_threads(2));
        let d = disk.clone();
        runtime.block_on(async { tokio::spawn(async move { against_model(&d, seed, 1).await }).await.unwrap() });
        let left = disk.write(0, vec![filled(1 << 20, 7)], true);
        drop(runtime);
        block_on(left).unwrap();
        block_on(against_model(&disk, seed, 1));
    }
}

#[test]
fn a_disk_can_be_dropped_on_the_thread_that_harvests() {
    let (_dir, path) = temp();
    let runtime = attached_runtime(&mut tokio::runtime::Builder::new_current_thread());
    for round in 0..10u8 {
        runtime.block_on(async {
            let disk = FileDisk::open(&path, new_file(8 << 20)).unwrap();
            let writes: Vec<_> = (0..8).map(|i| disk.write(i << 20, vec![filled(1 << 20, round)], true)).collect();
            drop(disk);
            // Dropping waited, so nothing can be pending any more.
            for write in writes {
                assert_eq!(futures::poll!(write), Poll::Ready(Ok(())));
            }
        });
    }
}

#[test]
fn a_thread_that_prefers_latency_keeps_its_niceness() {
    // SAFETY: no memory is involved; 0 is the calling thread.
    let niceness = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    std::thread::spawn(move || {
        // SAFETY: as above. Raising is allowed to everyone.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness() + 1) };
        let before = niceness();
        prefer_latency();
        assert_eq!(niceness(), before);
    })
    .join()
    .unwrap();
}

#[test]
fn a_closed_disk_is_free_although_a_process_inherited_it() {
    use std::os::fd::{AsRawFd, BorrowedFd};
    let (_dir, path) = temp();
    let disk = FileDisk::open(&path, new_file(1 << 20)).unwrap();
    // What fork does: one more descriptor of the same open description.
    // SAFETY: the disk keeps the descriptor open.
    let inherited = unsafe { BorrowedFd::borrow_raw(disk.file().as_raw_fd()) }.try_clone_to_owned().unwrap();
    drop(disk);
    drop(FileDisk::open(&path, OpenOptions::default()).unwrap());
    drop(inherited);
}
