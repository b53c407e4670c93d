use std::path::Path;

use super::*;

fn plan(precision: Precision, percent: f64) -> Plan {
    Plan { precision, percent, seed: 1, memory: 64 << 20, compression: Compression::Zstd }
}

fn scan_of(paths: &[PathBuf], plan: &Plan) -> (Option<Sample>, Scanned) {
    plan.run(&walk::Roots::new(paths, false).unwrap(), &Progress::default())
}

/// Pseudorandom bytes that differ from number to number.
fn noise(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blockdev::env::Rng::new(number).fill(&mut bytes);
    bytes
}

#[test]
fn small_data_is_read_in_full_and_samples_have_a_least_size() {
    let survey = |mib: u64| Survey { blocks: mib * 256 };
    assert!(plan(Precision::Auto, 5.0).sample(survey(16 << 10)).is_none());
    assert_eq!(plan(Precision::Auto, 5.0).sample(survey(20 << 10)).unwrap().regions, 1024);
    assert!(plan(Precision::Full, 5.0).sample(survey(1 << 30)).is_none());
    assert_eq!(plan(Precision::Sample, 5.0).sample(survey(100)).unwrap().regions, SAMPLED_MIN);
    assert!(plan(Precision::Sample, 5.0).sample(survey(SAMPLED_MIN)).is_none());
    assert!(plan(Precision::Sample, 100.0).sample(survey(1000)).is_none());
}

#[test]
fn shares_and_memory_have_bounds() {
    for text in ["0", "-1", "100.1", "nan", "inf", "", "x", "5%%x"] {
        assert!(parse_percent(text).is_err(), "{text:?} was accepted");
    }
    assert_eq!(["5", "0.5", "100", " 7 %"].map(|t| parse_percent(t).unwrap()), [5.0, 0.5, 100.0, 7.0]);
    assert!(parse_memory("1023K").is_err() && parse_memory("x").is_err() && parse_memory("1M").is_ok());
}

#[test]
fn files_are_counted_in_blocks_holes_without_reading_and_duplicates_across_them() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, data: &[u8]| std::fs::write(dir.path().join(name), data).unwrap();
    let block = BLOCK_BYTES as usize;
    write("a", &noise(1, 3 * block + 100));
    write("b", &noise(1, 3 * block + 100));
    write("c", &[noise(2, block), vec![0; block], noise(2, block)].concat());
    write("empty", &[]);
    std::fs::create_dir(dir.path().join("more")).unwrap();
    let sparse = std::fs::File::create(dir.path().join("more/sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &noise(3, block), 512 << 20).unwrap();
    let (sample, scanned) = scan_of(&[dir.path().into()], &plan(Precision::Auto, 5.0));
    let e = scanned.estimate;
    assert!(sample.is_none() && e.complete && !scanned.interrupted && scanned.problems.count == 0);
    assert_eq!(scanned.files, 5);
    assert_eq!(e.size, (1 << 30) + (4 + 4 + 3) * BLOCK_BYTES);
    // Holes end where the file system's blocks do.
    assert!(e.holes <= (1 << 30) - BLOCK_BYTES && e.holes > (1 << 30) - (1 << 20), "{e:?}");
    assert_eq!(e.zeroes.value, (1 << 30) - BLOCK_BYTES + BLOCK_BYTES);
    assert_eq!((e.logical.value, e.unique.value), (11 * BLOCK_BYTES, 6 * BLOCK_BYTES));
    assert_eq!((e.unique.low, e.unique.high), (e.unique.value, e.unique.value));
}

#[test]
fn the_order_of_threads_does_not_change_the_figures() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let text: Vec<u8> = (0..24u64 << 20).map(|i| (i.wrapping_mul(i >> 7) >> 9) as u8 & 15).collect();
    std::fs::write(&path, text).unwrap();
    let json = || serde_json::to_string(&scan_of(std::slice::from_ref(&path), &plan(Precision::Full, 5.0)).1.estimate);
    let first = json().unwrap();
    assert!((0..4).all(|_| json().unwrap() == first), "{first}");
}

#[test]
fn a_stopped_scan_tells_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, noise(1, 4 << 20)).unwrap();
    let progress = Progress::default();
    progress.stop.store(true, Ordering::Relaxed);
    let roots = walk::Roots::new(&[path], false).unwrap();
    let (_, scanned) = plan(Precision::Full, 5.0).run(&roots, &progress);
    assert!(scanned.interrupted && scanned.estimate.read == 0, "{:?}", scanned.estimate);
}

#[test]
fn what_cannot_be_opened_is_named() {
    let told = |kind: std::io::ErrorKind| walk::cannot_read(Path::new("/x"), &kind.into());
    assert!(
        told(std::io::ErrorKind::PermissionDenied).message.contains("/x may not be read by this user: run as root")
    );
    assert_eq!(told(std::io::ErrorKind::NotFound).exit, Exit::NotFound);
    assert!(told(std::io::ErrorKind::Other).message.starts_with("/x cannot be read"));
}
