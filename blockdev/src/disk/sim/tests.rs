use std::collections::BTreeSet;

use super::*;
use crate::env::{Env, SimScope};

const MIB: u64 = 1 << 20;
const STEPS: u64 = 10_000_000;

/// `pages` pages filled with `fill`.
fn filled(pages: usize, fill: u8) -> Bytes {
    let mut out = AlignedBuf::zeroed(pages * PAGE);
    out.fill(fill);
    out.freeze()
}

fn new_disk(seed: u64, budget: FaultBudget) -> (SimScope, Arc<SimDisk>) {
    let sim = SimScope::new(seed);
    let disk = SimDisk::new("d0", MIB, seed, budget);
    disk.attach(&sim);
    (sim, disk)
}

fn write_now(sim: &SimScope, disk: &SimDisk, page: u64, pages: usize, fill: u8) {
    sim.block_on(disk.write(page * PAGE as u64, vec![filled(pages, fill)], false)).unwrap();
}

fn read_now(sim: &SimScope, disk: &SimDisk, page: u64) -> DiskResult<Bytes> {
    sim.block_on(disk.read(page * PAGE as u64, PAGE))
}

/// The fill of each sector of a page; panics when a sector is not of one fill.
fn fills(disk: &SimDisk, page: u64) -> Vec<u8> {
    let data = disk.peek(page * PAGE as u64, PAGE);
    data.chunks(SECTOR)
        .map(|sector| {
            assert!(sector.iter().all(|b| *b == sector[0]), "torn within a sector");
            sector[0]
        })
        .collect()
}

#[test]
fn reads_see_writes_and_zeroes_elsewhere() {
    let (sim, disk) = new_disk(1, FaultBudget::none());
    assert_eq!(read_now(&sim, &disk, 3).unwrap(), [0; PAGE][..]);
    write_now(&sim, &disk, 2, 2, 7);
    sim.block_on(async {
        disk.write(0, vec![filled(1, 1), filled(2, 2)], false).await.unwrap();
        let all = disk.read(0, 5 * PAGE).await.unwrap();
        let seen: Vec<u8> = all.chunks(PAGE).map(|p| p[0]).collect();
        assert_eq!(seen, [1, 2, 2, 7, 0]);
        assert!(all.as_ptr().addr().is_multiple_of(IO_ALIGN));
        disk.flush().await.unwrap();
        assert_eq!(disk.read(0, 5 * PAGE).await.unwrap(), all);
    });
    assert_eq!(disk.geometry(), DiskGeometry { size: MIB, sector_size: 512 });
    assert_eq!(disk.ops_count(), 6);
    let counters = disk.counters();
    assert_eq!((counters.reads, counters.writes, counters.flushes), (3, 2, 1));
    assert_eq!((counters.bytes_read, counters.bytes_written), (11 * PAGE as u64, 5 * PAGE as u64));
}
