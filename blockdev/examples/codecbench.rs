//! Ratio and speed of frames by size and codec, over the contents of directories, on one thread.
//!
//! Usage: `cargo run --release --example codecbench [MiB per directory] [directory…]`; `/usr/bin` and the current
//! directory's sources by default. Only blocks that are not zero count; a file's last block is filled up with zeroes.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use blockdev::codec::{Codec, Compressor, decompress, fingerprint, is_zero};
use blockdev::report::Compression;
use blockdev::units::BLOCK_SIZE;

fn collect(directory: &Path, limit: usize, out: &mut Vec<u8>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(kind) = path.symlink_metadata() else { continue };
        if out.len() >= limit {
            return;
        } else if kind.is_dir() {
            collect(&path, limit, out);
        } else if kind.is_file()
            && let Ok(mut bytes) = std::fs::read(&path)
        {
            bytes.truncate(2 << 20);
            bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE), 0);
            bytes.chunks_exact(BLOCK_SIZE).filter(|b| !is_zero(b)).for_each(|b| out.extend_from_slice(b));
        }
    }
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u64 / 16).flat_map(|i| fingerprint(&i.to_le_bytes()).to_le_bytes()).collect()
}

/// MB/s; each frame counts with the better of two rounds, because other work may share the core.
fn mbps(bytes: usize, times: &[Duration]) -> f64 {
    bytes as f64 / times.iter().sum::<Duration>().as_secs_f64() / 1e6
}

fn measure(name: &str, data: &[u8]) {
    for blocks in [1, 2, 4, 8] {
        for compression in [Compression::Lz4, Compression::Zstd] {
            let mut compressor = Compressor::new();
            let frames: Vec<&[u8]> = data.chunks_exact(blocks * BLOCK_SIZE).collect();
            let mut stored: Vec<(Codec, Vec<u8>)> = vec![(Codec::Raw, vec![]); frames.len()];
            let mut pack = vec![Duration::MAX; frames.len()];
            let mut unpack = pack.clone();
            let mut room = vec![];
            for _ in 0..2 {
                for (i, raw) in frames.iter().enumerate() {
                    room.clear();
                    let start = Instant::now();
                    let codec = compressor.compress(compression, black_box(raw), &mut room);
                    pack[i] = pack[i].min(start.elapsed());
                    stored[i] = (codec, room.clone());
                }
                for (i, (codec, bytes)) in stored.iter().enumerate() {
                    room.resize(frames[i].len(), 0);
                    let start = Instant::now();
                    decompress(*codec, black_box(bytes), &mut room).expect("a good frame");
                    unpack[i] = unpack[i].min(start.elapsed());
                    assert_eq!(room, frames[i]);
                }
            }
            let raw: usize = frames.iter().map(|f| f.len()).sum();
            let small: usize = stored.iter().map(|(_, bytes)| bytes.len()).sum();
            let plain = stored.iter().filter(|(codec, _)| *codec == Codec::Raw).count();
            println!(
                "{name:<16} {:>3}K {:<5} {:>6.3} {:>7.0} {:>7.0} {:>8.1} {:>7.1}",
                blocks * 4,
                format!("{compression:?}"),
                raw as f64 / small as f64,
                mbps(raw, &pack),
                mbps(raw, &unpack),
                unpack.iter().sum::<Duration>().as_secs_f64() * 1e6 / frames.len() as f64,
                100.0 * plain as f64 / frames.len() as f64,
            );
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let limit = arguments.next().and_then(|a| a.parse().ok()).unwrap_or(16usize) << 20;
    let mut directories: Vec<String> = arguments.collect();
    if directories.is_empty() {
        directories = vec!["/usr/bin".into(), ".".into()];
    }
    println!("data             size codec  ratio pack/MBs unpack/MBs us/frame raw%");
    for directory in directories {
        let mut data = vec![];
        collect(Path::new(&directory), limit, &mut data);
        measure(&directory[directory.len().saturating_sub(16)..], &data);
    }
    let mut data = noise(limit);
    measure("noise", &data);
    data.chunks_exact_mut(BLOCK_SIZE / 2).step_by(2).for_each(|half| half.fill(0));
    measure("half zeroes", &data);

    let block = noise(BLOCK_SIZE);
    for (name, bytes) in [("fingerprint", &block), ("is_zero", &vec![0; BLOCK_SIZE])] {
        let start = Instant::now();
        for _ in 0..100_000 {
            match name {
                "is_zero" => _ = black_box(is_zero(black_box(bytes))),
                _ => _ = black_box(fingerprint(black_box(bytes))),
            }
        }
        println!("{name} {:.1} GB/s", 1e5 * BLOCK_SIZE as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
}
