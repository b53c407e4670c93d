//! The dedupe index of a large pool, without the pool: how much memory it takes, and how much of what comes again it finds.
//!
//! `index [TIB [BUDGET_MIB…]]`: TIB (10) of distinct blocks are written, in fingerprint lists of 512 as segments have them; then streams of 64 MiB that were
//! written long ago, in the middle and at last are looked up again, batch by batch as destaging does it, loading lists where hooks point to. Budgets: those
//! that pools of that size have with 1 GiB, 4 GiB and 16 GiB of memory.

use std::time::Instant;

use blockdev::dedupe::{DedupeIndex, ListId, Lookup};
use blockdev::pool::PoolConfig;
use blockdev::units::{BLOCK_BYTES, SegmentId, VirtualBlock};

/// Blocks of a list.
const LIST: u64 = 512;
/// Lists of a segment.
const PARTS: u64 = 256;
/// Blocks that are looked up at a time.
const BATCH: u64 = 256;
/// Blocks of a stream, and streams of each age.
const STREAM: (u64, u64) = ((64 << 20) / BLOCK_BYTES, 16);

fn fingerprint(block: u64) -> u128 {
    let mixed = (block + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    u128::from(mixed) << 64 | u128::from(mixed.rotate_left(29) ^ block)
}

fn id(list: u64) -> ListId {
    ListId::new(SegmentId((list / PARTS) as u32), (list % PARTS) as u32)
}

fn content(list: ListId) -> Vec<(u128, VirtualBlock)> {
    let first = (u64::from(list.segment().0) * PARTS + u64::from(list.part())) * LIST;
    (first..first + LIST).map(|block| (fingerprint(block), VirtualBlock(block))).collect()
}

/// Looks a stream up; returns blocks found, and lists that were loaded.
fn look_up(index: &mut DedupeIndex, first: u64) -> (u64, u64) {
    let (mut found, mut loaded) = (0, 0);
    for batch in (first..first + STREAM.0).step_by(BATCH as usize) {
        for pass in 0..2 {
            let mut wanted = Vec::new();
            for block in batch..batch + BATCH {
                let answer = index.lookup(fingerprint(block));
                match answer {
                    Lookup::Hook(list) if pass == 0 => wanted.push(list),
                    Lookup::Recent(at) => found += u64::from(pass == 1 && at.0 == block),
                    _ => {}
                }
                if pass == 0 && answer != Lookup::Miss {
                    index.read_ahead(fingerprint(block), &mut wanted);
                }
            }
            wanted.sort_unstable();
            wanted.dedup();
            loaded += wanted.len() as u64;
            wanted.into_iter().for_each(|list| index.cache_list(list, content(list)));
        }
    }
    (found, loaded)
}

fn main() {
    let given: Vec<u64> = std::env::args().skip(1).map(|a| a.parse().expect("a number")).collect();
    let tib = given.first().copied().unwrap_or(10);
    let of = |memory: u64| PoolConfig { memory, ..PoolConfig::default() }.dedupe_index(tib << 40) as u64 >> 20;
    let budgets = if given.len() > 1 { given[1..].to_vec() } else { [1, 4, 16].map(|gib| of(gib << 30)).to_vec() };
    let lists = (tib << 40) / BLOCK_BYTES / LIST;
    println!("{tib} TiB of distinct blocks, {lists} lists");
    println!("budget MiB  memory MiB  ns a block   found: old  middle     new  lists loaded for each 512 blocks");
    for budget in budgets {
        let mut index = DedupeIndex::new((budget << 20) as usize);
        let begun = Instant::now();
        for list in 0..lists {
            index.add_list(id(list), (list * LIST..(list + 1) * LIST).map(fingerprint));
        }
        let each = begun.elapsed().as_nanos() as f64 / (lists * LIST) as f64;
        let mut shares = Vec::new();
        let mut loaded = 0;
        for age in [0.05, 0.5, 0.95] {
            let mut found = 0;
            for stream in 0..STREAM.1 {
                let first = (age * lists as f64) as u64 * LIST + stream * 3 * STREAM.0 + 77;
                let (hits, reads) = look_up(&mut index, first);
                found += hits;
                loaded += reads;
            }
            shares.push(found as f64 / (STREAM.0 * STREAM.1) as f64);
        }
        let used = index.memory_used() as f64 / f64::from(1 << 20);
        let reads = loaded as f64 / (3 * STREAM.1 * STREAM.0 / LIST) as f64;
        println!(
            "{budget:10} {used:11.1} {each:11.1} {:12.3} {:7.3} {:7.3} {reads:13.2}",
            shares[0], shares[1], shares[2]
        );
    }
}
