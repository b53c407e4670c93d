//! Rot on purpose: random bytes over random places of a drive, below the engine and below the other faults.

use std::fs::File;
use std::io::ErrorKind as IoErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use blockdev::disk::FaultDisk;
use blockdev::env::{Env, RealEnv, Rng};
use blockdev::error::{Error, Result};
use blockdev::volume::recovery::read_label;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tokio::runtime::Handle;

use crate::wire::lab::{DiskCorrupt, DiskCorrupted};

/// Places begin at multiples of this: drives lose whole sectors.
const SECTOR: u64 = 512;
/// Most places at a time.
pub const COUNT_MAX: u64 = 100_000;
/// Most bytes of a place.
pub const BYTES_MAX: u64 = 1 << 20;
/// Most bytes at a time.
const TOTAL_MAX: u64 = 1 << 30;

/// Refuses what cannot be meant.
pub fn check(wanted: &DiskCorrupt) -> Result<()> {
    if !(1..=COUNT_MAX).contains(&wanted.count) {
        return Err(Error::invalid(format!(
            "1 to {COUNT_MAX} places can be corrupted at a time, not {}",
            wanted.count
        )));
    }
    if !(1..=BYTES_MAX).contains(&wanted.bytes) {
        return Err(Error::invalid(format!("a place to corrupt has 1 to {BYTES_MAX} bytes, not {}", wanted.bytes)));
    }
    if wanted.count * wanted.bytes > TOTAL_MAX {
        let all = wanted.count * wanted.bytes;
        return Err(Error::invalid(format!("at most {TOTAL_MAX} bytes can be corrupted at a time, not {all}")));
    }
    Ok(())
}

/// Overwrites random places of the drive at `path`, which is open as `disk`, with random bytes.
///
/// Only what the file below holds is hit: holes of a sparse file belong to nobody. Without `anywhere` only the chunks are, where data
/// lies; what lies there may have been given up by now, so not every place need be noticed.
pub async fn corrupt(disk: &FaultDisk, path: &Path, wanted: &DiskCorrupt) -> Result<DiskCorrupted> {
    check(wanted)?;
    let below = disk.beneath();
    let size = below.geometry().size;
    let region = if wanted.anywhere {
        0..size
    } else {
        let geometry = read_label(&below).await?.geometry;
        geometry.chunk(0)..geometry.chunk(geometry.chunks(size))
    };
    let owned = path.to_owned();
    let held = tokio::task::spawn_blocking(move || held(&owned, region)).await;
    let held = held.map_err(|e| Error::io(format!("looking at {}: {e}", path.display())))??;
    // Short enough to be typed again.
    let seed = wanted.seed.unwrap_or_else(|| RealEnv::new(Handle::current(), 1).random_u64() & 0xFFFF_FFFF);
    let mut rng = Rng::new(seed);
    let places = choose(&held, wanted.count, wanted.bytes, &mut rng);
    if places.is_empty() {
        return Err(Error::invalid(format!(
            "{} holds no {} bytes in a row of {}: there is nothing to corrupt",
            path.display(),
            wanted.bytes,
            if wanted.anywhere { "anything" } else { "data (--anywhere looks at labels and log, too)" }
        )));
    }
    let mut bytes = vec![0; wanted.bytes as usize];
    let failed = |e| Error::io(format!("corrupting {}: {e}", path.display()));
    for &at in &places {
        rng.fill(&mut bytes);
        disk.corrupt(at, &bytes).await.map_err(failed)?;
    }
    below.flush().await.map_err(failed)?;
    let done = DiskCorrupted {
        disk: path.display().to_string(),
        places: places.len() as u64,
        bytes: covered(&places, wanted.bytes),
        seed,
        held: held.iter().map(|r| r.end - r.start).sum(),
        anywhere: wanted.anywhere,
    };
    let DiskCorrupted { places, bytes, .. } = done;
    tracing::warn!(disk = done.disk, places, bytes, seed, anywhere = done.anywhere, "laboratory fault: corrupted");
    Ok(done)
}

/// The parts of a region that a file holds, in order; the region of what has no holes.
fn held(path: &Path, region: Range<u64>) -> Result<Vec<Range<u64>>> {
    let failed = |e: std::io::Error| Error::io(format!("looking at {}: {e}", path.display()));
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.file_type().is_block_device() {
        return Ok(vec![region]);
    }
    let mut out = Vec::new();
    let mut at = region.start;
    while at < region.end {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            // A file system that knows of no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(vec![region]),
            Err(e) => return Err(failed(e.into())),
        };
        if start >= region.end {
            break;
        }
        let end = match rustix::fs::seek(&file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(region.end),
            Err(Errno::NXIO) => region.end,
            Err(e) => return Err(failed(e.into())),
        };
        if end <= start {
            return Err(failed(IoErrorKind::UnexpectedEof.into()));
        }
        out.push(start..end);
        at = end;
    }
    Ok(out)
}

/// Up to `count` different places of `bytes` bytes within `held`, in order. Each is as likely as any other.
fn choose(held: &[Range<u64>], count: u64, bytes: u64, rng: &mut Rng) -> Vec<u64> {
    let first = |r: &Range<u64>| r.start.next_multiple_of(SECTOR);
    let slots = |r: &Range<u64>| r.end.checked_sub(first(r) + bytes).map_or(0, |room| room / SECTOR + 1);
    let total: u64 = held.iter().map(slots).sum();
    let mut chosen = std::collections::BTreeSet::new();
    if count >= total / 2 {
        let mut all: Vec<u64> = (0..total).collect();
        rng.shuffle(&mut all);
        chosen.extend(all.into_iter().take(count as usize));
    } else {
        while (chosen.len() as u64) < count {
            chosen.insert(rng.below(total));
        }
    }
    let place = |slot: u64| {
        let mut left = slot;
        held.iter().find_map(|r| match left.checked_sub(slots(r)) {
            Some(beyond) => {
                left = beyond;
                None
            }
            None => Some(first(r) + left * SECTOR),
        })
    };
    chosen.into_iter().filter_map(place).collect()
}

/// Bytes of places that are in order and may overlap.
fn covered(places: &[u64], bytes: u64) -> u64 {
    let next = places.iter().skip(1).map(Some).chain([None]);
    places.iter().zip(next).map(|(at, next)| next.map_or(bytes, |next| bytes.min(next - at))).sum()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn places_are_different_and_hold_something() {
        let held = [4096..8192, 10_000..10_500, 20_000..20_600, 1 << 20..(1 << 20) + 4097];
        for (count, bytes, expected) in [(5, 512, 5), (100, 512, 16), (100, 4096, 2), (3, 1, 3), (10, 8192, 0)] {
            for seed in 0..50 {
                let places = choose(&held, count, bytes, &mut Rng::new(seed));
                assert_eq!(places.len(), expected, "{count} of {bytes}: {places:?}");
                assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
                for at in &places {
                    assert!(held.iter().any(|r| r.start <= *at && at + bytes <= r.end), "{count} of {bytes}: {at}");
                }
                assert_eq!(places, choose(&held, count, bytes, &mut Rng::new(seed)), "not repeatable");
            }
        }
        let all: std::collections::BTreeSet<Vec<u64>> =
            (0..50).map(|seed| choose(&held, 1, 512, &mut Rng::new(seed))).collect();
        assert!(all.len() > 10, "only {all:?} are ever chosen");
        assert!(choose(&[], 10, 1, &mut Rng::new(1)).is_empty());
    }

    #[test]
    fn bytes_that_overlap_count_once() {
        assert_eq!(covered(&[], 512), 0);
        assert_eq!(covered(&[512, 1024, 4096], 512), 1536);
        assert_eq!(covered(&[0, 512, 4096], 1000), 512 + 1000 + 1000);
    }

    #[test]
    fn holes_are_left_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        assert_eq!(held(file.path(), 0..64 << 20).unwrap(), []);
        for at in [8 << 20, 40 << 20] {
            file.as_file().write_all_at(&vec![7; 1 << 20], at).unwrap();
        }
        file.as_file().sync_all().unwrap();
        let found = held(file.path(), 0..64 << 20).unwrap();
        let bytes: u64 = found.iter().map(|r| r.end - r.start).sum();
        assert!((2 << 20..4 << 20).contains(&bytes), "{found:?}");
        assert!([8 << 20, 41 << 20].iter().all(|at| found.iter().any(|r| r.contains(&(at - 1)) || r.contains(at))));
        let part = held(file.path(), (8 << 20) + 4096..40 << 20).unwrap();
        assert_eq!(part.first().map(|r| r.start), Some((8 << 20) + 4096));
        assert!(part.iter().all(|r| r.end <= 40 << 20), "{part:?}");
        assert!(held(Path::new("/nonexistent"), 0..1).is_err());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let wanted = |count, bytes| DiskCorrupt { count, bytes, seed: None, anywhere: false };
        assert!(check(&wanted(1, 1)).is_ok() && check(&wanted(COUNT_MAX, 512)).is_ok());
        for (count, bytes) in [(0, 512), (1, 0), (COUNT_MAX + 1, 1), (1, BYTES_MAX + 1), (2000, BYTES_MAX)] {
            assert!(check(&wanted(count, bytes)).is_err(), "{count} of {bytes}");
        }
        assert!(check(&wanted(u64::MAX, u64::MAX)).is_err());
    }
}
