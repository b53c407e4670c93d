//! Random structures, and the same treatment for all of them: bytes, reading back, breaking. Shared by the unit tests and the
//! integration tests: whoever includes it declares a module `imports` with the engine's names beside it.

use super::imports::*;

/// One kind of structure on disk.
pub struct Kind {
    /// Name, also of its golden image.
    pub name: &'static str,
    /// A random one, encoded.
    pub make: fn(&mut Rng) -> Vec<u8>,
    /// Decodes, and encodes what came out.
    pub read: fn(&[u8]) -> Result<Vec<u8>>,
    /// Puts lengths and checksums right after a change, so that a decoder looks further.
    pub seal: fn(&mut Vec<u8>),
}

/// All of them.
pub const KINDS: &[Kind] = &[
    Kind { name: "label", make: |r| label(r).encode(), read: |d| Label::decode(d).map(|v| v.encode()), seal: seal_end },
    Kind {
        name: "superblock",
        make: |r| superblock(r).encode(),
        read: |d| Superblock::decode(d).map(|v| v.encode()),
        seal: seal_end,
    },
    Kind {
        name: "catalogue",
        make: |r| catalogue(r).encode().expect("zstd packs"),
        read: |d| Catalogue::decode(d)?.encode(),
        seal: |_| {},
    },
    Kind {
        name: "catalogue-body",
        make: |r| body_of(&catalogue(r).encode().expect("zstd packs")),
        read: |d| Ok(body_of(&Catalogue::decode(&packed(d))?.encode()?)),
        seal: |_| {},
    },
    Kind {
        name: "log-entry",
        make: |r| encode(&entry(r)),
        read: |d| Entry::decode(d).map(|(v, _)| encode(&v)),
        seal: seal_entry,
    },
    Kind {
        name: "log-record",
        make: |r| encode_record(&record(r)),
        read: |d| {
            let mut get = Get(d);
            let out = Record::decode(&mut get)?;
            get.finish()?;
            Ok(encode_record(&out))
        },
        seal: |_| {},
    },
    Kind { name: "part", make: |r| part(r).encode(), read: |d| Part::decode(d).map(|v| v.encode()), seal: seal_part },
    Kind {
        name: "table-page",
        make: |r| table_page(r).encode(),
        read: |d| TablePage::decode(d).map(|v| v.encode()),
        seal: |_| {},
    },
    Kind {
        name: "directory-page",
        make: |r| directory_page(r).encode(),
        read: |d| DirectoryPage::decode(d).map(|v| v.encode()),
        seal: |_| {},
    },
    Kind {
        name: "map-page-uniform",
        make: |r| map_page(r, false).encode(),
        read: |d| MapPage::decode(d).map(|v| v.encode()),
        seal: |_| {},
    },
    Kind {
        name: "map-page-each",
        make: |r| map_page(r, true).encode(),
        read: |d| MapPage::decode(d).map(|v| v.encode()),
        seal: |_| {},
    },
];

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(slot) = out.get_mut(at..at + bytes.len()) {
        slot.copy_from_slice(bytes);
    }
}

#[expect(clippy::ptr_arg, reason = "one of several functions of this type")]
fn seal_end(data: &mut Vec<u8>) {
    if let Some(at) = data.len().checked_sub(8) {
        let sum = checksum(&data[..at]);
        put(data, at, &sum.to_le_bytes());
    }
}

fn seal_part(data: &mut Vec<u8>) {
    let len = data.len() as u32;
    put(data, 4, &len.to_le_bytes());
    seal_end(data);
}

#[expect(clippy::ptr_arg, reason = "one of several functions of this type")]
/// The checksum of an entry covers its header and its body, not itself nor the padding.
pub fn seal_entry(data: &mut Vec<u8>) {
    let Some(len) = data.get(48..56) else { return };
    let len = u64::from_le_bytes(len.try_into().expect("8 bytes"));
    let len = if (64..=data.len() as u64).contains(&len) { len as usize } else { data.len() };
    if len < 64 {
        return;
    }
    put(data, 48, &(len as u64).to_le_bytes());
    let covered = [&data[..56], &data[64..len]].concat();
    let sum = xxhash_rust::xxh3::xxh3_64(&covered);
    put(data, 56, &sum.to_le_bytes());
}

/// A catalogue's body, as it is before compression.
pub fn body_of(encoded: &[u8]) -> Vec<u8> {
    zstd::stream::decode_all(&encoded[16..]).expect("what was packed")
}

/// A catalogue with this body.
pub fn packed(body: &[u8]) -> Vec<u8> {
    let mut out = 0x4348_5341u32.to_le_bytes().to_vec();
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&(body.len() as u64).to_le_bytes());
    out.extend_from_slice(&zstd::bulk::compress(body, 1).expect("zstd packs"));
    out
}

/// Changes something.
pub fn mutate(rng: &mut Rng, data: &mut Vec<u8>) {
    let len = data.len();
    if len == 0 {
        data.push(rng.u64() as u8);
        return;
    }
    // Where structures have content: many end in padding.
    let at = if rng.chance(1, 2) { rng.index(len.min(100)) } else { rng.index(len) };
    let end = (at + 1 + rng.index(16)).min(len);
    match rng.below(8) {
        0 => data[at] ^= 1 << rng.below(8),
        1 => data[at] = rng.u64() as u8,
        2 => data[at..end].fill(0xff),
        3 => data[at..end].fill(0),
        4 => data.truncate(at),
        5 => drop(data.drain(at..end)),
        6 => {
            let copy = data[at..end].to_vec();
            let to = rng.index(len);
            data.splice(to..to, copy);
        }
        // A number that is larger than all there is.
        _ => put(data, at, &(rng.u64() >> rng.below(64)).to_le_bytes()),
    }
}

/// Numbers of all magnitudes, below `limit`.
fn number(rng: &mut Rng, limit: u64) -> u64 {
    let bits = rng.below(65) as u32;
    let mask = u64::MAX.checked_shr(64 - bits).unwrap_or(0);
    (rng.u64() & mask) % limit
}

fn uuid(rng: &mut Rng) -> Uuid {
    let mut out = [0; 16];
    rng.fill(&mut out);
    Uuid(out)
}

fn text(rng: &mut Rng, max: usize) -> String {
    (0..rng.index(max + 1)).map(|_| *b"abcXYZ019._-".get(rng.index(12)).expect("12 letters") as char).collect()
}

fn block(rng: &mut Rng) -> VirtualBlock {
    VirtualBlock(1 + number(rng, (1 << 48) - 1))
}

fn fingerprint(rng: &mut Rng) -> u128 {
    u128::from(rng.u64()) << 64 | u128::from(rng.u64())
}

fn location(rng: &mut Rng) -> Location {
    let len = number(rng, 1 << 16);
    Location {
        segment: SegmentId(number(rng, 1 << 32) as u32),
        offset: number(rng, (1 << 32) - len) as u32,
        len: len as u16,
    }
}

fn codec(rng: &mut Rng) -> Codec {
    [Codec::Raw, Codec::Lz4, Codec::Zstd][rng.index(3)]
}

/// A geometry as pools have.
pub fn geometry(rng: &mut Rng) -> PoolGeometry {
    let smallest = 1 << rng.between(25, 45);
    PoolGeometry::choose(smallest, smallest * rng.between(1, 96), None, None).expect("a geometry for any disk")
}

/// See [`KINDS`].
pub fn label(rng: &mut Rng) -> Label {
    let geometry = geometry(rng);
    Label {
        pool: uuid(rng),
        pool_name: text(rng, 63),
        disk: uuid(rng),
        id: DiskId(number(rng, 1 << 16) as u16),
        epoch: Epoch(number(rng, COUNTER_LIMIT)),
        tolerance: [Tolerance::None, Tolerance::Single, Tolerance::Double][rng.index(3)],
        size: geometry.chunk(16) + EDGE + number(rng, 1 << 50),
        geometry,
        absent: u128::from(rng.u64()) << 7,
    }
}

/// See [`KINDS`].
pub fn superblock(rng: &mut Rng) -> Superblock {
    Superblock {
        pool: uuid(rng),
        epoch: Epoch(number(rng, COUNTER_LIMIT)),
        checkpoint: number(rng, COUNTER_LIMIT),
        log_start: number(rng, COUNTER_LIMIT),
        catalogue_len: number(rng, 1 << 32) as u32,
        catalogue_checksum: rng.u64(),
        log_epoch: Epoch(number(rng, COUNTER_LIMIT)),
    }
}

/// A segment on some of `disks` disks.
pub fn segment(rng: &mut Rng, disks: u64) -> SegmentRecord {
    let parity = rng.below(3).min(disks - 1) as u8;
    let data = rng.between(1, (disks - u64::from(parity)).min(16)) as u8;
    let mut on: Vec<u16> = (0..disks as u16).collect();
    rng.shuffle(&mut on);
    let columns: Vec<_> = on[..usize::from(data + parity)]
        .iter()
        .map(|&disk| (DiskId(disk), ChunkIndex(number(rng, 1 << 32) as u32)))
        .collect();
    SegmentRecord {
        id: SegmentId(number(rng, 1 << 32) as u32),
        incarnation: number(rng, COUNTER_LIMIT),
        stream: [Stream::Data, Stream::Cold, Stream::Meta][rng.index(3)],
        data,
        parity,
        stale_columns: rng.below(1 << columns.len()) as u32,
        columns,
        sealed: rng.chance(1, 2),
        written: number(rng, 1 << 32) as u32,
        live: number(rng, 1 << 32),
        last_part: location(rng),
        damaged: rng.chance(1, 4),
    }
}

fn column_move(rng: &mut Rng) -> ColumnMove {
    let mut place = || (DiskId(rng.below(96) as u16), ChunkIndex(number(rng, 1 << 32) as u32));
    let (from, to) = (place(), place());
    ColumnMove { column: rng.below(32) as u8, from, to }
}

/// See [`KINDS`].
pub fn volume(rng: &mut Rng) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(number(rng, u32::MAX.into()) as u32),
        name: text(rng, 63),
        blocks: number(rng, (1 << 36) + 1),
        root: VirtualBlock(number(rng, 1 << 48)),
        levels: rng.between(1, 4) as u8,
        mapped: number(rng, (1 << 36) + 1),
        owned: number(rng, (1 << 36) + 1),
        reserved: number(rng, (1 << 36) + 1),
        generation: number(rng, 1 << 32) as u32,
        deleting: rng.chance(1, 4),
        created_s: number(rng, u64::MAX),
        attachment: text(rng, 255),
        snapshot_of: VolumeId(if rng.chance(1, 2) { number(rng, u32::MAX.into()) as u32 } else { 0 }),
        parent: VolumeId(number(rng, u32::MAX.into()) as u32),
        family: VolumeId(number(rng, u32::MAX.into()) as u32),
        root_birth: number(rng, 1 << 32) as u32,
        handed: number(rng, (1 << 36) + 1),
        protection: Protection {
            group: number(rng, 1 << 32) as u32,
            policy: number(rng, 1 << 32) as u32,
            since_s: number(rng, COUNTER_LIMIT),
            rule: number(rng, 1 << 32) as u32,
            expires_s: number(rng, COUNTER_LIMIT),
            secure: rng.chance(1, 2),
            quiesced: rng.chance(1, 2),
        },
    }
}

fn setting(rng: &mut Rng) -> Setting {
    Setting { name: format!("{}.", text(rng, 200)), value: text(rng, 300).into_bytes() }
}

/// See [`KINDS`].
pub fn catalogue(rng: &mut Rng) -> Catalogue {
    let disks = rng.between(1, 24);
    let directory: Vec<PagePtr> = (0..rng.index(9)).map(|_| pointer(rng)).collect();
    let mut segments: Vec<SegmentRecord> = (0..rng.index(20)).map(|_| segment(rng, disks)).collect();
    segments.sort_by_key(|s| s.id);
    segments.dedup_by_key(|s| s.id);
    let mut volumes: Vec<VolumeRecord> = (0..rng.index(9)).map(|_| volume(rng)).collect();
    volumes.sort_by_key(|v| v.id);
    volumes.dedup_by_key(|v| v.id);
    let mut before: Option<VolumeRecord> = None;
    for volume in &mut volumes {
        volume.parent = VolumeId(0);
        if let Some(parent) = before.filter(|p| p.is_snapshot() && p.id.0 > 0 && p.generation < u32::MAX) {
            (volume.parent, volume.family, volume.generation) = (parent.id, parent.family, parent.generation + 1);
            volume.levels = volume.levels.max(parent.levels);
        }
        before = Some(volume.clone());
    }
    let mut settings: Vec<Setting> = (0..rng.index(5)).map(|_| setting(rng)).collect();
    settings.retain(|s| !s.value.is_empty());
    settings.sort_by(|a, b| a.name.cmp(&b.name));
    settings.dedup_by(|a, b| a.name == b.name);
    Catalogue {
        record: number(rng, COUNTER_LIMIT),
        seqno: number(rng, COUNTER_LIMIT),
        next_incarnation: number(rng, COUNTER_LIMIT),
        next_volume: number(rng, 1 << 32) as u32,
        table_len: rng.below(256 * directory.len() as u64 + 1) * 128,
        disks: (0..disks)
            .map(|i| DiskRecord {
                id: DiskId(i as u16),
                uuid: uuid(rng),
                size: number(rng, 1 << 50),
                last_checkpoint: number(rng, COUNTER_LIMIT),
                service: [Service::Serving, Service::Away, Service::GivenUp, Service::Empty][rng.index(4)],
                declared: rng.chance(1, 4),
                set: rng.below(4) as u16,
                errors: DiskErrors { read: number(rng, 1 << 20), write: rng.below(9), checksum: number(rng, 1 << 40) },
                traffic: DiskTraffic { read: number(rng, COUNTER_LIMIT), written: number(rng, COUNTER_LIMIT) },
            })
            .collect(),
        segments,
        volumes,
        directory,
        unique_bytes: number(rng, COUNTER_LIMIT),
        stored_bytes: number(rng, COUNTER_LIMIT),
        referenced_bytes: number(rng, COUNTER_LIMIT),
        scrub: ScrubRecord {
            begun_s: number(rng, COUNTER_LIMIT),
            ended_s: number(rng, COUNTER_LIMIT),
            next: number(rng, COUNTER_LIMIT),
            end: number(rng, COUNTER_LIMIT),
            repaired: number(rng, COUNTER_LIMIT),
            damaged: number(rng, COUNTER_LIMIT),
        },
        tolerance: [Tolerance::None, Tolerance::Single, Tolerance::Double][rng.index(3)],
        guaranteed: [Tolerance::None, Tolerance::Single, Tolerance::Double][rng.index(3)],
        mixed: rng.chance(1, 2),
        clock_s: number(rng, COUNTER_LIMIT),
        settings,
    }
}

fn pointer(rng: &mut Rng) -> PagePtr {
    let (at, codec) = (location(rng), codec(rng));
    PagePtr { at, codec, checksum: rng.u64(), used: number(rng, 1 << 32) as u32 }
}

fn op(rng: &mut Rng, frames: &[Frame]) -> Op {
    let place = |rng: &mut Rng| {
        let frame = rng.index(frames.len());
        (frame as u32, rng.below(frames[frame].blocks.into()) as u8)
    };
    let volume_id = VolumeId(number(rng, u32::MAX.into()) as u32);
    let count = rng.below(20);
    let lba = Lba(number(rng, (1 << 36) - count));
    match rng.below(15) {
        7 => Op::MoveColumns {
            segment: location(rng).segment,
            incarnation: number(rng, COUNTER_LIMIT),
            columns: (0..rng.index(3)).map(|_| column_move(rng)).collect(),
        },
        0 => Op::Unmap { volume: volume_id, lba, count: number(rng, (1 << 36) - lba.0 + 1) },
        1 if !frames.is_empty() => Op::Relocate(
            (0..count)
                .map(|_| {
                    let (frame, index) = place(rng);
                    let from = location(rng);
                    Move {
                        block: block(rng),
                        from: (from.segment, from.offset),
                        frame,
                        index,
                        fingerprint: fingerprint(rng),
                    }
                })
                .collect(),
        ),
        2 => Op::OpenSegment(segment(rng, 12)),
        3 => Op::ClosePart { at: location(rng) },
        4 => Op::SealSegment(location(rng).segment),
        5 => Op::PutVolume(volume(rng)),
        6 => Op::DropVolume(volume_id),
        8 => Op::Snapshot(volume(rng)),
        12 => Op::Set(setting(rng)),
        13 => Op::Clock(number(rng, COUNTER_LIMIT)),
        9 => Op::Clone(volume(rng)),
        10 => Op::HandOver { volume: volume_id, to: lba, blocks: (0..count).map(|_| block(rng)).collect() },
        11 => {
            let slots = (0..count).map(|_| rng.below(512) as u16).collect();
            Op::Clear { volume: volume_id, lba: Lba(lba.0.saturating_sub(1)), slots }
        }
        _ => {
            let blocks = (0..count).map(|_| match rng.below(3) {
                0 => BlockRef::Zero,
                1 if !frames.is_empty() => {
                    let (frame, index) = place(rng);
                    BlockRef::New { block: block(rng), frame, index, fingerprint: fingerprint(rng) }
                }
                _ => BlockRef::Shared(block(rng)),
            });
            Op::Write { volume: volume_id, lba, blocks: blocks.collect() }
        }
    }
}

/// See [`KINDS`].
pub fn record(rng: &mut Rng) -> Record {
    let frame = |rng: &mut Rng| Frame {
        at: location(rng),
        codec: codec(rng),
        blocks: rng.between(1, 8) as u8,
        raw_len: number(rng, (32 << 10) + 1) as u16,
    };
    let frames: Vec<Frame> = (0..rng.index(5)).map(|_| frame(rng)).collect();
    Record {
        number: number(rng, COUNTER_LIMIT),
        seqno: Seqno(number(rng, COUNTER_LIMIT)),
        pages: (0..rng.index(5)).map(|_| block(rng)).collect(),
        ops: (0..rng.index(6)).map(|_| op(rng, &frames)).collect(),
        frames,
    }
}

/// See [`KINDS`].
pub fn entry(rng: &mut Rng) -> Entry {
    let inline = |rng: &mut Rng| {
        let mut data = vec![0; rng.index(300)];
        rng.fill(&mut data);
        let at = location(rng);
        Inline { segment: at.segment, offset: at.offset.min(u32::MAX - 300), data }
    };
    Entry {
        pool: uuid(rng),
        epoch: Epoch(number(rng, COUNTER_LIMIT)),
        extent: number(rng, COUNTER_LIMIT),
        number: number(rng, COUNTER_LIMIT),
        durable: (0..rng.index(4)).map(|_| (location(rng).segment, location(rng).offset)).collect(),
        inline: (0..rng.index(3)).map(|_| inline(rng)).collect(),
        records: (0..rng.index(4)).map(|_| record(rng)).collect(),
    }
}

/// An entry as the log writes it.
pub fn encode(entry: &Entry) -> Vec<u8> {
    let inline: Vec<_> = entry.inline.iter().map(|i| (i.segment, i.offset, &i.data[..])).collect();
    let records: Vec<Vec<u8>> = entry.records.iter().map(encode_record).collect();
    let records: Vec<&[u8]> = records.iter().map(|r| &r[..]).collect();
    encode_entry((entry.pool, entry.epoch, entry.extent, entry.number), &entry.durable, &inline, &records)
}

/// A record by itself.
pub fn encode_record(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    record.encode(&mut out);
    out
}

/// See [`KINDS`].
pub fn part(rng: &mut Rng) -> Part {
    let previous = location(rng);
    let items = (0..rng.index(30)).map(|_| {
        let Location { offset, len, .. } = location(rng);
        let content = match rng.below(6) {
            0 => Content::MapPage(block(rng)),
            1 => Content::TablePage(number(rng, 1 << 41)),
            2 => Content::DirectoryPage(number(rng, 1 << 33)),
            _ => Content::Data((0..rng.index(9)).map(|_| (block(rng), fingerprint(rng))).collect()),
        };
        Item { offset, len, content }
    });
    Part { segment: previous.segment, previous, items: items.collect(), incarnation: number(rng, COUNTER_LIMIT) }
}

/// See [`KINDS`].
pub fn table_page(rng: &mut Rng) -> TablePage {
    let mut out = TablePage::default();
    for entry in out.0.iter_mut() {
        if rng.chance(1, 4) {
            continue;
        }
        let frame_blocks = rng.between(1, 8) as u8;
        *entry = BlockEntry {
            frame: location(rng),
            codec: codec(rng),
            index: rng.below(frame_blocks.into()) as u8,
            frame_blocks,
            kind: if rng.chance(1, 8) { BlockKind::MapPage } else { BlockKind::Data },
            refcount: number(rng, 1 << 32) as u32,
            checksum: rng.u64(),
            raw_len: number(rng, 1 << 16) as u16,
            interval: number(rng, 1 << 32) as u32,
        };
    }
    out
}

/// See [`KINDS`].
pub fn directory_page(rng: &mut Rng) -> DirectoryPage {
    let mut out = DirectoryPage::default();
    for slot in out.0.iter_mut() {
        if rng.chance(3, 4) {
            *slot = pointer(rng);
        }
    }
    out
}

/// See [`KINDS`].
pub fn map_page(rng: &mut Rng, each: bool) -> MapPage {
    let level = rng.below(4) as u8;
    let index = number(rng, 1 << (36 - 9 * (u32::from(level) + 1)));
    let mut out = MapPage::new(VolumeId(number(rng, 1 << 32) as u32), level, index);
    let births = if each { [1, 2, u32::MAX] } else { [7; 3] };
    for slot in 0..512 {
        if rng.chance(3, 4) {
            out.set(slot, block(rng), births[rng.index(3)]);
        }
    }
    out
}
