//! The format as bytes written down: what changes it by accident changes these.

use super::imports::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Digits without the blanks and line ends that make them readable.
fn digits(text: &str) -> String {
    text.split_whitespace().collect()
}

#[test]
fn label() {
    let geometry = PoolGeometry {
        chunk_size: 0x0004_0000,
        strip_size: 0x0001_0000,
        catalogue_size: 0x0002_0000,
        log_extent_size: 0x0003_0000,
        log_extents: 4,
    };
    let bytes = Label {
        pool: Uuid([0x11; 16]),
        pool_name: "tank".into(),
        disk: Uuid([0x22; 16]),
        id: DiskId(0x0304),
        epoch: Epoch(0x0102),
        tolerance: Tolerance::Double,
        geometry,
        size: 0x4000_0000,
        absent: 0,
    }
    .encode();
    let expected = "4153484c41524c42 08000000 11111111111111111111111111111111 22222222222222222222222222222222
        0403 02 0201000000000000 0000004000000000 00000400 00000100 00000200 00000300 04000000 04 74616e6b";
    assert_eq!(hex(&bytes[..88]), digits(expected));
    assert!(bytes[88..4088].iter().all(|&b| b == 0));
    assert_eq!(hex(&bytes[4088..]), LABEL_SUM);
}

#[test]
fn superblock() {
    let bytes = Superblock {
        pool: Uuid([0x11; 16]),
        epoch: Epoch(2),
        checkpoint: 3,
        log_start: 4,
        catalogue_len: 5,
        catalogue_checksum: 0x0807_0605_0403_0201,
        log_epoch: Epoch(9),
    }
    .encode();
    let expected = "4153484c41525342 08000000 11111111111111111111111111111111
        0200000000000000 0300000000000000 0400000000000000 05000000 0102030405060708
        0900000000000000";
    assert_eq!(hex(&bytes[..72]), digits(expected));
    assert!(bytes[72..4088].iter().all(|&b| b == 0));
    assert_eq!(hex(&bytes[4088..]), SUPERBLOCK_SUM);
}

fn segment() -> SegmentRecord {
    SegmentRecord {
        id: SegmentId(5),
        incarnation: 300,
        stream: Stream::Cold,
        data: 2,
        parity: 1,
        columns: vec![(DiskId(2), ChunkIndex(7)), (DiskId(0), ChunkIndex(200)), (DiskId(1), ChunkIndex(9))],
        sealed: true,
        written: 0x2_0000,
        live: 4096,
        last_part: Location { segment: SegmentId(5), offset: 128, len: 64 },
        stale_columns: 0b101,
        damaged: true,
    }
}

const SEGMENT: &str = "05 ac02 c1 02 01 0207 00c801 0109 808008 8020 05800140 05";

fn volume() -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(3),
        name: "db".into(),
        blocks: 262_144,
        root: VirtualBlock(130),
        levels: 2,
        mapped: 5,
        owned: 4,
        reserved: 300,
        generation: 1,
        deleting: false,
        created_s: 1_800_000_000,
        attachment: "nbd".into(),
        snapshot_of: VolumeId(0),
        parent: VolumeId(0),
        family: VolumeId(3),
        root_birth: 1,
        handed: 128,
        protection: Protection {
            group: 1,
            policy: 2,
            since_s: 5,
            rule: 128,
            expires_s: 300,
            secure: true,
            quiesced: true,
        },
    }
}

fn setting() -> Setting {
    Setting { name: "a/1".into(), value: b"{}".to_vec() }
}

const VOLUME: &str =
    "03 026462 808010 8201 02 05 04 ac02 01 00 80a4a7da06 036e6264 00 00 03 01 8001 01 02 8001 05 ac02 03";

#[test]
fn segment_and_volume_records() {
    let mut bytes = Vec::new();
    segment().encode(&mut bytes);
    assert_eq!(hex(&bytes), digits(SEGMENT));
    bytes.clear();
    volume().encode(&mut bytes);
    assert_eq!(hex(&bytes), digits(VOLUME));
}

#[test]
fn catalogue() {
    let disk = |id: u16, service| DiskRecord {
        id: DiskId(id),
        uuid: Uuid([id as u8; 16]),
        size: 1 << 30,
        last_checkpoint: 8,
        service,
        declared: false,
        set: id + 1,
        errors: DiskErrors { read: 1, write: 2, checksum: 128 },
        traffic: DiskTraffic { read: 5, written: 300 },
    };
    let catalogue = Catalogue {
        record: 1000,
        seqno: 2000,
        next_incarnation: 301,
        next_volume: 4,
        table_len: 256,
        disks: vec![disk(0, Service::Serving), disk(1, Service::Away), disk(2, Service::Empty)],
        segments: vec![segment()],
        volumes: vec![volume()],
        directory: vec![PagePtr {
            at: Location { segment: SegmentId(1), offset: 2, len: 3 },
            codec: Codec::Zstd,
            checksum: 4,
            used: 5,
        }],
        unique_bytes: 8192,
        stored_bytes: 3000,
        referenced_bytes: 9000,
        scrub: ScrubRecord { begun_s: 200, ended_s: 201, next: 3, end: 4, repaired: 5, damaged: 6 },
        tolerance: Tolerance::Double,
        guaranteed: Tolerance::Single,
        mixed: true,
        clock_s: 301,
        settings: vec![setting()],
    };
    let bytes = catalogue.encode().unwrap();
    let body = super::generate::body_of(&bytes);
    assert_eq!(hex(&bytes[..16]), format!("4153484308000000{}", hex(&(body.len() as u64).to_le_bytes())));
    let expected = format!(
        "e807 d00f ad02 04 8002 8040 b817 a846
         03 00 00000000000000000000000000000000 8080808004 08 00 01 01 02 8001 05 ac02
            01 01010101010101010101010101010101 8080808004 08 01 02 01 02 8001 05 ac02
            02 02020202020202020202020202020202 8080808004 08 03 03 01 02 8001 05 ac02
         01 {SEGMENT} 01 {VOLUME} 01 01000000 02000000 0300 02 00 05000000 0400000000000000
         c801 c901 03 04 05 06 02 01 01 ad02 01 03612f31 027b7d"
    );
    assert_eq!(hex(&body), digits(&expected));
}

#[test]
fn log_entry_with_every_operation() {
    let new = BlockRef::New { block: VirtualBlock(300), frame: 0, index: 1, fingerprint: 0x0102 };
    let at = Location { segment: SegmentId(5), offset: 1024, len: 100 };
    let record = Record {
        number: 7,
        seqno: Seqno(130),
        frames: vec![Frame { at, codec: Codec::Lz4, blocks: 2, raw_len: 8192 }],
        pages: vec![VirtualBlock(128), VirtualBlock(2)],
        ops: vec![
            Op::Write {
                volume: VolumeId(3),
                lba: Lba(512),
                blocks: vec![BlockRef::Zero, BlockRef::Shared(VirtualBlock(9)), new],
            },
            Op::Unmap { volume: VolumeId(3), lba: Lba(1), count: 128 },
            Op::Relocate(vec![Move {
                block: VirtualBlock(10),
                from: (SegmentId(4), 256),
                frame: 0,
                index: 0,
                fingerprint: u128::MAX,
            }]),
            Op::OpenSegment(segment()),
            Op::ClosePart { at },
            Op::SealSegment(SegmentId(4)),
            Op::PutVolume(volume()),
            Op::DropVolume(VolumeId(2)),
            Op::MoveColumns {
                segment: SegmentId(4),
                incarnation: 300,
                columns: vec![ColumnMove {
                    column: 1,
                    from: (DiskId(2), ChunkIndex(128)),
                    to: (DiskId(7), ChunkIndex(5)),
                }],
            },
            Op::Snapshot(volume()),
            Op::Clone(volume()),
            Op::HandOver { volume: VolumeId(3), to: Lba(512), blocks: vec![VirtualBlock(9), VirtualBlock(300)] },
            Op::Clear { volume: VolumeId(3), lba: Lba(512), slots: vec![0, 511] },
            Op::Set(setting()),
            Op::Clock(300),
        ],
    };
    let inline = Inline { segment: SegmentId(5), offset: 1024, data: vec![0xaa, 0xbb] };
    let entry = Entry {
        pool: Uuid([0x11; 16]),
        epoch: Epoch(2),
        extent: 3,
        number: 4,
        durable: vec![(SegmentId(5), 1024)],
        inline: vec![inline],
        records: vec![record],
    };
    let bytes = super::generate::encode(&entry);
    let fingerprint = "02010000000000000000000000000000";
    let body = digits(&format!(
        "01 05 8008   01 05 8008 02 aabb   01
         07 8201   01 05 8008 64 01 02 0020   02 8001 02   0f
         01 03 8004 03  00  01 09  02 ac02 00 01 {fingerprint}
         02 03 01 8001
         03 01 0a 04 8002 00 00 ffffffffffffffffffffffffffffffff
         04 {SEGMENT}
         05 05 8008 64
         06 04
         07 {VOLUME}
         08 02
         09 04 ac02 01 01 02 8001 07 05
         0a {VOLUME}
         0b {VOLUME}
         0c 03 8004 02 09 ac02
         0d 03 8004 02 00 ff03
         0e 03612f31 027b7d
         0f ac02"
    ));
    let len = 64 + body.len() / 2;
    let header = "4153484c 08000000 11111111111111111111111111111111
        0200000000000000 0300000000000000 0400000000000000";
    assert_eq!(hex(&bytes[..48]), digits(header));
    assert_eq!(hex(&bytes[48..56]), hex(&(len as u64).to_le_bytes()));
    assert_eq!(hex(&bytes[56..64]), ENTRY_SUM);
    assert_eq!(hex(&bytes[64..len]), body);
    assert!(bytes.len() == 4096 && bytes[len..].iter().all(|&b| b == 0));
}

#[test]
fn part_summary() {
    let items = [
        Content::Data(vec![(VirtualBlock(300), 0x0102), (VirtualBlock(0), 0)]),
        Content::MapPage(VirtualBlock(6)),
        Content::TablePage(7),
        Content::DirectoryPage(8),
    ];
    let items =
        items.into_iter().zip([0u32, 128, 256, 384]).map(|(content, offset)| Item { offset, len: 100, content });
    let previous = Location { segment: SegmentId(5), offset: 1024, len: 200 };
    let part = Part { segment: SegmentId(5), incarnation: 300, previous, items: items.collect() };
    let bytes = part.encode();
    let body = digits(
        "41534854 48000000 05 ac02 8008 c801 04
         00 64 02 ac02 02010000000000000000000000000000 00 00000000000000000000000000000000
         8001 64 ff 06   8002 64 fe 07   8003 64 fd 08",
    );
    assert_eq!(hex(&bytes[..bytes.len() - 8]), body.replacen("48000000", &hex(&(bytes.len() as u32).to_le_bytes()), 1));
    assert_eq!(hex(&bytes[bytes.len() - 8..]), PART_SUM);
}

#[test]
fn pages() {
    let at = Location { segment: SegmentId(0x0102_0304), offset: 0x0506_0708, len: 0x090a };
    let mut table = TablePage::default();
    table.0[1] = BlockEntry {
        frame: at,
        codec: Codec::Zstd,
        index: 1,
        frame_blocks: 4,
        kind: BlockKind::MapPage,
        refcount: 0x1112_1314,
        checksum: 0x2122_2324_2526_2728,
        raw_len: 0x4000,
        interval: 0x3132_3334,
    };
    let bytes = table.encode();
    assert_eq!(
        hex(&bytes[32..64]),
        digits("04030201 08070605 0a09 02 01 01 04 0040 14131211 34333231 2827262524232221")
    );
    assert!(bytes[..32].iter().chain(&bytes[64..]).all(|&b| b == 0) && bytes.len() == 4096);

    let mut directory = DirectoryPage::default();
    directory.0[1] = PagePtr { at, codec: Codec::Lz4, checksum: 0x2122_2324_2526_2728, used: 0x1112_1314 };
    let bytes = directory.encode();
    assert_eq!(hex(&bytes[24..48]), digits("04030201 08070605 0a09 01 00 14131211 2827262524232221"));
    assert!(bytes[..24].iter().chain(&bytes[48..]).all(|&b| b == 0) && bytes.len() == 6144);

    let mut map = MapPage::new(VolumeId(3), 1, 0x0102);
    map.set(1, VirtualBlock(0x0000_0a0b_0c0d_0e0f), 9);
    let bytes = map.encode();
    assert_eq!(hex(&bytes[..25]), digits("03000000 01 0201000000000000 000000000000 0f0e0d0c0b0a"));
    assert!(bytes[25..3085].iter().all(|&b| b == 0));
    assert_eq!(hex(&bytes[3085..]), digits("00 09000000"));
    map.set(0, VirtualBlock(1), 10);
    let bytes = map.encode();
    assert_eq!(hex(&bytes[3085..3098]), digits("01 0a000000 09000000 09000000"));
    assert_eq!(bytes.len(), 3086 + 2048);
}

/// Checksums of the structures above: XXH3 as the reference implementation computes it.
const LABEL_SUM: &str = "99026f2393980c3b";
const SUPERBLOCK_SUM: &str = "8cf3e573df7c2d3d";
const ENTRY_SUM: &str = "2c801510da3ef421";
const PART_SUM: &str = "37072583a80d38d5";
