//! What a pool makes of images, against what it could: `cargo run --release --example reduction -- DIR IMAGE...`.
//!
//! The limit is computed: of all images in order, every distinct 4 KiB block that is not zero is stored once, and each four of those in
//! the order of their first appearance are compressed together, by the pool's own compressor. Six files in DIR are the disks.
//! Each image goes to a volume of its own and is compared with it afterwards. Ends with status 1 when the pool stores more than 1.05
//! times the limit, or gives anything else back.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use blockdev::codec::{Compressor, fingerprint, is_zero};
use blockdev::disk::uring::attach_runtime;
use blockdev::disk::{Disk, FileDisk, OpenOptions};
use blockdev::env::{Env, RealEnv};
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{Compression, Tolerance};
use blockdev::units::BLOCK_SIZE;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};

const PIECE: usize = 128 << 10;
const FRAME: usize = 4 * BLOCK_SIZE;
const DISKS: usize = 6;
/// Stored bytes above the limit that are accepted.
const TOLERATED: f64 = 1.05;

type Failure = Box<dyn std::error::Error>;

/// Calls `each` with the image, a piece at a time, the last one filled up with zeroes.
fn pieces(image: &Path, mut each: impl FnMut(u64, &[u8])) -> Result<u64, Failure> {
    let mut file = File::open(image).map_err(|e| format!("{}: {e}", image.display()))?;
    let mut at = 0;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let n = file.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
        if n == 0 {
            return Ok(at);
        }
        piece.resize(n.next_multiple_of(BLOCK_SIZE), 0);
        each(at, &piece);
        at += piece.len() as u64;
    }
}

/// Blocks that are not zero, distinct blocks, and bytes when those are compressed.
#[derive(Default)]
struct Limit {
    mapped: u64,
    unique: u64,
    stored: u64,
}

fn limit(images: &[PathBuf]) -> Result<Limit, Failure> {
    let (mut seen, mut frame, mut out) = (HashSet::new(), Vec::new(), Vec::new());
    let mut compressor = Compressor::new();
    let mut found = Limit::default();
    for image in images {
        pieces(image, |_, piece| {
            for block in piece.chunks_exact(BLOCK_SIZE).filter(|b| !is_zero(b)) {
                found.mapped += 1;
                if !seen.insert(fingerprint(block)) {
                    continue;
                }
                found.unique += 1;
                frame.extend_from_slice(block);
                if frame.len() == FRAME {
                    out.clear();
                    compressor.compress(Compression::Zstd, &frame, &mut out);
                    found.stored += out.len() as u64;
                    frame.clear();
                }
            }
        })?;
    }
    out.clear();
    compressor.compress(Compression::Zstd, &frame, &mut out);
    found.stored += out.len() as u64;
    Ok(found)
}

async fn run(dir: &Path, images: &[PathBuf]) -> Result<bool, Failure> {
    let limit = limit(images)?;
    let size = (limit.mapped * BLOCK_SIZE as u64).max(1 << 30);
    // Of its own: what else is there is nobody's to overwrite.
    std::fs::create_dir(dir).map_err(|e| format!("making the folder {} for the disks: {e}", dir.display()))?;
    let paths: Vec<PathBuf> = (0..DISKS).map(|i| dir.join(format!("disk{i}.img"))).collect();
    let disks = || -> Result<Vec<Arc<dyn Disk>>, Failure> {
        let open = |p: &PathBuf| FileDisk::open(p, OpenOptions { create_size: Some(size), ..OpenOptions::default() });
        Ok(paths.iter().map(|p| open(p).map(|d| d as Arc<dyn Disk>)).collect::<Result<_, _>>()?)
    };
    let env: Arc<dyn Env> = RealEnv::new(tokio::runtime::Handle::current(), 2);
    let options = CreateOptions {
        name: "reduction".into(),
        tolerance: Tolerance::Double,
        chunk_size: None,
        strip_size: None,
        force: true,
    };
    Pool::create(env.clone(), disks()?, options).await?;
    let pool = Pool::open(env, disks()?, PoolConfig::default()).await?;
    let mut same = true;
    for (n, image) in images.iter().enumerate() {
        let name = format!("image{n}");
        let size = std::fs::metadata(image)?.len().next_multiple_of(BLOCK_SIZE as u64);
        pool.create_volume(&name, size).await?;
        let device = pool.open_volume(&name)?;
        let mut data = Vec::new();
        pieces(image, |at, piece| data.push((at, Bytes::copy_from_slice(piece))))?;
        let mut flying = FuturesUnordered::new();
        for (at, piece) in &data {
            flying.push(tokio::spawn(device.write(*at, piece.clone(), false)));
            if flying.len() >= 16
                && let Some(done) = flying.next().await
            {
                done??;
            }
        }
        while let Some(done) = flying.next().await {
            done??;
        }
        device.flush().await?;
        for (at, piece) in &data {
            same &= device.read(*at, piece.len()).await? == *piece;
        }
        println!("{}: written, {}", image.display(), if same { "reads back the same" } else { "READS BACK DIFFERENT" });
    }
    let reduction = pool.status().await.reduction;
    pool.close().await?;
    std::fs::remove_dir_all(dir)?;

    let blocks = |n: u64| n * BLOCK_SIZE as u64;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("{:<34} {:>10} {:>10} {:>8}", "MiB", "limit", "pool", "ratio");
    for (what, limit, ours) in [
        ("mapped (not zero)", blocks(limit.mapped), reduction.logical),
        ("distinct blocks", blocks(limit.unique), reduction.unique),
        ("stored after compression", limit.stored, reduction.stored),
    ] {
        println!("{what:<34} {:>10.1} {:>10.1} {:>8.3}", mib(limit), mib(ours), ours as f64 / limit.max(1) as f64);
    }
    Ok(same && reduction.stored as f64 <= limit.stored as f64 * TOLERATED)
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (dir, images) = (args.next(), args.collect::<Vec<_>>());
    let (Some(dir), false) = (dir, images.is_empty()) else {
        eprintln!("reduction: give a folder to be made for the disks, and one image or more");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let result = runtime.block_on(async {
        attach_runtime()?;
        run(&dir, &images).await
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("reduction: {e}");
            ExitCode::FAILURE
        }
    }
}
