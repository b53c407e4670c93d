//! What telling changes costs: in a thin volume of 1 TiB, between two snapshots, by how much was written between them and how much there is.
//!
//! `diff [BASE_MIB...]`: with so much data there before (256 and 2048 MiB when nothing is named), 16, 64, 256 and 1024 MiB are written at random
//! places; each time all changes are told, and compared with what was written. Six drives in memory, single tolerance. Blocks differ from each other and
//! compress well, so that much fits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use blockdev::disk::{Disk, MemoryDisk};
use blockdev::env::{RealEnv, Rng};
use blockdev::frontend::BlockDevice;
use blockdev::pool::{CreateOptions, Kept, Pool, PoolConfig};
use blockdev::report::Tolerance;
use bytes::Bytes;

const BLOCK: u64 = 4096;
/// Size of the volume, in bytes.
const SIZE: u64 = 1 << 40;
/// Blocks of one write.
const RUN: u64 = 4;
/// Writes under way.
const DEPTH: usize = 64;

/// Writes so many bytes at random places; the blocks that were written.
async fn write(device: &Arc<dyn BlockDevice>, rng: &mut Rng, bytes: u64, tag: &mut u64) -> BTreeSet<u64> {
    let mut written = BTreeSet::new();
    let mut under_way = futures::stream::FuturesUnordered::new();
    for _ in 0..bytes / BLOCK / RUN {
        if under_way.len() >= DEPTH {
            futures::StreamExt::next(&mut under_way).await;
        }
        let first = rng.below(SIZE / BLOCK / RUN) * RUN;
        let mut data = Vec::with_capacity((RUN * BLOCK) as usize);
        for _ in 0..RUN {
            *tag += 1;
            data.extend(tag.to_le_bytes().repeat(BLOCK as usize / 8));
        }
        written.extend(first..first + RUN);
        let device = device.clone();
        under_way.push(async move { device.write(first * BLOCK, Bytes::from(data), false).await.expect("written") });
    }
    while futures::StreamExt::next(&mut under_way).await.is_some() {}
    device.flush().await.expect("flushed");
    written
}

async fn changes(pool: &Pool, since: &str, name: &str) -> BTreeSet<u64> {
    let (mut offset, mut told) = (0, BTreeSet::new());
    loop {
        let part = pool.changes(name, since, offset, 10_000).await.expect("told");
        for r in &part.ranges {
            told.extend(r.offset / BLOCK..(r.offset + r.len) / BLOCK);
        }
        match part.next {
            Some(next) => offset = next,
            None => return told,
        }
    }
}

async fn run(base_mib: u64) {
    let env = RealEnv::new(tokio::runtime::Handle::current(), 2);
    let disk = |i| Arc::new(MemoryDisk::new(format!("d{i}"), 1 << 30)) as Arc<dyn Disk>;
    let disks: Vec<Arc<dyn Disk>> = (0..6).map(disk).collect();
    let (name, tolerance) = ("diff".into(), Tolerance::Single);
    let options = CreateOptions { name, tolerance, chunk_size: None, strip_size: None, force: true };
    Pool::create(env.clone(), disks.clone(), options).await.expect("created");
    let pool = Pool::open(env, disks, PoolConfig::default()).await.expect("opened");
    pool.create_volume("v", SIZE).await.expect("a volume");
    let device = pool.open_volume("v").expect("a device");
    let (mut rng, mut tag) = (Rng::new(base_mib), 0);
    write(&device, &mut rng, base_mib << 20, &mut tag).await;
    pool.create_snapshots(&["v@s0".into()], &Kept::default()).await.expect("taken");
    println!("{base_mib} MiB in a volume of 1 TiB:");
    for (i, mib) in [16u64, 64, 256, 1024].into_iter().enumerate() {
        let written = write(&device, &mut rng, mib << 20, &mut tag).await;
        let (since, now) = (format!("v@s{i}"), format!("v@s{}", i + 1));
        pool.create_snapshots(std::slice::from_ref(&now), &Kept::default()).await.expect("taken");
        let start = Instant::now();
        let told = changes(&pool, &since, &now).await;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        assert!(told == written, "{} blocks are told, {} were written", told.len(), written.len());
        println!(
            "  {mib:5} MiB changed: told in {ms:8.1} ms, {:.2} ms a MiB; equal to what was written",
            ms / mib as f64
        );
    }
    pool.close().await.expect("closed");
}

fn main() {
    let given: Vec<u64> = std::env::args().skip(1).map(|a| a.parse().expect("MiB")).collect();
    let bases = if given.is_empty() { vec![256, 2048] } else { given };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for base in bases {
            run(base).await;
        }
    });
}
