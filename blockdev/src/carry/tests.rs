use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::env::Rng;
use crate::error::ErrorKind;
use crate::units::{BLOCK_SIZE, Epoch, Lba, Seqno, VolumeId};

const POOL: Uuid = Uuid([7; 16]);
const SECRET: u64 = 0x9e37_79b9_7f4a_7c15;

fn write(lba: u64, blocks: u64) -> (Operation, Vec<u8>) {
    let data = vec![lba as u8 ^ 0x5a; blocks as usize * BLOCK_SIZE];
    (Operation { kind: Kind::Write, volume: VolumeId(3), lba: Lba(lba), blocks }, data)
}

fn contents(data: &[u8]) -> impl Iterator<Item = u128> {
    data.chunks(BLOCK_SIZE).map(crate::codec::content)
}

fn enter(ring: &Ring, seqno: u64, lba: u64, blocks: u64) -> bool {
    let (operation, data) = write(lba, blocks);
    let Some(place) = ring.reserve(data.len()) else { return false };
    place.fill(Seqno(seqno), &operation, &data, contents(&data));
    true
}

fn left(region: &Arc<Region>, epoch: u64) -> (Ring, Vec<Record>) {
    match Ring::open(region.clone(), POOL, Epoch(epoch)).unwrap() {
        Found::Left(ring, records) => (ring, records),
        Found::Old => panic!("nothing was left"),
    }
}

fn memory(capacity: usize) -> Arc<Region> {
    Arc::new(Region::private(Ring::region_len(capacity, 4 * BLOCK_SIZE)))
}

#[test]
fn what_the_log_lacks_is_found() {
    let region = memory(256 << 10);
    let ring = Ring::create(region.clone(), POOL, Epoch(5), SECRET);
    assert!(enter(&ring, 1, 10, 2));
    assert!(enter(&ring, 3, 20, 1));
    let unmap = Operation { kind: Kind::Unmap, volume: VolumeId(9), lba: Lba(5), blocks: 1 << 40 };
    ring.reserve(0).unwrap().fill(Seqno(2), &unmap, &[], contents(&[]));
    drop(ring.reserve(BLOCK_SIZE));
    assert!(enter(&ring, 4, 30, 1));
    ring.release(1);
    let (_, records) = left(&region, 5);
    let found: Vec<_> = records.iter().map(|r| (r.seqno.0, r.operation, r.data.len())).collect();
    let expected = [(3, write(20, 1).0, BLOCK_SIZE), (2, unmap, 0), (4, write(30, 1).0, BLOCK_SIZE)];
    assert_eq!(found, expected);
    assert_eq!(records[0].data, write(20, 1).1);
}

#[test]
fn it_goes_round_and_is_never_overwritten() {
    let region = memory(64 << 10);
    let ring = Ring::create(region.clone(), POOL, Epoch(1), SECRET);
    let mut rng = Rng::new(4);
    let (mut next, mut durable) = (1, 0);
    for _ in 0..2000 {
        if enter(&ring, next, next, rng.between(1, 4)) {
            next += 1;
        } else {
            assert!(ring.oldest().is_some() && next > durable + 1);
            durable = rng.between(durable + 1, next - 1);
            ring.release(durable);
        }
        let (_, records) = left(&region, 1);
        let numbers: Vec<u64> = records.iter().map(|r| r.seqno.0).collect();
        assert_eq!(numbers, (durable + 1..next).collect::<Vec<_>>());
        assert!(records.iter().all(|r| r.data == write(r.seqno.0, r.operation.blocks).1));
    }
    assert!(next > 1000, "it went round too few times");
    ring.release(next);
    assert_eq!(ring.used(), 0);
}

#[test]
fn a_record_of_the_largest_size_always_has_room_in_the_end() {
    for start in 0..40 {
        let ring = Ring::create(memory(0), POOL, Epoch(1), SECRET);
        for n in 0..start {
            assert!(enter(&ring, n + 1, n, 1));
            ring.release(n + 1);
        }
        assert!(enter(&ring, 100, 1, 4), "after {start}");
        assert!(enter(&ring, 101, 1, 4), "after {start}");
    }
}

/// The process is killed at every single store; what was answered is found, and nothing that was not.
#[test]
fn killed_at_any_store_it_has_what_was_answered() {
    let whole = steps(&memory(48 << 10), u64::MAX);
    assert!(whole.stores > 500, "{} stores", whole.stores);
    for stores in 0..whole.stores {
        let region = memory(48 << 10);
        let Steps { begun, answered, durable, .. } = steps(&region, stores);
        region.stores.store(u64::MAX, Ordering::Relaxed);
        let found = match Ring::open(region.clone(), POOL, Epoch(1)).unwrap() {
            Found::Left(_, records) => records,
            Found::Old => Vec::new(),
        };
        let numbers: Vec<u64> = found.iter().map(|r| r.seqno.0).filter(|n| *n > durable).collect();
        let missing = (durable + 1..=answered).find(|n| !numbers.contains(n));
        assert!(missing.is_none(), "killed after {stores} stores: {missing:?} is missing of {numbers:?}");
        assert!(numbers.iter().all(|n| *n <= begun), "killed after {stores} stores: {numbers:?} of {begun}");
    }
}

struct Steps {
    begun: u64,
    answered: u64,
    durable: u64,
    stores: u64,
}

/// Enters operations until the process is killed after so many stores.
fn steps(region: &Arc<Region>, stores: u64) -> Steps {
    region.stores.store(stores, Ordering::Relaxed);
    let left = || region.stores.load(Ordering::Relaxed);
    let ring = Ring::create(region.clone(), POOL, Epoch(1), SECRET);
    let mut out = Steps { begun: 0, answered: 0, durable: 0, stores: 0 };
    for n in 1..=60 {
        if left() == 0 {
            break;
        }
        while {
            out.begun = n;
            !enter(&ring, n, n, 1 + n % 3)
        } {
            // What the log has is known to it before the ring is told.
            out.durable = ring.oldest().unwrap().0 + 1;
            ring.release(out.durable);
        }
        if left() > 0 {
            out.answered = n;
        }
    }
    out.stores = stores - left();
    out
}

/// Numbers are given anew; killed at any store, the order is the same, and what another opening recovers is told apart from what it does not.
#[test]
fn killed_while_numbers_are_given_anew_the_order_stays() {
    let fresh = || {
        let region = memory(64 << 10);
        let ring = Ring::create(region.clone(), POOL, Epoch(1), SECRET);
        // Places are not in the order of numbers.
        for (seqno, lba) in [(12, 1), (9, 2), (15, 3), (14, 4), (7, 5)] {
            assert!(enter(&ring, seqno, lba, 1));
        }
        region
    };
    // The log has all up to 8.
    let order = [2, 1, 4, 3];
    for stores in 0..8 {
        let region = fresh();
        let (ring, mut records) = left(&region, 1);
        records.retain(|r| r.seqno.0 > 8);
        records.sort_by_key(|r| r.seqno);
        region.stores.store(stores, Ordering::Relaxed);
        ring.renumber(&mut records, Seqno(8));
        region.stores.store(u64::MAX, Ordering::Relaxed);
        // Of those entered again `applied` reached the log.
        for applied in 0..=if stores >= 4 { 4 } else { 0 } {
            let (_, mut again) = left(&region, 1);
            again.retain(|r| r.seqno.0 > 8 + applied);
            again.sort_by_key(|r| r.seqno);
            let found: Vec<u64> = again.iter().map(|r| r.operation.lba.0).collect();
            assert_eq!(found, order[applied as usize..], "{stores} stores, {applied} applied");
        }
    }
}

#[test]
fn only_the_next_writer_goes_on() {
    let region = memory(0);
    let ring = Ring::create(region.clone(), POOL, Epoch(5), SECRET);
    assert!(enter(&ring, 1, 1, 1));
    let is_old = |epoch| matches!(Ring::open(region.clone(), POOL, Epoch(epoch)).unwrap(), Found::Old);
    assert!(!is_old(5) && is_old(6));
    // Killed while labels are written, again and again: any of them may be the newest that can be read.
    ring.claim(Epoch(6));
    ring.claim(Epoch(7));
    assert!(!is_old(5) && !is_old(6) && !is_old(7) && is_old(8));
    for epoch in 8..2000 {
        ring.claim(Epoch(epoch));
    }
    assert!(!is_old(5) && !is_old(1999) && !is_old(1600) && is_old(2000));
    // Between the two stores, and after them.
    region.stores.store(1, Ordering::Relaxed);
    ring.settle(Epoch(1999));
    region.stores.store(u64::MAX, Ordering::Relaxed);
    assert!(!is_old(1999));
    ring.settle(Epoch(1999));
    assert!(!is_old(1999) && is_old(5) && is_old(1998));
}

/// What a host writes lies where the header of a later record would be sought: it may look like one in all but what no host knows.
#[test]
fn what_a_host_wrote_is_no_record() {
    let region = memory(64 << 10);
    let ring = Ring::create(region.clone(), POOL, Epoch(1), SECRET);
    let capacity = region.load(48);
    // A write of another volume, in each place that could be looked at in the second round.
    let forged = |position: u64| -> Vec<u8> {
        let words = [u64::from_le_bytes(*b"filled!!"), position, 64, 1 << 40, 9 | 2 << 32, 0, 8, 0];
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    };
    let record = 64 + 4 * BLOCK_SIZE as u64;
    for n in 0..capacity / record {
        let (operation, _) = write(n, 4);
        let first = n * record + 64 + capacity;
        let data: Vec<u8> = (0..record / 64 - 1).flat_map(|i| forged(first + i * 64)).collect();
        ring.reserve(data.len()).unwrap().fill(Seqno(n + 1), &operation, &data, contents(&data));
    }
    ring.release(u64::MAX);
    // The second round ends before the rest of what is there from the first.
    while ring.used() == 0 || ring.used() < capacity / 2 {
        assert!(enter(&ring, 100, 1, 1));
        let (_, records) = left(&region, 1);
        assert!(records.iter().all(|r| r.operation == write(1, 1).0), "{:?}", records.last().map(|r| r.operation));
    }
}

#[test]
fn disks_that_are_older_than_what_was_left_are_refused() {
    let region = memory(0);
    let epoch = |opening: u64, chance: u64| Epoch(opening << 32 | chance);
    let ring = Ring::create(region.clone(), POOL, epoch(8, 77), SECRET);
    assert!(enter(&ring, 1, 1, 1));
    let open = |epoch| Ring::open(region.clone(), POOL, epoch).map(|found| matches!(found, Found::Left(..)));
    assert!(open(epoch(8, 77)).unwrap());
    assert!(!open(epoch(8, 78)).unwrap() && !open(epoch(9, 1)).unwrap());
    let refused = open(epoch(7, 99)).unwrap_err();
    assert!(refused.kind() == ErrorKind::Unavailable && refused.to_string().contains("attach the drives"), "{refused}");
    // An opening that claims is later than all of them.
    ring.claim(epoch(9, 5));
    assert!(open(epoch(9, 5)).unwrap() && open(epoch(8, 77)).unwrap());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let damaged = |at: usize, value: u64| {
        let region = memory(0);
        let ring = Ring::create(region.clone(), POOL, Epoch(5), SECRET);
        assert!(enter(&ring, 1, 1, 1));
        region.store(at, value);
        Ring::open(region, POOL, Epoch(5)).map(|_| ()).map_err(|e| e.kind())
    };
    let first = 4096;
    assert_eq!(damaged(0, 1), Err(ErrorKind::Corrupt));
    // Version 1 had no secret, 2 other checksums: their records would not be found, or not be believed. 4 there is not yet.
    assert_eq!([1, 2, 4].map(|version| damaged(8, version)), [Err(ErrorKind::Unsupported); 3]);
    assert_eq!(damaged(48, 1 << 40), Err(ErrorKind::Corrupt));
    assert_eq!(damaged(56, 3), Err(ErrorKind::Corrupt));
    for length in [0, 63, 1 << 50, !63] {
        assert_eq!(damaged(first + 16, length), Err(ErrorKind::Corrupt), "{length}");
    }
    for (word, value) in [(32, 9 << 32), (48, 2), (48, u64::MAX), (56, 1), (64 + 800, 1)] {
        assert_eq!(damaged(first + word, value), Err(ErrorKind::Corrupt), "{word}");
    }
    assert_eq!(damaged(first, 0), Ok(()));
    let other = Ring::open(memory(0), POOL, Epoch(5));
    assert!(matches!(other, Ok(Found::Old)));
}

#[test]
fn files_outlive_those_who_map_them_and_have_one_user() {
    let directory = tempfile::tempdir().unwrap();
    let store = SharedMemory::new(directory.path());
    assert!(store.find(POOL).unwrap().is_none());
    let region = store.create(POOL, 64 << 10).unwrap();
    region.store(8, 42);
    assert_eq!(store.find(POOL).map(|_| ()).unwrap_err().kind(), ErrorKind::Busy);
    assert!(store.left().unwrap().is_empty());
    drop(region);
    assert_eq!(store.left().unwrap(), [std::path::PathBuf::from(store.describe(POOL))]);
    let region = store.find(POOL).unwrap().unwrap();
    assert_eq!((region.load(8), region.len()), (42, 64 << 10));
    // New memory takes the place of old.
    let other = store.create(POOL, 32 << 10).unwrap();
    drop(region);
    assert_eq!(other.load(8), 0);
    drop(other);
    let path = std::path::PathBuf::from(store.describe(POOL));
    // A file with holes, or somebody else's.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(store.find(POOL).map(|_| ()).unwrap_err().kind(), ErrorKind::Corrupt);
    store.remove(POOL);
    std::fs::write(&path, "open to all").unwrap();
    assert_eq!(store.find(POOL).map(|_| ()).unwrap_err().kind(), ErrorKind::InvalidArgument);
    store.remove(POOL);
    // Another user's cannot keep a pool from being opened.
    std::os::unix::fs::symlink("/dev/null", &path).unwrap();
    assert!(store.find(POOL).unwrap().is_none());
    store.remove(POOL);
    store.remove(POOL);
    assert!(store.find(POOL).unwrap().is_none());
    let gone = SharedMemory::new(directory.path().join("nowhere"));
    assert_eq!(gone.create(POOL, 4096).map(|_| ()).unwrap_err().kind(), ErrorKind::Io);
}
