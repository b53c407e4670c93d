//! Speed of parity by instruction set: GB of data per second and core, columns in cache.
//!
//! Usage: `cargo run --release --example paritybench [strip bytes]`

use std::hint::black_box;
use std::time::{Duration, Instant};

use blockdev::redundancy::parity::{Kernel, Recovery, encode_with, verify};

/// Best of several short runs, because other work may share the core.
fn rate(bytes: usize, mut work: impl FnMut()) -> f64 {
    let mut best: f64 = 0.0;
    for _ in 0..10 {
        let (start, mut rounds) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(20) {
            work();
            rounds += 1;
        }
        best = best.max((bytes * rounds) as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    best
}

fn main() {
    let strip: usize = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(64 << 10);
    println!("strip {strip} bytes; GB/s of data");
    println!("{:<12} {:>6} {:>8} {:>8} {:>12} {:>12}", "kernel", "width", "P", "P+Q", "1 lost (P)", "2 lost (one)");
    for (k, m) in [(4, 2), (8, 2), (16, 2)] {
        let data: Vec<Vec<u8>> =
            (0..k).map(|i| (0..strip).map(|at| (at * 31 + i * 7 + at / 253) as u8).collect()).collect();
        let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let (mut p, mut q, mut out) = (vec![0; strip], vec![0; strip], vec![0; strip]);
        for kernel in Kernel::available() {
            let xor = rate(k * strip, || encode_with(kernel, black_box(&data), Some(&mut p), None));
            let both = rate(k * strip, || encode_with(kernel, black_box(&data), Some(&mut p), Some(&mut q)));
            assert!(verify(&data, Some(&p), Some(&q)));
            let mut recover = |lost: &[usize]| {
                let present: Vec<bool> = (0..k + m).map(|i| !lost.contains(&i)).collect();
                let plan = Recovery::plan(k, m, &present, 0).expect("within tolerance");
                let all: Vec<&[u8]> = data.iter().copied().chain([p.as_slice(), q.as_slice()]).collect();
                rate(k * strip, || plan.apply_with(kernel, |i| all[i], black_box(&mut out)))
            };
            let (one, two) = (recover(&[0]), recover(&[0, 1]));
            let name = format!("{kernel:?}");
            println!("{name:<12} {:>6} {xor:>8.1} {both:>8.1} {one:>12.1} {two:>12.1}", format!("{k}+{m}"));
        }
    }
}
