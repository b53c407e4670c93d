//! The ring of records in such memory.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::Region;
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BLOCK_SIZE, Epoch, Lba, Seqno, Uuid, VolumeId};

const MAGIC: u64 = u64::from_le_bytes(*b"ASHCARRY");
const VERSION: u64 = 3;

/// Bytes of the head, and where its words are.
const HEAD: usize = 4096;
const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 8;
const AT_POOL: usize = 16;
const AT_EPOCH: usize = 32;
const AT_CLAIMS: usize = 40;
const AT_CAPACITY: usize = 48;
const AT_TAIL: usize = 56;
const AT_SECRET: usize = 64;
const AT_CLAIM: usize = 72;
/// Claims that are kept, the newest ones.
const CLAIMS: u64 = ((HEAD - AT_CLAIM) / 8) as u64;

/// Bytes of a record without its data, and what positions are multiples of.
const HEADER: usize = 64;
const STATE: usize = 0;
/// Mixed with the secret: what a host once wrote to the same place must not pass for a record.
const POSITION: usize = 8;
const LENGTH: usize = 16;
const SEQNO: usize = 24;
/// Volume in the lower half, kind in the upper.
const WHAT: usize = 32;
const LBA: usize = 40;
const BLOCKS: usize = 48;
const SUM: usize = 56;

/// Room that a process took which did not get to fill it.
const RESERVED: u64 = u64::from_le_bytes(*b"reserved");
/// A record.
const FILLED: u64 = u64::from_le_bytes(*b"filled!!");
/// The rest up to the end of the memory.
const SKIPPED: u64 = u64::from_le_bytes(*b"skipped!");

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    /// Blocks get content.
    Write = 1,
    /// Blocks become zeroes.
    Unmap = 2,
}

/// An operation without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What it does.
    pub kind: Kind,
    /// To which volume.
    pub volume: VolumeId,
    /// From which block on.
    pub lba: Lba,
    /// To how many.
    pub blocks: u64,
}

impl Operation {
    fn words(&self) -> [(usize, u64); 3] {
        [(WHAT, u64::from(self.volume.0) | (self.kind as u64) << 32), (LBA, self.lba.0), (BLOCKS, self.blocks)]
    }

    /// Of the operation and of what its blocks contain, each told by its [`codec::content`]: whoever writes has those, and need not go
    /// through the data again.
    fn sum(&self, blocks: impl Iterator<Item = u128>) -> u64 {
        let step = |sum: u64, word: &[u8; 16]| {
            let mut both = [0; 24];
            both[..8].copy_from_slice(&sum.to_le_bytes());
            both[8..].copy_from_slice(word);
            xxh3_64(&both)
        };
        let words = self.words().map(|(_, word)| u128::from(word));
        words.into_iter().chain(blocks).fold(0, |sum, word| step(sum, &word.to_le_bytes()))
    }

    /// Bytes of data it comes with.
    fn data_len(&self) -> Option<usize> {
        match self.kind {
            Kind::Write => usize::try_from(self.blocks).ok()?.checked_mul(BLOCK_SIZE),
            Kind::Unmap => Some(0),
        }
    }
}

/// An operation as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where in the ring.
    pub position: u64,
    /// Its number.
    pub seqno: Seqno,
    /// What.
    pub operation: Operation,
    /// Content of the blocks that are written.
    pub data: Vec<u8>,
}

/// What memory of an earlier process holds.
pub enum Found {
    /// Operations of the pool as it was left, in the order of their places.
    Left(Ring, Vec<Record>),
    /// Nothing, or operations of a time before somebody else opened the pool.
    Old,
}

struct Entry {
    position: u64,
    /// None while it is being filled; 0 when nobody needs it.
    seqno: Option<u64>,
}

struct Inner {
    /// Position of the next record.
    head: u64,
    /// Position of the oldest one: as in the memory's head.
    tail: u64,
    entries: VecDeque<Entry>,
    /// Newest number that was asked to be made durable for the sake of room.
    asked: u64,
}

/// Records in order of their places, the oldest first.
pub struct Ring {
    region: Arc<Region>,
    capacity: u64,
    secret: u64,
    inner: Mutex<Inner>,
}

/// Room for one record. Dropped, it stays empty.
pub struct Place<'a> {
    ring: &'a Ring,
    position: u64,
    payload: usize,
    filled: bool,
}

impl Place<'_> {
    /// Enters the operation, with the [`codec::content`] of each block of `data`. When this returns it outlives the process.
    ///
    /// # Panics
    /// When `data` is not as long as was reserved.
    pub fn fill(mut self, seqno: Seqno, operation: &Operation, data: &[u8], blocks: impl Iterator<Item = u128>) {
        assert_eq!(data.len(), self.payload, "bytes of a record");
        let at = self.ring.at(self.position);
        for (word, value) in operation.words() {
            self.ring.region.store(at + word, value);
        }
        self.ring.region.store(at + SEQNO, seqno.0);
        self.ring.region.store(at + SUM, operation.sum(blocks));
        self.ring.region.put(at + HEADER, data);
        self.ring.region.store(at + STATE, FILLED);
        self.ring.set_seqno(self.position, seqno.0);
        self.filled = true;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.ring.set_seqno(self.position, 0);
        }
    }
}

fn record_len(payload: usize) -> u64 {
    (HEADER + payload.next_multiple_of(HEADER)) as u64
}

impl Ring {
    /// Bytes of memory for a ring in which at least two records of `payload` bytes have room, wherever they lie, and `capacity` bytes at least.
    pub fn region_len(capacity: usize, payload: usize) -> usize {
        HEAD + capacity.next_multiple_of(4096).max(4 * record_len(payload) as usize).next_multiple_of(4096)
    }

    /// An empty ring in new memory; `secret` is a random number that no host knows.
    ///
    /// # Panics
    /// When there is no room for a record.
    pub fn create(region: Arc<Region>, pool: Uuid, epoch: Epoch, secret: u64) -> Self {
        let capacity = (region.len() - HEAD) as u64 / HEADER as u64 * HEADER as u64;
        assert!(capacity > 0, "a ring without room");
        let (first, second) = halves(pool);
        for (at, value) in [
            (AT_VERSION, VERSION),
            (AT_POOL, first),
            (AT_POOL + 8, second),
            (AT_EPOCH, epoch.0),
            (AT_CLAIMS, 0),
            (AT_CAPACITY, capacity),
            (AT_TAIL, 0),
            (AT_SECRET, secret),
            (AT_MAGIC, MAGIC),
        ] {
            region.store(at, value);
        }
        let inner = Inner { head: 0, tail: 0, entries: VecDeque::new(), asked: 0 };
        Self { region, capacity, secret, inner: Mutex::new(inner) }
    }

    /// Looks into memory that an earlier process left; `newest` is the epoch of the last writer of the pool.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is not what a process of this or an earlier version left, [`ErrorKind::Unsupported`] when a later one did,
    /// [`ErrorKind::Unavailable`] when the disks are older than what was left.
    pub fn open(region: Arc<Region>, pool: Uuid, newest: Epoch) -> Result<Found> {
        let bad = |what: &str| Error::corrupt(format!("memory that an earlier daemon left: {what}"));
        if region.len() < HEAD + HEADER {
            return Err(bad("it is too short"));
        }
        match (region.load(AT_MAGIC), region.load(AT_VERSION)) {
            // It was killed while it made it.
            (0, _) => return Ok(Found::Old),
            (MAGIC, VERSION) => {}
            (MAGIC, version) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "memory that an earlier daemon left has version {version}, this one knows {VERSION}: start the release that left it, and stop it in order"
                    ),
                ));
            }
            _ => return Err(bad("no magic number")),
        }
        if (region.load(AT_POOL), region.load(AT_POOL + 8)) != halves(pool) {
            return Err(bad("it belongs to another pool"));
        }
        let claims = region.load(AT_CLAIMS).min(CLAIMS) as usize;
        let claimed = (0..claims).any(|i| region.load(AT_CLAIM + 8 * i) == newest.0);
        let settled = region.load(AT_EPOCH);
        if settled != newest.0 && !claimed {
            // The upper halves count openings. All disks that were there told of this one.
            if newest.0 >> 32 < settled >> 32 {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "memory that an earlier daemon left: it served opening {} of the pool, and the disks that are there know of {} only: attach \
                         the drives it had",
                        settled >> 32,
                        newest.0 >> 32
                    ),
                ));
            }
            return Ok(Found::Old);
        }
        let (capacity, tail) = (region.load(AT_CAPACITY), region.load(AT_TAIL));
        let unit = HEADER as u64;
        if capacity == 0 || capacity % unit != 0 || capacity > (region.len() - HEAD) as u64 || tail % unit != 0 {
            return Err(bad("its head makes no sense"));
        }
        let inner = Inner { head: tail, tail, entries: VecDeque::new(), asked: 0 };
        let secret = region.load(AT_SECRET);
        let mut ring = Self { region, capacity, secret, inner: Mutex::new(inner) };
        let records = ring.scan()?;
        Ok(Found::Left(ring, records))
    }

    /// Finds all records from the tail on.
    fn scan(&mut self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let (region, capacity, secret) = (self.region.clone(), self.capacity, self.secret);
        let inner = self.inner.get_mut();
        loop {
            let (position, at) = (inner.head, HEAD + (inner.head % capacity) as usize);
            let (state, len) = (region.load(at + STATE), region.load(at + LENGTH));
            let known = [RESERVED, FILLED, SKIPPED].contains(&state);
            if !known || region.load(at + POSITION) != position ^ secret || position - inner.tail >= capacity {
                return Ok(records);
            }
            let bad = |what: &str| {
                Error::corrupt(format!(
                    "memory that an earlier daemon left: {what} in the record at position {position}"
                ))
            };
            let room = (capacity - position % capacity).min(capacity - (position - inner.tail));
            if len < HEADER as u64 || len % HEADER as u64 != 0 || len > room {
                return Err(bad(&format!("a length of {len}")));
            }
            if state == FILLED {
                let what = region.load(at + WHAT);
                let kind = match what >> 32 {
                    1 => Kind::Write,
                    2 => Kind::Unmap,
                    other => return Err(bad(&format!("operation {other}"))),
                };
                let operation = Operation {
                    kind,
                    volume: VolumeId(what as u32),
                    lba: Lba(region.load(at + LBA)),
                    blocks: region.load(at + BLOCKS),
                };
                let data_len = operation.data_len().filter(|n| record_len(*n) == len);
                let data =
                    region.get(at + HEADER, data_len.ok_or_else(|| bad("a number of blocks that does not fit"))?);
                if operation.sum(data.chunks(BLOCK_SIZE).map(codec::content)) != region.load(at + SUM) {
                    return Err(bad("a checksum mismatch"));
                }
                let seqno = Seqno(region.load(at + SEQNO));
                records.push(Record { position, seqno, operation, data });
            }
            if state != SKIPPED {
                let seqno = if state == FILLED { region.load(at + SEQNO) } else { 0 };
                inner.entries.push_back(Entry { position, seqno: Some(seqno) });
            }
            inner.head += len;
        }
    }

    fn at(&self, position: u64) -> usize {
        HEAD + (position % self.capacity) as usize
    }

    /// Notes, before any disk tells of it, that the writer of this epoch is about to go on.
    pub fn claim(&self, epoch: Epoch) {
        let claims = self.region.load(AT_CLAIMS);
        self.region.store(AT_CLAIM + 8 * (claims % CLAIMS) as usize, epoch.0);
        self.region.store(AT_CLAIMS, claims.saturating_add(1));
    }

    /// All disks tell of the writer of this epoch: no earlier one can be taken for the newest any more.
    pub fn settle(&self, epoch: Epoch) {
        self.region.store(AT_EPOCH, epoch.0);
        self.region.store(AT_CLAIMS, 0);
    }

    /// Gives the records that are entered again the numbers after `last`, and forgets all others. They must be in the order of their numbers, which
    /// are above `last`.
    pub fn renumber(&self, records: &mut [Record], last: Seqno) {
        self.inner.lock().entries.iter_mut().for_each(|e| e.seqno = Some(0));
        for (record, new) in records.iter_mut().zip(last.0 + 1..) {
            debug_assert!(record.seqno.0 >= new, "numbers only shrink");
            record.seqno = Seqno(new);
            self.region.store(self.at(record.position) + SEQNO, new);
            self.set_seqno(record.position, new);
        }
    }

    fn set_seqno(&self, position: u64, seqno: u64) {
        let mut inner = self.inner.lock();
        if let Ok(i) = inner.entries.binary_search_by_key(&position, |e| e.position) {
            inner.entries[i].seqno = Some(seqno);
        }
    }

    /// Room for a record with so many bytes of data; none when older records have to leave first.
    pub fn reserve(&self, payload: usize) -> Option<Place<'_>> {
        let len = record_len(payload);
        let mut inner = self.inner.lock();
        let rest = self.capacity - inner.head % self.capacity;
        let skipped = if rest < len { rest } else { 0 };
        if skipped + len > self.capacity - (inner.head - inner.tail) {
            return None;
        }
        if skipped > 0 {
            self.mark(inner.head, skipped, SKIPPED);
            inner.head += skipped;
            if inner.entries.is_empty() {
                inner.tail = inner.head;
                self.region.store(AT_TAIL, inner.tail);
            }
        }
        let position = inner.head;
        self.mark(position, len, RESERVED);
        inner.entries.push_back(Entry { position, seqno: None });
        inner.head += len;
        Some(Place { ring: self, position, payload, filled: false })
    }

    fn mark(&self, position: u64, len: u64, state: u64) {
        let at = self.at(position);
        self.region.store(at + STATE, 0);
        self.region.store(at + POSITION, position ^ self.secret);
        self.region.store(at + LENGTH, len);
        self.region.store(at + STATE, state);
    }

    /// Lets records go that the log has: those with numbers up to `durable` before which no other is needed.
    pub fn release(&self, durable: u64) {
        let mut inner = self.inner.lock();
        let before = inner.entries.len();
        while inner.entries.front().and_then(|e| e.seqno).is_some_and(|seqno| seqno <= durable) {
            inner.entries.pop_front();
        }
        if inner.entries.len() < before {
            // Before anybody can store to what is free now.
            inner.tail = inner.entries.front().map_or(inner.head, |e| e.position);
            self.region.store(AT_TAIL, inner.tail);
        }
    }

    /// The number that must be durable before there is more room; none while the oldest record is being filled.
    pub fn oldest(&self) -> Option<Seqno> {
        self.inner.lock().entries.front().and_then(|e| e.seqno).map(Seqno)
    }

    /// When it is more than half full: the number that should be durable soon. Each is given once.
    pub fn pressing(&self) -> Option<Seqno> {
        let mut inner = self.inner.lock();
        if inner.head - inner.tail <= self.capacity / 2 {
            return None;
        }
        let middle = inner.entries.len() / 2;
        let oldest = inner.entries.front().and_then(|e| e.seqno)?;
        let wanted = inner.entries.iter().take(middle + 1).filter_map(|e| e.seqno).max()?;
        if inner.asked >= oldest {
            return None;
        }
        inner.asked = wanted;
        Some(Seqno(wanted))
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        let inner = self.inner.lock();
        inner.head - inner.tail
    }
}

fn halves(pool: Uuid) -> (u64, u64) {
    let whole = u128::from_le_bytes(pool.0);
    (whole as u64, (whole >> 64) as u64)
}
