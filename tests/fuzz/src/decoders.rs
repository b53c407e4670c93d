//! Decoders of everything on disk. Input: which structure, whether its lengths and checksums are put right first, the bytes.
//!
//! Begins with valid ones, with some that are at a limit or just beyond it, and with the golden images, the damaged ones included.
#![no_main]

#[path = "../../../blockdev/src/format/tests/generate.rs"]
#[allow(dead_code, reason = "for tests, too")]
mod generate;
#[path = "../../tests/format/imports.rs"]
mod imports;
#[path = "../../tests/format/property.rs"]
mod property;
mod seeds;

use std::path::Path;

use generate::{KINDS, Kind};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

use imports::{ChunkIndex, DiskId, Get, Inline, Op, Record, Rng, SegmentId};

/// Valid ones of each kind.
const OF_EACH: u64 = 16;

/// What a mutation of valid ones hardly comes to: many items that must all fit each other, numbers at the end of their range.
fn at_limits() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut out = Vec::new();
    // A segment has at most 32 columns, each on a disk of its own.
    for columns in [31, 32, 33, 64, 96, 128, 256] {
        let mut segment = generate::segment(&mut Rng::new(columns), 12);
        (segment.parity, segment.data, segment.stale_columns) = (1, (columns - 1) as u8, 0);
        segment.columns = (0..columns as u16).map(|i| (DiskId(i), ChunkIndex(u32::from(i)))).collect();
        let record = Record { ops: vec![Op::OpenSegment(segment)], ..Record::default() };
        out.push(("log-record", format!("columns-{columns}"), generate::encode_record(&record)));
    }
    // An entry's own bytes of a segment end within 32 bits.
    for before_end in [99, 100, 101] {
        let mut entry = generate::entry(&mut Rng::new(before_end));
        let offset = u32::MAX - before_end as u32;
        entry.inline = vec![Inline { segment: SegmentId(7), offset, data: vec![0x5A; 100] }];
        out.push(("log-entry", format!("inline-{before_end}"), generate::encode(&entry)));
    }
    out
}

/// Each once as it is, and once so that its checksum is made right again after each change.
fn write_seeds(dir: &Path) -> std::io::Result<()> {
    let write = |which: usize, name: &str, bytes: &[u8]| {
        (0..2u8).try_for_each(|seal| {
            std::fs::write(dir.join(format!("{name}.{seal}")), [&[which as u8, seal], bytes].concat())
        })
    };
    for (which, kind) in KINDS.iter().enumerate() {
        for n in 0..OF_EACH {
            write(which, &format!("{}-{n}", kind.name), &(kind.make)(&mut Rng::new(n)))?;
        }
    }
    for (name, what, bytes) in at_limits() {
        let which = KINDS.iter().position(|kind| kind.name == name).expect("a kind");
        write(which, &format!("{name}-{what}"), &bytes)?;
    }
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../golden"))? {
        let path = file?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The longest name that fits: `catalogue-body` is no `catalogue`.
        let fits = KINDS.iter().enumerate().filter(|(_, kind)| name.contains(kind.name));
        let Some((which, _)) = fits.max_by_key(|(_, kind)| kind.name.len()) else { continue };
        write(which, &name, &std::fs::read(&path)?)?;
    }
    Ok(())
}

/// Bytes of an input that are a structure's own, where nothing but these bytes means the same. What lies behind a log entry or a summary is
/// not theirs, labels and superblocks have room for more, and a catalogue can be packed in many ways.
fn only_encoding(kind: &Kind, bytes: &[u8]) -> Option<usize> {
    match kind.name {
        "label" | "superblock" | "catalogue" => None,
        "log-entry" => bytes.get(48..56)?.try_into().ok().map(|len| u64::from_le_bytes(len) as usize),
        "part" => bytes.get(4..8)?.try_into().ok().map(|len| u32::from_le_bytes(len) as usize),
        _ => Some(bytes.len()),
    }
}

/// Exponents of two at which fields end.
const EDGES: [u32; 10] = [7, 14, 16, 31, 32, 36, 48, 62, 63, 64];

/// A variable-length integer anywhere becomes another one, of another length perhaps: bytes that change one by one hardly make a large
/// one of a small one, and leave what follows it readable.
fn other_number(data: &mut [u8], size: usize, max_size: usize, rng: &mut Rng) -> Option<usize> {
    let at = 2 + rng.index(size.checked_sub(2).filter(|len| *len > 0)?);
    let mut rest = Get(&data[at..size]);
    let was = rest.varint().ok()?;
    let end = size - rest.0.len();
    let edge = 1u128 << EDGES[rng.index(EDGES.len())];
    let mut number = match rng.below(4) {
        0 => was.wrapping_add(1),
        1 => was.wrapping_sub(1),
        _ => (edge - 1 + u128::from(rng.below(2))).try_into().unwrap_or(u64::MAX),
    };
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    let changed = size - (end - at) + bytes.len();
    if changed > max_size {
        return None;
    }
    data.copy_within(end..size, at + bytes.len());
    data[at..at + bytes.len()].copy_from_slice(&bytes);
    Some(changed)
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut rng = Rng::new(seed.into());
    if rng.chance(1, 4)
        && let Some(changed) = other_number(data, size, max_size, &mut rng)
    {
        return changed;
    }
    fuzzer_mutate(data, size, max_size)
});

fuzz_target!(init: seeds::write(write_seeds), |input: &[u8]| {
    let [which, seal, bytes @ ..] = input else { return };
    let Some(kind) = KINDS.get(usize::from(*which)) else { return };
    let mut bytes = bytes.to_vec();
    if seal & 1 == 0 {
        (kind.seal)(&mut bytes);
    }
    if property::holds(kind, &bytes)
        && let Some(len) = only_encoding(kind, &bytes)
    {
        let written = (kind.read)(&bytes).expect("it was accepted");
        assert!(written.get(..len) == bytes.get(..len), "{}: what was accepted is not what is written", kind.name);
    }
});
