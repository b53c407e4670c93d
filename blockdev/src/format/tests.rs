//! Every decoder: round trips, literal bytes, truncation, damage.

mod generate;
mod literal;

/// What [`generate`] uses of the engine.
mod imports {
    pub use crate::codec::Codec;
    pub use crate::env::Rng;
    pub use crate::error::Result;
    pub use crate::format::catalogue::{Catalogue, DiskErrors, DiskRecord, DiskTraffic, ScrubRecord, Service};
    pub use crate::format::cursor::{COUNTER_LIMIT, Get};
    pub use crate::format::label::Label;
    pub use crate::format::layout::{EDGE, PoolGeometry};
    pub use crate::format::page::*;
    pub use crate::format::part::{Content, Item, Part};
    pub use crate::format::record::*;
    pub use crate::format::superblock::Superblock;
    pub use crate::format::volume::*;
    pub use crate::format::{FORMAT_VERSION, checksum};
    pub use crate::report::Tolerance;
    pub use crate::units::*;
}

use generate::{KINDS, Kind};
use imports::*;

use crate::error::ErrorKind;
use crate::format::cursor::Put;
use crate::format::layout::{CATALOGUE_FULL, CHUNK_SIZE_MAX, LABEL_SIZE};
use crate::format::part::{PART_BLOCKS, PART_BYTES_MAX, PART_OVERHEAD, item_bytes_max};

#[test]
fn random_structures_come_back() {
    let mut rng = Rng::new(1);
    for kind in KINDS {
        for _ in 0..300 {
            let bytes = (kind.make)(&mut rng);
            let again = (kind.read)(&bytes).unwrap_or_else(|e| panic!("{}: {e}", kind.name));
            assert_eq!(again, bytes, "{}", kind.name);
        }
    }
    // Not only their bytes.
    for _ in 0..200 {
        let v = generate::label(&mut rng);
        assert_eq!(Label::decode(&v.encode()).unwrap(), v);
        let v = generate::superblock(&mut rng);
        assert_eq!(Superblock::decode(&v.encode()).unwrap(), v);
        let v = generate::catalogue(&mut rng);
        assert_eq!(Catalogue::decode(&v.encode().unwrap()).unwrap(), v);
        let v = generate::entry(&mut rng);
        let bytes = generate::encode(&v);
        assert_eq!(Entry::decode(&bytes).unwrap(), (v, bytes.len()));
        let v = generate::part(&mut rng);
        assert_eq!(Part::decode(&v.encode()).unwrap(), v);
        let v = generate::table_page(&mut rng);
        assert_eq!(TablePage::decode(&v.encode()).unwrap(), v);
        let v = generate::directory_page(&mut rng);
        assert_eq!(DirectoryPage::decode(&v.encode()).unwrap(), v);
        let v = generate::map_page(&mut rng, true);
        assert_eq!(MapPage::decode(&v.encode()).unwrap(), v);
    }
}

#[test]
fn sizes_are_what_others_reserve_for_them() {
    let mut rng = Rng::new(2);
    for _ in 0..100 {
        assert_eq!(generate::label(&mut rng).encode().len(), LABEL_SIZE);
        assert_eq!(generate::superblock(&mut rng).encode().len(), LABEL_SIZE);
        assert_eq!(generate::table_page(&mut rng).encode().len(), TABLE_PAGE_SIZE);
        assert_eq!(generate::directory_page(&mut rng).encode().len(), DIRECTORY_PAGE_SIZE);
        assert!(generate::map_page(&mut rng, true).encode().len() <= PAGE_SIZE_MAX);
        assert_eq!(generate::encode(&generate::entry(&mut rng)).len() % ENTRY_ALIGN, 0);
    }
    // The largest summary there can be, and what its items were reckoned to take.
    let (block, place) = (VirtualBlock((1 << 48) - 1), u32::MAX - 0xffff);
    let item = |blocks| Item { offset: place, len: 0xffff, content: Content::Data(vec![(block, u128::MAX); blocks]) };
    for blocks in 1..=4 {
        let items = vec![item(blocks); PART_BLOCKS / blocks];
        let reckoned = PART_OVERHEAD + items.len() * item_bytes_max(blocks);
        let previous = Location { segment: SegmentId(u32::MAX), offset: place, len: 0xffff };
        let part = Part { segment: previous.segment, incarnation: COUNTER_LIMIT - 1, previous, items };
        let len = part.encode().len();
        assert!(len <= reckoned && reckoned <= PART_BYTES_MAX && len <= 0xffff, "{blocks}: {len} {reckoned}");
        assert_eq!(Part::decode(&part.encode()).unwrap(), part);
    }
}

/// Calls the decoder; it must not panic, and refuse in one of the three ways there are.
fn refused(kind: &Kind, bytes: &[u8]) -> Option<ErrorKind> {
    let error = (kind.read)(bytes).err()?.kind();
    assert!(
        matches!(error, ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported),
        "{}: refused as {error:?}",
        kind.name
    );
    Some(error)
}

#[test]
fn truncation_is_noticed_at_every_length() {
    let mut rng = Rng::new(3);
    for kind in KINDS {
        let whole = (kind.make)(&mut rng);
        // What follows the padding of an entry is not its own.
        let end = if kind.name == "log-entry" {
            u64::from_le_bytes(whole[48..56].try_into().unwrap()) as usize
        } else {
            whole.len()
        };
        for len in 0..end {
            assert!(refused(kind, &whole[..len]).is_some(), "{}: {len} of {end} bytes are enough", kind.name);
        }
        // And when the checksum was put right.
        for len in (0..end).step_by(1 + end / 300) {
            let mut cut = whole[..len].to_vec();
            (kind.seal)(&mut cut);
            refused(kind, &cut);
        }
    }
}

#[test]
fn damage_never_panics_and_what_is_accepted_is_canonical() {
    let mut rng = Rng::new(4);
    for kind in KINDS {
        let (mut accepted, mut refusals) = (0, 0);
        for _ in 0..3000 {
            let mut bytes = (kind.make)(&mut rng);
            for _ in 0..=rng.index(3) {
                generate::mutate(&mut rng, &mut bytes);
            }
            (kind.seal)(&mut bytes);
            if refused(kind, &bytes).is_some() {
                refusals += 1;
                continue;
            }
            accepted += 1;
            // What a decoder accepts can be written, and read again.
            let written = (kind.read)(&bytes).unwrap();
            assert_eq!((kind.read)(&written).unwrap(), written, "{}", kind.name);
        }
        assert!(refusals > 100, "{}: {accepted} accepted, {refusals} refused", kind.name);
    }
}

#[test]
fn damage_without_a_new_checksum_is_always_noticed() {
    let mut rng = Rng::new(5);
    for kind in KINDS.iter().filter(|k| matches!(k.name, "label" | "superblock" | "part" | "log-entry")) {
        let whole = (kind.make)(&mut rng);
        let end = if kind.name == "log-entry" {
            u64::from_le_bytes(whole[48..56].try_into().unwrap()) as usize
        } else {
            whole.len()
        };
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            bytes[rng.index(end)] ^= 1 << rng.below(8);
            assert!(refused(kind, &bytes).is_some(), "{}", kind.name);
        }
    }
}

#[test]
fn noise_is_refused() {
    let mut rng = Rng::new(6);
    for kind in KINDS {
        for _ in 0..500 {
            let mut bytes = vec![0; rng.index(6000)];
            rng.fill(&mut bytes);
            (kind.seal)(&mut bytes);
            refused(kind, &bytes);
        }
    }
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> (ErrorKind, String) {
    let error = result.expect_err("refused");
    (error.kind(), error.to_string())
}

#[test]
fn unknown_versions_are_refused_with_a_message_that_says_so() {
    let mut rng = Rng::new(7);
    for (kind, at) in [("label", 8), ("superblock", 8), ("catalogue", 4), ("log-entry", 4)] {
        let kind = KINDS.iter().find(|k| k.name == kind).unwrap();
        let mut bytes = (kind.make)(&mut rng);
        bytes[at] = FORMAT_VERSION as u8 + 1;
        (kind.seal)(&mut bytes);
        let (error, text) = message((kind.read)(&bytes));
        assert_eq!(error, ErrorKind::Unsupported, "{text}");
        assert!(
            text.contains(kind.name.trim_end_matches("-entry")) && text.contains(&format!("version {FORMAT_VERSION}")),
            "{text}"
        );
    }
}

#[test]
fn foreign_content_is_told_from_damage() {
    assert_eq!(message(Label::decode(&[0; LABEL_SIZE])).0, ErrorKind::NotFound);
    assert_eq!(message(Superblock::decode(&[0xff; LABEL_SIZE])).0, ErrorKind::NotFound);
    assert_eq!(message(Label::decode(&[])).0, ErrorKind::Corrupt);
    let mut label = generate::label(&mut Rng::new(8)).encode();
    label[100] ^= 1;
    assert_eq!(message(Label::decode(&label)), (ErrorKind::Corrupt, "label: checksum mismatch".into()));
}

#[test]
fn counts_beyond_the_input_are_refused_before_anything_is_allocated() {
    let many = |before: &[u64]| {
        let mut out = Vec::new();
        before.iter().for_each(|&v| out.put_varint(v));
        out.put_varint(1 << 22);
        out
    };
    // Frames, pages, operations of a record; blocks of a write; moves.
    for before in [&[1u64, 1][..], &[1, 1, 0], &[1, 1, 0, 0], &[1, 1, 0, 0, 1, 1, 1, 0], &[1, 1, 0, 0, 1, 3]] {
        let (_, text) = message(Record::decode(&mut Get(&many(before))));
        assert!(text.contains("a count of"), "{before:?}: {text}");
    }
    // Disks, segments, volumes, directory pages of a catalogue.
    for before in [8, 9, 10, 11] {
        let (_, text) = message(Catalogue::decode(&generate::packed(&many(&vec![0; before]))));
        assert!(text.contains("a count of"), "{before}: {text}");
    }
    // Segments, inline data, records of an entry.
    for before in [0, 1, 2] {
        let mut bytes = vec![0; ENTRY_HEADER];
        bytes[..8].copy_from_slice(&[0x41, 0x53, 0x48, 0x4c, FORMAT_VERSION as u8, 0, 0, 0]);
        bytes.extend_from_slice(&many(&vec![0; before]));
        generate::seal_entry(&mut bytes);
        let (_, text) = message(Entry::decode(&bytes));
        assert!(text.contains("a count of"), "{before}: {text}");
    }
}

#[test]
fn catalogue_takes_no_more_memory_than_its_header_says() {
    let bomb = |claimed: u64, zeroes: usize| {
        let mut out = generate::packed(&vec![0; zeroes]);
        out[8..16].copy_from_slice(&claimed.to_le_bytes());
        message(Catalogue::decode(&out)).1
    };
    assert_eq!(bomb(10, 64 << 20), "catalogue: its length is not what its header says");
    assert_eq!(bomb(64 << 20, 10), "catalogue: its length is not what its header says");
    assert_eq!(bomb(u64::MAX, 10), "catalogue: impossible length");
    assert_eq!(bomb((1 << 30) + 1, 10), "catalogue: impossible length");
}

#[test]
fn varints_have_one_form_each() {
    for v in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
        let mut out = Vec::new();
        out.put_varint(v);
        assert_eq!(Get(&out).varint().unwrap(), v);
    }
    for bad in [&[0x80, 0][..], &[0xff, 0x80, 0], &[0xff; 11], &[0x80; 10], &[], &[0x80]] {
        assert_eq!(message(Get(bad).varint()).0, ErrorKind::Corrupt, "{bad:?}");
    }
    assert_eq!(message(Get(&[0xff, 0xff, 0xff, 0xff, 0x1f]).varint32()).0, ErrorKind::Corrupt);
}

#[test]
fn geometry_keeps_all_arithmetic_within_its_types() {
    let mut rng = Rng::new(9);
    for _ in 0..3000 {
        let smallest = rng.u64() >> rng.below(64);
        let chunk = rng.chance(1, 2).then(|| (rng.u64() >> rng.below(64)) & !4095);
        let strip = rng.chance(1, 2).then(|| (rng.u64() >> rng.below(64)) as u32 & !4095);
        let Ok(g) = PoolGeometry::choose(smallest, smallest.saturating_mul(rng.between(1, 96)), chunk, strip) else {
            continue;
        };
        assert_eq!(g.validate().map_err(|e| e.to_string()), Ok(()));
        // The widest layout: data of 16 columns in 32 bits; a log extent takes the unfinished stripes of two streams.
        assert!(g.chunk_size.checked_mul(16).is_some());
        assert!(g.strip_size < 32 << 10 || g.log_extent_size >= 2 * 16 * g.strip_size, "{g:?}");
        assert!(g.chunk(u32::MAX) < 1 << 62);
        let size = smallest.max(g.chunk(1) + EDGE);
        let chunks = g.chunks(size);
        assert!(g.chunk(0) + u64::from(chunks) * u64::from(g.chunk_size) + EDGE <= size);
        assert!(g.tail(size) + EDGE <= size);
    }
    let g = generate::geometry(&mut rng);
    assert_eq!((g.chunks(0), g.tail(0), g.tail(4096)), (0, 0, 0));
    for bad in [
        PoolGeometry { chunk_size: 2 * CHUNK_SIZE_MAX, ..g },
        PoolGeometry { chunk_size: 0, ..g },
        PoolGeometry { strip_size: 0, ..g },
        PoolGeometry { strip_size: 512, ..g },
        PoolGeometry { strip_size: g.chunk_size * 2, ..g },
        PoolGeometry { catalogue_size: !4095, ..g },
        PoolGeometry { log_extent_size: 0, ..g },
        PoolGeometry { log_extent_size: !4095, ..g },
        PoolGeometry { log_extents: u32::MAX, ..g },
        PoolGeometry { log_extents: 1, ..g },
    ] {
        assert!(bad.validate().is_err(), "{bad:?}");
        let label = Label { geometry: bad, ..generate::label(&mut rng) };
        assert_eq!(message(Label::decode(&label.encode())).0, ErrorKind::Corrupt, "{bad:?}");
    }
}

#[test]
fn impossible_values_are_refused() {
    let mut rng = Rng::new(10);
    let label = generate::label(&mut rng);
    for size in [0, 4096, EDGE, 2 * EDGE, u64::MAX] {
        let (_, text) = message(Label::decode(&Label { size, ..label.clone() }.encode()));
        assert!(text.contains("impossible"), "{text}");
    }
    for epoch in [COUNTER_LIMIT, u64::MAX] {
        assert!(Label::decode(&Label { epoch: Epoch(epoch), ..label.clone() }.encode()).is_err());
        let superblock = generate::superblock(&mut rng);
        assert!(Superblock::decode(&Superblock { checkpoint: epoch, ..superblock.clone() }.encode()).is_err());
        assert!(Superblock::decode(&Superblock { log_start: epoch, ..superblock.clone() }.encode()).is_err());
        assert!(Superblock::decode(&Superblock { log_epoch: Epoch(epoch), ..superblock }.encode()).is_err());
    }

    let segment = generate::segment(&mut rng, 8);
    let twice = vec![segment.columns[0]; segment.columns.len().max(2)];
    let wide: Vec<_> = (0..34).map(|i| (DiskId(i), ChunkIndex(0))).collect();
    for bad in [
        SegmentRecord { data: 0, ..segment.clone() },
        SegmentRecord { data: 255, parity: 2, ..segment.clone() },
        SegmentRecord { data: 32, parity: 2, columns: wide, stale_columns: 0, ..segment.clone() },
        SegmentRecord { parity: 3, ..segment.clone() },
        SegmentRecord { data: twice.len() as u8, parity: 0, columns: twice, ..segment.clone() },
        SegmentRecord { stale_columns: 1 << segment.columns.len(), ..segment.clone() },
        SegmentRecord { live: 1 << 32, ..segment.clone() },
        SegmentRecord { incarnation: u64::MAX, ..segment.clone() },
        SegmentRecord { last_part: Location { offset: u32::MAX, len: 1, ..Location::default() }, ..segment.clone() },
    ] {
        let mut out = Vec::new();
        bad.encode(&mut out);
        assert_eq!(message(SegmentRecord::decode(&mut Get(&out))).0, ErrorKind::Corrupt, "{bad:?}");
    }

    let volume = generate::volume(&mut rng);
    for bad in [
        VolumeRecord { levels: 0, ..volume.clone() },
        VolumeRecord { levels: 5, ..volume.clone() },
        VolumeRecord { blocks: u64::MAX, ..volume.clone() },
        VolumeRecord { root: VirtualBlock(1 << 48), ..volume.clone() },
        VolumeRecord { id: VolumeId(u32::MAX), ..volume.clone() },
        VolumeRecord { name: "n".repeat(256), ..volume.clone() },
        VolumeRecord { handed: (1 << 36) + 1, ..volume.clone() },
        VolumeRecord { owned: (1 << 36) + 1, ..volume.clone() },
        VolumeRecord { reserved: (1 << 36) + 1, ..volume.clone() },
    ] {
        let mut out = Vec::new();
        bad.encode(&mut out);
        assert_eq!(message(VolumeRecord::decode(&mut Get(&out))).0, ErrorKind::Corrupt, "{bad:?}");
    }

    let frame = Frame { at: Location::default(), codec: Codec::Raw, blocks: 1, raw_len: 4096 };
    let new = |frame, index| BlockRef::New { block: VirtualBlock(1), frame, index, fingerprint: 0 };
    let write = |lba, blocks| Op::Write { volume: VolumeId(1), lba: Lba(lba), blocks };
    for bad in [
        write(0, vec![new(1, 0)]),
        write(0, vec![new(0, 1)]),
        write(0, vec![BlockRef::Shared(VirtualBlock::NONE)]),
        write(u64::MAX, vec![BlockRef::Zero]),
        write((1 << 36) - 1, vec![BlockRef::Zero; 2]),
        Op::Unmap { volume: VolumeId(1), lba: Lba(u64::MAX), count: 1 },
        Op::Unmap { volume: VolumeId(1), lba: Lba(1), count: u64::MAX },
        Op::HandOver { volume: VolumeId(1), to: Lba((1 << 36) + 1), blocks: vec![] },
        Op::HandOver { volume: VolumeId(1), to: Lba(1), blocks: vec![VirtualBlock::NONE] },
        Op::Clear { volume: VolumeId(1), lba: Lba(1 << 36), slots: vec![] },
        Op::Clear { volume: VolumeId(1), lba: Lba(1), slots: vec![512] },
    ] {
        let record = Record { frames: vec![frame], ops: vec![bad], ..Record::default() };
        assert!(Record::decode(&mut Get(&generate::encode_record(&record))).is_err(), "{record:?}");
    }
    for bad in [Frame { blocks: 9, ..frame }, Frame { raw_len: u16::MAX, ..frame }] {
        let record = Record { frames: vec![bad], ..Record::default() };
        assert!(Record::decode(&mut Get(&generate::encode_record(&record))).is_err(), "{bad:?}");
    }

    let catalogue = Catalogue {
        disks: vec![DiskRecord {
            id: DiskId(0),
            uuid: Uuid([1; 16]),
            size: 1 << 30,
            last_checkpoint: 1,
            service: Service::Serving,
            declared: false,
            set: 0,
            errors: DiskErrors::default(),
            traffic: DiskTraffic::default(),
        }],
        table_len: 128,
        ..Catalogue::default()
    };
    Catalogue::decode(&catalogue.encode().unwrap()).unwrap();
    let disk = catalogue.disks[0].clone();
    for bad in [
        Catalogue { table_len: 1 << 48, ..catalogue.clone() },
        Catalogue { table_len: 129, ..catalogue.clone() },
        Catalogue { disks: vec![disk.clone(), disk.clone()], ..catalogue.clone() },
        Catalogue { disks: vec![disk.clone(), DiskRecord { id: DiskId(1), ..disk }], ..catalogue.clone() },
        Catalogue { disks: Vec::new(), segments: vec![segment.clone()], ..catalogue.clone() },
        Catalogue { volumes: vec![volume.clone(), volume], ..catalogue.clone() },
        Catalogue { record: u64::MAX, ..catalogue },
    ] {
        assert_eq!(message(Catalogue::decode(&bad.encode().unwrap())).0, ErrorKind::Corrupt, "{bad:?}");
    }
}

/// What a catalogue takes is what its place is measured by.
#[test]
fn a_full_pool_fits_its_catalogue() {
    const TB: u64 = 1_000_000_000_000;
    let room = |g: &PoolGeometry| (f64::from(g.catalogue_size) * CATALOGUE_FULL) as u64;
    for (disks, size) in [(2, 64 << 20), (3, 1 << 30), (6, 64 << 30), (24, 20 * TB), (96, 20 * TB), (96, 1 << 30)] {
        let g = PoolGeometry::choose(size, size * disks, None, None).unwrap();
        g.check_catalogue(size * disks).unwrap_or_else(|e| panic!("{disks} disks of {size}: {e}"));
        assert!(g.chunk(0) < size / 2, "{disks} disks of {size}: {g:?}");
    }
    let small = PoolGeometry::choose(1 << 30, 3 << 30, None, None).unwrap();
    let refused = small.check_catalogue(20 * TB).unwrap_err().to_string();
    assert!(refused.contains("of catalogue, and it has room for"), "{refused}");
    assert!(room(&small) < small.catalogue_needed(20 * TB));

    // Segments of all widths and the pointers for what they hold, as large as their numbers can be.
    let mut rng = crate::env::Rng::new(3);
    for (data, parity) in [(1u8, 1u8), (2, 1), (4, 2), (16, 2)] {
        let columns = usize::from(data + parity);
        let segments: Vec<SegmentRecord> = (0..20_000u32)
            .map(|i| SegmentRecord {
                id: SegmentId(i * 40),
                incarnation: 1_000_000 + rng.below(1 << 20),
                stream: Stream::Data,
                data,
                parity,
                columns: (0..columns).map(|c| (DiskId(c as u16), ChunkIndex(rng.below(150_000) as u32))).collect(),
                sealed: true,
                written: rng.below(2 << 30) as u32,
                live: rng.below(2 << 30),
                last_part: Location { segment: SegmentId(i * 40), offset: rng.below(2 << 30) as u32, len: 60_000 },
                stale_columns: 0,
                damaged: false,
            })
            .collect();
        let total = segments.len() as u64 * columns as u64 * (128 << 20);
        let pointers = segments.len() * usize::from(data);
        let directory: Vec<PagePtr> = (0..pointers)
            .map(|_| PagePtr {
                at: Location {
                    segment: SegmentId(rng.below(800_000) as u32),
                    offset: rng.below(2 << 30) as u32,
                    len: 6000,
                },
                codec: Codec::Zstd,
                checksum: rng.u64(),
                used: rng.below(30_000) as u32 as _,
            })
            .collect();
        let table_len = directory.len() as u64 * 256 * 128;
        let catalogue = Catalogue { segments, directory, table_len, ..Catalogue::default() };
        let encoded = catalogue.encode().unwrap().len() as u64;
        let g = PoolGeometry::choose(20 * TB, total, None, None).unwrap();
        let needed = g.catalogue_needed(total);
        assert!(encoded <= needed, "{data}+{parity}: {encoded} bytes, {needed} were to be enough");
    }
}
