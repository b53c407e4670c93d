//! Log entries and the records in them.
//!
//! A *record* is one committed state transition: a batch of host operations, a move by the cleaner, a change of the catalogue.
//! A log *entry* is one write to the log: consecutive records, how far each open segment is durable, and the bytes of
//! open segments beyond that which the records need.

use super::cursor::{COUNTER_LIMIT, Get, Put, check_version, counter};
use super::page::{Location, MAP_BLOCKS_MAX, MAP_FANOUT, VIRTUAL_BLOCKS_MAX};
use super::volume::{Setting, VolumeRecord, get_volume};
use crate::codec::{Codec, FRAME_BLOCKS_MAX, FRAME_MAX};
use crate::error::{Error, Result};
use crate::units::{ChunkIndex, DiskId, Epoch, Lba, SegmentId, Seqno, Uuid, VirtualBlock, VolumeId};

const ENTRY_MAGIC: u32 = 0x4C48_5341; // "ASHL"
/// Bytes of an entry's header.
pub const ENTRY_HEADER: usize = 64;
/// Where the checksum is in the header: at its end, and covers what is before it and the body.
const ENTRY_SUM: usize = ENTRY_HEADER - 8;
/// Entries are padded to this.
pub const ENTRY_ALIGN: usize = 4096;
/// Most columns of a segment: a set of columns is a bit mask of 32 bits.
const COLUMNS_MAX: usize = 32;
/// Fewest encoded bytes of a [`Record`], of one of its [`Frame`]s, of an [`Op`], of a [`Move`].
const RECORD_MIN: usize = 5;
/// See [`RECORD_MIN`].
const FRAME_MIN: usize = 7;
/// See [`RECORD_MIN`].
const OP_MIN: usize = 2;
/// See [`RECORD_MIN`].
const MOVE_MIN: usize = 21;
/// Fewest encoded bytes of a [`ColumnMove`].
const COLUMN_MOVE_MIN: usize = 5;

/// Which kind of data a segment takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// New host data.
    Data,
    /// What the cleaner moves.
    Cold,
    /// Map, table and directory pages, written by checkpoints.
    Meta,
}

impl Stream {
    fn from_u8(v: u8) -> Result<Self> {
        match v {
            0 => Ok(Self::Data),
            1 => Ok(Self::Cold),
            2 => Ok(Self::Meta),
            _ => Err(Error::corrupt(format!("stream {v} is unknown"))),
        }
    }
}

/// A segment's place and state, in the catalogue and in [`Op::OpenSegment`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRecord {
    /// Identity; reused after the segment was freed.
    pub id: SegmentId,
    /// Number of this use of the identity; never repeats.
    pub incarnation: u64,
    /// What it holds.
    pub stream: Stream,
    /// Data columns.
    pub data: u8,
    /// Parity columns.
    pub parity: u8,
    /// One chunk for each column, data first; distinct disks.
    pub columns: Vec<(DiskId, ChunkIndex)>,
    /// Whether nothing more will be appended.
    pub sealed: bool,
    /// Bytes of data space that are in complete stripes on disk.
    pub written: u32,
    /// Bytes of frames that are referenced.
    pub live: u64,
    /// The newest part summary; `len` 0 when there is none.
    pub last_part: Location,
    /// Bit per column: stripes may lack this column's strip (its disk failed while the segment was written).
    pub stale_columns: u32,
    /// Something live in it could not be read in any way when it was last looked at.
    pub damaged: bool,
}

/// Flags beside the stream of an encoded [`SegmentRecord`].
const SEALED: u8 = 0x80;
/// See [`SEALED`].
const DAMAGED: u8 = 0x40;

impl SegmentRecord {
    /// Fewest encoded bytes.
    pub(super) const SIZE_MIN: usize = 13;

    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_varint(self.id.0.into());
        out.put_varint(self.incarnation);
        let flags = if self.sealed { SEALED } else { 0 } | if self.damaged { DAMAGED } else { 0 };
        out.put_u8(self.stream as u8 | flags);
        out.put_u8(self.data);
        out.put_u8(self.parity);
        for (disk, chunk) in &self.columns {
            out.put_varint(disk.0.into());
            out.put_varint(chunk.0.into());
        }
        out.put_varint(self.written.into());
        out.put_varint(self.live);
        put_location(out, &self.last_part);
        out.put_varint(self.stale_columns.into());
    }

    /// Decodes.
    pub fn decode(get: &mut Get<'_>) -> Result<Self> {
        let id = SegmentId(get.varint32()?);
        let incarnation = get.below(COUNTER_LIMIT, "incarnation")?;
        let flags = get.u8()?;
        let (data, parity) = (get.u8()?, get.u8()?);
        let count = usize::from(data) + usize::from(parity);
        if data == 0 || parity > 2 || count > COLUMNS_MAX {
            return Err(Error::corrupt(format!("segment {id}: layout {data}+{parity} is impossible")));
        }
        let mut columns: Vec<(DiskId, ChunkIndex)> = Vec::with_capacity(count);
        for _ in 0..count {
            let (disk, chunk) = (DiskId(get.varint16()?), ChunkIndex(get.varint32()?));
            if columns.iter().any(|(other, _)| *other == disk) {
                return Err(Error::corrupt(format!("segment {id}: two columns lie on disk {disk}")));
            }
            columns.push((disk, chunk));
        }
        let out = Self {
            id,
            incarnation,
            stream: Stream::from_u8(flags & !(SEALED | DAMAGED))?,
            data,
            parity,
            columns,
            sealed: flags & SEALED != 0,
            damaged: flags & DAMAGED != 0,
            written: get.varint32()?,
            live: get.varint32()?.into(),
            last_part: get_location(get)?,
            stale_columns: get.varint32()?,
        };
        if u64::from(out.stale_columns) >= 1 << count {
            return Err(Error::corrupt(format!("segment {id}: a column is stale that it does not have")));
        }
        Ok(out)
    }
}

/// A frame that a record puts into a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where.
    pub at: Location,
    /// How it is compressed.
    pub codec: Codec,
    /// Blocks in it.
    pub blocks: u8,
    /// Uncompressed bytes.
    pub raw_len: u16,
}

/// What a host write puts at one LBA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockRef {
    /// Nothing: a zero block.
    Zero,
    /// One more reference to a block that exists.
    Shared(VirtualBlock),
    /// A new block.
    New {
        /// Its identity.
        block: VirtualBlock,
        /// Index into the record's frames.
        frame: u32,
        /// Position in the frame.
        index: u8,
        /// XXH3-128 of the block; its low half is the checksum.
        fingerprint: u128,
    },
}

/// One block that the cleaner has copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub block: VirtualBlock,
    /// Where it was; if it is no longer there the move has no effect.
    pub from: (SegmentId, u32),
    /// Index into the record's frames.
    pub frame: u32,
    /// Position in the frame.
    pub index: u8,
    /// As in [`BlockRef::New`]; 0 for map pages.
    pub fingerprint: u128,
}

/// A column that was written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnMove {
    /// Which.
    pub column: u8,
    /// Where it was; if it is no longer there the move has no effect.
    pub from: (DiskId, ChunkIndex),
    /// Where it is now: perhaps the same place, where it had been stale.
    pub to: (DiskId, ChunkIndex),
}

/// One state transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Host data at consecutive LBAs.
    Write {
        /// Volume.
        volume: VolumeId,
        /// First block.
        lba: Lba,
        /// One for each block.
        blocks: Vec<BlockRef>,
    },
    /// A range given back.
    Unmap {
        /// Volume.
        volume: VolumeId,
        /// First block.
        lba: Lba,
        /// Blocks.
        count: u64,
    },
    /// Copies made by the cleaner.
    Relocate(Vec<Move>),
    /// A segment was taken into use.
    OpenSegment(SegmentRecord),
    /// A part summary was appended.
    ClosePart {
        /// Where.
        at: Location,
    },
    /// Nothing more will be appended.
    SealSegment(SegmentId),
    /// Columns of a sealed segment were written anew, whole.
    MoveColumns {
        /// Segment.
        segment: SegmentId,
        /// Which use of its identity; it must still be this one.
        incarnation: u64,
        /// What changed, by column.
        columns: Vec<ColumnMove>,
    },
    /// A volume was created, or its description changed. `root`, `levels` and `mapped` count only at creation.
    PutVolume(VolumeRecord),
    /// Nothing of a version's own is left: its record goes, and its child takes its parent.
    DropVolume(VolumeId),
    /// A snapshot came into being: what its volume (`snapshot_of`) holds now. Only identity, name, and times of the record count.
    Snapshot(VolumeRecord),
    /// A volume goes on from a snapshot, its `parent`. If there is a volume of that identity its content is replaced: it must own
    /// nothing, that is, a snapshot of it was just taken. Otherwise identity, name and times of the record count.
    Clone(VolumeRecord),
    /// A version that is being deleted lets go of what lies before an LBA.
    HandOver {
        /// Version.
        volume: VolumeId,
        /// What lies before this was handed over.
        to: Lba,
        /// Blocks and pages of its own that its child does not see: given back.
        blocks: Vec<VirtualBlock>,
    },
    /// Entries of a leaf of a deleted snapshot, its own, that none of its children sees: given back.
    Clear {
        /// Snapshot.
        volume: VolumeId,
        /// A block of the leaf.
        lba: Lba,
        /// Which entries of the leaf.
        slots: Vec<u16>,
    },
    /// What whoever manages the pool keeps in it: takes the place of a setting of the same name.
    Set(Setting),
    /// What the pool's clock showed, in seconds since 1970.
    Clock(u64),
}

/// A committed batch.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Record {
    /// Number of the record; consecutive.
    pub number: u64,
    /// Newest host operation in it.
    pub seqno: Seqno,
    /// Frames it appends.
    pub frames: Vec<Frame>,
    /// Identities for map pages that come into being, in the order in which applying the record needs them.
    pub pages: Vec<VirtualBlock>,
    /// Transitions, in order.
    pub ops: Vec<Op>,
}

fn put_location(out: &mut Vec<u8>, at: &Location) {
    out.put_varint(at.segment.0.into());
    out.put_varint(at.offset.into());
    out.put_varint(at.len.into());
}

fn get_location(get: &mut Get<'_>) -> Result<Location> {
    Location { segment: SegmentId(get.varint32()?), offset: get.varint32()?, len: get.varint16()? }.checked()
}

/// A virtual block that exists.
fn get_block(get: &mut Get<'_>) -> Result<VirtualBlock> {
    match get.below(VIRTUAL_BLOCKS_MAX, "virtual block")? {
        0 => Err(Error::corrupt("virtual block 0 where one must be")),
        block => Ok(VirtualBlock(block)),
    }
}

/// The LBA of a volume, and a number of blocks from there on that ends within the largest volume.
fn check_range(lba: Lba, count: u64) -> Result<()> {
    match lba.0.checked_add(count) {
        Some(end) if end <= MAP_BLOCKS_MAX => Ok(()),
        _ => Err(Error::corrupt(format!("log record: {count} blocks at {lba} are beyond the end of any volume"))),
    }
}

impl Record {
    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_varint(self.number);
        out.put_varint(self.seqno.0);
        out.put_varint(self.frames.len() as u64);
        for f in &self.frames {
            put_location(out, &f.at);
            out.put_u8(f.codec as u8);
            out.put_u8(f.blocks);
            out.put_u16(f.raw_len);
        }
        out.put_varint(self.pages.len() as u64);
        self.pages.iter().for_each(|p| out.put_varint(p.0));
        out.put_varint(self.ops.len() as u64);
        self.ops.iter().for_each(|op| op.encode(out));
    }

    /// Decodes and checks that frame indices are within the record.
    pub fn decode(get: &mut Get<'_>) -> Result<Self> {
        let number = get.below(COUNTER_LIMIT, "record")?;
        let seqno = Seqno(get.below(COUNTER_LIMIT, "host operation")?);
        let mut out = Self { number, seqno, ..Self::default() };
        for _ in 0..get.count(FRAME_MIN)? {
            let at = get_location(get)?;
            let codec = Codec::try_from(get.u8()?)?;
            let frame = Frame { at, codec, blocks: get.u8()?, raw_len: get.u16()? };
            if usize::from(frame.raw_len) > FRAME_MAX || usize::from(frame.blocks) > FRAME_BLOCKS_MAX {
                let Frame { blocks, raw_len, .. } = frame;
                return Err(Error::corrupt(format!(
                    "log record: a frame of {blocks} blocks, {raw_len} bytes is impossible"
                )));
            }
            out.frames.push(frame);
        }
        for _ in 0..get.count(1)? {
            out.pages.push(get_block(get)?);
        }
        for _ in 0..get.count(OP_MIN)? {
            out.ops.push(Op::decode(get, &out.frames)?);
        }
        Ok(out)
    }
}

fn check_frame(frames: &[Frame], frame: u32, index: u8) -> Result<()> {
    match frames.get(frame as usize) {
        Some(f) if index < f.blocks => Ok(()),
        _ => Err(Error::corrupt("log record: a block lies outside its frame")),
    }
}

impl Op {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Write { volume, lba, blocks } => {
                out.put_u8(1);
                out.put_varint(volume.0.into());
                out.put_varint(lba.0);
                out.put_varint(blocks.len() as u64);
                for b in blocks {
                    match b {
                        BlockRef::Zero => out.put_u8(0),
                        BlockRef::Shared(v) => {
                            out.put_u8(1);
                            out.put_varint(v.0);
                        }
                        BlockRef::New { block, frame, index, fingerprint } => {
                            out.put_u8(2);
                            out.put_varint(block.0);
                            out.put_varint((*frame).into());
                            out.put_u8(*index);
                            out.put_u128(*fingerprint);
                        }
                    }
                }
            }
            Self::Unmap { volume, lba, count } => {
                out.put_u8(2);
                out.put_varint(volume.0.into());
                out.put_varint(lba.0);
                out.put_varint(*count);
            }
            Self::Relocate(moves) => {
                out.put_u8(3);
                out.put_varint(moves.len() as u64);
                for m in moves {
                    out.put_varint(m.block.0);
                    out.put_varint(m.from.0.0.into());
                    out.put_varint(m.from.1.into());
                    out.put_varint(m.frame.into());
                    out.put_u8(m.index);
                    out.put_u128(m.fingerprint);
                }
            }
            Self::OpenSegment(s) => {
                out.put_u8(4);
                s.encode(out);
            }
            Self::ClosePart { at } => {
                out.put_u8(5);
                put_location(out, at);
            }
            Self::SealSegment(id) => {
                out.put_u8(6);
                out.put_varint(id.0.into());
            }
            Self::PutVolume(v) => {
                out.put_u8(7);
                v.encode(out);
            }
            Self::DropVolume(id) => {
                out.put_u8(8);
                out.put_varint(id.0.into());
            }
            Self::MoveColumns { segment, incarnation, columns } => {
                out.put_u8(9);
                out.put_varint(segment.0.into());
                out.put_varint(*incarnation);
                out.put_varint(columns.len() as u64);
                for m in columns {
                    out.put_u8(m.column);
                    for (disk, chunk) in [m.from, m.to] {
                        out.put_varint(disk.0.into());
                        out.put_varint(chunk.0.into());
                    }
                }
            }
            Self::Snapshot(v) => {
                out.put_u8(10);
                v.encode(out);
            }
            Self::Clone(v) => {
                out.put_u8(11);
                v.encode(out);
            }
            Self::HandOver { volume, to, blocks } => {
                out.put_u8(12);
                out.put_varint(volume.0.into());
                out.put_varint(to.0);
                out.put_varint(blocks.len() as u64);
                blocks.iter().for_each(|b| out.put_varint(b.0));
            }
            Self::Clear { volume, lba, slots } => {
                out.put_u8(13);
                out.put_varint(volume.0.into());
                out.put_varint(lba.0);
                out.put_varint(slots.len() as u64);
                slots.iter().for_each(|s| out.put_varint((*s).into()));
            }
            Self::Set(setting) => {
                out.put_u8(14);
                setting.encode(out);
            }
            Self::Clock(time_s) => {
                out.put_u8(15);
                out.put_varint(*time_s);
            }
        }
    }

    fn decode(get: &mut Get<'_>, frames: &[Frame]) -> Result<Self> {
        Ok(match get.u8()? {
            1 => {
                let (volume, lba) = (get_volume(get)?, Lba(get.varint()?));
                let mut blocks = Vec::new();
                let count = get.count(1)?;
                check_range(lba, count as u64)?;
                for _ in 0..count {
                    blocks.push(match get.u8()? {
                        0 => BlockRef::Zero,
                        1 => BlockRef::Shared(get_block(get)?),
                        2 => {
                            let block = get_block(get)?;
                            let (frame, index) = (get.varint32()?, get.u8()?);
                            check_frame(frames, frame, index)?;
                            BlockRef::New { block, frame, index, fingerprint: get.u128()? }
                        }
                        k => return Err(Error::corrupt(format!("log record: block of kind {k} is unknown"))),
                    });
                }
                Self::Write { volume, lba, blocks }
            }
            2 => {
                let (volume, lba, count) = (get_volume(get)?, Lba(get.varint()?), get.varint()?);
                check_range(lba, count)?;
                Self::Unmap { volume, lba, count }
            }
            3 => {
                let mut moves = Vec::new();
                for _ in 0..get.count(MOVE_MIN)? {
                    let block = get_block(get)?;
                    let from = (SegmentId(get.varint32()?), get.varint32()?);
                    let (frame, index) = (get.varint32()?, get.u8()?);
                    check_frame(frames, frame, index)?;
                    moves.push(Move { block, from, frame, index, fingerprint: get.u128()? });
                }
                Self::Relocate(moves)
            }
            4 => Self::OpenSegment(SegmentRecord::decode(get)?),
            5 => Self::ClosePart { at: get_location(get)? },
            6 => Self::SealSegment(SegmentId(get.varint32()?)),
            7 => Self::PutVolume(VolumeRecord::decode(get)?),
            8 => Self::DropVolume(get_volume(get)?),
            9 => {
                let segment = SegmentId(get.varint32()?);
                let incarnation = get.below(COUNTER_LIMIT, "incarnation")?;
                let mut columns = Vec::new();
                for _ in 0..get.count(COLUMN_MOVE_MIN)? {
                    let column = get.u8()?;
                    if usize::from(column) >= COLUMNS_MAX {
                        return Err(Error::corrupt(format!("log record: segment {segment} has no column {column}")));
                    }
                    let mut place = || Ok::<_, Error>((DiskId(get.varint16()?), ChunkIndex(get.varint32()?)));
                    columns.push(ColumnMove { column, from: place()?, to: place()? });
                }
                Self::MoveColumns { segment, incarnation, columns }
            }
            10 => Self::Snapshot(VolumeRecord::decode(get)?),
            11 => Self::Clone(VolumeRecord::decode(get)?),
            12 => {
                let (volume, to) = (get_volume(get)?, Lba(get.varint()?));
                check_range(to, 0)?;
                let mut blocks = Vec::new();
                for _ in 0..get.count(1)? {
                    blocks.push(get_block(get)?);
                }
                Self::HandOver { volume, to, blocks }
            }
            13 => {
                let (volume, lba) = (get_volume(get)?, Lba(get.varint()?));
                check_range(lba, 1)?;
                let mut slots = Vec::new();
                for _ in 0..get.count(1)? {
                    let slot = get.varint16()?;
                    if usize::from(slot) >= MAP_FANOUT {
                        return Err(Error::corrupt(format!("log record: a map page has no entry {slot}")));
                    }
                    slots.push(slot);
                }
                Self::Clear { volume, lba, slots }
            }
            14 => Self::Set(Setting::decode(get)?),
            15 => Self::Clock(get.below(COUNTER_LIMIT, "time")?),
            k => return Err(Error::corrupt(format!("log record: operation {k} is unknown"))),
        })
    }
}

/// Bytes of an open segment that are not yet in a complete stripe on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inline {
    /// Segment.
    pub segment: SegmentId,
    /// Where the bytes belong in its data space.
    pub offset: u32,
    /// The bytes.
    pub data: Vec<u8>,
}

/// One write to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The pool's identity.
    pub pool: Uuid,
    /// Writer epoch.
    pub epoch: Epoch,
    /// Log extent it was written to.
    pub extent: u64,
    /// Number of the entry; consecutive over extents within an epoch.
    pub number: u64,
    /// Open segments and how many bytes of their data space are durable.
    pub durable: Vec<(SegmentId, u32)>,
    /// Bytes beyond that, needed by this or an earlier entry.
    pub inline: Vec<Inline>,
    /// Records.
    pub records: Vec<Record>,
}

/// Encodes an entry whose `records` are already encoded; padded to [`ENTRY_ALIGN`].
pub fn encode_entry(
    (pool, epoch, extent, number): (Uuid, Epoch, u64, u64),
    durable: &[(SegmentId, u32)],
    inline: &[(SegmentId, u32, &[u8])],
    records: &[&[u8]],
) -> Vec<u8> {
    let mut out = vec![0; ENTRY_HEADER];
    out.put_varint(durable.len() as u64);
    for (segment, offset) in durable {
        out.put_varint(segment.0.into());
        out.put_varint((*offset).into());
    }
    out.put_varint(inline.len() as u64);
    for (segment, offset, data) in inline {
        out.put_varint(segment.0.into());
        out.put_varint((*offset).into());
        out.put_bytes(data);
    }
    out.put_varint(records.len() as u64);
    records.iter().for_each(|r| out.extend_from_slice(r));
    let len = out.len();
    let mut header = Vec::with_capacity(ENTRY_HEADER);
    header.put_u32(ENTRY_MAGIC);
    header.put_u32(super::FORMAT_VERSION);
    header.extend_from_slice(&pool.0);
    header.put_u64(epoch.0);
    header.put_u64(extent);
    header.put_u64(number);
    header.put_u64(len as u64);
    out[..ENTRY_SUM].copy_from_slice(&header);
    let sum = entry_checksum(&out[..ENTRY_SUM], &out[ENTRY_HEADER..]);
    out[ENTRY_SUM..ENTRY_HEADER].copy_from_slice(&sum.to_le_bytes());
    out.resize(len.next_multiple_of(ENTRY_ALIGN), 0);
    out
}

fn entry_checksum(header: &[u8], body: &[u8]) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(header);
    hash.update(body);
    hash.digest()
}

impl Entry {
    /// Decodes the entry at the start of `data`; returns it and the bytes it takes, padding included.
    ///
    /// Fails when there is no intact entry here: the end of the log, or damage.
    pub fn decode(data: &[u8]) -> Result<(Self, usize)> {
        Self::read(data, true)
    }

    /// As [`Self::decode`], whatever the checksum says; `verify` is false only for a planted bug.
    pub(crate) fn read(data: &[u8], verify: bool) -> Result<(Self, usize)> {
        let mut head = Get(data);
        if head.u32()? != ENTRY_MAGIC {
            return Err(Error::corrupt("log: no entry here"));
        }
        // Where the checksum is in another version is not known.
        check_version(head.u32()?, "log")?;
        let pool = head.uuid()?;
        let (epoch, extent, number) = (head.u64()?, head.u64()?, head.u64()?);
        let len = usize::try_from(head.u64()?).unwrap_or(usize::MAX);
        let sum = head.u64()?;
        let body =
            data.get(ENTRY_HEADER..len).ok_or_else(|| Error::corrupt("log: an entry is longer than its extent"))?;
        if verify && entry_checksum(&data[..ENTRY_SUM], body) != sum {
            return Err(Error::corrupt("log: an entry's checksum does not match"));
        }
        let epoch = Epoch(counter(epoch, "log: epoch")?);
        let (extent, number) = (counter(extent, "log: extent")?, counter(number, "log: entry")?);
        let mut get = Get(body);
        let mut out = Self { pool, epoch, extent, number, durable: vec![], inline: vec![], records: vec![] };
        for _ in 0..get.count(2)? {
            out.durable.push((SegmentId(get.varint32()?), get.varint32()?));
        }
        for _ in 0..get.count(3)? {
            let (segment, offset) = (SegmentId(get.varint32()?), get.varint32()?);
            let data = get.bytes(body.len())?.to_vec();
            if u32::try_from(data.len()).ok().and_then(|len| offset.checked_add(len)).is_none() {
                return Err(Error::corrupt("log: inline data beyond the end of any segment"));
            }
            out.inline.push(Inline { segment, offset, data });
        }
        for _ in 0..get.count(RECORD_MIN)? {
            out.records.push(Record::decode(&mut get)?);
        }
        get.finish()?;
        Ok((out, len.next_multiple_of(ENTRY_ALIGN)))
    }
}
